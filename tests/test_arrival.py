"""Who a new connection is: what a proxy says, and what others may not."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time

import pytest
from fakes import PATIENCE_SECONDS, Client, FakeGate, server_context, tcp_pair, wait_for
from proxyheaders import LOCAL, SIGNATURE, UNIX, UNSPEC, block, tls, version_1, version_2

from tofmipd import arrival, server
from tofmipd.arguments import networks
from tofmipd.arrival import NoHeader
from tofmipd.server import Listener, Service, bind
from tofmipd.settings import EncryptionSettings, Limits, Listen
from tofmipd.smtp.envelope import Encryption, Peer
from tofmipd.tls.contexts import Contexts
from tofmipd.tls.wire import encryptor
from tofmipd.wire import Wire

CLIENT, SERVER = "203.0.113.9", "192.0.2.1"
HEADERS = {"v1": version_1(CLIENT, SERVER), "v2": version_2(CLIENT, SERVER)}
NEAR_PROXY = Peer("127.0.0.2", 30000, True, "127.0.0.1")
FAR_PROXY = Peer("198.51.100.1", 30000, False, "192.0.2.2")
ELSEWHERE = Peer(CLIENT, 4711, False, SERVER)


@pytest.fixture
def pair():
    here, there = tcp_pair()
    with here, there:
        yield here, there


# What is read.


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("behind", [b"", b"E", b"EHLO x\r\n", b"\x16\x03\x01" * 5000])
def test_exactly_the_header_is_read(pair, header, behind):
    here, there = pair
    there.sendall(header + behind)
    there.shutdown(socket.SHUT_WR)
    assert arrival.announced(Wire(here), NEAR_PROXY, 5).peer == ELSEWHERE
    rest = b""
    while block_ := here.recv(65536):
        rest += block_
    assert rest == behind


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_may_come_octet_by_octet(pair, header):
    here, there = pair
    found = []
    reader = threading.Thread(
        target=lambda: found.append(arrival.announced(Wire(here), NEAR_PROXY, PATIENCE_SECONDS)),
        daemon=True,
    )
    reader.start()
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for octet in header:
        there.sendall(bytes([octet]))
    there.sendall(b"EHLO x\r\n")
    reader.join(PATIENCE_SECONDS)
    assert [client.peer for client in found] == [ELSEWHERE]
    assert here.recv(100) == b"EHLO x\r\n"


def test_the_time_for_a_header_is_for_all_of_it(pair):
    here, there = pair
    there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    done = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            for octet in b"PROXY UNKNOWN " + b"x" * 90:
                there.sendall(bytes([octet]))
                if done.wait(0.1):
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        arrival.announced(Wire(here), NEAR_PROXY, 0.5)
    assert time.monotonic() - begun < 0.1 * 90
    done.set()
    thread.join(PATIENCE_SECONDS)


def test_there_are_five_seconds_and_less_where_a_login_has_less(pair, monkeypatch):
    deadlines = []

    def header(wire, deadline):
        deadlines.append(deadline - time.monotonic())
        raise NoHeader("none")

    monkeypatch.setattr(arrival, "_header", header)
    for limit in (60, 2):
        with pytest.raises(NoHeader):
            arrival.announced(Wire(pair[0]), NEAR_PROXY, limit)
    assert [round(seconds) for seconds in deadlines] == [5, 2]


@pytest.mark.parametrize(("octets", "silent"), [(b"", True), (b"PROXY TCP4 203.", False)])
def test_a_proxy_that_closes_too_early_has_said_nothing(pair, octets, silent):
    here, there = pair
    there.sendall(octets)
    there.shutdown(socket.SHUT_WR)
    with pytest.raises(NoHeader) as caught:
        arrival.announced(Wire(here), NEAR_PROXY, 5)
    assert caught.value.silent is silent


# Whom it makes.

LOOPBACK_V4 = version_2("127.0.0.1", "127.0.0.1")
WHO = {
    "from elsewhere, by a proxy here": (HEADERS["v2"], NEAR_PROXY, ELSEWHERE),
    "from elsewhere, by a proxy elsewhere": (HEADERS["v1"], FAR_PROXY, ELSEWHERE),
    "of IPv6": (
        version_2("2001:db8::9", "2001:db8::1"),
        NEAR_PROXY,
        Peer("2001:db8::9", 4711, False, "2001:db8::1"),
    ),
    "from here, by a proxy here": (
        LOOPBACK_V4,
        NEAR_PROXY,
        Peer("127.0.0.1", 4711, True, "127.0.0.1"),
    ),
    "from here by IPv6, by a proxy here": (
        version_1("::1", "::1"),
        NEAR_PROXY,
        Peer("::1", 4711, True, "::1"),
    ),
    "from here within IPv6, by a proxy here": (
        version_2("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        NEAR_PROXY,
        Peer("127.0.0.1", 4711, True, "127.0.0.1"),
    ),
    "from the machine of a proxy elsewhere": (
        LOOPBACK_V4,
        FAR_PROXY,
        Peer(FAR_PROXY.address, 30000, False, "127.0.0.1"),
    ),
    "from the machine of a proxy elsewhere, within IPv6": (
        version_2("::ffff:127.0.0.1", "2001:db8::1"),
        FAR_PROXY,
        Peer(FAR_PROXY.address, 30000, False, "2001:db8::1"),
    ),
    **{
        f"{name}, by a proxy {place}": (
            header,
            proxy,
            Peer(proxy.address, 30000, False, proxy.local_address),
        )
        for place, proxy in (("here", NEAR_PROXY), ("elsewhere", FAR_PROXY))
        for name, header in (
            ("the proxy itself", block(b"", UNSPEC, LOCAL)),
            ("nobody known", b"PROXY UNKNOWN\r\n"),
            ("of no family", block(b"", UNSPEC)),
            ("of a local socket", block(bytes(216), UNIX)),
        )
    },
}


@pytest.mark.parametrize(("header", "proxy", "peer"), WHO.values(), ids=WHO)
def test_only_who_is_here_by_both_accounts_is_here(pair, header, proxy, peer):
    here, there = pair
    there.sendall(header)
    assert arrival.announced(Wire(here), proxy, 5) == (peer, None, False)


@pytest.mark.parametrize(
    ("more", "encryption"),
    [
        (b"", None),
        (tls(), Encryption("TLSv1.3", "TLS_AES_128_GCM_SHA256", at_once=True)),
        (tls(cipher=b""), Encryption("TLSv1.3", "", at_once=True)),
    ],
)
def test_what_a_proxy_says_of_tls_is_kept_but_no_certificate(pair, more, encryption):
    here, there = pair
    there.sendall(version_2(CLIENT, SERVER, more=more))
    assert arrival.announced(Wire(here), NEAR_PROXY, 5) == (ELSEWHERE, encryption, False)


@pytest.mark.parametrize(
    ("address", "among"),
    [
        ("192.0.2.77", True),
        ("192.0.3.1", False),
        ("2001:db8::1", True),
        ("2001:db8::2", False),
        ("127.0.0.1", False),
        ("::ffff:192.0.2.77", True),
        ("proxy.example", False),
        ("", False),
    ],
)
def test_networks_have_addresses_of_their_own_family(address, among):
    assert arrival.is_among(address, networks("192.0.2.0/24,2001:db8::1")) is among
    assert not arrival.is_among(address, ())


@pytest.mark.parametrize(
    ("version", "cipher", "shown"),
    [
        ("TLSv1.2", "AES128-SHA", "using SMTP over TLS, TLSv1.2 AES128-SHA"),
        ("TLSv1.3", "", "using SMTP over TLS, TLSv1.3"),
        ("", "", "using SMTP over TLS"),
    ],
)
def test_received_tells_no_more_of_tls_than_the_proxy(version, cipher, shown):
    assert str(Encryption(version, cipher, at_once=True)) == shown


# At a listener: clients on this machine come from two addresses, one of which is the proxy's.

PROXY, OTHER = "127.0.0.2", "127.0.0.1"


class Daemon:
    """A service with one listener; the proxy's network is all of PROXY."""

    def __init__(self, encrypt=None, mode="plain", proxies=PROXY, **limits):
        self.gate = FakeGate()
        self.service = Service(
            self.gate, "mx.example", Limits(**{"failure_delay": 0} | limits), encrypt=encrypt
        )
        self.listener = Listener(
            bind(Listen("127.0.0.1", 0)), self.service, mode, networks(proxies) if proxies else ()
        )
        self.listener.start()

    def client(self, source=PROXY, first=b""):
        where = ("127.0.0.1", self.listener.port)
        sock = socket.create_connection(where, PATIENCE_SECONDS, source_address=(source, 0))
        sock.sendall(first)
        return Client(sock)

    def stop(self):
        self.service.begin_stop()
        self.listener.stop()
        self.service.stop()


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(server, "_POLL_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:

        def make(**options):
            daemon = Daemon(**options)
            stack.callback(daemon.stop)
            return daemon

        yield make


@pytest.fixture
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    _, path = server_context(directory)
    return path


@pytest.fixture
def encrypt(certificate):
    pair = (certificate, certificate.replace(".pem", ".key"))
    return encryptor(Contexts(EncryptionSettings(pairs=(pair,))))


def warned(caplog, *words):
    """Wait for a warning with these words."""

    def lines():
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    wait_for(lambda: any(all(word in line for word in words) for line in lines()))


def offer(client):
    """What EHLO offers."""
    return {line[4:] for line in client.ask("EHLO client.example").splitlines()}


def deliver(client):
    client.ask("MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>", "DATA")
    client.raw(b"Hello\r\n.\r\n")
    assert client.reply().startswith("250 ")


def test_whoever_a_proxy_announces_is_the_client(start):
    daemon = start()
    with daemon.client(first=HEADERS["v2"]) as client:
        assert client.reply().startswith("220 ")
        # It is not on this machine: no password is asked for in the clear.
        assert not any("PLAIN" in word for word in offer(client))
    with daemon.client(first=version_1("127.0.0.1", "127.0.0.1")) as client:
        assert client.reply().startswith("220 ")
        assert client.log_in().startswith("235 ")
        deliver(client)
    (envelope, _), *_ = daemon.gate.submitted
    assert envelope.peer == Peer("127.0.0.1", 4711, True, "127.0.0.1")


def test_what_follows_the_header_in_one_packet_is_the_clients(start):
    daemon = start()
    with daemon.client(first=HEADERS["v1"] + b"EHLO client.example\r\nNOOP\r\n") as client:
        assert client.reply().startswith("220 ")
        assert client.reply().startswith("250-mx.example")
        assert client.reply() == "250 2.0.0 Ok"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"EHLO x\r\n", "something else came first"),
        (b"PROXY TCP4 nonsense\r\n", "unknown line"),
        (SIGNATURE + b"\x31\0\0\0", "unknown command"),
    ],
)
def test_a_proxy_that_says_something_else_is_closed_without_a_word(start, caplog, first, reason):
    with start().client(first=first) as client:
        assert client.rest() == b""
    warned(caplog, "no PROXY header from 127.0.0.2: ", reason)


