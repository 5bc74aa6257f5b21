"""Limits of a worker, set in children of their own."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource

import pytest
from fakes import wait_for
from forking import in_child

from tofmipd.privsep import confine
from tofmipd.privsep.drop import Rights, become

# Numbers that no account has, and no other run of these tests.
UIDS = itertools.count(1_000_000 + 100 * os.getpid())
MIB = 1 << 20
EXPECTED = {"CORE": 0, "NOFILE": 4096, "DATA": 512 * MIB, "AS": 2048 * MIB, "NPROC": 100}


@pytest.fixture
def uid() -> int:
    """No other test's: what one leaves behind counts until init gets round to waiting for it."""
    return next(UIDS)


def limits(*names: str) -> dict[str, tuple[int, int]]:
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}


@pytest.mark.root
def test_soft_and_hard_limits_are_the_same(uid):
    def act():
        confine.confine(uid)
        return limits(*EXPECTED)

    assert in_child(act) == (0, f"{ {name: (number,) * 2 for name, number in EXPECTED.items()} }\n")


def test_a_limit_that_is_lower_already_stays(uid):
    def act():
        for name, number in (("NOFILE", 50), ("NPROC", 7), ("DATA", 400 * MIB)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (number, number))
        confine.confine(uid)
        return limits("NOFILE", "NPROC", "DATA")

    lower = {"NOFILE": (50, 50), "NPROC": (7, 7), "DATA": (400 * MIB, 400 * MIB)}
    assert in_child(act) == (0, f"{lower}\n")


@pytest.mark.root
def test_what_the_user_runs_already_counts_beside_the_limit(uid):
    def act():
        reader, writer = os.pipe()
        for _ in range(3):
            if os.fork() == 0:
                os.setuid(uid)
                os.close(writer)
                os._exit(len(os.read(reader, 1)))
        wait_for(lambda: confine._tasks(uid) == 3)
        confine.confine(uid)
        return limits("NPROC")["NPROC"]

    assert in_child(act) == (0, "(103, 103)\n")


@pytest.mark.root
def test_the_user_can_start_so_many_processes_and_no_more(uid):
    def act():
        confine.confine(uid)
        become(Rights("somebody", uid, uid, (uid,)))
        reader, writer = os.pipe()
        with contextlib.suppress(BlockingIOError):
            for number in range(1000):  # noqa: B007 - it is what counts
                if os.fork() == 0:
                    os.close(writer)
                    os._exit(len(os.read(reader, 1)))
        return number

    ended = in_child(act)
    assert ended == (0, "99\n")


@pytest.mark.root
def test_memory_comes_to_an_end(uid):
    def act():
        confine.confine(uid)
        try:
            bytearray(600 * MIB)
        except MemoryError:
            return "no more"

    assert in_child(act) == (0, "no more\n")


def open_files_after(act, number):
    """The soft and the hard limit, which begin at 50 and 100."""

    def set_and_look():
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 100))
        act()
        confine.descriptors(number)
        return limits("NOFILE")["NOFILE"]

    return in_child(set_and_look)


@pytest.mark.root
@pytest.mark.parametrize(
    ("number", "after"), [(20, (20, 100)), (80, (80, 100)), (100, (100, 100)), (200, (200, 200))]
)
def test_root_gets_as_many_descriptors_as_it_needs(number, after):
    """Without CAP_SYS_RESOURCE, as in some containers, what is allowed."""
    with open("/proc/self/status") as file:
        capabilities = int(file.read().partition("CapEff:")[2].split()[0], 16)
    if not capabilities & 1 << 24:
        after = (min(after[0], 100), 100)
    assert open_files_after(lambda: None, number) == (0, f"{after}\n")


@pytest.mark.root
@pytest.mark.parametrize(("number", "after"), [(80, (80, 100)), (200, (100, 100))])
def test_others_get_as_many_descriptors_as_they_may_have(uid, number, after):
    somebody = Rights("somebody", uid, uid, (uid,))
    assert open_files_after(lambda: become(somebody), number) == (0, f"{after}\n")
