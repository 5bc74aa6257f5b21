"""Whatever is wrong, the person who can mend it is told what, where and how."""

from __future__ import annotations

import os
import re
import socket
import threading
import time

import pytest
from clients import dialogue, logged_in, plain, submit
from hops import make_sendmail, raw_hop, smtp_sink
from running import (
    HOST,
    LOGIN,
    PASSWORD,
    Home,
    free_port,
    make_home,
    run,
    to_program,
    to_smtp,
)

TO = "x@example.net"


def seconds_to_refuse(port: int, user: str, password: str, replies: dict[str, str]) -> float:
    with dialogue(port) as talk:
        talk.say("EHLO client.example")
        begun = time.monotonic()
        replies[user] = talk.say(f"AUTH PLAIN {plain(user, password)}")
        return time.monotonic() - begun


def test_a_wrong_password_and_an_unknown_user_look_and_take_the_same(daemon):
    replies: dict[str, str] = {}
    times: dict[str, float] = {}

    def attempt(user: str) -> None:
        times[user] = seconds_to_refuse(daemon.port, user, "wrong", replies)

    users = [LOGIN, "nobody-of-that-name", "../root", "-bobby", ".", ""]
    threads = [threading.Thread(target=attempt, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(replies.values()) == {"535 5.7.8 AUTH failed: user name or password is wrong"}
    assert max(times.values()) - min(times.values()) < 0.4
    assert min(times.values()) >= 1


def test_a_session_is_ended_after_as_many_failed_logins_as_are_allowed(start, home):
    with dialogue(start(home, "--max-auth-failures", "2").port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain(password='a')}").startswith("535")
        assert talk.say(f"AUTH PLAIN {plain(password='b')}").startswith("421 4.7.0 ")
        assert talk.reply() == ""


def remove(home: Home) -> None:
    (home.tmda / "tofmipd").unlink()


def be_a_directory(home: Home) -> None:
    remove(home)
    (home.tmda / "tofmipd").mkdir(mode=0o600)


def content(text: str):
    return lambda home: home.write("tofmipd", text)


def mode(octal: int):
    return lambda home: (home.tmda / "tofmipd").chmod(octal)


@pytest.mark.parametrize(
    ("spoil", "found", "mends"),
    [
        (remove, "no such password file", "tofmipd init"),
        (be_a_directory, "irectory", "must be"),
        (mode(0o644), "mode 0644, must be 0600 or 0400", "chmod 600 {path}"),
        (mode(0o660), "mode 0660, must be 0600 or 0400", "chmod 600 {path}"),
        (mode(0o4600), "mode 4600, must be 0600 or 0400", "chmod 600 {path}"),
        (content("bobby\n"), ":1: no colon in the line, must be user:password", "edit line 1"),
        (content("# x\n\na:b\nbobby FooBar\n"), ":4: no colon", "edit line 4 of {path}"),
    ],
)
def test_a_bad_password_file_is_refused_at_start(spoil, found, mends, tmp_path):
    """TO-46, TO-47: path, what was found, what is wanted, the command that mends it."""
    home = make_home(tmp_path)
    spoil(home)
    path = str(home.tmda / "tofmipd")
    result = run("--personal", "-f", "-p", f"{HOST}:0", home=home)
    assert result.returncode == os.EX_CONFIG
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"tofmipd: {path}")
    assert found in line
    assert mends.format(path=path) in line
    assert not result.stdout


@pytest.mark.root
def test_a_password_file_of_another_owner_is_refused_at_start(tmp_path):
    """TO-47."""
    home = make_home(tmp_path)
    path = home.tmda / "tofmipd"
    os.chown(path, 65534, 65534)
    result = run("--personal", "-f", "-p", f"{HOST}:0", home=home)
    assert result.returncode == os.EX_CONFIG
    expected = f"{path}: owned by uid 65534, must be owned by uid 0 (chown 0 {path})"
    assert result.stderr == f"tofmipd: {expected}\n"


@pytest.mark.skipif(os.getuid() == 0, reason="root can read everything")
def test_an_unreadable_password_file_is_refused_at_start(tmp_path):
    home = make_home(tmp_path)
    path = home.tmda / "tofmipd"
    path.chmod(0)
    result = run("-f", "-p", f"{HOST}:0", home=home)
    assert result.returncode == os.EX_CONFIG
    assert result.stderr.startswith(f"tofmipd: {path}: cannot be read (Permission denied)")
    assert f"chmod 600 {path}" in result.stderr


def test_a_password_file_that_goes_bad_later_keeps_the_old_logins(daemon, home):
    """TO-47: looked at again whenever it has changed."""
    home.write("tofmipd", "bobby:other\n", 0o644)
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain()}").startswith("235")
    daemon.says("ERROR", "mode 0644", "chmod 600")
    home.write("tofmipd", "bobby:other\n")
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain(password='other')}").startswith("235")


