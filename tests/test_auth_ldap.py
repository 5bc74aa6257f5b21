"""Logins judged by a directory: what is sent, what counts as an answer, and hostile servers.

The servers here speak as much of LDAP as a bind takes (RFC 4511), and are not made with the
library that is tested through them.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("ldap3", reason="ldap3 is not installed")

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
)
from fakes import PATIENCE_SECONDS, server_context
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tofmipd.auth import ldap
from tofmipd.auth.credentials import CramMd5, Origin, Password
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.ldap import LdapSource
from tofmipd.auth.remote import RemoteTls, remote_server

DN = "uid=%s,ou=people,dc=example"
BOBBY_DN = b"uid=bobby,ou=people,dc=example"


# Basic encoding rules, as far as they are needed.


def tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def integer(number: int, tag: int = 2) -> bytes:
    return tlv(tag, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def message(number: int, operation: bytes) -> bytes:
    return tlv(0x30, integer(number), operation)


def result(tag: int, code: int, words: bytes = b"", more: bytes = b"", dn: bytes = b"") -> bytes:
    return tlv(tag, integer(code, 10), tlv(4, dn), tlv(4, words), more)


BIND, BIND_ANSWER, UNBIND, EXTENDED, EXTENDED_ANSWER = 0x60, 0x61, 0x42, 0x77, 0x78
START_TLS = b"1.3.6.1.4.1.1466.20037"


class Request(NamedTuple):
    number: int
    tag: int
    parts: tuple[bytes, ...]


def elements(octets: bytes) -> list[tuple[int, bytes]]:
    found = []
    while octets:
        tag, size, start = octets[0], octets[1], 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(octets[2:start], "big")
        found.append((tag, octets[start : start + size]))
        octets = octets[start + size :]
    return found


def request(peer: Peer) -> Request | None:
    """The next request; None at the end."""
    head = peer.read(2)
    if len(head) < 2:
        return None
    size = head[1]
    if size & 0x80:
        size = int.from_bytes(peer.read(size & 0x7F), "big")
    (_, number), (tag, operation), *_ = elements(peer.read(size))
    parts = () if tag == UNBIND else tuple(part for _, part in elements(operation))
    return Request(int.from_bytes(number, "big"), tag, parts)


def answering(
    make: Callable[[int], bytes] | int, seen: list[Request] | None = None, then=None
) -> Script:
    """Answer a bind with a result code, or with what is made of the number of the request."""

    def script(peer: Peer) -> None:
        asked = request(peer)
        if seen is not None:
            seen.append(asked)
        if asked is None:
            return
        if isinstance(make, int):
            peer.say(message(asked.number, result(BIND_ANSWER, make)))
        else:
            peer.say(make(asked.number))
        if then is not None:
            then(peer)
        peer.sock.shutdown(socket.SHUT_WR)
        while (asked := request(peer)) is not None:
            if seen is not None:
                seen.append(asked)

    return script


def understanding(passwords: dict[bytes, bytes]) -> Script:
    """A directory that knows these, and lets in whoever shows no password (RFC 4513 5.1.2)."""

    def script(peer: Peer) -> None:
        asked = request(peer)
        if asked is not None and asked.tag == BIND:
            _, dn, password = asked.parts
            good = not password or passwords.get(dn) == password
            peer.say(message(asked.number, result(BIND_ANSWER, 0 if good else 49)))
            request(peer)

    return script


def asking(
    server: Server,
    seconds: float = PATIENCE_SECONDS,
    scheme: str = "ldap",
    tls: RemoteTls = RemoteTls(),
    dn: str = DN,
) -> LdapSource:
    return LdapSource(remote_server(f"{scheme}://{server.place}/{dn}"), seconds, None, tls)


PEOPLE = {
    "bobby": b"FooBar",
    "chloe@example.org": b' \\,=+<>#;" ',
    "jörg": "pässwörd".encode(),
    "long": b"x" * 1000,
    "percent%s%20": b"%s",
    # what SASLprep would drop, or refuse
    "soft": "a\u00adb".encode(),
    "bell": b"a\x07b",
}


@pytest.fixture(scope="module")
def honest():
    known = {f"uid={user},ou=people,dc=example".encode(): p for user, p in PEOPLE.items()}
    with serving(understanding(known)) as server:
        yield server


@pytest.mark.parametrize("user", PEOPLE)
def test_name_and_password_arrive_as_they_are_and_no_other_password_is_good(honest, user):
    """What the library gives back is true also for a refusal: it is a tuple."""
    source = asking(honest)
    assert source.check(Password(user, PEOPLE[user])) is YES
    assert source.check(Password(user, PEOPLE[user][:-1] + b"?")) is NO
    assert source.check(Password("nobody", PEOPLE[user])) is NO


def test_one_simple_bind_is_all_that_is_asked():
    """No schema, no search, no anonymous bind before it."""
    seen = []
    with serving(answering(0, seen)) as server:
        assert asking(server).check(BOBBY) is YES
    assert seen[0] == Request(seen[0].number, BIND, (b"\3", BOBBY_DN, b"FooBar"))
    assert all(asked.tag == UNBIND for asked in seen[1:])


def test_it_is_called_ldap_and_wants_the_password_itself():
    source = LdapSource(remote_server(f"ldap://127.0.0.1:1/{DN}"), 1)
    assert (source.name, source.mechanisms) == ("ldap", {"PLAIN", "LOGIN"})


@pytest.mark.parametrize(
    ("user", "value"),
    [
        # RFC 4514 section 2.4
        ("a,dc=x", rb"a\,dc\=x"),
        ("a+uid=root", rb"a\+uid\=root"),
        ('a"b', rb"a\"b"),
        ("a\\", rb"a\\"),
        ("a\\2cb", rb"a\\2cb"),
        ("a<b>c;d", rb"a\<b\>c\;d"),
        ("#cafe", rb"\#cafe"),
        (" a ", rb"\ a\ "),
        ("*", b"*"),
        ("a)(uid=*", rb"a)(uid\=*"),
        ("%s%s", b"%s%s"),
        ("%d%n%(x)s", b"%d%n%(x)s"),
    ],
)
def test_a_name_cannot_leave_its_place_in_the_distinguished_name(user, value):
    seen = []
    with serving(answering(49, seen)) as server:
        assert asking(server).check(Password(user, b"x")) is NO
    assert seen[0].parts[1] == b"uid=" + value + b",ou=people,dc=example"


@pytest.mark.parametrize(
    ("template", "dn"),
    [
        ("%s", b"bobby"),
        ("%s@example.org", b"bobby@example.org"),
        ("uid=%s,cn=%s", b"uid=bobby,cn=bobby"),
        ("cn=a%20b%,uid=%s,o=100%", b"cn=a%20b%,uid=bobby,o=100%"),
        ("uid=%s,ou=a/b?c#d", b"uid=bobby,ou=a/b?c#d"),
        ("uid=%s,o=ü", "uid=bobby,o=ü".encode()),
    ],
)
def test_the_template_is_no_more_than_text_with_a_place_for_the_name(template, dn):
    seen = []
    with serving(answering(0, seen)) as server:
        assert asking(server, dn=template).check(BOBBY) is YES
    assert seen[0].parts[1] == dn


@pytest.mark.parametrize(
    "credentials",
    [
        # a directory takes it for nobody in particular, and says yes (RFC 4513 section 5.1.2)
        Password("bobby", b""),
        CramMd5("bobby", b"0" * 32, b"<1@x>"),
        *[Password("bobby", b"Foo" + octet + b"Bar") for octet in (b"\r", b"\n", b"\0")],
        *[Password(f"bob{sign}by", b"x") for sign in ("\r", "\n", "\0", "\x7f", "\udcff", "/")],
        Password("", b"x"),
        Password("b" * 256, b"x"),
        Password("bobby", b"x" * 1001),
        # it must be UTF-8 (RFC 4513 section 5.1.3)
        Password("bobby", b"p\xe4ss"),
    ],
    ids=repr,
)
def test_nobody_is_asked_about_what_cannot_be_right(credentials, honest):
    before = honest.connections
    assert asking(honest).check(credentials) is NO
    assert honest.connections == before


# What counts as an answer.


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (0, YES),
        *[(code, NO) for code in (19, 32, 34, 48, 49, 53)],
        # operationsError, timeLimitExceeded, strongerAuthRequired, referral, adminLimitExceeded,
        # confidentialityRequired, saslBindInProgress, insufficientAccessRights, busy,
        # unavailable, other, and codes that there are not
        *[(code, MAYBE) for code in (1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 50, 51, 52, 80)],
        *[(code, MAYBE) for code in (100, 127, 128, 4096, 16654, 65536, 2**31, 2**64)],
    ],
)
def test_a_result_code_is_a_verdict_or_none(code, verdict):
    with serving(answering(code)) as server:
        assert asking(server).check(BOBBY) is verdict


GOOD = result(BIND_ANSWER, 0)


@pytest.mark.parametrize(
    "make",
    [
        # somebody else's answer, or one to nothing
        lambda n: message(n + 1, GOOD),
        lambda n: message(0, GOOD),
        lambda n: message(n + 2**31, GOOD),
        lambda n: message(0, result(EXTENDED_ANSWER, 52, b"going")),
        # other operations
        lambda n: message(n, result(0x65, 0)),
        lambda n: message(n, result(EXTENDED_ANSWER, 0)),
        lambda n: message(n, result(0x6F, 0)),
        lambda n: message(n, tlv(0x64, tlv(4, b"dn"), tlv(0x30))),
        lambda n: message(n, tlv(BIND, integer(3), tlv(4, b"x"), tlv(0x80, b"x"))),
        # parts that are missing, too many, or of another kind
        lambda n: message(n, tlv(BIND_ANSWER)),
        lambda n: message(n, tlv(BIND_ANSWER, integer(0, 10))),
        lambda n: message(n, tlv(BIND_ANSWER, tlv(4, b""), tlv(4), tlv(4))),
        lambda n: message(n, tlv(BIND_ANSWER, tlv(1, b"\0"), tlv(4), tlv(4))),
        lambda n: message(n, b""),
        lambda n: tlv(0x30, integer(n)),
        lambda n: tlv(0x30, GOOD),
        lambda n: tlv(0x30),
        lambda n: tlv(0x31, integer(n), GOOD),
        lambda n: tlv(0x30, tlv(4, b"x"), GOOD),
        lambda n: GOOD,
        # cut, empty, no LDAP at all
        lambda n: message(n, GOOD)[:-1],
        lambda n: message(n, GOOD)[:2],
        lambda n: b"",
        lambda n: b"\0" * 50,
        lambda n: b"\xff" * 50,
        lambda n: b"220 mail.example ESMTP\r\n",
        lambda n: b"* OK ready\r\n",
        # sizes that are none
        lambda n: b"\x30\x80" + integer(n) + GOOD + b"\0\0",
        lambda n: b"\x30\x84\xff\xff\xff\xff" + integer(n) + GOOD,
        lambda n: b"\x30\xff" + b"\xff" * 126,
    ],
)
def test_what_is_no_answer_to_the_bind_lets_nobody_in(make):
    with serving(answering(make)) as server:
        assert asking(server).check(BOBBY) is MAYBE


def test_an_answer_in_pieces_is_one(honest):
    def script(peer: Peer) -> None:
        asked = request(peer)
        for octet in message(asked.number, GOOD):
            peer.say(bytes([octet]))
        request(peer)

    with serving(script) as server:
        assert asking(server).check(BOBBY) is YES


def referral(number: int, *urls: bytes) -> bytes:
    return message(number, result(BIND_ANSWER, 10, b"", tlv(0xA3, *(tlv(4, u) for u in urls))))


def test_nobody_is_referred_to_another_server_with_the_password(caplog):
    with serving(answering(0)) as other:
        url = f"ldap://{other.place}/{DN}".encode()
        for make in (
            lambda n: referral(n, url),
            lambda n: referral(n),
            lambda n: referral(n, b"ldap:///", b"\xff", url),
        ):
            with serving(answering(make)) as server:
                assert asking(server).check(BOBBY) is MAYBE
        # nor is a success one that comes with a referral
        more = tlv(0xA3, tlv(4, url))
        with serving(answering(lambda n: message(n, result(BIND_ANSWER, 0, b"", more)))) as server:
            assert asking(server).check(BOBBY) is YES
        assert other.connections == 0
    assert "it refers to another server; name that one" in caplog.text


# The log.


@pytest.mark.parametrize("code", [0, 1, 10, 49, 80])
def test_no_password_is_logged_even_if_the_server_repeats_it(code, caplog):
    """What the library gives back holds the request with the password."""
    caplog.set_level(logging.DEBUG)

    def make(number: int) -> bytes:
        return message(number, result(BIND_ANSWER, code, b"Sesame", dn=b"cn=Sesame"))

    with serving(answering(make)) as server:
        asking(server).check(Password("bobby", b"Sesame"))
    assert "sesame" not in caplog.text.lower()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answering(51), "its answer to the bind is 51"),
        (answering(lambda n: message(n, result(0x65, 0))), ""),
        (answering(lambda n: b"\xff" * 9), ""),
        (answering(lambda n: b""), ""),
        (reset_at_close, ""),
    ],
)
def test_trouble_is_one_line(script, words, caplog):
    caplog.set_level(logging.DEBUG, "tofmipd")
    with serving(script) as server:
        assert asking(server).check(BOBBY) is MAYBE
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"ldap 127.0.0.1:{server.port} unavailable: ")
    assert record.getMessage().endswith(words)
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 300


# Trouble of all kinds.


def after_bind(act) -> Script:
    def script(peer: Peer) -> None:
        request(peer)
        act(peer)

    return script


SLOW = {
    "stalls": stall,
    "stalls after the bind": after_bind(stall),
    "stalls within an answer": after_bind(lambda peer: (peer.say(b"\x30\x0c\2"), stall(peer))),
    "stalls at the size": after_bind(lambda peer: (peer.say(b"\x30\x84\0"), stall(peer))),
    "drips a long answer": after_bind(lambda peer: peer.drip(tlv(0x30, b"x" * 100_000))),
    "drips answers of others": after_bind(lambda peer: peer.drip(message(0, GOOD))),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW)
def test_a_whole_attempt_is_limited_in_time(script):
    """The library knows limits for single reads only, of whole seconds."""
    with serving(script) as server:
        verdict, seconds = elapsed(asking(server, SHORT_SECONDS))
    assert verdict is MAYBE
    assert seconds < SHORT_SECONDS + 2


def test_a_server_that_takes_no_connection_is_limited_in_time(monkeypatch):
    with deaf() as place:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses(place, place))
        source = LdapSource(remote_server(f"ldap://mail.example:{place[1]}/{DN}"), SHORT_SECONDS)
        verdict, seconds = elapsed(source)
    assert verdict is MAYBE
    assert seconds < SHORT_SECONDS + 2


def test_the_next_address_is_tried_when_one_does_not_answer(monkeypatch):
    with serving(answering(0), "127.0.0.2") as server:
        places = addresses(("127.0.0.3", server.port), ("127.0.0.2", server.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        source = LdapSource(remote_server(f"ldap://mail.example:{server.port}/{DN}"), 5)
        assert source.check(BOBBY) is YES


@pytest.mark.parametrize(
    "octets",
    [
        b"\x30\x84\x7f\xff\xff\xff" + b"x" * 4000,
        b"\0" * 4000,
        b"\xff" * 4000,
        message(0, GOOD) * 50,
    ],
    ids=["a huge answer", "zeros", "ones", "answers of others"],
)
def test_endless_talk_is_limited_in_time_and_room(octets):
    def flood(peer: Peer) -> None:
        while not peer.ending.is_set():
            peer.say(octets)

    with serving(after_bind(flood)) as server:
        verdict, seconds = elapsed(asking(server, SHORT_SECONDS))
    assert verdict is MAYBE
    assert seconds < SHORT_SECONDS + 2


@pytest.mark.parametrize("when", [lambda act: act, after_bind])
@pytest.mark.parametrize("act", [lambda peer: None, reset_at_close], ids=["closes", "resets"])
def test_one_who_hangs_up_is_unavailable_and_leaves_nothing_open(when, act):
    with serving(when(act)) as server:
        before = len(os.listdir("/proc/self/fd"))
        source = asking(server)
        assert [source.check(BOBBY) for _ in range(20)] == [MAYBE] * 20
    assert len(os.listdir("/proc/self/fd")) < before


def test_one_who_hangs_up_after_the_verdict_has_given_it():
    with serving(answering(0, then=reset_at_close)) as server:
        source = asking(server)
        assert [source.check(BOBBY) for _ in range(20)] == [YES] * 20


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
def test_a_server_that_is_not_there_is_unavailable(scheme):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{probe.getsockname()[1]}/{DN}"
        assert LdapSource(remote_server(url), PATIENCE_SECONDS).check(BOBBY) is MAYBE


def test_many_threads_get_their_own_verdicts(honest):
    source = asking(honest)
    logins = [
        (Password(user, PEOPLE[user] if right else b"wrong"), YES if right else NO)
        for user in PEOPLE
        for right in (True, False)
    ] * 5
    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(source.check, [login for login, _ in logins]))
    assert verdicts == [verdict for _, verdict in logins]


@pytest.fixture
def noisy():
    with serving(stall) as server:
        yield server


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=10),
            st.sampled_from([b"\x30", b"\x61", b"\x0a\1\0", b"\4\0", b"\2\1\1", b"\xa3", b"\x80"]),
            st.sampled_from([GOOD, message(1, GOOD), result(BIND_ANSWER, 49), tlv(0x30, b"")]),
        ),
        max_size=8,
    ).map(b"".join)
)
def test_noise_is_no_success_and_nothing_worse(noisy, octets):
    noisy.script = answering(lambda number: octets)
    verdict = asking(noisy, 5).check(BOBBY)
    assert verdict is not YES or b"\x0a\1\0" in octets


# TLS.


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The server's side of TLS for 127.0.0.1, and the file that vouches for it."""
    return server_context(tmp_path_factory.mktemp("tls"))


