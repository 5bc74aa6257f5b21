"""Logins judged by an IMAP server (rows TO-50 and TO-51).

The dialogue is our own and not imaplib's, which takes any amount of data from the server, keeps
passwords in the log of its last commands and has no limit for a whole login.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import logging
import re
import secrets
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tofmipd.auth.credentials import (
    NOWHERE,
    Credentials,
    Origin,
    Password,
    Verdict,
    is_login_name,
)
from tofmipd.auth.ipmap import IpMap, parse_port

log = logging.getLogger(__name__)

PORTS = {"imap": 143, "imaps": 993}
# The host that stands for whatever the map of local addresses says.
BY_LOCAL_ADDRESS = "0.0.0.0"
_NOT_BUILT = ("pop3", "apop", "ldap")
_FORM = "must be imap://HOST[:PORT] or imaps://HOST[:PORT]"
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*", re.ASCII)

# No server says more than that before a verdict.
_LIMIT_OCTETS = 1 << 14
# What the protocol cannot carry (NUL), or what no honest client sends.
_NOT_IN_PASSWORDS = re.compile(rb"[\r\n\0]")
# Servers may hang up at longer lines (RFC 2683 section 3.2.1.5), Dovecot does.
_PASSWORD_LIMIT_OCTETS = 1000
_QUOTABLE = re.compile(rb"[ -~]*")
_GREETING = re.compile(rb"\* OK(?: .*)?", re.IGNORECASE | re.DOTALL)
_UNTAGGED_LITERAL = re.compile(rb"\{[0-9]+\+?\}$")
_TAGGED = re.compile(
    rb"([0-9a-f]+) (OK|NO|BAD)(?: \[([A-Z]+)[ \]].*| .*)?", re.IGNORECASE | re.DOTALL
)
# A NO with one of these codes says nothing about the password (RFC 5530).
_TROUBLE_CODES = frozenset({"UNAVAILABLE", "PRIVACYREQUIRED", "SERVERBUG", "LIMIT", "INUSE"})


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """Whom to ask; an IPv6 address in ``host`` is without brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme} {host}:{self.port}"


def remote_server(url: str) -> RemoteServer:
    """Parse ``SCHEME://HOST[:PORT]``.  Raises ValueError with one line, without any password."""
    scheme, separator, place = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(_FORM)
    if scheme in _NOT_BUILT:
        raise ValueError(f"{scheme} is not built yet; there are {', '.join(PORTS)}")
    if scheme not in PORTS:
        raise ValueError(f"unknown scheme {scheme!r}; there are {', '.join(PORTS)}")
    if "@" in place:
        raise ValueError(f"a user has no place in it, {_FORM}")
    if re.search("[/?#]", place):
        raise ValueError(f"nothing may follow host and port, {_FORM}")
    host, port = _split_place(place)
    return RemoteServer(scheme, _host(host), PORTS[scheme] if port is None else parse_port(port))


def _split_place(place: str) -> tuple[str, str | None]:
    """The host, still with its brackets if any, and the text of the port or None."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(.*))?", place, re.DOTALL)
    if match is None or ":" in (match[2] or ""):
        raise ValueError(f"bad host or port {place!r}; an IPv6 address needs brackets: [::1]")
    return match[1], match[2]


def _host(text: str) -> str:
    with contextlib.suppress(ValueError):
        if text.startswith("[") and text.isascii() and text.isprintable():
            return str(ipaddress.IPv6Address(text[1:-1]))
        if re.fullmatch("[0-9.]+", text):
            return str(ipaddress.IPv4Address(text))
        if _HOST_NAME.fullmatch(text):
            return text
    raise ValueError(f"not a host: {text!r}, {_FORM}")


class ImapSource:
    """Judges logins by LOGIN at an IMAP server (RFC 9051 section 6.2.3).

    ``timeout_seconds`` is for a whole attempt.  If the host is BY_LOCAL_ADDRESS, ``ipmap``
    says which server to ask.  With imaps its certificate must be good for the host that is
    asked, and be vouched for by ``ca_file`` or, where that is "", by the system's authorities;
    raises OSError when these cannot be loaded.
    """

    name = "imap"
    mechanisms = frozenset({"PLAIN", "LOGIN"})

    def __init__(
        self,
        server: RemoteServer,
        timeout_seconds: float,
        ipmap: IpMap | None = None,
        ca_file: str = "",
    ) -> None:
        self._server = server
        self._timeout_seconds = timeout_seconds
        self._ipmap = ipmap
        self._context = None
        if server.scheme == "imaps":
            self._context = ssl.create_default_context(cafile=ca_file or None)

    def check(self, credentials: Credentials, origin: Origin = NOWHERE) -> Verdict:
        if not isinstance(credentials, Password) or not _can_be_asked(credentials):
            return Verdict.REJECTED
        server = self._server_for(origin)
        try:
            return self._ask(server, credentials)
        except (OSError, ValueError, RuntimeError, _NoVerdict) as error:
            # A name may be unfit for the resolver or for TLS, and threads may be used up.
            # Nothing that came after the password is in the text: a server may repeat it.
            log.warning("%s unavailable: %s", server, error)
            return Verdict.UNAVAILABLE

    def _server_for(self, origin: Origin) -> RemoteServer:
        if self._server.host != BY_LOCAL_ADDRESS or self._ipmap is None:
            return self._server
        host, port = self._ipmap.find(origin.local_address)
        return dataclasses.replace(self._server, host=host, port=port or self._server.port)

    def _ask(self, server: RemoteServer, credentials: Password) -> Verdict:
        deadline = _Deadline(self._timeout_seconds)
        with _connect(server, deadline, self._context) as sock:
            if isinstance(sock, ssl.SSLSocket):
                sock.settimeout(deadline.left_seconds())  # for the handshake as a whole
                sock.do_handshake()
            talk = _Talk(sock, deadline)
            verdict = _log_in(talk, credentials.user.encode(), credentials.password)
            # The verdict stands whatever becomes of the farewell.
            with contextlib.suppress(OSError):
                talk.send(b"bye LOGOUT\r\n")
        return verdict


class _NoVerdict(Exception):
    """The server did not say whether the password is right; ``str()`` is what it did instead."""


class _Deadline:
    """An end of all waiting, ``limit_seconds`` from now."""

    def __init__(self, limit_seconds: float) -> None:
        self._end = time.monotonic() + limit_seconds

    def left_seconds(self) -> float:
        """More than 0.  Raises TimeoutError."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _Talk:
    """Lines to and from a server, in bounded time and number.

    Raises _NoVerdict and OSError.
    """

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""
        self._room_octets = _LIMIT_OCTETS

    def send(self, octets: bytes) -> None:
        self._sock.settimeout(self._deadline.left_seconds())
        self._sock.sendall(octets)

    def line(self) -> bytes:
        """The next line, without its end."""
        while b"\n" not in self._buffer:
            if self._room_octets <= 0:
                raise _NoVerdict("it talks without end")
            self._sock.settimeout(self._deadline.left_seconds())
            octets = self._sock.recv(self._room_octets)
            if not octets:
                raise _NoVerdict("it closed the connection")
            self._room_octets -= len(octets)
            self._buffer += octets
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r")

    def answer(self) -> bytes:
        """The next line that is about the command: tagged, or asking for more of it."""
        while (line := self.line()).startswith(b"* "):
            # What follows could look like an answer, and nothing here is worth reading.
            if _UNTAGGED_LITERAL.search(line):
                raise _NoVerdict("unexpected literal")
        return line


