"""Signatures that were made before still verify: DKIM by dkimpy, S/MIME by openssl."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from email.parser import BytesHeaderParser

import dkim
import pytest
from dkim.canonicalization import CanonicalizationPolicy
from dkim.crypto import parse_pem_private_key
from fakes import content_of
from test_tmda_inject import profile_of, tag

from tofmipd.content import as_local_text, as_wire_text, stuffed
from tofmipd.privsep.submission import parsed_header

pytestmark = pytest.mark.peer("openssl")

RECIPIENTS = [b"bob@x.example", b"carol@y.example", b"dan@z.example"]
# Each recipient's copy is another.
RULES = (
    "to bob@* dated\nto carol@* tag from sender x-note 'for Carol' reply-to kw=re\n"
    "to * tag from exp=<> envelope ext=bounce\n"
)
SETTINGS = {
    "FINGERPRINT": ["from", "body"],
    "ADDED_HEADERS_CLIENT": {"Organization": "Example", "X-Long": "word " * 40 + "end"},
    "PURGED_HEADERS_CLIENT": ["X-Mailer"],
    "X_TMDA_IN_SUBJECT": True,
    "TMDAINJECT": "di",
}


def openssl(*arguments, **others):
    result = subprocess.run(["openssl", *arguments], capture_output=True, check=True, **others)
    return result.stdout


def copies_of(wire, rules=RULES, **settings):
    """What leaves, whole, for a message in wire form that was submitted."""
    content = content_of([wire[:100], wire[100:]])
    fields, start = parsed_header(content)
    profile = profile_of(rules, **{**SETTINGS, **settings})
    tagged = tag(profile, fields, RECIPIENTS, body=lambda: as_local_text(content.blocks(start)))
    assert len(tagged) == 3
    body = b"".join(content.blocks(start))
    return [stuffed(copy.header) + body for copy in tagged]


# DKIM


@pytest.fixture(scope="module")
def private_key():
    return openssl("genrsa", "-traditional", "2048")


@pytest.fixture(scope="module")
def published(private_key):
    """The record in DNS."""
    public = openssl("rsa", "-pubout", "-outform", "DER", input=private_key)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def signature(message, names, style, private_key):
    """A field DKIM-Signature over fields and body (RFC 6376).

    Put together by hand, for dkimpy's own ``sign`` insists on From, which is what we change.
    """
    signer = dkim.DKIM(message)
    signer.hasher = hashlib.sha256
    policy = CanonicalizationPolicy.from_c_value(style)
    body_hash = hashlib.sha256(policy.canonicalize_body(signer.body)).digest()
    pairs = [
        (b"v", b"1"),
        (b"a", b"rsa-sha256"),
        (b"c", style),
        (b"d", b"example.com"),
        (b"s", b"test"),
        (b"h", b" : ".join(names)),
        (b"bh", base64.b64encode(body_hash)),
        (b"b", b"0" * 60),
    ]
    key = parse_pem_private_key(private_key)
    made = signer.gen_header(pairs, names, policy, b"DKIM-Signature", key)
    return b"DKIM-Signature: " + made


def verifies(message, published):
    asked = []

    def ask(name, timeout=5):
        asked.append(name)
        return published

    good = dkim.verify(message, dnsfunc=ask)
    assert asked == [b"test._domainkey.example.com."]
    return good


ODD_BLOCK = (
    b'To: Bob\t<bob@x.example>  ,\r\n\t \t"Carol, C." <carol@y.example>\t \r\n'
    b"subject:no blank,  two blanks,\r\n   a fold of three \r\n\tand of a tab\r\n"
    b"From: Alice <alice@example.com>\r\n"
    b"MIME-Version: 1.0 (made by hand)\r\n"
    b'Content-Type: text/plain;\r\n\tcharset="utf-8"; format=flowed;\r\n  delsp=yes\r\n'
    b"Content-Transfer-Encoding:\r\n 8bit\r\n"
    b"X-Mailer: to be purged\r\n"
    b"X-Long: " + b"x" * 300 + b"; " + b"y " * 200 + b"z\r\n"
    b"Organization: old\r\n"
    b"X-8bit: J\xc3\xbcrgen \xfc\xe9\r\n"
    b"X-Empty:\r\n"
    b"Keywords: a,\r\n \r\n b\r\n"
)
ODD_BODY = b"Hello  \r\n\t \r\n..dots\r\n...\r\n\xc3\xbc\xff \t tabs \r\nno end"
UNTOUCHED = [
    b"to",
    b"subject",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"x-8bit",
    b"x-empty",
    b"keywords",
    b"cc",
]
STYLES = [b"relaxed/relaxed", b"simple/simple", b"relaxed/simple", b"simple/relaxed"]


def unstuffed_message(wire):
    """As a receiver has it after the dialogue."""
    return wire.replace(b"\r\n..", b"\r\n.")


@pytest.mark.parametrize("style", STYLES)
def test_dkim_signatures_over_fields_that_we_leave_alone_hold_in_every_copy(
    style, private_key, published
):
    wire = ODD_BLOCK + b"\r\n" + ODD_BODY + b"\r\n"
    field = signature(unstuffed_message(wire), UNTOUCHED, style, private_key)
    assert verifies(unstuffed_message(field + wire), published)
    for copy in copies_of(field + wire):
        assert verifies(unstuffed_message(copy), published)


@pytest.mark.parametrize("style", STYLES)
def test_a_change_of_what_was_signed_is_found(style, private_key, published):
    """The check of this check."""
    wire = ODD_BLOCK + b"\r\n" + ODD_BODY + b"\r\n"
    field = signature(unstuffed_message(wire), UNTOUCHED, style, private_key)
    (copy, *_) = copies_of(field + wire)
    for old, new in ((b"Carol, C.", b"Carol"), (b"Hello", b"Hallo"), (b"tab\r\n", b"tab x\r\n")):
        assert not verifies(unstuffed_message(copy.replace(old, new)), published)


@pytest.mark.parametrize("style", STYLES)
def test_dkim_signatures_with_from_hold_in_every_copy_that_is_resent(style, private_key, published):
    """Resending leaves From alone.  dkimpy signs this one itself."""
    wire = (
        b"From: =?utf-8?q?J=C3=BCrgen_M=2E?=\r\n\t<jm@example.com>, Al\t<al@example.com> \r\n"
        b"Date: Tue, 14 Nov 2023 22:00:00 +0000\r\nMessage-ID:\r\n <1@example.com>\r\n"
        b"Subject:  a  b \r\nTo: list@x\r\n\r\n"
        b"body \r\n\r\n\r\n"
    )
    names = [b"from", b"date", b"message-id", b"subject", b"to"]
    made = dkim.sign(
        wire,
        b"test",
        b"example.com",
        private_key,
        canonicalize=tuple(style.split(b"/")),
        include_headers=names,
    )
    wire = b"Resent-From: Alice <alice@example.com>\r\n" + made + wire
    assert verifies(wire, published)
    for copy in copies_of(wire, TMDAINJECT=""):
        assert verifies(copy, published)


@pytest.mark.parametrize("style", STYLES)
def test_a_bare_copy_of_a_plain_from_keeps_even_the_signature_over_it(
    style, private_key, published
):
    wire = (
        b"From: Alice <alice@example.com>\r\nDate: Tue, 14 Nov 2023 22:00:00 +0000\r\n"
        b"Subject: x\r\nMessage-ID: <1@example.com>\r\n\r\nbody\r\n"
    )
    names = [b"from", b"subject", b"date", b"message-id"]
    field = signature(wire, names, style, private_key)
    rules = "to bob@* bare\nto carol@* tag x-a b\nto * tag envelope dated\n"
    for copy in copies_of(field + wire, rules, TMDAINJECT=""):
        assert verifies(copy, published)


def test_two_signatures_of_which_one_covers_more_hold_both(private_key, published):
    wire = b"To: a@x\r\nSubject: x\r\nX-A: 1\r\nx-a: 2\r\nFrom: alice@example.com\r\n\r\nbody\r\n"
    inner = signature(wire, [b"to", b"subject"], b"simple/simple", private_key)
    both = signature(
        inner + wire,
        [b"dkim-signature", b"to", b"x-a", b"x-a", b"x-a"],
        b"simple/simple",
        private_key,
    )
    for copy in copies_of(both + inner + wire):
        for index in (0, 1):
            verifier = dkim.DKIM(copy)
            assert verifier.verify(index, dnsfunc=lambda name, timeout=5: published)


# S/MIME


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate with its key in one file."""
    path = tmp_path_factory.mktemp("smime") / "alice.pem"
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"),
        *("/CN=Alice/emailAddress=alice@example.com", "-keyout", str(path), "-out", f"{path}.crt"),
    )
    with open(path, "ab") as file, open(f"{path}.crt", "rb") as other:
        file.write(other.read())
    return str(path)


