"""From the text of a filter to rules: lines, quotes, options, includes, and what is wrong."""

from __future__ import annotations

import pytest
from forking import in_child
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda.errors import FilterError, TagError
from tofmipd.tmda.lines import logical_lines
from tofmipd.tmda.parser import Given, parse_filter
from tofmipd.tmda.sources import INCOMING, KINDS, SOURCES, Question

PATH = "/home/alice/.tmda/filters/outgoing"
ME = b"alice@example.com"


def decide(text, recipient=b"bob@x.example", sender=ME):
    """The actions that a filter finds, as text; None when no rule matches."""
    match = parse_filter(text, PATH).find(recipient, sender)
    return None if match is None else {name: str(action) for name, action in match.actions}


def errors_of(text, given=None):
    with pytest.raises(FilterError) as caught:
        parse_filter(text, PATH, given)
    return [caught.value, *caught.value.others]


def places(errors):
    return [(error.path, error.line) for error in errors]


# Rules


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


FILTER = """\
# friends first
macro mine(name)
\tname@example.com
to bob@x.example\tbare # a friend

to "carol@x.example"
  # she moves a lot
  tag from dated=5d
\tx-note "two words"
from mine(work) sender
to-file -optional ~/lists/friends bare
"""


@pytest.mark.parametrize(
    "text",
    [
        FILTER.replace("\n", "\r\n"),
        FILTER.replace("\n", " \t\r\n"),
        FILTER.replace("\t", " "),
        FILTER.replace("\n  ", "\n \t \t"),
        FILTER.removesuffix("\n"),
        FILTER + "\n\n\r\n  \n",
    ],
    ids=["crlf", "blanks at ends", "blanks for tabs", "deeper", "no last newline", "empty lines"],
)
def test_line_ends_and_indentation_change_nothing(text):
    assert parse_filter(text, PATH).rules == parse_filter(FILTER, PATH).rules


# Sources and their options


@pytest.mark.parametrize(
    ("rule", "question", "shown"),
    [
        ("to-file ~/l bare", Question("file", "/h/l", {}), "to-file ~/l"),
        ("FROM-FILE ~/l bare", Question("file", "/h/l", {}), "from-file ~/l"),
        ("to-file~/l bare", Question("file", "/h/l", {}), "to-file ~/l"),
        (
            "to-file -optional -autocdb ~/l bare",
            Question("file", "/h/l", {"optional": "", "autocdb": ""}),
            "to-file -optional -autocdb ~/l",
        ),
        (
            "to-file -optional -optional l bare",
            Question("file", "l", {"optional": ""}),
            "to-file -optional l",
        ),
        ("to-file -autodbm l bare", Question("file", "l", {"autodbm": ""}), "to-file -autodbm l"),
        ('to-file "~/a list" bare', Question("file", "/h/a list", {}), "to-file ~/a list"),
        ("to-file '-optional' bare", Question("file", "-optional", {}), "to-file -optional"),
        ("to-cdb ~/l.cdb bare", Question("cdb", "/h/l.cdb", {}), "to-cdb /h/l.cdb"),
        ("to-dbm ~/l bare", Question("dbm", "/h/l", {}), "to-dbm /h/l"),
        ("to-ezmlm ~/l bare", Question("ezmlm", "/h/l", {}), "to-ezmlm /h/l/subscribers"),
        (
            "to-mailman -attr=members ~/l bare",
            Question("mailman", "/h/l", {"attr": "members"}),
            "to-mailman -attr=members ~/l",
        ),
        (
            'to-mailman -attr="members" -optional ~/l bare',
            Question("mailman", "/h/l", {"attr": "members", "optional": ""}),
            "to-mailman -attr=members -optional ~/l",
        ),
        (
            "from-sql -wildcards 'select a from ~t' bare",
            Question("sql", "select a from ~t", {"wildcards": ""}),
            "from-sql -wildcards select a from ~t",
        ),
        (
            "to-sql -addr_column=a -action_column='b' \"select 'x'\" bare",
            Question("sql", "select 'x'", {"addr_column": "a", "action_column": "b"}),
            "to-sql -addr_column=a -action_column=b select 'x'",
        ),
    ],
)
def test_a_source_says_what_to_look_up(rule, question, shown):
    given = Given(expand=lambda path: path.replace("~", "/h", 1))
    (parsed,) = parse_filter(rule, PATH, given).rules
    assert parsed.question == question
    assert parsed.text == f"{shown} tag from bare"
    assert parsed.by_sender == rule.lower().startswith("from")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("to-file -bogus l bare", ["'to-file'", "'-bogus'", "-autocdb", "-autodbm", "-optional"]),
        ("to-file -Optional l bare", ["'-Optional'", "-optional"]),
        ("to-file -optional=1 l bare", ["-optional", "no value"]),
        ("to-file -optional= l bare", ["-optional", "no value"]),
        ("to-file -autocdb -autodbm l bare", ["-autocdb and -autodbm"]),
        ("to-file - l bare", ["'-'"]),
        ("to-file -optional", ["'to-file'", "the name of a file"]),
        ("to-file -optional l", ["the action is missing"]),
        ("to-cdb -autocdb l bare", ["'to-cdb'", "'-autocdb'", "-optional"]),
        ("to-mailman ~/l bare", ["'to-mailman'", "-attr=VALUE"]),
        ("to-mailman -attr ~/l bare", ["-attr", "needs a value"]),
        ("to-mailman -attr= ~/l bare", ["-attr", "needs a value"]),
        ('to-mailman -attr="" ~/l bare', ["-attr"]),
        ('to-mailman -attr="members ~/l bare', ["'-attr=\"members'"]),
        ("to-sql 'select a' bare", ["'to-sql'", "-addr_column=NAME", "-wildcards"]),
        ("to-sql -action_column=b 'select a' bare", ["-addr_column=NAME"]),
        ("to-sql -wildcards -addr_column=a 'x' bare", ["-wildcards excludes"]),
        ("to-sql -wildcards -action_column=a 'x' bare", ["-wildcards excludes"]),
        ("to-sql -optional 'x' bare", ["'to-sql'", "'-optional'", "-addr_column"]),
        ("to-sql -wildcards", ["a SELECT statement in quotes"]),
        ("to-sql -wildcards select a from t", ["'a from t'"]),
        ("from -optional a bare", ["'from'", "'-optional'"]),
        ("to-xml l bare", ["'to-xml'"]),
    ],
)
def test_a_wrong_option_is_named_with_those_there_are(rule, words):
    (error,) = errors_of(f"\n{rule}\n")
    assert error.line == 2
    for word in words:
        assert word in error.problem


