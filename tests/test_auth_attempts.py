"""Sources that have somebody else make their attempts: what they ask, and what they log."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from asked import BOBBY, MAYBE, NO, SHORT_SECONDS, YES

from tofmipd.auth.attempts import AttemptSource
from tofmipd.auth.credentials import CramMd5, Origin, Password

HERE = Origin("192.0.2.7", "127.0.0.1")


class Maker:
    """Makes attempts, all with the same result; an error is raised."""

    def __init__(self, result) -> None:
        self.result = result
        self.asked = []

    def __call__(self, source, credentials, origin, timeout_seconds):
        self.asked.append((source, credentials, origin))
        assert 0 < timeout_seconds <= 10
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def source_of(maker) -> AttemptSource:
    return AttemptSource("checkpassword", "/bin/check", 3, maker, 10, 2)


@pytest.mark.parametrize(
    ("result", "verdict", "level", "words"),
    [
        ((YES, ""), YES, None, ""),
        ((NO, ""), NO, None, ""),
        ((NO, "is expired"), NO, logging.INFO, "says no: user='bobby' is expired"),
        ((MAYBE, "crashed"), MAYBE, logging.WARNING, "unavailable: user='bobby' crashed"),
        (ConnectionError("gone"), MAYBE, logging.WARNING, "unavailable: gone"),
        (TimeoutError("slow"), MAYBE, logging.WARNING, "unavailable: slow"),
    ],
)
def test_verdicts_are_passed_on_and_words_are_for_the_log(result, verdict, level, words, caplog):
    caplog.set_level(logging.DEBUG, "tofmipd")
    maker = Maker(result)
    assert source_of(maker).check(BOBBY, HERE) is verdict
    assert maker.asked == [(3, BOBBY, HERE)]
    expected = [] if level is None else [(level, f"checkpassword /bin/check {words}")]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == expected


def test_it_has_its_name_and_wants_the_password_itself():
    source = source_of(Maker((YES, "")))
    assert (source.name, source.mechanisms) == ("checkpassword", {"PLAIN", "LOGIN"})


@pytest.mark.parametrize(
    "credentials",
    [
        CramMd5("bobby", b"0" * 32, b"<1@x>"),
        Password("bobby", b"x\0"),
        Password("bobby", b"x" * 1001),
        Password("../bobby", b"x"),
        Password("", b"x"),
    ],
    ids=repr,
)
def test_nobody_is_asked_about_what_cannot_be_right(credentials):
    maker = Maker((YES, ""))
    assert source_of(maker).check(credentials) is NO
    assert maker.asked == []


def test_so_many_are_under_way_at_a_time_and_no_more():
    now, most, lock = [], [], threading.Lock()

    def slow(source, credentials, origin, timeout_seconds):
        with lock:
            now.append(1)
            most.append(len(now))
        time.sleep(0.01)
        with lock:
            now.pop()
        return YES, ""

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(source_of(slow).check, [BOBBY] * 40)) == {YES}
    assert max(most) == 2


def test_what_is_left_of_the_time_is_for_the_attempt():
    """Whoever had to wait for a place has less."""
    given, free = [], threading.Event()

    def slow(source, credentials, origin, timeout_seconds):
        given.append(timeout_seconds)
        free.wait(SHORT_SECONDS / 2)
        return YES, ""

    source = AttemptSource("pam", "login", 0, slow, SHORT_SECONDS * 2, 1)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(source.check, [BOBBY] * 2)) == [YES, YES]
    assert given[1] < given[0] - SHORT_SECONDS / 4
