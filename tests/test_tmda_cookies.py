"""Tagged addresses: what is made can be checked, and nothing else can."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.tmda import cookies
from tofmipd.tmda.cookies import Check, Kind, TagSettings
from tofmipd.tmda.errors import TagError

KEY = bytes.fromhex("00112233445566778899aabbccddeeff01234567")
NOW = 1_700_000_000.0
DAY = 86400
PLAIN = TagSettings(KEY)
VARIANTS = [
    PLAIN,
    TagSettings(KEY, recipient_delimiter=b"+"),
    TagSettings(KEY, recipient_delimiter=b"="),
    TagSettings(KEY, hmac_bytes=20),
    TagSettings(KEY, hmac_bytes=0),
    TagSettings(b"k" * 80, hmac_bytes=1),
    TagSettings(
        KEY, tags_dated=(b"D", b"date"), tags_keyword=(b"Key",), tags_sender=(b"S", b"from")
    ),
]

noise = settings(max_examples=150, deadline=None)
anything = st.binary(max_size=40)
without_at = anything.map(lambda octets: octets.replace(b"@", b""))
addresses = st.builds(lambda local, domain: local + b"@" + domain, without_at, without_at)
variants = st.sampled_from(VARIANTS)


def check(tags, address, correspondent=b"", now=NOW):
    return cookies.check_address(tags, address, correspondent, now)


@noise
@given(variants, addresses, st.sampled_from(["", "0s", "1s", "3d", "2w", "10Y"]))
def test_a_dated_address_of_anybody_can_be_checked(tags, address, timeout):
    made = cookies.dated_address(tags, address, timeout, NOW)
    assert check(tags, made) == (Check.VALID, Kind.DATED)
    assert check(tags, made.upper()) == (Check.VALID, Kind.DATED)


@noise
@given(variants, addresses, anything)
def test_a_keyword_address_for_any_word_can_be_checked(tags, address, keyword):
    made = cookies.keyword_address(tags, address, keyword)
    assert check(tags, made) == (Check.VALID, Kind.KEYWORD)
    assert check(tags, made.upper()) == (Check.VALID, Kind.KEYWORD)


@noise
@given(variants, addresses, anything)
def test_a_sender_address_for_any_correspondent_can_be_checked(tags, address, correspondent):
    made = cookies.sender_address(tags, address, correspondent)
    assert check(tags, made, correspondent) == (Check.VALID, Kind.SENDER)
    assert check(tags, made, correspondent.upper()) == (Check.VALID, Kind.SENDER)


@noise
@given(variants, addresses, without_at, without_at)
def test_a_domain_address_holds_for_the_domain_and_below(tags, address, local, domain):
    correspondent = local + b"@" + domain
    made = cookies.domain_address(tags, address, correspondent)
    assert check(tags, made, correspondent) == (Check.VALID, Kind.SENDER)
    assert check(tags, made, b"other@" + domain) == (Check.VALID, Kind.SENDER)
    assert check(tags, made, b"other@sub." + domain) == (Check.VALID, Kind.SENDER)


@noise
@given(variants, addresses, anything)
def test_the_parts_of_the_own_address_are_kept_around_the_tag(tags, address, word):
    local, _, domain = address.partition(b"@")
    for made in (
        cookies.dated_address(tags, address, "1d", NOW),
        cookies.sender_address(tags, address, word),
        cookies.keyword_address(tags, address, word),
    ):
        assert made.startswith(local + tags.recipient_delimiter)
        assert made.endswith(b"@" + domain)
        assert made.count(b"@") == 1


@noise
@given(variants, st.one_of(anything, addresses), anything)
@example(PLAIN, b"a-dated-.@x", b"")
@example(PLAIN, b"a-dated-12@x", b"")
@example(PLAIN, b"-dated-\xb2.abc@x", b"")
@example(PLAIN, b"-keyword-@", b"")
@example(PLAIN, b"-sender-", b"@")
def test_checking_noise_ends_in_a_verdict(tags, address, correspondent):
    verdict, kind = check(tags, address, correspondent)
    assert isinstance(verdict, Check)
    assert (kind is None) == (verdict is Check.UNTAGGED)


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        (-1, Check.VALID),
        (0, Check.VALID),
        (0.999, Check.VALID),
        (1, Check.EXPIRED),
        (DAY, Check.EXPIRED),
    ],
)
def test_a_dated_address_holds_until_the_end_of_its_last_second(later, verdict):
    made = cookies.dated_address(PLAIN, b"alice@example.com", "1d", NOW + 0.75)
    assert made.startswith(b"alice-dated-%d." % (NOW + DAY))
    assert check(PLAIN, made, now=NOW + DAY + later) == (verdict, Kind.DATED)


def test_an_expired_address_is_called_expired_even_when_it_is_forged():
    assert check(PLAIN, b"alice-dated-1000000000.000000@example.com") == (
        Check.EXPIRED,
        Kind.DATED,
    )


DATED = cookies.dated_address(PLAIN, b"alice@example.com", "1d", NOW)
SENDER = cookies.sender_address(PLAIN, b"alice@example.com", b"bob@remote.example")
DOMAIN = cookies.domain_address(PLAIN, b"alice@example.com", b"bob@remote.example")
KEYWORD = cookies.keyword_address(PLAIN, b"alice@example.com", b"news")


@pytest.mark.parametrize("made", [DATED, KEYWORD, SENDER], ids=["dated", "keyword", "sender"])
def test_no_octet_of_a_cookie_can_be_changed(made):
    start, end = made.rindex(b"-") + 1, made.index(b"@")
    for place in range(start, end):
        other = b"1" if made[place : place + 1] != b"1" else b"2"
        forged = made[:place] + other + made[place + 1 :]
        verdict, _ = check(PLAIN, forged, b"bob@remote.example")
        assert verdict in (Check.BAD, Check.EXPIRED), forged
        shortened = made[:place] + made[place + 1 :]
        verdict, _ = check(PLAIN, shortened, b"bob@remote.example")
        assert verdict in (Check.BAD, Check.EXPIRED), shortened


@pytest.mark.parametrize("made", [DATED, KEYWORD, SENDER], ids=["dated", "keyword", "sender"])
@pytest.mark.parametrize(
    "change",
    [
        {"key": KEY[::-1]},
        {"key": b""},
        {"hmac_bytes": 2},
        {"hmac_bytes": 4},
    ],
    ids=str,
)
def test_a_cookie_does_not_survive_another_key_or_length(made, change):
    tags = dataclasses.replace(PLAIN, **change)
    assert check(tags, made, b"bob@remote.example")[0] is Check.BAD


@pytest.mark.parametrize(
    ("made", "correspondent", "verdict"),
    [
        (SENDER, b"bob@remote.example", Check.VALID),
        (SENDER, b"BOB@Remote.Example", Check.VALID),
        (SENDER, b"eve@remote.example", Check.BAD),
        (SENDER, b"bob@sub.remote.example", Check.BAD),
        (SENDER, b"remote.example", Check.BAD),
        (SENDER, b"", Check.BAD),
        (DOMAIN, b"eve@remote.example", Check.VALID),
        (DOMAIN, b"eve@a.b.remote.example", Check.VALID),
        (DOMAIN, b"remote.example", Check.VALID),
        (DOMAIN, b"eve@notremote.example", Check.BAD),
        (DOMAIN, b"eve@example", Check.BAD),
    ],
)
def test_a_sender_address_holds_for_its_correspondent_only(made, correspondent, verdict):
    assert check(PLAIN, made, correspondent) == (verdict, Kind.SENDER)


@pytest.mark.parametrize(
    "address",
    [
        b"",
        b"@",
        b"alice@example.com",
        b"alice",
        b"alice-dated@example.com",
        b"alice-other-1700000000.aaaaaa@example.com",
        b"alice+dated+1700000000.aaaaaa@example.com",
        b"alice-dated-x-1700000000.aaaaaa@example.com",
    ],
)
def test_an_address_without_a_known_tag_is_untagged(address):
    assert check(PLAIN, address) == (Check.UNTAGGED, None)


@pytest.mark.parametrize("word", [b"dated", b"Old", b"new", b"OLD"])
def test_every_configured_tag_word_and_the_built_in_one_are_known(word):
    tags = TagSettings(KEY, tags_dated=(b"new", b"Old"))
    made = cookies.dated_address(tags, b"alice@example.com", "1d", NOW)
    assert made.startswith(b"alice-new-")
    assert check(tags, made.replace(b"new", word)) == (Check.VALID, Kind.DATED)


def test_a_confirm_address_is_never_valid_here():
    made = cookies.confirm_address(PLAIN, b"alice@example.com", b"1700000000", b"42", b"accept")
    assert check(PLAIN, made) == (Check.BAD, Kind.CONFIRM)


def test_a_keyword_in_capitals_holds_only_when_it_was_lowered():
    lowered = cookies.keyword_address(PLAIN, b"alice@example.com", b"News")
    assert lowered == KEYWORD
    kept = cookies.keyword_address(PLAIN, b"alice@example.com", b"News", keep_case=True)
    assert check(PLAIN, kept) == (Check.BAD, Kind.KEYWORD)


@pytest.mark.parametrize(
    ("keyword", "word"),
    [
        (b"foo.bar", b"foo?bar"),
        (b"foo-bar", b"foo?bar"),
        (b"a b-c", b"a?b?c"),
        ("café".encode(), b"caf??"),
        (b"\x00\r\n\x7f", b"????"),
        (b"", b""),
        (b"!#$%&'*+/=?^_`{|}~09az", b"!#$%&'*+/=?^_`{|}~09az"),
    ],
)
def test_octets_that_an_address_cannot_have_become_question_marks(keyword, word):
    made = cookies.keyword_address(PLAIN, b"a@x", keyword)
    assert made.startswith(b"a-keyword-" + word + b".")


@pytest.mark.parametrize("address", [b"", b"alice", b"a@b@c", b"@@"])
@pytest.mark.parametrize(
    "make",
    [
        lambda address: cookies.dated_address(PLAIN, address, "1d", NOW),
        lambda address: cookies.sender_address(PLAIN, address, b"b@x"),
        lambda address: cookies.domain_address(PLAIN, address, b"b@x"),
        lambda address: cookies.keyword_address(PLAIN, address, b"k"),
        lambda address: cookies.extension_address(PLAIN, address, b"e"),
        lambda address: cookies.confirm_address(PLAIN, address, b"1", b"2"),
    ],
    ids=["dated", "sender", "domain", "keyword", "ext", "confirm"],
)
def test_an_own_address_without_exactly_one_at_is_refused_by_name(make, address):
    with pytest.raises(TagError, match="one @") as caught:
        make(address)
    assert address.decode() in str(caught.value)


@pytest.mark.parametrize("timeout", ["", "5", "d", "5D", "-5d", "5 d", "5.5d", "٥d", "5d\n\n"])
def test_an_invalid_timeout_is_refused_with_the_units_there_are(timeout):
    with pytest.raises(TagError, match="Y M w d h m s"):
        cookies.seconds(timeout)


def test_an_absurdly_long_timeout_is_refused_like_any_invalid_one():
    with pytest.raises(TagError):
        cookies.seconds("9" * 5000 + "d")


def test_an_address_with_an_absurdly_long_expiry_is_bad():
    forged = b"alice-dated-" + b"9" * 5000 + b".aaaaaa@example.com"
    assert check(PLAIN, forged) == (Check.BAD, Kind.DATED)


def test_an_invalid_default_timeout_does_no_harm_while_another_is_given():
    tags = TagSettings(KEY, dated_timeout="soon")
    assert cookies.dated_address(tags, b"alice@example.com", "1d", NOW) == DATED
    with pytest.raises(TagError, match="'soon'"):
        cookies.dated_address(tags, b"alice@example.com", "", NOW)


def test_settings_never_show_the_key():
    shown = repr(TagSettings(b"secret key"))
    assert "secret" not in shown
    assert "recipient_delimiter" in shown


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("length", [3, 10, 20])
def test_openssl_computes_the_same_cookie(length):
    tags = TagSettings(KEY, hmac_bytes=length)
    made = cookies.dated_address(tags, b"alice@example.com", "5d", NOW)
    expiry = str(int(NOW) + 5 * DAY)
    command = ["openssl", "dgst", "-sha1", "-mac", "HMAC", "-macopt", f"hexkey:{KEY.hex()}"]
    run = subprocess.run(command, input=expiry.encode(), capture_output=True, check=True)
    digest = run.stdout.decode().split()[-1]
    assert made.decode() == f"alice-dated-{expiry}.{digest[: 2 * length]}@example.com"
