"""Logins judged by an IMAP server: what is asked, what counts as an answer, and hostile servers."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from asked import (
    BOBBY,
    MAYBE,
    NO,
    SHORT_SECONDS,
    YES,
    Peer,
    Script,
    Server,
    addresses,
    deaf,
    elapsed,
    reset_at_close,
    serving,
    stall,
    within_tls,
)
from fakes import PATIENCE_SECONDS, server_context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tofmipd.auth.credentials import CramMd5, Origin, Password
from tofmipd.auth.dialogue import is_near
from tofmipd.auth.imap import ImapSource
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.remote import RemoteServer, RemoteTls, remote_server

GREETING = b"* OK [CAPABILITY IMAP4rev1] ready\r\n"


def asking(
    server: Server, seconds: float = PATIENCE_SECONDS, scheme: str = "imap", **more: RemoteTls
) -> ImapSource:
    return ImapSource(remote_server(f"{scheme}://{server.place}"), seconds, **more)


def answering(answer: bytes, seen: list[bytes] | None = None, greeting: bytes = GREETING) -> Script:
    """Say that to LOGIN, a ``%t`` in it being the tag; ``seen`` gets the command."""

    def script(peer: Peer) -> None:
        peer.say(greeting)
        command = peer.line()
        if seen is not None:
            seen.append(command)
        peer.say(answer.replace(b"%t", command.partition(b" ")[0]))
        peer.sock.shutdown(socket.SHUT_WR)
        farewell = peer.line()
        if seen is not None:
            seen.append(farewell)

    return script


def understanding(passwords: dict[bytes, bytes]) -> Script:
    """A server as RFC 9051 has it: quoted strings and literals; it knows these people."""

    def script(peer: Peer) -> None:
        peer.say(GREETING)
        tag, verb, rest = peer.line().split(b" ", 2)
        if verb != b"LOGIN":
            return
        words = []
        while rest != b"\r\n":
            rest = rest.removeprefix(b" ")
            if quoted := re.match(rb'"((?:[^\r\n"\\\x80-\xff]|\\["\\])*)"', rest):
                words.append(re.sub(rb"\\(.)", rb"\1", quoted[1]))
                rest = rest[quoted.end() :]
            elif literal := re.fullmatch(rb"\{([0-9]+)\}\r\n", rest):
                peer.say(b"* OK wait\r\n+ go on\r\n")
                words.append(peer.read(int(literal[1])))
                rest = peer.line()
            else:
                peer.say(tag + b" BAD what?\r\n")
                return
        user, password = words
        good = passwords.get(user) == password
        peer.say(b"* CAPABILITY IMAP4rev1\r\n" + tag + (b" OK in" if good else b" NO no") + b"\r\n")
        peer.line()

    return script


PEOPLE = {
    "bobby": b"FooBar",
    "chloe@example.org": b'"\\quoted" {6}\\',
    'a"b\\c d': b" ",
    "jörg": "pässwörd".encode(),
    "tab": b"a\tb\x7f",
    "raw": b"\xff\xfe",
    "long": b"x" * 1000,
    "brace {3}": b"{3}",
    "percent%": b"%s%d",
    "пользователь": b"plain",
}


@pytest.fixture(scope="module")
def honest() -> Iterator[Server]:
    with serving(understanding({u.encode(): p for u, p in PEOPLE.items()})) as server:
        yield server


@pytest.mark.parametrize("user", PEOPLE)
def test_name_and_password_arrive_as_they_are(honest, user):
    source = asking(honest)
    assert source.check(Password(user, PEOPLE[user])) is YES
    assert source.check(Password(user, PEOPLE[user][:-1] + b"?")) is NO
    assert source.check(Password("nobody", PEOPLE[user])) is NO


def test_the_command_is_one_line_and_a_farewell_follows():
    seen = []
    with serving(answering(b"%t OK in\r\n", seen)) as server:
        assert asking(server).check(BOBBY) is YES
    assert re.fullmatch(rb'[0-9a-f]{8} LOGIN "bobby" "FooBar"\r\n', seen[0])
    assert re.fullmatch(rb"\w+ LOGOUT\r\n", seen[1])


def test_it_is_called_imap_and_wants_the_password_itself():
    source = ImapSource(remote_server("imap://127.0.0.1:1"), 1)
    assert source.name == "imap"
    assert source.mechanisms == {"PLAIN", "LOGIN"}


@pytest.mark.parametrize(
    "credentials",
    [
        CramMd5("bobby", b"0" * 32, b"<1@x>"),
        *[Password("bobby", b"Foo" + octet + b"Bar") for octet in (b"\r", b"\n", b"\0", b"\r\n")],
        *[Password(f"bob{sign}by", b"x") for sign in ("\r", "\n", "\0", "\x7f", "\udcff", "/")],
        Password("", b"x"),
        Password("b" * 256, b"x"),
        Password("bobby", b"x" * 1001),
        Password("bobby", b"x\r\nz LOGOUT"),
        Password('bobby" "x"\r\nz NOOP', b"x"),
    ],
    ids=repr,
)
def test_nobody_is_asked_about_what_cannot_be_right(credentials):
    with serving(answering(b"%t OK in\r\n")) as server:
        assert asking(server).check(credentials) is NO
        assert server.connections == 0


# What counts as an answer


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"%t OK\r\n", YES),
        (b"%t ok logged in\r\n", YES),
        (b"%t OK [CAPABILITY IMAP4rev1] in\r\n", YES),
        (b"%t OK in\n", YES),
        (b"* CAPABILITY x\r\n* 3 EXISTS\r\n%t OK in\r\n", YES),
        (b"* OK [ALERT] say {braces}\r\n%t OK in\r\n", YES),
        (b"%t OK \xff\x00\r\n", YES),
        (b"%t NO\r\n", NO),
        (b"%t NO [AUTHENTICATIONFAILED] no\r\n", NO),
        (b"%t no [AUTHENTICATIONFAILED]\r\n", NO),
        (b"%t NO [EXPIRED] too old\r\n", NO),
        (b"%t NO [X-OTHER thing] no\r\n", NO),
        (b"%t NO no [UNAVAILABLE]\r\n", NO),
        # It could not tell (RFC 5530)
        (b"%t NO [UNAVAILABLE] later\r\n", MAYBE),
        (b"%t NO [unavailable]\r\n", MAYBE),
        (b"%t NO [PRIVACYREQUIRED] TLS first\r\n", MAYBE),
        (b"%t NO [SERVERBUG] oh\r\n", MAYBE),
        (b"%t NO [LIMIT 3] too many\r\n", MAYBE),
        (b"%t NO [INUSE] locked\r\n", MAYBE),
        (b"%t BAD\r\n", MAYBE),
        (b"%t BAD [AUTHENTICATIONFAILED] what\r\n", MAYBE),
        # No answers
        (b"", MAYBE),
        (b"%t OK", MAYBE),
        (b"%t OKAY\r\n", MAYBE),
        (b"%t  OK\r\n", MAYBE),
        (b" %t OK\r\n", MAYBE),
        (b"%t\r\n", MAYBE),
        (b"%tOK in\r\n", MAYBE),
        (b"%t0 OK in\r\n", MAYBE),
        (b"00000000 OK in\r\n", MAYBE),
        (b"a OK in\r\n", MAYBE),
        (b"* OK in\r\n", MAYBE),
        (b"* OK in\r\n\r\n%t OK\r\n", MAYBE),
        (b"*\r\n%t OK in\r\n", MAYBE),
        (b"+ go on\r\n%t OK in\r\n", MAYBE),
        (b"OK in\r\n%t OK in\r\n", MAYBE),
        (b"%t BYE\r\n", MAYBE),
        (b"* BYE\r\n", MAYBE),
        (b'%t LOGIN "bobby" "FooBar"\r\n', MAYBE),
        (b"\0\xff\r\n", MAYBE),
        (b"* NO {20}\r\n%t OK in, or is it?\r\n", MAYBE),
        (b"* NO {20+}\r\n%t OK in, or is it?\r\n", MAYBE),
        (b"* LIST {99999999999999999999}\r\n", MAYBE),
    ],
)
def test_only_a_clear_answer_is_a_verdict(answer, verdict):
    with serving(answering(answer)) as server:
        assert asking(server).check(BOBBY) is verdict


@pytest.mark.parametrize("greeting", [b"* OK\r\n", b"* ok ready\r\n", b"* OK ready\n"])
def test_a_greeting_is_ok(greeting):
    with serving(answering(b"%t OK\r\n", greeting=greeting)) as server:
        assert asking(server).check(BOBBY) is YES


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"* OK ready",
        b"* BYE busy\r\n",
        b"* PREAUTH hello bobby\r\n",
        b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready\r\n",
        b"220 mail.example ESMTP\r\n",
        b"+OK ready\r\n",
        b"*OK\r\n",
        b"* OKAY\r\n",
        b"\r\n* OK\r\n",
        b"\x16\x03\x01\0\r\n",
    ],
)
def test_with_another_greeting_the_password_is_not_sent(greeting, caplog):
    seen = []

    def script(peer: Peer) -> None:
        peer.say(greeting)
        peer.sock.shutdown(socket.SHUT_WR)
        seen.append(peer.line())

    with serving(script) as server:
        assert asking(server).check(BOBBY) is MAYBE
    assert seen == [b""]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"imap 127.0.0.1:{server.port} unavailable: ")


@pytest.mark.parametrize(
    "reply",
    [b"%t OK in\r\n", b"%t NO no\r\n", b"%t BAD no literals\r\n", b"", b"\r\n", b"* OK\r\n"],
)
def test_a_verdict_before_the_password_was_sent_does_not_count(reply):
    seen = []
    with serving(answering(reply, seen)) as server:
        assert asking(server).check(Password("bobby", b"p\xe4ss")) is MAYBE
    assert seen[0].endswith(b'LOGIN "bobby" {4}\r\n')
    assert b"p\xe4ss" not in b"".join(seen)


def test_no_answer_can_be_prepared_before_the_command():
    seen = []
    with serving(answering(b"%t OK in\r\n", seen)) as server:
        assert [asking(server).check(BOBBY) for _ in range(10)] == [YES] * 10
    tags = {line.split()[0] for line in seen if b"LOGIN" in line}
    assert len(tags) == 10


def test_one_who_repeats_the_command_does_not_accept_it():
    def echo(peer: Peer) -> None:
        peer.say(GREETING)
        while line := peer.line():
            peer.say(line)

    with serving(echo) as server:
        for password in (b"FooBar", b"p\xe4ss"):
            assert asking(server).check(Password("ok", password)) is MAYBE


# The log


SECRET = b"Sesame"


@pytest.mark.parametrize(
    "answer",
    [
        b'%t BAD LOGIN "bobby" "Sesame"\r\n',
        b"%t BAD [SESAME] Sesame\r\n",
        b"%t NO [UNAVAILABLE] Sesame\r\n",
        b"* BYE Sesame\r\n",
        b"Sesame\r\n",
        b"+ Sesame\r\n",
        b"Sesame OK Sesame\r\n",
        b"%t OK Sesame\r\n",
        b"%t NO Sesame\r\n",
        b"* X Sesame {6}\r\n",
    ],
)
def test_no_password_is_logged_even_if_the_server_repeats_it(answer, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(answering(answer)) as server:
        asking(server).check(Password("bobby", SECRET))
    assert "sesame" not in caplog.text.lower()


def test_trouble_is_one_line_and_a_verdict_is_none(caplog):
    with serving(answering(b"%t BAD\r\n", greeting=b"* OK \x1b[1m\xff\r\n")) as server:
        assert asking(server).check(BOBBY) is MAYBE
        server.script = answering(b"%t NO\r\n")
        assert asking(server).check(BOBBY) is NO
        server.script = answering(b"%t OK\r\n")
        assert asking(server).check(BOBBY) is YES
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    where = f"imap 127.0.0.1:{server.port}"
    assert record.getMessage() == f"{where} unavailable: its answer to LOGIN is BAD"


def test_a_strange_greeting_is_shown_printable_and_short(caplog):
    with serving(answering(b"", greeting=b"\x1b[31m\r" + b"x" * 5000 + b"\r\n")) as server:
        assert asking(server).check(BOBBY) is MAYBE
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 300


# Time


def stall_after_greeting(peer: Peer) -> None:
    peer.say(GREETING)
    peer.stall()


def stall_within_an_answer(peer: Peer) -> None:
    peer.say(GREETING + b"* OK")
    peer.stall()


def drip_a_greeting(peer: Peer) -> None:
    peer.drip(b"* OK " + b"x" * 1000)


def drip_lines(peer: Peer) -> None:
    peer.say(GREETING)
    peer.drip(b"* OK\r\n")


def drip_an_answer(peer: Peer) -> None:
    peer.say(GREETING)
    peer.drip(peer.line().partition(b" ")[0] + b" OK " + b"x" * 1000)


def stall_after_continuation(peer: Peer) -> None:
    peer.say(GREETING + b"+ go on\r\n")
    peer.stall()


SLOW = [
    stall,
    stall_after_greeting,
    stall_within_an_answer,
    drip_a_greeting,
    drip_lines,
    drip_an_answer,
]


@pytest.mark.parametrize(
    ("script", "password"),
    [
        *[(script, b"FooBar") for script in SLOW],
        (stall_after_greeting, b"p\xe4ss"),
        (stall_after_continuation, b"p\xe4ss"),
    ],
)
def test_a_whole_attempt_is_limited_in_time(script, password):
    with serving(script) as server:
        verdict, seconds = elapsed(asking(server, SHORT_SECONDS), Password("bobby", password))
    assert verdict is MAYBE
    assert SHORT_SECONDS <= seconds < SHORT_SECONDS + 2


@pytest.mark.parametrize(
    "script", [stall, lambda peer: peer.drip(b"\x16\x03\x03\x40\x00" + b"x" * 1000)]
)
def test_a_tls_handshake_is_limited_in_time(script):
    with serving(script) as server:
        source = asking(server, SHORT_SECONDS, "imaps")
        verdict, seconds = elapsed(source)
    assert verdict is MAYBE
    assert SHORT_SECONDS <= seconds < SHORT_SECONDS + 2


def test_a_name_that_is_looked_up_for_ever_is_limited_in_time(monkeypatch, caplog):
    ending = threading.Event()
    real = socket.getaddrinfo

    def slow(*arguments, **settings):
        ending.wait(PATIENCE_SECONDS)
        return real("127.0.0.1", 1)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    verdict, seconds = elapsed(ImapSource(remote_server("imap://mail.example"), SHORT_SECONDS))
    ending.set()
    assert verdict is MAYBE
    assert SHORT_SECONDS <= seconds < SHORT_SECONDS + 2
    assert "look-up" in caplog.text


def test_several_addresses_together_are_limited_in_time(monkeypatch):
    with deaf() as place:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses(place, place, place))
        verdict, seconds = elapsed(ImapSource(remote_server("imap://mail.example"), SHORT_SECONDS))
    assert verdict is MAYBE
    assert seconds < SHORT_SECONDS + 2


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch):
    with serving(answering(b"%t OK\r\n")) as server, deaf() as place:
        good = ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses(place, good))
        assert ImapSource(remote_server("imap://mail.example"), 0.6).check(BOBBY) is YES


# Trouble of all kinds


def test_a_server_that_is_not_there_is_unavailable(caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        source = ImapSource(remote_server(f"imap://127.0.0.1:{port}"), PATIENCE_SECONDS)
        assert source.check(BOBBY) is MAYBE
    (record,) = caplog.records
    assert record.getMessage().endswith("Connection refused")


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), None])
def test_a_name_without_address_is_unavailable(monkeypatch, error):
    def find(*_, **__):
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(socket, "getaddrinfo", find)
    assert ImapSource(remote_server("imap://mail.example"), 1).check(BOBBY) is MAYBE


@pytest.mark.parametrize("scheme", ["imap", "imaps"])
@pytest.mark.parametrize("host", ["", "a" * 64, "a..b", "\0", "\udcff", "fe80::1%x\0"])
def test_a_host_that_no_resolver_takes_is_unavailable(scheme, host):
    verdict, seconds = elapsed(ImapSource(RemoteServer(scheme, host, 1), PATIENCE_SECONDS))
    assert verdict is MAYBE
    assert seconds < PATIENCE_SECONDS / 2


def test_a_process_without_room_for_a_thread_is_unavailable(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert ImapSource(remote_server("imap://127.0.0.1"), 1).check(BOBBY) is MAYBE


def test_an_address_of_a_family_that_is_not_there_is_passed_over(monkeypatch):
    with serving(answering(b"%t OK\r\n")) as server:
        places = addresses(("127.0.0.1", server.port))
        odd = (12345, socket.SOCK_STREAM, 0, "", ("::1", 1))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [odd, *places])
        assert ImapSource(remote_server("imap://mail.example"), 5).check(BOBBY) is YES


def endless(octets: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        while not peer.ending.is_set():
            peer.say(octets)

    return script


@pytest.mark.parametrize(
    "octets",
    [b"x" * 5000, b"* OK\r\n" * 1000, b"\0", b"\n", b"\r\n", b"* X {9999999999}\r\n", b"+ \r\n"],
)
@pytest.mark.parametrize("password", [b"FooBar", b"p\xe4ss"])
def test_endless_talk_is_unavailable_at_once(octets, password):
    with serving(endless(octets)) as server:
        verdict, seconds = elapsed(asking(server), Password("bobby", password))
    assert verdict is MAYBE
    assert seconds < PATIENCE_SECONDS / 2


@pytest.mark.parametrize("scheme", ["imap", "imaps"])
def test_a_connection_that_is_reset_is_unavailable_and_leaves_nothing_open(scheme):
    with serving(reset_at_close) as server:
        before = len(os.listdir("/proc/self/fd"))
        source = asking(server, scheme=scheme)
        assert [source.check(BOBBY) for _ in range(20)] == [MAYBE] * 20
    assert len(os.listdir("/proc/self/fd")) < before


def test_one_who_hangs_up_after_the_verdict_has_given_it():
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        tag = peer.line().partition(b" ")[0]
        reset_at_close(peer)
        peer.say(tag + b" OK in\r\n")

    with serving(script) as server:
        source = asking(server)
        assert [source.check(BOBBY) for _ in range(50)] == [YES] * 50


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    greeting=st.one_of(st.just(GREETING), st.binary(max_size=50)),
    answer=st.one_of(
        st.binary(max_size=100),
        st.lists(
            st.sampled_from(
                [
                    b"%t",
                    b" ",
                    b"OK",
                    b"NO",
                    b"BAD",
                    b"[",
                    b"]",
                    b"*",
                    b"+",
                    b"\r\n",
                    b"{4}",
                    b"\xff",
                ]
            ),
            max_size=12,
        ).map(b"".join),
    ),
    password=st.one_of(st.just(b"FooBar"), st.just(b"p\xe4ss"), st.binary(max_size=30)),
)
def test_only_a_tagged_ok_lets_anybody_in(noisy, greeting, answer, password):
    def script(peer: Peer) -> None:
        peer.say(greeting)
        if b"\n" not in greeting:  # it would be waited for
            return
        command = peer.line()
        if command.endswith(b"}\r\n"):
            peer.say(b"+\r\n")
            peer.line()
        peer.say(answer.replace(b"%t", command.partition(b" ")[0]))

    noisy.script = script
    verdict = asking(noisy).check(Password("bobby", password))
    if verdict is YES:
        lines = answer.split(b"\n")
        assert any(re.match(rb"%t OK( |\r?$)", line) for line in lines)
        assert re.match(rb"(?i)\* ok", greeting)


@pytest.fixture
def noisy() -> Iterator[Server]:
    with serving(stall) as server:
        yield server


def test_many_threads_get_their_own_verdicts(honest):
    source = asking(honest)
    logins = [
        (Password(user, PEOPLE[user] if right else b"wrong"), YES if right else NO)
        for user in PEOPLE
        for right in (True, False)
    ] * 5
    with ThreadPoolExecutor(20) as pool:
        verdicts = list(pool.map(source.check, [login for login, _ in logins]))
    assert verdicts == [verdict for _, verdict in logins]


# TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server with a certificate for 127.0.0.1, and the file that vouches for it."""
    context, certificate = server_context(tmp_path_factory.mktemp("tls"))
    inner = understanding({b"bobby": b"FooBar", "jörg".encode(): b"\xff"})
    with serving(within_tls(context, inner)) as server:
        yield server, certificate