def test_every_source_can_be_written():
    options = {"mailman": "-attr=a", "sql": "-wildcards"}
    for source in SOURCES:
        kind = source.partition("-")[2]
        (rule,) = parse_filter(f"{source} {options.get(kind, '')} x bare", PATH).rules
        assert (rule.question.kind if rule.question else "") == kind
    assert len(SOURCES) == 2 * len(KINDS) == 14


@pytest.mark.parametrize(
    ("word", "near"),
    [("form", "from"), ("frm-file", "from-file"), ("includ", "include"), ("marco", "macro")],
)
def test_a_word_that_is_nearly_a_source_is_answered_with_that_one(word, near):
    (error,) = errors_of(f"{word}\tx bare")
    assert f"did you mean '{near}'" in error.problem


# Includes


class Shelf:
    """Files by their names; what is read is noted."""

    def __init__(self, texts):
        self.texts = texts
        self.read = []

    def text(self, path):
        self.read.append(path)
        text = self.texts.get(path)
        if isinstance(text, Exception):
            raise text
        return text


def files(texts, **others):
    return Given(read=Shelf(texts).text, **others)


@pytest.mark.parametrize(
    "line",
    ["include more", "INCLUDE more", "include   more  ", "include\tmore\r", "include\n more # x"],
)
def test_an_included_file_stands_in_the_place_of_its_line(line):
    text = f"to a@x.example bare\n{line}\nto * sender\n"
    rules = parse_filter(text, PATH, files({"more": "\nto b@x.example kw=b\n"})).rules
    last = text.count("\n")
    assert [(rule.place.path, rule.place.line) for rule in rules] == [
        (PATH, 1),
        ("more", 2),
        (PATH, last),
    ]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("include ~/a b", "/h/a b"),
        ("include '~/a'", "'~/a'"),
        ("include -optional ~/a", "/h/a"),
        ("include  -optional  ~/a", "/h/a"),
        ("include -optionally", "-optionally"),
        ("include ${DIR}/a", "/v/a"),
        ("include list(a)", "/h/filters/a"),
    ],
)
def test_the_name_of_an_included_file_is_the_rest_of_its_line(line, path):
    def expand(name):
        return name.replace("~", "/h", 1) if name.startswith("~") else name

    surroundings = files({path: "to * bare\n"}, expand=expand, variable={"DIR": "/v"}.__getitem__)
    text = f"macro list(name) ~/filters/name\n{line}\n"
    (rule,) = parse_filter(text, PATH, surroundings).rules
    assert rule.place.path == path


def test_a_file_that_is_missing_is_an_error_unless_it_is_optional():
    nothing = files({})
    (error,) = errors_of("to * bare\ninclude none\n", nothing)
    assert places([error]) == [(PATH, 2)]
    assert "'none'" in error.problem
    assert "-optional" in error.problem
    assert len(parse_filter("include -optional none\nto * bare\n", PATH, nothing).rules) == 1


