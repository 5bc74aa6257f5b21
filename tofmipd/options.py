"""The options of the daemon: a table, by group, as --help shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from tofmipd.arguments import (
    Parser,
    duration,
    host_port,
    host_port_v6,
    networks,
    places,
    positive,
    rates,
    seconds,
    tls_policy,
)
from tofmipd.settings import (
    FACILITIES,
    GLOBAL_OUTBOXES,
    LOG_FORMS,
    REMOTE_TLS_MODES,
    SENDER_CHECKS,
    TLS_MODES,
    GlobalMode,
    Limits,
    NextHopLimits,
    ProgramLimits,
    Queue,
    Scripts,
    SourceSpec,
)

# The letters of options that have no value, beside -1.
FLAGS = "hVdLbfP"
# The tools beside the daemon: word -> what it does.  Each is a module of tofmipd.commands.
COMMANDS = {
    "init": "make what a first mail needs: key, configuration, filter, password",
    "test": "send one mail through a running tofmipd, and say what became of it",
    "check": "say what is wrong with options and files, or what is in force",
    "user": "add, change, list, try and remove users of a password file",
    "queue": "list, show, try and remove what waits for the next hop",
    "keygen": "make a key for tagged addresses",
    "address": "make or check a tagged address",
    "explain": "say what would become of a message, and why; nothing is sent",
    "inject": "send a message, tagged, like a sendmail program",
    "probe": "say what a next hop is and offers, and try the login there",
    "cert": "make, renew and show a self-signed certificate",
    "demo": "try everything out in a folder of its own",
    "completion": "print what makes a shell complete all of this",
}

_USAGE = "tofmipd [options]\n       tofmipd WORD ...      (tofmipd WORD --help says more)"

_DESCRIPTION = """\
An authenticated SMTP submission proxy.  A mail client logs in; the sender's address is
tagged for each recipient as ~/.tmda says; the real mail server gets the message."""

_LIMITS, _NEXT_HOP, _PROGRAMS, _GLOBAL = Limits(), NextHopLimits(), ProgramLimits(), GlobalMode()
_QUEUE = Queue()


_KINDS = {"authfile": "file", "remoteauth": "remote", "authprog": "program", "pamauth": "pam"}


class _AddSource(argparse.Action):
    """Keeps the order of sources across the options that name them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        kind = _KINDS[self.dest]
        setattr(namespace, self.dest, values)
        namespace.sources = [*(namespace.sources or ()), SourceSpec(kind, str(values))]


def make_parser() -> Parser:
    """All options of the daemon, by group."""
    parser = Parser("tofmipd", _DESCRIPTION, _USAGE, exit_on_error=False)
    parser.epilog = "Tools:\n" + "\n".join(f"  {w:<12}{text}" for w, text in COMMANDS.items())
    _add_general(parser)
    _add_connection(parser)
    _add_authentication(parser)
    _add_tls(parser)
    _add_relay(parser)
    _add_virtual(parser)
    _add_queue(parser)
    _add_limits(parser)
    return parser


def _group(parser: Parser, title: str, example: str) -> Callable[..., argparse.Action]:
    return parser.add_argument_group(title, f"e.g. {example}").add_argument


def _add_general(parser: Parser) -> None:
    add = _group(parser, "General", "tofmipd -f -L --log-file /tmp/tofmipd.log")
    add("-h", "--help", action="store_true", help="show this and exit")
    add("-V", dest="full_version", action="store_true", help="show all versions and exit")
    add("--version", action="store_true", help="show the version and exit")
    add(
        "--config",
        metavar="FILE",
        help="read more options there; none for no file (default: /etc/tofmipd.conf, personally"
        " ~/.config/tofmipd.conf)",
    )
    add("-d", "--debug", action="store_true", help="log all, also the dialogue; no secrets")
    add("-L", "--log", action="store_true", help="log all but the dialogue")
    add("--log-file", metavar="FILE", default="", help="log to FILE (default: stderr or syslog)")
    add(
        "--log-format",
        choices=LOG_FORMS,
        default="",
        help="of log lines (default: text, for systemd's journal on stderr journal)",
    )
    add(
        "--syslog-facility",
        metavar="NAME",
        choices=tuple(FACILITIES),
        default="mail",
        help="of lines that go to syslog (default: mail)",
    )
    add("-b", "--background", dest="foreground", action="store_false", help="detach (default)")
    add("-f", "--foreground", dest="foreground", action="store_true", help="do not detach")
    add("--pid-file", metavar="FILE", default="", help="holds the process id while it runs")
    add("-u", "--username", metavar="USER", default="", help="run as USER (root: tofmipd)")
    add("-c", "--configdir", metavar="DIR", default="", help="DIR/USER/config, not ~/.tmda/config")
    add("--personal", action="store_true", help="serve only who starts it, also if root")
    add(
        "-P",
        "--pure-proxy",
        action="store_true",
        help="pass mail of users without a config on unchanged",
    )
    add("-t", "--throttle-script", metavar="PATH", help="asked before each message: 0 = go on")
    add(
        "--received",
        choices=("full", "private", "none"),
        default="full",
        help="what Received tells of the client (default: full)",
    )
    add(
        "--min-uid",
        metavar="UID",
        type=positive,
        default=_GLOBAL.min_uid,
        help="nobody below it may log in (default: 1000)",
    )
    parser.set_defaults(foreground=False, sources=[])