def test_a_silent_proxy_holds_a_place_for_a_short_time_only(start, caplog):
    daemon = start(connections=1, login_timeout=0.3)
    silent = daemon.client()
    with daemon.client(first=HEADERS["v1"]) as client:
        assert client.reply().startswith("220 ")
    assert silent.rest() == b""
    warned(caplog, "no PROXY header from 127.0.0.2: it does not come")


def test_who_only_looks_whether_it_can_connect_is_no_warning(start, caplog):
    caplog.set_level(logging.DEBUG)
    daemon = start(connections=1)
    daemon.client().close()
    with daemon.client(first=HEADERS["v1"]) as client:
        assert client.reply().startswith("220 ")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("closed before the header" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_from_elsewhere_is_closed(start, caplog, header):
    with start().client(OTHER, header) as client:
        # The greeting may have gone before.
        assert client.rest().removeprefix(b"220 mx.example ESMTP tofmipd\r\n") == b""
    warned(caplog, "closed without a word: it begins with a PROXY header")


def test_a_forged_header_in_pieces_gets_no_further(start, caplog):
    with start().client(OTHER) as client:
        assert client.reply().startswith("220 ")
        client.raw(b"PROX")
        client.raw(b"Y TCP4 127.0.0.1 127.0.0.1 1 1\r\nEHLO x\r\n")
        assert client.rest() == b""
    warned(caplog, "begins with a PROXY header")


def test_others_are_clients_as_ever(start):
    with start().client(OTHER) as client:
        assert client.reply().startswith("220 ")
        assert any("PLAIN" in word for word in offer(client))
        assert client.ask("PROXY TCP4").startswith("502 ")


def test_without_proxies_a_header_is_a_wrong_command(start):
    with start(proxies="").client(PROXY, HEADERS["v1"]) as client:
        assert client.reply().startswith("220 ")
        assert client.reply().startswith("502 ")


def test_an_address_behind_a_proxy_has_its_own_limit(start):
    daemon = start(connections_per_address=1)
    with daemon.client(first=HEADERS["v1"]) as first:
        assert first.reply().startswith("220 ")
        with daemon.client(first=HEADERS["v2"]) as second:
            assert second.reply().startswith("421 4.3.2 ")
        with daemon.client(first=version_1("203.0.113.10", SERVER)) as other:
            assert other.reply().startswith("220 ")


@pytest.mark.parametrize(
    ("proxy", "first", "passwords"),
    [
        (NEAR_PROXY, HEADERS["v1"], False),
        (NEAR_PROXY, version_2("127.0.0.1", "127.0.0.1"), True),
        (Peer("127.0.0.1", 1, True, "127.0.0.1"), b"", True),
        # What passes octets on within this machine answers for them, but not for a proxy.
        (Peer("proxy.example"), b"", True),
    ],
)
def test_the_only_session_of_a_process_may_come_by_a_proxy(pair, proxy, first, passwords):
    here, there = pair
    service = Service(FakeGate(), "mx.example", Limits())
    where = Listen("", 0, proxies=networks(PROXY))
    there.sendall(first)
    thread = threading.Thread(
        target=lambda: service.serve_only(here, proxy, where, near=True), daemon=True
    )
    thread.start()
    client = Client(there)
    assert client.reply().startswith("220 ")
    assert any("PLAIN" in word for word in offer(client)) is passwords
    client.ask("QUIT")
    thread.join(PATIENCE_SECONDS)


# TLS


def test_tls_that_ended_at_the_proxy_counts(start, encrypt):
    daemon = start(encrypt=encrypt, mode="on")
    with daemon.client(first=version_2(CLIENT, SERVER, more=tls())) as client:
        assert client.reply().startswith("220 ")
        words = offer(client)
        assert "STARTTLS" not in words
        assert any(word.startswith("AUTH PLAIN") for word in words)
        assert client.log_in().startswith("235 ")
        deliver(client)
    (envelope, _), *_ = daemon.gate.submitted
    assert (envelope.protocol, envelope.encryption) == (
        "ESMTPSA",
        "using SMTP over TLS, TLSv1.3 TLS_AES_128_GCM_SHA256",
    )


def test_without_tls_at_the_proxy_it_is_offered_here(start, encrypt):
    daemon = start(encrypt=encrypt, mode="on")
    with daemon.client(first=version_2(CLIENT, SERVER)) as client:
        assert client.reply().startswith("220 ")
        assert "STARTTLS" in offer(client)
        assert client.log_in().startswith("530 ")


def in_tls(client, certificate):
    context = ssl.create_default_context(cafile=certificate)
    return Client(context.wrap_socket(client.socket, server_hostname="127.0.0.1"))


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_the_header_comes_before_tls(start, encrypt, certificate, header):
    daemon = start(encrypt=encrypt, mode="ssl")
    with in_tls(daemon.client(first=header), certificate) as client:
        assert client.reply().startswith("220 ")
        assert any(word.startswith("AUTH PLAIN") for word in offer(client))


def test_tls_with_the_proxy_is_not_taken_for_that_with_the_client(start, encrypt, certificate):
    """What binds a login to the channel would bind it to another one."""
    daemon = start(encrypt=encrypt, mode="ssl")
    proxied = daemon.client(first=version_2(CLIENT, SERVER, more=tls()))
    with in_tls(proxied, certificate) as client:
        assert client.reply().startswith("220 ")
        assert not any("-PLUS" in word for word in offer(client))
    with in_tls(daemon.client(first=version_2(CLIENT, SERVER)), certificate) as client:
        assert client.reply().startswith("220 ")
        assert any("-PLUS" in word for word in offer(client))


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_from_elsewhere_in_the_place_of_tls_is_closed(start, encrypt, caplog, header):
    with start(encrypt=encrypt, mode="ssl").client(OTHER, header) as client:
        assert client.rest() == b""
    warned(caplog, "closed without a word: it begins with a PROXY header")


def test_tls_from_elsewhere_begins_as_ever(start, encrypt, certificate):
    daemon = start(encrypt=encrypt, mode="ssl")
    with in_tls(daemon.client(OTHER), certificate) as client:
        assert client.reply().startswith("220 ")
