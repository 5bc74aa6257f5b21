"""Client certificates as logins: nobody is somebody whose certificate nobody has signed."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from certificates import (
    NOT_YET,
    OVER,
    Authority,
    Issued,
    authority,
    intermediate,
    replace,
    stranger,
    x509,
)
from cryptography.hazmat.primitives import hashes
from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST

from tofmipd.auth.certificates import AuthorityError, Certificates, certificates_in, names_of
from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import Certificate, CramMd5, Password, Verdict
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.auth.sources import chain_of
from tofmipd.settings import EncryptionSettings, Person, Settings

YES, NO = Verdict.ACCEPTED, Verdict.REJECTED
ODD_NAME = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex("3006a504a1020c00")
)


def of(name: str, signer: Authority | None = None, **more) -> Issued:
    """A client's certificate."""
    return (signer or authority()).issue(name, dns=(), **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return authority().save(tmp_path)


@pytest.fixture
def source(path: Path) -> Certificates:
    return Certificates(str(path))


def judged(source: Certificates, issued: Issued, user: str = "anna") -> Verdict:
    return source.check(Certificate(user, issued.der))


# Who it is.


@pytest.mark.parametrize(
    ("name", "mail", "names"),
    [
        ("anna", (), ("anna",)),
        ("Anna", (), ("anna",)),
        ("", ("Anna@Example.org", "info@example.org"), ("anna@example.org", "info@example.org")),
        ("anna", ("anna@example.org",), ("anna", "anna@example.org")),
        ("anna@example.org", ("ANNA@example.org",), ("anna@example.org",)),
        ("", (), ()),
    ],
)
def test_it_names_its_common_name_and_then_its_mail_addresses(name, mail, names):
    assert names_of(of(name, mail=mail).certificate) == names


def test_names_of_hosts_are_nobodys_login():
    issued = authority().issue("", dns=("anna", "anna.example.org"))
    assert names_of(issued.certificate) == ()


def test_a_name_of_a_kind_that_nobody_knows_does_no_harm():
    assert names_of(of("anna", extensions=(ODD_NAME,)).certificate) == ("anna",)


# Whether it is true.


def test_a_certificate_of_the_authority_is_accepted_for_all_its_names(source):
    issued = of("anna", mail=("anna@example.org",))
    assert judged(source, issued) is YES
    assert judged(source, issued, "anna@example.org") is YES


@pytest.mark.parametrize("user", ["berta", "", "ann", "anna@example.net", "Anna"])
def test_it_is_nobody_else(user, source):
    assert judged(source, of("anna", mail=("anna@example.org",)), user) is NO


def self_signed(name: str) -> Issued:
    return Authority(name, number=103).itself


@pytest.mark.parametrize(
    "issued",
    [
        pytest.param(lambda: of("anna", stranger()), id="another authority of the same name"),
        pytest.param(lambda: self_signed("anna"), id="vouches for itself"),
        pytest.param(lambda: of("anna", days=OVER), id="expired"),
        pytest.param(lambda: of("anna", days=NOT_YET), id="not yet good"),
    ],
)
def test_a_certificate_that_nobody_vouches_for_is_rejected(issued, source, caplog):
    assert judged(source, issued()) is NO
    assert "the certificate of 'anna' is not valid" in caplog.text


def test_a_forged_octet_anywhere_gives_nobody_a_login(source):
    """The signature covers it all: what was anna's says berta at most without being believed."""
    der = of("anna").der
    for place in range(0, len(der), 3):
        forged = bytearray(der)
        forged[place] ^= 0x01
        verdict = source.check(Certificate("berta", bytes(forged)))
        assert verdict is NO, place
        if source.check(Certificate("anna", bytes(forged))) is YES:
            # Not signed: the signature's own name of its algorithm, its unused bits.
            assert place > len(der) - 100, place


@pytest.mark.parametrize("der", [b"", b"\x30", b"anna", b"\x30\x82\xff\xff" + bytes(100), bytes(9)])
def test_octets_that_are_no_certificate_are_rejected(der, source, caplog):
    assert source.check(Certificate("anna", der)) is NO
    assert "the certificate of 'anna' cannot be read" in caplog.text


def test_a_certificate_for_servers_says_nothing_of_who_is_who(source):
    """Its names are hosts."""
    issued = authority().issue("", dns=("mail.example.org",))
    assert judged(source, issued, "mail.example.org") is NO


def test_one_with_a_strange_name_is_judged_by_the_others(source):
    assert judged(source, of("anna", extensions=(ODD_NAME,))) is YES


def test_an_intermediate_authority_has_to_be_in_the_file(tmp_path, source):
    issued = of("anna", intermediate())
    assert judged(source, issued) is NO
    both = replace(tmp_path / "both.crt", authority().pem + intermediate().pem)
    assert judged(Certificates(str(both)), issued) is YES


def test_an_intermediate_authority_alone_is_not_enough(tmp_path):
    path = replace(tmp_path / "one.crt", intermediate().pem)
    assert judged(Certificates(str(path)), of("anna", intermediate())) is NO


def test_any_of_several_authorities_will_do(tmp_path):
    path = replace(tmp_path / "two.crt", stranger().pem + b"\n# a comment\n" + authority().pem)
    source = Certificates(str(path))
    assert judged(source, of("anna")) is YES
    assert judged(source, of("anna", stranger())) is YES


def test_a_user_s_certificate_signs_no_other(source):
    """anna's key is not an authority's."""
    anna = of("anna", number=5)
    builder = x509.CertificateBuilder(
        issuer_name=anna.certificate.subject,
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "berta")]),
        public_key=anna.key.public_key(),
        serial_number=7,
        not_valid_before=anna.begins,
        not_valid_after=anna.ends,
    )
    forged = builder.sign(anna.key, hashes.SHA256())
    issued = Issued(forged, anna.begins, anna.ends, anna.key)
    assert judged(source, issued, "berta") is NO


