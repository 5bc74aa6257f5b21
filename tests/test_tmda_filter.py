"""The outgoing filter: its grammar, its errors, its patterns, and what decides."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.errors import FilterError
from tofmipd.tmda.filter import logical_lines, parse_filter
from tofmipd.tmda.pattern import compile_pattern

PATH = "/home/alice/.tmda/filters/outgoing"
ME = b"alice@example.com"


def decide(text, recipient=b"bob@x.example", sender=ME):
    """The actions that a filter finds, as text; None when no rule matches."""
    match = parse_filter(text, PATH).find(recipient, sender)
    return None if match is None else {name: str(action) for name, action in match.actions}


def errors_of(text):
    with pytest.raises(FilterError) as caught:
        parse_filter(text, PATH)
    return [caught.value, *caught.value.others]


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
    assert (match and match.rule.line) == line


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "   \n\t\n", "\r\n"])
def test_a_filter_without_rules_matches_nothing(text):
    assert parse_filter(text, PATH).rules == ()
    assert decide(text) is None


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("to * bare", {"from": "bare"}),
        ("to * bare=anything", {"from": "bare=anything"}),
        ("to * dated", {"from": "dated"}),
        ("to * dated=5d", {"from": "dated=5d"}),
        ("to * sender", {"from": "sender"}),
        ("to * sender=list@lists.example", {"from": "sender=list@lists.example"}),
        ("to * domain=x.example", {"from": "domain=x.example"}),
        ("to * exp=me@y.example", {"from": "exp=me@y.example"}),
        ("to * explicit=<>", {"from": "explicit=<>"}),
        ("to * as=me@y.example", {"from": "as=me@y.example"}),
        ("to * ext=shop", {"from": "ext=shop"}),
        ("to * extension=a=b", {"from": "extension=a=b"}),
        ("to * kw=news", {"from": "kw=news"}),
        ("to * keyword=a#b", {"from": "keyword=a#b"}),
        ("to * default", {"from": "default"}),
        ("TO * bare", {"from": "bare"}),
        ("From * bare", {"from": "bare"}),
        ("to* bare", {"from": "bare"}),
        ("to   *     bare   ", {"from": "bare"}),
        ("to\t*\tbare\t", {"from": "bare"}),
        ("to * bare\r", {"from": "bare"}),
        ("to * bare \f\v", {"from": "bare"}),
        ('to "*" bare', {"from": "bare"}),
        ("to '*' bare", {"from": "bare"}),
        ("to '*'bare", {"from": "bare"}),
    ],
)
def test_a_rule_is_a_source_a_pattern_and_an_action(text, actions):
    assert decide(text) == actions


@pytest.mark.parametrize(
    ("text", "recipient", "found"),
    [
        ('to "-b@x.example" bare', b"-b@x.example", True),
        ("to 'a b@x.example' bare", b"a", True),
        ("to 'a b@x.example' bare", b"a b@x.example", False),
        ('to "it\'s@x.example" bare', b"it's@x.example", True),
        ('to "unclosed@x.example bare', b'"unclosed@x.example', True),
        ('to mid"quote@x.example bare', b'mid"quote@x.example', True),
        (r'to "a\"b@x.example" bare', rb"a\"b@x.example", True),
        ("tobias@x.example bare", b"bias@x.example", True),
        ("tobias@x.example bare", b"tobias@x.example", False),
        ("to jürgen@x.example bare", "jürgen@x.example".encode(), True),
        ("to \udce9t\udce9@x.example bare", b"\xe9t\xe9@x.example", True),
    ],
)
def test_quotes_hold_a_pattern_together(text, recipient, found):
    assert (decide(text, recipient) is not None) == found


@pytest.mark.parametrize(
    ("text", "actions"),
    [
        ("tag from bare", {"from": "bare"}),
        ("tag From sender Reply-To bare", {"from": "sender", "reply-to": "bare"}),
        ("tag from bare from dated", {"from": "dated"}),
        ("tag from dated=5d   envelope   bare  ", {"from": "dated=5d", "envelope": "bare"}),
        ("tag from dated = 5d", {"from": "dated=5d"}),
        ('tag from "dated=5d"', {"from": "dated=5d"}),
        ('tag from exp="me@y.example"', {"from": "exp=me@y.example"}),
        ("tag from default", {"from": "default"}),
        ('tag x-note "hello there"', {"x-note": '"hello there"'}),
        ("tag x-note 'say \"hi\"'", {"x-note": '"say "hi""'}),
        (r'tag x-note "it\"s" from bare', {"x-note": r'"it\"s"', "from": "bare"}),
        ("tag x-note plain x_other text", {"x-note": '"plain"', "x_other": '"text"'}),
        ('tag x-note ""', {"x-note": '""""'}),
        ("tag x-note sender notes-too", {"x-note": "sender", "notes-too": None}),
        ('tag x-note "sender notes"', {"x-note": '"sender notes"'}),
        ("tag x-note barely", {"x-note": '"barely"'}),
        ("tag x-note exp", {"x-note": '"exp"'}),
        ("tag x-note exp=", {"x-note": '"exp="'}),
        ("tag x-note shell", {"x-note": '"shell"'}),
        ('tag x-note shell = "x"', {"x-note": '"shell = x"'}),
        ("tag x-note #1", {"x-note": None}),
        ("tag x-note a#1", {"x-note": '"a#1"'}),
    ],
)
def test_tag_takes_pairs_of_header_and_action_or_text(text, actions):
    if None in actions.values():
        (error,) = errors_of(f"to * {text}\n")
        assert error.line == 1
    else:
        assert decide(f"to * {text}\n") == actions


