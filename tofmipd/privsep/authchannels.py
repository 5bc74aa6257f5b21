"""The server's channels to auth."""

from __future__ import annotations

import threading
import time

from tofmipd.privsep import frames
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.frames import BadFrame, Control, Kind

# How long a replaced auth process may take to be there.
_AUTH_START_SECONDS = 5
_ASK_ATTEMPTS = 4
_IDLE_CHANNELS = 8


class AuthChannels:
    """Channels to auth: each is used for one request at a time, idle ones are kept."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._lock = threading.Condition()
        self._main: Channel | None = None
        self._idle: list[Channel] = []

    def connect(self, main: Channel) -> None:
        """There is a new auth process."""
        with self._lock:
            main.limit_sending(self._limit)
            old, self._main = [self._main, *self._idle], main
            self._idle = []
            self._lock.notify_all()
        for channel in old:
            if channel is not None:
                channel.close()

    def ask(self, request: bytes) -> bytes:
        """Send a request, and once more if auth dies of it or before.

        Raises Gone, BadFrame or OSError if there is no answer.
        """
        killed = 0
        for _ in range(_ASK_ATTEMPTS):
            channel = self._take()
            try:
                channel.send(request)
                answer = channel.receive(frames.WORK_LIMIT_OCTETS)
            except (OSError, BadFrame):
                channel.close()
                raise
            except Gone as error:
                channel.close()
                killed += not error.unread
                if killed == 2:
                    raise
                # The others go to the same dead process.
                self._drop_idle()
            else:
                self._give_back(channel)
                return answer
        raise Gone(unread=True)

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def _take(self) -> Channel:
        deadline = time.monotonic() + _AUTH_START_SECONDS
        while True:
            with self._lock:
                if self._idle:
                    return self._idle.pop()
                main = self._main
                if main is None:
                    if not self._lock.wait(deadline - time.monotonic()):
                        raise Gone(unread=True)
                    continue
            try:
                return self._new(main)
            except (Gone, OSError) as error:
                with self._lock:
                    replaced = self._main is not main
                    if isinstance(error, Gone) and not replaced:
                        self._main = None
                # Where a new auth has come meanwhile, this channel was closed under our hands.
                if isinstance(error, OSError) and not replaced:
                    raise

    def _new(self, main: Channel) -> Channel:
        ours, theirs = Channel.pair()
        with theirs:
            try:
                main.send(Control(Kind.CONNECT).encode(), (theirs.fileno(),))
            except (Gone, OSError):
                ours.close()
                raise
        ours.limit_waiting(self._limit)
        return ours

    def _give_back(self, channel: Channel) -> None:
        with self._lock:
            if len(self._idle) < _IDLE_CHANNELS:
                self._idle.append(channel)
                return
        channel.close()
