"""DBM databases, of whichever kinds this Python knows (TMDA reference, section 4.6)."""

from __future__ import annotations

import contextlib
import dbm
import importlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from typing import Any

_ENDS = ("", ".db", ".dir", ".pag", ".dat")
# Those that put a database into one file, so that it can be put in its place at once.
_MAKERS = ("dbm.gnu", "dbm.ndbm")


class BadDbm(Exception):
    """The file is no database, not one that this Python knows, or a damaged one."""


def parts(path: str) -> list[str]:
    """The files of a database that is named with or without what its kind adds.

    Raises FileNotFoundError if there is none.
    """
    names = [path + end for end in _ENDS]
    base = path.removesuffix(".db")
    # The file without an end may be the list that the database is made of.
    names += [base + end for end in _ENDS if end or (os.path.isfile(base) and dbm.whichdb(base))]
    found = [name for name in dict.fromkeys(names) if os.path.lexists(name)]
    if not found:
        raise FileNotFoundError(path)
    return found


def read(path: str) -> dict[bytes, bytes]:
    """All records.  Raises BadDbm, OSError."""
    for file in parts(path):
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise BadDbm("is no file")
        # What may not be read is not even recognised, and would count as no database.
        os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    for name in dict.fromkeys((path, path.removesuffix(".db"))):
        kind = dbm.whichdb(name)
        if kind:
            try:
                return _records(importlib.import_module(kind), name)
            except ImportError:
                raise BadDbm(f"it needs the Python module {kind}; install it") from None
            except (*dbm.error, ValueError, TypeError, SyntaxError) as error:
                raise BadDbm(f"it cannot be read: {error}") from None
    raise BadDbm("no DBM database that this Python knows")


def _records(module: Any, name: str) -> dict[bytes, bytes]:
    with module.open(name, "r") as database:
        # dbm.ndbm gives an empty record's key, but not the record.
        return {key: database.get(key, b"") for key in database.keys()}  # noqa: SIM118 - no dict


def make(path: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Build a database aside and put it in its place; of several records of a key the first
    counts.  Raises BadDbm where no module makes databases of one file, OSError."""
    firsts: dict[bytes, bytes] = {}
    for key, value in records:
        firsts.setdefault(key, value)
    directory = tempfile.mkdtemp(prefix=".dbm", dir=os.path.dirname(path))
    try:
        for name in _MAKERS:
            with contextlib.suppress(ImportError):
                built = _build(importlib.import_module(name), directory, firsts)
                if built:
                    os.rename(built, path)
                    return
    except dbm.error as error:
        raise BadDbm(f"it cannot be made: {error}") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    raise BadDbm("no module for DBM files of one piece")


def _build(module: Any, directory: str, records: dict[bytes, bytes]) -> str:
    """The path of a new database, or "" if it is not one file."""
    with module.open(os.path.join(directory, "list"), "n", 0o600) as database:
        for key, value in records.items():
            # dbm.ndbm does not find a record that is empty.
            database[key] = value or b"\0"
    (name, *others) = os.listdir(directory)
    if others:
        for other in (name, *others):
            os.unlink(os.path.join(directory, other))
        return ""
    return os.path.join(directory, name)