def _add_connection(parser: Parser) -> None:
    add = _group(parser, "Connection", "tofmipd -p 127.0.0.1:8025 -6 [::1]:8025")
    add(
        "-p",
        "--proxyport",
        metavar="HOST:PORT",
        type=host_port,
        action="append",
        default=[],
        help="listen there (default: localhost:8025); with ,ssl ,tls=MODE ,plain ,proxy=NET+NET"
        " behind it in its own way; may be repeated",
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
        "--proxy-protocol",
        metavar="NET,...",
        type=networks,
        action="append",
        default=[],
        help="whoever connects from there is a proxy and says for whom; may be repeated",
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
        "--connections-per-address",
        metavar="NUM",
        type=positive,
        default=_LIMITS.connections_per_address,
        help="of these, from one address elsewhere (default: 50)",
    )
    add(
        "--cpus",
        choices=("one", "all"),
        default="one",
        help="run on one CPU, which is cheaper, or all (default: one)",
    )
    add("-1", "--one-session", action="store_true", help="serve descriptor 0, as inetd passes it")
    add(
        "--bare-newline",
        choices=("reject", "fix"),
        default="reject",
        help="a bare CR or LF in a message (default: reject)",
    )
    add(
        "--eight-bit",
        choices=("reject", "pass"),
        default="reject",
        help="8BITMIME for a next hop that does not offer it (default: reject)",
    )


def _add_authentication(parser: Parser) -> None:
    add = _group(parser, "Authentication", "tofmipd -a ~/.tmda/tofmipd")
    add(
        "-a",
        "--authfile",
        metavar="FILE",
        action=_AddSource,
        default="",
        help="user:password lines, mode 0600 ('tofmipd user' writes them)",
    )
    add(
        "-A",
        "--authprog",
        metavar="PROGRAM",
        action=_AddSource,
        help="a checkpassword program and its arguments, as one word",
    )
    add(
        "-R",
        "--remoteauth",
        metavar="URL",
        action=_AddSource,
        help="a server: imap, imaps, pop3, pop3s, apop://HOST[:PORT], ldap, ldaps://HOST[:PORT]/DN"
        " with %%s for the user; sources are asked in the order given",
    )
    add("-m", "--pamauth", metavar="SERVICE", action=_AddSource, help="a PAM service")
    add(
        "--remoteauth-ca",
        metavar="FILE",
        default="",
        help="authorities for such servers, PEM (default: the system's)",
    )
    add(
        "--remoteauth-tls",
        choices=REMOTE_TLS_MODES,
        default="verified",
        help="certificates of such servers; none: passwords go in the clear also to other machines"
        " (default: verified)",
    )
    add(
        "--insecure-auth",
        action="store_true",
        help="let clients elsewhere send passwords without TLS",
    )
    add(
        "--mechanisms",
        metavar="LIST",
        default="",
        help="offer only these, e.g. PLAIN,LOGIN (default: all that every source can serve)",
    )
    add(
        "--sender-check",
        choices=SENDER_CHECKS,
        help="refuse senders that are others' accounts, or all but one's own (default: others,"
        " personally off)",
    )
    add(
        "--sender-domain",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="where accounts have addresses beside the host's own names; may be repeated",
    )
    add(
        "--senders",
        metavar="FILE",
        default="",
        help="more addresses of users (default: /etc/tofmipd.d/senders)",
    )


def _add_tls(parser: Parser) -> None:
    add = _group(parser, "Encryption", "tofmipd --tls=on --ssl-cert chain.pem --ssl-key key.pem")
    add("--ssl", action="store_true", help="TLS from the first octet, on all that -p names")
    add(
        "--tls",
        metavar="MODE",
        nargs="?",
        const="",
        help="STARTTLS: " + ", ".join(TLS_MODES),
    )
    add(
        "--ssl-cert",
        metavar="FILE",
        action="append",
        default=[],
        help="certificate chain, PEM; again for another kind of key",
    )
    add(
        "--ssl-key",
        metavar="FILE",
        action="append",
        default=[],
        help="its key, PEM; in the same order",
    )
    add("--ssl-sni-dir", metavar="DIR", default="", help="more: NAME.pem, NAME/fullchain.pem")
    add(
        "--ssl-client-ca",
        metavar="FILE",
        default="",
        help="authorities whose client certificates are logins (EXTERNAL)",
    )
    add("--ciphers", metavar="LIST", default="", help="OpenSSL's list for TLS 1.2")


