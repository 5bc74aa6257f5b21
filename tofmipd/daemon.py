"""Start-up order, signals, detaching, and the end."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from tofmipd import cpus, encrypted, systemd
from tofmipd import log as log_module
from tofmipd.auth.files import SourceFileError
from tofmipd.dates import rfc5322_date
from tofmipd.encrypted import Encryption
from tofmipd.errors import CANT_CREATE, CONFIG, PERMISSION, SOFTWARE, UNAVAILABLE, Fatal
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.smtp import Pool
from tofmipd.onesession import Connection
from tofmipd.pidfile import PidFile
from tofmipd.privsep import confine
from tofmipd.privsep.outbound import Observer
from tofmipd.privsep.personal import personal_gate, personal_retries
from tofmipd.server import Listener, ListenError, Service, bind, service_of
from tofmipd.settings import TLS_MODES, GlobalMode, Listen, Scripts, Settings
from tofmipd.systemd import Supervisor

log = logging.getLogger(__name__)

# What a session needs: the client's socket, the next hop's, a file, a spare.
_DESCRIPTORS_PER_SESSION = 4
# What FileDescriptorName may say of a socket that systemd passes (RFC 8314 section 7.3).
_MODES_BY_NAME = {"smtps": "ssl", "submissions": "ssl", "ssl": "ssl", "plain": "plain"} | {
    f"tls={mode}": mode for mode in TLS_MODES
}


def run(
    settings: Settings,
    observer: Observer | None = None,
    started: Callable[[], None] | None = None,
) -> int:
    """The whole life of a daemon; returns its exit status.  Raises Fatal.

    Whatever can be wrong is found before the process detaches.  ``started`` is called when
    clients can connect to a personal daemon.
    """
    os.umask(0o077)
    set_up_log(settings)
    check_scripts(settings.scripts)
    supervisor = Supervisor(os.environ)
    passed = systemd.inherited(os.environ)
    if settings.one_session or any(not systemd.accepts(sock) for sock, _ in passed):
        return run_one_session(settings, passed[0][0] if passed else None)
    settings, sockets = with_sockets(settings, passed)
    pid_file = PidFile(settings.pid_file) if settings.pid_file else None
    try:
        if settings.global_mode is not None:
            return run_global(settings, settings.global_mode, sockets, supervisor, pid_file)
        return run_personal(settings, sockets, supervisor, pid_file, observer, started)
    finally:
        if pid_file is not None:
            pid_file.remove()


def run_personal(
    settings: Settings,
    sockets: list[socket.socket],
    supervisor: Supervisor,
    pid_file: PidFile | None,
    observer: Observer | None,
    started: Callable[[], None] | None,
) -> int:
    """The life of a personal daemon.  Raises Fatal."""
    confine.descriptors(settings.limits.connections * _DESCRIPTORS_PER_SESSION + 200)
    pool = Pool()
    retries, service, encryption = personal_service(settings, pool, observer)
    sockets = sockets or listen(settings)
    listeners = [
        Listener(sock, service, where.mode)
        for where, sock in zip(settings.listen, sockets, strict=True)
    ]
    if settings.foreground:
        announce([listener.socket for listener in listeners])
    else:
        warn_of_lost_log()
        detach()
        set_up_log(settings)
    if pid_file is not None:
        pid_file.write()
    if settings.one_cpu:
        cpus.keep_to_one()
    if started is not None:
        started()
    retries.start()
    serve(service, listeners, Reload(settings, encryption), supervisor)
    if not retries.stop(settings.limits.stop_timeout):
        log.warning("messages of the outbox that are being handed over are cut off")
    pool.close()
    return 0


def personal_service(
    settings: Settings, pool: Pool, observer: Observer | None = None
) -> tuple[Retries, Service, Encryption]:
    """What serves sessions of a personal daemon.  There is one thread yet.  Raises Fatal."""
    encryption = Encryption(settings)
    try:
        retries = personal_retries(settings)
        gate = personal_gate(settings, pool, observer, retries)
    except SourceFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    return retries, service_of(settings, gate, encryption.encrypt), encryption


def run_one_session(settings: Settings, passed: socket.socket | None) -> int:
    """Serve one connection (feature rows TO-8 to TO-16).  Raises Fatal."""
    connection = Connection(os.environ, passed)
    try:
        if settings.global_mode is not None:
            return run_global(settings, settings.global_mode, [], connection=connection)
        pool = Pool()
        retries, service, _ = personal_service(settings, pool)
    except Fatal:
        connection.refuse()
        raise
    signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    threading.Thread(target=_stop_on_signal, args=(signals, service), daemon=True).start()
    sock = connection.open()
    service.serve(sock, connection.peer, settings.listen[0].mode, near=connection.near)
    connection.finish(settings.limits.write_timeout)
    retries.start()
    retries.finish(settings.limits.stop_timeout)
    pool.close()
    return 0


def _stop_on_signal(signals: int, service: Service) -> None:
    while True:
        number = os.read(signals, 1)[0]
        if number != signal.SIGHUP:
            log.info("stopping on %s", signal.Signals(number).name)
            service.stop()


def with_sockets(
    settings: Settings, passed: list[tuple[socket.socket, str]]
) -> tuple[Settings, list[socket.socket]]:
    """Sockets that systemd passes take the place of those that were asked for.  Raises Fatal."""
    if not passed:
        return settings, []
    listen = tuple(_passed_listen(settings, sock, name) for sock, name in passed)
    if any(where.mode != "plain" for where in listen) and not settings.encryption.pairs:
        raise Fatal(CONFIG, "TLS on a socket of systemd's needs --ssl-cert and --ssl-key")
    settings = dataclasses.replace(settings, listen=listen, foreground=True)
    return settings, [sock for sock, _ in passed]


def _passed_listen(settings: Settings, sock: socket.socket, name: str) -> Listen:
    """``name`` is FileDescriptorName: a mode as it goes behind the comma of -p, or the service."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise Fatal(CONFIG, f"the socket {name!r} of systemd's is not one of TCP")
    sock.setblocking(False)
    host, port = sock.getsockname()[:2]
    mode = _MODES_BY_NAME.get(name, settings.listen[0].mode)
    return Listen(host, port, ipv6=sock.family == socket.AF_INET6, mode=mode)


