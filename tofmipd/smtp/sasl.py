"""SASL mechanisms as the client sees them (RFC 4954): a table, one row a mechanism.

A mechanism is a generator: it yields challenges, is sent the client's responses, both without
base64, and returns the credentials that a source then checks.  It raises BadExchange for a
response of the wrong structure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

from tofmipd.auth.credentials import Certificate, CramMd5, Credentials, Password
from tofmipd.smtp.envelope import Encryption

Exchange = Generator[bytes, bytes, Credentials]


class BadExchange(Exception):
    """The client's response does not have the structure of its mechanism."""


class Start(NamedTuple):
    """What an exchange begins with: a challenge if the mechanism needs one, and the encryption of
    the connection if it has any."""

    challenge: bytes = b""
    encryption: Encryption | None = None


@dataclass(frozen=True, slots=True)
class Mechanism:
    """``needs_challenge``: it begins with a challenge made where it will be checked, and takes
    no initial response.  ``clear``: the password itself travels."""

    begin: Callable[[Start], Exchange]
    needs_challenge: bool = False
    clear: bool = True


def _name(octets: bytes) -> str:
    try:
        return octets.decode("utf-8").lower()
    except UnicodeDecodeError:
        raise BadExchange("the user name is not UTF-8") from None


def _plain(start: Start) -> Exchange:
    """RFC 4616.  The authorisation identity must be empty or the user himself."""
    parts = (yield b"").split(b"\0")
    if len(parts) != 3:
        raise BadExchange("PLAIN takes three parts")
    authorisation, user, password = _name(parts[0]), _name(parts[1]), parts[2]
    if authorisation not in ("", user):
        raise BadExchange("nobody may act for somebody else")
    return Password(user, password)


def _login(start: Start) -> Exchange:
    """The mechanism LOGIN was never more than a draft."""
    user = _name((yield b"Username:"))
    return Password(user, (yield b"Password:"))


def _cram_md5(start: Start) -> Exchange:
    """RFC 2195."""
    user, blank, digest = (yield start.challenge).rpartition(b" ")
    if not blank:
        raise BadExchange("CRAM-MD5 takes a name and a digest")
    return CramMd5(_name(user), digest.lower())


def _external(start: Start) -> Exchange:
    """RFC 4422 appendix A: the client's certificate says who it is."""
    authorisation = _name((yield b""))
    if start.encryption is None or not start.encryption.names:
        raise BadExchange("there is no certificate")
    names = start.encryption.names
    if authorisation and authorisation not in names:
        raise BadExchange("nobody may act for somebody else")
    return Certificate(authorisation or names[0], start.encryption.certificate)


MECHANISMS = {
    "PLAIN": Mechanism(_plain),
    "LOGIN": Mechanism(_login),
    "CRAM-MD5": Mechanism(_cram_md5, needs_challenge=True, clear=False),
    # A certificate is shown in the handshake: without one there is nothing to offer.
    "EXTERNAL": Mechanism(_external, clear=False),
}


def decode(text: str) -> bytes:
    """Strict base64 (RFC 4648 section 4).  Raises ValueError."""
    # The library takes "AAAA====" too.
    if len(text) % 4 or "=" in text[:-2]:
        raise ValueError("not base64")
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64") from None


def encode(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")
