"""Which protocols and ciphers get through: hellos of clients old and new, octet by octet.

No library of today makes most of them any more, so they are put together here; the answer tells
what the server has chosen.  The lists are modelled on what the clients send.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import authority
from OpenSSL import SSL, crypto

from tofmipd.settings import EncryptionSettings
from tofmipd.tls.contexts import Contexts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SSL3, TLS10, TLS11, TLS12, TLS13 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
NAMES = {SSL3: "SSLv3", TLS10: "TLS 1.0", TLS11: "TLS 1.1", TLS12: "TLS 1.2", TLS13: "TLS 1.3"}
# Cipher suites by their numbers (the registry of IANA).
AEAD_ECDSA = (0xC02C, 0xC02B, 0xCCA9)
AEAD_RSA = (0xC030, 0xC02F, 0xCCA8)
CBC_ECDSA = (0xC024, 0xC023, 0xC00A, 0xC009)
CBC_RSA = (0xC028, 0xC027, 0xC014, 0xC013)
# Without forward secrecy.
OLD_RSA = (0x009D, 0x009C, 0x003D, 0x003C, 0x0035, 0x002F)
DHE_RSA = (0x009F, 0x009E, 0x006B, 0x0067, 0x0039, 0x0033)
THIRTEEN = (0x1301, 0x1302, 0x1303)
# Signature algorithms.
RSA_SIGNED = (0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601)
ECDSA_SIGNED = (0x0403, 0x0503, 0x0603)
SHA1_SIGNED = (0x0201, 0x0203)
MODERN = (*ECDSA_SIGNED, *RSA_SIGNED)

BAD = {
    "RC4": (0x0004, 0x0005, 0xC007, 0xC011, 0xC002, 0xC00C),
    "3DES": (0x000A, 0x0016, 0xC008, 0xC012, 0x0013),
    "DES": (0x0009, 0x0015, 0x0012),
    "NULL": (0x0001, 0x0002, 0x003B, 0xC006, 0xC010),
    "NULL at all": (0x0000,),
    "export": (0x0003, 0x0006, 0x0008, 0x000B, 0x000E, 0x0011, 0x0014, 0x0062, 0x0064),
    "anonymous": (0x0018, 0x001B, 0x0034, 0x003A, 0x006C, 0x006D, 0x00A6, 0x00A7, 0xC018, 0xC019),
    "export, anonymous": (0x0017, 0x0019),
    "anonymous NULL or RC4": (0xC015, 0xC016, 0xC017),
    "IDEA and SEED": (0x0007, 0x0096, 0x009A),
    "pre-shared keys": (0x008C, 0x008D, 0x00A8, 0x00A9, 0xC035, 0xC036),
    "SRP": (0xC01D, 0xC020),
    "integrity only": (0xC0B4, 0xC0B5),
}


class Answer(NamedTuple):
    """``version`` is 0 when there was no more than an alert."""

    version: int
    cipher: int = 0


def vector(octets: bytes, width: int = 2) -> bytes:
    return len(octets).to_bytes(width, "big") + octets


def numbers(values: Sequence[int]) -> bytes:
    return vector(struct.pack(f"!{len(values)}H", *values))


def extension(number: int, content: bytes) -> bytes:
    return struct.pack("!H", number) + vector(content)


def hello(
    version: int,
    ciphers: Sequence[int],
    signatures: Sequence[int] = MODERN,
    groups: Sequence[int] = (29, 23, 24, 25),
    extensions: bool = True,
) -> bytes:
    """A ClientHello that offers up to ``version`` (RFC 5246 section 7.4.1.2, RFC 8446 4.1.2)."""
    more = extension(0, vector(b"\0" + vector(b"mail.example.org")))
    more += extension(10, numbers(groups)) + extension(11, b"\1\0")
    more += extension(0xFF01, b"\0") + extension(23, b"")
    if version >= TLS12 and signatures:
        more += extension(13, numbers(signatures))
    if version >= TLS13:
        more += extension(43, vector(struct.pack("!HH", TLS13, TLS12), 1))
        more += extension(45, b"\1\1")
        share = struct.pack("!H", 29) + vector(bytes(range(9, 41)))
        more += extension(51, vector(share))
    body = struct.pack("!H", min(version, TLS12)) + bytes(range(32)) + vector(bytes(32), 1)
    body += numbers(ciphers) + vector(b"\0", 1)
    if extensions:
        body += vector(more)
    message = b"\1" + vector(body, 3)
    return b"\x16" + struct.pack("!H", min(version, TLS10)) + vector(message)


@functools.cache
def context(kinds: tuple[str, ...], ciphers: str = "") -> SSL.Context:
    """That of a server with keys of these kinds."""
    with tempfile.TemporaryDirectory() as name:
        pairs = [authority().issue(kind=kind).save(Path(name), kind) for kind in kinds]
        texts = tuple((str(chain), str(key)) for chain, key in pairs)
        return Contexts(EncryptionSettings(pairs=texts, ciphers=ciphers)).current()


BOTH, ECDSA, RSA = ("ecdsa", "rsa"), ("ecdsa",), ("rsa",)


def answer(octets: bytes, kinds: tuple[str, ...] = BOTH, ciphers: str = "") -> Answer:
    """What the server says to that."""
    return answer_of(context(kinds, ciphers), octets)


def answer_of(one: SSL.Context, octets: bytes) -> Answer:
    server = SSL.Connection(one, None)
    server.set_accept_state()
    server.bio_write(octets)
    with contextlib.suppress(SSL.Error):
        server.do_handshake()
    try:
        said = server.bio_read(1 << 16)
    except SSL.WantReadError:
        return Answer(0)
    assert said[0] in (21, 22), said
    return _chosen(said[9:]) if said[0] == 22 else Answer(0)


def _chosen(body: bytes) -> Answer:
    """Of a ServerHello."""
    version = int.from_bytes(body[:2], "big")
    rest = body[35 + body[34] :]
    cipher, extensions = int.from_bytes(rest[:2], "big"), rest[5:]
    while len(extensions) >= 4:
        number, length = struct.unpack("!HH", extensions[:4])
        if number == 43:
            version = int.from_bytes(extensions[4:6], "big")
        extensions = extensions[4 + length :]
        if number == 51:
            break
    return Answer(version, cipher)


EVERYTHING = (*AEAD_ECDSA, *AEAD_RSA, *CBC_ECDSA, *CBC_RSA, *DHE_RSA, *OLD_RSA)


@pytest.mark.parametrize("version", [TLS10, TLS11], ids=NAMES.get)
def test_a_server_without_any_rules_takes_what_is_refused_below(version):
    """So that it is not the hellos that are wrong."""
    lax = SSL.Context(SSL.TLS_SERVER_METHOD)
    lax.set_min_proto_version(SSL.TLS1_VERSION)
    lax.set_cipher_list(b"ALL:eNULL:@SECLEVEL=0")
    issued = authority().issue(kind="rsa")
    lax.use_certificate(crypto.X509.from_cryptography(issued.certificate))
    lax.use_privatekey(crypto.PKey.from_cryptography_key(issued.key))
    assert answer_of(lax, hello(version, EVERYTHING)).version == version
    assert answer_of(lax, hello(TLS12, (0x003B,))) == (TLS12, 0x003B)


# Protocols.


@pytest.mark.parametrize("kinds", [BOTH, ECDSA, RSA], ids="-".join)
@pytest.mark.parametrize("version", [TLS12, TLS13], ids=NAMES.get)
def test_tls_1_2_and_1_3_get_through(version, kinds):
    """TO-65; that the test of the others can fail."""
    ciphers = (*THIRTEEN, *EVERYTHING) if version == TLS13 else EVERYTHING
    assert answer(hello(version, ciphers), kinds).version == version


@pytest.mark.parametrize("kinds", [BOTH, ECDSA, RSA], ids="-".join)
@pytest.mark.parametrize("version", [SSL3, TLS10, TLS11], ids=NAMES.get)
def test_older_protocols_do_not(version, kinds):
    """TO-65; whatever the list of ciphers says."""
    for ciphers in ("", "ALL:@SECLEVEL=0"):
        assert answer(hello(version, EVERYTHING), kinds, ciphers).version == 0
        assert answer(hello(version, EVERYTHING, extensions=False), kinds, ciphers).version == 0


def test_a_hello_of_sslv2_is_none():
    """Also one that says that it can do better."""
    for version in (b"\0\2", b"\3\1", b"\3\3"):
        specs = b"\7\0\xc0\1\0\x80\0\0\x2f\0\0\x35"
        body = b"\1" + version + struct.pack("!HHH", len(specs), 0, 16) + specs + bytes(16)
        assert answer(bytes([0x80, len(body)]) + body).version == 0


def test_a_client_that_was_made_to_offer_less_than_it_can_notices():
    """RFC 7507: TLS_FALLBACK_SCSV."""
    assert answer(hello(TLS12, (*EVERYTHING, 0x5600))).version == 0


def test_a_version_of_the_future_gets_the_newest_of_today():
    octets = hello(TLS12, EVERYTHING).replace(b"\3\3", b"\3\x09", 1)
    assert answer(octets).version == TLS12


# Ciphers.


@pytest.mark.parametrize("cipher", AEAD_ECDSA, ids="{:04X}".format)
def test_elliptic_curves_with_authenticated_ciphers_work_with_an_ecdsa_key(cipher):
    assert answer(hello(TLS12, (cipher,)), ECDSA) == (TLS12, cipher)


@pytest.mark.parametrize("cipher", AEAD_RSA, ids="{:04X}".format)
def test_elliptic_curves_with_authenticated_ciphers_work_with_an_rsa_key(cipher):
    assert answer(hello(TLS12, (cipher,)), RSA) == (TLS12, cipher)


@pytest.mark.parametrize("cipher", THIRTEEN, ids="{:04X}".format)
@pytest.mark.parametrize("kinds", [ECDSA, RSA], ids="-".join)
def test_all_ciphers_of_tls_1_3_work(cipher, kinds):
    assert answer(hello(TLS13, (cipher,)), kinds) == (TLS13, cipher)


@pytest.mark.parametrize("kinds", [BOTH, ECDSA, RSA], ids="-".join)
@pytest.mark.parametrize("what", BAD)
def test_ciphers_that_protect_nothing_are_refused(what, kinds):
    """TO-66: each alone, and all at once."""
    for cipher in BAD[what]:
        assert answer(hello(TLS12, (cipher, 0x00FF)), kinds).version == 0, hex(cipher)
    assert answer(hello(TLS12, BAD[what]), kinds).version == 0


@pytest.mark.parametrize("what", BAD)
def test_they_are_not_chosen_before_a_good_one(what):
    chosen = answer(hello(TLS12, (*BAD[what], 0xC02F)))
    assert chosen == (TLS12, 0xC02F)


def test_forward_secrecy_is_preferred():
    """Whatever the client likes best."""
    chosen = answer(hello(TLS12, (*OLD_RSA, *CBC_RSA, *reversed(AEAD_RSA))), RSA)
    assert chosen.cipher in AEAD_RSA


def test_authenticated_ciphers_are_preferred():
    chosen = answer(hello(TLS12, (*CBC_ECDSA, *CBC_RSA, *AEAD_ECDSA, *AEAD_RSA)))
    assert chosen.cipher in (*AEAD_ECDSA, *AEAD_RSA)


@pytest.mark.parametrize(
    ("ciphers", "signatures", "chosen"),
    [
        ((*AEAD_ECDSA, *AEAD_RSA), RSA_SIGNED, AEAD_RSA),
        ((*AEAD_ECDSA, *AEAD_RSA), ECDSA_SIGNED, AEAD_ECDSA),
        (AEAD_RSA, MODERN, AEAD_RSA),
        (AEAD_ECDSA, MODERN, AEAD_ECDSA),
    ],
)
def test_what_the_client_can_check_chooses_the_kind_of_key(ciphers, signatures, chosen):
    assert answer(hello(TLS12, ciphers, signatures), BOTH).cipher in chosen


def test_a_client_that_cannot_check_the_only_kind_of_key_is_told_so():
    assert answer(hello(TLS12, AEAD_RSA), ECDSA).version == 0
    assert answer(hello(TLS12, AEAD_ECDSA), RSA).version == 0
    assert answer(hello(TLS13, THIRTEEN, RSA_SIGNED), ECDSA).version == 0


def test_a_list_of_ciphers_narrows_the_choice():
    """TO-65: --ciphers."""
    only = "ECDHE-RSA-AES128-GCM-SHA256"
    for cipher in EVERYTHING:
        expected = TLS12 if cipher == 0xC02F else 0
        assert answer(hello(TLS12, (cipher,)), BOTH, only).version == expected, hex(cipher)


# Clients.


class ClientOf(NamedTuple):
    """What a mail client's library says first."""

    version: int
    ciphers: tuple[int, ...]
    signatures: tuple[int, ...] = MODERN
    groups: tuple[int, ...] = (29, 23, 24)


