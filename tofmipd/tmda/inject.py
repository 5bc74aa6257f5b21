"""One submitted message becomes tagged copies (TMDA reference, section 5).

Pure: octets, settings and the time come in, header blocks and envelope senders go out.  Every
copy is made from the submitted header, never from another copy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tofmipd.tmda import fingerprint, followup, header
from tofmipd.tmda.actions import (
    DEFAULT,
    VERBATIM,
    Action,
    Context,
    Shell,
    make_address,
    no_shell,
)
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import ConfigError, FilterError, MessageError, SettingError, TagError
from tofmipd.tmda.filter import ADDRESS_HEADERS, Actions
from tofmipd.tmda.fingerprint import Body, Fingerprints
from tofmipd.tmda.header import Field
from tofmipd.tmda.mailbox import Mailbox, first_mailbox, format_mailbox, mailboxes
from tofmipd.tmda.override import Override, take_override
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.sources import Lists

_NULL_SENDER = b"<>"
_ALWAYS_PURGED = frozenset({b"bcc", b"resent-bcc"})
# What can stand between angle brackets in MAIL FROM; a tag may follow a quoted string.
SENDER = re.compile(
    rb"[^\x00-\x20\x7f<>\"]+|"
    rb"\"(?:[^\x00-\x1f\x7f\"\\]|\\[ -~])*\"[^\x00-\x20\x7f<>\"]*@[^\x00-\x20\x7f<>\"]+"
)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a message is stamped with when it comes in.

    ``date`` is the text of a Date field for ``now``; ``received`` is the value of the trace
    field or None for none; ``message_id``, with its brackets, serves messages without one.
    """

    now: float
    date: bytes
    received: bytes | None
    message_id: bytes
    agent: bytes


class Message(NamedTuple):
    """What has been submitted.  ``body`` gives it as programs on this machine have it."""

    fields: list[Field]
    recipients: Sequence[bytes]
    body: Body = lambda: ()


class Outside(NamedTuple):
    """What rules may ask for beside the user's files: lists, and commands."""

    lists: Lists
    shell: Shell = no_shell


class Report(NamedTuple):
    """What was done for one recipient.

    ``rule`` is the text of the rule that decided; ``appends``: the recipient is to be put on the
    lists of BARE_APPEND and DB_BARE_APPEND before the copy is handed over.  ``action`` is what
    made the address, as the rule has it, "" for none.
    """

    recipient: bytes
    rule: str
    sender_before: bytes
    sender_after: bytes
    appends: bool = False
    action: str = ""


class Tagged(NamedTuple):
    """A copy: one header block for all recipients that get the same octets and sender.

    ``sender`` is the envelope sender, empty for the null sender.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    fields: list[Field]
    reports: tuple[Report, ...]

    @property
    def header(self) -> bytes:
        return header.render(self.fields)


class _Choice(NamedTuple):
    """What the filter made for one recipient; equal choices share a copy.

    ``address`` is for From or Resent-From, ``followup`` for Mail-Followup-To.
    """

    sender: bytes
    address: bytes
    followup: bytes
    customs: tuple[Field, ...]


def tag_message(profile: Profile, message: Message, stamp: Stamp, outside: Outside) -> list[Tagged]:
    """The copies of a message for its recipients, in their order.

    Raises FilterError or ConfigError when an action cannot be carried out, MessageError when the
    message asks for what it cannot have; then no copy is made.
    """
    config = profile.config
    override, fields = take_override(message.fields, in_subject=config.x_tmda_in_subject)
    own, resending = _own_mailbox(config, fields)
    tagger = _Tagger(profile, own, resending, override, stamp.now, outside)
    groups: dict[_Choice, list[Report]] = {}
    for recipient in message.recipients:
        choice, report = tagger.choose(recipient)
        groups.setdefault(choice, []).append(report)
    fingerprints = Fingerprints(profile.tags, config.fingerprint, message.body)
    try:
        base = _stamped(profile, fields, stamp)
        return [
            Tagged(
                choice.sender,
                tuple(report.recipient for report in reports),
                _copy_fields(config, base, own, choice, resending, fingerprints),
                tuple(reports),
            )
            for choice, reports in groups.items()
        ]
    except TagError as error:
        raise MessageError("Header", str(error)) from None


def header_recipients(fields: list[Field]) -> list[bytes]:
    """The recipients that a header names, for submission without an envelope (5.2)."""
    names: tuple[bytes, ...] = (b"to", b"cc", b"bcc", b"apparently-to")
    if header.first(fields, b"resent-from") is not None:
        names = (b"resent-to", b"resent-cc", b"resent-bcc")
    return [
        mailbox.address
        for name in names
        for value in header.values(fields, name)
        for mailbox in mailboxes(header.unfold(value))
        if mailbox.address
    ]


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _own_mailbox(config: Config, fields: list[Field]) -> tuple[Mailbox, bool]:
    """The sender's name and address, and whether the message is being resent (5.1)."""
    value = header.first(fields, b"resent-from")
    resending = value is not None
    if value is None:
        value = header.first(fields, b"from") or b""
    mailbox = first_mailbox(value)
    address = mailbox.address
    if address.count(b"@") != 1 or not SENDER.fullmatch(address):
        address = _octets(f"{config.username}@{config.hostname}")
    name = _CONTROL.sub(b" ", mailbox.name or _octets(config.fullname))
    return Mailbox(name, address, header.unfold(mailbox.rest)), resending


