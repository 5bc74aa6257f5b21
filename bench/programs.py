"""Finds the programs of a comparison and builds its load generator and sink."""

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
VENV_BIN = HERE.parent / ".venv" / "bin"

# The words that start each program that was found, by environment variable.
Programs = Mapping[str, list[str]]

# What is tried, in this order, when the variable is not set.
CANDIDATES = {
    "EMAILRELAY": ["emailrelay"],
    "POSTFIX": ["postfix"],
    "SASLPASSWD": ["saslpasswd2"],
    "AIOSMTPD_PYTHON": [str(VENV_BIN / "python"), "python3"],
    "TMDA_PYTHON": ["tauthon"],
    "TMDA_OFMIPD": ["tmda-ofmipd"],
    "MSMTP": ["msmtp"],
    "TOFMIPD": [str(VENV_BIN / "tofmipd"), "tofmipd"],
}
LOAD_TOOLS = ("SMTPLOAD", "SMTPSINK")


class SetupError(Exception):
    """The comparison cannot start; ``status`` is the exit status to end with."""

    def __init__(self, message: str, status: int = os.EX_UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


def located(words: list[str]) -> list[str] | None:
    """The words with an absolute path first, or None if there is no such program."""
    path = shutil.which(words[0]) if words else None
    return [os.path.abspath(path), *words[1:]] if path else None


def find_programs(settings: Mapping[str, str]) -> dict[str, list[str]]:
    """Look up every program of a contender; a missing one has no entry.

    A setting may be several words; an empty one means "not installed".
    """
    found = {}
    for variable, candidates in CANDIDATES.items():
        if variable in settings:
            attempts = [shlex.split(settings[variable])]
        else:
            attempts = [[candidate] for candidate in candidates]
        for words in attempts:
            if program := located(words):
                found[variable] = program
                break
    return found


def load_tools(settings: Mapping[str, str]) -> dict[str, list[str]]:
    """SMTPLOAD and SMTPSINK as set, or else built. Raises SetupError."""
    tools = {}
    for variable in LOAD_TOOLS:
        if not settings.get(variable):
            tools[variable] = [build(variable.lower())]
        elif program := located(shlex.split(settings[variable])):
            tools[variable] = program
        else:
            raise SetupError(f"{variable}: {settings[variable]!r} is not a program")
    return tools


def build(name: str) -> str:
    """Compile NAME.c unless that is done already; return the program's path.

    Raises SetupError when there is no compiler or it fails.
    """
    source, target = HERE / f"{name}.c", BUILD / name
    with contextlib.suppress(FileNotFoundError):
        if target.stat().st_mtime >= source.stat().st_mtime:
            return str(target)
    compiler = shutil.which("cc")
    if compiler is None:
        raise SetupError("no C compiler: install gcc, or set SMTPLOAD and SMTPSINK")
    # Another run may want the program at the same moment: make it appear whole.
    partial = BUILD / f"{name}.{os.getpid()}"
    try:
        BUILD.mkdir(exist_ok=True)
        subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-o", str(partial), str(source)], check=True
        )
        partial.replace(target)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"cannot build {target}: {error}") from error
    return str(target)