def test_imaps_is_imap_within_tls(tls):
    server, certificate = tls
    source = asking(server, scheme="imaps", tls=RemoteTls(certificate))
    assert source.check(BOBBY) is YES
    assert source.check(Password("jörg", b"\xff")) is YES
    assert source.check(Password("bobby", b"foobar")) is NO


def test_a_certificate_that_nobody_vouches_for_is_unavailable(tls, caplog):
    server, _ = tls
    source = asking(server, scheme="imaps")
    assert source.check(BOBBY) is MAYBE
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


def test_a_certificate_for_another_host_is_unavailable(tls, caplog):
    server, certificate = tls
    url = f"imaps://localhost:{server.port}"
    source = ImapSource(remote_server(url), PATIENCE_SECONDS, None, RemoteTls(certificate))
    assert source.check(BOBBY) is MAYBE
    assert "Hostname mismatch" in caplog.text


def test_tls_to_one_who_speaks_none_and_none_to_one_who_wants_it_are_unavailable(tls, honest):
    plain = asking(tls[0], SHORT_SECONDS)
    secure = asking(honest, scheme="imaps")
    assert plain.check(BOBBY) is MAYBE
    assert secure.check(BOBBY) is MAYBE


@pytest.mark.parametrize("script", [stall, stall_after_greeting, drip_a_greeting, drip_lines])
def test_a_whole_attempt_within_tls_is_limited_in_time(tmp_path, script):
    context, certificate = server_context(tmp_path)
    with serving(within_tls(context, script)) as server:
        verdict, seconds = elapsed(
            asking(server, SHORT_SECONDS, "imaps", tls=RemoteTls(certificate))
        )
    assert verdict is MAYBE
    assert SHORT_SECONDS <= seconds < SHORT_SECONDS + 2


