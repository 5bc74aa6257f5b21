"""The header of the PROXY protocol, versions 1 and 2, by which a proxy says whom it speaks for.

Octets in; out comes what the header says, or "more is needed", or BadHeader.  Nothing here reads.
The specification is HAProxy's doc/proxy-protocol.txt; its sections are those named below.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

V1_BEGINNING = b"PROXY "
V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# Section 2.1.  Version 2 allows more than anybody sends.
V1_LIMIT_OCTETS = 107
LIMIT_OCTETS = 4096

_V2_FIXED_OCTETS = 16
_V1_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?"
    rb"|TCP([46]) ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}) ([0-9]{1,5}) ([0-9]{1,5}))"
)
_NO_V1_LINE = re.compile(rb"[^ -~\r]|\r(?!\n|\Z)")
_PORT_LIMIT = 65535
_LOCAL, _PROXY = 0, 1
# Families and transports that may be named, and how many octets their addresses have; those of
# TCP are read, the others only skipped, as those of UNSPEC are.
_ADDRESS_OCTETS = {0x00: 0, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_TLV = struct.Struct("!BH")
_CRC32C, _SSL, _SSL_VERSION, _SSL_CIPHER = 0x03, 0x20, 0x21, 0x23
_SSL_FIXED_OCTETS = 5
_CLIENT_CAME_BY_TLS = 1
# What names of protocol versions and ciphers are made of.
_NAME = re.compile(rb"[A-Za-z0-9._+-]+")
_VERSION_LIMIT_OCTETS, _CIPHER_LIMIT_OCTETS = 20, 60


class BadHeader(Exception):
    """What came first is no header; ``str()`` says what is wrong with it."""


class Endpoint(NamedTuple):
    """An address in its usual spelling; IPv4 also where IPv6 was made of it."""

    address: str
    port: int


class Tls(NamedTuple):
    """How the client has reached the proxy; "" for what the proxy does not say."""

    version: str
    cipher: str


@dataclass(frozen=True, slots=True)
class Header:
    """``octets`` is its length.  ``source`` and ``destination`` are both None where the proxy
    speaks for itself or for a client without such addresses; ``tls`` is None for a client that
    came without."""

    octets: int
    source: Endpoint | None = None
    destination: Endpoint | None = None
    tls: Tls | None = None


def begins_like_one(octets: bytes) -> bool:
    """Whether these octets, the first of a connection, are the beginning of a header for sure."""
    return octets.startswith((V1_BEGINNING, V2_SIGNATURE))


def parse(octets: bytes) -> Header | None:
    """The header that a connection begins with; what stands behind it is not looked at.

    None: more octets are needed, and all of these belong to the header.  Raises BadHeader.
    """
    if V1_BEGINNING.startswith(octets[: len(V1_BEGINNING)]):
        return _version_1(octets)
    if V2_SIGNATURE.startswith(octets[: len(V2_SIGNATURE)]):
        return _version_2(octets)
    raise BadHeader("something else came first")


def _version_1(octets: bytes) -> Header | None:
    """Section 2.1."""
    line, end, _ = octets[:V1_LIMIT_OCTETS].partition(b"\r\n")
    if _NO_V1_LINE.search(line) or (not end and len(line) == V1_LIMIT_OCTETS):
        raise BadHeader("the line of version 1 is too long, or none")
    if not end:
        return None
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise BadHeader("version 1 with an unknown line")
    length = len(line) + len(end)
    if match[1] is None:
        return Header(length)
    version = int(match[1])
    return Header(
        length, _v1_endpoint(version, match[2], match[4]), _v1_endpoint(version, match[3], match[5])
    )


def _v1_endpoint(version: int, address: bytes, port: bytes) -> Endpoint:
    if int(port) > _PORT_LIMIT or (port.startswith(b"0") and port != b"0"):
        raise BadHeader("version 1 with a port that is none")
    try:
        found = ipaddress.ip_address(address.decode())
    except ValueError:
        raise BadHeader("version 1 with an address that is none") from None
    if found.version != version:
        raise BadHeader("version 1 with an address of the other family")
    return Endpoint(_spelled(found), int(port))


def _spelled(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _version_2(octets: bytes) -> Header | None:
    """Section 2.2."""
    if len(octets) < _V2_FIXED_OCTETS:
        return None
    command, family, size = struct.unpack_from("!BBH", octets, len(V2_SIGNATURE))
    length = _V2_FIXED_OCTETS + size
    if command >> 4 != 2 or command & 15 not in (_LOCAL, _PROXY):
        raise BadHeader("version 2 with an unknown command")
    if length > LIMIT_OCTETS:
        raise BadHeader("version 2, and too long")
    if command & 15 == _PROXY and family not in _ADDRESS_OCTETS:
        raise BadHeader("version 2 with an unknown family")
    if len(octets) < length:
        return None
    whole = octets[:length]
    # Who speaks for itself, or for nobody known, says nothing else that would count.
    if command & 15 == _LOCAL or family == _UNSPEC:
        return Header(length)
    return _with_addresses(whole, family)


def _with_addresses(whole: bytes, family: int) -> Header:
    begin = _V2_FIXED_OCTETS + _ADDRESS_OCTETS[family]
    if begin > len(whole):
        raise BadHeader("version 2 without room for its addresses")
    source = destination = None
    if family in (_TCP4, _TCP6):
        size = 4 if family == _TCP4 else 16
        packed = struct.unpack_from(f"!{size}s{size}sHH", whole, _V2_FIXED_OCTETS)
        source, destination = (
            Endpoint(_spelled(ipaddress.ip_address(packed[n])), packed[n + 2]) for n in (0, 1)
        )
    tls = None
    for kind, start, value in _values(whole, begin):
        if kind == _CRC32C:
            _check_sum(whole, start, value)
        elif kind == _SSL:
            tls = _tls(value)
    return Header(len(whole), source, destination, tls)


def _values(octets: bytes, begin: int) -> Iterator[tuple[int, int, bytes]]:
    """Type, place and value of each TLV from there on (section 2.2)."""
    while begin < len(octets):
        if begin + _TLV.size > len(octets):
            raise BadHeader("version 2 with a cut value")
        kind, size = _TLV.unpack_from(octets, begin)
        begin += _TLV.size
        if begin + size > len(octets):
            raise BadHeader("version 2 with a cut value")
        yield kind, begin, octets[begin : begin + size]
        begin += size


def _tls(value: bytes) -> Tls | None:
    """PP2_TYPE_SSL (section 2.2.6)."""
    if len(value) < _SSL_FIXED_OCTETS:
        raise BadHeader("version 2 with a cut value")
    names = {kind: inner for kind, _, inner in _values(value, _SSL_FIXED_OCTETS)}
    if not value[0] & _CLIENT_CAME_BY_TLS:
        return None
    return Tls(
        _name(names.get(_SSL_VERSION, b""), _VERSION_LIMIT_OCTETS),
        _name(names.get(_SSL_CIPHER, b""), _CIPHER_LIMIT_OCTETS),
    )


def _name(octets: bytes, limit_octets: int) -> str:
    return octets.decode() if len(octets) <= limit_octets and _NAME.fullmatch(octets) else ""


def _check_sum(whole: bytes, start: int, value: bytes) -> None:
    """PP2_TYPE_CRC32C (section 2.2.3): of the header with zeros in the place of the sum."""
    zeros = bytes(len(value))
    blank = whole[:start] + zeros + whole[start + len(value) :]
    if value != struct.pack("!I", crc32c(blank)):
        raise BadHeader("version 2 with a wrong sum")


def _crc_row(octet: int) -> int:
    for _ in range(8):
        octet = octet >> 1 ^ (0x82F63B78 if octet & 1 else 0)
    return octet


_CRC_TABLE = tuple(map(_crc_row, range(256)))


def crc32c(octets: bytes) -> int:
    """RFC 4960, appendix B."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = _CRC_TABLE[(crc ^ octet) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
