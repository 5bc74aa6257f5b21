"""The command line: options become settings, words become tools.

A client of one session waits for this: what only some need is imported where they do.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import pwd
import socket
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from tofmipd import __version__
from tofmipd.arguments import nearest
from tofmipd.configfile import read as read_config
from tofmipd.contradictions import contradictions, listeners
from tofmipd.errors import CANT_CREATE, CONFIG, PERMISSION, SOFTWARE, USAGE, Fatal
from tofmipd.given import Fault, Given, from_command_line, from_file, merged
from tofmipd.options import COMMANDS, FLAGS, make_parser
from tofmipd.settings import (
    EncryptionSettings,
    GlobalMode,
    Limits,
    LogSettings,
    NextHopLimits,
    Options,
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tofmipd.onesession import Connection

# Options of a daemon that root starts for all users.
GLOBAL_CONFIG = "/etc/tofmipd.conf"


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status, which is one of sysexits.h."""
    arguments = sys.argv[1:] if arguments is None else arguments
    is_daemon = not arguments or arguments[0].startswith("-")
    if is_daemon and any(map(_asks_for_one, arguments)):
        from tofmipd import onesession

        return onesession.guarded(_main, arguments)
    return _main(arguments)


def _asks_for_one(word: str) -> bool:
    """Whether a word of the command line, not parsed yet, is or holds -1."""
    if word.startswith("--"):
        return word == "--one-session"
    # Letters without a value may stand before it.
    return word.startswith("-") and word[1:].lstrip(FLAGS).startswith("1")


def _main(arguments: list[str]) -> int:
    try:
        status = _run(arguments)
        _flush()
        return status
    except Fatal as error:
        for line in error.lines:
            print(f"tofmipd: {line}", file=sys.stderr)
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
        import traceback

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
        return _run_tool(arguments[0], arguments[1:])
    settings = settings_from(arguments)
    connection = _connection(settings) if settings.one_session else None
    from tofmipd import daemon

    directory = current_directory()
    return daemon.run(settings, again=lambda: _options(arguments, directory), connection=connection)


def _connection(settings: Settings) -> Connection:
    """The one to serve, greeted before what serves it is imported.  Raises Fatal."""
    from tofmipd.onesession import Connection
    from tofmipd.systemd import inherited

    passed = inherited(os.environ)
    connection = Connection(os.environ, passed[0][0] if passed else None)
    # From a proxy a header comes first, and who sends none gets no word.
    if settings.listen[0].mode != "ssl" and not settings.listen[0].proxies:
        connection.greet(settings.host_name)
    return connection


def _options(arguments: list[str], directory: str) -> Options:
    """As they are now.  Raises Fatal."""
    gathered = gather(arguments, directory)
    # Where the file is, is no option.
    values = dict(vars(gathered.given.options))
    del values["config_file"]
    return Options(gathered.settings, values)


def settings_from(arguments: list[str]) -> Settings:
    """The daemon's settings.  Raises Fatal; ends the program for ``--help`` and the like."""
    _answer_at_once(arguments)
    return gather(arguments).settings


class Gathered(NamedTuple):
    """What command line and configuration file come to, and where all of it was said."""

    settings: Settings
    given: Given


def gather(arguments: list[str], directory: str = "") -> Gathered:
    """Read the configuration file and put it together with the command line.

    Relative paths of the command line begin at ``directory``, "" for the current one; so a daemon
    that has left it can ask again.  Raises Fatal with all faults.
    """
    settings, given = attempt(arguments, directory)
    if given.faults or settings is None:
        statuses = {fault.status for fault in given.faults}
        status = statuses.pop() if len(statuses) == 1 else CONFIG
        raise Fatal(status, "\n".join(map(str, given.faults)))
    return Gathered(settings, given)


def attempt(arguments: list[str], directory: str = "") -> tuple[Settings | None, Given]:
    """The same, whatever is wrong: what is said without lines of the file that have a fault.

    No settings where options contradict each other.  Raises Fatal for the command line, and for a
    file that cannot be read.
    """
    given, who = options_of(arguments, directory), person()
    faults = tuple(_faults(given, who))
    if faults:
        return None, given._replace(faults=given.faults + faults)
    return _settings(given.options, who, directory), given


def options_of(arguments: list[str], directory: str = "") -> Given:
    """The options alone, without a question to anybody; faults are those of lines of the file.

    Raises Fatal for the command line, and for a file that cannot be read.
    """
    parser, who = _parser(), person()
    try:
        said = from_command_line(parser, arguments, directory)
    except ValueError as error:
        raise Fatal(USAGE, str(error)) from None
    path = _config_file(said.options, who, directory)
    text = read_config(path, named=said.options.config is not None) if path else None
    given = merged(parser, said, from_file(parser, path, text or ""))
    given.options.config_file = path if text is not None else ""
    return given


_parser = functools.cache(make_parser)


def _config_file(options: argparse.Namespace, who: Person, directory: str) -> str:
    """ "" for none."""
    if options.config is not None:
        return "" if options.config == "none" else absolute(options.config, who.home, directory)
    return GLOBAL_CONFIG if _is_global(options) else personal_config_file(who)


