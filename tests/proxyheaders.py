"""Headers of the PROXY protocol as a proxy makes them."""

from __future__ import annotations

import ipaddress
import struct

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 1, 2, 3, 4, 5, 0x20, 0x30
SSL_VERSION, SSL_CN, SSL_CIPHER = 0x21, 0x22, 0x23
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UNIX = 0x00, 0x11, 0x12, 0x21, 0x31


def version_1(source: str, destination: str, ports: tuple[int, int] = (4711, 465)) -> bytes:
    kind = "TCP6" if ":" in source else "TCP4"
    return f"PROXY {kind} {source} {destination} {ports[0]} {ports[1]}\r\n".encode()


def version_2(
    source: str, destination: str, ports: tuple[int, int] = (4711, 465), more: bytes = b""
) -> bytes:
    packed = [ipaddress.ip_address(text).packed for text in (source, destination)]
    family = TCP4 if len(packed[0]) == 4 else TCP6
    return block(b"".join(packed) + struct.pack("!HH", *ports) + more, family)


def block(octets: bytes, family: int = TCP4, command: int = PROXY) -> bytes:
    """Version 2 with these octets behind the length."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(octets)) + octets


def value(kind: int, octets: bytes) -> bytes:
    return struct.pack("!BH", kind, len(octets)) + octets


def tls(version: bytes = b"TLSv1.3", cipher: bytes = b"TLS_AES_128_GCM_SHA256") -> bytes:
    """The value that says that the client came by TLS."""
    inner = value(SSL_VERSION, version) + value(SSL_CN, b"laptop") + value(SSL_CIPHER, cipher)
    return value(SSL, struct.pack("!BI", 1, 0) + inner)
