"""What the original did with the same messages and filters, asked of the installed program.

The clock runs: what depends on it is verified, then put back to the time of the case.  The cases
that stand in the tables of tests/test_tmda_vectors.py are the exceptions here, too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import forge
import pytest
from fakes import FakeNextHop, server_context
from running import HOST, LIMIT_SECONDS, Home, environment, host_name
from test_tmda_vectors import (
    FILTER_DEFECTS,
    FILTERS,
    INJECT,
    INJECT_DEFECTS,
    Copy,
    Errors,
    Outcome,
    comparable,
    expected_of_filter,
    lines,
    null_as_empty,
    octets,
    parametrized,
    recorded_copies,
)
from test_tmda_vectors import Home as Files

from tofmipd.tmda.errors import ConfigError, FilterError, KeyFileError, MessageError

THREADS = 3
DAY = 86400


@dataclass(frozen=True)
class Ended:
    """A run of the program: when it was, and what came of it."""

    status: int
    out: str
    err: str
    pid: int
    since: float
    until: float

    def covers(self, moment: float) -> bool:
        return int(self.since) <= moment <= self.until


def tofmipd(
    *arguments: str | bytes, home: Path, variables: dict[str, str], message: bytes
) -> Ended:
    """Run it to its end with this on its standard input."""
    since = time.time()
    given = environment(Home(home)) | variables
    assert forge.can_run(given)
    ended = forge.run(arguments, given, message=message, limit_seconds=LIMIT_SECONDS)
    text = (octets.decode(errors="surrogateescape") for octets in (ended.out, ended.err))
    return Ended(ended.status, *text, ended.pid, since, time.time())


# Messages


_RECORDER = """\
#!/bin/sh
# Stores arguments and standard input of each run; ends with 75 in the run number "fail_at".
cd "{directory}" || exit 70
number=1
until mkdir "$number" 2>/dev/null; do number=$((number + 1)); done
for word; do printf '%s\\0' "$word"; done > "$number/arguments"
cat > "$number/message"
test "$number" != "{fail_at}" || exit 75
"""


@dataclass
class Run:
    """One case from outside: the home it has, the end of the program, what was handed over."""

    case: dict
    files: Files
    ended: Ended
    handed_over: list[tuple[bytes, tuple[bytes, ...], bytes]]
    before: dict[Path, bytes] = field(default_factory=dict)

    def fresh(self) -> set[Path]:
        """The files below the home that are new or changed."""
        after = contents(self.files.path)
        return {path for path, octets in after.items() if self.before.get(path) != octets}


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def run_case(case: dict, directory: Path) -> Run:
    """Let the installed program inject the message of a case."""
    outside = directory / "outside"
    home = directory / "home"
    for path in (outside / "runs", home):
        path.mkdir(parents=True)
    files = Files(home)
    recorder = outside / "sendmail"
    fail_at = case.get("fail_at") or 0
    recorder.write_text(_RECORDER.format(directory=outside / "runs", fail_at=fail_at))
    recorder.chmod(0o755)
    config = case["config"].replace('"/usr/sbin/sendmail"', f'"{recorder}"')
    assert str(recorder) in config
    if 'MAIL_TRANSPORT = "smtp"' in config:
        with next_hop(case, outside) as hop:
            config = re.sub("SMTPHOST = .*\n", "", config)
            config += f'\nSMTPHOST = "{HOST}:{hop.port}"\n'
            return inject(case | {"config": config}, files, lambda: taken(hop))
    return inject(case | {"config": config}, files, lambda: recorded(outside / "runs"))


def next_hop(case: dict, directory: Path) -> FakeNextHop:
    """One that wants what the case's configuration has: a login, or TLS."""
    login = ("u", "p") if "SMTPAUTH" in case["config"] else None
    tls = server_context(directory)[0] if "SMTPSSL" in case["config"] else None
    return FakeNextHop(login=login, tls=tls)


