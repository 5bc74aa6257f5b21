"""The rows of the feature table about the dialogue, octet by octet over a real socket."""

from __future__ import annotations

import base64
import re

import pytest
from clients import dialogue, logged_in, plain, submit
from hops import smtp_sink
from running import ADDRESS, DATE, host_name, to_smtp

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def test_the_greeting_names_host_and_program(daemon):
    """TO-23."""
    with dialogue(daemon.port, greeted=False) as talk:
        assert talk.reply() == f"220 {host_name()} ESMTP tofmipd"


def test_ehlo_lists_the_extensions(daemon):
    """TO-25, BX-37."""
    with dialogue(daemon.port) as talk:
        first, *keywords = talk.say("EHLO client.example").split("\n")
    assert first == f"250-{host_name()}"
    assert [word[:4] for word in keywords] == ["250-"] * (len(keywords) - 1) + ["250 "]
    assert [word[4:] for word in keywords] == [
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "CHUNKING",
        "DSN",
        "AUTH PLAIN LOGIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256",
        "ENHANCEDSTATUSCODES",
    ]


BEFORE_LOGIN = [
    ("HELO client.example", f"250 {host_name()}"),
    ("HELO", "501 5.5.4 Syntax: HELO hostname"),
    ("EHLO", "501 5.5.4 Syntax: EHLO hostname"),
    ("EHLO  ", "501 5.5.4 Syntax: EHLO hostname"),
    ("NOOP", "250 2.0.0 Ok"),
    ("NOOP what you like", "250 2.0.0 Ok"),
    ("RSET", "250 2.0.0 Ok"),
    ("RSET now", "501 5.5.4 Syntax: RSET"),
    ("VRFY bobby", "252 2.0.0 .*"),
    ("MAIL FROM:<a@b.example>", "530 5.7.0 Error: Authentication required"),
    ("RCPT TO:<a@b.example>", "530 5.7.0 Error: Authentication required"),
    ("DATA", "530 5.7.0 Error: Authentication required"),
    ("", "500 5.5.2 Error: bad syntax"),
    ("HOP", r'502 5\.5\.1 Error: command "HOP" not implemented'),
    ("HOP\0\x1b[1m", r'502 5\.5\.1 Error: command "HOP\\x00\\x1b\[1m" not implemented'),
    ("STARTTLS", "503 5.5.1 Error: STARTTLS is not offered here"),
    ("quit x", "221 2.0.0 Bye"),
]


@pytest.mark.parametrize(("line", "reply"), BEFORE_LOGIN)
def test_before_the_login_commands_are_answered_as_the_table_says(line, reply, daemon):
    """TO-2, TO-24 to TO-28."""
    with dialogue(daemon.port) as talk:
        said = talk.say(line)
        assert said == reply or re.fullmatch(reply, said), said


