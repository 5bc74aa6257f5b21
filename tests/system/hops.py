"""What stands behind tofmipd: next hops that store what they get."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from running import HOST, LIMIT_SECONDS, ending, free_port, greets, wait_until


@dataclass(frozen=True)
class Stored:
    """One message at a next hop: envelope, and octets with the line ends it was stored with."""

    sender: str
    recipients: tuple[str, ...]
    octets: bytes

    @property
    def head(self) -> bytes:
        """The header block, without its end."""
        return re.split(rb"\r?\n\r?\n", self.octets, maxsplit=1)[0]

    @property
    def body(self) -> bytes:
        return re.split(rb"\r?\n\r?\n", self.octets, maxsplit=1)[1]

    def values(self, name: str) -> list[str]:
        """The unfolded values of all header fields of that name, in any case."""
        text = re.sub(rb"\r?\n(?=[ \t])", b"", self.head).decode("utf-8", "surrogateescape")
        pairs = [line.partition(":") for line in re.split(r"\r?\n", text)]
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]

    def value(self, name: str) -> str:
        """The value of a field that occurs once."""
        (value,) = self.values(name)
        return value


class Hop:
    """Anything that stores messages."""

    def messages(self) -> list[Stored]:
        """All that are complete."""
        raise NotImplementedError

    def for_recipient(self, recipient: str) -> list[Stored]:
        return [message for message in self.messages() if recipient in message.recipients]

    def message(self, recipient: str) -> Stored:
        """Wait for the message to this recipient; there must be just one."""
        (message,) = wait_until(lambda: self.for_recipient(recipient), f"a message for {recipient}")
        return message


@dataclass
class RawHop(Hop):
    """A small SMTP server in this process that keeps the octets of DATA as they came.

    ``refuse`` maps the beginning of a command in capitals (also "CONNECT", "." for the end of
    data) to the reply to give instead of the usual one; a reply of b"" closes the connection.
    The end of data is answered only while ``may_answer`` is set.
    """

    port: int
    keywords: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SIZE 100000000")
    refuse: dict[str, bytes] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0
    may_answer: threading.Event = field(default_factory=threading.Event)
    data_complete: threading.Event = field(default_factory=threading.Event)

    def messages(self) -> list[Stored]:
        return list(self.stored)

    def reset(self) -> None:
        """Forget all that came, and answer as usual again."""
        self.refuse.clear()
        self.stored.clear()
        self.commands.clear()
        self.data_complete.clear()
        self.may_answer.set()
        self.connections = 0

    def answer(self, command: str, usual: bytes) -> bytes:
        """The reply to a command, in wire form."""
        upper = command.upper()
        for beginning, reply in self.refuse.items():
            if upper.startswith(beginning.upper()):
                return reply + b"\r\n" if reply else b""
        return usual + b"\r\n"


class _RawSession(socketserver.StreamRequestHandler):
    server: _RawServer
    rbufsize = 1 << 20
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._serve()

    def _serve(self) -> None:
        hop = self.server.hop
        hop.connections += 1
        self.server.open.add(self.connection)
        sender, recipients = "", []
        if not self._say(hop.answer("CONNECT", b"220 raw.example ESMTP")):
            return
        for line in self.rfile:
            command = line.decode("utf-8", "replace").rstrip("\r\n")
            hop.commands.append(command)
            verb = command.partition(" ")[0].upper()
            address = re.sub(r".*?<(.*)>.*", r"\1", command)
            usual = b"250 2.0.0 Ok"
            if verb == "EHLO":
                usual = "\r\n".join(f"250-{word}" for word in ("raw.example", *hop.keywords))
                usual = usual.encode() + b"\r\n250 ENHANCEDSTATUSCODES"
            elif verb == "QUIT":
                usual = b"221 2.0.0 Bye"
            elif verb == "DATA":
                usual = b"354 Go ahead" if recipients else b"503 5.5.1 No recipients"
            reply = hop.answer(command, usual)
            if not self._say(reply):
                return
            if reply.startswith(b"250") and verb == "MAIL":
                sender, recipients = address, []
            elif reply.startswith(b"250") and verb == "RCPT":
                recipients.append(address)
            elif (
                reply.startswith(b"354") and not self._data(hop, sender, recipients)
            ) or verb == "QUIT":
                return

    def _say(self, reply: bytes) -> bool:
        if reply:
            self.wfile.write(reply)
        return bool(reply)

    def _data(self, hop: RawHop, sender: str, recipients: list[str]) -> bool:
        """Whether the session goes on after it."""
        octets = bytearray()
        for line in self.rfile:
            if line == b".\r\n":
                break
            octets += line
        else:
            return False
        hop.data_complete.set()
        hop.may_answer.wait(LIMIT_SECONDS)
        reply = hop.answer(".", b"250 2.0.0 Ok: queued as RAW")
        if reply.startswith(b"250"):
            hop.stored.append(Stored(sender, tuple(recipients), bytes(octets)))
        return self._say(reply)


class _RawServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def __init__(self, hop: RawHop) -> None:
        self.hop = hop
        self.open: set[socket.socket] = set()
        super().__init__((HOST, hop.port), _RawSession)
        hop.port = self.server_address[1]


@contextlib.contextmanager
def raw_hop(port: int = 0, **settings: object) -> Iterator[RawHop]:
    """A running RawHop; all its connections are closed at the end."""
    hop = RawHop(port, **settings)  # type: ignore[arg-type]
    hop.may_answer.set()
    server = _RawServer(hop)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hop
    finally:
        hop.may_answer.set()
        server.shutdown()
        server.server_close()
        for connection in server.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


@dataclass(frozen=True)
class SmtpSink(Hop):
    """smtp-sink, which dumps each transaction into a file with LF line ends.

    Each file ends with one more empty line than the message.
    """

    port: int
    directory: Path
    process: subprocess.Popen[bytes]

    def messages(self) -> list[Stored]:
        wait_until(self._closed, "smtp-sink to close its files")
        return [self._parse(path.read_bytes()) for path in sorted(self.directory.iterdir())]

    def _closed(self) -> bool:
        files = Path(f"/proc/{self.process.pid}/fd").iterdir()
        targets = [os.readlink(file) for file in files]
        return not any(target.startswith(str(self.directory)) for target in targets)

    @staticmethod
    def _parse(dump: bytes) -> Stored:
        own, sink, octets = re.split(rb"(\nReceived: .*\n\t.*\n\t.*\n)", dump, maxsplit=1)
        assert b"smtp-sink" in sink
        assert octets.endswith(b"\n\n")
        (sender,) = re.findall(r"X-Mail-Args: <(.*?)>", own.decode())
        recipients = re.findall(r"X-Rcpt-Args: <(.*?)>", own.decode())
        return Stored(sender, tuple(recipients), octets[:-1])


@contextlib.contextmanager
def smtp_sink(directory: Path, *options: str, port: int = 0) -> Iterator[SmtpSink]:
    """A running smtp-sink."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    user = ["-u", "root"] if os.getuid() == 0 else []
    program = shutil.which("smtp-sink") or "smtp-sink"
    process = subprocess.Popen(
        [program, *user, "-d", "%M.", *options, f"{HOST}:{port}", "100"],
        cwd=directory,
        stderr=subprocess.DEVNULL,
    )
    with ending(process):
        wait_until(lambda: greets(port), "the greeting of smtp-sink")
        yield SmtpSink(port, directory, process)


