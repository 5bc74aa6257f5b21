"""`tofmipd keygen`: keys that nobody has, in files that nobody else can read."""

from __future__ import annotations

import os
import re
import stat

import pytest

from tofmipd.commands import keygen
from tofmipd.errors import CANT_CREATE, Fatal
from tofmipd.tmda.userfiles import read_key


@pytest.mark.parametrize("arguments", [[], ["-b"], ["--batch"]])
def test_a_key_is_printed_as_40_hexadecimal_digits(arguments, capsys):
    """TO-89; -b is what scripts for the ancestor say."""
    assert keygen.main(arguments) == 0
    assert re.fullmatch(r"[0-9a-f]{40}\n", capsys.readouterr().out)


def test_no_two_keys_are_the_same():
    assert len({keygen.new_key() for _ in range(100)}) == 100


def test_a_key_is_written_for_its_owner_alone_whatever_the_umask(tmp_path, capsys):
    path = tmp_path / "crypt_key"
    old = os.umask(0)
    try:
        assert keygen.main(["-o", str(path)]) == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_key(str(path))) == 20
    assert capsys.readouterr().out == ""


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keygen.main(["--output=~/key"]) == 0
    assert (tmp_path / "key").exists()


def make_file(path):
    path.write_text("old")


def make_link(path):
    path.symlink_to(path.with_name("elsewhere"))


def make_directory(path):
    path.mkdir()


@pytest.mark.parametrize("make", [make_file, make_link, make_directory])
def test_what_is_there_is_left_as_it_is(make, tmp_path):
    path = tmp_path / "crypt_key"
    make(path)
    before = path.lstat()
    with pytest.raises(Fatal) as caught:
        keygen.main(["-o", str(path)])
    assert caught.value.status == CANT_CREATE
    assert str(caught.value) == f"{path} is there already and is left as it is"
    assert path.lstat() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["crypt_key"]


def test_a_directory_that_is_missing_is_named(tmp_path):
    path = tmp_path / "none" / "crypt_key"
    with pytest.raises(Fatal, match=f"cannot make {path}: No such file or directory") as caught:
        keygen.main(["-o", str(path)])
    assert caught.value.status == CANT_CREATE
