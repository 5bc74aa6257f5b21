"""Entries of the outgoing log: their text to the octet, and that no message can forge one."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tmda_inject import send

from tofmipd.tmda import header, outlog

DATE = b"Tue, 14 Nov 2023 22:13:20 +0000"
FIELDS = b"From: Alice <alice-x@example.com>\r\nTo: l@lists.example\r\nSubject: Hi\r\n"
RULE = "to * tag from ext=x"


def parsed(block):
    return header.parse(block + b"\r\n")[0]


def entry(
    block=FIELDS, sender=b"alice-x@example.com", recipient=b"bob@x.example", rule=RULE, size=321
):
    return outlog.entry(parsed(block), sender, recipient, rule, DATE, size)


def lines_of(text):
    """Label and value of each line; the empty line at the end is checked and gone."""
    assert text.endswith(b"\n\n")
    lines = text[:-2].split(b"\n")
    assert all(line[4:6] == b": " for line in lines)
    return [(line[:4].decode(), line[6:]) for line in lines]


# The text


def test_an_entry_reads_as_in_the_original():
    assert entry() == (
        b"Date: Tue, 14 Nov 2023 22:13:20 +0000\n"
        b"From: Alice <alice-x@example.com>\n"
        b"  To: bob@x.example\n"
        b"Subj: Hi\n"
        b"Actn: to * tag from ext=x" + b" " * 48 + b"(321)\n"
        b"\n"
    )


def test_an_entry_has_all_that_there_can_be_in_its_order():
    block = (
        b"Subject: Hi\r\nReply-To: Re <r@x>\r\nFrom: Alice <alice@example.com>\r\n"
        b"X-Primary-Address: p@x\r\n"
    )
    assert entry(block, sender=b"alice-bounce@example.com", rule="r", size=7) == (
        b"Date: Tue, 14 Nov 2023 22:13:20 +0000\n"
        b"XPri: p@x\n"
        b"Sndr: alice-bounce@example.com\n"
        b"From: Alice <alice@example.com>\n"
        b"Rept: Re <r@x>\n"
        b"  To: bob@x.example\n"
        b"Subj: Hi\n"
        b"Actn: r" + b" " * 68 + b"(7)\n"
        b"\n"
    )


@pytest.mark.parametrize(
    ("from_", "sender", "shown"),
    [
        (b"From: Alice <alice@x>\r\n", b"alice@x", None),
        (b"From: alice@x\r\n", b"alice@x", None),
        (b"From: alice@x (Alice)\r\n", b"alice@x", None),
        (b"From: Alice\r\n <alice@x>\r\n", b"alice@x", None),
        (b"From: Alice <alice@x>, Bob <bob@x>\r\n", b"alice@x", None),
        (b"From: Bob <bob@x>, Alice <alice@x>\r\n", b"alice@x", b"alice@x"),
        (b"From: Alice <ALICE@x>\r\n", b"alice@x", b"alice@x"),
        (b"From: Alice <alice-x@x>\r\n", b"alice@x", b"alice@x"),
        (b'From: "alice@x" <bob@x>\r\n', b"alice@x", b"alice@x"),
        (b"From: Alice <alice@x>\r\n", b"", b"<>"),
        (b"From: <>\r\n", b"", b"<>"),
        (b"From:\r\n", b"alice@x", b"alice@x"),
        (b"", b"alice@x", b"alice@x"),
        (b"", b"", b"<>"),
    ],
)
def test_the_envelope_sender_is_told_where_from_does_not_tell_it(from_, sender, shown):
    labels = dict(lines_of(entry(from_ + b"Subject: x\r\n", sender=sender)))
    assert labels.get("Sndr") == shown
    assert ("From" in labels) == bool(from_)


@pytest.mark.parametrize(
    ("block", "subject"),
    [
        (b"", b"None"),
        (b"Subject:\r\n", b""),
        (b"Subject: \t \r\n", b""),
        (b"Subject: None\r\n", b"None"),
        (b"subject:a  b\r\n", b"a  b"),
        (b"Subject: a\tb \r\n", b"a\tb "),
        (b"Subject: one\r\nSubject: two\r\n", b"one"),
        (b"Subject: one\r\n two\r\n\t three \r\n", b"one two three "),
        (b"Subject:\r\n one\r\n", b"one"),
        (b"Subject: J\xc3\xbcrgen \xfc\r\n", b"J\xc3\xbcrgen \xfc"),
        (b"Subject: =?utf-8?q?J=C3=BCrgen?=\r\n", b"=?utf-8?q?J=C3=BCrgen?="),
    ],
)
def test_a_subject_is_one_line_and_otherwise_as_it_is(block, subject):
    assert dict(lines_of(entry(block)))["Subj"] == subject


@pytest.mark.parametrize(
    ("rule", "size", "line"),
    [
        ("", 1, b" " * 69 + b"(1)"),
        ("a", 12345678, b"a" + b" " * 61 + b"(12345678)"),
        ("x" * 67, 321, b"x" * 67 + b"(321)"),
        ("x" * 66, 321, b"x" * 66 + b" (321)"),
        ("x" * 68, 321, b"x" * 68 + b"(321)"),
        ("x" * 300, 321, b"x" * 300 + b"(321)"),
        ("to é tag from bare", 5, "to é tag from bare".encode() + b" " * 50 + b"(5)"),
        ("to \udce9 tag from bare", 5, b"to \xe9 tag from bare" + b" " * 51 + b"(5)"),
        ("X-TMDA: bare", 0, b"X-TMDA: bare" + b" " * 57 + b"(0)"),
        ("action_outgoing (dated)", 9, b"action_outgoing (dated)" + b" " * 46 + b"(9)"),
    ],
)
def test_the_action_and_the_size_fill_72_columns(rule, size, line):
    assert lines_of(entry(rule=rule, size=size))[-1] == ("Actn", line)


@pytest.mark.parametrize(
    "recipient", [b"bob@x", b'"a b"@x', "jürgen@x".encode(), b"-O/etc@x", b"\xff@x", b""]
)
def test_the_recipient_is_that_of_the_envelope(recipient):
    assert dict(lines_of(entry(recipient=recipient)))["  To"] == recipient


# The size


@pytest.mark.parametrize(
    ("block", "serialised"),
    [
        (b"", b"\n"),
        (b"A: 1\r\n", b"A: 1\n\n"),
        (b"A:1\r\nB:   2  \r\n", b"A: 1\nB: 2  \n\n"),
        (b"A:\r\nB: \t\r\n", b"A: \nB: \n\n"),
        (b"A: one\r\n\ttwo\r\n  three \r\n", b"A: one\n\ttwo\n  three \n\n"),
        (b"A:\r\n one\r\n", b"A:  one\n\n"),
        (b"A: \r\n\tone\r\n", b"A: \tone\n\n"),
        (b"A: \xc3\xbc\xff\r\n", b"A: \xc3\xbc\xff\n\n"),
        (b"X-TMDA: bare\r\nBcc: a@x\r\n", b"X-TMDA: bare\nBcc: a@x\n\n"),
    ],
)
@pytest.mark.parametrize("body", [0, 1, 50_000_000])
def test_the_size_is_that_of_the_submitted_message_with_one_blank_behind_each_colon(
    block, serialised, body
):
    """As Python 2 would have written it; folds stay as they are."""
    assert outlog.submitted_size(parsed(block), body) == len(serialised) + body


# Forging

FORGERIES = [
    b"x\r\n \r\n Date: now\r\n Actn: forged",
    b"x\r\n\tFrom: ceo@example.com",
    b"x\nDate: now\n\nActn: forged",
    b"x\rDate: now",
    b"x\r\n\r\nDate: now",
    b"x\x0bDate\x0c\x1c\x1d\x1e",
    b"x\x00y\x08\x1b[2J\x7f",
    b"x\r\n " * 50 + b"y",
    b"\r\n x",
]


@pytest.mark.parametrize("value", FORGERIES)
@pytest.mark.parametrize("name", [b"Subject", b"Reply-To", b"X-Primary-Address", b"From"])
def test_no_field_can_bring_a_line_into_the_log(name, value):
    """Line ends that no field can have are put there all the same."""
    fields = [*parsed(b"X: y\r\n"), header.Field(name.lower(), name + b": " + value + b"\r\n")]
    text = outlog.entry(fields, b"s@x", b"r@x", RULE, DATE, 1)
    expected = {
        b"Subject": ["Date", "Sndr", "  To", "Subj", "Actn"],
        b"Reply-To": ["Date", "Sndr", "Rept", "  To", "Subj", "Actn"],
        b"X-Primary-Address": ["Date", "XPri", "Sndr", "  To", "Subj", "Actn"],
        b"From": ["Date", "Sndr", "From", "  To", "Subj", "Actn"],
    }
    assert [label for label, _ in lines_of(text)] == expected[name]
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", text)


@pytest.mark.parametrize("value", FORGERIES)
def test_neither_recipient_nor_sender_nor_rule_can_bring_a_line_into_the_log(value):
    text = outlog.entry(parsed(FIELDS), value, value, value.decode(), DATE, 1)
    labels = [label for label, _ in lines_of(text)]
    assert labels == ["Date", "Sndr", "From", "  To", "Subj", "Actn"]
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", text)


octets = st.one_of(
    st.binary(max_size=30),
    st.lists(
        st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b"\t", b"x", b"Date: ", b"\x85", b"<a@b>"])
    ).map(b"".join),
)


@settings(max_examples=300, deadline=None)
@given(octets, octets, octets, octets)
@example(b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n")
def test_whatever_values_there_are_an_entry_has_its_lines_and_no_more(one, two, three, rule):
    fields = [
        header.Field(b"subject", b"Subject:" + one + b"\r\n"),
        header.Field(b"reply-to", b"Reply-To:" + two + b"\r\n"),
        header.Field(b"from", b"From: a@b" + one + b"\r\n"),
    ]
    text = rule.decode("utf-8", "surrogateescape")
    entry = outlog.entry(fields, b"never@x", three, text, DATE, 1)
    labels = [label for label, _ in lines_of(entry)]
    assert labels == ["Date", "Sndr", "From", "Rept", "  To", "Subj", "Actn"]


# Of real copies


def test_an_entry_shows_the_copy_not_what_was_submitted():
    message = (
        b"From: Alice <alice@example.com>\r\nSubject: Hi\r\nReply-To: me@x\r\n"
        b"X-TMDA-Fingerprint: x\r\n\r\n"
    )
    (copy,) = send("to * tag from ext=x reply-to ext=r subject 'New words'", message=message)
    (report,) = copy.reports
    text = outlog.entry(copy.fields, copy.sender, report.recipient, report.rule, DATE, 5)
    labels = dict(lines_of(text))
    assert labels["From"] == b"Alice <alice-x@example.com>"
    assert labels["Rept"] == b"Alice <alice-r@example.com>"
    assert labels["Subj"] == b"New words"
    assert "Sndr" not in labels
    rule = b'to * tag from ext=x reply-to ext=r subject "New words"'
    assert labels["Actn"] == rule.ljust(69) + b"(5)"


def test_what_was_folded_by_us_is_one_line_in_the_log():
    name = " ".join(["Alice"] * 40)
    (copy,) = send("to * ext=x", message=b"\r\n", FULLNAME=name)
    assert b"Alice\r\n Alice" in copy.header
    (report,) = copy.reports
    text = outlog.entry(copy.fields, copy.sender, report.recipient, report.rule, DATE, 5)
    labels = dict(lines_of(text))
    assert labels["From"] == name.encode() + b" <alice-x@example.com>"
    assert "Sndr" not in labels
    assert labels["Subj"] == b"None"


def test_a_resent_message_shows_both_of_its_senders():
    message = b"Resent-From: alice@example.com\r\nFrom: Bob <bob@x>\r\n\r\n"
    (copy,) = send("to * ext=x", message=message)
    (report,) = copy.reports
    text = outlog.entry(copy.fields, copy.sender, report.recipient, report.rule, DATE, 5)
    labels = dict(lines_of(text))
    assert (labels["Sndr"], labels["From"]) == (b"alice-x@example.com", b"Bob <bob@x>")
