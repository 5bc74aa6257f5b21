"""`tofmipd init`: everything that a first mail needs (feature row BX-10)."""

from __future__ import annotations

import argparse
import os
import re

from tofmipd.arguments import Parser
from tofmipd.cli import host_name, person
from tofmipd.commands.setup import Plan, client_lines, write_all
from tofmipd.commands.userprofile import first_login
from tofmipd.errors import UNAVAILABLE, USAGE, Fatal
from tofmipd.handoff.sendmail import PROGRAMS
from tofmipd.settings import DEFAULT_PORT

_USAGE = "tofmipd init [--personal] [--address YOU@HOST] [--smtp HOST[:PORT]]"
_DESCRIPTION = """\
Make key, configuration, filter and password file below ~/.tmda.  What is there
already is left as it is."""


def main(arguments: list[str]) -> int:
    """Write the files and say what comes next."""
    options = _parse(arguments)
    who = person()
    if who.uid == 0 and not options.personal:
        raise Fatal(
            UNAVAILABLE, "init for all users is not built yet; --personal is for root alone"
        )
    address = options.address or f"{who.name}@{host_name()}"
    if not re.fullmatch(r"[^@\s<>\"]+@[^@\s<>\"']+", address):
        raise Fatal(USAGE, f"{address!r} is not an address such as you@example.org")
    sendmail = any(os.path.exists(path) for path in PROGRAMS)
    smtp_host = options.smtp or ("" if sendmail else "localhost")
    plan = Plan(who.home, who.name.lower(), address, who.full_name, smtp_host)
    for path, new in write_all(plan):
        print(f"{'made' if new else 'kept'}  {path}")
    login, password = first_login(f"{plan.directory}/tofmipd", who.uid)
    shown = "PASSWORD" if password is None else password.decode("utf-8", "replace")
    _say_what_next(login, shown, address, " --personal" if who.uid == 0 else "")
    return 0


def _say_what_next(login: str, password: str, address: str, personal: str) -> None:
    curl, swaks = client_lines(login, password, address, "localhost", DEFAULT_PORT)
    print(
        f"""
Next:       tofmipd -f{personal}
and then:   tofmipd test you@example.net
or:         {curl}
or:         {swaks}

Your mail client: SMTP server localhost, port {DEFAULT_PORT}, no encryption,
normal password; user name {login}, password {password}"""
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("tofmipd init", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("--personal", action="store_true", help="for yourself alone (the default unless root)")
    add("--address", metavar="YOU@HOST", help="your own address (default: user@host)")
    add("--smtp", metavar="HOST[:PORT]", help="the real mail server (default: sendmail if there)")
    return parser.parse_known(arguments)
