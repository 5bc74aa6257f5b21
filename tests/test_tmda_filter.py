"""The outgoing filter: which rule decides, and with which actions."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.filter import Filter
from tofmipd.tmda.lists import parse_list
from tofmipd.tmda.parser import parse_filter
from tofmipd.tmda.pattern import compile_pattern
from tofmipd.tmda.sources import Found

PATH = "/home/alice/.tmda/filters/outgoing"
ME = b"alice@example.com"


class Shelf:
    """Lists by their names; what is asked of it is noted."""

    def __init__(self, **texts):
        self.lists = {name: parse_list(text.encode()) for name, text in texts.items()}
        self.asked = []

    def look_up(self, question, keys, recipient):
        self.asked.append((question.match, *keys))
        if question.match not in self.lists:
            raise TagError(f"there is no {question.match}")
        entry = self.lists[question.match].find(keys)
        return entry and Found(entry.action, f"{question.match}:{entry.line}")


# What decides


@pytest.mark.parametrize(
    ("recipient", "sender", "line"),
    [
        (b"bob@x.example", ME, 1),
        (b"BOB@X.Example", ME, 1),
        (b"carol@x.example", ME, 2),
        (b"carol@y.example", b"role@example.com", 3),
        (b"carol@y.example", b"ROLE@example.com", 3),
        (b"carol@z.example", ME, 4),
        (b"bob@x.example", b"role@example.com", 1),
        (b"carol@nowhere.example", ME, None),
        (b"", ME, None),
    ],
)
def test_the_first_rule_that_matches_wins(recipient, sender, line):
    rules = parse_filter(
        "to bob@x.example bare\n"
        "to *@x.example sender\n"
        "from Role@Example.Com dated=1d\n"
        "to *@z.example kw=z\n"
        "to *@x.example exp=never@example.com\n",
        PATH,
    )
    match = rules.find(recipient, sender)
    assert (match and match.rule.place.line) == line


@pytest.mark.parametrize(
    ("recipient", "sender", "line", "actions"),
    [
        (b"first@x.example", ME, 1, "bare"),
        (b"FIRST@X.EXAMPLE", ME, 1, "bare"),
        (b"a@listed.example", ME, 2, "sender"),
        (b"A@Listed.example", ME, 2, "sender"),
        (b"b@listed.example", ME, 2, "kw=b"),
        (b"c@domain.example", ME, 2, "sender"),
        (b"c@sub.domain.example", ME, None, None),
        (b"late@x.example", ME, 4, "ext=late"),
        (b"q@y.example", b"boss@example.com", 3, "dated=1d"),
        (b"q@y.example", b"BOSS@EXAMPLE.COM", 3, "dated=1d"),
        (b"q@y.example", b"clerk@example.org", 3, "dated=2d"),
        (b"late@x.example", b"boss@example.com", 3, "dated=1d"),
        (b"a@listed.example", b"boss@example.com", 2, "sender"),
        (b"", ME, None, None),
        (b"@domain.example", ME, 2, "sender"),
        (b"domain.example", ME, 2, "sender"),
        (b"x@y@domain.example", ME, 2, "sender"),
        (b"domain.example@x", ME, None, None),
    ],
)
def test_lists_and_patterns_decide_in_the_order_of_their_rules(recipient, sender, line, actions):
    rules = parse_filter(
        "to first@x.example bare\n"
        "to-file l sender\n"
        "from-file bosses dated=1d\n"
        "to late@x.example ext=late\n",
        PATH,
    )
    shelf = Shelf(
        l="a@listed.example\nb@listed.example kw=b\ndomain.example\n",
        bosses="boss@example.com\nexample.org dated=2d\n",
    )
    match = rules.find(recipient, sender, shelf)
    assert (match and match.rule.place.line) == line
    assert (match and [str(action) for _, action in match.actions]) == (actions and [actions])


def test_an_action_beside_an_address_replaces_all_actions_of_the_rule():
    rules = parse_filter("to-file l tag from bare reply-to sender x-note hello\n", PATH)
    shelf = Shelf(l="a@x.example\nb@x.example dated=1h\n")
    plain, own = (rules.find(key, ME, shelf) for key in (b"a@x.example", b"b@x.example"))
    assert plain.text == 'to-file l tag from bare reply-to sender x-note "hello"'
    assert own.text == "to-file l tag from dated=1h"
    assert own.rule is plain.rule


def test_the_domain_of_a_list_is_no_key_for_the_rules_after_it():
    """The original let it leak into later ``from`` rules."""
    rules = parse_filter("from-file l bare\nfrom example.com sender\nto x.example kw=k\n", PATH)
    assert rules.find(b"bob@x.example", ME, Shelf(l="nobody\n")) is None


def test_a_list_is_not_asked_when_an_earlier_rule_decides():
    rules = parse_filter("to a@x.example bare\nto-file missing sender\n", PATH)
    shelf = Shelf()
    assert rules.find(b"a@x.example", ME, shelf).rule.place.line == 1
    assert shelf.asked == []
    assert rules.find(b"a@x.example", ME) is not None


@pytest.mark.parametrize(
    ("recipient", "keys"),
    [
        (b"Bob@X.Example", (b"bob@x.example", b"x.example")),
        (b"a@b@c", (b"a@b@c", b"c")),
        (b"\xc3\x84@X", (b"\xc3\x84@x", b"x")),
        (b"nobody", (b"nobody",)),
        (b"", (b"",)),
    ],
)
def test_a_list_is_asked_for_the_address_and_for_its_domain(recipient, keys):
    shelf = Shelf(l="")
    parse_filter("to-file l bare\n", PATH).find(recipient, ME, shelf)
    parse_filter("from-file l bare\n", PATH).find(b"other", recipient, shelf)
    assert shelf.asked == [("l", *keys)] * 2


@pytest.mark.parametrize(
    ("action", "word"),
    [
        ("nonsense", "'nonsense'"),
        ("tag", "'tag'"),
        ("Bare", "'bare'"),
        ("hold", "incoming"),
        ("kw", "'kw'"),
    ],
)
def test_a_wrong_action_in_a_list_is_an_error_of_the_rule_that_names_the_line(action, word):
    rules = parse_filter("\n# lists\nto-file l bare\n", PATH)
    shelf = Shelf(l=f"# friends\na@x.example\nbob@x.example {action}\n")
    with pytest.raises(FilterError) as caught:
        rules.find(b"bob@x.example", ME, shelf)
    assert (caught.value.path, caught.value.line) == (PATH, 3)
    assert "l:3: " in caught.value.problem
    assert word in caught.value.problem
    assert rules.find(b"a@x.example", ME, shelf).text == "to-file l tag from bare"


@pytest.mark.parametrize("lists", [None, Shelf()])
def test_what_cannot_be_looked_up_is_an_error_of_its_rule(lists):
    rules = parse_filter("to a@x.example bare\nto-file\n  gone\n  bare\n", PATH)
    with pytest.raises(FilterError, match="gone") as caught:
        rules.find(b"b@x.example", ME, lists)
    assert (caught.value.path, caught.value.line) == (PATH, 2)


def test_equal_filters_are_equal_and_can_be_kept_in_a_set():
    text = "to-file -optional l bare\nto * sender\n"
    assert parse_filter(text, PATH) == parse_filter(text, PATH)
    assert len({parse_filter(text, PATH), parse_filter(text, PATH)}) == 1
    assert parse_filter(text, PATH) != parse_filter(text, "/elsewhere")
    assert parse_filter(text, PATH) != Filter(PATH)


# Any filter

LETTERS = "ab@.*?[]!=-"
LISTED = st.text("ab@.*?=-", min_size=1, max_size=5)
LISTS = st.lists(st.lists(LISTED, max_size=4), min_size=3, max_size=3)
RULES = st.lists(
    st.tuples(
        st.sampled_from(["to", "from"]),
        st.one_of(st.text(LETTERS, min_size=1, max_size=6), st.integers(0, 2)),
    ),
    max_size=8,
)
KEYS = st.text("ABab@.-=", max_size=6).map(str.encode)


def tried_in_turn(rules, lists, recipient, sender):
    """The number of the rule that decides and the line of the list, by the words of section 4."""
    for number, (side, what) in enumerate(rules):
        key = (recipient if side == "to" else sender).lower()
        if isinstance(what, str):
            if compile_pattern(what.encode()).fullmatch(key):
                return number, None
            continue
        domain = [key.rpartition(b"@")[2]] if b"@" in key else []
        for one in [key, *domain]:
            for line, pattern in enumerate(lists[what]):
                if compile_pattern(pattern.encode()).fullmatch(one):
                    return number, line
    return None


@settings(max_examples=600, deadline=None)
@given(RULES, LISTS, KEYS, KEYS)
@example([("from", 0), ("to", "*"), ("from", "*@b")], [["b"], [], []], b"a", b"a@b")
@example([("to", "[@]a"), ("from", "*")], [[], [], []], b"@a", b"")
def test_a_filter_finds_what_trying_each_rule_finds(rules, lists, recipient, sender):
    lines = [
        f'{side} "{what}" ext={number}'
        if isinstance(what, str)
        else f"{side}-file l{what} ext={number}"
        for number, (side, what) in enumerate(rules)
    ]
    shelf = Shelf(
        **{
            f"l{name}": "".join(f"{pattern} kw={line}\n" for line, pattern in enumerate(patterns))
            for name, patterns in enumerate(lists)
        }
    )
    match = parse_filter("\n".join(lines), PATH).find(recipient, sender, shelf)
    expected = tried_in_turn(rules, lists, recipient, sender)
    if expected is None:
        assert match is None
        return
    number, line = expected
    assert match.rule.place.line == number + 1
    ((_, action),) = match.actions
    assert str(action) == (f"ext={number}" if line is None else f"kw={line}")
