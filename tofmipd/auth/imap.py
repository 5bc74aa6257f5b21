"""Logins judged by an IMAP server (row TO-51)."""

from __future__ import annotations

import contextlib
import re
import secrets

from tofmipd.auth.asking import AskingServer
from tofmipd.auth.credentials import Origin, Password, Verdict
from tofmipd.auth.dialogue import NoVerdict, Talk, connect
from tofmipd.auth.remote import ENCRYPTED
from tofmipd.network import Deadline

_QUOTABLE = re.compile(rb"[ -~]*")
_GREETING = re.compile(rb"\* OK(?: .*)?", re.IGNORECASE | re.DOTALL)
_UNTAGGED_LITERAL = re.compile(rb"\{[0-9]+\+?\}$")
_TAGGED = re.compile(
    rb"([0-9a-f]+) (OK|NO|BAD)(?: \[([A-Z]+)[ \]].*| .*)?", re.IGNORECASE | re.DOTALL
)
# A NO with one of these codes says nothing about the password (RFC 5530).
_TROUBLE_CODES = frozenset({"UNAVAILABLE", "PRIVACYREQUIRED", "SERVERBUG", "LIMIT", "INUSE"})


class ImapSource(AskingServer):
    """Judges logins by LOGIN at an IMAP server (RFC 9051 section 6.2.3); see AskingServer."""

    name = "imap"

    def ask(self, credentials: Password, origin: Origin, deadline: Deadline) -> Verdict:
        server = self.server_for(origin)
        encrypted = server.scheme in ENCRYPTED
        talk, near = connect(server, deadline, self._context if encrypted else None)
        with contextlib.closing(talk):
            greeting = talk.line()
            if not _GREETING.fullmatch(greeting):
                raise NoVerdict(f"greeting is {greeting[:80]!r}")
            if not (encrypted or near) and self._demanded:
                _start_tls(talk)
                talk.secure(self._context, server.host)
            elif b"LOGINDISABLED" in greeting.upper():
                raise NoVerdict("it takes no password without TLS")
            verdict = _log_in(talk, credentials.user.encode(), credentials.password)
            # The verdict stands whatever becomes of the farewell.
            with contextlib.suppress(OSError):
                talk.send(b"bye LOGOUT\r\n")
        return verdict


def _answer(talk: Talk) -> bytes:
    """The next line that is about the command: tagged, or asking for more of it."""
    while (line := talk.line()).startswith(b"* "):
        # What follows could look like an answer, and nothing here is worth reading.
        if _UNTAGGED_LITERAL.search(line):
            raise NoVerdict("unexpected literal")
    return line


def _start_tls(talk: Talk) -> None:
    """RFC 9051 section 6.2.1."""
    tag = secrets.token_hex(4).encode()
    talk.send(tag + b" STARTTLS\r\n")
    match = _TAGGED.fullmatch(_answer(talk))
    if match is None or match[1] != tag or match[2].upper() != b"OK":
        raise NoVerdict("it is another machine and takes no STARTTLS; use imaps")


def _log_in(talk: Talk, user: bytes, password: bytes) -> Verdict:
    # Nobody can have answered before who could not know the tag.
    tag = secrets.token_hex(4).encode()
    *parts, last = _login_command(tag, user, password)
    for part in parts:
        talk.send(part)
        if not _answer(talk).startswith(b"+"):
            raise NoVerdict("it does not take literals")
    talk.send(last)
    return _judge(_answer(talk), tag)


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
        raise NoVerdict("its answer to LOGIN is not IMAP")
    status, code = match[2].upper().decode(), (match[3] or b"").upper().decode()
    if status == "OK":
        return Verdict.ACCEPTED
    if status == "NO" and code not in _TROUBLE_CODES:
        return Verdict.REJECTED
    known = f" [{code}]" if code in _TROUBLE_CODES else ""
    raise NoVerdict(f"its answer to LOGIN is {status}{known}")
