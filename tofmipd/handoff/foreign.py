"""What others have said, as it may stand in a report: addresses, replies, names of next hops.

Nothing here has a line end or another control character in its result, and everything is bounded.
What cannot be shown is written as RFC 6533 section 3 has it, e.g. "\\x{0D}".
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from ipaddress import ip_address

_WIDTH = 76
# A line has 998 octets (RFC 5322 section 2.1.1); this leaves room for a field's name and a type.
_LIMIT_OCTETS = 940
# An indented word.
_WORD_OCTETS = 900
_REPLY_OCTETS = 2000

_NOT_IN_HOST = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NEXT_HOP = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]{1,255}))(?::[0-9]{1,5})?")
_NOT_IN_MAILBOX = re.compile(r"[\s<>()\[\]\\,;:\"]")
_LOCAL_AND_LITERAL = re.compile(
    r"(?:[^\s<>()\[\]\\,;:\"@]+|\"(?:[^\"\\]|\\.)*\")@(?:[^\s<>()\[\]\\,;:\"@]+|\[[\w:.]+\])"
)
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}")
_XTEXT = re.compile(rb"\+([0-9A-Fa-f]{2})")
_EMBEDDED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")


def escaped(text: str) -> str:
    """Printable ASCII."""
    return _cut("".join(c if _plain(c) else _sign(c) for c in text))


def shown(text: str) -> str:
    """Printable signs, also beyond ASCII."""
    return _cut(_printable(text))


def host(name: str) -> str:
    return _NOT_IN_HOST.sub("?", name)[:255] or "localhost"


def address(octets: bytes) -> str:
    return shown(_decoded(octets))


def mailbox(octets: bytes) -> str:
    """An address as it may stand in To, without the brackets around it."""
    text = address(octets)
    return text if _LOCAL_AND_LITERAL.fullmatch(text) else _NOT_IN_MAILBOX.sub("?", text)


def reply(text: str, *, ascii_only: bool = False) -> str:
    """The words of a reply, with one blank between them."""
    words = _cut(" ".join(text.split()), _REPLY_OCTETS)
    return "".join(c if _plain(c) else _sign(c) for c in words) if ascii_only else _printable(words)


def envelope_id(xtext: str) -> str:
    """ENVID without its encoding (RFC 3461 section 6.3)."""
    return escaped(_without_xtext(xtext))


def final_recipient(octets: bytes, *, utf8: bool) -> str:
    return _typed("rfc822", _decoded(octets), utf8)


def original_recipient(orcpt: str, *, utf8: bool) -> str:
    """ORCPT without its encoding, "" if it is none (RFC 3461 section 6.3, RFC 6533 section 3)."""
    kind, _, value = orcpt.partition(";")
    if not value or not _ADDRESS_TYPE.fullmatch(kind):
        return ""
    text = _without_xtext(value)
    if kind.lower() == "utf-8":
        text = _EMBEDDED.sub(_embedded, text)
    return _typed(kind, text, utf8)


def mta(next_hop: str) -> str:
    """The next hop as a name or an address literal, "" if it is no host."""
    match = _NEXT_HOP.fullmatch(next_hop)
    if match is None:
        return ""
    try:
        found = ip_address(match[1] or match[2])
    except ValueError:
        return match[2] or ""
    return f"[IPv6:{found}]" if found.version == 6 else f"[{found}]"


def wrapped(text: str, indent: str = "", after: str | None = None) -> list[str]:
    """Lines of whole words, but for words that no line can hold; ``after`` indents the others.

    No line is longer than 998 octets.
    """
    words = [piece for word in text.split(" ") for piece in _pieces(word)]
    return textwrap.wrap(
        " ".join(words),
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if after is None else after,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _pieces(word: str) -> Iterator[str]:
    # No sign has more than four octets.
    size = _WORD_OCTETS if word.isascii() else _WORD_OCTETS // 4
    for start in range(0, len(word), size):
        yield word[start : start + size]


def _typed(kind: str, text: str, utf8: bool) -> str:
    """An address with its type; one beyond ASCII has the type utf-8 (RFC 6533 section 3)."""
    if not text.isascii() and kind.lower() == "rfc822":
        kind = "utf-8"
    if utf8:
        return f"{kind}; {shown(text)}"
    if kind.lower() == "utf-8":
        text = "".join(_sign(c) if c in "\\+= " else c for c in text)
    return f"{kind}; {escaped(text)}"


def _embedded(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return chr(number) if number <= 0x10FFFF else match[0]


def _decoded(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _without_xtext(text: str) -> str:
    octets = text.encode("utf-8", "backslashreplace")
    return _decoded(_XTEXT.sub(lambda match: bytes([int(match[1], 16)]), octets))


def _plain(sign: str) -> bool:
    return " " <= sign <= "~"


def _sign(sign: str) -> str:
    return f"\\x{{{ord(sign):02X}}}"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else _sign(c) for c in text)


def _cut(text: str, limit_octets: int = _LIMIT_OCTETS) -> str:
    octets = text.encode("utf-8", "backslashreplace")
    if len(octets) <= limit_octets:
        return text
    return octets[: limit_octets - 3].decode("utf-8", "ignore") + "..."