CLIENTS = {
    "Java 8": ClientOf(
        TLS12,
        (
            *(0xC024, 0xC028, 0x003D, 0xC026, 0xC02A, 0x006B, 0x006A, 0xC00A, 0xC014, 0x0035),
            *(0xC005, 0xC00F, 0x0039, 0x0038, 0xC023, 0xC027, 0x003C, 0xC025, 0xC029, 0x0067),
            *(0x0040, 0xC009, 0xC013, 0x002F, 0xC004, 0xC00E, 0x0033, 0x0032, 0xC02C, 0xC02B),
            *(0xC030, 0x009D, 0xC02E, 0xC032, 0x009F, 0x00A3, 0xC02F, 0x009C, 0xC02D, 0xC031),
            *(0x009E, 0x00A2, 0xC008, 0xC012, 0x000A, 0xC003, 0xC00D, 0x0016, 0x0013, 0x00FF),
        ),
        (0x0603, 0x0601, 0x0503, 0x0501, 0x0403, 0x0401, 0x0402, 0x0303, 0x0301, *SHA1_SIGNED),
        (23, 24, 25),
    ),
    "Java 11": ClientOf(
        TLS13,
        (0x1301, 0x1302, 0xC02C, 0xC02B, 0xC030, 0x009D, 0xC02E, 0xC032, 0x009F, 0x00A3, 0xC02F),
        (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0809, 0x080A, 0x080B, 0x0401, 0x0501),
    ),
    "Outlook 2010 to 2016 on Windows 7 (Schannel)": ClientOf(
        TLS12,
        (
            *(0xC028, 0xC027, 0xC014, 0xC013, 0x009F, 0x009E, 0x009D, 0x009C, 0x003D, 0x003C),
            *(0x0035, 0x002F, 0xC02C, 0xC02B, 0xC024, 0xC023, 0xC00A, 0xC009, 0x006A, 0x0040),
            *(0x0038, 0x0032, 0x000A, 0x0013),
        ),
        (0x0401, 0x0501, 0x0201, 0x0403, 0x0503, 0x0203, 0x0202, 0x0601, 0x0603),
        (23, 24),
    ),
    "Outlook on Windows 8.1 (Schannel)": ClientOf(
        TLS12,
        (
            *(0xC028, 0xC027, 0xC014, 0xC013, 0x009F, 0x009E, 0x0039, 0x0033, 0x009D, 0x009C),
            *(0x003D, 0x003C, 0x0035, 0x002F, 0xC02C, 0xC02B, 0xC024, 0xC023, 0xC00A, 0xC009),
        ),
        (0x0601, 0x0603, 0x0401, 0x0501, 0x0201, 0x0403, 0x0503, 0x0203, 0x0202),
        (23, 24),
    ),
    "Outlook on Windows 10 (Schannel)": ClientOf(
        TLS12,
        (
            *(0xC02C, 0xC02B, 0xC030, 0xC02F, 0x009F, 0x009E, 0xC024, 0xC023, 0xC028, 0xC027),
            *(0xC00A, 0xC009, 0xC014, 0xC013, 0x009D, 0x009C, 0x003D, 0x003C, 0x0035, 0x002F),
        ),
        (0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0201, 0x0403, 0x0503, 0x0203, 0x0601, 0x0603),
    ),
    "Windows 11 (Schannel)": ClientOf(
        TLS13,
        (0x1302, 0x1301, 0xC02C, 0xC02B, 0xC030, 0xC02F, 0xC024, 0xC023, 0xC028, 0xC027, 0x009D),
    ),
    "Apple Mail on OS X 10.11": ClientOf(
        TLS12,
        (
            *(0x00FF, 0xC02C, 0xC02B, 0xC024, 0xC023, 0xC00A, 0xC009, 0xC008, 0xC030, 0xC02F),
            *(0xC028, 0xC027, 0xC014, 0xC013, 0xC012, 0x009D, 0x009C, 0x003D, 0x003C, 0x0035),
        ),
        (0x0401, 0x0201, 0x0501, 0x0601, 0x0403, 0x0203, 0x0503),
        (23, 24, 25),
    ),
    "iOS 17 Mail": ClientOf(
        TLS13,
        (
            *(0x1301, 0x1302, 0x1303, 0xC02C, 0xC02B, 0xCCA9, 0xC030, 0xC02F, 0xCCA8, 0xC00A),
            *(0xC009, 0xC014, 0xC013, 0x009D, 0x009C, 0x0035, 0x002F, 0xC008, 0xC012, 0x000A),
        ),
        (0x0403, 0x0804, 0x0401, 0x0503, 0x0203, 0x0805, 0x0501, 0x0806, 0x0601, 0x0201),
    ),
    "Thunderbird 128 (NSS)": ClientOf(
        TLS13,
        (
            *(0x1301, 0x1303, 0x1302, 0xC02B, 0xC02F, 0xCCA9, 0xCCA8, 0xC02C, 0xC030, 0xC00A),
            *(0xC009, 0xC013, 0xC014, 0x009C, 0x009D, 0x002F, 0x0035),
        ),
        (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0203, 0x0201),
        (29, 23, 24, 25, 256, 257),
    ),
    "Thunderbird 45 (NSS)": ClientOf(
        TLS12,
        (0xC02B, 0xC02F, 0xC00A, 0xC009, 0xC013, 0xC014, 0x0033, 0x0039, 0x002F, 0x0035, 0x000A),
        (0x0401, 0x0501, 0x0601, 0x0201, 0x0403, 0x0503, 0x0603, 0x0203, 0x0402, 0x0202),
        (23, 24, 25),
    ),
    "K-9 on Android 5": ClientOf(
        TLS12,
        (
            *(0xCC14, 0xCC13, 0xC02B, 0xC02F, 0x009E, 0xC00A, 0xC009, 0xC013, 0xC014, 0x0033),
            *(0x0039, 0x009C, 0x002F, 0x0035, 0x00FF),
        ),
        (0x0601, 0x0603, 0x0501, 0x0503, 0x0401, 0x0403, 0x0301, 0x0303, *SHA1_SIGNED),
        (23, 24, 25),
    ),
    "GnuTLS 3.7 (msmtp, Evolution, mutt)": ClientOf(
        TLS13,
        (
            *(0x1302, 0x1303, 0x1301, 0x1304, 0xC02C, 0xCCA9, 0xC0AD, 0xC00A, 0xC02B, 0xC0AC),
            *(0xC009, 0xC030, 0xCCA8, 0xC014, 0xC02F, 0xC013, 0x009D, 0xC09D, 0x0035, 0x009C),
            *(0xC09C, 0x002F, 0x009F, 0xCCAA, 0xC09F, 0x0039, 0x009E, 0xC09E, 0x0033),
        ),
        (0x0401, 0x0809, 0x0804, 0x0403, 0x0807, 0x0501, 0x080A, 0x0805, 0x0503, 0x0808, 0x0601),
        (23, 24, 25, 29, 30, 256, 257),
    ),
    "GnuTLS 3.3 (Debian 8)": ClientOf(
        TLS12,
        (
            *(0xC02B, 0xC02C, 0xC086, 0xC087, 0xC009, 0xC023, 0xC00A, 0xC024, 0xC072, 0xC073),
            *(0xC008, 0xC02F, 0xC030, 0xC08A, 0xC08B, 0xC013, 0xC027, 0xC014, 0xC028, 0x009C),
        ),
        (0x0401, 0x0402, 0x0403, 0x0501, 0x0503, 0x0601, 0x0603, 0x0301, 0x0302, 0x0303),
        (23, 24, 25, 21, 19),
    ),
    "OpenSSL 3 (curl, swaks, Python)": ClientOf(
        TLS13,
        (
            *(0x1302, 0x1303, 0x1301, 0xC02C, 0xC030, 0x009F, 0xCCA9, 0xCCA8, 0xCCAA, 0xC02B),
            *(0xC02F, 0x009E, 0xC024, 0xC028, 0x006B, 0xC023, 0xC027, 0x0067, 0xC00A, 0xC014),
            *(0x0039, 0xC009, 0xC013, 0x0033, 0x009D, 0x009C, 0x003D, 0x003C, 0x0035, 0x002F),
            0x00FF,
        ),
        (0x0403, 0x0503, 0x0603, 0x0807, 0x0808, 0x0809, 0x080A, 0x080B, 0x0804, 0x0805, 0x0806),
        (29, 23, 30, 25, 24, 256, 257),
    ),
    "OpenSSL 1.0.1 (Debian 7)": ClientOf(
        TLS12,
        (
            *(0xC030, 0xC02C, 0xC028, 0xC024, 0xC014, 0xC00A, 0xC022, 0xC021, 0x00A3, 0x009F),
            *(0x006B, 0x006A, 0x0039, 0x0038, 0x0088, 0xC032, 0xC02E, 0x009D, 0x003D, 0x0035),
            *(0xC012, 0xC008, 0xC02F, 0xC02B, 0xC027, 0xC023, 0xC013, 0xC009, 0xC011, 0xC007),
            *(0x0005, 0x0004, 0x0015, 0x0012, 0x0009, 0x00FF),
        ),
        (0x0601, 0x0602, 0x0603, 0x0501, 0x0503, 0x0401, 0x0402, 0x0403, 0x0301, 0x0303),
        (23, 24, 25, 22, 14, 13),
    ),
    "Go 1.22": ClientOf(
        TLS13,
        (
            *(0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8, 0xC009, 0xC013, 0xC00A, 0xC014),
            *(0x1301, 0x1302, 0x1303),
        ),
        (0x0804, 0x0403, 0x0807, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0503, 0x0603, 0x0201),
        (29, 23, 24, 25),
    ),
    "rustls": ClientOf(
        TLS13,
        (0x1302, 0x1301, 0x1303, 0xC02C, 0xC02B, 0xCCA9, 0xC030, 0xC02F, 0xCCA8, 0x00FF),
        (0x0503, 0x0403, 0x0807, 0x0806, 0x0805, 0x0804, 0x0601, 0x0501, 0x0401),
        (29, 23, 24),
    ),
}
OLD_CLIENTS = {
    "Outlook on Windows XP": ClientOf(
        TLS10, (0x0004, 0x0005, 0x000A, 0x0009, 0x0064, 0x0062, 0x0003, 0x0006, 0x0013, 0x0012)
    ),
    "Java 6": ClientOf(TLS10, (0x0004, 0x0005, 0x002F, 0x0033, 0x0032, 0x000A, 0x0016, 0x0013)),
    "Android 4.0": ClientOf(
        TLS10, (0xC014, 0xC00A, 0x0039, 0x0035, 0xC013, 0xC009, 0x0033, 0x002F, 0x0005)
    ),
    "tlslite of the ancestor's time": ClientOf(TLS11, (0x0039, 0x0035, 0x0033, 0x002F, 0x0005)),
}


@pytest.mark.parametrize("kinds", [BOTH, ECDSA, RSA], ids="-".join)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_mail_client_gets_through(name, kinds):
    """TO-66: with forward secrecy, whichever kind of key the administrator has."""
    client = CLIENTS[name]
    chosen = answer(hello(client.version, client.ciphers, client.signatures, client.groups), kinds)
    assert chosen.version == client.version
    assert chosen.cipher in client.ciphers
    secret = (*THIRTEEN, *AEAD_ECDSA, *AEAD_RSA, *CBC_ECDSA, *CBC_RSA)
    assert chosen.cipher in secret


@pytest.mark.parametrize("name", OLD_CLIENTS)
def test_one_that_knows_nothing_after_tls_1_1_does_not(name):
    """TO-65."""
    client = OLD_CLIENTS[name]
    assert answer(hello(client.version, client.ciphers)).version == 0
