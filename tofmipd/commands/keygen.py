"""`tofmipd keygen`: a key for tagged addresses (TMDA reference, section 2)."""

from __future__ import annotations

import os
import secrets

from tofmipd.arguments import Parser
from tofmipd.commands.newfiles import write_new

KEY_OCTETS = 20
_USAGE = "tofmipd keygen [-o FILE]"


def main(arguments: list[str]) -> int:
    """Print a key, or write it to a file that must not be there yet."""
    options = make_parser().parse_known(arguments)
    key = new_key()
    if options.output:
        write_new(os.path.expanduser(options.output), key)
    else:
        print(key, end="")
    return 0


def make_parser() -> Parser:
    parser = Parser("tofmipd keygen", "Make a random key of 160 bits for tagged addresses.", _USAGE)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("-b", "--batch", action="store_true", help="no effect, for old scripts")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write it there, mode 0600, e.g. ~/.tmda/crypt_key"
    )
    return parser


def new_key() -> str:
    """40 hexadecimal digits and a newline."""
    return secrets.token_hex(KEY_OCTETS) + "\n"
