"""The helper that makes attempts at PAM and checkpassword programs.

It is forked before its parent has threads or gives up rights, has one thread itself, and forks
for each attempt: so an attempt may hang or crash, and neither the time of others nor the service
depends on it.  In global mode it keeps root, which PAM and such programs need, and does nothing
else with it: it takes the number of a source that was configured, a name and a password, each
checked, and gives a verdict.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tofmipd.auth import checkpassword, pam
from tofmipd.auth.asking import PASSWORD_LIMIT_OCTETS
from tofmipd.auth.credentials import NAME_LIMIT, Origin, Password, Verdict, is_login_name
from tofmipd.auth.files import SourceFileError
from tofmipd.privsep import linux
from tofmipd.privsep.channel import Channel, Gone, close_all
from tofmipd.privsep.children import beyond_all, how_it_ended
from tofmipd.privsep.frames import BadFrame, Reader, packed
from tofmipd.programs import PATH
from tofmipd.settings import SourceSpec

KINDS = frozenset({"pam", "program"})

_REQUEST = struct.Struct("!BI")
_ANSWER = struct.Struct("!B")
_VERDICTS = (Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE)
_LIMIT_OCTETS = 4096
_WORDS_OCTETS = 400
# The asker waits a little longer than the helper, whose words are better.
_GRACE_SECONDS = 2.0
# For the program of an attempt to be ended before its process is, and for that to be ended by the
# helper before it ends by itself: that is for when there is no helper any more.
_MARGIN_SECONDS = 0.2
_ALARM_SECONDS = 1.0
# The process of one attempt, made by the helper, is the only one that may use so many.
_ANSWER_DESCRIPTOR = 10

_Attempt = Callable[[Password, Origin, float], tuple[Verdict, str]]


class NoAttempts(SourceFileError):
    """A source cannot be used at all."""


def attempt_of(spec: SourceSpec) -> _Attempt:
    """What makes attempts at a source.  Raises NoAttempts."""
    try:
        if spec.kind == "pam":
            pam.prepare(spec.argument)
            return lambda credentials, origin, _: pam.attempt(spec.argument, credentials, origin)
        arguments = checkpassword.arguments_of(spec.argument)
    except (pam.PamError, checkpassword.ProgramError) as error:
        raise NoAttempts(str(error)) from None
    return lambda credentials, origin, seconds: checkpassword.attempt(
        arguments, credentials, origin, seconds
    )


class Helper:
    """The asker's side; see auth.attempts.Attempts."""

    def __init__(self, control: Channel, gone: Callable[[], None]) -> None:
        self._control = control
        self._gone = gone

    def __call__(
        self, source: int, credentials: Password, origin: Origin, timeout_seconds: float
    ) -> tuple[Verdict, str]:
        request = _REQUEST.pack(source, int(timeout_seconds * 1000)) + packed(
            credentials.user, credentials.password, origin.address, origin.local_address
        )
        ours, theirs = Channel.pair()
        with ours:
            with theirs:
                try:
                    self._control.send(request, (theirs.fileno(),))
                except Gone:
                    self._gone()
                    raise ConnectionError("the helper process is gone; restart tofmipd") from None
            ours.limit_waiting(timeout_seconds + _GRACE_SECONDS)
            try:
                reader = Reader(ours.receive_strictly(_LIMIT_OCTETS))
                (number,) = reader.unpack(_ANSWER)
                words = reader.octets(_WORDS_OCTETS).decode("utf-8", "replace")
                reader.end()
                return _VERDICTS[number], words
            except (Gone, BadFrame, IndexError):
                raise ConnectionError("the helper process has died") from None


def start(specs: Sequence[SourceSpec], gone: Callable[[], None] = lambda: None) -> Helper:
    """Fork the helper for these sources, which are asked by their numbers in this order.

    The caller has one thread.  ``gone`` is called when an attempt finds that there is no helper
    any more.  Raises NoAttempts for a source that cannot be used, and OSError.
    """
    attempts = [attempt_of(spec) for spec in specs]
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            ours.close()
            _take_leave(theirs)
            _Loop(theirs, attempts).run()
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    # It may be stopped, and there is not room for any number of requests.
    ours.limit_sending(_GRACE_SECONDS)
    return Helper(ours, gone)


