"""`tofmipd keygen`: a key for tagged addresses (TMDA reference, section 2)."""

from __future__ import annotations

import os
import secrets

from tofmipd.arguments import Parser
from tofmipd.errors import CANT_CREATE, Fatal

KEY_OCTETS = 20
_USAGE = "tofmipd keygen [-o FILE]"


def main(arguments: list[str]) -> int:
    """Print a key, or write it to a file that must not be there yet."""
    parser = Parser("tofmipd keygen", "Make a random key of 160 bits for tagged addresses.", _USAGE)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("-b", "--batch", action="store_true", help="no effect, for old scripts")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write it there, mode 0600, e.g. ~/.tmda/crypt_key"
    )
    options = parser.parse_known(arguments)
    key = new_key()
    if options.output:
        write_new(os.path.expanduser(options.output), key)
    else:
        print(key, end="")
    return 0


def new_key() -> str:
    """40 hexadecimal digits and a newline."""
    return secrets.token_hex(KEY_OCTETS) + "\n"


def write_new(path: str, text: str) -> None:
    """Write a file of mode 0600 that must not exist yet.  Raises Fatal."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise Fatal(CANT_CREATE, f"{path} is there already and is left as it is") from None
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot make {path}: {error.strerror}") from None
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
