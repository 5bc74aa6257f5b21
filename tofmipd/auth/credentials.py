"""What a login presents, and what a source answers."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tofmipd.auth.scram import Exchange, Keys

NAME_LIMIT = 255
_NAME = re.compile(r"[^-./][^/]*")


@dataclass(frozen=True, slots=True)
class Password:
    """A name in lower case and the password itself (PLAIN, LOGIN)."""

    user: str
    password: bytes = field(repr=False)


# Stands for a response that has not the structure of its mechanism: nobody can log in with it.
MALFORMED = Password("", b"")


@dataclass(frozen=True, slots=True)
class CramMd5:
    """A name in lower case and the hexadecimal digest over ``challenge`` (RFC 2195).

    Whoever made the challenge fills it in; the client's side of the dialogue leaves it empty.
    """

    user: str
    digest: bytes = field(repr=False)
    challenge: bytes = b""


@dataclass(frozen=True, slots=True)
class Scram:
    """A name in lower case and the client's final message (RFC 5802).

    ``binding`` are the octets of the channel that it must be bound to, b"" for none.  Whoever
    made the challenge fills in the ``exchange`` that it belongs to.
    """

    user: str
    final: bytes = field(repr=False)
    binding: bytes = field(default=b"", repr=False)
    exchange: Exchange | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A name in lower case, and the certificate as DER that the client has proved to be its own
    in a TLS handshake (EXTERNAL)."""

    user: str
    der: bytes = field(repr=False)


Credentials = Password | CramMd5 | Scram | Certificate


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


@dataclass(frozen=True, slots=True)
class Judgement:
    """What becomes of a login.

    ``answer`` is what the client has to be told with its success.  A rejection may be answered
    ``delay`` seconds after the question; with ``wait`` nobody was asked, for the client's address
    has failed too often and has to wait so many seconds.
    """

    verdict: Verdict
    answer: bytes = field(default=b"", repr=False)
    delay: float = 0
    wait: float = 0


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


@runtime_checkable
class KnowsVerifiers(Protocol):
    """A source that can serve SCRAM."""

    @property
    def name(self) -> str: ...

    def verifier(self, user: str, mechanism: str) -> tuple[Keys, bool]:
        """What SCRAM needs of a user; off: it is made up, for there is no such user."""
        ...
