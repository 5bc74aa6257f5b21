"""Super-servers that start tofmipd for each connection, as the documents tell to set them up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blocks import BLOCKS
from certificates import authority
from running import HOST, ending, free_port, spawn, wait_until

ROOT = Path(__file__).parents[2]
# What the examples name.
INSTALLED = "/opt/tofmipd/bin/tofmipd"
_PLACE = f"{HOST}:8025"


@dataclass(frozen=True)
class Program:
    """An executable that becomes tofmipd for an account, and notes how each run ended.

    ``options`` are words of the command line; the account can be ``owner`` or root.
    """

    directory: Path
    owner: str
    program: Sequence[str]
    options: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.directory / "tofmipd"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.owner).pw_uid

    def with_options(self, *options: str) -> Program:
        return dataclasses.replace(self, options=(*self.options, *options))

    def install(self) -> None:
        """Write it, with the directory, which belongs to the account."""
        self.directory.mkdir(mode=0o755)
        words = shlex.join([*self.program, *self.options, "-d", "--log-file", str(self.log)])
        settings = "".join(f"export {n}={shlex.quote(v)}\n" for n, v in self.variables.items())
        ended = shlex.quote(str(self.directory / "ended"))
        self.path.write_text(f'#!/bin/sh\n{settings}{words} "$@"\necho $? >>{ended}\n')
        self.path.chmod(0o755)
        os.chown(self.directory, self.uid, self.uid)

    def statuses(self, count: int) -> list[int]:
        """Those of all runs, once there have been so many."""
        file = self.directory / "ended"

        def found() -> list[int]:
            return [int(word) for word in file.read_text().split()] if file.exists() else []

        return wait_until(lambda: len(found()) >= count and found(), "the end of the session") or []

    def told(self) -> str:
        """What administrators get to see: the log, and what super-servers pass on."""
        files = [self.log, self.directory / "superserver.log"]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())


SuperServer = Callable[[Program, int], contextlib.AbstractContextManager[None]]


def document(beginning: str, name: str = "services.md") -> str:
    """The example of a document that begins so."""
    found = [block.text for block in BLOCKS if block.document == name]
    (text,) = [text for text in found if text.startswith(beginning)]
    return text


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text with all of them made; each has something to change."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def xinetd(program: Program, port: int) -> Iterator[None]:
    service = replaced(
        (ROOT / "etc/xinetd.d/tofmipd").read_text(),
        {"8025": str(port), INSTALLED: str(program.path), "= root": f"= {program.owner}"},
    )
    with xinetd_with(service, program.directory, port):
        yield


@contextlib.contextmanager
def xinetd_with(service: str, directory: Path, port: int) -> Iterator[None]:
    """xinetd with this service file."""
    file = directory / "xinetd.conf"
    file.write_text(service)
    own = ("-pidfile", str(directory / "xinetd.pid"), "-filelog", str(directory / "xinetd.log"))
    with listening(["xinetd", "-f", str(file), "-dontfork", "-stayalive", *own], directory, port):
        yield


@contextlib.contextmanager
def inetd(program: Program, port: int) -> Iterator[None]:
    changes = {"8025": str(port), INSTALLED: str(program.path), " root ": f" {program.owner} "}
    file = program.directory / "inetd.conf"
    file.write_text(replaced(document("127.0.0.1:8025 stream"), changes))
    with listening(["inetd", "-i", str(file)], program.directory, port):
        yield


@contextlib.contextmanager
def tcpserver(program: Program, port: int) -> Iterator[None]:
    changes = {"8025": str(port), INSTALLED: str(program.path)}
    command = shlex.split(replaced(document("tcpserver "), changes))
    with listening(command, program.directory, port, program.uid):
        yield


@contextlib.contextmanager
def stunnel(program: Program, port: int) -> Iterator[None]:
    files = authority().issue(dns=["localhost"]).save(program.directory)
    for path in (files.chain, files.key):
        os.chown(path, program.uid, program.uid)
    changes = {
        "accept = 8465": f"accept = {HOST}:{port}",
        INSTALLED: str(program.path),
        "cert.pem": str(files.chain),
        "key.pem": str(files.key),
    }
    file = program.directory / "stunnel.conf"
    file.write_text(replaced(document("foreground = yes"), changes))
    with listening(["stunnel4", str(file)], program.directory, port, program.uid):
        yield


@contextlib.contextmanager
def socket_activate(program: Program, port: int) -> Iterator[None]:
    changes = {_PLACE: f"{HOST}:{port}", INSTALLED: str(program.path)}
    command = shlex.split(replaced(document("systemd-socket-activate --inetd"), changes))
    with listening(command, program.directory, port, program.uid):
        yield


@contextlib.contextmanager
def listening(
    command: Sequence[str], directory: Path, port: int, uid: int | None = None
) -> Iterator[None]:
    """A program in the foreground that listens on the port; ended afterwards."""
    output = directory / "superserver.log"
    process = spawn(command, output, {"PATH": os.environ["PATH"] + ":/usr/sbin"}, uid)
    with ending(process):

        def ready() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return is_listening(port)

        wait_until(ready, f"{command[0]} to listen")
        yield


def is_listening(port: int) -> bool:
    """Whether somebody has that port of IPv4; asked without a connection, which would count."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


@contextlib.contextmanager
def started(server: SuperServer, program: Program) -> Iterator[int]:
    """The port on which the super-server starts the program."""
    program.install()
    port = free_port()
    with server(program, port):
        yield port
