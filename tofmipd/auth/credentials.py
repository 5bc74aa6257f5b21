"""What a login presents, and what a source answers."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Protocol

NAME_LIMIT = 255
_NAME = re.compile(r"[^-./][^/]*")


@dataclass(frozen=True, slots=True)
class Password:
    """A name in lower case and the password itself (PLAIN, LOGIN)."""

    user: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CramMd5:
    """A name in lower case and the hexadecimal digest over ``challenge`` (RFC 2195).

    Whoever made the challenge fills it in; the client's side of the dialogue leaves it empty.
    """

    user: str
    digest: bytes = field(repr=False)
    challenge: bytes = b""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A name in lower case, and the certificate as DER that the client has proved to be its own
    in a TLS handshake (EXTERNAL)."""

    user: str
    der: bytes = field(repr=False)


Credentials = Password | CramMd5 | Certificate


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a login comes from: both ends of the client's connection, "" where not known."""

    address: str = ""
    local_address: str = ""


NOWHERE = Origin()


class Verdict(enum.Enum):
    """A source's answer.  UNAVAILABLE means that it could not tell."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"


class Source(Protocol):
    """One way to judge a login.

    ``name`` is for the log; ``mechanisms`` are those whose credentials it can judge.  ``check``
    raises nothing: trouble is UNAVAILABLE.  It is called from many threads at once.
    """

    @property
    def name(self) -> str: ...

    @property
    def mechanisms(self) -> frozenset[str]: ...

    def check(self, credentials: Credentials, origin: Origin) -> Verdict: ...


def is_login_name(user: str) -> bool:
    """Whether a source may be asked about ``user`` at all: it may become part of a path."""
    return len(user) <= NAME_LIMIT and user.isprintable() and bool(_NAME.fullmatch(user))
