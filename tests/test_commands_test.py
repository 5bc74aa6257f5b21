"""`tofmipd test`: one mail through a running daemon, and what became of it."""

from __future__ import annotations

import base64
import io
import os
import socket
import sys
import threading

import pytest

from tofmipd import cli
from tofmipd.auth.hashes import scrypt_text
from tofmipd.commands import prompt


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


@pytest.fixture
def login_at():
    """Where a server stands that refuses each login, and what it was sent."""
    seen = []

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, client.makefile("rb") as lines:
            client.sendall(b"220 hello\r\n")
            for line in lines:
                if line.startswith(b"AUTH PLAIN "):
                    seen.append(base64.b64decode(line.split()[2]))
                code = {b"AUTH": b"535 5.7.8 no", b"QUIT": b"221 bye"}.get(line[:4].upper())
                client.sendall((code or b"250 ok") + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", seen
        thread.join(10)


CLEAR = "Bobby:Foo{Bar}\nann:x\n"
HASHED = f"bobby:{scrypt_text(b'FooBar', b'salt').decode()}\nann:x\n"


@pytest.mark.parametrize(
    ("passwords", "options", "given", "login"),
    [
        (CLEAR, [], "", b"\0bobby\0Foo{Bar}"),
        (CLEAR, ["--password-file=-"], "other\n", b"\0bobby\0other"),
        (CLEAR, ["--password-file=~/word"], "", b"\0bobby\0from a file"),
        (CLEAR, ["--user=ann"], "other\n", b"\0ann\0other"),
        (HASHED, [], "FooBar\n", b"\0bobby\0FooBar"),
        # Nobody but root can read the file of global mode.
        ("broken", ["--user=Zoë"], "FooBar", "\0Zoë\0FooBar".encode()),
    ],
)
def test_who_logs_in_and_with_which_password(
    passwords, options, given, login, home, login_at, monkeypatch, capsys
):
    (home / ".tmda/tofmipd").write_text(passwords)
    (home / "word").write_text("from a file\n")
    monkeypatch.setattr(prompt, "_has_terminal", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    place, seen = login_at
    assert cli.main(["test", "--server", place, *options, "x@example.net"]) == os.EX_DATAERR
    assert seen == [login]
    assert capsys.readouterr().err == "tofmipd: refused: 535 5.7.8 no\n"


def test_without_a_password_nothing_is_sent(home, monkeypatch, capsys):
    (home / ".tmda/tofmipd").write_text(HASHED)
    monkeypatch.setattr(prompt, "_has_terminal", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert cli.main(["test", "x@example.net"]) == os.EX_DATAERR
    assert "the password is empty" in capsys.readouterr().err
