"""The command line: options become settings, words become tools."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import platform
import pwd
import socket
import sys
import traceback
from collections.abc import Callable
from typing import cast

from tofmipd import __version__
from tofmipd.arguments import Parser, host_port, host_port_v6, positive, seconds
from tofmipd.errors import SOFTWARE, UNAVAILABLE, USAGE, Fatal
from tofmipd.settings import Limits, NextHopLimits, Person, Settings

# The tools beside the daemon: word -> what it does.  Each is a module of tofmipd.commands.
COMMANDS = {
    "init": "make what a first mail needs: key, configuration, filter, password",
    "test": "send one mail through a running tofmipd",
    "keygen": "make a key for tagged addresses",
    "address": "make or check a tagged address",
    "inject": "ask which rule of the filter matches (-M)",
    "demo": "try everything out in a folder of its own",
}

_USAGE = "tofmipd [options]\n       tofmipd WORD ...      (tofmipd WORD --help says more)"

_DESCRIPTION = """\
An authenticated SMTP submission proxy.  A mail client logs in; the sender's address is
tagged for each recipient as ~/.tmda says; the real mail server gets the message."""

_LIMITS, _NEXT_HOP = Limits(), NextHopLimits()
_TLS_MODES = ("on", "optional", "localoptional")

# Options whose feature is not there yet: destination -> how the person wrote it.
_NOT_BUILT_YET = {
    "one_session": "-1, --one-session",
    "pure_proxy": "-P, --pure-proxy",
    "throttle_script": "-t, --throttle-script",
    "ssl": "--ssl",
    "tls": "--tls",
    "ssl_cert": "--ssl-cert",
    "ssl_key": "--ssl-key",
    "ciphers": "--ciphers",
    "remoteauth": "-R, --remoteauth",
    "authprog": "-A, --authprog",
    "pamauth": "-m, --pamauth",
    "vhome_script": "-S, --vhome-script",
    "vdomains_path": "-v, --vdomains-path",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit status, which is one of sysexits.h."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except Fatal as error:
        print(f"tofmipd: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        # Whoever read this has enough; the interpreter would complain when it flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        print(f"tofmipd: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        if "-d" in arguments or "--debug" in arguments:
            traceback.print_exc()
        return SOFTWARE


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        word = arguments[0]
        if word not in COMMANDS:
            near = difflib.get_close_matches(word, COMMANDS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise Fatal(USAGE, f"there is no command {word!r}; {hint}")
        module = importlib.import_module(f"tofmipd.commands.{word}")
        return cast(Callable[[list[str]], int], module.main)(arguments[1:])
    settings = settings_from(arguments)
    from tofmipd import daemon

    return daemon.run(settings)


def settings_from(arguments: list[str]) -> Settings:
    """The daemon's settings.  Raises Fatal; ends the program for usage errors."""
    parser = _parser()
    options = parser.parse_known(arguments)
    _answer_at_once(parser, options)
    _refuse_contradictions(parser, options)
    _refuse_what_is_not_built(options)
    return _settings(options)


def _answer_at_once(parser: Parser, options: argparse.Namespace) -> None:
    if options.help:
        sys.stdout.write(parser.format_help())
    elif options.full_version:
        print(full_version())
    elif options.version:
        print(f"tofmipd {__version__}")
    else:
        return
    sys.stdout.flush()
    sys.exit(0)


def _refuse_contradictions(parser: Parser, options: argparse.Namespace) -> None:
    if options.tls is not None and options.tls not in _TLS_MODES:
        parser.error(f"--tls takes one of {', '.join(_TLS_MODES)}, e.g. --tls=on")
    if options.configdir and options.vhome_script:
        parser.error("-c and -S exclude each other")
    if options.ssl and options.tls:
        parser.error("--ssl and --tls exclude each other")
    if (options.ssl or options.tls) and not (options.ssl_cert and options.ssl_key):
        parser.error("--ssl and --tls need both --ssl-cert and --ssl-key")


