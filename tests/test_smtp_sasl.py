"""SASL mechanisms, without base64 and without a session."""

from __future__ import annotations

import dataclasses

import pytest
from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST, TLS
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.credentials import CramMd5, Password, Scram
from tofmipd.smtp import sasl
from tofmipd.smtp.sasl import (
    MECHANISMS,
    BadExchange,
    Opening,
    Start,
    confirmation,
    possible,
    servable,
)

noise = settings(max_examples=200, deadline=None)


IN_THE_CLEAR = Start()


def run(name, *responses, challenge=b"", start=IN_THE_CLEAR):
    """What the mechanism sends and asks for, and the credentials it ends with, if it does."""
    exchange = MECHANISMS[name].begin(start)
    said = [next(exchange)]
    waiting = list(responses)
    try:
        while waiting or isinstance(said[-1], Opening):
            response = challenge if isinstance(said[-1], Opening) else waiting.pop(0)
            said.append(exchange.send(response))
    except StopIteration as end:
        return said, end.value
    return said, None


@pytest.mark.parametrize(
    ("response", "credentials"),
    [
        (b"\0bobby\0FooBar", Password("bobby", b"FooBar")),
        (b"bobby\0bobby\0FooBar", Password("bobby", b"FooBar")),
        (b"BOBBY\0Bobby\0FooBar", Password("bobby", b"FooBar")),
        (b"\0bobby\0", Password("bobby", b"")),
        (b"\0\0", Password("", b"")),
        (b"\0bobby@example.org\0a b:c", Password("bobby@example.org", b"a b:c")),
        ("\0JÖRG\0pässwörd".encode(), Password("jörg", "pässwörd".encode())),
        (b"\0bobby\0\xff\xfe", Password("bobby", b"\xff\xfe")),
    ],
)
def test_plain_takes_the_user_in_lower_case_and_the_password_as_it_is(response, credentials):
    assert run("PLAIN", response) == ([b""], credentials)


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"bobby",
        b"bobby\0FooBar",
        b"\0bobby\0Foo\0Bar",
        b"joe\0bobby\0FooBar",
        b" \0bobby\0FooBar",
        b"\0\xff\0FooBar",
        b"\xff\0bobby\0FooBar",
    ],
)
def test_plain_refuses_other_structures_and_acting_for_somebody_else(response):
    with pytest.raises(BadExchange):
        run("PLAIN", response)


def test_login_asks_for_name_and_password():
    challenges, credentials = run("LOGIN", b"Bobby", b"FooBar")
    assert challenges == [b"Username:", b"Password:"]
    assert credentials == Password("bobby", b"FooBar")


def test_login_refuses_a_name_that_is_not_utf_8():
    with pytest.raises(BadExchange):
        run("LOGIN", b"\xff", b"FooBar")


def test_cram_md5_sends_the_challenge_it_was_given():
    challenges, credentials = run(
        "CRAM-MD5", b"Tim " + RFC2195_DIGEST.upper(), challenge=RFC2195_CHALLENGE
    )
    assert challenges == [Opening(), RFC2195_CHALLENGE]
    assert credentials == CramMd5("tim", RFC2195_DIGEST)


def test_a_cram_md5_name_may_hold_blanks():
    _, credentials = run("CRAM-MD5", b"Tim Taylor abc", challenge=b"<1@x>")
    assert credentials == CramMd5("tim taylor", b"abc")


@pytest.mark.parametrize("response", [b"", b"tim", b"\xff abc"])
def test_cram_md5_refuses_what_is_not_a_name_and_a_digest(response):
    with pytest.raises(BadExchange):
        run("CRAM-MD5", response, challenge=b"<1@x>")


def test_only_mechanisms_that_show_the_password_are_called_clear():
    assert {name for name, row in MECHANISMS.items() if row.clear} == {"PLAIN", "LOGIN"}
    assert {name for name, row in MECHANISMS.items() if row.server_first} == {"CRAM-MD5"}


# SCRAM.


FIRST = b"n,,n=user,r=fyko"
BOUND = b"p=tls-exporter,,n=user,r=fyko"
SHA_1, SHA_1_BOUND = "SCRAM-SHA-1", "SCRAM-SHA-1-PLUS"
# What a client could choose where there are mechanisms that are bound to the channel.
OFFERED = Start(TLS, ("PLAIN", SHA_1, SHA_1_BOUND))


@pytest.mark.parametrize("name", [SHA_1, "SCRAM-SHA-256"])
@pytest.mark.parametrize(
    ("first", "user"),
    [
        (FIRST, "user"),
        (b"n,a=USER,n=user,r=fyko", "user"),
        (b"y,,n=User,r=fyko", "user"),
        ("n,,n=JÖRG\u00a0I\u00adX,r=fyko".encode(), "jörg ix"),
        (b"n,a=a=2Cb=3Dc,n=a=2Cb=3Dc,r=fyko", "a,b=c"),
        (b"n,,n=user,r=fyko,x=what,ever", "user"),
    ],
)
def test_scram_has_its_challenge_made_and_takes_the_last_message_as_it_is(name, first, user):
    said, credentials = run(name, first, b"last \0\xff", challenge=b"r=...")
    assert said == [b"", Opening(first), b"r=..."]
    assert credentials == Scram(user, b"last \0\xff")


def test_bound_scram_ends_with_the_octets_of_the_channel():
    _, credentials = run(SHA_1_BOUND, BOUND, b"last", challenge=b"r", start=OFFERED)
    assert credentials == Scram("user", b"last", TLS.binding)


