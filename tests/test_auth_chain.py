"""Several sources in a row: whose verdict counts, and what none of them is ever asked."""

from __future__ import annotations

import itertools

import pytest
from fakes import ALL_MECHANISMS

from tofmipd.auth.chain import Chain, Outcome
from tofmipd.auth.credentials import CramMd5, Password, Verdict, is_login_name

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
BOBBY = Password("bobby", b"FooBar")


class Canned:
    """A source that always says the same and remembers what it was asked."""

    def __init__(self, name, verdict, mechanisms=ALL_MECHANISMS):
        self.name = name
        self.verdict = verdict
        self.mechanisms = frozenset(mechanisms)
        self.asked = []

    def check(self, credentials, origin):
        self.asked.append(credentials)
        return self.verdict


def chain_of(*verdicts):
    sources = [Canned(f"source{number}", verdict) for number, verdict in enumerate(verdicts, 1)]
    return Chain(sources), sources


@pytest.mark.parametrize(
    ("verdicts", "verdict", "source"),
    [
        ([YES], YES, "source1"),
        ([NO], NO, "source1"),
        ([MAYBE], MAYBE, "source1"),
        ([NO, YES], YES, "source2"),
        ([MAYBE, YES], YES, "source2"),
        ([YES, MAYBE], YES, "source1"),
        ([NO, MAYBE], MAYBE, "source2"),
        ([MAYBE, NO], MAYBE, "source1"),
        ([MAYBE, NO, NO], MAYBE, "source1"),
        ([NO, MAYBE, YES], YES, "source3"),
        ([NO, NO], NO, "source2"),
    ],
)
def test_the_first_that_accepts_wins_and_not_knowing_beats_no(verdicts, verdict, source):
    assert chain_of(*verdicts)[0].check(BOBBY) == Outcome(verdict, source)


@pytest.mark.parametrize("verdicts", list(itertools.product(Verdict, repeat=3)))
def test_sources_are_asked_in_order_and_none_after_one_that_accepts(verdicts):
    chain, sources = chain_of(*verdicts)
    chain.check(BOBBY)
    last = verdicts.index(YES) if YES in verdicts else 2
    assert [len(source.asked) for source in sources] == [1] * (last + 1) + [0] * (2 - last)
    assert sources[0].asked == [BOBBY]


BAD_NAMES = [
    "",
    "../root",
    "-x",
    "-",
    ".x",
    ".",
    "..",
    "/etc/passwd",
    "a/b",
    "a/",
    "a\0",
    "\0",
    "a\nb",
    "a\n",
    "\ta",
    "a\x7f",
    "a\x85b",
    "a\u2028b",
    "a\udc80",
    "a" * 256,
    "a" * 300,
]
GOOD_NAMES = [
    "bobby",
    "a",
    "bobby@example.org",
    "a.b",
    "a-b",
    "_x",
    "jörg",
    "a b",
    "a" * 255,
    "x..",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [lambda n: Password(n, b"FooBar"), lambda n: CramMd5(n, b"00")])
def test_a_name_that_is_none_never_reaches_a_source(name, make):
    chain, (source,) = chain_of(YES)
    assert not is_login_name(name)
    assert chain.check(make(name)) == Outcome(NO, "none")
    assert source.asked == []


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_usual_name_reaches_the_source(name):
    chain, (source,) = chain_of(YES)
    assert is_login_name(name)
    assert chain.check(Password(name, b"FooBar")).verdict is YES
    assert len(source.asked) == 1


def test_an_empty_password_never_reaches_a_source():
    chain, (source,) = chain_of(YES)
    assert chain.check(Password("bobby", b"")) == Outcome(NO, "none")
    assert source.asked == []


def test_a_bad_name_is_rejected_even_when_sources_are_unavailable():
    assert chain_of(MAYBE)[0].check(Password("../root", b"FooBar")).verdict is NO


def test_only_mechanisms_of_every_source_are_offered():
    everything, clear = Canned("a", YES), Canned("b", YES, ("PLAIN", "LOGIN"))
    assert Chain([everything]).mechanisms == set(ALL_MECHANISMS)
    assert Chain([everything, clear]).mechanisms == {"PLAIN", "LOGIN"}
    assert Chain([clear, Canned("c", YES, ("CRAM-MD5",))]).mechanisms == set()
