"""What the processes of global mode say to each other: frames, one a packet, checked to the end.

Two families.  Control frames go to and from the monitor and have one shape, bounded in all parts.
Work frames go between the server and auth, and between the server and a worker.  Whatever comes
from another process is foreign: decoding raises BadFrame and nothing else.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass

from tofmipd.auth.credentials import (
    Certificate,
    CramMd5,
    Credentials,
    Judgement,
    Origin,
    Password,
    Scram,
    Verdict,
)
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.syntax import NOT_IN_A_COMMAND

CONTROL_LIMIT_OCTETS = 3072
# Larger envelopes and messages travel in a file whose descriptor goes with the frame.
INLINE_LIMIT_OCTETS = 32 << 10
WORK_LIMIT_OCTETS = 40 << 10
# What a worker sends at once: a reply, and lines for the log.
WORKER_LIMIT_OCTETS = 64 << 10
ENVELOPE_LIMIT_OCTETS = 16 << 20
# A worker deals with this many messages at a time; the server gives it no more.
MESSAGES_AT_ONCE = 8
RECIPIENTS_LIMIT = 100_000
# Descriptors that come with one frame.
KEY_FILES_AT_ONCE = 32
_ADDRESS_LIMIT_OCTETS = 4096


_TEXT_LIMIT_OCTETS = 1024
_LINE_LIMIT_OCTETS = 8000
_REPLY_CHARACTERS = 400
_REPLY_LIMIT_OCTETS = 4 * _REPLY_CHARACTERS
_NOT_IN_A_TEXT = re.compile(rb"[\0\r\n]")
_DETAIL = re.compile(r"(?:[0-9]{1,3}\.[0-9]{1,3})?")


class BadFrame(Exception):
    """The octets are no frame that may come here."""


class Kind(enum.IntEnum):
    """What a frame means; see the tables below for who may send it."""

    READY = 1
    FAILED = 2
    GRANT = 3
    END = 4
    STUCK = 5
    PROVED = 6
    OPEN = 7
    IDLE = 8
    GRANTED = 9
    REFUSED = 10
    CONNECT = 11
    STOP = 12
    LOG = 13
    FILE = 14
    SERVE = 15
    LEAVE = 16
    CHALLENGE = 17
    VERIFY = 18
    SUBMIT = 19
    LINES = 20
    ANSWER = 21
    USED = 22
    KEYS = 23
    KEY_FILES = 24
    LINE = 25
    RETIRE = 26


class Refusal(enum.IntEnum):
    """Why a session gets no worker; the number of a REFUSED frame's text."""

    NOT_PROVED = 1
    NO_ROOM = 2


@dataclass(frozen=True, slots=True)
class Control:
    """A frame to or from the monitor.  ``number`` is mostly that of a session."""

    kind: Kind
    number: int = 0
    texts: tuple[str, ...] = ()

    def encode(self) -> bytes:
        parts = [_HEAD.pack(self.kind, self.number, len(self.texts))]
        for text in self.texts:
            octets = text.encode("utf-8", "surrogateescape")
            parts += (_LENGTH.pack(len(octets)), octets)
        return b"".join(parts)


_HEAD = struct.Struct("!BQB")
_LENGTH = struct.Struct("!H")

# Who may send what: kind -> how many texts come with it.
FROM_SERVER = {
    Kind.READY: 0,
    Kind.FAILED: 1,
    Kind.GRANT: 0,
    Kind.USED: 0,
    Kind.STUCK: 0,
    Kind.END: 0,
}
FROM_AUTH = {Kind.READY: 0, Kind.FAILED: 1, Kind.PROVED: 2, Kind.OPEN: 0}
FROM_WORKER = {Kind.IDLE: 0, Kind.LINE: 1}
TO_SERVER = {
    Kind.GRANTED: 0,
    Kind.REFUSED: 1,
    Kind.CONNECT: 0,
    Kind.STOP: 0,
    Kind.RETIRE: 0,
    Kind.LOG: 0,
    Kind.KEYS: 0,
    Kind.KEY_FILES: 0,
}
TO_AUTH = {Kind.CONNECT: 0, Kind.FILE: 0, Kind.STOP: 0, Kind.LOG: 0}
TO_WORKER = {Kind.SERVE: 0, Kind.LEAVE: 0}
# From the server to auth, on the channel that they share.
TO_AUTH_FROM_SERVER = {Kind.CONNECT: 0}


