"""A user's files: when changes count, where they may be, and that the tools read them alike."""

from __future__ import annotations

import os
import re
import time

import pytest
from clients import Mail, by_smtplib, submit
from oracle import DAY, dated, openssl_mac
from running import KEY, Home, run, to_smtp

pytestmark = pytest.mark.peer("openssl")

TO = "x@example.net"


def test_changes_count_from_the_next_message_on(daemon, home, hop):
    def sender() -> str:
        assert submit(daemon.port, TO).startswith("250")
        return hop.messages()[-1].sender

    assert sender().startswith("bobby-dated-")
    home.write("filters/outgoing", "to * ext=one\n")
    assert sender() == "bobby-one@example.org"
    home.write("filters/outgoing", "to * ext=two\n")
    assert sender() == "bobby-two@example.org"
    home.configure(to_smtp(hop.port), 'RECIPIENT_DELIMITER = "+"')
    assert sender() == "bobby+two@example.org"
    home.write("filters/outgoing", "to * sender\n")
    home.write("crypt_key", "ff" * 20 + "\n")
    assert sender() == f"bobby+sender+{openssl_mac(TO, 'ff' * 20)}@example.org"
    (home.tmda / "filters/outgoing").unlink()
    assert sender().startswith("bobby+dated+")


def test_key_and_filter_may_be_elsewhere(send, home):
    """TO-89."""
    home.write("other/key", "ab" * 20 + "\n", 0o640)
    home.write("other/rules", "to * sender\n")
    (stored,) = send(
        'CRYPT_KEY_FILE = "~/.tmda/other/key"',
        'FILTER_OUTGOING = "~/.tmda/other/rules"',
        "ALLOW_MODE_640 = True",
        rules="to * bare\n",
    )
    assert stored.sender == f"bobby-sender-{openssl_mac(TO, 'ab' * 20)}@example.org"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("crypt_key", ["CRYPT_KEY_FILE = 'keys/key'"]),
        ("filters/outgoing", ["FILTER_OUTGOING = 'rules/all'"]),
        ("crypt_key", ["DATADIR = 'data'", "FILTER_OUTGOING = '.tmda/filters/outgoing'"]),
    ],
)
def test_relative_paths_begin_at_home(name, lines, send, home):
    """Not in the directory of the daemon, which is / in the background."""
    for number, directory in enumerate(("keys/key", "rules/all", "data/crypt_key")):
        path = home.path / directory
        path.parent.mkdir(exist_ok=True)
        path.write_text("to * sender\n" if number == 1 else "ab" * 20 + "\n")
        path.chmod(0o600)
    (stored,) = send(*lines, rules="to * sender\n")
    key = "ab" * 20 if name == "crypt_key" else KEY
    assert stored.sender == f"bobby-sender-{openssl_mac(TO, key)}@example.org"


INI = """\
[TMDA_CONFIG]
; a comment
username = bobby
HOSTNAME = example.org
fullname: Bobby Brown
MAIL_TRANSPORT = smtp
SMTPHOST = {host}
X_TMDA_IN_SUBJECT = 1
BARE_APPEND = ~/.tmda/friends
LOGFILE_OUTGOING = ~/.tmda/log
FINGERPRINT = ["subject", "body"]
ADDED_HEADERS_CLIENT = {{"X-Of": "{{x}} %(y)s"}}
ACTION_OUTGOING = dated=1h
HMAC_BYTES = 10
ALLOW_MODE_640 = False
word = lists
"""


def test_a_configuration_in_ini_form_can_say_all_that_one_in_python_can(start, home, hop, tmp_path):
    """TO-88."""
    site = tmp_path / "site"
    site.write_text("CONFIG_EXEC = False\n")
    daemon = start(home, variables={"GLOBAL_TMDARC": str(site)})
    home.write("config", INI.format(host=f"127.0.0.1:{hop.port}"))
    home.write("filters/outgoing", "to a@* bare=append\nto b@* ext=${WORD}\n")
    to = ("a@example.net", "b@example.net", "c@example.net")
    message = b"From: bobby@example.org\r\nSubject: s\r\n\r\nx\r\n"
    assert submit(daemon.port, *to, message=message).startswith("250")
    first, second, third = hop.messages()
    assert first.sender == "bobby@example.org"
    assert second.sender == "bobby-lists@example.org"
    dated(third, 3600)
    assert re.fullmatch(r".*\.[0-9a-f]{20}@example\.org", third.sender)
    assert first.value("X-Of") == "{x} %(y)s"
    assert len(first.value("X-TMDA-Fingerprint")) == 27
    assert (home.tmda / "friends").read_text() == "a@example.net\n"
    assert (home.tmda / "log").read_text().count("  To: ") == 3
    hop.stored.clear()
    message = message.replace(b"Subject: s", b"Subject: X-TMDA ext=x s")
    assert submit(daemon.port, *to, message=message).startswith("250")
    assert {stored.sender for stored in hop.messages()} == {"bobby-x@example.org"}
    home.write("crypt_key", KEY + "\n", 0o640)
    assert submit(daemon.port, TO).startswith("451 4.3.5 Error in your TMDA files: crypt_key: mode")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ('print "hello"', "write print(...)"),
        ("try: x = 1\nexcept ValueError, e: pass", "write 'except X as e:'"),
        ("UMASK = 0600", "write octal numbers as 0o600"),
        ("X = 5L", "write numbers without an L"),
        ("import urllib2", "written for Python 2"),
    ],
)
def test_a_configuration_for_python_2_is_told_what_to_write(line, advice, daemon, home, hop):
    """TO-88."""
    home.configure(to_smtp(hop.port), line)
    said = submit(daemon.port, TO)
    number = 6 + line.count("\n")
    assert said.startswith(f"451 4.3.5 Error in your TMDA files: config line {number}: ")
    daemon.says("ERROR", f"{home.tmda}/config:{number}: ", "written for Python 2", advice)
    assert hop.commands == []


