"""Forking: what a child of the monitor keeps, and what it gives back first."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tofmipd import log as log_module
from tofmipd.errors import SOFTWARE, UNAVAILABLE
from tofmipd.privsep import linux
from tofmipd.privsep.channel import Channel, close_all

log = logging.getLogger(__name__)

# Their handler does nothing: programs that are started have the usual one again, which they
# would not have if the signals were ignored.
_NOT_FOR_CHILDREN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

# Frames that a child has not taken, and descriptors among them.
_WAITING_LIMIT = 2000
_WAITING_DESCRIPTORS_LIMIT = 200


class Deaf(Exception):
    """A child does not take what it is sent."""


@dataclass(slots=True)
class Child:
    """A process of the monitor's and its end of the channel to it."""

    name: str
    pid: int
    control: Channel
    # Frames that the child has not taken yet.
    waiting: list[tuple[bytes, tuple[int, ...]]] = field(default_factory=list)
    ready: bool = False
    # It has broken the protocol: nothing that it says counts any more.
    distrusted: bool = False
    # When it gets SIGKILL unless it has ended; of time.monotonic().
    kill_at: float | None = None

    def send(self, octets: bytes, descriptors: tuple[int, ...] = ()) -> bool:
        """Never waits: what the child does not take now is kept for it.

        Whether anything is kept.  Raises Deaf beyond a limit, Gone, and OSError.
        """
        if not self.waiting:
            try:
                self.control.send(octets, descriptors)
                return False
            except BlockingIOError:
                pass
        kept = sum(len(numbers) for _, numbers in self.waiting) if descriptors else 0
        if len(self.waiting) >= _WAITING_LIMIT or kept >= _WAITING_DESCRIPTORS_LIMIT:
            raise Deaf
        try:
            self.waiting.append((octets, tuple(os.dup(number) for number in descriptors)))
        except OSError:
            raise Deaf from None
        return True

    def send_waiting(self) -> bool:
        """Send what is kept, as far as the child takes it; whether there is still more.

        Raises Gone and OSError.
        """
        try:
            while self.waiting:
                octets, descriptors = self.waiting[0]
                self.control.send(octets, descriptors)
                close_all(descriptors)
                del self.waiting[0]
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Give back the channel and what was kept."""
        for _, descriptors in self.waiting:
            close_all(descriptors)
        self.control.close()


@dataclass(frozen=True, slots=True)
class Birth:
    """How a child is made.

    ``main`` gets its end of the channel and returns the exit status.  ``keep`` are the other
    descriptors of the monitor that it needs; all else is closed.  A child that is ``apart`` has
    a session and process group of its own, nothing on descriptors 0 to 2 and no log.
    """

    name: str
    title: str
    main: Callable[[Channel], int]
    keep: tuple[int, ...] = ()
    apart: bool = False


def fork(birth: Birth, channels: Iterable[Channel]) -> Child:
    """Make a child.  ``channels`` are the monitor's own, to be closed in the child.

    The caller has one thread.  Raises OSError when there can be no further process.
    """
    ours, theirs = Channel.pair()
    others = [ours, *channels]
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        _live(birth, theirs, others)
    theirs.close()
    ours.never_wait()
    return Child(birth.name, pid, ours)


def _live(birth: Birth, control: Channel, others: list[Channel]) -> None:
    """The whole life of a child.  Nothing of the monitor's stack is ever returned to."""
    status = SOFTWARE
    try:
        _take_leave(birth, control, others)
        status = birth.main(control)
    except BaseException:
        with contextlib.suppress(BaseException):
            log.exception("%s failed", birth.name)
    finally:
        os._exit(status)


def _take_leave(birth: Birth, control: Channel, others: list[Channel]) -> None:
    """Become a process of its own, with none of the monitor's signals and descriptors."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in _NOT_FOR_CHILDREN:
        signal.signal(number, lambda number, frame: None)
    linux.set_name(birth.title)
    # Through their objects: these would close somebody else's descriptor of that number later.
    for other in others:
        other.close()
    if birth.apart:
        os.setsid()
        log_module.replace_handler(logging.NullHandler())
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
    keep = sorted({0, 1, 2, control.fileno(), *birth.keep, *log_module.descriptors()})
    for low, high in zip(keep, [*keep[1:], beyond_all()], strict=True):
        os.closerange(low + 1, high)


def beyond_all() -> int:
    """Above every descriptor that is open: a limit that was lowered later has closed none."""
    numbers = [os.sysconf("SC_OPEN_MAX")]
    with contextlib.suppress(OSError):
        numbers += [int(name) + 1 for name in os.listdir("/dev/fd")]
    return max(numbers)


def end_with_monitor(monitor: int) -> None:
    """Have this process killed when the monitor ends.  For children that have changed their uid."""
    linux.end_with_parent(signal.SIGKILL)
    if os.getppid() != monitor:
        os._exit(UNAVAILABLE)


def kill_session(number: int) -> None:
    """SIGKILL for all processes of a session, where the system tells which they are.

    For a child that is apart and was killed: what it was waiting for goes with it.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == number:
                continue
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The name of the program, in brackets, may hold anything.
                    fields = file.read().rpartition(b")")[2].split()
                if int(fields[3]) == number:
                    os.kill(int(name), signal.SIGKILL)


def how_it_ended(status: int) -> str:
    """The words for a status of os.waitpid."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"


def kill(child: Child, *, group: bool) -> None:
    """SIGKILL for a child, with ``group`` also for what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
