"""Tools that run to their end, forked by a process that has all modules of the program.

Python and the imports take most of the time of a tool.  What is shown of its start is shown where
tests execute the program themselves.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("tofmipd"))
# What Python looks at when it starts, and not again.
_FOR_THE_START = ("LANG", "LC_", "PYTHON")
# For each request: a file that says what to run, its three descriptors, and where its pid and then
# its status are to be written.  The one that waits for it is a process of its own.
_FORGE = """
import gc, importlib, json, os, pkgutil, signal, socket, sys, time
import tofmipd
for module in pkgutil.walk_packages(tofmipd.__path__, "tofmipd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
gc.freeze()
coerced = {name: os.environ[name] for name in ["LC_CTYPE"] if name in os.environ}
requests = socket.socket(fileno=0)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    word, descriptors, *_ = socket.recv_fds(requests, 1, 5)
    if not word:
        sys.exit()
    if os.fork() == 0:
        break
    for descriptor in descriptors:
        os.close(descriptor)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
order, *standard, answers = descriptors
with open(order) as file:
    order = json.load(file)
pid = os.fork()
if pid:
    os.write(answers, b"%d\\n" % pid)
    os.write(answers, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)
requests.detach()
for number, descriptor in enumerate(standard):
    os.dup2(descriptor, number)
os.closerange(3, 1024)
os.setsid()
os.chdir(order["cwd"])
os.environ.clear()
os.environ.update(coerced | order["environment"])
time.tzset()
sys.argv = order["words"]
sys.path[0] = os.path.dirname(sys.argv[0])
sys.exit(tofmipd.cli.main())
"""


@dataclass(frozen=True)
class Ended:
    """A run of the program; ``status`` as subprocess has it."""

    pid: int
    status: int
    out: bytes
    err: bytes

    def as_completed(self) -> subprocess.CompletedProcess[str]:
        """As subprocess.run() with text has it."""
        out, err = (octets.decode() for octets in (self.out, self.err))
        return subprocess.CompletedProcess("tofmipd", self.status, out, err)


def can_run(variables: Mapping[str, str]) -> bool:
    """Whether a forked program takes these variables as one that is executed does."""
    return not any(name.startswith(_FOR_THE_START) for name in variables)


def run(
    arguments: Sequence[str | bytes],
    variables: Mapping[str, str],
    cwd: str | Path = "/",
    message: bytes = b"",
    limit_seconds: float = 20.0,
) -> Ended:
    """Run the program with this on its standard input, in a session of its own.

    ``variables`` are all that it has.  Raises subprocess.TimeoutExpired when it takes too long.
    """
    order = {
        "words": [PROGRAM, *map(os.fsdecode, arguments)],
        "environment": dict(variables),
        "cwd": os.fspath(cwd),
    }
    with (
        tempfile.TemporaryFile() as request,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        request.write(json.dumps(order).encode())
        given.write(message)
        for file in (request, given):
            file.flush()
            file.seek(0)
        pid, status = _ordered(
            [file.fileno() for file in (request, given, out, err)], limit_seconds
        )
        out.seek(0)
        err.seek(0)
        return Ended(pid, status, out.read(), err.read())


def _ordered(descriptors: list[int], limit_seconds: float) -> tuple[int, int]:
    """Pid and status of what the forge has been asked for."""
    answers, end = os.pipe()
    with open(answers, "rb", buffering=0) as said:
        try:
            socket.send_fds(_forge()[1], [b"x"], [*descriptors, end])
        finally:
            os.close(end)
        pid = int(said.readline())
        if not select.select([said], [], [], limit_seconds)[0]:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired("tofmipd", limit_seconds)
        return pid, int(said.readline())


@functools.cache
def _forge() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process that forks, and the way to it; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(
            [sys.executable, "-c", _FORGE],
            env={"HOME": "/", "PATH": os.environ["PATH"] + ":/usr/sbin"},
            cwd="/",
            stdin=its,
            stdout=subprocess.DEVNULL,
        )
    return process, ours