def run_global(
    settings: Settings,
    mode: GlobalMode,
    sockets: list[socket.socket],
    supervisor: Supervisor | None = None,
    pid_file: PidFile | None = None,
    connection: Connection | None = None,
) -> int:
    """The life of the monitor, from which all others are forked.  Raises Fatal.

    With a ``connection`` it ends when that does.
    """
    # Not before it is needed: a personal daemon has no use for any of this.
    from tofmipd.globalmode import GlobalDaemon
    from tofmipd.privsep import linux
    from tofmipd.privsep.accounts import service_rights
    from tofmipd.privsep.directories import make_private
    from tofmipd.privsep.monitor import Monitor
    from tofmipd.privsep.outboxes import OutboxError, make_base

    rights = service_rights(mode.service)
    try:
        make_base(settings.outbox)
    except OutboxError as error:
        raise Fatal(CANT_CREATE, str(error)) from None
    if settings.quotas.given:
        make_private(os.path.dirname(settings.quotas.file), rights)
    if connection is None:
        sockets = sockets or listen(settings)
    background = None
    if not settings.foreground and connection is None:
        warn_of_lost_log()
        background = Background()
    try:
        if background is not None:
            set_up_log(settings)
        signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        linux.set_name("tofmipd-monitor")
        supervisor = supervisor or Supervisor({})
        daemon = GlobalDaemon(
            settings, mode, rights, tuple(sockets), os.getpid(), supervisor, connection
        )
        monitor = Monitor(daemon.plan(), signals)
        # What is here now is never freed in a child, so that its pages stay shared.
        gc.freeze()
        monitor.start()
        if pid_file is not None:
            pid_file.write()
        daemon.begun.append(True)
    except Fatal as error:
        if background is not None:
            if pid_file is not None:
                pid_file.remove()
            background.fail(error)
        raise
    if background is not None:
        background.succeed()
    elif connection is None and not monitor.stopping:
        announce(sockets)
        print(f"\tRunning as {mode.roles}", file=sys.stderr, flush=True)
    if connection is not None:
        connection.close()
    else:
        log.info("started, pid %d; %s", os.getpid(), mode.roles)
        supervisor.ready("serving")
    status = monitor.run()
    log.log(logging.INFO if connection is None else logging.DEBUG, "stopped")
    _deaf()
    return status


def check_scripts(scripts: Scripts) -> None:
    """Raises Fatal for one that cannot be run."""
    for letter, path in (("-t", scripts.throttle), ("-S", scripts.virtual_home)):
        if path and not (os.path.isfile(path) and os.access(path, os.X_OK)):
            what = "cannot be executed (chmod 755)" if os.path.exists(path) else "is not there"
            what = "is a directory" if os.path.isdir(path) else what
            raise Fatal(CONFIG, f"{path} {what}; {letter} names a program")


def warn_of_lost_log() -> None:
    if not log_module.reaches_somebody():
        print("tofmipd: no syslog here, nothing is logged; see --log-file", file=sys.stderr)


