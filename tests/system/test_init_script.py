"""etc/init.d/tofmipd as root runs it, and etc/openrc/tofmipd (TO-21)."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import HOST, LIMIT_SECONDS, free_port, greets, wait_until
from village import Village

ETC = Path(__file__).parents[2] / "etc"
SCRIPT = ETC / "init.d/tofmipd"
# Of the Linux Standard Base.
FAILED, USAGE, DENIED, NOT_INSTALLED, NOT_CONFIGURED, NOT_RUNNING = 1, 2, 4, 5, 6, 7
RUNS, LEFT_PID_FILE, STOPPED = 0, 1, 3
FILES = [SCRIPT, ETC / "openrc/tofmipd"]


@dataclass(frozen=True)
class Service:
    """The script, whose files are all in one directory."""

    directory: Path
    port: int
    options: str

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    def configure(self, **settings: str) -> None:
        told = {"DAEMON": str(self.directory / "tofmipd"), "PIDFILE": str(self.pid_file)}
        told["OPTIONS"] = self.options
        lines = [f'{name}="{value}"\n' for name, value in (told | settings).items()]
        (self.directory / "default").write_text("".join(lines))

    def run(self, word: str) -> int:
        """The exit status; nothing it starts may hold on to what it prints."""
        with (self.directory / "said").open("wb") as sink:
            return subprocess.run(
                ["dash", SCRIPT, word],
                env={
                    "PATH": os.environ["PATH"],
                    "TOFMIPD_DEFAULTS": f"/nonexistent {self.directory / 'default'}",
                },
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                timeout=3 * LIMIT_SECONDS,
                check=False,
            ).returncode

    def said(self) -> str:
        return (self.directory / "said").read_text()

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def service(village: Village, tmp_path: Path) -> Iterator[Service]:
    port = free_port()
    log = tmp_path / "log"
    own = village.options("-p", f"{HOST}:{port}", "-6", "[::1]:0", "--log-file", str(log))
    made = Service(tmp_path, port, shlex.join(own).replace("'", ""))
    variables = "".join(f"export {n}={shlex.quote(v)}\n" for n, v in village.variables.items())
    program = shlex.join(village.program)
    (tmp_path / "tofmipd").write_text(f'#!/bin/sh\n{variables}exec {program} "$@"\n')
    (tmp_path / "tofmipd").chmod(0o755)
    made.configure()
    try:
        yield made
    finally:
        if made.pid_file.exists() and made.pid_file.read_text().strip():
            os.kill(made.pid, signal.SIGKILL)


@pytest.mark.root
@pytest.mark.peer("dash")
def test_the_life_of_a_service(service):
    assert service.run("status") == STOPPED
    assert service.run("condrestart") == 0
    assert service.run("status") == STOPPED
    assert service.run("reload") == NOT_RUNNING
    assert service.run("start") == 0, service.said()
    # It has waited until clients can connect.
    assert greets(service.port)
    first = service.pid
    assert service.run("status") == RUNS
    assert f"pid {first}" in service.said()
    assert service.run("start") == 0
    assert service.pid == first
    assert service.run("reload") == 0, service.said()
    assert service.run("try-restart") == 0
    second = service.pid
    assert second != first
    service.configure(OPTIONS=f"{service.options} --size 0")
    assert service.run("reload") == NOT_CONFIGURED
    assert "--size" in service.said()
    assert greets(service.port)
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: not greets(service.port), "the end")
    assert service.run("status") == LEFT_PID_FILE
    service.configure()
    assert service.run("start") == 0, service.said()
    assert service.run("stop") == 0
    assert not service.pid_file.exists()
    assert service.run("stop") == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("settings", "word", "status", "says"),
    [
        ({"OPTIONS": "--no-such-option"}, "start", USAGE, "no-such-option"),
        ({"OPTIONS": "-a /nonexistent"}, "start", NOT_CONFIGURED, "/nonexistent"),
        ({"DAEMON": "/nonexistent/tofmipd"}, "start", NOT_INSTALLED, "/nonexistent/tofmipd"),
        ({}, "frobnicate", USAGE, "usage: "),
    ],
)
def test_what_goes_wrong_has_its_status(service, settings, word, status, says):
    service.configure(**settings)
    assert service.run(word) == status
    assert says in service.said()
    assert service.run("status") == STOPPED


@pytest.mark.root
def test_a_number_that_belongs_to_another_program_now_is_left_alone(service):
    with subprocess.Popen(["sleep", "60"]) as other:
        service.pid_file.write_text(f"{other.pid}\n")
        assert service.run("status") == LEFT_PID_FILE
        assert service.run("stop") == 0
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
@pytest.mark.peer("dash", "checkbashisms")
def test_the_scripts_are_for_any_shell(path):
    for command in (["dash", "-n", path], ["checkbashisms", "-f", path]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


# The functions that OpenRC has for its scripts, as far as this one calls them.
_OPENRC = """\
need() { echo need "$@"; }
use() { :; }
after() { :; }
ebegin() { echo begin "$@"; }
eend() { return $1; }
. "$1"
"$2"
echo "$command $command_args"
"""


@pytest.mark.parametrize(("check", "signals"), [("true", True), ("false", False)])
def test_openrc_is_told_how_to_start_and_to_reload(tmp_path, check, signals):
    program = tmp_path / "tofmipd"
    program.write_text(f"#!/bin/sh\n{check}\n")
    program.chmod(0o755)
    signaller = tmp_path / "start-stop-daemon"
    signaller.write_text('#!/bin/sh\necho signal "$@"\n')
    signaller.chmod(0o755)
    stub = tmp_path / "openrc-run"
    stub.write_text(_OPENRC)
    done = subprocess.run(
        ["dash", stub, ETC / "openrc/tofmipd", "reload"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "DAEMON": str(program),
            "OPTIONS": "--size 1000",
        },
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.stderr == ""
    assert ("signal --signal HUP --pidfile /run/tofmipd.pid\n" in done.stdout) == signals
    assert done.stdout.endswith(f"{program} -b --pid-file /run/tofmipd.pid --size 1000\n")
