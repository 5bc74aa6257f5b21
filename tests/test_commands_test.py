"""`tofmipd test`: one mail through a running daemon, and what became of it."""

from __future__ import annotations

import os
import socket

import pytest

from tofmipd import cli


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tmda = tmp_path / ".tmda"
    tmda.mkdir()
    (tmda / "config").write_text('USERNAME = "bobby"\nHOSTNAME = "example.org"\n')
    for name, text in (("crypt_key", "00" * 20), ("tofmipd", "bobby:FooBar\n")):
        (tmda / name).write_text(text)
        (tmda / name).chmod(0o600)
    return tmp_path


def test_a_daemon_that_does_not_run_is_said(home, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        assert cli.main(["test", "--server", place, "x@example.net"]) == os.EX_UNAVAILABLE
    expected = f"tofmipd: {place}: Connection refused; is 'tofmipd -f' running?\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tofmipd", None, "no such password file"),
        ("tofmipd", "# nobody\n", "no user in it; add a line user:password"),
        ("config", "oops(\n", "config:1: syntax error"),
        ("crypt_key", None, "crypt_key: missing"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(name, text, words, home, capsys):
    path = home / ".tmda" / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert cli.main(["test", "x@example.net"]) == os.EX_CONFIG
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
