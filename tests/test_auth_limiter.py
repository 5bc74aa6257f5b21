"""Guessing is slow: what is counted, how long it makes one wait, and whom it never locks out.

The clock is an argument, so no test waits.
"""

from __future__ import annotations

import random
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth import limiter
from tofmipd.auth.credentials import Verdict
from tofmipd.auth.limiter import WINDOW_SECONDS, Limiter, is_loopback, network_of

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
FAR, FARTHER, NEAR = "192.0.2.7", "192.0.2.8", "127.0.0.1"
PER_ADDRESS = 10
DAY = 86400.0


class Clock:
    """A limiter and the time; each wrong password is another one unless it is named."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.limiter = Limiter(PER_ADDRESS, 1.0, b"key")
        self._count = 0

    def attempt(self, address=FAR, user="joe", verdict=NO, password: bytes | None = None) -> float:
        """How late the answer is; negative: one has to wait so long, and nobody was asked."""
        wait = self.limiter.ask(address, user, self.now)
        if wait > 0:
            return -wait
        self._count += 1
        mark = self.limiter.mark(password or b"%d" % self._count)
        return self.limiter.tell(address, user, verdict, mark, self.now)

    def wait(self, address=FAR, user="joe") -> float:
        """How long one has to wait now; an attempt that may be made is not."""
        seconds = self.limiter.ask(address, user, self.now)
        if seconds == 0:
            self.limiter.tell(address, user, MAYBE, b"", self.now)
        return seconds

    def fail(self, times: int, address=FAR, user="joe") -> None:
        """Fail so often, each time as soon as one may; for "*" with another name each time."""
        for _ in range(10 * times):
            if not times:
                return
            result = self.attempt(address, f"user{times}" if user == "*" else user)
            times -= result >= 0
            self.now += max(-result, 0)
        assert not times


@pytest.fixture
def clock():
    return Clock()


# How late answers are, and how long the waits.


def test_answers_to_one_user_are_later_each_time(clock):
    assert [clock.attempt() for _ in range(5)] == [1, 2, 4, 8, 16]


def test_answers_to_one_address_are_later_each_time_whoever_it_asks_for(clock):
    delays = [clock.attempt(user=f"user{number}") for number in range(PER_ADDRESS)]
    assert delays == [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5]


def test_the_delay_is_a_multiple_of_the_first_one():
    slow = Limiter(PER_ADDRESS, 0.25, b"key")
    assert [slow.tell(FAR, "joe", NO, b"%d" % n, 0) for n in range(3)] == [0.25, 0.5, 1]


def test_no_delay_grows_without_end(clock):
    for number in range(200):
        assert clock.limiter.tell(FAR, "joe", NO, b"%d" % number, clock.now) <= 16


@pytest.mark.parametrize(
    ("failures", "waits"),
    [(4, 0), (5, 15), (6, 30), (7, 60), (8, 120), (9, 240)],
)
def test_a_user_s_wait_at_an_address_doubles_with_each_failure(clock, failures, waits):
    # more would be for the address
    clock.fail(failures)
    assert clock.wait() == waits
    assert clock.wait(user="ann") == 0
    assert clock.wait(address=FARTHER) == 0


@pytest.mark.parametrize(("failures", "waits"), [(9, 0), (10, 60), (11, 120), (15, 1920)])
def test_an_address_waits_for_all_its_users_and_longer_each_time(clock, failures, waits):
    clock.fail(failures, user="*")
    assert clock.wait(user="somebody") == waits
    assert clock.wait(FARTHER, "user1") == 0


@pytest.mark.parametrize(
    ("address", "user", "most"),
    [(FAR, "joe", 900), (FAR, "*", 3600), (NEAR, "joe", limiter._NEAR_WAIT_LIMIT_SECONDS)],
)
def test_no_wait_grows_without_end(clock, address, user, most):
    clock.fail(60, address, user)
    assert clock.wait(address, user) == most


def test_the_wait_passes(clock):
    clock.fail(5)
    clock.now += 14.9
    assert clock.wait() == pytest.approx(0.1)
    clock.now += 0.1
    assert clock.wait() == 0


@pytest.mark.parametrize("wrong", [5, 6])
def test_the_right_password_ends_it_all_for_the_user(clock, wrong):
    clock.fail(wrong)
    clock.now += clock.wait()
    assert clock.attempt(verdict=YES) == 0
    assert [clock.attempt() for _ in range(2)] == [
        max(1, (1 + wrong + 1) / 2),
        max(2, (1 + wrong + 2) / 2),
    ]
    assert clock.wait() == 0


def test_the_right_password_of_one_user_does_not_help_to_guess_another_s(clock):
    """Who has an account can log in between his guesses."""
    for _ in range(PER_ADDRESS):
        clock.attempt(user="mallory", verdict=YES)
        clock.attempt(user=f"user{clock.now}")
        clock.now += 1
    assert clock.wait(user="somebody") > 0


def test_sources_that_cannot_tell_count_for_nothing(clock):
    assert [clock.attempt(verdict=MAYBE) for _ in range(100)] == [0] * 100
    assert clock.wait() == 0


# What is forgotten.


@pytest.mark.parametrize("failures", [1, 3])
def test_failures_are_forgotten_after_a_pause(clock, failures):
    clock.fail(failures)
    clock.now += WINDOW_SECONDS
    assert clock.attempt() > 1
    clock.now += WINDOW_SECONDS + 1
    assert clock.attempt() == 1


def test_the_pause_begins_when_the_wait_has_passed(clock):
    clock.fail(9)
    clock.now += 240 + WINDOW_SECONDS - 1
    assert clock.attempt() == 16
    clock.now += 480 + WINDOW_SECONDS + 1
    assert clock.attempt() == 1


def test_a_guesser_who_takes_his_time_is_counted_on(clock):
    for _ in range(PER_ADDRESS):
        clock.attempt(user=f"user{clock.now}")
        clock.now += WINDOW_SECONDS - 1
    clock.now -= WINDOW_SECONDS - 1
    assert clock.wait(user="somebody") == 60


# Whose failure it is.


def test_nobody_is_locked_out_from_elsewhere(clock):
    """Whoever guesses, from however many places: it is not the owner's matter."""
    for number in range(2000):
        clock.fail(1, f"198.51.{number >> 8}.{number & 255}")
    for _ in range(30):
        clock.attempt(FARTHER)
    assert clock.attempt(FAR, verdict=YES) == 0


