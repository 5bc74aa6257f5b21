"""What handshakes lead to: certificates by name and kind, ciphers, tickets, renewal.

The client is Python's own library; both ends talk in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import ssl
import threading
from pathlib import Path

import pytest
from certificates import (
    NOT_YET,
    OVER,
    Authority,
    Files,
    Issued,
    authority,
    client_context,
    intermediate,
    key_of,
    key_pem,
    replace,
    stranger,
)
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

from tofmipd.settings import EncryptionSettings
from tofmipd.tls import contexts as contexts_module
from tofmipd.tls.contexts import Contexts, reason_of
from tofmipd.tls.files import paths_of
from tofmipd.tls.material import TlsError

# The library has newer ways, which its older versions do not know.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Shaken:
    """Both ends of a connection after the handshake.  Raises ssl.SSLError or SSL.Error."""

    def __init__(
        self,
        context: SSL.Context,
        client: ssl.SSLContext,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._in, self._out, server_hostname=name, session=session)
        self.server = SSL.Connection(context, None)
        self.server.set_accept_state()
        steps = [self.client.do_handshake, self.server.do_handshake]
        while steps:
            for step in list(steps):
                with contextlib.suppress(ssl.SSLWantReadError, SSL.WantReadError):
                    step()
                    steps.remove(step)
                self.pass_on()
        # The client hears the last of it with the first octet.
        self.server.send(b"x")
        self.pass_on()
        assert self.client.read(1) == b"x"

    def pass_on(self) -> None:
        octets = self._out.read()
        if octets:
            self.server.bio_write(octets)
        with contextlib.suppress(SSL.WantReadError):
            self._in.write(self.server.bio_read(1 << 16))

    @property
    def serial(self) -> str:
        """That of the certificate that the server has shown."""
        der = self.client.getpeercert(binary_form=True)
        return f"{x509.load_der_x509_certificate(der).serial_number:X}"


def settings(*pairs: Files, **more: str) -> EncryptionSettings:
    return EncryptionSettings(
        pairs=tuple((str(chain), str(key)) for chain, key in pairs),
        **{key: str(value) for key, value in more.items()},
    )


def contexts(*pairs: Files, **more: str) -> Contexts:
    return Contexts(settings(*pairs, **more))


def reload(one: Contexts, asked: EncryptionSettings) -> None:
    one.reload(paths_of(asked))


@pytest.fixture
def issued() -> Issued:
    return intermediate().issue()


@pytest.fixture
def files(issued: Issued, tmp_path: Path) -> Files:
    return issued.save(tmp_path)


def limited(version: ssl.TLSVersion, ciphers: str = "", **more) -> ssl.SSLContext:
    """A client that speaks one version only."""
    client = client_context(**more)
    client.minimum_version = client.maximum_version = version
    if ciphers:
        client.set_ciphers(ciphers)
    return client


TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])


# The certificate.


@VERSIONS
@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_client_that_knows_only_the_root_can_check_the_chain(kind, version, tmp_path):
    """TO-64: what is between them is sent along."""
    issued = intermediate().issue(kind=kind)
    one = contexts(issued.save(tmp_path))
    assert Shaken(one.current(), limited(version)).serial == issued.serial


def test_it_is_the_chain_that_makes_the_check_work(tmp_path):
    """So that the test before this one can fail."""
    files = intermediate().issue().save(tmp_path)
    first = files.chain.read_bytes().split(b"-----END CERTIFICATE-----\n")[0]
    replace(files.chain, first + b"-----END CERTIFICATE-----\n")
    with pytest.raises(ssl.SSLCertVerificationError):
        Shaken(contexts(files).current(), client_context())


# SNI.


@pytest.fixture
def named(files: Files, tmp_path: Path) -> dict[str, str]:
    """A directory with more names in both layouts; names and the serial for each."""
    directory = tmp_path / "names"
    one = authority().issue("", dns=("one.example.org", "*.many.example.org"), number=1)
    replace(directory / "one.pem", one.key_pem + one.chain)
    two = intermediate().issue("", dns=("Two.Example.Org",), kind="rsa")
    replace(directory / "two" / "fullchain.pem", two.chain)
    replace(directory / "two" / "privkey.pem", two.key_pem)
    old = authority().issue("three.example.org", dns=(), number=2)
    replace(directory / "z.pem", old.key_pem + old.chain)
    return {"one": one.serial, "two": two.serial, "three": old.serial}


@VERSIONS
@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("one.example.org", "one"),
        ("ONE.example.org", "one"),
        ("a.many.example.org", "one"),
        ("two.example.org", "two"),
        ("three.example.org", "three"),
        ("many.example.org", ""),
        ("a.b.many.example.org", ""),
        ("four.example.org", ""),
        ("example.org", ""),
        ("localhost", ""),
        ("xn--bcher-kva.example", ""),
        (None, ""),
    ],
)
def test_the_name_that_the_client_asks_for_chooses_the_certificate(
    name, which, version, files, issued, named, tmp_path
):
    """A name that nobody has gets the default."""
    one = contexts(files, sni_directory=tmp_path / "names")
    client = limited(version)
    client.check_hostname = False
    found = Shaken(one.current(), client, name).serial
    assert found == (named[which] if which else issued.serial)


def test_a_name_with_a_final_dot_is_the_same(files, named, tmp_path):
    one = contexts(files, sni_directory=tmp_path / "names")
    client = client_context()
    client.check_hostname = False
    assert Shaken(one.current(), client, "one.example.org.").serial == named["one"]


def test_a_directory_may_be_named_with_a_slash_at_its_end(files, named, tmp_path):
    from tofmipd.cli import absolute

    directory = absolute(f"{tmp_path}/names/", "/")
    one = contexts(files, sni_directory=directory)
    client = client_context()
    client.check_hostname = False
    assert Shaken(one.current(), client, "one.example.org").serial == named["one"]


def test_the_first_of_two_certificates_for_a_name_counts(files, tmp_path):
    first = authority().issue(dns=("x.example.org",), number=1)
    second = authority().issue(dns=("x.example.org",), number=2)
    replace(tmp_path / "names" / "a.pem", first.chain + first.key_pem)
    replace(tmp_path / "names" / "b.pem", second.chain + second.key_pem)
    one = contexts(files, sni_directory=tmp_path / "names")
    assert Shaken(one.current(), client_context(), "x.example.org").serial == first.serial


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_a_name_may_have_both_kinds_of_key(kind, files, tmp_path):
    issued = {one: authority().issue(dns=("x.example.org",), kind=one) for one in ("ecdsa", "rsa")}
    for name, one in issued.items():
        replace(tmp_path / "names" / f"{name}.pem", one.chain + one.key_pem)
    one = contexts(files, sni_directory=tmp_path / "names")
    client = limited(TLS12, f"ECDHE-{kind.upper()}-AES128-GCM-SHA256")
    assert Shaken(one.current(), client, "x.example.org").serial == issued[kind].serial


@VERSIONS
def test_other_names_keep_to_the_same_rules(version, files, named, tmp_path):
    """The context that the name chooses has the ciphers of all."""
    cipher = "ECDHE-ECDSA-AES128-GCM-SHA256"
    one = contexts(files, sni_directory=tmp_path / "names", ciphers=cipher)
    client = limited(version)
    client.check_hostname = False
    shaken = Shaken(one.current(), client, "one.example.org")
    assert shaken.serial == named["one"]
    if version is TLS12:
        assert shaken.client.cipher()[0] == cipher
    weak = client_context(weak=True)
    weak.minimum_version = weak.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, SSL.Error)):
        Shaken(one.current(), weak, "one.example.org")


# Two kinds of key.


@pytest.fixture
def both(tmp_path: Path) -> tuple[Contexts, Issued, Issued]:
    ecdsa, rsa = intermediate().issue(), authority().issue(kind="rsa")
    made = contexts(ecdsa.save(tmp_path, "ecdsa"), rsa.save(tmp_path, "rsa"))
    return made, ecdsa, rsa


@pytest.mark.parametrize(
    ("ciphers", "kind"),
    [("ECDHE-RSA-AES128-GCM-SHA256", 1), ("ECDHE-ECDSA-AES128-GCM-SHA256", 0), ("ECDHE", 0)],
)
def test_the_ciphers_of_tls_1_2_choose_the_kind_of_key(ciphers, kind, both):
    made, *pair = both
    shaken = Shaken(made.current(), limited(TLS12, ciphers))
    assert shaken.serial == pair[kind].serial


# Ciphers.


def test_the_server_s_order_counts(tmp_path):
    """Row TO-65: of what both have, its own favourite."""
    files = authority().issue(kind="rsa").save(tmp_path)
    strong, weaker = "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256"
    for first, second in ((strong, weaker), (weaker, strong)):
        one = contexts(files, ciphers=f"{first}:{second}")
        shaken = Shaken(one.current(), limited(TLS12, f"{second}:{first}"))
        assert shaken.client.cipher()[0] == first


def test_a_list_of_ciphers_is_honoured(files):
    one = contexts(files, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    good = Shaken(one.current(), limited(TLS12))
    assert good.client.cipher()[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
    with pytest.raises((ssl.SSLError, SSL.Error)):
        Shaken(one.current(), limited(TLS12, "ECDHE-ECDSA-AES256-GCM-SHA384"))


def test_it_says_nothing_about_tls_1_3(files):
    one = contexts(files, ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    assert Shaken(one.current(), limited(TLS13)).client.version() == "TLSv1.3"


def test_the_ancestor_s_list_still_works(files):
    one = contexts(files, ciphers="HIGH:MEDIUM:!aNULL:!SSLv2")
    assert Shaken(one.current(), limited(TLS12)).client.version() == "TLSv1.2"


@pytest.mark.parametrize("ciphers", ["nonsense", ":", "TLS_AES_128_GCM_SHA256", "\udce4", "a\0b"])
def test_a_list_without_any_cipher_is_refused(ciphers, files):
    with pytest.raises(TlsError, match=r"^--ciphers .*openssl ciphers"):
        contexts(files, ciphers=ciphers)


@VERSIONS
def test_nothing_is_ever_compressed(version, files):
    """CRIME: what a password is can be told from the length."""
    assert Shaken(contexts(files).current(), limited(version)).client.compression() is None


def test_an_rsa_key_that_is_too_short_is_refused(tmp_path):
    files = authority().issue(kind="rsa1024").save(tmp_path)
    """How short that is the library says, by a level that the list of ciphers may set."""
    with pytest.raises(TlsError, match=f"^{files.chain}: cannot be used: .*small"):
        contexts(files, ciphers="DEFAULT@SECLEVEL=2")


# Tickets.


@VERSIONS
def test_a_ticket_is_good_within_one_context(version, files):
    one = contexts(files)
    client = limited(version)
    first = Shaken(one.current(), client)
    assert not first.client.session_reused
    again = Shaken(one.current(), client, session=first.client.session)
    assert again.client.session_reused


@VERSIONS
def test_a_ticket_is_good_no_more_once_certificates_were_read_again(version, files):
    one = contexts(files)
    client = limited(version)
    first = Shaken(one.current(), client)
    reload(one, settings(files))
    again = Shaken(one.current(), client, session=first.client.session)
    assert not again.client.session_reused


@VERSIONS
def test_a_ticket_is_good_no_more_after_an_hour(version, files, monkeypatch):
    one = contexts(files)
    client = limited(version)
    first = Shaken(one.current(), client)
    old = one.current()
    assert one.current() is old
    monkeypatch.setattr(contexts_module.time, "monotonic", lambda: one._made + 3601)
    again = Shaken(one.current(), client, session=first.client.session)
    assert not again.client.session_reused
    assert one.current() is not old


def test_where_no_new_context_can_be_made_the_old_one_serves_on(files, monkeypatch, caplog):
    """A descriptor may be missing just when the hour is over; clients must not notice."""
    one = contexts(files)
    old, hour = one.current(), one._made + 3601

    def no_descriptor(octets: bytes) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(contexts_module.time, "monotonic", lambda: hour)
    with monkeypatch.context() as patch:
        patch.setattr(contexts_module, "memory_file", no_descriptor)
        with caplog.at_level(logging.ERROR, "tofmipd"):
            assert one.current() is old
            assert one.current() is old
        with pytest.raises(TlsError, match="cannot be used: Too many open files"):
            contexts(files)
    assert len(caplog.records) == 1
    hour += 3601
    assert one.current() is not old


@VERSIONS
def test_a_broken_renewal_leaves_tickets_as_they_are(version, files):
    one = contexts(files)
    client = limited(version)
    first = Shaken(one.current(), client)
    files.key.write_bytes(b"")
    reload(one, settings(files))
    assert Shaken(one.current(), client, session=first.client.session).client.session_reused


def test_a_client_without_tickets_is_remembered_by_nobody(files):
    """What a session's keys are is kept on the client's side only."""
    client = limited(TLS12)
    client.options |= ssl.OP_NO_TICKET
    one = contexts(files)
    first = Shaken(one.current(), client)
    again = Shaken(one.current(), client, session=first.client.session)
    assert not again.client.session_reused


# Renewal.


def test_files_that_have_changed_count_for_the_next_connection(files, caplog):
    """BX-6."""
    caplog.set_level(logging.INFO)
    one = contexts(files)
    old = Shaken(one.current(), client_context())
    new = authority().issue(kind="rsa")
    new.save(files.chain.parent)
    reload(one, settings(files))
    assert Shaken(one.current(), client_context()).serial == new.serial
    # The connection that stands goes on.
    old.client.write(b"NOOP\r\n")
    old.pass_on()
    assert old.server.recv(100) == b"NOOP\r\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"certificates read again: {files.chain}"
    ]


BROKEN = {
    "another key": lambda files: replace(files.key, key_pem(key_of("ecdsa", 7))),
    "new chain, old key": lambda files: replace(files.chain, authority().issue(number=7).chain),
    "empty chain": lambda files: replace(files.chain, b""),
    "garbage": lambda files: replace(files.key, b"\xff\x00" * 99),
    "half a chain": lambda files: os.truncate(files.chain, 300),
    "no key": lambda files: files.key.unlink(),
    "expired": lambda files: authority().issue(days=OVER).save(files.chain.parent),
    "not yet": lambda files: authority().issue(days=NOT_YET).save(files.chain.parent),
    "encrypted": lambda files: replace(files.key, key_pem(key_of("ecdsa"), b"secret")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_pair_that_breaks_leaves_the_old_one_in_force(what, files, issued, caplog):
    """BX-6: with one line of the log; the next good pair is taken."""
    one = contexts(files)
    before = one.current()
    BROKEN[what](files)
    reload(one, settings(files))
    assert one.current() is before
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("certificates unchanged in memory: ")
    assert str(files.chain.parent) in record.getMessage()
    new = authority().issue(number=9)
    new.save(files.chain.parent)
    reload(one, settings(files))
    assert Shaken(one.current(), client_context()).serial == new.serial


@pytest.mark.parametrize("octets", [b"", b"-----BEGIN CERTIFICATE-----\nMANhYmM=\n-----END "])
def test_authorities_that_break_leave_the_old_ones_in_force(octets, files, tmp_path, caplog):
    """Else a client would be believed, or asked, by nobody's rules."""
    path = authority().save(tmp_path)
    asked = settings(files, client_ca=path)
    one = Contexts(asked)
    before = one.current()
    replace(path, octets + b"CERTIFICATE-----\n" if octets else b"")
    reload(one, asked)
    assert one.current() is before
    assert f"certificates unchanged in memory: {path}: " in caplog.text


