"""What the sources have in common that ask somebody else: limits of time and number."""

from __future__ import annotations

import abc
import dataclasses
import logging
import re
import threading

from tofmipd.auth.credentials import (
    NOWHERE,
    Credentials,
    Origin,
    Password,
    Verdict,
    is_login_name,
)
from tofmipd.auth.dialogue import NoVerdict, context_of
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.remote import BY_LOCAL_ADDRESS, RemoteServer, RemoteTls
from tofmipd.network import Deadline

log = logging.getLogger(__name__)

# What protocols cannot carry (NUL), or what no honest client sends.
_NOT_IN_PASSWORDS = re.compile(rb"[\r\n\0]")
# Servers may hang up at longer lines (RFC 2683 section 3.2.1.5), Dovecot does.
PASSWORD_LIMIT_OCTETS = 1000


class Asking(abc.ABC):
    """A source that asks somebody who may be slow, or not there.

    A verdict takes ``timeout_seconds`` at most, waiting for a place included: ``at_once``
    attempts are under way at a time, so that a source that hangs does not fill the machine.
    """

    name = ""
    mechanisms = frozenset({"PLAIN", "LOGIN"})

    def __init__(self, timeout_seconds: float, at_once: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._places = threading.BoundedSemaphore(at_once)

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Verdict:
        if not isinstance(credentials, Password) or not can_be_asked(credentials):
            return Verdict.REJECTED
        deadline = Deadline(self._timeout_seconds)
        if not self._places.acquire(timeout=self._timeout_seconds):
            log.warning("%s unavailable: too many logins wait for it", self.shown(origin))
            return Verdict.UNAVAILABLE
        try:
            return self.ask(credentials, origin, deadline)
        except (OSError, ValueError, RuntimeError, NoVerdict) as error:
            # A name may be unfit for the resolver or for TLS, and threads may be used up.
            # Nothing that came after the password is in the text: a server may repeat it.
            log.warning("%s unavailable: %s", self.shown(origin), error)
            return Verdict.UNAVAILABLE
        finally:
            self._places.release()

    @abc.abstractmethod
    def ask(self, credentials: Password, origin: Origin, deadline: Deadline) -> Verdict:
        """The verdict of whoever is asked.  Raises NoVerdict, OSError, ValueError,
        RuntimeError."""

    def shown(self, origin: Origin) -> str:
        """Who is asked, for the log."""
        return self.name


class AskingServer(Asking):
    """One that asks a server on the network.

    If the host is BY_LOCAL_ADDRESS, ``ipmap`` says which.  Raises OSError when the authorities of
    ``tls`` cannot be loaded.
    """

    def __init__(
        self,
        server: RemoteServer,
        timeout_seconds: float,
        ipmap: IpMap | None = None,
        tls: RemoteTls = RemoteTls(),
        at_once: int = 16,
    ) -> None:
        super().__init__(timeout_seconds, at_once)
        self._server = server
        self._ipmap = ipmap
        self._context = context_of(tls)
        self._demanded = tls.demanded

    def shown(self, origin: Origin) -> str:
        return str(self.server_for(origin))

    def server_for(self, origin: Origin) -> RemoteServer:
        """Whom to ask about a client that came in there."""
        if self._server.host != BY_LOCAL_ADDRESS or self._ipmap is None:
            return self._server
        host, port = self._ipmap.find(origin.local_address)
        return dataclasses.replace(self._server, host=host, port=port or self._server.port)


def can_be_asked(credentials: Password) -> bool:
    """Whether these can be right, and stand in one command."""
    return (
        is_login_name(credentials.user)
        and len(credentials.password) <= PASSWORD_LIMIT_OCTETS
        and not _NOT_IN_PASSWORDS.search(credentials.password)
    )
