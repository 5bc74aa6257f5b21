"""One session: command lines in, steps out.

A step is a reply, or a request that the pump carries out and whose result it brings back:
make a challenge, judge credentials, receive a message, pass a message on.  Nothing here does
I/O or waits, so every dialogue can be tested without a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tofmipd.auth.credentials import Credentials, Password, Verdict
from tofmipd.smtp import replies, sasl, syntax
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import BadCommand, Reply, printable
from tofmipd.smtp.sasl import BadExchange, Exchange

COMMAND_LIMIT_OCTETS = 4096
AUTH_LIMIT_OCTETS = 12288
_COUNTED_AS_ERRORS = frozenset({500, 501, 502, 503, 504, 555})


@dataclass(frozen=True, slots=True)
class MakeChallenge:
    """Ask whoever will check the login for a fresh challenge; bring it to ``challenged``."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Have the credentials judged; bring the verdict to ``judged``."""

    credentials: Credentials
    mechanism: str


@dataclass(frozen=True, slots=True)
class Receive:
    """Send ``reply``, then read a message; bring what is wrong with it to ``received``."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Submit:
    """Pass the received message on; bring the outcome to ``submitted``."""

    envelope: Envelope


Step = Reply | MakeChallenge | Verify | Receive | Submit


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session allows.

    ``mechanisms`` are those offered to this peer, in this order; ``withheld`` those that would
    be offered on an encrypted connection.  ``needs_login`` is off only for the receiver of the
    demonstration.
    """

    host_name: str
    mechanisms: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    size_limit_octets: int = 50 << 20
    max_recipients: int = 1000
    max_errors: int = 10
    max_auth_failures: int = 3
    needs_login: bool = True


