"""A worker of global mode: it runs as one user, for good, and deals with that user's messages."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from tofmipd.content import Content
from tofmipd.errors import TEMPORARY
from tofmipd.privsep import frames
from tofmipd.privsep.channel import Channel, Gone, close_all
from tofmipd.privsep.frames import MESSAGES_AT_ONCE, BadFrame, Control, Kind, LogLine
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope
from tofmipd.smtp.reply import Reply, printable

if TYPE_CHECKING:
    from tofmipd.events import Pack

log = logging.getLogger(__name__)

SESSIONS_LIMIT = 1000
HEARTBEAT_SECONDS = 15
_SEND_LIMIT_SECONDS = 30
_BATCH_OCTETS = 32 << 10
_LINES_LIMIT = 10_000
_LINE_CHARACTERS = 2000
_EVENT_CHARACTERS = 7000
# Lines to the monitor; fewer than it bears.
_SENT_LIMIT, _SENT_A_SECOND = 1000, 50
_SENT_CHARACTERS = 1000
# Who was started for no message leaves sooner.
_FIRST_IDLE_SECONDS = 5.0

_TOO_SLOW = Reply(451, "3.5", ("Error: reading your TMDA files takes too long",))

Submit = Callable[[Envelope, Content, str], Reply]
Failure = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_TRACEBACKS = logging.Formatter()


class Shipping(logging.Handler):
    """Keeps log lines until they go to the server with an answer: a worker has no log of its own.

    What a thread logs while it deals with a message belongs to that message.  What one logs that
    looks after the outbox goes to the monitor, as long as it is not too much.  With ``pack`` a line
    travels as an event where it is one.
    """

    def __init__(self, pack: Pack | None = None) -> None:
        super().__init__()
        self._pack = pack
        self._own = threading.local()
        self._common: list[LogLine] = []
        self._monitor: Channel | None = None
        self._counting = threading.Lock()
        self._sent = self._left_out = 0
        self._born = time.monotonic()

    def look_after_outbox(self, monitor: Channel) -> None:
        """What the calling thread logs from now on goes to the monitor."""
        self._monitor = monitor
        self._own.outbox = True

    def _keep(self, level: int, text: str) -> None:
        if getattr(self._own, "outbox", False):
            self._tell_monitor(level, text)
            return
        lines = getattr(self._own, "lines", self._common)
        if len(lines) < _LINES_LIMIT:
            lines.append((level, text))

    def _tell_monitor(self, level: int, text: str) -> None:
        lines = [(level, text)]
        with self._counting:
            if self._sent >= _SENT_LIMIT + _SENT_A_SECOND * (time.monotonic() - self._born):
                self._left_out += 1
                return
            if self._left_out:
                lines.insert(0, (logging.WARNING, f"{self._left_out} lines are left out here"))
                self._left_out = 0
            self._sent += len(lines)
        assert self._monitor is not None
        with contextlib.suppress(Gone, OSError):
            for number, line in lines:
                frame = Control(Kind.LINE, number, (printable(line, _SENT_CHARACTERS),))
                self._monitor.send(frame.encode())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self._event(record.msg, record.args, record.exc_info)
            if not text:
                # A line without a traceback is all there is to it.
                text = self.format(record) if record.exc_info else record.getMessage()
                text = text[:_LINE_CHARACTERS]
        except Exception as error:
            text = f"a log line could not be made: {error!r}"[:_LINE_CHARACTERS]
        self._keep(min(max(record.levelno, 0), 255), text)

    def note(self, text: str, *values: object) -> None:
        """A line at INFO without the ways of a log record: there is one for every recipient."""
        if log.isEnabledFor(logging.INFO):
            line = self._event(text, values) or (text % values)[:_LINE_CHARACTERS]
            self._keep(logging.INFO, line)

    def _event(self, text: object, values: object, failure: Failure | None = None) -> str:
        """The line as an event, "" if it is none that the other end would know."""
        if self._pack is None or not isinstance(text, str) or not isinstance(values, tuple):
            return ""
        outbox = getattr(self._own, "outbox", False)
        traceback = _TRACEBACKS.formatException(failure) if failure else ""
        return self._pack(
            text, values, traceback, _SENT_CHARACTERS if outbox else _EVENT_CHARACTERS
        )

    def begin(self) -> None:
        self._own.lines = []

    def take(self) -> list[LogLine]:
        """The lines of the calling thread's message, and those that belong to none."""
        common, self._common = self._common, []
        own: list[LogLine] = self._own.__dict__.pop("lines", [])
        return common + own


