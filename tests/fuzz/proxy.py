"""Headers of the PROXY protocol, held against its specification.

Input: how to cut, then what comes first on a connection.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator

from proxyheaders import (
    CRC32C,
    LOCAL,
    SIGNATURE,
    SSL,
    TCP4,
    TCP6,
    UNIX,
    UNSPEC,
    block,
    tls,
    value,
    version_1,
    version_2,
)

from fuzz.pieces import HEAD, parted, ways
from tofmipd.proxyprotocol import BadHeader, Header, begins_like_one, parse

WORDS = (SIGNATURE, b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", b"\r\n", b"\x21\x11", b"\x20")
# (length, ends or None, came by TLS), or how it failed.
Found = tuple[int, tuple[str, int, str, int] | None, bool] | str
_LINE = re.compile(
    rb"PROXY (?:(UNKNOWN)(?: [^\r\n]*)?"
    rb"|TCP([46]) (\S+) (\S+) (0|[1-9][0-9]*) (0|[1-9][0-9]*))\r\n"
)


def check(octets: bytes) -> None:
    head, text = parted(octets)
    expected = by_the_book(text)
    for pieces in ways(head, text):
        found = read(pieces)
        assert found == expected, f"{found!r}, by the book {expected!r}"
    if isinstance(expected, tuple):
        check_header(text, expected[0])


def check_header(text: bytes, length: int) -> None:
    """Nothing before its last octet is enough, and nothing behind it matters."""
    header = parse(text[:length])
    assert header is not None
    assert header.octets == length
    assert parse(text[:length] + b"\r\n\r\nPROXY ") == header
    assert parse(text[: length - 1]) is None
    assert begins_like_one(text)
    for name in header.tls or ():
        assert re.fullmatch(r"[!-'*-~]{0,60}", name), "a name breaks out of its comment"


def read(pieces: Iterable[bytes]) -> Found:
    octets = b""
    for piece in pieces:
        octets += piece
        try:
            header = parse(octets)
        except BadHeader:
            return "bad"
        if header is not None:
            return described(header)
    return "more"


def described(header: Header) -> Found:
    assert (header.source is None) is (header.destination is None)
    ends = None
    if header.source is not None and header.destination is not None:
        ends = (*header.source, *header.destination)
    return header.octets, ends, header.tls is not None


def by_the_book(octets: bytes) -> Found:
    if octets.startswith(SIGNATURE):
        return _version_2(octets)
    if octets.startswith(b"PROXY "):
        return _version_1(octets[:107])
    begun = any(beginning.startswith(octets) for beginning in (SIGNATURE, b"PROXY "))
    return "more" if begun else "bad"


def _version_1(octets: bytes) -> Found:
    line = octets.partition(b"\n")[0]
    printable = all(32 <= octet < 127 for octet in line.removesuffix(b"\r"))
    if not printable or (line == octets and len(octets) == 107):
        return "bad"
    if line == octets:
        return "more"
    match = _LINE.fullmatch(line + b"\n")
    if match is None:
        return "bad"
    if match[1]:
        return len(line) + 1, None, False
    family = socket.AF_INET if match[2] == b"4" else socket.AF_INET6
    try:
        source, destination = (_packed(family, match[n].decode()) for n in (3, 4))
    except OSError:
        return "bad"
    ports = int(match[5]), int(match[6])
    if max(ports) > 65535:
        return "bad"
    return len(line) + 1, (_text(source), ports[0], _text(destination), ports[1]), False


def _packed(family: int, text: str) -> bytes:
    """Raises OSError."""
    return socket.inet_pton(family, text)


def _text(packed: bytes) -> str:
    """As the system writes an address, but for IPv6 that holds IPv4."""
    if packed.startswith(bytes(10) + b"\xff\xff") and len(packed) == 16:
        packed = packed[12:]
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, packed)
    # Other addresses with a dot are written without one here.
    if family == socket.AF_INET6 and "." in text:
        text = f"::{packed[12] << 8 | packed[13]:x}:{packed[14] << 8 | packed[15]:x}"
    return text


def _version_2(octets: bytes) -> Found:
    if len(octets) < 16:
        return "more"
    command, family, length = octets[12], octets[13], 16 + int.from_bytes(octets[14:16], "big")
    sizes = {UNSPEC: 0, TCP4: 12, 0x12: 12, TCP6: 36, 0x22: 36, UNIX: 216, 0x32: 216}
    if command not in (0x20, 0x21) or length > 4096:
        return "bad"
    if command == 0x21 and family not in sizes:
        return "bad"
    if len(octets) < length:
        return "more"
    if command == LOCAL or family == UNSPEC:
        return length, None, False
    whole = octets[:length]
    begin = 16 + sizes[family]
    try:
        by_tls = _values(whole, begin)
    except ValueError:
        return "bad"
    if family not in (TCP4, TCP6):
        return length, None, by_tls
    size = 4 if family == TCP4 else 16
    source, destination = whole[16 : 16 + size], whole[16 + size : 16 + 2 * size]
    ports = whole[begin - 4 : begin - 2], whole[begin - 2 : begin]
    numbers = [int.from_bytes(port, "big") for port in ports]
    return length, (_text(source), numbers[0], _text(destination), numbers[1]), by_tls


def _values(whole: bytes, begin: int) -> bool:
    """Whether the last that is said of TLS is that there was.  Raises ValueError."""
    by_tls = False
    for kind, start, octets in _split(whole, begin):
        if kind == SSL:
            if len(octets) < 5:
                raise ValueError("too short")
            list(_split(octets, 5))
            by_tls = bool(octets[0] & 1)
        if kind == CRC32C:
            blank = bytearray(whole)
            blank[start : start + len(octets)] = bytes(len(octets))
            if octets != _sum_by_the_book(bytes(blank)).to_bytes(4, "big"):
                raise ValueError("wrong sum")
    return by_tls


def _split(octets: bytes, begin: int) -> Iterator[tuple[int, int, bytes]]:
    if begin > len(octets):
        raise ValueError("no room for addresses")
    while begin < len(octets):
        end = begin + 3 + int.from_bytes(octets[begin + 1 : begin + 3], "big")
        if begin + 3 > len(octets) or end > len(octets):
            raise ValueError("cut")
        yield octets[begin], begin + 3, octets[begin + 3 : end]
        begin = end


def _sum_by_the_book(octets: bytes) -> int:
    """Bit by bit, with the polynomial of RFC 4960, appendix B, mirrored."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc ^= octet
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def seeds() -> Iterator[bytes]:
    v4, v6 = ("203.0.113.9", "192.0.2.1"), ("2001:db8::9", "::1")
    summed = version_2(*v4, more=tls() + value(CRC32C, bytes(4)))
    for text in (
        version_1(*v4),
        version_1(*v6) + b"EHLO x\r\n",
        b"PROXY UNKNOWN\r\n",
        version_2(*v4),
        version_2(*v6, more=tls() + value(4, b"")) + b"EHLO x\r\n",
        summed[:-4] + _sum_by_the_book(summed).to_bytes(4, "big"),
        block(b"", UNSPEC, LOCAL),
        block(bytes(216), UNIX),
        b"EHLO client.example\r\n",
    ):
        yield HEAD + text
