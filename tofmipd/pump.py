"""The blocking loop between a client's connection and its session."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tofmipd.auth.credentials import Judgement, Verdict
from tofmipd.gate import Pass
from tofmipd.log import TRACE
from tofmipd.reception import Reception, discard
from tofmipd.settings import Limits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Encryption, Envelope
from tofmipd.smtp.reply import BadCommand, Reply
from tofmipd.smtp.session import (
    MakeChallenge,
    Receive,
    ReceiveChunk,
    Session,
    StartTls,
    Step,
    Submit,
    Verify,
)
from tofmipd.smtp.stream import ChunkReader, LineReader, MessageReader
from tofmipd.wire import Unwelcome, Wire

log = logging.getLogger(__name__)
trace = logging.getLogger(TRACE)

_COMMAND_OCTETS = 16 << 10
_DATA_OCTETS = 256 << 10
_GRACE_SECONDS = 60
# How much of a message is read that is too big anyway: so much more, and the limit once more.
_PATIENCE_OCTETS = 16 << 20

# Makes an encrypted wire of a plain one, until a deadline of time.monotonic(); whether TLS comes
# first on the connection.  Raises TimeoutError, ConnectionError.
Encrypt = Callable[[Wire, float, bool], tuple[Wire, Encryption]]


class Hangup(Exception):
    """The client has closed the connection."""


class Pump:
    """Serves one session.  All waiting of a session happens here."""

    def __init__(
        self,
        wire: Wire,
        session: Session,
        gate_pass: Pass,
        limits: Limits,
        stopping: threading.Event,
        *,
        session_id: str,
        fix_bare_newline: bool = False,
        encrypt: Encrypt | None = None,
        encrypt_at_once: bool = False,
        greeted: bool = False,
        encryption: Encryption | None = None,
    ) -> None:
        """``encryption`` is how the client came to a proxy that speaks for it."""
        self._wire = wire
        self._session = session
        self._pass = gate_pass
        self._limits = limits
        self._stopping = stopping
        self._id = session_id
        self._fix = fix_bare_newline
        self._encrypt = encrypt
        self._encrypt_at_once = encrypt_at_once
        self._greeted = greeted
        self._encryption = encryption
        self._lines = LineReader()
        self._reception: Reception | None = None
        self._begun = time.monotonic()
        self._login_deadline = self._begun + limits.login_timeout
        self._failures = 0
        self._idle = False
        self._expired = False
        self._alerted = False
        self._tracing = trace.isEnabledFor(logging.DEBUG)

    def run(self) -> None:
        """Talk until one of the two has enough.  Raises nothing but bugs outside commands."""
        linger = False
        try:
            linger = self._talk()
        except TimeoutError as error:
            log.info("s=%s timeout: %s", self._id, error)
            linger = self._last_words(replies.TIMED_OUT)
        except Unwelcome as error:
            log.warning("s=%s closed without a word: %s", self._id, error)
        except (Hangup, ConnectionError) as error:
            log.debug("s=%s gone: %s", self._id, error)
        except Exception:
            # What the client sends now may be the rest of a message: no line of it is obeyed.
            log.exception("s=%s internal error", self._id)
            linger = self._last_words(replies.INTERNAL_ERROR)
        finally:
            self._forget_message()
            self._pass.close()
            self._wire.close(linger=linger)

    def _talk(self) -> bool:
        """The session, up to the reply that closes it; whether the client may have more to say.

        Raises Hangup, TimeoutError, ConnectionError.
        """
        if self._encrypt_at_once and not self._start_tls():
            return self._alerted
        if self._encryption is not None:
            # What is encrypted here ends at the proxy; it is the client's own way that counts.
            self._session.secured(self._encryption)
        if not self._greeted:
            self._say(self._session.greeting())
        while True:
            reply = self._obey_next()
            if reply is None:
                return self._alerted
            if reply.closes:
                self._wire.flush()
                return reply not in (replies.BYE, replies.SHUTTING_DOWN)

    def stop(self) -> None:
        """Called from another thread: end the session if it waits for a command."""
        if self._idle:
            self._wire.interrupt()

    def expire(self, age_seconds: float) -> None:
        """Called from another thread: end the session if it has not logged in after so long."""
        young = time.monotonic() - self._begun < age_seconds
        if self._idle and not young and not self._session.authenticated:
            self._expired = True
            self._wire.interrupt()

    def _last_words(self, reply: Reply) -> bool:
        try:
            self._say(reply)
            self._wire.flush()
        except (TimeoutError, ConnectionError):
            return False
        return True

    def _say(self, reply: Reply) -> None:
        if self._tracing:
            trace.debug("s=%s S: %s", self._id, reply)
        self._wire.queue(reply.encode())

    def _obey_next(self) -> Reply | None:
        """Read one line and do what it asks for; the reply that ended that.

        None: no more can be said, because the connection could not be encrypted.
        """
        try:
            line = self._next_line()
            if line is None:
                self._say(replies.SHUTTING_DOWN)
                return replies.SHUTTING_DOWN
            if self._tracing:
                trace.debug("s=%s C: %s", self._id, self._session.shown(line))
            step = self._session.line(line)
        except BadCommand as error:
            step = self._session.bad_line(error.reply)
        while not isinstance(step, Reply):
            if isinstance(step, StartTls):
                return step.reply if self._obey_starttls(step.reply) else None
            step = self._perform(step)
        if self._reception is not None and not self._session.chunking:
            self._forget_message()
        if step.code >= 400:
            log.info("s=%s refused: %s", self._id, step)
        self._say(step)
        return step

    def _next_line(self) -> bytes | None:
        """The next line, or None when the service is asked to stop.  Raises BadCommand, Hangup,
        TimeoutError, ConnectionError."""
        limit = self._session.line_limit_octets
        line = self._lines.line(limit)
        if line is not None:
            return line
        self._wire.flush()
        deadline = self._login_deadline
        if self._session.authenticated:
            deadline = time.monotonic() + self._limits.idle_timeout
        self._idle = True
        try:
            while line is None:
                if self._stopping.is_set():
                    return None
                octets = self._wire.receive(_COMMAND_OCTETS, deadline)
                if not octets:
                    if self._stopping.is_set():
                        return None
                    if self._expired:
                        raise TimeoutError("not logged in, and others wait for a connection")
                    raise Hangup("closed by the client")
                self._lines.feed(octets)
                line = self._lines.line(limit)
        finally:
            self._idle = False
        return line

    def _obey_starttls(self, go_ahead: Reply) -> bool:
        """Whether the session goes on."""
        self._say(go_ahead)
        self._wire.flush()
        early = self._lines.take()
        if early:
            # Whoever sent it, it has not come through TLS (RFC 3207 section 4.2).
            log.warning("s=%s %d octets behind STARTTLS are ignored", self._id, len(early))
        return self._start_tls()

    def _start_tls(self) -> bool:
        """Do the handshake; whether it led to anything."""
        assert self._encrypt is not None
        self._idle = True
        try:
            self._wire, encryption = self._encrypt(
                self._wire, self._login_deadline, self._encrypt_at_once
            )
        except (TimeoutError, ConnectionError) as error:
            log.info("s=%s no TLS: %s", self._id, error)
            # What was wrong has been told, in TLS's own way, unless nobody was there.
            self._alerted = isinstance(error, ConnectionError)
            return False
        finally:
            self._idle = False
        log.debug("s=%s now %s", self._id, encryption)
        self._session.secured(encryption)
        return True

    def _perform(self, step: MakeChallenge | Verify | Receive | ReceiveChunk | Submit) -> Step:
        """Carry a request of the session out.  A defect behind the gate costs this command only."""
        envelope = self._session.envelope
        match step:
            case Receive():
                return self._told(envelope, self._session.received(self._receive(step.reply)))
            case ReceiveChunk():
                return self._told(envelope, self._session.chunk_received(self._receive_chunk(step)))
        try:
            match step:
                case Submit():
                    return self._told(step.envelope, self._session.submitted(self._submit(step)))
                case Verify():
                    return self._session.judged(self._verify(step))
                case MakeChallenge(mechanism=mechanism, opening=opening):
                    challenge = self._pass.challenge(mechanism, opening)
                    return self._session.challenged(challenge)
        except Exception:
            log.exception("s=%s internal error", self._id)
            if isinstance(step, Submit):
                return self._told(step.envelope, replies.INTERNAL_ERROR)
            return replies.INTERNAL_ERROR

    def _submit(self, step: Submit) -> Reply:
        assert self._reception is not None
        step.envelope.complete_at = time.monotonic()
        return self._pass.submit(step.envelope, self._reception.content)

    def _told(self, envelope: Envelope | None, step: Step) -> Step:
        """Have the log say of each recipient that he does not get the message, if that is so."""
        if isinstance(step, Reply) and step.code >= 400 and envelope is not None:
            id_ = self._reception.content.message_id() if self._reception is not None else ""
            begun = envelope.complete_at or time.monotonic()
            spent_ms = int((time.monotonic() - begun) * 1000)
            for recipient in envelope.recipients:
                values = (self._id, recipient, envelope.sender, id_, str(step), spent_ms)
                if step.code >= 500:
                    log.info("s=%s refused to=%r sender=%r id=%r reply=%r ms=%d", *values)
                else:
                    log.info("s=%s deferred to=%r sender=%r id=%r reply=%r ms=%d", *values)
        return step

    def _verify(self, step: Verify) -> Judgement:
        """A rejection takes equally long whatever its reason, and longer each time."""
        begun = time.monotonic()
        judgement = self._pass.verify(step.credentials, step.mechanism)
        if judgement.verdict is Verdict.REJECTED:
            self._failures += 1
            late = max(judgement.delay, self._limits.failure_delay * self._failures)
            pause = begun + late - time.monotonic()
            if pause > 0:
                self._stopping.wait(pause)
        elif judgement.verdict is Verdict.ACCEPTED:
            log.debug("s=%s logged in", self._id)
        return judgement

    def _receive(self, go_ahead: Reply) -> Reply | None:
        """Read a message; what is wrong with it, if anything."""
        self._say(go_ahead)
        reception = self._reception = Reception(self._limits.size, fix=self._fix)
        if not self._read(reception.whole()):
            return replies.MUCH_TOO_BIG
        return self._judged(reception, reception.finish())

    def _receive_chunk(self, step: ReceiveChunk) -> Reply | None:
        """Read a chunk; what is wrong with it, or with the message that it completes."""
        if not step.keep:
            self._read(discard(step.size_octets))
            return None
        if self._reception is None:
            self._reception = Reception(self._limits.size, fix=self._fix)
        reception = self._reception
        self._read(reception.chunk(step.size_octets))
        return self._judged(
            reception, reception.finish() if step.last else reception.chunk_problem()
        )

    def _judged(self, reception: Reception, problem: Reply | None) -> Reply | None:
        if reception.failure is not None:
            log.error("s=%s no room for the message: %s", self._id, reception.failure)
        return problem

    def _forget_message(self) -> None:
        """Give back what it takes up."""
        if self._reception is not None:
            self._reception.close()
            self._reception = None

    def _read(self, reader: MessageReader | ChunkReader) -> bool:
        """Feed the reader up to the end; the rest are commands again.

        False: it is so long that nobody waits for its end.  Raises Hangup, TimeoutError,
        ConnectionError.
        """
        begun = time.monotonic()
        before, most = reader.size_octets, 2 * self._limits.size + _PATIENCE_OCTETS
        want = _COMMAND_OCTETS
        rest = reader.feed(self._lines.take())
        if rest is None:
            # Who waits for the replies so far before he goes on gets them.
            self._wire.flush()
        while rest is None:
            now = time.monotonic()
            age, size = now - begun, reader.size_octets - before
            if age > _GRACE_SECONDS and size < age * self._limits.minimum_rate:
                raise TimeoutError("the message comes too slowly")
            if size > most:
                return False
            octets = self._receive_some(want, now + self._limits.data_timeout)
            if not octets:
                raise Hangup("closed by the client within a message")
            if len(octets) == want:
                want = _DATA_OCTETS
            rest = reader.feed(octets)
        self._lines.feed(rest)
        return True

    def _receive_some(self, want: int, deadline: float) -> bytes:
        """Octets of a message.  Nobody gets more time to log in by sending one that is refused."""
        if self._session.authenticated:
            return self._wire.receive(want, deadline)
        self._idle = True
        try:
            octets = self._wire.receive(want, min(deadline, self._login_deadline))
        finally:
            self._idle = False
        if not octets and self._expired:
            raise TimeoutError("not logged in, and others wait for a connection")
        return octets
