"""Listeners and the limit on sessions, over real connections."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest
from fakes import ALL_MECHANISMS, PATIENCE_SECONDS, Client, FakeGate, b64, tcp_pair, wait_for

from tofmipd import server
from tofmipd.server import Listener, ListenError, Service, bind
from tofmipd.settings import Limits, Listen
from tofmipd.smtp.envelope import Peer

ANY_PORT = Listen("127.0.0.1", 0)
FAR = Peer("192.0.2.1", 40000, loopback=False)


class Daemon:
    """A service that listens."""

    def __init__(self, gate=None, **options):
        limits = Limits(**({"failure_delay": 0, "stop_timeout": 5} | options))
        self.gate = gate or FakeGate()
        self.service = Service(self.gate, "mx.example", limits)
        self.listener = Listener(bind(ANY_PORT), self.service)
        self.port = self.listener.port
        self.listener.start()
        self.stopped = False

    def client(self):
        return Client.connect(self.port)

    def greeted(self):
        client = self.client()
        assert client.reply() == "220 mx.example ESMTP tofmipd"
        return client

    def stop(self):
        """As the daemon does it."""
        self.stopped = True
        self.service.begin_stop()
        self.listener.shutdown()
        self.listener.server_close()
        return self.service.stop()


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(server, "_POLL_SECONDS", 0.05)
    running = []

    def make(**options):
        running.append(Daemon(**options))
        return running[-1]

    yield make
    for daemon in running:
        if not daemon.stopped:
            daemon.stop()


def test_port_0_is_a_port_that_can_be_connected_to(start):
    daemon = start()
    assert daemon.port > 0
    client = daemon.greeted()
    assert client.ask("QUIT") == "221 2.0.0 Bye"


def test_clients_are_served_at_the_same_time(start):
    daemon = start()
    clients = [daemon.greeted() for _ in range(20)]
    for client in reversed(clients):
        assert client.ask("NOOP") == "250 2.0.0 Ok"
        client.close()


def test_a_client_above_the_limit_is_greeted_when_another_has_quit(start):
    daemon = start(connections=2)
    first, second = daemon.greeted(), daemon.greeted()
    third = daemon.client()
    assert third.silent_for(0.3)
    assert second.ask("NOOP") == "250 2.0.0 Ok"
    assert first.ask("QUIT").startswith("221 ")
    first.close()
    assert third.reply() == "220 mx.example ESMTP tofmipd"
    fourth = daemon.client()
    assert fourth.silent_for(0.2)
    third.close()
    assert fourth.reply().startswith("220 ")


@pytest.mark.parametrize("farewell", [b"", b"EHLO x", b"QUIT\r\n", b"x" * 20_000, b"\n"])
def test_a_place_becomes_free_however_a_session_ends(start, farewell):
    daemon = start(connections=1)
    for _ in range(5):
        client = daemon.greeted()
        client.raw(farewell)
        client.close()
    with daemon.greeted() as client:
        assert client.ask("NOOP") == "250 2.0.0 Ok"


def test_a_place_becomes_free_when_the_gate_has_a_bug(start, caplog):
    class Broken(FakeGate):
        admissions = 0

        def admit(self, session_id, peer):
            self.admissions += 1
            if self.admissions <= 3:
                raise RuntimeError("a bug")
            return self

    daemon = start(gate=Broken(), connections=1)
    for _ in range(3):
        assert daemon.client().reply() == ""
    assert daemon.greeted().ask("NOOP") == "250 2.0.0 Ok"
    failed = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failed) == 3


def test_a_client_that_has_only_just_come_keeps_the_service_busy(start):
    """One that retires is not forgotten before its last client has gone."""
    service = start().service
    assert not service.busy
    assert service.take_slot()
    assert service.busy
    service.retire()
    assert not service.take_slot()
    assert service.busy
    service.give_slot()
    assert not service.busy


def test_stopping_parts_from_idle_clients(start):
    daemon = start()
    clients = [daemon.greeted() for _ in range(3)]
    done = []
    thread = threading.Thread(target=lambda: done.append(daemon.stop()), daemon=True)
    begun = time.monotonic()
    thread.start()
    for client in clients:
        assert client.reply() == "421 4.3.2 The service is shutting down"
        assert client.rest() == b""
        client.close()
    thread.join(PATIENCE_SECONDS)
    assert done == [True]
    assert time.monotonic() - begun < 4
    with pytest.raises(OSError, match="refused"):
        daemon.client()


def test_stopping_lets_a_message_under_way_finish(start):
    daemon = start()
    client = daemon.greeted()
    client.log_in()
    assert client.ask("MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>", "DATA")[:3] == "354"
    done = []
    thread = threading.Thread(target=lambda: done.append(daemon.stop()), daemon=True)
    thread.start()
    wait_for(lambda: daemon.service._stopping.is_set())
    client.raw(b"Hello\r\n.\r\n")
    assert client.reply() == "250 2.0.0 Ok: taken"
    assert client.reply().startswith("421 4.3.2 ")
    client.close()
    thread.join(PATIENCE_SECONDS)
    assert done == [True]
    assert len(daemon.gate.submitted) == 1


def test_stopping_does_not_wait_for_ever(start):
    daemon = start(stop_timeout=0.3)
    client = daemon.greeted()
    client.log_in()
    assert client.ask("MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>", "DATA")[:3] == "354"
    begun = time.monotonic()
    assert daemon.stop() is False
    assert time.monotonic() - begun < 3
    client.close()


def test_stopping_works_while_all_places_are_taken(start):
    daemon = start(connections=1)
    client = daemon.greeted()
    waiting = daemon.client()
    assert waiting.silent_for(0.2)
    done = []
    thread = threading.Thread(target=lambda: done.append(daemon.stop()), daemon=True)
    thread.start()
    assert client.reply().startswith("421 4.3.2 ")
    client.close()
    thread.join(PATIENCE_SECONDS)
    assert done == [True]


def test_many_clients_come_and_go(start):
    daemon = start(connections=8)
    failures = []

    def work():
        for _ in range(10):
            with daemon.greeted() as client:
                if client.ask("EHLO x", "QUIT")[:3] != "221":
                    failures.append(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert failures == []
    wait_for(lambda: not daemon.service._pumps)


# Addresses.


def test_an_address_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = Service(FakeGate(), "mx.example", Limits())
        with pytest.raises(ListenError) as caught:
            Listener(bind(Listen("127.0.0.1", port)), service)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert not caught.value.denied


@pytest.mark.parametrize("listen", [Listen("192.0.2.1", 0), Listen("2001:db8::1", 0, ipv6=True)])
def test_an_address_that_is_not_ours_is_named(listen):
    with pytest.raises(ListenError) as caught:
        Listener(bind(listen), Service(FakeGate(), "mx.example", Limits()))
    assert str(caught.value).startswith(f"cannot listen on {listen}: ")


# Who may log in how.


@pytest.fixture
def talk_to():
    """A client of a service, as if it came from elsewhere; no listener needed."""
    ends = []

    def talk(service, peer):
        sock, client = tcp_pair()
        thread = threading.Thread(target=service.serve, args=(sock, peer), daemon=True)
        thread.start()
        ends.append((client, thread))
        talker = Client(client)
        assert talker.reply().startswith("220 ")
        return talker

    yield talk
    for client, thread in ends:
        client.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def offered(client):
    lines = client.ask("EHLO client.example").splitlines()
    return next((line[4:] for line in lines if line[4:].startswith("AUTH")), None)


EVERYTHING = "AUTH PLAIN LOGIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256"
SAFE = "AUTH CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_from_this_machine_all_mechanisms_may_be_used(talk_to, address):
    service = Service(FakeGate(), "mx.example", Limits())
    client = talk_to(service, Peer(address, 1, loopback=True))
    assert offered(client) == EVERYTHING
    assert client.log_in().startswith("235 ")


def test_from_elsewhere_no_password_is_asked_for_in_clear(talk_to):
    gate = FakeGate()
    client = talk_to(Service(gate, "mx.example", Limits()), FAR)
    assert offered(client) == SAFE
    for line in ("AUTH PLAIN", "AUTH LOGIN", "AUTH PLAIN " + b64(b"\0bobby\0FooBar")):
        assert client.ask(line).startswith("538 5.7.11 ")
    assert gate.asked == []


def test_from_elsewhere_it_is_when_the_administrator_says_so(talk_to):
    service = Service(FakeGate(), "mx.example", Limits(), insecure_auth=True)
    client = talk_to(service, FAR)
    assert offered(client) == EVERYTHING
    assert client.log_in().startswith("235 ")


@pytest.mark.parametrize(
    ("served", "near", "far"),
    [
        (ALL_MECHANISMS, EVERYTHING, SAFE),
        (("PLAIN", "SCRAM-SHA-1"), "AUTH PLAIN SCRAM-SHA-1", "AUTH SCRAM-SHA-1"),
        (("PLAIN", "LOGIN"), "AUTH PLAIN LOGIN", None),
        (("CRAM-MD5",), "AUTH CRAM-MD5", "AUTH CRAM-MD5"),
        ((), None, None),
    ],
)
def test_only_what_the_gate_can_judge_is_offered(talk_to, served, near, far):
    gate = FakeGate()
    gate.mechanisms = frozenset(served)
    service = Service(gate, "mx.example", Limits())
    assert offered(talk_to(service, Peer("127.0.0.1", 1, loopback=True))) == near
    assert offered(talk_to(service, FAR)) == far


def test_limits_reach_the_session(talk_to):
    limits = Limits(size=1234, max_recipients=1, max_errors=2, max_auth_failures=2, failure_delay=0)
    service = Service(FakeGate(), "mx.example", limits, insecure_auth=True)
    for peer in (FAR, Peer("127.0.0.1", 1, loopback=True)):
        client = talk_to(service, peer)
        assert "\n250-SIZE 1234\n" in client.ask("EHLO x")
        assert client.log_in(password="Wrong").startswith("535 ")
        assert client.log_in().startswith("235 ")
        assert client.ask("MAIL FROM:<a@b>", "RCPT TO:<x@y>", "RCPT TO:<z@y>").startswith("452 ")
        assert client.ask("FOO").startswith("502 ")
        assert client.ask("FOO").startswith("421 ")
        client = talk_to(service, peer)
        assert client.log_in(password="Wrong").startswith("535 ")
        assert client.log_in(password="Wrong").startswith("421 ")


def test_a_session_is_logged_from_beginning_to_end(talk_to, caplog):
    caplog.set_level(logging.INFO)
    client = talk_to(Service(FakeGate(), "mx.example", Limits()), FAR)
    client.ask("QUIT")
    client.close()
    wait_for(lambda: len(caplog.records) == 2)
    begin, end = (record.getMessage() for record in caplog.records)
    name = begin.split()[0]
    assert begin == f"{name} session from 192.0.2.1"
    assert end.startswith(f"{name} end after ")
