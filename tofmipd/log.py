"""Where log lines go, and what a line looks like."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys

# Protocol lines of clients, shown by -d only.
TRACE = "tofmipd.trace"
_SYSLOG_SOCKET = "/dev/log"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _OneLine(logging.Formatter):
    """No record takes more than one line, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\\n")


def set_up(*, debug: bool, log: bool, quiet: bool, foreground: bool, log_file: str) -> None:
    """Send log lines to a file, to standard error, or in the background to syslog (mail).

    ``quiet`` leaves warnings and errors.  Raises OSError when the file cannot be written.
    """
    handler: logging.Handler
    if log_file:
        handler = logging.handlers.WatchedFileHandler(log_file)
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
    handler.setFormatter(_OneLine("%(message)s" if syslog else _FORMAT))
    # What nobody prints needs not be looked up for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger("tofmipd")
    root.handlers[:] = [handler]
    root.propagate = False
    level = logging.WARNING if quiet else logging.INFO
    root.setLevel(logging.DEBUG if debug or log else level)
    logging.getLogger(TRACE).setLevel(logging.DEBUG if debug else logging.CRITICAL)
    logging.raiseExceptions = False


def reaches_somebody() -> bool:
    """Whether a line that is logged in the background is kept anywhere."""
    handlers = logging.getLogger("tofmipd").handlers
    return not all(isinstance(handler, logging.NullHandler) for handler in handlers)
