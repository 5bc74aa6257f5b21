"""What becomes of the sender's address, seen at the next hop; openssl computes the macs anew."""

from __future__ import annotations

import os
import re
import subprocess
import time
from email.utils import parsedate_to_datetime

import pytest
from clients import Mail, by_swaks, submit
from hops import Stored, smtp_sink
from running import KEY, Home, run, to_smtp

pytestmark = pytest.mark.peer("openssl")

TO = "x@example.net"
DAY = 86400


def openssl_mac(data: str, key: str = KEY, digits: int = 6) -> str:
    """HMAC-SHA1 of ``data`` by another program, cut to ``digits``."""
    result = subprocess.run(
        ["openssl", "dgst", "-sha1", "-mac", "hmac", "-macopt", f"hexkey:{key}"],
        input=data.encode(),
        capture_output=True,
        check=True,
    )
    return result.stdout.decode().split()[-1][:digits]


def message(*fields: str) -> bytes:
    lines = fields or ("From: Bobby <bobby@example.org>", "To: x@example.net", "Subject: x")
    return "\r\n".join([*lines, "", "body", ""]).encode()


@pytest.fixture
def send(daemon, home, hop):
    """Configure, send one message, and say what arrived, in the order of arrival."""

    def send(
        *settings: str,
        rules: str = "",
        to: tuple[str, ...] = (TO,),
        fields: tuple[str, ...] = (),
        sender: str = "bobby@example.org",
    ) -> list[Stored]:
        home.configure(to_smtp(hop.port), *settings)
        home.write("filters/outgoing", rules)
        reply = submit(daemon.port, *to, message=message(*fields), sender=sender)
        assert reply.startswith("250"), reply
        return hop.messages()

    return send


def dated(stored: Stored, seconds: int, pattern: str = r"bobby-dated-(\d+)\.(\w+)@example\.org"):
    """Assert that the sender of a message is a good dated address; its cookie."""
    match = re.fullmatch(pattern, stored.sender)
    assert match is not None, stored.sender
    assert abs(int(match[1]) - time.time() - seconds) < 60
    return match


def test_a_dated_address_holds_its_time_and_its_mac(send):
    """TO-90, TO-94, TO-101: what happens without any rule."""
    (stored,) = send()
    match = dated(stored, 5 * DAY)
    assert match[2] == openssl_mac(match[1])
    assert stored.value("From") == f"Bobby <{stored.sender}>"


@pytest.mark.parametrize("number", [0, 1, 5, 20, 99])
def test_hmac_bytes_say_how_long_the_mac_is(number, send):
    """TO-90."""
    (stored,) = send(f"HMAC_BYTES = {number}")
    match = dated(stored, 5 * DAY, r"bobby-dated-(\d+)\.(\w*)@example\.org")
    assert match[2] == openssl_mac(match[1], digits=2 * number)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("8d", 8 * DAY),
        ("1M", 30 * DAY),
        ("2Y", 730 * DAY),
        ("3w", 21 * DAY),
        ("36h", 1.5 * DAY),
        ("90m", 5400),
        ("600s", 600),
    ],
)
def test_units_of_timeouts_count_in_setting_and_rule(timeout, seconds, send):
    """TO-94."""
    (stored,) = send(f'DATED_TIMEOUT = "{timeout}"')
    dated(stored, seconds)
    stored = send(rules=f"to * dated={timeout}\n")[-1]
    dated(stored, seconds)


@pytest.mark.parametrize(
    ("action", "hashed"),
    [
        ("sender", "carol.x@shop.example.net"),
        ("sender=Other@Example.COM", "other@example.com"),
        ("domain", "shop.example.net"),
        ("domain=any@Example.COM", "example.com"),
    ],
)
def test_a_sender_address_is_good_for_its_correspondent(action, hashed, send):
    """TO-91."""
    (stored,) = send(rules=f"to * {action}\n", to=("Carol.X@Shop.Example.Net",))
    assert stored.sender == f"bobby-sender-{openssl_mac(hashed)}@example.org"


