"""Mail-Followup-To: when it is added, and how the own address in it is tagged."""

from __future__ import annotations

import pytest
from test_tmda_inject import names_of, profile_of, send, tag, values

from tofmipd.tmda import followup, header
from tofmipd.tmda.errors import MessageError
from tofmipd.tmda.mailbox import mailboxes

OWN = b"alice@example.com"
TAGGED = b"alice-x@example.com"
LISTS = frozenset({b"l@lists.example", b"m@lists.example"})
FROM = b"From: Alice <alice@example.com>\r\n"


def fields_of(block):
    return header.parse(block + b"\r\n")[0]


def wanted(block, lists=LISTS):
    return followup.wanted(fields_of(block), lists)


def tagged(block):
    fields = followup.tagged(fields_of(block), OWN, TAGGED)
    return b"".join(field.octets for field in fields)


def copies(block, recipients=(b"l@lists.example",), rules="to * sender\n"):
    profile = profile_of(rules, followup=LISTS)
    return tag(profile, fields_of(FROM + block), list(recipients))


# When it is added


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (b"To: l@lists.example\r\n", b"l@lists.example"),
        (b"Cc: l@lists.example\r\n", b"l@lists.example"),
        (b"To: L@LISTS.Example\r\n", b"L@LISTS.Example"),
        (b"to: a@x\r\ncc: l@lists.example\r\n", b"a@x, l@lists.example"),
        (b"Cc: l@lists.example\r\nTo: a@x\r\n", b"a@x, l@lists.example"),
        (b"To: a@x\r\nTo: m@lists.example\r\nCc: b@x\r\n", b"a@x, m@lists.example, b@x"),
        (
            b'To: "The L" <l@lists.example>, Bob (at x) <bob@x>\r\n',
            b"l@lists.example, bob@x",
        ),
        (b'To: "Bob, B." <bob@x>, l@lists.example\r\n', b"bob@x, l@lists.example"),
        (b'To: "l@lists.example, x" <bob@x>, <m@lists.example>\r\n', b"bob@x, m@lists.example"),
        (b'To: "a, b"@x, l@lists.example\r\n', b'"a, b"@x, l@lists.example'),
        (b"To: friends: a@x, l@lists.example;, b@x\r\n", b"a@x, l@lists.example, b@x"),
        (b"To: nobody:;, l@lists.example\r\n", b"l@lists.example"),
        (b"To: a@x,\r\n\tl@lists.example,\r\n b@x\r\n", b"a@x, l@lists.example, b@x"),
        (b"To: L\r\n <l@lists.example>\r\n", b"l@lists.example"),
        (b"To: l@lists.example, l@lists.example\r\n", b"l@lists.example, l@lists.example"),
        (b"To: =?utf-8?q?a=2C?= <l@lists.example>\r\n", b"l@lists.example"),
        (b"To: J\xc3\xbcrgen <j@x>, l@lists.example\r\n", b"j@x, l@lists.example"),
        (b"To: local, l@lists.example\r\n", b"local, l@lists.example"),
        (b"To: alice@example.com, l@lists.example\r\n", b"alice@example.com, l@lists.example"),
    ],
)
def test_a_message_to_a_list_gets_all_addresses_of_to_and_cc_in_order(block, value):
    assert wanted(FROM + block) == value


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"To: a@x\r\n",
        b"To:\r\nCc:\r\n",
        b"To: undisclosed-recipients:;\r\n",
        b"Bcc: l@lists.example\r\n",
        b"Reply-To: l@lists.example\r\n",
        b"Resent-To: l@lists.example\r\n",
        b'To: "l@lists.example" <a@x>\r\n',
        b"To: a@x (l@lists.example)\r\n",
        b"To: ll@lists.example, l@lists.example.org, l@sub.lists.example\r\n",
        b"To: l@lists.example\r\nMail-Followup-To: a@x\r\n",
        b"To: l@lists.example\r\nmail-followup-to:\r\n",
    ],
)
def test_none_is_added_where_no_list_is_addressed_or_there_is_one_already(block):
    assert wanted(FROM + block) is None


def test_none_is_added_unless_the_configuration_names_lists():
    assert wanted(b"To: l@lists.example\r\n", frozenset()) is None


# Tagging it


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (b"alice@example.com", TAGGED),
        (b"l@x, alice@example.com", b"l@x, " + TAGGED),
        (b"Alice <alice@example.com>, L <l@x>", TAGGED + b", l@x"),
        (b'"A, B" <alice@example.com>', TAGGED),
        (b"alice@example.com (me)", TAGGED),
        (b"g: l@x, alice@example.com;, m@x", b"l@x, " + TAGGED + b", m@x"),
        (b"l@x,\r\n\talice@example.com", b"l@x, " + TAGGED),
        (b"alice@example.com, alice@example.com", TAGGED + b", " + TAGGED),
        # The same spelling only: another one may be another address, or a tag of before.
        (b"ALICE@example.com", b"ALICE@example.com"),
        (b"Al <alice@example.com.au>", b"alice@example.com.au"),
        (b"alice-x@example.com", b"alice-x@example.com"),
        (b"malice@example.com", b"malice@example.com"),
        (b'"alice@example.com" <l@x>', b"l@x"),
    ],
)
def test_the_own_address_in_it_is_tagged_and_names_go(value, result):
    block = b"To: l@x\r\nMail-Followup-To: " + value + b"\r\nSubject: x\r\n"
    assert tagged(block) == b"To: l@x\r\nSubject: x\r\nMail-Followup-To: " + result + b"\r\n"