def test_authorities_that_cannot_be_loaded_are_an_error_at_the_start(tmp_path):
    server = remote_server("imaps://mail.example")
    with pytest.raises(OSError, match="No such file"):
        ImapSource(server, 1, None, RemoteTls(str(tmp_path / "missing")))


# STARTTLS


@pytest.fixture
def _elsewhere(monkeypatch):
    """The server counts as one on another machine."""
    monkeypatch.setattr("tofmipd.auth.dialogue.is_near", lambda address: False)


def starting_tls(
    context: ssl.SSLContext, inner: Script, seen: list[bytes], injected: bytes = b""
) -> Script:
    """Take STARTTLS, and go on as ``inner`` does behind its greeting."""

    def silent(peer: Peer) -> None:
        say = peer.say
        peer.say = lambda octets: None if octets == GREETING else say(octets)
        inner(peer)

    def script(peer: Peer) -> None:
        peer.say(GREETING.replace(b"IMAP4rev1", b"IMAP4rev1 STARTTLS LOGINDISABLED"))
        command = peer.line()
        seen.append(command.partition(b" ")[2])
        peer.say(b"* OK yes\r\n" + command.partition(b" ")[0] + b" OK go\r\n" + injected)
        within_tls(context, silent)(peer)

    return script


@pytest.mark.usefixtures("_elsewhere")
def test_another_machine_gets_no_password_before_starttls(tmp_path):
    context, certificate = server_context(tmp_path)
    seen = []
    script = starting_tls(context, understanding({b"bobby": b"FooBar"}), seen)
    with serving(script) as server:
        source = asking(server, tls=RemoteTls(certificate))
        assert source.check(BOBBY) is YES
        assert source.check(Password("bobby", b"x")) is NO
        assert asking(server).check(BOBBY) is MAYBE  # nobody vouches for it
        assert asking(server, tls=RemoteTls(verified=False)).check(BOBBY) is YES
    assert set(seen) == {b"STARTTLS\r\n"}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    "answer",
    [
        *[
            b"%t NO no\r\n",
            b"%t BAD what\r\n",
            b"00000000 OK go\r\n",
            b"* OK go\r\n",
            b"+ go\r\n",
            b"",
        ],
        # what comes before the handshake has come from anybody
        *[b"%t OK go\r\n%t OK in\r\n", b"%t OK go\r\n* CAPABILITY x\r\n", b"* X {9}\r\n"],
    ],
)
def test_one_who_takes_no_starttls_or_says_more_gets_no_password(answer):
    seen = []
    with serving(answering(answer, seen)) as server:
        assert asking(server).check(BOBBY) is MAYBE
    assert seen[0].endswith(b" STARTTLS\r\n")
    assert b"FooBar" not in b"".join(seen)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("injected", [b"* OK\r\n", b"+ go on\r\n", b"x"])
