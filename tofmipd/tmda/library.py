"""Looking addresses up in lists and databases (TMDA reference, section 4.6)."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tofmipd.tmda import cdb, dbmfiles, mailman
from tofmipd.tmda.database import Database
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.files import Files, Stamp, reason, stamp
from tofmipd.tmda.lists import Entry, TextList, parse_list, read_rows, row_entry
from tofmipd.tmda.sources import Found, Question

_BUILDS_LIMIT = 3
_CRITERIA = "%(criteria)s"
_RECIPIENT = "%(recipient)s"
_MAILMAN = {"config.pck": mailman.read_pickle, "config.db": mailman.read_marshal}


class Library:
    """The lists of one user: read when they are needed, kept until they change.

    Safe for threads.  ``names`` are what SQL statements may name beside the recipient;
    ``earlier`` is a library of the same user, whose lists are not read again.
    """

    def __init__(
        self,
        files: Files,
        database: Database | None = None,
        names: Mapping[str, str] | None = None,
        earlier: Library | None = None,
        *,
        asks: bool = True,
    ) -> None:
        self.files = files
        # Whether statements of the filter may be carried out.
        self.asks = asks
        self.database = database
        self.names = names or {}
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[tuple[Stamp, Stamp], Any]] = {}
        # Those that nothing names any more go with the library after this one.
        self._earlier = earlier.all_kept() if earlier is not None else {}

    def all_kept(self) -> dict[tuple[str, str], tuple[tuple[Stamp, Stamp], Any]]:
        with self._lock:
            return dict(self._kept)

    def reading(self) -> Reading:
        """For one message: its recipients are all judged by the same lists."""
        return Reading(self)

    def kept(self, kind: str, path: str, parse: Callable[[str], Any], beside: str = "") -> Any:
        """What ``parse`` made of the file when it, or the one ``beside`` it, last changed.

        Raises TagError.
        """
        with self._lock:
            known = self._kept.get((kind, path)) or self._earlier.get((kind, path))
            now = stamp(path), stamp(beside) if beside else None
            if known is not None and now[0] is not None and known[0] == now:
                self._kept[kind, path] = known
                return known[1]
            try:
                made = parse(path)
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:
                raise TagError(f"{path} cannot be read: {reason(error)}") from None
            except MemoryError:
                raise TagError(f"{path} is too big") from None
            except (cdb.BadDatabase, mailman.BadList, dbmfiles.BadDbm) as error:
                raise TagError(f"{path}: {error}") from None
            self._kept[kind, path] = (now, made)
            return made


class Reading:
    """The lists as one message finds them.  See sources.Lists."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._files = library.files
        # None stands for a file that is missing.
        self._seen: dict[tuple[str, str], Any] = {}

    def look_up(self, question: Question, keys: Sequence[bytes], recipient: bytes) -> Found | None:
        """See sources.Lists.  A missing file is an error unless the rule says -optional."""
        try:
            return self._look_up(question, keys, recipient)
        except FileNotFoundError:
            if question.has("optional"):
                return None
            problem = f"there is no file {question.match}; write -optional if it may miss"
            raise TagError(problem) from None
        except (OSError, ValueError) as error:
            raise TagError(f"{question.match} cannot be read: {reason(error)}") from None

    def _look_up(self, question: Question, keys: Sequence[bytes], recipient: bytes) -> Found | None:
        path = question.match
        match question.kind:
            case "file" if question.has("autocdb"):
                return self._in_auto_cdb(path, keys)
            case "file" if question.has("autodbm"):
                return self._in_auto_dbm(path, keys)
            case "file":
                return self._in_file(path, keys)
            case "cdb":
                return self._in_cdb(path, keys)
            case "dbm":
                return self._in_dbm(path, keys)
            case "ezmlm":
                files = self._once("ezmlm", path, lambda: self._subscribers(f"{path}/subscribers"))
                return Found() if any(keys[0] in one for one in files) else None
            case "mailman":
                found = self._members(path, question.options["attr"])
                return Found() if keys[0] in found else None
            case "sql":
                return self._in_database(question, keys, recipient)
        raise AssertionError(question.kind)

    def _kept(self, kind: str, path: str, parse: Callable[[str], Any]) -> Any:
        return self._once(kind, path, lambda: self._library.kept(kind, path, parse))

    def _once(self, kind: str, path: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives when this message first asks; a missing file stays so."""
        if (kind, path) not in self._seen:
            try:
                self._seen[kind, path] = make()
            except FileNotFoundError:
                self._seen[kind, path] = None
        if self._seen[kind, path] is None:
            raise FileNotFoundError(path)
        return self._seen[kind, path]

    # Text

    def _in_file(self, path: str, keys: Sequence[bytes]) -> Found | None:
        entry: Entry | None = self._kept("text", path, self._text_list).find(keys)
        return entry and Found(entry.action, f"{path}:{entry.line}")

    def _text_list(self, path: str) -> TextList:
        return parse_list(self._octets(path))

    def _octets(self, path: str) -> bytes:
        octets = self._files.read(path)
        if octets is None:
            raise FileNotFoundError(path)
        return octets

    # Constant databases

    def _in_cdb(self, path: str, keys: Sequence[bytes]) -> Found | None:
        descriptor, end = self._once("cdb", path, lambda: self._opened(path))

        def read_at(place: int, size: int) -> bytes:
            return os.pread(descriptor, max(0, min(size, end - place)), place)

        try:
            for key in keys:
                value = cdb.look_up(read_at, key)
                if value is not None:
                    return _beside(value, path)
        except cdb.BadDatabase as error:
            raise TagError(f"{path}: {error}") from None
        return None

    def _opened(self, path: str) -> tuple[int, int]:
        """A descriptor, open as long as this message lasts, and the size of the file."""
        descriptor = self._files.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor, os.fstat(descriptor).st_size

    def _in_auto_cdb(self, path: str, keys: Sequence[bytes]) -> Found | None:
        """Look into ``path``.cdb, made of the list when that is newer.  Where it cannot be made
        the list itself serves."""
        self._files.refuse_outside(path)
        made = f"{path}.cdb"
        if not self._up_to_date("made", path, made, self._make_cdb):
            return self._in_file(path, keys)
        try:
            return self._in_cdb(made, keys)
        except (OSError, TagError):
            return self._in_file(path, keys)

    def _up_to_date(
        self, kind: str, path: str, made: str, make: Callable[[str, str], None]
    ) -> bool:
        library = self._library
        found: bool = self._once(
            kind,
            path,
            lambda: library.kept(kind, path, lambda path: _made(path, made, make), made),
        )
        return found

    def _make_cdb(self, path: str, made: str) -> None:
        self._files.replace(made, cdb.make(_records(self._octets(path))))

    # DBM

    def _in_dbm(self, path: str, keys: Sequence[bytes]) -> Found | None:
        if self._files.confined:
            raise TagError("DBM databases are not read here; use a list or a cdb")
        return self._in_dbm_file(path, keys)

    def _in_dbm_file(self, path: str, keys: Sequence[bytes]) -> Found | None:
        """A database is read whole when it changes: some kinds find empty records only so."""
        found: list[str] = self._once("dbm files", path, lambda: dbmfiles.parts(path))
        records: dict[bytes, bytes] = self._once(
            "dbm",
            path,
            lambda: self._library.kept("dbm", found[0], lambda _: dbmfiles.read(path), found[-1]),
        )
        for key in keys:
            if key in records:
                return _beside(records[key], path)
        return None

    def _in_auto_dbm(self, path: str, keys: Sequence[bytes]) -> Found | None:
        made = f"{path}.db"
        if self._files.confined or not self._up_to_date("made dbm", path, made, self._make_dbm):
            return self._in_file(path, keys)
        try:
            return self._in_dbm_file(made, keys)
        except (OSError, TagError):
            return self._in_file(path, keys)

    def _make_dbm(self, path: str, made: str) -> None:
        dbmfiles.make(made, _records(self._octets(path)))
        self._files.replace(f"{path}.last_built", b"")

    # Mailing lists

    def _subscribers(self, directory: str) -> list[frozenset[bytes]]:
        """The addresses of an ezmlm list, by its files: each may change on its own."""
        found = []
        for name in self._files.names(directory):
            # A new file that has taken the place of an old one meanwhile is no trouble.
            with contextlib.suppress(FileNotFoundError):
                found.append(self._kept("subscribers", f"{directory}/{name}", self._entries))
        return found

    def _entries(self, path: str) -> frozenset[bytes]:
        """NUL-separated, each after a T."""
        entries = self._octets(path).split(b"\0")
        return frozenset(entry.partition(b"T")[2].lower() for entry in entries) - {b""}

    def _members(self, directory: str, attribute: str) -> frozenset[bytes]:
        """Those whom an attribute of a Mailman list has, of whichever file there is."""
        for name, read in _MAILMAN.items():
            path = os.path.join(directory, name)

            def parse(path: str, read: Callable[[bytes], dict[str, Any]] = read) -> Any:
                return mailman.members(read(self._octets(path)), attribute)

            with contextlib.suppress(FileNotFoundError):
                found: frozenset[bytes] = self._kept(f"mailman {attribute}", path, parse)
                return found
        raise FileNotFoundError(directory)

    # SQL

    def _in_database(
        self, question: Question, keys: Sequence[bytes], recipient: bytes
    ) -> Found | None:
        database = self._library.database
        if database is None:
            raise TagError("the configuration opens no database: set DB_CONNECTION")
        if not self._library.asks:
            raise TagError("the database of the site answers the filter of the site only")
        values = dict(self._library.names, recipient=_text(recipient.lower()))
        if question.has("wildcards"):
            asked = values["recipient"] if _RECIPIENT in question.match else ""
            rows = self._seen.get((question.match, asked))
            if rows is None:
                _, found = database.select(question.match, values)
                rows = self._seen[question.match, asked] = TextList(_patterns(found))
            entry: Entry | None = rows.find(keys)
            return entry and Found(entry.action, f"row {entry.line} of the database")
        column = question.options["addr_column"]
        tests = [f"{column} = %(key_{number})s" for number in range(len(keys))]
        values |= {f"key_{number}": _text(key) for number, key in enumerate(keys)}
        statement = question.match.replace(_CRITERIA, f"({' OR '.join(tests)})")
        names, found = database.select(statement, values)
        if not found:
            return None
        return Found(_action_of(question, names, found[0]), "the first row of the database")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")


def _beside(value: bytes, where: str) -> Found:
    """What a database holds beside an address: its first word is an action."""
    words = value.rstrip(b"\0").split(None, 1)
    return Found(words[0].decode("utf-8", "surrogateescape") if words else "", where)


def _records(text: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The lines of a list as keys and values."""
    for pattern, entry in read_rows(text):
        yield pattern, entry.action.encode("utf-8", "surrogateescape")


def _made(path: str, made: str, make: Callable[[str, str], None]) -> bool:
    """Whether there is a database of a list that is up to date, if need be a new one.

    Raises FileNotFoundError when there is no list.
    """
    listed = os.stat(path).st_mtime_ns
    try:
        if os.stat(made).st_mtime_ns > listed:
            return True
    except OSError:
        pass
    try:
        for _ in range(_BUILDS_LIMIT):
            before = stamp(path)
            make(path, made)
            # A change meanwhile would be older than a database that does not have it.
            if stamp(path) == before:
                return True
        os.unlink(made)
    except (OSError, ValueError, cdb.BadDatabase, dbmfiles.BadDbm):
        pass
    return False


def _patterns(rows: Iterable[Sequence[Any]]) -> Iterable[tuple[bytes, Any]]:
    """Rows of a database as those of a list: a pattern, perhaps an action."""
    for number, row in enumerate(rows, 1):
        words = [_octets_of(value) for value in row[:2]]
        pattern = words[0].split(None, 1)[:1] if words else []
        if pattern:
            yield pattern[0].lower(), row_entry(b" ".join(words[1:]).split(None, 1), number)


def _octets_of(value: object) -> bytes:
    if value is None:
        return b""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


def _action_of(question: Question, names: list[str], row: Sequence[Any]) -> str:
    """The action in the row that has been found, "" without -action_column.  Raises TagError."""
    wanted = question.options.get("action_column")
    if wanted is None:
        return ""
    lowered = [name.lower() for name in names]
    if wanted.lower() not in lowered:
        raise TagError(f"the statement gives no column {wanted!r}; there are {', '.join(names)}")
    return _octets_of(row[lowered.index(wanted.lower())]).decode("utf-8", "surrogateescape").strip()
