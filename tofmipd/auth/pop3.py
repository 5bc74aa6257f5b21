"""Logins judged by a POP3 server, by USER and PASS or by APOP (row TO-52)."""

from __future__ import annotations

import contextlib
import hashlib
import re

from tofmipd.auth.asking import AskingServer
from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.auth.dialogue import NoVerdict, Talk, connect
from tofmipd.auth.ipmap import IpMap
from tofmipd.auth.remote import ENCRYPTED, RemoteServer, RemoteTls
from tofmipd.network import Deadline

_STATUS = re.compile(rb"(\+OK|-ERR)(?: +\[([A-Z/-]+)\].*| .*)?", re.IGNORECASE | re.DOTALL)
# A message-id (RFC 1939 section 7), and nothing wider: from stamps of another form a false
# server can find out passwords.
_STAMP = re.compile(rb"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[][A-Za-z0-9:._-]+>")
# What says nothing about the password (RFC 2449 section 8, RFC 3206).
_TROUBLE = ("SYS/TEMP", "SYS/PERM", "IN-USE", "LOGIN-DELAY")
# The command must be a line of 255 octets (RFC 2449 section 4).
_COMMAND_LIMIT_OCTETS = 253


class Pop3Source(AskingServer):
    """Judges logins at a POP3 server (RFC 1939): for ``pop3`` and ``pop3s`` with the password,
    for ``apop`` with a digest over the server's stamp.  See AskingServer."""

    def __init__(
        self,
        server: RemoteServer,
        timeout_seconds: float,
        ipmap: IpMap | None = None,
        tls: RemoteTls = RemoteTls(),
        at_once: int = 16,
    ) -> None:
        super().__init__(server, timeout_seconds, ipmap, tls, at_once)
        self.name = "apop" if server.scheme == "apop" else "pop3"

    def ask(self, credentials: Password, origin: Origin, deadline: Deadline) -> Verdict:
        server = self.server_for(origin)
        user = credentials.user.encode()
        if b" " in user or max(len(user), len(credentials.password)) > _COMMAND_LIMIT_OCTETS - 10:
            return Verdict.REJECTED
        encrypted = server.scheme in ENCRYPTED
        talk, near = connect(server, deadline, self._context if encrypted else None)
        with contextlib.closing(talk):
            greeting = talk.line()
            if _status(greeting)[0] != b"+OK":
                raise NoVerdict(f"greeting is {greeting[:80]!r}")
            if self.name == "apop":
                verdict = _apop(talk, greeting, user, credentials.password)
            else:
                if not (encrypted or near) and self._demanded:
                    _start_tls(talk)
                    talk.secure(self._context, server.host)
                verdict = _user_and_pass(talk, user, credentials.password)
            # The verdict stands whatever becomes of the farewell.
            with contextlib.suppress(OSError):
                talk.send(b"QUIT\r\n")
        return verdict


def _status(line: bytes) -> tuple[bytes, str]:
    """The status of a reply and its response code, "" for none.  Raises NoVerdict."""
    match = _STATUS.fullmatch(line)
    if match is None:
        raise NoVerdict("its answer is not POP3")
    return match[1].upper(), (match[2] or b"").upper().decode()


def _start_tls(talk: Talk) -> None:
    """RFC 2595 section 4."""
    talk.send(b"STLS\r\n")
    if _status(talk.line())[0] != b"+OK":
        raise NoVerdict("it is another machine and takes no STLS; use pop3s")


def _user_and_pass(talk: Talk, user: bytes, password: bytes) -> Verdict:
    talk.send(b"USER " + user + b"\r\n")
    verdict = _judge(talk.line())
    if verdict is not Verdict.ACCEPTED:
        return verdict
    talk.send(b"PASS " + password + b"\r\n")
    return _judge(talk.line())


def _apop(talk: Talk, greeting: bytes, user: bytes, password: bytes) -> Verdict:
    stamp = _STAMP.search(greeting)
    if stamp is None:
        raise NoVerdict("it does not offer APOP: there is no stamp in its greeting")
    digest = hashlib.md5(stamp[0] + password, usedforsecurity=False).hexdigest().encode()
    talk.send(b"APOP %s %s\r\n" % (user, digest))
    return _judge(talk.line())


def _judge(line: bytes) -> Verdict:
    status, code = _status(line)
    if status == b"+OK":
        return Verdict.ACCEPTED
    if code.startswith(_TROUBLE):
        raise NoVerdict(f"its answer is -ERR [{code}]")
    return Verdict.REJECTED
