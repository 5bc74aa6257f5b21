"""Stand-ins that speak the real protocols, for the tests of all rooms.

Everything listens on 127.0.0.1 and waits for a bounded time only.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tofmipd.auth.credentials import (
    Certificate,
    CramMd5,
    Credentials,
    Judgement,
    Password,
    Scram,
    Verdict,
)
from tofmipd.auth.saslprep import login_name
from tofmipd.auth.scram import HASHES, LEAST_ITERATIONS, PLUS, ClientFirst, Exchange, verifier_of
from tofmipd.content import Content
from tofmipd.handoff.copy import Copy, Parameters
from tofmipd.reception import Reception, discard
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Encryption, Envelope, Peer
from tofmipd.smtp.reply import BadCommand, Reply
from tofmipd.smtp.session import (
    MakeChallenge,
    Policy,
    Receive,
    ReceiveChunk,
    Session,
    StartTls,
    Step,
    Submit,
    Verify,
)
from tofmipd.smtp.stream import ChunkReader, LineReader, MessageReader

PATIENCE_SECONDS = 10.0
ALL_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256")
LOOPBACK = Peer("127.0.0.1", 40000, loopback=True)
TAKEN = Reply(250, "0.0", ("Ok: taken",))
# The example of RFC 2195, section 2.
RFC2195_CHALLENGE = b"<1896.697170952@postoffice.reston.mci.net>"
RFC2195_SECRET = b"tanstaaftanstaaf"
RFC2195_DIGEST = b"b913a602c7eda7a495b4e6e7334d3890"
# Salt and server's nonce of the examples of RFC 5802 section 5 and RFC 7677 section 3: "user" with
# the password "pencil".
RFC_SCRAM = {
    "SCRAM-SHA-1": (b"QSXCR+Q6sek8bf92", b"3rfcNHYJY1ZVvWVs7j"),
    "SCRAM-SHA-256": (b"W22ZaJ0SNY7soEsUEjb6gQ==", b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"),
}


def wait_for(condition: Callable[[], object], limit_seconds: float = PATIENCE_SECONDS) -> None:
    """Come back as soon as ``condition`` holds; AssertionError if it never does."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def content_of(octets: bytes | Iterable[bytes]) -> Content:
    content = Content()
    for block in (octets,) if isinstance(octets, bytes) else octets:
        content.write(block)
    return content


def copy_of(
    body: bytes | Iterable[bytes] = b"Hello.\r\n",
    *,
    sender: bytes = b"a@example.org",
    recipients: tuple[bytes, ...] = (b"x@example.net",),
    header: bytes = b"Subject: test\r\n\r\n",
    **parameters: Any,
) -> Copy:
    return Copy(sender, recipients, header, content_of(body), 0, Parameters(**parameters))


# The session's side of the gate.


class ScramClient:
    """The client's side of SCRAM by RFC 5802, which shares nothing with ours.

    ``header`` is its gs2-header, ``binding`` are the octets of the channel.
    """

    def __init__(
        self,
        mechanism: str,
        user: bytes,
        password: bytes,
        *,
        nonce: bytes = b"fyko+d2lbbFgONRv9qkxdawL",
        header: bytes = b"n,,",
        binding: bytes = b"",
    ) -> None:
        self._hash = "sha256" if "256" in mechanism else "sha1"
        self._password = password
        self._bare = b"n=%s,r=%s" % (user, nonce)
        self._bound = base64.b64encode(header + binding)
        self.first = header + self._bare
        self.expected = b""

    def final(self, challenge: bytes, nonce: bytes = b"") -> bytes:
        """The last message; ``expected`` is what a server says then that knows the password.

        ``nonce`` is said in the place of the right one.
        """
        given, salt, iterations = (part[2:] for part in challenge.split(b",")[:3])
        nonce = nonce or given
        salted = hashlib.pbkdf2_hmac(
            self._hash, self._password, base64.b64decode(salt), int(iterations)
        )
        client_key = hmac.digest(salted, b"Client Key", self._hash)
        without_proof = b"c=%s,r=%s" % (self._bound, nonce)
        said = b",".join((self._bare, challenge, without_proof))
        stored_key = hashlib.new(self._hash, client_key).digest()
        signature = hmac.digest(stored_key, said, self._hash)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", self._hash)
        self.expected = b"v=" + base64.b64encode(hmac.digest(server_key, said, self._hash))
        return without_proof + b",p=" + base64.b64encode(proof)


