"""`tofmipd test`: one mail through a running daemon, and what became of it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import os
import re
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


@dataclasses.dataclass
class Answers:
    """A server that says what it is told to, by the beginning of a command."""

    place: str
    said: dict[bytes, bytes]
    lines: list[bytes] = dataclasses.field(default_factory=list)

    @property
    def logins(self) -> list[bytes]:
        beginning = b"AUTH PLAIN "
        return [base64.b64decode(x.split()[2]) for x in self.lines if x.startswith(beginning)]

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            with client, client.makefile("rb") as lines:
                client.sendall(self.said.get(b"", b"220 hello") + b"\r\n")
                for line in lines:
                    self.lines.append(line)
                    if line.startswith(b"DATA"):
                        client.sendall(b"354 go ahead\r\n")
                        while lines.readline() not in (b".\r\n", b""):
                            pass
                    verb = line[:4].upper().strip()
                    reply = self.said.get(verb, b"250 2.0.0 ok")
                    if not reply:
                        return
                    client.sendall(reply + b"\r\n")


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = Answers(f"127.0.0.1:{listener.getsockname()[1]}", {b"QUIT": b"221 bye"})
        thread = threading.Thread(target=answers.serve, args=(listener,))
        thread.start()
        yield answers
        # Nobody needs to have come.
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=1).close()
        thread.join()


def run_with(server: Answers, *words: str) -> int:
    """The exit status of the tool."""
    return cli.main(["test", "--server", server.place, *words, "x@example.net"])


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
        ("broken", ["--user=Zoë", "--from=z@b.example"], "FooBar", "\0Zoë\0FooBar".encode()),
    ],
)
def test_who_logs_in_and_with_which_password(
    passwords, options, given, login, home, server, monkeypatch, capsys
):
    (home / ".tmda/tofmipd").write_text(passwords)
    (home / "word").write_text("from a file\n")
    monkeypatch.setattr(prompt, "_has_terminal", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    server.said[b"AUTH"] = b"535 5.7.8 no"
    assert run_with(server, *options) == os.EX_DATAERR
    assert server.logins == [login]
    assert capsys.readouterr().err.startswith("tofmipd: refused: 535 5.7.8 no; if the password")


def test_without_a_password_nothing_is_sent(home, monkeypatch, capsys):
    (home / ".tmda/tofmipd").write_text(HASHED)
    monkeypatch.setattr(prompt, "_has_terminal", lambda: False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert cli.main(["test", "x@example.net"]) == os.EX_DATAERR
    assert "the password is empty" in capsys.readouterr().err


def test_all_that_is_known_is_said(home, server, capsys):
    (home / ".tmda/filters").mkdir()
    (home / ".tmda/filters/outgoing").write_text("to x@* kw=shop\n")
    assert run_with(server) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"server:   {server.place}, without TLS"
    assert out[1] == "login:    bobby"
    assert out[2] == f"rule:     {home}/.tmda/filters/outgoing:1: to x@* tag from kw=shop"
    assert out[3].startswith("From:     ")
    assert " <bobby-keyword-shop." in out[3]
    assert out[4].startswith("sender:   bobby-keyword-shop.")
    assert out[5].startswith("next hop: ")
    assert out[6:] == ["taken:    250 2.0.0 ok"]
    assert server.lines[-1] == b"QUIT\r\n"


def test_a_message_that_waits_is_said_to_wait(home, server, capsys):
    server.said[b"DATA"] = b"250 2.0.0 Ok: queued as tofmipd.812.1795310658"
    assert run_with(server) == 0
    out = capsys.readouterr().out
    assert re.search(r"see 'tofmipd queue show( --personal)? tofmipd\.812\.1795310658'\n", out)


@pytest.mark.parametrize(
    ("verb", "reply", "status", "remedy"),
    [
        (b"AUTH", b"454 4.7.0 later", os.EX_TEMPFAIL, "whoever judges logins does not answer"),
        (b"AUTH", b"538 5.7.11 no", os.EX_DATAERR, "without TLS the daemon takes no password"),
        (b"MAIL", b"530 5.7.0 no", os.EX_DATAERR, "the daemon wants TLS first"),
        (b"RCPT", b"550 5.1.1 no", os.EX_DATAERR, "the log of the daemon says who refuses"),
        (b"DATA", b"451 4.3.5 no", os.EX_TEMPFAIL, "'tofmipd explain' shows it"),
        (b"DATA", b"451 4.4.1 no", os.EX_TEMPFAIL, "'tofmipd probe' says more"),
        (b"DATA", b"451 4.7.5 no", os.EX_TEMPFAIL, "'tofmipd probe' says more"),
        (b"DATA", b"554 5.3.5 no", os.EX_DATAERR, "'tofmipd init' makes one"),
        (b"DATA", b"452 4.3.1 no", os.EX_TEMPFAIL, "try again later"),
        (b"DATA", b"550 \x1b[2J", os.EX_DATAERR, "refused: 550 \\x1b[2J"),
        (b"", b"421 4.3.2 full", os.EX_CONFIG, "refused: 421 4.3.2 full"),
        (b"", b"", os.EX_UNAVAILABLE, "whoever answers there does not speak SMTP"),
        (b"EHLO", b"", os.EX_UNAVAILABLE, "no answer; if TLS comes first there, say --server"),
        (b"RCPT", b"", os.EX_UNAVAILABLE, "no answer"),
    ],
)
def test_for_each_failure_one_line_says_what_to_do(
    verb, reply, status, remedy, home, server, capsys
):
    server.said[verb] = reply
    assert run_with(server) == status
    err = capsys.readouterr().err
    assert remedy in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["a b@example.net"], os.EX_DATAERR, "'a b@example.net' is not an address"),
        (["ä@example.net"], os.EX_DATAERR, "'ä@example.net' is not an address"),
        (["--from", "<a@b>", "x@example.net"], os.EX_DATAERR, "'<a@b>' is not an address"),
        (["--ca", "/none", "--server", "{}", "x@example.net"], os.EX_CONFIG, "/none: No such file"),
        (["--ca", "/dev/null", "--server", "{}", "x@y"], os.EX_CONFIG, "no certificate in PEM"),
        (["--server", "no.invalid:1", "x@example.net"], os.EX_UNAVAILABLE, "no.invalid:1: "),
    ],
)
def test_a_mistake_in_the_question_gets_one_line(words, status, said, home, server, capsys):
    server.said[b"EHLO"] = b"250-hello\r\n250 STARTTLS"
    server.said[b"STAR"] = b"220 go ahead"
    assert cli.main(["test", *(word.format(server.place) for word in words)]) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("mode", ["", ",ssl"])
def test_a_place_that_speaks_no_tls_is_said(mode, home, server, capsys):
    server.said[b"EHLO"] = b"250-hello\r\n250 STARTTLS"
    server.said[b"STAR"] = b"220 go ahead\r\n220 this is no handshake"
    status = cli.main(["test", "--server", server.place + mode, "x@example.net"])
    assert status == os.EX_UNAVAILABLE
    err = capsys.readouterr().err
    assert "no TLS there" in err
    assert err.count("\n") == 1


def test_a_fault_in_the_filter_is_said_before_anything_is_sent(home, server, capsys):
    (home / ".tmda/filters").mkdir()
    (home / ".tmda/filters/outgoing").write_text("to x@* Bare\n")
    assert run_with(server) == os.EX_CONFIG
    err = capsys.readouterr().err
    assert f"{home}/.tmda/filters/outgoing:1: the action 'Bare'" in err
    assert err.count("\n") == 1
    assert [line for line in server.lines if line.startswith(b"MAIL")] == []


def test_the_daemons_file_says_where_it_listens(home, server, capsys):
    (home / ".config").mkdir()
    (home / ".config/tofmipd.conf").write_text(f"proxyport {server.place}\n")
    assert cli.main(["test", "x@example.net"]) == 0
    assert f"server:   {server.place}" in capsys.readouterr().out


def test_a_next_hop_of_the_daemons_file_is_the_one_of_users_who_name_none(home, server, capsys):
    (home / ".config").mkdir()
    lines = f"proxyport {server.place}\nrelay mail.example:587\n"
    (home / ".config/tofmipd.conf").write_text(lines)
    assert cli.main(["test", "x@example.net"]) == 0
    assert "next hop: mail.example:587 by SMTP" in capsys.readouterr().out
