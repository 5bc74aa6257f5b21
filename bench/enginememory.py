"""How much memory a large message takes, by `tofmipd inject` and through a personal daemon."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from contenders import CONTENDERS
from enginehome import (
    HEADER,
    INJECT_LIMIT,
    LARGE_OCTETS,
    MEMORY_MESSAGES,
    SMALL_OCTETS,
    Effort,
    Home,
    Row,
    WrongResult,
    show,
)
from programs import Programs, SetupError, find_programs, load_tools
from report import note
from running import START_ERRORS, all_running
from workloads import Workload

# The kernel counts for a program what its parent had in memory when it started it.  So what is
# measured is started by something small.
PEAK = """\
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""
SINK = "#!/bin/sh\nexec cat >/dev/null\n"
ALL_THAT_READS_THE_BODY = """\
FINGERPRINT = ["subject", "body"]
LOGFILE_OUTGOING = "~/.tmda/log"
"""


def message_of(path: Path, octets: int) -> Path:
    line = b"A line of the body, as long as they are in most mail: about 76 characters.\n"
    with path.open("wb") as file:
        file.write(HEADER.replace(b"\r\n", b"\n"))
        for _ in range(octets // len(line)):
            file.write(line)
    return path


def inject_peak(home: Home, message: Path, recipients: Sequence[str]) -> float:
    """MiB that `tofmipd inject` and what it starts have in memory at most.

    Raises RuntimeError if it does not send.
    """
    command = [sys.executable, "-I", "-S", "-c", PEAK]
    command += [sys.executable, "-m", "tofmipd", "inject", *recipients]
    with message.open("rb") as octets:
        done = subprocess.run(
            command,
            stdin=octets,
            capture_output=True,
            text=True,
            env={"HOME": str(home.path), "PATH": os.environ.get("PATH", "")},
            timeout=INJECT_LIMIT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"tofmipd inject did not send: {done.stderr.strip()}")
    return int(done.stdout) / 1024


def measure_inject(base: Path, effort: Effort, sizes: Sequence[int]) -> list[Row]:
    home = Home(base / "memory", "to *@=domain.example sender\n")
    sink = home.write("sink", SINK, 0o700)
    config = (home.path / ".tmda/config").read_text() + f'SENDMAIL_PROGRAM = "{sink}"\n'
    messages = [message_of(base / str(size), size) for size in sizes]
    rows: list[Row] = []
    for name, more in (("inject", ""), ("inject, fingerprint and log", ALL_THAT_READS_THE_BODY)):
        home.write("config", config + more)
        recipients = ["a@domain.example", "b@domain.example"]
        peaks = [
            statistics.median(inject_peak(home, m, recipients) for _ in range(effort.rounds))
            for m in messages
        ]
        rows.append(memory_row(name, peaks))
    return rows


def measure_daemon(base: Path, effort: Effort, sizes: Sequence[int]) -> list[Row]:
    """The same through a daemon; no row, but a note, where it or its load cannot be had."""
    contender = next(one for one in CONTENDERS if one.name == "tofmipd")
    try:
        programs: Programs = find_programs(os.environ) | load_tools(os.environ)
        if "TOFMIPD" not in programs:
            raise SetupError("tofmipd not found (set TOFMIPD)")
        peaks = []
        for size in sizes:
            # A new one each time: memory that Python has had once stays with it.
            with all_running([contender], programs) as (proxy,):
                load = Workload("", "", 1, MEMORY_MESSAGES, 1, 1, size=size, recipients=2)
                done = proxy.round(load, MEMORY_MESSAGES)
                if done.failures:
                    raise WrongResult(f"not sent: {proxy.complaint}")
                peaks.append(done.rss_mib)
    except (SetupError, *START_ERRORS) as error:
        note(f"skipped daemon: {error}")
        return []
    return [memory_row("personal daemon", peaks)]


def memory_row(name: str, peaks: Sequence[float]) -> Row:
    small, large = peaks
    return {"way": name, "small MiB": small, "large MiB": large, "more MiB": large - small}


def measure_memory(base: Path, effort: Effort) -> list[Row]:
    """Whether a large message takes more memory than a small one."""
    sizes = [effort.sized(SMALL_OCTETS), effort.sized(LARGE_OCTETS)]
    rows = measure_inject(base, effort, sizes) + measure_daemon(base, effort, sizes)
    title = f"Memory: messages of {sizes[0]} and {sizes[1]} octets to two recipients"
    return show(title, "Largest resident set of a process.", rows)
