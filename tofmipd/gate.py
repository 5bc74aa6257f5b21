"""The gate between a session and what stands behind it.

In personal mode its methods are plain calls; with privilege separation they reach other
processes.  The code that handles a session cannot tell which.
"""

from __future__ import annotations

from typing import Protocol

from tofmipd.auth.credentials import Credentials, Judgement
from tofmipd.content import Content
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply


class Pass(Protocol):
    """One session's way through the gate.  It remembers whom the session has proved to be."""

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        """A fresh challenge for the next credentials; each serves once.

        ``opening`` is the client's first message, for mechanisms that begin with one (RFC 5802),
        else b"" (RFC 2195).  b"" if none can be had now: then no login can be judged either.
        """
        ...

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        """Judge a login.  Takes as long as the slowest source; raises nothing."""
        ...

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        """Pass a message on for whoever has logged in; the reply is for the client.

        The content is still the caller's afterwards.  Raises nothing that is not a bug.
        """
        ...

    def close(self) -> None:
        """The session has ended."""
        ...


class Gate(Protocol):
    """Where sessions get their passes.  Called from many threads at once."""

    @property
    def mechanisms(self) -> frozenset[str]:
        """The SASL mechanisms that every source behind the gate can serve now, without those that
        are bound to a channel."""
        ...

    def admit(self, session_id: str, peer: Peer) -> Pass: ...
