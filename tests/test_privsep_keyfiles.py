"""Certificates and keys on their way from the monitor to the server."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from certificates import replace
from fakes import PATIENCE_SECONDS, wait_for

from tofmipd.privsep import keyfiles
from tofmipd.privsep.channel import Channel
from tofmipd.privsep.frames import KEY_FILES_AT_ONCE, Control, Kind
from tofmipd.privsep.keyfiles import KeyFiles, Keys, reader_of
from tofmipd.privsep.remote import RemoteGate

SECRET = b"-----BEGIN PRIVATE KEY-----\nhush\n"


class Way:
    """What the monitor sends goes straight to the server's side; descriptors as the kernel would
    hand them over: each time a new one."""

    def __init__(self) -> None:
        self.files = KeyFiles()
        self.frames: list[Control] = []
        self.taken: list[Mapping[str, bytes | OSError]] = []

    def send(self, frame: Control, descriptors: tuple[int, ...]) -> None:
        self.frames.append(frame)
        assert len(descriptors) <= KEY_FILES_AT_ONCE
        passed = [os.dup(descriptor) for descriptor in descriptors]
        if frame.kind is Kind.KEYS:
            self.files.begin(frame.number, passed)
        else:
            self.files.add(passed)
        found = self.files.take()
        if found is not None:
            self.taken.append(found)


def keys(*paths: Path, changed: Callable[[], bool] = lambda: False) -> Keys:
    return Keys(lambda: [str(path) for path in paths], changed)


def sent(*paths: Path) -> Mapping[str, bytes | OSError]:
    way = Way()
    keys(*paths).send(way.send)
    (found,) = way.taken
    return found


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


def test_content_arrives_under_its_path(tmp_path):
    chain, key = replace(tmp_path / "c", b"chain"), replace(tmp_path / "k", SECRET, 0o600)
    assert sent(chain, key) == {str(chain): b"chain", str(key): SECRET}


@pytest.mark.parametrize("count", [1, KEY_FILES_AT_ONCE, KEY_FILES_AT_ONCE + 1, 100])
def test_any_number_of_files_arrives_whole(count, tmp_path):
    paths = [replace(tmp_path / f"{number:03}", b"%d" % number) for number in range(count)]
    found = sent(*paths)
    assert list(found.items()) == [(str(p), b"%d" % n) for n, p in enumerate(paths)]


def test_nothing_is_taken_before_the_last_file_has_come(tmp_path):
    paths = [replace(tmp_path / f"{n:03}", b"x") for n in range(2 * KEY_FILES_AT_ONCE)]
    way = Way()
    keys(*paths).send(way.send)
    assert [frame.kind for frame in way.frames] == [Kind.KEYS, Kind.KEY_FILES, Kind.KEY_FILES]
    assert len(way.taken) == 1
    assert way.files.take() is None


def test_a_file_that_cannot_be_opened_arrives_as_the_reason(tmp_path):
    good = replace(tmp_path / "good", b"x")
    missing, directory = tmp_path / "missing", tmp_path / "directory"
    directory.mkdir()
    read = reader_of(sent(missing, good, directory))
    assert read(str(good)) == b"x"
    with pytest.raises(OSError, match="No such file") as caught:
        read(str(missing))
    assert (caught.value.filename, caught.value.strerror) == (
        str(missing),
        "No such file or directory",
    )
    with pytest.raises(OSError, match="directory"):
        read(str(directory))


def test_only_reasons_arrive_too(tmp_path):
    found = sent(tmp_path / "a", tmp_path / "b")
    assert [type(content) for content in found.values()] == [OSError, OSError]


def test_a_path_that_was_not_sent_is_not_there(tmp_path):
    read = reader_of(sent(replace(tmp_path / "x", b"x")))
    with pytest.raises(OSError, match="not there any more"):
        read("/another")


def test_a_fifo_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = threading.Thread(target=lambda: sent(tmp_path / "fifo"), daemon=True)
    done.start()
    done.join(PATIENCE_SECONDS)
    assert not done.is_alive()


def test_a_huge_file_is_cut(tmp_path):
    path = replace(tmp_path / "x", b"")
    os.truncate(path, 1 << 30)
    content = sent(path)[str(path)]
    assert isinstance(content, bytes)
    assert len(content) == 1 << 20


def test_a_second_sending_that_comes_too_early_counts_alone(tmp_path):
    """The first one is given up, with its descriptors."""
    old = [replace(tmp_path / f"old{n}", b"old") for n in range(KEY_FILES_AT_ONCE + 1)]
    new = replace(tmp_path / "new", b"new")
    way = Way()
    frames: list[tuple[Control, tuple[int, ...]]] = []

    def keep(frame: Control, descriptors: tuple[int, ...]) -> None:
        frames.append((frame, tuple(os.dup(descriptor) for descriptor in descriptors)))

    keys(*old).send(keep)
    # All but the last piece.
    for frame, descriptors in frames[:-1]:
        way.send(frame, descriptors)
    for _, descriptors in frames:
        for descriptor in descriptors:
            os.close(descriptor)
    assert way.taken == []
    keys(new).send(way.send)
    assert way.taken == [{str(new): b"new"}]


def test_what_cannot_even_be_listed_is_logged_and_nothing_is_sent(caplog):
    def paths() -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", "/names")

    way = Way()
    Keys(paths, lambda: True).send(way.send)
    assert way.frames == []
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "/names" in record.getMessage()


def test_the_monitor_reads_none_of_it(tmp_path):
    """Every worker begins as a copy of its memory: what it sends is descriptors, and names."""
    path = replace(tmp_path / "k", SECRET, 0o600)
    sizes = []

    def look(frame: Control, descriptors: tuple[int, ...]) -> None:
        if frame.kind is Kind.KEYS:
            with open(os.dup(descriptors[0]), "rb") as file:
                assert json.loads(file.read()) == [[str(path), ""]]
        else:
            sizes.extend(os.lseek(descriptor, 0, os.SEEK_CUR) for descriptor in descriptors)

    keys(path).send(look)
    assert sizes == [0]


# When it is time to look.


def test_it_is_looked_only_now_and_then(monkeypatch):
    asked = []
    one = Keys(list, lambda: bool(asked.append(1)) or True)
    begun = one.due
    assert not one.look(begun - 0.1)
    assert asked == []
    assert one.look(begun)
    assert one.due == begun + keyfiles.LOOK_SECONDS
    assert not one.look(begun + keyfiles.LOOK_SECONDS - 0.1)
    assert one.look(begun + keyfiles.LOOK_SECONDS)
    assert len(asked) == 2


# By way of the server's channel.


def test_the_server_gets_them_by_its_channel_while_it_goes_on_obeying(tmp_path, monkeypatch):
    """Reading certificates takes a while: it must not stop the thread that hands out workers."""
    paths = [replace(tmp_path / f"{n:03}", b"%d" % n) for n in range(KEY_FILES_AT_ONCE + 5)]
    ours, theirs = Channel.pair()
    taken: list[Mapping[str, bytes | OSError]] = []
    go_on, stopped = threading.Event(), threading.Event()

    def take(files: Mapping[str, bytes | OSError]) -> None:
        go_on.wait(PATIENCE_SECONDS)
        taken.append(files)

    def obey() -> None:
        with contextlib.suppress(SystemExit):
            gate.obey(stopped.set)

    # Without its monitor the server ends, which here is the tests' own process.
    monkeypatch.setattr("tofmipd.privsep.remote.os._exit", sys.exit)
    gate = RemoteGate(theirs, frozenset(), 5, new_keys=take)
    thread = threading.Thread(target=obey, daemon=True)
    with ours, theirs:
        thread.start()
        keys(*paths).send(lambda frame, files: ours.send(frame.encode(), files))
        ours.send(Control(Kind.STOP).encode())
        assert stopped.wait(PATIENCE_SECONDS)
        assert taken == []
        go_on.set()
        wait_for(lambda: taken)
        ours.close()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert taken == [{str(path): b"%d" % n for n, path in enumerate(paths)}]