def test_tag_keeps_the_order_of_its_pairs_and_the_last_of_equal_headers():
    (rule,) = parse_filter("to * tag x-b 1 x-a 2 x-b 3 from bare", PATH).rules
    assert [name for name, _ in rule.actions] == ["x-a", "x-b", "from"]
    assert rule.text == 'to * tag x-a "2" x-b "3" from bare'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("TO Bob@X.example dated=5d", "to Bob@X.example tag from dated=5d"),
        ('from "a b" bare', "from a b tag from bare"),
        ('to * tag x-h "two words"', 'to * tag x-h "two words"'),
        ('to * tag x-h sender="a b"', 'to * tag x-h sender="a b"'),
    ],
)
def test_a_rule_is_shown_in_its_tag_form(text, shown):
    (rule,) = parse_filter(text, PATH).rules
    assert rule.text == shown


# Lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", [(1, "a"), (2, "b")]),
        ("a\nb", [(1, "a"), (2, "b")]),
        ("a\n b\n\tc\n", [(1, "a b c")]),
        ("a\n# comment\n b\n", [(1, "a b")]),
        ("a\n   # comment\n b\n", [(1, "a b")]),
        ("a\n\n b\n", [(1, "a"), (3, " b")]),
        ("a\n  \t\n b\n", [(1, "a"), (3, " b")]),
        (" a\n b\nc\n", [(1, " a"), (2, " b"), (3, "c")]),
        ("a # comment\n b # more\n", [(1, "a b")]),
        ("a\t# comment\n", [(1, "a")]),
        ("a#b\n", [(1, "a#b")]),
        ('a "b #c"\n', [(1, 'a "b')]),
        ("\n\n\na\r\n\tb\r\n\r\nc", [(4, "a b"), (7, "c")]),
        ("#\n#\n", []),
        ("a \\\nb", [(1, "a \\"), (2, "b")]),
    ],
)
def test_comments_go_and_indented_lines_continue_a_rule(text, lines):
    assert list(logical_lines(text)) == lines


def test_the_line_of_a_continued_rule_is_its_first():
    (error,) = errors_of("# top\n\nto a@x.example\n  # note\n  bogus\n")
    assert error.line == 3


