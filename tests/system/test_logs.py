"""The log as programs have it: JSON for jq, priorities for the journal, files for logrotate."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from clients import dialogue, logged_in, plain, submit
from running import (
    HOST,
    LIMIT_SECONDS,
    PASSWORD,
    PROGRAM,
    ending,
    environment,
    free_port,
    greets,
    to_smtp,
    wait_until,
)

LOGROTATE = Path(__file__).parents[2] / "etc/logrotate.d/tofmipd"
SECRETS = [PASSWORD, plain(), "very private body"]
MESSAGE = b"Message-ID: <1@laptop>\r\nSubject: x\r\n\r\nvery private body\r\n"
HOSTILE = [
    'x" ü\x1b[2J\\',
    "\udcff\udcfe",
    '{"event": "auth", "verdict": "accepted"}',
    "%s %d %(message)s",
    "x" * 300,
]


def objects(text: str) -> list[dict[str, object]]:
    """All lines, as jq understands them."""
    done = subprocess.run(
        ["jq", "-c", "."], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == text.count("\n")
    for one in told:
        assert list(one)[:3] == ["time", "level", "event"]
        assert re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z", one["time"])
        assert one["level"] in ("debug", "info", "warning", "error")
        assert one["event"] != "other"
    return told


def of(told: list[dict[str, object]], event: str) -> list[dict[str, object]]:
    return [one for one in told if one["event"] == event]


@pytest.mark.peer("jq")
def test_jq_reads_every_line_whatever_clients_send(home, hop, start, tmp_path):
    """BX-28, TO-71: with all that -d shows."""
    log = tmp_path / "log"
    daemon = start(home, "-d", "--log-format=json", "--log-file", str(log))
    with dialogue(daemon.port) as talk:
        for text in HOSTILE:
            octets = text.encode("utf-8", "surrogateescape")
            talk.say(b"EHLO " + octets)
            talk.say(b"MAIL FROM:<" + octets + b"@example.org>")
            talk.say(b"AUTH " + octets)
            talk.say("RSET")
    hop.refuse["RCPT TO:<N@"] = b'550 5.1.1 "no" \\ such user'
    hop.refuse["RCPT TO:<L@"] = b"451 4.7.1 later"
    for name in "anl":
        reply = submit(daemon.port, f"{name}@example.net", message=MESSAGE)
        assert reply[:3] == {"a": "250", "n": "550", "l": "451"}[name]
    daemon.stop()
    text = log.read_text()
    assert [word for word in SECRETS if word in text] == []
    told = objects(text)
    assert len(of(told, "command")) > 3 * len(HOSTILE)
    (sent,) = of(told, "sent")
    accepted = of(told, "auth")
    assert [one["verdict"] for one in accepted] == ["accepted"] * 3
    assert sent["session"] == accepted[0]["session"]
    assert 0 <= int(str(sent["ms"])) < 60_000
    expected = {
        "to": "a@example.net",
        "message_id": "<1@laptop>",
        "new_message_id": "",
        "next_hop": f"{HOST}:{hop.port}",
        "action": "dated",
    }
    assert {name: sent[name] for name in expected} == expected
    (refused,), (deferred,) = of(told, "refused"), of(told, "deferred")
    assert refused["to"] == "n@example.net"
    assert refused["reply"] == '550 5.1.1 <n@example.net>: "no" \\ such user'
    assert deferred["to"] == "l@example.net"
    assert refused["session"] == of(told, "hand-off-failed")[0]["session"]


@pytest.mark.peer("jq")
def test_standard_error_has_nothing_but_objects(home):
    """As in a container, where something else collects it."""
    port = free_port()
    command = [PROGRAM, "--personal", "-f", "-p", f"{HOST}:{port}", "--log-format=json"]
    process = subprocess.Popen(command, env=environment(home), stderr=subprocess.PIPE)
    with process, ending(process):
        wait_until(lambda: greets(port), "the greeting")
        process.terminate()
        text = process.communicate(timeout=LIMIT_SECONDS)[1].decode()
    told = objects(text)
    assert [(one["host"], one["port"]) for one in of(told, "listening")] == [(HOST, port)]
    assert told[-1]["event"] == "stopped"


# systemd.exec(5): whoever writes to this very file writes to the journal.
AS_A_SERVICE = 'JOURNAL_STREAM=$(stat -Lc %d:%i /dev/stderr) exec "$0" "$@"'


def test_priorities_stand_before_lines_for_the_journal(home, hop, start):
    daemon = start(home, "-d", program=("/bin/sh", "-c", AS_A_SERVICE, PROGRAM, "--personal"))
    hop.refuse["RCPT TO:<X@"] = b"451 4.7.1 later"
    submit(daemon.port, "x@example.net", message=MESSAGE)
    assert re.fullmatch(r"<4>s=\w+ hand-off to .*", daemon.says("hand-off"))
    assert re.fullmatch(r"<6>s=\w+ deferred to=.*", daemon.says("deferred to="))
    assert re.fullmatch(r"<7>s=\w+ C: EHLO .*", daemon.says("C: EHLO"))
    assert [word for word in SECRETS if word in daemon.text()] == []


# A log that cannot be written.


@pytest.mark.parametrize("full", [True, False])
def test_mail_goes_on_without_a_log(home, hop, start, tmp_path, full):
    directory = tmp_path / "logs"
    directory.mkdir()
    daemon = start(home, "--log-file", "/dev/full" if full else str(directory / "log"))
    shutil.rmtree(directory)
    assert submit(daemon.port, "x@example.net", message=MESSAGE).startswith("250 ")
    assert len(hop.stored) == 1
    directory.mkdir()
    assert submit(daemon.port, "y@example.net", message=MESSAGE).startswith("250 ")
    if not full:
        assert "sent to='y@example.net'" in (directory / "log").read_text()


# logrotate


def rotate(tmp_path: Path, log: Path, pid_file: Path | None) -> None:
    """What it does in a night, by the example."""
    text = LOGROTATE.read_text()
    if pid_file is None:
        # The second example, behind the first.
        text = re.sub("^# ?", "", text[text.index("# /home/you") :], flags=re.M)
        text = text.replace("/home/you/.tmda/log", str(log))
    else:
        text = text.replace("/var/log/tofmipd.log", str(log))
        text = text.replace("/run/tofmipd.pid", str(pid_file))
    config = tmp_path / "logrotate.conf"
    config.write_text(text)
    config.chmod(0o600)
    state = str(tmp_path / "logrotate.state")
    command = ["logrotate", "--force", "--state", state, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def lines_about(log: Path, word: str) -> int:
    return sum(f" {word} to=" in line for line in log.read_text().splitlines())


@pytest.mark.peer("logrotate")
def test_a_personal_log_is_rotated_without_a_word(home, hop, start, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir(0o700)
    log = logs / "log"
    daemon = start(home, "--log-file", str(log))
    for _ in range(3):
        submit(daemon.port, "x@example.net", message=MESSAGE)
        wait_until(lambda: log.exists() and lines_about(log, "sent") == 1, "the line")
        rotate(tmp_path, log, None)
    assert sorted(path.name for path in logs.iterdir()) == ["log.1", "log.2.gz", "log.3.gz"]
    submit(daemon.port, "x@example.net", message=MESSAGE)
    assert (lines_about(log, "sent"), lines_about(logs / "log.1", "sent")) == (1, 1)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.peer("logrotate", "jq")
def test_the_log_of_all_users_is_rotated_by_a_signal_and_holds_events(
    village, village_hop, tmp_path
):
    """Lines of the server, of auth, and of workers by way of both others."""
    logs = tmp_path / "logs"
    logs.mkdir(0o700)
    log, pid_file = logs / "log", tmp_path / "pid"
    bobby, chloe = village.people[:2]
    forged = "s=%s auth %s ip=%s mechanism=%s source=%s reason=%s user=%r"
    bobby.configure(
        to_smtp(village_hop.port),
        "import logging",
        "own = logging.getLogger('tofmipd.own')",
        f"own.info({forged!r}, 'x', 'accepted', '::1', 'a', 'b', 'c', 'root')",
        "own.error('s=%s internal error', '00000001')",
    )
    options = ("--log-file", str(log), "--pid-file", str(pid_file), "--spool")
    with village.daemon("--log-format=json", *options) as daemon:

        def send(person):
            login = {"login": person.name, "password": person.password}
            with logged_in(daemon.port, **login) as talk:
                talk.envelope("x@example.net", sender=f"{person.name}@example.org")
                assert talk.data(MESSAGE + b".\r\n").startswith("250 ")

        def says(event):
            wait_until(lambda: log.exists() and f'"event": "{event}"' in log.read_text(), event)

        send(bobby)
        says("sent")
        rotate(tmp_path, log, pid_file)
        says("log-reopened")
        village_hop.refuse["DATA"] = b"451 4.3.0 later"
        send(chloe)
        says("deferred")
    for path, person, what in ((logs / "log.1", bobby, "sent"), (log, chloe, "deferred")):
        told = objects(path.read_text())
        (accepted,), (kept,), (later,) = (of(told, event) for event in ("auth", "kept", what))
        assert accepted["user"] == later["user"] == person.name
        assert accepted["session"] == kept["session"] == later["session"]
        assert kept["queue"] == later["queue"]
        assert later["next_hop"] == f"{HOST}:{village_hop.port}"
        assert float(str(later["delay"])) >= 0
        assert kept["message_id"] == later["message_id"] == "<1@laptop>"
    told = objects((logs / "log.1").read_text())
    (claim,), (worker,) = of(told, "internal-error"), of(told, "worker")
    assert claim["session"] == of(told, "auth")[0]["session"]
    assert str(worker["message"]).startswith(f"s={claim['session']} s=x auth accepted")