def test_a_directory_that_goes_away_is_an_error_in_the_log(files, tmp_path, caplog):
    directory = tmp_path / "names"
    with pytest.raises(TlsError, match=f"^{directory}: cannot be read: No such file"):
        contexts(files, sni_directory=directory)
    directory.mkdir()
    one = contexts(files, sni_directory=directory)
    one.complain(FileNotFoundError(2, "No such file or directory", str(directory)))
    expected = f"certificates unchanged in memory: {directory}: No such file or directory"
    assert caplog.messages == [expected]


def test_the_directory_may_gain_and_lose_names(files, issued, tmp_path):
    directory = tmp_path / "names"
    directory.mkdir()
    asked = settings(files, sni_directory=directory)
    one = Contexts(asked)
    client = client_context()
    client.check_hostname = False
    assert Shaken(one.current(), client, "new.example.org").serial == issued.serial
    new = authority().issue(dns=("new.example.org",), number=3)
    path = replace(directory / "new.pem", new.chain + new.key_pem)
    reload(one, asked)
    assert Shaken(one.current(), client, "new.example.org").serial == new.serial
    path.unlink()
    reload(one, asked)
    assert Shaken(one.current(), client, "new.example.org").serial == issued.serial


def test_what_was_opened_first_never_replaces_what_was_opened_later(files):
    """In global mode each renewal has a thread of its own."""
    one = contexts(files)
    old, new = authority().issue(number=1), authority().issue(number=2)
    texts = {
        which: {str(files.chain): one_of.chain, str(files.key): one_of.key_pem}
        for which, one_of in (("old", old), ("new", new))
    }
    paths = paths_of(settings(files))
    reading, go_on = threading.Event(), threading.Event()

    def slowly(path: str) -> bytes:
        reading.set()
        assert go_on.wait(10)
        return texts["old"][path]

    first = threading.Thread(target=one.reload, args=(paths, slowly), daemon=True)
    second = threading.Thread(
        target=one.reload, args=(paths, texts["new"].__getitem__), daemon=True
    )
    first.start()
    assert reading.wait(10)
    second.start()
    # As long as it takes where nothing makes it wait.
    second.join(0.2)
    go_on.set()
    first.join(10)
    second.join(10)
    assert Shaken(one.current(), client_context()).serial == new.serial


