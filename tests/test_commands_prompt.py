"""Where a tool gets a password from, and what cannot be one."""

from __future__ import annotations

import getpass
import io
import os
import sys

import pytest

from tofmipd.commands import prompt
from tofmipd.commands.prompt import LIMIT_OCTETS, ask_password
from tofmipd.errors import CONFIG, DATA, Fatal


@pytest.fixture
def given(monkeypatch):
    """Have standard input, and a terminal or none."""

    def given(octets: bytes = b"", typed: list[str | Exception] | None = None) -> None:
        def answer(question: str) -> str:
            said = typed.pop(0)
            if isinstance(said, Exception):
                raise said
            return said

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(octets)))
        monkeypatch.setattr(prompt, "_has_terminal", lambda: typed is not None)
        monkeypatch.setattr(getpass, "getpass", answer)

    return given


LINES = [
    (b"FooBar", b"FooBar"),
    (b"FooBar\n", b"FooBar"),
    (b"FooBar\r\nmore\r\n", b"FooBar"),
    (b"FooBar\n\nmore", b"FooBar"),
    (b" a:b #c \n", b" a:b #c "),
    (b"\xc3\xbc\xff\n", b"\xc3\xbc\xff"),
    (b"x" * LIMIT_OCTETS + b"\r\n", b"x" * LIMIT_OCTETS),
]


@pytest.mark.parametrize(("octets", "password"), LINES)
def test_the_first_line_is_taken_without_its_end(octets, password, given, tmp_path):
    path = tmp_path / "password"
    path.write_bytes(octets)
    given()
    assert ask_password("bob", str(path)) == password
    given(octets, typed=["other"])
    assert ask_password("bob", "-") == password
    given(octets)
    assert ask_password("bob", "") == password


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "password").write_text("FooBar\n")
    assert ask_password("bob", "~/password") == b"FooBar"


def test_a_pipe_is_waited_for(tmp_path):
    """As a shell's <(command) makes one."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    if (child := os.fork()) == 0:
        with path.open("wb") as pipe:
            pipe.write(b"FooBar\n")
        os._exit(0)
    assert ask_password("bob", str(path)) == b"FooBar"
    os.waitpid(child, 0)


def test_at_a_terminal_it_is_asked_for_there(given):
    given(b"not this\n", typed=["Grüße"])
    assert ask_password("bob", "") == "Grüße".encode()
    typed = ["FooBar", "FooBar"]
    given(typed=typed)
    assert ask_password("bob", "", twice=True) == b"FooBar"
    assert typed == []


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["FooBar", "FooBaz"], "the two are not the same"),
        ([EOFError()], "no password was typed"),
        (["FooBar", EOFError()], "no password was typed"),
        ([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")], "no text"),
        (["\udcff", "\udcff"], "no text"),
        (["", ""], "is empty"),
    ],
)
def test_what_is_typed_may_be_none(typed, words, given):
    given(typed=typed)
    with pytest.raises(Fatal, match=words) as caught:
        ask_password("bob", "", twice=True)
    assert caught.value.status == DATA


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\r\nsecret\n", "is empty"),
        # A soft hyphen, of which SASLprep leaves nothing.
        (b"\xc2\xad\n", "is empty"),
        (b"Foo\0Bar\n", "NUL"),
        (b"Foo\rBar\n", "end of a line"),
        (b"FooBar\r\r\n", "end of a line"),
        (b"x" * (LIMIT_OCTETS + 1) + b"\n", "longer than 4096"),
        (b"x" * 100_000, "longer than 4096"),
    ],
)
def test_what_nobody_could_log_in_with_is_refused(octets, words, given):
    given(octets)
    with pytest.raises(Fatal, match=words) as caught:
        ask_password("bob", "-")
    assert caught.value.status == DATA
    assert "Foo" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(Fatal, match=f"^{path}: ") as caught:
            ask_password("bob", str(path))
        assert caught.value.status == CONFIG


def test_a_closed_standard_input_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Fatal, match="standard input is closed"):
        ask_password("bob", "-")