def personal_config_file(who: Person) -> str:
    """That of a daemon of one's own."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    # Another one than a whole path does not count (XDG Base Directory Specification).
    return f"{base if base.startswith('/') else who.home + '/.config'}/tofmipd.conf"


def _answer_at_once(arguments: list[str]) -> None:
    """Without any file: what is wrong in one must not keep anybody from being told."""
    parser = _parser()
    try:
        options = parser.given(arguments)
    except ValueError as error:
        raise Fatal(USAGE, str(error)) from None
    if options.help:
        sys.stdout.write(parser.format_help())
    elif options.full_version:
        print(full_version(_global_mode_of(argparse.Namespace(**parser.defaults | _said(options)))))
    elif options.version:
        print(f"tofmipd {__version__}")
    else:
        return
    sys.stdout.flush()
    sys.exit(0)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if value is not None}


def _faults(given: Given, who: Person) -> Iterator[Fault]:
    """What is wrong with options that can all be understood."""
    options = given.options
    for text, names in contradictions(options, activated=_is_activated()):
        yield given.fault(text, names)
    for index, source in enumerate(options.sources):
        fault = _fault_of_remote(source.argument) if source.kind == "remote" else ""
        if fault:
            yield given.fault(f"-R: {fault}", ["sources"], index)
    fault = _fault_of_mechanisms(options.mechanisms)
    if fault:
        yield given.fault(f"--mechanisms: {fault}", ["mechanisms"])
    if not _is_global(options) and options.username not in ("", who.name):
        text = f"only root can run as -u {options.username}; start as root"
        yield given.fault(text, ["username"], status=PERMISSION)


@functools.cache
def _is_activated() -> bool:
    """Whether systemd passes sockets; asked for the first time before they are taken."""
    return "LISTEN_FDS" in os.environ


def _fault_of_remote(url: str) -> str:
    """ "" for none."""
    from tofmipd.auth.remote import remote_server

    try:
        remote_server(url)
    except ValueError as error:
        return str(error)
    return ""


def _settings(options: argparse.Namespace, who: Person, directory: str) -> Settings:
    mode = _global_mode_of(options) if _is_global(options) else None
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

    def of_environment(name: str) -> str:
        return absolute(os.environ.get(name, ""), who.home, directory)

    return Settings(
        person=who,
        global_mode=mode,
        config_file=options.config_file,
        listen=listeners(options),
        authfile=absolute(options.authfile or default, who.home),
        sources=sources,
        remote_ca=absolute(options.remoteauth_ca, who.home),
        remote_tls=options.remoteauth_tls,
        mechanisms=_mechanisms(options.mechanisms),
        sender_check=_sender_check(options, who, mode),
        ipauthmap="/etc/ipauthmap" if mode else f"{who.home}/.tmda/ipauthmap",
        configdir=absolute(options.configdir, who.home),
        # What root's environment says of files is said for all users, or for none.
        site_config=of_environment("GLOBAL_TMDARC") or Settings(who).site_config,
        user_config="" if mode else of_environment("TMDARC"),
        user_filter="" if mode else of_environment("TMDA_FILTER_OUTGOING"),
        scripts=_scripts(options, who),
        host_name=host_name(),
        foreground=options.foreground,
        one_session=options.one_session,
        pid_file=absolute(options.pid_file, who.home),
        debug=options.debug,
        log=options.log,
        log_file=absolute(options.log_file, who.home),
        log_settings=LogSettings(options.log_format, options.syslog_facility, _journal_listens()),
        one_cpu=options.cpus == "one",
        insecure_auth=options.insecure_auth,
        fix_bare_newline=options.bare_newline == "fix",
        xclient=options.xclient,
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
    return tuple(name.upper() for name in text.replace(",", " ").split())


def _fault_of_mechanisms(text: str) -> str:
    """ "" for none."""
    if not text:
        return ""
    from tofmipd.smtp.sasl import MECHANISMS

    unknown = [name for name in _mechanisms(text) if name not in MECHANISMS]
    return f"there is no {unknown[0]!r}; there are {', '.join(MECHANISMS)}" if unknown else ""


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


def _is_global(options: argparse.Namespace) -> bool:
    return os.getuid() == 0 and not options.personal


def _global_mode_of(options: argparse.Namespace) -> GlobalMode:
    service = options.username or GlobalMode().service
    return GlobalMode(service, options.min_uid, options.max_workers)


def _run_tool(word: str, arguments: list[str]) -> int:
    import importlib
    import io

    if word not in COMMANDS:
        near = nearest(word, COMMANDS)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(COMMANDS)}"
        raise Fatal(USAGE, f"there is no command {word!r}; {hint}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal cannot show must not end the tool.
        sys.stdout.reconfigure(errors="backslashreplace")
    status: int = importlib.import_module(f"tofmipd.commands.{word}").main(arguments)
    return status


def _scripts(options: argparse.Namespace, who: Person) -> Scripts:
    program = os.environ.get("TMDA_SENDMAIL_PROGRAM") or "/usr/sbin/sendmail"
    return Scripts(
        throttle=absolute(options.throttle_script or "", who.home),
        virtual_home=absolute(options.vhome_script or "", who.home),
        virtual_domains=absolute(options.vdomains_path, who.home),
        pass_through=program if options.pure_proxy else "",
        search_path=os.environ.get("PATH") or _usual_path(),
    )


def _usual_path() -> str:
    from tofmipd.programs import PATH

    return PATH


def _journal_listens() -> bool:
    """Whether standard error goes to the journal of systemd (systemd.exec(5))."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


def absolute(path: str, home: str, directory: str = "") -> str:
    """A path as a person writes it, "" for none: ``~`` is the home directory, and others begin at
    ``directory``, "" for the current one."""
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    return os.path.abspath(os.path.join(directory, path)) if path else ""


def current_directory() -> str:
    """ "" where it has been removed."""
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return ""


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
    import platform
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