def test_handshakes_go_on_while_certificates_are_read(files, issued):
    one = contexts(files)
    done = threading.Event()
    serials: set[str] = set()
    failures: list[Exception] = []

    def shake() -> None:
        client = client_context()
        try:
            while not done.is_set():
                serials.add(Shaken(one.current(), client).serial)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=shake, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    expected = {issued.serial}
    for number in range(8):
        new = authority().issue(number=number % 2)
        new.save(files.chain.parent)
        reload(one, settings(files))
        expected.add(new.serial)
    done.set()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert serials <= expected


# Client certificates.


@pytest.fixture
def asking(files: Files, tmp_path: Path) -> Contexts:
    return contexts(files, client_ca=authority().save(tmp_path))


@VERSIONS
def test_a_good_certificate_is_known_to_the_server(version, asking, tmp_path):
    anna = authority().issue("anna", dns=())
    client = limited(version, certificate=anna.save(tmp_path, "anna"))
    shown = Shaken(asking.current(), client).server.get_peer_certificate()
    assert crypto.dump_certificate(crypto.FILETYPE_ASN1, shown) == anna.der


@VERSIONS
def test_one_of_an_authority_below_it_is_as_good(version, asking, tmp_path):
    """The client sends what is between them."""
    anna = intermediate().issue("anna", dns=())
    client = limited(version, certificate=anna.save(tmp_path, "anna"))
    assert Shaken(asking.current(), client).server.get_peer_certificate() is not None


