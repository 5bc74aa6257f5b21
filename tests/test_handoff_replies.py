"""Replies of the next hop: a strict reader, and what the client hears of a refusal."""

from __future__ import annotations

import pytest
from fakes import in_pieces, octet_by_octet
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.handoff.replies import BadReply, NextHopReply, ReplyReader, refusal

noise = settings(max_examples=200, deadline=None)


def replies_of(pieces):
    """All replies, and at the end the BadReply if there is one."""
    reader, found = ReplyReader(), []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (reply := reader.reply()) is not None:
                found.append((reply.code, reply.text))
        except BadReply:
            return [*found, BadReply]
    return found


LONGEST = 2048


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"", []),
        (b"250 ok\r\n", [(250, "ok")]),
        (b"250 ok\r", []),
        (b"250-one\r\n", []),
        (b"250\r\n", [(250, "")]),
        (b"250 \r\n", [(250, "")]),
        (b"250-one\r\n250-two\r\n250 three\r\n", [(250, "one two three")]),
        (b"250-\r\n250\r\n", [(250, " ")]),
        (b"250 a\r\n354 b\r\n550 c\r\n", [(250, "a"), (354, "b"), (550, "c")]),
        (b"250 \xff\xfe\r\n", [(250, "\ufffd\ufffd")]),
        (b"250 gr\xc3\xbc\xc3\x9fe\0\r\n", [(250, "grüße\0")]),
        (b"250-" + b"x" * (LONGEST - 6) + b"\r\n250 y\r\n", [(250, "x" * (LONGEST - 6) + " y")]),
        (b"250-x\r\n" * 199 + b"250 x\r\n", [(250, " ".join("x" * 200))]),
    ],
)
def test_a_reply_is_one_or_more_lines_with_one_code(octets, expected):
    assert replies_of([octets]) == expected
    assert replies_of(octet_by_octet(octets)) == expected


@pytest.mark.parametrize(
    "octets",
    [
        b"250 ok\n",
        b"\n",
        b"\r\n",
        b"250 a\rb\r\n",
        b"250 ok\r\r\n",
        b"ok\r\n",
        b"25\r\n",
        b" 250 ok\r\n",
        b"150 ok\r\n",
        b"650 ok\r\n",
        b"000 ok\r\n",
        b"-50 ok\r\n",
        b"\xb250 ok\r\n",
        b"2\xb20 ok\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250-one\r\n251 two\r\n",
        b"250-one\r\nBad\r\n",
        b"250-x\r\n" * 200 + b"250 x\r\n",
        b"x" * (LONGEST + 1),
        b"250 " + b"x" * LONGEST + b"\r\n",
    ],
)
def test_what_is_no_reply_is_a_bad_one_however_it_comes(octets):
    assert replies_of([octets]) == [BadReply]
    assert replies_of(octet_by_octet(octets)) == [BadReply]


@pytest.mark.parametrize("octets", [b"2500 ok\r\n", b"250ok\r\n", b"250_ok\r\n", b"25012 ok\r\n"])
def test_a_code_of_more_than_three_digits_is_none(octets):
    assert replies_of([octets]) == [BadReply]


@pytest.mark.parametrize(
    ("octets", "idle"),
    [
        (b"250 ok\r\n", True),
        (b"250 ok\r\n2", False),
        (b"250 ok\r\n250-one\r\n", False),
    ],
)
def test_idle_means_that_nothing_unasked_has_come(octets, idle):
    reader = ReplyReader()
    reader.feed(octets)
    assert reader.reply() == NextHopReply(250, "ok")
    assert reader.reply() is None
    assert reader.idle is idle


PARTS = [b"250", b"-", b" ", b"\r\n", b"\r", b"\n", b"ok", b"354 go\r\n", b"\xff", b"550-no\r\n"]
PIECES = st.one_of(st.sampled_from(PARTS), st.binary(max_size=5))
NOISE = st.lists(PIECES, max_size=30).map(b"".join)


@noise
@given(NOISE, st.lists(st.integers(1, 100), max_size=10))
def test_noise_makes_nothing_but_replies_and_bad_ones_whatever_the_pieces(octets, cuts):
    found = replies_of([octets])
    assert replies_of(octet_by_octet(octets)) == found
    assert replies_of(in_pieces(octets, cuts)) == found
    for reply in found:
        if reply is not BadReply:
            assert 200 <= reply[0] <= 599
            assert "\r" not in str(NextHopReply(*reply))
            assert str(NextHopReply(*reply)).isprintable()


# What the client hears.


@pytest.mark.parametrize(
    ("code", "text", "about", "heard"),
    [
        (550, "5.1.1 no such user", "x@y", "550 5.1.1 <x@y>: no such user"),
        (550, "5.1.1 no such user", "", "550 5.1.1 no such user"),
        (550, "no such user", "x@y", "550 5.0.0 <x@y>: no such user"),
        (452, "4.2.2 over quota", "x@y", "452 4.2.2 <x@y>: over quota"),
        (421, "4.3.2 shutting down", "", "451 4.3.2 shutting down"),
        (421, "too many connections", "", "451 4.0.0 too many connections"),
        (250, "2.0.0 ok?", "", "451 4.0.0 ok?"),
        (354, "go on", "", "451 4.0.0 go on"),
        (550, "4.1.1 mixed", "", "550 5.0.0 mixed"),
        (450, "5.1.1 mixed", "", "450 4.0.0 mixed"),
        (554, "5.7.1", "", "554 5.7.1 refused by the next hop"),
        (554, "", "", "554 5.0.0 refused by the next hop"),
        (554, "", "x@y", "554 5.0.0 <x@y>: "),
        (554, "5.7.1.2 x", "", "554 5.0.0 5.7.1.2 x"),
        (554, "5.1234.1 x", "", "554 5.0.0 5.1234.1 x"),
        (554, "a\0b\x1b[31m", "", "554 5.0.0 a\\x00b\\x1b[31m"),
        (554, "5.7.1 no", "a\r\nb", "554 5.7.1 <a\\r\\nb>: no"),
    ],
)
def test_a_refusal_keeps_code_status_and_text(code, text, about, heard):
    reply = refusal(NextHopReply(code, text), about)
    assert str(reply) == heard
    assert reply.encode() == heard.encode() + b"\r\n"
    assert not reply.closes


@pytest.mark.parametrize("text", ["x", "grüße ", "中", "\0", "\U000e0001", "a b "])
def test_a_refusal_is_one_line_as_long_as_a_reply_may_be(text):
    octets = refusal(NextHopReply(550, "5.7.1 " + text * 2000), "x@example.net").encode()
    assert octets.count(b"\n") == 1
    assert len(octets) <= 512  # RFC 5321 section 4.5.3.1.5


@noise
@given(st.integers(200, 599), st.text(st.characters(exclude_categories=())), st.text(max_size=20))
def test_any_reply_becomes_a_refusal_that_can_be_said(code, text, about):
    reply = refusal(NextHopReply(code, text), about)
    assert 400 <= reply.code <= 599
    assert reply.code != 421
    assert reply.status[0] == str(reply.code)[0]
    assert reply.encode().isascii()
