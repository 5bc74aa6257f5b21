"""What stands before tofmipd: mail clients, and a dialogue octet by octet."""

from __future__ import annotations

import base64
import contextlib
import re
import smtplib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from running import ADDRESS, HOST, LIMIT_SECONDS, LOGIN, PASSWORD


@dataclass(frozen=True)
class Mail:
    """One mail to send, its text with LF line ends."""

    recipients: tuple[str, ...]
    text: str
    sender: str = ADDRESS
    mechanism: str = "PLAIN"
    login: str = LOGIN
    password: str = PASSWORD


@dataclass(frozen=True)
class Sent:
    """What became of it, from the client's point of view: its exit status and its words."""

    status: int
    words: str


def by_smtplib(mail: Mail, port: int, directory: Path) -> Sent:
    """Python's own library."""
    try:
        with smtplib.SMTP(HOST, port, timeout=LIMIT_SECONDS) as client:
            client.ehlo()
            client.user, client.password = mail.login, mail.password
            method = getattr(client, "auth_" + mail.mechanism.lower().replace("-", "_"))
            client.auth(mail.mechanism, method, initial_response_ok=mail.mechanism == "PLAIN")
            octets = mail.text.replace("\n", "\r\n").encode()
            refused = client.sendmail(mail.sender, mail.recipients, octets)
    except smtplib.SMTPException as error:
        return Sent(1, str(error))
    return Sent(1 if refused else 0, str(refused))


def by_curl(mail: Mail, port: int, directory: Path, host: str = HOST) -> Sent:
    return run_client(
        *("curl", "-sS", "-v", "--url", f"smtp://{host}:{port}"),
        *("--user", f"{mail.login}:{mail.password}"),
        *("--login-options", f"AUTH={mail.mechanism}", "--mail-from", mail.sender),
        *(word for recipient in mail.recipients for word in ("--mail-rcpt", recipient)),
        *("--crlf", "--upload-file", "-"),
        text=mail.text,
    )


def by_swaks(mail: Mail, port: int, directory: Path) -> Sent:
    return run_client(
        *("swaks", "--server", HOST, "--port", str(port), "--protocol", "ESMTP"),
        *("--auth", mail.mechanism, "--auth-user", mail.login, "--auth-password", mail.password),
        *("--from", mail.sender, "--to", ",".join(mail.recipients), "--data", "-"),
        text=mail.text,
    )


def by_msmtp(mail: Mail, port: int, directory: Path) -> Sent:
    configuration = directory / "msmtprc"
    configuration.write_text(
        f"account default\nhost {HOST}\nport {port}\ntls off\n"
        f"auth {mail.mechanism.lower()}\nuser {mail.login}\npassword {mail.password}\n"
        f"from {mail.sender}\n"
    )
    configuration.chmod(0o600)
    # Like sendmail it removes Bcc itself unless told not to.
    return run_client(
        *("msmtp", "--file", str(configuration), "--debug", "--remove-bcc-headers=off", "--"),
        *mail.recipients,
        text=mail.text,
    )


CLIENTS = {"smtplib": by_smtplib, "curl": by_curl, "swaks": by_swaks, "msmtp": by_msmtp}


def run_client(*command: str, text: str = "") -> Sent:
    """Run a client to its end, with ``text`` as its standard input."""
    result = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    return Sent(result.returncode, result.stdout + result.stderr)


def plain(login: str = LOGIN, password: str = PASSWORD, acting_for: str = "") -> str:
    """The response of AUTH PLAIN."""
    return base64.b64encode(f"{acting_for}\0{login}\0{password}".encode()).decode()


@dataclass
class Dialogue:
    """A connection on which every octet is ours."""

    socket: socket.socket
    _buffer: bytes = field(default=b"", repr=False)

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """The next whole reply, lines joined by LF; "" when the server has closed."""
        lines = []
        while True:
            while b"\r\n" not in self._buffer:
                octets = self.socket.recv(65536)
                if not octets:
                    assert not self._buffer, self._buffer
                    assert not lines, lines
                    return ""
                self._buffer += octets
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            lines.append(line.decode())
            if re.match(r"[0-9]{3}( |$)", lines[-1]):
                return "\n".join(lines)

    def say(self, line: str | bytes) -> str:
        """Send one line; the reply."""
        octets = line.encode() if isinstance(line, str) else line
        self.send(octets + b"\r\n")
        return self.reply()

    def log_in(self, login: str = LOGIN, password: str = PASSWORD) -> None:
        assert self.say("EHLO client.example").startswith("250")
        assert self.say(f"AUTH PLAIN {plain(login, password)}").startswith("235")

    def envelope(self, *recipients: str, sender: str = ADDRESS) -> None:
        """MAIL and RCPT, all of which must be accepted."""
        assert self.say(f"MAIL FROM:<{sender}>").startswith("250")
        for recipient in recipients:
            assert self.say(f"RCPT TO:<{recipient}>").startswith("250")

    def data(self, octets: bytes) -> str:
        """Send a message in wire form, its final dot included; the reply."""
        assert self.say("DATA").startswith("354")
        self.send(octets)
        return self.reply()


@contextlib.contextmanager
def dialogue(port: int, host: str = HOST, *, greeted: bool = True) -> Iterator[Dialogue]:
    """A connection whose greeting has been read, unless told otherwise."""
    with socket.create_connection((host, port), timeout=LIMIT_SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        talk = Dialogue(sock)
        if greeted:
            assert talk.reply().startswith("220 ")
        yield talk


@contextlib.contextmanager
def logged_in(port: int, login: str = LOGIN, password: str = PASSWORD) -> Iterator[Dialogue]:
    """A session that has logged in."""
    with dialogue(port) as talk:
        talk.log_in(login, password)
        yield talk


def submit(
    port: int,
    *recipients: str,
    message: bytes | None = None,
    sender: str = ADDRESS,
    login: str = LOGIN,
    password: str = PASSWORD,
) -> str:
    """Send a message in wire form without its final dot, in a session of its own; the reply."""
    octets = b"From: Bobby <%s>\r\nSubject: hello\r\n\r\nhello\r\n" % sender.encode()
    with logged_in(port, login, password) as talk:
        talk.envelope(*recipients, sender=sender)
        return talk.data((octets if message is None else message) + b".\r\n")


def wire(lines: Sequence[bytes]) -> bytes:
    """Lines as they travel: leading dots doubled, CRLF."""
    return b"".join((b"." + x if x.startswith(b".") else x) + b"\r\n" for x in lines)