def decode_control(octets: bytes, allowed: dict[Kind, int]) -> Control:
    """One whole control frame of the kinds that its sender may send."""
    if len(octets) > CONTROL_LIMIT_OCTETS:
        raise BadFrame("too long")
    reader = Reader(octets)
    kind, number, count = reader.unpack(_HEAD)
    if kind not in allowed or allowed[Kind(kind)] != count:
        raise BadFrame(f"kind {kind} with {count} texts is not allowed here")
    texts = tuple(reader.text(_TEXT_LIMIT_OCTETS) for _ in range(count))
    reader.end()
    return Control(Kind(kind), number, texts)


class Reader:
    """Takes a frame apart, field by field; each method raises BadFrame."""

    __slots__ = ("_octets", "_place")

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._place = 0

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        try:
            fields = form.unpack_from(self._octets, self._place)
        except struct.error:
            raise BadFrame("too short") from None
        self._place += form.size
        return fields

    def fields(self, *limits: int) -> list[bytes]:
        """Fields with their lengths in front, each within its limit of octets.

        In one loop: a message has a dozen of them.
        """
        octets, place = self._octets, self._place
        found = []
        for limit in limits:
            start = place + 2
            end = start + int.from_bytes(octets[place:start], "big")
            if end > start + limit or end > len(octets) or start > len(octets):
                raise BadFrame("a field has a wrong length")
            found.append(octets[start:end])
            place = end
        self._place = place
        return found

    def octets(self, limit: int) -> bytes:
        return self.fields(limit)[0]

    def texts(self, *limits: int) -> list[str]:
        """Texts of ours hold no end of a line and no NUL."""
        fields = self.fields(*limits)
        if _NOT_IN_A_TEXT.search(b"".join(fields)):
            raise BadFrame("a control character in a text")
        return [field.decode("utf-8", "surrogateescape") for field in fields]

    def text(self, limit: int) -> str:
        return self.texts(limit)[0]

    def rest(self) -> bytes:
        octets = self._octets[self._place :]
        self._place = len(self._octets)
        return octets

    def end(self) -> None:
        if self._place != len(self._octets):
            raise BadFrame("octets behind the end")


def packed(*texts: str | bytes) -> bytes:
    """Fields with their lengths in front.  Raises ValueError for one of more than 65535 octets."""
    parts: list[bytes] = []
    for text in texts:
        octets = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        if len(octets) > 0xFFFF:
            raise ValueError("a field is too long for a frame")
        parts += (_LENGTH.pack(len(octets)), octets)
    return b"".join(parts)


# Between the server and auth.

