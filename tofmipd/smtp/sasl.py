"""SASL mechanisms as the client sees them (RFC 4954): a table, one row a mechanism.

A mechanism is a generator: it yields challenges, is sent the client's responses, both without
base64, and returns the credentials that a source then checks.  Where a challenge has to be made by
whoever will check it, it yields an Opening and is sent that challenge.  It raises BadExchange for
a response of the wrong structure.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple

from tofmipd.auth.credentials import Certificate, CramMd5, Credentials, Password, Scram
from tofmipd.auth.saslprep import login_name
from tofmipd.auth.scram import BINDING, PLUS, BadMessage, ClientFirst
from tofmipd.smtp.envelope import Encryption


@dataclass(frozen=True, slots=True)
class Opening:
    """A challenge is to be made; ``message`` is the client's first, b"" where the server begins."""

    message: bytes = b""


Exchange = Generator[bytes | Opening, bytes, Credentials | None]


class BadExchange(Exception):
    """The client's response does not have the structure of its mechanism."""


class Start(NamedTuple):
    """What an exchange begins with: the encryption of the connection if it has any, and the
    mechanisms that the client could have chosen."""

    encryption: Encryption | None = None
    offered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mechanism:
    """``server_first``: it begins with a challenge and takes no initial response.  ``clear``:
    the password itself travels.  ``encrypted``: there is none without encryption."""

    begin: Callable[[Start], Exchange]
    server_first: bool = False
    clear: bool = True
    encrypted: bool = False


def _name(octets: bytes) -> str:
    try:
        return login_name(octets)
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
    challenge = yield Opening()
    user, blank, digest = (yield challenge).rpartition(b" ")
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


def _scram(start: Start, *, bound: bool) -> Exchange:
    """RFC 5802 section 5; ``bound`` to the channel (section 6, RFC 9266)."""
    opening = yield b""
    try:
        first = ClientFirst.parse(opening)
    except BadMessage as error:
        raise BadExchange(str(error)) from None
    if first.binding != (BINDING if bound else ""):
        raise BadExchange("another channel binding")
    if first.could_bind and any(name.endswith(PLUS) for name in start.offered):
        # Somebody has taken them out of what the client was offered.
        raise BadExchange("the client was not shown what is offered")
    user, on_behalf_of = _name(first.user), _name(first.on_behalf_of)
    if on_behalf_of not in ("", user):
        raise BadExchange("nobody may act for somebody else")
    challenge = yield Opening(opening)
    final = yield challenge
    binding = start.encryption.binding if bound and start.encryption else b""
    if bound and not binding:
        raise BadExchange("there is nothing to bind it to")
    return Scram(user, final, binding)


def _scram_alone(start: Start) -> Exchange:
    return _scram(start, bound=False)


def _scram_bound(start: Start) -> Exchange:
    return _scram(start, bound=True)


def confirmation(answer: bytes) -> Exchange:
    """Tell the client what proves that the server knows the password, too: AUTH has no room for
    it in the final reply (RFC 4422 section 5), so the client says that it has seen it."""
    if (yield answer):
        raise BadExchange("nothing was asked")
    return None


MECHANISMS = {
    "PLAIN": Mechanism(_plain),
    "LOGIN": Mechanism(_login),
    "CRAM-MD5": Mechanism(_cram_md5, server_first=True, clear=False),
    "SCRAM-SHA-1": Mechanism(_scram_alone, clear=False),
    "SCRAM-SHA-256": Mechanism(_scram_alone, clear=False),
    "SCRAM-SHA-1-PLUS": Mechanism(_scram_bound, clear=False, encrypted=True),
    "SCRAM-SHA-256-PLUS": Mechanism(_scram_bound, clear=False, encrypted=True),
    # A certificate is shown in the handshake: without one there is nothing to offer.
    "EXTERNAL": Mechanism(_external, clear=False, encrypted=True),
}


def servable(mechanisms: frozenset[str]) -> tuple[str, ...]:
    """All mechanisms that sources of these can serve, in the order in which they are offered."""
    return tuple(name for name in MECHANISMS if name.removesuffix(PLUS) in mechanisms)


def possible(mechanism: str, encryption: Encryption) -> bool:
    """Whether it can be used on a connection that is encrypted in this way."""
    if mechanism == "EXTERNAL":
        return bool(encryption.names)
    return bool(encryption.binding) or not mechanism.endswith(PLUS)


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
