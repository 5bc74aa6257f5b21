"""The gate of global mode: sources are behind a channel to auth, tagging behind one to a worker."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tofmipd.auth.credentials import Credentials, Judgement, Origin, Verdict
from tofmipd.content import Content, memory_file
from tofmipd.privsep import frames
from tofmipd.privsep.authchannels import AuthChannels
from tofmipd.privsep.authserver import NO_CHALLENGE, take_log
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.frames import BadFrame, Control, Kind, LogLine, Refusal, Submission
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.keyfiles import KeyFiles
from tofmipd.privsep.offer import Offer
from tofmipd.privsep.throttle import Throttle, within_limits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply, printable

if TYPE_CHECKING:
    from tofmipd.events import Unpack
    from tofmipd.privsep.quota import Quota

log = logging.getLogger(__name__)

_IDLE_CHANNELS = 8
_ENDED_AT_ONCE = 32
# How long a message may wait for its turn among those of its login.
_TURN_SECONDS = 300
# How often the monitor hears that a worker is in use, and how long unused channels are kept.
_USED_SECONDS = 5
_SWEEP_SECONDS = 60
_GRANT_LIMIT_SECONDS = 20
# A worker gives a sign of life at least this often, whatever it waits for.
SILENCE_LIMIT_SECONDS = 60
_ATTEMPTS = 3
# Beyond the lines that are logged; a sign of life comes every few seconds.
_FRAMES_BEYOND = 10_000
_LINE_OCTETS = 8000
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)

_NO_WORKER = Reply(451, "3.2", ("Error: too many users at the moment, try again later",))
_BUSY = Reply(451, "3.2", ("Error: too many of your messages at a time, try again later",))
_NOT_NOW = Reply(451, "3.0", ("Error: your mail cannot be dealt with now, try again later",))
_DIED = Reply(451, "3.0", ("Error: the process for your mail has died, the log has more",))
_STUCK = Reply(451, "3.0", ("Error: the process for your mail does not answer, try again later",))


class Refused(Exception):
    """The monitor gives no worker."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


@dataclass(slots=True)
class _Idle:
    """Channels to the worker of one login that no message is using.

    ``used`` is when one was left last, ``told`` when the monitor last heard that they are in use;
    both of time.monotonic().  ``busy`` messages have their turn, ``waiting`` ones wait for
    ``free``.
    """

    used: float
    told: float
    free: threading.Condition
    channels: list[Channel] = field(default_factory=list)
    busy: int = 0
    waiting: int = 0


