"""One message becomes copies: what the vectors of the original do not show."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda import header
from tofmipd.tmda.actions import no_shell
from tofmipd.tmda.config import SourceFile, Surroundings, build
from tofmipd.tmda.cookies import Check, Kind, check_address
from tofmipd.tmda.errors import ConfigError, FilterError, MessageError, UserFileError
from tofmipd.tmda.files import Files
from tofmipd.tmda.inject import Message, Outside, Report, Stamp, header_recipients, tag_message
from tofmipd.tmda.library import Library
from tofmipd.tmda.parser import parse_filter
from tofmipd.tmda.profile import Profile, tag_settings

KEY = bytes.fromhex("00112233445566778899aabbccddeeff01234567")
NOW = 1_700_000_000.0
STAMP = Stamp(NOW, b"Tue, 14 Nov 2023 22:13:20 +0000", b"by here", b"<1.2@here>", b"tofmipd/1")
CONFIG_PATH = "/home/alice/.tmda/config"
FILTER_PATH = "/home/alice/.tmda/filters/outgoing"
NAMES = {"USERNAME": "alice", "HOSTNAME": "example.com", "FULLNAME": "Alice Liddell"}
MESSAGE = (
    b"From: Alice <alice@example.com>\r\nTo: Bob <bob@x.example>\r\nSubject: Hi\r\n"
    b"Date: Tue, 14 Nov 2023 22:00:00 +0000\r\nMessage-ID: <m1@laptop>\r\n\r\n"
)


def profile_of(rules="", source="", followup=(), **names):
    around = Surroundings("/home/alice", "alice", "", "host.example")
    config = build({**NAMES, **names}, around, SourceFile(CONFIG_PATH, source.encode()))
    rules = parse_filter(rules, FILTER_PATH)
    library = Library(Files("/home/alice"))
    return Profile(config, tag_settings(config, KEY), rules, library, frozenset(followup))


def tag(profile, fields, recipients, stamp=STAMP, shell=no_shell, body=lambda: ()):
    message = Message(fields, recipients, body)
    return tag_message(profile, message, stamp, Outside(profile.library.reading(), shell))


def send(rules="", recipients=(b"bob@x.example",), message=MESSAGE, stamp=STAMP, **names):
    fields, _ = header.parse(message)
    return tag(profile_of(rules, **names), fields, recipients, stamp)


def values(copy, name):
    return header.values(header.parse(copy.header)[0], name)


def names_of(copy):
    return [field.name for field in header.parse(copy.header)[0]]


# Who gets which copy


def test_recipients_with_equal_choices_share_one_copy():
    recipients = [b"bob@x.example", b"carol@x.example", b"dan@y.example", b"eve@x.example"]
    copies = send("to *@x.example bare\nto * dated=1d\n", recipients)
    assert [copy.recipients for copy in copies] == [
        (b"bob@x.example", b"carol@x.example", b"eve@x.example"),
        (b"dan@y.example",),
    ]
    assert copies[0].sender == b"alice@example.com"
    assert copies[1].sender.startswith(b"alice-dated-%d." % (NOW + 86400))


def test_recipients_share_a_copy_though_different_rules_chose_it():
    recipients = [b"bob@x.example", b"carol@y.example"]
    (copy,) = send("to *@x.example bare\nto * exp=alice@example.com\n", recipients)
    assert copy.recipients == tuple(recipients)
    assert [report.rule for report in copy.reports] == [
        "to *@x.example tag from bare",
        "to * tag from exp=alice@example.com",
    ]


@pytest.mark.parametrize(
    "rules",
    [
        "to * sender\n",
        "to * domain\n",
        "to bob@* dated=1d\nto * dated=2d\n",
        "to bob@* tag from bare x-note one\nto * tag from bare x-note two\n",
        "to bob@* tag from bare x-note one\nto * bare\n",
        "to bob@* tag from bare envelope kw=bounce\nto * bare\n",
        "to bob@* tag from bare reply-to sender\nto * bare\n",
    ],
)
def test_recipients_with_different_tags_get_different_copies(rules):
    recipients = [b"bob@x.example", b"carol@y.example"]
    first, second = send(rules, recipients)
    assert (first.recipients, second.recipients) == ((b"bob@x.example",), (b"carol@y.example",))
    assert (first.sender, first.header) != (second.sender, second.header)


def test_a_recipient_named_twice_is_handed_over_twice_in_one_copy():
    (copy,) = send("to * sender\n", [b"bob@x.example", b"bob@x.example"])
    assert copy.recipients == (b"bob@x.example", b"bob@x.example")


def test_a_message_to_nobody_makes_no_copy():
    assert send("to * bare\n", []) == []


def test_every_address_that_is_made_can_be_checked():
    profile = profile_of("to bob@* dated=1d\nto carol@* sender\nto dan@* domain\nto * kw=Shop.1\n")
    recipients = [b"bob@x", b"carol@x", b"dan@sub.x", b"eve@x"]
    copies = tag(profile, header.parse(MESSAGE)[0], recipients)
    assert [
        check_address(profile.tags, copy.sender, recipient, NOW)
        for copy, recipient in zip(copies, recipients, strict=True)
    ] == [
        (Check.VALID, Kind.DATED),
        (Check.VALID, Kind.SENDER),
        (Check.VALID, Kind.SENDER),
        (Check.VALID, Kind.KEYWORD),
    ]


def test_every_copy_starts_from_the_submitted_header():
    message = MESSAGE.removesuffix(b"\r\n") + b"Reply-To: keep@example.com\r\nX-Note: mine\r\n\r\n"
    recipients = [b"bob@x", b"carol@x", b"dan@x"]
    rules = "to bob@x tag reply-to sender x-note other\nto carol@x tag from kw=c x-new n\nto * bare"
    first, second, third = send(rules, recipients, message)
    assert values(first, b"reply-to") != [b"keep@example.com"]
    assert values(first, b"x-note") == [b"other"]
    for copy in (second, third):
        assert values(copy, b"reply-to") == [b"keep@example.com"]
        assert values(copy, b"x-note") == [b"mine"]
    assert values(second, b"x-new") == [b"n"]
    assert values(third, b"x-new") == []
    assert values(third, b"from") == [b"Alice <alice@example.com>"]


def test_the_submitted_fields_are_not_changed():
    fields, _ = header.parse(MESSAGE)
    before = list(fields)
    tag(profile_of("to * tag from sender x-a b"), fields, [b"bob@x"])
    assert fields == before


def test_untouched_fields_keep_their_octets_and_their_order():
    untouched = (
        b"DKIM-Signature: v=1; a=rsa-sha256; s=x;\r\n\th=from:to;\r\n  b="
        + b"x" * 200
        + b"\r\nsubject:no blank\r\nTO : Bob\t<bob@x.example>  \r\nX-8: \xfc\xe9\r\n"
    )
    message = b"From: alice@example.com\r\n" + untouched + b"\r\n"
    (copy,) = send("to * bare\n", message=message)
    assert untouched in copy.header
    assert names_of(copy) == [
        b"received",
        b"dkim-signature",
        b"subject",
        b"to",
        b"x-8",
        b"date",
        b"message-id",
        b"x-delivery-agent",
        b"from",
    ]


def test_a_report_tells_what_was_done_and_why():
    first, second = send("to bob@* tag from kw=k envelope bare\n", [b"bob@x", b"carol@x"])
    made = b"alice-keyword-k." + first.reports[0].sender_after.partition(b".")[2]
    assert first.reports == (
        Report(
            b"bob@x",
            "to bob@* tag from kw=k envelope bare",
            b"alice@example.com",
            made,
            action="kw=k",
        ),
    )
    assert first.sender == b"alice@example.com"
    (report,) = second.reports
    assert report.rule == "action_outgoing (dated)"
    assert report.sender_after == second.sender
    assert report.action == "dated"


@pytest.mark.parametrize(
    ("rule", "action"),
    [
        ("to * dated=3d", "dated=3d"),
        ("to * default", "dated"),
        ("to * tag envelope sender", "sender"),
        ("to * tag envelope sender from bare", "bare"),
        ('to * tag from "a@b.example"', '"a@b.example"'),
        ("to * tag x-note hello", ""),
    ],
)
def test_a_report_names_the_action_that_made_the_address(rule, action):
    (copy,) = send(f"{rule}\n", [b"bob@x"])
    assert [report.action for report in copy.reports] == [action]


# The sender


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (
            b"Alice <alice@example.com>, Bob <bob@example.com>",
            b"Alice <alice-x@example.com>, Bob <bob@example.com>",
        ),
        (
            b"alice@example.com, bob@example.com",
            b"Alice Liddell <alice-x@example.com>, bob@example.com",
        ),
        (
            b"Alice <alice@example.com>,\r\n\tBob\r\n <bob@example.com>",
            b"Alice <alice-x@example.com>, Bob <bob@example.com>",
        ),
        (b"alice@example.com (Alice)", b"Alice <alice-x@example.com>"),
        (b'"L, A" <alice@example.com>', b'"L, A" <alice-x@example.com>'),
        (b"=?utf-8?q?J=2E?= <alice@example.com>", b"=?utf-8?q?J=2E?= <alice-x@example.com>"),
        (b"<alice@example.com>", b"Alice Liddell <alice-x@example.com>"),
        (b"A\x01\x7fB <alice@example.com>", b"A  B <alice-x@example.com>"),
        (b"", b"Alice Liddell <alice-x@example.com>"),
        (b"The Queen <queen>", b"The Queen <alice-x@example.com>"),
        (b"a@b@c", b"Alice Liddell <alice-x@example.com>"),
        (b'Alice <"a\r\n b"@example.com>', b"Alice <alice-x@example.com>"),
    ],
)
def test_from_is_rewritten_and_further_authors_are_kept(given, written):
    (copy,) = send("to * ext=x\n", message=b"From: " + given + b"\r\n\r\n")
    assert values(copy, b"from") == [written]
    assert copy.sender == b"alice-x@example.com"


@pytest.mark.parametrize("author", [b"<@<", b"x>@y", b'"unclosed <a@x>', b"a b\x00@x"])
def test_an_author_that_mail_cannot_come_from_is_no_fault_of_the_files(author):
    (copy,) = send("to * bare\n", message=b"From: " + author + b"\r\n\r\n")
    assert copy.sender == b"alice@example.com"


def test_of_several_from_fields_the_first_one_remains():
    message = b"From: one@example.com\r\nFrom: two@example.com\r\n\r\n"
    (copy,) = send("to * bare\n", message=message, FULLNAME="")
    assert values(copy, b"from") == [b"one@example.com"]


def test_a_resent_message_keeps_its_author():
    message = b"Resent-From: alice@example.com\r\nFrom: Bob <bob@x.example>\r\n\r\n"
    (copy,) = send("from alice@example.com ext=x\n", message=message)
    assert values(copy, b"from") == [b"Bob <bob@x.example>"]
    assert values(copy, b"resent-from") == [b"Alice Liddell <alice-x@example.com>"]


@pytest.mark.parametrize(
    ("rules", "sender", "written"),
    [
        ("to * exp=<>", b"", None),
        ("to * tag from bare envelope exp=<>", b"", b"Alice <alice@example.com>"),
        ("to * tag envelope ext=b", b"alice-b@example.com", b"Alice <alice@example.com>"),
        ("to * tag from ext=f", b"alice-f@example.com", b"Alice <alice-f@example.com>"),
        ("to * tag from ext=f envelope bare", b"alice@example.com", b"Alice <alice-f@example.com>"),
        ("to * tag x-a b", b"alice@example.com", b"Alice <alice@example.com>"),
        ("to * tag resent-from ext=r", b"alice@example.com", b"Alice <alice@example.com>"),
    ],
)
def test_the_envelope_sender_follows_from_unless_told(rules, sender, written):
    (copy,) = send(rules)
    assert copy.sender == sender
    if written is not None:
        assert values(copy, b"from") == [written]


@pytest.mark.parametrize(
    ("block", "resent"),
    [
        (b"Resent-From: alice@example.com\r\n", b"Alice Liddell <alice-x@example.com>"),
        (b"resent-from:Al <alice@example.com>\r\n", b"Al <alice-x@example.com>"),
        (b"Resent-From: Al\r\n\t<alice@example.com>\r\n", b"Al <alice-x@example.com>"),
        (b"Resent-From:\r\n", b"Alice Liddell <alice-x@example.com>"),
        (b"Resent-From: queen\r\n", b"Alice Liddell <alice-x@example.com>"),
        (
            b"Resent-From: alice@example.com\r\nResent-From: bob@example.com\r\n",
            b"Alice Liddell <alice-x@example.com>",
        ),
        (
            b"Resent-From: alice@example.com, Bob <bob@y>\r\n",
            b"Alice Liddell <alice-x@example.com>, Bob <bob@y>",
        ),
    ],
)
def test_resending_replaces_resent_from_by_one_at_the_end_and_nothing_else(block, resent):
    author = b"From: Bob\r\n\t<bob@x.example> \r\nfrom: second@x\r\nSubject: x\r\n"
    (copy,) = send("to * ext=x\n", message=block + author + b"\r\n")
    assert author in copy.header
    assert values(copy, b"resent-from") == [resent]
    assert names_of(copy)[-1] == b"resent-from"
    assert copy.sender == b"alice-x@example.com"


def test_who_resends_is_who_the_filter_looks_at():
    message = b"Resent-From: alice@example.com\r\nFrom: bob@x\r\n\r\n"
    (copy,) = send("from bob@x ext=wrong\nfrom alice@example.com ext=right\n", message=message)
    assert copy.sender == b"alice-right@example.com"


# Commands


def test_a_command_is_asked_for_each_recipient():
    asked = []

    def shell(command, recipient):
        asked.append((command, recipient))
        return b"me+" + recipient.replace(b"@", b"=") + b"@example.com"

    profile = profile_of("to *@x tag from shell='make me'\nto * bare\n")
    recipients = [b"a@x", b"b@y", b"C@X", b"a@x"]
    copies = tag(profile, header.parse(MESSAGE)[0], recipients, shell=shell)
    assert asked == [("make me", b"a@x"), ("make me", b"C@X"), ("make me", b"a@x")]
    assert [(copy.sender, copy.recipients) for copy in copies] == [
        (b"me+a=x@example.com", (b"a@x", b"a@x")),
        (b"alice@example.com", (b"b@y",)),
        (b"me+C=X@example.com", (b"C@X",)),
    ]


@pytest.mark.parametrize(
    ("output", "written"),
    [
        (b"one", b"one"),
        (b"", b""),
        (b"one two  three", b"one two  three"),
        (b"one\ntwo\nthree", b"one two three"),
        (b"one\r\nX-Evil: 1\r\n\r\nbody", b"one  X-Evil: 1    body"),
        (b"\none\n", b"one"),
        (b"a\x00b\x1bc\x7fd\te", b"a b c d e"),
        (b"\xff\xc3\xbc", b"\xff\xc3\xbc"),
        (b"alice@example.com", b"alice@example.com"),
    ],
)
def test_what_a_command_prints_is_one_value_of_one_field(output, written):
    profile = profile_of("to * tag from bare x-a shell='any'\n")
    (copy,) = tag(profile, header.parse(b"\r\n")[0], [b"b@x"], shell=lambda *asked: output)
    assert_whole(copy, [*EXPECTED_NAMES, b"x-a"])
    assert values(copy, b"x-a") == [written]


def test_much_that_a_command_prints_is_folded():
    profile = profile_of("to * tag from bare x-a shell='any'\n")
    shell = lambda *asked: b"word\n" * 10_000 + b"end"  # noqa: E731
    (copy,) = tag(profile, header.parse(b"\r\n")[0], [b"b@x"], shell=shell)
    assert max(map(len, copy.header.split(b"\r\n"))) <= 78
    assert header.unfold(values(copy, b"x-a")[0]).count(b"word ") == 10_000


@pytest.mark.parametrize(
    ("action", "output", "says"),
    [
        ("tag from bare x-a shell=any", b"x" * 1000, "X-A would have a line of more than 998"),
        ("shell=any", b"", "'' is no address that mail can be sent from"),
        ("shell=any", b"a@x\nb@x", "control characters"),
        ("shell=any", b"a@x\r", "control characters"),
        ("shell=any", b"a@x\0", "control characters"),
        ("shell=any", b"a b@x", "no address that mail can be sent from"),
        ("shell=any", b"a@x> SIZE=1", "no address that mail can be sent from"),
        ("shell=any", b"Alice <a@x>", "no address that mail can be sent from"),
        ("tag from bare envelope shell=any", b"a@x\n", "control characters"),
        ("tag from bare envelope shell=any", b"a@x>", "no address that mail can be sent from"),
    ],
)
def test_what_a_command_prints_is_no_good_address_or_field(action, output, says):
    profile = profile_of(f"\nto * {action}\n")
    with pytest.raises(FilterError) as caught:
        tag(profile, header.parse(MESSAGE)[0], [b"b@x"], shell=lambda *asked: output)
    assert (caught.value.path, caught.value.line) == (FILTER_PATH, 2)
    assert says in caught.value.problem


def test_a_command_may_make_the_null_sender():
    profile = profile_of("to * tag from bare envelope shell=any\n")
    (copy,) = tag(profile, header.parse(MESSAGE)[0], [b"b@x"], shell=lambda *asked: b"<>")
    assert copy.sender == b""


def test_a_command_that_the_default_action_names_is_run():
    profile = profile_of("", ACTION_OUTGOING="shell=any")
    (copy,) = tag(profile, header.parse(MESSAGE)[0], [b"b@x"], shell=lambda *asked: b"me@y")
    assert copy.sender == b"me@y"
    assert copy.reports[0].rule == "action_outgoing (shell=any)"


@pytest.mark.parametrize(
    ("rules", "names", "path"),
    [
        ("to * python=1+1\n", {}, FILTER_PATH),
        ("to * tag from bare x-a python='1 + 1'\n", {}, FILTER_PATH),
        ("", {"ACTION_OUTGOING": "python=1"}, CONFIG_PATH),
    ],
)
def test_python_is_refused_with_what_to_use_instead(rules, names, path):
    error = refusal(rules, UserFileError, **names)
    assert error.path == path
    assert "use shell=COMMAND" in error.problem


# Added, purged and custom headers


def test_headers_are_added_in_the_order_of_their_names_and_spelled_as_given():
    added = {"X-beta": "2", "Organization": "O", "X-ALPHA": "1", "x-Gamma": ""}
    (copy,) = send("to * bare", ADDED_HEADERS_CLIENT=added)
    end = b"Organization: O\r\nX-ALPHA: 1\r\nX-beta: 2\r\nx-Gamma: \r\n\r\n"
    assert copy.header.endswith(end)


@pytest.mark.parametrize("name", ["X-Note", "x-note", "X-NOTE"])
def test_an_added_header_takes_the_place_of_all_of_its_name(name):
    message = b"X-Note: 1\r\nx-NOTE : 2\r\n 3\r\nX-Notes: 4\r\n\r\n"
    (copy,) = send("to * bare", message=message, ADDED_HEADERS_CLIENT={name: "new"})
    assert values(copy, b"x-note") == [b"new"]
    assert values(copy, b"x-notes") == [b"4"]
    assert f"\r\n{name}: new\r\n".encode() in copy.header


def test_text_that_is_added_keeps_its_octets_and_is_folded():
    text = "Jürgen \udcfc " + "word " * 30 + "end"
    (copy,) = send("to * bare", ADDED_HEADERS_CLIENT={"X-A": text})
    (value,) = values(copy, b"x-a")
    assert value.replace(b"\r\n", b"") == text.encode("utf-8", "surrogateescape")
    assert max(map(len, copy.header.split(b"\r\n"))) <= 78


def test_purging_comes_after_adding_and_custom_headers_after_that():
    """Reference, section 5.5."""
    names = {
        "ADDED_HEADERS_CLIENT": {"X-A": "added", "X-B": "added", "X-C": "added"},
        "PURGED_HEADERS_CLIENT": ["x-a", "X-B"],
    }
    (copy,) = send("to * tag from bare x-b 'by tag' x-c 'by tag' bcc 'seen@x'", **names)
    assert values(copy, b"x-a") == []
    assert values(copy, b"x-b") == values(copy, b"x-c") == [b"by tag"]
    assert values(copy, b"bcc") == [b"seen@x"]


@pytest.mark.parametrize(
    ("purged", "left"),
    [
        (["x-mailer"], [b"x-mailer-version", b"user-agent"]),
        (["X-MAILER", "User-agent"], [b"x-mailer-version"]),
        (["x-mailer*"], [b"x-mailer", b"x-mailer-version", b"x-mailer", b"user-agent"]),
        ([""], [b"x-mailer", b"x-mailer-version", b"x-mailer", b"user-agent"]),
        (["none-of-these"], [b"x-mailer", b"x-mailer-version", b"x-mailer", b"user-agent"]),
    ],
)
def test_headers_are_purged_by_their_whole_names_in_any_case(purged, left):
    message = b"X-Mailer: 1\r\nX-Mailer-Version: 2\r\nx-MAILER:3\r\n 4\r\nUser-Agent: 5\r\n\r\n"
    (copy,) = send("to * bare", message=message, PURGED_HEADERS_CLIENT=purged)
    assert [name for name in names_of(copy) if name not in EXPECTED_NAMES] == left


def test_custom_headers_stand_at_the_end_in_the_order_of_their_names():
    rules = "to * tag x-zeta 1 from bare X-ALPHA ext=a reply-to bare x--beta- 'b  c'"
    message = b"reply-to: old\r\nX-Alpha: old\r\nX-Alpha: older\r\n\r\n"
    (copy,) = send(rules, message=message)
    assert copy.header.endswith(
        b"Reply-To: Alice Liddell <alice@example.com>\r\n"
        b"X-Alpha: Alice Liddell <alice-a@example.com>\r\nX-Beta: b  c\r\nX-Zeta: 1\r\n\r\n"
    )
    assert len(values(copy, b"x-alpha")) == len(values(copy, b"reply-to")) == 1


@pytest.mark.parametrize(
    ("style", "written"),
    [
        ("angles", b"Alice <alice-r@example.com>"),
        ("address", b"alice-r@example.com"),
        ("anything", b"Alice <alice-r@example.com>"),
    ],
)
def test_an_address_in_a_custom_header_has_the_style_for_these(style, written):
    rules = "to * tag from bare reply-to ext=r x-text 'alice-r@example.com'"
    (copy,) = send(rules, MESSAGE_TAG_HEADER_STYLE=style)
    assert values(copy, b"reply-to") == [written]
    assert values(copy, b"x-text") == [b"alice-r@example.com"]
    assert values(copy, b"from") == [b"Alice <alice@example.com>"]


def test_what_a_message_has_too_long_for_a_line_is_the_messages_fault():
    message = b"From: " + b"x" * 1000 + b" <alice@example.com>\r\n\r\n"
    with pytest.raises(MessageError, match="From would have a line of more than 998 octets"):
        send("to * bare", message=message)


def test_a_trace_too_long_for_a_line_is_no_error_that_nobody_declared():
    stamp = Stamp(NOW, STAMP.date, b"x" * 1000, STAMP.message_id, STAMP.agent)
    with pytest.raises((MessageError, UserFileError)):
        send("to * bare", stamp=stamp)


def test_many_recipients_and_many_fields_are_no_trouble():
    message = b"From: alice@example.com\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n"
    recipients = [b"r%d@x.example" % number for number in range(1000)]
    (copy,) = send("to *@x.example bare", recipients, message)
    assert copy.recipients == tuple(recipients)
    assert copy.header.count(b"X-A: b\r\n") == 20_000


# Purging


@pytest.mark.parametrize("purged", [(), ["X-Mailer"], ["bcc"], ["BCC", "Resent-Bcc", "x-mailer"]])
def test_blind_copies_stay_blind_whatever_else_is_purged(purged):
    message = (
        b"Bcc: secret@x.example\r\nFrom: alice@example.com\r\nBCC : secret@x.example,\r\n"
        b" secret@y.example\r\nResent-Bcc: secret@x.example\r\nX-Mailer: M\r\nresent-bcc:\r\n\r\n"
    )
    recipients = [b"bob@x.example", b"secret@x.example"]
    for copy in send(
        "to bob@* bare\nto * sender", recipients, message, PURGED_HEADERS_CLIENT=purged
    ):
        assert b"secret" not in copy.header
        assert not {b"bcc", b"resent-bcc"} & set(names_of(copy))
        named = {name.lower() for name in purged}
        assert (b"x-mailer" in names_of(copy)) == ("x-mailer" not in named)


def test_blind_copies_cannot_come_back_as_added_headers():
    (copy,) = send("to * bare", ADDED_HEADERS_CLIENT={"Bcc": "secret@x.example", "X-A": "1"})
    assert b"secret" not in copy.header
    assert values(copy, b"x-a") == [b"1"]


def test_added_headers_take_the_place_of_submitted_ones():
    message = b"From: alice@example.com\r\norganization: old\r\nOrganization: older\r\n\r\n"
    (copy,) = send("to * bare", message=message, ADDED_HEADERS_CLIENT={"Organization": "new"})
    assert values(copy, b"organization") == [b"new"]
    assert b"Organization: new\r\n" in copy.header


# Date, Message-ID, Received


@pytest.mark.parametrize(
    ("tmdainject", "date", "message_id"),
    [
        ("", b"Tue, 14 Nov 2023 22:00:00 +0000", b"<m1@laptop>"),
        ("d", STAMP.date, b"<m1@laptop>"),
        ("i", b"Tue, 14 Nov 2023 22:00:00 +0000", STAMP.message_id),
        ("di", STAMP.date, STAMP.message_id),
    ],
)
def test_date_and_message_id_are_replaced_only_when_asked(tmdainject, date, message_id):
    (copy,) = send("to * bare", TMDAINJECT=tmdainject)
    assert values(copy, b"date") == [date]
    assert values(copy, b"message-id") == [message_id]


def test_all_copies_of_a_message_have_one_date_and_one_message_id():
    first, second = send("to * sender", [b"a@x", b"b@x"], b"From: alice@example.com\r\n\r\n")
    for name in (b"date", b"message-id", b"received", b"x-delivery-agent"):
        assert values(first, name) == values(second, name)
        assert len(values(first, name)) == 1


def test_a_submitted_agent_is_replaced_and_the_trace_stands_on_top():
    message = b"Received: by there\r\nX-Delivery-Agent: forged\r\nFrom: alice@example.com\r\n\r\n"
    (copy,) = send("to * bare", message=message)
    assert values(copy, b"x-delivery-agent") == [b"tofmipd/1"]
    assert copy.header.startswith(b"Received: by here\r\nReceived: by there\r\n")


def test_no_trace_is_added_when_there_is_none():
    stamp = Stamp(NOW, STAMP.date, None, STAMP.message_id, STAMP.agent)
    (copy,) = send("to * bare", stamp=stamp)
    assert b"received" not in names_of(copy)


# What cannot be done


def refusal(rules, kind=FilterError, **options):
    with pytest.raises(UserFileError) as caught:
        send(rules, **options)
    assert isinstance(caught.value, kind)
    return caught.value


@pytest.mark.parametrize("timeout", ["5", "5q", "soon", "5D", "5d,6d"])
def test_an_invalid_timeout_is_blamed_on_its_rule(timeout):
    error = refusal(f"# first\n\nto * dated={timeout}\n")
    assert str(error).startswith(f"{FILTER_PATH}:3: ")
    assert repr(timeout) in error.problem


@pytest.mark.parametrize(
    "names", [{"DATED_TIMEOUT": "5q"}, {"ACTION_OUTGOING": "dated=5q"}], ids=str
)
def test_an_invalid_timeout_of_the_configuration_is_blamed_on_it(names):
    error = refusal("from nobody@x bare\n", ConfigError, **names)
    assert error.path == CONFIG_PATH
    assert "'5q'" in error.problem


def test_an_invalid_timeout_of_the_configuration_has_its_line():
    source = "# mine\n\nDATED_TIMEOUT = '5q'\n"
    error = refusal("", ConfigError, source=source, DATED_TIMEOUT="5q")
    assert error.line == 3


def test_the_default_action_of_a_rule_with_a_wrong_default_timeout_is_refused():
    error = refusal("\nto * default\n", UserFileError, DATED_TIMEOUT="5q")
    assert "'5q'" in error.problem


@pytest.mark.parametrize("octet", ["\x00", "\x01", "\x07", "\x1b", "\x7f"])
@pytest.mark.parametrize(
    "action", ["exp=a{}b@x", "ext=a{}b", "tag from a{}b", "tag envelope exp=a{}b", 'tag x-a "a{}b"']
)
def test_control_characters_in_what_a_rule_makes_are_refused_with_its_line(action, octet):
    error = refusal(f"to nobody@x bare\nto * {action.format(octet)}\n")
    assert (error.path, error.line) == (FILTER_PATH, 2)
    assert "control characters" in error.problem


@pytest.mark.parametrize("action", ["sender=a\x00b", "domain=a\x00b", "kw=a\x00b"])
def test_control_characters_that_are_only_hashed_do_no_harm(action):
    (copy,) = send(f"to * {action}\n")
    assert b"\x00" not in copy.header


def test_one_recipient_that_cannot_be_tagged_stops_all_copies():
    refusal("to carol@* dated=5q\nto * bare\n", recipients=[b"bob@x", b"carol@x", b"dan@x"])


@pytest.mark.parametrize(
    "names", [{"USERNAME": "a@b"}, {"HOSTNAME": "b@c"}, {"USERNAME": "", "HOSTNAME": "@"}], ids=str
)
def test_a_name_that_makes_no_address_is_an_error_of_the_files(names):
    refusal("to * dated", UserFileError, message=b"Subject: no author\r\n\r\n", **names)


# Nothing gets into a header that was not meant to be there

EXPECTED_NAMES = [b"received", b"date", b"message-id", b"x-delivery-agent", b"from"]


def assert_whole(copy, expected=EXPECTED_NAMES):
    """The header block has these fields and no stray line end."""
    fields, end = header.parse(copy.header)
    assert end == len(copy.header)
    assert [field.name for field in fields] == expected
    assert not set(copy.header.replace(b"\r\n", b"")) & set(b"\r\n")


@pytest.mark.parametrize(
    ("rules", "names", "expected"),
    [
        ("to * bare", {"FULLNAME": "Alice\r\nX-Evil: 1"}, EXPECTED_NAMES),
        ("to * bare", {"FULLNAME": "Alice\nX-Evil: 1"}, EXPECTED_NAMES),
        ("to * bare", {"FULLNAME": "Alice\r\n\r\nbody"}, EXPECTED_NAMES),
        ("to * tag reply-to bare", {"FULLNAME": "A\r\nX-E: 1"}, [*EXPECTED_NAMES, b"reply-to"]),
        ("to * bare", {"HOSTNAME": "x\r\nX-Evil: 1"}, EXPECTED_NAMES),
        ("to * bare", {"USERNAME": "x\r\nX-Evil: 1"}, EXPECTED_NAMES),
        ("to * tag x-a b", {"HOSTNAME": "x\r\nX-Evil: 1"}, [*EXPECTED_NAMES, b"x-a"]),
        ("to * bare", {"ADDED_HEADERS_CLIENT": {"X-A": "1\r\nX-Evil: 1"}}, EXPECTED_NAMES),
        ("to * bare", {"ADDED_HEADERS_CLIENT": {"X-A": "1\nX-Evil: 1"}}, EXPECTED_NAMES),
        ("to * bare", {"ADDED_HEADERS_CLIENT": {"X-A: 1\r\nX-Evil": "1"}}, EXPECTED_NAMES),
        ("to * ext=x", {"RECIPIENT_DELIMITER": "\r\nX-Evil: "}, EXPECTED_NAMES),
        ("to * dated", {"TAGS_DATED": ["d\r\nX-Evil: "]}, EXPECTED_NAMES),
    ],
)
def test_settings_cannot_smuggle_fields_into_a_header(rules, names, expected):
    try:
        (copy,) = send(rules, message=b"\r\n", **names)
    except UserFileError:
        return
    assert_whole(copy, expected)
    assert copy.header.count(b"\r\n\r\n") == 1


values_of_fields = st.one_of(
    st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n")),
    st.lists(
        st.one_of(
            st.sampled_from(b'@<>"\\()[],:; a\x00\xff').map(lambda octet: bytes([octet])),
            st.sampled_from([b"\r\n ", b"\r\n\t", b"X-Evil: 1", b"a@x", b"<a@x>", b"=?u?q?x?="]),
        ),
        max_size=12,
    ).map(b"".join),
)


@settings(max_examples=300, deadline=None)
@given(
    values_of_fields,
    st.sampled_from(["bare", "dated", "sender", "kw=k", "ext=x"]),
    st.sampled_from(["angles", "address"]),
)
@example(b'"a\\\r\n X-Evil: 1" <a@x>', "bare", "angles")
@example(b'"a\r\n X-Evil: 1"@x', "bare", "angles")
@example(b"a@x (\\\r\n X-Evil: 1), b@y\r\n\t", "bare", "angles")
@example(b"(\\\r\n ", "bare", "angles")
@example(b"<@<", "bare", "angles")
@example(b"[a\r\n X-Evil: 1] <a@x>", "bare", "angles")
def test_no_author_can_smuggle_fields_into_a_header(value, action, style):
    message = b"From: " + value + b"\r\n\r\n"
    (copy,) = send(f"to * {action}", message=message, MESSAGE_FROM_STYLE=style)
    assert_whole(copy)
    assert not set(copy.sender) & (set(range(32)) | {127})
    assert copy.sender.count(b"@") == 1
    assert copy.sender in copy.header


# Recipients of the header


@pytest.mark.parametrize(
    ("message", "recipients"),
    [
        (b"To: a@x\r\nCc: b@x, C <c@x>\r\nBcc: d@x\r\n\r\n", [b"a@x", b"b@x", b"c@x", b"d@x"]),
        (b"Bcc: d@x\r\nTo: a@x\r\nTo: b@x\r\n\r\n", [b"a@x", b"b@x", b"d@x"]),
        (b"Apparently-To: a@x\r\nReply-To: b@x\r\n\r\n", [b"a@x"]),
        (b"To: f: a@x, b@x;, a@x\r\nCc: undisclosed:;\r\n\r\n", [b"a@x", b"b@x", b"a@x"]),
        (
            b"Resent-From: me\r\nResent-Bcc: c@x\r\nResent-To: a@x\r\nTo: b@x\r\n\r\n",
            [b"a@x", b"c@x"],
        ),
        (b"Resent-From: me\r\nTo: b@x\r\n\r\n", []),
        (b"To: local, <>, A <A@X>\r\n\r\n", [b"local", b"A@X"]),
        (b"Subject: x\r\n\r\n", []),
    ],
)
def test_a_header_names_its_recipients_in_order(message, recipients):
    assert header_recipients(header.parse(message)[0]) == recipients
