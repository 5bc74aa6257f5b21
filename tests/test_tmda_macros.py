"""Macros and variables: what text they make, and that they come to an end."""

from __future__ import annotations

import contextlib

import pytest
from forking import in_child
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.macros import Macros, substitute
from tofmipd.tmda.parser import parse_filter
from tofmipd.tmda.userfiles import UserFiles


def macros_of(*definitions):
    macros = Macros()
    for definition in definitions:
        assert macros.define(definition)
    return macros


# Definitions


@pytest.mark.parametrize("text", ["macros", "macrofoo bar", "to macro x", " macro a b", "", "m"])
def test_what_does_not_begin_with_the_word_is_no_definition(text):
    assert not Macros().define(text)


@pytest.mark.parametrize(
    ("definition", "text", "made"),
    [
        ("macro a b", "a", "b"),
        ("MACRO a b", "a", "b"),
        ("Macro  a  b c ", "a", "b c"),
        ("macro _x1 b", "_x1", "b"),
        ("macro a() b", "a", "b"),
        ("macro a ( ) b", "a", "b"),
        ("macro a(x)x x", "a(1)", "1 1"),
        ("macro a (x, y) x@y", "a(1, 2)", "1@2"),
        ("macro a( x ,y ) x@y", "a (  1,2 )", "1@2"),
        ("macro a(X) x", "a(1)", "1"),
        ("macro a(x) X", "a(1)", "1"),
        ("macro a(x) xx x_ x1 x-x x.x", "a(1)", "xx x_ x1 1-1 1.1"),
        ("macro a(x, y) y x", "a(y, x)", "x y"),
        (r"macro a(x) x", r"a(\1\g<0>\)", r"\1\g<0>\\"[:-1]),
        ("macro a(x) <x>", "a()", None),
        ("macro a(x) <x>", "a", None),
        ("macro a(x) <x>", "a(1, 2)", None),
        ("macro a(x, y) <x>", "a(1)", None),
        ("macro a(x) <x>", "a(,)", None),
        ("macro a(x, y) <x|y>", "a(,)", "<|>"),
        ("macro a b", "a(1)", None),
        ("macro a b", "a()", "b"),
        ("macro a b", "a (", None),
        ("macro a(x) x", "a(1", None),
        ("macro a (b)", "a", None),
        ("macro a(x) (x)", "a((1))", "((1))"),
    ],
)
def test_a_macro_stands_for_its_text(definition, text, made):
    if made is None:
        with pytest.raises(TagError, match="'a'"):
            macros_of(definition).expand(text)
    else:
        assert macros_of(definition).expand(text) == made


@pytest.mark.parametrize(
    ("definition", "word"),
    [
        ("macro", "'macro'"),
        ("macro ", "'macro'"),
        ("macro 1x y", "'1x'"),
        ("macro é y", "'é'"),
        ("macro a-b c", "'a-b'"),
        ("macro a.b c", "'a.b'"),
        ("macro (x) y", "'(x)'"),
        ("macro a", "'a'"),
        ("macro a ", "'a'"),
        ("macro a()", "'a'"),
        ("macro a(x", "'a'"),
        ("macro a(1) x", "'1'"),
        ("macro a(x,) x", "''"),
        ("macro a(,) x", "''"),
        ("macro a(-x) x", "'-x'"),
    ],
)
def test_a_definition_that_is_none_is_an_error_that_names_the_word(definition, word):
    with pytest.raises(TagError) as caught:
        Macros().define(definition)
    assert word in str(caught.value)


# Expansion


@pytest.mark.parametrize(
    ("definitions", "text", "made"),
    [
        ([], "me", "me"),
        (["macro me x"], "from me bare", "from x bare"),
        (["macro me x"], "from ME bare", "from x bare"),
        (["macro ME x"], "from me bare", "from x bare"),
        (["macro me x"], "me,me me-me me@me", "x,x x-x x@x"),
        (["macro me x"], "some mexico me2 me_ _me", "some mexico me2 me_ _me"),
        (["macro me x"], "é me méme", "é x méx"),
        (["macro me x"], "\"me\" 'me'", "\"x\" 'x'"),
        (["macro me x"], "${me}", "${x}"),
        (["macro a b", "macro b c"], "a", "c"),
        (["macro b c", "macro a b"], "a", "c"),
        (["macro a 1", "macro a 2"], "a", "2"),
        (["macro a 1", "macro A 2"], "a", "2"),
        (["macro a a"], "a", "a"),
        (["macro me me@example.com"], "me", "me@example.com"),
        (["macro a b c", "macro b 1"], "a", "1 c"),
        (["macro list(n) to-file ~/lists/n"], "list(friends) bare", "to-file ~/lists/friends bare"),
        (
            ["macro at(u) u@host", "macro host x.example"],
            "to at(bob) bare",
            "to bob@x.example bare",
        ),
        (["macro at(u) u@x", "macro bob robert"], "to at(bob) bare", "to robert@x bare"),
        (["macro f(x) x", "macro g(x) f(x)"], "g(1) f(2)", "1 2"),
        (["macro f(x) <x>"], "f(1)f(2)", "<1><2>"),
        (["macro f x"], "f (y) z", None),
        (["macro a text-that-is-long"], "a" + " " * 5000 + "a", None),
    ],
)
def test_macros_are_replaced_wherever_they_stand_as_whole_words(definitions, text, made):
    macros = macros_of(*definitions)
    if made is not None:
        assert macros.expand(text) == made
    elif "(" in text:
        with pytest.raises(TagError, match="0 arguments, not 1"):
            macros.expand(text)
    else:
        assert macros.expand(text).count("text-that-is-long") == 2