def inject(case, files, handed_over) -> Run:
    files.fill(case)
    for path in [files.path, *files.path.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
    (files.tmda / "logs").mkdir(exist_ok=True)
    before = contents(files.path)
    ended = tofmipd(
        "inject",
        *case.get("options", ()),
        "--",
        *map(octets, case["recipients"]),
        home=files.path,
        variables={"TZ": case["tz"], "TMDAIDHOST": case["fqdn"]} | case["env"],
        message=base64.b64decode(case["message_b64"]),
    )
    return Run(case, files, ended, handed_over(), before)


def recorded(directory: Path) -> list[tuple[bytes, tuple[bytes, ...], bytes]]:
    """What the stand-in for sendmail got, in order."""
    found = []
    for run in sorted(directory.iterdir(), key=lambda path: int(path.name)):
        words = (run / "arguments").read_bytes().split(b"\0")[:-1]
        assert words[:2] + words[3:4] == [b"-i", b"-f", b"--"]
        found.append((words[2], tuple(words[4:]), (run / "message").read_bytes()))
    return found


def taken(hop: FakeNextHop) -> list[tuple[bytes, tuple[bytes, ...], bytes]]:
    assert not hop.violations
    if hop.tls is not None:
        assert "STARTTLS" in hop.commands
    return [
        (
            message.sender.encode("latin-1"),
            tuple(recipient.encode("latin-1") for recipient in message.recipients),
            message.text.replace(b"\r\n", b"\n"),
        )
        for message in hop.messages
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All cases, run side by side, each in a home of its own."""
    base = tmp_path_factory.mktemp("inject")
    with ThreadPoolExecutor(THREADS) as pool:
        done = pool.map(lambda case: run_case(case, base / case["id"]), INJECT)
        yield {run.case["id"]: run for run in done}


class Then:
    """Puts what depends on the clock back to the time of the case, once it has been verified."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._case = run.case
        self._zone = ZoneInfo(run.case["tz"])
        # Some filters of the vectors have keys that are none: nothing is sent then.
        self._key = bytes.fromhex((run.case["crypt_key"] or "").strip())

    @property
    def date(self) -> str:
        return format_datetime(datetime.fromtimestamp(self._case["time"], self._zone))

    def _is_now(self, text: str) -> bool:
        """Is that the date of the run, as the zone of the case has it?"""
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return False
        if not self._run.ended.covers(date.timestamp()):
            return False
        assert format_datetime(date.astimezone(self._zone)) == text
        return True

    def dates(self, text: str) -> str:
        return re.sub(
            r"[A-Z][a-z]{2}, [ 0-9]?[0-9] [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}",
            lambda match: self.date if self._is_now(match[0]) else match[0],
            text,
        )

    def cookies(self, text: str) -> str:
        """Timeouts in the vectors are whole hours; a run takes less than one."""

        def then(match: re.Match[str]) -> str:
            expiry, mac = int(match[1]), match[2]
            ahead = (expiry - int(self._run.ended.since)) // 3600 * 3600
            if not self._run.ended.covers(expiry - ahead):
                return match[0]
            assert mac == self._mac(expiry)[: len(mac)]
            moved = self._case["time"] + ahead
            return f"{moved}.{self._mac(moved)[: len(mac)]}@"

        return re.sub(r"\b([0-9]{10,})\.([0-9a-f]{2,40})@", then, text)

    def _mac(self, expiry: int) -> str:
        return hmac.new(self._key, b"%d" % expiry, hashlib.sha1).hexdigest()

    def message_id(self, text: str) -> str:
        match = re.fullmatch(r"<([0-9]{10,})\.([0-9]+)(\.[^>]*)>", text)
        if match is None or not self._run.ended.covers(int(match[1])):
            return text
        assert int(match[2]) == self._run.ended.pid
        return f"<{self._case['time']}.{self._case['pid']}{match[3]}>"

    def received(self, text: str) -> str:
        own = f"by {host_name()} (tofmipd inject, from uid {os.getuid()});"
        if not text.startswith(own):
            return text
        case = self._case
        was = f"by {case['fqdn']} (tmda-sendmail, from uid {case['uid']});"
        return was + text.removeprefix(own)

    def value(self, name: str, text: str) -> str:
        if name == "message-id":
            return self.message_id(text)
        text = self.received(text) if name == "received" else text
        return self.dates(self.cookies(text))

    def fingerprint(self, fields: list[tuple[str, str]], body: bytes) -> str:
        """Recomputed, of the given values; folds of the client's count, ours do not."""
        settings: dict[str, list[str]] = {}
        exec(self._case["config"], settings)
        submitted = base64.b64decode(self._case["message_b64"])
        digest = hmac.new(self._key, digestmod=hashlib.sha1)
        for entry in settings["FINGERPRINT"]:
            if entry == "body":
                digest.update(body)
                continue
            value = next((value for name, value in fields if name.lower() == entry.lower()), "")
            octets = value.encode(errors="surrogateescape")
            digest.update(octets if octets in submitted else octets.replace(b"\n", b""))
        return base64.b64encode(digest.digest()).decode().rstrip("=")

    def copy(self, sender: bytes, recipient: bytes, message: bytes) -> Copy:
        """The copy for one recipient as it would have been handed over then."""
        head, _, body = b"\n".join([b"", message]).partition(b"\n\n")
        made = [
            (name, value.lstrip(" \t"))
            for name, _, value in (
                field.partition(":")
                for field in re.split(r"\n(?![ \t])", head[1:].decode(errors="surrogateescape"))
                if field
            )
        ]
        moved = [(name, self.value(name.lower(), value)) for name, value in made]
        for place, (name, value) in enumerate(made):
            if name == "X-TMDA-Fingerprint":
                assert value == self.fingerprint(made, body)
                moved[place] = (name, self.fingerprint(moved, body))
        envelope = self.cookies(sender.decode(errors="surrogateescape"))
        return Copy(
            null_as_empty(envelope.encode(errors="surrogateescape")),
            recipient,
            tuple(
                comparable(
                    name.encode(errors="surrogateescape"), value.encode(errors="surrogateescape")
                )
                for name, value in moved
            ),
            body,
        )


def outcome(run: Run) -> Outcome | Exception:
    """In the words of tests/test_tmda_vectors.py: copies in the order of their recipients."""
    if run.ended.status:
        assert not run.handed_over
        return error_of(run)
    then = Then(run)
    copies = [
        then.copy(sender, recipient, message)
        for sender, recipients, message in run.handed_over
        for recipient in recipients
    ]
    order = [octets(recipient) for recipient in run.case["recipients"]]
    order = order or [octets(copy["envelope_recipient"]) for copy in run.case["expect"]["copies"]]
    copies.sort(key=lambda copy: order.index(copy.recipient))
    log = run.files.tmda / "logs/outgoing"
    text = log.read_text(errors="surrogateescape") if log.exists() else ""
    return Outcome(copies, then.dates(then.cookies(text)))


def error_of(run: Run) -> Exception:
    """The error that the one line on standard error tells of."""
    ended = run.ended
    assert ended.err.startswith("tofmipd: ")
    assert ended.err.count("\n") == 1
    text = ended.err.removeprefix("tofmipd: ").rstrip("\n")
    if ended.status == os.EX_DATAERR:
        name, _, problem = text.partition(": ")
        return MessageError(name, problem)
    assert ended.status == os.EX_CONFIG, ended
    path = re.escape(str(run.files.path))
    each = [
        (match[1], int(match[2] or 0), match[3])
        for part in re.split(rf"; (?={path}/\S+:[0-9]+: )", text)
        if (match := re.fullmatch(rf"({path}/[^:]+)(?::([0-9]+))?: (.*)", part))
    ]
    assert each, text
    kinds = {"outgoing": FilterError, "config": ConfigError, "crypt_key": KeyFileError}
    kind = kinds[Path(each[0][0]).name]
    if kind is FilterError:
        return FilterError(*each[0], tuple(FilterError(*one) for one in each[1:]))
    return kind(*each[0])


# What the original ended with a traceback: the status that tells who must act.
STATUSES = {
    "inj-s-038": os.EX_DATAERR,
    "inj-s-041": os.EX_DATAERR,
    "inj-s-075": os.EX_CONFIG,
    "inj-s-083": os.EX_CONFIG,
    "inj-s-086": os.EX_CONFIG,
    "inj-s-087": os.EX_CONFIG,
}


def by_recipient(copies: list[Copy]) -> list[Copy]:
    return sorted(copies, key=lambda copy: (copy.recipient, copy.sender))


@parametrized([c for c in INJECT if c["id"] not in INJECT_DEFECTS])
def test_a_message_leaves_as_in_the_original(case, runs):
    run = runs[case["id"]]
    found = outcome(run)
    if "error" in case["expect"]:
        assert run.ended.status == STATUSES[case["id"]], run.ended.err
        assert not run.fresh()
        return
    assert isinstance(found, Outcome), found
    assert by_recipient(found.copies) == by_recipient(recorded_copies(case))
    assert lines(found.log) == lines(case["expect"].get("log") or "")
    named = {"~/.tmda/logs/outgoing"} if case["expect"].get("log") else set()
    for name, text in (case["expect"].get("files_after") or {}).items():
        assert (run.files.path / name.removeprefix("~/")).read_text() == text
        named.add(name)
    assert run.fresh() == {run.files.path / name.removeprefix("~/") for name in named}
    assert run.ended.out == ""
    assert bool(run.ended.err) == (not found.copies), "only 'no recipients' is worth a line"


@parametrized([c for c in INJECT if c["id"] in INJECT_DEFECTS])
def test_a_message_leaves_sensibly_where_the_original_was_wrong(case, runs):
    run = runs[case["id"]]
    INJECT_DEFECTS[case["id"]](outcome(run), recorded_copies(case))
    if run.ended.status:
        assert not run.fresh()


def test_none_of_them_is_a_bug_or_says_more_than_one_line(runs):
    assert len(runs) == len(INJECT)
    assert {run.ended.status for run in runs.values()} == {0, os.EX_DATAERR, os.EX_CONFIG}
    for run in runs.values():
        assert run.ended.err.count("\n") <= 1
        assert "internal error" not in run.ended.err


def test_no_recipients_is_no_error_but_is_said(runs):
    """inj-s-024: the original ended with 0 and without a word."""
    ended = runs["inj-s-024"].ended
    assert (ended.status, ended.err) == (0, "tofmipd inject: no recipients, nothing sent\n")


# Filters: tests/test_commands_explain.py has all of them in one process; here every few.

SAMPLE = [
    case
    for number, case in enumerate(FILTERS)
    if number % 25 == 0 or case["id"] in ("filt-s-034", "filt-s-117", "filt-s-157", "filt-s-160")
]


def explain(case: dict, directory: Path) -> tuple[Files, Ended]:
    directory.mkdir()
    files = Files(directory)
    files.fill(case)
    ended = tofmipd(
        "explain",
        *("-c", str(files.tmda / "config")),
        *("-O", str(files.tmda / "filters/outgoing")),
        b"--to=" + octets(case["recipient"]),
        b"--from=" + octets(case["sender"]),
        "--json",
        home=directory,
        variables=case.get("env") or {},
        message=b"",
    )
    return files, ended


def test_explain_tells_the_rule_that_decided_in_the_original(tmp_path):
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(lambda case: (case, *explain(case, tmp_path / case["id"])), SAMPLE))
    assert len(done) > 8
    for case, files, ended in done:
        expected = FILTER_DEFECTS.get(case["id"]) or expected_of_filter(case, files)
        told = json.loads(ended.out)
        assert ended.err == "", case["id"]
        if expected is None:
            assert (ended.status, bool(told["errors"])) == (os.EX_CONFIG, True), case["id"]
        elif isinstance(expected, Errors):
            assert ended.status == os.EX_CONFIG, case["id"]
            assert [error["line"] for error in told["errors"]] == expected.lines, case["id"]
            assert {error["file"] for error in told["errors"]} == {
                str(files.tmda / "filters/outgoing")
            }
        else:
            assert told["actions"] == expected.actions, case["id"]
            text = (told["rule"] or {"text": ""})["text"]
            assert sorted(text.split()) == sorted((expected.line or "").split()), case["id"]
