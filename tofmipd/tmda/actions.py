"""What an outgoing filter can do with the sender's address: a table, one row an action.

Source: TMDA reference, sections 1.2, 4.2 and 4.7.  A new action is one new row.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tofmipd.tmda import cookies
from tofmipd.tmda.cookies import TagSettings
from tofmipd.tmda.errors import TagError


class Option(enum.Enum):
    """Whether an action is written with "=OPTION"."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class Shell(Protocol):
    """Runs the command of a ``shell=`` action."""

    def __call__(self, command: str, recipient: bytes) -> bytes:
        """What the command prints, without its last newline.  Raises TagError."""
        ...


def no_shell(command: str, recipient: bytes) -> bytes:
    """The shell of those who may run no commands here."""
    raise TagError("'shell' is not allowed here")


class Context(NamedTuple):
    """What an action may look at: one recipient of one message."""

    tags: TagSettings
    address: bytes
    recipient: bytes
    now: float
    shell: Shell = no_shell


Make = Callable[[Context, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Action:
    """An action of a rule as it was written, e.g. ``dated=5d``.

    ``name`` is "" for literal text, which only ``tag`` allows; ``option`` is then the text.
    """

    name: str
    option: bytes | None = None

    @property
    def literal(self) -> bool:
        return not self.name

    @property
    def appends(self) -> bool:
        """Whether the recipient is to be put on a list (``bare=append``, in any case)."""
        return self.option is not None and self.name == "bare" and self.option.lower() == b"append"

    def __str__(self) -> str:
        """As the log and `inject -M` show it (reference, section 4.10)."""
        option = "" if self.option is None else self.option.decode("utf-8", "surrogateescape")
        if self.literal:
            return f'"{option}"'
        if self.option is None:
            return self.name
        return f'{self.name}="{option}"' if " " in option else f"{self.name}={option}"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of action: how it is written and what it makes of the own address."""

    option: Option
    make: Make


def _bare(context: Context, option: bytes) -> bytes:
    return context.address


def _dated(context: Context, option: bytes) -> bytes:
    timeout = option.decode("utf-8", "surrogateescape")
    return cookies.dated_address(context.tags, context.address, timeout, context.now)


def _sender(context: Context, option: bytes) -> bytes:
    return cookies.sender_address(context.tags, context.address, option or context.recipient)


def _domain(context: Context, option: bytes) -> bytes:
    return cookies.domain_address(context.tags, context.address, option or context.recipient)


def _keyword(context: Context, option: bytes) -> bytes:
    return cookies.keyword_address(context.tags, context.address, option)


def _extension(context: Context, option: bytes) -> bytes:
    return cookies.extension_address(context.tags, context.address, option)


def _explicit(context: Context, option: bytes) -> bytes:
    return option


def _shell(context: Context, option: bytes) -> bytes:
    command = option.decode("utf-8", "surrogateescape")
    return context.shell(command, context.recipient)


def _python(context: Context, option: bytes) -> bytes:
    raise TagError("'python' is not run here; use shell=COMMAND, which may call any program")


TABLE = {
    "bare": Row(Option.OPTIONAL, _bare),
    "dated": Row(Option.OPTIONAL, _dated),
    "sender": Row(Option.OPTIONAL, _sender),
    "domain": Row(Option.OPTIONAL, _domain),
    "exp": Row(Option.REQUIRED, _explicit),
    "explicit": Row(Option.REQUIRED, _explicit),
    "as": Row(Option.REQUIRED, _explicit),
    "ext": Row(Option.REQUIRED, _extension),
    "extension": Row(Option.REQUIRED, _extension),
    "kw": Row(Option.REQUIRED, _keyword),
    "keyword": Row(Option.REQUIRED, _keyword),
    "shell": Row(Option.REQUIRED, _shell),
    "python": Row(Option.REQUIRED, _python),
}

# What a message cannot ask for: its subject, or all of it, may be a stranger's text.
FOR_FILTERS_ONLY = frozenset({"shell", "python"})
# What these make is a value as it stands, not an address to stand beside a name.
VERBATIM = FOR_FILTERS_ONLY

# Stands for the setting ACTION_OUTGOING; resolved when the message is tagged.
DEFAULT = "default"

_INCOMING = frozenset(
    ("drop", "exit", "stop", "hold", "confirm", "bounce", "reject", "deliver", "ok", "accept")
)
_ACTION = re.compile(r"([A-Za-z]+)(?:=(\S+))?", re.ASCII)
_SPACED_ACTION = re.compile(r"([A-Za-z]+)(?:[ ]*=[ ]*(.*))?", re.ASCII | re.DOTALL)


def parse_action(text: str) -> Action:
    """A simple action: a name and perhaps ``=OPTION`` without blanks.  Raises TagError."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise TagError(f"{text!r} is not an action: write NAME or NAME=OPTION without blanks")
    return _checked(match[1], match[2])


def parse_value(text: str, *, address: bool) -> Action:
    """A value in ``tag``: an action if it is one as a whole, else literal text.

    Blanks around "=" are allowed where the option may be left out; elsewhere they make the text
    literal, as does an empty option.  Text that merely begins with the name of an action is
    literal (the original lost it).  Raises TagError for an action that is misused; where an
    ``address`` is wanted, also for one in capitals or for incoming mail.
    """
    match = _SPACED_ACTION.fullmatch(text)
    name = "" if match is None else match[1]
    if address and name not in TABLE and name.lower() in _INCOMING.union(TABLE, (DEFAULT,)):
        return _checked(name, (match and match[2]) or None)
    row = TABLE.get(name)
    if match is None or not (row or text == DEFAULT):
        return Action("", text.encode("utf-8", "surrogateescape"))
    if row is None or row.option is Option.REQUIRED:
        written_together = match[2] and text.startswith(name + "=" + match[2])
        if text != DEFAULT and not written_together:
            return Action("", text.encode("utf-8", "surrogateescape"))
    return _checked(name, match[2] or None)


def _checked(name: str, option: str | None) -> Action:
    if name.lower() in _INCOMING:
        raise TagError(f"the action {name!r} is for incoming mail only")
    if name != DEFAULT and name not in TABLE:
        lower = name.lower()
        if lower in TABLE or lower == DEFAULT:
            raise TagError(f"the action {name!r} must be written in lower case: {lower!r}")
        names = ", ".join([*TABLE, DEFAULT])
        raise TagError(f"there is no action {name!r}; there are {names}")
    wanted = Option.NONE if name == DEFAULT else TABLE[name].option
    if wanted is Option.NONE and option is not None:
        raise TagError(f"the action {name!r} takes no option")
    if wanted is Option.REQUIRED and option is None:
        raise TagError(f"the action {name!r} needs an option: {name}=...")
    return Action(name, None if option is None else option.encode("utf-8", "surrogateescape"))


def make_address(action: Action, context: Context) -> bytes:
    """The address that ``action``, not a literal and not "default", makes.  Raises TagError."""
    return TABLE[action.name].make(context, action.option or b"")
