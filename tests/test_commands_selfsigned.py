"""Certificates that nobody vouches for, and the tool for them."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import subprocess
import threading

import pytest
from cryptography import x509

from tofmipd import cli
from tofmipd.commands import selfsigned
from tofmipd.errors import CONFIG, USAGE, Fatal


@pytest.fixture
def pair(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = selfsigned.make_pair(str(cert), str(key), ["Mail.Example.org.", "10.1.2.3"])
    assert made == [(str(key), True), (str(cert), True)]
    return cert, key


def handshake(pair, name: str) -> str:
    """What a client says that trusts this certificate alone; "" if it is content."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*pair)
    client = ssl.create_default_context(cafile=pair[0])
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(here, server_hostname=name).close()
        return ""
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        here.close()
        thread.join()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mail.example.org", ""),
        ("localhost", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("10.1.2.3", ""),
        ("example.org", "Hostname mismatch, certificate is not valid for 'example.org'."),
    ],
)
def test_who_trusts_it_trusts_it_for_its_names_only(name, said, pair):
    assert handshake(pair, name) == said


def test_it_is_what_clients_take(pair):
    """Apple's: no longer than 825 days, for servers, with names."""
    cert, _ = pair
    made = x509.load_pem_x509_certificate(cert.read_bytes())
    lasts = made.not_valid_after_utc - made.not_valid_before_utc
    assert lasts.days == selfsigned.DAYS <= 825
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert made.public_key().curve.name == "secp256r1"
    assert [stat.S_IMODE(path.stat().st_mode) for path in pair] == [0o600, 0o600]


@pytest.mark.peer("openssl")
def test_the_fingerprint_is_the_one_that_others_show(pair):
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(pair[0])]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    seen = selfsigned.shown(str(pair[0]))
    assert said.partition("=")[2].strip() == seen.fingerprint
    assert seen.names == ("mail.example.org", "localhost", "10.1.2.3", "127.0.0.1", "::1")
    assert seen.self_signed


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä.example", "x" * 64, "a..b", "*", "a/b"])
def test_what_is_no_name_of_a_host_is_refused(name):
    with pytest.raises(Fatal, match="is not the name of a host") as caught:
        selfsigned.names_for([name])
    assert caught.value.status == USAGE


def test_a_long_name_is_no_common_name():
    name = f"{'x' * 60}.example.org"
    text = selfsigned.new_certificate(selfsigned.new_key(), [name])
    assert x509.load_pem_x509_certificate(text.encode()).subject.rfc4514_string() == "CN=tofmipd"


def test_a_pair_that_is_there_is_kept(pair):
    before = [path.read_bytes() for path in pair]
    kept = selfsigned.make_pair(str(pair[0]), str(pair[1]), ["other.example"])
    assert [new for _, new in kept] == [False, False]
    assert [path.read_bytes() for path in pair] == before


def test_a_key_without_a_certificate_gets_one(pair):
    cert, key = pair
    before = key.read_bytes()
    cert.unlink()
    assert dict(selfsigned.make_pair(str(cert), str(key), ["a.example"]))[str(cert)]
    assert key.read_bytes() == before
    assert handshake(pair, "a.example") == ""


def test_a_certificate_without_its_key_is_said(pair):
    pair[1].unlink()
    with pytest.raises(Fatal, match="is there, but not its key") as caught:
        selfsigned.make_pair(str(pair[0]), str(pair[1]), ["a.example"])
    assert caught.value.status == CONFIG


# tofmipd cert


def cert(*words: str, pair=()) -> object:
    """The exit status."""
    files = [f"--{name}={path}" for name, path in zip(("cert", "key"), pair, strict=False)]
    try:
        return cli.main(["cert", *files, *words])
    except SystemExit as ended:
        return ended.code


def test_renewing_keeps_key_and_names_and_changes_the_time(pair, capsys):
    old = selfsigned.shown(str(pair[0]))
    key = pair[1].read_bytes()
    assert cert("renew", "--days=30", pair=pair) == 0
    new = selfsigned.shown(str(pair[0]))
    assert pair[1].read_bytes() == key
    assert new.names == old.names
    assert new.last_day < old.last_day
    assert handshake(pair, "mail.example.org") == ""
    out = capsys.readouterr().out
    assert f"made  {pair[0]}\n" in out
    assert f"SHA-256:   {new.fingerprint}\n" in out


def test_the_tool_makes_a_pair_and_shows_it(tmp_path, capsys):
    files = tmp_path / "c.pem", tmp_path / "k.pem"
    assert cert("self-signed", "a.example", "b.example", pair=files) == 0
    first = capsys.readouterr().out
    assert "names:     a.example, b.example, localhost, 127.0.0.1, ::1\n" in first
    assert cert("self-signed", "other.example", pair=files) == 0
    assert capsys.readouterr().out == first.replace("made  ", "kept  ")
    assert cert("show", str(files[0])) == 0
    assert first.endswith(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], os.EX_USAGE, "the first word is one of self-signed, renew, show"),
        (["renew", "x"], os.EX_USAGE, "renew takes no 'x'"),
        (["self-signed", "a b"], os.EX_USAGE, "'a b' is not the name of a host"),
        (["show", "/nowhere"], os.EX_CONFIG, "/nowhere: No such file or directory"),
        (["show", "/dev/null"], os.EX_CONFIG, "/dev/null: no certificate in PEM form"),
        (["renew", "--cert=/dev/null"], os.EX_CONFIG, "/dev/null: no certificate in PEM form"),
        (
            ["self-signed", "--cert=/none/c", "--key=/none/k"],
            os.EX_CANTCREAT,
            "cannot make /none/k",
        ),
    ],
)
def test_mistakes_get_one_line_each(words, status, said, tmp_path, capsys):
    assert cert(*words, pair=(tmp_path / "c", tmp_path / "k")) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "nonsense", "-----BEGIN PRIVATE KEY-----\n"])
def test_a_key_that_is_none_is_said(text, pair, capsys):
    pair[1].write_text(text)
    assert cert("renew", pair=pair) == os.EX_CONFIG
    assert "the key is none in PEM form" in capsys.readouterr().err
