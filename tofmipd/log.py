"""Where log lines go, and what a line looks like."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys

from tofmipd.settings import FACILITIES, LogSettings

# Protocol lines of clients, shown by -d only.
TRACE = "tofmipd.trace"
SYSLOG_SOCKET = "/dev/log"
# A line of a file, and one where date and severity are somebody else's business.
_DATED, _PLAIN = "%(asctime)s %(levelname)s %(message)s", "%(message)s"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class OneLine(logging.Formatter):
    """No record takes more than one line, a traceback included, or moves a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if text.isprintable() else _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def severity(level: int) -> int:
    """Of a level of logging, as syslog(3) and sd-daemon(3) count."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


class Prefixed(logging.Formatter):
    """Lines for standard error that the journal reads: it takes the priority off (sd-daemon(3))."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return f"<{severity(record.levelno)}>{self._inner.format(record)}"


class LogFile(logging.Handler):
    """A log file, appended to with one write a line; what cannot be written is lost.

    With ``watched`` a new one begins when the old one has been moved away.
    """

    def __init__(self, path: str, *, watched: bool = False) -> None:
        super().__init__()
        self._path = path
        self._watched = watched
        self._cut_off = False
        self.descriptor = _open(path)

    def reopen(self) -> None:
        """Begin a new file where the old one has been moved away.  Raises OSError."""
        self.take(_open(self._path))

    def take(self, descriptor: int) -> None:
        """Write to this open file from now on."""
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)
        self._cut_off = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._watched:
                self._look()
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            # A disk that was full took only a part of the last one.
            begin = b"\n" if self._cut_off else b""
            written = os.write(self.descriptor, begin + line)
            self._cut_off = written < len(begin + line)
        except Exception:
            self.handleError(record)

    def _look(self) -> None:
        """The old file goes on where there can be no new one."""
        with contextlib.suppress(OSError):
            try:
                there = os.stat(self._path)
            except FileNotFoundError:
                self.reopen()
                return
            if not os.path.samestat(there, os.fstat(self.descriptor)):
                self.reopen()

    def close(self) -> None:
        os.close(self.descriptor)
        super().close()


class SharedFile(LogFile):
    """A log file of several processes, most of which could not open it themselves.

    All of them append to one open file, which is opened again when they are told to.
    """


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Syslog(logging.Handler):
    """The system's log, by the socket of syslog(3).

    It never waits: what the other end does not take at once is lost, and so are lines while
    nobody is there.
    """

    def __init__(self, path: str, facility: str) -> None:
        super().__init__()
        self._path = path
        self._facility = FACILITIES[facility] << 3
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        """-1 while there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            head = f"<{self._facility | severity(record.levelno)}>tofmipd[{os.getpid()}]: "
            packet = (head + self.format(record)).encode("utf-8", "backslashreplace")
            try:
                self._connected().send(packet)
            except BlockingIOError:
                pass
            except OSError:
                # Whoever was there may be back, with another socket.
                self._disconnect()
                self._connected().send(packet)
        except Exception:
            self.handleError(record)

    def _connected(self) -> socket.socket:
        """Raises OSError."""
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                made.connect(self._path)
            except OSError:
                made.close()
                raise
            self._socket = made
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._disconnect()
        super().close()


def set_up(
    *,
    debug: bool,
    log: bool,
    quiet: bool,
    foreground: bool,
    log_file: str,
    shared: bool = False,
    look: LogSettings | None = None,
    syslog_socket: str = SYSLOG_SOCKET,
) -> None:
    """Send log lines to a file, to standard error, or in the background to syslog.

    ``quiet`` leaves warnings and errors; ``shared``: several processes will log.  Raises OSError
    when the file cannot be written.
    """
    look = look or LogSettings()
    handler: logging.Handler
    dated, prefixed = _DATED, False
    if log_file:
        handler = SharedFile(log_file) if shared else LogFile(log_file, watched=True)
    elif foreground:
        handler = logging.StreamHandler(sys.stderr)
        prefixed = look.form == "journal" or (look.journal and look.form != "text")
        dated = _PLAIN if prefixed else _DATED
    elif os.path.exists(syslog_socket):
        handler = Syslog(syslog_socket, look.facility)
        dated = _PLAIN
    else:
        handler = logging.NullHandler()
    formatter = _json() if look.form == "json" else OneLine(dated)
    handler.setFormatter(Prefixed(formatter) if prefixed else formatter)
    # What nobody prints needs not be looked up for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Documented in the logging cookbook: no look at the caller's frame.
    vars(logging)["_srcfile"] = None
    root = logging.getLogger("tofmipd")
    replace_handler(handler)
    root.propagate = False
    set_levels(debug=debug, log=log, quiet=quiet)
    logging.raiseExceptions = False


def set_levels(*, debug: bool, log: bool, quiet: bool) -> None:
    level = logging.WARNING if quiet else logging.INFO
    logging.getLogger("tofmipd").setLevel(logging.DEBUG if debug or log else level)
    logging.getLogger(TRACE).setLevel(logging.DEBUG if debug else logging.CRITICAL)


def _json() -> logging.Formatter:
    # Nobody else has use for the names of all events.
    from tofmipd.events import Json

    return Json()


def reaches_somebody() -> bool:
    """Whether a line that is logged in the background is kept anywhere."""
    handlers = logging.getLogger("tofmipd").handlers
    return not all(isinstance(handler, logging.NullHandler) for handler in handlers)


def replace_handler(handler: logging.Handler) -> None:
    """Have all lines go there, and close what they went to."""
    root = logging.getLogger("tofmipd")
    before, root.handlers[:] = root.handlers[:], [handler]
    for old in before:
        old.close()


def shared_file() -> SharedFile | None:
    """The handler of a shared log file, if there is one."""
    handlers = logging.getLogger("tofmipd").handlers
    return next((handler for handler in handlers if isinstance(handler, SharedFile)), None)


def descriptors() -> list[int]:
    """What log lines are written to, besides standard error."""
    found = []
    for handler in logging.getLogger("tofmipd").handlers:
        if isinstance(handler, LogFile):
            found.append(handler.descriptor)
        elif isinstance(handler, Syslog) and handler.fileno() >= 0:
            found.append(handler.fileno())
    return found
