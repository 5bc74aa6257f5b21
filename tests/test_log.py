"""Where log lines go: files that are moved away, syslog that comes and goes, the journal."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading

import pytest

from tofmipd import log as log_module
from tofmipd.log import LogFile, OneLine, SharedFile, Syslog
from tofmipd.settings import FACILITIES, LogSettings

LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


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
    assert len(log_module.descriptors()) == 1
    logging.getLogger("tofmipd.test").info("hello")
    assert path.read_text().endswith(" INFO hello\n")
    log_module.replace_handler(logging.NullHandler())
    assert log_module.shared_file() is None
    assert not log_module.reaches_somebody()


# A file that is looked at for each line.


@pytest.fixture
def watched(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    handler = LogFile(str(directory / "log"), watched=True)
    handler.setFormatter(OneLine("%(message)s"))
    yield handler, directory
    handler.close()


def test_a_file_that_was_moved_away_is_begun_anew(watched):
    handler, directory = watched
    handler.emit(record("old"))
    (directory / "log").rename(directory / "log.1")
    for text in ("new", "newer"):
        handler.emit(record(text))
    assert (directory / "log.1").read_text() == "old\n"
    assert (directory / "log").read_text() == "new\nnewer\n"
    assert (directory / "log").stat().st_mode & 0o777 == 0o600


def test_a_file_in_the_place_of_the_old_one_is_taken(watched):
    handler, directory = watched
    (directory / "other").write_text("begun\n")
    (directory / "other").rename(directory / "log")
    handler.emit(record("here"))
    assert (directory / "log").read_text() == "begun\nhere\n"


def test_lines_are_lost_without_harm_while_there_is_no_directory(watched, monkeypatch):
    """An error here would be one of the session that has something to log."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    handler, directory = watched
    shutil.rmtree(directory)
    handler.emit(record("lost"))
    directory.mkdir()
    handler.emit(record("found"))
    assert (directory / "log").read_text() == "found\n"


def test_after_a_line_that_was_cut_off_the_next_one_is_whole(handler, path, monkeypatch):
    """A disk that fills up takes what it can."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, octets: write(descriptor, octets[:3]))
    handler.emit(record("cut off"))
    monkeypatch.setattr(os, "write", write)
    handler.emit(record("whole"))
    handler.emit(record("again"))
    assert path.read_text() == "cut\nwhole\nagain\n"


# Syslog.


class Listener:
    """Somebody at the socket of syslog."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(10)

    def hear(self):
        return self.socket.recv(100_000).decode()

    def hear_all(self):
        self.socket.setblocking(False)
        heard = []
        try:
            while True:
                heard.append(self.hear())
        except BlockingIOError:
            self.socket.settimeout(10)
            return heard

    def leave(self):
        self.socket.close()
        self.path.unlink()


@pytest.fixture
def listener(tmp_path):
    made = Listener(tmp_path / "socket")
    yield made
    made.socket.close()


@pytest.fixture
def syslog(listener):
    handler = Syslog(str(listener.path), "mail")
    handler.setFormatter(OneLine("%(message)s"))
    yield handler
    handler.close()


HEAD = f"tofmipd[{os.getpid()}]: "


@pytest.mark.parametrize(("name", "number"), FACILITIES.items())
def test_syslog_gets_facility_and_severity(listener, name, number):
    handler = Syslog(str(listener.path), name)
    handler.setFormatter(OneLine("%(message)s"))
    for level, severity in zip(LEVELS, (7, 6, 4, 3, 2), strict=True):
        made = record("größe\n%s", "\udcff")
        made.levelno = level
        handler.emit(made)
        assert listener.hear() == f"<{8 * number + severity}>{HEAD}größe\\n\\udcff"
    handler.close()


