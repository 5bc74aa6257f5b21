"""The user's own side of a message: configuration, tags, hand-off.

This runs with the uid of the user: in personal mode in the session's thread.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from tofmipd import __version__
from tofmipd.content import Content, unstuffed
from tofmipd.dates import rfc5322_date
from tofmipd.handoff.connection import MESSAGES_PER_CONNECTION, NextHop
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.sendmail import PROGRAMS, SendmailTransport
from tofmipd.handoff.smtp import Pool, SmtpTransport
from tofmipd.programs import PATH
from tofmipd.settings import NextHopLimits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope
from tofmipd.smtp.reply import Reply, printable
from tofmipd.tmda import header
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import MissingConfig, UserFileError
from tofmipd.tmda.header import Field
from tofmipd.tmda.inject import Report, Stamp, Tagged, tag_message
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles
from tofmipd.tmda.values import split_smtphost

log = logging.getLogger(__name__)

HEADER_LIMIT_OCTETS = 1 << 20
# RFC 5321 section 6.3 wants at least 100.
HOP_LIMIT = 100
_AGENT = f"tofmipd/{__version__}".encode()
_NO_CONFIG = Reply(554, "3.5", ("You have no TMDA configuration here: run 'tofmipd init' first",))

# What a next hop's reply begins with and ours has already.
_OWN_WORDS = re.compile(r"\A[0-9]{3}(?: [0-9]\.[0-9]+\.[0-9]+)?(?: *ok(?:\b:?))? *", re.IGNORECASE)

# A client may call itself anything; in Received it cannot write more than a name.
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]")

# Told of every copy that the next hop has taken: sender, reports, the next hop's words.
Observer = Callable[[str, tuple[Report, ...], str], None]


def _note(line: str) -> None:
    log.info("%s", line)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files are used.  ``home`` is where ``~`` leads."""

    login: str
    home: str


@dataclass(frozen=True, slots=True)
class House:
    """What is the same for all users of a process.

    ``pass_through`` is a sendmail program for users without a configuration, "" for none.
    ``note`` puts one line on the log, at INFO: that of every recipient of every message.
    """

    host_name: str
    received: str
    limits: NextHopLimits
    pool: Pool
    observer: Observer | None = None
    pass_through: str = ""
    note: Callable[[str], None] = _note


