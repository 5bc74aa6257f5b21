"""Logins judged by a POP3 server: USER and PASS, APOP, STLS, and hostile servers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import threading
import time
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
    elapsed,
    reset_at_close,
    serving,
    stall,
    within_tls,
)
from fakes import PATIENCE_SECONDS, server_context, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tofmipd.auth import asking as asking_module
from tofmipd.auth import pop3
from tofmipd.auth.credentials import CramMd5, Origin, Password
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.pop3 import Pop3Source
from tofmipd.auth.remote import RemoteTls, remote_server

STAMP = b"<1896.697170952@dbc.mtview.ca.us>"
GREETING = b"+OK POP3 server ready " + STAMP + b"\r\n"


def asking(
    server: Server,
    seconds: float = PATIENCE_SECONDS,
    scheme: str = "pop3",
    tls: RemoteTls = RemoteTls(),
    at_once: int = 16,
) -> Pop3Source:
    url = f"{scheme}://{server.place}"
    return Pop3Source(remote_server(url), seconds, None, tls, at_once)


def answering(*answers: bytes, seen: list[bytes] | None = None, greeting=GREETING) -> Script:
    """Say these, one to each command; ``seen`` gets the commands."""

    def script(peer: Peer) -> None:
        peer.say(greeting)
        for answer in answers:
            command = peer.line()
            if seen is not None:
                seen.append(command)
            if not command:
                return
            peer.say(answer)
        peer.sock.shutdown(socket.SHUT_WR)
        if seen is not None:
            seen.append(peer.line())

    return script


def understanding(passwords: dict[bytes, bytes], greeting: bytes = GREETING) -> Script:
    """A server as RFC 1939 has it, that knows these people."""

    def script(peer: Peer) -> None:
        peer.say(greeting)
        user = b""
        while (line := peer.line()).endswith(b"\r\n"):
            verb, _, rest = line.removesuffix(b"\r\n").partition(b" ")
            good = True
            if verb == b"USER":
                user = rest
            elif verb == b"PASS":
                good = passwords.get(user) == rest
            elif verb == b"APOP":
                user, _, digest = rest.partition(b" ")
                own = hashlib.md5(STAMP + passwords.get(user, b"")).hexdigest().encode()
                good = user in passwords and digest == own
            peer.say(b"+OK in\r\n" if good else b"-ERR [AUTH] no\r\n")
            if verb == b"QUIT":
                return

    return script


PEOPLE = {
    "bobby": b"FooBar",
    "chloe@example.org": b" a b ",
    "jörg": "pässwörd".encode(),
    "raw": b"\xff\xfe\x01\t",
    "long": b"x" * 243,
    "percent%": b"%s%d",
}


@pytest.fixture(scope="module")
def honest():
    with serving(understanding({u.encode(): p for u, p in PEOPLE.items()})) as server:
        yield server


@pytest.mark.parametrize("scheme", ["pop3", "apop"])
@pytest.mark.parametrize("user", PEOPLE)
def test_name_and_password_arrive_as_they_are(honest, user, scheme):
    source = asking(honest, scheme=scheme)
    assert source.check(Password(user, PEOPLE[user])) is YES
    assert source.check(Password(user, PEOPLE[user][:-1] + b"?")) is NO
    assert source.check(Password("nobody", PEOPLE[user])) is NO


def test_the_commands_are_user_and_pass_and_a_farewell_follows():
    seen = []
    with serving(answering(b"+OK\r\n", b"+OK\r\n", seen=seen)) as server:
        assert asking(server).check(BOBBY) is YES
    assert seen == [b"USER bobby\r\n", b"PASS FooBar\r\n", b"QUIT\r\n"]


def test_the_example_of_apop_comes_out_to_the_octet():
    """RFC 1939 section 7."""
    seen = []
    with serving(answering(b"+OK\r\n", seen=seen)) as server:
        source = asking(server, scheme="apop")
        assert source.check(Password("mrose", b"tanstaaf")) is YES
    assert seen == [b"APOP mrose c4c9334bac560ecc979e58001b3e22fb\r\n", b"QUIT\r\n"]


def test_each_wants_the_password_itself_and_has_its_name():
    for scheme, name in (("pop3", "pop3"), ("pop3s", "pop3"), ("apop", "apop")):
        source = Pop3Source(remote_server(f"{scheme}://127.0.0.1:1"), 1)
        assert (source.name, source.mechanisms) == (name, {"PLAIN", "LOGIN"})


@pytest.mark.parametrize("scheme", ["pop3", "apop"])
@pytest.mark.parametrize(
    "credentials",
    [
        CramMd5("bobby", b"0" * 32, b"<1@x>"),
        *[Password("bobby", b"Foo" + octet + b"Bar") for octet in (b"\r", b"\n", b"\0", b"\r\n")],
        *[
            Password(f"bob{sign}by", b"x")
            for sign in ("\r", "\n", "\0", "\x7f", "\udcff", "/", " ")
        ],
        Password("", b"x"),
        # a command has 255 octets at most (RFC 2449 section 4)
        Password("b" * 244, b"x"),
        Password("ä" * 122, b"x"),
        Password("bobby", b"x" * 244),
        Password("bobby", b"x\r\nDELE 1"),
    ],
    ids=repr,
)
def test_nobody_is_asked_about_what_cannot_be_right(credentials, scheme):
    with serving(answering(b"+OK\r\n", b"+OK\r\n")) as server:
        assert asking(server, scheme=scheme).check(credentials) is NO
        assert server.connections == 0


# What counts as an answer.

ANSWERS = [
    (b"+OK\r\n", YES),
    (b"+ok in\n", YES),
    (b"+OK \xff\0 [AUTH]\r\n", YES),
    (b"-ERR\r\n", NO),
    (b"-err no\r\n", NO),
    (b"-ERR [AUTH] no\r\n", NO),
    (b"-ERR [X-OTHER] no\r\n", NO),
    (b"-ERR no [SYS/TEMP]\r\n", NO),
    # It could not tell (RFC 2449 section 8, RFC 3206)
    (b"-ERR [SYS/TEMP] later\r\n", MAYBE),
    (b"-ERR [SYS/PERM] broken\r\n", MAYBE),
    (b"-ERR [sys/temp/disk]\r\n", MAYBE),
    (b"-ERR [IN-USE] locked\r\n", MAYBE),
    (b"-ERR [LOGIN-DELAY] too soon\r\n", MAYBE),
    # No answers
    *[(octets, MAYBE) for octets in (b"", b"+OK", b"+OKAY\r\n", b" +OK\r\n", b"\r\n", b"+\r\n")],
    *[
        (octets, MAYBE)
        for octets in (b"OK\r\n", b"-ERROR\r\n", b"* OK\r\n", b"250 Ok\r\n", b"\0\n")
    ],
    (b"x\r\n+OK\r\n", MAYBE),
    (b"+OK\r", MAYBE),
]


@pytest.mark.parametrize(("answer", "verdict"), ANSWERS)
def test_only_a_clear_answer_to_the_password_is_a_verdict(answer, verdict):
    with serving(answering(b"+OK\r\n", answer)) as server:
        assert asking(server).check(BOBBY) is verdict
    with serving(answering(answer)) as server:
        assert asking(server, scheme="apop").check(BOBBY) is verdict


@pytest.mark.parametrize(("answer", "verdict"), [row for row in ANSWERS if row[1] is not YES])
def test_a_name_that_is_not_taken_ends_it_before_the_password(answer, verdict):
    seen = []
    with serving(answering(answer, seen=seen)) as server:
        assert asking(server).check(BOBBY) is verdict
    assert seen[0] == b"USER bobby\r\n"
    assert b"FooBar" not in b"".join(seen)


@pytest.mark.parametrize("scheme", ["pop3", "apop"])
@pytest.mark.parametrize(
    "greeting",
    [
        *[b"", b"+OK", b"-ERR busy\r\n", b"-ERR [SYS/TEMP] <1@x>\r\n", b"+OKAY <1@x>\r\n"],
        *[
            b"* OK <1@x>\r\n",
            b"220 mail.example <1@x>\r\n",
            b"\r\n+OK <1@x>\r\n",
            b"\x16\x03\1\0\n",
        ],
    ],
)
def test_with_another_greeting_nothing_is_sent(greeting, scheme, caplog):
    seen = []

    def script(peer: Peer) -> None:
        peer.say(greeting)
        peer.sock.shutdown(socket.SHUT_WR)
        seen.append(peer.line())

    with serving(script) as server:
        assert asking(server, scheme=scheme).check(BOBBY) is MAYBE
    assert seen == [b""]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{scheme} 127.0.0.1:{server.port} unavailable: ")
    assert record.getMessage().isprintable()


@pytest.mark.parametrize(
    "greeting",
    [
        b"+OK ready\r\n",
        b"+OK <no stamp>\r\n",
        b"+OK <@x>\r\n",
        b"+OK <1@>\r\n",
        b"+OK <1@x\r\n",
        # wider forms let a false server find out passwords
        b"+OK <\xff\x80@x>\r\n",
        b"+OK <1\0@x>\r\n",
        b"+OK <1 2@x>\r\n",
    ],
)
def test_apop_is_not_done_without_a_stamp_of_the_form_of_a_message_id(greeting, caplog):
    seen = []
    with serving(answering(b"+OK\r\n", seen=seen, greeting=greeting)) as server:
        assert asking(server, scheme="apop").check(BOBBY) is MAYBE
    assert seen == [b""]
    assert "there is no stamp" in caplog.text


# The log.


@pytest.mark.parametrize(
    "answer",
    [b"+Sesame\r\n", b"-ERR Sesame\r\n", b"-ERR [SYS/TEMP] Sesame\r\n", b"Sesame", b"+OK Sesame\n"],
)
@pytest.mark.parametrize("before", [[], [b"+OK Sesame\r\n"]])
def test_no_password_is_logged_even_if_the_server_repeats_it(answer, before, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(answering(*before, answer)) as server:
        asking(server).check(Password("bobby", b"Sesame"))
    assert "sesame" not in caplog.text.lower()


def test_trouble_is_one_line_and_a_verdict_is_none(caplog):
    with serving(answering(b"+OK\r\n", b"-ERR [SYS/TEMP] \x1b[1m\xff\r\n")) as server:
        assert asking(server).check(BOBBY) is MAYBE
        server.script = answering(b"+OK\r\n", b"-ERR\r\n")
        assert asking(server).check(BOBBY) is NO
        server.script = answering(b"+OK\r\n", b"+OK\r\n")
        assert asking(server).check(BOBBY) is YES
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    where = f"pop3 127.0.0.1:{server.port}"
    assert record.getMessage() == f"{where} unavailable: its answer is -ERR [SYS/TEMP]"


# Trouble of all kinds.


def after_greeting(act) -> Script:
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        act(peer)

    return script


def after_user(act) -> Script:
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        peer.line()
        peer.say(b"+OK\r\n")
        peer.line()
        act(peer)

    return script


SLOW = {
    "stalls": stall,
    "drips a greeting": lambda peer: peer.drip(b"+OK " + b"x" * 1000),
    "stalls after the greeting": after_greeting(stall),
    "stalls after USER": after_user(stall),
    "stalls within an answer": after_user(lambda peer: (peer.say(b"+OK"), stall(peer))),
    "drips an answer": after_user(lambda peer: peer.drip(b"+OK " + b"x" * 1000)),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW)
def test_a_whole_attempt_is_limited_in_time(script):
    with serving(script) as server:
        verdict, seconds = elapsed(asking(server, SHORT_SECONDS))
    assert verdict is MAYBE
    assert SHORT_SECONDS <= seconds < SHORT_SECONDS + 2


@pytest.mark.parametrize("when", [lambda act: act, after_greeting, after_user])
@pytest.mark.parametrize("octets", [b"x" * 5000, b"\0", b"+OK" + b" " * 4000, b"+"])
def test_endless_talk_is_unavailable_at_once(when, octets):
    def flood(peer: Peer) -> None:
        while not peer.ending.is_set():
            peer.say(octets)

    with serving(when(flood)) as server:
        verdict, seconds = elapsed(asking(server))
    assert verdict is MAYBE
    assert seconds < PATIENCE_SECONDS / 2


@pytest.mark.parametrize("when", [lambda act: act, after_greeting, after_user])
@pytest.mark.parametrize("act", [lambda peer: None, reset_at_close], ids=["closes", "resets"])
def test_one_who_hangs_up_is_unavailable_and_leaves_nothing_open(when, act):
    with serving(when(act)) as server:
        before = len(os.listdir("/proc/self/fd"))
        source = asking(server)
        assert [source.check(BOBBY) for _ in range(20)] == [MAYBE] * 20
    assert len(os.listdir("/proc/self/fd")) < before


def test_one_who_hangs_up_after_the_verdict_has_given_it():
    def script(peer: Peer) -> None:
        reset_at_close(peer)
        peer.say(b"+OK in\r\n")

    with serving(after_user(script)) as server:
        source = asking(server)
        assert [source.check(BOBBY) for _ in range(20)] == [YES] * 20


def test_a_server_that_is_not_there_is_unavailable(caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"pop3://127.0.0.1:{probe.getsockname()[1]}"
        assert Pop3Source(remote_server(url), PATIENCE_SECONDS).check(BOBBY) is MAYBE
    (record,) = caplog.records
    assert record.getMessage().endswith("Connection refused")


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


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"+OK", b"-ERR", b" ", b"[AUTH]", b"\r\n", b"\n", b"+", b"OK", b"x"]),
        ),
        max_size=8,
    ).map(b"".join),
    st.binary(max_size=20),
)
def test_only_ok_to_the_password_lets_anybody_in(noisy, answer, password):
    noisy.script = answering(b"+OK\r\n", answer)
    if asking(noisy).check(Password("bobby", password)) is YES:
        assert re.match(rb"(?i)\+OK( |\r?\n)", answer)


@pytest.fixture
def noisy():
    with serving(stall) as server:
        yield server


# A bounded number at a time.


def test_a_server_that_hangs_is_asked_by_so_many_at_a_time_and_no_more():
    now, most = [], []

    def hang(peer: Peer) -> None:
        now.append(peer)
        most.append(len(now))
        peer.line()  # until the client has given up
        now.remove(peer)

    with serving(hang) as server, ThreadPoolExecutor(6) as pool:
        source = asking(server, SHORT_SECONDS, at_once=2)
        begun = time.monotonic()
        assert list(pool.map(source.check, [BOBBY] * 6)) == [MAYBE] * 6
        assert time.monotonic() - begun < SHORT_SECONDS + 2
    assert max(most) <= 2


def test_who_waits_for_a_place_gets_it_when_there_is_one():
    free = threading.Event()

    def hang(peer: Peer) -> None:
        free.wait(PATIENCE_SECONDS)
        understanding({b"bobby": b"FooBar"})(peer)

    with serving(hang) as server, ThreadPoolExecutor(3) as pool:
        source = asking(server, at_once=1)
        verdicts = [pool.submit(source.check, BOBBY) for _ in range(3)]
        wait_for(lambda: server.connections == 1)
        free.set()
        assert [verdict.result() for verdict in verdicts] == [YES] * 3


def test_who_gets_no_place_in_time_is_told_so(caplog):
    with serving(stall) as server:
        source = asking(server, SHORT_SECONDS, at_once=1)
        with source._places:
            assert source.check(BOBBY) is MAYBE
        assert server.connections == 0
    assert "too many logins wait for it" in caplog.text


# TLS.


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The server's side of TLS for 127.0.0.1, and the file that vouches for it."""
    return server_context(tmp_path_factory.mktemp("tls"))