def _can_be_asked(credentials: Password) -> bool:
    """Whether these can be right, and stand in one command."""
    return (
        is_login_name(credentials.user)
        and len(credentials.password) <= _PASSWORD_LIMIT_OCTETS
        and not _NOT_IN_PASSWORDS.search(credentials.password)
    )


def _log_in(talk: _Talk, user: bytes, password: bytes) -> Verdict:
    greeting = talk.line()
    if not _GREETING.fullmatch(greeting):
        raise _NoVerdict(f"greeting is {greeting[:80]!r}")
    if b"LOGINDISABLED" in greeting.upper():
        raise _NoVerdict("it takes no password without TLS")
    # Nobody can have answered before who could not know the tag.
    tag = secrets.token_hex(4).encode()
    *parts, last = _login_command(tag, user, password)
    for part in parts:
        talk.send(part)
        if not talk.answer().startswith(b"+"):
            raise _NoVerdict("it does not take literals")
    talk.send(last)
    return _judge(talk.answer(), tag)


def _login_command(tag: bytes, user: bytes, password: bytes) -> list[bytes]:
    """In parts: before each but the first, the server must have asked for more."""
    parts = [tag + b" LOGIN"]
    for word in (user, password):
        if _QUOTABLE.fullmatch(word):
            parts[-1] += b' "' + re.sub(rb'(["\\])', rb"\\\1", word) + b'"'
        else:
            parts[-1] += b" {%d}\r\n" % len(word)
            parts.append(word)
    parts[-1] += b"\r\n"
    return parts


def _judge(line: bytes, tag: bytes) -> Verdict:
    match = _TAGGED.fullmatch(line)
    if match is None or match[1] != tag:
        raise _NoVerdict("its answer to LOGIN is not IMAP")
    status, code = match[2].upper().decode(), (match[3] or b"").upper().decode()
    if status == "OK":
        return Verdict.ACCEPTED
    if status == "NO" and code not in _TROUBLE_CODES:
        return Verdict.REJECTED
    known = f" [{code}]" if code in _TROUBLE_CODES else ""
    raise _NoVerdict(f"its answer to LOGIN is {status}{known}")


def _connect(
    server: RemoteServer, deadline: _Deadline, context: ssl.SSLContext | None
) -> socket.socket:
    """Try each address of the server, none longer than its share of the time left."""
    addresses = _look_up(server.host, server.port, deadline)
    trouble = "its name has no address"
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        try:
            sock = socket.socket(family, kind, protocol)
            if context is not None:
                # Not later: wrapping leaks a socket that the server resets at that moment.
                sock = context.wrap_socket(
                    sock, server_hostname=server.host, do_handshake_on_connect=False
                )
            with contextlib.ExitStack() as stack:
                stack.enter_context(sock)
                sock.settimeout(deadline.left_seconds() / (len(addresses) - number))
                sock.connect(address)
                stack.pop_all()
                return sock
        except OSError as error:
            trouble = str(error)
    raise _NoVerdict(trouble)


def _look_up(host: str, port: int, deadline: _Deadline) -> list[tuple[Any, ...]]:
    """As getaddrinfo, which knows no limit of time: its thread may go on after us."""
    future: Future[list[tuple[Any, ...]]] = Future()

    def work() -> None:
        try:
            future.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            future.set_exception(error)

    threading.Thread(target=work, name="look-up", daemon=True).start()
    try:
        return future.result(deadline.left_seconds())
    except TimeoutError:
        raise TimeoutError("the look-up of its name timed out") from None
