"""Mailboxes in header fields: reading them, and writing one (RFC 5322 section 3.4).

Reading is as forgiving as mail is old: names in comments, unquoted dots, routes, groups.
Encoded words (RFC 2047) are never decoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    rb"""(?P<space>[ \t\r\n]+)
       | (?P<quoted>"(?:[^"\\]|\\.)*(?:"|\\?\Z))
       | (?P<comment>\()
       | (?P<angle><)
       | (?P<literal>\[[^\]]*\]?)
       | (?P<special>[@,:;])
       | (?P<atom>[^ \t\r\n"(<\[@,:;]+)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_PART = re.compile(rb"[^()\\]+|\\.|[()\\]", re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_SPACES = re.compile(rb"[ \t\r\n]+")
_SIMPLE = re.compile(
    rb"[ \t]*(?:([A-Za-z0-9][A-Za-z0-9 ]*[A-Za-z0-9]|[A-Za-z0-9])[ \t]+)?"
    rb"<([A-Za-z0-9._+=-]+@[A-Za-z0-9.-]+)>[ \t]*"
)
# RFC 2047 section 2, without what would end the name; dots are wrong there but common.
_ENCODED_WORD = re.compile(rb"=\?[^? ]+\?[BbQq]\?[^? ()<>@,:;\"\[\]\\]*\?=")
_SPECIAL = re.compile(rb'[()<>@,:;".\[\]\\]')
_ESCAPED = re.compile(rb'[()"\[\]\\]')


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A name (may be empty), an address, what follows the mailbox in its field if it is the
    first, and whether it is a member of a group."""

    name: bytes
    address: bytes
    rest: bytes = b""
    grouped: bool = False


# Name, address, whether it is a member of a group, and where it ends.
_Found = tuple[bytes, bytes, bool, int]


@dataclass(slots=True)
class _Pending:
    """What has been read of a mailbox that is not complete yet."""

    words: list[bytes] = field(default_factory=list)
    comments: list[bytes] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    at: bool = False
    grouped: bool = False

    def bracketed(self, address: bytes, end: int) -> _Found:
        # A name with an unquoted @ is an address once more, and would give the bare one away.
        name = b"" if self.at else b" ".join(self.words)
        if self.comments:
            name = name + b" (" + b" ".join(self.comments) + b")"
        return name.strip(), address, self.grouped, end

    def bare(self, end: int) -> _Found | None:
        """``user@host (Name)``, or one word that is no address; None when nothing was read."""
        if not self.raw:
            return None
        address = b"".join(self.raw) if self.at else self.raw[0]
        return b" ".join(self.comments).strip(), address, self.grouped, end

    def goes_on(self, token: bytes) -> bool:
        """Whether a word after a blank still belongs to the address: ``a @ b . c``."""
        last = self.raw[-1]
        return last.endswith((b"@", b".")) or token.startswith(b".")


def mailboxes(value: bytes) -> Iterator[Mailbox]:
    """The mailboxes of an address list in their order; members of groups count."""
    for name, address, grouped, _ in _scan(value):
        yield Mailbox(name, address, grouped=grouped)


def first_mailbox(value: bytes) -> Mailbox:
    """The first mailbox of a field; name and address are empty when there is none, or a group."""
    for name, address, grouped, end in _scan(value):
        return Mailbox(b"", b"") if grouped else Mailbox(name, address, value[end:])
    return Mailbox(b"", b"")


def _scan(value: bytes) -> Iterator[_Found]:
    simple = _SIMPLE.fullmatch(value)
    if simple is not None:
        yield _SPACES.sub(b" ", simple[1] or b""), simple[2], False, len(value)
        return
    pending = _Pending()
    position, end, spaced = 0, 0, False
    while position < len(value):
        match = _TOKEN.match(value, position)
        if match is None:  # a lone special character: it ends nothing and means nothing
            position += 1
            continue
        kind, token, start = match.lastgroup, match[0], position
        position = match.end()
        if kind == "comment":
            text, position = _comment(value, position)
            pending.comments.append(text)
        elif kind == "angle":
            address, position = _angle_address(value, position)
            yield pending.bracketed(address, position)
            pending = _Pending(grouped=pending.grouped)
        elif kind == "special" and token == b"@":
            pending.raw.append(token)
            pending.at = True
        elif kind == "special":
            mailbox = None if token == b":" else pending.bare(start)
            if mailbox is not None:
                yield mailbox
            pending = _Pending(grouped=token == b":" or (token == b"," and pending.grouped))
        elif kind != "space":
            if pending.at and spaced and not pending.goes_on(token):
                mailbox = pending.bare(end)
                if mailbox is not None:
                    yield mailbox
                pending = _Pending(grouped=pending.grouped)
            pending.raw.append(token)
            pending.words.append(_unquoted(token) if kind == "quoted" else token)
        spaced = kind == "space"
        if not spaced:
            end = position
    mailbox = pending.bare(len(value))
    if mailbox is not None:
        yield mailbox


def _unquoted(token: bytes) -> bytes:
    inside = token[1:-1] if token.endswith(b'"') and len(token) > 1 else token[1:]
    return _SPACES.sub(b" ", _QUOTED_PAIR.sub(rb"\1", inside))


def _comment(value: bytes, position: int) -> tuple[bytes, int]:
    """The text of a comment whose opening parenthesis stands before ``position``."""
    depth, parts = 1, []
    while position < len(value):
        match = _COMMENT_PART.match(value, position)
        if match is None:
            break
        position = match.end()
        depth += (match[0] == b"(") - (match[0] == b")")
        if not depth:
            break
        parts.append(match[0][1:] if match[0].startswith(b"\\") else match[0])
    return _SPACES.sub(b" ", b"".join(parts)), position


def _angle_address(value: bytes, position: int) -> tuple[bytes, int]:
    """The address whose opening bracket stands before ``position``; a route is dropped."""
    parts: list[bytes] = []
    while position < len(value):
        match = _TOKEN.match(value, position)
        if match is None:
            position += 1
            continue
        position = match.end()
        kind, token = match.lastgroup, match[0]
        if kind == "comment":
            _, position = _comment(value, position)
        elif token == b":":
            parts.clear()
        elif kind == "atom" and b">" in token:
            before, _, after = token.partition(b">")
            parts.append(before)
            position -= len(after)
            break
        elif kind != "space":
            parts.append(token)
    return b"".join(parts), position


def format_mailbox(name: bytes, address: bytes, style: str) -> bytes:
    """``NAME <ADDRESS>``, or the address alone in style "address" (reference, section 5.6).

    An encoded word is never quoted, which would spoil it; the original did.
    """
    if style == "address" or not name:
        return address
    if _ENCODED_WORD.search(name):
        name = b" ".join(
            word if _ENCODED_WORD.fullmatch(word) else _quoted(word) for word in name.split(b" ")
        )
    else:
        name = _quoted(name)
    return name + b" <" + address + b">"


def _quoted(text: bytes) -> bytes:
    """In quotes if there is need for them."""
    if not _SPECIAL.search(text):
        return text
    return b'"' + _ESCAPED.sub(rb"\\\g<0>", text) + b'"'
