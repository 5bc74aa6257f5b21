"""Reports to a sender: read back by the standard library's parser, whatever they tell of."""

from __future__ import annotations

import re
from dataclasses import replace
from email import message_from_bytes, message_from_string, policy
from itertools import islice, repeat

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tofmipd.handoff.bounce import Failure, Report, may_bounce, needs, report, status_of

noise = settings(max_examples=200, deadline=None)

BOUNDARY = "=_boundary.0"
ARRIVED, NOW, LAST, UNTIL = 1_000_000_000, 1_000_500_000, 1_000_400_000, 1_000_432_000
REPLY = "550 5.1.1 <x@there.example>: no such user"
FAILURE = Failure(b"x@there.example", REPLY, "mail.there.example:25", at=LAST)
REPORT = Report(
    "mx.example", "<1@mx.example>", b"joe@here.example", ARRIVED, NOW, failures=(FAILURE,)
)
WARNING = replace(REPORT, retry_until=UNTIL, failures=(replace(FAILURE, reply="451 4.3.0 wait"),))
TO_JURGEN = replace(REPORT, sender="jürgen@here.example".encode())
HEADER = b"From: joe@here.example\r\nSubject: Tea\r\n\r\n"
UTF8_HEADER = "From: joe@here.example\r\nSubject: Grüße\r\n\r\n".encode()
LATIN1_HEADER = "From: joe@here.example\r\nSubject: Grüße\r\n\r\n".encode("latin-1")

FIELDS = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version"]
FIELDS += ["Content-Type"]
MESSAGE_FIELDS = {"Original-Envelope-Id", "Reporting-MTA", "Arrival-Date"}
NEEDED = {"Final-Recipient", "Action", "Status"}
RECIPIENT_FIELDS = NEEDED | {"Original-Recipient", "Remote-MTA", "Diagnostic-Code"}
RECIPIENT_FIELDS |= {"Last-Attempt-Date", "Will-Retry-Until"}


def octets_of(of, header=HEADER, full=None):
    return b"".join(report(of, header, boundary=BOUNDARY, full=full))


def parsed(octets):
    """The report and its three parts, read by a parser that finds nothing wrong with it."""
    message = message_from_bytes(octets, policy=policy.default)
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert not message.defects
    parts = message.get_payload()
    assert len(parts) == 3
    assert not any(part.defects for part in parts)
    return message, *parts


def blocks_of(octets):
    """The fields of each group of the second part, unfolded."""
    content = octets.split(b"--" + BOUNDARY.encode())[2].split(b"\r\n\r\n", 1)[1].decode()
    groups = [
        message_from_string(group, policy=policy.default) for group in content.split("\r\n" * 2)
    ]
    return [
        {name: re.sub(r"\r\n", "", str(value)) for name, value in group.items()}
        for group in groups
        if group.keys()
    ]


def check_form(octets, of):
    """What every report has: its lines, its fields, its groups."""
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", octets)
    assert max(map(len, octets.split(b"\r\n"))) <= 998
    message, _, status, _ = parsed(octets)
    eight_bit = ["Content-Transfer-Encoding"] if not octets.isascii() else []
    assert message.keys() in (FIELDS + eight_bit, [*FIELDS, "Content-Transfer-Encoding"])
    about, *groups = blocks_of(octets)
    assert "Reporting-MTA" in about
    assert about.keys() <= MESSAGE_FIELDS
    assert len(groups) == len(of.failures)
    assert all(NEEDED <= group.keys() <= RECIPIENT_FIELDS for group in groups)
    if status.get_content_type() == "message/delivery-status":
        assert [part.keys() for part in status.get_payload() if part.keys()] == [
            list(group) for group in (about, *groups)
        ]


