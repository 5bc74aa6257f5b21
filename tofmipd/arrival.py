"""Who a new connection is: the client itself, or whom a proxy speaks for (PROXY protocol).

From the networks of a listener's proxies a header must come before all else; from elsewhere it
must not come at all, for whoever sends one there wants to be taken for somebody else.
"""

from __future__ import annotations

import ipaddress
import time
from typing import NamedTuple

from tofmipd import proxyprotocol
from tofmipd.auth.limiter import is_loopback
from tofmipd.proxyprotocol import BadHeader, Header
from tofmipd.pump import Encrypt
from tofmipd.settings import Network
from tofmipd.smtp.envelope import Encryption, Peer
from tofmipd.wire import Unwelcome, Wire

# A proxy sends its header when it connects.
HEADER_SECONDS = 5
_FORGED = "it begins with a PROXY header, which only proxies may send"


class NoHeader(Exception):
    """A proxy has not sent what it must; ``str()`` says what came instead.

    ``silent``: it has closed without saying anything, as who only looks whether it can connect.
    """

    def __init__(self, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent


class Client(NamedTuple):
    """``encryption`` is how it came to its proxy, None for a client that came without one, or
    without TLS.  One that is ``watched`` is believed to be no proxy: it must not begin like one."""

    peer: Peer
    encryption: Encryption | None = None
    watched: bool = False


class WatchedWire(Wire):
    """See Wire.  Raises Unwelcome when what comes first is a PROXY header."""

    _first: bytes | None = b""

    def receive(self, octets: int, deadline: float) -> bytes:
        block = super().receive(octets, deadline)
        if self._first is not None:
            most = len(proxyprotocol.V2_SIGNATURE)
            self._first = (self._first + block)[:most]
            _refuse(self._first)
            if len(self._first) == most:
                self._first = None
        return block


def watched(encrypt: Encrypt) -> Encrypt:
    """The same, but raises Unwelcome where a PROXY header comes in the place of TLS."""

    def watched_encrypt(plain: Wire, deadline: float, at_once: bool) -> tuple[Wire, Encryption]:
        if at_once:
            _refuse(plain.peek(len(proxyprotocol.V2_SIGNATURE), deadline))
        return encrypt(plain, deadline, at_once)

    return watched_encrypt


def _refuse(first: bytes) -> None:
    if proxyprotocol.begins_like_one(first):
        raise Unwelcome(_FORGED)


def is_among(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address, without brackets or zone, is in one of the networks; what is no numeric
    address is in none."""
    if not networks:
        return False
    try:
        one = ipaddress.ip_address(address.removeprefix("::ffff:"))
    except ValueError:
        return False
    return any(one in network for network in networks)


def announced(wire: Wire, proxy: Peer, limit_seconds: float) -> Client:
    """The client that a proxy announces; exactly its header is read.

    Raises NoHeader, TimeoutError, ConnectionError.
    """
    header = _header(wire, time.monotonic() + min(limit_seconds, HEADER_SECONDS))
    encryption = None
    if header.tls is not None:
        encryption = Encryption(*header.tls, at_once=True)
    return Client(_peer(header, proxy), encryption)


def _header(wire: Wire, deadline: float) -> Header:
    octets = b""
    while True:
        more = wire.peek(proxyprotocol.LIMIT_OCTETS, deadline)
        if not more:
            raise NoHeader("it was closed before the header had come", silent=not octets)
        try:
            header = proxyprotocol.parse(octets + more)
        except BadHeader as error:
            raise NoHeader(str(error)) from None
        mine = len(more) if header is None else header.octets - len(octets)
        octets += wire.receive(mine, deadline)
        if header is not None:
            return header


def _peer(header: Header, proxy: Peer) -> Peer:
    """Whom the session is with.

    Being on this machine is a privilege, so both must say it: the client is there only if the
    header says so and has come from there.  Of a client on a proxy's own machine nothing is known
    but that machine; so too where the header names nobody.
    """
    source, destination = header.source, header.destination
    if source is None or destination is None:
        return Peer(proxy.address, proxy.port, False, proxy.local_address)
    near = is_loopback(source.address)
    if near and not proxy.loopback:
        return Peer(proxy.address, proxy.port, False, destination.address)
    return Peer(source.address, source.port, near, destination.address)
