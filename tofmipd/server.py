"""Listeners, a thread for each session, limits on their number."""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import socket
import socketserver
import threading
import time
from typing import Any

from tofmipd.gate import Gate
from tofmipd.pump import Pump
from tofmipd.settings import Limits, Listen, Settings
from tofmipd.smtp.envelope import Peer
from tofmipd.smtp.sasl import MECHANISMS
from tofmipd.smtp.session import Policy, Session
from tofmipd.wire import Wire

log = logging.getLogger(__name__)

_BACKLOG = 1024
_POLL_SECONDS = 0.5


class ListenError(Exception):
    """An address cannot be listened on; ``str()`` names it.  ``denied``: for want of rights."""

    def __init__(self, text: str, *, denied: bool = False) -> None:
        super().__init__(text)
        self.denied = denied


class Service:
    """All sessions of a process.

    ``offer`` are the mechanisms in the order in which they are announced; those that show the
    password are withheld from clients elsewhere unless ``insecure_auth``.
    """

    def __init__(
        self,
        gate: Gate,
        host_name: str,
        limits: Limits,
        *,
        insecure_auth: bool = False,
        fix_bare_newline: bool = False,
        needs_login: bool = True,
    ) -> None:
        self._gate = gate
        self._limits = limits
        self._fix = fix_bare_newline
        self._slots = threading.BoundedSemaphore(limits.connections)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._pumps: set[Pump] = set()
        self._ended = threading.Condition(self._lock)
        self._ids = itertools.count(secrets.randbits(24))
        offer = tuple(name for name in MECHANISMS if name in gate.mechanisms)
        safe = tuple(name for name in offer if not MECHANISMS[name].clear)
        withheld = tuple(name for name in offer if MECHANISMS[name].clear)
        self._near = self._policy(host_name, offer, (), needs_login)
        self._far = self._near
        if not insecure_auth:
            self._far = self._policy(host_name, safe, withheld, needs_login)

    def _policy(
        self, host_name: str, offer: tuple[str, ...], withheld: tuple[str, ...], needs_login: bool
    ) -> Policy:
        return Policy(
            host_name,
            offer,
            withheld,
            self._limits.size,
            self._limits.max_recipients,
            self._limits.max_errors,
            self._limits.max_auth_failures,
            needs_login,
        )

    def begin_stop(self) -> None:
        """Take no further session from now on."""
        self._stopping.set()

    def take_slot(self) -> bool:
        """Wait for room for one more session; False when the service stops first."""
        while not self._stopping.is_set():
            if self._slots.acquire(timeout=_POLL_SECONDS):
                return True
        return False

    def give_slot(self) -> None:
        self._slots.release()

    def serve(self, sock: socket.socket, peer: Peer) -> None:
        """One session from greeting to close, in the calling thread."""
        session_id = f"{next(self._ids) & 0xFFFFFFFF:08x}"
        begun = time.monotonic()
        log.info("s=%s session from %s", session_id, peer)
        session = Session(self._near if peer.loopback else self._far, peer)
        pump = Pump(
            Wire(sock),
            session,
            self._gate.admit(session_id, peer),
            self._limits,
            self._stopping,
            session_id=session_id,
            fix_bare_newline=self._fix,
        )
        with self._lock:
            self._pumps.add(pump)
        try:
            pump.run()
        finally:
            with self._lock:
                self._pumps.discard(pump)
                self._ended.notify_all()
            log.info("s=%s end after %.1f s", session_id, time.monotonic() - begun)

    def stop(self) -> bool:
        """Let messages under way finish, part from idle clients; whether all ended in time."""
        self.begin_stop()
        deadline = time.monotonic() + self._limits.stop_timeout
        with self._lock:
            while self._pumps and time.monotonic() < deadline:
                for pump in self._pumps:
                    pump.stop()
                self._ended.wait(_POLL_SECONDS)
            return not self._pumps


def service_of(settings: Settings, gate: Gate) -> Service:
    return Service(
        gate,
        settings.host_name,
        settings.limits,
        insecure_auth=settings.insecure_auth,
        fix_bare_newline=settings.fix_bare_newline,
    )


def bind(listen: Listen) -> socket.socket:
    """Listen on an address.  Raises ListenError."""
    family = socket.AF_INET6 if listen.ipv6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        denied = isinstance(error, PermissionError)
        raise ListenError(f"cannot listen on {listen}: {reason}", denied=denied) from None
    # A client may be gone again between select and accept.
    sock.setblocking(False)
    return sock


class Listener(socketserver.ThreadingTCPServer):
    """Accepts on a listening socket and starts a thread for each client."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self.address_family = sock.family
        self._service = service
        address = sock.getsockname()
        super().__init__(address, socketserver.BaseRequestHandler, bind_and_activate=False)
        # The one that the base class has made for itself.
        self.socket.close()
        self.socket = sock
        self.server_address = address

    @property
    def port(self) -> int:
        """The port in use, also when port 0 was asked for."""
        return int(self.socket.getsockname()[1])

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept only when there is room: further clients wait in the backlog."""
        if not self._service.take_slot():
            raise ConnectionAbortedError("stopping")
        try:
            return self.socket.accept()
        except OSError:
            self._service.give_slot()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._service.give_slot()
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            self._service.serve(request, _peer(client_address, request.getsockname()))
        finally:
            self._service.give_slot()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("session of %s failed", client_address[0])

    def stop(self) -> None:
        """Accept no more, at once: shutting the socket down wakes up who polls it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()

    def start(self) -> None:
        """Accept in a thread of its own."""
        threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), daemon=True, name="listener"
        ).start()


def _peer(address: Any, local: Any) -> Peer:
    host, own = str(address[0]).partition("%")[0], str(local[0]).partition("%")[0]
    plain = host.removeprefix("::ffff:")
    return Peer(host, int(address[1]), plain.startswith("127.") or host == "::1", own)