class Judge:
    """Judges logins by a table, with challenges that are always the same, those of the RFCs.

    A certificate is good for whoever is in the table.
    """

    def __init__(self, passwords: dict[str, bytes]) -> None:
        self.passwords = passwords
        self.unavailable = False
        self._exchange: Exchange | None = None

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        if mechanism == "CRAM-MD5":
            return RFC2195_CHALLENGE
        first = ClientFirst.parse(opening)
        password = self.passwords.get(login_name(first.user))
        name = mechanism.removesuffix(PLUS)
        salt, nonce = RFC_SCRAM[name]
        verifier = verifier_of(
            password or b"nobody's", base64.b64decode(salt), LEAST_ITERATIONS, HASHES[name]
        )
        self._exchange = Exchange(first, verifier, nonce, known=password is not None)
        return self._exchange.challenge

    def judge(self, credentials: Credentials) -> Judgement:
        answer: bytes | None = b""
        password = self.passwords.get(credentials.user)
        match credentials:
            case Password():
                right = credentials.password == password
            case CramMd5():
                digest = hmac.digest(password or b"", RFC2195_CHALLENGE, "md5").hex().encode()
                right = password is not None and credentials.digest == digest
            case Certificate():
                right = password is not None and credentials.der != b""
            case Scram():
                exchange, self._exchange = self._exchange, None
                answer = exchange and exchange.finish(credentials.final, credentials.binding)
                right = answer is not None
        if self.unavailable:
            return Judgement(Verdict.UNAVAILABLE)
        if not right:
            return Judgement(Verdict.REJECTED)
        return Judgement(Verdict.ACCEPTED, answer or b"")


class FakeGate(Judge):
    """A gate and its passes in one: judges by a table, keeps what is submitted.

    ``reply`` answers every message; a callable may instead look at it, wait, or raise.
    """

    mechanisms = frozenset(ALL_MECHANISMS)

    def __init__(
        self,
        passwords: dict[str, bytes] | None = None,
        reply: Reply | Callable[[Envelope, bytes], Reply] = TAKEN,
    ) -> None:
        super().__init__({"bobby": b"FooBar"} if passwords is None else passwords)
        self.reply = reply
        self.submitted: list[tuple[Envelope, bytes]] = []
        self.asked: list[tuple[Credentials, str]] = []
        self.closed = 0

    def admit(self, session_id: str, peer: Peer) -> FakeGate:
        return self

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        self.asked.append((credentials, mechanism))
        return self.judge(credentials)

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        octets = b"".join(content.blocks())
        reply = self.reply if isinstance(self.reply, Reply) else self.reply(envelope, octets)
        self.submitted.append((envelope, octets))
        return reply

    def close(self) -> None:
        self.closed += 1


TLS = Encryption("TLSv1.3", "TLS_AES_256_GCM_SHA384", binding=b"binding")