def no_key(home: Home) -> None:
    (home.tmda / "crypt_key").unlink()


def put(name: str, text: str, octal: int = 0o600):
    return lambda home: home.write(name, text, octal)


CONFIG = 'USERNAME = "bobby"\nHOSTNAME = "example.org"\n'


@pytest.mark.parametrize(
    ("spoil", "told", "logged"),
    [
        (no_key, "crypt_key: missing; make one with 'tofmipd keygen'", "{tmda}/crypt_key: "),
        (
            put("crypt_key", "0011\n", 0o644),
            "crypt_key: mode 0644, must be 0400 or 0600",
            "{tmda}/crypt_key: mode 0644",
        ),
        (
            put("crypt_key", "not hex\n"),
            "crypt_key: not an even number of hexadecimal digits",
            "{tmda}/crypt_key: ",
        ),
        (put("crypt_key", "\n"), "crypt_key: empty", "{tmda}/crypt_key: empty"),
        (
            put("filters/outgoing", "to * bare\nto *\n"),
            "filters/outgoing line 2: ",
            "{tmda}/filters/outgoing:2: ",
        ),
        (
            put("filters/outgoing", "# x\n\nfrom x@y dated\nto z confuse\nhop la\n"),
            "filters/outgoing line 4: there is no action 'confuse'",
            "{tmda}/filters/outgoing:5: 'hop' is no source",
        ),
        (
            put("filters/outgoing", "to x@* dated=soon\n"),
            "filters/outgoing line 1: invalid timeout 'soon'",
            "{tmda}/filters/outgoing:1: invalid timeout",
        ),
        (
            put("config", CONFIG + 'DATED_TIMEOUT = "5d\n'),
            "config line 3: syntax error",
            "{tmda}/config:3: syntax error",
        ),
        (
            put("config", CONFIG + "X = 1\nY = X / 0\n"),
            "config line 4: ZeroDivisionError",
            "{tmda}/config:4: ZeroDivisionError",
        ),
        (
            put("config", CONFIG + "import sys\nsys.exit(3)\n"),
            "config line 4: SystemExit",
            "{tmda}/config:4: ",
        ),
        (
            put("config", CONFIG + 'MAIL_TRANSPORT = "pigeon"\n'),
            "config line 3: MAIL_TRANSPORT must be one of 'sendmail', 'smtp', not 'pigeon'",
            "{tmda}/config:3: ",
        ),
        (
            put("config", CONFIG + 'HMAC_BYTES = "3"\n'),
            "config line 3: HMAC_BYTES must be a whole number",
            "{tmda}/config:3: ",
        ),
        (
            put("config", CONFIG + 'DATED_TIMEOUT = "whenever"\n'),
            "invalid timeout 'whenever'",
            "{tmda}/config:",
        ),
    ],
)
def test_an_error_in_a_users_files_defers_the_mail_and_names_the_line(
    spoil, told, logged, daemon, home, hop
):
    spoil(home)
    reply = submit(daemon.port, TO)
    assert reply.startswith("451 4.3.5 Error in your TMDA files: ")
    assert told in reply
    assert str(home.path) not in reply
    daemon.says("ERROR", logged.format(tmda=home.tmda))
    assert not hop.commands
    make_home(home.path, to_smtp(hop.port))
    assert submit(daemon.port, TO).startswith("250")


def test_a_user_without_a_configuration_is_told_what_to_do(daemon, home, hop):
    """TO-81."""
    (home.tmda / "config").unlink()
    reply = submit(daemon.port, TO)
    assert reply == "554 5.3.5 You have no TMDA configuration here: run 'tofmipd init' first"
    daemon.says("ERROR", f"{home.tmda}/config: missing; make one with 'tofmipd init'")
    assert not hop.commands


