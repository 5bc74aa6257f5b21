"""The daemon's own files, as it would find them at its start; nothing is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from tofmipd import pidfile
from tofmipd.auth.files import SourceFileError, without_waiting
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.passwordfile import PasswordFileError
from tofmipd.auth.remote import BY_LOCAL_ADDRESS, remote_server
from tofmipd.auth.sources import chain_of
from tofmipd.commands.checkreport import Report, heard, why_no_directory, why_not_writable
from tofmipd.encrypted import Encryption
from tofmipd.errors import Fatal
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.trust import context_for
from tofmipd.privsep.accounts import service_rights
from tofmipd.privsep.attempts import KINDS, attempt_of
from tofmipd.privsep.deputy import Deputy, DeputyFailed
from tofmipd.privsep.directories import check_private
from tofmipd.privsep.drop import Rights
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.nexthops import relay_hops
from tofmipd.privsep.outboxes import OutboxError, check_base
from tofmipd.privsep.personal import quota_of
from tofmipd.privsep.senders import SendersError, SendersFile
from tofmipd.privsep.virtualdomains import VirtualDomains
from tofmipd.renewal import check_scripts
from tofmipd.settings import EncryptionSettings, Scripts, Settings, SourceSpec
from tofmipd.tls.files import is_open_to_all, pairs_among, paths_of

_LOOK_SECONDS = 30.0
_SQLITE = b"SQLite format 3\0"
# By kind of source, the option.
_OPTIONS = {"file": "authfile", "remote": "remoteauth", "program": "authprog", "pam": "pamauth"}


def check_daemon(report: Report, settings: Settings) -> None:
    """All but addresses to listen on."""
    rights = _account(report, settings)
    for check in (_scripts, _sources, _senders, _domains, _encryption, _relay, _places):
        check(report, settings)
    _limits(report, settings, rights)
    _needs(report, settings, rights)


def _account(report: Report, settings: Settings) -> Rights | None:
    """Those of the service; None in personal mode, and where there are none."""
    if settings.global_mode is None:
        return None
    try:
        rights = service_rights(settings.global_mode.service)
    except Fatal as error:
        report.blame(str(error), "username")
        return None
    report.good.append(f"account: {rights.name}, uid {rights.uid}")
    return rights


def _scripts(report: Report, settings: Settings) -> None:
    scripts = settings.scripts
    for name, one in (
        ("throttle_script", Scripts(throttle=scripts.throttle)),
        ("vhome_script", Scripts(virtual_home=scripts.virtual_home)),
    ):
        try:
            check_scripts(one)
        except Fatal as error:
            report.blame(str(error), name)


def _sources(report: Report, settings: Settings) -> None:
    owner = settings.person.uid if settings.global_mode is None else 0
    for index, spec in enumerate(settings.all_sources):
        name = "sources" if settings.sources else "authfile"
        for fault in _faults_of_source(settings, spec, owner):
            report.blame(fault, name, index, _OPTIONS[spec.kind])
        report.good.append(f"source: {_OPTIONS[spec.kind]} {spec.argument}")
    remote = [spec.argument for spec in settings.sources if spec.kind == "remote"]
    if any(remote_server(url).host == BY_LOCAL_ADDRESS for url in remote):
        with heard() as said:
            IpMap(settings.ipauthmap).find("")
        for text in said:
            report.blame(text)
        if not os.path.exists(settings.ipauthmap):
            report.notes.append(f"{settings.ipauthmap}: not there, so all logins go to 127.0.0.1")


def _faults_of_source(settings: Settings, spec: SourceSpec, owner: int) -> tuple[str, ...]:
    alone = settings._replace(sources=(spec,), encryption=EncryptionSettings())
    try:
        if spec.kind in KINDS:
            attempt_of(spec)
        else:
            chain_of(alone, owner, without_waiting)
    except PasswordFileError as error:
        return error.faults
    except SourceFileError as error:
        return (str(error),)
    return ()


def _senders(report: Report, settings: Settings) -> None:
    path, person = settings.sender_check.senders, settings.person
    if settings.sender_check.mode == "off":
        return
    if not os.path.exists(path):
        if report.is_said("senders"):
            report.blame(f"{path}: not there", "senders")
        return
    with heard() as said:
        try:
            SendersFile(path, person.uid if settings.global_mode is None else 0).find("")
        except SendersError as error:
            report.blame(str(error), "senders")
    for text in said:
        report.blame(text, "senders")


def _domains(report: Report, settings: Settings) -> None:
    scripts = settings.scripts
    if not scripts.virtual_home or settings.global_mode is None:
        return
    with heard() as said:
        try:
            VirtualDomains(scripts.virtual_domains, without_waiting)
        except OSError as error:
            text = f"cannot read {scripts.virtual_domains}: {error.strerror}; name the file with -v"
            report.blame(text, "vdomains_path")
    for text in said:
        report.blame(text, "vdomains_path")


def _encryption(report: Report, settings: Settings) -> None:
    """As a whole; and where that has a fault in parts, of which each may have one."""
    encryption = settings.encryption
    if not encryption.pairs:
        return
    with heard() as said:
        whole = _fault_of_tls(settings, encryption)
        before = len(report.faults)
        for index, pair in enumerate(encryption.pairs if whole else ()):
            fault = _fault_of_tls(settings, EncryptionSettings(pairs=(pair,)))
            if fault:
                report.blame(fault, "ssl_cert", index)
        for name, part in _other_parts(encryption) if whole else ():
            fault = _fault_of_tls(settings, part)
            if fault:
                report.blame(fault, name)
        if whole and len(report.faults) == before:
            report.blame(whole)
    open_keys = [key for _, key in encryption.pairs if is_open_to_all(key)]
    for index, (_, key) in enumerate(encryption.pairs):
        if key in open_keys:
            text = f"{key}: everybody on this machine can read the key (chmod 600)"
            report.blame(text, "ssl_key", index)
    notes = [text for text in said if not text.startswith(tuple(f"{key}: " for key in open_keys))]
    report.notes += dict.fromkeys(notes)
    report.good.append(f"certificates: {', '.join(chain for chain, _ in encryption.pairs)}")


def _other_parts(encryption: EncryptionSettings) -> Iterator[tuple[str, EncryptionSettings]]:
    """What there is beside the named pairs, each part by itself, with its option."""
    if encryption.ciphers:
        yield "ciphers", EncryptionSettings(ciphers=encryption.ciphers)
    if encryption.client_ca:
        yield "ssl_client_ca", EncryptionSettings(client_ca=encryption.client_ca)
    if encryption.sni_directory:
        directory = EncryptionSettings(sni_directory=encryption.sni_directory)
        try:
            pairs = pairs_among(directory, paths_of(directory))
        except OSError:
            yield "ssl_sni_dir", directory
            return
        for pair in pairs:
            yield "ssl_sni_dir", EncryptionSettings(pairs=(pair,))


def _fault_of_tls(settings: Settings, encryption: EncryptionSettings) -> str:
    try:
        Encryption(settings._replace(encryption=encryption))
    except Fatal as error:
        return str(error)
    return ""


def _relay(report: Report, settings: Settings) -> None:
    hops = relay_hops(settings.relay, settings.next_hop, settings.host_name)
    for hop in hops[:1]:
        try:
            context_for(hop)
        except HandOffFailed as error:
            report.blame(error.reply.lines[0], "relay_ca")


def _places(report: Report, settings: Settings) -> None:
    """Where files are made."""
    for name, what in (("log_file", "log file"), ("pid_file", "pid file")):
        path = getattr(settings, name)
        fault = why_not_writable(path) if path else ""
        if path and not fault and name == "pid_file":
            fault = pidfile.fault_of(path)
        if fault:
            report.blame(f"cannot write the {what} {path}: {fault}", name)
    if settings.configdir and not os.path.isdir(settings.configdir):
        report.blame(f"{settings.configdir} is not a directory", "configdir")
    outbox = settings.outbox
    fault = why_no_directory(outbox)
    if settings.global_mode is not None and os.path.lexists(outbox):
        try:
            check_base(outbox)
        except OutboxError as error:
            fault = str(error)
        except OSError as error:
            fault = error.strerror or str(error)
    if fault:
        report.blame(f"no outbox in {outbox}: {fault}", "outbox")
    report.good.append(f"outbox: {outbox}")


def _limits(report: Report, settings: Settings, rights: Rights | None) -> None:
    if not settings.quotas.given:
        return
    path = settings.quotas.file
    try:
        quota_of(settings)
        if rights is not None:
            check_private(os.path.dirname(path), rights)
        fault = "" if settings.global_mode is not None else why_not_writable(path)
        if not fault and os.path.exists(path):
            fault = _why_no_database(path)
    except Fatal as error:
        report.blame(str(error), "limit_file")
        return
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        report.blame(f"{path}: limits cannot be kept here: {fault}", "limit_file")


def _why_no_database(path: str) -> str:
    """Raises OSError."""
    with open(path, "rb", opener=without_waiting) as file:
        return "" if file.read(len(_SQLITE)) in (b"", _SQLITE) else "file is not a database"


class _Need(NamedTuple):
    """A file that the server, or a worker, must be able to use; ``mode`` is one of os.access()."""

    path: str
    mode: int
    option: str


def _needs(report: Report, settings: Settings, rights: Rights | None) -> None:
    """In global mode the service's account stands for everybody who is not root."""
    needs = list(_all_needs(settings))
    if settings.global_mode is None:
        # The list of senders has been read already.
        own = [need for need in needs if need.option != "senders"]
        missing = [need for need in own if not os.access(need.path, need.mode)]
        who = settings.person.name
    elif rights is None or not needs:
        return
    else:
        missing, who = _missing_for(report, needs, rights), rights.name
    for need in missing:
        what, mode = ("executed", 755) if need.mode == os.X_OK else ("read", 644)
        report.blame(
            f"{need.path} cannot be {what} by {who} (chmod {mode}, and its directories 755)",
            need.option,
        )


