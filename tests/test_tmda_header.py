"""The header block: what nobody touches keeps its octets, and nothing is ever lost."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda import header
from tofmipd.tmda.errors import TagError
from tofmipd.tmda.header import Field

noise = settings(max_examples=300, deadline=None)


def names(fields):
    return [field.name for field in fields]


WELL_FORMED = [
    b"\r\n",
    b"From: a@x\r\n\r\n",
    b"From:a@x\r\nTo:b@x\r\n\r\n",
    b"FROM: a@x\r\nsubject:\r\nX-1!#$%: y\r\n\r\n",
    b"Subject : obsolete blank\r\nTo\t: b@x\r\n\r\n",
    b"Subject: one\r\n two\r\n\tthree\r\n   \r\n four\r\nTo: b@x\r\n\r\n",
    b"Subject:\r\n starts on the next line\r\n\r\n",
    b"DKIM-Signature: v=1; a=rsa-sha256;\r\n\tb=abc\r\n\t def=; c=relaxed\r\n\r\n",
    b"Subject: \xfc\xe9 \xf0\x9f\x98\x80\r\nX: \x00\x01\x7f:;,\r\n\r\n",
    b"Received: by a; date: x\r\nReceived: by b\r\nreceived: by c\r\n\r\n",
    b"X-Trailing: blanks  \t \r\n\r\n",
]


@pytest.mark.parametrize("block", WELL_FORMED)
@pytest.mark.parametrize("body", [b"", b"text\r\n", b"\r\n\r\nFrom: not a field\r\n", b"\x00\xff"])
def test_a_block_that_nobody_touches_keeps_its_octets(block, body):
    fields, start = header.parse(block + body)
    assert start == len(block)
    assert header.render(fields) == block


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (b"From: a@x\r\nTo: b@x\r\n\r\n", [(b"from", b"a@x"), (b"to", b"b@x")]),
        (b"FROM:a@x\r\n\r\n", [(b"from", b"a@x")]),
        (b"Subject \t : x \t\r\n\r\n", [(b"subject", b"x")]),
        (b"Subject:\r\n\r\n", [(b"subject", b"")]),
        (b"A: 1\r\nA: 2\r\na: 3\r\n\r\n", [(b"a", b"1"), (b"a", b"2"), (b"a", b"3")]),
        (b"A: x: y\r\n\r\n", [(b"a", b"x: y")]),
        (b"A: one\r\n two\r\n\r\n", [(b"a", b"one\r\n two")]),
        (b"A:\r\n one\r\n \r\n\r\n", [(b"a", b"one")]),
        (b"X-\xfc: no name\r\n\r\n", []),
        (b"A: \xfc\r\n\r\n", [(b"a", b"\xfc")]),
    ],
)
def test_a_field_has_a_name_in_lower_case_and_a_value(text, pairs):
    fields, _ = header.parse(text)
    assert [(field.name, field.value) for field in fields] == pairs


@pytest.mark.parametrize(
    ("message", "found", "body"),
    [
        (b"", [], b""),
        (b"\r\n", [], b""),
        (b"\r\njust a body\r\n", [], b"just a body\r\n"),
        (b"\r\n\r\nbody\r\n", [], b"\r\nbody\r\n"),
        (b"just a body\r\n", [], b"just a body\r\n"),
        (b"A: 1\r\n", [b"a"], b""),
        (b"A: 1", [b"a"], b""),
        (b"A:", [b"a"], b""),
        (b"A: 1\r\n folded", [b"a"], b""),
        (b"A: 1\r\nno field\r\nB: 2\r\n\r\n", [b"a"], b"no field\r\nB: 2\r\n\r\n"),
        (b"A: 1\r\n: no name\r\n\r\n", [b"a"], b": no name\r\n\r\n"),
        (b"A: 1\r\nB\xfc: 2\r\n\r\n", [b"a"], b"B\xfc: 2\r\n\r\n"),
        (b"A: 1\r\nB C: 2\r\n\r\n", [b"a"], b"B C: 2\r\n\r\n"),
        (b"A: 1\r\nFrom b@x Thu Jan\r\nB: 2\r\n", [b"a"], b"From b@x Thu Jan\r\nB: 2\r\n"),
        (b"A: 1\r\n>From b: 2\r\n", [b"a"], b">From b: 2\r\n"),
        (b"A: 1\nB: 2\r\n\r\n", [], b"A: 1\nB: 2\r\n\r\n"),
        (b"A: 1\r\nB: 2\rC: 3\r\n\r\n", [b"a"], b"B: 2\rC: 3\r\n\r\n"),
        (b"A: 1\n\nbody", [], b"A: 1\n\nbody"),
    ],
)
def test_the_first_line_that_is_no_field_starts_the_body(message, found, body):
    fields, start = header.parse(message)
    assert names(fields) == found
    assert message[start:] == body


@pytest.mark.parametrize(
    ("preamble", "kept"),
    [
        (b"From alice@x Thu Jan  1 00:00:00 1970\r\n", b""),
        (b" continues nothing\r\n", b""),
        (b"\tcontinues nothing\r\n \r\n", b""),
        (b"From alice@x\r\n continued\r\n", b""),
        (b"From alice@x\r\nFrom alice@x\r\n", b"From alice@x\r\n"),
    ],
)
def test_an_mbox_line_and_stray_continuations_before_the_fields_are_dropped(preamble, kept):
    message = preamble + b"A: 1\r\n\r\nbody"
    fields, start = header.parse(message)
    assert names(fields) == ([] if kept else [b"a"])
    assert message[start:] == (kept + b"A: 1\r\n\r\nbody" if kept else b"body")


@pytest.mark.parametrize("message", [b" only this", b"From only this", b"\t", b"From x\r\n y"])
def test_a_preamble_without_an_end_is_the_whole_message(message):
    assert header.parse(message) == ([], len(message))


@noise
@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(
                [b"A", b":", b" ", b"\t", b"\r\n", b"\r", b"\n", b"From ", b"x-y", b"\xff", b"\x00"]
            ),
            max_size=16,
        ).map(b"".join),
    )
)
@example(b"A: 1\r\n\r")
@example(b"A: 1\r\n \r\n\r\n\r\n")
def test_noise_is_taken_apart_without_losing_an_octet(message):
    fields, start = header.parse(message)
    block = b"".join(field.octets for field in fields)
    assert 0 <= start <= len(message)
    assert all(field.octets.endswith(b"\r\n") for field in fields)
    if message.startswith((b"From ", b" ", b"\t")):
        assert block.removesuffix(b"\r\n") in message[:start]
        return
    assert block + message[len(block) :] in (message, message + b"\r\n")
    assert message[len(block) : start] in (b"", b"\r\n")


fields_of_any_kind = st.lists(
    st.builds(
        lambda name, folds: name + b":" + b"\r\n ".join(folds) + b"\r\n",
        st.sampled_from([b"From", b"to", b"X-Y", b"!~"]),
        st.lists(st.binary(max_size=8), min_size=1, max_size=3).map(
            lambda parts: [part.translate(None, b"\r\n") for part in parts]
        ),
    ),
    max_size=5,
)


@noise
@given(fields_of_any_kind, st.binary(max_size=20))
def test_every_well_formed_message_is_rendered_as_it_came(blocks, body):
    message = b"".join(blocks) + b"\r\n" + body
    fields, start = header.parse(message)
    assert [field.octets for field in fields] == blocks
    assert header.render(fields) + message[start:] == message


def test_a_made_field_reads_back():
    field = header.make_field(b"X-Orig-Addr", b"Alice <a@x>")
    assert field == Field(b"x-orig-addr", b"X-Orig-Addr: Alice <a@x>\r\n", made=True)
    (read,), end = header.parse(field.octets)
    assert (read, end) == (Field(field.name, field.octets), len(field.octets))


# Folding


def as_one_line(octets):
    """RFC 5322 section 2.2.3: unfolding is taking the line ends out."""
    return octets.removesuffix(b"\r\n").replace(b"\r\n", b"")


def lines_of(field):
    return field.octets.removesuffix(b"\r\n").split(b"\r\n")


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (b"", [b"X-A: "]),
        (b"x" * 73, [b"X-A: " + b"x" * 73]),
        # Nothing to fold at: not even before the first word, if 998 octets hold it.
        (b"x" * 74, [b"X-A: " + b"x" * 74]),
        (b"x" * 993, [b"X-A: " + b"x" * 993]),
        (b"x" * 994, [b"X-A:", b" " + b"x" * 994]),
        (b"x" * 997, [b"X-A:", b" " + b"x" * 997]),
        (b"a " + b"x" * 71, [b"X-A: a " + b"x" * 71]),
        (b"a " + b"x" * 72, [b"X-A: a", b" " + b"x" * 72]),
        (b"a " + b"x" * 997, [b"X-A: a", b" " + b"x" * 997]),
        (b"x" * 73 + b" a", [b"X-A: " + b"x" * 73, b" a"]),
        (b"x" * 74 + b" a", [b"X-A: " + b"x" * 74, b" a"]),
        (b"x" * 300 + b" a b", [b"X-A: " + b"x" * 300, b" a b"]),
        (b"x" * 71 + b"   a", [b"X-A: " + b"x" * 71, b"   a"]),
        (b"x" * 60 + b"\t" + b"y" * 30, [b"X-A: " + b"x" * 60, b"\t" + b"y" * 30]),
        (b"x" * 60 + b" \t " + b"y" * 30, [b"X-A: " + b"x" * 60, b" \t " + b"y" * 30]),
        (b"a " + b"x" * 70 + b"  ", [b"X-A: a", b" " + b"x" * 70 + b"  "]),
        (b"x" * 80 + b"  ", [b"X-A: " + b"x" * 80 + b"  "]),
        (b"  " + b"x" * 80, [b"X-A:   " + b"x" * 80]),
        (b" " * 100, [b"X-A: " + b" " * 100]),
        (b"\xc3\xbc" * 40 + b" a", [b"X-A: " + b"\xc3\xbc" * 40, b" a"]),
    ],
)
def test_a_new_field_is_folded_at_blanks_after_78_octets(value, lines):
    assert lines_of(header.make_field(b"X-A", value)) == lines


def test_words_fill_the_lines():
    lines = lines_of(header.make_field(b"X-A", b" ".join([b"words"] * 100)))
    assert all(72 < len(line) <= 78 for line in lines[:-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"X-A", b"x" * 998),
        (b"X-A", b"a " + b"x" * 998),
        (b"X-A", b"a " + b"x" * 998 + b" b"),
        (b"X-A", b"x" * 10_000_000),
        (b"X-A", b"x" * 900 + b" " * 200),
        (b"X-A", b" " * 1000),
        (b"X-" + b"a" * 1000, b"x"),
    ],
)
def test_what_would_need_a_line_of_more_than_998_octets_is_refused(name, value):
    with pytest.raises(TagError, match="a line of more than 998 octets"):
        header.make_field(name, value)


words = st.one_of(
    st.sampled_from([b"a", b"word", b"=?utf-8?q?x?=", b"x" * 30, b"y" * 77, b"z" * 79, b"w" * 400]),
    st.binary(min_size=1, max_size=5).map(lambda o: o.translate(None, b"\r\n\t ") or b"_"),
)
blanks = st.sampled_from([b" ", b" ", b" ", b"  ", b"\t", b" \t ", b" " * 40])
values_of_words = st.lists(st.tuples(words, blanks), max_size=40).map(
    lambda pairs: b"".join(part for pair in pairs for part in pair)
)


@noise
@given(
    st.sampled_from([b"X", b"Mail-Followup-To", b"X-" + b"n" * 70, b"X-" + b"n" * 100]),
    st.one_of(values_of_words, values_of_words.map(bytes.strip)),
)
@example(b"X", b"a" * 71 + b" " * 10 + b"b")
@example(b"X", b"\t" * 80 + b"a")
@example(b"X", b"a" * 990 + b"  b")
def test_folding_loses_nothing_and_makes_no_line_that_is_too_long_or_blank(name, value):
    field = header.make_field(name, value)
    lines = lines_of(field)
    assert as_one_line(field.octets) == name + b": " + value
    assert max(map(len, lines)) <= 998
    for line in lines[1:]:
        assert line[:1] in (b" ", b"\t")
        assert line.strip(b" \t")
    (read,), end = header.parse(field.octets)
    assert (read.octets, end) == (field.octets, len(field.octets))
    for number, line in enumerate(lines):
        if len(line) > 78:
            # There is no blank to end it at but those at its ends.
            inside = line.partition(b":")[2] if number == 0 else line
            assert not re.search(rb"[^ \t][ \t]+[^ \t]", inside.strip(b" \t"))


@noise
@given(values_of_words.map(bytes.strip))
def test_a_folded_value_says_the_same(value):
    """As a program reads it that unfolds, and as a fingerprint has it."""
    field = header.make_field(b"X-A", value)
    assert field.text == value.lstrip(b" \t")
    assert header.unfold(field.value).split() == value.split()


def test_folding_takes_time_in_proportion_to_the_length():
    started = time.process_time()
    for unit in (b"a ", b"a\t", b"a" * 77 + b" ", b"a   ", b"a \t"):
        header.make_field(b"X-A", unit * (1_000_000 // len(unit)) + b"a")
    assert time.process_time() - started < 5


# What programs on this machine have


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"A: x\r\n", b"x"),
        (b"A:x\r\n", b"x"),
        (b"A: \t x \t\r\n", b"x \t"),
        (b"A: x\r\n\ty\r\n  z \r\n", b"x\n\ty\n  z "),
        (b"A:\r\n x\r\n", b" x"),
        (b"A: \r\n\tx\r\n", b"\tx"),
        (b"A:\r\n", b""),
        (b"A:  \r\n", b""),
        (b"A: \xff\x00\r\n", b"\xff\x00"),
    ],
)
def test_a_submitted_value_keeps_its_folds_and_the_blanks_at_its_end(octets, text):
    (field,), _ = header.parse(octets + b"\r\n")
    assert field.text == text


def test_fields_are_found_by_name_first_all_and_without():
    fields, _ = header.parse(b"A: 1\r\nB: 2\r\na: 3\r\n\r\n")
    assert header.first(fields, b"a") == b"1"
    assert header.first(fields, b"c") is None
    assert header.values(fields, b"a") == [b"1", b"3"]
    assert header.values(fields, b"c") == []
    assert names(header.without(fields, (b"a", b"c"))) == [b"b"]
    assert header.without(fields, ()) == fields


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (b"one", b"one"),
        (b"one\r\n two", b"one two"),
        (b"one \t\r\n\t  two", b"one two"),
        (b"one\r\n two\r\n three", b"one two three"),
        (b"one  two", b"one  two"),
        (b"", b""),
    ],
)
def test_unfolding_makes_each_fold_one_blank(value, line):
    assert header.unfold(value) == line


def test_unfolding_takes_time_in_proportion_to_the_length():
    started = time.process_time()
    header.unfold(b"a" + b" " * 40_000 + b"b")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("name", "capitalised"),
    [
        (b"x-ORIG-addr", b"X-Orig-Addr"),
        (b"reply-to", b"Reply-To"),
        (b"x--y-", b"X-Y"),
        (b"x_mixed-CASE_name", b"X_mixed-Case_name"),
        (b"ab", b"Ab"),
    ],
)
def test_each_word_of_a_name_gets_one_capital(name, capitalised):
    assert header.capitalised(name) == capitalised
