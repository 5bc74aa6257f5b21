"""The rows of the feature table about the dialogue, octet by octet over a real socket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import Mail, by_curl, dialogue, logged_in, plain, submit
from hops import smtp_sink
from running import ADDRESS, HOST, LOGIN, PASSWORD, greets, to_smtp, wait_until

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def host_name() -> str:
    """TO-23: the full name, or the plain one where that is localhost."""
    name = socket.getfqdn()
    return socket.gethostname() if name.partition(".")[0] == "localhost" else name


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
        "AUTH PLAIN LOGIN CRAM-MD5",
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
    ("STARTTLS", r'502 5\.5\.1 Error: command "STARTTLS" not implemented'),
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
        assert talk.say("NOOP " + "x" * 600) == "250 2.0.0 Ok"
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


# --- authentication ---------------------------------------------------------------------------


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ACCEPTED, REJECTED = "235 2.7.0 AUTH successful", "535 5.7.8 .*"
EXCHANGES = [
    # TO-38
    [(f"AUTH PLAIN {plain()}", ACCEPTED)],
    [(f"auth plain {plain()}", ACCEPTED)],
    [("AUTH PLAIN", "334 "), (plain(), ACCEPTED)],
    [(f"AUTH PLAIN {plain(acting_for='bobby')}", ACCEPTED)],
    [(f"AUTH PLAIN {plain('BOBBY', acting_for='Bobby')}", ACCEPTED)],
    [(f"AUTH PLAIN {plain(acting_for='chloe')}", REJECTED)],
    [(f"AUTH PLAIN {b64('bobby FooBar')}", REJECTED)],
    [("AUTH PLAIN not*base64", "501 5.5.2 malformed AUTH input")],
    [("AUTH PLAIN Zm9", "501 5.5.2 malformed AUTH input")],
    [("AUTH PLAIN =", REJECTED)],
    [(f"AUTH PLAIN {plain()} more", "501 5.5.4 .*")],
    [(f"AUTH PLAIN {plain('bobby', '')}", REJECTED)],
    # TO-39
    [
        ("AUTH LOGIN", "334 VXNlcm5hbWU6"),
        (b64("bobby"), "334 UGFzc3dvcmQ6"),
        (b64("FooBar"), ACCEPTED),
    ],
    [(f"AUTH LOGIN {b64('Bobby')}", "334 UGFzc3dvcmQ6"), (b64("FooBar"), ACCEPTED)],
    [(f"AUTH LOGIN {b64('bobby')}", "334 UGFzc3dvcmQ6"), (b64("foobar"), REJECTED)],
    [("AUTH LOGIN", "334 .*"), ("???", "501 5.5.2 malformed AUTH input")],
    # TO-40
    [("AUTH CRAM-MD5", "334 .*"), (b64("bobby " + "0" * 32), REJECTED)],
    [(f"AUTH CRAM-MD5 {b64('bobby')}", "501 5.5.4 .*")],
    # TO-41
    [("AUTH", "504 5.5.4 AUTH type unimplemented")],
    [("AUTH foo", "504 5.5.4 AUTH type unimplemented")],
    [("AUTH SCRAM-SHA-256 abc", "504 5.5.4 AUTH type unimplemented")],
    # TO-42
    [
        ("AUTH LOGIN", "334 .*"),
        ("*", "501 5.7.0 AUTH exchange cancelled"),
        (f"AUTH PLAIN {plain()}", ACCEPTED),
    ],
    # TO-44
    [(f"AUTH PLAIN {plain('../bobby')}", REJECTED)],
    [(f"AUTH PLAIN {plain('-bobby')}", REJECTED)],
    [(f"AUTH PLAIN {plain('.bobby')}", REJECTED)],
    [(f"AUTH PLAIN {b64(chr(0) + 'bob' + chr(27) + 'by' + chr(0) + 'FooBar')}", REJECTED)],
    # TO-43: a second login in the session
    [(f"AUTH PLAIN {plain()}", ACCEPTED), ("AUTH LOGIN", "503 5.5.1 .*")],
]


@pytest.fixture(scope="module")
def exchanges(standing) -> list[list[str]]:
    """What was replied in each of EXCHANGES; at the same time, for each failure takes a second."""

    def replies(exchange: list[tuple[str, str]]) -> list[str]:
        with dialogue(standing.daemon.port) as talk:
            talk.say("EHLO client.example")
            return [talk.say(line) for line, _ in exchange]

    with ThreadPoolExecutor(len(EXCHANGES)) as pool:
        return list(pool.map(replies, EXCHANGES))


@pytest.mark.parametrize("number", range(len(EXCHANGES)), ids=lambda n: EXCHANGES[n][0][0][:30])
def test_an_auth_exchange_goes_as_the_table_says(number, exchanges):
    """TO-38 to TO-44."""
    for (line, reply), said in zip(EXCHANGES[number], exchanges[number], strict=True):
        assert said == reply or re.fullmatch(reply, said), f"{line}: {said}"


def cram_md5(challenge: str, password: str = PASSWORD) -> str:
    """The client's part of RFC 2195; ``challenge`` is the reply with it."""
    octets = base64.b64decode(challenge.removeprefix("334 "))
    return b64(f"{LOGIN} {hmac.new(password.encode(), octets, hashlib.md5).hexdigest()}")


