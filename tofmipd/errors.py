"""Errors that end the program: a line for each fault, a status from sysexits.h."""

from __future__ import annotations

import os

USAGE = os.EX_USAGE
DATA = os.EX_DATAERR
NO_INPUT = os.EX_NOINPUT
UNAVAILABLE = os.EX_UNAVAILABLE
SOFTWARE = os.EX_SOFTWARE
CANT_CREATE = os.EX_CANTCREAT
TEMPORARY = os.EX_TEMPFAIL
PERMISSION = os.EX_NOPERM
CONFIG = os.EX_CONFIG


class Fatal(Exception):
    """The program cannot go on; ``str()`` says what to do, in one line for each fault."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

    @property
    def lines(self) -> list[str]:
        return str(self).split("\n")