# Errors


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("to", "'to'"),
        ("to ", "'to'"),
        ("to a@x.example", "'to'"),
        ("to a@x.example bogus", "'bogus'"),
        ("bogus a b", "'bogus'"),
        ("to-b@x.example bare", "'to-b@x.example'"),
        ("bare", "'bare'"),
        ("to a bare extra", "'bare extra'"),
        ('to a "bare"', "'\"bare\"'"),
        ("to a exp=", "'exp='"),
        ("to a exp", "'exp'"),
        ("to a kw", "'kw'"),
        ("to a ext", "'ext'"),
        ("to a dated = 5d", "'dated = 5d'"),
        ("to a dated=", "'dated='"),
        ("to a default=5d", "'default'"),
        ("to a 5d", "'5d'"),
        ("to -optional a bare", "'-optional'"),
        ('to " " bare', "blank"),
        ("to a tag", "'tag'"),
        ("to a tag from", "'from'"),
        ("to a tag X bare", "'X'"),
        ("to a tag From: bare", "'From:'"),
        ("to a tag 2from bare", "'2from'"),
        ("to a tag from bare reply-to", "'reply-to'"),
        ("to a tag from bare=append", "bare=append"),
        ("to a TAG from bare", "'TAG from bare'"),
        ("  to a bare", "indented"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_word(rule, word):
    (error,) = errors_of(f"# first\n\n{rule}\n")
    assert error.line == 3
    assert error.path == PATH
    assert word in error.problem
    assert str(error) == f"{PATH}:3: {error.problem}"


@pytest.mark.parametrize(
    ("rule", "word", "lower"),
    [
        ("to a Bare", "'Bare'", "'bare'"),
        ("to a DATED=5d", "'DATED'", "'dated'"),
        ("to a Sender", "'Sender'", "'sender'"),
        ("to a Kw=x", "'Kw'", "'kw'"),
        ("to a Default", "'Default'", "'default'"),
        ("to a tag from Sender", "'Sender'", "'sender'"),
        ("to a tag from DATED=5d", "'DATED'", "'dated'"),
        ("to a tag from Default", "'Default'", "'default'"),
        ("to a tag envelope Bare", "'Bare'", "'bare'"),
    ],
)
def test_an_action_in_capitals_is_refused_with_its_right_form(rule, word, lower):
    (error,) = errors_of(rule)
    assert word in error.problem
    assert lower in error.problem


@pytest.mark.parametrize(
    "action",
    [
        "drop",
        "exit",
        "Stop",
        "hold",
        "ok",
        "ACCEPT",
        "confirm=x.txt",
        "bounce",
        "reject=no",
        "deliver=~/Mailbox",
        "tag from drop",
        "tag envelope reject",
    ],
)
def test_an_incoming_action_is_refused_as_one(action):
    (error,) = errors_of(f"to a {action}")
    assert "is for incoming mail only" in error.problem


def test_an_unknown_action_is_refused_with_a_list_of_those_there_are():
    (error,) = errors_of("to a dat=5d")
    assert "no action 'dat'" in error.problem
    assert "dated, sender, domain" in error.problem


@pytest.mark.parametrize(
    "source", ["size", "pipe", "pipe-headers", "body", "headers", "body-file", "HEADERS-FILE"]
)
def test_a_source_of_the_incoming_side_is_refused_as_one(source):
    (error,) = errors_of(f"{source} x bare")
    assert f"'{source}' looks at incoming mail only" in error.problem


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("to-file ~/list bare", "'to-file'"),
        ("FROM-file ~/list bare", "'FROM-file'"),
        ("to-cdb ~/list bare", "'to-cdb'"),
        ("from-dbm ~/list bare", "'from-dbm'"),
        ("to-ezmlm ~/list bare", "'to-ezmlm'"),
        ("to-mailman -attr=x ~/list bare", "'to-mailman'"),
        ("to-sql x bare", "'to-sql'"),
        ("include ~/more", "'include'"),
        ("macro me a@x.example", "'macro'"),
        ("to *@${HOSTNAME} bare", "${NAME}"),
        ("to a exp=${USERNAME}@x", "${NAME}"),
        ('to a tag x-note "${NOTE}"', "${NAME}"),
        ("to a bare=Append", "bare=append"),
        ("to a shell=date", "'shell'"),
        ("to a python=1", "'python'"),
        ('to a tag x-date shell="date -u"', "'shell'"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_name(rule, word):
    (error,) = errors_of(rule)
    assert word in error.problem
    assert "not built yet" in error.problem


def test_all_errors_of_a_file_are_reported_at_once_in_order():
    errors = errors_of(
        "to a@x.example bogus\nto b@x.example bare\n\nnonsense\nto c@x.example\n  exp=\n indented\n"
    )
    assert [error.line for error in errors] == [1, 4, 5]
    text = str(errors[0])
    for place in (f"{PATH}:1: ", f"{PATH}:4: ", f"{PATH}:5: "):
        assert place in text
    assert text.index(":1: ") < text.index(":4: ") < text.index(":5: ")


def test_an_error_in_brief_has_no_absolute_path():
    (error,) = errors_of("\nto a bogus")
    assert error.brief("/home/alice/.tmda").startswith("filters/outgoing line 2: ")
    assert error.brief("/elsewhere").startswith("outgoing line 2: ")


@pytest.mark.parametrize("blank", ["\u00a0", "\u2028", "\x1c"])
@pytest.mark.parametrize("text", ["{}\n", "to * bare\n{}\n", "to * tag {}\n"])
def test_a_blank_that_is_none_in_mail_is_an_error_not_a_rule(text, blank):
    (error,) = errors_of(text.format(blank))
    assert error.line == text.count("\n", 0, text.index("{}")) + 1


WORDS = [
    "to",
    "from",
    "To",
    "tag",
    "bare",
    "dated",
    "dated=5d",
    "sender=",
    "exp=a@b",
    "kw",
    "x-note",
    "*",
    "*@=x",
    "[!a",
    "'",
    '"',
    "\\",
    '"two words"',
    "=",
    "#",
    " #",
    "-x",
    "macro",
    "include",
    "${x}",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\n ",
    "\x00",
    "é",
    "\udcff",
]


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(WORDS), max_size=14).map("".join), st.text(max_size=60)))
@example("to\u00a0")
@example("\x1f \x1f\n \x1c")
def test_noise_ends_in_rules_or_in_a_filter_error(text):
    errors, found = [], None
    try:
        found = decide(text)
        lines = [rule.line for rule in parse_filter(text, PATH).rules]
    except FilterError as error:
        errors = [error, *error.others]
        lines = [one.line for one in errors]
    assert found != {}, "a rule without actions"
    assert lines == sorted(set(lines))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)
    assert all(one.path == PATH and one.problem for one in errors)


# Patterns


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


@pytest.mark.parametrize("value", ['"foo"bar', "'foo'bar", '"foo"bar x-b "baz"'])
def test_text_glued_to_a_quoted_value_is_an_error(value):
    (error,) = errors_of(f"to a tag x-a {value}")
    assert "pairs of HEADER and ACTION" in error.problem
