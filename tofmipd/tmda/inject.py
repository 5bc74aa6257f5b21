"""One submitted message becomes tagged copies (TMDA reference, section 5).

Pure: octets, settings and the time come in, header blocks and envelope senders go out.  Every
copy is made from the submitted header, never from another copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tofmipd.tmda import header
from tofmipd.tmda.actions import DEFAULT, Action, Context, make_address
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import ConfigError, FilterError, SettingError, TagError
from tofmipd.tmda.filter import ADDRESS_HEADERS, Actions
from tofmipd.tmda.header import Field
from tofmipd.tmda.mailbox import Mailbox, first_mailbox, format_mailbox, mailboxes
from tofmipd.tmda.profile import Profile

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


@dataclass(frozen=True, slots=True)
class Report:
    """What was done for one recipient; ``rule`` is the text of the rule that decided."""

    recipient: bytes
    rule: str
    sender_before: bytes
    sender_after: bytes


@dataclass(frozen=True, slots=True)
class Tagged:
    """A copy: one header block for all recipients that get the same octets and sender.

    ``sender`` is the envelope sender, empty for the null sender.
    """

    sender: bytes
    recipients: tuple[bytes, ...]
    header: bytes
    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the filter made for one recipient; equal choices share a copy."""

    sender: bytes
    address: bytes
    customs: tuple[Field, ...]


def tag_message(
    profile: Profile, fields: list[Field], recipients: Sequence[bytes], stamp: Stamp
) -> list[Tagged]:
    """The copies of a message with header ``fields`` for ``recipients``, in their order.

    Raises FilterError or ConfigError when an action cannot be carried out; then no copy is made.
    """
    own, resending = _own_mailbox(profile.config, fields)
    groups: dict[_Choice, list[Report]] = {}
    for recipient in recipients:
        choice, rule = _choose(profile, own, recipient, stamp.now, resending)
        report = Report(recipient, rule, own.address, choice.address)
        groups.setdefault(choice, []).append(report)
    base = _stamped(profile.config, fields, stamp)
    return [
        Tagged(
            choice.sender,
            tuple(report.recipient for report in reports),
            header.render(_copy_fields(profile.config, base, own, choice, resending)),
            tuple(reports),
        )
        for choice, reports in groups.items()
    ]


def header_recipients(fields: list[Field]) -> list[bytes]:
    """The recipients that a header names, for submission without an envelope (5.2)."""
    names: tuple[bytes, ...] = (b"to", b"cc", b"bcc", b"apparently-to")
    if header.first(fields, b"resent-from") is not None:
        names = (b"resent-to", b"resent-cc", b"resent-bcc")
    return [
        mailbox.address
        for name in names
        for value in header.values(fields, name)
        for mailbox in mailboxes(value)
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


def _choose(
    profile: Profile, own: Mailbox, recipient: bytes, now: float, resending: bool
) -> tuple[_Choice, str]:
    """Apply the filter for one recipient (5.5); with it the text of the rule for the log."""
    match = profile.filter.find(recipient, own.address)
    default = profile.config.action_outgoing
    if match is None:
        actions: Actions = (("from", default),)
        rule = f"action_outgoing ({default})"
    else:
        actions, rule = match.actions, match.rule.text
    context = Context(profile.tags, own.address, recipient, now)
    try:
        return _carry_out(profile.config, dict(actions), context, own, resending), rule
    except SettingError as error:
        line = profile.config.lines.get(error.name, 0)
        raise ConfigError(profile.config.origin, line, str(error)) from None
    except TagError as error:
        if match is None:
            line = profile.config.lines.get("ACTION_OUTGOING", 0)
            raise ConfigError(profile.config.origin, line, f"{default}: {error}") from None
        raise FilterError(profile.filter.path, match.rule.line, str(error)) from None


def _carry_out(
    config: Config, actions: dict[str, Action], context: Context, own: Mailbox, resending: bool
) -> _Choice:
    address = own.address
    if "from" in actions:
        address = _value(config, actions["from"], context)
    sender = address
    for name in ADDRESS_HEADERS & actions.keys():
        if actions[name].literal and b"@" not in (actions[name].option or b""):
            raise TagError(f"{actions[name]} is neither an action nor an address")
    envelope = actions.get("envelope")
    if envelope is not None and not envelope.literal:
        sender = _value(config, envelope, context)
    resent = actions.get("resent-from")
    if resending and resent is not None and not resent.literal:
        address = _value(config, resent, context)
    customs = tuple(
        header.make_field(
            header.capitalised(name), _custom(config, actions[_text(name)], context, own)
        )
        for name in sorted(_octets(key) for key in actions if key not in ADDRESS_HEADERS)
    )
    if sender != _NULL_SENDER and not SENDER.fullmatch(sender):
        raise TagError(f"{_text(sender)!r} is no address that mail can be sent from")
    return _Choice(b"" if sender == _NULL_SENDER else sender, address, customs)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _value(config: Config, action: Action, context: Context) -> bytes:
    """The address, or text, that an action stands for.  Raises TagError."""
    if action.literal:
        value = action.option or b""
    else:
        resolved = config.action_outgoing if action.name == DEFAULT else action
        value = make_address(resolved, context)
    if _CONTROL.search(value):
        raise TagError(f"{action} makes a value with control characters")
    return value


def _custom(config: Config, action: Action, context: Context, own: Mailbox) -> bytes:
    value = _value(config, action, context)
    if action.literal:
        return value
    return format_mailbox(own.name, value, config.message_tag_header_style)


def _stamped(config: Config, fields: list[Field], stamp: Stamp) -> list[Field]:
    """What is done once per message (5.4)."""
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
    return result


def _copy_fields(
    config: Config, base: list[Field], own: Mailbox, choice: _Choice, resending: bool
) -> list[Field]:
    """The fields of one copy (5.5): sender, added, purged and custom headers, in this order."""
    name = b"Resent-From" if resending else b"From"
    result = header.without(base, (name.lower(),))
    value = format_mailbox(own.name, choice.address, config.message_from_style)
    result.append(header.make_field(name, value + own.rest))
    for added, text in config.added_headers_client:
        field = header.make_field(_octets(added), _octets(text))
        result = [*header.without(result, (field.name,)), field]
    purged = {_octets(name).lower() for name in config.purged_headers_client}
    result = header.without(result, purged | _ALWAYS_PURGED)
    if choice.customs:
        result = header.without(result, {field.name for field in choice.customs})
        result.extend(choice.customs)
    return result
