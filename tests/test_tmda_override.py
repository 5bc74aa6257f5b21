"""What a message itself asks for: X-TMDA, and its subject."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_tmda_inject import CONFIG_PATH, MESSAGE, names_of, profile_of, send, tag

from tofmipd.tmda import header
from tofmipd.tmda.actions import Action
from tofmipd.tmda.errors import ConfigError, MessageError, UserFileError
from tofmipd.tmda.override import take_override

RULES = "to *@x.example ext=rule\n"
FROM = b"From: Alice <alice@example.com>\r\n"


def take(block, *, in_subject=False):
    """What a header asks for, and the octets of the header without that."""
    override, fields = take_override(header.parse(block + b"\r\n")[0], in_subject=in_subject)
    return override, b"".join(field.octets for field in fields)


def refusal(block, *, in_subject=False):
    with pytest.raises(MessageError) as caught:
        take(block, in_subject=in_subject)
    return caught.value


def with_x_tmda(*values):
    return FROM + b"".join(b"X-TMDA: " + value + b"\r\n" for value in values) + b"\r\n"


def with_subject(value):
    return FROM + b"Subject: " + value + b"\r\nTo: bob@x.example\r\n\r\n"


# The field X-TMDA


@pytest.mark.parametrize(
    ("value", "action", "text"),
    [
        (b" bare", Action("bare"), "X-TMDA: bare"),
        (b"bare", Action("bare"), "X-TMDA: bare"),
        (b"  \t bare \t ", Action("bare"), "X-TMDA: bare"),
        (b"\r\n bare", Action("bare"), "X-TMDA: bare"),
        (b" \r\n\t\r\n bare\r\n ", Action("bare"), "X-TMDA: bare"),
        (b" bare=append", Action("bare", b"append"), "X-TMDA: bare=append"),
        (b" dated", Action("dated"), "X-TMDA: dated"),
        (b" dated=1d", Action("dated", b"1d"), "X-TMDA: dated=1d"),
        (b" sender", Action("sender"), "X-TMDA: sender"),
        (b" sender=a@b=c", Action("sender", b"a@b=c"), "X-TMDA: sender=a@b=c"),
        (b" domain=b.example", Action("domain", b"b.example"), "X-TMDA: domain=b.example"),
        (b" exp=<>", Action("exp", b"<>"), "X-TMDA: exp=<>"),
        (b" as=me@y.example", Action("as", b"me@y.example"), "X-TMDA: as=me@y.example"),
        (b" ext=a=b", Action("ext", b"a=b"), "X-TMDA: ext=a=b"),
        (b" kw=a#b,c", Action("kw", b"a#b,c"), "X-TMDA: kw=a#b,c"),
        (b" kw=\xc3\xa9", Action("kw", b"\xc3\xa9"), "X-TMDA: kw=é"),
        (b" kw=\xe9", Action("kw", b"\xe9"), "X-TMDA: kw=\udce9"),
        (b" default", Action("default"), "X-TMDA: default"),
    ],
)
def test_one_word_is_the_action_for_all_recipients(value, action, text):
    override, rest = take(b"X-TMDA:" + value + b"\r\n" + FROM)
    assert (override.action, override.text) == (action, text)
    assert rest == FROM


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"\t\r\n ",
        b" bare please",
        b" bare\tdated",
        b" bare\r\n dated",
        b" dated = 5d",
        b" dated 5d",
        b" shell=id now",
        b" nonsense and more",
        b" bare\x0bdated",
        b" tag from bare",
    ],
)
def test_no_word_or_several_mean_the_default_action(value):
    override, rest = take(b"X-TMDA:" + value + b"\r\n" + FROM)
    assert (override.action, override.text) == (None, "")
    assert rest == FROM


@pytest.mark.parametrize("name", [b"X-TMDA", b"x-tmda", b"X-tmda", b"X-Tmda ", b"X-TMDA\t"])
def test_the_name_is_known_in_any_case(name):
    override, rest = take(name + b": bare\r\n" + FROM)
    assert override.action == Action("bare")
    assert rest == FROM


@pytest.mark.parametrize("name", [b"X-TMDA-", b"X-TMD", b"X-TMDA-Fingerprint", b"XX-TMDA"])
def test_other_names_ask_for_nothing(name):
    block = name + b": bare\r\n" + FROM
    assert take(block) == (None, block)


@pytest.mark.parametrize(
    ("values", "action"),
    [
        ((b"bare", b"dated"), Action("bare")),
        ((b"dated", b"bare", b"sender"), Action("dated")),
        ((b"not one", b"bare"), None),
        ((b"", b"bare"), None),
        ((b"bare", b"shell=id"), Action("bare")),
        ((b"bare", b"Nonsense"), Action("bare")),
    ],
)
def test_the_first_field_counts_and_all_go(values, action):
    override, rest = take(with_x_tmda(*values)[:-2] + b"To: a@x\r\nx-tmda: last\r\n")
    assert override.action == action
    assert rest == FROM + b"To: a@x\r\n"


def test_what_asks_for_nothing_is_not_touched():
    fields, _ = header.parse(MESSAGE)
    override, rest = take_override(fields, in_subject=True)
    assert override is None
    assert rest == fields


REFUSED = [
    (b"shell=id", "'shell' can be used in a filter only"),
    (b"shell=/bin/true", "'shell' can be used in a filter only"),
    (b"python=1", "'python' can be used in a filter only"),
    (b"Shell=id", "lower case: 'shell'"),
    (b"SHELL=id", "lower case: 'shell'"),
    (b"Python=1", "lower case: 'python'"),
    (b"shell", "'shell' needs an option"),
    (b"Dated", "lower case: 'dated'"),
    (b"BARE", "lower case: 'bare'"),
    (b"Default", "lower case: 'default'"),
    (b"default=bare", "'default' takes no option"),
    (b"nonsense", "there is no action 'nonsense'"),
    (b"nonsense=1", "there is no action 'nonsense'"),
    (b"exp", "'exp' needs an option"),
    (b"kw", "'kw' needs an option"),
    (b"kw=", "'kw=' is not an action"),
    (b"=bare", "'=bare' is not an action"),
    (b"bare;", "'bare;' is not an action"),
    (b'"bare"', "is not an action"),
    (b"bare,dated", "'bare,dated' is not an action"),
    (b"bare\xc2\xa0dated", r"'bare\xa0dated' is not an action"),
    (b"b\xe4re", r"'b\udce4re' is not an action"),
    (b"bare\x00", r"'bare\x00' is not an action"),
    (b"\x1b[31mbare", r"'\x1b[31mbare' is not an action"),
    (b"drop", "for incoming mail only"),
    (b"ok=x", "for incoming mail only"),
    (b"tag", "there is no action 'tag'"),
]


@pytest.mark.parametrize(("word", "says"), REFUSED)
def test_a_word_that_is_no_action_for_a_message_is_refused(word, says):
    error = refusal(b"X-TMDA: " + word + b"\r\n")
    assert error.field == "X-TMDA"
    assert says in error.problem
    assert str(error) == f"X-TMDA: {error.problem}"


@pytest.mark.parametrize(("word", "says"), REFUSED)
def test_the_subject_can_ask_for_no_more_than_the_field(word, says):
    error = refusal(b"Subject: X-TMDA " + word + b" rest\r\n", in_subject=True)
    assert error.field == "Subject"
    assert says in error.problem


@pytest.mark.parametrize(
    "message",
    [
        with_x_tmda(b"shell=touch"),
        with_x_tmda(b"Shell=touch"),
        with_subject(b"X-TMDA shell=touch Hello"),
        with_subject(b"X-TMDA\r\n shell=touch"),
    ],
)
def test_no_message_runs_a_command(message):
    ran = []
    profile = profile_of("to * bare\n", X_TMDA_IN_SUBJECT=True)
    with pytest.raises(MessageError):
        tag(profile, header.parse(message)[0], [b"bob@x"], shell=lambda *words: ran.append(words))
    assert ran == []


# What follows from it


def test_the_filter_is_not_asked():
    """Not even rules that would fail."""
    rules = "to-file /nowhere/at/all bare\nto * dated=5q\n"
    (copy,) = send(rules, [b"bob@x.example", b"eve@y.example"], with_x_tmda(b"ext=mine"))
    assert copy.sender == b"alice-mine@example.com"
    assert {report.rule for report in copy.reports} == {"X-TMDA: ext=mine"}
    assert b"x-tmda" not in names_of(copy)


@pytest.mark.parametrize("value", [b"", b"bare please", b"bare\r\n dated"])
def test_without_one_word_the_default_action_holds_whatever_the_filter_says(value):
    (copy,) = send(RULES, message=with_x_tmda(value), ACTION_OUTGOING="ext=default")
    assert copy.sender == b"alice-default@example.com"
    assert copy.reports[0].rule == "action_outgoing (ext=default)"
    assert b"x-tmda" not in names_of(copy)


def test_default_is_the_default_action_with_its_option():
    (copy,) = send(RULES, message=with_x_tmda(b"default"), ACTION_OUTGOING="ext=chosen")
    assert copy.sender == b"alice-chosen@example.com"
    assert copy.reports[0].rule == "X-TMDA: default"


def test_each_recipient_gets_a_tag_of_its_own():
    first, second = send(RULES, [b"bob@x.example", b"eve@y.example"], with_x_tmda(b"sender"))
    assert first.sender.startswith(b"alice-sender-")
    assert second.sender.startswith(b"alice-sender-")
    assert first.sender != second.sender


def test_appending_can_be_asked_for():
    (copy,) = send(RULES, message=with_x_tmda(b"bare=append"))
    assert copy.reports[0].appends


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (b"dated=5", "invalid timeout '5'"),
        (b"dated=5x", "invalid timeout '5x'"),
        (b"dated=\xd9\xa5d", "invalid timeout '٥d'"),
        (b"dated=-1d", "invalid timeout '-1d'"),
        (b"ext=a\x01b", "control characters"),
        (b'exp=a"b', "no address that mail can be sent from"),
        (b"exp=a<b>c", "no address that mail can be sent from"),
    ],
)
@pytest.mark.parametrize(
    ("field", "message"),
    [("X-TMDA", with_x_tmda), ("Subject", lambda word: with_subject(b"X-TMDA " + word))],
)
def test_what_cannot_be_carried_out_is_the_messages_fault(field, message, word, says):
    with pytest.raises(MessageError, match=rf"\A{field}: ") as caught:
        send(RULES, message=message(word), X_TMDA_IN_SUBJECT=True)
    assert says in str(caught.value)


def test_a_setting_that_is_wrong_is_still_the_configurations_fault():
    with pytest.raises(ConfigError) as caught:
        send(RULES, message=with_x_tmda(b"dated"), DATED_TIMEOUT="5x")
    assert caught.value.path == CONFIG_PATH


# The subject


@pytest.mark.parametrize(
    ("value", "action", "rest"),
    [
        (b" X-TMDA bare Hello", "bare", b"Hello"),
        (b"X-TMDA bare Hello", "bare", b"Hello"),
        (b" x-tmda dated=1d Hello", "dated=1d", b"Hello"),
        (b" X-tMdA kw=shop Hello", "kw=shop", b"Hello"),
        (b"  X-TMDA   bare   Hello   there  ", "bare", b"Hello   there"),
        (b"\tX-TMDA\tbare\tHello\tthere", "bare", b"Hello\tthere"),
        (b" X-TMDA bare", "bare", b""),
        (b" X-TMDA bare  \t", "bare", b""),
        (b"\r\n X-TMDA bare Hello", "bare", b"Hello"),
        (b" X-TMDA\r\n bare\r\n Hello", "bare", b"Hello"),
        (b" X-TMDA bare\r\n \r\n Hello", "bare", b"Hello"),
        (b" X-TMDA bare Hello\r\n\tthere", "bare", b"Hello\r\n\tthere"),
        (b" X-TMDA bare Hello \r\n   there\r\n ", "bare", b"Hello \r\n   there"),
        (
            b" X-TMDA bare =?utf-8?q?J=C3=BCrgen?=\r\n =?utf-8?b?w6k=?=",
            "bare",
            b"=?utf-8?q?J=C3=BCrgen?=\r\n =?utf-8?b?w6k=?=",
        ),
        (b" X-TMDA bare Gr\xc3\xbc\xc3\x9fe \xf0\x9f\x98\x80", "bare", "Grüße 😀".encode()),
        (b" X-TMDA bare Gr\xfc\xdfe", "bare", b"Gr\xfc\xdfe"),
        (b" X-TMDA bare X-TMDA dated x", "bare", b"X-TMDA dated x"),
        (b" X-TMDA bare : a: b", "bare", b": a: b"),
        (b" X-TMDA bare \x0bHello", "bare", b"\x0bHello"),
    ],
)
def test_a_subject_can_ask_and_keeps_the_octets_of_the_rest(value, action, rest):
    override, block = take(b"Subject:" + value + b"\r\nTo: a@x\r\n", in_subject=True)
    assert str(override.action) == action
    assert override.text == f"X-TMDA: {action}"
    assert block == b"To: a@x\r\nSubject: " + rest + b"\r\n"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Hello",
        b"X-TMDA: bare Hello",
        b"X-TMDA:bare Hello",
        b"X-TMDAbare Hello",
        b"X-TMDA=bare Hello",
        b"X-TMDA\x0bbare Hello",
        b"X-TMDA\xc2\xa0bare Hello",
        b"Re: X-TMDA bare Hello",
        b'"X-TMDA" bare Hello',
        b"=?us-ascii?q?X-TMDA?= bare Hello",
        b"XTMDA bare Hello",
    ],
)
def test_a_subject_that_does_not_begin_with_the_word_asks_for_nothing(value):
    block = b"Subject: " + value + b"\r\nTo: a@x\r\n"
    assert take(block, in_subject=True) == (None, block)


@pytest.mark.parametrize("value", [b"X-TMDA", b" x-tmda \t", b"X-TMDA\r\n ", b"\r\n X-TMDA"])
def test_a_subject_without_an_action_is_refused_with_what_to_write(value):
    error = refusal(b"Subject: " + value + b"\r\n", in_subject=True)
    assert str(error) == "Subject: X-TMDA without an action; write X-TMDA ACTION TEXT"


@pytest.mark.parametrize("value", [b"X-TMDA bare Hello", b"X-TMDA", b"X-TMDA shell=id"])
def test_subjects_are_left_alone_unless_the_configuration_says_so(value):
    block = b"Subject: " + value + b"\r\n"
    assert take(block) == (None, block)
    (copy,) = send(RULES, message=with_subject(value))
    assert copy.sender == b"alice-rule@example.com"
    assert b"Subject: " + value + b"\r\n" in copy.header


def test_a_message_without_a_subject_asks_for_nothing():
    assert take(FROM, in_subject=True) == (None, FROM)


@pytest.mark.parametrize("value", [b"ext=field", b"", b"two words"])
def test_the_field_is_stronger_than_the_subject(value):
    subject = b"Subject: X-TMDA  ext=subject  Hello\r\n"
    message = FROM + subject + b"X-TMDA: " + value + b"\r\n\r\n"
    (copy,) = send(RULES, message=message, X_TMDA_IN_SUBJECT=True, ACTION_OUTGOING="ext=default")
    wanted = b"alice-field@example.com" if value == b"ext=field" else b"alice-default@example.com"
    assert copy.sender == wanted
    assert subject in copy.header


def test_the_subject_overrides_the_filter_for_all_recipients():
    recipients = [b"bob@x.example", b"eve@y.example"]
    message = with_subject(b"x-tmda ext=asked Hello")
    (copy,) = send(RULES, recipients, message, X_TMDA_IN_SUBJECT=True)
    assert copy.sender == b"alice-asked@example.com"
    assert copy.recipients == tuple(recipients)
    assert copy.header.count(b"Subject: Hello\r\n") == 1
    assert b"tmda" not in copy.header.lower().replace(b"x-tmda-", b"")


def test_of_several_subjects_the_first_one_counts():
    block = b"Subject: X-TMDA bare one\r\nsubject: two\r\n"
    override, rest = take(block, in_subject=True)
    assert override.action == Action("bare")
    assert rest == b"Subject: one\r\n"
    block = b"Subject: one\r\nSubject: X-TMDA bare two\r\n"
    assert take(block, in_subject=True) == (None, block)


@pytest.mark.parametrize(
    "value",
    [
        b" " * 500_000 + b"x",
        b"X-TMDA" + b" " * 500_000,
        b"X-TMDA bare" + b"\r\n " * 200_000 + b"x",
        b"X-TMDA " + b"a" * 500_000,
        b"X-TMDA bare " + b"a b\t" * 120_000,
    ],
    ids=["blanks", "no action", "folds", "a long word", "words"],
)
def test_a_long_subject_takes_time_in_proportion_to_its_length(value):
    started = time.process_time()
    with contextlib.suppress(MessageError):
        take(b"Subject: " + value + b"\r\n", in_subject=True)
    assert time.process_time() - started < 1


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [b"X-TMDA", b" ", b"\t", b"\r\n ", b"bare", b"dated=", b"1d", b"=", b"shell=id", b"kw="]
        ),
        st.binary(max_size=6).map(lambda octets: octets.translate(None, b"\r\n")),
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(pieces, pieces)
@example(b"\r\n ", b"X-TMDA\r\n ")
@example(b"kw=\xff", b"X-TMDA bare \x00")
def test_whatever_is_asked_a_whole_header_or_a_declared_error_comes_of_it(asked, subject):
    for fields in (
        [b"X-TMDA: " + asked],
        [b"Subject: " + subject],
        [b"X-TMDA: " + asked, b"Subject: " + subject],
    ):
        message = FROM + b"".join(field + b"\r\n" for field in fields) + b"\r\n"
        try:
            (copy,) = send(RULES, message=message, X_TMDA_IN_SUBJECT=True)
        except (MessageError, UserFileError):
            continue
        assert b"x-tmda" not in names_of(copy)
        assert header.parse(copy.header)[1] == len(copy.header)