PART = (
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Gr\xc3\xbc\xc3\x9fe,\r\n\r\n.a dot and trailing blanks  \t\r\n..\r\n-- \r\nAlice \r\n\r\n"
)


@pytest.mark.parametrize("form", ["detached", "opaque"])
def test_smime_messages_verify_in_every_copy(form, certificate):
    options = ["-nodetach"] if form == "opaque" else []
    signed = openssl(
        *("cms", "-sign", "-signer", certificate, *options),
        input=PART,
    )
    local = (
        b"From: Alice <alice@example.com>\nTo: bob@x.example\nSubject: signed\n"
        + signed.replace(b"\r\n", b"\n")
    )
    for copy in copies_of(b"".join(as_wire_text([local]))):
        received = unstuffed_message(copy)
        out = openssl("cms", "-verify", "-CAfile", certificate, input=received)
        assert out == PART
        kind = "multipart/signed" if form == "detached" else "application/pkcs7-mime"
        assert BytesHeaderParser().parsebytes(received).get_content_type() == kind
        local_copy = b"".join(as_local_text([copy]))
        assert openssl("cms", "-verify", "-CAfile", certificate, input=local_copy)


def test_a_changed_smime_message_does_not_verify(certificate):
    """The check of this check."""
    signed = openssl("cms", "-sign", "-signer", certificate, input=PART)
    local = b"From: alice@example.com\n" + signed.replace(b"\r\n", b"\n")
    (copy, *_) = copies_of(b"".join(as_wire_text([local])))
    received = unstuffed_message(copy).replace(b"Alice \r\n", b"Alicia\r\n")
    with pytest.raises(subprocess.CalledProcessError):
        openssl("cms", "-verify", "-CAfile", certificate, input=received)
