"""A log file of several processes: whole lines, and a new file when the old one is moved away."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from tofmipd import log as log_module
from tofmipd.log import OneLine, SharedFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def handler(path):
    handler = SharedFile(str(path))
    handler.setFormatter(OneLine("%(message)s"))
    yield handler
    handler.close()


def record(text: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    failure = None
    if error:
        try:
            raise ValueError("first\nsecond")
        except ValueError as caught:
            failure = (type(caught), caught, caught.__traceback__)
    return logging.LogRecord("tofmipd", logging.INFO, "x", 1, text, arguments, failure)


def test_lines_are_appended_to_a_file_of_its_user_alone(path):
    old_umask = os.umask(0)
    try:
        for text in ("first", "second"):
            handler = SharedFile(str(path))
            assert not os.get_inheritable(handler.descriptor)
            handler.emit(record(text))
            handler.close()
    finally:
        os.umask(old_umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (record("a %s", "b"), "a b\n"),
        (record("a\nb"), "a\\nb\n"),
        (record("é\udcff"), "é\\udcff\n"),
        (record("x" * 100_000), "x" * 100_000 + "\n"),
    ],
)
def test_a_record_is_one_line_and_one_write(handler, path, made, line, monkeypatch):
    writes = []
    write = os.write

    def counting(descriptor, octets):
        if descriptor == handler.descriptor:
            writes.append(octets)
        return write(descriptor, octets)

    monkeypatch.setattr(os, "write", counting)
    handler.emit(made)
    assert writes == [line.encode()]
    assert path.read_text() == line


def test_a_traceback_stays_on_its_line(handler, path):
    handler.emit(record("failed", error=True))
    (line,) = path.read_text().splitlines()
    assert line.startswith("failed\\nTraceback ")
    assert line.endswith("ValueError: first\\nsecond")


def test_lines_of_many_threads_and_processes_are_not_mixed(handler, path):
    def say(letter):
        for _ in range(200):
            handler.emit(record(letter * 500))

    children = []
    for letter in "ab":
        children.append(os.fork())
        if children[-1] == 0:
            try:
                say(letter)
            finally:
                os._exit(0)
    threads = [threading.Thread(target=say, args=(letter,)) for letter in "cd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(letter * 500 for letter in "abcd" for _ in range(200))


def test_after_the_file_is_moved_away_a_new_one_begins(handler, path):
    descriptor = handler.descriptor
    handler.emit(record("old"))
    path.rename(f"{path}.1")
    handler.emit(record("still old"))
    handler.reopen()
    handler.emit(record("new"))
    assert handler.descriptor == descriptor
    assert not os.get_inheritable(descriptor)
    assert path.with_name("log.1").read_text() == "old\nstill old\n"
    assert path.read_text() == "new\n"


def test_where_no_new_file_can_be_had_the_old_one_goes_on(handler, path):
    moved = path.parent / "moved"
    path.rename(moved)
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        handler.reopen()
    handler.emit(record("goes on"))
    assert moved.read_text() == "goes on\n"


def test_a_file_that_somebody_else_has_opened_is_taken(handler, tmp_path):
    """The descriptor is the handler's then; another process has opened it."""
    other = tmp_path / "other"
    before = len(os.listdir("/proc/self/fd"))
    handler.take(os.open(other, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    assert len(os.listdir("/proc/self/fd")) == before
    handler.emit(record("here"))
    assert other.read_text() == "here\n"


def test_a_full_disk_raises_nothing(handler, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler.take(os.open("/dev/full", os.O_WRONLY))
    handler.emit(record("lost"))


@pytest.mark.parametrize("shared", [True, False])
def test_a_log_that_several_processes_write_to_is_known(path, shared):
    options = {"debug": False, "log": False, "quiet": False, "foreground": True}
    log_module.set_up(**options, log_file=str(path), shared=shared)
    handler = log_module.shared_file()
    assert (handler is not None) == shared
    assert log_module.descriptors() == ([handler.descriptor] if handler else [])
    logging.getLogger("tofmipd.test").info("hello")
    assert path.read_text().endswith(" INFO hello\n")
    log_module.replace_handler(logging.NullHandler())
    assert log_module.shared_file() is None
    assert not log_module.reaches_somebody()