@pytest.mark.parametrize(
    ("reply", "failed", "delayed"),
    [
        ("550 5.1.1 <x>: no such user", "5.1.1", "4.0.0"),
        ("550-5.7.26 one 550 5.7.26 two", "5.7.26", "4.0.0"),
        ("552 5.2.2", "5.2.2", "4.0.0"),
        ("451 4.7.1 later", "4.7.1", "4.7.1"),
        ("421 4.3.2", "4.3.2", "4.3.2"),
        ("", "4.4.1", "4.4.1"),
        (" \r\n ", "4.4.1", "4.4.1"),
        ("550 no such user", "5.0.0", "4.0.0"),
        ("550", "5.0.0", "4.0.0"),
        ("450 busy", "4.0.0", "4.0.0"),
        ("550 4.1.1 two minds", "5.0.0", "4.0.0"),
        ("450 5.1.1 two minds", "4.0.0", "4.0.0"),
        ("550 5.1.1.2 no", "5.0.0", "4.0.0"),
        ("550 5.1.1no", "5.0.0", "4.0.0"),
        ("550 5.1000.1 no", "5.0.0", "4.0.0"),
        ("550 5.1.1\r\nX: y", "5.1.1", "4.0.0"),
        ("5505.1.1 no", "5.0.0", "4.0.0"),
        ("250 2.0.0 ok", "5.0.0", "4.0.0"),
        ("250 5.1.1 what", "5.0.0", "4.0.0"),
        ("no such program", "5.0.0", "4.0.0"),
    ],
)
def test_the_status_is_the_replys_unless_that_contradicts_code_or_action(reply, failed, delayed):
    assert status_of(reply) == failed
    assert status_of(reply, delayed=True) == delayed


@given(st.text(), st.booleans())
@noise
def test_a_status_has_the_class_of_the_action(reply, delayed):
    assert re.fullmatch(
        r"4(\.\d{1,3}){2}" if delayed else r"[45](\.\d{1,3}){2}", status_of(reply, delayed=delayed)
    )


@pytest.mark.parametrize(
    ("sender", "notify", "failure", "warning"),
    [
        (b"joe@here.example", "", True, True),
        (b"joe@here.example", "NEVER", False, False),
        (b"joe@here.example", "FAILURE", True, False),
        (b"joe@here.example", "DELAY", False, True),
        (b"joe@here.example", "SUCCESS", False, False),
        (b"joe@here.example", "SUCCESS,FAILURE,DELAY", True, True),
        (b"joe@here.example", "success,failure", True, False),
        (b"", "", False, False),
        (b"", "FAILURE,DELAY", False, False),
    ],
)
def test_the_null_sender_and_who_wants_no_report_get_none(sender, notify, failure, warning):
    assert may_bounce(sender, notify) is failure
    assert may_bounce(sender, notify, delayed=True) is warning


def test_a_report_says_whence_to_whom_and_that_no_person_wrote_it():
    octets = octets_of(REPORT)
    check_form(octets, REPORT)
    message, *_ = parsed(octets)
    assert message.keys() == FIELDS
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mx.example>"
    assert [str(address) for address in message["To"].addresses] == ["joe@here.example"]
    assert message["Message-ID"] == "<1@mx.example>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Date"].datetime.timestamp() == NOW


def test_a_program_reads_who_has_not_got_the_message_and_why():
    full = replace(
        REPORT,
        envid="QQ+3D+2B1",
        failures=(
            replace(FAILURE, original="rfc822;x+2Btag@there.example"),
            Failure(b"y@there.example", "", "[::1]:25"),
        ),
    )
    octets = octets_of(full)
    check_form(octets, full)
    about, first, second = blocks_of(octets)
    date = about.pop("Arrival-Date"), first.pop("Last-Attempt-Date")
    assert [
        message_from_string(f"Date: {d}", policy=policy.default)["Date"].datetime.timestamp()
        for d in date
    ] == [ARRIVED, LAST]
    assert about == {"Original-Envelope-Id": "QQ=+1", "Reporting-MTA": "dns; mx.example"}
    assert first == {
        "Original-Recipient": "rfc822; x+tag@there.example",
        "Final-Recipient": "rfc822; x@there.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mail.there.example",
        "Diagnostic-Code": f"smtp; {REPLY}",
    }
    assert second == {
        "Final-Recipient": "rfc822; y@there.example",
        "Action": "failed",
        "Status": "4.4.1",
        "Remote-MTA": "dns; [IPv6:::1]",
    }