AFTER_LOGIN = [
    (["RCPT TO:<a@b.example>"], "503 5.5.1 Error: need MAIL command"),
    (["DATA"], "503 5.5.1 Error: need MAIL command"),
    (["MAIL FROM:<a@b.example>", "DATA"], "503 5.5.1 Error: need RCPT command"),
    (["MAIL FROM:<a@b.example>", "MAIL FROM:<a@b.example>"], "503 5.5.1 Error: nested MAIL .*"),
    (["MAIL FROM:<>"], "250 2.1.0 Sender ok"),
    (["mail from:<a@b.example>"], "250 2.1.0 Sender ok"),
    (["MAIL FROM: <a@b.example>"], "250 2.1.0 Sender ok"),
    (["MAIL FROM:a@b.example"], "250 2.1.0 Sender ok"),
    (['MAIL FROM:<"a b"@c.example>'], "250 2.1.0 Sender ok"),
    (["MAIL"], "501 5.5.4 Syntax: MAIL FROM:<address>"),
    (["MAIL FROM:"], "501 5.5.4 Syntax: MAIL FROM:<address>"),
    (["MAIL a@b.example"], "501 5.5.4 Syntax: MAIL FROM:<address>"),
    (["MAIL FROM:<a@b.example"], "501 5.1.7 .*"),
    (["MAIL FROM:<a b@c.example>"], "501 5.1.7 .*"),
    (["MAIL FROM:<a@b.example> SIZE=1000 BODY=8BITMIME AUTH=<>"], "250 2.1.0 Sender ok"),
    (["MAIL FROM:<a@b.example> size=1000 body=7bit"], "250 2.1.0 Sender ok"),
    (["MAIL FROM:<a@b.example> FOO=1"], r'555 5\.5\.4 Error: parameter "FOO" not recognized'),
    (["MAIL FROM:<a@b.example> SIZE=much"], "501 5.5.4 Syntax: SIZE=number"),
    (["MAIL FROM:<a@b.example> BODY=9BIT"], "501 5.5.4 Syntax: BODY=.*"),
    (["MAIL FROM:<a@b.example> SIZE=99999999999"], "552 5.3.4 .*"),
    (["MAIL FROM:<a@b.example>", "RCPT"], "501 5.5.4 Syntax: RCPT TO:<address>"),
    (["MAIL FROM:<a@b.example>", "RCPT TO:"], "501 5.5.4 Syntax: RCPT TO:<address>"),
    (["MAIL FROM:<a@b.example>", "RCPT TO:<>"], "501 5.1.3 .*"),
    (["MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example> FOO=1"], "555 5.5.4 .*"),
    (["MAIL FROM:<a@b.example>", "RCPT TO:<-x@y.example>"], "250 2.1.5 Recipient ok"),
    (["MAIL FROM:<a@b.example>", "RCPT TO:<x@y.example>", "DATA x"], "501 5.5.4 Syntax: DATA"),
    (["MAIL FROM:<a@b.example>", "RSET", "RCPT TO:<x@y.example>"], "503 5.5.1 .* need MAIL .*"),
    (["MAIL FROM:<a@b.example>", "EHLO z", "RCPT TO:<x@y.example>"], "503 5.5.1 .* need MAIL .*"),
    ([f"AUTH PLAIN {plain()}"], "503 5.5.1 Error: already authenticated"),
]


@pytest.mark.parametrize(("lines", "reply"), AFTER_LOGIN)
def test_after_the_login_commands_are_answered_as_the_table_says(lines, reply, daemon):
    """TO-25 to TO-31, TO-43."""
    with logged_in(daemon.port) as talk:
        for line in lines[:-1]:
            assert talk.say(line).startswith("250")
        said = talk.say(lines[-1])
        assert said == reply or re.fullmatch(reply, said), said


def test_quit_closes(daemon):
    """TO-27."""
    with dialogue(daemon.port) as talk:
        assert talk.say("QUIT x") == "221 2.0.0 Bye"
        assert talk.reply() == ""


@pytest.mark.parametrize("line", ["x" * 4097, "NOOP " + "x" * 4092, "MAIL FROM:<" + "x" * 5000])
def test_an_overlong_command_is_refused(line, daemon):
    """TO-36."""
    with logged_in(daemon.port) as talk:
        assert talk.say(line).startswith("500 5.5.")


def test_long_but_not_overlong_lines_are_taken(daemon):
    """TO-36."""
    with dialogue(daemon.port) as talk:
        assert talk.say("NOOP " + "x" * 505) == "250 2.0.0 Ok"
        assert talk.say("NOOP " + "x" * 595) == "500 5.5.2 Error: command too long"
        assert talk.say("EHLO x").startswith("250")
        response = base64.b64encode(b"\0bobby\0" + b"x" * 9000).decode()
        assert talk.say(f"AUTH PLAIN {response}").startswith("535")


def test_a_line_without_end_is_cut_off(daemon):
    with dialogue(daemon.port) as talk:
        talk.send(b"x" * 20_000)
        assert talk.reply().startswith("500 5.5.")
        assert talk.reply() == ""