def test_a_next_hop_that_is_down_defers_and_works_again_in_the_same_session(daemon, home):
    port = free_port()
    home.configure(to_smtp(port))
    message = b"Subject: x\r\n\r\nx\r\n.\r\n"
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert talk.data(message) == f"451 4.4.1 next hop {HOST}:{port}: Connection refused"
        with raw_hop(port) as hop:
            talk.envelope(TO)
            assert talk.data(message).startswith("250")
            assert hop.message(TO)
        # It is gone once more; the connection that was kept is of no use any more.
        talk.envelope(TO)
        assert talk.data(message).startswith("451 4.4.1 ")
        with raw_hop(port) as hop:
            talk.envelope(TO)
            assert talk.data(message).startswith("250")
            assert hop.message(TO)


def test_a_kept_connection_that_has_gone_stale_costs_no_mail(daemon, home):
    message = b"Subject: x\r\n\r\nx\r\n.\r\n"
    port = free_port()
    home.configure(to_smtp(port))
    with logged_in(daemon.port) as talk:
        for _ in range(3):
            with raw_hop(port) as hop:
                talk.envelope(TO)
                assert talk.data(message).startswith("250")
                assert len(hop.for_recipient(TO)) == 1


@pytest.mark.parametrize(
    ("refuse", "reply"),
    [
        ({"RCPT TO:<bad@": b"550 5.1.1 No such user"}, "550 5.1.1 <bad@example.net>: No such user"),
        ({"RCPT TO:<bad@": b"450 4.2.1 Busy"}, "450 4.2.1 <bad@example.net>: Busy"),
        ({"RCPT TO:<bad@": b"553 no status"}, "553 5.0.0 <bad@example.net>: no status"),
        ({"RCPT": b"452 4.5.3 Too many"}, "452 4.5.3 <good@example.net>: Too many"),
        (
            {"MAIL": b"550 5.7.1 Not you"},
            r"550 5\.7\.1 <bobby-dated-\S+@example\.org>: Not you",
        ),
        ({"DATA": b"451 4.3.0 Not now"}, "451 4.3.0 Not now"),
        ({".": b"554 5.6.0 It is spam"}, "554 5.6.0 It is spam"),
        ({".": b"452 4.3.1 Disk full"}, "452 4.3.1 Disk full"),
        ({".": b"421 4.3.2 Going down"}, "451 4.3.2 Going down"),
        ({".": b"550-5.7.1 one\r\n550 5.7.1 two"}, "550 5.7.1 one 5.7.1 two"),
        ({"CONNECT": b"554 5.3.2 Go away"}, r"451 4\.4\.1 next hop \S+ says: 554 5\.3\.2 Go away"),
        ({"CONNECT": b""}, r"451 4\.4\.1 next hop .*"),
        ({"RCPT": b""}, r"451 4\.4\.2 connection to next hop \S+ lost: .*"),
        ({".": b""}, r"451 4\.4\.2 connection to next hop \S+ lost: .*"),
        ({"MAIL": b"hello?"}, r"451 4\.5\.0 next hop \S+: a line of the reply has no reply code"),
    ],
)
def test_what_the_next_hop_says_reaches_the_client(refuse, reply, daemon, home):
    with raw_hop(refuse=refuse) as hop:
        home.configure(to_smtp(hop.port))
        said = submit(daemon.port, "good@example.net", "bad@example.net")
        assert said == reply or re.fullmatch(reply, said), said
        assert not hop.stored
        hop.refuse.clear()
        assert submit(daemon.port, "good@example.net", "bad@example.net").startswith("250")
        assert len(hop.stored) == 1


