"""Values of settings: what each kind accepts, and what is said of any other.

A converter takes what a configuration assigned and gives what the program uses; it raises
TypeError whose text is what the value must be.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

from tofmipd.tmda.actions import DEFAULT, Action, parse_action
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.header import make_field

# Words for truth that configurations of the original may use without defining them.
TRUTH = {
    word: value
    for words, value in (("ON YES TRUE", True), ("OFF NO FALSE", False))
    for base in words.split()
    for word in (base, base.capitalize(), base.lower())
}


class IniText(str):
    """The raw text of a value in INI form."""


def to_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise TypeError("a text in quotes")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise TypeError("a text without halves of surrogate pairs") from None
    return value


def to_flag(value: object) -> bool:
    if isinstance(value, str) and value in TRUTH:
        return TRUTH[value]
    if not isinstance(value, int):
        raise TypeError("True or False")
    return bool(value)


def to_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("a whole number, 0 or more")
    return value


def to_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError('a list of texts: ["...", "..."]')
    return tuple(to_text(item) for item in value)


def to_text_or_texts(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str | bytes):
        return to_text(value)
    try:
        return to_texts(value)
    except TypeError:
        raise TypeError('the name of a file, or a list of texts: ["...", "..."]') from None


def to_connection(value: object) -> object:
    """A connection to a database (PEP 249)."""
    if not callable(getattr(value, "cursor", None)):
        raise TypeError("a connection to a database, such as sqlite3.connect() gives")
    return value


def to_tags(value: object) -> tuple[str, ...]:
    words = to_texts(value)
    if not words or not all(words):
        raise TypeError('a list of at least one word: ["..."]')
    return words


def to_headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise TypeError('a table of names and texts: {"Name": "text"}')
    pairs = tuple(sorted((_header_name(k), _header_value(v)) for k, v in value.items()))
    for name, text in pairs:
        try:
            make_field(name.encode(), text.encode("utf-8", "surrogateescape"))
        except TagError as error:
            raise TypeError(f"a table of texts that can be folded ({error})") from None
    return pairs


def to_part(value: object) -> str:
    """One side of an address."""
    text = to_text(value)
    if "@" in text or " " in text or not text.isprintable():
        raise TypeError("one side of an address, without @ and blanks")
    return text


def to_delimiter(value: object) -> str:
    text = to_text(value)
    if not text or "@" in text or not text.isprintable() or " " in text:
        raise TypeError("one or more characters that may stand in an address, not @")
    return text


_SMTPHOST = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([^\s:\[\]]+)(?::([0-9]{1,5}))?", re.ASCII
)


def split_smtphost(text: str, default_port: int = 25) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or plain v6.

    Raises TypeError."""
    match = _SMTPHOST.fullmatch(text)
    if match is None and re.fullmatch(r"[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", text):
        return text, default_port
    port = int((match and (match[2] or match[4])) or default_port)
    if match is None or not 0 < port < 65536:
        raise TypeError("HOST or HOST:PORT")
    return match[1] or match[3], port


def to_smtphost(value: object) -> str | tuple[str, ...]:
    """One server, or several in order of preference."""
    if isinstance(value, str | bytes):
        text = to_text(value)
        split_smtphost(text)
        return text
    try:
        hosts = to_texts(value)
        for host in hosts:
            split_smtphost(host)
    except TypeError:
        hosts = ()
    if not hosts:
        raise TypeError('HOST or HOST:PORT, or a list of these: ["...", "..."]')
    return hosts


def to_smtpssl(value: object) -> bool | str:
    if isinstance(value, str | bytes) and to_text(value).lower() in ("starttls", "implicit"):
        return to_text(value).lower()
    try:
        return to_flag(value)
    except TypeError:
        raise TypeError("True, False, 'starttls' or 'implicit'") from None


def to_smtptls(value: object) -> str:
    """How the server is known: "" for the usual way, "off", or what NextHop calls trust."""
    text = to_text(value).lower()
    if text in ("", "verify", "encrypt", "off"):
        return text
    word, _, digits = text.partition(":")
    digits = digits.replace(":", "")
    if word != "fingerprint" or not re.fullmatch("[0-9a-f]{64}", digits):
        raise TypeError(
            "'verify', 'encrypt', 'off', or 'fingerprint:' and 64 hexadecimal digits (SHA-256)"
        )
    return f"fingerprint:{digits}"


def _header_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-9;-~]+", value):
        raise TypeError("a table whose keys are names of header fields")
    return value


def _header_value(value: object) -> str:
    text = to_text(value)
    if "\n" in text or "\r" in text:
        raise TypeError("a table of texts without line ends")
    return text


def to_one_of(*words: str) -> Callable[[object], str]:
    def convert(value: object) -> str:
        text = to_text(value)
        if text not in words:
            raise TypeError("one of " + ", ".join(repr(word) for word in words))
        return text

    return convert


def to_action(value: object) -> Action:
    try:
        action = parse_action(to_text(value))
    except TagError as error:
        raise TypeError(f"an action ({error})") from None
    if action.name == DEFAULT:
        raise TypeError("an action other than 'default'")
    return action


def converted(value: object, convert: Callable[[object], Any]) -> Any:
    """The value as its setting wants it.  In INI form that is the text as it stands, or without
    its quotes, or the literal that it spells.  Raises TypeError."""
    if not isinstance(value, IniText):
        return convert(value)
    literal = _literal(value)
    listed = convert in (to_text_or_texts, to_smtphost) and isinstance(literal, list | tuple | dict)
    if isinstance(literal, str) or listed:
        return convert(literal)
    try:
        return convert(str(value))
    except TypeError:
        return convert(literal)


def plain(value: object) -> object:
    """The value, or what it spells in INI form."""
    return _literal(value) if isinstance(value, IniText) else value


def _literal(text: str) -> object:
    """What the text spells, or itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return str(text)
