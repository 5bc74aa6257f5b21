"""Patterns: what each matches, and which of many is the first to match."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.pattern import PatternSet, compile_pattern

# One pattern


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"bob@x.example", [b"bob@x.example"], [b"bob@x.exampl", b"bobb@x.example", b""]),
        (b"BOB@X", [b"bob@x"], [b"BOB@X"]),
        (b"*", [b"", b"a", b"a@b.c", b"a\nb"], []),
        (b"*@x", [b"@x", b"a@x", b"a@b@x"], [b"a@y.x", b"x", b"a@xx"]),
        (b"a?@x", [b"ab@x", b"a.@x", b"a@@x"], [b"a@x", b"abc@x"]),
        (b"[a-c]@x", [b"a@x", b"c@x"], [b"d@x", b"-@x", b"ab@x"]),
        (b"[!a-c]@x", [b"d@x", b"@@x"], [b"a@x", b"@x"]),
        (b"[]a]@x", [b"]@x", b"a@x"], [b"b@x"]),
        (b"[!]a]@x", [b"b@x"], [b"]@x", b"a@x"]),
        (b"[a@x", [b"[a@x"], [b"a@x"]),
        (b"[^a]@x", [b"^@x", b"a@x"], [b"b@x"]),
        (b"[z-a]@x", [], [b"z@x", b"a@x", b"-@x"]),
        (b"a.b@x", [b"a.b@x"], [b"acb@x"]),
        (b"a\\*@x", [b"a\\@x", b"a\\bc@x"], [b"a*@x", b"a@x"]),
        (b"(a|b)+$^{1}@x", [b"(a|b)+$^{1}@x"], [b"a@x"]),
        (b"\xc3\xbc@x", [b"\xc3\xbc@x"], [b"\xc3@x"]),
        (b"?@x", [b"\xff@x"], [b"\xc3\xbc@x"]),
        (b"*@=d.example", [b"a@d.example", b"a@b.d.example", b"a@.d.example"], [b"a@xd.example"]),
        (b"bob@=d", [b"bob@d", b"bob@a.b.d"], [b"eve@d", b"bob@a.d.e"]),
        (b"a@=b@c", [b"a@=b@c"], [b"a@b@c", b"a@x.b@c"]),
        (b"a@b@=c", [b"a@b@c", b"a@b@x.c"], [b"a@b@=c"]),
        (b"a@=", [b"a@", b"a@b."], [b"a@="]),
    ],
)
def test_a_pattern_matches_the_whole_key(pattern, matching, others):
    full = compile_pattern(pattern).fullmatch
    assert [key for key in matching if not full(key)] == []
    assert [key for key in others if full(key)] == []


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=30),
        st.lists(st.sampled_from([b"[", b"]", b"!", b"^", b"-", b"*", b"?", b"@=", b"&&", b"\\"]))
        .map(b"".join)
        .map(lambda pattern: pattern[:30]),
    ),
    st.binary(max_size=30),
)
@example(b"[[]", b"[")
@example(b"[a--b]", b"a")
@example(b"[a&&b~~c||d]", b"a")
@example(b"*@=[@=]", b"x")
def test_any_octets_are_a_pattern(pattern, key):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_pattern(pattern).fullmatch(key)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30).map(bytes.lower))
def test_a_pattern_without_special_octets_matches_itself_only(key):
    if not any(special in key for special in (b"*", b"?", b"[", b"@=")):
        full = compile_pattern(key).fullmatch
        assert full(key)
        assert not full(key + b"x")


def test_a_pattern_of_many_stars_does_not_take_for_ever():
    full = compile_pattern(b"*a" * 100).fullmatch
    assert not full(b"a" * 2000 + b"b")


# Many patterns


def first_of(patterns, key):
    """What a set of patterns stands for: they are tried one after the other."""
    for index, pattern in enumerate(patterns):
        if compile_pattern(pattern).fullmatch(key):
            return index
    return None


@pytest.mark.parametrize(
    ("patterns", "key", "index"),
    [
        ([], b"a@x", None),
        ([b""], b"", 0),
        ([b""], b"a", None),
        ([b"*"], b"", 0),
        ([b"a@x", b"a@x"], b"a@x", 0),
        ([b"*@x", b"a@x"], b"a@x", 0),
        ([b"a@x", b"*@x"], b"a@x", 0),
        ([b"b@x", b"a?@x", b"*@x", b"*"], b"ab@x", 1),
        ([b"*@y", b"*@=x", b"a@b.x"], b"a@b.x", 1),
        ([b"*@y", b"a@b.x", b"*@=x"], b"a@b.x", 1),
        ([b"a@*", b"*@x"], b"a@x", 0),
        ([b"*@x", b"a@*"], b"a@x", 0),
        ([b"x*", b"a@*", b"*@x"], b"a@x", 1),
        ([b"a@x*"], b"a@b@x", None),
        ([b"a@*x"], b"a@b@x", 0),
        ([b"b@*x"], b"a@b@x", None),
        ([b"*b@x"], b"a@b@x", 0),
        ([b"a@b@=x"], b"a@b@q.x", 0),
        ([b"a@="], b"a@", 0),
        ([b"a@="], b"a@b.", 0),
        ([b"*@=."], b"a@b..", 0),
        ([b"*@="], b"a@b", None),
        ([b"*@=x"], b"x", None),
        ([b"*@=x"], b"a@.x", 0),
        ([b"*@=x"], b"a@q@.x", 0),
        ([b"A@X"], b"a@x", 0),
        ([b"*@X"], b"a@x", 0),
        ([b"A@*"], b"a@x", 0),
        ([b"*@=X"], b"a@b.x", 0),
        ([b"a[@]x"], b"a@x", 0),
        ([b"[@]x"], b"@x", 0),
        ([b"a[b@c]d"], b"abd", 0),
        ([b"a[!@]x"], b"abx", 0),
        ([b"[@=a]"], b"a", 0),
        ([b"[@a"], b"[@a", 0),
    ],
)
def test_the_first_pattern_that_matches_is_found(patterns, key, index):
    assert first_of(patterns, key) == index
    assert PatternSet(patterns).first(key) == index


LETTERS = "ab@.*?[]!=-"
PATTERNS = st.lists(st.text(LETTERS, max_size=8).map(str.encode), max_size=8)
ADDRESSES = st.text("ab@.[]!-=", max_size=8).map(str.encode)
LIKE_ADDRESSES = st.builds(
    "{}@{}".format, st.text("ab*?[]!.", max_size=4), st.text("ab.*?[]!=-@", max_size=6)
).map(str.encode)
# What a pattern has in a row counts, so some have more of it.
PIECES = ["abc", "bca", "ab", "@", "@=", ".", "=", "*", "?", "[a]", "[!", "[]a", "[ab", "]", "-"]
LONG = st.lists(st.sampled_from(PIECES), max_size=6).map("".join).map(str.encode)


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(PATTERNS, st.lists(LIKE_ADDRESSES, max_size=8), st.lists(LONG, max_size=8)),
    st.lists(st.one_of(ADDRESSES, LIKE_ADDRESSES, LONG), min_size=1, max_size=4),
)
@example([b"[@]a"], [b"@a"])
@example([b"b[@=a]"], [b"ba"])
@example([b"*@="], [b"a@x"])
def test_a_set_of_patterns_finds_what_trying_each_finds(patterns, keys):
    together = PatternSet(patterns)
    for key in keys:
        assert together.first(key) == first_of(patterns, key)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=6), st.binary(max_size=12).map(bytes.lower))
def test_so_it_does_for_any_octets(patterns, key):
    assert PatternSet(patterns).first(key) == first_of(patterns, key)


@pytest.mark.parametrize("count", [99, 100, 101, 250])
@pytest.mark.parametrize("pattern", ["?{}?", "a{}@*x", "*{}@x.example", "a{}@=x*", "*@{}.example"])
def test_the_number_of_patterns_makes_no_difference(pattern, count):
    patterns = [pattern.format(number).encode() for number in range(count)]
    together = PatternSet(patterns)
    for number in range(count):
        key = patterns[number].replace(b"@=", b"@").replace(b"?", b"q").replace(b"*", b"r")
        assert together.first(key) == first_of(patterns, key)
    assert together.first(b"nobody@nowhere") is None


def test_threads_may_ask_a_new_set_at_once():
    patterns = [b"*%d*" % number for number in range(10, 500)]
    together = PatternSet(patterns)
    expected = [first_of(patterns, b"x%dy" % number) for number in range(10, 500, 7)]
    found = []

    def ask():
        found.append([together.first(b"x%dy" % number) for number in range(10, 500, 7)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [expected] * 8


@pytest.mark.parametrize(
    ("patterns", "key"),
    [
        ([b"*a" * 50 + b"*%d" % number for number in range(100)], b"a" * 5000 + b"b@x"),
        ([b"*%d@x" % number for number in range(20_000)], b"q" * 1000 + b"@x"),
        ([b"*@=%d.x" % number for number in range(20_000)], b"a@" + b"b." * 20_000 + b"x"),
        ([b"[" * 500] * 50, b"[" * 500),
        ([b"a@*?*?*?*?*?*?x%d" % number for number in range(200)], b"a@" + b"x" * 3000),
    ],
    ids=["stars", "many of a domain", "deep domain", "brackets", "marks"],
)
def test_hostile_patterns_and_keys_take_a_limited_time(patterns, key):
    begin = time.process_time()
    PatternSet(patterns).first(key)
    assert time.process_time() - begin < 5