@pytest.mark.peer("smtp-sink")
@pytest.mark.parametrize(
    ("option", "reply"),
    [
        (["-r", "RCPT"], "450 4.3.0 <x@example.net>: Error: command failed"),
        (["-f", "RCPT"], "500 5.3.0 <x@example.net>: Error: command failed"),
        (["-f", "."], "500 5.3.0 Error: command failed"),
        (["-q", "DATA"], r"451 4\.4\.2 connection to next hop \S+ lost: .*"),
        (["-Q", "MAIL"], r"451 4\.0\.0 <\S+>: Server closing connection"),
    ],
)
def test_refusals_of_smtp_sink_reach_the_client(option, reply, daemon, home, tmp_path):
    """TO-112."""
    with smtp_sink(tmp_path / "sink", *option) as sink:
        home.configure(to_smtp(sink.port))
        said = submit(daemon.port, TO)
        assert said == reply or re.fullmatch(reply, said), said


def test_a_next_hop_that_does_not_answer_is_given_up(start, home):
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        home.configure(to_smtp(port))
        daemon = start(home, "--nexthop-connect-timeout", "0.5")
        assert submit(daemon.port, TO) == f"451 4.4.1 next hop {HOST}:{port} does not answer"


@pytest.mark.parametrize(
    ("status", "reply"),
    [
        (os.EX_TEMPFAIL, "451 4.3.0 sendmail cannot take the message now (status 75)"),
        (os.EX_NOUSER, "554 5.1.1 sendmail refuses the message (status 67)"),
        (os.EX_USAGE, "554 5.5.4 sendmail refuses the message (status 64)"),
        (1, "554 5.0.0 sendmail refuses the message (status 1)"),
    ],
)
def test_the_status_of_a_sendmail_program_reaches_the_client(status, reply, daemon, home, tmp_path):
    """TO-34, TO-111."""
    program = make_sendmail(tmp_path)
    program.exit_with(status)
    home.configure(to_program(program.path))
    assert submit(daemon.port, TO) == reply


def test_a_sendmail_program_that_is_not_there_defers(daemon, home, tmp_path):
    home.configure(to_program(tmp_path / "none"))
    reply = submit(daemon.port, TO)
    assert reply == f"451 4.3.5 {tmp_path}/none cannot be run: No such file or directory"


def test_what_a_sendmail_program_says_is_logged(daemon, home, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho the spool is full >&2\nexit 75\n")
    program.chmod(0o700)
    home.configure(to_program(program))
    assert submit(daemon.port, TO).startswith("451 4.3.0 ")
    daemon.says("WARNING", "the spool is full")


def test_a_taken_port_is_named_with_the_way_out(home):
    with socket.create_server((HOST, 0)) as taken:
        place = f"{HOST}:{taken.getsockname()[1]}"
        result = run("--personal", "-f", "-p", place, home=home)
    assert result.returncode == os.EX_UNAVAILABLE
    expected = f"cannot listen on {place}: Address already in use; choose another with -p HOST:PORT"
    assert result.stderr == f"tofmipd: {expected}\n"


@pytest.mark.parametrize("place", ["192.0.2.1:8025", "no-such-host.invalid:8025"])
def test_an_address_that_is_not_here_is_named(place, home):
    result = run("--personal", "-f", "-p", place, home=home)
    assert result.returncode == os.EX_UNAVAILABLE
    assert result.stderr.startswith(f"tofmipd: cannot listen on {place}: ")
    assert result.stderr.count("\n") == 1


def test_nothing_is_listened_on_when_one_of_the_places_cannot_be_had(home):
    free = free_port()
    with socket.create_server((HOST, 0)) as taken:
        place = f"{HOST}:{taken.getsockname()[1]}"
        result = run("--personal", "-f", "-p", f"{HOST}:{free}", "-p", place, home=home)
    assert result.returncode == os.EX_UNAVAILABLE
    assert result.stderr.count("\n") == 1


def test_a_log_file_that_cannot_be_written_is_named(home):
    result = run("--personal", "-f", "--log-file", "/no/such/dir/log", home=home)
    assert result.returncode == os.EX_CANTCREAT
    expected = "cannot write the log file /no/such/dir/log: No such file or directory"
    assert result.stderr == f"tofmipd: {expected}\n"


def test_the_password_of_the_next_hop_is_in_no_message(daemon, home, hop):
    home.configure(to_smtp(hop.port), 'SMTPAUTH_PASSWORD = ["' + PASSWORD + '"]')
    reply = submit(daemon.port, TO)
    assert reply.startswith("451 4.3.5 ")
    assert PASSWORD not in reply
    assert PASSWORD not in daemon.text()