def test_of_several_fields_one_remains():
    block = b"Mail-Followup-To: l@x\r\nmail-followup-to: alice@example.com\r\n"
    assert tagged(block) == b"Mail-Followup-To: l@x, " + TAGGED + b"\r\n"


@pytest.mark.parametrize(
    "block",
    [
        b"To: alice@example.com\r\n",
        b"Mail-Followup-To:\r\n",
        b"Mail-Followup-To: \r\n \r\n",
        b"Mail-Followup-To: nobody:;\r\nTo: a@x\r\n",
        b"Mail-Reply-To: alice@example.com\r\n",
    ],
)
def test_a_header_without_an_address_there_keeps_its_octets(block):
    assert tagged(block) == block


def test_a_long_one_is_folded_and_reads_the_same():
    names = [b"person-number-%d@department.example" % number for number in range(200)]
    names[50:50] = [OWN]
    block = b"Mail-Followup-To: " + b", ".join(names) + b"\r\n"
    result = tagged(block)
    assert max(map(len, result.split(b"\r\n"))) <= 78
    (field,) = fields_of(result)
    read = [mailbox.address for mailbox in mailboxes(header.unfold(field.value))]
    assert read == [TAGGED if name == OWN else name for name in names]


# In a message


def test_every_copy_has_its_own_tag_in_it():
    block = b"To: l@lists.example\r\nMail-Followup-To: l@lists.example, alice@example.com\r\n"
    first, second = copies(block, [b"l@lists.example", b"bob@x"])
    assert first.sender != second.sender
    for copy in (first, second):
        assert values(copy, b"mail-followup-to") == [b"l@lists.example, " + copy.sender]


def test_one_that_is_added_is_tagged_as_well():
    block = b"To: L <l@lists.example>\r\nCc: Alice <alice@example.com>\r\n"
    (copy,) = copies(block)
    assert values(copy, b"mail-followup-to") == [b"l@lists.example, " + copy.sender]
    assert values(copy, b"cc") == [b"Alice <alice@example.com>"]


def test_what_was_submitted_is_not_added_to():
    (copy,) = copies(b"To: l@lists.example\r\nMail-Followup-To: bob@x\r\n")
    assert values(copy, b"mail-followup-to") == [b"bob@x"]


def test_an_untagged_sender_stays_untagged_in_it():
    (copy,) = copies(b"To: l@lists.example, alice@example.com\r\n", rules="to * bare\n")
    assert values(copy, b"mail-followup-to") == [b"l@lists.example, alice@example.com"]


def test_without_the_setting_none_is_added():
    (copy,) = send("to * sender\n", message=FROM + b"To: l@lists.example\r\n\r\n")
    assert b"mail-followup-to" not in names_of(copy)


@pytest.mark.parametrize(
    ("rules", "resent", "inside"),
    [
        ("to * ext=f\n", b"alice-f@example.com", b"alice-f@example.com"),
        ("to * tag resent-from ext=r\n", b"alice-r@example.com", b"alice@example.com"),
        ("to * tag from ext=f resent-from ext=r\n", b"alice-r@example.com", b"alice-f@example.com"),
        ("to * tag from ext=f resent-from bare\n", b"alice@example.com", b"alice-f@example.com"),
    ],
)
def test_it_has_the_address_that_the_from_action_makes_also_when_resending(rules, resent, inside):
    """Reference, section 5.5: "F", whatever Resent-From becomes."""
    block = b"Resent-From: alice@example.com\r\nTo: l@lists.example, alice@example.com\r\n"
    (copy,) = copies(block, rules=rules)
    assert values(copy, b"resent-from") == [b"Alice Liddell <" + resent + b">"]
    assert values(copy, b"mail-followup-to") == [b"l@lists.example, " + inside]


@pytest.mark.parametrize("octets", [990, 1000, 5000])
@pytest.mark.parametrize(
    "block",
    [
        b"To: l@lists.example, %b@x\r\n",
        b"To: bob@x\r\nMail-Followup-To: %b@x\r\n",
    ],
    ids=["added", "submitted"],
)
def test_an_address_too_long_for_a_line_is_the_messages_fault(block, octets):
    """Only where a line of 998 octets cannot hold it."""
    block = block % (b"a" * octets)
    if octets < 995:
        (copy,) = copies(block)
        assert b"a" * octets in b"".join(values(copy, b"mail-followup-to"))
        return
    with pytest.raises(MessageError, match="Mail-Followup-To would have a line of more than 998"):
        copies(block)


def test_ten_thousand_addresses_are_no_trouble():
    block = b"To: l@lists.example\r\nCc: " + b",\r\n ".join([b"a%05d@x" % n for n in range(10_000)])
    (copy,) = copies(block + b"\r\n")
    assert len(list(mailboxes(header.unfold(values(copy, b"mail-followup-to")[0])))) == 10_001
