"""The blocking loop between a client's connection and its session."""

from __future__ import annotations

import logging
import threading
import time

from tofmipd.auth.credentials import Verdict
from tofmipd.content import Content
from tofmipd.gate import Pass
from tofmipd.log import TRACE
from tofmipd.settings import Limits
from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand, Reply
from tofmipd.smtp.session import MakeChallenge, Receive, Session, Step, Submit, Verify
from tofmipd.smtp.stream import LineReader, MessageReader, NewlineFixer
from tofmipd.wire import Wire

log = logging.getLogger(__name__)
trace = logging.getLogger(TRACE)

_COMMAND_OCTETS = 16 << 10
_DATA_OCTETS = 256 << 10
_GRACE_SECONDS = 60
_MINIMUM_RATE = 100


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
    ) -> None:
        self._wire = wire
        self._session = session
        self._pass = gate_pass
        self._limits = limits
        self._stopping = stopping
        self._id = session_id
        self._fix = fix_bare_newline
        self._lines = LineReader()
        self._content = Content()
        self._login_deadline = time.monotonic() + limits.login_timeout
        self._failures = 0
        self._idle = False
        self._tracing = trace.isEnabledFor(logging.DEBUG)

    def run(self) -> None:
        """Talk until one of the two has enough.  Raises nothing but bugs outside commands."""
        self._say(self._session.greeting())
        linger = False
        try:
            while not (reply := self._obey_next()).closes:
                pass
            self._wire.flush()
            # After these the client has nothing more to say.
            linger = reply not in (replies.BYE, replies.SHUTTING_DOWN)
        except TimeoutError as error:
            log.info("s=%s timeout: %s", self._id, error)
            linger = self._last_words(replies.TIMED_OUT)
        except (Hangup, ConnectionError) as error:
            log.debug("s=%s gone: %s", self._id, error)
        except Exception:
            # What the client sends now may be the rest of a message: no line of it is obeyed.
            log.exception("s=%s internal error", self._id)
            linger = self._last_words(replies.INTERNAL_ERROR)
        finally:
            self._content.close()
            self._pass.close()
            self._wire.close(linger=linger)

    def stop(self) -> None:
        """Called from another thread: end the session if it waits for a command."""
        if self._idle:
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

    def _obey_next(self) -> Reply:
        """Read one line and do what it asks for; the reply that ended that."""
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
            step = self._perform(step)
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
                    raise Hangup("closed by the client")
                self._lines.feed(octets)
                line = self._lines.line(limit)
        finally:
            self._idle = False
        return line

    def _perform(self, step: MakeChallenge | Verify | Receive | Submit) -> Step:
        """Carry a request of the session out.  A defect behind the gate costs this command only."""
        if isinstance(step, Receive):
            return self._session.received(self._receive(step.reply))
        try:
            match step:
                case Submit(envelope=envelope):
                    return self._session.submitted(self._pass.submit(envelope, self._content))
                case Verify():
                    return self._session.judged(self._verify(step))
                case MakeChallenge():
                    return self._session.challenged(self._pass.challenge())
        except Exception:
            log.exception("s=%s internal error", self._id)
            return replies.INTERNAL_ERROR
        finally:
            self._content.close()

    def _verify(self, step: Verify) -> Verdict:
        """A rejection takes equally long whatever its reason, and longer each time."""
        begun = time.monotonic()
        verdict = self._pass.verify(step.credentials, step.mechanism)
        if verdict is Verdict.REJECTED:
            self._failures += 1
            pause = begun + self._limits.failure_delay * self._failures - time.monotonic()
            if pause > 0:
                self._stopping.wait(pause)
        elif verdict is Verdict.ACCEPTED:
            log.debug("s=%s logged in", self._id)
        return verdict

    def _receive(self, go_ahead: Reply) -> Reply | None:
        """Read a message into the content; what is wrong with it, if anything."""
        self._say(go_ahead)
        self._content = content = Content()
        failures: list[OSError] = []

        def write(block: bytes) -> None:
            try:
                if not failures:
                    content.write(block)
            except OSError as error:
                failures.append(error)

        fixer = NewlineFixer() if self._fix else None
        keep = write if fixer is None else lambda block: write(fixer.feed(block))
        reader = MessageReader(keep, self._limits.size)
        self._read_message(reader)
        if fixer is not None:
            write(fixer.finish())
        problem = None
        if failures:
            log.error("s=%s no room for the message: %s", self._id, failures[0])
            problem = replies.NO_ROOM
        elif reader.too_big:
            problem = replies.MESSAGE_TOO_BIG
        elif reader.bare_newline and fixer is None:
            problem = replies.BARE_NEWLINE
        if problem is not None:
            content.close()
        return problem

    def _read_message(self, reader: MessageReader) -> None:
        """Feed the reader up to the end of the message; the rest are commands again."""
        begun = time.monotonic()
        want = _COMMAND_OCTETS
        octets = self._lines.take()
        self._wire.flush()
        while True:
            rest = reader.feed(octets) if octets else None
            if rest is not None:
                self._lines.feed(rest)
                return
            now = time.monotonic()
            age = now - begun
            if age > _GRACE_SECONDS and reader.size_octets < age * _MINIMUM_RATE:
                raise TimeoutError("the message comes too slowly")
            octets = self._wire.receive(want, now + self._limits.data_timeout)
            if not octets:
                raise Hangup("closed by the client within a message")
            if len(octets) == want:
                want = _DATA_OCTETS
