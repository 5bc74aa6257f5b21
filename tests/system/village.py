"""Global mode for tests: accounts of its own, a copy of the program that all of them can run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from accounts import copy_of_program, python_for
from running import KEY, Daemon, Home, run, to_smtp, tofmipd, usual_umask

HOST_NAME = "example.org"


@dataclass(frozen=True)
class Villager:
    """An ordinary account that can log in."""

    name: str
    uid: int
    gid: int
    home: Home
    password: str

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """Write a file below ``~/.tmda`` that belongs to the account."""
        path = self.home.write(name, text, mode)
        self.own()
        return path

    def configure(self, *lines: str) -> None:
        """Replace the configuration by the usual beginning and ``lines``."""
        beginning = [f'HOSTNAME = "{HOST_NAME}"', f'FULLNAME = "{self.name.title()}"']
        self.write("config", "\n".join([*beginning, *lines, ""]))

    def own(self) -> None:
        """All files below the home belong to the account."""
        for path in [self.home.path, *self.home.path.rglob("*")]:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True)
class Village:
    """A service account, some people, and what starts a daemon for them."""

    directory: Path
    service: str
    people: tuple[Villager, ...]
    program: tuple[str, ...]
    variables: dict[str, str]

    @property
    def passwords(self) -> Path:
        return self.directory / "passwords"

    @property
    def service_uid(self) -> int:
        return pwd.getpwnam(self.service).pw_uid

    @property
    def service_gid(self) -> int:
        return pwd.getpwnam(self.service).pw_gid

    def reset(self, port: int) -> None:
        """Files as good as new, with the next hop on ``port``; all people can log in."""
        self.write_passwords({person.name: person.password for person in self.people})
        shutil.rmtree(self.outboxes, ignore_errors=True)
        for person in self.people:
            shutil.rmtree(person.home.tmda, ignore_errors=True)
            person.write("crypt_key", KEY + "\n")
            person.write("filters/outgoing", "")
            person.configure(to_smtp(port))

    def write_passwords(self, passwords: Mapping[str, str]) -> None:
        new = self.directory / "passwords.new"
        new.write_text("".join(f"{name}:{word}\n" for name, word in passwords.items()))
        new.chmod(0o600)
        new.replace(self.passwords)

    def options(self, *options: str) -> tuple[str, ...]:
        """Without the configuration that this machine may have."""
        own = ("--config", "none", "-u", self.service, "-a", str(self.passwords))
        return (*own, "--outbox", str(self.outboxes), *options)

    @property
    def outboxes(self) -> Path:
        return self.directory / "outboxes"

    def daemon(
        self, *options: str, variables: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[Daemon]:
        """A daemon in the foreground, started by root; its log is at the level of -d."""
        return tofmipd(
            Home(self.directory),
            "-d",
            *self.options(*options),
            program=self.program,
            variables=self.variables | dict(variables or {}),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return run(
            *arguments, home=Home(self.directory), program=self.program, variables=self.variables
        )


@contextlib.contextmanager
def new_village(count: int = 3) -> Iterator[Village]:
    """Make the accounts; all are gone afterwards.  Names are unlike any other's."""
    mark = f"tv{os.getpid() % 100_000}"
    service = f"{mark}s"
    names = [f"{mark}{letter}" for letter in "abcdefghijklmnop"[:count]]
    made: list[str] = []
    with usual_umask(), tempfile.TemporaryDirectory(prefix="tofmipd-village-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        variables = copy_of_program(directory / "lib")
        try:
            _useradd("--system", "--no-create-home", "--home-dir", "/nonexistent", service)
            made.append(service)
            people = []
            for person in names:
                home = directory / person
                _useradd("--create-home", "--home-dir", str(home), person)
                made.append(person)
                people.append(_villager(person, home))
            # Each is in one more group, of its own.
            for person in people:
                subprocess.run(["groupadd", f"{person.name}x"], check=True)
                subprocess.run(["usermod", "-a", "-G", f"{person.name}x", person.name], check=True)
            program = (python_for(people[0].uid), "-m", "tofmipd")
            yield Village(directory, service, tuple(people), program, variables)
        finally:
            for person in reversed(made):
                subprocess.run(["userdel", person], check=True, stderr=subprocess.DEVNULL)
                subprocess.run(["groupdel", f"{person}x"], check=False, stderr=subprocess.DEVNULL)


def _useradd(*arguments: str) -> None:
    command = ["useradd", "--user-group", "--shell", "/bin/sh", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _villager(name: str, home: Path) -> Villager:
    entry = pwd.getpwnam(name)
    home.chmod(0o700)
    return Villager(name, entry.pw_uid, entry.pw_gid, Home(home), f"{name}-FooBar")


# Looking at processes.


def children(pid: int, name: str = "") -> list[int]:
    """The children of a process, those of that name if one is given (server, auth, worker)."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(child) for child in found if name in _comm(int(child))]


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def worker_of(daemon: Daemon, person: Villager) -> int | None:
    """The worker that runs as a person, if there is one."""
    for pid in children(daemon.pid, "worker"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status(pid)["Uid"].split()[0] == str(person.uid):
                return pid
    return None


def processes(daemon: Daemon) -> dict[str, int]:
    """Monitor, server and auth of a daemon, and its workers by the name of their account."""
    found = {"monitor": daemon.pid}
    for name in ("server", "auth"):
        (found[name],) = children(daemon.pid, name)
    for pid in children(daemon.pid, "worker"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pwd.getpwuid(int(status(pid)["Uid"].split()[0])).pw_name] = pid
    return found


def descriptors(pid: int) -> dict[int, str]:
    """What a process has open: number and target of the links in /proc/PID/fd."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = os.readlink(link)
    return found


def in_memory(pid: int, *needles: bytes) -> set[bytes]:
    """Which of the octet strings are anywhere in the memory of a process."""
    found: set[bytes] = set()
    overlap = max(map(len, needles)) - 1
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            if not rights.startswith("r") or line.endswith(("[vvar]", "[vsyscall]")):
                continue
            low, high = (int(number, 16) for number in place.split("-"))
            for start in range(low, high, 1 << 22):
                with contextlib.suppress(OSError):
                    octets = os.pread(memory.fileno(), (1 << 22) + overlap, start)
                    found |= {needle for needle in needles if needle in octets}
    return found
