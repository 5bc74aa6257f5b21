"""`tofmipd demo`: the whole way of a message in one folder and one process.

A personal tofmipd with a small SMTP receiver behind it that files each message in a Maildir.
The receiver is the same server with another gate: it needs no login and hands nothing on.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import sys
import time
from dataclasses import dataclass

from tofmipd.arguments import Parser, port
from tofmipd.auth.credentials import Credentials, Judgement, Verdict
from tofmipd.auth.hashes import Clear
from tofmipd.auth.passwordfile import PasswordFileError, read_passwords
from tofmipd.cli import host_name, person
from tofmipd.commands.setup import Plan, Way, client_lines, write_all
from tofmipd.content import Content, as_local_text
from tofmipd.daemon import run
from tofmipd.errors import CANT_CREATE, CONFIG, Fatal
from tofmipd.server import Listener, Service, bind
from tofmipd.settings import DEFAULT_PORT, Limits, Listen, Person, Settings
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.tmda.inject import Report

_HOST = "127.0.0.1"
_LOGIN, _ADDRESS = "you", "you@example.org"
_USAGE = "tofmipd demo [--directory DIR] [--port PORT]"
_STORED = re.compile(r"stored as (\S+)")

_FILTER = """\
# What becomes of your address, by recipient; the first line that matches wins.
to   *@=lists.example.net    bare
to   shop@*                  kw=shop
to   *@=bank.example         sender
to   friend@*                dated=4w
"""


@dataclass(frozen=True, slots=True)
class Maildir:
    """Where the receiver files messages; also the gate and the pass of its sessions."""

    directory: str
    numbers: itertools.count[int]
    mechanisms: frozenset[str] = frozenset()

    def make(self) -> None:
        for name in ("tmp", "new", "cur"):
            os.makedirs(f"{self.directory}/{name}", mode=0o700, exist_ok=True)

    def admit(self, session_id: str, peer: Peer) -> Maildir:
        return self

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        return b""

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        return Judgement(Verdict.REJECTED)

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        """File the message; the reply says where."""
        name = f"{time.time():.6f}.{os.getpid()}_{next(self.numbers)}.{_HOST}"
        recipients = "".join(f"X-Envelope-To: <{address}>\n" for address in envelope.recipients)
        try:
            with open(f"{self.directory}/tmp/{name}", "xb") as file:
                file.write(f"Return-Path: <{envelope.sender}>\n{recipients}".encode())
                for block in as_local_text(content.blocks()):
                    file.write(block)
            os.rename(f"{self.directory}/tmp/{name}", f"{self.directory}/new/{name}")
        except OSError:
            return replies.NO_ROOM
        return Reply(250, "0.0", (f"Ok: stored as new/{name}",))

    def close(self) -> None:
        """Nothing is kept for a session."""


def main(arguments: list[str]) -> int:
    """Prepare the folder, start receiver and daemon, say how to send; ends with Ctrl-C."""
    options = make_parser().parse_known(arguments)
    home = os.path.abspath(options.directory)
    maildir = Maildir(f"{home}/Maildir", itertools.count(1))
    plan = Plan(home, _LOGIN, _ADDRESS, "Demo User", Way(f"{_HOST}:25"), _FILTER)
    fresh = any(new for _, new in write_all(plan))
    try:
        maildir.make()
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot prepare {maildir.directory}: {error.strerror}") from None
    settings = _settings(home, options.port)
    password = _password(settings)

    def started() -> None:
        # Not before port and folder are ours: another demonstration may be using these files.
        _take(home)
        _point_to(f"{plan.directory}/config", _start_receiver(maildir).port)
        _explain(settings, password, options.port, fresh)

    return run(
        settings,
        observer=lambda sender, reports, said: _show(sender, reports, said, maildir.directory),
        started=started,
    )


def make_parser() -> Parser:
    parser = Parser("tofmipd demo", "Try tofmipd out in a folder of its own.", _USAGE)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--directory", metavar="DIR", default=".demo", help="(default: .demo)")
    parser.add_argument(
        "--port", metavar="PORT", type=port, default=DEFAULT_PORT, help="(default: 8025)"
    )
    return parser


def _start_receiver(maildir: Maildir) -> Listener:
    service = Service(maildir, "demo.example", Limits(), needs_login=False)
    listener = Listener(bind(Listen(_HOST, 0)), service)
    listener.start()
    return listener


def _take(home: str) -> None:
    """Have the folder for ourselves until the process ends.  Raises Fatal."""
    try:
        fcntl.flock(os.open(home, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"{home} is in use by another demo; end that, or choose another with --directory"
        if error.errno != errno.EWOULDBLOCK:
            text = f"cannot use {home}: {error.strerror}"
        raise Fatal(CANT_CREATE, text) from None


def _point_to(config: str, port: int) -> None:
    """Have the configuration name the receiver of this run.  Raises Fatal."""
    try:
        with open(config, encoding="utf-8", errors="surrogateescape") as file:
            old = file.read()
        new = re.sub(r"(?m)^SMTPHOST = .*$", f"SMTPHOST = '{_HOST}:{port}'", old)
        with open(config + ".new", "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(new)
        os.replace(config + ".new", config)
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot rewrite {config}: {error.strerror}") from None


def _settings(home: str, port: int) -> Settings:
    return Settings(
        person=Person(person().uid, _LOGIN, "Demo User", home),
        listen=(Listen(_HOST, port),),
        authfile=f"{home}/.tmda/tofmipd",
        site_config="",
        host_name=host_name(),
        foreground=True,
        quiet=True,
        port_hint="make run PORT=NUMBER, or --port NUMBER",
    )


def _password(settings: Settings) -> str:
    path = settings.authfile
    try:
        secret = read_passwords(path, settings.person.uid).get(_LOGIN)
    except PasswordFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    if not isinstance(secret, Clear) or not secret.written:
        raise Fatal(CONFIG, f"{path}: no line {_LOGIN}:PASSWORD (remove the file for a new one)")
    return secret.written.decode("utf-8", "replace")


def _explain(settings: Settings, password: str, port: int, fresh: bool) -> None:
    curl, swaks = client_lines(_LOGIN, password, _ADDRESS, _HOST, port)
    home = _shown(settings.person.home)
    own = f"HOME={home} {_shown(sys.argv[0])} test --server {_HOST}:{port} friend@example.net"
    print(
        f"""
{"Made" if fresh else "Using"} {home}: configuration and filter in {home}/.tmda,
mail that was passed on in {home}/Maildir.
Log in at {_HOST} port {port} as user {_LOGIN}, password {password}

Send a first mail with one of these, in another window:

  {curl}

  {swaks}

  {own}

Other recipients match other rules of {home}/.tmda/filters/outgoing: try shop@example.com,
box@bank.example, news@lists.example.net.  Ctrl-C ends this.
""",
        flush=True,
    )


def _show(sender: str, reports: tuple[Report, ...], said: str, directory: str) -> None:
    stored = _STORED.search(said)
    place = f"{_shown(directory)}/{stored[1]}" if stored else said
    for report in reports:
        print(
            f"""\
recipient  {_text(report.recipient)}
rule       {report.rule}
From       {_text(report.sender_before)}
      ->   {_text(report.sender_after)}
envelope   {sender or "<>"}
stored in  {place}
""",
            flush=True,
        )


def _shown(path: str) -> str:
    """Relative to the current directory if it is below."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "replace")
