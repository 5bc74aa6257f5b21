"""Certificates and keys as they are read from files: what is wrong is said with the file's name."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import re
from pathlib import Path

import pytest
from certificates import (
    GOOD,
    HOST_NAME,
    NOT_YET,
    OVER,
    Files,
    authority,
    intermediate,
    key_of,
    key_pem,
    replace,
    x509,
)

from tofmipd.settings import EncryptionSettings
from tofmipd.tls.files import paths_of, read
from tofmipd.tls.material import Material, TlsError, load

NOW = datetime.datetime.now(datetime.UTC)
# An elliptic curve that is little used.
SM2 = b"""-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqBHM9VAYItBG0wawIBAQQgLSJwo3y78XA59d2t
Cz+AiUSvZ9DkbHjYiVzEvJdCMvuhRANCAASVH8XOb9lCeFUM4on4aX5DX03htddb
npEP+ADwqZ+Gk6ixrIh9aYAiWKdnmlFfPptNAmHyloI/veq6WqJOOSLY
-----END PRIVATE KEY-----
"""
GARBAGE = b"\x00\x01 this is no PEM \xff" * 50


def loaded(*pairs: Files, now: datetime.datetime = NOW, **more: str) -> Material:
    texts = tuple((str(chain), str(key)) for chain, key in pairs)
    settings = EncryptionSettings(pairs=texts, **more)
    return load(settings, paths_of(settings), read, now)


def complaint(*pairs: Files, **more: str) -> str:
    with pytest.raises(TlsError) as caught:
        loaded(*pairs, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def armoured(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


@pytest.fixture
def good(tmp_path: Path) -> Files:
    return authority().issue().save(tmp_path)


# What is good.


@pytest.mark.parametrize("kind", ["ecdsa", "rsa", "ed25519"])
def test_a_good_pair_is_taken_whole(kind, tmp_path):
    issued = intermediate().issue(kind=kind)
    (pair,) = loaded(issued.save(tmp_path)).named
    assert pair.chain == issued.chain
    assert pair.chain.count(b"BEGIN CERTIFICATE") == 2
    assert pair.names == (HOST_NAME, "localhost")
    assert pair.ends > NOW


def test_what_stands_around_the_pem_blocks_is_of_no_interest(good, tmp_path):
    chain = b"Subject: CN = mail\r\n" + good.chain.read_bytes() + b"\nno newline at the end"
    key = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    plain = replace(tmp_path / "a.pem", chain.replace(b"\n", b"\r\n"))
    other = replace(tmp_path / "a.key", b"Bag Attributes\n" + key + good.key.read_bytes())
    assert loaded(Files(plain, other)).named[0].names == (HOST_NAME, "localhost")


@pytest.mark.parametrize("key_first", [True, False])
def test_chain_and_key_may_be_in_one_file(key_first, good, tmp_path):
    parts = [good.key.read_bytes(), good.chain.read_bytes()]
    both = replace(tmp_path / "both.pem", b"".join(parts if key_first else reversed(parts)))
    (pair,) = loaded(Files(both, both)).named
    assert b"PRIVATE KEY" not in pair.chain


@pytest.mark.parametrize(
    ("kind", "traditional"), [("rsa", True), ("rsa", False), ("ecdsa", True), ("ecdsa", False)]
)
def test_a_key_may_have_any_of_the_usual_forms(kind, traditional, tmp_path):
    files = authority().issue(kind=kind).save(tmp_path)
    replace(files.key, key_pem(key_of(kind), traditional=traditional))
    assert loaded(files).named


def test_the_common_name_counts_only_where_there_are_no_other_names(tmp_path):
    alone = authority().issue("Old.Example.ORG", dns=()).save(tmp_path, "alone")
    both = authority().issue("cn.example.org", dns=("A.example.org.", "*.b.example.org"))
    (first,) = loaded(alone).named
    (second,) = loaded(both.save(tmp_path, "both")).named
    assert first.names == ("old.example.org",)
    assert second.names == ("a.example.org", "*.b.example.org")


def test_a_certificate_without_any_name_is_good_for_those_that_nobody_else_has(tmp_path):
    assert loaded(authority().issue("", dns=()).save(tmp_path)).named[0].names == ()


def test_a_key_shows_in_no_repr(good):
    material = loaded(good)
    assert "key=" not in repr(material)
    assert "Key" not in repr(material)


# What is not.


def test_the_key_of_another_certificate_is_refused_with_both_names(good, tmp_path):
    other = replace(tmp_path / "other.key", key_pem(key_of("ecdsa", 1)))
    text = complaint(Files(good.chain, other))
    assert text.startswith(f"{other} is not the key of the first certificate in {good.chain}")


def test_a_key_of_another_kind_is_refused(good, tmp_path):
    other = replace(tmp_path / "rsa.key", key_pem(key_of("rsa")))
    assert str(other) in complaint(Files(good.chain, other))


def test_a_chain_in_the_wrong_order_is_refused_and_the_order_is_told(tmp_path):
    issued = intermediate().issue()
    files = issued.save(tmp_path)
    blocks = re.findall(rb"-----BEGIN.*?-----END CERTIFICATE-----\n", issued.chain, re.DOTALL)
    replace(files.chain, b"".join(reversed(blocks)))
    assert "the server's own must come first" in complaint(files)


@pytest.mark.parametrize(
    ("days", "words"), [(OVER, "the certificate expired on 20"), (NOT_YET, "is the clock right?")]
)
def test_a_certificate_that_is_not_good_now_is_refused(days, words, tmp_path):
    files = authority().issue(days=days).save(tmp_path)
    text = complaint(files)
    assert text.startswith(f"{files.chain}: ")
    assert words in text


def test_the_first_and_last_second_count(tmp_path):
    issued = authority().issue(days=(0, 1))
    files = issued.save(tmp_path)
    second = datetime.timedelta(seconds=1)
    for moment, good in [
        (issued.begins - second, False),
        (issued.begins, True),
        (issued.ends, True),
        (issued.ends + second, False),
    ]:
        with contextlib.nullcontext() if good else pytest.raises(TlsError):
            loaded(files, now=moment)


@pytest.mark.parametrize("traditional", [True, False])
def test_an_encrypted_key_is_refused_with_the_command_that_mends_it(traditional, tmp_path):
    files = authority().issue(kind="rsa").save(tmp_path)
    replace(files.key, key_pem(key_of("rsa"), b"secret", traditional=traditional))
    text = complaint(files)
    assert text.startswith(f"{files.key}: the key is encrypted")
    assert f"openssl pkey -in {files.key} -out NEW" in text


def damaged(good: Files, which: str, octets: bytes) -> tuple[Files, Path]:
    path = good.chain if which == "chain" else good.key
    replace(path, octets)
    return good, path


@pytest.mark.parametrize("which", ["chain", "key"])
@pytest.mark.parametrize("octets", [b"", GARBAGE, b"-----BEGIN CERTIFICATE-----\n"])
def test_a_file_with_nothing_of_use_is_named(which, octets, good):
    files, path = damaged(good, which, octets)
    assert complaint(files).startswith(f"{path}: no ")


def test_a_file_of_the_other_sort_is_named(good, tmp_path):
    assert complaint(Files(good.key, good.key)).startswith(f"{good.key}: no certificate in it")
    assert complaint(Files(good.chain, good.chain)).startswith(f"{good.chain}: no key in it")


@pytest.mark.parametrize("which", ["chain", "key"])
def test_a_broken_block_is_named(which, good):
    path = good.chain if which == "chain" else good.key
    lines = path.read_bytes().splitlines(keepends=True)
    files, path = damaged(good, which, b"".join([*lines[:2], *lines[3:]]))
    assert complaint(files).startswith(f"{path}: ")


def test_a_broken_certificate_behind_a_good_one_is_found_too(good):
    replace(good.chain, good.chain.read_bytes() + armoured(b"\x30\x03abc"))
    assert complaint(good).startswith(f"{good.chain}: a certificate in it is broken")


@pytest.mark.parametrize("which", ["chain", "key"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(which, make, words, good):
    path = good.chain if which == "chain" else good.key
    make(path)
    assert complaint(good) == f"{path}: cannot be read: {words}"


def test_what_cannot_be_used_for_tls_is_refused(tmp_path):
    files = authority().issue(kind="dsa").save(tmp_path)
    text = complaint(files)
    assert text == f"{files.key}: not a kind of key for TLS; make an ECDSA or RSA key"


def test_a_kind_of_key_that_the_library_does_not_know_is_refused(good):
    """Some versions of it do know this one, and then it is not the right one."""
    replace(good.key, SM2)
    assert complaint(good).startswith(str(good.key))


def test_an_octet_that_is_wrong_anywhere_leads_to_nothing_but_a_complaint(tmp_path):
    """Whatever is read again while the service runs: no other error may end it."""
    issued = authority().issue()
    files = issued.save(tmp_path)
    complaints = []
    for place in range(0, len(issued.der), 2):
        der = bytearray(issued.der)
        der[place] ^= 0x55
        files.chain.write_bytes(armoured(bytes(der)))
        try:
            loaded(files)
        except TlsError as error:
            complaints.append(str(error))
    assert len(complaints) > len(issued.der) / 10
    assert all(str(tmp_path) in text for text in complaints)


def test_a_name_of_a_kind_that_nobody_knows_does_no_harm(tmp_path):
    """An alternative name may be an EDI party name."""
    odd = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex("3006a504a1020c00")
    )
    files = authority().issue("odd.example.org", dns=(), extensions=(odd,)).save(tmp_path)
    assert loaded(files).named[0].names == ("odd.example.org",)


# Authorities.


def test_authorities_are_taken_as_they_are(good, tmp_path):
    path = replace(tmp_path / "ca.crt", authority().pem + intermediate().pem)
    text = loaded(good, client_ca=str(path)).authorities
    assert text == authority().pem + intermediate().pem


@pytest.mark.parametrize("octets", [b"", GARBAGE, armoured(b"\x30\x03abc")])
def test_authorities_that_are_none_are_refused(octets, good, tmp_path):
    """Else certificates would be asked for by nobody's rules."""
    path = replace(tmp_path / "ca.crt", octets)
    assert complaint(good, client_ca=str(path)).startswith(f"{path}: ")


