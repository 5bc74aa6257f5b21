"""Opening a session with a next hop: connection, greeting, TLS, login, each in limited time.

The dialogue is smtplib's.  Its reader is not used: it takes a bare LF for a line end and has limits
for single reads only.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import logging
import select
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from tofmipd import network
from tofmipd.handoff import xclient
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.replies import BadReply, ReplyReader
from tofmipd.handoff.trust import NotTrusted, PeerCertificate, certificate_of, context_for
from tofmipd.handoff.xclient import Submitter
from tofmipd.network import Deadline, is_near
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

_RECEIVE_OCTETS = 8192
# In the order in which they are tried.
MECHANISMS = ("CRAM-MD5", "PLAIN", "LOGIN")
MECHANISMS_WITH_TLS = ("PLAIN", "LOGIN", "CRAM-MD5")
_HIDES_THE_PASSWORD = frozenset({"CRAM-MD5"})
_REMEDY = 'set SMTPSSL = True, or SMTPTLS = "off" to allow that'


class NoLogin(Exception):
    """Why no login was tried at all; ``detail`` is that of the reply."""

    def __init__(self, detail: str, text: str) -> None:
        super().__init__(text)
        self.detail = detail


class Client(smtplib.SMTP):
    """An open connection to a next hop.

    Waits until ``deadline`` for the greeting, and for each further reply as long as the next hop
    may.  Raises BadReply and OSError, which smtplib's own errors are.
    """

    sock: socket.socket

    def __init__(self, hop: NextHop, sock: socket.socket, address: str, deadline: Deadline) -> None:
        """``address`` is the numeric one that it leads to."""
        super().__init__(local_hostname=hop.local_name)
        self.hop = hop
        self.sock = sock
        self.address = address
        self.greeting = ""
        # Whom the next hop takes for its client; None for us.
        self.told: Submitter | None = None
        self._refuses_xclient = False
        self._deadline = deadline
        self._reader = ReplyReader()

    @property
    def secret(self) -> bool:
        """Whether nobody on the way can listen."""
        return isinstance(self.sock, ssl.SSLSocket) or is_near(self.address)

    @property
    def mechanisms(self) -> list[str]:
        """Those that it offers now."""
        return self.esmtp_features.get("auth", "").upper().split()

    @property
    def certificate(self) -> PeerCertificate | None:
        return certificate_of(self.sock) if isinstance(self.sock, ssl.SSLSocket) else None

    def greet(self) -> None:
        """Hear the greeting; say EHLO, or HELO where that is refused (RFC 5321 section 3.2)."""
        code, said = self.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, said)
        self.greeting = _text(said)
        self.ehlo_or_helo_if_needed()

    def secure(self) -> None:
        """STARTTLS, and EHLO once more (RFC 3207)."""
        if "starttls" not in self.esmtp_features:
            raise smtplib.SMTPNotSupportedError("it does not offer STARTTLS")
        context = context_for(self.hop)
        code, said = self.docmd("STARTTLS")
        if code != 220:
            raise smtplib.SMTPResponseException(code, said)
        self.expect_silence()
        self.sock = context.wrap_socket(
            self.sock, server_hostname=self.hop.host, do_handshake_on_connect=False
        )
        network.shake_hands(self.sock, Deadline(self.hop.reply_timeout))
        self._begin_again()

    def _begin_again(self) -> None:
        """Nothing that was said before counts any more."""
        self.helo_resp = self.ehlo_resp = None
        self.does_esmtp = False
        self.esmtp_features = {}
        self.ehlo_or_helo_if_needed()

    @property
    def takes_xclient(self) -> bool:
        """Whether it may be told of a client now; Postfix can be told once on a connection."""
        return "xclient" in self.esmtp_features and not self._refuses_xclient

    def introduce(self, submitter: Submitter) -> bool:
        """XCLIENT, where it is offered; whether the session has begun again, without a login.

        A refusal is logged, and changes nothing.
        """
        offered = self.esmtp_features.get("xclient", "").split()
        line = xclient.command(submitter, offered, with_login=not self.hop.logs_in)
        if not line or self._refuses_xclient:
            return False
        code, said = self.docmd(line)
        if code != 220:
            log.warning("next hop %s refuses XCLIENT: %d %s", self.hop, code, _text(said))
            self._refuses_xclient = True
            return False
        self.told = submitter
        self._begin_again()
        return True

    def log_in(self) -> str:
        """The mechanism that did it.  Raises NoLogin, smtplib.SMTPAuthenticationError."""
        user, password = (
            text.encode("utf-8", "surrogateescape")
            for text in (self.hop.username, self.hop.password)
        )
        refusal: smtplib.SMTPAuthenticationError | None = None
        for mechanism in self.usable_mechanisms():
            try:
                code = _EXCHANGES[mechanism](self, user, password)
            except smtplib.SMTPResponseException as error:
                # Its text is not kept: it may repeat the password.
                raise smtplib.SMTPAuthenticationError(error.smtp_code, b"") from None
            except (OSError, BadReply):
                if refusal is not None:
                    raise refusal from None
                raise
            if code == 235:
                return mechanism
            refusal = smtplib.SMTPAuthenticationError(code, b"")
            if code < 500 or (code == 535 and mechanism not in _HIDES_THE_PASSWORD):
                # Who has seen the password itself would say the same of it again.
                break
        assert refusal is not None
        raise refusal

    def usable_mechanisms(self) -> list[str]:
        """At least one.  Raises NoLogin."""
        offered = self.mechanisms
        encrypted = isinstance(self.sock, ssl.SSLSocket)
        known = [m for m in (MECHANISMS_WITH_TLS if encrypted else MECHANISMS) if m in offered]
        if not offered:
            hint = "" if encrypted or "starttls" not in self.esmtp_features else " without SMTPSSL"
            raise NoLogin("7.4", f"next hop {self.hop} offers no login{hint}")
        if not known:
            words = ", ".join(offered)
            raise NoLogin("7.4", f"next hop {self.hop} offers only unknown mechanisms: {words}")
        if not (self.secret or self.hop.clear_password):
            known = [m for m in known if m in _HIDES_THE_PASSWORD]
        if not known:
            text = f"next hop {self.hop} would get the password in the clear: {_REMEDY}"
            raise NoLogin("7.11", text)
        return known

    def expect_silence(self) -> None:
        """What comes unasked would be taken for the answer to what is asked next.

        Raises BadReply.
        """
        more = self._reader.idle and _unread(self.sock)
        if more or not self._reader.idle:
            raise BadReply("it says more than it was asked for")

    def send(self, s: Any) -> None:
        """Called by smtplib."""
        self.expect_silence()
        self._deadline = Deadline(self.hop.reply_timeout)
        self.sock.settimeout(self._deadline.left_seconds())
        self.sock.sendall(s.encode("ascii") if isinstance(s, str) else s)

    def getreply(self) -> tuple[int, bytes]:
        """Called by smtplib.  A 421 ends the session, so it is an error wherever it comes."""
        while (reply := self._reader.reply()) is None:
            self.sock.settimeout(self._deadline.left_seconds())
            octets = self.sock.recv(_RECEIVE_OCTETS)
            if not octets:
                raise ConnectionResetError("closed by the next hop")
            self._reader.feed(octets)
        said = "\n".join(reply.lines).encode()
        if reply.code == 421:
            raise smtplib.SMTPResponseException(reply.code, said)
        return reply.code, said


def _unread(sock: socket.socket) -> bool:
    """Whether octets have come that nobody has read; of an encrypted connection only those that
    are decrypted, for TLS has things of its own to say."""
    if isinstance(sock, ssl.SSLSocket):
        return sock.pending() > 0
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0)) and bool(sock.recv(1, socket.MSG_PEEK))


def _plain(client: Client, user: bytes, password: bytes) -> int:
    """RFC 4616."""
    code, _ = client.docmd("AUTH", "PLAIN " + _base64(b"\0%s\0%s" % (user, password)))
    return code


def _login(client: Client, user: bytes, password: bytes) -> int:
    """draft-murchison-sasl-login."""
    code, _ = client.docmd("AUTH", "LOGIN")
    for response in (user, password):
        if code == 334:
            code, _ = client.docmd(_base64(response))
    return code


def _cram_md5(client: Client, user: bytes, password: bytes) -> int:
    """RFC 2195."""
    code, said = client.docmd("AUTH", "CRAM-MD5")
    if code == 334:
        try:
            challenge = base64.b64decode(said, validate=True)
        except ValueError:
            raise BadReply("its challenge for CRAM-MD5 is not base64") from None
        digest = hmac.digest(password, challenge, "md5").hex().encode()
        code, _ = client.docmd(_base64(b"%s %s" % (user, digest)))
    return code


_EXCHANGES: dict[str, Callable[[Client, bytes, bytes], int]] = {
    "PLAIN": _plain,
    "LOGIN": _login,
    "CRAM-MD5": _cram_md5,
}


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def open_client(hop: NextHop, submitter: Submitter | None = None) -> Client:
    """Connect, greet, and where asked start TLS, tell of a client, and log in.

    Raises HandOffFailed.
    """
    with failures_of(hop), greeted(hop) as client:
        if hop.tls == "starttls":
            client.secure()
        if submitter is not None:
            client.introduce(submitter)
        if hop.logs_in:
            client.log_in()
        client.expect_silence()
        return client


@contextlib.contextmanager
def greeted(hop: NextHop) -> Iterator[Client]:
    """A client that has heard the greeting; closed if anything is raised."""
    context = context_for(hop) if hop.tls == "implicit" else None
    deadline = Deadline(hop.connect_timeout)
    sock, address = network.connect(hop.host, hop.port, deadline, context)
    client = Client(hop, sock, address, deadline)
    try:
        client.greet()
        yield client
    except BaseException:
        client.close()
        raise


@contextlib.contextmanager
def failures_of(hop: NextHop) -> Iterator[None]:
    """Whatever fails while a session is opened becomes HandOffFailed.

    Nothing has been sent yet: whatever the reason, the client may try again.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, BadReply, NoLogin) as error:
        # A name may be unfit for the resolver or for TLS, and threads may be used up.
        detail, text = _not_opened(hop, error)
        raise HandOffFailed(Reply(451, detail, (printable(text),))) from error