def _all_needs(settings: Settings) -> Iterator[_Need]:
    scripts, check = settings.scripts, settings.sender_check
    wanted = [
        _Need(scripts.throttle, os.X_OK, "throttle_script"),
        _Need(scripts.virtual_home, os.X_OK, "vhome_script"),
        _Need(settings.relay.ca_file, os.R_OK, "relay_ca"),
        _Need(settings.site_config, os.R_OK, ""),
        _Need(check.senders if check.mode != "off" else "", os.R_OK, "senders"),
    ]
    for need in wanted:
        # What is missing, or no program for anybody, has been told of.
        if need.path and os.path.exists(need.path) and not _is_no_program(need):
            yield need


def _is_no_program(need: _Need) -> bool:
    return need.mode == os.X_OK and not (
        os.path.isfile(need.path) and os.access(need.path, os.X_OK)
    )


def _missing_for(report: Report, needs: list[_Need], rights: Rights) -> list[_Need]:
    def work() -> Iterator[dict[str, Any]]:
        yield {"missing": [n for n, need in enumerate(needs) if not os.access(*need[:2])]}

    identity = Identity(rights.name, rights.name)
    deputy = Deputy(identity, rights, "/", _LOOK_SECONDS, "tofmipd-check")
    try:
        (line,) = deputy.lines(work)
        return [needs[number] for number in line["missing"]]
    except (DeputyFailed, OSError) as error:
        report.blame(f"no process for {rights.name}: {error}")
        return []