def within_tls(context: ssl.SSLContext, inner: Script) -> Script:
    """No lines are read here before the handshake, and so no octets of it."""

    def script(peer: Peer) -> None:
        secure = Peer(context.wrap_socket(peer.sock, server_side=True), peer.ending)
        try:
            inner(secure)
        finally:
            secure.close()

    return script


KNOWS_BOBBY = understanding({BOBBY_DN: b"FooBar"})


def test_ldaps_is_ldap_within_tls(material):
    context, certificate = material
    with serving(within_tls(context, KNOWS_BOBBY)) as server:
        source = asking(server, scheme="ldaps", tls=RemoteTls(certificate))
        assert source.check(BOBBY) is YES
        assert source.check(Password("bobby", b"foobar")) is NO


@pytest.mark.parametrize(
    ("host", "trusted", "verified", "verdict"),
    [
        ("127.0.0.1", True, True, YES),
        ("127.0.0.1", False, True, MAYBE),
        ("127.0.0.1", False, False, YES),
        ("localhost", True, True, MAYBE),
        ("localhost", True, False, YES),
    ],
)
def test_a_certificate_must_be_vouched_for_and_good_for_the_host_unless_told_otherwise(
    material, host, trusted, verified, verdict
):
    context, certificate = material
    seen = []
    with serving(within_tls(context, answering(0, seen))) as server:
        url = f"ldaps://{host}:{server.port}/{DN}"
        tls = RemoteTls(certificate if trusted else "", verified)
        assert LdapSource(remote_server(url), 5, None, tls).check(BOBBY) is verdict
    assert bool(seen) == (verdict is YES)