def test_a_warning_says_until_when_it_is_tried():
    octets = octets_of(WARNING)
    check_form(octets, WARNING)
    message, text, *_ = parsed(octets)
    group = blocks_of(octets)[1]
    assert (group["Action"], group["Status"]) == ("delayed", "4.3.0")
    until = group["Will-Retry-Until"]
    words = " ".join(text.get_content().split())
    assert "It is still being tried, until " + until in words
    assert "only a warning" in words
    assert "do not send the message again" in words
    assert "again later" not in words
    assert "delayed" in message["Subject"]


def test_a_failure_is_never_tried_again():
    octets = octets_of(replace(REPORT, failures=(replace(FAILURE, reply="451 4.3.0 wait"),)))
    group = blocks_of(octets)[1]
    assert (group["Action"], group["Status"]) == ("failed", "4.3.0")
    assert "Will-Retry-Until" not in group


def test_a_person_reads_each_recipient_with_the_words_of_the_next_hop_and_what_to_do():
    long_reply = "550 5.7.1 " + " ".join(f"word{number}" for number in range(60))
    some = replace(
        REPORT,
        failures=(
            FAILURE,
            Failure(b"y@there.example", long_reply, "mail.there.example:25"),
            Failure(b"z@there.example", "", "mail.there.example:25"),
        ),
    )
    _, text, *_ = parsed(octets_of(some))
    assert text.get_content_type() == "text/plain"
    assert max(map(len, text.get_content().splitlines())) <= 76
    words = " ".join(text.get_content().split())
    for expected in (
        f"<x@there.example> mail.there.example:25 said: {REPLY} Look for a mistake in the address",
        f"<y@there.example> mail.there.example:25 said: {long_reply} A rule forbids it",
        "<z@there.example> mail.there.example:25 did not answer. The reason may pass",
    ):
        assert expected in words


def test_what_no_smtp_server_has_said_is_not_called_its_reply():
    failure = replace(FAILURE, reply="sendmail: no such user", next_hop="/usr/sbin/sendmail")
    group = blocks_of(octets_of(replace(REPORT, failures=(failure,))))[1]
    assert group["Diagnostic-Code"] == "x-tofmipd; sendmail: no such user"
    assert "Remote-MTA" not in group


def test_nothing_is_said_of_times_that_nobody_knows():
    unknown = replace(REPORT, arrived=0, failures=(replace(FAILURE, at=0),))
    octets = octets_of(unknown)
    check_form(octets, unknown)
    assert all(not name.endswith("Date") for group in blocks_of(octets) for name in group)


@pytest.mark.parametrize(
    ("of", "header", "kind", "encoding"),
    [
        (REPORT, HEADER, "text/rfc822-headers", "7bit"),
        (REPORT, UTF8_HEADER, "text/rfc822-headers", "quoted-printable"),
        (REPORT, LATIN1_HEADER, "text/rfc822-headers", "quoted-printable"),
        (REPORT, b"X: " + b"x" * 996 + b"\r\n", "text/rfc822-headers", "quoted-printable"),
        (REPORT, b"X: " + b"x" * 995 + b"\r\n", "text/rfc822-headers", "7bit"),
        (REPORT, b"X: \0\r\n", "text/rfc822-headers", "quoted-printable"),
        (TO_JURGEN, HEADER, "text/rfc822-headers", "7bit"),
        (TO_JURGEN, UTF8_HEADER, "message/global-headers", "8bit"),
        (TO_JURGEN, LATIN1_HEADER, "text/rfc822-headers", "quoted-printable"),
        (TO_JURGEN, b"Null: \0\r\n" + UTF8_HEADER, "text/rfc822-headers", "quoted-printable"),
    ],
)
def test_the_header_block_comes_back_as_it_was(of, header, kind, encoding):
    octets = octets_of(of, header)
    check_form(octets, of)
    *_, part = parsed(octets)
    assert (part.get_content_type(), part["Content-Transfer-Encoding"]) == (kind, encoding)
    expected = header.removesuffix(b"\r\n") if header.endswith(b"\r\n\r\n") else header
    if kind.startswith("text/"):
        assert part.get_payload(decode=True) == expected
    else:
        assert b"\r\n\r\n" + expected + b"\r\n--" in octets


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"A: 1", b"A: 1\r\n"),
        (b"A: 1\nB: 2\rC: 3\r\n\r\n", b"A: 1\r\nB: 2\r\nC: 3\r\n"),
        (b"A: 1\r\n\r\nSecret\r\n", b"A: 1\r\n"),
        (b"A: 1\n\nSecret\n", b"A: 1\r\n"),
    ],
)
def test_of_the_header_block_only_the_fields_come_back(header, expected):
    *_, part = parsed(octets_of(REPORT, header))
    assert part.get_payload(decode=True) == expected


