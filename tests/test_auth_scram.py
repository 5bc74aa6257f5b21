"""SCRAM, the server's side: the examples of the RFCs, and everything that is nearly one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import time

import pytest
from fakes import RFC_SCRAM, ScramClient
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.scram import (
    HASHES,
    BadMessage,
    ClientFirst,
    Exchange,
    Verifier,
    verifier_of,
)

NOISE = settings(max_examples=300, deadline=None)

# RFC 5802 section 5 and RFC 7677 section 3, "user" with the password "pencil": the mechanism, the
# client's nonce, its proof, and the server's signature.
EXAMPLES = [
    (
        "SCRAM-SHA-1",
        b"fyko+d2lbbFgONRv9qkxdawL",
        b"v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        b"rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    (
        "SCRAM-SHA-256",
        b"rOprNGfwEbeRWgbNEkqO",
        b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
]


def exchange_of(mechanism, opening, *, password=b"pencil", known=True) -> Exchange:
    salt, nonce = RFC_SCRAM[mechanism]
    verifier = verifier_of(password, base64.b64decode(salt), 4096, HASHES[mechanism])
    return Exchange(ClientFirst.parse(opening), verifier, nonce, known=known)


@pytest.mark.parametrize(("mechanism", "nonce", "proof", "signature"), EXAMPLES)
def test_the_examples_of_the_rfcs_come_out_to_the_octet(mechanism, nonce, proof, signature):
    salt, own = RFC_SCRAM[mechanism]
    exchange = exchange_of(mechanism, b"n,,n=user,r=" + nonce)
    assert exchange.challenge == b"r=%s%s,s=%s,i=4096" % (nonce, own, salt)
    final = b"c=biws,r=%s%s,p=%s" % (nonce, own, proof)
    assert exchange.finish(final, b"") == b"v=" + signature


@pytest.mark.parametrize("mechanism", HASHES)
@pytest.mark.parametrize("iterations", [1, 4096, 5000])
def test_a_verifier_is_that_of_the_rfc(mechanism, iterations):
    """RFC 5802 sections 2.2 and 3, with Hi() written out."""
    name = HASHES[mechanism]
    salted = block = hmac.digest(b"pencil", b"salt\0\0\0\1", name)
    for _ in range(iterations - 1):
        block = hmac.digest(b"pencil", block, name)
        salted = bytes(a ^ b for a, b in zip(salted, block, strict=True))
    stored = hashlib.new(name, hmac.digest(salted, b"Client Key", name)).digest()
    expected = Verifier(name, b"salt", iterations, stored, hmac.digest(salted, b"Server Key", name))
    made = verifier_of(b"pencil", b"salt", iterations, name)
    assert made == expected
    assert made.matches(b"pencil")
    assert not made.matches(b"Pencil")
    assert not made.matches(b"")


def test_a_verifier_does_not_show_its_keys():
    verifier = Verifier("sha1", b"salt", 4096, b"STORED", b"SERVER")
    assert "STORED" not in repr(verifier)
    assert "SERVER" not in repr(verifier)


# The first message.


@pytest.mark.parametrize(
    ("message", "header", "binding", "could_bind", "on_behalf_of", "user", "nonce"),
    [
        (b"n,,n=user,r=x", b"n,,", "", False, b"", b"user", b"x"),
        (b"y,,n=user,r=x", b"y,,", "", True, b"", b"user", b"x"),
        (
            b"p=tls-exporter,,n=u,r=x",
            b"p=tls-exporter,,",
            "tls-exporter",
            False,
            b"",
            b"u",
            b"x",
        ),
        (b"p=a.B-1,a=z,n=u,r=x", b"p=a.B-1,a=z,", "a.B-1", False, b"z", b"u", b"x"),
        (b"n,a=boss,n=user,r=x", b"n,a=boss,", "", False, b"boss", b"user", b"x"),
        (b"n,a==2C=3D,n==3D2C,r=x", b"n,a==2C=3D,", "", False, b",=", b"=2C", b"x"),
        (b"n,,n==2C=2C,r=x", b"n,,", "", False, b"", b",,", b"x"),
        (b"n,,n=u,r=!\"#$%&'()*+-./~=", b"n,,", "", False, b"", b"u", b"!\"#$%&'()*+-./~="),
        ("n,,n=jörg,r=x".encode(), b"n,,", "", False, b"", "jörg".encode(), b"x"),
        (b"n,,n=\xff \r\n,r=x", b"n,,", "", False, b"", b"\xff \r\n", b"x"),
        # extensions that nobody here knows
        (b"n,,n=u,r=x,e=1,f=2", b"n,,", "", False, b"", b"u", b"x"),
    ],
)
def test_the_first_message_is_taken_apart(
    message, header, binding, could_bind, on_behalf_of, user, nonce
):
    bare = message.removeprefix(header)
    assert ClientFirst.parse(message) == ClientFirst(
        header, bare, binding, could_bind, on_behalf_of, user, nonce
    )


@pytest.mark.parametrize(
    "message",
    [
        *[b"", b",", b",,", b"n", b"n,", b"n,,", b"n,,n=user", b"n,,n=user,", b"n,,r=x"],
        # what comes first, and who acts for whom
        *[b"x,,n=u,r=x", b"N,,n=u,r=x", b"n=,,n=u,r=x", b",,n=u,r=x", b"n,n=u,r=x", b"nn,,n=u,r=x"],
        *[b"p,,n=u,r=x", b"p=,,n=u,r=x", b"p=a b,,n=u,r=x", b"p=a_b,,n=u,r=x", b"y=a,,n=u,r=x"],
        *[b"n,a=,n=u,r=x", b"n,a,n=u,r=x", b"n,b=x,n=u,r=x", b"n,a=b,a=c,n=u,r=x"],
        # the name
        *[b"n,,n=,r=x", b"n,,N=u,r=x", b"n,,u,r=x", b"n,,n=u,n=v,r=x", b"n,,r=x,n=u"],
        *[b"n,,n=a=b,r=x", b"n,,n==,r=x", b"n,,n==2c,r=x", b"n,,n==3d,r=x", b"n,,n==2D,r=x"],
        *[b"n,,n=a=,r=x", b"n,,n=a=2,r=x", b"n,,n=a\0b,r=x", b"n,a=a=b,n=u,r=x", b"n,a=\0,n=u,r=x"],
        # the nonce
        *[b"n,,n=u,r=", b"n,,n=u,r", b"n,,n=u,R=x", b"n,,n=u,r=a b", b"n,,n=u,r=a\x7f"],
        *[b"n,,n=u,r=\xc3\xa4", b"n,,n=u,r=a\n", b"n,,n=u,r=,e=1", b"n,,n=u,r=x\0"],
        # what follows
        *[b"n,,n=u,r=x,", b"n,,n=u,r=x,e", b"n,,n=u,r=x,1=a", b"n,,n=u,r=x,=", b"n,,n=u,r=x,e=\0"],
        # an extension that whoever does not know it must refuse (section 5.1)
        b"n,,m=new,n=u,r=x",
        # other mechanisms
        *[b"\0user\0pencil", b"user", b" n,,n=u,r=x"],
    ],
)
def test_a_malformed_first_message_is_refused(message):
    with pytest.raises(BadMessage):
        ClientFirst.parse(message)


# The last message.


@pytest.mark.parametrize("mechanism", HASHES)
@pytest.mark.parametrize(
    ("header", "binding"),
    [(b"n,,", b""), (b"y,,", b""), (b"n,a=user,", b""), (b"p=tls-exporter,,", b"\0\xff" * 16)],
)
def test_a_client_that_knows_the_password_is_told_what_it_expects(mechanism, header, binding):
    client = ScramClient(mechanism, b"user", b"pencil", header=header, binding=binding)
    exchange = exchange_of(mechanism, client.first)
    assert exchange.finish(client.final(exchange.challenge), binding) == client.expected


@pytest.mark.parametrize("password", [b"", b"Pencil", b"pencil ", b"\0pencil", b"\xff"])
def test_a_wrong_password_is_refused(password):
    client = ScramClient("SCRAM-SHA-256", b"user", password)
    exchange = exchange_of("SCRAM-SHA-256", client.first)
    assert exchange.finish(client.final(exchange.challenge), b"") is None


def test_for_an_unknown_user_the_exchange_runs_to_its_end_and_is_refused():
    """Also if the made up password were guessed."""
    client = ScramClient("SCRAM-SHA-256", b"user", b"pencil")
    known, unknown = (
        exchange_of("SCRAM-SHA-256", client.first, known=known) for known in (True, False)
    )
    assert known.challenge == unknown.challenge
    assert unknown.finish(client.final(unknown.challenge), b"") is None


@pytest.mark.parametrize(
    ("header", "said", "seen"),
    [
        (b"p=tls-exporter,,", b"other", b"channel"),
        (b"p=tls-exporter,,", b"", b"channel"),
        (b"p=tls-exporter,,", b"channel", b""),
        (b"p=tls-exporter,,", b"channel", b"channel2"),
        (b"n,,", b"", b"channel"),
        (b"n,,", b"channel", b""),
    ],
)
def test_a_channel_that_is_another_one_at_each_end_is_refused(header, said, seen):
    """Somebody in between has passed all on."""
    client = ScramClient("SCRAM-SHA-1", b"user", b"pencil", header=header, binding=said)
    exchange = exchange_of("SCRAM-SHA-1", client.first)
    assert exchange.finish(client.final(exchange.challenge), seen) is None


def test_a_header_that_is_another_one_in_the_last_message_is_refused():
    """The client could bind; whoever is in between has said that it could not."""
    client = ScramClient("SCRAM-SHA-1", b"user", b"pencil", header=b"y,,")
    exchange = exchange_of("SCRAM-SHA-1", b"n,," + client.first.removeprefix(b"y,,"))
    assert exchange.finish(client.final(exchange.challenge), b"") is None


def good_final() -> tuple[Exchange, bytes]:
    client = ScramClient("SCRAM-SHA-1", b"user", b"pencil")
    exchange = exchange_of("SCRAM-SHA-1", client.first)
    return exchange, client.final(exchange.challenge)


PROOF = b"v0X8v3Bz2T0CJGbJQyF0X+HI4Ts="
NONCE = b"fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # the proof: other, none, shorter, longer, nothing but zeros, no base64, another's
        (PROOF, b"AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (b",p=" + PROOF, b""),
        (PROOF, b""),
        (PROOF, b"v0X8v3Bz2T0CJGbJQyF0X+HI"),
        (PROOF, b"v0X8v3Bz2T0CJGbJQyF0X+HI4TtA"),
        (PROOF, PROOF + b"AAAA"),
        (PROOF, PROOF[:-1]),
        (PROOF, PROOF + b"="),
        (PROOF, PROOF + b"\n"),
        (PROOF, PROOF.replace(b"+", b"-")),
        (PROOF, PROOF + b",x=y"),
        # the nonce: another's, cut, empty, only the client's own, only ours
        (NONCE, NONCE[:-1]),
        (NONCE, NONCE + b"x"),
        (NONCE, NONCE.swapcase()),
        (NONCE, b""),
        (NONCE, b"fyko+d2lbbFgONRv9qkxdawL"),
        (NONCE, b"3rfcNHYJY1ZVvWVs7j"),
        # the binding
        (b"c=biws", b"c=eSws"),
        (b"c=biws", b"c="),
        (b"c=biws", b"c=n,,"),
        (b"c=biws", b"c=biwsAAAA"),
        (b"c=biws", b"c=biws="),
        (b"c=biws,", b""),
        # the order
        (b"c=biws,", b"m=x,c=biws,"),
        (b"c=biws,r=", b"r="),
        (b"c=", b"C="),
        (b",p=", b",P="),
        (b",p=", b",p=AAAA,p="),
        (b",p=", b",x=\0,p="),
        (b",p=", b",x,p="),
    ],
)
def test_a_last_message_that_differs_anywhere_is_refused(old, new):
    exchange, final = good_final()
    assert old in final
    assert exchange.finish(final.replace(old, new, 1), b"") is None
    assert exchange.finish(final, b"") is not None


@pytest.mark.parametrize(
    "nonce", [b"fyko+d2lbbFgONRv9qkxdawL", NONCE + b"x", b"fyko+d2lbbFgONRv9qkxdawLanother", b"x"]
)
def test_a_proof_over_another_nonce_is_refused(nonce):
    """What was recorded of another exchange, whose nonce was chosen by somebody in between."""
    client = ScramClient("SCRAM-SHA-1", b"user", b"pencil")
    exchange = exchange_of("SCRAM-SHA-1", client.first)
    assert exchange.finish(client.final(exchange.challenge, nonce), b"") is None
    assert exchange.finish(client.final(exchange.challenge), b"") is not None


@pytest.mark.parametrize("final", [b"", b",", b"c=biws", b"*", b"c=biws,r=x,p=", b"\0" * 9000])
def test_what_is_no_last_message_is_refused(final):
    assert good_final()[0].finish(final, b"") is None


def test_no_flipped_bit_of_the_last_message_is_taken():
    exchange, final = good_final()
    for place in range(len(final)):
        for bit in range(8):
            flipped = bytearray(final)
            flipped[place] ^= 1 << bit
            assert exchange.finish(bytes(flipped), b"") is None, flipped


def test_an_extension_is_part_of_what_the_client_proves():
    exchange, final = good_final()
    head, proof = final.split(b",p=")
    assert exchange.finish(head + b",x=y,p=" + proof, b"") is None
    client_key = bytes(
        a ^ b
        for a, b in zip(
            base64.b64decode(proof),
            signature_of(b"n=user,r=fyko+d2lbbFgONRv9qkxdawL", exchange.challenge, head),
            strict=True,
        )
    )
    again = signature_of(b"n=user,r=fyko+d2lbbFgONRv9qkxdawL", exchange.challenge, head + b",x=y")
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, again, strict=True)))
    assert exchange.finish(head + b",x=y,p=" + proof, b"") is not None


def signature_of(*said: bytes) -> bytes:
    salted = hashlib.pbkdf2_hmac(
        "sha1", b"pencil", base64.b64decode(RFC_SCRAM["SCRAM-SHA-1"][0]), 4096
    )
    stored = hashlib.sha1(hmac.digest(salted, b"Client Key", "sha1")).digest()
    return hmac.digest(stored, b",".join(said), "sha1")


def test_another_exchange_does_not_take_the_message_again():
    _, final = good_final()
    first = ClientFirst.parse(b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL")
    salt = base64.b64decode(RFC_SCRAM["SCRAM-SHA-1"][0])
    again = Exchange(first, verifier_of(b"pencil", salt, 4096, "sha1"), b"another")
    assert again.finish(final, b"") is None


# Noise.

PIECES = st.lists(
    st.sampled_from(
        [
            *[
                b"n",
                b"y",
                b"p=",
                b",",
                b",,",
                b"a=",
                b"n=",
                b"r=",
                b"c=",
                b"=2C",
                b"=3D",
                b"=",
                b"x",
            ],
            *[b"biws", b"user", b"tls-exporter", b"\0", b"\xff", b"e=1", b"m=", NONCE, PROOF],
        ]
    ),
    max_size=14,
).map(b"".join)


@NOISE
@given(st.one_of(st.binary(max_size=60), PIECES, PIECES.map(b"n,,".__add__)))
def test_noise_is_a_first_message_that_says_so_or_a_bad_one(octets):
    with contextlib.suppress(BadMessage):
        first = ClientFirst.parse(octets)
        assert first.header + first.bare == octets
        assert first.user
        assert first.nonce
        assert b"\0" not in octets


@NOISE
@given(st.one_of(st.binary(max_size=60), PIECES, PIECES.map(b"c=biws,r=".__add__)), st.binary())
def test_noise_is_no_last_message(octets, binding):
    assert NOISY.finish(octets, binding) is None


NOISY = good_final()[0]


@NOISE
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1))
def test_any_name_survives_its_escapes(name):
    octets = name.encode()
    escaped = octets.replace(b"=", b"=3D").replace(b",", b"=2C")
    assert ClientFirst.parse(b"n,a=%s,n=%s,r=x" % (escaped, escaped)).user == octets
    assert ClientFirst.parse(b"n,a=%s,n=%s,r=x" % (escaped, escaped)).on_behalf_of == octets


def test_a_long_message_takes_no_longer_than_it_is():
    """No way through the patterns grows faster than the message."""
    for octets in (b"n,,n=" + b"=2C" * 4000, b"n,,n=" + b"a" * 12000, b"n,,n=u,r=" + b"," * 12000):
        begun = time.process_time()
        for end in (b"", b"\0", b",r=", b",r=x,e="):
            with contextlib.suppress(BadMessage):
                ClientFirst.parse(octets + end)
            assert NOISY.finish(octets + end, b"") is None
            assert NOISY.finish(b"c=biws,r=" + octets[9:] + end, b"") is None
        assert time.process_time() - begun < 0.5