def test_a_configuration_directory_serves_each_login_its_own(start, home, hop, tmp_path):
    """TO-75."""
    home.write("tofmipd", "bobby:FooBar\nchloe:FooBar\n")
    for login in ("bobby", "chloe"):
        (tmp_path / login).mkdir()
        config = f'ACTION_OUTGOING = "ext={login}"\nFULLNAME = "x"\n' + to_smtp(hop.port)
        (tmp_path / login / "config").write_text(config)
    port = start(home, "-c", str(tmp_path)).port
    for login in ("bobby", "chloe"):
        mail = Mail((f"to-{login}@example.net",), "From: a@b.example\n\nx\n", login=login)
        assert by_smtplib(mail, port, tmp_path).status == 0
        assert hop.message(f"to-{login}@example.net").sender == f"a-{login}@b.example"


@pytest.mark.parametrize(
    ("rule", "correspondent", "verdict"),
    [
        ("dated", [], "VALID dated address"),
        ("kw=shop", [], "VALID keyword address"),
        ("sender", [TO], "VALID sender address"),
        ("sender", ["other@example.net"], "BAD sender address"),
        ("domain", ["any@example.net"], "VALID sender address"),
        ("bare", [], "UNTAGGED"),
    ],
)
def test_an_address_that_was_sent_is_checked_by_the_tool(rule, correspondent, verdict, send, home):
    """TO-113."""
    (stored,) = send(rules=f"to * {rule}\n")
    result = run("address", "--check", stored.sender, *correspondent, home=home)
    assert result.stdout == verdict + "\n"
    assert result.returncode == (0 if verdict.startswith("VALID") else os.EX_DATAERR)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("kw=shop", ["-k", "shop"]),
        ("sender", ["-s", TO]),
        ("domain", ["-s", "example.net"]),
        ("domain", ["--domain", TO]),
    ],
)
def test_the_tool_makes_the_address_that_is_sent(rule, options, send, home):
    """TO-113."""
    (stored,) = send(rules=f"to * {rule}\n")
    assert run("address", *options, home=home).stdout == stored.sender + "\n"


def test_the_tool_makes_dated_addresses_that_openssl_confirms(home):
    """TO-113."""
    made = run("address", "-d", "5d", home=home).stdout.strip()
    match = re.fullmatch(r"bobby-dated-(\d+)\.(\w+)@example\.org", made)
    assert match is not None
    assert match[2] == openssl_mac(match[1])
    assert abs(int(match[1]) - time.time() - 5 * DAY) < 60


def matched(home: Home, *words: str) -> list[str]:
    result = run("inject", "-M", *words, home=home)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("to", "rule"),
    [
        ("x@example.net", "to *@=example.net tag from ext=a"),
        ("y@example.com", "from bobby@* tag from dated=5d"),
    ],
)
def test_inject_m_names_the_rule_that_a_real_send_logs(to, rule, daemon, home, hop):
    """TO-113."""
    home.write("filters/outgoing", "to *@=example.net ext=a\nfrom bobby@* dated=5d\n")
    assert submit(daemon.port, to).startswith("250")
    daemon.says(f"to='{to}'", f"rule='{rule}'")
    path = str(home.tmda / "filters/outgoing")
    dashes = "-" * len(f"Checking {path}")
    lines = matched(home, to, "bobby@example.org")
    assert lines == [
        *(f"Checking {path}", dashes, f"To: {to}", "From: bobby@example.org", dashes),
        f"MATCH: {rule}",
    ]


def test_inject_m_says_when_no_rule_matches_or_the_filter_is_wrong(home):
    assert matched(home, TO, "a@b.example")[-1] == "Sorry, no matching lines."
    home.write("filters/outgoing", "to * bare\nnonsense\nto x\n")
    result = run("inject", "-M", TO, "a@b.example", home=home)
    assert result.returncode == os.EX_CONFIG
    path = home.tmda / "filters/outgoing"
    assert result.stderr.startswith(f"tofmipd: {path}:2: 'nonsense' is no source")
    assert f"{path}:3: " in result.stderr