@pytest.mark.parametrize("option", ["", "-optional "])
def test_a_file_that_cannot_be_read_is_an_error_even_if_it_is_optional(option):
    (error,) = errors_of(f"include {option}f\n", files({"f": TagError("cannot be read: it burns")}))
    assert places([error]) == [(PATH, 1)]
    assert "it burns" in error.problem


@pytest.mark.parametrize(
    "line", ["include", "include   ", "include -optional", "include -optional "]
)
def test_an_include_of_nothing_is_an_error(line):
    (error,) = errors_of(f"{line}\nto * bare\n")
    assert "the name of a file" in error.problem


@pytest.mark.parametrize(
    ("texts", "place"),
    [
        ({}, (PATH, 2)),
        ({"a": f"include {PATH}\n"}, ("a", 1)),
        ({"a": "\ninclude b\n", "b": "\n\ninclude a\n"}, ("b", 3)),
        ({"a": "include b\n", "b": "include c\n", "c": "include -optional b\n"}, ("c", 1)),
    ],
)
def test_a_file_that_includes_itself_ends_all_reading(texts, place):
    first = "a" if texts else PATH
    text = f"to x bare\ninclude {first}\nnonsense\n"
    errors = errors_of(text, files({PATH: text, **texts}))
    assert places(errors) == [place]
    assert "includes itself" in errors[0].problem


def test_a_file_may_be_included_again_when_it_has_been_read():
    texts = files({"m": "macro me alice@example.com\n", "r": "from me bare\n"})
    rules = parse_filter("include m\ninclude m\ninclude r\ninclude r\n", PATH, texts).rules
    assert [rule.shown for rule in rules] == ["from alice@example.com"] * 2


def chain(length):
    """Files that each include the next."""
    texts = {f"f{number}": f"include f{number + 1}\n" for number in range(length)}
    return files(texts | {f"f{length}": "to * bare\n"})


def test_includes_may_be_deep_but_not_without_end():
    assert len(parse_filter("include f0\n", PATH, chain(15)).rules) == 1
    (error,) = errors_of("include f0\n", chain(1000))
    assert error.path.startswith("f")
    assert error.line == 1


def test_an_error_in_an_included_file_names_that_file_and_stops_the_others():
    texts = files({"a": "to x bare\nto y bogus\ninclude b\nto z nonsense\n", "b": "\nto q q\nz\n"})
    errors = errors_of("to v wrong\ninclude a\nto w wrong\n", texts)
    assert places(errors) == [(PATH, 1), ("a", 2), ("b", 2), ("b", 3)]
    for error in errors:
        assert f"{error.path}:{error.line}: " in str(errors[0])


def test_an_error_at_matching_names_the_included_file_too():
    rules = parse_filter("to x bare\ninclude a\n", PATH, files({"a": "\nto-file l bare\n"}))
    with pytest.raises(FilterError) as caught:
        rules.find(b"bob@x.example", ME)
    assert places([caught.value]) == [("a", 2)]


def test_files_that_include_each_other_many_times_are_read_a_limited_number_of_times():
    """Two includes in each of twenty files are a million files."""

    def act():
        texts = {f"f{number}": f"include f{number + 1}\n" * 2 for number in range(19)}
        shelf = Shelf(texts | {"f19": "to * bare\n"})
        with pytest.raises(FilterError):
            parse_filter("include f0\n", PATH, Given(read=shelf.text))
        return len(shelf.read)

    ended = in_child(act)
    assert ended.status == 0, ended.said
    assert int(ended.said) <= 10_000


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


@pytest.mark.parametrize("value", ['"foo"bar', "'foo'bar", '"foo"bar x-b "baz"'])
def test_text_glued_to_a_quoted_value_is_an_error(value):
    (error,) = errors_of(f"to a tag x-a {value}")
    assert "pairs of HEADER and ACTION" in error.problem


def test_all_kinds_of_errors_stand_beside_each_other():
    errors = errors_of(
        "to a@x.example bogus\n"
        "macro 1x y\n"
        "macro ok x.example\n"
        "to *@ok(1) bare\n"
        "to ${NOPE} bare\n"
        "include none\n"
        "\n"
        "  to indented bare\n"
        "to-file -none l bare\n"
        "body x bare\n"
        "to b@x.example bare\n"
    )
    words = ["'bogus'", "'1x'", "'ok'", "NOPE", "'none'", "indented", "'-none'", "'body'"]
    assert [error.line for error in errors] == [1, 2, 4, 5, 6, 8, 9, 10]
    for error, word in zip(errors, words, strict=True):
        assert word in error.problem


