"""`tofmipd init`: everything that a first mail needs (feature row BX-10)."""

from __future__ import annotations

import argparse

from tofmipd.arguments import Parser, port, tls_policy
from tofmipd.cli import person
from tofmipd.commands.initglobal import LOGINS, for_everybody
from tofmipd.commands.initpersonal import personal
from tofmipd.commands.initway import server
from tofmipd.errors import Fatal

_USAGE = """\
tofmipd init [--address YOU@HOST] [--name NAME] [--smtp HOST[:PORT] | --sendmail]
                    [--elsewhere] [--host NAME] [--ssl-cert FILE --ssl-key FILE] ...
       tofmipd init --user-files [--address YOU@HOST] ...
       tofmipd init [--login pam | file] [--smtp HOST[:PORT]] ...          (as root)"""
_DESCRIPTION = """\
Make what is missing: key, configuration, filter, password file and, for the daemon,
tofmipd.conf; as root what a daemon for all users needs.  What is there already is left
as it is.  At a terminal what no option says is asked for."""
# Options for one kind only: destination -> how the person wrote it.
_OWN = {
    "address": "--address",
    "name": "--name",
    "hash_password": "--hash-password",
    "smtp_user": "--smtp-user",
}


def main(arguments: list[str]) -> int:
    """Write the files and say what comes next.  Raises Fatal."""
    parser = make_parser()
    options = parser.parse_known(arguments)
    who = person()
    everybody = who.uid == 0 and not (options.personal or options.user_files)
    _refuse_contradictions(parser, options, everybody=everybody)
    if everybody:
        return for_everybody(options, who)
    return personal(options, who)


def _refuse_contradictions(parser: Parser, options: argparse.Namespace, *, everybody: bool) -> None:
    if bool(options.ssl_cert) != bool(options.ssl_key):
        parser.error("--ssl-cert needs --ssl-key, and the other way round")
    if options.smtp_user and not options.smtp:
        parser.error("--smtp-user is of no use without --smtp")
    if options.smtp_tls and not options.smtp:
        parser.error("--smtp-tls is of no use without --smtp")
    for name, spelling in _OWN.items():
        if everybody and getattr(options, name):
            parser.error(f"{spelling} is for one person: --personal, or --user-files")
    if options.login and not everybody:
        parser.error("--login is for root, and for all users")
    daemons = options.elsewhere or options.host or options.ssl_cert or options.port
    if options.user_files and daemons:
        parser.error(
            "--user-files makes nothing for a daemon: --elsewhere, --host, --port and"
            " certificates are of no use with it"
        )
    if options.smtp:
        try:
            server(options.smtp)
        except Fatal as error:
            parser.error(f"--smtp: {error}")


def make_parser() -> Parser:
    parser = Parser("tofmipd init", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--personal", action="store_true", help="for yourself alone (the default unless root)"
    )
    kind.add_argument(
        "--user-files",
        action="store_true",
        help="your own files only, where root runs the daemon",
    )
    add("--address", metavar="YOU@HOST", help="your own address (default: user@host)")
    add("--name", metavar="NAME", help="your full name (default: that of the account)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--smtp", metavar="HOST[:PORT]", help="the real mail server (default: sendmail if there)"
    )
    way.add_argument("--sendmail", action="store_true", help="mail leaves by the program sendmail")
    add(
        "--smtp-tls",
        metavar="MODE",
        type=tls_policy,
        help="verify, encrypt, fingerprint:SHA256 or off (default: verify, if it offers TLS)",
    )
    add("--smtp-user", metavar="NAME", default="", help="your user name there")
    add(
        "--smtp-password-file",
        metavar="FILE",
        default="",
        help="your password there is its first line; - is standard input (default: ask)",
    )
    add(
        "--elsewhere",
        action="store_true",
        help="let mail clients on other machines connect, by TLS, with a self-signed certificate",
    )
    add("--host", metavar="NAME", default="", help="the name of this machine for them")
    add("--ssl-cert", metavar="FILE", default="", help="the same with this certificate chain, PEM")
    add("--ssl-key", metavar="FILE", default="", help="and its key, PEM")
    add("--port", metavar="PORT", type=port, help="for clients on this machine (default: 8025)")
    add("--login", choices=LOGINS, help="root: passwords of accounts, or of a file (default: pam)")
    add("--hash-password", action="store_true", help="keep your password hashed; it is shown once")
    return parser
