"""Listeners, a thread for each session, limits on their number."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import logging
import secrets
import socket
import socketserver
import threading
import time
from typing import Any

from tofmipd import arrival
from tofmipd.arrival import Client, NoHeader, WatchedWire
from tofmipd.auth.limiter import is_loopback, network_of
from tofmipd.gate import Gate
from tofmipd.pump import Encrypt, Pump
from tofmipd.settings import TLS_MODES, Limits, Listen, Network, Settings
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Peer
from tofmipd.smtp.sasl import MECHANISMS, servable
from tofmipd.smtp.session import Policy, Session
from tofmipd.wire import Wire

log = logging.getLogger(__name__)

_BACKLOG = 1024
_POLL_SECONDS = 0.5
# The client stays in the backlog, and nothing but time helps.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Above three quarters of the connections; else the limit is that of the settings.
CROWDED_LOGIN_SECONDS = 10


class ListenError(Exception):
    """An address cannot be listened on; ``str()`` names it.

    ``denied``: for want of rights; ``taken``: somebody else listens there.
    """

    def __init__(self, text: str, *, denied: bool = False, taken: bool = False) -> None:
        super().__init__(text)
        self.denied = denied
        self.taken = taken


class Service:
    """All sessions of a process.

    Of the ``mechanisms`` (none stands for all) those are offered that the gate can serve; those
    that show the password are withheld from clients elsewhere unless ``insecure_auth``.
    ``encrypt`` starts TLS on a connection, None where no listener has any.
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
        encrypt: Encrypt | None = None,
        mechanisms: tuple[str, ...] = (),
    ) -> None:
        self._gate = gate
        self._allowed = frozenset(mechanisms or MECHANISMS)
        self._limits = limits
        self._fix = fix_bare_newline
        self._insecure_auth = insecure_auth
        self._encrypt = encrypt
        self._slots = threading.BoundedSemaphore(limits.connections)
        self._stopping = threading.Event()
        self._retired = False
        self._lock = threading.Lock()
        self._pumps: set[Pump] = set()
        self._clients = 0
        self._by_network: dict[str, int] = {}
        self._ended = threading.Condition(self._lock)
        self._ids = itertools.count(secrets.randbits(24))
        self._plain = Policy(
            host_name,
            size_limit_octets=limits.size,
            max_recipients=limits.max_recipients,
            max_errors=limits.max_errors,
            max_auth_failures=limits.max_auth_failures,
            needs_login=needs_login,
        )
        # By the mode of the listener, whether the client is on this machine, and what sources can
        # serve, which may change.
        self._policies: dict[tuple[str, bool, frozenset[str]], Policy] = {}

    def policy(self, mode: str, *, near: bool) -> Policy:
        """For a session that begins now, on a listener of that mode."""
        key = (mode, near, self._gate.mechanisms)
        policy = self._policies.get(key)
        if policy is None:
            policy = self._policies[key] = self._policy(*key)
        return policy

    def _policy(self, mode: str, near: bool, mechanisms: frozenset[str]) -> Policy:
        """What is offered before TLS; after it all is."""
        offer = tuple(name for name in servable(mechanisms) if name in self._allowed)
        required = mode in ("ssl", "on") or (mode == "localoptional" and not near)
        clear = mode in ("optional", "localoptional") or near or self._insecure_auth
        shown: tuple[str, ...] = ()
        if not required:
            shown = tuple(
                name
                for name in offer
                if not MECHANISMS[name].encrypted and (clear or not MECHANISMS[name].clear)
            )
        return dataclasses.replace(
            self._plain,
            mechanisms=shown,
            withheld=tuple(name for name in offer if name not in shown),
            starttls=mode in TLS_MODES,
            tls_required=required,
        )

    def begin_stop(self) -> None:
        """Take no further session from now on."""
        self._stopping.set()

    def retire(self) -> None:
        """Take no further session; those that have begun go on."""
        self._retired = True

    @property
    def busy(self) -> bool:
        """Whether there are clients, also such as have only just been accepted."""
        return self._clients > 0

    def drain(self) -> None:
        """Wait until the last session has ended, or the service is to stop.  It has retired."""
        for _ in range(self._limits.connections):
            while not self._slots.acquire(timeout=_POLL_SECONDS):
                if self._stopping.is_set():
                    return

    def take_slot(self) -> bool:
        """Wait for room for one more session; False when the service stops first."""
        while not (self._stopping.is_set() or self._retired):
            if self._slots.acquire(timeout=_POLL_SECONDS):
                with self._lock:
                    self._clients += 1
                return True
            self.tend()
        return False

    def pause(self) -> None:
        """Wait a moment, or until the service stops."""
        self._stopping.wait(_POLL_SECONDS)

    def give_slot(self) -> None:
        with self._lock:
            self._clients -= 1
        self._slots.release()

    def admits(self, peer: Peer) -> bool:
        """Whether one more client of this address may come; it counts from now on."""
        if peer.loopback:
            return True
        network = network_of(peer.address)
        with self._lock:
            count = self._by_network.get(network, 0)
            if count >= self._limits.connections_per_address:
                return False
            self._by_network[network] = count + 1
        return True

    def left(self, peer: Peer) -> None:
        """A client that was admitted is gone."""
        if peer.loopback:
            return
        network = network_of(peer.address)
        with self._lock:
            self._by_network[network] -= 1
            if not self._by_network[network]:
                del self._by_network[network]

    def tend(self) -> None:
        """Called now and then: where room gets scarce, who has not logged in must hurry."""
        with self._lock:
            if 4 * len(self._pumps) > 3 * self._limits.connections:
                for pump in self._pumps:
                    pump.expire(CROWDED_LOGIN_SECONDS)

    def identify(
        self, sock: socket.socket, peer: Peer, proxies: tuple[Network, ...]
    ) -> Client | None:
        """Who has connected; None for a proxy that does not say it as it must."""
        if not arrival.is_among(peer.address, proxies):
            return Client(peer, watched=bool(proxies))
        wire = Wire(sock, self._limits.write_timeout)
        try:
            return arrival.announced(wire, peer, self._limits.login_timeout)
        except NoHeader as error:
            level = logging.DEBUG if error.silent else logging.WARNING
            log.log(level, "no PROXY header from %s: %s", peer, error)
        except TimeoutError:
            log.warning("no PROXY header from %s: it does not come", peer)
        except ConnectionError as error:
            log.debug("no PROXY header from %s: %s", peer, error)
        return None

    def serve_only(
        self, sock: socket.socket, peer: Peer, where: Listen, *, near: bool, greeted: bool = False
    ) -> None:
        """The only session of this process; see ``serve``.  The socket stays open where a proxy
        does not say whom it speaks for."""
        client = self.identify(sock, peer, where.proxies or ())
        if client is not None:
            own = near if client.peer is peer else None
            self.serve(sock, client, where.mode, near=own, greeted=greeted)

    def serve(
        self,
        sock: socket.socket,
        client: Client | Peer,
        mode: str = "plain",
        *,
        near: bool | None = None,
        greeted: bool = False,
    ) -> None:
        """One session from greeting to close, in the calling thread.

        ``near``: the octets cross no network on their way here, which is so for who is on this
        machine.  ``greeted``: that has been done.
        """
        client = Client(client) if isinstance(client, Peer) else client
        peer = client.peer
        session_id = f"{next(self._ids) & 0xFFFFFFFF:08x}"
        begun = time.monotonic()
        log.info("s=%s session from %s", session_id, peer)
        encrypt = self._encrypt
        if client.watched and encrypt is not None:
            encrypt = arrival.watched(encrypt)
        pump = Pump(
            (WatchedWire if client.watched else Wire)(sock, self._limits.write_timeout),
            Session(self.policy(mode, near=peer.loopback if near is None else near), peer),
            self._gate.admit(session_id, peer),
            self._limits,
            self._stopping,
            session_id=session_id,
            fix_bare_newline=self._fix,
            encrypt=encrypt,
            encrypt_at_once=mode == "ssl",
            greeted=greeted,
            encryption=client.encryption,
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


def service_of(settings: Settings, gate: Gate, encrypt: Encrypt | None = None) -> Service:
    return Service(
        gate,
        settings.host_name,
        settings.limits,
        insecure_auth=settings.insecure_auth,
        fix_bare_newline=settings.fix_bare_newline,
        encrypt=encrypt,
        mechanisms=settings.mechanisms,
    )


def bind(listen: Listen, *, listens: bool = True) -> socket.socket:
    """Listen on an address, or only see whether that can be done.  Raises ListenError."""
    family = socket.AF_INET6 if listen.ipv6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((listen.host, listen.port))
        if listens:
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        denied = isinstance(error, PermissionError)
        taken = error.errno == errno.EADDRINUSE
        text = f"cannot listen on {listen}: {reason}"
        raise ListenError(text, denied=denied, taken=taken) from None
    # A client may be gone again between select and accept.
    sock.setblocking(False)
    return sock


def address_of(listen: Listen) -> str:
    """The number that the host has for ``bind``, "" where it has none now."""
    family = socket.AF_INET6 if listen.ipv6 else socket.AF_INET
    host, flags = listen.host or None, socket.AI_PASSIVE
    try:
        found = socket.getaddrinfo(host, listen.port, family, socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):
        return ""
    return str(found[0][4][0])


class Listener(socketserver.ThreadingTCPServer):
    """Accepts on a listening socket and starts a thread for each client.

    Who connects from the networks of ``proxies`` speaks for somebody else, and must say for whom.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        sock: socket.socket,
        service: Service,
        mode: str = "plain",
        proxies: tuple[Network, ...] = (),
    ) -> None:
        self.address_family = sock.family
        self._service = service
        self._mode = mode
        self._proxies = proxies
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
        except OSError as error:
            self._service.give_slot()
            if error.errno in _EXHAUSTED:
                log.error("clients must wait: %s", error.strerror)
                self._service.pause()
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._service.give_slot()
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        peer = _peer(client_address, request.getsockname())
        try:
            client = self._service.identify(request, peer, self._proxies)
            if client is not None:
                self._admit(request, client)
        finally:
            self._service.give_slot()

    def _admit(self, request: Any, client: Client) -> None:
        if not self._service.admits(client.peer):
            self._turn_away(request, client.peer)
            return
        try:
            self._service.serve(request, client, self._mode)
        finally:
            self._service.left(client.peer)

    def _turn_away(self, request: Any, peer: Peer) -> None:
        log.warning("too many connections from %s, one is closed", peer)
        if self._mode != "ssl":
            wire = Wire(request)
            wire.queue(replies.TOO_MANY_CONNECTIONS.encode())
            with contextlib.suppress(OSError):
                wire.flush()

    def service_actions(self) -> None:
        """Called by the base class every half second at least."""
        self._service.tend()

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

    def retire(self) -> None:
        """Accept no more; the socket is for somebody else."""
        self.shutdown()

    def start(self) -> None:
        """Accept in a thread of its own."""
        threading.Thread(
            target=self.serve_forever, args=(_POLL_SECONDS,), daemon=True, name="listener"
        ).start()


def _peer(address: Any, local: Any) -> Peer:
    host, own = str(address[0]).partition("%")[0], str(local[0]).partition("%")[0]
    return Peer(host, int(address[1]), is_loopback(host), own)
