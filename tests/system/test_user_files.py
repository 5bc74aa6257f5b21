"""A user's files: when changes count, where they may be, and that the tools read them alike."""

from __future__ import annotations

import os
import re
import time

import pytest
from clients import Mail, by_smtplib, submit
from oracle import DAY, openssl_mac
from running import Home, run, to_smtp

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
    assert result.returncode == (0 if verdict.startswith("VALID") else 1)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("kw=shop", ["-k", "shop"]),
        ("sender", ["-s", TO]),
        ("domain", ["-s", "example.net"]),
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