@pytest.mark.parametrize(
    ("action", "word"),
    [
        ("kw=shop", "shop"),
        ("keyword=SHOP", "shop"),
        ("kw=a-b.c@d", "a?b?c?d"),
        ('tag from "kw=a b-c"', "a?b?c"),
    ],
)
def test_a_keyword_address_holds_the_word(action, word, send):
    """TO-92."""
    (stored,) = send(rules=f"to * {action}\n")
    assert stored.sender == f"bobby-keyword-{word}.{openssl_mac(word)}@example.org"


def test_delimiter_and_tag_words_are_the_users(send):
    """TO-93."""
    words = (
        'RECIPIENT_DELIMITER = "+"',
        'TAGS_DATED = ["d", "dated"]',
        'TAGS_SENDER = ["s"]',
        'TAGS_KEYWORD = ["k"]',
    )
    rules = "to a@* dated\nto b@* sender\nto c@* kw=a+b-c\n"
    one, two, three = send(
        *words, rules=rules, to=("a@example.net", "b@example.net", "c@example.net")
    )
    match = dated(one, 5 * DAY, r"bobby\+d\+(\d+)\.(\w+)@example\.org")
    assert match[2] == openssl_mac(match[1])
    assert two.sender == f"bobby+s+{openssl_mac('b@example.net')}@example.org"
    assert three.sender == f"bobby+k+a?b-c.{openssl_mac('a?b-c')}@example.org"


@pytest.mark.parametrize(
    ("action", "address"),
    [
        ("bare", "bobby@example.org"),
        ("exp=other@example.com", "other@example.com"),
        ("explicit=other@example.com", "other@example.com"),
        ("as=other@example.com", "other@example.com"),
        ("ext=lists", "bobby-lists@example.org"),
        ("extension=lists", "bobby-lists@example.org"),
        ("default", "bobby-fallback@example.org"),
    ],
)
def test_each_action_makes_its_address(action, address, send):
    """TO-100."""
    (stored,) = send('ACTION_OUTGOING = "ext=fallback"', rules=f"to * {action}\n")
    assert stored.sender == address
    assert stored.value("From") == f"Bobby <{address}>"


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("bare", "bobby@example.org"),
        ("sender", f"bobby-sender-{openssl_mac(TO)}@example.org"),
        ("ext=lists", "bobby-lists@example.org"),
        ("kw=word", f"bobby-keyword-word.{openssl_mac('word')}@example.org"),
    ],
)
def test_the_default_action_holds_where_no_rule_matches(setting, address, send, daemon):
    """TO-101."""
    settings = f'ACTION_OUTGOING = "{setting}"'
    (stored,) = send(settings, rules="to nobody@* exp=wrong@example.com\n")
    assert stored.sender == address
    daemon.says(f"rule='action_outgoing ({setting})'")


@pytest.mark.parametrize(
    ("rules", "extension"),
    [
        ("to x@example.net ext=a\nto * ext=b\n", "a"),
        ("to X@EXAMPLE.NET ext=a\n", "a"),
        ("to *@example.net ext=a\n", "a"),
        ("to ?@example.* ext=a\n", "a"),
        ("to [xyz]@example.net ext=a\n", "a"),
        ("to [!xyz]@example.net ext=a\nto * ext=b\n", "b"),
        ("to *@=net ext=a\n", "a"),
        ("to *@=example.net ext=a\n", "a"),
        ("to *@=ample.net ext=a\nto * ext=b\n", "b"),
        ("from bobby@* ext=a\n", "a"),
        ("from *@=org ext=a\n", "a"),
        ("from x@* ext=a\nto * ext=b\n", "b"),
        ("# to * ext=no\n\nto *   ext=a # not that\n", "a"),
        ("to *\n   # in between\n   ext=a\n", "a"),
        ("to 'x@example.net' ext=a\n", "a"),
    ],
)
def test_the_first_rule_that_matches_wins(rules, extension, send):
    """The sources "to" and "from" with their wildcards."""
    (stored,) = send(rules=rules)
    assert stored.sender == f"bobby-{extension}@example.org"


