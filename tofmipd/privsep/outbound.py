"""The user's own side of a message: configuration, tags, hand-off.

This runs with the uid of the user: in personal mode in the session's thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tofmipd.content import Content, as_local_text, shown_id
from tofmipd.handoff.attempt import Note
from tofmipd.handoff.copy import NO_PARAMETERS, Copy, HandOffFailed, Parameters, Transport
from tofmipd.handoff.handover import HandedOver, KeptCopy, TakenCopy, hand_over, keep
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.sendmail import SendmailTransport, sendmail_program
from tofmipd.handoff.smtp import Pool, SmtpTransport
from tofmipd.handoff.stored import Origin
from tofmipd.handoff.xclient import Submitter
from tofmipd.privsep.errands import Errands, variables_of
from tofmipd.privsep.nexthops import configured_hops, names_next_hop
from tofmipd.privsep.submission import (
    HEADER_LIMIT_OCTETS,
    SessionStamps,
    Stamps,
    author_fields,
    parsed_header,
)
from tofmipd.settings import NextHopLimits
from tofmipd.smtp import replies
from tofmipd.smtp.envelope import Envelope
from tofmipd.smtp.reply import Reply, printable
from tofmipd.tmda import header, outlog
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import MessageError, MissingConfig, UserFileError
from tofmipd.tmda.header import Field
from tofmipd.tmda.inject import Message, Outside, Report, Stamp, Tagged, tag_message
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles

if TYPE_CHECKING:
    from tofmipd.privsep.senders import SenderRules

log = logging.getLogger(__name__)

# RFC 5321 section 6.3 wants at least 100.
HOP_LIMIT = 100
_CONFIG_GONE = Reply(451, "3.5", ("the TMDA files of its sender cannot be used",))
_NO_CONFIG = Reply(554, "3.5", ("You have no TMDA configuration here: run 'tofmipd init' first",))

# Told of every copy that the next hop has taken: sender, reports, the next hop's words.
Observer = Callable[[str, tuple[Report, ...], str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files are used.  ``home`` is where ``~`` leads; ``variables`` are for his sendmail
    program only."""

    login: str
    home: str
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class House:
    """What is the same for all users of a process.

    ``pass_through`` is a sendmail program for users without a configuration, "" for none.
    ``retries`` looks after the outbox, None for none; with ``spool`` all messages go there first.
    ``note`` puts the line of a recipient on the log.
    ``script_timeout`` is in seconds, for a command of a filter.  ``senders`` says whose addresses
    a login may use, None for everybody's.  With ``xclient`` next hops that ask for it are told of
    the client.  ``relay`` has the next hops for configurations that
    name none, in order of preference; none stands for the sendmail program.
    """

    host_name: str
    received: str
    limits: NextHopLimits
    pool: Pool
    observer: Observer | None = None
    pass_through: str = ""
    note: Note = log.info
    script_timeout: float = 30
    pass_eight_bit: bool = False
    senders: SenderRules | None = None
    retries: Retries | None = None
    spool: bool = False
    xclient: bool = False
    relay: tuple[NextHop, ...] = ()


class _Job(NamedTuple):
    """One message on its way through; its body begins at ``body_start`` of the content.

    ``begun`` is when this began, of time.monotonic().
    """

    envelope: Envelope
    content: Content
    session_id: str
    fields: list[Field]
    body_start: int
    begun: float

    def spent_ms(self) -> int:
        """Since its last octet has come in."""
        begun = self.envelope.complete_at or self.begun
        return max(int((time.monotonic() - begun) * 1000), 0)

    def message_id(self) -> str:
        """As it came in, "" for none."""
        value = header.first(self.fields, b"message-id")
        return shown_id(value) if value is not None else self.content.message_id()

    def body(self) -> Iterator[bytes]:
        """As programs on this machine have it."""
        return as_local_text(self.content.blocks(self.body_start))


