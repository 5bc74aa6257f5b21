"""X-TMDA-Fingerprint: openssl computes what it must be."""

from __future__ import annotations

import base64
import subprocess

import pytest
from fakes import content_of, in_pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tmda_inject import KEY, STAMP, names_of, profile_of, tag, values

from tofmipd.content import as_local_text
from tofmipd.privsep.submission import parsed_header
from tofmipd.tmda import header
from tofmipd.tmda.cookies import TagSettings
from tofmipd.tmda.fingerprint import Fingerprints

pytestmark = pytest.mark.peer("openssl")

NAME = b"x-tmda-fingerprint"
FROM = b"From: Alice <alice@example.com>\r\n"
BODY = b"Hello,\nworld.\n"


def openssl_fingerprint(octets, key=KEY):
    """Reference, section 1.6, by another program."""
    command = ["openssl", "dgst", "-sha1", "-mac", "hmac", "-macopt", f"hexkey:{key.hex()}"]
    result = subprocess.run([*command, "-binary"], input=octets, capture_output=True, check=True)
    assert len(result.stdout) == 20
    return base64.b64encode(result.stdout).rstrip(b"=")


class Body:
    """A body that counts how often it is read; ``pieces`` are as it is given."""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.reads = 0

    def __call__(self):
        self.reads += 1
        return iter(self.pieces)


def copies(names, block=b"", body=BODY, rules="to * ext=x", recipients=(b"bob@x",), **settings):
    """The copies of a message with FINGERPRINT = names."""
    profile = profile_of(rules, FINGERPRINT=names, **settings)
    fields, _ = header.parse(FROM + block + b"\r\n")
    body = body if callable(body) else Body(body)
    return tag(profile, fields, list(recipients), body=body)


def value(fields, names, body=b""):
    parsed, _ = header.parse(fields + b"\r\n")
    return Fingerprints(TagSettings(KEY), names, Body(body)).value(parsed)


# What is hashed


FIELDS = (
    b"Subject: Hi there \t\r\nTO : bob@x\r\nSubject: second\r\n"
    b"X-Folded: one\r\n\ttwo\r\n  three  \r\nX-Empty:\r\nX-Blank:  \t\r\nX-8: \xfc\xc3\xbc\r\n"
    b"Body: a field of that name\r\n"
)


@pytest.mark.parametrize(
    ("names", "hashed"),
    [
        (["subject"], b"Hi there \t"),
        (["SUBJECT"], b"Hi there \t"),
        (["To"], b"bob@x"),
        (["subject", "to"], b"Hi there \tbob@x"),
        (["to", "subject"], b"bob@xHi there \t"),
        (["to", "to"], b"bob@xbob@x"),
        (["x-folded"], b"one\n\ttwo\n  three  "),
        (["x-8"], b"\xfc\xc3\xbc"),
        (["body"], BODY),
        (["body", "body"], BODY + BODY),
        (["subject", "body"], b"Hi there \t" + BODY),
        (["body", "subject"], BODY + b"Hi there \t"),
        (["to", "body", "subject"], b"bob@x" + BODY + b"Hi there \t"),
        (["to", "body", "to", "body"], b"bob@x" + BODY + b"bob@x" + BODY),
        # A field may be called so as well; its name is not written all in lower case.
        (["Body"], b"a field of that name"),
        (["BODY", "body"], b"a field of that name" + BODY),
        (["x-none", "to"], b"bob@x"),
        (["to", "x-none", "x-empty", "x-blank", "body"], b"bob@x" + BODY),
        (["x-none", "body"], BODY),
    ],
)
def test_values_are_hashed_in_the_order_of_the_names(names, hashed):
    assert value(FIELDS, names, BODY) == openssl_fingerprint(hashed)


@pytest.mark.parametrize(
    ("octets", "hashed"),
    [
        (b"A:x\r\n", b"x"),
        (b"A: \t x\r\n", b"x"),
        (b"A: x: y\r\n", b"x: y"),
        (b"A: x\r\n y\r\n", b"x\n y"),
        # The line that only holds the name is no part of the value; the blanks of the next are.
        (b"A:\r\n x\r\n", b" x"),
        (b"A: \t\r\n\tx\r\n", b"\tx"),
        (b"A:\r\n \r\n x\r\n", b" \n x"),
        (b"A: x\r\n \r\n", b"x\n "),
        (b"A: \x00\x01\r\n", b"\x00\x01"),
    ],
)
def test_white_space_is_that_of_the_original(octets, hashed):
    """As Python 2 gave a header to programs: nothing is normalised but the beginning."""
    assert value(octets, ["a"]) == openssl_fingerprint(hashed)


@pytest.mark.parametrize("names", [[], ["x-none"], ["x-empty"], ["x-blank"], ["x-none", "x-empty"]])
def test_without_any_value_there_is_none(names):
    assert value(FIELDS, names, b"") is None


@pytest.mark.parametrize(("body", "hashed"), [(b"", None), (b"\n", b"\n"), (b"\0", b"\0")])
def test_an_empty_body_is_no_value(body, hashed):
    assert value(FIELDS, ["body"], body) == (hashed and openssl_fingerprint(hashed))
    assert value(FIELDS, ["to", "body"], body) == openssl_fingerprint(b"bob@x" + (hashed or b""))


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 60), max_size=6))
def test_the_pieces_of_the_body_do_not_matter(body, cuts):
    """Empty ones among them."""
    pieces = Body(b"", *in_pieces(body, cuts), b"")
    parsed, _ = header.parse(b"A: 1\r\n\r\n")
    found = Fingerprints(TagSettings(KEY), ["a", "body"], pieces).value(parsed)
    assert found == openssl_fingerprint(b"1" + body)


