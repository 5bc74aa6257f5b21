"""SASLprep (RFC 4013): one form for names and passwords that look the same.

The tables are imported for the first text that is not ASCII: most never need them.
"""

from __future__ import annotations

import importlib


def import_tables() -> None:
    """Now, for a process that may not be able to read Python's library later."""
    for name in ("stringprep", "unicodedata"):
        importlib.import_module(name)


def saslprep(text: str) -> str:
    """The prepared form of a name or password, as a query: unassigned code points may be in it.

    Raises ValueError for what RFC 4013 section 2.3 prohibits.
    """
    if text.isascii():
        if text.isprintable():
            return text
        raise ValueError("a control character")
    import stringprep
    import unicodedata

    mapped = (
        " " if stringprep.in_table_c12(character) else character
        for character in text
        if not stringprep.in_table_b1(character)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", "".join(mapped))
    for character in prepared:
        if _is_prohibited(character):
            raise ValueError(f"U+{ord(character):04X} is not allowed")
    _check_direction(prepared)
    return prepared


def _is_prohibited(character: str) -> bool:
    """RFC 4013 section 2.3."""
    import stringprep

    return (
        stringprep.in_table_c12(character)
        or stringprep.in_table_c21_c22(character)
        or stringprep.in_table_c3(character)
        or stringprep.in_table_c4(character)
        or stringprep.in_table_c5(character)
        or stringprep.in_table_c6(character)
        or stringprep.in_table_c7(character)
        or stringprep.in_table_c8(character)
        or stringprep.in_table_c9(character)
    )


def _check_direction(text: str) -> None:
    """RFC 3454 section 6."""
    import stringprep

    if not any(map(stringprep.in_table_d1, text)):
        return
    if any(map(stringprep.in_table_d2, text)):
        raise ValueError("both directions of writing")
    if not (stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])):
        raise ValueError("a direction of writing that does not begin and end it")


def prepared_password(password: bytes) -> bytes:
    """As above, or as it is where it cannot be prepared: then it is nobody's text."""
    if password.isascii():
        return password
    try:
        return saslprep(password.decode("utf-8")).encode("utf-8")
    except ValueError:
        return password


def login_name(octets: bytes) -> str:
    """The name of a login as it is looked up: prepared, in lower case.

    Raises UnicodeDecodeError for what is not UTF-8; a name that cannot be prepared is taken as it
    is.
    """
    text = octets.decode("utf-8")
    try:
        return saslprep(text).lower()
    except ValueError:
        return text.lower()