@pytest.mark.parametrize("octets", [b"NOOP\n", b"NOOP\r\r\n", b"NO\nOP\r\n", b"NO\rOP\r\n"])
def test_only_cr_lf_ends_a_command(octets, daemon):
    with dialogue(daemon.port) as talk:
        talk.send(octets)
        assert talk.reply() == "500 5.5.2 Error: a line must end with CR LF"
        assert talk.reply() == ""


def test_hundred_recipients_are_taken_and_too_many_are_not(start, home, hop):
    """TO-36."""
    recipients = [f"r{number}@example.net" for number in range(120)]
    with logged_in(start(home, "--max-recipients", "120").port) as talk:
        talk.envelope(*recipients)
        assert talk.say("RCPT TO:<more@example.net>") == "452 4.5.3 Error: too many recipients"
        assert talk.data(MESSAGE).startswith("250")
    (stored,) = hop.messages()
    assert list(stored.recipients) == recipients


def test_too_many_errors_end_the_session(start, home):
    with dialogue(start(home, "--max-errors", "3").port) as talk:
        assert talk.say("A").startswith("502")
        assert talk.say("B").startswith("502")
        assert talk.say("C").startswith("421 4.7.0 ")
        assert talk.reply() == ""


def test_sessions_side_by_side_keep_their_own_state(daemon, hop):
    """TO-35."""
    with dialogue(daemon.port) as one, dialogue(daemon.port) as two:
        one.say("EHLO one.example")
        two.say("EHLO two.example")
        for talk in (one, two):
            assert talk.say(f"AUTH PLAIN {plain()}").startswith("235")
        one.envelope("one@example.net")
        two.envelope("two@example.net")
        assert one.say("DATA").startswith("354")
        assert two.say("DATA").startswith("354")
        one.send(b"Subject: from")
        two.send(b"Subject: from two\r\n\r\ntw")
        one.send(b" one\r\n\r\none\r\n.\r\n")
        assert one.reply().startswith("250")
        two.send(b"o\r\n.\r\n")
        assert two.reply().startswith("250")
    for name in ("one", "two"):
        stored = hop.message(f"{name}@example.net")
        assert stored.value("Received").startswith(f"from {name}.example (127.0.0.1) by ")
        assert stored.value("Subject") == f"from {name}"
        assert stored.body == f"{name}\r\n".encode()


@pytest.mark.parametrize(
    ("options", "lines", "expected"),
    [
        (
            [],
            [],
            r"from client\.example \(127\.0\.0\.1\) by {host} \(tofmipd\)"
            r" with ESMTPA id [0-9a-f]{{8}}; ",
        ),
        (["--received=full"], [], r"from client\.example \(127\.0\.0\.1\) by {host} .*; "),
        (
            ["--received=private"],
            [],
            r"from \[127\.0\.0\.1\] by {host} \(tofmipd\) with ESMTPA id [0-9a-f]{{8}}; ",
        ),
        ([], ['RECEIVED = "private"'], r"from \[127\.0\.0\.1\] by {host} .*; "),
        (["--received=none"], ['RECEIVED = "full"'], r"from client\.example \(127.*; "),
        (["--received=none"], [], None),
        ([], ['RECEIVED = "none"'], None),
    ],
)
def test_received_tells_what_is_asked_for(options, lines, expected, start, home, hop):
    """TO-37, BX-11."""
    home.configure(to_smtp(hop.port), *lines)
    assert submit(start(home, *options).port, TO).startswith("250")
    stored = hop.message(TO)
    if expected is None:
        assert stored.values("Received") == []
        return
    pattern = expected.format(host=re.escape(host_name())) + DATE
    assert re.fullmatch(pattern, stored.value("Received"))
    assert stored.octets.startswith(b"Received: ")


@pytest.mark.parametrize("setting", ["private", "none"])
def test_a_private_received_shows_neither_the_clients_name_nor_login(setting, daemon, home, hop):
    """BX-11."""
    home.configure(to_smtp(hop.port), f'RECEIVED = "{setting}"')
    with dialogue(daemon.port) as talk:
        talk.say("EHLO secret-laptop.example")
        talk.say(f"AUTH PLAIN {plain()}")
        talk.envelope(TO)
        assert talk.data(b"From: a@b.example\r\n\r\nx\r\n.\r\n").startswith("250")
    assert b"secret-laptop" not in hop.message(TO).head
    assert b"login" not in hop.message(TO).head


