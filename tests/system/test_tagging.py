"""What becomes of the sender's address, seen at the next hop."""

from __future__ import annotations

import pytest
from clients import Mail, by_swaks
from hops import smtp_sink
from oracle import DAY, dated, openssl_mac
from running import to_smtp

pytestmark = pytest.mark.peer("openssl")

TO = "x@example.net"


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
    ("setting", "address", "hashed"),
    [
        ("bare", "bobby@example.org", ""),
        ("sender", "bobby-sender-{mac}@example.org", TO),
        ("ext=lists", "bobby-lists@example.org", ""),
        ("kw=word", "bobby-keyword-word.{mac}@example.org", "word"),
    ],
)
def test_the_default_action_holds_where_no_rule_matches(setting, address, hashed, send, daemon):
    """TO-101."""
    settings = f'ACTION_OUTGOING = "{setting}"'
    (stored,) = send(settings, rules="to nobody@* exp=wrong@example.com\n")
    assert stored.sender == address.format(mac=openssl_mac(hashed))
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
