"""The field Mail-Followup-To (TMDA reference, sections 5.4 and 5.5)."""

from __future__ import annotations

from collections.abc import Set

from tofmipd.tmda import header
from tofmipd.tmda.header import Field
from tofmipd.tmda.mailbox import mailboxes

NAME = b"Mail-Followup-To"
_KEY = NAME.lower()


def wanted(fields: list[Field], lists: Set[bytes]) -> bytes | None:
    """The value for a message to one of these mailing lists that has no such field, else None.

    ``lists`` are addresses in lower case.
    """
    if not lists or header.first(fields, _KEY) is not None:
        return None
    named = _addresses(fields, b"to") + _addresses(fields, b"cc")
    if not any(address.lower() in lists for address in named):
        return None
    return b", ".join(named)


def tagged(fields: list[Field], own: bytes, address: bytes) -> list[Field]:
    """The header with ``address`` in the place of the own one in that field, if it is there.

    Names and comments are dropped, and the field comes last.  Raises TagError.
    """
    named = _addresses(fields, _KEY)
    if not named:
        return fields
    value = b", ".join(address if other == own else other for other in named)
    return [*header.without(fields, (_KEY,)), header.make_field(NAME, value)]


def _addresses(fields: list[Field], name: bytes) -> list[bytes]:
    return [
        mailbox.address
        for value in header.values(fields, name)
        for mailbox in mailboxes(header.unfold(value))
        if mailbox.address
    ]
