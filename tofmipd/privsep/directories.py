"""A directory of the service's own, made for it by root."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from tofmipd.errors import CANT_CREATE, CONFIG, Fatal
from tofmipd.privsep.drop import Rights


def make_private(path: str, rights: Rights) -> None:
    """Have a directory in which nobody but this account can change anything, and root.

    One that is missing is made; one that is there is taken as it is, or not at all.  Raises Fatal.
    """
    try:
        _check_above(path, rights)
        made = False
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            made = True
        _take(path, rights, made)
    except OSError as error:
        text = f"{path}: cannot be made for {rights.name}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def check_private(path: str, rights: Rights) -> None:
    """Whether there could be one, or is: nothing is made.  Raises Fatal."""
    try:
        _check_above(path, rights)
        with contextlib.suppress(FileNotFoundError):
            _take(path, rights, made=False)
    except OSError as error:
        text = f"{path}: cannot be made for {rights.name}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def _check_above(path: str, rights: Rights) -> None:
    """Raises Fatal, OSError."""
    for parent in _above(os.path.realpath(os.path.dirname(path))):
        status = os.stat(parent)
        fault = _fault(status, (0, rights.uid))
        # In a directory with the sticky bit nobody moves what is another's away.
        if fault and not (status.st_uid == 0 and status.st_mode & stat.S_ISVTX):
            raise Fatal(CONFIG, f"{path}: {fault} {parent}, and could put another in its place")


def _above(path: str) -> Iterator[str]:
    """This directory and all above it."""
    yield path
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


def _take(path: str, rights: Rights, made: bool) -> None:
    """Raises Fatal, OSError."""
    if os.path.islink(path):
        raise Fatal(CONFIG, f"{path}: a symbolic link; name the directory itself")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if made:
            os.fchown(descriptor, rights.uid, rights.gid)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    fault = _fault(status, (rights.uid,))
    if fault:
        raise Fatal(CONFIG, f"{path}: {fault} it (chown {rights.name} {path}; chmod 700 {path})")


def _fault(status: os.stat_result, owners: tuple[int, ...]) -> str:
    """Who else can change what is in a directory, "" for nobody."""
    if status.st_uid not in owners:
        return f"uid {status.st_uid} owns"
    return "others can write" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""