def test_a_missing_file_of_authorities_is_named(good, tmp_path):
    path = tmp_path / "ca.crt"
    expected = f"{path}: cannot be read: No such file or directory"
    assert complaint(good, client_ca=str(path)) == expected


# More names.


def test_a_directory_gives_pairs_in_both_layouts(good, tmp_path):
    names = tmp_path / "names"
    single = authority().issue(dns=("one.example.org",), number=1)
    replace(names / "one.pem", single.chain + single.key_pem)
    double = authority().issue(dns=("two.example.org",), number=2)
    replace(names / "two" / "fullchain.pem", double.chain)
    replace(names / "two" / "privkey.pem", double.key_pem)
    replace(names / "README", GARBAGE)
    material = loaded(good, sni_directory=str(names))
    assert [pair.names for pair in material.more] == [("one.example.org",), ("two.example.org",)]
    assert len(material.named) == 1


def test_a_pair_of_the_directory_is_checked_like_any_other(good, tmp_path):
    names = tmp_path / "names"
    issued = authority().issue(dns=("one.example.org",), number=1)
    chain = replace(names / "one" / "fullchain.pem", issued.chain)
    missing = names / "one" / "privkey.pem"
    assert complaint(good, sni_directory=str(names)).startswith(f"{missing}: cannot be read")
    replace(missing, key_pem(key_of("ecdsa", 2)))
    assert complaint(good, sni_directory=str(names)).startswith(f"{missing} is not the key")
    replace(missing, issued.key_pem)
    replace(chain, authority().issue(days=OVER, number=1).chain)
    assert complaint(good, sni_directory=str(names)).startswith(f"{chain}: the certificate exp")


# Warnings.


@pytest.mark.parametrize(("left", "warned"), [(9.9, True), (10.1, False), (90, False)])
def test_who_has_less_than_ten_days_left_is_warned(left, warned, tmp_path):
    files = authority().issue(days=(GOOD[0], left)).save(tmp_path)
    warnings = loaded(files).warnings(NOW)
    assert len(warnings) == warned
    assert all(str(files.chain) in text and "renew it" in text for text in warnings)


def test_warnings_name_every_certificate_that_needs_one(tmp_path):
    names = tmp_path / "names"
    soon = authority().issue(dns=("one.example.org",), days=(-1, 2))
    replace(names / "one.pem", soon.chain + soon.key_pem)
    files = soon.save(tmp_path)
    found = loaded(files, sni_directory=str(names)).warnings(NOW)
    assert [text.split(": ")[0] for text in found] == [
        str(files.chain),
        os.fspath(names / "one.pem"),
    ]
