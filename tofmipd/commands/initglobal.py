"""`tofmipd init` as root: all that a daemon for all users of the system needs."""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import subprocess
from dataclasses import dataclass

from tofmipd.commands import daemonfile, initway
from tofmipd.commands.certificate import Pair, certificate_of, choose_pair, name_on
from tofmipd.commands.initnext import (
    OF_SYSTEM,
    note_kept,
    print_certificate,
    print_clients,
    print_files,
    print_table,
    program,
    start_command,
)
from tofmipd.commands.newfiles import demand_own, make_directory, write_if_missing
from tofmipd.commands.questions import Questions
from tofmipd.commands.setup import Way
from tofmipd.errors import CANT_CREATE, USAGE, Fatal
from tofmipd.privsep.accounts import service_rights
from tofmipd.programs import PATH
from tofmipd.settings import DEFAULT_PORT, GlobalMode, Person

PASSWORDS, DIRECTORY, PAM_SERVICE = "/etc/tofmipd", "/etc/tofmipd.d", "/etc/pam.d/tofmipd"
LOGINS = ("pam", "file")
_SUBMISSIONS_PORT, _SUBMISSION_PORT = 465, 587
_PAM_DIRECTORY = os.path.dirname(PAM_SERVICE)
_SECONDS = 60

PAM_TEXT = """\
# PAM service of "tofmipd -m tofmipd": the passwords and accounts of /etc/shadow.
# Only "auth" and "account" are used.
auth     required  pam_unix.so nodelay
account  required  pam_unix.so
"""
_PASSWORD_TEXT = "# user:password, a line each; mode 0600 ('tofmipd user add NAME' writes one)\n"


@dataclass(frozen=True, slots=True)
class _Wishes:
    """All that was told or asked for, before anything is written."""

    way: Way
    logins: str
    port: int
    pair: Pair | None


def for_everybody(options: argparse.Namespace, who: Person) -> int:
    """Make what is missing and say what comes next.  Raises Fatal."""
    demand_own(DIRECTORY, 0)
    path = daemonfile.GLOBAL_PATH
    note_kept(path, options, OF_SYSTEM)
    wishes = None if os.path.lexists(path) else _wishes(options, Questions())
    _have_account(GlobalMode().service)
    if wishes is None:
        print_files([(path, False)])
    else:
        _write(wishes)
    _say_what_next(who, options.host)
    return 0


def _write(wishes: _Wishes) -> None:
    """Raises Fatal."""
    if wishes.logins == "pam":
        print_files([(PAM_SERVICE, write_if_missing(PAM_SERVICE, PAM_TEXT, 0o644))])
    else:
        print_files([(PASSWORDS, write_if_missing(PASSWORDS, _PASSWORD_TEXT))])
    if wishes.pair is not None:
        make_directory(DIRECTORY, 0o755)
        print_files(wishes.pair.make())
    # Last, so that what it names is there.
    print_files([daemonfile.write(daemonfile.GLOBAL_PATH, _lines(wishes), 0o644)])


def _wishes(options: argparse.Namespace, questions: Questions) -> _Wishes:
    """Raises Fatal."""
    way = _way(options, questions)
    logins = options.login
    if not logins:
        question = "Users log in with the passwords of their accounts (pam), or of a file (file)"
        logins = questions.text(question, "pam" if _has_pam() else "file", _login_kind)
    paths = f"{DIRECTORY}/cert.pem", f"{DIRECTORY}/key.pem"
    pair = choose_pair(options, questions, *paths, cert_mode=0o644)
    port = options.port or (0 if pair else daemonfile.free_port(DEFAULT_PORT))
    return _Wishes(way, logins, port, pair)


def _way(options: argparse.Namespace, questions: Questions) -> Way:
    if options.smtp_user:
        raise Fatal(USAGE, "--smtp-user is for your own mail; for all users set it in /etc/tmdarc")
    return initway.choose(options, questions, with_login=False)


def _login_kind(text: str) -> str:
    if text not in LOGINS:
        raise Fatal(USAGE, f"{' or '.join(LOGINS)}?")
    return text


def _has_pam() -> bool:
    return os.path.isdir(_PAM_DIRECTORY) and importlib.util.find_spec("pam") is not None


def _have_account(name: str) -> None:
    """Make the account of the service, if there is none.  Raises Fatal, also for an unfit one."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        _make_account(name)
        new = True
    else:
        new = False
    service_rights(name)
    print_files([(f"account {name}", new)])


def _make_account(name: str) -> None:
    """Raises Fatal, which names the commands."""
    command = ["useradd", "--system", "--home-dir", "/nonexistent", "--no-create-home"]
    command += ["--shell", "/nonexistent", *_group_options(name), name]
    try:
        done = subprocess.run(
            command,
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        service_rights(name)
        raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Fatal(CANT_CREATE, f"{' '.join(command)}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise Fatal(CANT_CREATE, f"{' '.join(command)}: {said}")


def _group_options(name: str) -> list[str]:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return ["--user-group"]
    return ["--gid", name]


def _lines(wishes: _Wishes) -> list[tuple[str, str]]:
    """Of the daemon's file."""
    lines = [("pamauth", "tofmipd") if wishes.logins == "pam" else ("authfile", PASSWORDS)]
    if wishes.port:
        lines.append(("proxyport", f"localhost:{wishes.port}"))
    if wishes.pair is not None:
        lines += daemonfile.everywhere(_SUBMISSIONS_PORT, "ssl")
        lines += daemonfile.everywhere(_SUBMISSION_PORT, "tls=on")
        lines += [("ssl-cert", wishes.pair.cert), ("ssl-key", wishes.pair.key)]
    way = wishes.way
    if way.smtp_host:
        lines += [("relay", way.smtp_host), ("relay-tls", way.policy)]
    return lines


def _say_what_next(who: Person, host: str) -> None:
    """By the daemon's file, whoever has written it."""
    path = daemonfile.GLOBAL_PATH
    places, seen = daemonfile.listeners(path), certificate_of(path)
    rows = [("Next", start_command(who.home, personal=False))]
    password = "as for the account"
    if not daemonfile.value(path, "pamauth"):
        rows.insert(0, ("a login", f"{program()} user add NAME"))
        password = "as given to 'user add'"
    rows.append(("each user", f"{program()} init --user-files"))
    rows.append(("and then", f"{program()} test ADDRESS"))
    print_table(rows)
    print_clients(places, host or name_on(seen), "that of the account", password)
    for port in sorted({place.port for place in places}):
        if not daemonfile.is_free(port):
            print(f"note  something listens on port {port} now")
    print_certificate(seen)