class Worker:
    """Serves sessions, a thread for each; the main thread obeys the monitor.

    ``idle_timeout`` is in seconds.  ``occupied`` tells whether there is something to do beside
    messages of sessions.
    """

    def __init__(
        self,
        control: Channel,
        login: str,
        shipping: Shipping,
        *,
        idle_timeout: float,
        size_limit_octets: int,
        occupied: Callable[[], bool] = lambda: False,
    ) -> None:
        self._occupied = occupied
        self._control = control
        self._login = login
        self._shipping = shipping
        self._idle_timeout = idle_timeout
        self._size_limit = size_limit_octets
        self._lock = threading.Lock()
        # A turn is taken out for each message; a queue, for a semaphore takes ten times as long.
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(MESSAGES_AT_ONCE):
            self._turns.put(None)
        self._sessions: dict[Channel, threading.Thread] = {}
        # When the message that a session waits for came in, and when a worker last had one.
        self._busy: dict[Channel, float] = {}
        self._last_busy = time.monotonic() - max(idle_timeout - _FIRST_IDLE_SECONDS, 0)
        self._asked = False
        self._submit: Submit = lambda envelope, content, session_id: replies.INTERNAL_ERROR
        os.register_at_fork(after_in_child=self._forget)

    def run(self, submit: Submit) -> int:
        """Until the monitor says so; messages under way are finished.  The exit status.

        ``submit`` deals with one message.
        """
        self._submit = submit
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            if not poll.poll(self._patience() * 1000):
                self._keep_time()
                continue
            try:
                octets, descriptors = self._control.receive_with(frames.CONTROL_LIMIT_OCTETS, 1)
            except Gone:
                return 1
            frame = frames.decode_control(octets, frames.TO_WORKER)
            if frame.kind is Kind.LEAVE:
                self._leave()
                return 0
            self._take(Channel.of(descriptors[0]))

    def _patience(self) -> float:
        if self._asked or self._busy:
            return HEARTBEAT_SECONDS if self._asked else min(HEARTBEAT_SECONDS, self._idle_timeout)
        if self._occupied():
            return _FIRST_IDLE_SECONDS
        return max(self._last_busy + self._idle_timeout - time.monotonic(), 0.001)

    def _keep_time(self) -> None:
        """Show the server that somebody lives here; ask the monitor to go when there is no work."""
        now = time.monotonic()
        with self._lock:
            waiting = [c for c, begun in self._busy.items() if now - begun > HEARTBEAT_SECONDS]
            idle = not self._busy and now - self._last_busy >= self._idle_timeout
        for channel in waiting:
            with contextlib.suppress(Gone, TimeoutError, OSError):
                channel.send(frames.encode_lines([]))
        if idle and not self._asked and not self._occupied():
            self._asked = True
            self._control.send(Control(Kind.IDLE).encode())

    def _leave(self) -> None:
        """A session that sends something now is told to find another worker, by the channel's
        end; what it has sent before is still done."""
        self._asked = True
        with self._lock:
            sessions = dict(self._sessions)
        for channel in sessions:
            channel.stop_reading()
        for thread in sessions.values():
            while thread.is_alive():
                thread.join(HEARTBEAT_SECONDS)
                self._keep_time()

    def _take(self, channel: Channel) -> None:
        """Serve one more session.  Where there can be no thread it hears of that by the channel's
        end, before it has said anything."""
        channel.limit_sending(_SEND_LIMIT_SECONDS)
        thread = threading.Thread(target=self._serve, args=(channel,), daemon=True)
        with self._lock:
            if len(self._sessions) >= SESSIONS_LIMIT:
                channel.close()
                return
            self._sessions[channel] = thread
        try:
            thread.start()
        except RuntimeError:
            self._end(channel)

    def _end(self, channel: Channel) -> None:
        with self._lock:
            self._sessions.pop(channel, None)
            self._busy.pop(channel, None)
            self._last_busy = time.monotonic()
        channel.close()

    def _serve(self, channel: Channel) -> None:
        """One message of a session after the other."""
        try:
            while True:
                octets, descriptors = channel.receive_with(frames.WORK_LIMIT_OCTETS, 2)
                with self._lock:
                    self._busy[channel] = time.monotonic()
                self._shipping.begin()
                self._turns.get()
                try:
                    reply = self._deal_with(octets, descriptors)
                finally:
                    self._turns.put(None)
                self._answer(channel, reply)
                with self._lock:
                    self._busy.pop(channel, None)
                    self._last_busy = time.monotonic()
        except (Gone, BadFrame, TimeoutError, OSError):
            pass
        finally:
            self._end(channel)

    def _deal_with(self, octets: bytes, descriptors: list[int]) -> Reply:
        try:
            envelope, session_id, content = self._unpacked(octets, descriptors)
            try:
                return self._submit(envelope, content, session_id)
            finally:
                content.close()
        except BadFrame as error:
            log.error("the server breaks the protocol towards a worker: %s", error)
        except Exception:
            log.exception("internal error")
        return replies.INTERNAL_ERROR

    def _unpacked(self, octets: bytes, descriptors: list[int]) -> tuple[Envelope, str, Content]:
        """Raises BadFrame, OSError."""
        try:
            submission = frames.decode_submission(octets)
            if len(descriptors) != submission.files:
                raise BadFrame("descriptors are missing")
            encoded = submission.envelope
            if encoded is None:
                size = submission.envelope_octets
                _check_file(descriptors[0], size)
                encoded = os.pread(descriptors[0], size, 0)
            envelope, session_id = frames.decode_envelope(encoded, self._login)
            if submission.size_octets > self._size_limit:
                raise BadFrame("the message is too big")
            if submission.inline is not None:
                content = Content()
                content.write(submission.inline)
            else:
                _check_file(descriptors[-1], submission.size_octets)
                content = Content.of_file(descriptors.pop(), submission.size_octets)
            return envelope, session_id, content
        finally:
            close_all(descriptors)

    def _answer(self, channel: Channel, reply: Reply) -> None:
        """The reply, after as many frames of log lines as it takes."""
        batch: list[LogLine] = []
        octets = 0
        for line in self._shipping.take():
            size = 4 * len(line[1]) + 3
            if octets + size > _BATCH_OCTETS:
                channel.send(frames.encode_lines(batch))
                batch, octets = [], 0
            batch.append(line)
            octets += size
        channel.send(frames.encode_answer(reply, batch))

    @contextlib.contextmanager
    def loading(self, seconds: float) -> Iterator[None]:
        """Within this the user's files are read, and his configuration is run: if that takes too
        long the process ends, for nothing else ends a loop in a program.

        First come answers for whoever waits; where no thread gets a turn any more the kernel's
        own timer ends it.
        """
        timer = threading.Timer(seconds, self._give_up, (seconds,))
        timer.daemon = True
        signal.setitimer(signal.ITIMER_REAL, seconds + 2)
        with contextlib.suppress(RuntimeError):
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._check_channels()

    def _check_channels(self) -> None:
        """A configuration that has closed them has left nobody to be told: nothing is sent."""
        with self._lock:
            try:
                kinds = [os.fstat(one.fileno()).st_mode for one in (self._control, *self._busy)]
            except OSError:
                kinds = [0]
            if not all(map(stat.S_ISSOCK, kinds)):
                os._exit(TEMPORARY)

    def _give_up(self, seconds: float) -> None:
        line = (logging.ERROR, f"reading the user's files took longer than {seconds:g} s")
        with self._lock:
            for channel in self._busy:
                with contextlib.suppress(Gone, TimeoutError, OSError):
                    channel.send(frames.encode_answer(_TOO_SLOW, [line]))
            os._exit(TEMPORARY)

    def _forget(self) -> None:
        """In a process that the user's configuration has forked: it speaks for nobody."""
        for channel in [self._control, *self._sessions]:
            channel.close()


def _check_file(descriptor: int, size: int) -> None:
    """Raises BadFrame unless it is a plain file of that size."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise BadFrame("a descriptor is not the file that was announced")