@pytest.mark.parametrize(
    ("of", "header", "kind", "encoding", "eight_bit"),
    [
        (REPORT, HEADER, "message/rfc822", "7bit", False),
        (replace(REPORT, eight_bit=True), HEADER, "message/rfc822", "8bit", True),
        (REPORT, LATIN1_HEADER, "message/rfc822", "8bit", True),
        (REPORT, UTF8_HEADER, "message/rfc822", "8bit", True),
        (TO_JURGEN, HEADER, "message/rfc822", "8bit", True),
        (TO_JURGEN, UTF8_HEADER, "message/global", "8bit", True),
        (TO_JURGEN, LATIN1_HEADER, "message/rfc822", "8bit", True),
    ],
)
def test_a_whole_message_comes_back_octet_by_octet(of, header, kind, encoding, eight_bit):
    body = b"Tea?\r\n.\r\n--boundary\r\n" + (b"\xff\r\n" if of.eight_bit else b"") + b"no end"
    octets = octets_of(of, header, full=iter((header, body)))
    message, text, _, part = parsed(octets)
    assert (part.get_content_type(), part["Content-Transfer-Encoding"]) == (kind, encoding)
    assert octets.endswith(b"\r\n\r\n" + header + body + b"\r\n--" + BOUNDARY.encode() + b"--\r\n")
    assert needs(of, header, full=True).eight_bit is eight_bit
    assert (message["Content-Transfer-Encoding"] == "8bit") is eight_bit
    assert "and your message" in " ".join(text.get_content().split())


def test_a_whole_message_is_not_held_in_memory():
    pieces = report(REPORT, HEADER, boundary=BOUNDARY, full=repeat(b"x" * 998 + b"\r\n"))
    assert all(islice(pieces, 10_000))


def test_a_report_to_an_ascii_address_needs_nothing_even_about_others():
    failure = Failure(
        "grün+ß=@there.example".encode(),
        "553 5.6.7 kein Ü",
        "mail.there.example",
        original="utf-8;gr\\x{FC}n@there.example",
    )
    of = replace(REPORT, failures=(failure,))
    octets = octets_of(of, UTF8_HEADER)
    check_form(octets, of)
    assert octets.isascii()
    assert not needs(of, UTF8_HEADER).eight_bit
    assert not needs(of, UTF8_HEADER).smtputf8
    _, text, status, _ = parsed(octets)
    assert "<grün+ß=@there.example>" in text.get_content()
    assert "553 5.6.7 kein Ü" in text.get_content()
    assert status.get_content_type() == "message/delivery-status"
    group = blocks_of(octets)[1]
    assert group["Original-Recipient"] == r"utf-8; gr\x{FC}n@there.example"
    assert group["Final-Recipient"] == r"utf-8; gr\x{FC}n\x{2B}\x{DF}\x{3D}@there.example"
    assert group["Diagnostic-Code"] == r"smtp; 553 5.6.7 kein \x{DC}"


