"""Names and passwords in one form: RFC 4013, and the tables of RFC 3454 that it takes."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.saslprep import login_name, prepared_password, saslprep

# RFC 4013 section 3.
EXAMPLES = [
    ("I\u00adX", "IX"),
    ("user", "user"),
    ("USER", "USER"),
    ("\u00aa", "a"),
    ("\u2168", "IX"),
]

# Of RFC 3454, as ranges: B.1, what vanishes; C.1.2, other spaces; and what is prohibited of C.2.1
# to C.9, two of which normalisation makes harmless.
NOTHING = "00AD 034F 1806 180B-180D 200B-200D 2060 FE00-FE0F FEFF"
SPACES = "00A0 1680 2000-200A 202F 205F 3000"
PROHIBITED = (
    "0000-001F 007F 0080-009F 06DD 070F 180E 2028 2029 2061-2063 206A-206F FFF9-FFFC 1D173-1D17A"
    " E000-F8FF F0000-FFFFD 100000-10FFFD FDD0-FDEF D800-DFFF FFF9-FFFD 2FF0-2FFB 200E 200F"
    " 202A-202E E0001 E0020-E007F "
) + " ".join(f"{plane:X}FFFE-{plane:X}FFFF" for plane in range(17))
# Letters of the other direction that are taken apart into one and a mark, with which they end.
POINTED = (
    "FB1D FB1F FB2A-FB36 FB38-FB3C FB3E FB40 FB41 FB43 FB44 FB46-FB4E FC5B-FC5D FC90 FCD9"
    " FCF2-FCF4 FD3C FD3D FE71 FE77 FE79 FE7B FE7D FE7F"
)


def points(ranges: str) -> set[int]:
    found: set[int] = set()
    for part in ranges.split():
        low, _, high = part.partition("-")
        found |= set(range(int(low, 16), int(high or low, 16) + 1))
    return found


@pytest.mark.parametrize(("text", "prepared"), EXAMPLES)
def test_the_examples_of_the_rfc_are_prepared(text, prepared):
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\u0007", "\u06271"])
def test_the_bad_examples_of_the_rfc_are_refused(text):
    with pytest.raises(ValueError, match=r"control|direction"):
        saslprep(text)


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("", ""),
        ("a b", "a b"),
        ("p\u00e4ss", "p\u00e4ss"),
        ("pa\u0308ss", "p\u00e4ss"),
        ("\uff50\uff41\uff53\uff53", "pass"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\u200b\u00ad", ""),
        ("\ufb01x", "fix"),
        ("\u00df", "\u00df"),
        # after Unicode 3.2: unassigned there, so it stays what it is
        ("\U0001f600", "\U0001f600"),
        ("\u1e9e", "\u1e9e"),
        ("\u2c7c", "\u2c7c"),
        # the other direction of writing, alone and at both ends
        ("\u0627", "\u0627"),
        ("\u06271\u0628", "\u06271\u0628"),
        ("\u05d0 \u05d1", "\u05d0 \u05d1"),
        ("1-2 \u00e4", "1-2 \u00e4"),
    ],
)
def test_what_looks_the_same_becomes_the_same(text, prepared):
    assert saslprep(text) == prepared


@pytest.mark.parametrize("text", ["\u0627a\u0628", "1\u0627", "\u0627 ", "a\u05d0", "\u05d0\u00e4"])
def test_two_directions_of_writing_are_refused(text):
    with pytest.raises(ValueError, match="direction"):
        saslprep(text)


def prepared_or_none(text: str) -> str | None:
    try:
        return saslprep(text)
    except ValueError:
        return None


def test_every_character_is_treated_as_the_tables_say():
    found = {point: prepared_or_none(chr(point)) for point in range(sys.maxunicode + 1)}
    refused = {point for point, prepared in found.items() if prepared is None}
    assert refused == points(PROHIBITED) | points(POINTED)
    assert {point for point, prepared in found.items() if prepared == ""} == points(NOTHING)
    # and the ASCII one
    assert {p for p, prepared in found.items() if prepared == " "} == points(SPACES) | {32}


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=20))
def test_what_is_prepared_stays_so(text):
    with contextlib.suppress(ValueError):
        prepared = saslprep(text)
        assert saslprep(prepared) == prepared


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        (b"", b""),
        (b"FooBar", b"FooBar"),
        (b"\0\x07\x7f", b"\0\x07\x7f"),
        ("pa\u0308ss".encode(), "p\u00e4ss".encode()),
        ("a\u00a0b".encode(), b"a b"),
        # what cannot be prepared is taken as it is
        (b"\xff\xfe", b"\xff\xfe"),
        ("a\u0308\x07".encode(), "a\u0308\x07".encode()),
        ("\u06271".encode(), "\u06271".encode()),
        ("\ufffd".encode(), "\ufffd".encode()),
    ],
)
def test_a_password_is_prepared_where_it_can_be(password, prepared):
    assert prepared_password(password) == prepared


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        (b"Bobby@Example.ORG", "bobby@example.org"),
        ("JO\u0308RG".encode(), "j\u00f6rg"),
        ("I\u00adX".encode(), "ix"),
        ("\u2168".encode(), "ix"),
        ("\uff22obby".encode(), "bobby"),
        ("\u0130".encode(), "i\u0307"),
        (b"", b"".decode()),
        # what cannot be prepared is turned away elsewhere
        (b"Bob\x07", "bob\x07"),
        ("\u0627A".encode(), "\u0627a"),
    ],
)
def test_a_login_name_is_prepared_and_in_lower_case(octets, name):
    assert login_name(octets) == name


def test_the_tables_can_be_imported_before_they_cannot_be():
    code = (
        "import sys; from tofmipd.auth import saslprep; before = 'stringprep' in sys.modules;"
        "saslprep.import_tables(); sys.path.clear(); sys.meta_path.clear();"
        "print(before, saslprep.saslprep('I\\xadX'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False IX\n", "")


def test_a_login_name_that_is_not_utf_8_is_refused():
    with pytest.raises(UnicodeDecodeError):
        login_name(b"b\xff")
