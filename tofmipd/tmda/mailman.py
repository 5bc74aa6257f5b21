"""The members of a Mailman 2 list: ``config.pck``, a pickle, or ``config.db``, a marshalled table.

Both were written by Python 2, and by somebody else: nothing in them is executed.
"""

from __future__ import annotations

import functools
import io
import pickle
import struct
from collections.abc import Container
from typing import Any, ClassVar


class BadList(Exception):
    """The file is not what Mailman writes."""


class _Anything:
    """Stands for every class that a pickle names: takes all and does nothing."""

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


def _load_tuple(machine: Any) -> None:
    items = machine.pop_mark()
    machine.append(items)


def _load_last(number: int, machine: Any) -> None:
    start = len(machine.stack) - number
    machine.stack[start:] = [machine.stack[start:]]


class _Harmless(pickle._Unpickler):
    """The reader in Python: that in C sets aside the memory that a number in a pickle asks for.

    Tuples become lists: for the hash of deep ones C would use up its stack.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.TUPLE[0]: _load_tuple,
        pickle.EMPTY_TUPLE[0]: functools.partial(_load_last, 0),
        pickle.TUPLE1[0]: functools.partial(_load_last, 1),
        pickle.TUPLE2[0]: functools.partial(_load_last, 2),
        pickle.TUPLE3[0]: functools.partial(_load_last, 3),
    }
    del dispatch[pickle.BYTEARRAY8[0]]

    def find_class(self, module: str, name: str) -> Any:
        return _Anything

    def persistent_load(self, identifier: object) -> object:
        return None


def read_pickle(octets: bytes) -> dict[str, Any]:
    """The attributes of a list.  Raises BadList."""
    try:
        value = _Harmless(io.BytesIO(octets), encoding="latin-1").load()
    except Exception as error:
        raise BadList(f"not a pickle of Mailman: {error}") from None
    return _table(value)


def read_marshal(octets: bytes) -> dict[str, Any]:
    """The attributes of a list.  Raises BadList."""
    try:
        value = _Marshal(octets).value()
    except (struct.error, IndexError, RecursionError, ValueError, TypeError) as error:
        raise BadList(f"not a marshalled table of Mailman: {error}") from None
    return _table(value)


def members(attributes: dict[str, Any], name: str) -> frozenset[bytes]:
    """The addresses of an attribute such as ``members``, in lower case.  Raises BadList."""
    value = attributes.get(name)
    if not isinstance(value, dict | list | tuple | set | frozenset):
        raise BadList(f"the list has no members called {name!r}")
    return frozenset(
        word.encode("latin-1", "replace").lower() for word in value if isinstance(word, str)
    )


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadList("not a table")
    return {name: item for name, item in value.items() if isinstance(name, str)}


_CONSTANTS: dict[bytes, object] = {
    b"N": None,
    b"T": True,
    b"F": False,
    b".": ...,
    b"S": StopIteration,
}


class _Marshal:
    """A reader of what ``marshal`` of Python 1.5 to 2.7 wrote, but for code."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._place = 0
        self._interned: list[str] = []

    def value(self) -> Any:
        kind = self._take(1)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        match kind:
            case b"i":
                return struct.unpack("<i", self._take(4))[0]
            case b"I":
                return struct.unpack("<q", self._take(8))[0]
            case b"l":
                return self._long()
            case b"f":
                return float(self._take(self._take(1)[0]))
            case b"g":
                return struct.unpack("<d", self._take(8))[0]
            case b"s":
                return self._take(self._count()).decode("latin-1")
            case b"t":
                self._interned.append(self._take(self._count()).decode("latin-1"))
                return self._interned[-1]
            case b"R":
                return self._interned[self._count()]
            case b"u":
                return self._take(self._count()).decode("utf-8", "replace")
            case b"(" | b"[":
                items = [self.value() for _ in range(self._count())]
                return tuple(items) if kind == b"(" else items
            case b"{":
                return self._dictionary()
        raise ValueError(f"unknown kind {kind!r}")

    def _dictionary(self) -> dict[Any, Any]:
        table: dict[Container[Any], Any] = {}
        while self._octets[self._place : self._place + 1] != b"0":
            key = self.value()
            table[key] = self.value()
        self._place += 1
        return table

    def _long(self) -> int:
        digits: int = struct.unpack("<i", self._take(4))[0]
        value = 0
        for shift in range(abs(digits)):
            value |= struct.unpack("<H", self._take(2))[0] << (15 * shift)
        return -value if digits < 0 else value

    def _count(self) -> int:
        count: int = struct.unpack("<i", self._take(4))[0]
        if not 0 <= count <= len(self._octets):
            raise ValueError("a length beyond the end")
        return count

    def _take(self, octets: int) -> bytes:
        piece = self._octets[self._place : self._place + octets]
        if len(piece) < octets:
            raise ValueError("it ends too early")
        self._place += octets
        return piece
