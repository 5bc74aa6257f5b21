"""The auth process of global mode: it judges logins, and tells the monitor whom they proved."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from tofmipd import log as log_module
from tofmipd.auth.credentials import Judgement, Verdict
from tofmipd.privsep import frames
from tofmipd.privsep.channel import Channel, Gone, close_all
from tofmipd.privsep.frames import BadFrame, Control, Kind, Login, Opening
from tofmipd.privsep.logins import Challenge, Logins
from tofmipd.privsep.offer import Offer

log = logging.getLogger(__name__)

_FILE_LIMIT_SECONDS = 5
# Challenges of sessions that never answered are forgotten, the oldest first.
_CHALLENGES_LIMIT = 4096
# What is said in the place of a challenge: a packet cannot be empty.
NO_CHALLENGE = b"-"
# How often it is looked whether a change of a file has changed what can be offered.
_LOOK_SECONDS = 2.0


class Files:
    """Opens files that only root may read: itself as long as it is root, then by the monitor."""

    def __init__(self, control: Channel, paths: tuple[str, ...]) -> None:
        self._control = control
        self._paths = paths
        self._ask = False
        # Answers of the monitor that have not come yet.
        self._owed = 0
        self._lock = threading.Lock()
        self._answers: queue.SimpleQueue[tuple[int, list[int]]] = queue.SimpleQueue()

    def ask_from_now_on(self) -> None:
        self._ask = True

    def opener(self, path: str, flags: int) -> int:
        """For open().  Raises OSError."""
        if not self._ask or path not in self._paths:
            return os.open(path, flags | os.O_NONBLOCK)
        number = self._paths.index(path)
        with self._lock:
            self._control.send(Control(Kind.OPEN, number).encode())
            self._owed += 1
            while self._owed:
                try:
                    answer, descriptors = self._answers.get(timeout=_FILE_LIMIT_SECONDS)
                except queue.Empty:
                    raise TimeoutError("the monitor does not answer") from None
                self._owed -= 1
                if self._owed:
                    # That was for somebody who has not waited for it.
                    close_all(descriptors)
        if answer & 0xFFFF != number or not descriptors:
            close_all(descriptors)
            raise OSError(answer >> 16, os.strerror(answer >> 16), path)
        return descriptors[0]

    def answered(self, number: int, descriptors: list[int]) -> None:
        """The monitor has opened a file, or could not."""
        self._answers.put((number, descriptors))


class AuthServer:
    """Serves the server on channels of its own, a thread for each; the main thread obeys the
    monitor."""

    def __init__(
        self, control: Channel, logins: Logins, files: Files, offer: Offer | None = None
    ) -> None:
        self._offer = offer
        self._control = control
        self._logins = logins
        self._files = files
        self._lock = threading.Lock()
        self._challenges: OrderedDict[int, Challenge] = OrderedDict()

    def run(self) -> int:
        """Until the monitor says so, or is gone."""
        if self._offer is not None:
            # Not here: to look at a file may take an answer that this thread brings.
            threading.Thread(target=self._look, name="look", daemon=True).start()
        self._control.send(Control(Kind.READY).encode())
        while True:
            try:
                octets, descriptors = self._control.receive_with(frames.CONTROL_LIMIT_OCTETS, 1)
            except Gone:
                return 1
            frame = frames.decode_control(octets, frames.TO_AUTH)
            match frame.kind:
                case Kind.STOP:
                    return 0
                case Kind.FILE:
                    self._files.answered(frame.number, descriptors)
                case Kind.LOG:
                    take_log(descriptors)
                case Kind.CONNECT:
                    _start(self._accept, Channel.of(descriptors[0]))

    def _publish(self) -> None:
        """Let the server know which mechanisms there are: a file may have changed."""
        if self._offer is not None:
            self._offer.publish(self._logins.mechanisms)

    def _look(self) -> None:
        while True:
            try:
                self._publish()
            except Exception:
                log.exception("internal error")
            time.sleep(_LOOK_SECONDS)

    def _accept(self, server: Channel) -> None:
        """Take new channels from the server, as long as it lives."""
        with server, contextlib.suppress(Gone, OSError):
            while True:
                octets, descriptors = server.receive_with(frames.CONTROL_LIMIT_OCTETS, 1)
                try:
                    frames.decode_control(octets, frames.TO_AUTH_FROM_SERVER)
                    _start(self._serve, Channel.of(descriptors[0]))
                except (BadFrame, IndexError) as error:
                    close_all(descriptors)
                    log.error("the server breaks the protocol towards auth: %s", error)
                    return

    def _serve(self, channel: Channel) -> None:
        """Answer one request after the other."""
        with channel:
            try:
                while True:
                    octets = channel.receive_strictly(frames.WORK_LIMIT_OCTETS)
                    channel.send(self._answer(frames.decode_auth_request(octets)))
            except (Gone, OSError):
                pass
            except BadFrame as error:
                log.error("the server breaks the protocol towards auth: %s", error)

    def _answer(self, request: Login | Opening) -> bytes:
        try:
            if isinstance(request, Opening):
                return self._challenge(request)
            return frames.encode_judgement(*self._judge(request))
        except Exception:
            if isinstance(request, Opening):
                log.exception("internal error")
                return NO_CHALLENGE
            log.exception("s=%s internal error", request.session_id)
            return frames.encode_judgement(Judgement(Verdict.UNAVAILABLE))

    def _challenge(self, opening: Opening) -> bytes:
        challenge = self._logins.challenge(opening.mechanism, opening.message)
        if challenge is None:
            return NO_CHALLENGE
        with self._lock:
            self._challenges[opening.session] = challenge
            if len(self._challenges) > _CHALLENGES_LIMIT:
                self._challenges.popitem(last=False)
        return challenge.text

    def _judge(self, login: Login) -> tuple[Judgement, str]:
        """Whoever is accepted is known to the monitor before the server hears of it."""
        with self._lock:
            challenge = self._challenges.pop(login.session, None)
        judgement, identity = self._logins.judge(
            login.session_id, login.mechanism, login.credentials, login.origin, challenge
        )
        self._publish()
        if identity is not None:
            texts = (identity.account, identity.login)
            self._control.send(Control(Kind.PROVED, login.session, texts).encode())
        return judgement, "" if identity is None else identity.account


def take_log(descriptors: list[int]) -> None:
    """Write to the log file that the monitor has opened anew."""
    handler = log_module.shared_file()
    if handler is not None and descriptors:
        handler.take(descriptors[0])
    else:
        close_all(descriptors)


def _start(target: Callable[[Channel], None], channel: Channel) -> None:
    """Serve a channel in a thread; without one it is closed, and the other end hears of it."""
    try:
        threading.Thread(target=target, args=(channel,), daemon=True).start()
    except RuntimeError as error:
        log.error("no thread for a channel: %s", error)
        channel.close()