@VERSIONS
def test_a_client_without_one_is_served_all_the_same(version, asking):
    assert Shaken(asking.current(), limited(version)).server.get_peer_certificate() is None


@VERSIONS
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: stranger().issue("anna", dns=()), id="another authority"),
        pytest.param(lambda: Authority("anna", number=104).itself, id="self-signed"),
        pytest.param(lambda: authority().issue("anna", dns=(), days=OVER), id="expired"),
        pytest.param(lambda: authority().issue("anna", dns=(), days=NOT_YET), id="not yet"),
        pytest.param(
            lambda: authority().issue("anna", dns=(), purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)),
            id="for servers only",
        ),
    ],
)
def test_a_bad_one_ends_the_handshake(make, version, asking, tmp_path):
    client = limited(version, certificate=make().save(tmp_path, "anna"))
    with pytest.raises((ssl.SSLError, SSL.Error)):
        Shaken(asking.current(), client)


def test_nobody_is_asked_where_there_are_no_authorities(files, tmp_path):
    anna = authority().issue("anna", dns=())
    client = client_context(certificate=anna.save(tmp_path, "anna"))
    shaken = Shaken(contexts(files).current(), client)
    assert shaken.server.get_peer_certificate() is None


@VERSIONS
def test_a_resumed_connection_still_has_its_certificate(version, asking, tmp_path):
    anna = authority().issue("anna", dns=())
    client = limited(version, certificate=anna.save(tmp_path, "anna"))
    first = Shaken(asking.current(), client)
    again = Shaken(asking.current(), client, session=first.client.session)
    assert again.client.session_reused
    shown = again.server.get_peer_certificate()
    assert crypto.dump_certificate(crypto.FILETYPE_ASN1, shown) == anna.der


