"""`tofmipd init` at a terminal: what it asks, what it takes, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import pytest
from terminal import END_OF_INPUT, INTERRUPT, Terminal, at_terminal

ADDRESS, NAME, WAY, ELSEWHERE = "Your address", "Your name", "Mail leaves", "Shall mail clients"

Start = Callable[..., contextlib.AbstractContextManager[Terminal]]


@pytest.fixture
def init(tmp_path) -> Start:
    @contextlib.contextmanager
    def init(*words: str) -> Iterator[Terminal]:
        command = [sys.executable, "-m", "tofmipd", "init", "--personal", *words]
        variables = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        with at_terminal(command, variables) as terminal:
            yield terminal

    return init


def written(home) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_enter_takes_what_stands_in_brackets(init, tmp_path):
    with init() as terminal:
        for question in (ADDRESS, NAME, WAY, ELSEWHERE):
            terminal.answer(question, "")
        assert terminal.end() == 0
    config = (tmp_path / ".tmda/config").read_text()
    username = config.partition("USERNAME = '")[2].partition("'")[0]
    assert f"{ADDRESS} [{username}@" in terminal.shown
    assert "proxyport localhost:" in (tmp_path / ".config/tofmipd.conf").read_text()
    assert not (tmp_path / ".tmda/tls-key.pem").exists()


def test_answers_become_files_and_no_password_is_shown(init, tmp_path):
    with init() as terminal:
        terminal.answer(ADDRESS, "bobby@example.org")
        terminal.answer(NAME, 'Bobby "Böb" Brown')
        terminal.answer(WAY, "127.0.0.1:2525")
        terminal.answer("User name at 127.0.0.1:2525", "bob")
        terminal.answer("Password of bob at 127.0.0.1:2525", "Quite'Secret")
        terminal.answer(ELSEWHERE, "y")
        terminal.answer("File with the certificate", "")
        terminal.answer("Name of this machine", "box.example.org")
        assert terminal.end() == 0
    config = (tmp_path / ".tmda/config").read_text()
    for line in (
        "USERNAME = 'bobby'",
        "HOSTNAME = 'example.org'",
        "FULLNAME = 'Bobby \"Böb\" Brown'",
        "SMTPHOST = '127.0.0.1:2525'",
        "SMTPAUTH_USERNAME = 'bob'",
        'SMTPAUTH_PASSWORD = "Quite\'Secret"',
    ):
        assert line in config.splitlines()
    assert "Secret" not in terminal.shown
    assert "server box.example.org, port 8465, SSL/TLS" in terminal.shown


@pytest.mark.parametrize(
    ("question", "wrong", "said"),
    [
        (ADDRESS, "bobby", "'bobby' is not an address such as you@example.org"),
        (WAY, "mail.example:x", "'mail.example:x' is not HOST or HOST:PORT"),
        (ELSEWHERE, "perhaps", "yes or no?"),
    ],
)
def test_a_wrong_answer_is_said_and_asked_for_again(question, wrong, said, init):
    with init() as terminal:
        for each in (ADDRESS, NAME, WAY, ELSEWHERE):
            if each == question:
                terminal.answer(each, wrong)
                terminal.expect(said)
            terminal.answer(each, "")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("key", "status"), [(INTERRUPT, 130), (END_OF_INPUT, os.EX_USAGE)], ids=["Ctrl-C", "Ctrl-D"]
)
@pytest.mark.parametrize("question", [ADDRESS, ELSEWHERE])
def test_who_leaves_at_a_question_leaves_nothing_behind(key, status, question, init, tmp_path):
    with init() as terminal:
        for each in (ADDRESS, NAME, WAY, ELSEWHERE):
            if each == question:
                break
            terminal.answer(each, "")
        terminal.expect(question)
        terminal.expect(": ")
        terminal.type(key)
        assert terminal.end() == status
    assert "Traceback" not in terminal.shown
    assert written(tmp_path) == []


def test_what_is_no_text_is_asked_for_again(init, tmp_path):
    with init("--sendmail") as terminal:
        terminal.expect(ADDRESS)
        os.write(terminal.descriptor, b"a@\xff\n")
        terminal.expect("that is no text in the terminal's encoding")
        for question in (ADDRESS, NAME, ELSEWHERE):
            terminal.answer(question, "")
        assert terminal.end() == 0


def test_what_options_say_and_what_is_there_is_not_asked_for(init, tmp_path):
    with init("--address", "a@example.org", "--name", "A", "--sendmail") as terminal:
        terminal.answer(ELSEWHERE, "no")
        assert terminal.end() == 0
    with init() as terminal:
        assert terminal.end() == 0
    assert "?" not in terminal.shown
    assert "a@example.org" in terminal.shown


def test_without_a_terminal_nothing_is_asked(tmp_path, capfd):
    """Also where standard input is one: whoever looks for the output elsewhere sees no question."""
    command = f"{sys.executable} -m tofmipd init --personal >{tmp_path}/said 2>&1"
    variables = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with at_terminal(["/bin/sh", "-c", command], variables) as terminal:
        assert terminal.end() == 0
    assert (tmp_path / "said").read_text().startswith("made  ")