@pytest.mark.parametrize("source", sorted(INCOMING))
def test_a_source_for_incoming_mail_is_refused_with_any_options(source):
    (error,) = errors_of(f"{source} -case -optional x bare")
    assert "incoming mail only" in error.problem


@pytest.mark.parametrize(
    "rule", ["to \ud800 bare", "to x ext=\ud800", 'to x tag x-a "\ud800"', 'to x tag from "\ud800"']
)
def test_what_has_no_octets_is_an_error(rule):
    """No file has it, but a variable of a configuration may: ``NAME = "\\ud800"``."""
    (error,) = errors_of(rule)
    assert error.line == 1


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
NOISE = st.one_of(st.lists(st.sampled_from(WORDS), max_size=14).map("".join), st.text(max_size=60))


@settings(max_examples=400, deadline=None)
@given(NOISE)
@example("to\u00a0")
@example("\x1f \x1f\n \x1c")
def test_noise_ends_in_rules_or_in_a_filter_error(text):
    errors, found = [], None
    try:
        found = decide(text)
        lines = [rule.place.line for rule in parse_filter(text, PATH).rules]
    except FilterError as error:
        errors = [error, *error.others]
        lines = [one.line for one in errors]
    assert found != {}, "a rule without actions"
    assert lines == sorted(set(lines))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)
    assert all(one.path == PATH and one.problem for one in errors)


@settings(max_examples=300, deadline=None)
@given(NOISE.filter(lambda text: "\r" not in text))
def test_a_carriage_return_before_each_newline_changes_nothing(text):
    def outcome(text):
        try:
            return [
                (rule.shown, rule.actions, rule.place.line)
                for rule in parse_filter(text, PATH).rules
            ]
        except FilterError as error:
            return [(one.line, one.problem) for one in (error, *error.others)]

    assert outcome(text.replace("\n", "\r\n")) == outcome(text)


LANGUAGE = [
    *("macro ", "macro a ", "macro b(a) ", "macro c(a, b) ", "a", "b(", "c", "(", ")", ", "),
    *("include ", "include -optional ", "f0", "f1", "f2", "none", "${", "}", "${A}", "${B}"),
    *("to ", "from ", "to-file ", "-optional ", "to-sql -wildcards ", "bare", " dated=", "tag "),
    *("x-a ", '"', "'", " ", "\n", "\n ", "\n\n", "#", " #", "\ud800", "\udcff", "\0", "é"),
]
PROGRAMS = st.lists(st.sampled_from(LANGUAGE), max_size=25).map("".join)


@settings(max_examples=500, deadline=None)
@given(st.lists(PROGRAMS, min_size=3, max_size=3), PROGRAMS, PROGRAMS)
def test_noise_in_macros_includes_and_variables_ends_in_a_filter_error(included, variable, text):
    texts = {f"f{number}": one for number, one in enumerate(included)}

    def value(name):
        if name not in "AB":
            raise TagError(f"no {name}")
        return variable

    found = None
    try:
        found = parse_filter(text, PATH, files(texts, variable=value))
    except FilterError as error:
        for one in (error, *error.others):
            assert one.path in (PATH, *texts)
            assert one.line >= 1
            assert one.problem
    assert found is None or all(rule.actions for rule in found.rules)


@pytest.mark.parametrize(
    "text",
    [
        'to-file -a="' + '\\"' * 100_000,
        'to * tag x-a "' + '\\"' * 100_000,
        'to "' + '\\"' * 100_000,
        "to * tag " + "x-a b " * 20_000,
        "to-file " + "-optional " * 20_000 + "l bare",
        "to-file -" + "a-" * 100_000,
        "q" * 1_000_000,
        "to a\n" + " b\n" * 100_000,
        "to a b\n" * 20_000,
        "(" * 100_000,
        "\n" * 1_000_000,
        "include " + "x" * 1_000_000,
        "to * tag " + "'" * 100_000,
        "to * dated" + " =" * 100_000,
    ],
    ids=range(14),
)
def test_a_huge_rule_takes_a_limited_time(text):
    def act():
        try:
            parse_filter(text, PATH)
        except FilterError as error:
            return f"{error.line > 0}"
        return "True"

    assert in_child(act) == (0, "True\n")


def test_a_filter_of_many_rules_is_parsed_and_asked_in_a_limited_time():
    text = "".join(
        f"to a{number}@x.example bare\nto *@=y{number} dated\n" for number in range(5000)
    )

    def act():
        rules = parse_filter(text, PATH)
        return rules.find(b"q@z.y4999", ME).rule.place.line

    assert in_child(act) == (0, "10000\n")