def test_who_has_logged_in_from_an_address_is_not_locked_out_by_others_there(clock):
    clock.attempt(verdict=YES)
    clock.fail(20, user="*")
    assert clock.wait(user="bert") > 0
    assert clock.wait() == 0
    assert clock.attempt(verdict=YES) == 0
    # elsewhere that says nothing
    clock.fail(20, FARTHER, "*")
    assert clock.wait(FARTHER) > 0


def test_who_is_trusted_may_fail_no_more_than_others(clock):
    clock.attempt(verdict=YES)
    clock.fail(5)
    assert clock.wait() == 15


@pytest.mark.parametrize(("days", "locked"), [(29, False), (31, True)])
def test_trust_lasts_a_month(clock, days, locked):
    clock.attempt(verdict=YES)
    clock.now += days * DAY
    clock.fail(20, user="*")
    assert (clock.wait() > 0) == locked


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:DB8:0:0:1234::", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1", True),
    ],
)
def test_a_network_of_ipv6_is_one_address(clock, one, other, same):
    assert (network_of(one) == network_of(other)) == same
    clock.fail(PER_ADDRESS, one, "*")
    assert (clock.wait(other) > 0) == same


@pytest.mark.parametrize("address", ["", "somewhere", "fe80::1%eth0", "x:y", "::"])
def test_what_is_no_address_is_one_of_its_own(clock, address):
    assert isinstance(network_of(address), str)
    clock.fail(5, address)
    assert clock.wait(address) > 0


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", ""])
def test_this_machine_is_not_locked_as_a_whole(clock, address):
    """A tunnel or a web mailer brings all its users from there."""
    assert is_loopback(address) or not address
    for number in range(300):
        assert clock.attempt(address, f"user{number}") == 1
    assert clock.wait(address, "somebody") == 0
    clock.fail(5, address, "user0")
    assert clock.wait(address, "user0") > 0
    assert clock.wait(address, "user1") == 0


@pytest.mark.parametrize(
    "address", ["128.0.0.1", "::2", "::ffff:12.7.0.1", "1127.0.0.1", "::127.0.0.1", "1270::1"]
)
def test_other_addresses_are_not_this_machine(address):
    assert not is_loopback(address)


# The same wrong password.


def test_a_client_that_repeats_the_same_wrong_password_is_no_guesser(clock):
    """It has an old one stored, and tries every minute."""
    assert {clock.attempt(password=b"old") for _ in range(500)} == {1}
    assert clock.wait() == 0
    assert clock.wait(user="ann") == 0


def test_two_clients_that_repeat_two_wrong_passwords_are_none_either(clock):
    for _ in range(100):
        for password in (b"old", b"older"):
            clock.attempt(password=password)
    assert clock.wait() == 0


def test_different_wrong_passwords_are_counted_between_same_ones(clock):
    for number in range(4):
        clock.attempt(password=b"old")
        clock.attempt(password=b"%d" % number)
    assert clock.wait() == 15


def test_the_same_password_for_another_user_is_another_one(clock):
    for number in range(PER_ADDRESS):
        clock.attempt(user=f"user{number}", password=b"123456")
    assert clock.wait() == 60