def test_what_was_said_before_the_handshake_is_no_answer_after_it(tmp_path, injected):
    context, certificate = server_context(tmp_path)
    script = starting_tls(context, understanding({b"bobby": b"FooBar"}), [], injected)
    with serving(script) as server:
        source = asking(server, tls=RemoteTls(certificate))
        assert source.check(BOBBY) is MAYBE
        assert source.check(Password("bobby", b"p\xe4ss")) is MAYBE


@pytest.mark.usefixtures("_elsewhere")
def test_where_it_is_allowed_the_password_goes_in_the_clear(honest):
    assert asking(honest, tls=RemoteTls(demanded=False)).check(BOBBY) is YES


@pytest.mark.parametrize(
    ("address", "near"),
    [
        *[("127.0.0.1", True), ("127.255.0.9", True), ("::1", True), ("192.0.2.1", False)],
        *[("::ffff:192.0.2.1", False), ("fe80::1%lo", False), ("::", False), ("0.0.0.0", False)],
    ],
)
def test_only_loopback_is_this_machine(address, near):
    assert is_near(address) is near


# The map of local addresses


def write_map(path, *lines):
    path.write_text("\n".join([*lines, ""]))
    return IpMap(str(path))


def test_the_local_address_chooses_host_and_port(tmp_path):
    with (
        serving(answering(b"%t OK\r\n")) as first,
        serving(answering(b"%t NO\r\n"), "127.0.0.2") as second,
        serving(answering(b"%t BAD\r\n")) as usual,
    ):
        ipmap = write_map(
            tmp_path / "ipauthmap",
            f"192.0.2.1 127.0.0.1 {first.port}",
            f"2001:db8::1 127.0.0.2 {second.port}",
        )
        source = ImapSource(remote_server(f"imap://0.0.0.0:{usual.port}"), 5, ipmap)
        asked = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "192.0.2.9", ""]
        verdicts = [source.check(BOBBY, Origin("", local)) for local in asked]
        assert verdicts == [YES, YES, NO, MAYBE, MAYBE]
        assert (first.connections, second.connections, usual.connections) == (2, 1, 2)
        assert source.check(BOBBY) is MAYBE