def test_pop3s_is_pop3_within_tls(material):
    context, certificate = material
    with serving(within_tls(context, understanding({b"bobby": b"FooBar"}))) as server:
        source = asking(server, scheme="pop3s", tls=RemoteTls(certificate))
        assert source.check(BOBBY) is YES
        assert source.check(Password("bobby", b"foobar")) is NO


@pytest.mark.parametrize(
    ("trusted", "verified", "verdict"),
    [(True, True, YES), (False, True, MAYBE), (False, False, YES)],
)
def test_a_certificate_must_be_vouched_for_unless_told_otherwise(
    material, trusted, verified, verdict, caplog
):
    context, certificate = material
    with serving(within_tls(context, understanding({b"bobby": b"FooBar"}))) as server:
        tls = RemoteTls(certificate if trusted else "", verified)
        assert asking(server, scheme="pop3s", tls=tls).check(BOBBY) is verdict
    assert ("CERTIFICATE_VERIFY_FAILED" in caplog.text) == (verdict is MAYBE)


@pytest.fixture
def _elsewhere(monkeypatch):
    """The server counts as one on another machine."""
    monkeypatch.setattr("tofmipd.auth.dialogue.is_near", lambda address: False)


def with_stls(context, inner: Script, go_ahead: bytes = b"+OK go\r\n", seen=None) -> Script:
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        command = peer.line()
        if seen is not None:
            seen.append(command)
        peer.say(go_ahead)
        within_tls(context, inner)(peer)

    return script


