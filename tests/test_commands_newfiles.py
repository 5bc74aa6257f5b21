"""Files that tools make: whole or not at all, private, never in the place of something else."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tofmipd.commands import newfiles
from tofmipd.commands.newfiles import demand_own, make_directory, write_if_missing, write_new
from tofmipd.errors import CANT_CREATE, Fatal


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_are_the_same_whatever_the_umask(umask, tmp_path):
    old = os.umask(umask)
    try:
        make_directory(f"{tmp_path}/a/b")
        assert write_if_missing(f"{tmp_path}/a/b/private", "x")
        assert write_if_missing(f"{tmp_path}/a/b/public", "x", 0o644)
    finally:
        os.umask(old)
    assert [mode_of(tmp_path / name) for name in ("a", "a/b")] == [0o700, 0o700]
    assert [mode_of(tmp_path / "a/b" / name) for name in ("private", "public")] == [0o600, 0o644]


def test_the_mode_of_a_directory_that_is_there_stays(tmp_path):
    tmp_path.chmod(0o750)
    make_directory(str(tmp_path))
    assert mode_of(tmp_path) == 0o750


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_there_is_left_as_it_is(kind, tmp_path):
    path = tmp_path / "name"
    match kind:
        case "file":
            path.write_text("old")
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "directory":
            path.mkdir()
    before = sorted(tmp_path.iterdir()), os.lstat(path)
    assert not write_if_missing(str(path), "new")
    with pytest.raises(Fatal, match=f"{path} is there already and is left as it is"):
        write_new(str(path), "new")
    assert (sorted(tmp_path.iterdir()), os.lstat(path)) == before


def test_whoever_comes_first_wins_also_while_we_write(tmp_path, monkeypatch):
    path = tmp_path / "name"
    sync = os.fsync

    def meanwhile(descriptor: int) -> None:
        path.write_text("theirs")
        sync(descriptor)

    monkeypatch.setattr(newfiles.os, "fsync", meanwhile)
    assert not write_if_missing(str(path), "ours")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.root
def test_a_file_that_finds_no_room_is_not_there_at_all(small_disk):
    path = small_disk / "name"
    with pytest.raises(Fatal, match=f"cannot make {path}: No space left on device") as caught:
        write_if_missing(str(path), "x" * 200_000)
    assert caught.value.status == CANT_CREATE
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("there", [False, True])
def test_file_systems_without_links_do_as_well(there, tmp_path, monkeypatch):
    path = tmp_path / "name"

    def link(*_: object) -> None:
        if there:
            path.write_text("theirs")
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(newfiles.os, "link", link)
    assert write_if_missing(str(path), "ours") is not there
    assert path.read_text() == ("theirs" if there else "ours")
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_of_ones_own_or_none_is_good(tmp_path):
    demand_own(str(tmp_path), os.getuid())
    demand_own(f"{tmp_path}/none", os.getuid())


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("link", "a symbolic link to /tmp"),
        ("lost link", "a symbolic link to /nowhere"),
        ("file", "not a directory"),
        ("another's", "that of uid {uid}, not yours"),
    ],
)
def test_a_directory_that_may_be_anybodys_is_refused(kind, fault, tmp_path):
    path, uid = tmp_path / "name", os.getuid()
    match kind:
        case "link":
            path.symlink_to("/tmp")
        case "lost link":
            path.symlink_to("/nowhere")
        case "file":
            path.write_text("")
        case _:
            path.mkdir()
            uid += 1
    with pytest.raises(Fatal) as caught:
        demand_own(str(path), uid)
    fault = fault.format(uid=os.getuid())
    assert str(caught.value) == f"{path} is {fault}; nothing is written there"
    assert caught.value.status == CANT_CREATE
