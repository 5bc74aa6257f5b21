"""Lists of addresses: their lines, and which of them matches."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.lists import Entry, TextList, parse_list, read_rows
from tofmipd.tmda.pattern import compile_pattern


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"", []),
        (b"\n\r\n \t\r\n\x0c\n", []),
        (b"# all\n   # comments\n#", []),
        (b"a@x", [(b"a@x", Entry("", 1))]),
        (b"\n\na@x\n", [(b"a@x", Entry("", 3))]),
        (b"A@X.Example\r\nb@x\r\n", [(b"a@x.example", Entry("", 1)), (b"b@x", Entry("", 2))]),
        (b"  a@x \t dated=1H  more words \n", [(b"a@x", Entry("dated=1H", 1))]),
        (b"a@x bare # a friend", [(b"a@x", Entry("bare", 1))]),
        (b"a@x bare#friend", [(b"a@x", Entry("bare", 1))]),
        (b"e#f@x", [(b"e", Entry("", 1))]),
        (b"a@x #", [(b"a@x", Entry("", 1))]),
        (b"\xe9@x kw=\xe9", [(b"\xe9@x", Entry("kw=\udce9", 1))]),
        ("ä@x kw=ä".encode(), [("ä@x".encode(), Entry("kw=ä", 1))]),
        (b"a@x\0b c", [(b"a@x\0b", Entry("c", 1))]),
        (b"a\rb c", [(b"a", Entry("b", 1))]),
    ],
)
def test_a_line_is_a_pattern_and_perhaps_an_action(text, rows):
    assert list(read_rows(text)) == rows


@pytest.mark.parametrize(
    ("text", "keys", "line"),
    [
        (b"", (b"a@x", b"x"), None),
        (b"x\na@x\n", (b"a@x", b"x"), 2),
        (b"x\nb@x\n", (b"a@x", b"x"), 1),
        (b"a@x bare\na@x sender\n", (b"a@x", b"x"), 1),
        (b"*\na@x\n", (b"a@x", b"x"), 1),
        (b"*@x\na@x\n", (b"a@x", b"x"), 1),
        (b"\n\n#\n*@=x\n", (b"a@b.x", b"b.x"), 4),
        (b"*.x\n", (b"a@b.x", b"b.x"), 1),
        (b"b.?\n", (b"a@b.x", b"b.x"), 1),
        (b"=x\n", (b"a@x", b"x"), None),
        (b"a@x\n", (b"a@x",), 1),
        (b"a\n", (b"",), None),
        (b"[!a]*@x\n", (b"b@x", b"x"), 1),
        (b"A@X\n", (b"a@x", b"x"), 1),
    ],
)
def test_the_address_is_tried_before_its_domain_and_the_first_line_wins(text, keys, line):
    found = parse_list(text).find(keys)
    assert (found and found.line) == line


LINES = st.lists(
    st.lists(
        st.sampled_from(
            ["a", "b@a", "*@a", "*@=a.b", "?", "[ab]@*", "#", " ", "\t", "bare", "B@A"]
        ),
        max_size=4,
    ).map("".join),
    max_size=8,
)
KEYS = st.lists(st.text("ab@. ", max_size=6).map(str.encode), max_size=3)


def tried_in_turn(text, keys):
    """By the words of section 4.8 of the reference."""
    for key in keys:
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            words = line.split("#")[0].split()
            if words and compile_pattern(words[0].encode()).fullmatch(key):
                return Entry(words[1] if len(words) > 1 else "", number)
    return None


@settings(max_examples=600, deadline=None)
@given(LINES, KEYS, st.sampled_from(["\n", "\r\n"]))
@example(["a#", "#a", "a"], [b"a"], "\n")
def test_a_list_finds_what_trying_each_line_finds(lines, keys, end):
    text = end.join(lines)
    assert parse_list(text.encode()).find(keys) == tried_in_turn(text, keys)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.binary(max_size=10).map(bytes.lower), max_size=2))
def test_any_octets_are_a_list(text, keys):
    found = parse_list(text).find(keys)
    assert found is None or 1 <= found.line <= text.count(b"\n") + 1


def test_a_list_of_many_lines_keeps_the_places_of_all():
    text = b"".join(b"a%d@x.example kw=%d\n#\n" % (number, number) for number in range(20_000))
    names = parse_list(text)
    for number in (0, 1, 9_999, 19_999):
        found = names.find((b"a%d@x.example" % number, b"x.example"))
        assert found == Entry(f"kw={number}", 2 * number + 1)
    assert names.find((b"a20000@x.example", b"x.example")) is None


def test_rows_of_any_origin_make_a_list():
    names = TextList([(b"*@x", Entry("", 7)), (b"a@y", Entry("bare", 9))])
    assert names.find([b"q@x"]) == Entry("", 7)
    assert names.find([b"a@y"]) == Entry("bare", 9)
    assert names.find([]) is None