def silent_about_greeting(script: Script) -> Script:
    """As within STLS, where there is no second greeting."""

    def inner(peer: Peer) -> None:
        say, peer.say = peer.say, lambda octets: None
        peer.say = lambda octets: say(octets) if octets != GREETING else None
        script(peer)

    return inner


@pytest.mark.usefixtures("_elsewhere")
def test_another_machine_gets_no_password_before_stls(material):
    context, certificate = material
    seen = []
    inner = silent_about_greeting(understanding({b"bobby": b"FooBar"}))
    with serving(with_stls(context, inner, seen=seen)) as server:
        source = asking(server, tls=RemoteTls(certificate))
        assert source.check(BOBBY) is YES
        assert source.check(Password("bobby", b"x")) is NO
        assert asking(server).check(BOBBY) is MAYBE
    assert set(seen) == {b"STLS\r\n"}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    "answer", [b"-ERR no\r\n", b"", b"+OKAY\r\n", b"+OK\r\n+OK\r\n", b"+OK go\r\n+OK in\r\n"]
)
def test_one_who_takes_no_stls_or_says_more_gets_no_password(answer):
    seen = []
    with serving(answering(answer, seen=seen)) as server:
        assert asking(server).check(BOBBY) is MAYBE
    assert seen[0] == b"STLS\r\n"
    assert b"FooBar" not in b"".join(seen)


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("injected", [b"+OK\r\n+OK\r\n", b"+OK in\r\n", b"+"])
def test_what_was_said_before_the_handshake_is_no_answer_after_it(material, injected):
    """Whoever is in between has put it behind the go-ahead: it would let anybody in."""
    context, certificate = material
    inner = silent_about_greeting(understanding({b"bobby": b"FooBar"}))
    with serving(with_stls(context, inner, b"+OK go\r\n" + injected)) as server:
        source = asking(server, tls=RemoteTls(certificate))
        assert source.check(Password("bobby", b"wrong")) is MAYBE
        assert source.check(BOBBY) is MAYBE


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("act", [stall, reset_at_close, lambda peer: peer.say(b"x" * 99)])
def test_a_handshake_that_fails_is_unavailable_and_leaves_nothing_open(act, monkeypatch):
    # Records of the log that a test keeps have errors in them, and those have all else.
    monkeypatch.setattr(asking_module.log, "disabled", True)

    def script(peer: Peer) -> None:
        peer.say(GREETING)
        peer.line()
        peer.say(b"+OK\r\n")
        act(peer)

    with serving(script) as server:
        before = len(os.listdir("/proc/self/fd"))
        source = asking(server, SHORT_SECONDS)
        assert [source.check(BOBBY) for _ in range(5)] == [MAYBE] * 5
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(("scheme", "demanded"), [("pop3", False), ("apop", True)])
def test_where_nothing_shows_the_password_or_it_is_allowed_there_is_no_stls(
    honest, scheme, demanded
):
    assert asking(honest, scheme=scheme, tls=RemoteTls(demanded=demanded)).check(BOBBY) is YES