def _not_opened(hop: NextHop, error: Exception) -> tuple[str, str]:
    match error:
        case NoLogin(detail=detail):
            return detail, str(error)
        case NotTrusted():
            return "7.5", str(error)
        case smtplib.SMTPAuthenticationError(smtp_code=code) if code < 500:
            return "7.0", f"next hop {hop} cannot judge the login now ({code})"
        case smtplib.SMTPAuthenticationError():
            return "7.0", f"next hop {hop} refuses the login (SMTPAUTH_USERNAME)"
        case smtplib.SMTPNotSupportedError():
            return "7.4", f"next hop {hop}: {error}"
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=said):
            return "4.1", f"next hop {hop} says: {code} {_text(said)}"
        case TimeoutError() | OSError(__context__=TimeoutError()):
            return "4.1", f"next hop {hop} does not answer"
        case ssl.SSLError(reason=str() as reason):
            return "7.5", f"next hop {hop}: TLS failed: {reason.lower().replace('_', ' ')}"
        case ssl.SSLError():
            return "7.5", f"next hop {hop}: TLS failed: {error}"
        case OSError(strerror=str() as reason):
            return "4.1", f"next hop {hop}: {reason}"
    return "4.1", f"next hop {hop}: {error}"


def _text(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return text.replace("\n", " ")
