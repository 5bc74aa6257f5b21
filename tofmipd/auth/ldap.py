"""Logins judged by a directory: a simple bind as the user (row TO-53, RFC 4513 section 5.1.3)."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.utils.dn import escape_rdn
from pyasn1.error import PyAsn1Error

from tofmipd.auth.asking import AskingServer
from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.auth.dialogue import NoVerdict
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.remote import ENCRYPTED, RemoteServer, RemoteTls
from tofmipd.network import Deadline, is_near, look_up, shake_hands

# RFC 4511 section 4.1.9, and what servers say of accounts that are locked.
_SUCCESS = 0
_REFUSALS = {
    19: "constraintViolation",
    32: "noSuchObject",
    34: "invalidDNSyntax",
    48: "inappropriateAuthentication",
    49: "invalidCredentials",
    53: "unwillingToPerform",
}
_REFERRAL = 10


class LdapSource(AskingServer):
    """Judges logins by binding to a directory as the user, whose name stands for ``%s``; see
    AskingServer."""

    name = "ldap"

    def __init__(
        self,
        server: RemoteServer,
        timeout_seconds: float,
        ipmap: IpMap | None = None,
        tls: RemoteTls = RemoteTls(),
        at_once: int = 16,
    ) -> None:
        super().__init__(server, timeout_seconds, ipmap, tls, at_once)
        # What the library imports for the first connection may not be readable any more when
        # rights have been given up.
        _connection(ldap3.Server("127.0.0.1", get_info=ldap3.NONE), "cn=x", b"x", 1)

    def ask(self, credentials: Password, origin: Origin, deadline: Deadline) -> Verdict:
        server = self.server_for(origin)
        if not credentials.password:
            return Verdict.REJECTED  # the server might take it for an anonymous bind
        try:
            credentials.password.decode("utf-8")
        except UnicodeDecodeError:
            return Verdict.REJECTED  # RFC 4513 section 5.1.3; the library cannot carry it
        dn = server.dn.replace("%s", escape_rdn(credentials.user))
        trouble = "its name has no address"
        addresses = look_up(server.host, server.port, deadline)
        for number, (_, _, _, _, address) in enumerate(addresses):
            share = deadline.left_seconds() / (len(addresses) - number)
            try:
                link = self._open(server, str(address[0]), dn, credentials.password, share)
            except (LDAPException, OSError) as error:
                trouble = _told(error)
                continue
            return self._bind(link, server, str(address[0]), deadline)
        raise NoVerdict(trouble)

    def _open(
        self, server: RemoteServer, address: str, dn: str, password: bytes, seconds: float
    ) -> ldap3.Connection:
        """Connect.  Raises LDAPException, OSError."""
        place = ldap3.Server(
            address,
            server.port,
            use_ssl=server.scheme in ENCRYPTED,
            tls=_Tls(self._context, server.host, Deadline(seconds)),
            get_info=ldap3.NONE,
            connect_timeout=seconds,
        )
        link = _connection(place, dn, password, math.ceil(seconds))
        try:
            link.open(read_server_info=False)
        except BaseException:
            _shut(link)
            raise
        return link

    def _bind(
        self, link: ldap3.Connection, server: RemoteServer, address: str, deadline: Deadline
    ) -> Verdict:
        """The library has limits for single reads only: at the end of all time the connection
        is shut under its hands."""
        end = threading.Timer(deadline.left_seconds(), _shut, (link,))
        end.daemon = True
        end.start()
        try:
            if server.scheme not in ENCRYPTED and self._demanded and not is_near(address):
                link.start_tls(read_server_info=False)
            # The safe strategy gives a tuple, which is true whatever is in it; what else is in
            # it must not be seen: it holds the password.
            accepted, result = link.bind(read_server_info=False)[:2]
            if result["type"] != "bindResponse":
                raise NoVerdict("it answers something else than the bind")
            return _judge(accepted, result["result"])
        except (LDAPException, PyAsn1Error, OSError) as error:
            deadline.left_seconds()  # if it is over, that is why
            raise NoVerdict(_told(error)) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            # The library trusts what a server says to have the form of an answer.
            raise NoVerdict(f"its answer is not LDAP ({type(error).__name__})") from None
        finally:
            end.cancel()
            _shut(link)


class _Tls(ldap3.Tls):  # type: ignore[misc]
    """The library's own does not check names as Python's does, and reads the authorities for
    each connection."""

    def __init__(self, context: ssl.SSLContext, host: str, deadline: Deadline) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context
        self._host = host
        self._deadline = deadline

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Called by the library, which reports what is raised here as its own error."""
        sock = self._context.wrap_socket(
            connection.socket, server_hostname=self._host, do_handshake_on_connect=False
        )
        connection.socket = sock
        before = sock.gettimeout()
        shake_hands(sock, self._deadline)
        sock.settimeout(before)


def _connection(place: ldap3.Server, dn: str, password: bytes, seconds: int) -> ldap3.Connection:
    return ldap3.Connection(
        place,
        user=dn,
        password=password,
        authentication=ldap3.SIMPLE,
        client_strategy=ldap3.SAFE_SYNC,
        auto_referrals=False,
        check_names=False,
        raise_exceptions=False,
        fast_decoder=False,  # it cannot read a bind's referral
        receive_timeout=seconds,
    )


def _judge(accepted: object, code: object) -> Verdict:
    if accepted is True and code == _SUCCESS:
        return Verdict.ACCEPTED
    if code in _REFUSALS:
        return Verdict.REJECTED
    if code == _REFERRAL:
        raise NoVerdict("it refers to another server; name that one")
    raise NoVerdict(f"its answer to the bind is {code!r}")


def _shut(link: ldap3.Connection) -> None:
    sock = link.socket
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sock.close()


def _told(error: Exception) -> str:
    """The words of the library, on one line; it has not sent anything secret yet, or its error
    is about the connection."""
    return " ".join(str(error).split())[:200] or type(error).__name__
