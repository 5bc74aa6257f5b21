"""Passwords for tools: typed at the terminal, or read from a file or standard input.

Never from an argument, which every user of the machine can see.
"""

from __future__ import annotations

import getpass
import sys

from tofmipd.auth.saslprep import prepared_password
from tofmipd.cli import absolute, person
from tofmipd.errors import CONFIG, DATA, Fatal

# A login with a longer one would be cut off by the limit on its line.
LIMIT_OCTETS = 4096


def ask_password(whose: str, file: str, *, twice: bool = False) -> bytes:
    """The first line of ``file``, "-" for standard input.  Without one: what is typed at the
    terminal, ``twice`` for a new password, where standard input is one, else standard input.

    Raises Fatal, also for what cannot be a password.
    """
    if file not in ("", "-"):
        password = _from_file(absolute(file, person().home))
    elif not file and _has_terminal():
        password = _typed(whose, twice=twice)
    else:
        password = _from_standard_input()
    if not prepared_password(password):
        raise Fatal(DATA, "the password is empty; nobody can log in with such a one")
    if len(password) > LIMIT_OCTETS:
        raise Fatal(DATA, f"the password is longer than {LIMIT_OCTETS} octets")
    if any(octet in password for octet in b"\0\r\n"):
        raise Fatal(DATA, "the password holds a NUL or an end of a line, which no client can send")
    return password


def _from_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return _line(file.readline(LIMIT_OCTETS + 3))
    except OSError as error:
        raise Fatal(CONFIG, f"{path}: {error.strerror}") from None


def _from_standard_input() -> bytes:
    if sys.stdin is None:
        raise Fatal(DATA, "no password: standard input is closed")
    try:
        return _line(sys.stdin.buffer.readline(LIMIT_OCTETS + 3))
    except OSError as error:
        raise Fatal(DATA, f"no password: standard input: {error.strerror}") from None


def _line(octets: bytes) -> bytes:
    """Without its end, LF or CR LF."""
    return octets[:-1].removesuffix(b"\r") if octets.endswith(b"\n") else octets


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _typed(whose: str, *, twice: bool) -> bytes:
    try:
        password = getpass.getpass(f"Password of {whose}: ")
        if twice and getpass.getpass("The same again: ") != password:
            raise Fatal(DATA, "the two are not the same; nothing is changed")
        return password.encode()
    except EOFError:
        raise Fatal(DATA, "no password was typed; nothing is changed") from None
    except UnicodeError:
        raise Fatal(DATA, "the password is no text in the terminal's encoding") from None
