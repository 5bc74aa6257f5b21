"""`tofmipd explain`: the rule that decides, what it makes of the message, and nothing else."""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from test_tmda_vectors import (
    FILTER_DEFECTS,
    FILTERS,
    KEY,
    Errors,
    Home,
    expected_of_filter,
    octets,
    parametrized,
)

from tofmipd import cli
from tofmipd.errors import CONFIG, DATA, PERMISSION, SOFTWARE, UNAVAILABLE, USAGE

USUAL = 'USERNAME = "bobby"\nHOSTNAME = "example.org"\nFULLNAME = "Bobby Brown"\n'
MESSAGE = b"""\
From: Bob <bob@home.example>
To: x@example.net
Date: Thu, 1 Jan 2026 00:00:00 +0100
Message-ID: <given@home.example>
Subject: lunch

Come!
"""


@dataclass(frozen=True)
class Told:
    """What the tool has said, and its exit status."""

    status: int
    text: str
    errors: str

    @property
    def object(self) -> dict[str, Any]:
        return json.loads(self.text)

    def lines(self, label: str) -> list[str]:
        """The lines of the text with that label."""
        pairs = [line.partition(":") for line in self.text.splitlines()]
        return [text.strip() for name, _, text in pairs if name == label]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and an environment that says nothing of whoever runs the tests."""
    for name in set(os.environ) - {"PATH", "TZ"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Home(tmp_path)


@pytest.fixture
def explain(home, monkeypatch, capsys):
    """Runs the tool in this process; ``stdin`` is what it can read there."""

    def explain(*arguments: str, stdin: bytes = b"") -> Told:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.main(["explain", *arguments])
        return Told(status, *capsys.readouterr())

    return explain


@pytest.fixture
def own(home):
    """Writes the usual files, with these lines of configuration and these rules."""

    def own(*settings: str, rules: str = "") -> None:
        home.write("config", (USUAL + "\n".join(settings) + "\n").encode())
        home.write("crypt_key", KEY.encode())
        home.write("filters/outgoing", rules.encode("utf-8", "surrogateescape"))

    own()
    return own


def argument(text: str) -> str:
    """A text of the vectors as an argument of a command line."""
    return octets(text).decode("utf-8", "surrogateescape")


def words(text: str | None) -> list[str]:
    """The order of pairs in a rule is free."""
    return sorted((text or "").split())


# The vectors


@parametrized(FILTERS)
def test_the_rule_is_the_one_that_decided_in_the_original(case, home, explain, monkeypatch):
    home.fill(case)
    for name, value in (case.get("env") or {}).items():
        monkeypatch.setenv(name, value)
    told = explain(
        *("-c", str(home.tmda / "config")),
        *("-O", str(home.tmda / "filters/outgoing")),
        f"--to={argument(case['recipient'])}",
        f"--from={argument(case['sender'])}",
        "--json",
    )
    expected = FILTER_DEFECTS.get(case["id"]) or expected_of_filter(case, home)
    found = told.object
    if expected is None:
        assert (told.status, found["rule"], found["actions"]) == (CONFIG, None, {})
        assert all(error["message"] for error in found["errors"])
        assert found["errors"]
    elif isinstance(expected, Errors):
        assert told.status == CONFIG
        assert [error["line"] for error in found["errors"]] == expected.lines
        assert all(expected.says in error["message"] for error in found["errors"])
        assert not found["copies"]
    else:
        assert found["actions"] == expected.actions
        assert words(found["rule"] and found["rule"]["text"]) == words(expected.line)
        assert_in_its_place(found["rule"])


def assert_in_its_place(rule: dict[str, Any] | None) -> None:
    """The line that is named exists, and is no comment."""
    if rule is not None:
        with open(rule["file"], encoding="utf-8", errors="surrogateescape") as file:
            line = file.read().split("\n")[rule["line"] - 1]
        assert line.strip()
        assert not line.lstrip().startswith("#")


# What is told


def test_all_is_told_in_one_object(own, home, explain, tmp_path):
    own(
        'SENDMAIL_PROGRAM = "/opt/sendmail"',
        rules='to a@* bare\nto *@example.net tag from ext=t x-note "hi  there"\n',
    )
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    told = explain("--to", "x@example.net", "--json", str(message))
    assert (told.status, told.errors) == (0, "")
    assert told.object["rule"] == {
        "file": f"{home.tmda}/filters/outgoing",
        "line": 2,
        "text": 'to *@example.net tag from ext=t x-note "hi  there"',
    }
    assert told.object["actions"] == {"from": ["ext", "t"], "x-note": [None, "hi  there"]}
    assert told.object["next_hop"] == "/opt/sendmail"
    assert told.object["errors"] == []
    (copy,) = told.object["copies"]
    assert copy["envelope_sender"] == "bob-t@home.example"
    assert copy["recipients"] == ["x@example.net"]
    changed = dict(copy["changed_headers"])
    assert set(changed) == {"Received", "X-Delivery-Agent", "From", "X-Note"}
    assert (changed["From"], changed["X-Note"]) == ("Bob <bob-t@home.example>", "hi  there")


def test_the_same_is_told_in_lines_for_a_person(own, home, explain, tmp_path):
    own(
        'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "smart.example:587"',
        'PURGED_HEADERS_CLIENT = ["x-mailer"]\nBARE_APPEND = "~/list"',
        rules="to * tag envelope ext=t\n",
    )
    message = tmp_path / "message"
    message.write_bytes(b"X-Mailer: spy\nBcc: y@z.example\n" + MESSAGE)
    told = explain("--to", "x@example.net", str(message))
    assert told.status == 0
    assert told.lines("to") == ["x@example.net"]
    assert told.lines("rule") == [f"{home.tmda}/filters/outgoing:1: to * tag envelope ext=t"]
    assert told.lines("From") == ["Bob <bob@home.example> (unchanged)"]
    assert told.lines("sender") == ["bob-t@home.example"]
    assert told.lines("remove") == ["X-Mailer", "Bcc"]
    assert {line.partition(":")[0] for line in told.lines("change")} == {
        "Received",
        "X-Delivery-Agent",
    }
    assert told.lines("next hop") == ["smart.example:587 by SMTP"]


@pytest.mark.parametrize(
    ("settings", "rules", "line"),
    [
        ([], "to y@* bare\n", "none matches: ACTION_OUTGOING, dated"),
        (['ACTION_OUTGOING = "ext=d"'], "", "none matches: ACTION_OUTGOING, ext=d"),
    ],
)
def test_no_matching_rule_is_never_silent(settings, rules, line, own, explain):
    own(*settings, rules=rules)
    told = explain("--to", "x@example.net")
    assert (told.status, told.lines("rule")) == (0, [line])
    told = explain("--to", "x@example.net", "--json")
    assert (told.object["rule"], told.object["actions"]) == (None, {})
    assert told.object["action_outgoing"] == line.rpartition(" ")[2]
    assert len(told.object["copies"]) == 1


@pytest.mark.parametrize(
    ("arguments", "sender"),
    [
        # Without a message the sender is the one of the configuration, or the given one.
        ([], "bobby-t@example.org"),
        (["--from", "me@work.example"], "me-t@work.example"),
        (["-"], "bob-t@home.example"),
        (["--from", "me@work.example", "-"], "me-t@work.example"),
        (["--from=Me <me@work.example>"], "me-t@work.example"),
    ],
)
def test_the_sender_is_the_given_one_or_that_of_the_message(arguments, sender, own, explain):
    own(rules="to * ext=t\n")
    told = explain("--to", "x@example.net", "--json", *arguments, stdin=MESSAGE)
    assert told.object["copies"][0]["envelope_sender"] == sender


def test_a_sender_that_is_given_is_the_one_that_from_rules_look_at(own, explain):
    own(rules="from bob@* ext=message\nfrom me@* ext=given\n")
    asked = ["--to", "x@example.net", "--json", "-"]
    assert explain(*asked, stdin=MESSAGE).object["rule"]["line"] == 1
    told = explain("--from", "me@work.example", *asked, stdin=MESSAGE)
    assert told.object["rule"]["line"] == 2
    assert told.object["copies"][0]["envelope_sender"] == "me-given@work.example"


@pytest.mark.parametrize("given", ["me", "Me <me@work.example>", "me@a@b", " ", "<>"])
def test_the_rule_is_that_of_the_address_that_is_tagged(given, own, explain):
    """What is written for --from may be no plain address: rule and copy still agree."""
    own(rules="from me@work.example ext=work\nfrom bobby@example.org ext=home\n")
    (copy,) = explain("--to=x@example.net", "--json", f"--from={given}").object["copies"]
    told = explain("--to=x@example.net", "--json", f"--from={given}")
    actions = told.object["actions"]
    assert actions["from"][1] == copy["envelope_sender"].partition("@")[0].partition("-")[2]


def test_a_resent_message_shows_its_resent_from(own, explain):
    own(rules="to * ext=t\n")
    resent = b"Resent-From: Me <me@work.example>\n" + MESSAGE
    (copy,) = explain("--to", "x@example.net", "--json", "-", stdin=resent).object["copies"]
    assert dict(copy["changed_headers"])["Resent-From"] == "Me <me-t@work.example>"
    assert copy["from"] == "Bob <bob@home.example>"
    told = explain("--to", "x@example.net", "--from", "i@b.example", "--json", "-", stdin=resent)
    (copy,) = told.object["copies"]
    assert dict(copy["changed_headers"])["Resent-From"] == "Bobby Brown <i-t@b.example>"
    assert copy["from"] == "Bob <bob@home.example>"


def test_the_null_sender_is_shown_as_it_is_written(own, explain):
    own(rules="to * tag envelope exp=<>\n")
    assert explain("--to=x@y", "--json").object["copies"][0]["envelope_sender"] == "<>"
    assert explain("--to=x@y").lines("sender") == ["<>"]


@pytest.mark.parametrize(
    ("field", "settings", "override", "sender"),
    [
        (b"X-TMDA: ext=x", [], "X-TMDA: ext=x", "bob-x@home.example"),
        (b"X-TMDA:", [], "X-TMDA: not one word, so ACTION_OUTGOING holds", "bob-o@home.example"),
        (
            b"X-TMDA: a b",
            [],
            "X-TMDA: not one word, so ACTION_OUTGOING holds",
            "bob-o@home.example",
        ),
        (
            b"Subject: x-tmda ext=s y",
            ["X_TMDA_IN_SUBJECT = True"],
            "X-TMDA: ext=s",
            "bob-s@home.example",
        ),
    ],
)
def test_what_the_message_asks_for_is_told(field, settings, override, sender, own, explain):
    own('ACTION_OUTGOING = "ext=o"', *settings, rules="to * ext=t\n")
    told = explain("--to", "x@example.net", "--json", "-", stdin=field + b"\n" + MESSAGE)
    assert told.status == 0
    assert (told.object["override"], told.object["rule"]) == (override, None)
    (copy,) = told.object["copies"]
    assert copy["envelope_sender"] == sender
    told = explain("--to", "x@example.net", "-", stdin=field + b"\n" + MESSAGE)
    assert told.lines("asked") == [override]
    assert not told.lines("rule")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (b"X-TMDA: nonsense", "X-TMDA: there is no action 'nonsense'"),
        (b"X-TMDA: shell=id", "X-TMDA: 'shell' can be used in a filter only"),
        (b"X-TMDA: dated=5q", "X-TMDA: invalid timeout '5q'"),
    ],
)
def test_a_message_that_asks_for_too_much_ends_with_65(field, words, own, explain):
    own(rules="to * ext=t\n")
    told = explain("--to", "x@example.net", "--json", "-", stdin=field + b"\n" + MESSAGE)
    assert told.status == DATA
    (error,) = told.object["errors"]
    assert error["message"].startswith(words)
    assert told.object["copies"] == []


def test_actions_that_stand_in_a_list_are_shown_in_place_of_those_of_the_rule(own, home, explain):
    own(rules="to-file ~/friends ext=rule\n")
    home.write("~/friends", b"a@example.net\nb@example.net ext=list\n")
    for to, action in [("a@example.net", "rule"), ("B@example.net", "list")]:
        told = explain("--to", to, "--json")
        assert told.object["actions"] == {"from": ["ext", action]}
        assert told.object["rule"]["text"] == f"to-file ~/friends tag from ext={action}"


def test_a_command_is_run_with_the_recipient_and_without_the_callers_environment(
    own, explain, monkeypatch
):
    monkeypatch.setenv("SECRET", "do not tell")
    command = 'tag from bare x-it shell="echo $TMDA_RECIPIENT $TMDA_VRECIPIENT $SECRET; pwd; id -u"'
    own(rules=f"to * {command}\n")
    (copy,) = explain("--to", "X@example.net", "--json").object["copies"]
    expected = f"X@example.net X=example.net {os.environ['HOME']} {os.getuid()}"
    assert dict(copy["changed_headers"])["X-It"].split() == expected.split()


# Errors


BROKEN = """\
to a@b.example bare
to oops
size <100 bare
to c@d.example Dated
 =5d