class RemoteGate:
    """The server's way to all that it has no rights for.  See gate.Gate.

    ``offer`` tells the mechanisms that all sources can serve; ``auth_limit`` is in seconds.
    ``new_keys`` is given the files that the monitor has opened; ``unpack`` makes events of the
    lines of workers.
    """

    def __init__(
        self,
        control: Channel,
        offer: Offer,
        auth_limit: float,
        throttle: Throttle | None = None,
        new_keys: Callable[[Mapping[str, bytes | OSError]], None] | None = None,
        quota: Quota | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        self._offer = offer
        self.unpack = unpack
        self.auth = AuthChannels(auth_limit)
        self.throttle = throttle
        self.quota = quota
        self._control = control
        self._key_files = KeyFiles()
        self._new_keys = new_keys
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Channel | Refusal]] = {}
        # Channels to workers that no message is using, by login; the one used last goes first.
        self._idle: dict[Identity, _Idle] = {}
        self._swept = time.monotonic()
        self._ended: list[int] = []

    @property
    def mechanisms(self) -> frozenset[str]:
        return self._offer.mechanisms

    def admit(self, session_id: str, peer: Peer) -> RemotePass:
        return RemotePass(self, session_id, peer)

    def obey(self, stop: Callable[[], None], retire: Callable[[], None] = lambda: None) -> None:
        """Take what the monitor says, in a thread of its own.

        ``stop`` is called when it says so, ``retire`` when only no further sessions are to begin.

        Without a monitor there is nothing to live for: the process ends.
        """
        try:
            while True:
                octets, descriptors = self._control.receive_with(
                    frames.CONTROL_LIMIT_OCTETS, frames.KEY_FILES_AT_ONCE
                )
                self._obey(
                    frames.decode_control(octets, frames.TO_SERVER), descriptors, stop, retire
                )
        except Gone:
            os._exit(1)
        except Exception:
            log.exception("internal error towards the monitor")
            os._exit(1)

    def _obey(
        self,
        frame: Control,
        descriptors: list[int],
        stop: Callable[[], None],
        retire: Callable[[], None],
    ) -> None:
        match frame.kind:
            case Kind.STOP:
                stop()
            case Kind.RETIRE:
                retire()
            case Kind.LOG:
                take_log(descriptors)
            case Kind.CONNECT:
                self.auth.connect(Channel.of(descriptors[0]))
            case Kind.GRANTED:
                self._hand_out(frame.number, Channel.of(descriptors[0]))
            case Kind.REFUSED:
                self._hand_out(frame.number, Refusal(int(frame.texts[0])))
            case Kind.KEYS:
                self._key_files.begin(frame.number, descriptors)
                self._take_keys()
            case Kind.KEY_FILES:
                self._key_files.add(descriptors)
                self._take_keys()

    def _take_keys(self) -> None:
        """Use new certificates, in a thread of its own: sessions wait for what comes after."""
        files = self._key_files.take()
        if files is not None and self._new_keys is not None:
            threading.Thread(target=self._new_keys, args=(files,), daemon=True).start()

    def _hand_out(self, session: int, answer: Channel | Refusal) -> None:
        with self._lock:
            waiting = self._waiting.pop(session, None)
            if waiting is not None:
                waiting.put(answer)
                return
        if isinstance(answer, Channel):
            answer.close()

    def begin(self, login: Identity) -> None:
        """Wait for a turn: a worker deals with so many messages at a time.  Raises Refused."""
        with self._lock:
            idle = self._idle.get(login)
            if idle is None:
                now = time.monotonic()
                idle = self._idle[login] = _Idle(now, now, threading.Condition(self._lock))
            if idle.busy >= frames.MESSAGES_AT_ONCE:
                idle.waiting += 1
                limit = frames.MESSAGES_AT_ONCE
                try:
                    if not idle.free.wait_for(lambda: idle.busy < limit, _TURN_SECONDS):
                        raise Refused(_BUSY)
                finally:
                    idle.waiting -= 1
            idle.busy += 1

    def finish(self, login: Identity) -> None:
        """The turn of a message that has had one is over."""
        with self._lock:
            idle = self._idle[login]
            idle.busy -= 1
            if idle.waiting:
                idle.free.notify()

    def take_worker(self, session: int, login: Identity) -> Channel:
        """A channel to the worker of a login that the session has proved, for one message that
        has its turn.

        One that another message of that login has left is as good as a new one, which costs all
        processes a turn.  Raises Refused.
        """
        now = time.monotonic()
        with self._lock:
            idle = self._idle[login]
            channel = None
            while channel is None and idle.channels:
                channel = idle.channels.pop()
                if channel.has_something():
                    # It is closed, or its worker says more than it was asked.
                    channel.close()
                    channel = None
            told = now - idle.told < _USED_SECONDS
            if not told:
                idle.told = now
        if channel is None:
            return self._grant(session)
        if not told:
            self.tell(Kind.USED, session)
        return channel

    def leave_worker(self, login: Identity, channel: Channel) -> None:
        """The message is done; its channel serves the next."""
        now = time.monotonic()
        old: list[Channel] = []
        with self._lock:
            idle = self._idle[login]
            idle.used = now
            if len(idle.channels) < _IDLE_CHANNELS:
                idle.channels.append(channel)
            else:
                old.append(channel)
            if now - self._swept > _SWEEP_SECONDS:
                self._swept = now
                old += self._sweep(now)
        for unused in old:
            unused.close()

    def forget_worker(self, login: Identity) -> None:
        """The worker of a login is gone: so are its channels."""
        with self._lock:
            idle = self._idle[login]
            gone, idle.channels = idle.channels, []
        for channel in gone:
            channel.close()

    def _sweep(self, now: float) -> list[Channel]:
        """Take out what has long been idle: its workers have left."""
        gone = [
            login
            for login, idle in self._idle.items()
            if now - idle.used > _SWEEP_SECONDS and not (idle.busy or idle.waiting)
        ]
        return [channel for login in gone for channel in self._idle.pop(login).channels]

    def _grant(self, session: int) -> Channel:
        answers: queue.SimpleQueue[Channel | Refusal] = queue.SimpleQueue()
        with self._lock:
            self._waiting[session] = answers
        self.tell(Kind.GRANT, session)
        try:
            answer = answers.get(timeout=_GRANT_LIMIT_SECONDS)
        except queue.Empty:
            with self._lock:
                self._waiting.pop(session, None)
            with contextlib.suppress(queue.Empty):
                late = answers.get_nowait()
                if isinstance(late, Channel):
                    late.close()
            raise Refused(_NOT_NOW) from None
        if isinstance(answer, Refusal):
            raise Refused(_NO_WORKER if answer is Refusal.NO_ROOM else _NOT_NOW)
        answer.limit_waiting(SILENCE_LIMIT_SECONDS)
        return answer

    def ended(self, session: int) -> None:
        """A session that had proved something is over; the monitor hears of several at once."""
        with self._lock:
            self._ended.append(session)
            if len(self._ended) < _ENDED_AT_ONCE:
                return
            ended, self._ended = self._ended, []
        for number in ended:
            self.tell(Kind.END, number)

    def tell(self, kind: Kind, session: int) -> None:
        """Say something about a session to the monitor; if it is gone, so are we, soon."""
        with contextlib.suppress(Gone):
            self._control.send(Control(kind, session).encode())