def test_tag_gives_each_header_its_own_address(send):
    """TO-100."""
    rules = (
        "to * tag envelope dated=1d from sender Reply-To kw=answers x-text 'plain words'"
        " x-Other-NAME ext=o\n"
    )
    (stored,) = send(rules=rules, fields=("From: Bobby <bobby@example.org>", "Reply-To: old@b.c"))
    dated(stored, DAY)
    sender = f"bobby-sender-{openssl_mac(TO)}@example.org"
    keyword = f"bobby-keyword-answers.{openssl_mac('answers')}@example.org"
    assert stored.value("From") == f"Bobby <{sender}>"
    assert stored.value("Reply-To") == f"Bobby <{keyword}>"
    assert stored.value("X-Text") == "plain words"
    assert stored.value("X-Other-Name") == "Bobby <bobby-o@example.org>"


def test_each_recipient_gets_a_copy_with_the_tag_made_for_it(send):
    """TO-104."""
    to = ("a@example.net", "b@example.net", "c@example.com", "hidden@example.net")
    fields = ("From: bobby@example.org", "To: a@example.net", "Bcc: hidden@example.net")
    copies = send(rules="to *@example.net sender\nto * domain\n", to=to, fields=fields)
    assert [copy.recipients for copy in copies] == [(address,) for address in to]
    assert len({copy.sender for copy in copies}) == 4
    for copy in copies:
        hashed = copy.recipients[0].removeprefix("c@")
        assert copy.sender == f"bobby-sender-{openssl_mac(hashed)}@example.org"
        assert copy.value("From") == f"Bobby Brown <{copy.sender}>"
        assert not copy.values("Bcc")
        assert b"hidden" not in copy.head


def test_equal_copies_travel_together(send):
    to = ("a@example.net", "b@example.net", "c@example.com")
    one, two = send(rules="to *@example.net bare\nto * ext=x\n", to=to)
    assert one.recipients == to[:2]
    assert two.recipients == to[2:]


@pytest.mark.peer("swaks", "smtp-sink")
def test_three_recipients_of_swaks_make_three_files_at_smtp_sink(daemon, home, tmp_path):
    """TO-104."""
    to = ("a@example.net", "b@example.net", "c@example.net")
    home.write("filters/outgoing", "to * sender\n")
    with smtp_sink(tmp_path / "sink") as sink:
        home.configure(to_smtp(sink.port))
        mail = Mail(to, "From: bobby@example.org\nTo: a@example.net\n\nhello\n")
        assert by_swaks(mail, daemon.port, tmp_path).status == 0
        for address in to:
            stored = sink.message(address)
            assert stored.sender == f"bobby-sender-{openssl_mac(address)}@example.org"
        assert len(sink.messages()) == 3


# --- From and the envelope --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ([], "bobby@example.org", "Bobby Brown <bobby-t@example.org>"),
        ([], "<bobby@example.org>", "Bobby Brown <bobby-t@example.org>"),
        ([], "Bob <Bobby@Example.ORG>", "Bob <Bobby-t@Example.ORG>"),
        ([], '"B. Brown" <bobby@example.org>', '"B. Brown" <bobby-t@example.org>'),
        ([], "bobby@example.org (Bob)", "Bob <bobby-t@example.org>"),
        ([], "=?utf-8?q?B=C3=B6b?= <bobby@x.example>", "=?utf-8?q?B=C3=B6b?= <bobby-t@x.example>"),
        ([], "Böb <bobby@example.org>", "Böb <bobby-t@example.org>"),
        ([], "", "Bobby Brown <bobby-t@example.org>"),
        ([], "no address", "Bobby Brown <bobby-t@example.org>"),
        (['FULLNAME = "Somebody Else"'], "b@c.example", "Somebody Else <b-t@c.example>"),
        (['MESSAGE_FROM_STYLE = "address"'], "Bob <bobby@example.org>", "bobby-t@example.org"),
        (['USERNAME = "me"', 'HOSTNAME = "here.example"'], "", "Bobby Brown <me-t@here.example>"),
    ],
)
def test_from_keeps_the_name_and_gets_the_tag(settings, field, expected, send):
    """TO-105."""
    (stored,) = send(*settings, rules="to * ext=t\n", fields=(f"From: {field}",))
    assert stored.value("From") == expected
    assert stored.sender == re.sub(r".*<(.*)>", r"\1", expected)


