"""A whole session through the pump, whatever the client says and in whatever pieces.

Input: two octets of circumstances, how to cut, then what the client sends, TLS between what goes
in the clear and what is encrypted.  Held against what is true of every session: see ``check``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fakes import ALL_MECHANISMS, LOOPBACK, RFC_SCRAM, FakeGate, ScramClient, b64

from fuzz.dialogues import conversations, lines
from fuzz.frames import check_envelope
from fuzz.message import by_the_book, has_bare_newline
from fuzz.paths import check_address
from fuzz.pieces import HEAD, parted, ways
from tofmipd.auth.credentials import Certificate, Credentials, Judgement, Verdict
from tofmipd.content import Content, unstuffed
from tofmipd.log import TRACE
from tofmipd.pump import Pump
from tofmipd.settings import Limits
from tofmipd.smtp.envelope import Encryption, Envelope
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy, Session

# Ends what a client says before the handshake.
TLS = b"\0TLS\0"
LOGIN = b"AUTH PLAIN AGJvYmJ5AEZvb0Jhcg==\r\n"
# The first messages of a client that knows the password, and the last that its challenge wants.
SCRAM = ScramClient("SCRAM-SHA-256", b"bobby", b"FooBar", nonce=b"x")
_SALT, _NONCE = RFC_SCRAM["SCRAM-SHA-256"]
SCRAM_LOGIN = b"AUTH SCRAM-SHA-256 %s\r\n%s\r\n" % (
    b64(SCRAM.first).encode(),
    b64(SCRAM.final(b"r=x%s,s=%s,i=4096" % (_NONCE, _SALT))).encode(),
)
WORDS = (
    *(b"\r\n", b"\r\n.\r\n", b".\r\n", b"..", b"\n.\n", b"\0", b"\xc3\xa4", b"=", b"*\r\n", b"\t"),
    *(b"EHLO x\r\n", b"HELO x\r\n", b"NOOP\r\n", b"RSET\r\n", b"QUIT\r\n", b"VRFY x\r\n"),
    *(b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b" SIZE=10", b" BODY=8BITMIME"),
    *(LOGIN, b"AUTH LOGIN\r\n", b"Ym9iYnk=\r\n", b"Rm9vQmFy\r\n", b"AUTH CRAM-MD5\r\n"),
    *(b"BDAT 5\r\n", b"BDAT 0 LAST\r\n", b"BDAT 9 LAST\r\n.\r\n..\r\n.a", b"STARTTLS\r\n", TLS),
    *(b" SMTPUTF8", b" RET=FULL", b" ENVID=a", b" NOTIFY=NEVER", b" ORCPT=utf-8;\xc3\xa4"),
    *(SCRAM_LOGIN, SCRAM_LOGIN + b"=\r\n", SCRAM_LOGIN + b"*\r\n", b"AUTH SCRAM-SHA-1-PLUS\r\n"),
    *(b" AUTH=<>", b"AUTH EXTERNAL =\r\n", b"\xe2\x80\xa8", b"\xc2\x85", b"STARTTLS\r\n" + TLS),
)
# More than small limits allow, and what only strangers say.
ODD_LINES = (
    *(b"BDAT 61 LAST", b"BDAT 200", b"BDAT 70000", b"BDAT 5 FIRST", b"MAIL FROM:<a@b> SIZE=61"),
    *(b"MAIL FROM:<a@b> SMTPUTF8=1", b"MAIL FROM:<a@b> ENVID=+", b"MAIL FROM:<a@b> BODY=8BIT"),
    *(b"MAIL FROM:<a@b> AUTH=+", b"RCPT TO:<c@d> ORCPT=utf-8;\xc3\xa4", b"DATA x", b"STARTTLS x"),
    *(b"RCPT TO:<c@d> NOTIFY=NEVER,DELAY", b"GET / HTTP/1.1", b"\x16\x03\x01\2\0"),
)
# RFC 5321 section 4.5.3.1.5: the octets of a reply line, its CRLF included.
REPLY_LIMIT_OCTETS = 512
_LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]*")


@dataclass(frozen=True)
class Circumstances:
    """What a session may be like, one bit each."""

    logged_in: bool = False
    fix_bare_newline: bool = False
    small_limits: bool = False
    open_to_all: bool = False
    unavailable: bool = False
    no_clear_passwords: bool = False
    starttls: bool = False
    tls_required: bool = False
    tls_at_once: bool = False
    certificate: bool = False
    tls_fails: bool = False

    @classmethod
    def of(cls, number: int) -> Circumstances:
        names = [one.name for one in dataclasses.fields(cls)]
        return cls(**{name: bool(number >> bit & 1) for bit, name in enumerate(names)})

    @property
    def policy(self) -> Policy:
        policy = Policy(
            "mx.example", ALL_MECHANISMS, max_errors=100, needs_login=not self.open_to_all
        )
        if self.no_clear_passwords:
            withheld = ("PLAIN", "LOGIN", "SCRAM-SHA-1-PLUS", "EXTERNAL")
            policy = dataclasses.replace(
                policy, mechanisms=("CRAM-MD5", "SCRAM-SHA-256"), withheld=withheld
            )
        if self.starttls or self.tls_required:
            policy = dataclasses.replace(policy, starttls=True, tls_required=self.tls_required)
        if self.small_limits:
            policy = dataclasses.replace(
                policy, size_limit_octets=60, max_recipients=2, max_errors=4, max_auth_failures=2
            )
        return policy


class Tape:
    """A connection whose client has said all it ever will; stands for a Wire.

    ``said`` is what it was told, also before it was encrypted.
    """

    def __init__(self, pieces: Iterable[bytes], said: bytes = b"") -> None:
        self._pieces = list(pieces)[::-1]
        self.said = said
        self.closed = False

    def receive(self, octets: int, deadline: float) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop()
        if len(piece) > octets:
            self._pieces.append(piece[octets:])
        return piece[:octets]

    def queue(self, octets: bytes) -> None:
        assert not self.closed
        self.said += octets

    def flush(self) -> None:
        pass

    def close(self, *, linger: bool = False) -> None:
        self.closed = True


class Gate(FakeGate):
    """Judges logins by name; remembers what was known at each step: who, and whether encrypted."""

    def __init__(self) -> None:
        super().__init__()
        self.users: list[str] = []
        self.encrypted = False
        self.at_submission: list[tuple[str, bool]] = []
        self.in_the_clear = 0

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        return b"" if self.unavailable else super().challenge(mechanism, opening)

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        self.in_the_clear += not self.encrypted
        assert self.encrypted or not isinstance(credentials, Certificate)
        judgement = super().verify(credentials, mechanism)
        if judgement.verdict is Verdict.ACCEPTED:
            self.users.append(credentials.user)
        return judgement

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        self.at_submission.append((self.users[-1] if self.users else "", self.encrypted))
        return super().submit(envelope, content)


@dataclass
class Talk:
    """What came of a session.  All of it must be the same however the input is cut."""

    said: bytes
    users: list[str]
    in_the_clear: int
    submitted: list[tuple[Envelope, bytes]]
    at_submission: list[tuple[str, bool]]
    logged: list[str]
    errors: list[str]


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def listening() -> Iterator[_Listener]:
    """All that the pump logs, in place of any other log."""
    loggers = [logging.getLogger(name) for name in ("tofmipd.pump", TRACE)]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]
    listener = _Listener()
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.propagate = False
        one.handlers[:] = [listener]
    try:
        yield listener
    finally:
        for one, level, propagate, handlers in before:
            one.setLevel(level)
            one.propagate = propagate
            one.handlers[:] = handlers


def talk(clear: list[bytes], encrypted: list[bytes], circumstances: Circumstances) -> Talk:
    """One session, from greeting to close, of a client that says this before and in TLS."""
    policy = circumstances.policy
    gate = Gate()
    gate.unavailable = circumstances.unavailable
    said = [LOGIN] if circumstances.logged_in else []
    tapes = [Tape([*said, *clear])]

    def encrypt(wire: Tape, deadline: float, at_once: bool) -> tuple[Tape, Encryption]:
        assert wire is tapes[0]
        if circumstances.tls_fails:
            raise ConnectionError("no handshake")
        tapes.append(Tape([*said, *encrypted], wire.said))
        gate.encrypted = True
        shown = (b"DER", ("bobby",)) if circumstances.certificate else (b"", ())
        return tapes[-1], Encryption("TLSv1.3", "AES", at_once, *shown, binding=b"channel")

    with listening() as listener:
        Pump(
            tapes[0],  # type: ignore[arg-type]
            Session(policy, LOOPBACK),
            gate,
            Limits(size=policy.size_limit_octets, failure_delay=0),
            threading.Event(),
            session_id="fuzz",
            fix_bare_newline=circumstances.fix_bare_newline,
            encrypt=encrypt,  # type: ignore[arg-type]
            encrypt_at_once=circumstances.tls_at_once,
        ).run()
    assert tapes[-1].closed
    assert gate.closed == 1
    records = [(record.levelno, record.getMessage()) for record in listener.records]
    return Talk(
        tapes[-1].said,
        gate.users,
        gate.in_the_clear,
        gate.submitted,
        gate.at_submission,
        # How much of what is ignored has come by then, only the pieces say.
        [text for _, text in records if "STARTTLS are ignored" not in text],
        [text for level, text in records if level >= logging.ERROR],
    )


def check(octets: bytes) -> None:
    """No piece makes a difference; nothing is logged as a defect, nor in more than one line;
    replies are whole lines of printable ASCII; no message goes on without a login, or in the clear
    where that is forbidden, and none that holds an end of a message within."""
    circumstances = Circumstances.of(int.from_bytes(octets[:2], "little"))
    head, text = parted(octets[2:])
    if circumstances.tls_at_once:
        clear, encrypted = b"", text
    else:
        clear, _, encrypted = text.partition(TLS)
    both = zip(ways(head, clear), ways(head, encrypted), strict=True)
    check_talks([talk(*pieces, circumstances) for pieces in both], circumstances)


def check_talks(talks: list[Talk], circumstances: Circumstances) -> Talk:
    first = talks[0]
    for other in talks[1:]:
        assert other == first, f"{other} in other pieces, whole {first}"
    assert not first.errors
    assert all(line.isprintable() for line in first.logged)
    if first.said or not (circumstances.tls_at_once and circumstances.tls_fails):
        check_replies(first.said)
    # A client may give a login up that was accepted, as long as it has not been told so.
    assert first.said.count(b"\r\n235 ") <= min(len(first.users), 1)
    if circumstances.tls_required or circumstances.tls_at_once:
        assert first.in_the_clear == 0
    for (envelope, message), known in zip(first.submitted, first.at_submission, strict=True):
        check_submission(envelope, message, *known, circumstances)
    return first


def check_submission(
    envelope: Envelope, message: bytes, user: str, encrypted: bool, circumstances: Circumstances
) -> None:
    policy = circumstances.policy
    check_message(message)
    check_envelope(envelope)
    assert envelope.login == user
    assert user or circumstances.open_to_all
    assert encrypted or not (circumstances.tls_required or circumstances.tls_at_once)
    assert bool(envelope.encryption) == encrypted
    assert 0 < len(envelope.recipients) <= policy.max_recipients
    assert envelope.size_octets <= policy.size_limit_octets
    # The repair of line ends may make it longer.
    assert len(unstuffed(message)) <= policy.size_limit_octets or circumstances.fix_bare_newline
    assert envelope.helo.isascii()
    assert envelope.helo.isprintable()
    for address in (envelope.sender, *envelope.recipients):
        check_address(address or "null@sender")
        assert address.isascii() or envelope.smtputf8


def check_message(message: bytes) -> None:
    """In wire form, and whole: only the dot that we put behind it ends it.

    The last line of one that came by BDAT need not have an end; it gets one then.
    """
    assert not has_bare_newline(message)
    end = b"" if message.endswith(b"\r\n") or not message else b"\r\n"
    read = by_the_book(message + end + b".\r\n")
    assert (read.written, read.rest) == (message + end, b"")


def check_replies(said: bytes) -> list[int]:
    """The codes of all replies."""
    assert said.endswith(b"\r\n")
    codes: list[int] = []
    begun = b""
    for line in said[:-2].split(b"\r\n"):
        assert _LINE.fullmatch(line), line
        assert len(line) + 2 <= REPLY_LIMIT_OCTETS
        assert begun in (b"", line[:3])
        begun = line[:3] if line[3:4] == b"-" else b""
        if not begun:
            codes.append(int(line[:3]))
    assert not begun
    assert codes[0] == 220
    assert not {221, 421} & set(codes[:-1])
    return codes


def seeds() -> Iterator[bytes]:
    for number, conversation in enumerate(conversations()):
        for circumstances in (0, number):
            yield _seed(circumstances, conversation)
        if b"STARTTLS\r\n" in conversation:
            begun = conversation.replace(b"STARTTLS\r\n", b"STARTTLS\r\n" + TLS, 1)
            yield _seed(64, begun)
            yield _seed(64 + 512, begun)
    begin = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d> NOTIFY=NEVER\r\n"
    for number in (*range(16), 64, 65, 128, 256, 257, 512 + 64):
        yield _seed(number, begin + b"DATA\r\na\n.\n..\r\n.\r\nQUIT\r\n")
        yield _seed(number, begin + b"BDAT 4\r\na\r\n.BDAT 3 LAST\r\nb\r\nQUIT\r\n")
        yield _seed(number, SCRAM_LOGIN + b"\r\n" + begin + b"BDAT 1 LAST\r\n.QUIT\r\n")
        yield _seed(number, SCRAM_LOGIN + b"*\r\n" + begin)
        yield _seed(number, b"STARTTLS\r\nNOOP\r\n" + TLS + begin + b"BDAT 1 LAST\r\n.NOOP\r\n")
        yield _seed(number, b"STARTTLS\r\n" + TLS + b"AUTH EXTERNAL =\r\n" + begin)
    for line in lines():
        yield _seed(1, line + b"\r\n")
    for line in ODD_LINES:
        for number in (0, 1, 5):
            yield _seed(number, line + b"\r\n")
            yield _seed(number, begin + line + b"\r\n" + b"a" * 61 + b"\r\n.\r\n")


def _seed(circumstances: int, text: bytes) -> bytes:
    return circumstances.to_bytes(2, "little") + HEAD + text