@dataclass
class Desk:
    """Drives a Session without a socket: octets in, lines of text out.

    Each line of a reply comes out as "S: ...", each request to what stands behind the gate as
    "G: ...".  After a reply that closes comes "S: <closed>", and nothing more.  A handshake always
    succeeds; ``received`` holds what has been submitted, in wire form.
    """

    policy: Policy
    passwords: dict[str, bytes] = field(default_factory=dict)
    outcome: Reply = TAKEN
    peer: Peer = LOOPBACK
    encryption: Encryption = TLS

    def __post_init__(self) -> None:
        self.session = Session(self.policy, self.peer)
        self.judge = Judge(self.passwords)
        self.lines = LineReader()
        self.closed = False
        self.received: list[bytes] = []
        self._reception: Reception | None = None
        # What is being read, and what goes on when it is complete.
        self._reader: MessageReader | ChunkReader | None = None
        self._then: Callable[[], Step] = lambda: replies.INTERNAL_ERROR
        self._out: list[str] = []
        self._say(self.session.greeting())

    def feed(self, octets: bytes) -> None:
        """Take what the client sends, in any pieces."""
        if self._reader is not None:
            self._read(octets)
        elif not self.closed:
            self.lines.feed(octets)
        while not self.closed and self._reader is None and self._obey():
            pass

    def said(self) -> list[str]:
        """What came out since the last call."""
        out, self._out = self._out, []
        return out

    def _obey(self) -> bool:
        try:
            line = self.lines.line(self.session.line_limit_octets)
            if line is None:
                return False
            step = self.session.line(line)
        except BadCommand as error:
            step = self.session.bad_line(error.reply)
        self._carry_out(step)
        return True

    def _carry_out(self, step: Step) -> None:
        while not isinstance(step, Reply):
            match step:
                case Receive(reply=reply):
                    self._say(reply)
                    reception = Reception(self.policy.size_limit_octets, fix=False)
                    self._reception = reception
                    self._await(reception.whole(), self._received)
                    return
                case ReceiveChunk():
                    self._receive_chunk(step)
                    return
                case StartTls(reply=reply):
                    self._say(reply)
                    self._out.append("G: starttls")
                    self.lines.take()
                    self.session.secured(self.encryption)
                    return
                case Submit(envelope=envelope):
                    assert self._reception is not None
                    self.received.append(b"".join(self._reception.content.blocks()))
                    self._out.append("G: " + described(envelope))
                    step = self.session.submitted(self.outcome)
                case MakeChallenge(mechanism=mechanism, opening=opening):
                    self._out.append("G: challenge")
                    step = self.session.challenged(self.judge.challenge(mechanism, opening))
                case Verify(credentials=credentials, mechanism=mechanism):
                    self._out.append(f"G: verify {mechanism} {credentials.user}")
                    step = self.session.judged(self.judge.judge(credentials))
        if self._reception is not None and not self.session.chunking:
            self._reception.close()
            self._reception = None
        self._say(step)

    def _received(self) -> Step:
        assert self._reception is not None
        return self.session.received(self._reception.finish())

    def _receive_chunk(self, step: ReceiveChunk) -> None:
        if not step.keep:
            self._await(discard(step.size_octets), lambda: self.session.chunk_received(None))
            return
        if self._reception is None:
            self._reception = Reception(self.policy.size_limit_octets, fix=False)
        reception = self._reception

        def done() -> Step:
            return self.session.chunk_received(reception.finish() if step.last else None)

        self._await(reception.chunk(step.size_octets), done)

    def _await(self, reader: MessageReader | ChunkReader, then: Callable[[], Step]) -> None:
        self._reader, self._then = reader, then
        self._read(self.lines.take())

    def _read(self, octets: bytes) -> None:
        assert self._reader is not None
        rest = self._reader.feed(octets)
        if rest is None:
            return
        self._reader = None
        self.lines.feed(rest)
        self._carry_out(self._then())

    def _say(self, reply: Reply) -> None:
        text = reply.encode().decode("ascii")
        assert text.endswith("\r\n")
        self._out += [f"S: {line}" for line in text[:-2].split("\r\n")]
        if reply.closes:
            self.closed = True
            self._out.append("S: <closed>")


def described(envelope: Envelope) -> str:
    """An envelope in one line, for dialogues."""
    words = [
        f"submit {envelope.protocol} login={envelope.login} helo={envelope.helo}",
        f"from=<{envelope.sender}>",
        *(f"to=<{r}> {envelope.notices.get(r, '')}".rstrip() for r in envelope.recipients),
        f"size={envelope.size_octets}" if envelope.size_octets else "",
        "8bit" if envelope.eight_bit else "",
        "utf8" if envelope.smtputf8 else "",
        f"ret={envelope.ret}" if envelope.ret else "",
        f"envid={envelope.envid}" if envelope.envid else "",
    ]
    return " ".join(filter(None, words))


