"""Start-up order, signals, detaching, and the end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from tofmipd import cpus, systemd
from tofmipd import log as log_module
from tofmipd.background import Background, be_deaf, catch_signals, detach, open_missing
from tofmipd.dates import rfc5322_date
from tofmipd.errors import CANT_CREATE, CONFIG, Fatal
from tofmipd.onesession import Connection
from tofmipd.personalmode import Household, PersonalDaemon, allow_descriptors
from tofmipd.pidfile import PidFile
from tofmipd.privsep.outbound import Observer
from tofmipd.renewal import Renewal, check_scripts, listen
from tofmipd.server import Service
from tofmipd.settings import TLS_MODES, Listen, Options, Settings
from tofmipd.systemd import Supervisor

log = logging.getLogger(__name__)

# What FileDescriptorName may say of a socket that systemd passes (RFC 8314 section 7.3).
_MODES_BY_NAME = {"smtps": "ssl", "submissions": "ssl", "ssl": "ssl", "plain": "plain"} | {
    f"tls={mode}": mode for mode in TLS_MODES
}


def run(
    settings: Settings,
    observer: Observer | None = None,
    started: Callable[[], None] | None = None,
    again: Callable[[], Options] | None = None,
    connection: Connection | None = None,
) -> int:
    """The whole life of a daemon; returns its exit status.  Raises Fatal.

    Whatever can be wrong is found before the process detaches.  ``started`` is called when
    clients can connect to a personal daemon; ``again`` reads the options as they are then.
    With a ``connection`` that is all it serves.
    """
    os.umask(0o077)
    supervisor = Supervisor(os.environ)
    passed = systemd.inherited(os.environ)
    if passed and not systemd.accepts(passed[0][0]):
        connection = Connection(os.environ, passed[0][0])
    if connection is not None:
        try:
            return run_one_session(settings, connection)
        except Fatal:
            connection.refuse()
            raise
    open_missing((0, 1, 2))
    set_up_log(settings)
    check_scripts(settings.scripts)
    settings, sockets = with_sockets(settings, passed)
    renewal = Renewal(settings, again, activated=bool(passed))
    pid_file = PidFile(settings.pid_file) if settings.pid_file else None
    try:
        if settings.global_mode is not None:
            return run_global(settings, sockets, renewal, supervisor, pid_file)
        household = Household(settings, observer)
        return run_personal(settings, household, sockets, renewal, supervisor, pid_file, started)
    finally:
        if pid_file is not None:
            pid_file.remove()


def run_personal(
    settings: Settings,
    household: Household,
    sockets: list[socket.socket],
    renewal: Renewal,
    supervisor: Supervisor,
    pid_file: PidFile | None,
    started: Callable[[], None] | None,
) -> int:
    """The life of a personal daemon.  Raises Fatal."""
    allow_descriptors(settings.limits.connections)
    parts = household.parts(settings)
    sockets = sockets or listen(settings)
    if settings.foreground:
        say_where(settings, sockets)
    else:
        warn_of_lost_log()
        detach()
        set_up_log(settings)
    if pid_file is not None:
        pid_file.write()
    if settings.one_cpu:
        cpus.keep_to_one()
    daemon = PersonalDaemon(household, parts, sockets, supervisor, renewal)
    if started is not None:
        started()
    daemon.run()
    return 0


def run_one_session(settings: Settings, connection: Connection) -> int:
    """Serve one connection (feature rows TO-8 to TO-16).  Raises Fatal."""
    set_up_log(settings)
    check_scripts(settings.scripts)
    if settings.global_mode is not None:
        return run_global(settings, [], Renewal(settings, None), connection=connection)
    household = Household(settings)
    parts = household.parts(settings)
    signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    threading.Thread(target=_stop_on_signal, args=(signals, parts.service), daemon=True).start()
    sock = connection.open()
    peer, near = connection.client()
    where = settings.listen[0]
    parts.service.serve_only(sock, peer, where, near=near, greeted=connection.greeted)
    connection.finish(settings.limits.write_timeout)
    parts.retries.start()
    parts.retries.finish(settings.limits.stop_timeout)
    household.pool.close()
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
    settings = settings._replace(listen=listen, foreground=True)
    return settings, [sock for sock, _ in passed]


def _passed_listen(settings: Settings, sock: socket.socket, name: str) -> Listen:
    """``name`` is FileDescriptorName: a mode as it goes behind the comma of -p, or the service."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise Fatal(CONFIG, f"the socket {name!r} of systemd's is not one of TCP")
    sock.setblocking(False)
    host, port = sock.getsockname()[:2]
    first = settings.listen[0]
    mode = _MODES_BY_NAME.get(name, first.mode)
    return Listen(host, port, sock.family == socket.AF_INET6, mode, first.proxies)


def run_global(
    settings: Settings,
    sockets: list[socket.socket],
    renewal: Renewal,
    supervisor: Supervisor | None = None,
    pid_file: PidFile | None = None,
    connection: Connection | None = None,
) -> int:
    """The life of the monitor, from which all others are forked.  Raises Fatal.

    With a ``connection`` it ends when that does.
    """
    # Not before it is needed: a personal daemon has no use for any of this.
    from tofmipd.globalmode import GlobalDaemon, make_places
    from tofmipd.privsep import linux
    from tofmipd.privsep.accounts import service_rights
    from tofmipd.privsep.monitor import Monitor

    mode = settings.global_mode
    assert mode is not None
    rights = service_rights(mode.service)
    make_places(settings, rights)
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
            settings, mode, rights, tuple(sockets), os.getpid(), supervisor, renewal, connection
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
        say_where(settings, sockets, mode.roles)
    if connection is not None:
        connection.close()
    else:
        log.info("started, pid %d; %s", os.getpid(), mode.roles)
        supervisor.ready("serving")
    status = monitor.run()
    log.log(logging.INFO if connection is None else logging.DEBUG, "stopped")
    be_deaf()
    return status


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
            look=settings.log_settings,
        )
    except OSError as error:
        text = f"cannot write the log file {settings.log_file}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def say_where(settings: Settings, sockets: Sequence[socket.socket], roles: str = "") -> None:
    """On standard error, for people; in the form of the log where programs read that there."""
    if settings.log_settings.form == "json" and not settings.log_file:
        for sock in sockets:
            log.info("listening on %s port %d", *sock.getsockname()[:2])
        return
    announce(sockets)
    if roles:
        print(f"\tRunning as {roles}", file=sys.stderr, flush=True)


def announce(sockets: Sequence[socket.socket]) -> None:
    """The start lines (feature row TO-18)."""
    print(f"tofmipd started at {rfc5322_date(time.time())}", file=sys.stderr)
    for sock in sockets:
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"\tListening on {shown}:{port}", file=sys.stderr, flush=True)