class Outbound:
    """Takes messages of one user and hands them over, tagged.  Safe for threads."""

    def __init__(self, owner: Owner, files: UserFiles, house: House) -> None:
        self._owner = owner
        self._files = files
        self._house = house
        self._numbers = itertools.count(secrets.randbits(20))
        self._warned: tuple[str, ...] = ()
        self._chosen: tuple[Config, str, Transport] | None = None

    def submit(self, envelope: Envelope, content: Content, session_id: str) -> Reply:
        """Tag and hand over; the reply is for the client.  Raises nothing that is not a bug."""
        try:
            try:
                profile = self._files.profile()
            except MissingConfig:
                if not self._house.pass_through:
                    raise
                return self._pass_through(envelope, content, session_id)
            self._warn_of_unused(profile.config)
            fields, body_start = parsed_header(content)
            if body_start > HEADER_LIMIT_OCTETS:
                return replies.HEADER_TOO_BIG
            if sum(field.name == b"received" for field in fields) > HOP_LIMIT:
                return replies.TOO_MANY_HOPS
            recipients = [recipient.encode() for recipient in envelope.recipients]
            tagged = tag_message(profile, fields, recipients, self._stamp(profile, envelope))
            return self._hand_over(tagged, content, body_start, envelope, profile, session_id)
        except MissingConfig as error:
            log.error("s=%s refused: %s", session_id, error)
            return _NO_CONFIG
        except UserFileError as error:
            log.error("s=%s deferred: %s", session_id, error)
            brief = error.brief(os.path.join(self._owner.home, ".tmda"))
            return Reply(451, "3.5", (printable(f"Error in your TMDA files: {brief}", 180),))

    def _warn_of_unused(self, config: Config) -> None:
        if config.unused != self._warned:
            self._warned = config.unused
            for name in config.unused:
                log.warning("%s: %s is not built yet and has no effect", config.origin, name)

    def _stamp(self, profile: Profile, envelope: Envelope) -> Stamp:
        now = time.time()
        date = rfc5322_date(now)
        style = profile.config.received or self._house.received
        unique = f"{os.getpid()}.{next(self._numbers):x}"
        return Stamp(
            now=now,
            date=date.encode(),
            received=received_value(style, envelope, self._house.host_name, date),
            message_id=f"<{int(now)}.{unique}.TMDA@{self._house.host_name}>".encode(),
            agent=_AGENT,
        )

    def _hand_over(
        self,
        tagged: list[Tagged],
        content: Content,
        body_start: int,
        envelope: Envelope,
        profile: Profile,
        session_id: str,
    ) -> Reply:
        transport = self._transport(profile.config, envelope.peer.local_address)
        copies = [
            Copy(t.sender, t.recipients, t.header, content, body_start, envelope.eight_bit)
            for t in tagged
        ]
        sent, said = 0, ""
        try:
            if len(copies) > 1:
                transport.offer(copies)
            for copy in copies:
                said = transport.send(copy)
                self._tell(tagged[sent], transport, said, session_id)
                sent += 1
        except HandOffFailed as error:
            log.warning("s=%s hand-off to %s failed: %s", session_id, transport, error)
            return self._failed(error.reply, copies, sent, session_id)
        return Reply(250, "0.0", (f"Ok: {printable(_OWN_WORDS.sub('', said)) or 'sent'}",))

    def _failed(self, reply: Reply, copies: list[Copy], sent: int, session_id: str) -> Reply:
        """What the client hears; once a copy has been taken, that too."""
        if not sent:
            return reply
        done = sum(len(copy.recipients) for copy in copies[:sent])
        total = sum(len(copy.recipients) for copy in copies)
        log.error("s=%s only %d of %d recipients have this message", session_id, done, total)
        text = f"taken for {done} of {total} recipients, then: {reply.lines[0]}"
        return Reply(451, "3.0", (printable(text),))

    def _tell(self, tagged: Tagged, transport: Transport, said: str, session_id: str) -> None:
        sender = tagged.sender.decode("utf-8", "replace")
        for report in tagged.reports:
            recipient = report.recipient.decode("utf-8", "replace")
            after = report.sender_after.decode("utf-8", "replace")
            self._house.note(
                f"s={session_id} sent to={recipient!r} rule={report.rule!r} sender={sender!r}"
                f" from={after!r} by={transport} reply={said!r}"
            )
        if self._house.observer is not None:
            self._house.observer(sender, tagged.reports, said)

    def _pass_through(self, envelope: Envelope, content: Content, session_id: str) -> Reply:
        """Hand the message over as it came (feature row TO-80)."""
        transport = SendmailTransport(
            self._house.pass_through,
            null_sender="<>",
            environment=self._environment(envelope.peer.local_address),
            sender_first=True,
            timeout=self._house.limits.dot_timeout,
        )
        recipients = tuple(recipient.encode() for recipient in envelope.recipients)
        copy = Copy(envelope.sender.encode(), recipients, b"", content)
        try:
            said = transport.send(copy)
        except HandOffFailed as error:
            log.warning("s=%s hand-off to %s failed: %s", session_id, transport, error)
            return error.reply
        log.info(
            "s=%s passed through to=%r sender=%r by=%s",
            session_id,
            envelope.recipients,
            envelope.sender,
            transport,
        )
        return Reply(250, "0.0", (f"Ok: {printable(said)}",))

    def _transport(self, config: Config, local_address: str) -> Transport:
        """The one that the configuration asks for; made anew when the configuration is."""
        chosen = self._chosen
        if chosen is None or chosen[0] is not config or chosen[1] != local_address:
            if config.mail_transport == "smtp":
                transport: Transport = self._smtp(config)
            else:
                transport = self._sendmail(config, local_address)
            chosen = self._chosen = (config, local_address, transport)
        return chosen[2]

    def _smtp(self, config: Config) -> Transport:
        host, port = split_smtphost(config.smtphost)
        limits = self._house.limits
        hop = NextHop(
            host,
            port,
            config.smtpauth_username,
            config.smtpauth_password,
            config.smtpssl,
            config.smtpssl_cafile,
            config.smtpssl_certfile,
            config.smtpssl_keyfile,
            self._house.host_name,
            limits.connect_timeout,
            limits.reply_timeout,
            limits.dot_timeout,
            config.smtp_max_sessions_per_connection or MESSAGES_PER_CONNECTION,
        )
        return SmtpTransport(hop, self._house.pool)

    def _sendmail(self, config: Config, local_address: str) -> Transport:
        program = config.sendmail_program
        if not program:
            program = next((path for path in PROGRAMS if os.path.exists(path)), PROGRAMS[0])
        return SendmailTransport(
            program,
            null_sender="" if config.mail_transfer_agent in ("postfix", "qmail") else "<>",
            environment=self._environment(local_address),
            timeout=self._house.limits.dot_timeout,
        )

    def _environment(self, local_address: str) -> dict[str, str]:
        """Of programs that run for this user (feature row TO-87)."""
        login = self._owner.login
        variables = {
            "PATH": PATH,
            "HOME": self._owner.home,
            "LOGIN": login,
            "LOGNAME": login,
            "USER": login,
        }
        return variables | ({"TCPLOCALIP": local_address} if local_address else {})


def parsed_header(content: Content) -> tuple[list[Field], int]:
    """The fields of a message, their dots no longer stuffed, and where its body begins.

    The place is one in wire form, found by counting lines: a client need not have stuffed the
    dots that were taken away.  It is beyond HEADER_LIMIT_OCTETS if the header does not end there.
    """
    wire = content.head(HEADER_LIMIT_OCTETS + 1)
    end = 0 if wire.startswith(b"\r\n") else wire.find(b"\r\n\r\n") + 2
    if end >= 2:
        wire = wire[: end + 2]
    text = unstuffed(wire)
    fields, start = header.parse(text)
    if content.size_octets > len(wire) > HEADER_LIMIT_OCTETS and b"\r\n" not in text[start:]:
        return fields, HEADER_LIMIT_OCTETS + 1
    if len(text) == len(wire):
        return fields, start
    body_start = 0
    for _ in range(text.count(b"\r\n", 0, start)):
        body_start = wire.index(b"\r\n", body_start) + 2
    return fields, body_start


def received_value(style: str, envelope: Envelope, host_name: str, date: str) -> bytes | None:
    """The trace field (RFC 5321 section 4.4), in the manner of the original.

    "private" tells neither address nor name of the client, "none" leaves the field out.
    """
    if style == "none":
        return None
    client = "from [127.0.0.1]"
    if style != "private":
        client = f"from {_NOT_IN_A_NAME.sub('?', envelope.helo) or 'unknown'} ({envelope.peer})"
    return f"{client} by {host_name} (tofmipd) with {envelope.protocol}; {date}".encode()