def test_scram_that_is_not_bound_has_none_also_where_there_are():
    _, credentials = run(SHA_1, FIRST, b"last", challenge=b"r", start=OFFERED)
    assert credentials == Scram("user", b"last", b"")


@pytest.mark.parametrize(
    ("name", "first", "start"),
    [
        # RFC 5802 section 6: what a mechanism is bound to is part of it
        (SHA_1, BOUND, OFFERED),
        (SHA_1, b"p=,,n=user,r=fyko", OFFERED),
        (SHA_1_BOUND, FIRST, OFFERED),
        (SHA_1_BOUND, b"y,,n=user,r=fyko", OFFERED),
        (SHA_1_BOUND, b"p=tls-unique,,n=user,r=fyko", OFFERED),
        (SHA_1_BOUND, b"p=tls-server-end-point,,n=user,r=fyko", OFFERED),
        (SHA_1_BOUND, b"p=TLS-EXPORTER,,n=user,r=fyko", OFFERED),
        # somebody has hidden from the client that it could be bound
        (SHA_1, b"y,,n=user,r=fyko", OFFERED),
        # nobody may act for somebody else
        (SHA_1, b"n,a=root,n=user,r=fyko", Start()),
        (SHA_1, b"n,a=\xff,n=user,r=fyko", Start()),
        # no names, no messages
        (SHA_1, b"n,,n=\xff,r=fyko", Start()),
        (SHA_1, b"", Start()),
        (SHA_1, b"\0user\0pencil", Start()),
    ],
)
def test_scram_refuses_another_binding_acting_for_others_and_what_is_no_message(name, first, start):
    with pytest.raises(BadExchange):
        run(name, first, start=start)


def test_nothing_is_bound_to_a_channel_that_cannot_be_named():
    unnamed = Start(dataclasses.replace(TLS, binding=b""), OFFERED.offered)
    for start in (unnamed, Start()):
        with pytest.raises(BadExchange):
            run(SHA_1_BOUND, BOUND, b"last", challenge=b"r", start=start)


def test_the_client_confirms_the_proof_of_the_server_with_nothing():
    exchange = confirmation(b"v=abc")
    assert next(exchange) == b"v=abc"
    with pytest.raises(StopIteration) as end:
        exchange.send(b"")
    assert end.value.value is None
    exchange = confirmation(b"v=abc")
    next(exchange)
    with pytest.raises(BadExchange):
        exchange.send(b"no")


def test_what_can_be_bound_to_the_channel_comes_with_what_is_not():
    assert servable(frozenset({"SCRAM-SHA-256", "LOGIN", "X-NEW"})) == (
        "LOGIN",
        "SCRAM-SHA-256",
        "SCRAM-SHA-256-PLUS",
    )
    assert servable(frozenset()) == ()


@pytest.mark.parametrize(
    ("binding", "names", "missing"),
    [
        (b"x", ("bobby",), set()),
        (b"x", (), {"EXTERNAL"}),
        (b"", ("bobby",), {SHA_1_BOUND, "SCRAM-SHA-256-PLUS"}),
    ],
)
def test_not_all_is_possible_on_every_encrypted_connection(binding, names, missing):
    encryption = dataclasses.replace(TLS, binding=binding, names=names)
    assert {name for name in MECHANISMS if not possible(name, encryption)} == missing


def test_credentials_never_show_their_secret():
    for credentials in (
        Password("bobby", b"FooBar"),
        CramMd5("bobby", b"FooBar", b"<1@x>"),
        Scram("bobby", b"FooBar", b"FooBar"),
    ):
        assert "FooBar" not in repr(credentials)
        assert "FooBar" not in str(credentials)


@noise
@given(st.sampled_from(sorted(MECHANISMS)), st.lists(st.binary(max_size=30), max_size=4))
def test_noise_makes_a_mechanism_raise_nothing_but_bad_exchange(name, responses):
    try:
        _, credentials = run(name, *responses, challenge=b"<1@x>")
    except BadExchange:
        return
    if credentials is not None:
        assert credentials.user == credentials.user.lower()


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("", b""),
        ("AA==", b"\0"),
        ("AGJvYmJ5AEZvb0Jhcg==", b"\0bobby\0FooBar"),
        ("+/+/", b"\xfb\xff\xbf"),
    ],
)
def test_base64_is_decoded(text, octets):
    assert sasl.decode(text) == octets
    assert sasl.encode(octets) == text


@pytest.mark.parametrize(
    "text",
    [
        *["A", "AA", "AA=", "AA===", "=", "====", "AAAA=", "AA==AA==", "A A=", " AAAA", "AAAA "],
        *["AA-_", "AAA!", "AAAÄ", "AAA\udc80", "AA\n==", "\0AAA", "{AAA"],
    ],
)
def test_what_is_not_strictly_base64_is_a_value_error(text):
    with pytest.raises(ValueError, match="not base64"):
        sasl.decode(text)


@noise
@given(st.text(st.characters(exclude_categories=())))
def test_decoding_noise_raises_nothing_but_value_error(text):
    try:
        octets = sasl.decode(text)
    except ValueError:
        return
    assert len(octets) <= len(text)


@noise
@given(st.binary())
def test_what_is_encoded_can_be_decoded(octets):
    assert sasl.decode(sasl.encode(octets)) == octets
