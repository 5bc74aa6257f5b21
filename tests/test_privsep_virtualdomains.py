"""Virtual users: whose a domain is by qmail's file, and what a script may say of a home."""

from __future__ import annotations

import logging
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tofmipd.privsep.virtualdomains import HomeScript, NoHome, VirtualDomains


class Table:
    """A virtualdomains file that can be changed, and an opener that can fail."""

    def __init__(self, path) -> None:
        self.path = path
        self.opened = 0
        self.error: OSError | None = None

    def write(self, text: str | bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(text if isinstance(text, bytes) else text.encode())
        new.replace(self.path)

    def opener(self, path: str, flags: int) -> int:
        self.opened += 1
        if self.error is not None:
            raise self.error
        return os.open(path, flags)

    def load(self, text: str | bytes = "") -> VirtualDomains:
        self.write(text)
        return VirtualDomains(str(self.path), self.opener)


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "virtualdomains")


# The file.


@pytest.mark.parametrize(
    ("line", "login", "owner"),
    [
        # A domain.
        ("a.example:anna", "joe@a.example", "anna"),
        ("a.example:anna", "joe@b.a.example", None),
        ("a.example:anna", "joe@xa.example", None),
        ("a.example:anna", "joe@a.example.net", None),
        ("a.example:anna", "joe", None),
        ("a.example:anna", "a.example", None),
        ("a.example:anna", "joe@", None),
        ("a.example:anna", "@a.example", None),
        ("a.example:anna", "joe@x@a.example", None),
        ("A.Example:Anna", "joe@a.example", "Anna"),
        # What is below a domain.
        (".a.example:anna", "joe@b.a.example", "anna"),
        (".a.example:anna", "joe@c.b.a.example", "anna"),
        (".a.example:anna", "joe@a.example", None),
        (".a.example:anna", "joe@ba.example", None),
        (".a.example:anna", "joe@b.a.example.net", None),
        (".a.example:anna", "joe@x.a.example.a.example.net", None),
        (".a.example:anna", "joe", None),
        (".A.Example:anna", "joe@b.a.example", "anna"),
        # One user.
        ("joe@a.example:anna", "joe@a.example", "anna"),
        ("joe@a.example:anna", "jim@a.example", None),
        ("joe@a.example:anna", "xjoe@a.example", None),
        ("joe@a.example:anna", "joe@b.a.example", None),
        ("Joe@A.example:anna", "joe@a.example", "anna"),
        # White space and comments.
        ("  a.example : anna  # hers", "joe@a.example", "anna"),
        ("#a.example:anna", "joe@a.example", None),
        ("a.example:anna\r", "joe@a.example", "anna"),
    ],
)
def test_a_line_fits_a_login_or_does_not(table, line, login, owner):
    """TO-84."""
    assert table.load(f"# qmail's\n\n{line}\n").owner(login) == owner


def test_the_first_line_that_fits_decides(table):
    domains = table.load(
        "joe@a.example:one\n.example:two\na.example:three\njim@a.example:four\nb.example:five"
    )
    logins = ("joe@a.example", "jim@a.example", "x@b.example", "x@a.b.example")
    assert [domains.owner(login) for login in logins] == ["one", "two", "two", "two"]
    domains = table.load("a.example:one\njoe@a.example:two\n.example:three\na.example:four\n")
    assert domains.owner("joe@a.example") == "one"
    assert domains.owner("joe@b.example") == "three"


@pytest.mark.parametrize(
    "line", ["nothing", "a.example:", "a.example: ", ":anna", " : ", "joe@:anna", "a.example"]
)
def test_a_bad_line_is_skipped_with_a_warning_that_names_it(table, line, caplog):
    domains = table.load(f"# comment\n{line}\na.example:anna\n")
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().startswith(f"{table.path}:2: not domain:owner")
    assert domains.owner("joe@a.example") == "anna"


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_file_and_any_login_have_an_owner_or_none(tmp_path_factory, octets, login):
    table = Table(tmp_path_factory.getbasetemp() / "noise")
    owner = table.load(octets).owner(login)
    assert owner is None or owner.strip() == owner != ""


def test_a_file_that_is_not_there_at_the_start_is_an_error(table):
    with pytest.raises(FileNotFoundError):
        VirtualDomains(str(table.path), table.opener)


# The file changes.


def test_the_file_is_read_again_only_when_it_has_changed(table, caplog):
    caplog.set_level(logging.INFO)
    domains = table.load("a.example:anna\n")
    for _ in range(3):
        assert domains.owner("joe@a.example") == "anna"
    assert table.opened == 1
    table.write("a.example:bert\n")
    for _ in range(3):
        assert domains.owner("joe@a.example") == "bert"
    assert table.opened == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"virtual domains read again from {table.path}"
    ]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), TimeoutError("the monitor is slow")]
)
def test_what_cannot_be_read_leaves_the_old_in_force_with_one_error(table, error, caplog):
    domains = table.load("a.example:anna\n")
    table.error = error
    table.write("a.example:bert\n")
    for _ in range(3):
        assert domains.owner("joe@a.example") == "anna"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"{table.path}: unchanged in memory: ")
    assert not record.getMessage().endswith("None")