def test_a_port_that_the_map_does_not_tell_is_that_of_the_url(tmp_path):
    with serving(answering(b"%t OK\r\n"), "127.0.0.3") as server:
        ipmap = write_map(tmp_path / "ipauthmap", "192.0.2.1 127.0.0.3")
        source = ImapSource(remote_server(f"imap://0.0.0.0:{server.port}"), 5, ipmap)
        assert source.check(BOBBY, Origin("", "192.0.2.1")) is YES


def test_the_certificate_must_be_good_for_the_server_of_the_map(tls, tmp_path):
    server, certificate = tls
    ipmap = write_map(tmp_path / "ipauthmap", "192.0.2.1 127.0.0.1", "192.0.2.2 127.0.0.2")
    url = f"imaps://0.0.0.0:{server.port}"
    source = ImapSource(remote_server(url), 5, ipmap, RemoteTls(certificate))
    assert source.check(BOBBY, Origin("", "192.0.2.1")) is YES
    assert source.check(BOBBY, Origin("", "192.0.2.2")) is MAYBE


def test_with_any_other_host_the_map_does_not_matter(tmp_path):
    with serving(answering(b"%t OK\r\n")) as server:
        ipmap = write_map(tmp_path / "ipauthmap", "192.0.2.1 127.0.0.9 1")
        source = ImapSource(remote_server(f"imap://127.0.0.1:{server.port}"), 5, ipmap)
        assert source.check(BOBBY, Origin("", "192.0.2.1")) is YES


def test_an_ipv6_server_is_asked_too():
    try:
        server = Server(answering(b"%t OK\r\n"), "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        source = ImapSource(remote_server(f"imap://[::1]:{server.port}"), 5)
        assert source.check(BOBBY) is YES
    finally:
        server.close()
