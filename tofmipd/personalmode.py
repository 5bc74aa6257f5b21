"""Personal mode put together: one process, whose parts are replaced when options change."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tofmipd import encrypted
from tofmipd import log as log_module
from tofmipd.auth.files import SourceFileError
from tofmipd.auth.sources import attempted
from tofmipd.background import be_deaf, catch_signals
from tofmipd.encrypted import Encryption
from tofmipd.errors import CONFIG, Fatal
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep import confine
from tofmipd.privsep.attempts import Helper
from tofmipd.privsep.outbound import Observer
from tofmipd.privsep.personal import personal_gate, personal_retries, start_helper
from tofmipd.renewal import Renewal, check_scripts, close, listen
from tofmipd.server import Listener, Service, service_of
from tofmipd.settings import Settings
from tofmipd.systemd import Supervisor

if TYPE_CHECKING:
    from tofmipd.privsep.quota import Quota

log = logging.getLogger(__name__)


# What a session needs: the client's socket, the next hop's, a file, a spare.
_DESCRIPTORS_PER_SESSION = 4


class Parts(NamedTuple):
    """What serves sessions, for one set of options."""

    settings: Settings
    service: Service
    encryption: Encryption
    retries: Retries
    quota: Quota | None


class Household:
    """What stays the same whatever the options are.  There is one thread yet.  Raises Fatal."""

    def __init__(self, settings: Settings, observer: Observer | None = None) -> None:
        self.pool = Pool()
        self._observer = observer
        self._attempted = attempted(settings)
        try:
            self._helper: Helper | None = start_helper(settings)
        except SourceFileError as error:
            raise Fatal(CONFIG, str(error)) from None

    def parts(self, settings: Settings) -> Parts:
        """Raises Fatal; nothing is in force then."""
        if attempted(settings) != self._attempted:
            # A process with threads cannot fork what would try logins for it.
            raise Fatal(CONFIG, "pamauth and authprog change with the next start only")
        encryption = Encryption(settings)
        try:
            retries = personal_retries(settings)
            gate = personal_gate(settings, self.pool, self._observer, retries, self._helper)
        except SourceFileError as error:
            raise Fatal(CONFIG, str(error)) from None
        service = service_of(settings, gate, encryption.encrypt)
        return Parts(settings, service, encryption, retries, gate.quota)


def allow_descriptors(connections: int) -> None:
    """As many as that many sessions may need, as far as the system allows."""
    confine.descriptors(connections * _DESCRIPTORS_PER_SESSION + 200)


class PersonalDaemon:
    """Serves until a signal ends it.  ``sockets`` listen already, in the order of the settings."""

    def __init__(
        self,
        household: Household,
        parts: Parts,
        sockets: Sequence[socket.socket],
        supervisor: Supervisor,
        renewal: Renewal,
    ) -> None:
        self._household = household
        self._parts = parts
        self._sockets = list(sockets)
        self._supervisor = supervisor
        self._renewal = renewal
        # Who has started it in a terminal and closes that wants it to end.
        self._of_terminal = parts.settings.foreground and os.isatty(2)
        self._listeners = self._made_listeners(parts)
        # Those that still have sessions of the time before a change.
        self._former: list[Service] = []

    def _made_listeners(self, parts: Parts) -> list[Listener]:
        return [
            Listener(sock, parts.service, where.mode, where.proxies or ())
            for where, sock in zip(parts.settings.listen, self._sockets, strict=True)
        ]

    def run(self) -> None:
        """Accept until SIGTERM or SIGINT, then let messages under way finish."""
        signals = catch_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._parts.retries.start()
        for listener in self._listeners:
            listener.start()
        log.info("started, pid %d", os.getpid())
        self._supervisor.ready("serving")
        number = self._last_signal(signals)
        log.info("stopping on %s", signal.Signals(number).name)
        self._supervisor.stopping()
        self._stop()
        log.info("stopped")
        be_deaf()

    def _stop(self) -> None:
        services = [self._parts.service, *self._former]
        for service in services:
            service.begin_stop()
        for listener in self._listeners:
            listener.stop()
        ended = [service.stop() for service in services]
        if not all(ended):
            log.warning("some sessions did not end in time and are cut off")
        if not self._parts.retries.stop(self._parts.settings.limits.stop_timeout):
            log.warning("messages of the outbox that are being handed over are cut off")
        self._household.pool.close()

    def _last_signal(self, signals: int) -> int:
        """Wait for the one that ends the program; others are obeyed."""
        while True:
            self._supervisor.beat()
            if not select.select([signals], [], [], self._patience_seconds())[0]:
                if self._parts.encryption.changed():
                    self._parts.encryption.reload()
                continue
            number = os.read(signals, 1)[0]
            if number != signal.SIGHUP or self._of_terminal:
                return number
            self._reload()

    def _patience_seconds(self) -> float | None:
        """How long to wait for a signal before there is something else to do."""
        times = [encrypted.LOOK_SECONDS] if self._parts.encryption.watched else []
        beat_at = self._supervisor.beat_at
        times += [max(beat_at - time.monotonic(), 0)] if beat_at is not None else []
        return min(times, default=None)

    def _reload(self) -> None:
        """Read all anew that may have changed.  Where that is wrong all stays as it is.

        A log file that is not there any more is made anew without being told.
        """
        self._supervisor.reloading()
        status = "serving"
        try:
            changed = self._renewal.changed()
            if changed is None:
                self._parts.encryption.reload()
            else:
                self._replace(changed.settings)
                self._renewal.take(changed)
        except Fatal as error:
            status = _refused(str(error))
        except Exception:
            log.exception("internal error")
            status = _refused("internal error")
        self._supervisor.ready(status)

    def _replace(self, settings: Settings) -> None:
        """Serve new sessions by other settings.  Raises Fatal; then nothing has changed."""
        check_scripts(settings.scripts)
        before, old, listeners = self._sockets, self._parts, self._listeners
        sockets = listen(settings, zip(old.settings.listen, before, strict=True))
        try:
            parts = self._household.parts(settings)
        except BaseException:
            close(sockets, but=before)
            raise
        self._parts, self._sockets = parts, sockets
        # Sessions of both times go on.
        allow_descriptors(old.settings.limits.connections + settings.limits.connections)
        log_module.set_levels(debug=settings.debug, log=settings.log, quiet=settings.quiet)
        self._listeners = self._made_listeners(parts)
        for listener in self._listeners:
            listener.start()
        old.service.retire()
        for listener in listeners:
            listener.retire()
        close(before, but=sockets)
        # What it has begun goes on; all else is on the disk.
        old.retries.stop(0)
        if old.quota is not None:
            # Sessions of the time before open it again if they need it.
            old.quota.close()
        parts.retries.start()
        self._former = [one for one in (old.service, *self._former) if one.busy]


def _refused(why: str) -> str:
    """Say why the options are what they were; a status for the supervisor."""
    for line in why.splitlines():
        log.error("nothing has changed: %s", line)
    return "serving; the last reload was refused"