class Session:
    """The dialogue with one client (RFC 5321 section 4.1, RFC 6409)."""

    def __init__(self, policy: Policy, peer: Peer) -> None:
        self.policy = policy
        self.peer = peer
        self.login = ""
        self._helo = ""
        self._extended = False
        self._envelope: Envelope | None = None
        self._exchange: Exchange | None = None
        self._mechanism = ""
        self._user = ""
        # An AUTH command has not led to a login, and no other command has come since.
        self._auth_open = False
        self._errors = 0
        self._auth_failures = 0

    @property
    def line_limit_octets(self) -> int:
        """How long the next line may be; AUTH may carry its response in the command."""
        return COMMAND_LIMIT_OCTETS if self.authenticated else AUTH_LIMIT_OCTETS

    def shown(self, octets: bytes) -> str:
        """What a log may show of the next line.

        Not what belongs to an AUTH exchange, nor what a client that did not see the end of one
        sends as its next response.
        """
        if self._exchange is not None:
            return "***"
        verb, _, argument = _words(octets.decode("utf-8", "surrogateescape"))
        if verb == "AUTH":
            name = argument.partition(" ")[0].upper()
            return f"AUTH {name if name in sasl.MECHANISMS else ''} ***"
        if verb not in _COMMANDS and self._auth_open:
            return "***"
        return repr(octets)[2:-1]

    @property
    def authenticated(self) -> bool:
        return bool(self.login) or not self.policy.needs_login

    def greeting(self) -> Reply:
        return replies.greeting(self.policy.host_name)

    def line(self, octets: bytes) -> Step:
        """Obey one line, given without its CRLF; say what comes next."""
        try:
            text = octets.decode("utf-8", "surrogateescape")
            step = self._response(text) if self._exchange is not None else self._command(text)
        except BadCommand as error:
            step = error.reply
        return self._counted(step)

    def bad_line(self, reply: Reply) -> Step:
        """A line was none; ``reply`` says why."""
        return self._counted(reply)

    def _counted(self, step: Step) -> Step:
        if isinstance(step, Reply) and step.code in _COUNTED_AS_ERRORS:
            self._errors += 1
            if self._errors >= self.policy.max_errors:
                return replies.TOO_MANY_ERRORS
        return step

    def _command(self, line: str) -> Step:
        verb, given, argument = _words(line)
        if not verb:
            return replies.EMPTY_COMMAND
        row = _COMMANDS.get(verb)
        if row is None:
            if not given.isascii():
                return replies.NOT_ASCII
            return replies.unknown_command("" if self._auth_open else printable(given))
        self._auth_open = row.handler is Session._auth
        if len(line) > COMMAND_LIMIT_OCTETS and row.handler is not Session._auth:
            return replies.LINE_TOO_LONG
        if not (row.before_auth or self.authenticated):
            return replies.AUTH_REQUIRED
        return row.handler(self, argument)

    def _ehlo(self, name: str) -> Step:
        if not name:
            return replies.NEED_HELLO_NAME
        self._greeted(name, extended=True)
        keywords = ["PIPELINING", f"SIZE {self.policy.size_limit_octets}", "8BITMIME"]
        if self.policy.mechanisms and self.policy.needs_login:
            keywords.append("AUTH " + " ".join(self.policy.mechanisms))
        keywords.append("ENHANCEDSTATUSCODES")
        return replies.ehlo(self.policy.host_name, tuple(keywords))

    def _hello(self, name: str) -> Step:
        if not name:
            return replies.NEED_HELO_NAME
        self._greeted(name, extended=False)
        return replies.helo(self.policy.host_name)

    def _greeted(self, name: str, *, extended: bool) -> None:
        self._helo = printable(name, 255)
        self._extended = extended
        self._envelope = None

    def _noop(self, argument: str) -> Step:
        return replies.OK

    def _help(self, argument: str) -> Step:
        return replies.HELP

    def _quit(self, argument: str) -> Step:
        return replies.BYE

    def _vrfy(self, argument: str) -> Step:
        return replies.VRFY_NOT_TOLD if argument else replies.VRFY_SYNTAX

    def _rset(self, argument: str) -> Step:
        if argument:
            return replies.NO_RSET_ARGUMENT
        self._envelope = None
        return replies.OK

    def _mail(self, argument: str) -> Step:
        """MAIL FROM:<reverse-path> (RFC 5321 section 4.1.1.2, RFC 1870, RFC 6152)."""
        if self._envelope is not None:
            return replies.NESTED_MAIL
        sender, parameters = syntax.parse_sender(argument)
        envelope = Envelope(sender, self.login, self._helo, self._protocol, self.peer)
        for name, value in parameters.items():
            self._mail_parameter(envelope, name, value)
        self._envelope = envelope
        return replies.SENDER_OK

    @property
    def _protocol(self) -> str:
        """RFC 3848; who logs in speaks the extended protocol, whatever the greeting was."""
        if self.login:
            return "ESMTPA"
        return "ESMTP" if self._extended else "SMTP"

    def _mail_parameter(self, envelope: Envelope, name: str, value: str | None) -> None:
        match name:
            case "SIZE":
                if value is None or not value.isdigit() or len(value) > 20:
                    raise BadCommand(replies.BAD_SIZE)
                envelope.size_octets = int(value)
                if envelope.size_octets > self.policy.size_limit_octets:
                    raise BadCommand(replies.MESSAGE_TOO_BIG)
            case "BODY":
                if (value or "").upper() not in ("7BIT", "8BITMIME"):
                    raise BadCommand(replies.BAD_BODY)
                envelope.eight_bit = (value or "").upper() == "8BITMIME"
            case "AUTH":  # RFC 4954 section 5: taken as AUTH=<>, for nobody here is trusted
                if value is None:
                    raise BadCommand(replies.MAIL_SYNTAX)
            case _:
                raise BadCommand(replies.unknown_parameter(name))

    def _rcpt(self, argument: str) -> Step:
        """RCPT TO:<forward-path> (RFC 5321 section 4.1.1.3)."""
        if self._envelope is None:
            return replies.NEED_MAIL
        recipient, parameters = syntax.parse_recipient(argument)
        for name in parameters:
            return replies.unknown_parameter(name)
        if len(self._envelope.recipients) >= self.policy.max_recipients:
            return replies.TOO_MANY_RECIPIENTS
        self._envelope.recipients.append(recipient)
        return replies.RECIPIENT_OK

    def _data(self, argument: str) -> Step:
        if self._envelope is None:
            return replies.NEED_MAIL
        if not self._envelope.recipients:
            return replies.NEED_RCPT
        if argument:
            return replies.NO_DATA_ARGUMENT
        return Receive(replies.START_DATA)

    def received(self, problem: Reply | None) -> Step:
        """The message is in; ``problem`` says why it cannot be used."""
        envelope, self._envelope = self._envelope, None
        if problem is not None or envelope is None:
            return problem or replies.INTERNAL_ERROR
        return Submit(envelope)

    def submitted(self, reply: Reply) -> Step:
        return reply

    def _auth(self, argument: str) -> Step:
        """AUTH mechanism [initial-response] (RFC 4954 section 4)."""
        if self.login:
            return replies.AUTH_TWICE
        if self._envelope is not None:
            return replies.AUTH_IN_TRANSACTION
        words = argument.split()
        name = words[0].upper() if words and words[0].isascii() else ""
        if name in self.policy.withheld:
            return replies.AUTH_NEEDS_TLS
        if name not in self.policy.mechanisms:
            return replies.AUTH_UNKNOWN
        mechanism = sasl.MECHANISMS[name]
        if len(words) > 2 or (mechanism.needs_challenge and len(words) > 1):
            return replies.AUTH_SYNTAX
        self._mechanism = name
        if mechanism.needs_challenge:
            return MakeChallenge()
        return self._begin(b"", words[1] if len(words) > 1 else None)

    def challenged(self, challenge: bytes) -> Step:
        """The challenge that was asked for, b"" if there can be none now."""
        if not challenge:
            return replies.AUTH_TEMPORARY
        return self._begin(challenge, None)

    def _begin(self, challenge: bytes, initial: str | None) -> Step:
        exchange = sasl.MECHANISMS[self._mechanism].begin(challenge)
        prompt = next(exchange)
        self._exchange = exchange
        if initial is not None:
            return self._response("" if initial == "=" else initial)
        return replies.prompt(sasl.encode(prompt))

    def _response(self, text: str) -> Step:
        """The client's response in an AUTH exchange."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or text == "*":
            return replies.AUTH_CANCELLED
        try:
            prompt = exchange.send(sasl.decode(text))
        except ValueError:
            return replies.AUTH_MALFORMED
        except BadExchange:
            # Nobody can log in with these; asking makes it a failed login like any other.
            return self._verify(Password("", b""))
        except StopIteration as end:
            return self._verify(end.value)
        self._exchange = exchange
        return replies.prompt(sasl.encode(prompt))

    def _verify(self, credentials: Credentials) -> Step:
        self._user = credentials.user
        return Verify(credentials, self._mechanism)

    def judged(self, verdict: Verdict) -> Step:
        """The verdict on the credentials that were handed out last."""
        if verdict is Verdict.ACCEPTED:
            self.login = self._user
            self._auth_open = False
            return replies.AUTH_ACCEPTED
        if verdict is Verdict.UNAVAILABLE:
            return replies.AUTH_TEMPORARY
        self._auth_failures += 1
        if self._auth_failures >= self.policy.max_auth_failures:
            return replies.TOO_MANY_FAILURES
        return replies.AUTH_REJECTED


def _words(line: str) -> tuple[str, str, str]:
    """The verb in upper case if it is ASCII, the verb as given, and the argument."""
    given, _, argument = line.replace("\t", " ").partition(" ")
    return given.upper() if given.isascii() else given, given, argument.strip(" ")


@dataclass(frozen=True, slots=True)
class Command:
    """What obeys a verb, and whether it may come before the login."""

    handler: Callable[[Session, str], Step]
    before_auth: bool = False


_COMMANDS = {
    "EHLO": Command(Session._ehlo, before_auth=True),
    "HELO": Command(Session._hello, before_auth=True),
    "AUTH": Command(Session._auth, before_auth=True),
    "MAIL": Command(Session._mail),
    "RCPT": Command(Session._rcpt),
    "DATA": Command(Session._data),
    "RSET": Command(Session._rset, before_auth=True),
    "NOOP": Command(Session._noop, before_auth=True),
    "VRFY": Command(Session._vrfy, before_auth=True),
    "HELP": Command(Session._help, before_auth=True),
    "QUIT": Command(Session._quit, before_auth=True),
}
