"""`tofmipd address`: make or check a tagged address (TMDA reference, sections 1.3 and 1.4)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from tofmipd.arguments import Parser
from tofmipd.commands.userprofile import own_profile
from tofmipd.errors import USAGE, Fatal
from tofmipd.tmda import cookies
from tofmipd.tmda.cookies import Check, TagSettings
from tofmipd.tmda.errors import TagError

_USAGE = """tofmipd address [-c CONFIG] [-a ADDRESS] [-n] [-d [TIMEOUT] | -k WORD | -s ADDRESS]
       tofmipd address [-c CONFIG] --check ADDRESS [CORRESPONDENT]"""
_DESCRIPTION = "Make a tagged address (dated unless told), or check one."
_VALID, _INVALID = 0, 1


def main(arguments: list[str]) -> int:
    """Print the address, or what is to be said of it; status 1 if it does not hold."""
    options = _parse(arguments)
    profile = own_profile(options.config, with_filter=False)
    if options.check:
        return _check(profile.tags, options.check)
    config = profile.config
    base = options.address or f"{config.username}@{config.hostname}"
    try:
        address = make(profile.tags, base.encode(), options, time.time())
    except TagError as error:
        raise Fatal(USAGE, str(error)) from None
    if options.keyword and options.keyword != options.keyword.lower():
        print(
            "tofmipd address: capitals in the keyword: nobody can check this address,"
            " for a check lowers it; use small letters",
            file=sys.stderr,
        )
    print(address.decode("utf-8", "surrogateescape"), end="" if options.no_newline else "\n")
    return 0


def make(tags: TagSettings, base: bytes, options: argparse.Namespace, now: float) -> bytes:
    """The address as the original's tool made it: base and tag word in lower case, the keyword
    as given.  Raises TagError."""
    base = base.lower()
    tags = dataclasses.replace(
        tags,
        tags_dated=tuple(word.lower() for word in tags.tags_dated),
        tags_keyword=tuple(word.lower() for word in tags.tags_keyword),
        tags_sender=tuple(word.lower() for word in tags.tags_sender),
    )
    if options.keyword is not None:
        return cookies.keyword_address(tags, base, options.keyword.encode(), keep_case=True)
    if options.sender is not None:
        return cookies.sender_address(tags, base, options.sender.encode())
    return cookies.dated_address(tags, base, options.dated or options.timeout or "", now)


def _check(tags: TagSettings, words: list[str]) -> int:
    address, correspondent = words[0], words[1] if len(words) > 1 else ""
    verdict, kind = cookies.check_address(
        tags, address.encode(), correspondent.encode(), time.time()
    )
    name = f" {kind.name.lower()} address" if kind is not None else " address"
    print(verdict.name + ("" if verdict is Check.UNTAGGED else name))
    return _VALID if verdict is Check.VALID else _INVALID


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("tofmipd address", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    add("-a", "--address", metavar="ADDRESS", help="tag this one (default: USERNAME@HOSTNAME)")
    add("-n", "--no-newline", action="store_true", help="print no newline")
    add("-t", "--timeout", metavar="TIMEOUT", help="for -d, e.g. 5d (default: DATED_TIMEOUT)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "-d", "--dated", metavar="TIMEOUT", nargs="?", const="", help="expires, e.g. after 5d"
    )
    kind.add_argument("-k", "--keyword", metavar="WORD", help="can be revoked by its word")
    kind.add_argument("-s", "--sender", metavar="ADDRESS", help="good for this correspondent")
    kind.add_argument(
        "--check",
        metavar="ADDRESS",
        nargs="+",
        help="is the first good, for mail from the second? status 0 or 1",
    )
    options = parser.parse_known(arguments)
    if options.check and len(options.check) > 2:
        parser.error("--check takes an address and at most one correspondent")
    return options
