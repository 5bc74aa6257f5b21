"""A machine of its own for root's commands: nothing that they change outlives the test.

It is this one with a private copy of /etc, an empty /var/spool, a loopback interface that nobody
else uses, and another program in the place of sendmail.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import LIMIT_SECONDS, cannot_run, ending, started

_PREPARE = """\
set -e
ip link set lo up
mount -t tmpfs none "$1"
cp -a /etc/. "$1"
mount --bind "$1" /etc
touch "$3"
mount -t tmpfs none /var/spool
mount --bind "$2" /usr/sbin/sendmail
rm -rf /etc/tofmipd /etc/tofmipd.conf /etc/tofmipd.d /etc/pam.d/tofmipd
if getent passwd tofmipd >/dev/null; then userdel tofmipd; fi
echo ready
exec cat
"""
# Only the machine has it.
_MARK = "/etc/machine-of-a-test"
# Debian's programs of administrators are in sbin.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Machine:
    """``pid`` holds it; ``variables`` are those that all commands get."""

    pid: int
    variables: dict[str, str]

    def words(self, command: str, user: str = "") -> list[str]:
        """What runs a command for a shell there, as root or another user."""
        words = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--"]
        if user:
            words += ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"]
        return [*words, "sh", "-c", command]

    def environment(self, home: str = "/root") -> dict[str, str]:
        return {"HOME": home, "PATH": _PATH} | self.variables

    def run(
        self, command: str, user: str = "", home: str = "/root", given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; ``given`` is its standard input."""
        return subprocess.run(
            self.words(command, user),
            env=self.environment(home),
            cwd="/",
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    def output(self, command: str, user: str = "", home: str = "/root", given: str = "") -> str:
        """Of a command that must end well and quietly."""
        done = self.run(command, user, home, given)
        assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def daemon(self, command: str, log: Path) -> Iterator[None]:
        """Root runs it until the end of the block; see running.started."""
        with started(self.words(f"exec {command}"), log, self.environment()):
            yield


@contextlib.contextmanager
def new_machine(directory: Path, sendmail: Path, variables: dict[str, str]) -> Iterator[Machine]:
    """``directory`` must be one that all users can read; the marks are root, peer("unshare")."""
    etc = directory / "etc"
    etc.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "--net", "sh", "-c", _PREPARE, "sh", str(etc), str(sendmail), _MARK],
        env={**os.environ, "PATH": _PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with holder, ending(holder):
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            assert holder.stderr is not None
            cannot_run(f"no machine of its own can be had here: {holder.stderr.read().strip()}")
        machine = Machine(holder.pid, variables)
        # In a chroot the namespaces' root is the one outside, and root's commands would change it.
        if machine.run(f"test -e {_MARK}").returncode != 0:
            cannot_run("nsenter leads to another root: root's tests need a machine, not a chroot")
        yield machine
