"""Several sources in a row: whose verdict counts, and what none of them is ever asked."""

from __future__ import annotations

import itertools

import pytest
from fakes import ALL_MECHANISMS, ScramClient

from tofmipd.auth import scram
from tofmipd.auth.chain import Chain, Outcome
from tofmipd.auth.credentials import CramMd5, Password, Scram, Verdict, is_login_name

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
    reason = {YES: "ok", NO: "password", MAYBE: "source"}[verdict]
    assert chain_of(*verdicts)[0].check(BOBBY) == Outcome(verdict, source, reason)


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
@pytest.mark.parametrize(
    "make",
    [lambda n: Password(n, b"FooBar"), lambda n: CramMd5(n, b"00"), lambda n: Scram(n, b"last")],
)
def test_a_name_that_is_none_never_reaches_a_source(name, make):
    chain, (source,) = chain_of(YES)
    assert not is_login_name(name)
    assert chain.check(make(name)) == Outcome(NO, "none", "name")
    assert source.asked == []


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_usual_name_reaches_the_source(name):
    chain, (source,) = chain_of(YES)
    assert is_login_name(name)
    assert chain.check(Password(name, b"FooBar")).verdict is YES
    assert len(source.asked) == 1


def test_an_empty_password_never_reaches_a_source():
    chain, (source,) = chain_of(YES)
    assert chain.check(Password("bobby", b"")) == Outcome(NO, "none", "empty")
    assert source.asked == []


@pytest.mark.parametrize("password", [b"FooBar\0", b"\0", b"\0FooBar", b"Foo\0Bar"])
def test_a_password_with_nul_never_reaches_a_source(password):
    """LOGIN has no form that would keep it out, and to HMAC one at the end is none."""
    chain, (source,) = chain_of(YES)
    assert chain.check(Password("bobby", password)) == Outcome(NO, "none", "malformed")
    assert source.asked == []


def test_a_bad_name_is_rejected_even_when_sources_are_unavailable():
    assert chain_of(MAYBE)[0].check(Password("../root", b"FooBar")).verdict is NO


def test_only_mechanisms_of_every_source_are_offered():
    everything, clear = Canned("a", YES), Canned("b", YES, ("PLAIN", "LOGIN"))
    assert Chain([everything]).mechanisms == set(ALL_MECHANISMS)
    assert Chain([everything, clear]).mechanisms == {"PLAIN", "LOGIN"}
    assert Chain([clear, Canned("c", YES, ("CRAM-MD5",))]).mechanisms == set()


# SCRAM: who knows the user has his verifier.


class Knowing(Canned):
    """A source that knows these users, all with one password."""

    def __init__(self, name, users, password, salt=b"salt"):
        super().__init__(name, NO)
        self._users = users
        self._known = scram.verifier_of(password, salt, 5, "sha256")
        self._made_up = scram.Verifier("sha256", b"made up", 7, b"?", b"?")

    def verifier(self, user, mechanism):
        self.asked.append((user, mechanism))
        return (self._known, True) if user in self._users else (self._made_up, False)


def scram_login(chain, user=b"bobby", password=b"pass", mechanism="SCRAM-SHA-256"):
    client = ScramClient(mechanism, user, password)
    exchange = chain.exchange(mechanism, client.first)
    final = client.final(exchange.challenge)
    return client, exchange, chain.check(Scram(user.decode(), final, b"", exchange))


def test_the_first_source_that_knows_the_user_has_his_verifier():
    sources = [
        Knowing("first", {"ann"}, b"pass"),
        Canned("remote", MAYBE),
        Knowing("second", {"bobby"}, b"pass"),
        Knowing("third", {"bobby"}, b"other"),
    ]
    client, _, outcome = scram_login(Chain(sources))
    assert outcome == Outcome(YES, "second", "ok", client.expected)
    assert [len(source.asked) for source in sources] == [1, 0, 1, 0]
    _, _, outcome = scram_login(Chain(sources), password=b"other")
    assert outcome == Outcome(NO, "second", "password")


def test_for_a_user_that_nobody_knows_the_first_made_up_one_serves():
    chain = Chain([Knowing("first", (), b"pass"), Knowing("second", (), b"pass", b"x")])
    _, exchange, outcome = scram_login(chain)
    assert exchange.challenge.endswith(b",i=7")
    assert outcome == Outcome(NO, "first", "password")


def test_a_mechanism_that_is_bound_asks_for_the_same_verifier():
    source = Knowing("first", {"jörg i"}, b"pass")
    opening = "p=tls-exporter,,n=J\u00adÖRG\u00a0I,r=x".encode()
    assert Chain([source]).exchange("SCRAM-SHA-1-PLUS", opening) is not None
    assert source.asked == [("jörg i", "SCRAM-SHA-1")]


def test_each_exchange_has_a_nonce_of_its_own():
    chain = Chain([Knowing("first", {"bobby"}, b"pass")])
    challenges = {chain.exchange("SCRAM-SHA-256", b"n,,n=bobby,r=x").challenge for _ in range(50)}
    nonces = {challenge.split(b",")[0].removeprefix(b"r=x") for challenge in challenges}
    assert len(nonces) == 50
    assert min(map(len, nonces)) >= 18


@pytest.mark.parametrize("opening", [b"", b"n,,n=bobby", b"n,,n=\xff,r=x"])
def test_a_malformed_opening_has_no_exchange(opening):
    assert Chain([Knowing("first", {"bobby"}, b"x")]).exchange("SCRAM-SHA-256", opening) is None


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if "=" not in name and name.isascii()])
def test_a_name_that_is_none_has_no_good_exchange(name):
    chain = Chain([Knowing("first", {name}, b"pass")])
    exchange = chain.exchange("SCRAM-SHA-256", f"n,,n={name},r=x".encode())
    if exchange is not None:
        client = ScramClient("SCRAM-SHA-256", name.encode(), b"pass", nonce=b"x")
        assert exchange.finish(client.final(exchange.challenge), b"") is None


def test_without_a_source_that_has_verifiers_there_is_no_exchange_and_no_login():
    chain = Chain([Canned("remote", YES)])
    assert chain.exchange("SCRAM-SHA-256", b"n,,n=bobby,r=x") is None
    assert chain.check(Scram("bobby", b"last")) == Outcome(NO, "none", "challenge")