@pytest.mark.parametrize(
    "definitions",
    [["macro a b", "macro b a"], ["macro a b x", "macro b c", "macro c a"], ["macro a a a"]],
)
def test_macros_that_name_each_other_come_to_an_end(definitions):
    made = macros_of(*definitions).expand("a")
    assert len(made) < 20


def test_a_macro_counts_from_where_it_is_defined():
    rules = parse_filter(
        "to me bare\nmacro me x@x.example\nto me bare\nmacro me y\nto me bare", "f"
    )
    assert [rule.shown for rule in rules.rules] == ["to me", "to x@x.example", "to y"]


def test_a_definition_itself_is_not_expanded():
    rules = parse_filter("macro a b\nmacro a c\nmacro d a\nto d bare\n", "f").rules
    assert [rule.shown for rule in rules] == ["to c"]


# What grows without end

GROWING = {
    "doubling": ["macro m{} m{} m{}", "macro m{} y", "to m0 bare"],
    "deep": ["macro m{} m{}", "macro m{} y", "to m0 bare"],
    "deep with an argument": [
        "macro m{}(x) m{}(x)",
        "macro m{}(x) x",
        "to m0(" + "y" * 50_000 + ") bare",
    ],
}


@pytest.mark.parametrize("growth", GROWING)
@pytest.mark.parametrize("count", [30, 300, 3000])
def test_macros_within_macros_end_in_a_limited_time(growth, count):
    link, last, rule = GROWING[growth]
    lines = [link.format(number, number + 1, number + 1) for number in range(count)]
    text = "\n".join([*lines, last.format(count), rule])

    def act():
        try:
            return bool(parse_filter(text, "f").rules)
        except FilterError as error:
            return "macro" in error.problem and len(error.others) == 0

    assert in_child(act) == (0, "True\n")


@pytest.mark.parametrize(("size", "times", "others"), [(90_000, 1000, 1000), (900, 900, 3000)])
def test_big_macros_that_are_often_named_end_in_a_limited_time(size, times, others):
    text = (
        f"macro big {'y ' * (size // 2)}\n"
        + "".join(f"macro other{number} z\n" for number in range(others))
        + f"to * {'big ' * times}\n"
    )

    def act():
        with pytest.raises(FilterError) as caught:
            parse_filter(text, "f")
        return len(caught.value.others)

    assert in_child(act) == (0, "0\n")


def test_many_macros_and_many_rules_take_a_limited_time():
    text = "".join(f"macro n{number} z\n" for number in range(1000)) + "to n7 bare\n" * 1000
    assert in_child(lambda: len(parse_filter(text, "f").rules)) == (0, "1000\n")


WORDS = ["a", "b", "c", "d", "(", ")", ",", "x", "y", "A"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), max_size=4),
    st.lists(st.sampled_from(WORDS), max_size=8),
)
def test_any_macros_end_in_text_or_in_a_tag_error(texts, rule):
    macros = Macros()
    with contextlib.suppress(TagError):
        for name, words in zip("abcd", texts, strict=False):
            parameters = "(x)" if len(words) > 3 else ""
            macros.define(f"macro {name}{parameters} {' '.join(words)}")
        assert isinstance(macros.expand(" ".join(rule)), str)


# Variables


def values(**known):
    def variable(name):
        if name not in known:
            raise TagError(f"no {name}")
        return known[name]

    return variable


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", ""),
        ("$A {A} ${} ${A ${A-B} ${ A}", None),
        ("${A}", "1"),
        ("x${A}y${A}", "x1y1"),
        ("${a_1}", "2"),
        ("${IN}", "<1>"),
        ("${DEEP}", "<<1>>"),
        ("${HALF}A}", "1"),
        ("'${A}'", "'1'"),
        ("$${A}", "$1"),
    ],
)
def test_variables_are_replaced_and_so_are_those_in_their_values(text, made):
    variable = values(A="1", a_1="2", IN="<${A}>", DEEP="<${IN}>", HALF="${")
    assert substitute(text, variable) == (text if made is None else made)