def _refuse_what_is_not_built(options: argparse.Namespace) -> None:
    for name, spelling in _NOT_BUILT_YET.items():
        if getattr(options, name):
            raise Fatal(UNAVAILABLE, f"{spelling} is not built yet")
    if options.username and options.username != person().name:
        raise Fatal(UNAVAILABLE, f"-u {options.username} is not built yet; start as that user")
    if os.getuid() == 0 and not options.personal:
        raise Fatal(
            UNAVAILABLE,
            "global mode (a start by root) is not built yet; "
            "start as an ordinary user, or add --personal to serve root alone",
        )


def _settings(options: argparse.Namespace) -> Settings:
    who = person()
    listen = tuple(options.proxyport + options.ipv6proxyport)
    limits = Limits(
        connections=options.connections,
        login_timeout=options.login_timeout,
        idle_timeout=options.idle_timeout,
        data_timeout=options.data_timeout,
        size=options.size,
        max_recipients=options.max_recipients,
        max_errors=options.max_errors,
        max_auth_failures=options.max_auth_failures,
    )
    next_hop = NextHopLimits(
        options.nexthop_connect_timeout, options.nexthop_timeout, options.nexthop_dot_timeout
    )
    return Settings(
        person=who,
        listen=listen or Settings(who).listen,
        authfile=_absolute(options.authfile or f"{who.home}/.tmda/tofmipd", who.home),
        configdir=_absolute(options.configdir, who.home),
        host_name=host_name(),
        foreground=options.foreground,
        debug=options.debug,
        log=options.log,
        log_file=_absolute(options.log_file, who.home),
        one_cpu=options.cpus == "one",
        insecure_auth=options.insecure_auth,
        fix_bare_newline=options.bare_newline == "fix",
        received=options.received,
        limits=limits,
        next_hop=next_hop,
    )


def _absolute(path: str, home: str) -> str:
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


def host_name() -> str:
    """The fully qualified name, or the plain one if that is all there is (TO-23)."""
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def full_version() -> str:
    import ssl
    from importlib.metadata import PackageNotFoundError, version

    lines = [
        f"tofmipd {__version__}",
        f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.platform()}",
    ]
    for package in ("pyOpenSSL", "python-pam", "ldap3"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines)


def _parser() -> Parser:
    parser = Parser("tofmipd", _DESCRIPTION, _USAGE)
    parser.epilog = "(not yet): parsed, but its feature is not built yet.\n\nTools:\n" + "\n".join(
        f"  {w:<10}{text}" for w, text in COMMANDS.items()
    )
    _add_general(parser)
    _add_connection(parser)
    _add_authentication(parser)
    _add_tls(parser)
    _add_virtual(parser)
    _add_limits(parser)
    return parser


def _group(parser: Parser, title: str, example: str) -> Callable[..., argparse.Action]:
    return parser.add_argument_group(title, f"e.g. {example}").add_argument


def _add_general(parser: Parser) -> None:
    add = _group(parser, "General", "tofmipd -f -L --log-file /tmp/tofmipd.log")
    add("-h", "--help", action="store_true", help="show this and exit")
    add("-V", dest="full_version", action="store_true", help="show all versions and exit")
    add("--version", action="store_true", help="show the version and exit")
    add("-d", "--debug", action="store_true", help="log all, also the dialogue; no secrets")
    add("-L", "--log", action="store_true", help="log all but the dialogue")
    add("--log-file", metavar="FILE", default="", help="log to FILE (default: stderr or syslog)")
    add("-b", "--background", dest="foreground", action="store_false", help="detach (default)")
    add("-f", "--foreground", dest="foreground", action="store_true", help="do not detach")
    add("-u", "--username", metavar="USER", default="", help="run as USER (default: who starts)")
    add("-c", "--configdir", metavar="DIR", default="", help="DIR/USER/config, not ~/.tmda/config")
    add("--personal", action="store_true", help="serve only who starts it, also if root")
    add(
        "-P",
        "--pure-proxy",
        action="store_true",
        help="pass mail of users without a config (not yet)",
    )
    add("-t", "--throttle-script", metavar="PATH", help="asked before each message (not yet)")
    add(
        "--received",
        choices=("full", "private", "none"),
        default="full",
        help="what Received tells of the client (default: full)",
    )
    parser.set_defaults(foreground=False)


