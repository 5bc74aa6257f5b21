"""The installed program, run and ended by tests: a home directory, a command, a daemon."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import forge
import pytest
from forge import PROGRAM

HOST = "127.0.0.1"
LOGIN, PASSWORD = "bobby", "FooBar"
ADDRESS = "bobby@example.org"
KEY = "00112233445566778899aabbccddeeff01234567"
LIMIT_SECONDS = 20.0
# 32 and 33; whoever starts a program may leave them ignored, and no program can change that.
SIGNALS_OF_THE_C_LIBRARY = 3 << 31
# How RFC 5322 dates look.
DATE = r"[A-Z][a-z]{2}, [ 0-9]?[0-9] [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}"
_POLL_SECONDS = 0.01
# Below those that systems choose, so that nobody else gets a port before who asked for it.
_PORTS = iter(random.sample(range(10_000, 32_000), 22_000))

Result = TypeVar("Result")


def wait_until(
    condition: Callable[[], Result], what: str, limit_seconds: float = LIMIT_SECONDS
) -> Result:
    """The first true value of ``condition``.  Raises AssertionError when it takes too long."""
    deadline = time.monotonic() + limit_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit_seconds:g} s for {what}"
        time.sleep(_POLL_SECONDS)
    return value


def cannot_run(reason: str) -> NoReturn:
    """Skip the test, or in CI fail it, for something that this machine does not let it do."""
    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextlib.contextmanager
def usual_umask() -> Iterator[None]:
    """What is made within can be read by other accounts, whatever the umask was."""
    old = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(old)


@functools.cache
def host_name() -> str:
    """TO-23: the full name, or the plain one where that is localhost."""
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


def free_port(host: str = HOST) -> int:
    """A loopback port that nobody listens on just now; for those who cannot take port 0."""
    for port in _PORTS:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            return port
    raise AssertionError("no port is free")


def greets(port: int, host: str = HOST) -> bool:
    """Whether an SMTP server takes connections there."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=5) as probe,
    ):
        if probe.recv(4) == b"220 ":
            probe.sendall(b"QUIT\r\n")
            while probe.recv(1000):
                pass
            return True
    return False


@dataclass(frozen=True)
class Home:
    """A home directory with the files that TMDA users have in ``~/.tmda``."""

    path: Path

    @property
    def tmda(self) -> Path:
        return self.path / ".tmda"

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file below ``~/.tmda``; the old one, if any, is replaced."""
        path = self.tmda / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.replace(path)
        return path

    def configure(self, *lines: str) -> None:
        """Replace the configuration by the usual beginning and ``lines``."""
        beginning = ['USERNAME = "bobby"', 'HOSTNAME = "example.org"', 'FULLNAME = "Bobby Brown"']
        self.write("config", "\n".join([*beginning, *lines, ""]))


def to_smtp(port: int) -> str:
    """The lines of a configuration that name a next hop on this machine."""
    return f'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "{HOST}:{port}"'


def to_program(path: Path) -> str:
    return f'MAIL_TRANSPORT = "sendmail"\nSENDMAIL_PROGRAM = "{path}"'


def make_home(path: Path, *lines: str, rules: str = "") -> Home:
    """A home whose owner can log in as LOGIN; ``lines`` go into the configuration."""
    home = Home(path)
    home.configure(*lines)
    home.write("crypt_key", KEY + "\n")
    home.write("filters/outgoing", rules)
    home.write("tofmipd", f"{LOGIN}:{PASSWORD}\n")
    return home


def environment(home: Home | None) -> dict[str, str]:
    """A clean one: nothing of whoever runs the tests but the search path."""
    path = os.environ["PATH"] + ":/usr/sbin"
    return {"HOME": "/" if home is None else str(home.path), "PATH": path}


def run(
    *arguments: str,
    home: Home | None = None,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = (PROGRAM,),
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; arguments as for ``tofmipd``."""
    given = environment(home) | dict(variables or {})
    if program == (PROGRAM,) and user is None and forge.can_run(given):
        return forge.run(arguments, given, limit_seconds=LIMIT_SECONDS).as_completed()
    return subprocess.run(
        [*program, *arguments],
        env=given,
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@dataclass
class Daemon:
    """A running tofmipd; ``places`` are host and port of what it listens on."""

    process: subprocess.Popen[bytes]
    log: Path
    places: tuple[tuple[str, int], ...]
    _forgotten_octets: int = 0

    @property
    def port(self) -> int:
        return self.places[0][1]

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        """What it has written to standard error so far, or since ``forget``."""
        return self.log.read_bytes()[self._forgotten_octets :].decode(errors="replace")

    def forget(self) -> None:
        self._forgotten_octets = self.log.stat().st_size

    def says(self, *words: str) -> str:
        """Wait for a line of the log that holds all the words; the line."""

        def line() -> str | None:
            lines = self.text().splitlines()
            return next((x for x in lines if all(word in x for word in words)), None)

        return wait_until(line, f"{words} in the log") or ""

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_SECONDS)