class RemotePass:
    """See gate.Pass."""

    def __init__(self, gate: RemoteGate, session_id: str, peer: Peer) -> None:
        self._gate = gate
        self._id = session_id
        self._number = int(session_id, 16)
        self._origin = Origin(peer.address, peer.local_address)
        self._login = ""
        self._whose = Identity("", "")

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        try:
            request = frames.encode_opening(frames.Opening(self._number, mechanism, opening))
            answer = self._gate.auth.ask(request)
        except (Gone, OSError, BadFrame) as error:
            log.error("s=%s auth does not answer: %s", self._id, error)
            return b""
        return b"" if answer == NO_CHALLENGE else answer

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        login = frames.Login(self._number, self._id, mechanism, credentials, self._origin)
        try:
            request = frames.encode_login(login)
            judgement, account = frames.decode_judgement(self._gate.auth.ask(request))
        except (Gone, OSError, BadFrame) as error:
            log.error("s=%s auth does not answer: %s", self._id, error)
            return Judgement(Verdict.UNAVAILABLE)
        if judgement.verdict is Verdict.ACCEPTED:
            self._login = credentials.user
            self._whose = Identity(account, self._login)
        return judgement

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        if not self._login:
            return replies.AUTH_REQUIRED
        return within_limits(
            self._gate.quota,
            self._gate.throttle,
            self._login,
            len(envelope.recipients),
            self._id,
            lambda: self._pass_on(envelope, content),
        )

    def _pass_on(self, envelope: Envelope, content: Content) -> Reply:
        try:
            self._gate.begin(self._whose)
            try:
                return self._submit(envelope, content)
            finally:
                self._gate.finish(self._whose)
        except Refused as error:
            log.warning("s=%s no worker: %s", self._id, error)
            return error.reply
        except OSError as error:
            log.error("s=%s no room for the message: %s", self._id, error)
            return replies.NO_ROOM

    def _submit(self, envelope: Envelope, content: Content) -> Reply:
        """As one packet, or the large parts of it as files."""
        encoded = frames.encode_envelope(envelope, self._id)
        size, recipients = content.size_octets, len(envelope.recipients)
        if len(encoded) + size <= frames.INLINE_LIMIT_OCTETS:
            frame = Submission(size, len(encoded), encoded, content.head(size))
            return self._give(frame.encode(), (), recipients)
        if len(encoded) <= frames.INLINE_LIMIT_OCTETS:
            frame = Submission(size, len(encoded), encoded, None)
            return self._give(frame.encode(), (content.descriptor(),), recipients)
        with memory_file(encoded) as file:
            frame = Submission(size, len(encoded), None, None)
            files = (file.fileno(), content.descriptor())
            return self._give(frame.encode(), files, recipients)

    def _give(self, octets: bytes, files: tuple[int, ...], recipients: int) -> Reply:
        """Give the message to the worker.

        One that is leaving, or has died without having read the message, is replaced; once it
        has been read nobody may try again, for it may have been sent.
        """
        for _ in range(_ATTEMPTS):
            worker = self._gate.take_worker(self._number, self._whose)
            try:
                worker.send(octets, files)
                reply = self._answer(worker, recipients)
            except Gone as error:
                worker.close()
                # The others lead to the same process.
                self._gate.forget_worker(self._whose)
                if not error.unread:
                    log.error("s=%s the worker has died with the message", self._id)
                    return _DIED
            except (TimeoutError, BadFrame) as error:
                worker.close()
                return self._failed(error)
            else:
                self._gate.leave_worker(self._whose, worker)
                return reply
        log.error("s=%s no worker takes the message", self._id)
        return _NOT_NOW

    def _answer(self, worker: Channel, recipients: int) -> Reply:
        """Wait for the reply.  A worker runs code of its user's: it is believed nothing.

        Raises Gone, TimeoutError, BadFrame.
        """
        lines_left = 2 * recipients + 200
        while True:
            reply, lines = frames.decode_answer(worker.receive(frames.WORKER_LIMIT_OCTETS))
            self._log(lines[: max(lines_left, 0)])
            lines_left -= max(len(lines), 1)
            if lines_left < -_FRAMES_BEYOND:
                raise BadFrame("talks without end")
            if reply is not None:
                return reply

    def _failed(self, error: TimeoutError | BadFrame) -> Reply:
        """A worker that is silent is of no use to anybody; one that talks nonsense may go on."""
        if isinstance(error, BadFrame):
            log.error("s=%s the worker breaks the protocol: %s", self._id, error)
            return _DIED
        log.error("s=%s the worker does not answer", self._id)
        self._gate.tell(Kind.STUCK, self._number)
        return _STUCK

    def _log(self, lines: list[LogLine]) -> None:
        """A worker's lines, each under the name of this session whatever it claims.

        None looks like a line about a login: programs act on these (row BX-5).
        """
        for level, line in lines:
            claim = self._gate.unpack(line) if self._gate.unpack is not None else None
            text = printable(line if claim is None else claim.text, _LINE_OCTETS)
            text = text.removeprefix(f"s={self._id} ")
            if text.startswith("auth "):
                text = f"worker: {text}"
            log.log(
                level if level in _LEVELS else logging.INFO,
                "s=%s %s",
                self._id,
                text if claim is None else claim.shown_as(text),
            )

    def close(self) -> None:
        """The session has ended."""
        if self._login:
            self._gate.ended(self._number)