def test_each_cram_md5_challenge_is_fresh_and_serves_once(daemon):
    """TO-40."""
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        first = talk.say("AUTH CRAM-MD5")
        text = base64.b64decode(first.removeprefix("334 ")).decode()
        match = re.fullmatch(r"<([0-9a-f]{32})\.([0-9]{10})@(.*)>", text)
        assert match is not None
        assert match[3] == host_name()
        assert abs(int(match[2]) - time.time()) < 100
        talk.say("*")
        second = talk.say("AUTH CRAM-MD5")
        assert second != first
        assert talk.say(cram_md5(first)).startswith("535")
        assert talk.say(cram_md5(talk.say("AUTH CRAM-MD5"))) == ACCEPTED


def test_passwords_of_the_file_are_split_at_the_first_colon(daemon, home):
    """TO-45."""
    home.write(
        "tofmipd",
        "# some people\n\nbobby:FooBar\n chloe : baz_bap \njohndoe:8i9/hjuy+33\nEve:a:b:c\n",
    )
    logins = [
        ("bobby", "FooBar"),
        ("chloe", "baz_bap"),
        ("johndoe", "8i9/hjuy+33"),
        ("eve", "a:b:c"),
    ]
    for user, password in logins:
        with dialogue(daemon.port) as talk:
            talk.say("EHLO client.example")
            assert talk.say(f"AUTH PLAIN {plain(user, password)}") == ACCEPTED, user


def test_another_password_file_may_be_named(start, home, tmp_path):
    """TO-48."""
    other = tmp_path / "others"
    other.write_text("chloe:baz\n")
    other.chmod(0o400)
    with dialogue(start(home, "-a", str(other)).port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain('chloe', 'baz')}") == ACCEPTED


def test_a_tilde_in_the_name_of_the_password_file_is_the_home_directory(start, home):
    home.write("others", "chloe:baz\n")
    with dialogue(start(home, "--authfile=~/.tmda/others").port) as talk:
        talk.say("EHLO client.example")
        assert talk.say(f"AUTH PLAIN {plain('chloe', 'baz')}") == ACCEPTED


# --- the message ------------------------------------------------------------------------------


def test_sessions_side_by_side_keep_their_own_state(daemon, hop):
    """TO-35."""
    with dialogue(daemon.port) as one, dialogue(daemon.port) as two:
        one.say("EHLO one.example")
        two.say("EHLO two.example")
        for talk in (one, two):
            assert talk.say(f"AUTH PLAIN {plain()}") == ACCEPTED
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


DATE = r"[A-Z][a-z]{2}, [ 0-9]?[0-9] [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}"