@pytest.mark.parametrize("name", ["B", "a", "é"])
def test_an_unknown_variable_is_an_error(name):
    if name == "é":
        assert substitute("${é}", values()) == "${é}"
    else:
        with pytest.raises(TagError, match=name):
            substitute(f"${{{name}}}", values(A="1"))


@pytest.mark.parametrize(
    "known",
    [
        {"A": "${A}"},
        {"A": "${A}${A}"},
        {"A": "x${B}", "B": "y${A}"},
        {f"V{number}": f"${{V{number + 1}}}" * 2 for number in range(1000)} | {"A": "${V0}"},
        {"A": "x" * 60_000 + "${B}${B}", "B": "y" * 60_000},
    ],
    ids=["itself", "doubling", "mutual", "chain", "big"],
)
def test_variables_without_end_are_an_error_soon(known):
    def act():
        with pytest.raises(TagError) as caught:
            substitute("to ${A} bare", values(**known))
        return caught.value

    assert in_child(act) == (0, "the variables of the rule never come to an end\n")


# Settings and environment as variables


def filter_of(path, config, rule, variables=None, form="python"):
    """The one rule of a filter, in the house of a user."""
    (path / ".tmda/filters").mkdir(parents=True)
    (path / ".tmda/config").write_text(config)
    (path / ".tmda/crypt_key").write_text("00" * 20)
    (path / ".tmda/crypt_key").chmod(0o600)
    (path / ".tmda/filters/outgoing").write_text(rule)
    around = Surroundings(
        str(path), "alice", "Alice", "mail.example.com", {}, variables if variables else {}
    )
    return UserFiles(str(path / ".tmda/config"), around, form=form).profile().filter


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ('HOSTNAME = "corp.example"', "HOSTNAME", "corp.example"),
        ("", "HOSTNAME", "mail.example.com"),
        ("", "USERNAME", "alice"),
        ("", "DATED_TIMEOUT", "5d"),
        ('ACTION_OUTGOING = "dated=3d"', "ACTION_OUTGOING", "dated=3d"),
        ("", "HMAC_BYTES", "3"),
        ("HMAC_BYTES = 5", "HMAC_BYTES", "5"),
        ('X = "own"', "X", "own"),
        ("X = 7", "X", "7"),
        ("X = b'oct'", "X", "oct"),
        ('x = "lower"', "x", "lower"),
        ('A = "1"; B = A + "2"', "B", "12"),
        ('X = "<${Y}>"; Y = "y"', "X", "<y>"),
        ("", "ENV", "from the environment"),
        ('ENV = "from the configuration"', "ENV", "from the configuration"),
        ('ENV = ""', "ENV", "from the environment"),
        ("ENV = None", "ENV", "from the environment"),
        ("ENV = False", "ENV", "from the environment"),
    ],
)
def test_a_variable_is_a_setting_or_from_the_environment(tmp_path, config, name, value):
    rules = filter_of(
        tmp_path, config, f'to "${{{name}}}" bare\n', {"ENV": "from the environment"}
    ).rules
    assert rules[0].shown == f"to {value}"


@pytest.mark.parametrize(
    ("config", "name", "says"),
    [
        ("", "NOPE", "${NOPE} is neither"),
        ("", "hostname", "${hostname} is neither"),
        ('NOPE = ""', "NOPE", "${NOPE} is neither"),
        ("", "BARE_APPEND", "${BARE_APPEND} is neither"),
        ("", "HOME", "${HOME} is neither"),
        ("X = ['a']", "X", "${X} is not a text"),
        ("X = {'a': 1}", "X", "${X} is not a text"),
        ("X = True", "X", "${X} is not a text"),
        ("X = 1.5", "X", "${X} is not a text"),
        ("import os", "os", "${os} is not a text"),
        ("def f(): pass", "f", "${f} is not a text"),
        ("", "TAGS_DATED", "${TAGS_DATED} is not a text"),
        ('X = "${X}"', "X", "never come to an end"),
        (r'X = "\ud800"', "X", ""),
    ],
)
def test_a_variable_that_is_no_text_is_an_error_of_its_line(tmp_path, config, name, says):
    with pytest.raises(FilterError) as caught:
        filter_of(tmp_path, config, f'\n\nto "${{{name}}}" bare\n')
    assert caught.value.line == 3
    assert says in caught.value.problem


def test_a_literal_configuration_gives_variables_too(tmp_path):
    rules = filter_of(tmp_path, "X = 'x'\nN = 7\n", 'to "${X}${N}" bare\n', form="literal").rules
    assert rules[0].shown == "to x7"


def test_macros_come_before_variables_and_variables_before_includes(tmp_path):
    (tmp_path / "more").write_text("to b@x.example ext=included\n")
    rules = filter_of(
        tmp_path,
        'WHICH = "more"\nWORD = "macroname"\n',
        "macro var(name) ${name}\nmacro macroname never\ninclude ~/${WHICH}\nto var(WORD) bare\n",
    ).rules
    assert [rule.shown for rule in rules] == ["to b@x.example", "to macroname"]
