"""Next hops that a configuration asks for, and how they are protected."""

from __future__ import annotations

import pytest

from tofmipd.privsep.nexthops import configured_hops, names_next_hop, relay_hops
from tofmipd.settings import NextHopLimits, Place, Relay
from tofmipd.tmda.config import SourceFile, Surroundings, build
from tofmipd.tmda.readers import run_python

LIMITS = NextHopLimits(1, 2, 3)
DIGITS = "0" * 64


def config_of(source):
    names = {}
    run_python(source.encode(), "/config", names)
    around = Surroundings("/home/alice", "alice", "Alice", "example.org")
    return build(names, around, SourceFile("/config", source.encode()))


def hops_of(*lines):
    return configured_hops(config_of("\n".join(lines)), LIMITS, "mx.example")


@pytest.mark.parametrize(
    ("lines", "shown", "ways", "trust"),
    [
        ([], "localhost:25", "off", ""),
        (["SMTPHOST = 'a:587'"], "a:587", "off", ""),
        (["SMTPHOST = 'a'", "SMTPSSL = True"], "a:25", "starttls", ""),
        (["SMTPHOST = 'a:465'", "SMTPSSL = True"], "a:465", "implicit", ""),
        (["SMTPHOST = 'a:465'", "SMTPSSL = 'starttls'"], "a:465", "starttls", ""),
        (["SMTPHOST = 'a:2465'", "SMTPSSL = 'implicit'"], "a:2465", "implicit", ""),
        (["SMTPHOST = 'a'", "SMTPSSL = 'implicit'"], "a:465", "implicit", ""),
        (["SMTPHOST = '::1'", "SMTPSSL = 'implicit'"], "[::1]:465", "implicit", ""),
        (["SMTPHOST = 'a:465'"], "a:465", "off", ""),
        (["SMTPHOST = 'a'", "SMTPTLS = 'verify'"], "a:25", "starttls", "verify"),
        (["SMTPHOST = 'a:465'", "SMTPTLS = 'encrypt'"], "a:465", "implicit", "encrypt"),
        (["SMTPHOST = 'a'", "SMTPTLS = 'off'"], "a:25", "off", ""),
        (
            ["SMTPHOST = 'a'", f"SMTPTLS = 'fingerprint:{DIGITS}'", "SMTPSSL = False"],
            "a:25",
            "starttls",
            f"fingerprint:{DIGITS}",
        ),
        (
            ["SMTPHOST = ['a', 'b:465', 'c:587']", "SMTPSSL = True"],
            "a:25 b:465 c:587",
            "starttls implicit starttls",
            "",
        ),
    ],
)
def test_host_port_and_protection_come_from_the_configuration(lines, shown, ways, trust):
    hops = hops_of(*lines)
    assert " ".join(map(str, hops)) == shown
    assert " ".join(hop.tls for hop in hops) == ways
    assert {hop.trust for hop in hops} == {trust}


def test_a_password_goes_out_in_the_clear_only_where_tls_is_said_to_be_off():
    lines = ["SMTPHOST = 'a'", "SMTPAUTH_USERNAME, SMTPAUTH_PASSWORD = 'u', 'p'"]
    for more in ([], ["SMTPSSL = True"], ["SMTPTLS = 'encrypt'"], ["SMTPSSL = False"]):
        (hop,) = hops_of(*lines, *more)
        assert (hop.username, hop.password, hop.clear_password) == ("u", "p", False)
    (hop,) = hops_of(*lines, "SMTPTLS = 'off'")
    assert hop.clear_password


def test_all_else_comes_from_the_configuration_too():
    (hop,) = hops_of(
        "SMTPSSL_CAFILE, SMTPSSL_CERTFILE, SMTPSSL_KEYFILE = '/ca', '/cert', '/key'",
        "SMTP_MAX_SESSIONS_PER_CONNECTION = 7",
    )
    assert (hop.cafile, hop.certfile, hop.keyfile, hop.messages) == ("/ca", "/cert", "/key", 7)
    assert (hop.connect_timeout, hop.reply_timeout, hop.dot_timeout) == (1, 2, 3)
    assert hop.local_name == "mx.example"
    (hop,) = hops_of()
    assert hop.messages == 100


# Those of the administrator.


@pytest.mark.parametrize(
    ("place", "relay", "way", "verified"),
    [
        (Place("a", 25), {}, "starttls", True),
        (Place("a", 465), {}, "implicit", True),
        (Place("a", 25), {"tls": "off"}, "off", None),
        (Place("a", 25), {"tls": "encrypt"}, "starttls", False),
        (Place("a", 25), {"tls": f"fingerprint:{DIGITS}"}, "starttls", False),
        (Place("127.0.0.1", 25), {}, "off", None),
        (Place("localhost", 465), {}, "off", None),
        (Place("::1", 25), {"tls": "encrypt"}, "starttls", False),
        (Place("::1", 465), {"tls": "verify"}, "implicit", True),
        (Place("127.0.0.1", 25), {"ca_file": "/ca"}, "starttls", True),
    ],
)
def test_relays_are_verified_but_on_this_machine_not_encrypted(place, relay, way, verified):
    (hop,) = relay_hops(Relay((place,), **relay), LIMITS, "mx.example")
    assert (hop.host, hop.port, hop.tls) == (*place, way)
    assert verified in (None, hop.verified)
    assert (hop.username, hop.password, hop.clear_password) == ("", "", False)


def test_relays_keep_their_order_and_limits():
    relay = Relay((Place("b", 25), Place("a", 587)))
    hops = relay_hops(relay, LIMITS, "mx.example", pass_eight_bit=True)
    assert list(map(str, hops)) == ["b:25", "a:587"]
    for hop in hops:
        assert (hop.connect_timeout, hop.reply_timeout, hop.dot_timeout) == (1, 2, 3)
        assert (hop.local_name, hop.pass_eight_bit) == ("mx.example", True)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("", False),
        ("SMTPAUTH_USERNAME = 'joe'", False),
        ("SMTPHOST = None", False),
        ("MAIL_TRANSPORT = 'sendmail'", True),
        ("SMTPHOST = 'a'", True),
    ],
)
def test_a_configuration_that_says_where_mail_goes_is_not_relayed(source, names):
    assert names_next_hop(config_of(source)) is names
