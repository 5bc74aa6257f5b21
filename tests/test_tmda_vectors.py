"""What the original program did with the same input (tests/vectors/README.md).

A case that stands in no table below must come out exactly as recorded.  DEFECTS names the cases
where we do the sensible thing instead, and what that is.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tofmipd.dates import rfc5322_date
from tofmipd.privsep.errands import Errands
from tofmipd.programs import PATH
from tofmipd.tmda import cookies, header, inject, outlog
from tofmipd.tmda.config import SourceFile, Surroundings, build
from tofmipd.tmda.cookies import Check, Kind
from tofmipd.tmda.errors import (
    FilterError,
    KeyFileError,
    MessageError,
    TagError,
    UserFileError,
)
from tofmipd.tmda.files import Files
from tofmipd.tmda.filter import Filter
from tofmipd.tmda.profile import tag_settings
from tofmipd.tmda.userfiles import UserFiles, read_key

VECTORS = Path(__file__).parent / "vectors"
KEY = "00112233445566778899aabbccddeeff01234567"


def load(name):
    return json.loads((VECTORS / name).read_text())


def octets(text):
    """A text of the vectors as the octets it stands for."""
    if text.startswith("base64:"):
        return base64.b64decode(text.removeprefix("base64:"))
    return text.encode()


def parametrized(cases):
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in cases])


class Home:
    """The files of one user, laid out as a case has them."""

    def __init__(self, path, host_name="host.example"):
        self.path = path
        self.tmda = path / ".tmda"
        (self.tmda / "filters").mkdir(parents=True)
        self.host_name = host_name

    def write(self, name, content, mode=0o600):
        path = Path(name.replace("~", str(self.path), 1)) if name[0] == "~" else self.tmda / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    def fill(self, case):
        """Write the files of a case of filters.json or inject.json."""
        self.write("config", self.text(case.get("config") or "").encode())
        key, mode = case.get("crypt_key", KEY), int(case.get("crypt_key_mode") or "600", 8)
        if key is not None:
            self.write("crypt_key", key.encode(), mode)
        if case["filter"] is not None:
            self.write("filters/outgoing", octets(self.text(case["filter"])))
        for name, content in (case.get("files") or {}).items():
            self.write(name, octets(self.text(content)))
        for name, content in (case.get("files_b64") or {}).items():
            self.write(name, base64.b64decode(content))

    def text(self, text):
        return text.replace("@HOME@", str(self.path))

    def profile(self, environment):
        around = Surroundings(
            str(self.path), "login", "A Name", self.host_name, environment, environment
        )
        return UserFiles(str(self.tmda / "config"), around).profile()


# Addresses

# Made by the stand-alone address tool: test_commands_address.py runs these.
TOOL_OPS = frozenset({"tool_dated", "tool_keyword", "tool_sender"})

CHECKS = {
    "VALID DatedAddress": (Check.VALID, Kind.DATED),
    "VALID SenderAddress": (Check.VALID, Kind.SENDER),
    "VALID KeywordAddress": (Check.VALID, Kind.KEYWORD),
    "ExpiredAddressError": (Check.EXPIRED, Kind.DATED),
    "BadCryptoError": (Check.BAD, None),
}


def seconds(tags, now, timeout):
    return cookies.seconds(timeout.decode())


def dated_cookie(tags, now, timeout):
    return cookies.dated_cookie(tags, timeout.decode(), now)


def dated(tags, now, address, timeout):
    return cookies.dated_address(tags, address, timeout.decode(), now)


def fingerprint(tags, now, *values):
    return cookies.fingerprint(tags, values)


def timeless(function):
    return lambda tags, now, *arguments: function(tags, *arguments)


OPS = {
    "dated": dated,
    "sender": timeless(cookies.sender_address),
    "domain": timeless(cookies.domain_address),
    "keyword": timeless(cookies.keyword_address),
    "dated_cookie": dated_cookie,
    "sender_cookie": timeless(cookies.sender_cookie),
    "keyword_cookie": timeless(cookies.keyword_cookie),
    "confirm": timeless(cookies.confirm_address),
    "seconds": seconds,
    "fingerprint": fingerprint,
}
ADDRESSES = load("addresses.json")


def tags_of(case, directory):
    """The settings of a case, by way of the real readers of key file and configuration."""
    path = directory / "crypt_key"
    path.write_text(case["crypt_key"])
    path.chmod(0o600)
    # An empty key is refused as a file; that the arithmetic holds is tested all the same.
    key = read_key(str(path)) if case["crypt_key"] else b""
    names = {"USERNAME": "login", **(case.get("config") or {})}
    around = Surroundings(str(directory), "login", "A Name", "host.example")
    return tag_settings(build(names, around, SourceFile("config", b"")), key)


def test_no_case_of_the_addresses_is_left_out():
    assert len(ADDRESSES) == 169
    assert {case["op"] for case in ADDRESSES} == {*OPS, "check", *TOOL_OPS}


@parametrized([c for c in ADDRESSES if c["op"] in OPS])
def test_an_address_is_made_as_the_original_made_it(case, tmp_path):
    expected = case["expect"].get("result")
    arguments = [octets(argument) for argument in case["args"]]
    other = (case.get("config") or {}).get("CONFIRM_ADDRESS")
    if other is not None:
        arguments[0] = octets(other)
    if expected is None:
        with pytest.raises((TagError, KeyFileError)):
            OPS[case["op"]](tags_of(case, tmp_path), case.get("time"), *arguments)
        return
    made = OPS[case["op"]](tags_of(case, tmp_path), case.get("time"), *arguments)
    assert made == (expected if isinstance(expected, int) else octets(expected))


@parametrized([c for c in ADDRESSES if c["op"] == "check"])
def test_an_address_is_checked_as_the_original_checked_it(case, tmp_path):
    address, correspondent = [octets(argument) for argument in (*case["args"], "")][:2]
    expect = case["expect"]
    verdict, kind = CHECKS[expect.get("result") or expect["error"]]
    found = cookies.check_address(
        tags_of(case, tmp_path), address, correspondent, case.get("time") or 0
    )
    assert found == (verdict, kind or found[1])
    assert found[1] is not None


# Filters

FILTERS = load("filters.json")


@dataclass(frozen=True)
class Errors:
    """The filter is refused: the lines with an error, and what the message says of each."""

    lines: list[int]
    says: str = ""


@dataclass(frozen=True)
class Found:
    """The rule that decides, as text, and its actions; no rule when both are empty."""

    line: str | None = None
    actions: dict[str, list[str | None]] = field(default_factory=dict)


# What we do where the original was wrong: reference, section 7, items 14, 15 and 17.
_INCOMING_ACTIONS = Errors([1, 2, 3, 4, 5], "for incoming mail only")
FILTER_DEFECTS = {
    "filt-s-037": Errors([1], "must be written in lower case"),
    "filt-s-077": Found(
        'to a@x.example tag x-note "sender notes"', {"x-note": [None, "sender notes"]}
    ),
    "filt-s-079": Found('to c@x.example tag x-note "barely"', {"x-note": [None, "barely"]}),
    "filt-s-080": Found('to d@x.example tag x-note "defaulting"', {"x-note": [None, "defaulting"]}),
    "filt-s-094": _INCOMING_ACTIONS,
    "filt-s-095": _INCOMING_ACTIONS,
    "filt-s-096": _INCOMING_ACTIONS,
    "filt-s-097": _INCOMING_ACTIONS,
    "filt-s-098": _INCOMING_ACTIONS,
    # No key leaks from one rule into the next (item 16).
    "filt-s-117": Found(),
    "filt-s-134": Errors([1, 2, 3, 4, 5], "looks at incoming mail only"),
    "filt-s-135": Errors([1], "looks at incoming mail only"),
    "filt-s-136": Errors([1, 2], "looks at incoming mail only"),
    # The line of the include itself, not the one after it.
    "filt-s-153": Errors([1], "includes itself"),
    "filt-s-160": Found("to * tag from bare", {"from": ["bare", None]}),
}


def expected_of_filter(case, home):
    """What the original did; None stands for any error that has no place in the filter."""
    expect = case["expect"]
    if "errors" in expect:
        return Errors([line for line, _ in expect["errors"]])
    if "error" in expect:
        return None
    line = expect["matched_line"]
    return Found(line and home.text(line), expect["actions"])


def shown(action):
    """An action as the vectors have it."""
    option = None if action.option is None else action.option.decode()
    return [action.name or None, option]


def ask(case, home):
    """What we do: a Found, or the error."""
    home.fill(case)
    try:
        profile = home.profile(case.get("env") or {})
        match = profile.filter.find(
            octets(case["recipient"]), octets(case["sender"]), profile.library.reading()
        )
    except UserFileError as error:
        return error
    if match is None:
        return Found()
    return Found(match.text, {name: shown(action) for name, action in match.actions})


def each(error):
    return [error, *getattr(error, "others", ())]


def agrees(found, expected):
    """Does what we do agree with a recorded outcome?  The order of pairs in a line is free."""
    if isinstance(found, UserFileError):
        if expected is None:
            return True
        lines = [one.line for one in each(found)]
        return isinstance(expected, Errors) and lines == expected.lines
    if not isinstance(expected, Found) or found.actions != expected.actions:
        return False
    return sorted((found.line or "").split()) == sorted((expected.line or "").split())


def test_every_case_of_the_filters_is_there():
    known = {case["id"] for case in FILTERS}
    assert len(FILTERS) == len(known) == 166
    assert FILTER_DEFECTS.keys() <= known


@parametrized([c for c in FILTERS if c["id"] not in FILTER_DEFECTS])
def test_a_filter_decides_as_in_the_original(case, tmp_path):
    home = Home(tmp_path)
    found = ask(case, home)
    assert agrees(found, expected_of_filter(case, home)), f"{found} instead of {case['expect']}"


@parametrized([c for c in FILTERS if c["id"] in FILTER_DEFECTS])
def test_a_filter_decides_sensibly_where_the_original_did_not(case, tmp_path):
    home = Home(tmp_path)
    found, wanted = ask(case, home), FILTER_DEFECTS[case["id"]]
    assert agrees(found, wanted), f"{found} instead of {wanted}"
    if isinstance(wanted, Errors):
        assert isinstance(found, FilterError)
        assert all(wanted.says in one.problem for one in each(found))
    else:
        assert not agrees(found, expected_of_filter(case, home))


# Whole messages

INJECT = load("inject.json")


@dataclass(frozen=True)
class Copy:
    """One hand-over; headers as the vectors compare them."""

    sender: bytes
    recipient: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def get(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True)
class Outcome:
    copies: list[Copy]
    log: str


@pytest.fixture
def set_zone(monkeypatch):
    """Sets the time zone of the process until the test is over."""

    def change(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


def comparable(name, value):
    """White space shortened; the value of X-Delivery-Agent names the program."""
    if name.lower() == b"x-delivery-agent":
        return name, b"*"
    return name, re.sub(rb"\s+", b" ", value).strip()


def null_as_empty(sender):
    return b"" if sender == b"<>" else sender


def recorded_copies(case):
    return [
        Copy(
            null_as_empty(octets(copy["envelope_sender"])),
            octets(copy["envelope_recipient"]),
            tuple(comparable(octets(n), octets(v)) for n, v in copy["semantic"]["headers"]),
            base64.b64decode(copy["semantic"]["body_b64"]),
        )
        for copy in case["expect"]["copies"]
    ]


def stamp_of(case):
    """The surroundings of a case as what a message is stamped with."""
    environment, host = case["env"], case["fqdn"]
    date = rfc5322_date(case["time"])
    received = environment.get("TMDA_OFMIPD_RECEIVED")
    if received is None:
        received = f"by {host} (tmda-sendmail, from uid {case['uid']}); {date}"
    tag = environment.get("TMDAIDTAG") or "TMDA"
    id_host = environment.get("TMDAIDHOST") or host
    message_id = f"<{int(case['time'])}.{case['pid']}.{tag}@{id_host}>"
    return inject.Stamp(
        case["time"], date.encode(), received.encode(), message_id.encode(), b"agent"
    )


def send(case, home):
    """What we make of a submitted message: an Outcome, or the error."""
    home.fill(case)
    original = base64.b64decode(case["message_b64"])
    wire = original.replace(b"\n", b"\r\n")
    fields, start = header.parse(wire)
    body = wire[start:].replace(b"\r\n", b"\n")
    recipients = [octets(recipient) for recipient in case["recipients"]]
    recipients = recipients or inject.header_recipients(fields)
    message = inject.Message(fields, recipients, lambda: [body[:3], body[3:]])
    files = Files(str(home.path))
    errands = Errands(files, str(home.path), 30)
    stamp = stamp_of(case)
    try:
        profile = home.profile(case["env"])
        outside = inject.Outside(profile.library.reading(), errands.shell(lambda: {"PATH": PATH}))
        tagged = inject.tag_message(profile, message, stamp, outside)
        errands.append_recipients(tagged, profile)
    except (UserFileError, MessageError) as error:
        return error
    log = home.tmda / "logs/outgoing"
    if profile.config.logfile_outgoing:
        log.parent.mkdir()
        size = outlog.submitted_size(fields, len(body))
        errands.write_log(tagged, recipients, profile.config, stamp.date, size)
    copies = [
        Copy(copy.sender, recipient, headers_of(copy), body)
        for recipient in recipients
        for copy in tagged
        if recipient in copy.recipients
    ]
    return Outcome(copies, log.read_text() if log.exists() else "")


def headers_of(copy):
    parsed, end = header.parse(copy.header)
    assert end == len(copy.header), "the header block must end at its empty line"
    for line in copy.header.split(b"\r\n"):
        assert len(line) <= 998
    return tuple(
        comparable(octets.partition(b":")[0].rstrip(), value)
        for octets, value in ((one.octets, one.value) for one in parsed)
    )


def lines(log):
    """The lines of a log; the order of pairs in a rule is free, and so are the blanks."""
    return [
        sorted(re.split(r"[ ]+|(?=\(\d+\)$)", line)) if line.startswith("Actn:") else line
        for line in log.split("\n")
    ]


def as_recorded(found, case):
    """Do the copies, whatever their order, agree with the recorded ones?"""
    if isinstance(found, UserFileError | MessageError):
        return "error" in case["expect"] and not case["expect"]["copies"]
    return "error" not in case["expect"] and found.copies == recorded_copies(case)


def changed(copy, name, value, sender=None):
    """The copy with another value of one field, in its place."""
    headers = tuple((n, value if n.lower() == name.lower() else v) for n, v in copy.headers)
    return Copy(copy.sender if sender is None else sender, copy.recipient, headers, copy.body)


def keeps_the_second_author(found, recorded):
    value = b"Alice <alice-dated-1234654290.077fd5@example.com>, Bob <bob@example.com>"
    assert found.copies == [changed(recorded[0], b"From", value)]


def leaves_an_encoded_word_unquoted(found, recorded):
    value = b"=?iso-8859-1?Q?J=FCrgen_M.?= <alice@example.com>"
    assert found.copies == [changed(recorded[0], b"From", value)]


def never_shows_bcc(found, recorded):
    assert [copy.get(b"bcc") for copy in recorded] == [[b"secret@x.example"]] * 2
    assert found.copies == [
        Copy(
            copy.sender,
            copy.recipient,
            tuple((n, v) for n, v in copy.headers if n.lower() != b"bcc"),
            copy.body,
        )
        for copy in recorded
    ]


def starts_each_copy_from_the_submitted_header(found, recorded):
    first, second = found.copies
    assert first == recorded[0]
    assert second.get(b"reply-to") == [b"keep@example.com"]
    others = tuple(pair for pair in second.headers if pair[0].lower() != b"reply-to")
    assert others == recorded[1].headers


def keeps_literal_text(found, recorded):
    copy = changed(recorded[0], b"X-A", b"sender notes")
    assert found.copies == [changed(copy, b"X-C", b"defaults")]


def refuses_upper_case_actions(found, recorded):
    assert isinstance(found, FilterError)
    assert [error.line for error in each(found)] == [1, 2]
    assert "lower case: 'dated'" in str(found)
    assert "lower case: 'sender'" in str(found)


def refuses_incoming_actions(found, recorded):
    assert isinstance(found, FilterError)
    assert found.line == 1
    assert "'drop' is for incoming mail only" in str(found)


def takes_the_option_of_the_default_action(found, recorded):
    address = b"alice-dated-1234654290.077fd5@example.com"
    value = b"Alice Liddell <" + address + b">"
    assert found.copies == [changed(recorded[0], b"From", value, sender=address)]


def makes_all_copies_before_any_is_handed_over(found, recorded):
    assert found.copies[:2] == recorded
    assert [copy.recipient for copy in found.copies][2:] == [b"c@x.example"]


def takes_a_recipient_for_nothing_else(found, recorded):
    assert [copy.recipient for copy in found.copies] == [
        b"-O/nonexistent/filter",
        b"a@x.example",
    ]
    assert {copy.sender for copy in found.copies} == {b"alice@example.com"}


def gives_a_bare_body_a_header(found, recorded):
    (copy,) = found.copies
    assert [name for name, _ in copy.headers] == [
        b"Received",
        b"Date",
        b"Message-ID",
        b"X-Delivery-Agent",
        b"From",
    ]
    assert copy.get(b"from") == [b"Alice Liddell <alice@example.com>"]
    assert copy.body == b"just a body\n"


def refuses_an_unknown_word_in_x_tmda(found, recorded):
    assert isinstance(found, MessageError)
    assert str(found).startswith("X-TMDA: there is no action 'nonsense'")


def refuses_capitals_in_x_tmda(found, recorded):
    assert isinstance(found, MessageError)
    assert "must be written in lower case: 'dated'" in str(found)


def tags_mail_followup_to_anew_for_each_recipient(found, recorded):
    tagged = b"l@lists.example, alice-keyword-k.a92df3@example.com"
    assert found.copies == [recorded[0], changed(recorded[1], b"Mail-Followup-To", tagged)]


def drops_a_forged_fingerprint(found, recorded):
    (copy,) = recorded
    others = tuple(pair for pair in copy.headers if pair[0] != b"X-TMDA-Fingerprint")
    assert found.copies == [Copy(copy.sender, copy.recipient, others, copy.body)]


def sends_nothing_when_a_command_fails(found, recorded):
    assert isinstance(found, FilterError)
    assert (found.line, found.problem) == (1, "the command 'false' ended with 1")


# What we do where the original was wrong: reference, section 7, items 2, 7, 8, 10, 11, 13-17, 20.
INJECT_DEFECTS = {
    "inj-s-006": keeps_the_second_author,
    "inj-s-010": leaves_an_encoded_word_unquoted,
    "inj-s-023": never_shows_bcc,
    "inj-s-033": refuses_an_unknown_word_in_x_tmda,
    "inj-s-035": refuses_capitals_in_x_tmda,
    "inj-s-048": tags_mail_followup_to_anew_for_each_recipient,
    "inj-s-055": drops_a_forged_fingerprint,
    "inj-s-059": starts_each_copy_from_the_submitted_header,
    "inj-s-062": keeps_literal_text,
    "inj-s-068": sends_nothing_when_a_command_fails,
    "inj-s-069": refuses_upper_case_actions,
    "inj-s-070": refuses_incoming_actions,
    "inj-s-072": takes_the_option_of_the_default_action,
    "inj-s-084": makes_all_copies_before_any_is_handed_over,
    "inj-s-085": takes_a_recipient_for_nothing_else,
    "inj-s-089": gives_a_bare_body_a_header,
}


def test_every_case_of_the_messages_is_there():
    known = {case["id"] for case in INJECT}
    assert len(INJECT) == len(known) == 91
    assert INJECT_DEFECTS.keys() <= known


@parametrized([c for c in INJECT if c["id"] not in INJECT_DEFECTS])
def test_a_message_leaves_as_in_the_original(case, tmp_path, set_zone):
    set_zone(case["tz"])
    home = Home(tmp_path, case["fqdn"])
    found = send(case, home)
    if isinstance(found, UserFileError | MessageError):
        assert as_recorded(found, case), found
        return
    assert "error" not in case["expect"]
    assert found.copies == recorded_copies(case)
    assert lines(found.log) == lines(case["expect"].get("log") or "")
    for name, text in (case["expect"].get("files_after") or {}).items():
        path = tmp_path / name.removeprefix("~/")
        assert path.read_text() == text


@parametrized([c for c in INJECT if c["id"] in INJECT_DEFECTS])
def test_a_message_leaves_sensibly_where_the_original_was_wrong(case, tmp_path, set_zone):
    set_zone(case["tz"])
    found = send(case, Home(tmp_path, case["fqdn"]))
    assert not as_recorded(found, case)
    INJECT_DEFECTS[case["id"]](found, recorded_copies(case))


def test_a_missing_filter_is_an_empty_one(tmp_path):
    home = Home(tmp_path)
    home.fill({"filter": None})
    assert home.profile({}).filter == Filter(str(home.tmda / "filters/outgoing"))
    assert not os.path.exists(home.tmda / "filters/outgoing")
