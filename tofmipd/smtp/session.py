"""One session: command lines in, steps out.

A step is a reply, or a request that the pump carries out and whose result it brings back:
make a challenge, judge credentials, start TLS, receive a message, pass it on.  Nothing here does
I/O or waits, so every dialogue can be tested without a socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tofmipd.auth.credentials import MALFORMED, Credentials, Judgement, Verdict
from tofmipd.smtp import dsn, replies, sasl, syntax
from tofmipd.smtp.envelope import Encryption, Envelope, Peer
from tofmipd.smtp.reply import BadCommand, Reply, printable
from tofmipd.smtp.sasl import BadExchange, Exchange, Opening, Start

# RFC 5321 section 4.5.3.1.4, without CRLF.  Parameters of MAIL and RCPT come on top of it.
_PLAIN_COMMAND_LIMIT_OCTETS = 510
COMMAND_LIMIT_OCTETS = 4096
AUTH_LIMIT_OCTETS = 12288
_COUNTED_AS_ERRORS = frozenset({500, 501, 502, 503, 504, 555})
# RFC 4954 section 5, RFC 3461 section 4.
_MAILBOX_PARAMETER = re.compile(r"<>|(?:[!-*,-<>-~]|\+[0-9A-F]{2})+")
_BDAT = re.compile(r"([0-9]{1,18})(?: +(?i:(LAST)))?", re.ASCII)
# So much is read and thrown away of what nobody may send yet.
_DISCARDED_OCTETS = 64 << 10
# A browser that was lured here says these, and then what its page makes it say.
_OTHER_PROTOCOLS = frozenset({"GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "DELETE"})


@dataclass(frozen=True, slots=True)
class MakeChallenge:
    """Ask whoever will check the login for a fresh challenge; bring it to ``challenged``.

    ``opening`` is the client's first message, b"" where the server begins.
    """

    mechanism: str = ""
    opening: bytes = b""


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
class ReceiveChunk:
    """Read so many octets of a message (RFC 3030); bring what is wrong to ``chunk_received``.

    ``keep`` is off when they are of no use: they must be read all the same, for they are no
    commands.  ``last``: the message is complete then.
    """

    size_octets: int
    last: bool
    keep: bool = True


@dataclass(frozen=True, slots=True)
class Submit:
    """Pass the received message on; bring the outcome to ``submitted``."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send ``reply``, forget what else has come, and do the handshake.

    Bring what it has led to to ``secured``; there is no reply to that.
    """

    reply: Reply


Step = Reply | MakeChallenge | Verify | Receive | ReceiveChunk | Submit | StartTls


@dataclass(frozen=True, slots=True)
class Policy:
    """What a session allows.

    ``mechanisms`` are those offered to this peer, in this order; ``withheld`` those that are
    offered only on an encrypted connection.  ``starttls`` is offered, or even ``tls_required``
    before anything else.  ``needs_login`` is off only for the receiver of the demonstration.
    """

    host_name: str
    mechanisms: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    starttls: bool = False
    tls_required: bool = False
    size_limit_octets: int = 50 << 20
    max_recipients: int = 1000
    max_errors: int = 10
    max_auth_failures: int = 3
    needs_login: bool = True


@dataclass(frozen=True, slots=True)
class _Chunk:
    """The BDAT command that is being obeyed, and the octets that came before it."""

    size_octets: int = 0
    before: int = 0
    last: bool = False
    problem: Reply | None = None


_NO_CHUNK = _Chunk()


class Session:
    """The dialogue with one client (RFC 5321 section 4.1, RFC 6409)."""

    def __init__(self, policy: Policy, peer: Peer) -> None:
        self.policy = policy
        self.peer = peer
        self.login = ""
        self._encryption: Encryption | None = None
        self._mechanisms, self._withheld = policy.mechanisms, policy.withheld
        self._helo = ""
        self._extended = False
        self._envelope: Envelope | None = None
        self._chunk = _NO_CHUNK
        self._exchange: Exchange | None = None
        # One whose challenge is being made.
        self._asking: Exchange | None = None
        self._mechanism = ""
        self._user = ""
        # The credentials were right; the client has not yet said that it trusts this end, too.
        self._proved = False
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

    @property
    def chunking(self) -> bool:
        """Whether some chunks of a message have come, and more are to come."""
        return self._chunk is not _NO_CHUNK

    def secured(self, encryption: Encryption) -> None:
        """The connection is encrypted: what was said before it is forgotten (RFC 3207
        section 4.2), but not how much of it was wrong."""
        self._encryption = encryption
        self._end_transaction()
        self._helo, self._extended, self._auth_open = "", False, False
        allowed = {*self.policy.mechanisms, *self.policy.withheld}
        self._mechanisms = tuple(
            name for name in sasl.MECHANISMS if name in allowed and sasl.possible(name, encryption)
        )
        self._withheld = ()

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
        if reply is replies.LINE_TOO_LONG and self._exchange is not None:
            reply = replies.AUTH_TOO_LONG
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
            return self._unknown(verb, given)
        self._auth_open = row.handler is Session._auth
        if len(line) > _PLAIN_COMMAND_LIMIT_OCTETS and not self._may_be_long(row, verb, argument):
            return replies.COMMAND_TOO_LONG
        if self.policy.tls_required and self._encryption is None and not row.before_tls:
            return replies.TLS_REQUIRED
        if not (row.before_auth or self.authenticated):
            return replies.AUTH_REQUIRED
        return row.handler(self, argument)

    def _unknown(self, verb: str, given: str) -> Step:
        if verb in _OTHER_PROTOCOLS:
            return replies.NOT_SMTP
        if not given.isascii():
            return replies.NOT_ASCII
        return replies.unknown_command("" if self._auth_open else printable(given))

    def _may_be_long(self, row: Command, verb: str, argument: str) -> bool:
        if row.handler is Session._auth:
            return True
        path = syntax.length_of_path(argument) if row.has_parameters else len(argument)
        return len(verb) + 1 + path <= _PLAIN_COMMAND_LIMIT_OCTETS

    def _ehlo(self, name: str) -> Step:
        if not name:
            return replies.NEED_HELLO_NAME
        self._greeted(name, extended=True)
        keywords = ["PIPELINING", f"SIZE {self.policy.size_limit_octets}", "8BITMIME"]
        keywords += ["SMTPUTF8", "CHUNKING", "DSN"]
        if self.policy.starttls and self._encryption is None:
            keywords.append("STARTTLS")
        if self._mechanisms and self.policy.needs_login:
            keywords.append("AUTH " + " ".join(self._mechanisms))
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
        self._end_transaction()

    def _end_transaction(self) -> None:
        self._envelope = None
        self._chunk = _NO_CHUNK

    def _starttls(self, argument: str) -> Step:
        """STARTTLS (RFC 3207 section 4)."""
        if argument:
            return replies.NO_STARTTLS_ARGUMENT
        if self._encryption is not None:
            return replies.TLS_TWICE
        if not self.policy.starttls:
            return replies.TLS_NOT_OFFERED
        if self.login:
            return replies.TLS_AFTER_AUTH
        return StartTls(replies.READY_FOR_TLS)

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
        self._end_transaction()
        return replies.OK

    def _mail(self, argument: str) -> Step:
        """MAIL FROM:<reverse-path> (RFC 5321 section 4.1.1.2, RFC 1870, 6152, 6531, 3461)."""
        if self._envelope is not None:
            return replies.NESTED_MAIL
        sender, parameters = syntax.parse_sender(argument)
        envelope = Envelope(sender, self.login, self._helo, peer=self.peer)
        for name, value in parameters.items():
            self._mail_parameter(envelope, name, value)
        if not (sender.isascii() or envelope.smtputf8):
            return replies.SENDER_NEEDS_SMTPUTF8
        envelope.protocol = self._protocol(envelope.smtputf8)
        envelope.encryption = str(self._encryption or "")
        self._envelope = envelope
        return replies.SENDER_OK

    def _protocol(self, smtputf8: bool) -> str:
        """RFC 3848, RFC 6531 section 3.7.3; who logs in speaks the extended protocol, whatever
        the greeting was."""
        if not (self._extended or self.login):
            return "SMTP"
        secure, known = "S" if self._encryption else "", "A" if self.login else ""
        return ("UTF8SMTP" if smtputf8 else "ESMTP") + secure + known

    def _mail_parameter(self, envelope: Envelope, name: str, value: str | None) -> None:
        match name:
            case "SIZE":
                if value is None or not _is_number(value):
                    raise BadCommand(replies.BAD_SIZE)
                envelope.size_octets = int(value)
                if envelope.size_octets > self.policy.size_limit_octets:
                    raise BadCommand(replies.MESSAGE_TOO_BIG)
            case "BODY":
                if (value or "").upper() not in ("7BIT", "8BITMIME"):
                    raise BadCommand(replies.BAD_BODY)
                envelope.eight_bit = (value or "").upper() == "8BITMIME"
            case "SMTPUTF8":
                if value is not None:
                    raise BadCommand(replies.BAD_SMTPUTF8)
                envelope.smtputf8 = True
            case "RET":
                envelope.ret = (value or "").upper()
                if envelope.ret not in ("FULL", "HDRS"):
                    raise BadCommand(replies.BAD_RET)
            case "ENVID":
                envelope.envid = dsn.in_capitals(value or "")
                if not dsn.is_envid(envelope.envid):
                    raise BadCommand(replies.BAD_ENVID)
            case "AUTH":  # RFC 4954 section 5: taken as AUTH=<>, for nobody here is trusted
                if not _MAILBOX_PARAMETER.fullmatch(value or ""):
                    raise BadCommand(replies.BAD_AUTH)
            case _:
                raise BadCommand(replies.unknown_parameter(name))

    def _rcpt(self, argument: str) -> Step:
        """RCPT TO:<forward-path> (RFC 5321 section 4.1.1.3, RFC 3461)."""
        envelope = self._envelope
        if envelope is None:
            return replies.NEED_MAIL
        if self.chunking:
            return replies.BDAT_GOES_ON
        recipient, parameters = syntax.parse_recipient(argument)
        if not (recipient.isascii() or envelope.smtputf8):
            return replies.NEED_SMTPUTF8
        notice = _notice(parameters)
        if not (notice.isascii() or envelope.smtputf8):
            return replies.BAD_ORCPT
        if len(envelope.recipients) >= self.policy.max_recipients:
            return replies.TOO_MANY_RECIPIENTS
        envelope.recipients.append(recipient)
        if notice:
            envelope.notices[recipient] = notice
        return replies.RECIPIENT_OK

    def _data(self, argument: str) -> Step:
        if self._envelope is None:
            return replies.NEED_MAIL
        if not self._envelope.recipients:
            return replies.NEED_RCPT
        if argument:
            return replies.NO_DATA_ARGUMENT
        if self.chunking:
            return replies.BDAT_GOES_ON
        return Receive(replies.START_DATA)

    @property
    def envelope(self) -> Envelope | None:
        """That of the transaction under way."""
        return self._envelope

    def received(self, problem: Reply | None) -> Step:
        """The message is in; ``problem`` says why it cannot be used."""
        envelope, self._envelope = self._envelope, None
        if problem is not None or envelope is None:
            return problem or replies.INTERNAL_ERROR
        return Submit(envelope)

    def _bdat(self, argument: str) -> Step:
        """BDAT octets [LAST] (RFC 3030 section 2): the octets follow whatever the reply will be."""
        match = _BDAT.fullmatch(argument)
        if match is None:
            return replies.BAD_BDAT
        size, last, before = int(match[1]), bool(match[2]), self._chunk.before
        problem, limit = self._no_chunk(), self.policy.size_limit_octets
        if not self.authenticated:
            if size > _DISCARDED_OCTETS:
                return replies.AUTH_REQUIRED_BEFORE_BDAT
        elif size > 2 * limit:
            # Whatever else is wrong: nobody waits for the end of these octets.
            return replies.MUCH_TOO_BIG
        elif problem is None and before + size > limit:
            problem = replies.MESSAGE_TOO_BIG
        self._chunk = _Chunk(size, before + size, last, problem)
        return ReceiveChunk(size, last, problem is None)

    def _no_chunk(self) -> Reply | None:
        """Why no chunk can be taken now, if so."""
        if self.policy.tls_required and self._encryption is None:
            return replies.TLS_REQUIRED
        if not self.authenticated:
            return replies.AUTH_REQUIRED
        if self._envelope is None:
            return replies.NEED_MAIL
        return None if self._envelope.recipients else replies.NEED_RCPT

    def chunk_received(self, problem: Reply | None) -> Step:
        """The chunk is in; after one that cannot be used the whole message is given up."""
        chunk, envelope = self._chunk, self._envelope
        problem = chunk.problem or problem
        if problem is not None or envelope is None:
            self._end_transaction()
            return self._counted(problem or replies.INTERNAL_ERROR)
        if not chunk.last:
            return replies.chunk_taken(chunk.size_octets)
        self._end_transaction()
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
        if name in self._withheld:
            return replies.AUTH_NEEDS_TLS
        if name not in self._mechanisms:
            return replies.AUTH_UNKNOWN
        mechanism = sasl.MECHANISMS[name]
        if len(words) > 2:
            return replies.AUTH_SYNTAX
        if mechanism.server_first and len(words) > 1:
            return replies.AUTH_SERVER_FIRST
        self._mechanism, self._proved = name, False
        exchange = mechanism.begin(Start(self._encryption, self._mechanisms))
        prompt = self._prompt(exchange, next(exchange))
        return self._response(words[1]) if len(words) > 1 else prompt

    def challenged(self, challenge: bytes) -> Step:
        """The challenge that was asked for, b"" if there can be none now."""
        exchange, self._asking = self._asking, None
        if exchange is None or not challenge:
            return replies.AUTH_TEMPORARY
        return self._prompt(exchange, exchange.send(challenge))

    def _prompt(self, exchange: Exchange, said: bytes | Opening) -> Step:
        """The exchange goes on: with the client, or first with whoever makes challenges."""
        if isinstance(said, Opening):
            self._asking = exchange
            return MakeChallenge(self._mechanism, said.message)
        self._exchange = exchange
        return replies.prompt(sasl.encode(said))

    def _response(self, text: str) -> Step:
        """The client's response in an AUTH exchange."""
        exchange, self._exchange = self._exchange, None
        if exchange is None or text == "*":
            return replies.AUTH_CANCELLED
        try:
            # curl says "=" for nothing here, too, where RFC 4954 wants an empty line.
            return self._prompt(exchange, exchange.send(sasl.decode("" if text == "=" else text)))
        except ValueError:
            return replies.AUTH_MALFORMED
        except BadExchange:
            if self._proved:
                return replies.AUTH_MALFORMED
            # Nobody can log in with these; asking makes it a failed login like any other.
            return self._verify(MALFORMED)
        except StopIteration as end:
            return self._logged_in() if end.value is None else self._verify(end.value)

    def _verify(self, credentials: Credentials) -> Step:
        self._user, self._proved = credentials.user, False
        return Verify(credentials, self._mechanism)

    def judged(self, judgement: Judgement) -> Step:
        """What was found of the credentials that were handed out last."""
        verdict = judgement.verdict
        if verdict is Verdict.ACCEPTED:
            if not judgement.answer:
                return self._logged_in()
            self._proved = True
            exchange = sasl.confirmation(judgement.answer)
            return self._prompt(exchange, next(exchange))
        if judgement.wait > 0:
            return replies.must_wait(judgement.wait)
        if verdict is Verdict.UNAVAILABLE:
            return replies.AUTH_TEMPORARY
        self._auth_failures += 1
        if self._auth_failures >= self.policy.max_auth_failures:
            return replies.TOO_MANY_FAILURES
        return replies.AUTH_REJECTED

    def _logged_in(self) -> Step:
        self.login = self._user
        self._auth_open = False
        return replies.AUTH_ACCEPTED


