"""Arguments of MAIL and RCPT: tables of good and bad ones, noise, and no slow ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand, Reply
from tofmipd.smtp.syntax import NOT_IN_A_COMMAND, parse_recipient, parse_sender

noise = settings(max_examples=200, deadline=None)

# What stands behind the keyword, and the address that it is.
PATHS = [
    ("<a@example.org>", "a@example.org"),
    ("a@example.org", "a@example.org"),
    (" <a@example.org>", "a@example.org"),
    ("   a@example.org", "a@example.org"),
    ("<A.B@Example.Org>", "A.B@Example.Org"),
    ("<a@example.org.>", "a@example.org."),
    ("<a@localhost>", "a@localhost"),
    ("<postmaster>", "postmaster"),
    ("postmaster", "postmaster"),
    ("<a@[192.0.2.1]>", "a@[192.0.2.1]"),
    ("<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("<a@my_host.example>", "a@my_host.example"),
    ("<a@xn--bcher-kva.example>", "a@xn--bcher-kva.example"),
    ("<a+b=c!d/e%f&g'h*i?j^k`l{m}n|o~p#q$r@example.org>", None),
    ("<-f@example.org>", "-f@example.org"),
    ('<"a b"@example.org>', '"a b"@example.org'),
    ('<"a>b"@example.org>', '"a>b"@example.org'),
    ('<"a@b"@example.org>', '"a@b"@example.org'),
    (r'<"a\"b\\c"@example.org>', r'"a\"b\\c"@example.org'),
    ('<""@example.org>', '""@example.org'),
    ("<@one.example:a@example.org>", "a@example.org"),
    ("<@one.example,@[192.0.2.1],@two.example:a@example.org>", "a@example.org"),
]
BAD_PATHS = [
    "<a@example.org",
    "<<a@example.org>>",
    "<a@>",
    "<@example.org>",
    "<@>",
    "<a@b@example.org>",
    "<a@@example.org>",
    "<.a@example.org>",
    "<a.@example.org>",
    "<a..b@example.org>",
    "<a@.example.org>",
    "<a@-example.org>",
    "<a@example-.org->",
    "<a@example..org..>",
    "<a b@example.org>",
    "< a@example.org>",
    "<a@example.org >",
    "<a@exa mple.org>",
    "<a\t@example.org>",
    "<a\0@example.org>",
    "<a\x7f@example.org>",
    "<a@[192.0.2.1>",
    "<a@[]>",
    "<a@[1 2]>",
    "<a,b@example.org>",
    "<a(comment)@example.org>",
    "<a:b@example.org>",
    '<"a@example.org>',
    '<a"b@example.org>',
    '<"a"b@example.org>',
    '<"a\0"@example.org>',
    "<@one.example;a@example.org>",
    "<@one.example:>",
    "<one.example:a@example.org>",
    "Joe <a@example.org>",
]


@pytest.mark.parametrize(("text", "address"), PATHS)
def test_a_path_gives_its_address(text, address):
    address = address or text.strip("<>")
    assert parse_sender("FROM:" + text) == (address, {})
    assert parse_recipient("TO:" + text) == (address, {})


@pytest.mark.parametrize("text", BAD_PATHS)
def test_a_bad_path_is_refused_with_501(text):
    for parse, keyword in ((parse_sender, "FROM:"), (parse_recipient, "TO:")):
        with pytest.raises(BadCommand) as caught:
            parse(keyword + text)
        assert caught.value.reply.code == 501


@pytest.mark.parametrize(
    "text", ["ä@example.org", "a@bücher.example", "ä", '"ä b"@x', "€", "用户@例子.广告", "👤@x"]
)
def test_an_address_may_be_beyond_ascii(text):
    """RFC 6531 section 3.3; whether it may be here is for the session to say."""
    for parse, keyword in ((parse_sender, "FROM:"), (parse_recipient, "TO:")):
        assert parse(f"{keyword}<{text}>") == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        *("<\udcff@example.org>", "<a\x85@x>", "<a@\u2028x>", '<"\u2029"@x>', "<a@x\ufeff>"),
        *(
            "<\x80>",
            "<a\xa0b@x>",
            "<a\u202eb@x>",
            "<\u200b@x>",
            "<a@\u3000>",
            "<a@x\uffff>",
            "<a\u061cb@x>",
        ),
    ],
)
def test_what_is_no_utf8_or_a_control_beyond_ascii_is_refused(text):
    for parse, keyword in ((parse_sender, "FROM:"), (parse_recipient, "TO:")):
        with pytest.raises(BadCommand) as caught:
            parse(keyword + text)
        assert caught.value.reply.code == 501


@pytest.mark.parametrize("text", ['<a@[x:"]>', "<a@[x:>]>", "<a@[x:<]>", "<a@[1.2.3]>", "<a@[x]>"])
def test_a_literal_holds_nothing_that_ends_the_path(text):
    for parse, keyword in ((parse_sender, "FROM:"), (parse_recipient, "TO:")):
        with pytest.raises(BadCommand):
            parse(keyword + text)


def test_the_null_path_is_a_sender_but_no_recipient():
    assert parse_sender("FROM:<>") == ("", {})
    assert parse_sender("from: <> SIZE=1") == ("", {"SIZE": "1"})
    with pytest.raises(BadCommand):
        parse_recipient("TO:<>")


@pytest.mark.parametrize("keyword", ["FROM:", "from:", "From:", "fROM: "])
def test_the_keyword_may_be_in_any_case(keyword):
    assert parse_sender(keyword + "<a@example.org>")[0] == "a@example.org"


@pytest.mark.parametrize(
    "argument",
    ["", " ", "FROM", "FROM:", "FROM:  ", "FROM <a@b>", "FROM :<a@b>", "TO:<a@b>", "<a@b>", "FR"],
)
def test_without_keyword_or_path_the_reply_shows_the_syntax(argument):
    with pytest.raises(BadCommand) as caught:
        parse_sender(argument)
    assert caught.value.reply is replies.MAIL_SYNTAX
    with pytest.raises(BadCommand) as caught:
        parse_recipient(argument.replace("TO:", "FROM:"))
    assert caught.value.reply is replies.RCPT_SYNTAX


@pytest.mark.parametrize(
    ("rest", "parameters"),
    [
        ("", {}),
        (" ", {}),
        (" SIZE=10", {"SIZE": "10"}),
        (" size=10", {"SIZE": "10"}),
        ("  SIZE=10   BODY=8BITMIME ", {"SIZE": "10", "BODY": "8BITMIME"}),
        (" SMTPUTF8", {"SMTPUTF8": None}),
        (" AUTH=<>", {"AUTH": "<>"}),
        (" X-1=a+3Db:c@d", {"X-1": "a+3Db:c@d"}),
    ],
)
@pytest.mark.parametrize("path", ["<a@example.org>", "a@example.org", '<"a >b"@example.org>'])
def test_parameters_follow_the_path(path, rest, parameters):
    assert parse_sender(f"FROM:{path}{rest}") == (path.strip("<>"), parameters)
    assert parse_recipient(f"TO:{path}{rest}") == (path.strip("<>"), parameters)


@pytest.mark.parametrize(
    "rest",
    [
        *["SIZE=1", "\tSIZE=1", " SIZE=1 SIZE=2", " SIZE=1 size=1", " SIZE=", " =1", " -X", ">"],
        *[" SIZE=\x80", " X=a=b", " X=\x00", " ä=1", " <b@example.org>", " X_Y=1"],
    ],
)
def test_what_is_no_parameter_is_refused_with_the_syntax(rest):
    with pytest.raises(BadCommand) as caught:
        parse_sender(f"FROM:<a@example.org>{rest}")
    assert caught.value.reply is replies.MAIL_SYNTAX


PIECES = ["<", ">", "@", "@x:", ",", ".", '"', "\\", " ", "a", "b.c", "[", "]", "1", "=", "SIZE=1"]
NOISE = st.one_of(
    st.text(st.characters(exclude_categories=())),
    st.lists(st.sampled_from([*PIECES, "ä", "\0", "\t", "\udc80"]), max_size=20).map("".join),
)
PARSERS = [(parse_sender, "FROM:"), (parse_recipient, "TO:")]


def outcome(parse, argument):
    """The address and parameters, or the reply that refuses them."""
    try:
        return parse(argument)
    except BadCommand as error:
        return error.reply


@noise
@given(NOISE, st.booleans(), st.sampled_from(PARSERS))
def test_only_a_bad_command_escapes_and_no_address_leaves_its_brackets(noise, named, parser):
    parse, keyword = parser
    result = outcome(parse, keyword * named + noise)
    if isinstance(result, Reply):
        assert result.code in (501, 553)
        return
    address, parameters = result
    assert not NOT_IN_A_COMMAND.search(address)
    if not address.startswith('"'):
        assert not set(address) & set('<>" ,;()')
    assert all(name == name.upper() for name in parameters)


@pytest.mark.parametrize(
    "piece",
    ['"', '"\\', '<"', "a.", "@a,", "@a.", "@a,@", "a@", "[", "<", "-a", "a-.", '"a"', " X=1", ","],
)
@pytest.mark.parametrize("frame", ["<{}>", "<{}", "{}", "<@{}:a@b>", "<a@{}!>"])
def test_no_argument_of_4096_octets_takes_long(piece, frame):
    argument = frame.format(piece * (4000 // len(piece)))
    begun = time.process_time()
    for parse, keyword in PARSERS:
        outcome(parse, keyword + argument)
    assert time.process_time() - begun < 0.5