frmo * bare
"""


def test_all_errors_of_a_filter_are_told_with_file_line_and_message(own, home, explain):
    own(rules=BROKEN)
    told = explain("--to", "a@b.example", "--json")
    assert told.status == CONFIG
    path = f"{home.tmda}/filters/outgoing"
    assert [(e["file"], e["line"]) for e in told.object["errors"]] == [
        (path, line) for line in (2, 3, 4, 6)
    ]
    messages = [error["message"] for error in told.object["errors"]]
    for word, message in zip(("'to'", "'size'", "ated", "'from'"), messages, strict=True):
        assert word in message
    assert (told.object["rule"], told.object["copies"]) == (None, [])
    text = explain("--to", "a@b.example")
    assert text.status == CONFIG
    assert text.lines("error") == [
        f"{path}:{line}: {message}" for line, message in zip((2, 3, 4, 6), messages, strict=True)
    ]
    assert not text.lines("rule")


def test_errors_of_included_files_name_these(own, home, explain):
    own(rules="include ~/.tmda/filters/more\nto * bare\n")
    home.write("filters/more", b"\n\nto oops\n")
    (error,) = explain("--to=x@y", "--json").object["errors"]
    assert (error["file"], error["line"]) == (f"{home.tmda}/filters/more", 3)


@pytest.mark.parametrize(
    ("config", "line", "words"),
    [
        (USUAL + "HMAC_BYTES = 'x'\n", 4, "HMAC_BYTES must be"),
        (USUAL + "print 'hello'\n", 4, "written for Python 2"),
        (USUAL + "\nraise ValueError('no')\n", 5, "ValueError: no"),
        (USUAL + "import sys; sys.exit(3)\n", 4, "SystemExit"),
        ("\0", 1, "NUL"),
        (USUAL + "x = (\n", 4, "syntax error"),
        (USUAL + "DATED_TIMEOUT = '5x'\n", 4, "DATED_TIMEOUT: invalid timeout '5x'"),
    ],
)
def test_errors_of_the_configuration_are_told_the_same_way(config, line, words, own, home, explain):
    home.write("config", config.encode())
    told = explain("--to", "a@b.example", "--json")
    assert told.status == CONFIG
    (error,) = told.object["errors"]
    assert (error["file"], error["line"]) == (f"{home.tmda}/config", line)
    assert words in error["message"]
    assert told.object["copies"] == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("to * shell=false", "the command 'false' ended with 1"),
        ("to * python=1", "'python' is not run here"),
        ("to * exp=nonsense\x7f", "control characters"),
        ("to-file ~/missing bare", "there is no file"),
        ("to-sql -addr_column=a 'select a from t where %(criteria)s' bare", "DB_CONNECTION"),
    ],
)
def test_an_action_that_cannot_be_carried_out_is_an_error_of_its_line(rule, words, own, explain):
    own(rules=f"# first\n{rule}\n")
    told = explain("--to", "a@b.example", "--json")
    assert told.status == CONFIG
    (error,) = told.object["errors"]
    assert error["line"] == 2
    assert words in error["message"]


@pytest.mark.parametrize("key", [None, b"", b"abc", b"zz", b"\0" * 40])
def test_a_key_that_is_no_key_is_an_error(key, own, home, explain):
    (home.tmda / "crypt_key").unlink()
    if key is not None:
        home.write("crypt_key", key)
    told = explain("--to", "a@b.example", "--json")
    assert told.status == CONFIG
    (error,) = told.object["errors"]
    assert error["file"] == f"{home.tmda}/crypt_key"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], USAGE),
        (["--to"], USAGE),
        (["--to", "a@b", "--jsn"], USAGE),
        (["--to", "a@b", "one", "two"], USAGE),
    ],
)
def test_wrong_usage_is_one_line(arguments, status, own, explain, capsys):
    with pytest.raises(SystemExit) as caught:
        explain(*arguments)
    assert caught.value.code == status
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"tofmipd explain: [^\n]+\n", said.err)


def test_files_that_are_named_must_be_there(own, home, explain, tmp_path):
    told = explain("--to", "a@b", str(tmp_path / "missing"))
    assert (told.status, told.text) == (UNAVAILABLE, "")
    assert "missing: No such file or directory" in told.errors
    assert explain("--to", "a@b", str(tmp_path)).status == UNAVAILABLE
    told = explain("--to", "a@b", "-c", str(tmp_path / "typo"), "--json")
    assert told.status == CONFIG
    assert told.object["errors"][0]["file"] == str(tmp_path / "typo")


def test_only_root_asks_about_others(own, explain):
    if os.getuid() != 0:
        told = explain("--to", "a@b", "--user", "root")
        assert (told.status, told.text) == (PERMISSION, "")
        assert "only root" in told.errors
    else:
        # Who runs a tool for somebody gives root's rights up first; there is nobody to become.
        for name in ("no-such-user", "root", "", "\0", "../x", "x" * 300, "0"):
            if name:
                told = explain("--to", "a@b", "--user", name)
                assert (told.status, told.text) == (CONFIG, ""), name


# Nothing else happens


def snapshot(directory, spared):
    """Everything below it but what is spared: kind, mode, time of change and content."""
    found = {}
    for path in {directory, *directory.rglob("*")} - spared:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[path] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return found


MADE = "lists/friends.cdb", "lists/friends.db", "lists/friends.last_built"


@pytest.mark.parametrize(
    ("rules", "made"),
    [
        ("to * bare=append\n", ()),
        ("to-file ~/.tmda/lists/friends dated\n", ()),
        ("to * sender\nto oops\n", ()),
        # What these options keep beside a list is brought up to date; nothing else is.
        ("to-file -autocdb ~/.tmda/lists/friends bare=append\n", MADE),
        ("to-file -autodbm ~/.tmda/lists/friends bare=append\n", MADE),
    ],
)
def test_nothing_is_sent_or_changed(rules, made, own, home, explain, tmp_path):
    sent = tmp_path / "sent"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ncat > {sent}\n")
    program.chmod(0o755)
    own(
        f'SENDMAIL_PROGRAM = "{program}"',
        'BARE_APPEND = "~/.tmda/lists/bare"\nLOGFILE_OUTGOING = "~/.tmda/log"',
        rules=rules,
    )
    home.write("lists/friends", b"x@example.net\n")
    home.write("lists/bare", b"old@example.net")
    home.write("log", b"before\n")
    spared = {home.tmda / name for name in made} | ({home.tmda / "lists"} if made else set())
    before = snapshot(tmp_path, spared)
    for arguments in ([], ["--json"], ["-", "--json"]):
        explain("--to", "x@example.net", *arguments, stdin=MESSAGE)
    assert snapshot(tmp_path, spared) == before


def test_lists_that_would_grow_are_named(own, home, explain):
    own('BARE_APPEND = "~/list"', rules="to y@* bare\nto * bare=append\n")
    assert explain("--to=x@example.net", "--json").object["copies"][0]["appends"] is True
    assert explain("--to=y@example.net", "--json").object["copies"][0]["appends"] is False
    (line,) = explain("--to=x@example.net").lines("append")
    assert "x@example.net" in line
    assert not (home.path / "list").exists()


# Hostile text


HOSTILE = [
    b"",
    b"\n",
    b"\r\n",
    b".",
    b"\0",
    b"From",
    b"From:",
    b"From: \0\n\n",
    b"From: " + b"a" * 5000 + b"@b.example\n\n",
    b"From: " + b"a " * 5000 + b"<a@b.example>\n\n",
    b"From: <a@b.example>, " + b"x" * 3000 + b"\n\n",
    b"From: " + b"(" * 20000 + b"\n\n",
    b'From: "' + b"\\" * 9999 + b"\n\n",
    b"From: \xff\xfe <\xff@\xfe.example>\n\n",
    b"From: a@b.example\nMail-Followup-To: " + b"x" * 2000 + b"@y.example\n\n",
    b"From: a@b.example\nTo: " + b"x" * 2000 + b"@y.example\n\n",
    b"From: \x1b[2J\x1b]0;owned\x07 <a@b.example>\n\n",
    b"X-TMDA: \xff\n\n",
    b"X-TMDA: " + b"x" * 5000 + b"\n\n",
    b"X-TMDA: exp=\r\x1b[31m@b.example\n\n",
    b"X-TMDA: kw=" + b"x" * 2000 + b"\n\n",
    b"X-TMDA: dated=99999999999999999999Y\n\n",
    b"Subject: x-tmda\n\n",
    b"Subject: x-tmda \0 \xff\n\n",
    b"Resent-From:\n\n",
    b" continuation\n\tof nothing\nFrom: a@b.example\n\n",
    b"From a@b Thu Jan  1\nFrom: a@b.example\n\n",
    b"x" * (3 << 20),
    b"X: y\n" * 300_000,
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_hostile_message_is_no_bug_and_writes_nothing_but_text(number, form, own, explain):
    own(
        'X_TMDA_IN_SUBJECT = True\nMAIL_FOLLOWUP_TO = ["x@example.net", "y.example"]',
        'FINGERPRINT = ["from", "body"]',
        rules="from a@* tag from ext=t reply-to sender\n",
    )
    told = explain("--to", "x@example.net", *form, "-", stdin=HOSTILE[number])
    assert told.status in (0, DATA), told.errors
    assert told.errors == ""
    assert told.text.replace("\n", "").isprintable()
    assert told.object if form else told.lines("to") == ["x@example.net"]


@pytest.mark.parametrize(
    "word",
    [
        "",
        " ",
        "@",
        "a@b@c",
        "a b@c",
        "\udcff@\udcfe",
        "\x1b[2J@b.example",
        "a@b\nerror: forged",
        "a@b\r\nX: y",
        "-c/etc/passwd",
        "--json",
        "ü@ü.example",
        "x" * 100_000,
        "\u202e@evil.example",
        "<>",
        "<a@b.example>",
        '"a b"@c.example',
    ],
)
@pytest.mark.parametrize("option", ["--to", "--from"])
def test_hostile_addresses_are_only_addresses(option, word, own, explain):
    own(rules="to a@* sender\nfrom a@* ext=t\nto * sender\n")
    other = {"--to": "--from", "--from": "--to"}[option]
    given = [f"{option}={word}", f"{other}=ok@example.net"]
    told = explain(*given)
    assert told.status in (0, DATA, CONFIG)
    assert told.errors == ""
    assert len(told.lines("to")) == 1
    assert "forged" not in told.lines("error")
    assert told.text.replace("\n", "").isprintable()
    told = explain(*given, "--json")
    assert isinstance(told.object["copies"], list)


SEED = 4711
ALPHABET = [*"to from@=*?[]!#\"'\\-_.,;:<>()${}", "\n", "\n ", "\t", "\x00", "\xff", "ü", "\r"]
PIECES = [
    "to ",
    "from ",
    "tag ",
    "macro ",
    "include ",
    "dated",
    "=5d",
    "exp=",
    "${X}",
    "-file ~/x ",
]


def test_noise_for_a_filter_never_ends_in_a_bug(own, explain):
    """Every noise is either rules or errors that name a line of the file."""
    noise = random.Random(SEED)
    for _ in range(150):
        rules = "".join(noise.choices(ALPHABET + PIECES * 3, k=noise.randrange(1, 60)))
        own(rules=rules)
        told = explain("--to", "a@b.example", "--json")
        assert told.status in (0, CONFIG), (rules, told.errors)
        assert (told.status == CONFIG) == bool(told.object["errors"])
        for error in told.object["errors"]:
            assert 1 <= error["line"] <= rules.count("\n") + 1, rules


def test_noise_for_a_message_never_ends_in_a_bug(own, explain):
    own(
        "X_TMDA_IN_SUBJECT = True\nFINGERPRINT = ['to', 'body']\nMAIL_FOLLOWUP_TO = ['a@b']",
        rules="from *@c* tag from dated reply-to kw=x\nto * sender\n",
    )
    noise = random.Random(SEED)
    names = [
        "From:",
        "To:",
        "Resent-From:",
        "X-TMDA:",
        "Subject: x-tmda ",
        "Mail-Followup-To:",
        "a@b",
    ]
    for _ in range(300):
        text = "".join(noise.choices([*ALPHABET, *names * 3, *PIECES], k=noise.randrange(1, 80)))
        stdin = text.encode("latin-1")
        told = explain("--to", "a@b.example", "--json", "-", stdin=stdin)
        assert told.status in (0, DATA), (stdin, told.errors)


def test_no_status_of_these_is_that_of_a_bug():
    assert SOFTWARE not in (0, DATA, CONFIG, USAGE, UNAVAILABLE, PERMISSION)