def _words(line: str) -> tuple[str, str, str]:
    """The verb in upper case if it is ASCII, the verb as given, and the argument."""
    given, _, argument = line.replace("\t", " ").partition(" ")
    return given.upper() if given.isascii() else given, given, argument.strip(" ")


def _is_number(text: str) -> bool:
    """RFC 1870 section 4: up to twenty digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _notice(parameters: syntax.Parameters) -> str:
    """NOTIFY and ORCPT of a recipient, checked, "" for none.  Raises BadCommand."""
    notify = orcpt = ""
    for name, value in parameters.items():
        match name:
            case "NOTIFY":
                try:
                    notify = f"NOTIFY={dsn.notify(value or '')}"
                except ValueError:
                    raise BadCommand(replies.BAD_NOTIFY) from None
            case "ORCPT":
                original = dsn.in_capitals(value or "")
                if not dsn.is_orcpt(original):
                    raise BadCommand(replies.BAD_ORCPT)
                orcpt = f"ORCPT={original}"
            case _:
                raise BadCommand(replies.unknown_parameter(name))
    return " ".join(filter(None, (notify, orcpt)))


@dataclass(frozen=True, slots=True)
class Command:
    """What obeys a verb, and whether it may come before the login, and before TLS where that is
    required.  ``has_parameters``: behind a path, as those of MAIL."""

    handler: Callable[[Session, str], Step]
    before_auth: bool = False
    before_tls: bool = False
    has_parameters: bool = False


_COMMANDS = {
    "EHLO": Command(Session._ehlo, before_auth=True, before_tls=True),
    "HELO": Command(Session._hello, before_auth=True, before_tls=True),
    "STARTTLS": Command(Session._starttls, before_auth=True, before_tls=True),
    "AUTH": Command(Session._auth, before_auth=True),
    "MAIL": Command(Session._mail, has_parameters=True),
    "RCPT": Command(Session._rcpt, has_parameters=True),
    "DATA": Command(Session._data),
    # Its octets must be read in any case: it looks for itself whether it may come.
    "BDAT": Command(Session._bdat, before_auth=True, before_tls=True),
    "RSET": Command(Session._rset, before_auth=True),
    "NOOP": Command(Session._noop, before_auth=True, before_tls=True),
    "VRFY": Command(Session._vrfy, before_auth=True),
    "HELP": Command(Session._help, before_auth=True),
    "QUIT": Command(Session._quit, before_auth=True, before_tls=True),
}
