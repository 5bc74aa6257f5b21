"""The PROXY protocol: what a header says, and what is none."""

from __future__ import annotations

import struct

import pytest
from fakes import octet_by_octet
from proxyheaders import (
    ALPN,
    AUTHORITY,
    CRC32C,
    LOCAL,
    NETNS,
    NOOP,
    SIGNATURE,
    SSL,
    SSL_VERSION,
    TCP4,
    TCP6,
    UDP4,
    UNIQUE_ID,
    UNIX,
    UNSPEC,
    block,
    tls,
    value,
    version_1,
    version_2,
)

from tofmipd.proxyprotocol import (
    LIMIT_OCTETS,
    V1_LIMIT_OCTETS,
    BadHeader,
    Endpoint,
    Header,
    Tls,
    begins_like_one,
    crc32c,
    parse,
)

V4 = ("203.0.113.9", "192.0.2.1")
V6 = ("2001:db8::9", "2001:db8::1")
ENDS_V4 = (Endpoint(V4[0], 4711), Endpoint(V4[1], 465))
ENDS_V6 = (Endpoint(V6[0], 4711), Endpoint(V6[1], 465))
NOBODY = (None, None)
MODERN = Tls("TLSv1.3", "TLS_AES_128_GCM_SHA256")
# Its sum is still to be put in.
SUMMED = version_2(*V4, more=value(CRC32C, bytes(4)) + tls())
SUM_PLACE = SUMMED.index(value(CRC32C, bytes(4))) + 3


def with_sum(octets, number):
    return octets[:SUM_PLACE] + struct.pack("!I", number) + octets[SUM_PLACE + 4 :]