def test_variables_of_one_session_mode_mean_nothing_to_a_daemon(start, home, hop):
    """TO-12."""
    lies = {"TCPREMOTEIP": "6.6.6.6", "TCPREMOTEHOST": "evil.example", "REMOTE_HOST": "6.6.6.7"}
    assert submit(start(home, variables=lies).port, TO).startswith("250")
    received = hop.message(TO).value("Received")
    assert "(127.0.0.1)" in received
    assert not re.search("6.6.6|evil", received)


def test_a_whole_transaction_in_one_packet_is_answered_in_order(daemon, hop):
    """BX-37."""
    with dialogue(daemon.port) as talk:
        talk.send(
            f"EHLO x.example\r\nAUTH PLAIN {plain()}\r\nMAIL FROM:<{ADDRESS}>\r\n"
            "RCPT TO:<one@example.net>\r\nRCPT TO:<@>\r\nRCPT TO:<two@example.net>\r\n"
            "DATA\r\n".encode()
            + MESSAGE
            + f"MAIL FROM:<{ADDRESS}>\r\nNOOP\r\nRSET\r\nQUIT\r\n".encode()
        )
        replies = [talk.reply()[:4] for _ in range(12)]
        assert talk.reply() == ""
    codes = [250, 235, 250, 250, 501, 250, 354, 250, 250, 250, 250, 221]
    assert replies == [f"{code}-" if n == 0 else f"{code} " for n, code in enumerate(codes)]
    (stored,) = hop.messages()
    assert stored.recipients == ("one@example.net", "two@example.net")


def test_pipelined_commands_behind_a_failed_login_do_nothing(daemon, hop):
    with dialogue(daemon.port) as talk:
        talk.send(
            b"EHLO x.example\r\nAUTH LOGIN\r\nYm9iYnk=\r\nd3Jvbmc=\r\n"
            b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nQUIT\r\n"
        )
        codes = [talk.reply()[:3] for _ in range(8)]
    assert codes == ["250", "334", "334", "535", "530", "530", "530", "221"]
    assert not hop.commands


def test_eight_bit_mail_is_announced_to_the_next_hop(daemon, hop):
    """BX-37."""
    with logged_in(daemon.port) as talk:
        assert talk.say(f"MAIL FROM:<{ADDRESS}> BODY=8BITMIME SIZE=60").startswith("250")
        assert talk.say(f"RCPT TO:<{TO}>").startswith("250")
        assert talk.data(MESSAGE).startswith("250")
    (command,) = [command for command in hop.commands if command.startswith("MAIL")]
    size = len(hop.message(TO).octets)
    assert re.fullmatch(rf"MAIL FROM:<bobby-dated-\S+> SIZE={size} BODY=8BITMIME", command)


@pytest.mark.peer("smtp-sink")
def test_a_next_hop_of_the_old_protocol_is_good_enough(daemon, home, tmp_path):
    with smtp_sink(tmp_path / "sink", "-e", "-p", "-8") as sink:
        home.configure(to_smtp(sink.port))
        assert submit(daemon.port, TO).startswith("250")
        assert sink.message(TO).sender.startswith("bobby-dated-")


def test_each_enhanced_status_code_agrees_with_its_reply_code(daemon):
    """BX-37."""
    with logged_in(daemon.port) as talk:
        lines = [
            *("NOOP", "RSET", "VRFY x", "HELP", "X", "", "RSET x", f"MAIL FROM:<{ADDRESS}>"),
            *(f"RCPT TO:<{TO}>", "RCPT", "RCPT TO:<x> A=b", "AUTH PLAIN", "QUIT"),
        ]
        replies = [talk.say(line) for line in lines]
    for reply in replies:
        assert re.match(r"([245])[0-9]{2}[ -]\1\.[0-9]\.[0-9] ", reply), reply