@pytest.mark.parametrize(
    ("options", "lines", "expected"),
    [
        ([], [], r"from client\.example \(127\.0\.0\.1\) by {host} \(tofmipd\) with ESMTPA; "),
        (["--received=full"], [], r"from client\.example \(127\.0\.0\.1\) by {host} .*; "),
        (["--received=private"], [], r"from \[127\.0\.0\.1\] by {host} \(tofmipd\) with ESMTPA; "),
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
        assert re.match(r"([245])[0-9]{2} \1\.[0-9]\.[0-9] ", reply), reply


# --- log --------------------------------------------------------------------------------------


def secrets_of_exchange() -> list[str]:
    return [PASSWORD, b64(PASSWORD), plain(), plain()[:-4], b64("FooBar")[:6]]


def test_no_log_ever_holds_a_password(start, home, hop):
    """TO-57, TO-71."""
    daemon = start(home, "-d")
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        talk.say(f"AUTH  PLAIN   {plain()}x")
        talk.say(f"AUTH\tPLAIN {plain()}")
        talk.say("AUTH LOGIN")
        talk.say(b64("bobby"))
        talk.say(b64(PASSWORD))
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        talk.say("AUTH LOGIN " + b64("bobby"))
        talk.say(b64("wrong" + PASSWORD))
        response = cram_md5(talk.say("AUTH CRAM-MD5"))
        assert talk.say(response) == ACCEPTED
        talk.envelope(TO)
        talk.data(MESSAGE)
        talk.say("QUIT")
    daemon.says("QUIT")
    text = daemon.text()
    for secret in [*secrets_of_exchange(), b64("wrong" + PASSWORD), response]:
        assert secret not in text, secret
    assert "AUTH LOGIN ***" in text
    assert re.search(r"auth accepted user='bobby' ip=127\.0\.0\.1 mechanism=CRAM-MD5 source", text)
    assert re.search(r"auth rejected user='bobby' ip=127\.0\.0\.1 mechanism=LOGIN source=", text)


@pytest.mark.parametrize(
    ("option", "shown", "hidden"),
    [
        ("-d", ["MAIL FROM:<bobby@", "S: 250 2.1.5 "], ["very private body"]),
        ("-L", ["auth accepted", "sent to='x@example.net'"], ["MAIL FROM", "very private body"]),
    ],
)
def test_the_log_shows_the_dialogue_only_when_asked_and_never_a_message(
    option, shown, hidden, start, home, hop
):
    """TO-71, TO-72."""
    daemon = start(home, option)
    submit(daemon.port, TO, message=b"Subject: x\r\n\r\nvery private body\r\n")
    daemon.says("sent to=")
    text = daemon.text()
    assert [words for words in shown if words not in text] == []
    assert [words for words in hidden if words in text] == []


def test_a_client_cannot_forge_log_lines(daemon):
    with dialogue(daemon.port) as talk:
        talk.say("EHLO x")
        name = "x\r\n2026-01-01 ERROR forged"
        talk.say("AUTH PLAIN " + base64.b64encode(f"\0{name}\0pw".encode()).decode())
    daemon.says("auth rejected")
    assert not [line for line in daemon.text().splitlines() if line.startswith("2026-01-01 ERROR")]


def test_log_lines_go_to_the_file_that_is_named(start, home, tmp_path):
    log = tmp_path / "file.log"
    daemon = start(home, "--log-file", str(log))
    with logged_in(daemon.port):
        wait_until(lambda: "auth accepted" in log.read_text(), "the log file")
    assert "auth accepted" not in daemon.text()


# --- connections ------------------------------------------------------------------------------


def test_the_start_is_announced_with_date_and_places(start, home):
    """TO-18."""
    daemon = start(home, "-d", listen=("-p", f"{HOST}:0", "-6", "[::1]:0"))
    first, second, third = daemon.text().splitlines()[:3]
    assert re.fullmatch(rf"tofmipd started at {DATE}", first)
    assert second == f"\tListening on 127.0.0.1:{daemon.places[0][1]}"
    assert third == f"\tListening on [::1]:{daemon.places[1][1]}"


def test_several_places_are_listened_on_by_both_protocols(start, home, hop):
    """TO-7, TO-76, TO-77."""
    places = ("-p", f"{HOST}:0", "-p", "127.0.0.2:0", "-6", "[::1]:0", "-6", "::1:0")
    daemon = start(home, listen=places)
    assert [host for host, _ in daemon.places] == ["127.0.0.1", "127.0.0.2", "::1", "::1"]
    assert len({port for _, port in daemon.places}) == 4
    for host, port in daemon.places:
        with dialogue(port, host) as talk:
            talk.log_in()
            talk.envelope(f"x{port}@example.net")
            assert talk.data(MESSAGE).startswith("250")
        client = "::1" if host == "::1" else "127.0.0.1"
        assert f"({client})" in hop.message(f"x{port}@example.net").value("Received")


def test_an_empty_host_means_all_interfaces(start, home):
    """TO-76."""
    (place,) = start(home, listen=("-p", ":0")).places
    assert place[0] == "0.0.0.0"
    assert greets(place[1], "127.0.0.3")


@pytest.mark.peer("curl")
def test_curl_reaches_ipv6(start, home, hop, tmp_path):
    """TO-77."""
    (place,) = start(home, listen=("-6", "[::1]:0")).places
    sent = by_curl(Mail((TO,), "Subject: x\n\nx\n"), place[1], tmp_path, host="[::1]")
    assert sent.status == 0, sent.words
    assert "(::1)" in hop.message(TO).value("Received")


def test_clients_beyond_the_limit_wait_until_there_is_room(start, home):
    """TO-78."""
    daemon = start(home, "-C", "2")
    with dialogue(daemon.port) as one, dialogue(daemon.port) as two:
        with dialogue(daemon.port, greeted=False) as three:
            three.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):
                three.reply()
            three.socket.settimeout(10)
            assert one.say("QUIT").startswith("221")
            one.socket.close()
            assert three.reply().startswith("220")
        assert two.say("NOOP").startswith("250")


def test_a_session_that_does_not_log_in_is_ended(start, home):
    with dialogue(start(home, "--login-timeout", "0.5").port) as talk:
        talk.say("EHLO x")
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""


def test_an_idle_session_is_ended(start, home):
    with logged_in(start(home, "--idle-timeout", "0.3").port) as talk:
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""


def test_a_message_that_stalls_is_given_up(start, home, hop):
    with logged_in(start(home, "--data-timeout", "0.3").port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(b"Subject: x\r\n\r\nnever en")
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""
    assert not hop.commands
