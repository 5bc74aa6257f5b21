"""The file with the process id."""

from __future__ import annotations

import os
import stat

import pytest

from tofmipd.errors import CANT_CREATE, UNAVAILABLE, Fatal
from tofmipd.pidfile import PidFile


def test_it_holds_the_number_as_long_as_the_daemon_lives(tmp_path):
    path = tmp_path / "pid"
    path.write_text("4294967295\n\n")
    file = PidFile(str(path))
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    file.remove()
    assert not path.exists()


def test_a_second_daemon_is_told_who_the_first_is(tmp_path):
    path = tmp_path / "pid"
    first = PidFile(str(path))
    first.write()
    with pytest.raises(Fatal, match=rf"running already, pid {os.getpid()}, says {path}") as caught:
        PidFile(str(path))
    assert caught.value.status == UNAVAILABLE
    first.remove()
    PidFile(str(path)).remove()


def test_what_a_killed_daemon_left_behind_is_no_hindrance(tmp_path):
    path = tmp_path / "pid"
    path.write_text("1\n")
    file = PidFile(str(path))
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()


def test_the_file_of_somebody_else_stays(tmp_path):
    path = tmp_path / "pid"
    file = PidFile(str(path))
    path.unlink()
    path.write_text("2\n")
    file.remove()
    assert path.read_text() == "2\n"


@pytest.mark.parametrize(
    "content", [b"# my options\n", b"root:x:0:0\n", b"12 34\n", b"1" * 98 + b"x\n"]
)
def test_what_is_no_pid_file_is_neither_overwritten_nor_removed(tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(Fatal, match="something else is in it"):
            PidFile(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b" 17 \n"])
def test_what_a_crash_of_the_machine_left_behind_is_no_hindrance(tmp_path, content):
    path = tmp_path / "pid"
    path.write_bytes(content)
    PidFile(str(path)).remove()


@pytest.mark.parametrize("kind", ["missing directory", "directory", "link"])
def test_a_file_that_cannot_be_had_is_told_in_one_line(tmp_path, kind):
    path = tmp_path / "pid"
    if kind == "missing directory":
        path = path / "pid"
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Fatal, match=f"cannot write the pid file {path}: ") as caught:
        PidFile(str(path))
    assert caught.value.status == CANT_CREATE
    assert not (tmp_path / "elsewhere").exists()