def test_a_message_without_from_gets_one(send):
    (stored,) = send(rules="to * ext=t\n", fields=("Subject: x",))
    assert stored.value("From") == "Bobby Brown <bobby-t@example.org>"


def test_a_resent_message_keeps_its_from(send):
    """TO-105."""
    fields = (
        "Resent-From: Bob <bobby@example.org>",
        "Resent-To: x@example.net",
        "From: Carol <carol@example.com>",
    )
    (stored,) = send(rules="from bobby@* ext=t\n", fields=fields)
    assert stored.value("Resent-From") == "Bob <bobby-t@example.org>"
    assert stored.value("From") == "Carol <carol@example.com>"
    assert stored.sender == "bobby-t@example.org"


@pytest.mark.parametrize("sender", ["", "bobby@example.org", "other@example.com"])
def test_the_envelope_sender_comes_from_the_tag_not_from_the_client(sender, send):
    (stored,) = send(rules="to * ext=t\n", sender=sender)
    assert stored.sender == "bobby-t@example.org"


def test_the_null_sender_can_be_asked_for(send):
    """TO-31."""
    (stored,) = send(rules="to * tag from ext=t envelope exp=<>\n")
    assert stored.sender == ""
    assert stored.value("From") == "Bobby <bobby-t@example.org>"


# --- header -----------------------------------------------------------------------------------


def test_what_is_missing_in_the_header_is_added(send):
    """TO-107."""
    (stored,) = send(fields=("From: bobby@example.org",))
    date = parsedate_to_datetime(stored.value("Date"))
    assert abs(date.timestamp() - time.time()) < 60
    assert re.fullmatch(r"<\S+@\S+>", stored.value("Message-ID"))
    assert re.fullmatch(r"tofmipd/[0-9.]+", stored.value("X-Delivery-Agent"))


DATE, MESSAGE_ID = "Thu, 1 Jan 2026 00:00:00 +0100", "<given@example.org>"
GIVEN = ("From: bobby@example.org", f"Date: {DATE}", f"Message-ID: {MESSAGE_ID}")


@pytest.mark.parametrize(
    ("settings", "date_kept", "id_kept"),
    [
        ([], True, True),
        (['TMDAINJECT = "d"'], False, True),
        (['TMDAINJECT = "i"'], True, False),
        (['TMDAINJECT = "di"'], False, False),
    ],
)
def test_date_and_message_id_are_kept_unless_the_user_wants_new_ones(
    settings, date_kept, id_kept, send
):
    """TO-107."""
    (stored,) = send(*settings, fields=GIVEN)
    assert (stored.value("Date") == DATE) == date_kept
    assert (stored.value("Message-ID") == MESSAGE_ID) == id_kept


def test_headers_are_added_then_purged_and_bcc_never_passes(send):
    """TO-107."""
    (stored,) = send(
        'ADDED_HEADERS_CLIENT = {"X-Org": "Ours", "X-Gone": "no"}',
        'PURGED_HEADERS_CLIENT = ["x-gone", "X-Mailer"]',
        fields=(
            "From: bobby@example.org",
            "X-Org: theirs",
            "X-Mailer: spy",
            "Bcc: hidden@example.net",
            "Resent-Bcc: hidden@example.net",
            "X-Delivery-Agent: other",
        ),
    )
    assert stored.value("X-Org") == "Ours"
    for name in ("X-Gone", "X-Mailer", "Bcc", "Resent-Bcc"):
        assert not stored.values(name)
    assert stored.value("X-Delivery-Agent").startswith("tofmipd/")
    assert b"hidden" not in stored.octets


# --- files ------------------------------------------------------------------------------------


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
        assert by_swaks(mail, port, tmp_path).status == 0
        assert hop.message(f"to-{login}@example.net").sender == f"a-{login}@b.example"


# --- the tools agree with the daemon ----------------------------------------------------------


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