@pytest.mark.parametrize("script", [stall, after_bind(stall), lambda peer: peer.drip(b"x" * 99)])
def test_a_whole_attempt_within_tls_is_limited_in_time(material, script):
    context, certificate = material
    for server_script in (script, within_tls(context, script)):
        with serving(server_script) as server:
            source = asking(server, SHORT_SECONDS, "ldaps", RemoteTls(certificate))
            verdict, seconds = elapsed(source)
        assert verdict is MAYBE
        assert seconds < SHORT_SECONDS + 2


@pytest.fixture
def _elsewhere(monkeypatch):
    """The server counts as one on another machine."""
    monkeypatch.setattr(ldap, "is_near", lambda address: False)


def with_start_tls(context: ssl.SSLContext, inner: Script, seen: list, code: int = 0) -> Script:
    def script(peer: Peer) -> None:
        asked = request(peer)
        seen.append(asked)
        peer.say(message(asked.number, result(EXTENDED_ANSWER, code)))
        within_tls(context, inner)(peer)

    return script


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(("trusted", "verdict"), [(True, YES), (False, MAYBE)])
def test_another_machine_gets_no_password_before_start_tls(material, trusted, verdict):
    context, certificate = material
    seen = []
    with serving(with_start_tls(context, KNOWS_BOBBY, seen)) as server:
        source = asking(server, tls=RemoteTls(certificate if trusted else ""))
        assert source.check(BOBBY) is verdict
        if trusted:
            assert source.check(Password("bobby", b"x")) is NO
    assert {(asked.tag, asked.parts) for asked in seen} == {(EXTENDED, (START_TLS,))}


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize(
    "make",
    [
        lambda n: message(n, result(EXTENDED_ANSWER, 2)),
        lambda n: message(n, result(EXTENDED_ANSWER, 52)),
        lambda n: message(n, result(BIND_ANSWER, 0)),
        lambda n: message(n + 1, result(EXTENDED_ANSWER, 0)),
        lambda n: message(n, result(EXTENDED_ANSWER, 0)) + message(n + 1, GOOD),
        lambda n: b"",
        lambda n: b"\xff" * 9,
    ],
)
def test_one_who_takes_no_start_tls_gets_no_password(make):
    seen = []
    with serving(answering(make, seen)) as server:
        assert asking(server, SHORT_SECONDS).check(BOBBY) is MAYBE
    assert not [asked for asked in seen if asked and asked.tag == BIND]


@pytest.mark.usefixtures("_elsewhere")
def test_where_it_is_allowed_there_is_no_start_tls(honest):
    assert asking(honest, tls=RemoteTls(demanded=False)).check(BOBBY) is YES


def test_on_this_machine_there_is_no_start_tls(honest):
    assert asking(honest).check(BOBBY) is YES


# The rest.


def test_the_local_address_chooses_host_and_port(tmp_path):
    with serving(answering(0)) as first, serving(answering(49)) as usual:
        path = tmp_path / "ipauthmap"
        path.write_text(f"192.0.2.1 127.0.0.1 {first.port}\n")
        url = f"ldap://0.0.0.0:{usual.port}/{DN}"
        source = LdapSource(remote_server(url), 5, IpMap(str(path)))
        assert source.check(BOBBY, Origin("", "192.0.2.1")) is YES
        assert source.check(BOBBY, Origin("", "192.0.2.9")) is NO


def test_authorities_that_cannot_be_loaded_are_an_error_at_the_start(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        LdapSource(remote_server(f"ldap://h/{DN}"), 1, None, RemoteTls(str(tmp_path / "none")))
