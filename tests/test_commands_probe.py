"""`tofmipd probe`: what a next hop shows, and whether mail could be handed to it."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest
from certificates import OVER, authority
from cryptography.hazmat.primitives import hashes
from fakes import CLOSE, Act, FakeNextHop, at

from tofmipd import cli
from tofmipd.errors import CONFIG, UNAVAILABLE, USAGE

PASSWORD = "never-to-be-seen"
TOOLS = Path(__file__).parent.parent / "docs/tools.md"


class Told(NamedTuple):
    status: int
    lines: dict[str, str]
    text: str
    errors: str


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".tmda").mkdir()
    return tmp_path


@pytest.fixture
def probe(home, capsys):
    """Run it; what it says of the last next hop by label."""

    def probe(*arguments):
        try:
            status = cli.main(["probe", *arguments])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        last = said.out.rpartition("\n\n")[2]
        lines = dict(re.findall(r"^(.*?): +(.*)$", last, re.M))
        assert PASSWORD not in said.out + said.err
        return Told(status, lines, said.out, said.err)

    return probe


@pytest.fixture
def issued():
    return authority().issue(dns=["localhost"])


@pytest.fixture
def ca(tmp_path):
    return str(authority().save(tmp_path))


def context_of(issued, directory):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued.save(directory))
    return context


def place_of(server, host="localhost"):
    return f"{host}:{server.port}"


def configure(home, *lines):
    (home / ".tmda/config").write_text("\n".join(['MAIL_TRANSPORT = "smtp"', *lines, ""]))


def test_a_next_hop_without_tls_is_one_all_the_same(probe):
    features = ("PIPELINING", "SIZE 1000", "8BITMIME")
    with FakeNextHop(features=features) as server:
        told = probe(place_of(server, "127.0.0.1"))
        assert server.commands[-1] == "QUIT"
    assert told.status == 0
    assert told.lines == {
        "next hop": f"127.0.0.1:{server.port}",
        "address": "127.0.0.1",
        "greeting": "next.example ESMTP fake",
        "extensions": "8BITMIME, PIPELINING, SIZE",
        "size limit": "1000 octets",
        "TLS": "not offered",
        "mechanisms": "none",
    }


@pytest.mark.parametrize(
    ("feature", "shown"), [("SIZE 0", "none"), ("SIZE", "none"), ("DSN", "not told (no SIZE)")]
)
def test_there_need_be_no_limit_of_size(feature, shown, probe):
    with FakeNextHop(features=(feature,)) as server:
        assert probe(place_of(server)).lines["size limit"] == shown


@pytest.mark.parametrize("implicit", [False, True])
def test_certificate_and_mechanisms_are_shown(implicit, probe, issued, ca, home):
    with FakeNextHop(
        tls=context_of(issued, home),
        login=("a", "b"),
        mechanisms=("PLAIN", "LOGIN"),
        implicit=implicit,
    ) as server:
        lines = [f"SMTPHOST = 'localhost:{server.port}'", f"SMTPSSL_CAFILE = '{ca}'"]
        configure(home, *lines, f"SMTPSSL = '{'implicit' if implicit else 'starttls'}'")
        told = probe()
    assert told.status == 0, told
    way = "from the first octet" if implicit else "by STARTTLS"
    assert re.fullmatch(rf"TLSv1\.3, TLS_\w+, {way}", told.lines["TLS"])
    assert told.lines["certificate"] == "for localhost"
    assert told.lines["issuer"] == "commonName=Test Authority"
    begins, ends = (t.strftime("%Y-%m-%d") for t in (issued.begins, issued.ends))
    assert told.lines["valid"] == f"{begins} to {ends}"
    assert told.lines["fingerprint"] == issued.certificate.fingerprint(hashes.SHA256()).hex()
    assert told.lines["accepted"] == "yes"
    assert told.lines["mechanisms"] == "PLAIN, LOGIN"
    assert ("without TLS" in told.lines) is not implicit


@pytest.mark.parametrize(
    ("fields", "options", "why"),
    [
        ({"dns": ["other.example.org"]}, ["--ca", "{ca}"], "certificate of localhost is for other"),
        ({"days": OVER}, ["--ca", "{ca}"], "certificate of localhost has expired on "),
        (
            {},
            ["--tls", "verify"],
            "certificate of localhost is signed by an unknown authority (--ca)",
        ),
        ({}, ["--tls", f"fingerprint:{'0' * 64}"], "fingerprint of localhost is "),
    ],
)
def test_a_certificate_that_is_not_accepted_is_shown_with_the_reason(
    fields, options, why, probe, ca, home
):
    issued = authority().issue(**{"dns": ["localhost"], **fields})
    options = [option.format(ca=ca) for option in options]
    with FakeNextHop(tls=context_of(issued, home), login=("a", "b")) as server:
        told = probe(*options, place_of(server))
    assert told.status == UNAVAILABLE
    assert told.lines["accepted"].startswith(f"no: {why}")
    assert told.lines["fingerprint"] == issued.certificate.fingerprint(hashes.SHA256()).hex()
    assert told.lines["mechanisms"] == "PLAIN"


def test_a_certificate_that_nobody_verified_is_accepted_as_such(probe, issued, home):
    with FakeNextHop(tls=context_of(issued, home)) as server:
        told = probe(place_of(server))
        assert (told.status, told.lines["accepted"]) == (0, "yes, but it was not verified")
        right = issued.certificate.fingerprint(hashes.SHA256()).hex(":")
        told = probe("--tls", f"fingerprint:{right}", place_of(server))
        assert (told.status, told.lines["accepted"]) == (0, "yes")
        told = probe("--tls=off", place_of(server))
        assert (told.status, told.lines["TLS"]) == (0, "offered, not asked for")


def test_tls_that_was_asked_for_must_be_offered(probe):
    with FakeNextHop() as server:
        told = probe("--tls=encrypt", place_of(server))
    assert told.status == UNAVAILABLE
    assert told.lines["failure"].endswith(": it does not offer STARTTLS")


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (CLOSE, "closed by the next hop"),
        (Act(b"554 5.7.1 not you\r\n"), "says: 554 5.7.1 not you"),
        (Act(b"HTTP/1.1 400 Bad Request\r\n"), "has no reply code"),
    ],
)
def test_a_next_hop_that_is_none_is_told(act, why, probe):
    with FakeNextHop(at("GREETING", act)) as server:
        told = probe(place_of(server))
    assert told.status == UNAVAILABLE
    assert told.lines["failure"].endswith(why)


def test_where_nobody_listens_that_is_told(probe):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        told = probe(place)
    assert told.status == UNAVAILABLE
    assert told.lines == {"next hop": place, "failure": f"next hop {place}: Connection refused"}


def test_what_a_next_hop_says_cannot_harm_a_terminal(probe):
    with FakeNextHop(at("GREETING", b"220 \x1b[31mred\x07 \xc3\xa4\r\n")) as server:
        told = probe(place_of(server))
    assert told.status == 0
    assert told.lines["greeting"] == r"\x1b[31mred\x07 \xe4"


# The configured ones.


def test_the_login_of_the_configuration_is_tried(probe, home):
    login = ("joe", PASSWORD)
    with FakeNextHop(login=login, mechanisms=("PLAIN", "CRAM-MD5")) as server:
        configure(
            home,
            f"SMTPHOST = 'localhost:{server.port}'",
            f"SMTPAUTH_USERNAME, SMTPAUTH_PASSWORD = {login}",
        )
        told = probe()
        assert (told.status, told.lines["login"]) == (0, "joe by CRAM-MD5")
        server.login = ("joe", "other")
        told = probe()
    assert told.status == CONFIG
    assert told.lines["failure"].endswith(" refuses the login (SMTPAUTH_USERNAME)")
    assert server.messages == []


def test_a_password_that_would_go_in_the_clear_is_not_sent(probe, home, monkeypatch):
    monkeypatch.setattr("tofmipd.handoff.opening.is_near", lambda address: False)
    with FakeNextHop(login=("joe", PASSWORD)) as server:
        configure(
            home,
            f"SMTPHOST = 'localhost:{server.port}'",
            f"SMTPAUTH_USERNAME, SMTPAUTH_PASSWORD = 'joe', {PASSWORD!r}",
        )
        told = probe()
        assert told.status == CONFIG
        assert 'SMTPTLS = "off"' in told.lines["failure"]
        assert probe("--tls=off").status == CONFIG
        assert not any(line.startswith("AUTH") for line in server.commands)


def test_all_next_hops_of_the_configuration_are_probed(probe, home):
    with FakeNextHop() as first, FakeNextHop(at("GREETING", CLOSE)) as second:
        configure(home, f"SMTPHOST = ['localhost:{first.port}', 'localhost:{second.port}']")
        told = probe()
    assert told.status == UNAVAILABLE
    assert [f"localhost:{hop.port}" in told.text for hop in (first, second)] == [True, True]
    assert told.lines["next hop"] == f"localhost:{second.port}"


def test_neither_key_nor_filter_is_needed(probe, home):
    with FakeNextHop() as server:
        configure(home, f"SMTPHOST = 'localhost:{server.port}'")
        assert probe().status == 0


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("oops(", "config:1: syntax error"),
        ("SMTPTLS = 'maybe'", "SMTPTLS must be "),
        ("", "mail goes to a sendmail program (MAIL_TRANSPORT); name a HOST:PORT to probe"),
    ],
)
def test_a_configuration_that_is_of_no_use_is_told(config, why, probe, home):
    (home / ".tmda/config").write_text(f"{config}\n")
    told = probe()
    assert (told.status, told.text) == (CONFIG, "")
    assert why in told.errors
    assert told.errors.count("\n") == 1


def test_authorities_that_cannot_be_read_are_a_mistake_of_who_asks(probe, issued, home):
    with FakeNextHop(tls=context_of(issued, home)) as server:
        told = probe("--ca", "/nonexistent", place_of(server))
    assert told.status == CONFIG
    assert told.lines["failure"] == "--ca cannot be loaded: No such file or directory"


@pytest.mark.parametrize("arguments", [["a:"], ["a b"], ["::1"], ["--tls=x", "a"], ["a", "b"]])
def test_wrong_usage_is_one_line(arguments, probe):
    told = probe(*arguments)
    assert (told.status, told.text) == (USAGE, "")
    assert told.errors.startswith("tofmipd probe: ")
    assert told.errors.count("\n") == 1


def test_the_example_of_the_documents_has_the_labels_of_the_program(probe, issued, ca, home):
    (example,) = re.findall(r"```text\n(next hop: .*?)```", TOOLS.read_text(), re.DOTALL)
    with FakeNextHop(tls=context_of(issued, home), login=("a", "b")) as server:
        told = probe("--ca", ca, place_of(server, "127.0.0.1"))
    labels = [line.partition(":")[0] for line in example.splitlines()]
    assert labels == list(told.lines)
    assert "accepted:    no: certificate of " in example
    assert told.lines["accepted"].startswith("no: certificate of 127.0.0.1 is for localhost")
