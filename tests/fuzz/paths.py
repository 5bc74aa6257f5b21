"""Arguments of MAIL and RCPT: refused, or an address that means the same when it is read again.

Input: an argument as the client sends it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

from fuzz.dialogues import lines
from tofmipd.smtp.reply import BadCommand, Reply
from tofmipd.smtp.syntax import Parameters, length_of_path, parse_recipient, parse_sender

WORDS = (
    *(b"FROM:", b"TO:", b"<", b">", b'"', b"\\", b"@", b",", b":", b"[IPv6:::1]", b" SIZE=1"),
    *(b"\xc3\xa4", b"\xe2\x80\xa8", b"\xc2\x85", b" ORCPT=rfc822;", b" NOTIFY=NEVER"),
)
Parser = Callable[[str], tuple[str, Parameters]]
PARSERS: list[tuple[str, Parser]] = [("FROM:", parse_sender), ("TO:", parse_recipient)]
_SPECIALS = ' "(),:;<>@[\\]'
_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
_ATEXT = "!#$%&'*+-/=?^_`{|}~"


def check(octets: bytes) -> None:
    text = octets.decode("utf-8", "surrogateescape")
    for keyword, parse in PARSERS:
        for argument in (text, keyword + text, f"{keyword}<{text}>"):
            assert 0 <= length_of_path(argument) <= len(argument)
            outcome = parsed(parse, argument)
            if isinstance(outcome, Reply):
                assert outcome.code in (501, 553)
                continue
            address, parameters = outcome
            check_address(address)
            assert address or keyword == "FROM:"
            assert parse(f"{keyword}<{address}>") == (address, {})
            check_parameters(parse, f"{keyword}<{address}>", parameters)
        if is_mailbox(text):
            for path in (f"<{text}>", f"<@a.example,@b.example:{text}>"):
                assert parse(f"{keyword}{path} X=1") == (text, {"X": "1"})


def parsed(parse: Parser, argument: str) -> tuple[str, Parameters] | Reply:
    try:
        return parse(argument)
    except BadCommand as error:
        return error.reply


def check_address(address: str) -> None:
    """No part of it can end a line, its brackets or its local part early."""
    assert is_clean(address)
    quoted = _quoted_string(address)
    local, at, domain = address[quoted:].partition("@")
    if address.startswith('"'):
        assert quoted
        assert not local
    assert not set(local) & set(_SPECIALS)
    if domain.startswith("["):
        assert domain.endswith("]")
        assert not set(domain) & set(' "<>\\')
    else:
        assert not set(domain) & set(_SPECIALS)
    if address:
        assert quoted or local
        assert bool(domain) == bool(at)


def is_clean(text: str) -> bool:
    """Whether it is one line, in UTF-8, whoever reads it, and looks like what it is: no controls,
    no separators, no blanks but those of ASCII, nothing that turns the direction of what follows.
    """
    return all(
        sign == " "
        or (
            unicodedata.category(sign) not in ("Cc", "Cs", "Zl", "Zp", "Zs")
            and unicodedata.bidirectional(sign) not in _TURNS
        )
        for sign in text
    )


def check_parameters(parse: Parser, path: str, parameters: Parameters) -> None:
    words = [name if value is None else f"{name}={value}" for name, value in parameters.items()]
    assert all(is_clean(word) and " " not in word for word in words)
    assert all(name == name.upper() for name in parameters)
    assert parse(" ".join([path, *words]))[1] == parameters


def is_mailbox(text: str) -> bool:
    """RFC 5321 section 4.1.2 by the letter: such an address must be taken."""
    if not (text.isascii() and text.isprintable()):
        return False
    place = _quoted_string(text) or _dot_string(text)
    if not place or text[place : place + 1] != "@":
        return False
    domain = text[place + 1 :]
    if domain.startswith("["):
        numbers = domain[1:-1].split(".")
        short = all(number.isdigit() and len(number) <= 3 for number in numbers)
        return domain.endswith("]") and len(numbers) == 4 and short
    return all(_is_label(label) for label in domain.split("."))


def _quoted_string(text: str) -> int:
    """How long the quoted string is that the text begins with, 0 for none."""
    if not text.startswith('"'):
        return 0
    place = 1
    while place < len(text):
        if text[place] == '"':
            return place + 1
        if text[place] == "\\":
            place += 1
        place += 1
    return 0


def _dot_string(text: str) -> int:
    place = 0
    while place < len(text) and (_is_atext(text[place]) or text[place] == "."):
        place += 1
    return place if all(text[:place].split(".")) else 0


def _is_atext(sign: str) -> bool:
    return sign.isalnum() or sign in _ATEXT


def _is_label(label: str) -> bool:
    if not label or label.startswith("-") or label.endswith("-"):
        return False
    return all(sign.isalnum() or sign == "-" for sign in label)


def seeds() -> Iterator[bytes]:
    for line in lines():
        verb, _, argument = line.partition(b" ")
        if verb.upper() in (b"MAIL", b"RCPT"):
            yield argument
            yield argument.partition(b"<")[2].rpartition(b">")[0]
    yield from (b'<"a b\\"c"@example.org> SIZE=1', b"<@a.example,@[192.0.2.1]:b@c.example>", b"<>")
    yield from (b'"a b\\"c"@example.org', b"a.b+c@x-1.example", b"a@[192.0.2.1]")
