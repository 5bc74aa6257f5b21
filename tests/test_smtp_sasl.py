"""SASL mechanisms, without base64 and without a session."""

from __future__ import annotations

import pytest
from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.credentials import CramMd5, Password
from tofmipd.smtp import sasl
from tofmipd.smtp.sasl import MECHANISMS, BadExchange, Start

noise = settings(max_examples=200, deadline=None)


def run(name, *responses, challenge=b""):
    """The challenges that the mechanism sends, and the credentials it ends with, if it does."""
    exchange = MECHANISMS[name].begin(Start(challenge))
    challenges = [next(exchange)]
    for response in responses:
        try:
            challenges.append(exchange.send(response))
        except StopIteration as end:
            return challenges, end.value
    return challenges, None


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
    assert challenges == [RFC2195_CHALLENGE]
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
    assert {name for name, row in MECHANISMS.items() if row.needs_challenge} == {"CRAM-MD5"}


def test_credentials_never_show_their_secret():
    for credentials in (Password("bobby", b"FooBar"), CramMd5("bobby", b"FooBar", b"<1@x>")):
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
