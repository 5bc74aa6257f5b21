"""Contenders that run, each with a sink of its own, and the loads put on them."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contenders import Contender
from launch import HOST, PASSWORD, USER, Place
from meters import RssSampler, make_meter, memory_mib
from processes import child_setup, free_port, give_to_account, terminate, wait_for_greeting
from programs import Programs, SetupError
from report import Idle, Round, note
from workloads import WARM_UP, Workload

DRAIN_LIMIT = 60.0  # seconds from the last reply to an idle queue
SETTLE = 0.15  # seconds for the clean-up after the last delivery
LOG_TAIL = 500  # characters of a log that are shown

# What keeps a contender from starting, but not the others from being measured.
START_ERRORS = (RuntimeError, OSError, LookupError, subprocess.SubprocessError)


def load_result(line: str, complaint: str) -> dict[str, Any]:
    """The JSON line of the load generator. Raises RuntimeError without one."""
    if not line:
        raise RuntimeError(f"the load generator failed: {complaint.strip()}")
    result: dict[str, Any] = json.loads(line)
    return result


class Running:
    """A contender and its sink: start() once, stop() in any case."""

    def __init__(self, contender: Contender, base: Path, programs: Programs) -> None:
        """``base`` must exist; the contender gets a directory in it."""
        self.contender = contender
        self.complaint = ""  # the first one of the latest load
        self._directory = base / contender.name
        self._log = base / f"{contender.name}.log"
        self._programs = programs
        self.port = free_port()
        self._sink_port = free_port() if contender.is_proxy else self.port
        self._meter = make_meter(contender.name)
        self._prepared = False
        self._process: subprocess.Popen[bytes] | None = None
        self._sink: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when both greet clients. Raises one of START_ERRORS."""
        self._directory.mkdir(mode=0o755)
        if self.contender.is_proxy:
            self._sink = subprocess.Popen([*self._programs["SMTPSINK"], str(self._sink_port)])
            wait_for_greeting(self._sink_port, self._sink)
        account = self.contender.account()
        self._prepared = True
        place = Place(self._directory, self.port, self._sink_port, self._programs)
        launch = self.contender.prepare(place)
        give_to_account(self._directory, account)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                launch.arguments,
                env=os.environ | launch.environment,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=child_setup(self._meter, account),
            )
        self._meter.root_pid = self._process.pid
        wait_for_greeting(self.port, self._process)

    def stop(self) -> None:
        """End all processes; harmless when repeated."""
        if self._process:
            terminate(self._process, self._meter.pids)
        if self._sink:
            terminate(self._sink)
        if self.contender.clean_up and self._prepared:
            self.contender.clean_up()
            self._prepared = False
        self._meter.close()

    def log_tail(self) -> str:
        """The end of what the contender printed."""
        if not self._log.exists():
            return ""
        return self._log.read_text(errors="replace")[-LOG_TAIL:].strip()

    def _sink_recipients(self) -> int:
        """Recipients of all messages that the sink has received as a whole."""
        with socket.create_connection((HOST, self._sink_port), 5) as query:
            lines = query.makefile("rb")
            lines.readline()
            query.sendall(b"XSTAT\r\n")
            fields = lines.readline().decode().split()[1:]
            query.sendall(b"QUIT\r\n")
            lines.readline()
        counters = dict(field.split("=") for field in fields)
        return int(counters["recipients"])

    def _load_command(self, *arguments: object) -> list[str]:
        command = [*self._programs["SMTPLOAD"], "-h", HOST, "-p", str(self.port)]
        if self.contender.is_proxy:
            command += ["-u", USER, "-w", PASSWORD]
        return command + [str(argument) for argument in arguments]

    def _message_load(self, workload: Workload, messages: int) -> list[str]:
        more: list[object] = ["-x"] if workload.pipelining else []
        more += ["-U", workload.users] if workload.users else []
        return self._load_command(
            *("-c", min(workload.connections, messages), "-m", workload.per_connection),
            *("-n", messages, "-s", workload.size, "-r", workload.recipients),
            *("-t", workload.time_limit, *more),
        )

    def round(self, workload: Workload, messages: int) -> Round:
        """Apply one load. Raises RuntimeError when the load generator fails."""
        before = self._sink_recipients()
        cpu_before = self._meter.cpu_seconds()
        started = time.monotonic()
        with RssSampler(self._meter) as sampler:
            load = subprocess.run(
                self._message_load(workload, messages),
                capture_output=True,
                text=True,
                timeout=workload.time_limit + 30,
                check=False,
            )
            result = load_result(load.stdout, f"status {load.returncode}: {load.stderr}")
            accepted = result["messages"]
            delivered, drained_at = self._drain(before, accepted * workload.recipients)
        cpu_seconds = self._meter.cpu_seconds() - cpu_before
        self.complaint = load.stderr.partition("\n")[0]
        return Round(
            **result,
            delivered=delivered,
            delivered_per_second=accepted / (drained_at - started),
            cpu_ms=cpu_seconds * 1000 / max(accepted, 1),
            rss_mib=sampler.peak_mib,
            pss_mib=memory_mib(self._meter, "Pss"),
        )

    def _drain(self, before: int, expected: int) -> tuple[int, float]:
        """Wait until the sink has all recipients, then a little longer.

        Returns how many arrived, and when the last one was seen.
        """
        deadline = time.monotonic() + DRAIN_LIMIT
        while True:
            arrived = self._sink_recipients() - before
            arrived_at = time.monotonic()
            if arrived >= expected or arrived_at > deadline:
                time.sleep(SETTLE)
                return arrived, arrived_at
            time.sleep(0.01)

    def idle_memory(self, sessions: int) -> Idle:
        """Memory that idle authenticated sessions take."""
        self.round(WARM_UP, WARM_UP.messages)
        before = [memory_mib(self._meter, field) for field in ("Rss", "Pss")]
        load = subprocess.Popen(
            self._load_command("-c", sessions, "-I", 60, "-t", 30),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert load.stdout is not None
        with load:
            try:
                result = load_result(load.stdout.readline(), "no result")
                after = [memory_mib(self._meter, field) for field in ("Rss", "Pss")]
            finally:
                load.kill()
        opened = result["idle"]
        rss_kib, pss_kib = (
            (late - early) * 1024 / max(opened, 1)
            for early, late in zip(before, after, strict=True)
        )
        return Idle(sessions=opened, base_rss_mib=before[0], rss_kib=rss_kib, pss_kib=pss_kib)


@contextlib.contextmanager
def all_running(contenders: Sequence[Contender], programs: Programs) -> Iterator[list[Running]]:
    """Those contenders that could be started; a note tells why others could not.

    Raises SetupError when none of them could.
    """
    with contextlib.ExitStack() as stack:
        # What a server still writes while it ends must not spoil the result.
        base = tempfile.TemporaryDirectory(prefix="smtpbench-", ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(base))
        directory.chmod(0o755)  # other accounts work below it
        running = []
        for contender in contenders:
            proxy = Running(contender, directory, programs)
            stack.callback(proxy.stop)
            try:
                proxy.start()
            except START_ERRORS as error:
                proxy.stop()
                note(f"skipped {contender.name}: {error} {proxy.log_tail()}")
            else:
                running.append(proxy)
        if contenders and not running:
            raise SetupError("no contender could be started")
        yield running
