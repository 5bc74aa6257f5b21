"""`tofmipd address`: make or check a tagged address (TMDA reference, sections 1.2 to 1.4)."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import os
import sys
import time

from tofmipd.arguments import Parser
from tofmipd.commands.userprofile import become_user, from_here, own_profile
from tofmipd.errors import DATA, TEMPORARY, USAGE, Fatal
from tofmipd.tmda import cookies
from tofmipd.tmda.cookies import Check, Kind, TagSettings
from tofmipd.tmda.errors import TagError

_USAGE = """tofmipd address [-c CONFIG] [-a ADDRESS] [-n]
                       [-d [TIMEOUT] | -s ADDRESS | --domain ADDRESS | -k WORD]
       tofmipd address [-c CONFIG] --check [--] ADDRESS [CORRESPONDENT]"""
_DESCRIPTION = """\
Make the address that an action of the filter would make, or check one.
A check ends with status 0 if the address is good, 65 if not, 75 if that cannot be told."""


class Verdict(enum.Enum):
    """What a delivery script gets to know of an address."""

    VALID = "valid"
    EXPIRED = "expired"
    BAD = "bad"
    UNTAGGED = "untagged"
    UNKNOWN = "unknown"

    @property
    def status(self) -> int:
        """The exit status, one of sysexits.h."""
        return {Verdict.VALID: 0, Verdict.UNKNOWN: TEMPORARY}.get(self, DATA)


def main(arguments: list[str]) -> int:
    """Print the address, or what is to be said of it."""
    options = _parse(arguments)
    if options.user:
        options.config = from_here(options.config)
        become_user(options.user)
    if options.check:
        return _check(options)
    profile = own_profile(options.config, with_filter=False)
    config = profile.config
    options.timeout = options.timeout or os.environ.get("TMDA_TIMEOUT")
    base = options.address or f"{config.username}@{config.hostname}"
    try:
        address = make(profile.tags, _octets(base), options, time.time())
    except TagError as error:
        raise Fatal(USAGE, str(error)) from None
    text = _text(address)
    if options.json:
        text = json.dumps({"address": text})
    print(text, end="" if options.no_newline else "\n")
    return 0


def make(tags: TagSettings, base: bytes, options: argparse.Namespace, now: float) -> bytes:
    """The address as the action of that name makes it.  Raises TagError.

    With ``options.tool`` it is the one of the original's own tool: base and tag word in lower
    case, the keyword as given.
    """
    if options.tool:
        base = base.lower()
        tags = dataclasses.replace(
            tags,
            tags_dated=tuple(word.lower() for word in tags.tags_dated),
            tags_keyword=tuple(word.lower() for word in tags.tags_keyword),
            tags_sender=tuple(word.lower() for word in tags.tags_sender),
        )
    if options.keyword is not None:
        word = _octets(options.keyword)
        return cookies.keyword_address(tags, base, word, keep_case=options.tool)
    if options.sender is not None:
        return cookies.sender_address(tags, base, _octets(options.sender))
    if options.domain is not None:
        return cookies.domain_address(tags, base, _octets(options.domain))
    return cookies.dated_address(tags, base, options.dated or options.timeout or "", now)


def _check(options: argparse.Namespace) -> int:
    """Say whether an address is good; its exit status."""
    address, *rest = options.addresses
    correspondent = rest[0] if rest else None
    kind: Kind | None = None
    reason = ""
    try:
        tags = own_profile(options.config, with_filter=False).tags
        verdict, kind = judge(tags, address, correspondent, time.time())
    except Fatal as error:
        verdict, reason = Verdict.UNKNOWN, str(error)
    name = kind.name.lower() if kind else None
    if kind is Kind.CONFIRM:
        reason = "only what has asked for the confirmation can tell"
    elif verdict is Verdict.UNKNOWN and not reason:
        reason = "say who writes to this address: --check ADDRESS CORRESPONDENT"
    if reason:
        print(f"tofmipd address: {reason}", file=sys.stderr)
    if options.json:
        told = {"address": address, "verdict": verdict.value, "kind": name}
        print(json.dumps(told | ({"reason": reason} if reason else {})))
    else:
        print(f"{verdict.name} {name} address" if name else verdict.name)
    return verdict.status


def judge(
    tags: TagSettings, address: str, correspondent: str | None, now: float
) -> tuple[Verdict, Kind | None]:
    """Is the address good, for mail of ``correspondent`` if that matters?"""
    check, kind = cookies.check_address(tags, _octets(address), _octets(correspondent or ""), now)
    if kind is Kind.CONFIRM or (kind is Kind.SENDER and correspondent is None):
        return Verdict.UNKNOWN, kind
    return Verdict(Check(check).value), kind


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def make_parser() -> Parser:
    parser = Parser("tofmipd address", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    add("--user", metavar="USER", default="", help="as root: with this user's files and rights")
    add("-a", "--address", metavar="ADDRESS", help="tag this one (default: USERNAME@HOSTNAME)")
    add("-n", "--no-newline", action="store_true", help="print no newline")
    add(
        "-t",
        "--timeout",
        metavar="TIMEOUT",
        help="for -d, e.g. 5d (default: TMDA_TIMEOUT in the environment, else DATED_TIMEOUT)",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "-d",
        "--dated",
        metavar="TIMEOUT",
        nargs="?",
        const="",
        help="expires, e.g. after 5d (the default)",
    )
    kind.add_argument("-s", "--sender", metavar="ADDRESS", help="good for this correspondent")
    kind.add_argument("--domain", metavar="ADDRESS", help="good for the domain of this one")
    kind.add_argument("-k", "--keyword", metavar="WORD", help="can be revoked by its word")
    kind.add_argument(
        "--check", action="store_true", help="is ADDRESS good, for mail from CORRESPONDENT?"
    )
    add(
        "--tool",
        action="store_true",
        help="as tmda-address made it: address in lower case, the keyword as given",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("addresses", nargs="*", help=argparse.SUPPRESS)
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_known(arguments)
    if options.check and not 1 <= len(options.addresses) <= 2:
        parser.error("--check takes an address and at most one correspondent")
    if options.addresses and not options.check:
        parser.error(f"unknown argument {options.addresses[0]!r}; see --help")
    return options
