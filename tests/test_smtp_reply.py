"""Replies: a walk over all constants, the wire form, and what foreign text may become."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand, Reply, printable

noise = settings(max_examples=200, deadline=None)

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
MADE = {
    "greeting": replies.greeting("mx.example"),
    "helo": replies.helo("mx.example"),
    "ehlo": replies.ehlo("mx.example", ("PIPELINING", "SIZE 1000")),
    "unknown_command": replies.unknown_command("FOO"),
    "unknown_parameter": replies.unknown_parameter("FOO"),
    "prompt": replies.prompt("VXNlcm5hbWU6"),
}
ALL = CONSTANTS | MADE
# RFC 5321 section 4.5.3.1.5: the octets of a reply line, its CRLF included.
LINE_LIMIT_OCTETS = 512


def test_there_are_constants():
    assert len(CONSTANTS) > 30


@pytest.mark.parametrize("name", ALL)
def test_a_reply_goes_out_as_short_lines_of_printable_ascii(name):
    octets = ALL[name].encode()
    assert octets.endswith(b"\r\n")
    for line in octets[:-2].split(b"\r\n"):
        assert re.fullmatch(rb"[2-5][0-5][0-9][ -][ -~]*", line)
        assert len(line) + 2 <= LINE_LIMIT_OCTETS


@pytest.mark.parametrize("name", ALL)
def test_all_lines_but_the_last_have_a_hyphen_and_all_have_one_code(name):
    reply = ALL[name]
    lines = reply.encode()[:-2].split(b"\r\n")
    assert len(lines) == len(reply.lines)
    assert {line[:3] for line in lines} == {b"%d" % reply.code}
    assert [line[3:4] for line in lines] == [b"-"] * (len(lines) - 1) + [b" "]


@pytest.mark.parametrize("name", CONSTANTS)
def test_an_enhanced_status_code_is_there_unless_the_client_is_to_go_on(name):
    reply = CONSTANTS[name]
    if reply.code // 100 == 3:
        assert reply.status == ""
    else:
        assert re.fullmatch(rf"{reply.code // 100}\.[0-7]\.[0-9]{{1,3}}", reply.status)
        assert f" {reply.status} ".encode() in reply.encode()


@pytest.mark.parametrize("name", ["greeting", "helo", "ehlo", "prompt"])
def test_the_greeting_and_the_answers_to_ehlo_have_no_enhanced_status_code(name):
    assert MADE[name].status == ""
    assert not re.search(rb" [245]\.[0-9]+\.[0-9]+ ", MADE[name].encode())


@pytest.mark.parametrize("name", CONSTANTS)
def test_only_a_reply_that_says_goodbye_or_loses_track_closes(name):
    reply = CONSTANTS[name]
    if reply.code in (221, 421):
        assert reply.closes
    elif reply.closes:
        assert reply in (
            replies.LINE_TOO_LONG,
            replies.AUTH_TOO_LONG,
            replies.BARE_LINE_END,
            replies.TLS_AT_ONCE,
            # More follows, and nobody can tell how much, or wants to read so much.
            replies.BAD_BDAT,
            replies.MUCH_TOO_BIG,
            replies.AUTH_REQUIRED_BEFORE_BDAT,
        )


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_reply_is_positive_below_400_only(name):
    assert CONSTANTS[name].positive == (CONSTANTS[name].code < 400)


def test_a_reply_of_several_lines_repeats_code_and_status():
    reply = Reply(550, "1.1", ("one", "", "three"))
    assert reply.encode() == b"550-5.1.1 one\r\n550-5.1.1 \r\n550 5.1.1 three\r\n"
    assert str(reply) == "550 5.1.1 one three"


def test_ehlo_has_no_status_on_any_line():
    assert MADE["ehlo"].encode() == b"250-mx.example\r\n250-PIPELINING\r\n250 SIZE 1000\r\n"


def test_what_is_not_ascii_is_escaped_on_the_wire():
    assert Reply(250, "0.0", ("Grüße €",)).encode() == b"250 2.0.0 Gr\\xfc\\xdfe \\u20ac\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("a\r\nb",),
        ("a\n",),
        ("a\rb",),
        ("fine", "a\0"),
        ("\x1b[31m",),
        ("\u2028",),
        ("\udc80",),
    ],
)
def test_text_that_is_more_than_one_line_is_no_reply(lines):
    with pytest.raises(ValueError, match="not the text of a reply"):
        Reply(250, "0.0", lines)


def test_a_bad_command_carries_its_reply():
    error = BadCommand(replies.MAIL_SYNTAX)
    assert error.reply is replies.MAIL_SYNTAX
    assert "501" in str(error)


@pytest.mark.parametrize("make", [replies.unknown_command, replies.unknown_parameter])
def test_a_long_name_is_shortened_in_the_reply(make):
    assert b'"' + b"A" * 40 + b'"' in make("A" * 4000).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain text", "plain text"),
        ("Grüße €", "Gr\\xfc\\xdfe \\u20ac"),
        ("a\r\nb", "a\\r\\nb"),
        ("\0\x1b\x7f", "\\x00\\x1b\\x7f"),
        ("\x85\u2028", "\\x85\\u2028"),
        ("\udc80", "\\udc80"),
        ("tab\there", "tab\\there"),
        ("x" * 400, "x" * 400),
        ("x" * 401, "x" * 397 + "..."),
        ("\0" * 400, "\\x00" * 99 + "\\..."),
    ],
)
def test_foreign_text_becomes_one_printable_line(text, expected):
    assert printable(text) == expected


def test_the_limit_can_be_chosen():
    assert printable("abcdef", 6) == "abcdef"
    assert printable("abcdef", 5) == "ab..."


@noise
@given(st.text(st.characters(exclude_categories=())), st.integers(3, 50))
def test_any_text_can_stand_in_a_reply(text, limit):
    shown = printable(text, limit)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= limit
    assert Reply(550, "0.0", (shown,)).encode().count(b"\n") == 1
    if len(text) <= limit and text.isascii() and text.isprintable():
        assert shown == text
