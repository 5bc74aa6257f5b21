"""SASL: base64, and the mechanisms, held against RFC 4616 and RFC 2195.

Input: which mechanism and whether there is a certificate, then responses that end with LF; each is
also tried as base64.
"""

from __future__ import annotations

from collections.abc import Iterator

from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST, b64

from fuzz.dialogues import lines
from tofmipd.auth.credentials import Certificate, CramMd5, Credentials, Password
from tofmipd.smtp import sasl
from tofmipd.smtp.envelope import Encryption
from tofmipd.smtp.sasl import MECHANISMS, BadExchange, Start

WORDS = (b"\0", b"\n", b"=", b"==", b"AGJvYmJ5AEZvb0Jhcg==", b"bobby", b"\xc3\x9f", RFC2195_DIGEST)
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
NAMES = sorted(MECHANISMS)
ENCRYPTION = Encryption("TLSv1.3", "X", certificate=b"DER", names=("bobby", "bobby@example.org"))


def check(octets: bytes) -> None:
    number = int.from_bytes(octets[:1], "big")
    name = NAMES[number % len(NAMES)]
    start = Start(RFC2195_CHALLENGE, ENCRYPTION if number & 128 else None)
    responses = octets[1:].split(b"\n")
    for response in responses:
        check_base64(response)
    credentials = run(name, start, responses)
    assert credentials == by_the_book(name, start, responses)
    if credentials is not None:
        assert isinstance(credentials, Credentials)
        assert credentials.user == credentials.user.lower()
        assert repr(credentials.user) in repr(credentials)
        # What is shown of credentials does not depend on the secret among them.
        assert repr(credentials) == repr(without_secret(credentials))


def check_base64(octets: bytes) -> None:
    """Nothing but the alphabet and its padding is taken, and all of it is read."""
    text = octets.decode("utf-8", "surrogateescape")
    try:
        decoded = sasl.decode(text)
    except ValueError:
        decoded = None
    assert decoded == decoded_by_the_book(octets)
    if decoded is not None:
        assert len(sasl.encode(decoded)) == len(text)
        assert sasl.decode(sasl.encode(decoded)) == decoded
    assert sasl.decode(sasl.encode(octets)) == octets


def decoded_by_the_book(octets: bytes) -> bytes | None:
    """RFC 4648 section 4: groups of four signs; only the last may end with padding."""
    if len(octets) % 4:
        return None
    out = b""
    for place in range(0, len(octets), 4):
        signs = octets[place : place + 4]
        if place + 4 == len(octets):
            signs = signs.removesuffix(b"=").removesuffix(b"=")
        if len(signs) < 2 or any(sign not in ALPHABET for sign in signs):
            return None
        bits = 0
        for sign in signs.ljust(4, ALPHABET[:1]):
            bits = bits << 6 | ALPHABET.index(sign)
        out += bits.to_bytes(3, "big")[: len(signs) - 1]
    return out


def without_secret(credentials: Credentials) -> Credentials:
    match credentials:
        case Password(user=user):
            return Password(user, b"")
        case CramMd5(user=user, challenge=challenge):
            return CramMd5(user, b"", challenge)
        case Certificate(user=user):
            return Certificate(user, b"")


def run(name: str, start: Start, responses: list[bytes]) -> Credentials | None:
    """What the exchange ends with; None if it has no end, or a bad one."""
    exchange = MECHANISMS[name].begin(start)
    try:
        assert isinstance(next(exchange), bytes)
        for response in responses:
            assert isinstance(exchange.send(response), bytes)
    except StopIteration as end:
        credentials: Credentials = end.value
        return credentials
    except BadExchange:
        pass
    return None


def by_the_book(name: str, start: Start, responses: list[bytes]) -> Credentials | None:
    try:
        match name:
            case "PLAIN":
                who, user, password = responses[0].split(b"\0")
                asked, known = who.decode().lower(), user.decode().lower()
                return Password(known, password) if asked in ("", known) else None
            case "LOGIN":
                return Password(responses[0].decode().lower(), responses[1])
            case "CRAM-MD5":
                user, digest = responses[0].rsplit(b" ", 1)
                return CramMd5(user.decode().lower(), digest.lower())
            case "EXTERNAL":
                asked, encryption = responses[0].decode().lower(), start.encryption
                if encryption is None or asked not in ("", *encryption.names):
                    return None
                return Certificate(asked or encryption.names[0], encryption.certificate)
    except (ValueError, IndexError):
        return None
    raise AssertionError(f"{name} needs a reading of its own here")


def seeds() -> Iterator[bytes]:
    digest = b"tim " + RFC2195_DIGEST
    for number in (*range(len(NAMES)), *range(128, 128 + len(NAMES))):
        for text in (b"\0bobby\0FooBar", b"bobby\nFooBar", digest, b64(digest).encode(), b"bobby"):
            yield bytes([number]) + text
    for line in lines():
        yield b"\0" + line.rpartition(b" ")[2]
