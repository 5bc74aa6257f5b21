"""An encrypted connection: deadlines hold however records come, and the last reply arrives."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from certificates import OVER, Issued, authority, client_context, stranger
from fakes import PATIENCE_SECONDS, tcp_pair, wait_for
from OpenSSL import SSL

from tofmipd import wire as wire_module
from tofmipd.settings import EncryptionSettings
from tofmipd.tls.contexts import Contexts
from tofmipd.tls.wire import HandshakeFailed, TlsWire, encryptor
from tofmipd.wire import Wire

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    directory = tmp_path_factory.mktemp("certificates")
    chain, key = authority().issue().save(directory)
    ca = str(authority().save(directory))
    return Contexts(EncryptionSettings(pairs=((str(chain), str(key)),), client_ca=ca))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = tcp_pair()
    with server, client:
        yield server, client


def soon(seconds: float = PATIENCE_SECONDS) -> float:
    return time.monotonic() + seconds


class ByHand:
    """A client whose records can be sent in any pieces."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self.socket = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def hello(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    def shake_hands(self) -> ByHand:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._out.read())
                self._in.write(self.socket.recv(1 << 16))
            else:
                self.socket.sendall(self._out.read())
                return self

    def record(self, octets: bytes) -> bytes:
        self.tls.write(octets)
        return self._out.read()

    def say(self, octets: bytes) -> None:
        self.socket.sendall(self.record(octets))

    def goodbye(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self.tls.unwrap()
        return self._out.read()

    def hear(self) -> bytes:
        """The next octets, b"" for a goodbye; ssl.SSLEOFError without one."""
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                octets = self.socket.recv(1 << 16)
                if octets:
                    self._in.write(octets)
                else:
                    self._in.write_eof()


class Meeting:
    """Both ends after the handshake."""

    def __init__(self, wire: TlsWire, client: ByHand) -> None:
        self.wire, self.client = wire, client


Meet = Callable[..., Meeting]


@pytest.fixture
def meet(pair, pool, contexts) -> Meet:
    def meet(
        context: ssl.SSLContext | None = None, write_timeout: float = 120, *, at_once: bool = False
    ) -> Meeting:
        client = ByHand(pair[1], context)
        shaking = pool.submit(client.shake_hands)
        wire = TlsWire(Wire(pair[0], write_timeout), contexts, soon(), at_once=at_once)
        shaking.result(PATIENCE_SECONDS)
        return Meeting(wire, client)

    return meet


# To and fro.


def test_what_the_client_sends_is_received(meet):
    met = meet()
    met.client.say(b"NOOP\r\n")
    assert met.wire.receive(100, soon()) == b"NOOP\r\n"
    met.client.say(b"abcdef")
    assert met.wire.receive(4, soon()) == b"abcd"
    assert met.wire.receive(4, soon()) == b"ef"


def test_what_is_queued_leaves_with_the_flush_in_one_record(meet):
    met = meet()
    met.wire.queue(b"250 one\r\n")
    met.wire.queue(b"250 two\r\n")
    met.client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        met.client.hear()
    met.client.socket.settimeout(PATIENCE_SECONDS)
    met.wire.flush()
    assert met.client.hear() == b"250 one\r\n250 two\r\n"
    met.wire.flush()


@VERSIONS
def test_a_megabyte_passes_both_ways(version, meet, pool):
    context = client_context()
    context.minimum_version = context.maximum_version = version
    met = meet(context)
    octets = os.urandom(1 << 20)
    sending = pool.submit(met.client.socket.sendall, met.client.record(octets))
    received = b""
    while len(received) < len(octets):
        piece = met.wire.receive(1 << 18, soon())
        # No more than a record at a time, whatever is asked for.
        assert 0 < len(piece) <= 16384
        received += piece
    sending.result(PATIENCE_SECONDS)
    assert received == octets

    hearing = pool.submit(heard, met.client, len(octets))
    met.wire.queue(octets)
    met.wire.flush()
    assert hearing.result(PATIENCE_SECONDS) == octets


def test_what_was_queued_before_comes_through_tls(pair, pool, contexts):
    plain = Wire(pair[0])
    plain.queue(b"x")
    client = ByHand(pair[1])
    shaking = pool.submit(client.shake_hands)
    wire = TlsWire(plain, contexts, soon(), at_once=True)
    shaking.result(PATIENCE_SECONDS)
    wire.flush()
    assert client.hear() == b"x"


# What it has led to.


@VERSIONS
@pytest.mark.parametrize("at_once", [True, False])
def test_version_and_cipher_are_known(version, at_once, meet):
    context = client_context()
    context.minimum_version = context.maximum_version = version
    met = meet(context, at_once=at_once)
    found = met.wire.encryption
    assert found.version == met.client.tls.version()
    assert found.cipher == met.client.tls.cipher()[0]
    assert found.at_once is at_once
    assert (found.certificate, found.names) == (b"", ())


def certified(issued: Issued, directory: Path) -> ssl.SSLContext:
    return client_context(certificate=issued.save(directory, "client"))


def test_a_client_s_certificate_and_its_names_are_known(meet, tmp_path):
    anna = authority().issue("Anna", dns=(), mail=("anna@example.org",))
    found = meet(certified(anna, tmp_path)).wire.encryption
    assert found.certificate == anna.der
    assert found.names == ("anna", "anna@example.org")


def test_a_certificate_without_a_name_is_no_login(meet, tmp_path):
    nobody = authority().issue("", dns=("host.example.org",))
    assert meet(certified(nobody, tmp_path)).wire.encryption.names == ()


# The end.


@VERSIONS
def test_a_client_that_says_goodbye_gives_nothing(version, meet):
    context = client_context()
    context.minimum_version = context.maximum_version = version
    met = meet(context)
    met.client.socket.sendall(met.client.goodbye())
    assert met.wire.receive(100, soon()) == b""


@VERSIONS
@pytest.mark.parametrize("cut", [0, 1, 5, 20])
def test_a_client_that_goes_without_goodbye_gives_nothing(cut, version, meet):
    """Even in the middle of a record, of which nothing is used."""
    context = client_context()
    context.minimum_version = context.maximum_version = version
    met = meet(context)
    met.client.socket.sendall(met.client.record(b"QUIT\r\n" * 10)[:cut])
    met.client.socket.shutdown(socket.SHUT_WR)
    assert met.wire.receive(100, soon()) == b""


def test_what_came_before_the_end_is_still_received(meet):
    met = meet()
    met.client.say(b"QUIT\r\n")
    met.client.socket.shutdown(socket.SHUT_WR)
    assert met.wire.receive(100, soon()) == b"QUIT\r\n"
    assert met.wire.receive(100, soon()) == b""


def test_a_client_that_resets_the_connection_is_gone(meet):
    met = meet()
    met.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    met.client.socket.close()
    with pytest.raises(ConnectionError):
        met.wire.receive(100, soon())


@pytest.mark.parametrize("forged", ["tag", "type", "length", "noise"])
def test_a_record_that_was_tampered_with_ends_the_connection(forged, meet):
    met = meet()
    record = bytearray(met.client.record(b"MAIL FROM:<a@b.example>\r\n"))
    match forged:
        case "tag":
            record[-1] ^= 1
        case "type":
            record[0] = 99
        case "length":
            record[3:5] = b"\xff\xff"
        case "noise":
            record[:] = b"MAIL FROM:<a@b.example>\r\n"
    met.client.socket.sendall(bytes(record))
    with pytest.raises(ConnectionError, match=r"^TLS: [a-z]"):
        met.wire.receive(100, soon())
    met.wire.queue(b"421 what\r\n")
    with pytest.raises(ConnectionError):
        met.wire.flush()
    met.client.socket.close()
    met.wire.close(linger=True)


@pytest.mark.parametrize("linger", [True, False])
def test_closing_says_goodbye(linger, meet, pool):
    """So that the client knows that nothing was cut off."""
    met = meet()
    met.wire.queue(b"221 2.0.0 Bye\r\n")
    met.wire.flush()
    closing = pool.submit(met.wire.close, linger=linger)
    assert met.client.hear() == b"221 2.0.0 Bye\r\n"
    assert met.client.hear() == b""
    met.client.socket.close()
    closing.result(PATIENCE_SECONDS)


def test_the_last_reply_arrives_though_input_is_unread(meet, pool):
    """Else the kernel would throw it away."""
    met = meet()
    rest = met.client.record(b"x" * 200_000)
    sending = pool.submit(met.client.socket.sendall, rest)
    wait_for(lambda: met.wire.receive(1, soon()))
    met.wire.queue(b"552 too big\r\n")
    met.wire.flush()
    closing = pool.submit(met.wire.close, linger=True)
    sending.result(PATIENCE_SECONDS)
    assert met.client.hear() == b"552 too big\r\n"
    met.client.socket.close()
    closing.result(PATIENCE_SECONDS)


def test_lingering_ends_with_a_client_that_never_stops(meet, monkeypatch):
    monkeypatch.setattr(wire_module, "_LINGER_SECONDS", 0.3)
    met = meet()
    begun = time.monotonic()
    met.wire.close(linger=True)
    assert 0.2 < time.monotonic() - begun < 3


def test_closing_does_not_wait_for_a_client_that_reads_nothing(meet, monkeypatch):
    monkeypatch.setattr(wire_module, "_LINGER_SECONDS", 0.3)
    met = meet(write_timeout=0.2)
    met.wire.queue(bytes(8 << 20))
    with pytest.raises(TimeoutError):
        met.wire.flush()
    begun = time.monotonic()
    met.wire.close()
    assert time.monotonic() - begun < 1


# Being interrupted.


@VERSIONS
def test_whoever_waits_can_be_woken_up_and_still_speak(version, meet, pool):
    """The service stops: an idle client is told so."""
    context = client_context()
    context.minimum_version = context.maximum_version = version
    met = meet(context)
    waiting = pool.submit(met.wire.receive, 100, soon())
    assert not waiting.done()
    met.wire.interrupt()
    assert waiting.result(PATIENCE_SECONDS) == b""
    met.wire.queue(b"421 4.3.2 The service is shutting down\r\n")
    met.wire.flush()
    met.wire.close()
    assert met.client.hear() == b"421 4.3.2 The service is shutting down\r\n"
    assert met.client.hear() == b""


def test_a_handshake_can_be_interrupted(pair, pool, contexts):
    plain = Wire(pair[0])
    shaking = pool.submit(TlsWire, plain, contexts, soon(60), at_once=True)
    wait_for(lambda: pair[0].getblocking() is False)
    plain.interrupt()
    with pytest.raises(HandshakeFailed, match=r"^TLS handshake: "):
        shaking.result(PATIENCE_SECONDS)


# Deadlines.


def dripping(sock: socket.socket, octets: bytes, done: threading.Event) -> None:
    """An octet now and then."""
    with contextlib.suppress(OSError):
        for place in range(len(octets)):
            sock.sendall(octets[place : place + 1])
            if done.wait(0.02):
                return


@pytest.fixture
def drip(pool) -> Iterator[Callable[[socket.socket, bytes], Future[None]]]:
    done = threading.Event()
    yield lambda sock, octets: pool.submit(dripping, sock, octets, done)
    done.set()


def assert_over_in_time(act: Callable[[], object], begun: float, words: str = ".") -> None:
    with pytest.raises(TimeoutError, match=words):
        act()
    assert 0.25 < time.monotonic() - begun < 1.5


def test_a_silent_client_runs_into_the_deadline(meet):
    met = meet()
    begun = time.monotonic()
    assert_over_in_time(lambda: met.wire.receive(100, begun + 0.3), begun)


def test_a_deadline_is_absolute_however_a_record_drips(meet, drip):
    """TO-68: the kernel's limit for single reads would begin anew with each octet."""
    met = meet()
    drip(met.client.socket, met.client.record(b"x" * 2000))
    begun = time.monotonic()
    assert_over_in_time(lambda: met.wire.receive(100, begun + 0.4), begun)


def test_a_deadline_is_absolute_however_many_records_come(meet, drip):
    """There is always something to receive, and never a whole line."""
    met = meet()
    drip(met.client.socket, b"".join(met.client.record(b"x") for _ in range(2000)))
    begun = time.monotonic()

    def read() -> None:
        while True:
            met.wire.receive(100, begun + 0.4)

    assert_over_in_time(read, begun)


def test_a_deadline_in_the_past_is_over_at_once(meet):
    """Who never stops talking would never be looked at else."""
    met = meet()
    met.client.say(b"NOOP\r\n" * 10)
    assert met.wire.receive(6, soon()) == b"NOOP\r\n"
    with pytest.raises(TimeoutError):
        met.wire.receive(6, time.monotonic() - 1)


def test_a_record_that_comes_in_pieces_arrives_whole(meet, pool):
    met = meet()
    record = met.client.record(b"MAIL FROM:<a@b.example>\r\n")

    def send() -> None:
        for place in range(len(record)):
            met.client.socket.sendall(record[place : place + 1])

    sending = pool.submit(send)
    assert met.wire.receive(100, soon()) == b"MAIL FROM:<a@b.example>\r\n"
    sending.result(PATIENCE_SECONDS)


def test_a_client_that_reads_nothing_is_given_up(meet):
    met = meet(write_timeout=0.4)

    def write() -> None:
        met.wire.queue(bytes(8 << 20))
        met.wire.flush()

    assert_over_in_time(write, time.monotonic(), "does not read its replies")


def test_a_client_that_reads_an_octet_now_and_then_gains_nothing(pair, meet, pool):
    met = meet(write_timeout=0.4)
    done = threading.Event()

    def sip() -> None:
        while not done.wait(0.01):
            met.client.socket.recv(10)

    pool.submit(sip)
    try:

        def write() -> None:
            met.wire.queue(bytes(8 << 20))
            met.wire.flush()

        assert_over_in_time(write, time.monotonic(), "does not read its replies")
    finally:
        done.set()


def test_a_client_that_reads_slowly_gets_all(pair, meet, pool):
    """The kernel takes little at a time, so that each write has to wait for it."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    met = meet(write_timeout=PATIENCE_SECONDS)
    octets = os.urandom(1 << 16)
    hearing = pool.submit(heard, met.client, len(octets))
    met.wire.queue(octets)
    met.wire.flush()
    assert hearing.result(PATIENCE_SECONDS) == octets


def heard(client: ByHand, count: int) -> bytes:
    """So many octets at least."""
    octets = b""
    while len(octets) < count:
        octets += client.hear()
    return octets


# Handshakes that fail.


def fails(pair, contexts, seconds: float = PATIENCE_SECONDS) -> str:
    with pytest.raises(HandshakeFailed) as caught:
        TlsWire(Wire(pair[0]), contexts, soon(seconds), at_once=True)
    text = str(caught.value)
    assert text.startswith("TLS handshake: ")
    assert text != "TLS handshake: no reason given"
    return text


def test_a_silent_handshake_is_over_in_time(pair, contexts):
    begun = time.monotonic()
    wire = Wire(pair[0])
    assert_over_in_time(
        lambda: TlsWire(wire, contexts, begun + 0.3, at_once=True),
        begun,
        "the TLS handshake takes too long",
    )


def test_so_is_one_whose_hello_drips(pair, contexts, drip):
    """TO-68: octet by octet, without a pause that is long."""
    drip(pair[1], ByHand(pair[1]).hello())
    begun = time.monotonic()
    wire = Wire(pair[0])
    assert_over_in_time(lambda: TlsWire(wire, contexts, begun + 0.4, at_once=True), begun)


def test_so_is_one_that_stops_half_way(pair, contexts, pool):
    """The client hears the server's flight and says nothing more."""
    client = ByHand(pair[1])
    pair[1].sendall(client.hello())
    begun = time.monotonic()
    wire = Wire(pair[0])
    assert_over_in_time(lambda: TlsWire(wire, contexts, begun + 0.3, at_once=True), begun)
    assert pair[1].recv(100)[:1] == b"\x16"


def test_a_hello_that_comes_in_pieces_is_as_good(pair, contexts, pool):
    client = ByHand(pair[1])
    hello = client.hello()

    def shake() -> None:
        for place in range(len(hello)):
            pair[1].sendall(hello[place : place + 1])
        client._in.write(pair[1].recv(1 << 16))
        client.shake_hands()

    shaking = pool.submit(shake)
    wire = TlsWire(Wire(pair[0]), contexts, soon(), at_once=True)
    shaking.result(PATIENCE_SECONDS)
    client.say(b"x")
    assert wire.receive(1, soon()) == b"x"


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\nMAIL FROM:<a@b.example>\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        b"\x16\x03\x01\xff\xff" + b"\x01" * 100,
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x80\x2e\x01\x00\x02" + bytes(50),
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x10" + bytes(16),
    ],
    ids=["smtp", "http", "zeros", "ones", "long", "short", "sslv2", "alert", "early", "data"],
)
def test_octets_that_are_no_hello_end_it_with_a_reason(octets, pair, contexts):
    pair[1].sendall(octets)
    # What is too short to be wrong yet is over when the client is.
    pair[1].shutdown(socket.SHUT_WR)
    fails(pair, contexts)