def test_a_report_to_an_address_beyond_ascii_has_the_global_types():
    failure = replace(FAILURE, recipient="grün@there.example".encode(), reply="550 kein Ü")
    of = replace(TO_JURGEN, failures=(failure,))
    octets = octets_of(of, UTF8_HEADER)
    check_form(octets, of)
    assert needs(of, UTF8_HEADER).eight_bit
    assert needs(of, UTF8_HEADER).smtputf8
    message, text, status, _ = parsed(octets)
    assert message["Content-Transfer-Encoding"] == "8bit"
    assert "\r\nTo: <jürgen@here.example>\r\n".encode() in octets
    assert "<grün@there.example>" in text.get_content()
    assert status.get_content_type() == "message/global-delivery-status"
    assert status["Content-Transfer-Encoding"] == "8bit"
    group = blocks_of(octets)[1]
    assert group["Final-Recipient"] == "utf-8; grün@there.example"
    assert group["Diagnostic-Code"] == "smtp; 550 kein Ü"


@pytest.mark.parametrize(
    ("of", "header", "boundary"),
    [
        (REPORT, HEADER + b"X: " + BOUNDARY.encode() + b"\r\n", BOUNDARY),
        (REPORT, b"\r\n\r\nhidden " + BOUNDARY.encode(), BOUNDARY),
        (REPORT, HEADER, "there.example"),
        (REPORT, HEADER, ""),
        (REPORT, HEADER, "x" * 71),
        (REPORT, HEADER, 'x"y'),
        (REPORT, HEADER, "x\r\ny"),
        (replace(REPORT, sender=b""), HEADER, BOUNDARY),
        (replace(REPORT, failures=()), HEADER, BOUNDARY),
    ],
)
@pytest.mark.parametrize("full", [None, ()])
def test_what_cannot_be_a_report_is_refused_at_once(of, header, boundary, full):
    with pytest.raises(ValueError, match=r"boundary|sender"):
        report(of, header, boundary=boundary, full=full)


# Texts that try to break out of where they stand.
HOSTILE = st.one_of(
    st.text(),
    st.text('\r\n\t .:;<>@,"\\()=-+xü\0\x85\u2028\U0001f600'),
    st.sampled_from(
        [
            "x\r\n\r\n--=_boundary",
            "550 5.1.1 no\r\nAction: delivered",
            "x\nBcc: y@there.example\n\n",
            "x" * 10_000,
            "ü" * 10_000,
            "\U0001f600 " * 5_000,
            "550 5.1.1 " + "\r\n" * 5_000,
            "x>, <y@there.example",
            "\ud800",
        ]
    ),
)
OCTETS = st.one_of(st.binary(), HOSTILE.map(lambda text: text.encode("utf-8", "surrogatepass")))
TIMES = st.integers(0, 2**32)
FAILURES = st.builds(
    Failure,
    OCTETS,
    HOSTILE,
    HOSTILE,
    original=st.one_of(HOSTILE, HOSTILE.map("rfc822;{}".format), HOSTILE.map("utf-8;{}".format)),
    at=TIMES,
)
REPORTS = st.builds(
    Report,
    HOSTILE,
    st.just("<1@mx.example>"),
    OCTETS.filter(bool),
    TIMES,
    TIMES,
    st.lists(FAILURES, min_size=1, max_size=3).map(tuple),
    envid=HOSTILE,
    retry_until=TIMES,
)


@given(REPORTS, OCTETS)
@noise
def test_no_text_breaks_out_of_its_field(of, header):
    assume(BOUNDARY.encode() not in header)
    octets = octets_of(of, header)
    check_form(octets, of)
    wanted = needs(of, header)
    assert octets.isascii() or wanted.eight_bit
    message, *_ = parsed(octets)
    assert wanted.eight_bit is ("Content-Transfer-Encoding" in message)
    assert message["Auto-Submitted"] == "auto-replied"
    action, classes = ("delayed", "4") if of.retry_until else ("failed", "45")
    for group in blocks_of(octets)[1:]:
        assert group["Action"] == action
        assert group["Status"][0] in classes


PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=500)


@given(PRINTABLE)
@noise
def test_the_words_of_a_reply_come_back_however_long(said):
    reply = " ".join(f"550 5.1.1 {said}".split())
    group = blocks_of(octets_of(replace(REPORT, failures=(replace(FAILURE, reply=reply),))))[1]
    assert group["Diagnostic-Code"] == f"smtp; {reply}"
    assert group["Status"] == "5.1.1"