@contextlib.contextmanager
def tofmipd(
    home: Home,
    *options: str,
    listen: Sequence[str] = ("-p", f"{HOST}:0"),
    count: int = 0,
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = (PROGRAM, "--personal"),
    user: int | None = None,
) -> Iterator[Daemon]:
    """A daemon in the foreground, ended by SIGTERM, which it must answer with status 0.

    Its log must hold no traceback then.  ``variables`` are added to its clean environment;
    ``user`` is a uid, also taken as the gid, to run it as.  ``count`` is how many places it
    listens on, if not those of ``listen``.
    """
    log = home.path / f"daemon-{time.monotonic_ns()}.log"
    words = [*program, "-f", *listen, *options]
    process = spawn(words, log, environment(home) | dict(variables or {}), user)
    with ending(process):
        daemon = Daemon(process, log, _places(process, log, count or len(listen) // 2))
        yield daemon
        assert daemon.stop() == 0, daemon.text()
    text = log.read_text(errors="replace")
    assert "Traceback" not in text, text
    assert "internal error" not in text, text


def spawn(
    words: Sequence[str], log: Path, variables: Mapping[str, str], user: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to ``log``, as another user if one is given."""
    with log.open("wb") as output:
        if user is not None:
            os.chown(log, user, user)
        return subprocess.Popen(
            words,
            env=dict(variables),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )


@contextlib.contextmanager
def started(
    words: Sequence[str], log: Path, variables: Mapping[str, str], user: int | None = None
) -> Iterator[None]:
    """Run a command that starts a daemon in the foreground, whose lines go to ``log``.

    It says where it listens, ends by SIGTERM with status 0, and has no traceback to show.
    """
    process = spawn(words, log, variables, user)
    with ending(process):

        def listens() -> bool:
            assert process.poll() is None, log.read_text()
            return "\tListening on " in log.read_text()

        wait_until(listens, "the start lines")
        yield
        process.terminate()
        assert process.wait(LIMIT_SECONDS) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@contextlib.contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Whatever happens within, the process is no more afterwards."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _places(process: subprocess.Popen[bytes], log: Path, count: int) -> tuple[tuple[str, int], ...]:
    """Where a foreground daemon says it listens, once it greets clients there."""

    def places() -> tuple[tuple[str, int], ...]:
        text = log.read_text(errors="replace")
        assert process.poll() is None, f"status {process.returncode}: {text}"
        found = re.findall(r"\tListening on \[?([^\s\]]+)\]?:([0-9]+)\n", text)
        return tuple((host, int(port)) for host, port in found) if len(found) == count else ()

    found = wait_until(places, "the start lines")
    for host, port in found:
        wait_until(lambda host=host, port=port: greets(port, host), "the greeting")
    return found