class Outbound:
    """Takes messages of one user and hands them over, tagged.  Safe for threads."""

    def __init__(
        self, owner: Owner, files: UserFiles, house: House, stamps: Stamps | None = None
    ) -> None:
        self._owner = owner
        self._files = files
        self._house = house
        self._stamps = stamps or SessionStamps(house.host_name, house.received)
        self._errands = Errands(files.files, owner.home, house.script_timeout)
        self._chosen: tuple[Config, str, Transport] | None = None

    def submit(self, envelope: Envelope, content: Content, session_id: str) -> Reply:
        """Tag and hand over; the reply is for the client.  Raises nothing that is not a bug."""
        try:
            return self.deliver(envelope, content, session_id)
        except MissingConfig as error:
            log.error("s=%s refused: %s", session_id, error)
            return _NO_CONFIG
        except UserFileError as error:
            log.error("s=%s deferred: %s", session_id, error)
            brief = error.brief(os.path.join(self._owner.home, ".tmda"))
            return Reply(451, "3.5", (printable(f"Error in your TMDA files: {brief}", 180),))
        except MessageError as error:
            log.warning("s=%s refused: %s", session_id, printable(str(error)))
            return Reply(554, "6.0", (printable(f"Error in your message: {error}", 180),))

    def deliver(self, envelope: Envelope, content: Content, session_id: str) -> Reply:
        """Tag and hand over.  Raises UserFileError, MessageError; then nothing has been sent."""
        try:
            profile = self._files.profile()
        except MissingConfig:
            if not self._house.pass_through:
                raise
            fields, whole = author_fields(content)
            refusal = self._sender_refusal(envelope.sender, fields, "-", session_id)
            if refusal is None and self._house.senders is not None and not whole:
                refusal = replies.HEADER_TOO_BIG
            job = _Job(envelope, content, session_id, fields, 0, time.monotonic())
            return refusal or self._pass_through(job)
        fields, body_start = parsed_header(content)
        delimiter = profile.config.recipient_delimiter
        refusal = self._sender_refusal(envelope.sender, fields, delimiter, session_id)
        if refusal is not None:
            return refusal
        if body_start > HEADER_LIMIT_OCTETS:
            return replies.HEADER_TOO_BIG
        if sum(one.name == b"received" for one in fields) > HOP_LIMIT:
            return replies.TOO_MANY_HOPS
        job = _Job(envelope, content, session_id, fields, body_start, time.monotonic())
        return self._tag_and_hand_over(job, profile)

    def _sender_refusal(
        self, sender: str, fields: list[Field], delimiter: str, session_id: str
    ) -> Reply | None:
        rules = self._house.senders
        if rules is None:
            return None
        return rules.refusal(self._owner.login, sender, fields, delimiter, session_id)

    def _tag_and_hand_over(self, job: _Job, profile: Profile) -> Reply:
        """Raises UserFileError, MessageError."""
        stamp = self._stamps.stamp(profile.config, job.envelope, job.session_id)
        try:
            tagged = self._tag(job, profile, stamp)
        except UserFileError:
            database = profile.library.database
            if database is None or not database.broken:
                raise
            # The connection may have been old: the configuration opens another, once.
            again = self._files.profile()
            if again is profile:
                raise
            profile = again
            tagged = self._tag(job, profile, stamp)
        # A filter, X-TMDA or the configuration may have put another address there.
        delimiter = profile.config.recipient_delimiter
        for one in tagged:
            sender = one.sender.decode("utf-8", "replace")
            refusal = self._sender_refusal(sender, one.fields, delimiter, job.session_id)
            if refusal is not None:
                return refusal
        self._errands.append_recipients(tagged, profile)
        return self._hand_over(tagged, job, profile, stamp)

    def _tag(self, job: _Job, profile: Profile, stamp: Stamp) -> list[Tagged]:
        recipients = [recipient.encode() for recipient in job.envelope.recipients]
        message = Message(job.fields, recipients, job.body)
        shell = self._errands.shell(lambda: self._environment(job.envelope.peer.local_address))
        return tag_message(profile, message, stamp, Outside(profile.library.reading(), shell))

    def _hand_over(self, tagged: list[Tagged], job: _Job, profile: Profile, stamp: Stamp) -> Reply:
        config = profile.config
        parameters = parameters_of(job.envelope)
        submitter = submitter_of(job.envelope) if self._house.xclient else None
        copies = [
            Copy(
                t.sender,
                t.recipients,
                t.header,
                job.content,
                job.body_start,
                parameters,
                submitter,
            )
            for t in tagged
        ]
        transport = self._transport(config, job.envelope.peer.local_address)
        reply, count = self._handed_over(
            copies,
            transport,
            job,
            stamp.now,
            lambda number, said: self._tell(tagged[number], transport, said, job),
            lambda number, queue: self._tell_kept(tagged[number], queue, job),
        )
        if count and config.logfile_outgoing:
            size = outlog.submitted_size(job.fields, sum(len(piece) for piece in job.body()))
            recipients = [recipient.encode() for recipient in job.envelope.recipients]
            self._errands.write_log(tagged[:count], recipients, config, stamp.date, size)
        return reply

    def _handed_over(
        self,
        copies: list[Copy],
        transport: Transport,
        job: _Job,
        arrived: float,
        taken: TakenCopy,
        kept: KeptCopy,
    ) -> HandedOver:
        origin = Origin(self._owner.login, job.session_id, arrived, job.envelope.peer.local_address)
        retries = self._house.retries
        if retries is not None and self._house.spool:
            return keep(copies, origin, retries, kept)
        return hand_over(copies, transport, origin, retries, taken, kept)

    def _tell(self, tagged: Tagged, transport: Transport, said: str, job: _Job) -> None:
        spent_ms = job.spent_ms()
        for values in _told(tagged, job):
            self._house.note(
                "s=%s sent to=%r rule=%r action=%r sender=%r from=%r id=%r new-id=%r by=%s"
                " reply=%r ms=%d",
                *values,
                str(transport),
                said,
                spent_ms,
            )
        if self._house.observer is not None:
            sender = tagged.sender.decode("utf-8", "replace")
            self._house.observer(sender, tagged.reports, said)

    def _tell_kept(self, tagged: Tagged, queue: str, job: _Job) -> None:
        spent_ms = job.spent_ms()
        for values in _told(tagged, job):
            self._house.note(
                "s=%s kept to=%r rule=%r action=%r sender=%r from=%r id=%r new-id=%r queue=%s"
                " ms=%d",
                *values,
                queue,
                spent_ms,
            )

    def _pass_through(self, job: _Job) -> Reply:
        """Hand the message over as it came (feature row TO-80)."""
        envelope, content = job.envelope, job.content
        transport = self._plain_sendmail(envelope.peer.local_address)
        recipients = tuple(recipient.encode() for recipient in envelope.recipients)
        parameters = parameters_of(envelope)
        sender = envelope.sender.encode()
        copy = Copy(sender, recipients, b"", content, parameters=parameters)
        reports = tuple(Report(one, "", sender, sender) for one in recipients)
        whole = Tagged(sender, recipients, job.fields, reports)

        def taken(number: int, said: str) -> None:
            id_, spent_ms = job.message_id(), job.spent_ms()
            for recipient in envelope.recipients:
                self._house.note(
                    "s=%s passed through to=%r sender=%r id=%r by=%s reply=%r ms=%d",
                    job.session_id,
                    recipient,
                    envelope.sender,
                    id_,
                    str(transport),
                    said,
                    spent_ms,
                )

        def kept(number: int, queue: str) -> None:
            self._tell_kept(whole, queue, job)

        return self._handed_over([copy], transport, job, time.time(), taken, kept).reply

    def transport(self, local_address: str) -> Transport:
        """What hands this user's messages over now.  Raises HandOffFailed; it is worth another
        try later, when his files are right."""
        try:
            profile = self._files.profile()
        except MissingConfig as error:
            if self._house.pass_through:
                return self._plain_sendmail(local_address)
            raise HandOffFailed(_CONFIG_GONE, str(error)) from error
        except UserFileError as error:
            raise HandOffFailed(_CONFIG_GONE, str(error)) from error
        return self._transport(profile.config, local_address)

    def _plain_sendmail(self, local_address: str) -> SendmailTransport:
        """For users without a configuration."""
        return SendmailTransport(
            self._house.pass_through,
            null_sender="<>",
            environment=self._environment(local_address),
            sender_first=True,
            timeout=self._house.limits.dot_timeout,
        )

    def _transport(self, config: Config, local_address: str) -> Transport:
        """The one that the configuration asks for; made anew when the configuration is."""
        chosen = self._chosen
        if chosen is None or chosen[0] is not config or chosen[1] != local_address:
            if self._house.relay and not names_next_hop(config):
                transport: Transport = SmtpTransport(self._house.relay, self._house.pool)
            elif config.mail_transport == "smtp":
                transport = self._smtp(config)
            else:
                transport = self._sendmail(config, local_address)
            chosen = self._chosen = (config, local_address, transport)
        return chosen[2]

    def _smtp(self, config: Config) -> Transport:
        house = self._house
        hops = configured_hops(
            config, house.limits, house.host_name, pass_eight_bit=house.pass_eight_bit
        )
        return SmtpTransport(hops, house.pool)

    def _sendmail(self, config: Config, local_address: str) -> Transport:
        return SendmailTransport(
            sendmail_program(config.sendmail_program),
            null_sender="" if config.mail_transfer_agent in ("postfix", "qmail") else "<>",
            environment={**self._environment(local_address), **self._owner.variables},
            timeout=self._house.limits.dot_timeout,
            knows_dsn=config.mail_transfer_agent == "postfix",
        )

    def _environment(self, local_address: str) -> dict[str, str]:
        """Of programs that run for this user (feature row TO-87)."""
        variables = variables_of(self._owner.login, self._owner.home)
        return variables | ({"TCPLOCALIP": local_address} if local_address else {})