def _add_connection(parser: Parser) -> None:
    add = _group(parser, "Connection", "tofmipd -p 127.0.0.1:8025 -6 [::1]:8025")
    add(
        "-p",
        "--proxyport",
        metavar="HOST:PORT",
        type=host_port,
        action="append",
        default=[],
        help="listen there (default: localhost:8025); may be repeated",
    )
    add(
        "-6",
        "--ipv6proxyport",
        metavar="HOST:PORT",
        type=host_port_v6,
        action="append",
        default=[],
        help="listen there by IPv6; may be repeated",
    )
    add(
        "-C",
        "--connections",
        metavar="NUM",
        type=positive,
        default=_LIMITS.connections,
        help="connections at a time; others wait (default: 1000)",
    )
    add(
        "--cpus",
        choices=("one", "all"),
        default="one",
        help="run on one CPU, which is cheaper, or all (default: one)",
    )
    add("-1", "--one-session", action="store_true", help="one session on standard input (not yet)")
    add(
        "--bare-newline",
        choices=("reject", "fix"),
        default="reject",
        help="a bare CR or LF in a message (default: reject)",
    )


def _add_authentication(parser: Parser) -> None:
    add = _group(parser, "Authentication", "tofmipd -a ~/.tmda/tofmipd")
    add("-a", "--authfile", metavar="FILE", default="", help="user:password lines, mode 0600")
    add(
        "-A",
        "--authprog",
        metavar="PROGRAM",
        action="append",
        help="a checkpassword program (not yet)",
    )
    add(
        "-R",
        "--remoteauth",
        metavar="URL",
        action="append",
        help="imap://host, ldap://host/dn (not yet)",
    )
    add("-m", "--pamauth", metavar="SERVICE", action="append", help="PAM (not yet)")
    add(
        "--insecure-auth",
        action="store_true",
        help="let clients elsewhere send passwords without TLS",
    )


def _add_tls(parser: Parser) -> None:
    add = _group(parser, "Encryption", "tofmipd --tls=on --ssl-cert chain.pem --ssl-key key.pem")
    add("--ssl", action="store_true", help="TLS from the first octet (not yet)")
    add(
        "--tls",
        metavar="MODE",
        nargs="?",
        const="",
        help="STARTTLS: " + ", ".join(_TLS_MODES) + " (not yet)",
    )
    add("--ssl-cert", metavar="FILE", help="certificate chain, PEM (not yet)")
    add("--ssl-key", metavar="FILE", help="its key, PEM (not yet)")
    add("--ciphers", metavar="LIST", help="OpenSSL's cipher list (not yet)")


def _add_virtual(parser: Parser) -> None:
    add = _group(parser, "Virtual Domains", "tofmipd -S /usr/local/bin/vhome")
    add("-S", "--vhome-script", metavar="SCRIPT", help="prints the home of USER DOMAIN (not yet)")
    add("-v", "--vdomains-path", metavar="FILE", help="qmail's virtualdomains (not yet)")


def _add_limits(parser: Parser) -> None:
    add = _group(parser, "Limits", "tofmipd --size 10000000 --max-recipients 100")

    def number(name: str, metavar: str, default: float, text: str) -> None:
        kind = seconds if metavar == "SECONDS" else positive
        shown = str(default).removesuffix(".0")
        add(name, metavar=metavar, type=kind, default=default, help=f"{text} ({shown})")

    number("--size", "OCTETS", _LIMITS.size, "of a message")
    number("--max-recipients", "NUM", _LIMITS.max_recipients, "of a message")
    number("--max-errors", "NUM", _LIMITS.max_errors, "wrong commands of a session")
    number("--max-auth-failures", "NUM", _LIMITS.max_auth_failures, "failed logins of a session")
    number("--login-timeout", "SECONDS", _LIMITS.login_timeout, "from connecting to the login")
    number("--idle-timeout", "SECONDS", _LIMITS.idle_timeout, "between commands")
    number("--data-timeout", "SECONDS", _LIMITS.data_timeout, "between parts of a message")
    number("--nexthop-connect-timeout", "SECONDS", _NEXT_HOP.connect_timeout, "to connect")
    number("--nexthop-timeout", "SECONDS", _NEXT_HOP.reply_timeout, "for a reply")
    number("--nexthop-dot-timeout", "SECONDS", _NEXT_HOP.dot_timeout, "after the final dot")
