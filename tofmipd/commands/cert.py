"""`tofmipd cert`: self-signed certificates, and what clients show of one."""

from __future__ import annotations

import argparse

from tofmipd.arguments import Parser, positive
from tofmipd.cli import absolute, host_name, person
from tofmipd.commands import selfsigned
from tofmipd.commands.initglobal import DIRECTORY
from tofmipd.commands.initnext import print_files
from tofmipd.commands.rewrite import rewrite
from tofmipd.errors import CONFIG, Fatal

_USAGE = """\
tofmipd cert self-signed [--cert FILE] [--key FILE] [--days NUM] [NAME ...]
       tofmipd cert renew [--cert FILE] [--key FILE] [--days NUM]
       tofmipd cert show [FILE]"""
_DESCRIPTION = """\
Make a self-signed certificate and its key for the names of this machine, give it another
time with the same names and key, or show what mail clients show of a certificate."""
_VERBS = ("self-signed", "renew", "show")


def main(arguments: list[str]) -> int:
    """Do what the verb says.  Raises Fatal."""
    options = _parse(arguments)
    match options.verb:
        case "self-signed":
            names = options.names or [host_name()]
            files = selfsigned.make_pair(options.cert, options.key, names, options.days)
            print_files(files)
        case "renew":
            _renew(options)
        case "show" if options.names:
            options.cert = absolute(options.names[0], person().home)
    _show(options.cert)
    return 0


def _renew(options: argparse.Namespace) -> None:
    """The key stays, so the two always belong together.  Raises Fatal."""
    old = selfsigned.shown(options.cert)
    if not old.self_signed or not old.names:
        text = f"{options.cert} is not self-signed; whoever has signed it must renew it"
        raise Fatal(CONFIG, text)
    key = selfsigned.read_text(options.key)
    new = selfsigned.new_certificate(key, old.names, options.days).encode()
    rewrite(options.cert, lambda: new)
    print(f"made  {options.cert}")


def _show(path: str) -> None:
    seen = selfsigned.shown(path)
    rows = (
        ("names", ", ".join(seen.names) or "none"),
        ("until", str(seen.last_day)),
        ("signed by", "itself" if seen.self_signed else "another"),
        ("SHA-256", seen.fingerprint),
    )
    for label, text in rows:
        print(f"{label + ':':<11}{text}")


def make_parser() -> Parser:
    who = person()
    directory, stem = (DIRECTORY, "") if who.uid == 0 else (f"{who.home}/.tmda", "tls-")
    parser = Parser("tofmipd cert", _DESCRIPTION, _USAGE)
    parser.verbs = _VERBS
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("words", nargs="*", help=argparse.SUPPRESS)
    add(
        "--cert",
        metavar="FILE",
        default=f"{directory}/{stem}cert.pem",
        help="the certificate (default: ~/.tmda/tls-cert.pem, for root /etc/tofmipd.d/cert.pem)",
    )
    add(
        "--key",
        metavar="FILE",
        default=f"{directory}/{stem}key.pem",
        help="its key (default: ~/.tmda/tls-key.pem, for root /etc/tofmipd.d/key.pem)",
    )
    add(
        "--days",
        metavar="NUM",
        type=positive,
        default=selfsigned.DAYS,
        help=f"how long it is valid (default: {selfsigned.DAYS}; some clients take no more than"
        " 825)",
    )
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_words(arguments)
    options.verb, *options.names = options.words or [""]
    if options.verb not in _VERBS:
        parser.error(f"the first word is one of {', '.join(_VERBS)}; see --help")
    most = {"self-signed": 100, "renew": 0, "show": 1}[options.verb]
    if len(options.names) > most:
        parser.error(f"{options.verb} takes no {options.names[most]!r}")
    options.cert, options.key = (absolute(p, person().home) for p in (options.cert, options.key))
    return options