def submitter_of(envelope: Envelope) -> Submitter | None:
    """Of whom the next hop is told; None where nothing is known."""
    peer = envelope.peer
    if not peer.address:
        return None
    return Submitter(peer.address, peer.port, envelope.login, envelope.helo, envelope.protocol)


def _told(tagged: Tagged, job: _Job) -> Iterator[tuple[str, ...]]:
    """What the log says of each recipient of a copy: session, recipient, rule, action, envelope
    sender, address in From, Message-ID as it came, and the new one if it has another now."""
    sender = tagged.sender.decode("utf-8", "replace")
    before = after = job.message_id()
    if tagged.fields is not job.fields:
        after = shown_id(header.first(tagged.fields, b"message-id") or b"")
    after = "" if after == before else after
    for one in tagged.reports:
        recipient = one.recipient.decode("utf-8", "replace")
        own = one.sender_after.decode("utf-8", "replace")
        yield job.session_id, recipient, one.rule, one.action, sender, own, before, after


def parameters_of(envelope: Envelope) -> Parameters:
    """What the next hop is to be asked for."""
    asked = envelope.eight_bit or envelope.smtputf8 or envelope.ret or envelope.envid
    if not (asked or envelope.notices):
        return NO_PARAMETERS
    return Parameters(
        envelope.eight_bit,
        envelope.smtputf8,
        envelope.ret,
        envelope.envid,
        {address.encode(): notice.encode() for address, notice in envelope.notices.items()},
    )
