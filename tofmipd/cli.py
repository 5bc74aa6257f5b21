"""The command line: options become settings, words become tools."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import functools
import importlib
import io
import os
import platform
import pwd
import socket
import sys
import traceback
from collections.abc import Callable
from typing import cast

from tofmipd import __version__
from tofmipd.arguments import Parser
from tofmipd.errors import CANT_CREATE, PERMISSION, SOFTWARE, USAGE, Fatal
from tofmipd.options import COMMANDS, make_parser
from tofmipd.programs import PATH
from tofmipd.settings import (
    DEFAULT_PORT,
    TLS_MODES,
    EncryptionSettings,
    GlobalMode,
    Limits,
    Listen,
    NextHopLimits,
    Person,
    ProgramLimits,
    Queue,
    Quotas,
    Relay,
    Scripts,
    SenderCheck,
    Settings,
    SourceSpec,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status, which is one of sysexits.h."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "-1" in arguments or "--one-session" in arguments:
        from tofmipd import onesession

        return onesession.guarded(_main, arguments)
    return _main(arguments)


def _main(arguments: list[str]) -> int:
    try:
        status = _run(arguments)
        _flush()
        return status
    except Fatal as error:
        print(f"tofmipd: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read this has enough; the interpreter would complain when it flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _bug(error, arguments)
        print(f"tofmipd: cannot write: {error.strerror}", file=sys.stderr)
        return CANT_CREATE
    except Exception as error:
        return _bug(error, arguments)


def _bug(error: Exception, arguments: list[str]) -> int:
    print(f"tofmipd: internal error: {type(error).__name__}: {error}", file=sys.stderr)
    if "-d" in arguments or "--debug" in arguments:
        traceback.print_exc()
    return SOFTWARE


def _flush() -> None:
    """Raises Fatal when what has been printed cannot be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # The interpreter would try, and complain, once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        text = f"standard output cannot be written: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        word = arguments[0]
        if word not in COMMANDS:
            near = difflib.get_close_matches(word, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise Fatal(USAGE, f"there is no command {word!r}; {hint}")
        module = importlib.import_module(f"tofmipd.commands.{word}")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What a terminal cannot show must not end the tool.
            sys.stdout.reconfigure(errors="backslashreplace")
        return cast(Callable[[list[str]], int], module.main)(arguments[1:])
    settings = settings_from(arguments)
    from tofmipd import daemon

    return daemon.run(settings)


def settings_from(arguments: list[str]) -> Settings:
    """The daemon's settings.  Raises Fatal; ends the program for usage errors."""
    parser = make_parser()
    options = parser.parse_known(arguments)
    _answer_at_once(parser, options)
    _refuse_contradictions(parser, options)
    _refuse_bad_remotes(options)
    return _settings(options)


def _answer_at_once(parser: Parser, options: argparse.Namespace) -> None:
    if options.help:
        sys.stdout.write(parser.format_help())
    elif options.full_version:
        print(full_version(_global_mode_of(options)))
    elif options.version:
        print(f"tofmipd {__version__}")
    else:
        return
    sys.stdout.flush()
    sys.exit(0)


def _refuse_contradictions(parser: Parser, options: argparse.Namespace) -> None:
    if options.tls is not None and options.tls not in TLS_MODES:
        parser.error(f"--tls takes one of {', '.join(TLS_MODES)}, e.g. --tls=on")
    if options.configdir and options.vhome_script:
        parser.error("-c and -S exclude each other")
    if options.ssl and options.tls:
        parser.error("--ssl and --tls exclude each other; -p HOST:PORT,ssl is for one listener")
    certificates = len(options.ssl_cert), len(options.ssl_key)
    if certificates[0] != certificates[1]:
        parser.error("each --ssl-cert needs its --ssl-key, and the other way round")
    encrypted = [spec for spec in _listeners(options) if spec.mode != "plain"]
    if encrypted and not options.ssl_cert:
        parser.error("--ssl and --tls need both --ssl-cert and --ssl-key")
    others = options.ssl_cert or options.ssl_sni_dir or options.ssl_client_ca or options.ciphers
    # Sockets that systemd passes have modes of their own.
    if others and not encrypted and "LISTEN_FDS" not in os.environ:
        parser.error("certificates and ciphers are of no use without --ssl or --tls=MODE")
    if (options.relay_tls or options.relay_ca) and not options.relay:
        parser.error("--relay-tls and --relay-ca are of no use without --relay")
    if options.relay_ca and options.relay_tls not in (None, "verify"):
        parser.error("--relay-ca is of no use unless certificates are verified")


def _listeners(options: argparse.Namespace) -> tuple[Listen, ...]:
    """Where to listen, each with its mode."""
    mode = "ssl" if options.ssl else options.tls or "plain"
    asked = [*options.proxyport, *options.ipv6proxyport] or [
        Listen("localhost", DEFAULT_PORT, mode="")
    ]
    return tuple(spec._replace(mode=spec.mode or mode) for spec in asked)


def _refuse_bad_remotes(options: argparse.Namespace) -> None:
    for source in options.sources:
        if source.kind == "remote":
            _refuse_bad_remote(source.argument)


def _refuse_bad_remote(url: str) -> None:
    from tofmipd.auth.remote import remote_server

    try:
        remote_server(url)
    except ValueError as error:
        raise Fatal(USAGE, f"-R: {error}") from None


def _settings(options: argparse.Namespace) -> Settings:
    who = person()
    mode = _global_mode(options, who)
    default = "/etc/tofmipd" if mode else f"{who.home}/.tmda/tofmipd"
    sources = tuple(
        spec if spec.kind != "file" else SourceSpec("file", absolute(spec.argument, who.home))
        for spec in options.sources
    )
    limits = Limits(
        connections=options.connections,
        connections_per_address=options.connections_per_address,
        login_timeout=options.login_timeout,
        idle_timeout=options.idle_timeout,
        data_timeout=options.data_timeout,
        minimum_rate=options.minimum_rate,
        write_timeout=options.write_timeout,
        size=options.size,
        max_recipients=options.max_recipients,
        max_errors=options.max_errors,
        max_auth_failures=options.max_auth_failures,
        auth_failures_per_address=options.auth_failures_per_address,
    )
    next_hop = NextHopLimits(
        options.nexthop_connect_timeout, options.nexthop_timeout, options.nexthop_dot_timeout
    )
    return Settings(
        person=who,
        global_mode=mode,
        listen=_listeners(options),
        authfile=absolute(options.authfile or default, who.home),
        sources=sources,
        remote_ca=absolute(options.remoteauth_ca, who.home),
        remote_tls=options.remoteauth_tls,
        mechanisms=_mechanisms(options.mechanisms),
        sender_check=_sender_check(options, who, mode),
        ipauthmap="/etc/ipauthmap" if mode else f"{who.home}/.tmda/ipauthmap",
        configdir=absolute(options.configdir, who.home),
        # What root's environment says of files is said for all users, or for none.
        site_config=absolute(os.environ.get("GLOBAL_TMDARC", ""), who.home)
        or Settings(who).site_config,
        user_config="" if mode else absolute(os.environ.get("TMDARC", ""), who.home),
        user_filter="" if mode else absolute(os.environ.get("TMDA_FILTER_OUTGOING", ""), who.home),
        scripts=_scripts(options, who),
        host_name=host_name(),
        foreground=options.foreground,
        one_session=options.one_session,
        pid_file=absolute(options.pid_file, who.home),
        debug=options.debug,
        log=options.log,
        log_file=absolute(options.log_file, who.home),
        one_cpu=options.cpus == "one",
        insecure_auth=options.insecure_auth,
        fix_bare_newline=options.bare_newline == "fix",
        pass_eight_bit=options.eight_bit == "pass",
        encryption=_encryption(options, who),
        received=options.received,
        limits=limits,
        quotas=_quotas(options, who, mode),
        next_hop=next_hop,
        queue=Queue(
            absolute(options.outbox, who.home),
            options.spool,
            options.queue_lifetime,
            options.queue_warning,
            options.queue_retry,
        ),
        relay=Relay(options.relay, options.relay_tls or "", absolute(options.relay_ca, who.home)),
        programs=ProgramLimits(
            options.source_timeout, options.script_timeout, options.source_attempts
        ),
    )


def _mechanisms(text: str) -> tuple[str, ...]:
    """Raises Fatal."""
    from tofmipd.smtp.sasl import MECHANISMS

    names = tuple(name.upper() for name in text.replace(",", " ").split())
    for name in names:
        if name not in MECHANISMS:
            known = ", ".join(MECHANISMS)
            raise Fatal(USAGE, f"--mechanisms: there is no {name!r}; there are {known}")
    return names


def _sender_check(options: argparse.Namespace, who: Person, mode: GlobalMode | None) -> SenderCheck:
    default = "/etc/tofmipd.d/senders" if mode else f"{who.home}/.tmda/senders"
    return SenderCheck(
        options.sender_check or ("others" if mode else "off"),
        tuple(dict.fromkeys(name.lower() for name in [*options.sender_domain, *_own_domains()])),
        absolute(options.senders or default, who.home),
    )


def _quotas(options: argparse.Namespace, who: Person, mode: GlobalMode | None) -> Quotas:
    default = "/var/lib/tofmipd/limits" if mode else f"{who.home}/.tmda/limits"
    file = absolute(options.limit_file or default, who.home)
    return Quotas(options.limit, options.limit_recipients, file)


def _own_domains() -> list[str]:
    """The names of this host: its own, and the one that its mail has (Debian's mailname)."""
    names = [host_name(), socket.gethostname(), "localhost", "localhost.localdomain"]
    with contextlib.suppress(OSError, UnicodeDecodeError), open("/etc/mailname") as file:
        names.append(file.readline(256).strip())
    return [name for name in names if name]


def _encryption(options: argparse.Namespace, who: Person) -> EncryptionSettings:
    pairs = zip(options.ssl_cert, options.ssl_key, strict=True)
    return EncryptionSettings(
        pairs=tuple((absolute(cert, who.home), absolute(key, who.home)) for cert, key in pairs),
        ciphers=options.ciphers,
        client_ca=absolute(options.ssl_client_ca, who.home),
        sni_directory=absolute(options.ssl_sni_dir, who.home),
    )


def _global_mode(options: argparse.Namespace, who: Person) -> GlobalMode | None:
    """None for a personal daemon.  Raises Fatal."""
    if os.getuid() != 0 or options.personal:
        if options.username and options.username != who.name:
            raise Fatal(PERMISSION, f"only root can run as -u {options.username}; start as root")
        return None
    return _global_mode_of(options)


def _global_mode_of(options: argparse.Namespace) -> GlobalMode:
    service = options.username or GlobalMode().service
    return GlobalMode(service, options.min_uid, options.max_workers)


def _scripts(options: argparse.Namespace, who: Person) -> Scripts:
    program = os.environ.get("TMDA_SENDMAIL_PROGRAM") or "/usr/sbin/sendmail"
    return Scripts(
        throttle=absolute(options.throttle_script or "", who.home),
        virtual_home=absolute(options.vhome_script or "", who.home),
        virtual_domains=absolute(options.vdomains_path, who.home),
        pass_through=program if options.pure_proxy else "",
        search_path=os.environ.get("PATH") or PATH,
    )


def absolute(path: str, home: str) -> str:
    """A path as a person writes it, "" for none: ``~`` is the home directory."""
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    return os.path.abspath(path) if path else ""


def person() -> Person:
    """Who runs this; HOME is where "~" leads, as in a shell."""
    uid = os.getuid()
    try:
        entry = pwd.getpwuid(uid)
        name, gecos, home = entry.pw_name, entry.pw_gecos, entry.pw_dir
    except KeyError:
        name, gecos, home = os.environ.get("USER", str(uid)), "", "/"
    home = os.environ.get("HOME") or home
    return Person(uid, name, gecos.partition(",")[0], os.path.abspath(home))


@functools.cache
def host_name() -> str:
    """The fully qualified name, or the plain one if that is all there is (TO-23).

    Asked for once: where the name service is broken that takes seconds.
    """
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def full_version(mode: GlobalMode) -> str:
    import ssl
    from importlib.metadata import PackageNotFoundError, version

    lines = [
        f"tofmipd {__version__}",
        f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.platform()}",
    ]
    for package in ("pyOpenSSL", "python-pam", "ldap3"):
        try:
            more = f" with {_openssl()}" if package == "pyOpenSSL" else ""
            lines.append(f"{package} {version(package)}{more}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    lines.append(f"started by root: {mode.roles}; else all is yours")
    return "\n".join(lines)


def _openssl() -> str:
    """What encrypts clients' connections; it need not be what Python itself uses."""
    try:
        from tofmipd.tls.contexts import library_version
    except ImportError:
        return "no library that works"
    return library_version()