@pytest.mark.parametrize("how", ["at once", "within the hello", "after the hello"])
def test_a_client_that_vanishes_ends_it(how, pair, contexts):
    hello = ByHand(pair[1]).hello()
    pair[1].sendall({"at once": b"", "within the hello": hello[:50]}.get(how, hello))
    pair[1].close()
    fails(pair, contexts)


def test_a_client_that_believes_nothing_ends_it(pair, contexts, pool):
    client = ByHand(pair[1], client_context(stranger()))
    shaking = pool.submit(client.shake_hands)
    with contextlib.suppress(ssl.SSLError):
        # Its alert is what the server hears.
        wait_for(lambda: pair[0].recv(1, socket.MSG_PEEK))

    def tell() -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            shaking.result(PATIENCE_SECONDS)
        pair[1].sendall(client._out.read())

    telling = pool.submit(tell)
    assert "alert" in fails(pair, contexts)
    telling.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("made", ["stranger", "expired"])
def test_a_client_with_a_bad_certificate_ends_it(made, pair, contexts, pool, tmp_path):
    signer, days = (stranger(), (-1, 9)) if made == "stranger" else (authority(), OVER)
    issued = signer.issue("anna", dns=(), days=days)
    client = ByHand(pair[1], certified(issued, tmp_path))

    def shake() -> None:
        with contextlib.suppress(ssl.SSLError):
            client.shake_hands()

    shaking = pool.submit(shake)
    text = fails(pair, contexts)
    assert "certificate" in text
    pair[0].close()
    shaking.result(PATIENCE_SECONDS)


