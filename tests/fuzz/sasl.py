"""SASL: base64, and the mechanisms, held against RFC 4616, RFC 2195 and RFC 5802.

Input: which mechanism and whether there is a certificate, then responses that end with LF; each is
also tried as base64.
"""

from __future__ import annotations

from collections.abc import Iterator

from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST, ScramClient, b64

from fuzz.dialogues import lines
from tofmipd.auth.credentials import Certificate, CramMd5, Credentials, Password, Scram
from tofmipd.auth.saslprep import login_name
from tofmipd.smtp import sasl
from tofmipd.smtp.envelope import Encryption
from tofmipd.smtp.sasl import MECHANISMS, BadExchange, Opening, Start

WORDS = (b"\0", b"\n", b"=", b"==", b"AGJvYmJ5AEZvb0Jhcg==", b"bobby", b"\xc3\x9f", RFC2195_DIGEST)
WORDS += (b"n,,", b"y,,", b"p=tls-exporter,,", b"a=", b"n=", b",r=", b"=2C", b"=3D", b",m=")
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
NAMES = sorted(MECHANISMS)
ENCRYPTION = Encryption(
    "TLSv1.3", "X", certificate=b"DER", names=("bobby", "bobby@example.org"), binding=b"channel"
)


def check(octets: bytes) -> None:
    number = int.from_bytes(octets[:1], "big")
    name = NAMES[number % len(NAMES)]
    start = Start(ENCRYPTION, tuple(NAMES)) if number & 128 else Start()
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
        case Scram(user=user):
            return Scram(user, b"")


def run(name: str, start: Start, responses: list[bytes]) -> Credentials | None:
    """What the exchange ends with; None if it has no end, or a bad one."""
    exchange = MECHANISMS[name].begin(start)
    response = b""
    try:
        said = next(exchange)
        for following in responses:
            if isinstance(said, Opening):
                assert said.message == response
                said = exchange.send(RFC2195_CHALLENGE)
            assert isinstance(said, bytes)
            response = following
            said = exchange.send(response)
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
                asked, known = login_name(who), login_name(user)
                return Password(known, password) if asked in ("", known) else None
            case "LOGIN":
                return Password(login_name(responses[0]), responses[1])
            case "CRAM-MD5":
                user, digest = responses[0].rsplit(b" ", 1)
                return CramMd5(login_name(user), digest.lower())
            case "EXTERNAL":
                asked, encryption = login_name(responses[0]), start.encryption
                if encryption is None or asked not in ("", *encryption.names):
                    return None
                return Certificate(asked or encryption.names[0], encryption.certificate)
            case _ if name.startswith("SCRAM-"):
                first, final = responses[:2]
                return scram_by_the_book(start, first, final, bound=name.endswith("-PLUS"))
    except (ValueError, IndexError):
        return None
    raise AssertionError(f"{name} needs a reading of its own here")


def scram_by_the_book(start: Start, first: bytes, final: bytes, *, bound: bool) -> Scram | None:
    """RFC 5802 section 7, without base64."""
    flag, who, user, nonce, *more = first.split(b",")
    extension = more[0] if more else b"x="
    alone = (b"n", b"y")[: 1 if start.offered else 2]
    good = (
        (flag == b"p=tls-exporter" if bound else flag in alone)
        and (who == b"" or who[:2] == b"a=" != who)
        and user[:2] == b"n=" != user
        and nonce[:2] == b"r=" != nonce
        and all(33 <= octet <= 126 for octet in nonce)
        and extension[:1].isalpha()
        and extension[1:2] == b"="
        and b"\0" not in first
    )
    names = []
    for name in (user[2:], who[2:] or user[2:]):
        bare = name.replace(b"=2C", b",").replace(b"=3D", b"\0")
        good = good and b"=" not in bare
        names.append(login_name(bare.replace(b"\0", b"=")))
    if not good or names[0] != names[1] or (bound and start.encryption is None):
        return None
    return Scram(names[0], final, start.encryption.binding if bound and start.encryption else b"")


def seeds() -> Iterator[bytes]:
    digest = b"tim " + RFC2195_DIGEST
    for number in (*range(len(NAMES)), *range(128, 128 + len(NAMES))):
        for text in (b"\0bobby\0FooBar", b"bobby\nFooBar", digest, b64(digest).encode(), b"bobby"):
            yield bytes([number]) + text
        for header in (b"n,,", b"y,,", b"p=tls-exporter,,", b"n,a=a=2Cb,"):
            client = ScramClient(NAMES[number % 128], b"a=2Cb", b"pencil", header=header)
            yield bytes([number]) + client.first + b"\nc=biws,r=x,p=v0X8"
    for line in lines():
        yield b"\0" + line.rpartition(b" ")[2]