def _take_leave(control: Channel) -> None:
    """Become a process of its own: no terminal, no environment, no descriptors but one."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: None)
    linux.set_name("tofmipd-attempt")
    linux.wipe_environment()
    os.environ.clear()
    os.environ["PATH"] = PATH
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, control.fileno())
    os.closerange(control.fileno() + 1, beyond_all())
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.hide()


@dataclass(slots=True)
class _Running:
    """An attempt under way; ``end`` is a descriptor that tells of the end of its process."""

    pid: int
    end: int
    answer: Channel
    deadline: float
    answered: bool = False


class _Loop:
    """The helper's one thread."""

    def __init__(self, control: Channel, attempts: Sequence[_Attempt]) -> None:
        self._control = control
        self._attempts = attempts
        self._running: dict[int, _Running] = {}
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)

    def run(self) -> None:
        """Until the parent is gone."""
        with contextlib.suppress(Gone, BadFrame):
            while True:
                self._turn()
        for running in self._running.values():
            _kill(running.pid)

    def _turn(self) -> None:
        now = time.monotonic()
        deadlines = [one.deadline for one in self._running.values() if not one.answered]
        patience = max(min(deadlines) - now, 0) * 1000 + 1 if deadlines else None
        for descriptor, _ in self._poll.poll(patience):
            if descriptor == self._control.fileno():
                self._take()
            else:
                self._ended(self._running[descriptor])
        now = time.monotonic()
        for running in self._running.values():
            if not running.answered and running.deadline <= now:
                _kill(running.pid)
                running.answered = True
                _answer(running.answer, Verdict.UNAVAILABLE, "does not answer in time")

    def _take(self) -> None:
        octets, descriptors = self._control.receive_with(_LIMIT_OCTETS, 1)
        try:
            source, seconds, credentials, origin = _decode(octets, len(self._attempts))
            answer = Channel.of(descriptors[0])
        except (BadFrame, IndexError):
            close_all(descriptors)
            raise BadFrame("not a request") from None
        try:
            pid = os.fork()
        except OSError as error:
            _answer(answer, Verdict.UNAVAILABLE, f"no process for it: {error.strerror}")
            answer.close()
            return
        if pid == 0:
            self._live(answer, source, seconds, credentials, origin)
        end = os.pidfd_open(pid)
        self._running[end] = _Running(pid, end, answer, time.monotonic() + seconds)
        self._poll.register(end, select.POLLIN)

    def _live(
        self, answer: Channel, source: int, seconds: float, credentials: Password, origin: Origin
    ) -> None:
        """The whole life of the process of one attempt."""
        status = 1
        try:
            # It may be ended with all that it has started.
            os.setsid()
            signal.setitimer(signal.ITIMER_REAL, seconds + _ALARM_SECONDS)
            if answer.fileno() != _ANSWER_DESCRIPTOR:  # else the call is an error
                os.dup2(answer.fileno(), _ANSWER_DESCRIPTOR, inheritable=False)
            os.closerange(3, _ANSWER_DESCRIPTOR)
            os.closerange(_ANSWER_DESCRIPTOR + 1, beyond_all())
            attempt = self._attempts[source]
            verdict, words = attempt(credentials, origin, seconds - _MARGIN_SECONDS)
            _answer(Channel.of(_ANSWER_DESCRIPTOR), verdict, words)
            status = 0
        except BaseException as error:
            with contextlib.suppress(BaseException):
                channel = Channel.of(_ANSWER_DESCRIPTOR)
                _answer(channel, Verdict.UNAVAILABLE, f"failed: {type(error).__name__}")
                status = 0
        finally:
            os._exit(status)

    def _ended(self, running: _Running) -> None:
        """The process of an attempt has ended; unless it was as it should be, say how."""
        # What it has started does not outlive it; its number is its own until it is waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        _, status = os.waitpid(running.pid, 0)
        self._poll.unregister(running.end)
        os.close(running.end)
        del self._running[running.end]
        if status != 0 and not running.answered:
            _answer(running.answer, Verdict.UNAVAILABLE, how_it_ended(status))
        running.answer.close()


def _decode(octets: bytes, sources: int) -> tuple[int, float, Password, Origin]:
    """Raises BadFrame."""
    reader = Reader(octets)
    source, milliseconds = reader.unpack(_REQUEST)
    user, password, address, local_address = (
        reader.text(4 * NAME_LIMIT),
        reader.octets(PASSWORD_LIMIT_OCTETS),
        reader.text(80),
        reader.text(80),
    )
    reader.end()
    if source >= sources or not password or not is_login_name(user):
        raise BadFrame("not an attempt")
    return source, milliseconds / 1000, Password(user, password), Origin(address, local_address)


def _answer(channel: Channel, verdict: Verdict, words: str) -> None:
    shown = words.encode("utf-8", "replace")[:_WORDS_OCTETS]
    with contextlib.suppress(Gone, OSError):
        channel.send(_ANSWER.pack(_VERDICTS.index(verdict)) + packed(shown))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
