"""Running a program for somebody: no shell, a clean environment, a limit on its time."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tofmipd import cpus

# For programs that an administrator names; what runs as a user gets the same.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT_OCTETS = 2000
# What a program has written last, and nobody has read when it ends.
_PIPE_OCTETS = 65536
# For what is killed; longer only takes what the kernel holds up.
_KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    ``status`` is its exit status, negative for the signal that ended it, None if it went beyond a
    limit.  ``output`` is the beginning of what it wrote.
    """

    status: int | None
    output: bytes


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float,
    *,
    stdin: IO[bytes] | None = None,
    directory: str = "/",
    output_limit: int = OUTPUT_LIMIT_OCTETS,
    ends_at_limit: bool = False,
    pass_descriptors: Sequence[int] = (),
    own_group: bool = True,
) -> Outcome:
    """Run a program to its end; ``timeout`` is in seconds, ``output_limit`` in octets.

    Its output and error output are read together.  What is still running of its process group
    when its time is up, or with ``ends_at_limit`` when it has written so much, is killed; nobody
    waits for one that runs as somebody else (set-user-ID) and cannot be killed.  What it leaves
    behind when it ends is left alone, but nobody reads what that writes.
    ``pass_descriptors`` are open in it under the same numbers.  Without ``own_group`` it is of the
    caller's group, and is killed alone: somebody else ends that group.
    Raises OSError or ValueError if it cannot be started.
    """
    with cpus.all_of_them():
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            # A group of its own, but in the session of whoever runs it: that is how the monitor of
            # global mode finds what a worker has left behind that was killed.
            process_group=0 if own_group else None,
            pass_fds=tuple(pass_descriptors),
        )
    ended, output = False, b""
    try:
        ended, output = _listen(process, timeout, output_limit, ends_at_limit)
    finally:
        if not ended:
            _kill(process, own_group)
        _part_from(process)
    # It may have ended by itself just before it was to be killed.
    ended = ended or (process.returncode is not None and process.returncode >= 0)
    return Outcome(process.returncode if ended else None, output)


def _kill(process: subprocess.Popen[bytes], group: bool) -> None:
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    # It may have left its group.
    with contextlib.suppress(PermissionError):
        process.kill()


def _part_from(process: subprocess.Popen[bytes]) -> None:
    """Give back what it has cost.  One that cannot be killed is waited for by later Popens."""
    assert process.stdout is not None
    process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_SECONDS)


def _listen(
    process: subprocess.Popen[bytes], timeout: float, output_limit: int, ends_at_limit: bool
) -> tuple[bool, bytes]:
    """Wait for the end of a process and read what it writes, which is dropped beyond a limit.

    Whether it ended in time, and the text.  Its children may go on, keep the pipe open and write.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    output, unread = b"", _PIPE_OCTETS
    deadline = time.monotonic() + timeout
    poll = select.poll()
    with open(os.pidfd_open(process.pid), "rb", buffering=0) as end:
        # In this order: when the end is seen, all that was written before it is seen, too.
        poll.register(end, select.POLLIN)
        poll.register(pipe, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
            ended = end.fileno() in ready
            if ended and (pipe not in ready or unread <= 0):
                return True, output
            if pipe in ready:
                with contextlib.suppress(BlockingIOError):
                    octets = os.read(pipe, 65536)
                    unread -= len(octets) if ended else 0
                    output += octets[: output_limit - len(output)]
                    if not octets:
                        poll.unregister(pipe)
                    if ends_at_limit and len(output) == output_limit:
                        return False, output
    return False, output
