"""The database connection of a configuration: DB_CONNECTION (TMDA reference, section 3.3)."""

from __future__ import annotations

import contextlib
import functools
import queue
import re
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from tofmipd.tmda.errors import TagError

_T = TypeVar("_T")

_SECONDS = 30
_ROWS_LIMIT = 1_000_000
_PLACE = re.compile(r"%\((\w+)\)s", re.ASCII)


class Keeper:
    """One thread for all that is done with a connection, the configuration that opens it included.

    Many databases let only that thread use a connection which has made it.  The thread ends with
    ``end``, or when the keeper is forgotten.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        thread = threading.Thread(target=_serve, args=(self._jobs,), daemon=True, name="database")
        self._has_thread = True
        try:
            thread.start()
        except RuntimeError:
            # There can be none just now: everybody does it himself.
            self._has_thread = False
        self._end = weakref.finalize(self, self._jobs.put, None)
        self._end.atexit = False

    def run(self, job: Callable[[], _T], seconds: float | None = None) -> _T:
        """What ``job`` returns or raises.  Raises TimeoutError after ``seconds``."""
        future: Future[_T] = Future()
        self.later(functools.partial(_settle, future, job))
        try:
            return future.result(seconds)
        finally:
            # An error knows this frame; what its own frames hold would stay as long.
            del future

    def later(self, job: Callable[[], object]) -> None:
        """Do something when all else is done; nobody waits for it."""
        if self._has_thread:
            self._jobs.put(job)
        else:
            job()

    def end(self) -> None:
        self._end()


def _settle(future: Future[_T], job: Callable[[], _T]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:
        future.set_exception(error)
    finally:
        del future


def _serve(jobs: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job


class Database:
    """A DB-API connection (PEP 249).  Safe for threads; one statement at a time.

    ``broken``: something went wrong, so that a new connection is worth a try.
    """

    def __init__(self, connection: Any, keeper: Keeper) -> None:
        self._connection = connection
        self._keeper = keeper
        self._style = _parameter_style(connection)
        self.broken = False
        closing = weakref.finalize(self, keeper.later, lambda: _close(connection))
        closing.atexit = False

    def select(
        self, statement: str, values: Mapping[str, str]
    ) -> tuple[list[str], list[Sequence[Any]]]:
        """The names of the columns and all rows.  Raises TagError."""

        def work() -> tuple[list[str], list[Sequence[Any]]]:
            cursor = self._execute(statement, values)
            try:
                rows = list(cursor.fetchmany(_ROWS_LIMIT))
                names = [str(column[0]) for column in cursor.description or ()]
            finally:
                cursor.close()
                # A transaction that goes on would keep showing what was there when it began.
                with contextlib.suppress(Exception):
                    self._connection.rollback()
            return names, rows

        return self._run(work)

    def insert(self, statement: str, values: Mapping[str, str]) -> None:
        """Raises TagError; a row that is there already is none."""

        def work() -> None:
            try:
                self._execute(statement, values).close()
                self._connection.commit()
            except Exception as error:
                with contextlib.suppress(Exception):
                    self._connection.rollback()
                if not any(kind.__name__ == "IntegrityError" for kind in type(error).__mro__):
                    raise

        self._run(work)

    def _execute(self, statement: str, values: Mapping[str, str]) -> Any:
        text, parameters = in_style(self._style, statement, values)
        cursor = self._connection.cursor()
        if parameters:
            cursor.execute(text, parameters)
        else:
            cursor.execute(text)
        return cursor

    def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return self._keeper.run(work, _SECONDS)
        except TimeoutError:
            self.broken = True
            raise TagError(f"the database did not answer within {_SECONDS} s") from None
        except TagError:
            raise
        except Exception as error:
            self.broken = True
            raise TagError(f"the database says {type(error).__name__}: {error}") from None


def _close(connection: Any) -> None:
    with contextlib.suppress(Exception):
        connection.close()


def _parameter_style(connection: Any) -> str:
    """The ``paramstyle`` of the module that a connection comes from."""
    for kind in type(connection).__mro__:
        name = kind.__module__
        while name:
            style = getattr(sys.modules.get(name), "paramstyle", "")
            if style:
                return str(style)
            name = name.rpartition(".")[0]
    return "pyformat"


def in_style(
    style: str, statement: str, values: Mapping[str, str]
) -> tuple[str, dict[str, str] | list[str]]:
    """A statement with ``%(name)s`` for parameters as a module wants it (PEP 249, paramstyle).

    Raises TagError for a name that is not among the values.
    """
    order: list[str] = []

    def place(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            known = ", ".join(f"%({word})s" for word in values)
            raise TagError(f"the statement names %({name})s; there are {known}")
        order.append(name)
        written = {
            "qmark": "?",
            "numeric": f":{len(order)}",
            "named": f":{name}",
            "format": "%s",
            "pyformat": f"%({name})s",
        }
        return written.get(style, written["pyformat"])

    pieces = []
    position = 0
    for match in _PLACE.finditer(statement):
        pieces += [_literally(style, statement[position : match.start()]), place(match)]
        position = match.end()
    if not order:
        # A module that is given no values leaves per cent signs alone.
        return statement.replace("%%", "%"), []
    text = "".join([*pieces, _literally(style, statement[position:])])
    if style in ("qmark", "numeric", "format"):
        return text, [values[name] for name in order]
    return text, {name: values[name] for name in order}


def _literally(style: str, text: str) -> str:
    """Per cent signs that are no parameters: ``%%`` is one everywhere, as is a lone one."""
    text = text.replace("%%", "%")
    return text.replace("%", "%%") if style in ("format", "pyformat") else text
