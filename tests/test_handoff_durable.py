"""Files by their own calls: what is opened, and that all of a block is written."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from tofmipd.handoff import durable
from tofmipd.handoff.durable import NotPlain

BLOCK = bytes(range(256)) * 8


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "socket", "device"])
def test_only_a_plain_file_is_opened_and_nothing_is_waited_for(kind, tmp_path):
    path = str(tmp_path / "x")
    match kind:
        case "link":
            os.symlink(__file__, path)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            os.mkdir(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
        case "device":
            path = os.devnull
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotPlain):
        durable.open_plain(path, os.O_RDWR)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_not_there_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        durable.open_plain(str(tmp_path / "x"), os.O_RDONLY)


def test_a_new_file_is_its_owners_alone_and_replaces_none(tmp_path):
    path = str(tmp_path / "x")
    with durable.create(path) as file:
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(file.fileno())
    with pytest.raises(FileExistsError):
        durable.create(path)
    os.unlink(path)
    os.symlink(str(tmp_path / "y"), path)
    with pytest.raises(FileExistsError):
        durable.create(path)


def test_a_system_that_takes_a_little_at_a_time_gets_all(tmp_path, monkeypatch):
    usual = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, view, at: usual(number, view[:100], at))
    with durable.create(str(tmp_path / "x")) as file:
        durable.write_all(file, BLOCK)
        durable.write_at(file, 100, BLOCK)
    assert (tmp_path / "x").read_bytes() == BLOCK[:100] + BLOCK


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_where_nothing_can_be_reserved_that_is_no_fault(number, tmp_path, monkeypatch):
    def refuse(*arguments: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with durable.create(str(tmp_path / "x")) as file:
        durable.reserve(file, 0, 100)
    assert (tmp_path / "x").stat().st_size == 0


def test_what_is_reserved_reads_as_nul(tmp_path):
    with durable.create(str(tmp_path / "x")) as file:
        durable.write_all(file, b"abc")
        durable.reserve(file, 3, 5000)
    assert (tmp_path / "x").read_bytes() == b"abc" + bytes(5000)