def test_no_common_version_ends_it(pair, contexts, pool):
    context = client_context(weak=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    client = ByHand(pair[1], context)
    pair[1].sendall(client.hello())
    assert "protocol" in fails(pair, contexts)


def test_a_failed_handshake_leaves_nothing_behind(contexts):
    """What closes the plain wire closes the connection."""

    def shake() -> None:
        server, client = tcp_pair()
        client.sendall(b"QUIT\r\n")
        plain = Wire(server)
        with pytest.raises(HandshakeFailed):
            TlsWire(plain, contexts, soon(), at_once=True)
        plain.close()
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""

    shake()
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        shake()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_what_starts_tls_gives_wire_and_encryption(pair, pool, contexts):
    client = ByHand(pair[1])
    shaking = pool.submit(client.shake_hands)
    wire, encryption = encryptor(contexts)(Wire(pair[0]), soon(), True)
    shaking.result(PATIENCE_SECONDS)
    assert encryption.at_once
    assert str(encryption).startswith("using SMTP over TLS, TLSv1.3 TLS_")
    client.say(b"x")
    assert wire.receive(1, soon()) == b"x"


# What can be bound to the channel (RFC 9266).


@pytest.mark.parametrize(
    ("most", "octets"), [(SSL.TLS1_3_VERSION, 32), (SSL.TLS1_2_VERSION, 0)], ids=["1.3", "1.2"]
)
def test_both_ends_have_the_same_name_for_the_channel_and_each_channel_its_own(
    pool, contexts, most, octets
):
    """With TLS 1.2 there is none: it could be another channel's, too."""
    seen = []
    for _ in range(3):
        server, client = tcp_pair()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(most)
        with server, client:
            client.setblocking(True)
            connection = SSL.Connection(context, client)
            connection.set_tlsext_host_name(b"localhost")
            connection.set_connect_state()
            shaking = pool.submit(connection.do_handshake)
            _, encryption = encryptor(contexts)(Wire(server), soon(), True)
            shaking.result(PATIENCE_SECONDS)
            own = connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        assert encryption.binding == own[:octets]
        assert not octets or repr(own) not in repr(encryption)
        seen.append(encryption.binding)
    assert len(set(seen)) == (3 if octets else 1)