def test_on_this_machine_there_is_no_stls(honest):
    assert asking(honest).check(BOBBY) is YES


# The map of local addresses.


def test_the_local_address_chooses_host_and_port(tmp_path):
    with (
        serving(answering(b"+OK\r\n", b"+OK\r\n")) as first,
        serving(answering(b"-ERR\r\n")) as usual,
    ):
        path = tmp_path / "ipauthmap"
        path.write_text(f"192.0.2.1 127.0.0.1 {first.port}\n")
        url = f"pop3://0.0.0.0:{usual.port}"
        source = Pop3Source(remote_server(url), 5, IpMap(str(path)))
        assert source.check(BOBBY, Origin("", "192.0.2.1")) is YES
        assert source.check(BOBBY, Origin("", "192.0.2.9")) is NO


def test_authorities_that_cannot_be_loaded_are_an_error_at_the_start(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Pop3Source(remote_server("pop3://h"), 1, None, RemoteTls(str(tmp_path / "missing")))


def test_every_parser_is_given_noise():
    for octets in (b"", b"\xff", b"+OK [", b"-ERR []", b"-ERR [[]]", b"+OK\n", b"x" * 10_000):
        with contextlib.suppress(pop3.NoVerdict):
            assert pop3._status(octets)[0] in (b"+OK", b"-ERR")
