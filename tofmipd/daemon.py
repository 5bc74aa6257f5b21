"""Start-up order, signals, detaching, and the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from tofmipd import cpus
from tofmipd import log as log_module
from tofmipd.auth.passwordfile import PasswordFileError
from tofmipd.dates import rfc5322_date
from tofmipd.errors import CANT_CREATE, CONFIG, PERMISSION, UNAVAILABLE, Fatal
from tofmipd.gate import Gate
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.outbound import Observer
from tofmipd.privsep.personal import personal_gate
from tofmipd.server import Listener, ListenError, Service
from tofmipd.settings import Settings

log = logging.getLogger(__name__)


def run(
    settings: Settings,
    observer: Observer | None = None,
    started: Callable[[], None] | None = None,
) -> int:
    """The whole life of a personal daemon; returns its exit status.  Raises Fatal.

    Whatever can be wrong is found before the process detaches.  ``started`` is called when
    clients can connect.
    """
    os.umask(0o077)
    set_up_log(settings)
    pool = Pool()
    try:
        gate = personal_gate(settings, pool, observer)
    except PasswordFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    service = new_service(settings, gate)
    listeners = listen(settings, service)
    if settings.foreground:
        announce(listeners)
    else:
        if not log_module.reaches_somebody():
            print("tofmipd: no syslog here, nothing is logged; see --log-file", file=sys.stderr)
        detach()
        set_up_log(settings)
    if settings.one_cpu:
        cpus.keep_to_one()
    if started is not None:
        started()
    serve(service, listeners)
    pool.close()
    return 0


def new_service(settings: Settings, gate: Gate) -> Service:
    return Service(
        gate,
        settings.host_name,
        settings.limits,
        insecure_auth=settings.insecure_auth,
        fix_bare_newline=settings.fix_bare_newline,
    )


def set_up_log(settings: Settings) -> None:
    try:
        log_module.set_up(
            debug=settings.debug,
            log=settings.log,
            quiet=settings.quiet,
            foreground=settings.foreground,
            log_file=settings.log_file,
        )
    except OSError as error:
        text = f"cannot write the log file {settings.log_file}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def listen(settings: Settings, service: Service) -> list[Listener]:
    """Bind all addresses.  Raises Fatal when one of them cannot be had."""
    listeners: list[Listener] = []
    for address in settings.listen:
        try:
            listeners.append(Listener(address, service))
        except ListenError as error:
            for listener in listeners:
                listener.server_close()
            status = PERMISSION if error.denied else UNAVAILABLE
            raise Fatal(status, f"{error}; choose another with {settings.port_hint}") from None
    return listeners


def announce(listeners: list[Listener]) -> None:
    print(f"tofmipd started at {rfc5322_date(time.time())}", file=sys.stderr)
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"\tListening on {shown}:{port}", file=sys.stderr, flush=True)


def serve(service: Service, listeners: list[Listener]) -> None:
    """Accept until SIGTERM, SIGINT or SIGHUP, then let messages under way finish."""
    signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for listener in listeners:
        listener.start()
    log.info("started, pid %d", os.getpid())
    number = os.read(signals, 1)[0]
    log.info("stopping on %s", signal.Signals(number).name)
    service.begin_stop()
    for listener in listeners:
        listener.stop()
    if not service.stop():
        log.warning("some sessions did not end in time and are cut off")
    log.info("stopped")
    # While the interpreter goes down a second signal would otherwise count as a failure.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def catch_signals(*numbers: int) -> int:
    """A descriptor from which the number of each signal that comes can be read, an octet each.

    A signal may interrupt any thread; one that waits for a lock would not notice that.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda number, frame: None)
    return reader


def detach() -> None:
    """Become a daemon: two forks, a session of its own, nothing on descriptors 0 to 2.

    There is one thread yet.  The parent ends with status 0, for all that can fail has been done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    for number in (signal.SIGTSTP, signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(number, signal.SIG_IGN)