@pytest.mark.parametrize(
    "credentials", [Password("anna", b"x"), CramMd5("anna", RFC2195_DIGEST, RFC2195_CHALLENGE)]
)
def test_other_credentials_are_not_for_it(credentials, source):
    assert source.check(credentials) is NO


def test_the_octets_of_a_certificate_show_in_no_repr():
    assert "der" not in repr(Certificate("anna", b"\x30"))


# The file.


def complaint(path: Path) -> str:
    with pytest.raises(AuthorityError) as caught:
        Certificates(str(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "no certificate in it"),
        (b"\xff\x00garbage", "no certificate in it"),
        (
            b"-----BEGIN CERTIFICATE-----\nMANhYmM=\n-----END CERTIFICATE-----\n",
            "not a PEM file of certificates",
        ),
    ],
)
def test_a_file_without_authorities_is_refused(octets, words, tmp_path):
    path = replace(tmp_path / "ca.crt", octets)
    assert complaint(path).startswith(f"{path}: {words}")


def test_one_broken_authority_among_good_ones_is_refused(path):
    broken = b"-----BEGIN CERTIFICATE-----\nMANhYmM=\n-----END CERTIFICATE-----\n"
    replace(path, authority().pem + broken)
    assert complaint(path).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    missing = tmp_path / "none"
    assert complaint(missing) == f"{missing}: cannot be read: No such file or directory"
    assert complaint(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_a_fifo_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(complaint(tmp_path / "fifo")), daemon=True)
    thread.start()
    thread.join(10)
    assert said
    assert "no certificate" in said[0]


def test_all_certificates_of_a_text_are_found():
    text = authority().pem + b"text\r\n" + stranger().pem.replace(b"\n", b"\r\n")
    found = certificates_in(text)
    assert found == [authority().certificate, stranger().certificate]


# When it changes.


def test_a_new_authority_counts_at_the_next_login(path, source, caplog):
    caplog.set_level(logging.INFO)
    new = of("anna", stranger())
    assert judged(source, new) is NO
    replace(path, stranger().pem)
    assert judged(source, new) is YES
    assert judged(source, of("anna")) is NO
    assert f"authorities {path} read again" in caplog.text


@pytest.mark.parametrize("octets", [b"", b"garbage", None])
def test_a_file_that_breaks_leaves_the_old_authorities_in_force(octets, path, source, caplog):
    if octets is None:
        path.unlink()
    else:
        replace(path, octets)
    for _ in range(3):
        assert judged(source, of("anna")) is YES
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert errors[0].getMessage().startswith(f"authorities unchanged in memory: {path}: ")
    replace(path, stranger().pem)
    assert judged(source, of("anna")) is NO


def test_it_is_read_by_whoever_may(path):
    """In global mode only root may look into its directory."""
    opened = []

    def opener(name: str, flags: int) -> int:
        opened.append(name)
        return os.open(name, flags)

    source = Certificates(str(path), opener)
    assert judged(source, of("anna")) is YES
    assert set(opened) == {str(path)}


def test_many_threads_may_ask_while_it_changes(path, source):
    good, other = of("anna"), of("anna", stranger())
    wrong: list[Verdict] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            wrong.extend(
                verdict
                for verdict in (source.check(Certificate("berta", good.der)),)
                if verdict is not NO
            )

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        replace(path, stranger().pem)
        assert judged(source, other) is YES
        replace(path, authority().pem)
        assert judged(source, good) is YES
    done.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []


# In the chain.


def test_only_the_authorities_judge_certificates(path, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("anna:FooBar\n")
    passwords.chmod(0o600)
    by_password = PasswordFile(str(passwords), os.getuid())
    chain = Chain([by_password], Certificates(str(path)))
    assert chain.mechanisms == by_password.mechanisms | {"EXTERNAL"}
    good = chain.check(Certificate("anna", of("anna").der))
    assert (good.verdict, good.source) == (YES, "certificate")
    assert chain.check(Certificate("anna", b"FooBar")).verdict is NO
    assert chain.check(Password("anna", b"FooBar")).source == "file"
    alone = Chain([by_password])
    assert "EXTERNAL" not in alone.mechanisms
    rejected = alone.check(Certificate("anna", of("anna").der))
    assert (rejected.verdict, rejected.source) == (NO, "none")


@pytest.mark.parametrize("name", ["../etc", "an/na", "an\nna", ".anna", "-anna", "", "a" * 256])
def test_a_name_that_is_no_login_is_rejected_however_well_it_is_signed(name, path):
    """Authorities may sign any text; a name may become part of a path."""

    class Believer:
        name = "certificate"
        mechanisms = frozenset({"EXTERNAL"})

        def check(self, credentials, origin) -> Verdict:
            return YES

    outcome = Chain([Believer()], Believer()).check(Certificate(name, b""))
    assert (outcome.verdict, outcome.source) == (NO, "none")


def test_it_is_offered_where_authorities_are_named_and_only_there(path, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    passwords.chmod(0o600)
    person = Person(os.getuid(), "x", "", str(tmp_path))
    for client_ca, external in (("", False), (str(path), True)):
        settings = Settings(
            person,
            authfile=str(passwords),
            encryption=EncryptionSettings(client_ca=client_ca),
        )
        chain = chain_of(settings, os.getuid(), os.open)
        assert ("EXTERNAL" in chain.mechanisms) is external
