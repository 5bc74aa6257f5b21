"""Start-up time of a one-session server, next to that of bare interpreters."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from contenders import Contender
from launch import HOST, Launch, Place
from processes import READY_LIMIT, child_setup, give_to_account
from programs import Programs
from report import Timing, note, report_startup
from running import LOG_TAIL, START_ERRORS

STARTUP_RUNS = 15
DISCARD_PORT = 9  # of the next hop, which no session here gets as far as

# What all one-session servers are compared with.
BARE = "python3 -I -c 'import socket'"
INTERPRETER_ARGUMENTS = {
    BARE: ["-I", "-c", "import socket"],
    "python3 -c pass": ["-c", "pass"],
    "python3 -S -E -c pass": ["-S", "-E", "-c", "pass"],
    "python3 -S -E -c 'import socket'": ["-S", "-E", "-c", "import socket"],
    "python3 -S -E -c 'import socket, ssl'": ["-S", "-E", "-c", "import socket, ssl"],
    "python3 -S -E -c 'import smtplib'": ["-S", "-E", "-c", "import smtplib"],
}

Command = Callable[[], Timing]


def reap(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for the end; return exit status and CPU time in ms, children's included."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, (usage.ru_utime + usage.ru_stime) * 1000


@contextlib.contextmanager
def limited(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the process when it takes too long or the block is left early."""
    timer = threading.Timer(READY_LIMIT, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if process.returncode is None:
            process.kill()
            process.wait()


def run_to_exit(arguments: list[str]) -> Timing:
    """Time a process from start to exit."""
    started = time.perf_counter()
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with limited(process):
        _, cpu_ms = reap(process)
    return Timing((time.perf_counter() - started) * 1000, cpu_ms)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback: the client's, the server's."""
    with socket.create_server((HOST, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    return client, served


def run_to_greeting(launch: Launch, account: str | None, log: Path) -> Timing:
    """Time a one-session server on an accepted TCP socket, like inetd.

    Raises RuntimeError when it does not greet or does not end after QUIT.
    """
    client, served = socket_pair()
    greeted, elapsed = False, 0.0
    with client, served, log.open("wb") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            launch.arguments,
            env=os.environ | launch.environment,
            stdin=served.fileno(),
            stdout=served.fileno(),
            stderr=errors,
            preexec_fn=child_setup(None, account),
        )
        with limited(process):
            served.close()  # or a server that dies would go unnoticed here
            client.settimeout(READY_LIMIT)
            with contextlib.suppress(OSError):
                greeted = client.recv(4) == b"220 "
                elapsed = time.perf_counter() - started
                client.sendall(b"QUIT\r\n")
                client.shutdown(socket.SHUT_WR)
            status, cpu_ms = reap(process)
    if not greeted:
        raise RuntimeError(f"no greeting, exit status {status}")
    if status < 0:
        raise RuntimeError(f"ended by signal {-status} after QUIT")
    return Timing(elapsed * 1000, cpu_ms)


def one_session_command(contender: Contender, base: Path, programs: Programs) -> Command | None:
    """How to start it once; None, with a note, when a first attempt fails."""
    if contender.one_session is None:
        return None
    directory, log = base / contender.name, base / f"{contender.name}.log"
    directory.mkdir(mode=0o755)
    account = contender.account()
    try:
        launch = contender.one_session(Place(directory, 0, DISCARD_PORT, programs))
        give_to_account(directory, account)
        run_to_greeting(launch, account, log)
    except START_ERRORS as error:
        detail = log.read_text(errors="replace")[-LOG_TAIL:].strip() if log.exists() else ""
        note(f"skipped {contender.name} -1: {error} {detail}")
        return None
    return functools.partial(run_to_greeting, launch, account, log)


def interpreter_commands(programs: Programs) -> dict[str, Command]:
    """Bare interpreters: the least that any server written in Python takes."""
    commands: dict[str, Command] = {
        name: functools.partial(run_to_exit, [sys.executable, *arguments])
        for name, arguments in INTERPRETER_ARGUMENTS.items()
    }
    if python2 := programs.get("TMDA_PYTHON"):
        commands["Python 2 interpreter -c pass"] = functools.partial(
            run_to_exit, [*python2, "-c", "pass"]
        )
    return commands


def measure_startup(contenders: Iterable[Contender], programs: Programs) -> dict[str, list[Timing]]:
    """Measure and print, in interleaved rounds."""
    with tempfile.TemporaryDirectory(prefix="smtpbench-") as directory:
        base = Path(directory)
        base.chmod(0o755)  # other accounts work below it
        commands = interpreter_commands(programs)
        for contender in contenders:
            if command := one_session_command(contender, base, programs):
                commands[f"{contender.name} -1, to the greeting"] = command
        timings: dict[str, list[Timing]] = {name: [] for name in commands}
        for _ in range(STARTUP_RUNS):
            for name, command in commands.items():
                timings[name].append(command())
    report_startup(timings, BARE)
    return timings
