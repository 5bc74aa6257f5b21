"""Which workers there are, and which of them goes first."""

from __future__ import annotations

import pytest

from tofmipd.privsep.channel import Channel
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.workers import Worker, Workers

A, B, C = (Identity(name, name) for name in ("anna", "bert", "carl"))


@pytest.fixture
def control():
    ours, theirs = Channel.pair()
    with ours, theirs:
        yield ours


@pytest.fixture
def hired(control):
    """Workers for three identities, and the three of them."""
    workers = Workers()
    three = [
        Worker(name="worker", pid=pid, control=control, identity=identity)
        for pid, identity in enumerate((A, B, C), 1001)
    ]
    for worker in three:
        workers.add(worker)
    return workers, three


def test_nobody_goes_where_nobody_is():
    workers = Workers()
    assert workers.least_recently_used() is None
    assert workers.find(A) is None
    assert (workers.count, workers.leaving, workers.all()) == (0, 0, [])


def test_a_worker_serves_its_own_identity(hired):
    workers, three = hired
    assert [workers.find(identity) for identity in (A, B, C)] == three
    assert workers.find(Identity("anna", "anna@example.org")) is None
    assert workers.all() == three


def test_the_one_used_least_recently_goes_first(hired):
    workers, (a, b, c) = hired
    gone = []
    workers.use(a)
    workers.use(c)
    workers.use(a)
    while (worker := workers.least_recently_used()) is not None:
        gone.append(worker)
        workers.remove(worker)
    assert gone == [b, c, a]
    assert workers.count == 0


def test_one_that_leaves_counts_but_serves_nobody(hired):
    workers, (a, b, c) = hired
    workers.retire(a)
    workers.retire(a)
    workers.use(a)
    assert workers.find(A) is None
    assert workers.least_recently_used() is b
    assert (workers.count, workers.leaving) == (3, 1)
    workers.remove(a)
    assert (workers.count, workers.leaving) == (2, 0)
    assert workers.all() == [b, c]


def test_the_end_of_one_that_left_does_not_touch_its_successor(hired, control):
    workers, (a, *_) = hired
    workers.retire(a)
    successor = Worker(name="worker", pid=2000, control=control, identity=A)
    workers.add(successor)
    workers.retire(a)
    assert workers.find(A) is successor
    workers.remove(a)
    workers.remove(a)
    assert workers.find(A) is successor
    assert (workers.count, workers.leaving) == (3, 0)
