"""SCRAM (RFC 5802, RFC 7677), the server's side: messages in, messages and proofs out.

Nothing here knows where verifiers come from.  Nonces come in as arguments.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Protocol

# By the name of the mechanism without "-PLUS": what hashlib calls its hash.
HASHES = {"SCRAM-SHA-1": "sha1", "SCRAM-SHA-256": "sha256"}
PLUS = "-PLUS"
# The channel binding that is offered (RFC 9266).
BINDING = "tls-exporter"
# RFC 7677 section 4.
LEAST_ITERATIONS = 4096
SALT_OCTETS = 16

_NAME = rb"(?:[^=,\0]|=2C|=3D)+"
_NONCE = rb"[!-+\--~]+"
_FIRST = re.compile(
    rb"(?P<header>(?:(?P<flag>[ny])|p=(?P<binding>[A-Za-z0-9.-]+)),(?:a=(?P<for>"
    + _NAME
    + rb"))?,)"
    rb"(?P<bare>n=(?P<user>" + _NAME + rb"),r=(?P<nonce>" + _NONCE + rb")(?:,[A-Za-z]=[^\0]*)?)",
    re.DOTALL,
)
_FINAL = re.compile(
    rb"(?P<bare>c=(?P<binding>[A-Za-z0-9+/=]+),r=(?P<nonce>" + _NONCE + rb")(?:,[A-Za-z]=[^\0]*)?)"
    rb",p=(?P<proof>[A-Za-z0-9+/=]+)",
    re.DOTALL,
)


class BadMessage(Exception):
    """What the client says is not SCRAM."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """What a server knows of a password (RFC 5802 section 3); ``hash_name`` as for hashlib."""

    hash_name: str
    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def matches(self, password: bytes) -> bool:
        """Whether it is that of a prepared password."""
        other = verifier_of(password, self.salt, self.iterations, self.hash_name)
        return hmac.compare_digest(self.stored_key, other.stored_key)


def verifier_of(password: bytes, salt: bytes, iterations: int, hash_name: str) -> Verifier:
    """That of a prepared password."""
    salted = hashlib.pbkdf2_hmac(hash_name, password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", hash_name)
    return Verifier(
        hash_name,
        salt,
        iterations,
        hashlib.new(hash_name, client_key).digest(),
        hmac.digest(salted, b"Server Key", hash_name),
    )


class Keys(Protocol):
    """What a server knows of a password; see Verifier."""

    @property
    def hash_name(self) -> str: ...

    @property
    def salt(self) -> bytes: ...

    @property
    def iterations(self) -> int: ...

    @property
    def stored_key(self) -> bytes: ...

    @property
    def server_key(self) -> bytes: ...


class LaterVerifier:
    """That of a prepared password, made when its keys are asked for: a challenge goes out equally
    soon whether there is such a user or not."""

    def __init__(self, password: bytes, salt: bytes, iterations: int, hash_name: str) -> None:
        self._password = password
        self.salt = salt
        self.iterations = iterations
        self.hash_name = hash_name

    @functools.cached_property
    def _made(self) -> Verifier:
        return verifier_of(self._password, self.salt, self.iterations, self.hash_name)

    @property
    def stored_key(self) -> bytes:
        return self._made.stored_key

    @property
    def server_key(self) -> bytes:
        return self._made.server_key


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """The client's first message.

    ``binding`` is the name of the channel binding, "" for none; ``could_bind`` says that the
    client would, and thinks that the server does not.  ``user`` and ``on_behalf_of`` are
    octets as sent, without SCRAM's escapes.
    """

    header: bytes
    bare: bytes
    binding: str
    could_bind: bool
    on_behalf_of: bytes
    user: bytes
    nonce: bytes

    @classmethod
    def parse(cls, message: bytes) -> ClientFirst:
        """RFC 5802 section 7.  Raises BadMessage."""
        match = _FIRST.fullmatch(message)
        if match is None:
            raise BadMessage("not a client's first message")
        return cls(
            match["header"],
            match["bare"],
            (match["binding"] or b"").decode("ascii"),
            match["flag"] == b"y",
            _unescaped(match["for"] or b""),
            _unescaped(match["user"]),
            match["nonce"],
        )


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"=2C", b",").replace(b"=3D", b"=")


class Exchange:
    """One attempt: made of the client's first message and what is known of the user.

    ``known`` is off when ``verifier`` is nobody's: the exchange goes on, and ends in a refusal.
    ``nonce`` is the server's part of it, printable and without a comma; ``source`` says for the
    log where the verifier comes from.
    """

    def __init__(
        self,
        first: ClientFirst,
        verifier: Keys,
        nonce: bytes,
        source: str = "none",
        *,
        known: bool = True,
    ) -> None:
        self.source = source
        self._first = first
        self._verifier = verifier
        self._known = known
        self._nonce = first.nonce + nonce
        salt = base64.b64encode(verifier.salt)
        self.challenge = b"r=%s,s=%s,i=%d" % (self._nonce, salt, verifier.iterations)

    def finish(self, final: bytes, binding: bytes) -> bytes | None:
        """The server's final message if the client's proves that it knows the password.

        ``binding`` are the octets of the channel that this end sees, b"" for none.
        """
        match = _FINAL.fullmatch(final)
        if match is None:
            return None
        proof, bound = _decoded(match["proof"]), _decoded(match["binding"])
        verifier, name = self._verifier, self._verifier.hash_name
        said = b",".join((self._first.bare, self.challenge, match["bare"]))
        signature = hmac.digest(verifier.stored_key, said, name)
        good = len(proof) == len(signature)
        key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
        good &= hmac.compare_digest(hashlib.new(name, key).digest(), verifier.stored_key)
        good &= hmac.compare_digest(bound, self._first.header + binding)
        good &= match["nonce"] == self._nonce
        if not (good and self._known):
            return None
        return b"v=" + base64.b64encode(hmac.digest(verifier.server_key, said, name))


def _decoded(text: bytes) -> bytes:
    """b"" for what is not base64."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return b""
