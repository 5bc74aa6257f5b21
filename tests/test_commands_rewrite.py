"""A file that is replaced as a whole: by one at a time, and never by half."""

from __future__ import annotations

import fcntl
import os
import stat
import threading

import pytest

from tofmipd.commands import rewrite as module
from tofmipd.commands.rewrite import rewrite
from tofmipd.errors import CANT_CREATE, TEMPORARY, Fatal


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    return path


def alone(path) -> bool:
    return [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("umask", [0, 0o077, 0o277])
@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644])
def test_mode_and_group_stay_whatever_the_umask(path, mode, umask):
    path.chmod(mode)
    if os.getuid() == 0:
        os.chown(path, -1, 12345)
    before = path.stat()
    os.umask(umask)
    rewrite(str(path), lambda: b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino
    assert alone(path)


def test_a_new_file_is_for_its_owner_alone(path):
    path.unlink()
    os.umask(0)
    rewrite(str(path), lambda: b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert alone(path)


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_and_leads_to_the_new_content(path, there, tmp_path):
    if not there:
        path.unlink()
    (tmp_path / "other").mkdir()
    link = tmp_path / "other/link"
    link.symlink_to("../file")
    rewrite(str(link), lambda: b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "link", "other"]


@pytest.mark.parametrize("error", [Fatal(65, "no"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_not_finished_has_not_begun(path, there, error):
    if not there:
        path.unlink()

    def change() -> bytes:
        raise error

    with pytest.raises(type(error)) as caught:
        rewrite(str(path), change)
    assert caught.value is error
    assert path.exists() == there
    assert not there or (path.read_bytes() == b"old" and alone(path))
    assert there or not any(path.parent.iterdir())


def test_a_directory_that_is_missing_is_said(tmp_path):
    path = tmp_path / "none/file"
    with pytest.raises(Fatal, match=f"^{path}: cannot be written .No such file") as caught:
        rewrite(str(path), lambda: b"new")
    assert caught.value.status == CANT_CREATE


def test_many_at_once_lose_nothing(path):
    path.write_bytes(b"")
    path.chmod(0o400)

    def add(number: int) -> None:
        for turn in range(20):
            line = b"%d.%d\n" % (number, turn)
            rewrite(str(path), lambda line=line: path.read_bytes() + line)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = {b"%d.%d" % (number, turn) for number in range(6) for turn in range(20)}
    assert set(path.read_bytes().splitlines()) == expected
    assert alone(path)


def test_one_that_does_not_end_is_waited_for_only_so_long(path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.1)
    beside = path.with_name(".file.new")
    with beside.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Fatal, match=r"locked for 0\.1 s by another process") as caught:
            rewrite(str(path), lambda: b"new")
    assert caught.value.status == TEMPORARY
    assert path.read_bytes() == b"old"
    rewrite(str(path), lambda: b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o400, 0o600])
@pytest.mark.parametrize("litter", [b"", b"half of a long line"])
def test_what_a_killed_process_has_left_hinders_nobody(path, litter, mode):
    beside = path.with_name(".file.new")
    beside.write_bytes(litter)
    beside.chmod(mode)
    rewrite(str(path), lambda: b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert alone(path)


def make_pipe(beside, other):
    os.mkfifo(beside)


def make_link(beside, other):
    beside.symlink_to(other)


def make_hard_link(beside, other):
    os.link(other, beside)


def make_directory(beside, other):
    beside.mkdir()


@pytest.mark.parametrize("make", [make_pipe, make_link, make_hard_link, make_directory])
def test_what_stands_in_the_way_is_named_and_left_alone(make, path, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    beside = tmp_path / ".file.new"
    make(beside, other)
    before = beside.lstat()
    with pytest.raises(Fatal, match=r"is in the way|cannot be written") as caught:
        rewrite(str(path), lambda: b"new")
    assert caught.value.status == CANT_CREATE
    assert (path.read_bytes(), other.read_bytes()) == (b"old", b"precious")
    assert beside.lstat() == before


@pytest.mark.root
def test_somebody_elses_file_in_the_way_is_not_written_to(path):
    beside = path.with_name(".file.new")
    beside.touch()
    os.chown(beside, 12345, 12345)
    with pytest.raises(Fatal, match="is in the way, and not ours; remove it"):
        rewrite(str(path), lambda: b"new")
    assert (path.read_bytes(), beside.read_bytes()) == (b"old", b"")