def test_a_password_that_was_not_shown_is_always_another_one(clock):
    """CRAM-MD5, SCRAM."""
    for _ in range(5):
        assert clock.limiter.ask(FAR, "joe", clock.now) == 0
        clock.limiter.tell(FAR, "joe", NO, b"", clock.now)
    assert clock.wait() == 15


def test_a_mark_is_short_and_says_nothing_elsewhere():
    one, other = (Limiter(10, 1, key).mark(b"FooBar") for key in (b"1", b"2"))
    assert one != other
    assert len(one) <= 8
    assert one != Limiter(10, 1, b"1").mark(b"foobar")


# One at a time.


def test_after_a_wait_there_is_one_attempt_at_a_time(clock):
    clock.fail(5)
    clock.now += 15
    assert clock.limiter.ask(FAR, "joe", clock.now) == 0
    assert 0 < clock.limiter.ask(FAR, "joe", clock.now) <= 2
    clock.limiter.tell(FAR, "joe", NO, b"x", clock.now)
    assert clock.wait() == 30


def test_nor_have_all_users_of_an_address_one_each(clock):
    clock.fail(PER_ADDRESS, user="*")
    clock.now += 60
    assert clock.limiter.ask(FAR, "user1", clock.now) == 0
    assert [clock.limiter.ask(FAR, f"user{n}", clock.now) for n in range(2, 9)] == [2.0] * 7
    clock.limiter.tell(FAR, "user1", NO, b"x", clock.now)
    assert clock.wait(user="user2") == 120


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_ends_the_attempt(clock, verdict):
    clock.fail(5)
    clock.now += 15
    for _ in range(3):
        assert clock.limiter.ask(FAR, "joe", clock.now) == 0
        clock.limiter.tell(FAR, "joe", verdict, b"x", clock.now)
        clock.now += clock.wait()


def test_before_there_is_a_wait_many_may_try_at_once(clock):
    clock.fail(3)
    assert [clock.limiter.ask(FAR, "joe", clock.now) for _ in range(50)] == [0] * 50


# Room.


def test_a_million_addresses_take_no_more_room_than_the_records_that_are_kept(monkeypatch):
    monkeypatch.setattr(limiter, "_RECORDS", 1000)
    clock = Clock()
    tracemalloc.start()
    try:
        used = []
        for number in range(30_000):
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            clock.attempt(address, f"user{number}", YES if number % 5 == 0 else NO)
            if number % 10_000 == 9_999:
                used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert used[2] < used[0] * 1.2
    assert used[2] < 1000 * 3000
    # the latest are remembered
    assert clock.attempt(address, "user29999") == 2


def test_so_many_are_kept_that_a_small_net_cannot_have_its_failures_forgotten(clock):
    """A /24 of guessers, with other names each time."""
    clock.fail(PER_ADDRESS)
    for number in range(256 * 50):
        clock.attempt(f"198.51.100.{number & 255}", f"user{number}")
    assert clock.wait() > 0


def test_long_names_take_no_more_room_than_short_ones(clock):
    tracemalloc.start()
    try:
        for number in range(200):
            clock.attempt(FAR, "x" * 10_000 + str(number))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


def test_many_threads_keep_it_in_order(clock):
    """What each of them began it ended: so nothing is pending, whatever the order was."""

    def guess(seed: int) -> None:
        choice = random.Random(seed)
        now = 1000.0
        for number in range(500):
            address, user = choice.choice([FAR, FARTHER, NEAR]), choice.choice(["joe", "ann"])
            if clock.limiter.ask(address, user, now) == 0:
                verdict = choice.choice(list(Verdict))
                clock.limiter.tell(address, user, verdict, b"%d.%d" % (seed, number), now)
            now += choice.random() * 100

    threads = [threading.Thread(target=guess, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now = 1e6
    for address in (FAR, FARTHER, NEAR):
        assert clock.attempt(address) == 1


ATTEMPTS = st.lists(
    st.tuples(
        st.sampled_from([FAR, FARTHER, NEAR, "2001:db8::1", ""]),
        st.sampled_from(["joe", "ann", ""]),
        st.sampled_from(list(Verdict)),
        st.sampled_from([b"", b"1", b"2", b"3"]),
        st.floats(0, 2000),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(ATTEMPTS)
def test_whatever_happens_waits_and_delays_are_bounded_and_end(attempts):
    clock = Clock()
    for address, user, verdict, password, pause in attempts:
        wait = clock.limiter.ask(address, user, clock.now)
        assert 0 <= wait <= 3600
        if wait == 0:
            mark = password and clock.limiter.mark(password)
            delay = clock.limiter.tell(address, user, verdict, mark, clock.now)
            assert 0 <= delay <= 16
            assert (delay > 0) == (verdict is NO)
        clock.now += pause
    clock.now += 3600
    for address, user, *_ in attempts:
        assert clock.wait(address, user) == 0