# The client's side of a connection.


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over loopback: the server's, the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE_SECONDS)
        server, _ = listener.accept()
    return server, client


class CountingSocket(socket.socket):
    """A socket that counts its writes."""

    writes = 0

    def send(self, octets: bytes, flags: int = 0) -> int:
        self.writes += 1
        return super().send(octets, flags)


class Client:
    """A mail client by hand: says lines, reads whole replies.  No wait is unbounded."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(PATIENCE_SECONDS)
        self._buffer = b""

    @classmethod
    def connect(cls, port: int) -> Client:
        return cls(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS))

    def say(self, *lines: str) -> None:
        """Send the lines at once."""
        self.raw("".join(line + "\r\n" for line in lines).encode("utf-8", "surrogateescape"))

    def raw(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def reply(self) -> str:
        """The next whole reply, its lines joined by LF; "" when the connection is closed."""
        lines = []
        while True:
            line = self._line()
            if line is None:
                return ""
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    def ask(self, *lines: str) -> str:
        """Send the lines; the reply to the last of them."""
        self.say(*lines)
        return [self.reply() for _ in lines][-1]

    def log_in(self, user: str = "bobby", password: str = "FooBar") -> str:
        return self.ask("AUTH PLAIN " + b64(f"\0{user}\0{password}".encode()))

    def rest(self) -> bytes:
        """All octets up to the end of the connection."""
        octets = self._buffer
        with contextlib.suppress(ConnectionError):
            while block := self.socket.recv(65536):
                octets += block
        self._buffer = b""
        return octets

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        self.socket.settimeout(seconds)
        try:
            self._buffer += self.socket.recv(65536)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_SECONDS)
        return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> str | None:
        while b"\r\n" not in self._buffer:
            try:
                octets = self.socket.recv(65536)
            except ConnectionError:
                octets = b""
            if not octets:
                return None
            self._buffer += octets
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line.decode("ascii")


# The next hop.


class Moment(NamedTuple):
    """When a fake next hop asks its script what to do.

    ``stage`` is "GREETING", a verb, "BODY" (some of a message has come), "DOT" (all of it has) or
    "REPLIED" (that has been answered); ``connection`` and ``message`` count from 1.
    """

    stage: str
    argument: str
    connection: int
    message: int


@dataclass(frozen=True)
class Act:
    """What the next hop does instead of the usual: says something, then hangs up or stalls.

    ``drip``: it says one octet at a time, without end.  ``reset``: it hangs up with an RST.
    ``takes``: it has the message, whatever it says to the dot.
    """

    octets: bytes = b""
    close: bool = False
    stall: bool = False
    drip: bool = False
    reset: bool = False
    takes: bool = False


CLOSE = Act(close=True)
STALL = Act(stall=True)
Script = Callable[[Moment], Act | None]


def at(stage: str, act: Act | bytes, **when: int | str) -> Script:
    """The script that does ``act`` at ``stage``, and only where ``when`` fits the moment."""
    done = Act(act) if isinstance(act, bytes) else act

    def script(moment: Moment) -> Act | None:
        fits = all(getattr(moment, name) == value for name, value in when.items())
        return done if moment.stage == stage and fits else None

    return script


@dataclass
class Taken:
    """A message that the next hop has, and its ``reply``; ``wire`` is without the final dot."""

    connection: int
    sender: str
    recipients: list[str]
    wire: bytes
    size_octets: int
    digest: str
    reply: bytes
    # For whom it came by XCLIENT: what stood behind that.
    client: str

    @property
    def text(self) -> bytes:
        """What a reader of the message would see."""
        return b"\r\n".join(line.removeprefix(b".") for line in self.wire.split(b"\r\n"))


FEATURES = ("PIPELINING", "SIZE 100000000", "8BITMIME", "ENHANCEDSTATUSCODES")


class FakeNextHop:
    """An SMTP server in threads, as strict as the RFC about line ends.

    ``script`` may replace any answer.  ``login`` demands these credentials by one of
    ``mechanisms``, ``tls`` offers STARTTLS or, if ``implicit``, begins with it.  With ``keep`` off
    only the digest of a message is remembered.  ``xclient`` are the attributes that it takes; with
    ``one_client`` it takes them once on a connection, as Postfix does.
    """

    def __init__(
        self,
        script: Script = lambda moment: None,
        *,
        features: tuple[str, ...] = FEATURES,
        login: tuple[str, str] | None = None,
        mechanisms: tuple[str, ...] = ("PLAIN",),
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        keep: bool = True,
        port: int = 0,
        xclient: str = "",
        one_client: bool = False,
    ) -> None:
        self.script = script
        self.features = features
        self.login = login
        self.mechanisms = mechanisms
        self.tls = tls
        self.implicit = implicit
        self.xclient = xclient
        self.one_client = one_client
        self.keep = keep
        self.connections = 0
        self.closed_connections = 0
        self.messages: list[Taken] = []
        self.transcripts: list[list[str]] = []
        # What came with each MAIL in one piece, and faults of the client.
        self.groups: list[list[str]] = []
        self.violations: list[str] = []
        self.ending = threading.Event()
        self._talks: list[_NextHopSession] = []
        self._threads: list[threading.Thread] = []
        self.port = port
        self.take_connections()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.ending.set()
        self.refuse_connections()
        self.hang_up()
        for thread in list(self._threads):
            thread.join(PATIENCE_SECONDS)

    def take_connections(self) -> None:
        """Listen, also again; then another may have had the port meanwhile."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept, self._listener)

    def refuse_connections(self) -> None:
        """Nobody listens any more; connections that are open stay so."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def hang_up(self) -> None:
        """Close all connections, as a server does that has been idle for too long."""
        for talk in self._talks:
            with contextlib.suppress(OSError):
                # Not that of an encrypted one, for another thread is using it.
                socket.socket.shutdown(talk.socket, socket.SHUT_RDWR)

    @property
    def commands(self) -> list[str]:
        """All commands of all connections."""
        return [line for transcript in self.transcripts for line in transcript]

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self.ending.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE_SECONDS * 3)
            # Many small replies meet delayed ACKs otherwise.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self.transcripts.append([])
            talk = _NextHopSession(self, sock, self.connections)
            self._talks.append(talk)
            self._start(self._serve, talk)

    def _serve(self, talk: _NextHopSession) -> None:
        try:
            with contextlib.suppress(OSError):
                talk.run()
        finally:
            talk.socket.close()
            self.closed_connections += 1


class _NextHopSession:
    def __init__(self, hop: FakeNextHop, sock: socket.socket, number: int) -> None:
        self.hop = hop
        self.socket = sock
        self.number = number
        self.buffer = b""
        self.message = 1
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.secure = self.known = False
        self.client = ""

    def run(self) -> None:
        if self.hop.implicit:
            self.shake_hands()
        going = self.answer("GREETING", "", b"220 next.example ESMTP fake\r\n")
        while going:
            line = self.line()
            if line is None:
                return
            self.hop.transcripts[self.number - 1].append(line)
            going = self.obey(line)

    def decide(self, stage: str, argument: str = "") -> Act | None:
        return self.hop.script(Moment(stage, argument, self.number, self.message))

    def do(self, act: Act | None, usual: bytes = b"") -> bool:
        """Do that, or say the usual; whether to go on."""
        act = act or Act(usual)
        while act.drip and not self.hop.ending.wait(0.02):
            self.socket.sendall(act.octets[:1])
        self.socket.sendall(act.octets)
        if act.stall:
            self.hop.ending.wait(PATIENCE_SECONDS * 3)
        if act.reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return not (act.close or act.stall or act.reset)

    def answer(self, stage: str, argument: str, usual: bytes) -> bool:
        return self.do(self.decide(stage, argument), usual)

    def more(self) -> bool:
        octets = self.socket.recv(1 << 16)
        self.buffer += octets
        return bool(octets)

    def line(self) -> str | None:
        while b"\n" not in self.buffer:
            if not self.more():
                return None
        line, self.buffer = self.buffer.split(b"\n", 1)
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            self.hop.violations.append(f"bare newline in the command {line!r}")
        return line.removesuffix(b"\r").decode("latin-1")

    def obey(self, line: str) -> bool:
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb == "MAIL":
            group = [line, *self.buffer.decode("latin-1").split("\r\n")[:-1]]
            self.hop.groups.append(group)
            if len(group) > 1 and "PIPELINING" not in self.hop.features:
                self.hop.violations.append("commands pipelined without being asked to")
        match verb:
            case "EHLO" | "HELO":
                return self.answer(verb, argument, self.hello(verb))
            case "STARTTLS":
                return self.start_tls()
            case "AUTH":
                return self.auth(argument)
            case "XCLIENT" if self.takes_xclient:
                return self.introduced(argument)
            case "MAIL" if self.hop.login is not None and not self.known:
                return self.answer(verb, argument, b"530 5.7.0 log in first\r\n")
            case "MAIL":
                return self.transaction_begins(argument)
            case "RCPT":
                return self.recipient(argument)
            case "DATA":
                return self.data()
            case "QUIT":
                self.answer(verb, argument, b"221 2.0.0 bye\r\n")
                return False
            case "RSET" | "NOOP":
                if verb == "RSET":
                    self.sender, self.recipients = None, []
                return self.answer(verb, argument, b"250 2.0.0 ok\r\n")
        self.hop.violations.append(f"unknown command {line!r}")
        return self.answer(verb, argument, b"502 5.5.1 unknown\r\n")

    def hello(self, verb: str) -> bytes:
        lines = ["next.example"]
        if verb == "EHLO":
            lines += self.hop.features
            if self.hop.tls is not None and not self.secure:
                lines.append("STARTTLS")
            if self.takes_xclient:
                lines.append("XCLIENT " + self.hop.xclient)
            if self.hop.login is not None:
                lines.append("AUTH " + " ".join(self.hop.mechanisms))
        last = len(lines) - 1
        return "".join(
            f"250{' ' if number == last else '-'}{line}\r\n" for number, line in enumerate(lines)
        ).encode()

    @property
    def takes_xclient(self) -> bool:
        return bool(self.hop.xclient) and not (self.hop.one_client and self.client)

    def introduced(self, argument: str) -> bool:
        if self.sender is not None:
            self.hop.violations.append("XCLIENT within a transaction")
        act = self.decide("XCLIENT", argument)
        if act is None or act.octets.startswith(b"220"):
            self.client, self.known = argument, False
        return self.do(act, b"220 next.example ESMTP fake\r\n")

    def start_tls(self) -> bool:
        if self.hop.tls is None:
            return self.answer("STARTTLS", "", b"502 5.5.1 no TLS here\r\n")
        if not self.answer("STARTTLS", "", b"220 2.0.0 go ahead\r\n"):
            return False
        self.shake_hands()
        return True

    def shake_hands(self) -> None:
        assert self.hop.tls is not None
        self.socket = self.hop.tls.wrap_socket(self.socket, server_side=True)
        self.secure = True

    def auth(self, argument: str) -> bool:
        mechanism, _, response = argument.partition(" ")
        wanted = None
        if self.hop.login is not None and mechanism in self.hop.mechanisms:
            wanted, response = self.wanted(mechanism, response, *self.hop.login)
        self.known = response == wanted
        usual = b"235 2.7.0 welcome\r\n" if self.known else b"535 5.7.8 no\r\n"
        return self.answer("AUTH", argument, usual)

    def wanted(self, mechanism: str, said: str, user: str, password: str) -> tuple[str, str]:
        """What a client must say that knows the password, and what this one says."""
        if mechanism == "CRAM-MD5":
            digest = hmac.digest(password.encode(), RFC2195_CHALLENGE, "md5").hex()
            return b64(f"{user} {digest}".encode()), self.ask(RFC2195_CHALLENGE)
        if mechanism == "LOGIN":
            names = self.ask(b"Username:"), self.ask(b"Password:")
            return f"{b64(user.encode())} {b64(password.encode())}", " ".join(names)
        return b64(f"\0{user}\0{password}".encode()), said

    def ask(self, challenge: bytes) -> str:
        self.socket.sendall(b"334 %s\r\n" % b64(challenge).encode())
        return self.line() or ""

    def transaction_begins(self, argument: str) -> bool:
        if self.sender is not None:
            self.hop.violations.append("MAIL within a transaction")
        act = self.decide("MAIL", argument)
        good = act is None or act.octets.startswith(b"25")
        self.sender = _between_brackets(argument) if good else None
        self.recipients = []
        return self.do(act, b"250 2.1.0 sender ok\r\n")

    def recipient(self, argument: str) -> bool:
        if self.sender is None:
            return self.do(None, b"503 5.5.1 no sender\r\n")
        act = self.decide("RCPT", argument)
        if act is None or act.octets.startswith(b"25"):
            self.recipients.append(_between_brackets(argument))
        return self.do(act, b"250 2.1.5 recipient ok\r\n")

    def data(self) -> bool:
        if not self.recipients:
            return self.do(None, b"554 5.5.1 no valid recipients\r\n")
        act = self.decide("DATA")
        going = self.do(act, b"354 go on\r\n")
        if act is not None and not act.octets.startswith(b"354"):
            return going
        return going and self.read_message()

    def read_message(self) -> bool:
        """Up to CRLF.CRLF; the CRLF of the DATA line counts as the first one."""
        wire, digest, size = [], hashlib.sha256(), 0
        tail, skip = b"\r\n", 2
        while True:
            block, self.buffer = tail + self.buffer, b""
            end = block.find(b"\r\n.\r\n")
            cut = end + 2 if end >= 0 else max(len(block) - 4, 0)
            piece, tail = block[skip:cut], block[cut:]
            skip -= min(skip, cut)
            digest.update(piece)
            size += len(piece)
            if self.hop.keep:
                wire.append(piece)
            if end >= 0:
                self.buffer = tail[3:]
                if self.buffer:  # nobody may go on before the reply to the dot
                    self.hop.violations.append("octets behind the end of the message")
                break
            act = self.decide("BODY")
            if act is not None and not self.do(act):
                return False
            if not self.more():
                return False
        return self.judge(b"".join(wire), size, digest.hexdigest())

    def judge(self, wire: bytes, size: int, digest: str) -> bool:
        act = self.decide("DOT")
        usual = b"250 2.0.0 Ok: queued as FAKE%d\r\n" % self.message
        if act is None or act.octets.startswith(b"250") or act.takes:
            reply = usual if act is None else act.octets
            self.hop.messages.append(
                Taken(
                    self.number,
                    self.sender or "",
                    self.recipients,
                    wire,
                    size,
                    digest,
                    reply,
                    self.client,
                )
            )
        self.sender, self.recipients = None, []
        self.message += 1
        return self.do(act, usual) and self.answer("REPLIED", "", b"")


def _between_brackets(argument: str) -> str:
    return argument[argument.index("<") + 1 : argument.rindex(">")]


# Certificates.


def make_certificate(directory: Path, name: str = "127.0.0.1") -> tuple[str, str]:
    """A certificate that vouches for itself, good for that address, and its key: two paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / f"{name}.pem", directory / f"{name}.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(certificate_path), str(key_path)


def server_context(directory: Path, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, str]:
    """The server's side of TLS, and the file by which clients can check it."""
    certificate, key = make_certificate(directory, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


# Pieces.


def in_pieces(octets: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The octets cut at these places."""
    start = 0
    for cut in sorted({cut for cut in cuts if 0 < cut < len(octets)}):
        yield octets[start:cut]
        start = cut
    if start < len(octets):
        yield octets[start:]


def octet_by_octet(octets: bytes) -> Iterator[bytes]:
    for number in range(len(octets)):
        yield octets[number : number + 1]
