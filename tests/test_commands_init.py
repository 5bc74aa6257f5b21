"""`tofmipd init`: from nothing to everything that a first mail needs (BX-10)."""

from __future__ import annotations

import os
import re

import pytest

from tofmipd.cli import person
from tofmipd.commands import init
from tofmipd.errors import CONFIG, USAGE, Fatal


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> int:
    return init.main(["--personal", *arguments])


def config(home) -> str:
    return (home / ".tmda/config").read_text()


def test_it_says_what_was_made_and_what_comes_next(home, capsys):
    assert run("--address", "bobby@example.org", "--smtp", "mail.example:587") == 0
    out = capsys.readouterr().out
    for name in ("crypt_key", "config", "filters/outgoing", "tofmipd"):
        assert f"made  {home}/.tmda/{name}\n" in out
    login, password = (home / ".tmda/tofmipd").read_text().split()[-1].split(":")
    assert login == person().name.lower()
    assert f"user name {login}, password {password}" in out
    assert re.search(r"(?m)^Next: +tofmipd -f( --personal)?$", out)
    assert "tofmipd test you@example.net" in out
    for client in ("curl", "swaks"):
        (line,) = [line for line in out.splitlines() if f" {client} " in line]
        assert password in line
        assert "bobby@example.org" in line
        assert "8025" in line
    assert "SMTPHOST = 'mail.example:587'" in config(home)


def test_a_second_run_keeps_everything_and_shows_the_login_again(home, capsys):
    run()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    first = capsys.readouterr().out
    run()
    second = capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert second == first.replace("made  ", "kept  ")


def test_without_an_address_the_account_and_the_host_make_one(home, capsys):
    run()
    assert f"USERNAME = {person().name!r}\n" in config(home)


@pytest.mark.parametrize(
    "address", ["bobby", "@example.org", "bobby@", "a@b@c", "a b@c", "a@b c", "<a@b>", "a@b\n", ""]
)
def test_what_is_no_address_is_refused_before_anything_is_written(address, home):
    with pytest.raises(Fatal) as caught:
        run("--address", address or " ")
    assert caught.value.status == USAGE
    assert "is not an address such as you@example.org" in str(caught.value)
    assert not list(home.iterdir())


@pytest.mark.parametrize("address", ["o'brien@example.org", "a+b@example.org", "a_b.c@x-y.example"])
def test_addresses_with_unusual_signs_are_taken(address, home, capsys):
    assert run("--address", address) == 0
    local = address.partition("@")[0]
    assert f"USERNAME = {local!r}\n" in config(home)


@pytest.mark.parametrize("text", ["", "# nobody yet\n"])
def test_a_password_file_without_a_user_is_said(text, home):
    run()
    (home / ".tmda/tofmipd").write_text(text)
    with pytest.raises(Fatal, match="no user in it; add a line user:password") as caught:
        run()
    assert caught.value.status == CONFIG


def test_a_password_file_of_a_wrong_mode_is_said(home):
    run()
    path = home / ".tmda/tofmipd"
    path.chmod(0o644)
    with pytest.raises(Fatal, match=f"{path}: mode 0644, must be 0600 or 0400") as caught:
        run()
    assert caught.value.status == os.EX_CONFIG
