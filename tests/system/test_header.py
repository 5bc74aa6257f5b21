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