def set_up_log(settings: Settings) -> None:
    try:
        log_module.set_up(
            debug=settings.debug,
            log=settings.log,
            quiet=settings.quiet,
            foreground=settings.foreground,
            log_file=settings.log_file,
            shared=settings.global_mode is not None,
        )
    except OSError as error:
        text = f"cannot write the log file {settings.log_file}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def listen(settings: Settings) -> list[socket.socket]:
    """Bind all addresses.  Raises Fatal when one of them cannot be had."""
    sockets: list[socket.socket] = []
    for address in settings.listen:
        try:
            sockets.append(bind(address))
        except ListenError as error:
            for sock in sockets:
                sock.close()
            status = PERMISSION if error.denied else UNAVAILABLE
            raise Fatal(status, f"{error}; choose another with {settings.port_hint}") from None
    return sockets


def announce(sockets: Sequence[socket.socket]) -> None:
    """The start lines (feature row TO-18)."""
    print(f"tofmipd started at {rfc5322_date(time.time())}", file=sys.stderr)
    for sock in sockets:
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"\tListening on {shown}:{port}", file=sys.stderr, flush=True)


class Reload:
    """What SIGHUP, or changed files, mean for a personal daemon: certificates are read again.

    Who has started it in a terminal and closes that wants it to end instead.
    """

    def __init__(self, settings: Settings, encryption: Encryption) -> None:
        self._encryption = encryption
        self._of_terminal = settings.foreground and os.isatty(2)

    @property
    def patience_seconds(self) -> float | None:
        """How long to wait for a signal before it is looked whether something has changed."""
        return encrypted.LOOK_SECONDS if self._encryption.watched else None

    def ends(self, number: int) -> bool:
        """Whether a signal means the end; else it has been obeyed."""
        if number != signal.SIGHUP or self._of_terminal:
            return True
        # A log file that is not there any more is made anew without being told.
        self._encryption.reload()
        return False

    def look(self) -> None:
        if self._encryption.changed():
            self._encryption.reload()


def serve(
    service: Service, listeners: list[Listener], reload: Reload, supervisor: Supervisor
) -> None:
    """Accept until SIGTERM or SIGINT, then let messages under way finish."""
    signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for listener in listeners:
        listener.start()
    log.info("started, pid %d", os.getpid())
    supervisor.ready("serving")
    number = _last_signal(signals, reload, supervisor)
    log.info("stopping on %s", signal.Signals(number).name)
    supervisor.stopping()
    service.begin_stop()
    for listener in listeners:
        listener.stop()
    if not service.stop():
        log.warning("some sessions did not end in time and are cut off")
    log.info("stopped")
    _deaf()


def _last_signal(signals: int, reload: Reload, supervisor: Supervisor) -> int:
    """Wait for the one that ends the program; others are obeyed."""
    while True:
        supervisor.beat()
        if not select.select([signals], [], [], _patience(reload, supervisor))[0]:
            reload.look()
            continue
        number = os.read(signals, 1)[0]
        supervisor.reloading()
        if reload.ends(number):
            return number
        supervisor.ready("serving")


def _patience(reload: Reload, supervisor: Supervisor) -> float | None:
    beat_at = supervisor.beat_at
    until_beat = None if beat_at is None else max(beat_at - time.monotonic(), 0)
    times = [time for time in (reload.patience_seconds, until_beat) if time is not None]
    return min(times, default=None)


def _deaf() -> None:
    """While the interpreter goes down a second signal would otherwise count as a failure.

    Blocked first: one that comes just while it is being ignored makes Python complain.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
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
    """Become a daemon.  There is one thread yet.

    The parent ends with status 0, for all that can fail has been done.
    """
    Background().succeed()


class Background:
    """The process goes on in the background; who started it waits until it is told how that went.

    Two forks, a session of its own, nothing on descriptors 0 to 2.  There is one thread yet.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        reader, self._writer = os.pipe()
        if os.fork():
            os.close(self._writer)
            _await(reader)
        os.close(reader)
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

    def succeed(self) -> None:
        """Let the one who waits end with status 0."""
        os.write(self._writer, b"\0")
        os.close(self._writer)

    def fail(self, error: Fatal) -> NoReturn:
        """Have the error told and its status given by the one who waits."""
        os.write(self._writer, bytes([error.status]) + str(error).encode("utf-8", "replace"))
        os._exit(error.status)


def _await(reader: int) -> NoReturn:
    """Wait for the word of the process in the background, and end as it says."""
    with open(reader, "rb") as pipe:
        word = pipe.read()
    status = word[0] if word else SOFTWARE
    if status:
        text = word[1:].decode("utf-8", "replace") or "internal error at the start"
        print(f"tofmipd: {text}", file=sys.stderr, flush=True)
    os._exit(status)
