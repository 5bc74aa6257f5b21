"""Where log lines go, and what a line looks like."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import sys

# Protocol lines of clients, shown by -d only.
TRACE = "tofmipd.trace"
_SYSLOG_SOCKET = "/dev/log"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class OneLine(logging.Formatter):
    """No record takes more than one line, a traceback included, or moves a terminal's cursor."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if text.isprintable() else _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class SharedFile(logging.Handler):
    """A log file of several processes, most of which could not open it themselves.

    All of them append to one open file; a line is one write.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self.descriptor = _open(path)

    def reopen(self) -> None:
        """Begin a new file where the old one has been moved away.  Raises OSError."""
        self.take(_open(self._path))

    def take(self, descriptor: int) -> None:
        """Write to this open file from now on."""
        os.dup2(descriptor, self.descriptor, inheritable=False)
        os.close(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            os.write(self.descriptor, line.encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        os.close(self.descriptor)
        super().close()


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def set_up(
    *,
    debug: bool,
    log: bool,
    quiet: bool,
    foreground: bool,
    log_file: str,
    shared: bool = False,
) -> None:
    """Send log lines to a file, to standard error, or in the background to syslog (mail).

    ``quiet`` leaves warnings and errors; ``shared``: several processes will log.  Raises OSError
    when the file cannot be written.
    """
    handler: logging.Handler
    if log_file and shared:
        handler = SharedFile(log_file)
    elif log_file:
        handler = logging.handlers.WatchedFileHandler(
            log_file, encoding="utf-8", errors="backslashreplace"
        )
    elif foreground:
        handler = logging.StreamHandler(sys.stderr)
    elif os.path.exists(_SYSLOG_SOCKET):
        handler = logging.handlers.SysLogHandler(
            _SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_MAIL
        )
        handler.ident = f"tofmipd[{os.getpid()}]: "
    else:
        handler = logging.NullHandler()
    # Syslog has date and severity of its own.
    syslog = isinstance(handler, logging.handlers.SysLogHandler)
    handler.setFormatter(OneLine("%(message)s" if syslog else _FORMAT))
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
        if isinstance(handler, SharedFile):
            found.append(handler.descriptor)
        elif isinstance(handler, logging.handlers.SysLogHandler):
            # The class makes it, though its type does not say so.
            found.append(handler.__dict__["socket"].fileno())
    return found
