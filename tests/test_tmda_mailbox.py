"""Mailboxes in header fields: whatever people and programs have written there."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.mailbox import Mailbox, first_mailbox, format_mailbox, mailboxes

noise = settings(max_examples=300, deadline=None)


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        (b"alice@example.com", b"", b"alice@example.com"),
        (b"<alice@example.com>", b"", b"alice@example.com"),
        (b"Alice <alice@example.com>", b"Alice", b"alice@example.com"),
        (b"Alice Liddell <alice@example.com>", b"Alice Liddell", b"alice@example.com"),
        (b"Alice   Liddell\t<alice@example.com>", b"Alice Liddell", b"alice@example.com"),
        (b'"Alice Liddell" <alice@example.com>', b"Alice Liddell", b"alice@example.com"),
        (b'"Liddell, Alice" <alice@example.com>', b"Liddell, Alice", b"alice@example.com"),
        (b'"Alice"<alice@example.com>', b"Alice", b"alice@example.com"),
        (b"Alice<alice@example.com>", b"Alice", b"alice@example.com"),
        (b'"Alice" Liddell <a@x>', b"Alice Liddell", b"a@x"),
        (b'"A \\"Q\\" B" <a@x>', b'A "Q" B', b"a@x"),
        (b'"back\\\\slash" <a@x>', b"back\\slash", b"a@x"),
        (b'"alice@example.com" <alice@example.com>', b"alice@example.com", b"alice@example.com"),
        (b'"two  blanks" <a@x>', b"two blanks", b"a@x"),
        (b"Alice P. Liddell <a@x>", b"Alice P. Liddell", b"a@x"),
        (b"Dr. Who <who@x>", b"Dr. Who", b"who@x"),
        (b"O'Neil <o'neil@x>", b"O'Neil", b"o'neil@x"),
        (b"J\xc3\xbcrgen <j@x>", b"J\xc3\xbcrgen", b"j@x"),
        (b"J\xfcrgen <j@x>", b"J\xfcrgen", b"j@x"),
        (b"=?utf-8?B?SsO8cmdlbg==?= <j@x>", b"=?utf-8?B?SsO8cmdlbg==?=", b"j@x"),
        (b"=?utf-8?q?J=C3=BC_M.?=\r\n <j@x>", b"=?utf-8?q?J=C3=BC_M.?=", b"j@x"),
        (b"=?utf-8?q?a?=\r\n =?utf-8?q?b?= <j@x>", b"=?utf-8?q?a?= =?utf-8?q?b?=", b"j@x"),
        (b"alice@example.com (Alice Liddell)", b"Alice Liddell", b"alice@example.com"),
        (b"alice@example.com (Alice (the first))", b"Alice (the first)", b"alice@example.com"),
        (b"alice@example.com (Alice \\) L)", b"Alice ) L", b"alice@example.com"),
        (b"alice@example.com (Alice\r\n Liddell)", b"Alice Liddell", b"alice@example.com"),
        (b"(Alice) alice@example.com", b"Alice", b"alice@example.com"),
        (b"alice(Alice)@example.com", b"Alice", b"alice@example.com"),
        (b"a@x ( Alice )", b"Alice", b"a@x"),
        (b"a@x ( )", b"", b"a@x"),
        (b"Alice (home) <a@x>", b"Alice (home)", b"a@x"),
        (b"(home) <a@x>", b"(home)", b"a@x"),
        (b"Alice <@relay,@other:a@x>", b"Alice", b"a@x"),
        (b"Alice < a@x >", b"Alice", b"a@x"),
        (b"Alice <a(comment)@x>", b"Alice", b"a@x"),
        (b'Alice <"john doe"@x>', b"Alice", b'"john doe"@x'),
        (b'"john doe"@x', b"", b'"john doe"@x'),
        (b'Alice <"a>b"@x>', b"Alice", b'"a>b"@x'),
        (b"a@[192.0.2.1]", b"", b"a@[192.0.2.1]"),
        (b"Alice <a@[IPv6:2001:db8::1]>", b"Alice", b"a@[IPv6:2001:db8::1]"),
        (b"a+b=c@x", b"", b"a+b=c@x"),
        (b"Alice <a@x", b"Alice", b"a@x"),
        (b"Alice <>", b"Alice", b""),
        (b"<>", b"", b""),
        (b"", b"", b""),
        (b"  \r\n ", b"", b""),
        (b"()", b"", b""),
        (b",,;", b"", b""),
        (b"alice", b"", b"alice"),
        (b"Alice Liddell", b"", b"Alice"),
        (b'"Alice Liddell" <alice>', b"Alice Liddell", b"alice"),
        (b"a@b@c", b"", b"a@b@c"),
    ],
)
def test_the_name_and_the_address_are_found(value, name, address):
    assert first_mailbox(value) == Mailbox(name, address)


@pytest.mark.parametrize(
    ("value", "name", "address", "rest"),
    [
        (b"a@x, b@y", b"", b"a@x", b", b@y"),
        (b"Alice <a@x>, Bob <b@y>", b"Alice", b"a@x", b", Bob <b@y>"),
        (b"Alice <a@x>,\r\n Bob <b@y>", b"Alice", b"a@x", b",\r\n Bob <b@y>"),
        (b", ,a@x,", b"", b"a@x", b","),
        (b"a@x (Alice), b@y", b"Alice", b"a@x", b", b@y"),
        (b"<a@x> (Alice)", b"", b"a@x", b" (Alice)"),
        (b"Liddell, Alice <a@x>", b"", b"Liddell", b", Alice <a@x>"),
    ],
)
def test_what_follows_the_first_mailbox_is_kept(value, name, address, rest):
    assert first_mailbox(value) == Mailbox(name, address, rest)


@pytest.mark.parametrize(
    "value", [b"alice@example.com <alice@example.com>", b"Alice @ Home <alice@example.com>"]
)
def test_a_name_with_an_unquoted_at_is_no_name(value):
    assert first_mailbox(value) == Mailbox(b"", b"alice@example.com")


@pytest.mark.parametrize(
    "value", [b"friends: a@x, b@y;", b"friends: a@x;", b"friends:;", b"undisclosed-recipients:;"]
)
def test_a_group_is_nobody_in_particular(value):
    found = first_mailbox(value)
    assert b"@" not in found.address
    assert not found.rest


@pytest.mark.parametrize(
    ("value", "address"),
    [(b"j . d @ x . y", b"j.d@x.y"), (b"a@x .example", b"a@x.example"), (b"a @x", b"a@x")],
)
def test_blanks_around_the_dots_of_an_address_do_not_shorten_it(value, address):
    assert first_mailbox(value) == Mailbox(b"", address)


def test_an_address_and_what_follows_without_a_comma_stay_apart():
    found = first_mailbox(b"a@x b@y")
    assert first_mailbox(found.address + found.rest).address == found.address == b"a@x"


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        (b"a@x, b@y", [b"a@x", b"b@y"]),
        (b"Alice <a@x>, b@y (Bob), <c@z>", [b"a@x", b"b@y", b"c@z"]),
        (b"friends: a@x, Bob <b@y>;, c@z", [b"a@x", b"b@y", b"c@z"]),
        (b"one: a@x;, two: b@y;", [b"a@x", b"b@y"]),
        (b"undisclosed-recipients:;", []),
        (b'"Liddell, Alice" <a@x>, b@y', [b"a@x", b"b@y"]),
        (b"a@x;b@y", [b"a@x", b"b@y"]),
        (b"a@x b@y", [b"a@x", b"b@y"]),
        (b"a@x\r\n ,\r\n b@y", [b"a@x", b"b@y"]),
        (b"local, a@x", [b"local", b"a@x"]),
        (b"(a@x, b@y)", []),
        (b'"a@x, b@y" <c@z>', [b"c@z"]),
        (b"<a@x><b@y>", [b"a@x", b"b@y"]),
        (b",,,", []),
        (b"", []),
    ],
)
def test_all_mailboxes_of_a_list_are_found_in_their_order(value, addresses):
    assert [mailbox.address for mailbox in mailboxes(value)] == addresses


ADDRESS_NOISE = st.one_of(
    st.binary(max_size=40),
    st.lists(
        st.one_of(
            st.sampled_from(b'@<>"\\()[],:; .a\x00\xff').map(lambda octet: bytes([octet])),
            st.sampled_from([b"b c", b"\r\n ", b"=?u?q?x?=", b"a@x", b"<a@x>"]),
        ),
        max_size=14,
    ).map(b"".join),
)


@noise
@given(ADDRESS_NOISE)
@example(b'"\\')
@example(b'<"\\')
@example(b"(\\")
@example(b"<a@x>>")
def test_noise_is_read_without_an_error(value):
    found = list(mailboxes(value))
    alone = found and not found[0].grouped
    first = first_mailbox(value)
    assert value.endswith(first.rest)
    assert replace(first, rest=b"") == (found[0] if alone else Mailbox(b"", b""))


@pytest.mark.parametrize(
    ("unit", "times"),
    [
        (b'"\\', 8_000),
        (b",", 300_000),
        (b"a ", 100_000),
        (b"(", 100_000),
        (b"()", 100_000),
        (b"<", 200_000),
        (b"[", 200_000),
        (b"@", 200_000),
        (b" ", 200_000),
        (b"=?", 100_000),
    ],
)
def test_reading_takes_time_in_proportion_to_the_length(unit, times):
    started = time.process_time()
    first_mailbox(unit * times)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("name", "style", "text"),
    [
        (b"", "angles", b"a@x"),
        (b"Alice", "angles", b"Alice <a@x>"),
        (b"Alice", "address", b"a@x"),
        (b"Alice", "anything", b"Alice <a@x>"),
        (b"Alice Liddell", "angles", b"Alice Liddell <a@x>"),
        (b"A. Liddell", "angles", b'"A. Liddell" <a@x>'),
        (b"Liddell, Alice", "angles", b'"Liddell, Alice" <a@x>'),
        (b'A "Q" B', "angles", b'"A \\"Q\\" B" <a@x>'),
        (b"back\\slash", "angles", b'"back\\\\slash" <a@x>'),
        (b"Alice (home)", "angles", b'"Alice \\(home\\)" <a@x>'),
        (b"[x]", "angles", b'"\\[x\\]" <a@x>'),
        (b"O'Neil", "angles", b"O'Neil <a@x>"),
        (b"J\xfcrgen", "angles", b"J\xfcrgen <a@x>"),
        (b"=?utf-8?q?J=C3=BC_M.?=", "angles", b"=?utf-8?q?J=C3=BC_M.?= <a@x>"),
        (b"=?utf-8?q?a.?= =?utf-8?q?b?=", "angles", b"=?utf-8?q?a.?= =?utf-8?q?b?= <a@x>"),
        (b"=?no.word", "angles", b'"=?no.word" <a@x>'),
    ],
)
def test_a_mailbox_is_written_with_quotes_where_it_needs_them(name, style, text):
    assert format_mailbox(name, b"a@x", style) == text


@pytest.mark.parametrize("name", [b"=?utf-8?Q?Liddell,_Alice?=", b"=?utf-8?Q?a@x?=", b"=?u?q?<>?="])
def test_an_encoded_word_that_would_break_the_field_does_not(name):
    assert first_mailbox(format_mailbox(name, b"a@x", "angles")).address == b"a@x"


def test_an_encoded_word_beside_a_dot_is_not_spoilt_by_quotes():
    written = format_mailbox(b"=?utf-8?q?J=C3=BC?= M.", b"a@x", "angles")
    assert written.startswith(b"=?utf-8?q?J=C3=BC?= ")


plain_names = (
    st.one_of(st.text(max_size=20).map(str.encode), st.binary(max_size=20))
    .map(lambda name: b" ".join(part for part in name.split() if part))
    .filter(lambda name: not any(octet < 32 or octet == 127 for octet in name))
)


@noise
@given(plain_names, st.sampled_from([b"a@x", b"a.b+c@x-y.example", b'"a b"@x', b"a@[192.0.2.1]"]))
@example(b'"', b"a@x")
@example(b"\\", b"a@x")
@example(b"a, b <c@d>; (e", b"a@x")
@example(b"=?u?q?x?= a, =?u?q?,?= =?", b"a@x")
def test_any_name_that_is_written_reads_back(name, address):
    assert first_mailbox(format_mailbox(name, address, "angles")) == Mailbox(name, address)
