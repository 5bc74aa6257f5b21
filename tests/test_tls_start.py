"""What keeps a daemon with encryption from starting, and what is said then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import NOT_YET, OVER, Files, authority, key_of, key_pem, replace

from tofmipd import cli

Refused = Callable[..., str]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return authority().issue().save(tmp_path / "certificates")


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys) -> Refused:
    """Start it in this process, which must fail; the one line that it says, without its name.

    Whoever starts a daemon that goes into the background hears the same: it has not gone yet.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".tmda").mkdir()
    passwords = tmp_path / ".tmda" / "tofmipd"
    passwords.write_text("bobby:FooBar\n")
    passwords.chmod(0o600)

    def refused(*options: str, status: int = os.EX_CONFIG) -> str:
        found = []
        for where in ("-f", "-b"):
            arguments = ["--personal", where, "-p", "127.0.0.1:0", *options]
            try:
                ended = cli.main(arguments)
            except SystemExit as end:
                ended = end.code
            assert ended == status
            printed = capsys.readouterr()
            assert printed.out == ""
            found.append(printed.err)
        assert found[0] == found[1]
        assert found[0].startswith("tofmipd: ")
        assert found[0].count("\n") == 1
        return found[0].removeprefix("tofmipd: ").rstrip("\n")

    return refused


def another_key(files: Files) -> Path:
    return replace(files.key, key_pem(key_of("ecdsa", 7)))


def of_another_time(days: tuple[float, float]) -> Callable[[Files], Path]:
    return lambda files: authority().issue(days=days).save(files.chain.parent).chain


def removed(path: Path) -> Path:
    path.unlink()
    return path


def a_directory(path: Path) -> Path:
    path.unlink()
    path.mkdir()
    return path


WRONG = {
    "another key": (another_key, "is not the key of"),
    "expired": (of_another_time(OVER), "expired on"),
    "not yet valid": (of_another_time(NOT_YET), "begins on"),
    "encrypted key": (
        lambda files: replace(files.key, key_pem(key_of("ecdsa"), b"secret")),
        "is encrypted",
    ),
    "garbage for a chain": (
        lambda files: replace(files.chain, b"\xff\x00garbage\n" * 99),
        "no certificate in it",
    ),
    "garbage for a key": (
        lambda files: replace(files.key, b"\xff\x00garbage\n" * 99),
        "no key in it",
    ),
    "empty": (lambda files: replace(files.key, b""), "no key in it"),
    "no chain": (lambda files: removed(files.chain), "No such file"),
    "no key": (lambda files: removed(files.key), "No such file"),
    "a directory": (lambda files: a_directory(files.key), "Is a directory"),
}


@pytest.mark.parametrize("mode", ["--ssl", "--tls=on", "--tls=optional", "--tls=localoptional"])
@pytest.mark.parametrize("what", WRONG)
def test_a_pair_that_cannot_be_used_is_named(what, mode, files, refused):
    """TO-64."""
    spoil, words = WRONG[what]
    path = spoil(files)
    said = refused(mode, *files.options)
    assert said.startswith(str(path))
    assert words in said
    for key in (key_of("ecdsa"), key_of("ecdsa", 7)):
        assert key_pem(key).decode().splitlines()[1] not in said


def test_the_second_pair_is_looked_at_too(files, refused, tmp_path):
    second = authority().issue(kind="rsa", days=OVER).save(tmp_path / "certificates", "rsa")
    assert refused("--ssl", *files.options, *second.options).startswith(str(second.chain))


def test_it_is_of_no_account_which_listener_needs_it(files, refused):
    """One that has its own mode is enough."""
    path = another_key(files)
    assert str(path) in refused("-p", "127.0.0.1:0,ssl", *files.options)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (None, "No such file"),
        (b"", "no certificate in it"),
        (b"garbage", "no certificate in it"),
        (
            b"-----BEGIN CERTIFICATE-----\nMANhYmM=\n-----END CERTIFICATE-----\n",
            "not a PEM file of certificates",
        ),
    ],
)
def test_a_file_of_authorities_that_cannot_be_used_is_named(
    octets, words, files, refused, tmp_path
):
    path = tmp_path / "ca.crt"
    if octets is not None:
        replace(path, octets)
    said = refused("--ssl", *files.options, "--ssl-client-ca", str(path))
    assert said.startswith(f"{path}: ")
    assert words in said


def test_a_directory_of_names_that_is_not_there_is_named(files, refused, tmp_path):
    path = tmp_path / "names"
    said = refused("--ssl", *files.options, "--ssl-sni-dir", str(path))
    assert said == f"{path}: cannot be read: No such file or directory"


def test_a_pair_of_the_directory_that_cannot_be_used_is_named(files, refused, tmp_path):
    path = replace(tmp_path / "names" / "x.pem", b"garbage")
    said = refused("--ssl", *files.options, "--ssl-sni-dir", str(tmp_path / "names"))
    assert said.startswith(f"{path}: no certificate in it")


@pytest.mark.parametrize("ciphers", ["nonsense", "TLS_AES_128_GCM_SHA256"])
def test_ciphers_that_there_are_not_are_told(ciphers, files, refused):
    """TO-65."""
    said = refused("--ssl", *files.options, "--ciphers", ciphers)
    assert "there is no such cipher; see 'openssl ciphers'" in said
