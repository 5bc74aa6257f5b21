"""Hand-off by sendmail programs: Postfix's own, msmtp, and some that misbehave."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import submit, wire
from hops import RawHop, make_sendmail, raw_hop
from running import (
    HOST,
    PROGRAM,
    free_port,
    to_program,
    to_smtp,
    usual_umask,
)
from test_bodies import HEADER, TO, memory_mib
from village import worker_of

LINES = [b"Gr\xc3\xbc\xc3\x9fe", b".", b"..", b".x", b"", b"From here", b"x" * 900, b" \t ", b""]
BODY = wire(LINES)
LOCAL = b"".join(line + b"\n" for line in LINES)

_MSMTP = """\
#!/bin/sh
exec msmtp -C "{settings}" "$@"
"""
_MSMTP_SETTINGS = """\
account default
host {host}
port {port}
tls off
timeout 20
{lines}
"""
# Programs in the place of one that delivers; {out} is a file.
_DIGEST = "#!/bin/sh\nLC_ALL=C sed '1,/^$/d' | sha256sum > {out}\n"
_FLOOD = "#!/bin/sh\nhead -c 1000000000 /dev/zero >&2\ncat > /dev/null\n"
_FORK_BOMB = """\
#!/bin/sh
cat > /dev/null
trap 'while read pid; do kill $pid; done < {out}; exit 75' EXIT
while :; do sleep 60 & echo $! >> {out}; done
"""


def make_msmtp(directory: Path, port: int, *lines: str) -> Path:
    """msmtp for a next hop, as SENDMAIL_PROGRAM; everybody may run it."""
    directory.mkdir(exist_ok=True)
    with usual_umask():
        settings = directory / "msmtprc"
        settings.write_text(_MSMTP_SETTINGS.format(host=HOST, port=port, lines="\n".join(lines)))
        return make_program(directory / "msmtp", _MSMTP.replace("{settings}", str(settings)))


def make_program(path: Path, text: str, out: Path | None = None) -> Path:
    path.write_text(text.replace("{out}", str(out)))
    path.chmod(0o755)
    return path


def body_of(hop: RawHop, recipient: str) -> bytes:
    return hop.message(recipient).octets.partition(b"\r\n\r\n")[2]


# Postfix.


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_the_program_of_postfix_delivers_each_copy_octet_for_octet(daemon, home, postfix):
    """TO-111."""
    home.configure(to_program(postfix.sendmail))
    home.write("filters/outgoing", "to * sender\n")
    recipients = ("pf-a@example.net", "pf-b@example.net")
    assert submit(daemon.port, *recipients, message=HEADER + BODY).startswith("250")
    senders = set()
    for recipient in recipients:
        stored = postfix.message(recipient)
        assert stored.body == LOCAL
        senders.add(stored.sender)
    assert len(senders) == 2


@pytest.mark.root
@pytest.mark.peer("postfix", "unshare")
def test_in_global_mode_the_program_of_the_system_is_run_as_the_user(village, postfix):
    """TO-111: that of Postfix obeys an ordinary user in its usual place only."""
    bobby, chloe, _ = village.people
    for person in (bobby, chloe):
        person.configure()
    script = 'mount --bind "$0" /etc/postfix || exit 200\nexec "$@"\n'
    words = ("unshare", "--mount", "sh", "-c", script, str(postfix.base / "conf"))
    inside = dataclasses.replace(village, program=(*words, *village.program))
    with inside.daemon() as daemon:
        for person in (bobby, chloe):
            to, login = f"{person.name}.sendmail@example.net", (person.name, person.password)
            reply = submit(
                daemon.port, to, message=HEADER + BODY, login=login[0], password=login[1]
            )
            assert reply == "250 2.0.0 Ok: sendmail exited with 0", daemon.text()
            stored = postfix.message(to)
            assert stored.body == LOCAL
            assert f"(Postfix, from userid {person.uid})" in stored.values("Received")[0]


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_a_message_that_postfix_cannot_take_is_not_lost_and_the_log_says_why(
    daemon, home, postfix, tmp_path
):
    """TO-34."""
    program = make_program(
        tmp_path / "sendmail", f'#!/bin/sh\nexec sendmail -C {tmp_path}/none "$@"\n'
    )
    home.configure(to_program(program))
    reply = submit(daemon.port, TO)
    assert reply == "451 4.3.0 sendmail cannot take the message now (status 75)"
    daemon.says("WARNING", "(status 75)", "fatal: ", "No such file or directory")


# msmtp.


@pytest.mark.peer("msmtp")
def test_msmtp_delivers_octet_for_octet_to_all_recipients_of_a_copy(daemon, home, hop, tmp_path):
    """TO-111: an address that looks like an option, too."""
    home.configure(to_program(make_msmtp(tmp_path / "msmtp", hop.port)))
    home.write("filters/outgoing", "to * ext=t\n")
    recipients = ("a@example.net", "-bs@example.net", "c@example.net")
    reply = submit(daemon.port, *recipients, message=HEADER + BODY)
    assert reply == "250 2.0.0 Ok: msmtp exited with 0"
    (stored,) = hop.messages()
    assert stored.sender == "bobby-t@example.org"
    assert stored.recipients == recipients
    assert stored.octets.partition(b"\r\n\r\n")[2] == BODY


@pytest.mark.peer("msmtp")
def test_msmtp_gets_the_header_that_a_next_hop_gets(daemon, home, hop, tmp_path):
    message = HEADER.replace(b"\r\n\r\n", b"\r\nBcc: z@example.net\r\nX: y\r\n z\r\n\r\n")
    heads = []
    for way in (to_smtp(hop.port), to_program(make_msmtp(tmp_path / "msmtp", hop.port))):
        home.configure(way)
        home.write("filters/outgoing", "to * ext=t\n")
        hop.reset()
        assert submit(daemon.port, TO, message=message + BODY).startswith("250")
        # Time and numbers differ.
        heads.append(re.sub(rb"[0-9a-f]+|\r\n[ \t]+", b"", hop.message(TO).head))
    assert heads[0] == heads[1]


@pytest.mark.peer("msmtp")
def test_msmtp_takes_the_null_sender(daemon, home, hop, tmp_path):
    """TO-31."""
    for lines in ((), ('MAIL_TRANSFER_AGENT = "sendmail"',)):
        home.configure(to_program(make_msmtp(tmp_path / "msmtp", hop.port)), *lines)
        home.write("filters/outgoing", "to * tag from ext=t envelope exp=<>\n")
        hop.reset()
        assert submit(daemon.port, TO).startswith("250")
        assert hop.message(TO).sender == ""


@pytest.mark.peer("msmtp")
@pytest.mark.parametrize(
    ("command", "reply", "heard"),
    [
        ("RCPT TO:<b@", b"550 5.1.1 No such user", "550 5.1.1 <b@example.net>: No such user"),
        ("RCPT TO:<b@", b"450 4.2.0 Greylisted", "450 4.2.0 <b@example.net>: Greylisted"),
        ("MAIL", b"553 5.7.1 Not yours", "553 5.7.1 Not yours"),
        ("MAIL", b"421 4.3.2 Closing", "451 4.3.2 Closing"),
        ("DATA", b"451 4.3.0 Later", "451 4.3.0 Later"),
        (".", b"554 5.7.1 Spam", "554 5.7.1 Spam"),
        (".", b"452 4.3.1 Full", "452 4.3.1 Full"),
    ],
)
def test_a_refusal_of_the_next_hop_behind_msmtp_is_what_the_client_hears(
    command, reply, heard, daemon, home, hop, tmp_path
):
    """TO-34: msmtp has the same status for what may pass and what may not."""
    home.configure(to_program(make_msmtp(tmp_path / "msmtp", hop.port)))
    home.write("filters/outgoing", "to * ext=t\n")
    hop.refuse[command] = reply
    said = submit(daemon.port, "a@example.net", "b@example.net", message=HEADER + BODY)
    assert said == heard
    assert not hop.messages()
    daemon.says(
        "WARNING", "msmtp failed: ", "status 6", "msmtp: server message: ", "could not send"
    )


@pytest.mark.peer("msmtp")
def test_a_next_hop_that_msmtp_does_not_reach_or_may_not_use_defers(daemon, home, tmp_path):
    home.configure(to_program(make_msmtp(tmp_path / "msmtp", free_port())))
    said = submit(daemon.port, TO)
    assert said == "451 4.3.0 msmtp cannot take the message now (status 75)"
    with raw_hop(keywords=("AUTH PLAIN",), refuse={"AUTH": b"535 5.7.8 Wrong"}) as hop:
        login = ("auth plain", "user bobby", "passwordeval echo wrong")
        home.configure(to_program(make_msmtp(tmp_path / "msmtp", hop.port, *login)))
        said = submit(daemon.port, TO)
        assert said == "451 4.7.0 the next hop does not let msmtp in (status 77)"
        assert not hop.messages()
    home.configure(to_program(make_msmtp(tmp_path / "msmtp", 1, "no-such-word")))
    assert submit(daemon.port, TO) == "451 4.3.5 msmtp cannot take the message now (status 78)"
    daemon.says("WARNING", "unknown command no-such-word")


@pytest.fixture
def public(village) -> Iterator[Path]:
    """A directory that the people of the village can write to."""
    directory = village.directory / "public"
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.root
@pytest.mark.peer("msmtp")
def test_in_global_mode_msmtp_delivers_for_each_user(village, village_hop, public):
    if not os.stat("/tmp").st_mode & stat.S_IWOTH:
        pytest.skip("/tmp is not everybody's here, and msmtp needs it for the header")
    program = make_msmtp(public, village_hop.port)
    people = village.people[:2]
    for person in people:
        person.configure(to_program(program))

    def send(person) -> str:
        login = {"login": person.name, "password": person.password}
        return submit(daemon.port, f"{person.name}@example.net", message=HEADER + BODY, **login)

    with village.daemon() as daemon:
        with ThreadPoolExecutor(2) as pool:
            assert set(pool.map(send, people)) == {"250 2.0.0 Ok: msmtp exited with 0"}
        for person in people:
            assert body_of(village_hop, f"{person.name}@example.net") == BODY
        village_hop.refuse["RCPT"] = b"450 4.2.0 Greylisted"
        assert send(people[0]).startswith("450 4.2.0 ")
        daemon.says("WARNING", "msmtp failed: 450 4.2.0 ", "Greylisted")


# Programs that misbehave.


@pytest.mark.root
def test_in_global_mode_a_program_without_measure_hurts_nobody_else(village, village_hop, public):
    """RLIMIT_NPROC of the worker is that of its programs."""
    bobby, chloe, _ = village.people
    bobby.configure(to_program(make_program(public / "bomb", _FORK_BOMB, public / "pids")))
    with village.daemon() as daemon:
        said = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
        assert re.match("451 4.3.[05] bomb cannot take the message now ", said), daemon.text()
        started = len((public / "pids").read_text().split())
        assert 10 < started <= 100
        daemon.says("WARNING", "bomb failed: ", "fork")
        worker = worker_of(daemon, bobby)
        assert submit(daemon.port, TO, login=chloe.name, password=chloe.password).startswith("250")
        bobby.configure(to_program(make_program(public / "good", "#!/bin/sh\ncat >/dev/null\n")))
        said = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
        assert said == "250 2.0.0 Ok: good exited with 0"
        assert worker_of(daemon, bobby) == worker


def test_50_mb_pass_and_gigabytes_of_words_are_read_in_little_memory(start, home, tmp_path):
    daemon, out = start(home), tmp_path / "digest"
    line = b"0123456789" * 40 + b"\xe4\xf6\xfc\r\n"
    body = line * (50_000_000 // len(line))
    home.configure(to_program(make_program(tmp_path / "sendmail", _DIGEST, out)))
    assert submit(daemon.port, TO, message=HEADER + b"warm up\r\n").startswith("250")
    before = memory_mib(daemon.pid)
    message = HEADER + body
    home.write("filters/outgoing", "to * ext=t\n")
    assert submit(daemon.port, TO, message=message).startswith("250")
    home.configure(to_program(make_program(tmp_path / "flood", _FLOOD)))
    assert submit(daemon.port, TO).startswith("250")
    grown = memory_mib(daemon.pid) - before
    assert grown < 8, f"{grown:.1f} MiB more than before"
    assert out.read_text().split()[0] == hashlib.sha256(body.replace(b"\r", b"")).hexdigest()


def test_a_thousand_recipients_of_one_copy_are_one_run(daemon, home, sendmail):
    home.configure(to_program(sendmail.path))
    home.write("filters/outgoing", "to * ext=t\n")
    recipients = [f"-{number}@example.net" for number in range(1000)]
    assert submit(daemon.port, *recipients).startswith("250")
    ((arguments, _, _),) = sendmail.runs()
    assert arguments[4:] == recipients


@pytest.mark.root
@pytest.mark.peer("unshare")
def test_a_full_disk_defers_what_has_no_room_and_nothing_else(start, home, tmp_path):
    """TO-34."""
    place = tmp_path / "tmp"
    place.mkdir()
    sendmail = make_sendmail(tmp_path / "program")
    home.configure(to_program(sendmail.path))
    script = 'mount -t tmpfs -o size=300k none "$0" || exit 200\nexec "$@"\n'
    words = ("unshare", "--mount", "sh", "-c", script, str(place))
    daemon = start(home, program=(*words, PROGRAM, "--personal"), variables={"TMPDIR": str(place)})
    for _ in range(2):
        reply = submit(daemon.port, TO, message=HEADER + BODY * 600)
        assert reply == "451 4.3.1 no room for the message: No space left on device"
        assert sendmail.runs() == []
    assert submit(daemon.port, TO, message=HEADER + BODY).startswith("250")
    assert sendmail.message(TO).body == LOCAL
