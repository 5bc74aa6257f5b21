"""What can be offered, told from one process to the others without a word."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
from fakes import ALL_MECHANISMS
from forking import Child, in_child

from tofmipd.privsep.offer import Offer

EVERY = (*ALL_MECHANISMS, "EXTERNAL")


def test_before_anything_is_said_it_is_what_it_was_made_with():
    assert Offer(frozenset()).mechanisms == frozenset()
    assert Offer(frozenset({"PLAIN", "X-NEW"})).mechanisms == {"PLAIN", "X-NEW"}


@pytest.mark.parametrize(
    "mechanisms",
    [frozenset(some) for count in range(7) for some in itertools.combinations(EVERY, count)],
    ids=lambda some: "+".join(sorted(some)) or "none",
)
def test_any_mechanisms_come_out_as_they_went_in(mechanisms):
    offer = Offer(frozenset({"PLAIN"}))
    offer.publish(mechanisms)
    assert offer.mechanisms == mechanisms
    # the policies of sessions are kept by it
    assert offer.mechanisms is offer.mechanisms


def test_what_is_said_last_counts_and_nothing_is_not_the_same_as_not_yet():
    offer = Offer(frozenset({"PLAIN"}))
    for mechanisms in ({"LOGIN"}, set(), set(EVERY), {"CRAM-MD5"}, set()):
        offer.publish(frozenset(mechanisms))
        assert offer.mechanisms == mechanisms


def test_who_waits_is_told_that_something_has_been_said_or_gives_up():
    offer, given_up = Offer(frozenset({"PLAIN"})), threading.Event()
    waiting = threading.Thread(target=offer.wait, args=(given_up,))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    offer.publish(frozenset())
    waiting.join(20)
    assert not waiting.is_alive()
    given_up.set()
    Offer(frozenset()).wait(given_up)


def test_a_mechanism_without_a_place_is_not_offered():
    offer = Offer(frozenset())
    offer.publish(frozenset({"LOGIN", "X-NEW", "SCRAM-SHA-1-PLUS"}))
    assert offer.mechanisms == {"LOGIN"}


def test_other_processes_hear_of_it_in_both_directions():
    offer = Offer(frozenset())
    assert in_child(lambda: offer.publish(frozenset({"PLAIN", "EXTERNAL"}))).status == 0
    assert offer.mechanisms == {"PLAIN", "EXTERNAL"}
    offer.publish(frozenset({"SCRAM-SHA-256"}))
    assert in_child(lambda: sorted(offer.mechanisms)).said == "['SCRAM-SHA-256']\n"


def test_a_reader_sees_the_old_or_the_new_and_nothing_between():
    offer = Offer(frozenset())
    one, other = frozenset({"PLAIN", "LOGIN"}), frozenset({"CRAM-MD5", "SCRAM-SHA-1"})
    offer.publish(one)
    begin, go = os.pipe()

    def write() -> None:
        os.read(begin, 1)
        for _ in range(20_000):
            offer.publish(other)
            offer.publish(one)

    child = Child(write)
    os.write(go, b"x")
    seen = {offer.mechanisms for _ in range(50_000)}
    assert child.end().status == 0
    os.close(begin)
    os.close(go)
    assert seen <= {one, other}
