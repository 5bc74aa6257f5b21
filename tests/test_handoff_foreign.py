"""Foreign text in reports: nothing is lost but what has no place there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.handoff import foreign
from tofmipd.smtp.dsn import is_envid, is_orcpt

noise = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize(
    ("orcpt", "in_ascii", "beyond"),
    [
        ("rfc822;x@y.example", "rfc822; x@y.example", "rfc822; x@y.example"),
        ("RFC822;x+2Btag@y.example", "RFC822; x+tag@y.example", "RFC822; x+tag@y.example"),
        ("x400;C=de+3BS=x", "x400; C=de;S=x", "x400; C=de;S=x"),
        ("rfc822;x+0D+0AAction: none", r"rfc822; x\x{0D}\x{0A}Action: none", None),
        ("rfc822;gr+C3+BCn@y.example", r"utf-8; gr\x{FC}n@y.example", "utf-8; grün@y.example"),
        ("rfc822;+FF@y.example", r"rfc822; \xff@y.example", r"rfc822; \xff@y.example"),
        (r"utf-8;gr\x{FC}n@y.example", r"utf-8; gr\x{FC}n@y.example", "utf-8; grün@y.example"),
        ("utf-8;grün@y.example", r"utf-8; gr\x{FC}n@y.example", "utf-8; grün@y.example"),
        (r"utf-8;a\x{2B}b@y.example", r"utf-8; a\x{2B}b@y.example", "utf-8; a+b@y.example"),
        (r"utf-8;\x{1F600}@y", r"utf-8; \x{1F600}@y", "utf-8; \U0001f600@y"),
        (r"utf-8;\x{0D}\x{0A}X: y", r"utf-8; \x{0D}\x{0A}X:\x{20}y", r"utf-8; \x{0D}\x{0A}X: y"),
        (r"utf-8;\x{D800}@y", r"utf-8; \x{D800}@y", r"utf-8; \x{D800}@y"),
        (r"utf-8;\x{FFFFFF}@y", r"utf-8; \x{5C}x{FFFFFF}@y", r"utf-8; \x{FFFFFF}@y"),
        ("", "", ""),
        ("x@y.example", "", ""),
        ("rfc822;", "", ""),
        (";x", "", ""),
        ("rfc 822;x", "", ""),
        ("rfc822\r\nX: y;z", "", ""),
    ],
)
def test_an_original_recipient_is_decoded_and_typed(orcpt, in_ascii, beyond):
    assert foreign.original_recipient(orcpt, utf8=False) == in_ascii
    assert foreign.original_recipient(orcpt, utf8=True) == (in_ascii if beyond is None else beyond)


def xtext(text):
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=100)


@given(PRINTABLE)
@noise
def test_what_a_client_has_given_as_xtext_comes_back(text):
    orcpt = f"rfc822;{xtext(text)}"
    if is_orcpt(orcpt):
        assert foreign.original_recipient(orcpt, utf8=False) == f"rfc822; {text}"
    if is_envid(xtext(text)):
        assert foreign.envelope_id(xtext(text)) == text


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"x@y.example", "x@y.example"),
        (b"x+y=z@y.example", "x+y=z@y.example"),
        (b"x@[192.0.2.1]", "x@[192.0.2.1]"),
        (b"x@[IPv6:2001:db8::1]", "x@[IPv6:2001:db8::1]"),
        (b'"a b\\"c"@y.example', '"a b\\"c"@y.example'),
        ("grün@y.example".encode(), "grün@y.example"),
        (b"a>, <b@y.example", "a????b@y.example"),
        (b"a(b@y.example", "a?b@y.example"),
        (b"postmaster", "postmaster"),
    ],
)
def test_a_mailbox_is_one_address(octets, expected):
    assert foreign.mailbox(octets) == expected


@pytest.mark.parametrize(
    ("next_hop", "expected"),
    [
        ("mail.there.example", "mail.there.example"),
        ("mail.there.example:25", "mail.there.example"),
        ("localhost:25", "localhost"),
        ("127.0.0.1:25", "[127.0.0.1]"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]:25", "[192.0.2.1]"),
        ("[2001:db8::1]:25", "[IPv6:2001:db8::1]"),
        ("[::1]", "[IPv6:::1]"),
        ("[fe80::1%\r\nX: y]:25", ""),
        ("[::::]:25", ""),
        ("/usr/sbin/sendmail", ""),
        ("mail.there.example:25\r\nX: y", ""),
        ("mail.there.example\n", ""),
        ("x" * 256, ""),
        ("", ""),
    ],
)
def test_a_next_hop_is_a_name_or_a_literal_or_not_named(next_hop, expected):
    assert foreign.mta(next_hop) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mx.example", "mx.example"),
        ("", "localhost"),
        ("mx\r\nX: y", "mx??X:?y"),
        ("x>y", "x?y"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_host_name_is_one_word(name, expected):
    assert foreign.host(name) == expected


@given(st.text(max_size=5000))
@noise
def test_text_is_printable_and_bounded(text):
    for shown in (foreign.shown(text), foreign.escaped(text)):
        assert shown.isprintable()
        assert len(shown.encode()) <= 940
    assert foreign.escaped(text).isascii()
    assert foreign.reply(text).isprintable()
    assert foreign.reply(text, ascii_only=True).isascii()


@pytest.mark.parametrize("word", ["x" * 10_000, "ü" * 10_000, "\U0001f600" * 3_000])
def test_only_words_that_no_line_can_hold_are_cut(word):
    lines = foreign.wrapped(f"a {word} b", "      ")
    assert max(len(line.encode()) for line in lines) <= 998
    assert "".join("".join(lines).split()) == f"a{word}b"
    url = "https://there.example/" + "x" * 500
    assert f"  {url}" in foreign.wrapped(f"see {url} for more", "  ")