def test_a_file_that_is_gone_leaves_the_old_in_force_until_it_is_back(table):
    domains = table.load("a.example:anna\n")
    table.path.unlink()
    assert domains.owner("joe@a.example") == "anna"
    table.write("a.example:bert\n")
    assert domains.owner("joe@a.example") == "bert"


# The script.


@pytest.fixture
def script_that(tmp_path):
    def make(body: str, *, timeout: float = 10) -> HomeScript:
        path = tmp_path / "vhome"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return HomeScript(str(path), "/usr/local/bin:/usr/bin:/bin", timeout)

    return make


@pytest.mark.parametrize(
    ("body", "home"),
    [
        ("echo /home/vpop/$2/$1", "/home/vpop/a.example/joe"),
        ("printf /home/joe", "/home/joe"),
        ("echo '  /home/joe  '; echo", "/home/joe"),
        ("echo dir: /home/joe", "/home/joe"),
        ("echo dir:/home/joe", "/home/joe"),
        ("printf 'dir:      /home/joe\\n'", "/home/joe"),
        ("echo '/home/a b'", "/home/a b"),
        ("echo /home/é", "/home/é"),
        ("echo /", "/"),
    ],
)
def test_the_home_is_what_the_script_prints(script_that, body, home):
    """TO-83, TO-85."""
    assert script_that(body).home("joe@a.example", "/home/anna", "") == home


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (":", "printed no home for 'joe@a.example', but ''"),
        ("echo", "printed no home"),
        ("echo dir:", "printed no home"),
        ("echo home/joe", "printed no home for 'joe@a.example', but 'home/joe'"),
        ("echo dir: ../joe", "printed no home"),
        ("echo '~joe'", "printed no home"),
        ("printf '/home/joe\\n/home/jim'", "printed no home"),
        ("printf '/home/\\033[2J'", "printed no home"),
        ("printf '/home/joe\\0/x'", "printed no home"),
        ("printf '/home/\\377'", "printed no home"),
        ("echo warning: hm >&2; echo /home/joe", "printed no home"),
        ("echo no such user; exit 1", "ended with 1 for 'joe@a.example': 'no such user'"),
        ("echo /home/joe; exit 100", "ended with 100"),
        ("kill -KILL $$", "ended with -9"),
    ],
)
def test_anything_else_is_no_home(script_that, body, reason):
    with pytest.raises(NoHome) as caught:
        script_that(body).home("joe@a.example", "/home/anna", "")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["sleep 60", "yes", "trap '' TERM; echo /home/joe; sleep 60"])
def test_a_script_that_does_not_end_is_no_home_soon(script_that, body):
    begun = time.monotonic()
    with pytest.raises(NoHome, match=r"did not end within 0\.2 s"):
        script_that(body, timeout=0.2).home("joe@a.example", "/home/anna", "")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("body", ["yes | head -c 1000000", "head -c 1000000 /dev/zero"])
def test_a_script_that_says_too_much_gives_no_home_and_a_bounded_reason(script_that, body):
    with pytest.raises(NoHome) as caught:
        script_that(body).home("joe@a.example", "/home/anna", "")
    assert len(str(caught.value)) < 10_000


def test_a_home_that_is_too_long_is_not_cut_to_another(script_that):
    """What is kept of the output ends somewhere; a path that ends there is not the user's."""
    with pytest.raises(NoHome):
        script_that("printf /; head -c 3000 /dev/zero | tr '\\0' a").home("joe@a", "/home/anna", "")


@pytest.mark.parametrize(
    "login", ["a;touch x@b", "$(touch x)@`touch x`", "-n@-e", "a b@c  d", "'@\"", "joe@a@b"]
)
def test_no_shell_sees_the_two_arguments(script_that, login):
    """TO-83."""
    user, _, domain = login.partition("@")
    script = script_that('printf \'/%s\' $# "$1" "$2"')
    assert script.home(login, "/home/anna", "") == f"/2/{user}/{domain}".rstrip()


def test_the_script_gets_the_owners_home_and_the_local_address_and_no_more(
    script_that, monkeypatch
):
    """TO-85."""
    monkeypatch.setenv("LEAK", "secret")
    script = script_that("printf /; /usr/bin/env | grep -v ^PWD= | sort | tr '\\n' ' '")
    home = script.home("joe@a.example", "/home/anna", "192.0.2.1")
    path = "PATH=/usr/local/bin:/usr/bin:/bin"
    assert home == f"/HOME=/home/anna {path} TCPLOCALIP=192.0.2.1"


@pytest.mark.parametrize("login", ["joe@a.example", "a\0b@c"])
def test_a_script_that_cannot_be_run_is_no_home(tmp_path, login):
    script = HomeScript(str(tmp_path / "none"), "/bin", 5)
    with pytest.raises(NoHome, match="none cannot be run: "):
        script.home(login, "/home/anna", "")