def test_syslog_that_was_gone_is_used_again(listener, syslog, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    syslog.emit(record("first"))
    assert listener.hear() == f"<22>{HEAD}first"
    listener.leave()
    syslog.emit(record("lost"))
    again = Listener(listener.path)
    syslog.emit(record("second"))
    assert again.hear() == f"<22>{HEAD}second"
    again.leave()


def test_syslog_that_does_not_listen_is_not_waited_for(listener, syslog):
    """Its queue is short; whoever waits for it would stop all mail."""
    for number in range(2000):
        syslog.emit(record("%d", number))
    heard = listener.hear_all()
    assert 0 < len(heard) < 2000
    assert heard == [f"<22>{HEAD}{number}" for number in range(len(heard))]
    syslog.emit(record("later"))
    assert listener.hear() == f"<22>{HEAD}later"


# What is set up.


@pytest.fixture
def set_up(capsys, tmp_path, listener):
    """Have one line logged; what standard error, the file and syslog got."""

    def set_up(look, *, foreground, log_file=False, level=logging.WARNING):
        file = tmp_path / "file"
        log_module.set_up(
            debug=False,
            log=False,
            quiet=False,
            foreground=foreground,
            log_file=str(file) if log_file else "",
            look=look,
            syslog_socket=str(listener.path),
        )
        logging.getLogger("tofmipd.test").log(level, "s=%s timeout: %s", "7f3a", "too\nslow")
        written = file.read_text() if log_file else ""
        log_module.replace_handler(logging.NullHandler())
        return capsys.readouterr().err, written, "".join(listener.hear_all())

    return set_up


DATED = r"[0-9-]{10} [0-9:]{8},[0-9]{3} WARNING s=7f3a timeout: too\\nslow\n"
OBJECT = (
    r'\{"time": "[0-9T:.-]{23}Z", "level": "warning", "event": "timeout", "session": "7f3a",'
    r' "reason": "too\\nslow", "message": "s=7f3a timeout: too\\nslow"\}'
)
PLAIN = r"s=7f3a timeout: too\\nslow"


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (LogSettings(), DATED),
        (LogSettings("text"), DATED),
        (LogSettings("journal"), f"<4>{PLAIN}\n"),
        (LogSettings("json"), f"{OBJECT}\n"),
        (LogSettings(journal=True), f"<4>{PLAIN}\n"),
        (LogSettings("text", journal=True), DATED),
        (LogSettings("json", journal=True), f"<4>{OBJECT}\n"),
    ],
)
def test_standard_error_gets_what_was_asked_for(set_up, look, expected):
    err, _, _ = set_up(look, foreground=True)
    assert re.fullmatch(expected, err)


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (LogSettings(), f"<20>tofmipd.[0-9]+.: {PLAIN}"),
        (LogSettings(facility="local7"), f"<188>tofmipd.[0-9]+.: {PLAIN}"),
        (LogSettings(journal=True), f"<20>tofmipd.[0-9]+.: {PLAIN}"),
        (LogSettings("json"), f"<20>tofmipd.[0-9]+.: {OBJECT}"),
    ],
)
def test_syslog_has_date_and_severity_of_its_own(set_up, look, expected):
    err, _, sent = set_up(look, foreground=False)
    assert err == ""
    assert re.fullmatch(expected, sent)


@pytest.mark.parametrize(
    ("look", "expected"), [(LogSettings(journal=True), DATED), (LogSettings("json"), f"{OBJECT}\n")]
)
@pytest.mark.parametrize("foreground", [True, False])
def test_a_file_has_all_of_a_line(set_up, look, expected, foreground):
    err, written, sent = set_up(look, foreground=foreground, log_file=True)
    assert (err, sent) == ("", "")
    assert re.fullmatch(expected, written)


def test_names_of_events_are_loaded_for_those_only_who_want_them():
    """They cost a process that serves one session milliseconds."""
    code = (
        "import sys; from tofmipd import log; from tofmipd.settings import LogSettings;"
        "log.set_up(debug=False, log=False, quiet=False, foreground=True, log_file='',"
        " look=LogSettings(sys.argv[1]));"
        "print('tofmipd.events' in sys.modules)"
    )
    for form, loaded in (("text", "False"), ("json", "True")):
        command = [sys.executable, "-c", code, form]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == loaded