RIGHT = {
    "v1 for IPv4": (version_1(*V4), ENDS_V4, None),
    "v1 for IPv6": (version_1(*V6), ENDS_V6, None),
    "v1 with addresses written out": (
        version_1("2001:0DB8:0000:0000:0000:0000:0000:0009", "2001:db8:0::1"),
        ENDS_V6,
        None,
    ),
    "v1 with an IPv4 address in an IPv6 one": (version_1("::ffff:203.0.113.9", V6[1]), None, None),
    "v1 with port 0": (version_1(*V4, (0, 65535)), None, None),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", NOBODY, None),
    "v1 unknown with more": (b"PROXY UNKNOWN ffff:: x 1 !\r\n", NOBODY, None),
    "v1 unknown at its longest": (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", NOBODY, None),
    "v2 for IPv4": (version_2(*V4), ENDS_V4, None),
    "v2 for IPv6": (version_2(*V6), ENDS_V6, None),
    "v2 with an IPv4 address in an IPv6 one": (
        version_2("::ffff:203.0.113.9", "::ffff:192.0.2.1"),
        ENDS_V4,
        None,
    ),
    "v2 with values of no interest": (
        version_2(
            *V4,
            more=value(ALPN, b"smtp")
            + value(AUTHORITY, b"\xffmail.example")
            + value(NOOP, b"")
            + value(UNIQUE_ID, bytes(128))
            + value(NETNS, b"blue")
            + value(0xEE, b"?" * 300),
        ),
        ENDS_V4,
        None,
    ),
    "v2 with TLS": (version_2(*V6, more=tls()), ENDS_V6, MODERN),
    "v2 with TLS of an unknown kind": (
        version_2(*V4, more=value(SSL, struct.pack("!BI", 7, 1))),
        ENDS_V4,
        Tls("", ""),
    ),
    "v2 with names that no log should have": (
        version_2(*V4, more=tls(b"TLSv1.3\r\nX: y", b"x" * 61)),
        ENDS_V4,
        Tls("", ""),
    ),
    "v2 that says that there was no TLS": (
        version_2(*V4, more=value(SSL, struct.pack("!BI", 0, 1) + value(SSL_VERSION, b"TLSv1"))),
        ENDS_V4,
        None,
    ),
    "v2 with its sum": (with_sum(SUMMED, crc32c(SUMMED)), ENDS_V4, MODERN),
    "v2 for the proxy itself": (block(b"", UNSPEC, LOCAL), NOBODY, None),
    "v2 for the proxy itself, with an address": (
        block(version_2(*V4, more=tls())[16:], TCP4, LOCAL),
        NOBODY,
        None,
    ),
    "v2 for the proxy itself, of a family that is none": (block(b"x", 0xFF, LOCAL), NOBODY, None),
    "v2 for nobody known": (block(b"", UNSPEC), NOBODY, None),
    "v2 for nobody known, with more": (block(b"\1\2\3", UNSPEC), NOBODY, None),
    "v2 for a local socket": (block(bytes(216) + tls(), UNIX), NOBODY, MODERN),
    "v2 for datagrams": (block(bytes(12), UDP4), NOBODY, None),
    "v2 at its longest": (version_2(*V4, more=value(NOOP, bytes(LIMIT_OCTETS - 31))), None, None),
}

WRONG = {
    "a greeting": b"EHLO client.example\r\n",
    "a handshake": b"\x16\x03\x01\x02\x00\x01\x00",
    "one octet too many": b"P ROXY",
    "another case": b"proxy TCP4 ",
    "v1 of no family": b"PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n",
    "v1 with two blanks": b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 1\r\n",
    "v1 with a blank at the end": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n",
    "v1 with too little": b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
    "v1 with too much": b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 1\r\n",
    "v1 of IPv4 with IPv6": b"PROXY TCP4 ::1 ::1 1 1\r\n",
    "v1 of IPv6 with IPv4": b"PROXY TCP6 1.2.3.4 1.2.3.4 1 1\r\n",
    "v1 with no address": b"PROXY TCP4 1.2.3 1.2.3.4 1 1\r\n",
    "v1 with an octal address": b"PROXY TCP4 010.2.3.4 1.2.3.4 1 1\r\n",
    "v1 with a name": b"PROXY TCP4 face.example 1.2.3.4 1 1\r\n",
    "v1 with a zone": b"PROXY TCP6 fe80::1%1 ::1 1 1\r\n",
    "v1 with a large port": b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n",
    "v1 with an octal port": b"PROXY TCP4 1.2.3.4 1.2.3.4 025 1\r\n",
    "v1 with a signed port": b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 1\r\n",
    "v1 with UNKNOWN that goes on": b"PROXY UNKNOWNX\r\n",
    "v1 with a bare LF": b"PROXY UNKNOWN\n",
    "v1 with a bare CR": b"PROXY UNKNOWN\rx",
    "v1 with a tab": b"PROXY\tUNKNOWN\r\n",
    "v1 with an octet beyond ASCII": b"PROXY UNKNOWN \xff",
    "v1 that does not end": b"PROXY UNKNOWN " + b"f" * 93,
    "v1 that ends an octet too late": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "v2 of version 1": block(b"", UNSPEC, 0x11),
    "v2 of version 3": block(b"", UNSPEC, 0x31),
    "v2 with an unknown command": block(b"", UNSPEC, 0x22),
    "v2 of an unknown family": block(bytes(300), 0x41),
    "v2 of an unknown transport": block(bytes(300), 0x13),
    "v2 too long": SIGNATURE + struct.pack("!BBH", 0x21, TCP4, LIMIT_OCTETS - 15),
    "v2 too long for the proxy itself": SIGNATURE + struct.pack("!BBH", LOCAL, UNSPEC, 0xFFFF),
    "v2 without room for IPv4": block(bytes(11), TCP4),
    "v2 without room for IPv6": block(bytes(35), TCP6),
    "v2 without room for a path": block(bytes(215), UNIX),
    "v2 with a cut type": version_2(*V4, more=b"\4\0"),
    "v2 with a cut value": version_2(*V4, more=b"\4\0\2x"),
    "v2 with a cut value of TLS": version_2(*V4, more=value(SSL, bytes(4))),
    "v2 with a cut value within TLS": version_2(*V4, more=value(SSL, b"\1\0\0\0\0\x21\0\2x")),
    "v2 with a wrong sum": with_sum(SUMMED, crc32c(SUMMED) ^ 1),
    "v2 with a sum of another size": version_2(*V4, more=value(CRC32C, b"")),
}


def read(pieces):
    """What a header says that comes in pieces, and how many of their octets were needed."""
    octets = b""
    for piece in pieces:
        octets += piece
        header = parse(octets)
        if header is not None:
            return header, len(octets)
    return None, len(octets)


@pytest.mark.parametrize(("octets", "ends", "by_tls"), RIGHT.values(), ids=RIGHT)
def test_a_header_says_whom_the_proxy_speaks_for(octets, ends, by_tls):
    header = parse(octets)
    assert header is not None
    assert (header.octets, header.tls) == (len(octets), by_tls)
    if ends is not None:
        assert (header.source, header.destination) == ends


@pytest.mark.parametrize("octets", [right[0] for right in RIGHT.values()], ids=RIGHT)
def test_neither_pieces_nor_what_follows_changes_a_header(octets):
    for behind in (b"", b"EHLO client.example\r\n", octets, b"\0" * 5000):
        assert parse(octets + behind) == parse(octets)
    assert read(octet_by_octet(octets)) == (parse(octets), len(octets))


@pytest.mark.parametrize("octets", WRONG.values(), ids=WRONG)
def test_what_is_no_header_is_refused(octets):
    with pytest.raises(BadHeader):
        parse(octets)
    with pytest.raises(BadHeader):
        read(octet_by_octet(octets))


def test_an_ipv4_address_within_ipv6_is_one_of_ipv4():
    header = parse(RIGHT["v1 with an IPv4 address in an IPv6 one"][0])
    assert header is not None
    assert header.source == ENDS_V4[0]


def test_ports_may_have_all_values():
    header = parse(RIGHT["v1 with port 0"][0])
    assert header == Header(
        len(RIGHT["v1 with port 0"][0]),
        *(Endpoint(address, port) for address, port in zip(V4, (0, 65535), strict=True)),
    )


def test_the_longest_line_that_the_specification_knows_is_taken():
    longest = b"PROXY UNKNOWN %s %s 65535 65535\r\n" % ((b"ffff:" * 8)[:-1], (b"ffff:" * 8)[:-1])
    assert len(longest) == V1_LIMIT_OCTETS
    assert parse(longest) == Header(V1_LIMIT_OCTETS)


# RFC 3720, appendix B.4, and the usual check value.
@pytest.mark.parametrize(
    ("octets", "crc"),
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"123456789", 0xE3069283)],
)
def test_sums_are_those_of_the_rfc(octets, crc):
    assert crc32c(octets) == crc


@pytest.mark.parametrize(
    ("octets", "one"),
    [
        (b"PROXY TCP4 1", True),
        (SIGNATURE, True),
        (b"PROX", False),
        (SIGNATURE[:-1], False),
        (b"EHLO", False),
        (b"", False),
    ],
)
def test_who_begins_like_a_proxy_is_noticed(octets, one):
    assert begins_like_one(octets) is one