_REQUEST = struct.Struct("!BQB")
_PASSWORD, _CRAM_MD5, _CERTIFICATE, _SCRAM = range(4)
# The verdict; how late it may be told, and how long the client has to wait, in milliseconds.
_VERDICT = struct.Struct("!BII")
_WAIT_LIMIT_SECONDS = 1_000_000
_VERDICTS = (Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Login:
    """A login that auth is to judge.  ``session_id`` is for the log."""

    session: int
    session_id: str
    mechanism: str
    credentials: Credentials
    origin: Origin


@dataclass(frozen=True, slots=True)
class Opening:
    """A challenge that auth is to make; ``message`` is what the client has begun with."""

    session: int
    mechanism: str
    message: bytes


def encode_opening(opening: Opening) -> bytes:
    """Raises ValueError for a message that is far too long."""
    head = _REQUEST.pack(Kind.CHALLENGE, opening.session, 0)
    return head + packed(opening.mechanism, opening.message)


def encode_login(login: Login) -> bytes:
    """Raises ValueError for a name or password that is far too long."""
    credentials, binding = login.credentials, b""
    match credentials:
        case Password(password=secret):
            form = _PASSWORD
        case CramMd5(digest=secret):
            form = _CRAM_MD5
        case Certificate(der=secret):
            form = _CERTIFICATE
        case Scram(final=secret, binding=binding):
            form = _SCRAM
    return _REQUEST.pack(Kind.VERIFY, login.session, form) + packed(
        login.session_id,
        login.mechanism,
        credentials.user,
        secret,
        binding,
        login.origin.address,
        login.origin.local_address,
    )


def decode_auth_request(octets: bytes) -> Login | Opening:
    """A login, or a challenge that is to be made for one."""
    reader = Reader(octets)
    kind, session, form = reader.unpack(_REQUEST)
    if kind == Kind.CHALLENGE and not form:
        opening = Opening(session, reader.text(40), reader.octets(0xFFFF))
        reader.end()
        return opening
    if kind != Kind.VERIFY or form > _SCRAM:
        raise BadFrame(f"kind {kind} is not for auth")
    session_id, mechanism = reader.text(40), reader.text(40)
    user, secret, binding = _user(reader), reader.octets(0xFFFF), reader.octets(64)
    origin = Origin(reader.text(80), reader.text(80))
    reader.end()
    credentials: Credentials = Password(user, secret)
    if form == _CRAM_MD5:
        credentials = CramMd5(user, secret)
    elif form == _CERTIFICATE:
        credentials = Certificate(user, secret)
    elif form == _SCRAM:
        credentials = Scram(user, secret, binding)
    return Login(session, session_id, mechanism, credentials, origin)


def _user(reader: Reader) -> str:
    """A name may hold anything here: the chain of sources judges it."""
    return reader.octets(0xFFFF).decode("utf-8", "replace")


def encode_judgement(judgement: Judgement, account: str = "") -> bytes:
    """``account`` is the one that an accepted login stands for."""
    times = (
        int(min(seconds, _WAIT_LIMIT_SECONDS) * 1000)
        for seconds in (judgement.delay, judgement.wait)
    )
    head = _VERDICT.pack(_VERDICTS.index(judgement.verdict), *times)
    return head + packed(account, judgement.answer)


def decode_judgement(octets: bytes) -> tuple[Judgement, str]:
    reader = Reader(octets)
    number, delay, wait = reader.unpack(_VERDICT)
    account, answer = reader.text(0xFFFF), reader.octets(1024)
    reader.end()
    if number >= len(_VERDICTS):
        raise BadFrame("no verdict")
    return Judgement(_VERDICTS[number], answer, delay / 1000, wait / 1000), account


# Between the server and a worker.

_SUBMIT = struct.Struct("!BIQB")
_ENVELOPE = struct.Struct("!QBBHIQ")
_MICROSECONDS = 1_000_000
_ANSWER = struct.Struct("!BHHB")
_LINE = struct.Struct("!B")
_IN_FILE = 1


@dataclass(frozen=True, slots=True)
class Submission:
    """A message on its way to a worker.

    ``inline`` holds the message; it is None when the message comes in a file.  ``envelope`` is
    an encoded envelope; None: the first file holds it.
    """

    size_octets: int
    envelope_octets: int
    envelope: bytes | None
    inline: bytes | None

    @property
    def files(self) -> int:
        """How many descriptors come with it."""
        return (self.envelope is None) + (self.inline is None)

    def encode(self) -> bytes:
        where = (self.envelope is None) * 2 + (self.inline is None)
        head = _SUBMIT.pack(Kind.SUBMIT, self.envelope_octets, self.size_octets, where)
        return b"".join((head, self.envelope or b"", self.inline or b""))


def decode_submission(octets: bytes) -> Submission:
    reader = Reader(octets)
    kind, envelope_octets, size, where = reader.unpack(_SUBMIT)
    if kind != Kind.SUBMIT or where > 3 or envelope_octets > ENVELOPE_LIMIT_OCTETS:
        raise BadFrame(f"kind {kind} is not for a worker")
    rest = reader.rest()
    here = (0 if where & 2 else envelope_octets), (0 if where & 1 else size)
    if len(rest) != sum(here):
        raise BadFrame("a part has a wrong length")
    envelope = None if where & 2 else rest[:envelope_octets]
    inline = None if where & 1 else rest[here[0] :]
    return Submission(size, envelope_octets, envelope, inline)


def encode_envelope(envelope: Envelope, session_id: str) -> bytes:
    """Raises ValueError for an address that is far too long."""
    peer = envelope.peer
    flags = envelope.eight_bit | envelope.smtputf8 << 1 | bool(envelope.notices) << 2
    notices = [envelope.notices.get(r, "") for r in envelope.recipients if envelope.notices]
    return _ENVELOPE.pack(
        envelope.size_octets,
        flags,
        peer.loopback,
        peer.port,
        len(envelope.recipients),
        int(envelope.complete_at * _MICROSECONDS),
    ) + packed(
        session_id,
        envelope.helo,
        envelope.protocol,
        peer.address,
        peer.local_address,
        envelope.encryption,
        envelope.ret,
        envelope.envid,
        envelope.sender,
        *envelope.recipients,
        *notices,
    )


def decode_envelope(octets: bytes, login: str) -> tuple[Envelope, str]:
    """The envelope, with the login name that the worker knows, and the session's id."""
    reader = Reader(octets)
    announced, flags, loopback, port, count, complete_at = reader.unpack(_ENVELOPE)
    if flags > 7 or loopback > 1 or not 0 < count <= RECIPIENTS_LIMIT:
        raise BadFrame("not an envelope")
    with_notices = bool(flags & 4)
    limits = [40, 1200, 40, 80, 80, 120, 4, 100, *([_ADDRESS_LIMIT_OCTETS] * (count + 1))]
    if with_notices:
        limits += [_ADDRESS_LIMIT_OCTETS] * count
    texts = reader.texts(*limits)
    reader.end()
    session_id, helo, protocol, address, local_address, encryption, ret, envid, sender = texts[:9]
    recipients, notices = texts[9 : 9 + count], texts[9 + count :]
    if "" in recipients:
        raise BadFrame("an empty recipient")
    if not _is_plain("".join(texts[6:]), utf8=bool(flags & 2)):
        raise BadFrame("not an address")
    return (
        Envelope(
            sender,
            login,
            helo,
            protocol,
            Peer(address, port, bool(loopback), local_address),
            announced,
            bool(flags & 1),
            recipients,
            encryption,
            bool(flags & 2),
            ret,
            envid,
            {r: notice for r, notice in zip(recipients, notices, strict=False) if notice},
            complete_at / _MICROSECONDS,
        ),
        session_id,
    )


def _is_plain(text: str, *, utf8: bool) -> bool:
    """Whether there is nothing in it that may not stand in a command of SMTP."""
    if text.isascii():
        return text.isprintable()
    return utf8 and not NOT_IN_A_COMMAND.search(text)


LogLine = tuple[int, str]


def encode_lines(lines: list[LogLine]) -> bytes:
    """Lines for the log of the server, without an answer; none at all is a sign of life."""
    return _answer(Kind.LINES, 0, 0, b"", lines)


def encode_answer(reply: Reply, lines: list[LogLine]) -> bytes:
    """The reply for the client, which has one line here, and lines for the log."""
    text = " ".join(reply.lines)[:_REPLY_CHARACTERS]
    return _answer(Kind.ANSWER, reply.code, 1, packed(reply.detail, text), lines)


def _answer(kind: Kind, code: int, texts: int, body: bytes, lines: list[LogLine]) -> bytes:
    parts = [_ANSWER.pack(kind, code, len(lines), texts), body]
    for level, text in lines:
        octets = text.encode("utf-8", "replace")[:_LINE_LIMIT_OCTETS]
        parts += (_LINE.pack(level), _LENGTH.pack(len(octets)), octets)
    return b"".join(parts)


def decode_answer(octets: bytes) -> tuple[Reply | None, list[LogLine]]:
    """The reply, None if it is still to come, and lines for the log, not yet fit to be shown."""
    reader = Reader(octets)
    kind, code, count, texts = reader.unpack(_ANSWER)
    if kind not in (Kind.LINES, Kind.ANSWER) or texts != (kind == Kind.ANSWER):
        raise BadFrame(f"kind {kind} is not an answer")
    reply = None
    if kind == Kind.LINES and code:
        raise BadFrame(f"code {code} without an answer")
    if kind == Kind.ANSWER:
        detail, text = reader.texts(7, _REPLY_LIMIT_OCTETS)
        if not (code == 250 or 400 <= code < 600) or not _DETAIL.fullmatch(detail):
            raise BadFrame(f"code {code} is not an answer")
        if not text.isprintable():
            raise BadFrame("not the text of a reply")
        reply = Reply(code, detail, (text,))
    lines = []
    for _ in range(count):
        (level,) = reader.unpack(_LINE)
        lines.append((level, reader.octets(_LINE_LIMIT_OCTETS).decode("utf-8", "replace")))
    reader.end()
    return reply, lines
