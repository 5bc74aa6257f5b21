"""What a message itself asks for: X-TMDA, or its subject (TMDA reference, section 5.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tofmipd.tmda import header
from tofmipd.tmda.actions import FOR_FILTERS_ONLY, Action, parse_action
from tofmipd.tmda.errors import MessageError, TagError
from tofmipd.tmda.header import Field

FIELD = b"x-tmda"
_NAME = "X-TMDA"

_SUBJECT = re.compile(rb"[ \t\r\n]*x-tmda(?:[ \t\r\n]+|\Z)(\S*)[ \t\r\n]*(.*)", re.I | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Override:
    """The action for all recipients, in the place of the filter.

    ``action`` is None where ACTION_OUTGOING holds; ``text`` is what the log says, ``field`` the
    name of the field that asks.
    """

    action: Action | None
    text: str
    field: str = _NAME


def take_override(fields: list[Field], *, in_subject: bool) -> tuple[Override | None, list[Field]]:
    """What a header asks for, and the header without that.

    The first X-TMDA field counts; one word is an action, anything else means ACTION_OUTGOING.
    ``in_subject``: a subject ``X-TMDA ACTION TEXT`` does the same, and TEXT remains.
    Raises MessageError.
    """
    value = header.first(fields, FIELD)
    if value is not None:
        words = value.split()
        action = _action(words[0], _NAME) if len(words) == 1 else None
        text = f"{_NAME}: {_shown(value)}" if action else ""
        return Override(action, text), header.without(fields, (FIELD,))
    if in_subject:
        return _in_subject(fields)
    return None, fields


def _in_subject(fields: list[Field]) -> tuple[Override | None, list[Field]]:
    subject = header.first(fields, b"subject")
    match = _SUBJECT.fullmatch(subject or b"")
    if match is None:
        return None, fields
    if not match[1]:
        raise MessageError("Subject", f"{_NAME} without an action; write {_NAME} ACTION TEXT")
    override = Override(_action(match[1], "Subject"), f"{_NAME}: {_shown(match[1])}", "Subject")
    kept = Field(b"subject", b"Subject: " + match[2] + b"\r\n")
    return override, [*header.without(fields, (b"subject",)), kept]


def _action(word: bytes, where: str) -> Action:
    """Raises MessageError: who writes a wrong word here does not want just any address."""
    try:
        action = parse_action(_shown(word))
    except TagError as error:
        raise MessageError(where, str(error)) from None
    if action.name in FOR_FILTERS_ONLY:
        raise MessageError(where, f"{action.name!r} can be used in a filter only")
    return action


def _shown(value: bytes) -> str:
    return header.unfold(value).decode("utf-8", "surrogateescape")