@VERSIONS
def test_an_authority_that_was_taken_out_vouches_for_no_ticket_either(version, files, tmp_path):
    path = replace(tmp_path / "ca.crt", authority().pem + stranger().pem)
    asked = settings(files, client_ca=path)
    one = Contexts(asked)
    anna = stranger().issue("anna", dns=())
    client = limited(version, certificate=anna.save(tmp_path, "anna"))
    first = Shaken(one.current(), client)
    replace(path, authority().pem)
    reload(one, asked)
    with pytest.raises((ssl.SSLError, SSL.Error)):
        Shaken(one.current(), client, session=first.client.session)


@VERSIONS
def test_other_names_ask_for_certificates_too(version, files, named, tmp_path):
    """The context that the name chooses has the authorities of all."""
    one = contexts(files, client_ca=authority().save(tmp_path), sni_directory=tmp_path / "names")
    good = authority().issue("anna", dns=()).save(tmp_path, "good")
    bad = stranger().issue("anna", dns=()).save(tmp_path, "bad")
    shaken = Shaken(one.current(), limited(version, certificate=good), "one.example.org")
    assert shaken.serial == named["one"]
    assert shaken.server.get_peer_certificate() is not None
    with pytest.raises((ssl.SSLError, SSL.Error)):
        Shaken(one.current(), limited(version, certificate=bad), "one.example.org")


