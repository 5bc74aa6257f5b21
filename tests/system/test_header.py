"""What becomes of From, the envelope sender and the rest of the header."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

import pytest

TO = "x@example.net"


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ([], "bobby@example.org", "Bobby Brown <bobby-t@example.org>"),
        ([], "<bobby@example.org>", "Bobby Brown <bobby-t@example.org>"),
        ([], "Bob <Bobby@Example.ORG>", "Bob <Bobby-t@Example.ORG>"),
        ([], '"B. Brown" <bobby@example.org>', '"B. Brown" <bobby-t@example.org>'),
        ([], "bobby@example.org (Bob)", "Bob <bobby-t@example.org>"),
        ([], "=?utf-8?q?B=C3=B6b?= <bobby@x.example>", "=?utf-8?q?B=C3=B6b?= <bobby-t@x.example>"),
        ([], "Böb <bobby@example.org>", "Böb <bobby-t@example.org>"),
        ([], "", "Bobby Brown <bobby-t@example.org>"),
        ([], "no address", "Bobby Brown <bobby-t@example.org>"),
        (['FULLNAME = "Somebody Else"'], "b@c.example", "Somebody Else <b-t@c.example>"),
        (['MESSAGE_FROM_STYLE = "address"'], "Bob <bobby@example.org>", "bobby-t@example.org"),
        (['USERNAME = "me"', 'HOSTNAME = "here.example"'], "", "Bobby Brown <me-t@here.example>"),
    ],
)
def test_from_keeps_the_name_and_gets_the_tag(settings, field, expected, send):
    """TO-105."""
    (stored,) = send(*settings, rules="to * ext=t\n", fields=(f"From: {field}",))
    assert stored.value("From") == expected
    assert stored.sender == re.sub(r".*<(.*)>", r"\1", expected)


def test_a_message_without_from_gets_one(send):
    (stored,) = send(rules="to * ext=t\n", fields=("Subject: x",))
    assert stored.value("From") == "Bobby Brown <bobby-t@example.org>"


def test_a_resent_message_keeps_its_from(send):
    """TO-105."""
    fields = (
        "Resent-From: Bob <bobby@example.org>",
        "Resent-To: x@example.net",
        "From: Carol <carol@example.com>",
    )
    (stored,) = send(rules="from bobby@* ext=t\n", fields=fields)
    assert stored.value("Resent-From") == "Bob <bobby-t@example.org>"
    assert stored.value("From") == "Carol <carol@example.com>"
    assert stored.sender == "bobby-t@example.org"


@pytest.mark.parametrize("sender", ["", "bobby@example.org", "other@example.com"])
def test_the_envelope_sender_comes_from_the_tag_not_from_the_client(sender, send):
    (stored,) = send(rules="to * ext=t\n", sender=sender)
    assert stored.sender == "bobby-t@example.org"


@pytest.mark.parametrize(
    ("style", "shown"),
    [
        ("angles", "Bobby <{}>"),
        ("address", "{}"),
    ],
)
def test_fields_of_a_rule_have_the_style_that_the_user_wants(style, shown, send):
    """TO-105: MESSAGE_TAG_HEADER_STYLE; From has a style of its own."""
    (stored,) = send(
        f'MESSAGE_TAG_HEADER_STYLE = "{style}"',
        rules="to * tag from ext=f reply-to ext=r x-text 'as it is' x-bare bare\n",
        fields=("From: Bobby <bobby@example.org>", "Reply-To: a@b.example", "X-Text: old"),
    )
    assert stored.value("From") == "Bobby <bobby-f@example.org>"
    assert stored.value("Reply-To") == shown.format("bobby-r@example.org")
    assert stored.value("X-Bare") == shown.format("bobby@example.org")
    assert stored.value("X-Text") == "as it is"


def test_no_field_of_one_recipient_reaches_another(send):
    """TO-104, TO-106: each copy is made from what was submitted."""
    fields = (
        "From: Bobby <bobby@example.org>",
        "Reply-To: answers@example.org",
        "Mail-Followup-To: bobby@example.org",
    )
    rules = "to a@* tag from ext=a reply-to ext=r x-a yes\nto * ext=b\n"
    to = ("a@example.net", "b@example.net")
    one, two = send(rules=rules, to=to, fields=fields)
    assert one.value("Reply-To") == "Bobby <bobby-r@example.org>"
    assert two.value("Reply-To") == "answers@example.org"
    assert two.values("X-A") == []
    assert one.value("Mail-Followup-To") == "bobby-a@example.org"
    assert two.value("Mail-Followup-To") == "bobby-b@example.org"


def test_new_fields_are_folded_and_others_left_alone(send):
    """RFC 5322 section 2.1.1; what the client has folded, or not, stays so."""
    long = " ".join(["word"] * 60)
    (stored,) = send(
        f'ADDED_HEADERS_CLIENT = {{"X-Added": "{long}"}}',
        rules=f'to * tag from ext=t x-tagged "{long}"\n',
        fields=("From: bobby@example.org", f"X-Given: {long}", "X-Folded: a\r\n\tb"),
    )
    lines = stored.head.split(b"\r\n")
    assert f"X-Given: {long}".encode() in lines
    assert b"X-Folded: a\r\n\tb\r\n" in stored.head + b"\r\n"
    assert all(len(line) <= 78 for line in lines if not line.startswith(b"X-Given"))
    assert stored.value("X-Added") == stored.value("X-Tagged") == long


def test_the_null_sender_can_be_asked_for(send):
    """TO-31."""
    (stored,) = send(rules="to * tag from ext=t envelope exp=<>\n")
    assert stored.sender == ""
    assert stored.value("From") == "Bobby <bobby-t@example.org>"


def test_what_is_missing_in_the_header_is_added(send):
    """TO-107."""
    (stored,) = send(fields=("From: bobby@example.org",))
    date = parsedate_to_datetime(stored.value("Date"))
    assert abs(date.timestamp() - time.time()) < 60
    assert re.fullmatch(r"<\S+@\S+>", stored.value("Message-ID"))
    assert re.fullmatch(r"tofmipd/[0-9.]+", stored.value("X-Delivery-Agent"))


DATE, MESSAGE_ID = "Thu, 1 Jan 2026 00:00:00 +0100", "<given@example.org>"
GIVEN = ("From: bobby@example.org", f"Date: {DATE}", f"Message-ID: {MESSAGE_ID}")


@pytest.mark.parametrize(
    ("settings", "date_kept", "id_kept"),
    [
        ([], True, True),
        (['TMDAINJECT = "d"'], False, True),
        (['TMDAINJECT = "i"'], True, False),
        (['TMDAINJECT = "di"'], False, False),
    ],
)
def test_date_and_message_id_are_kept_unless_the_user_wants_new_ones(
    settings, date_kept, id_kept, send
):
    """TO-107."""
    (stored,) = send(*settings, fields=GIVEN)
    assert (stored.value("Date") == DATE) == date_kept
    assert (stored.value("Message-ID") == MESSAGE_ID) == id_kept


def test_headers_are_added_then_purged_and_bcc_never_passes(send):
    """TO-107."""
    (stored,) = send(
        'ADDED_HEADERS_CLIENT = {"X-Org": "Ours", "X-Gone": "no"}',
        'PURGED_HEADERS_CLIENT = ["x-gone", "X-Mailer"]',
        fields=(
            "From: bobby@example.org",
            "X-Org: theirs",
            "X-Mailer: spy",
            "Bcc: hidden@example.net",
            "Resent-Bcc: hidden@example.net",
            "X-Delivery-Agent: other",
        ),
    )
    assert stored.value("X-Org") == "Ours"
    for name in ("X-Gone", "X-Mailer", "Bcc", "Resent-Bcc"):
        assert not stored.values(name)
    assert stored.value("X-Delivery-Agent").startswith("tofmipd/")
    assert b"hidden" not in stored.octets