def _add_relay(parser: Parser) -> None:
    add = _group(parser, "Next Hop", "tofmipd --relay mail.example.org:587,backup.example.org")
    add(
        "--relay",
        metavar="HOST[:PORT],...",
        type=places,
        default=(),
        help="next hops, in order of preference, for users whose config names none (port: 25)",
    )
    add(
        "--relay-tls",
        metavar="MODE",
        type=tls_policy,
        help="verify, encrypt, fingerprint:SHA256 or off (default: verify, on this machine off)",
    )
    add(
        "--relay-ca",
        metavar="FILE",
        default="",
        help="authorities for its certificate, PEM (default: the system's)",
    )
    add("--xclient", action="store_true", help="tell next hops that offer XCLIENT of the client")


def _add_virtual(parser: Parser) -> None:
    add = _group(parser, "Virtual Domains", "tofmipd -S /usr/local/bin/vhome")
    add("-S", "--vhome-script", metavar="PATH", help="prints the home of USER DOMAIN")
    add(
        "-v",
        "--vdomains-path",
        metavar="FILE",
        default=Scripts().virtual_domains,
        help="qmail's virtualdomains: DOMAIN:ACCOUNT (default: its place under /var/qmail)",
    )


def _add_queue(parser: Parser) -> None:
    add = _group(parser, "Queue", "tofmipd --spool --queue-lifetime 3d")
    add("--spool", action="store_true", help="take every message into the outbox first")
    add(
        "--outbox",
        metavar="DIR",
        default="",
        help="what waits for the next hop (default: ~/.tmda/outbox; root: DIR/USER below"
        f" {GLOBAL_OUTBOXES})",
    )
    add(
        "--queue-lifetime",
        metavar="TIME",
        type=duration,
        default=_QUEUE.lifetime,
        help="after it a message goes back to its sender: 12h, 3d (default: 5d)",
    )
    add(
        "--queue-retry",
        metavar="TIME",
        type=duration,
        default=_QUEUE.first_pause,
        help="the first pause between attempts, which doubles up to 4h (default: 1m)",
    )
    add("--queue-warning", action="store_true", help="tell senders of a delay of four hours")


def _add_limits(parser: Parser) -> None:
    add = _group(parser, "Limits", "tofmipd --size 10000000 --max-recipients 100")

    def number(name: str, metavar: str, default: float, text: str) -> None:
        kind = seconds if metavar == "SECONDS" else positive
        shown = str(default).removesuffix(".0")
        add(name, metavar=metavar, type=kind, default=default, help=f"{text} ({shown})")

    number("--size", "OCTETS", _LIMITS.size, "of a message")
    number("--max-recipients", "NUM", _LIMITS.max_recipients, "of a message")
    for name, what in (("--limit", "messages"), ("--limit-recipients", "recipients")):
        text = f"{what} of a login in a time, e.g. 100/1h,500/1d (no limit)"
        add(name, metavar="LIST", type=rates, default=(), help=text)
    add(
        "--limit-file",
        metavar="FILE",
        default="",
        help="where they are counted (/var/lib/tofmipd/limits, personally ~/.tmda/limits)",
    )
    number("--max-errors", "NUM", _LIMITS.max_errors, "wrong commands of a session")
    number("--max-auth-failures", "NUM", _LIMITS.max_auth_failures, "failed logins of a session")
    number(
        "--auth-failures-per-address",
        "NUM",
        _LIMITS.auth_failures_per_address,
        "failed logins in ten minutes before an address must wait",
    )
    number("--login-timeout", "SECONDS", _LIMITS.login_timeout, "from connecting to the login")
    number("--idle-timeout", "SECONDS", _LIMITS.idle_timeout, "between commands")
    number("--data-timeout", "SECONDS", _LIMITS.data_timeout, "between parts of a message")
    number("--minimum-rate", "OCTETS", _LIMITS.minimum_rate, "a second, of a message after 60 s")
    number("--write-timeout", "SECONDS", _LIMITS.write_timeout, "for a client to read a reply")
    number("--source-timeout", "SECONDS", _PROGRAMS.source_timeout, "for a source's verdict")
    number("--source-attempts", "NUM", _PROGRAMS.source_attempts, "logins a source has at a time")
    number("--script-timeout", "SECONDS", _PROGRAMS.script_timeout, "for a script or a config")
    number("--max-workers", "NUM", _GLOBAL.max_workers, "processes of users")
    number("--nexthop-connect-timeout", "SECONDS", _NEXT_HOP.connect_timeout, "to connect")
    number("--nexthop-timeout", "SECONDS", _NEXT_HOP.reply_timeout, "for a reply")
    number("--nexthop-dot-timeout", "SECONDS", _NEXT_HOP.dot_timeout, "after the final dot")
