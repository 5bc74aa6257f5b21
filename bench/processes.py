"""Starting a server under an account, waiting for it, and ending it surely."""

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from launch import HOST
from meters import Meter

READY_LIMIT = 20.0  # seconds from start to the greeting
STOP_LIMIT = 3.0  # seconds for SIGTERM to work before SIGKILL


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_for_greeting(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the server says 220. Raises RuntimeError if it never does."""
    deadline = time.monotonic() + READY_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"exited with status {process.returncode}")
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, port), timeout=5) as probe,
        ):
            if probe.recv(4) == b"220 ":
                probe.sendall(b"QUIT\r\n")
                probe.recv(100)
                return
        time.sleep(0.02)
    raise RuntimeError("no greeting in time")


def no_members() -> Iterable[int]:
    """A process that is alone."""
    return ()


def terminate(
    process: subprocess.Popen[bytes], members: Callable[[], Iterable[int]] = no_members
) -> None:
    """End a process and the other members of its group."""
    pids = set(members())  # now: they may leave the tree with their parent
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(sign)
        for pid in pids - {process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + STOP_LIMIT
        while time.monotonic() < deadline:
            stopped = process.poll() is not None
            pids = {p for p in pids | set(members()) if os.path.exists(f"/proc/{p}")}
            if stopped and not pids:
                return
            time.sleep(0.02)


def give_to_account(directory: Path, account: str | None) -> None:
    """Let the account own a directory and all in it. Raises LookupError."""
    if account is None:
        return
    entry = pwd.getpwnam(account)
    for path in [directory, *directory.rglob("*")]:
        os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)


def child_setup(meter: Meter | None, account: str | None) -> Callable[[], None]:
    """What a child does before exec: be metered, then give up root for good."""
    entry = pwd.getpwnam(account) if account else None

    def setup() -> None:
        if meter:
            meter.enter()
        if entry:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)

    return setup