_STAND_IN = """\
#!/bin/sh
# Stores arguments, environment and standard input; ends with the status in the file "status".
cd "{directory}" || exit 70
name=run.$$
env > "$name.env"
for word; do printf '%s\\n' "$word"; done > "$name.arguments"
cat > "$name.new" && mv "$name.new" "$name.message"
test ! -e status || exit "$(cat status)"
"""


@dataclass(frozen=True)
class Sendmail(Hop):
    """A program in the place of sendmail."""

    path: Path
    directory: Path

    def runs(self) -> list[tuple[list[str], Mapping[str, str], bytes]]:
        """Arguments, environment and message of each run."""
        result = []
        for message in sorted(self.directory.glob("run.*.message")):
            base = str(message).removesuffix(".message")
            arguments = Path(base + ".arguments").read_text().split("\n")[:-1]
            lines = Path(base + ".env").read_text().splitlines()
            result.append((arguments, dict(x.split("=", 1) for x in lines), message.read_bytes()))
        return result

    def messages(self) -> list[Stored]:
        return [
            Stored(arguments[arguments.index("-f") + 1], tuple(arguments[4:]), message)
            for arguments, _, message in self.runs()
        ]

    def exit_with(self, status: int) -> None:
        (self.directory / "status").write_text(str(status))


def make_sendmail(directory: Path) -> Sendmail:
    stored = directory / "stored"
    stored.mkdir(parents=True)
    path = directory / "sendmail"
    path.write_text(_STAND_IN.format(directory=stored))
    path.chmod(0o755)
    return Sendmail(path, stored)