def own_address(config: Config, fields: list[Field]) -> bytes:
    """The sender's own address: what ``from`` rules look at."""
    return _own_mailbox(config, fields)[0].address


class _Tagger:
    """Chooses for the recipients of one message (5.5)."""

    def __init__(
        self,
        profile: Profile,
        own: Mailbox,
        resending: bool,
        override: Override | None,
        now: float,
        outside: Outside,
    ) -> None:
        self._profile = profile
        self._own = own
        self._resending = resending
        self._override = override
        self._now = now
        self._outside = outside

    def choose(self, recipient: bytes) -> tuple[_Choice, Report]:
        """Raises FilterError, ConfigError, MessageError."""
        actions, rule, blame = self._actions(recipient)
        context = Context(
            self._profile.tags, self._own.address, recipient, self._now, self._outside.shell
        )
        config = self._profile.config
        try:
            choice = self._carry_out(dict(actions), context)
        except SettingError as error:
            line = config.lines.get(error.name, 0)
            raise ConfigError(config.origin, line, str(error)) from None
        except TagError as error:
            raise blame(str(error)) from None
        resolved = {name: self._resolved(action) for name, action in actions}
        appends = any(action.appends for action in resolved.values())
        decisive = resolved.get("from") or resolved.get("envelope")
        done = str(decisive or "")
        return choice, Report(recipient, rule, self._own.address, choice.address, appends, done)

    def _actions(self, recipient: bytes) -> tuple[Actions, str, Callable[[str], Exception]]:
        """What to do, the rule for the log, and whose fault it is if that cannot be done."""
        config, override = self._profile.config, self._override
        if override is not None and override.action is not None:
            fault: Callable[[str], Exception] = functools.partial(MessageError, override.field)
            if override.action.name == DEFAULT:
                fault = self._default_fault
            return (("from", override.action),), override.text, fault
        match = None
        if override is None:
            match = self._profile.filter.find(recipient, self._own.address, self._outside.lists)
        if match is None:
            default = config.action_outgoing
            return (("from", default),), f"action_outgoing ({default})", self._default_fault
        place = match.rule.place
        return match.actions, match.text, functools.partial(FilterError, place.path, place.line)

    def _default_fault(self, problem: str) -> Exception:
        config = self._profile.config
        line = config.lines.get("ACTION_OUTGOING", 0)
        return ConfigError(config.origin, line, f"{config.action_outgoing}: {problem}")

    def _resolved(self, action: Action) -> Action:
        return self._profile.config.action_outgoing if action.name == DEFAULT else action

    def _carry_out(self, actions: dict[str, Action], context: Context) -> _Choice:
        """Raises TagError."""
        address = self._own.address
        if "from" in actions:
            address = self._address(actions["from"], context)
        sender = answers = address
        for name in ADDRESS_HEADERS & actions.keys():
            if actions[name].literal and b"@" not in (actions[name].option or b""):
                raise TagError(f"{actions[name]} is neither an action nor an address")
        envelope = actions.get("envelope")
        if envelope is not None and not envelope.literal:
            sender = self._address(envelope, context)
        resent = actions.get("resent-from")
        if self._resending and resent is not None and not resent.literal:
            address = self._address(resent, context)
        customs = (
            self._customs(actions, context) if len(actions) > 1 or "from" not in actions else ()
        )
        if sender != _NULL_SENDER and not SENDER.fullmatch(sender):
            raise TagError(f"{_text(sender)!r} is no address that mail can be sent from")
        sender = b"" if sender == _NULL_SENDER else sender
        return _Choice(sender, address, answers, customs)

    def _customs(self, actions: dict[str, Action], context: Context) -> tuple[Field, ...]:
        """The fields that are no addresses of the sender, by name (5.8).  Raises TagError."""
        names = [_octets(name) for name in actions if name not in ADDRESS_HEADERS]
        return tuple(
            header.make_field(header.capitalised(name), self._text(actions[_text(name)], context))
            for name in sorted(names, key=header.capitalised)
        )

    def _address(self, action: Action, context: Context) -> bytes:
        """The address that an action, or a text, stands for.  Raises TagError."""
        action = self._resolved(action)
        value = action.option or b"" if action.literal else make_address(action, context)
        if _CONTROL.search(value):
            raise TagError(f"{action} makes a value with control characters")
        return value

    def _text(self, action: Action, context: Context) -> bytes:
        """The value of a field of that action (5.8).  Raises TagError."""
        action = self._resolved(action)
        if action.name in VERBATIM:
            # The lines that a command prints are one value.
            value = b" ".join(make_address(action, context).split(b"\n"))
            return _CONTROL.sub(b" ", value.replace(b"\r", b" "))
        value = self._address(action, context)
        if action.literal:
            return value
        style = self._profile.config.message_tag_header_style
        return format_mailbox(self._own.name, value, style)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _stamped(profile: Profile, fields: list[Field], stamp: Stamp) -> list[Field]:
    """What is done once per message (5.4).  Raises TagError."""
    config = profile.config
    names = {field.name for field in fields}
    result = header.without(fields, (b"x-delivery-agent",))
    if b"date" not in names or "d" in config.tmdainject:
        result = header.without(result, (b"date",))
        result.append(header.make_field(b"Date", stamp.date))
    if b"message-id" not in names or "i" in config.tmdainject:
        result = header.without(result, (b"message-id",))
        result.append(header.make_field(b"Message-ID", stamp.message_id))
    result.append(header.make_field(b"X-Delivery-Agent", stamp.agent))
    if stamp.received is not None:
        result.insert(0, header.make_field(b"Received", stamp.received))
    value = followup.wanted(fields, profile.followup)
    if value is not None:
        result.append(header.make_field(followup.NAME, value))
    return result


def _copy_fields(
    config: Config,
    base: list[Field],
    own: Mailbox,
    choice: _Choice,
    resending: bool,
    fingerprints: Fingerprints,
) -> list[Field]:
    """The fields of one copy (5.5): sender, Mail-Followup-To, fingerprint, added, purged and
    custom headers, in this order.  Raises TagError."""
    name = b"Resent-From" if resending else b"From"
    result = header.without(base, (name.lower(),))
    value = format_mailbox(own.name, choice.address, config.message_from_style)
    result.append(header.make_field(name, value + own.rest))
    result = followup.tagged(result, own.address, choice.followup)
    if config.fingerprint:
        hashed = fingerprints.value(result)
        result = header.without(result, (fingerprint.NAME.lower(),))
        if hashed is not None:
            result.append(header.make_field(fingerprint.NAME, hashed))
    for added, text in config.added_headers_client:
        field = header.make_field(_octets(added), _octets(text))
        result = [*header.without(result, (field.name,)), field]
    purged = {_octets(name).lower() for name in config.purged_headers_client}
    result = header.without(result, purged | _ALWAYS_PURGED)
    if choice.customs:
        result = header.without(result, {field.name for field in choice.customs})
        result.extend(choice.customs)
    return result