def test_the_length_of_tags_does_not_matter():
    (copy,) = copies(["body"], HMAC_BYTES=10)
    assert values(copy, NAME) == [openssl_fingerprint(BODY)]


# In a message


def test_it_covers_what_was_set_before_it_and_the_body():
    names = ["received", "from", "to", "date", "message-id", "x-delivery-agent", "body"]
    (copy,) = copies(names, b"To: bob@x\r\n")
    hashed = b"".join(
        (
            STAMP.received,
            b"Alice <alice-x@example.com>",
            b"bob@x",
            STAMP.date,
            STAMP.message_id,
            STAMP.agent,
            BODY,
        )
    )
    assert values(copy, NAME) == [openssl_fingerprint(hashed)]


def test_it_knows_nothing_of_what_is_set_after_it():
    """Reference, section 5.5: added, purged and custom headers come later."""
    block = b"Bcc: eve@x\r\nX-Added: submitted\r\n"
    (copy,) = copies(
        ["bcc", "x-added", "x-custom", "x-tmda-fingerprint"],
        block + b"X-TMDA-Fingerprint: old\r\n",
        rules="to * tag from ext=x x-custom new",
        ADDED_HEADERS_CLIENT={"X-Added": "added"},
    )
    assert values(copy, NAME) == [openssl_fingerprint(b"eve@xsubmittedold")]
    assert b"bcc" not in names_of(copy)


def test_our_own_folds_are_no_part_of_a_value():
    words = " ".join(["Alice"] * 30)
    (copy,) = copies(["from"], rules="to * ext=x", body=b"", FULLNAME=words)
    assert b"\r\n " not in copy.header
    message = b"From: " + words.encode() + b" <alice@example.com>\r\n\r\n"
    profile = profile_of("to * ext=x", FINGERPRINT=["from"])
    (copy,) = tag(profile, header.parse(message)[0], [b"bob@x"])
    assert b"Alice\r\n Alice" in copy.header
    hashed = words.encode() + b" <alice-x@example.com>"
    assert values(copy, NAME) == [openssl_fingerprint(hashed)]


def test_a_resent_message_has_the_fingerprint_of_its_author():
    block = b"Resent-From: alice@example.com\r\n"
    (copy,) = copies(["from", "resent-from"], block)
    hashed = b"Alice <alice@example.com>" + b"Alice Liddell <alice-x@example.com>"
    assert values(copy, NAME) == [openssl_fingerprint(hashed)]


@pytest.mark.parametrize("names", [["body"], ["x-none"]])
def test_a_submitted_one_never_stays(names):
    block = b"X-TMDA-Fingerprint: forged\r\nx-tmda-fingerprint: twice\r\n"
    (copy,) = copies(names, block)
    assert values(copy, NAME) == ([openssl_fingerprint(BODY)] if names == ["body"] else [])


def test_without_the_setting_nothing_is_read_or_removed():
    body = Body(BODY)
    (copy,) = copies([], b"X-TMDA-Fingerprint: mine\r\n", body)
    assert values(copy, NAME) == [b"mine"]
    assert body.reads == 0


def test_the_name_is_written_as_in_the_original():
    (copy,) = copies(["body"])
    assert b"\r\nX-TMDA-Fingerprint: " in copy.header


def test_it_is_of_the_body_as_programs_on_this_machine_have_it():
    """Line ends are LF and no dot is doubled, however the body travels."""
    wire = FROM + b"\r\n..dot\r\n...\r\n\0\xff\rx\r\n"
    content = content_of(in_pieces(wire, [5, 40, 3, 1]))
    fields, start = parsed_header(content)
    profile = profile_of("to * bare", FINGERPRINT=["body"])
    (copy,) = tag(profile, fields, [b"bob@x"], body=lambda: as_local_text(content.blocks(start)))
    assert values(copy, NAME) == [openssl_fingerprint(b".dot\n..\n\0\xff\rx\n")]


# How often the body is read

MANY = [b"r%d@x" % number for number in range(40)]


@pytest.mark.parametrize(
    ("names", "rules", "made", "reads"),
    [
        (["to", "body"], "to * sender", 40, 1),
        (["body"], "to * sender", 40, 1),
        (["body", "from"], "to * sender", 40, 1),
        (["to", "body", "from", "subject"], "to * sender", 40, 1),
        (["from", "body"], "to * bare", 1, 1),
        (["from", "body"], "to * sender", 40, 40),
        (["from", "body"], "to r1@x ext=a\nto r2@x ext=b\nto * bare", 3, 3),
        (["from", "body"], "to r1@x tag x-a 1\nto r2@x tag x-a 2\nto * bare", 3, 1),
        (["body", "body"], "to * sender", 40, 2),
        (["from", "to"], "to * sender", 40, 0),
    ],
)
def test_the_body_is_read_once_for_copies_that_agree_in_what_comes_before_it(
    names, rules, made, reads
):
    body = Body(b"abc", b"def")
    result = copies(names, b"To: list@x\r\n", body, rules, MANY)
    assert (len(result), body.reads) == (made, reads)


def test_copies_that_share_a_reading_have_fingerprints_of_their_own():
    result = copies(["body", "from"], rules="to * sender", recipients=MANY[:5])
    for copy in result:
        (from_,) = values(copy, b"from")
        assert values(copy, NAME) == [openssl_fingerprint(BODY + from_)]
    assert len({copy.header for copy in result}) == 5


def test_absent_and_empty_values_before_the_body_do_not_mix_copies_up():
    rules = "to r1@x tag from bare\nto * bare\n"
    (copy,) = copies(["x-none", "x-empty", "body"], b"X-Empty:\r\n", rules=rules, recipients=MANY)
    assert values(copy, NAME) == [openssl_fingerprint(BODY)]