# Small things.


def test_no_descriptor_is_left_by_contexts(files, tmp_path):
    asked = settings(files, client_ca=authority().save(tmp_path))
    one = Contexts(asked)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        reload(one, asked)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_chains_are_given_to_the_library_where_there_is_no_proc_too(files, issued, monkeypatch):
    monkeypatch.setattr(contexts_module.os.path, "isdir", lambda path: False)
    one = contexts(files)
    assert Shaken(one.current(), client_context()).serial == issued.serial


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SSL.Error([("lib", "f", "no shared cipher")]), "no shared cipher"),
        (SSL.Error([("a", "b", "one"), ("a", "b", "one"), ("a", "b", "two")]), "one; two"),
        (SSL.Error([]), "no reason given"),
        (SSL.Error(), "no reason given"),
        (SSL.Error("text"), "text"),
    ],
)
def test_the_library_s_reason_is_told_in_its_own_words(error, reason):
    assert reason_of(error) == reason


def test_what_is_logged_holds_no_key(files, caplog):
    caplog.set_level(logging.DEBUG)
    one = contexts(files)
    reload(one, settings(files))
    replace(files.key, key_pem(key_of("ecdsa", 7)))
    reload(one, settings(files))
    text = caplog.text
    assert text
    assert "PRIVATE" not in text
    for line in key_pem(key_of("ecdsa", 7)).decode().splitlines()[1:-1]:
        assert line not in text
