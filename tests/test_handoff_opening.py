"""Opening a session with a next hop: whatever it does is one clear failure, or a session."""

from __future__ import annotations

import os
import socket
import ssl

import pytest
from certificates import (
    GOOD,
    HOST_NAME,
    NOT_YET,
    OVER,
    Authority,
    authority,
    key_of,
    key_pem,
    replace,
)
from cryptography.hazmat.primitives import hashes
from fakes import CLOSE, STALL, Act, FakeNextHop, at, server_context, wait_for
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.opening import failures_of, greeted, open_client
from tofmipd.handoff.trust import date_of

SHORT = {"connect_timeout": 0.4, "reply_timeout": 0.4}
LOGIN = {"username": "joe", "password": "pässwörd ☃"}


def hop_of(server, host="127.0.0.1", **fields):
    return NextHop(host, server.port, **{"connect_timeout": 10, "reply_timeout": 10, **fields})


def failure_of(server, **fields):
    """What the client hears when no session can be opened."""
    with pytest.raises(HandOffFailed) as caught:
        open_client(hop_of(server, **fields))
    reply = caught.value.reply
    assert reply.code == 451
    return str(reply)


def opened(server, **fields):
    client = open_client(hop_of(server, **fields))
    client.close()
    return client


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A context for a server on this machine."""
    return server_context(tmp_path_factory.mktemp("tls"))[0]


@pytest.fixture
def far(monkeypatch):
    """All next hops seem to be on other machines."""
    monkeypatch.setattr("tofmipd.handoff.opening.is_near", lambda address: False)


@pytest.fixture
def named(monkeypatch):
    """All names lead to this machine."""
    look = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: look("127.0.0.1", *rest, **more)
    )


# Replies that are none, too many, too long, or the end.

MEGABYTE = b"".join(b"%d-" + b"x" * 1000 + b"\r\n" for _ in range(1000))
FAULTS = {
    "bare LF": (b"%d bare\n", "does not end with CR LF"),
    "bare LF between": (b"%d-one\n%d two\r\n", "does not end with CR LF"),
    "bare CR": (b"%d one\rtwo\r\n", "has no reply code"),
    "changing codes": (b"%d-one\r\n550 two\r\n", "different codes"),
    "a megabyte": (MEGABYTE, "too many lines"),
    "a megabyte in a line": (b"%d " + b"x" * 1_000_000, "too long"),
    "no code": (b"welcome\r\n", "has no reply code"),
    "a reply too many": (b"%d one\r\n%d two\r\n", "says more than it was asked for"),
    "half a reply too many": (b"%d one\r\n2", "says more than it was asked for"),
    "control characters": (b"\xff\0\r\n\x1b[31m\r\n", "has no reply code"),
    "421": (b"421 4.3.2 going down\r\n", "says: 421 4.3.2 going down"),
}
STAGES = {"GREETING": 220, "EHLO": 250, "STARTTLS": 220, "AUTH": 235}


def fault_at(stage, octets):
    return octets.replace(b"%d", b"%d" % STAGES[stage])


def with_login(stage, tls):
    """A server that gets as far as this."""
    return {"login": ("joe", "x"), "tls": tls if stage == "STARTTLS" else None}


def asked_at(stage):
    login = {"username": "joe", "password": "x"} if stage == "AUTH" else {}
    return {"tls": "starttls" if stage == "STARTTLS" else "off", **login}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_reply_is_a_reason_to_try_later(stage, fault, tls):
    octets, words = FAULTS[fault]
    with FakeNextHop(at(stage, fault_at(stage, octets)), **with_login(stage, tls)) as server:
        heard = failure_of(server, **asked_at(stage))
    assert heard.startswith(("451 4.4.1 ", "451 4.7.0 "))
    if (stage, fault) == ("AUTH", "421"):
        words = "cannot judge the login now (421)"
    assert words in heard
    assert heard.isprintable()
    assert len(heard) < 500


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("act", "words"),
    [(CLOSE, "closed by the next hop"), (STALL, "does not answer"), (Act(b"2", drip=True), "")],
)
def test_a_next_hop_that_says_no_whole_reply_is_given_up(stage, act, words, tls):
    with FakeNextHop(at(stage, act), **with_login(stage, tls)) as server:
        heard = failure_of(server, **asked_at(stage), **SHORT)
    assert heard.startswith(f"451 4.4.1 next hop 127.0.0.1:{server.port}")
    assert words in heard


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"554 5.7.1 not you\r\n", "says: 554 5.7.1 not you"),
        (b"554-5.7.1 not\r\n554 5.7.1 you\r\n", "says: 554 5.7.1 not 5.7.1 you"),
        (b"451 4.3.0 later\r\n", "says: 451 4.3.0 later"),
        (b"250 2.0.0 Ok\r\n", "says: 250 2.0.0 Ok"),
    ],
)
def test_a_greeting_that_is_none_is_told(said, words):
    with FakeNextHop(at("GREETING", said)) as server:
        assert failure_of(server) == f"451 4.4.1 next hop 127.0.0.1:{server.port} {words}"
        assert server.commands == []


def test_a_greeting_may_have_many_lines():
    greeting = b"".join(b"220-line %d\r\n" % n for n in range(100)) + b"220 end\r\n"
    with FakeNextHop(at("GREETING", greeting)) as server:
        client = opened(server)
    assert client.greeting.startswith("line 0 line 1 ")
    assert "pipelining" in client.esmtp_features


def test_a_next_hop_without_ehlo_is_one_without_extensions():
    with FakeNextHop(at("EHLO", b"500 5.5.1 what?\r\n")) as server:
        assert opened(server, local_name="mx.example").esmtp_features == {}
        assert server.commands == ["ehlo mx.example", "helo mx.example"]


def test_a_next_hop_that_knows_neither_ehlo_nor_helo_is_none():
    def script(moment):
        return Act(b"502 no\r\n") if moment.stage in ("EHLO", "HELO") else None

    with FakeNextHop(script) as server:
        assert failure_of(server).endswith(" says: 502 no")


def test_many_names_of_extensions_are_known_in_any_case():
    said = b"250-next.example\r\n250-size 1000\r\n250-Auth=LOGIN PLAIN\r\n250 pipelining\r\n"
    with FakeNextHop(at("EHLO", said)) as server:
        client = opened(server)
    assert client.esmtp_features["size"] == "1000"
    assert "pipelining" in client.esmtp_features
    assert client.mechanisms == ["LOGIN", "PLAIN"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["GREETING", "EHLO", "AUTH"]), st.binary(max_size=60))
@example("EHLO", b"250-\r\n250-\xff\r\n250 AUTH")
def test_noise_is_never_more_than_a_failure(stage, noise):
    octets = b"%d-%s\r\n" % (STAGES[stage], noise)
    with FakeNextHop(at(stage, Act(octets, close=True)), login=("joe", "x")) as server:
        assert failure_of(server, username="joe", password="x").isprintable()


# TLS.


def test_what_came_before_tls_is_an_error_not_an_answer(tls):
    """RFC 3207 section 4.2: an attacker could put it there."""
    with FakeNextHop(at("STARTTLS", b"220 go\r\n250-evil\r\n250 DSN\r\n"), tls=tls) as server:
        assert "says more than it was asked for" in failure_of(server, tls="starttls")
        assert server.commands[-1] == "STARTTLS"


def test_what_was_offered_before_tls_is_forgotten(tls):
    """RFC 3207 section 4.2."""
    with FakeNextHop(tls=tls) as server:

        def script(moment):
            if moment.stage != "EHLO" or len(server.commands) > 1:
                return None
            return Act(b"250-next.example\r\n250-DSN\r\n250 STARTTLS\r\n")

        server.script = script
        client = opened(server, tls="starttls")
    assert "dsn" not in client.esmtp_features
    assert "pipelining" in client.esmtp_features


@pytest.mark.parametrize("features", [{}, {"script": at("EHLO", b"502 what?\r\n")}])
def test_where_tls_was_asked_for_nothing_goes_without(features):
    with FakeNextHop(login=("joe", "x"), **features) as server:
        heard = failure_of(server, tls="starttls", username="joe", password="x")
        assert heard.endswith(": it does not offer STARTTLS")
        assert heard.startswith("451 4.7.4 ")
        assert {line.split()[0].upper() for line in server.commands} <= {"EHLO", "HELO"}


def test_where_starttls_is_refused_nothing_goes_without(tls):
    with FakeNextHop(at("STARTTLS", b"454 4.7.0 not now\r\n"), tls=tls) as server:
        assert failure_of(server, tls="starttls").endswith(" says: 454 4.7.0 not now")
        assert server.commands[-1] == "STARTTLS"


def test_a_next_hop_that_speaks_no_tls_from_the_first_octet_is_told_of():
    with FakeNextHop() as server:
        heard = failure_of(server, tls="implicit")
    assert heard.startswith(f"451 4.7.5 next hop 127.0.0.1:{server.port}: TLS failed: ")
    assert "_ssl.c" not in heard


def test_a_next_hop_that_waits_where_tls_should_begin_is_given_up(tls):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hop = NextHop("127.0.0.1", listener.getsockname()[1], tls="implicit", **SHORT)
        with pytest.raises(HandOffFailed) as caught:
            open_client(hop)
    assert str(caught.value.reply).endswith(" does not answer")


def test_all_of_the_connection_and_the_greeting_share_one_limit(tls):
    """Each octet of the greeting comes in time, the whole does not."""
    with FakeNextHop(at("GREETING", Act(b"2", drip=True)), tls=tls, implicit=True) as server:
        assert failure_of(server, tls="implicit", connect_timeout=1).startswith("451 4.4.1 ")


@pytest.fixture(params=["starttls", "implicit"])
def certified(request, tmp_path, named):
    """Runs a server with a certificate; says what comes of an attempt to open a session."""

    def attempt(issued, trusted=None, **fields):
        files = issued.save(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        cafile = str((trusted or authority()).save(tmp_path))
        fields = {"host": HOST_NAME, "cafile": cafile, "tls": request.param, **fields}
        with FakeNextHop(tls=context, implicit=request.param == "implicit") as server:
            try:
                return opened(server, **fields).certificate
            except HandOffFailed as error:
                assert not server.groups
                return str(error.reply).removeprefix("451 4.7.5 ")

    return attempt


def test_a_good_certificate_is_accepted(certified):
    assert not isinstance(certified(authority().issue()), str)
    assert not isinstance(certified(authority().issue(dns=["*.example.org"])), str)


@pytest.mark.parametrize(
    ("dns", "name", "shown"),
    [
        (["other.example.org"], "", "other.example.org"),
        (["a.example", "b.example"], HOST_NAME, "a.example, b.example"),
        ([], "other.example.org", "other.example.org"),
        ([], "", "nobody"),
        (["*.org"], "", "*.org"),
        (["mail.example.org.evil.example"], "", "mail.example.org.evil.example"),
    ],
)
def test_the_certificate_of_somebody_else_is_refused_by_name(dns, name, shown, certified):
    heard = certified(authority().issue(name, dns=dns))
    assert heard == f"certificate of {HOST_NAME} is for {shown}"


def test_an_expired_certificate_is_refused_with_its_date(certified):
    issued = authority().issue(days=OVER)
    date = issued.ends.strftime("%Y-%m-%d")
    assert certified(issued) == f"certificate of {HOST_NAME} has expired on {date}"


def test_a_certificate_of_the_future_is_refused_with_its_date(certified):
    issued = authority().issue(days=NOT_YET)
    date = issued.begins.strftime("%Y-%m-%d")
    assert certified(issued) == f"certificate of {HOST_NAME} is not valid before {date}"


def test_an_unknown_authority_is_told_of(certified):
    stranger = Authority("Somebody Else", number=103)
    unknown = f"certificate of {HOST_NAME} is signed by an unknown authority"
    assert certified(stranger.issue()) == f"{unknown} (SMTPSSL_CAFILE)"
    heard = certified(stranger.issue(), cafile_setting="--relay-ca")
    assert heard == f"{unknown} (--relay-ca)"


def test_the_authorities_of_the_system_do_not_know_the_tests(certified):
    heard = certified(authority().issue(), cafile="")
    assert heard.endswith(" is signed by an unknown authority (SMTPSSL_CAFILE)")


def test_without_a_look_at_the_certificate_the_library_says_what_is_wrong(certified, monkeypatch):
    monkeypatch.setattr("tofmipd.handoff.trust.certificate_of", lambda sock: None)
    heard = certified(authority().issue(days=OVER))
    assert heard == f"certificate of {HOST_NAME} is not accepted: certificate has expired"


@pytest.mark.parametrize("days", [GOOD, OVER])
def test_only_encryption_may_be_asked_for(days, certified):
    issued = authority().issue(dns=["other.example.org"], days=days)
    assert not isinstance(certified(issued, trust="encrypt"), str)


def test_a_fingerprint_trusts_one_certificate_whoever_signed_it(certified):
    issued = authority().issue(dns=["other.example.org"], days=OVER)
    right = issued.certificate.fingerprint(hashes.SHA256())
    for text in (right.hex(), right.hex(":").upper()):
        assert not isinstance(certified(issued, trust=f"fingerprint:{text}"), str)


def test_another_certificate_is_told_by_its_fingerprint(certified):
    issued, wanted = authority().issue(), "0" * 64
    found = issued.certificate.fingerprint(hashes.SHA256()).hex()
    heard = certified(issued, trust=f"fingerprint:{wanted}")
    assert heard == f"fingerprint of {HOST_NAME} is {found}, not {wanted}"


@pytest.mark.parametrize(
    ("host", "fields", "verified"),
    [
        ("127.0.0.1", {}, False),
        ("127.0.0.1", {"cafile": "/ca"}, True),
        ("127.0.0.1", {"trust": "verify"}, True),
        ("localhost", {}, False),
        ("127.0.0.1.evil.example", {}, True),
        ("mail.example.org", {}, True),
        ("mail.example.org", {"trust": "encrypt"}, False),
        ("mail.example.org", {"trust": "fingerprint:" + "0" * 64}, False),
    ],
)
def test_only_on_this_machine_certificates_are_not_verified_unless_asked(host, fields, verified):
    assert NextHop(host, **fields).verified is verified


def test_a_certificate_of_ones_own_is_shown(tls, tmp_path):
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_cert_chain(*authority().issue().save(tmp_path))
    asking.load_verify_locations(authority().save(tmp_path))
    asking.verify_mode = ssl.CERT_REQUIRED
    mine = authority().issue("me", number=1).save(tmp_path, "me")
    with FakeNextHop(tls=asking) as server:
        files = {"certfile": str(mine.chain), "keyfile": str(mine.key)}
        opened(server, tls="starttls", **files)
        assert failure_of(server, tls="starttls").startswith("451 4.")


def test_nobody_is_asked_for_the_passphrase_of_a_key(tls, tmp_path):
    files = authority().issue().save(tmp_path)
    files.key.write_bytes(key_pem(key_of("ecdsa"), b"secret"))
    with FakeNextHop(tls=tls) as server:
        chosen = {"certfile": str(files.chain), "keyfile": str(files.key)}
        heard = failure_of(server, tls="starttls", **chosen)
    assert heard.startswith("451 4.3.5 SMTPSSL_CAFILE, _CERTFILE or _KEYFILE cannot be loaded")


def test_files_of_tls_are_read_again_when_they_change(tmp_path, named):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority().issue().save(tmp_path))
    cafile = tmp_path / "trusted.crt"
    with FakeNextHop(tls=context) as server:
        fields = {"host": HOST_NAME, "tls": "starttls", "cafile": str(cafile)}
        assert failure_of(server, **fields).startswith("451 4.3.5 SMTPSSL_CAFILE, ")
        cafile.write_bytes(Authority("Somebody Else", number=103).pem)
        for _ in range(2):
            assert "unknown authority" in failure_of(server, **fields)
        replace(cafile, authority().pem)
        opened(server, **fields)
        cafile.unlink()
        assert failure_of(server, **fields).startswith("451 4.3.5 SMTPSSL_CAFILE, ")


def test_a_date_is_that_of_utc():
    assert date_of(0) == "1970-01-01"


# Logins.


def auths(server):
    return [line.split()[1] for line in server.commands if line.startswith("AUTH")]


ALL = ("LOGIN", "PLAIN", "CRAM-MD5")


@pytest.mark.parametrize(
    ("offered", "encrypted", "used"),
    [
        (ALL, False, "CRAM-MD5"),
        (("LOGIN", "PLAIN"), False, "PLAIN"),
        (("XOAUTH2", "LOGIN"), False, "LOGIN"),
        (ALL, True, "PLAIN"),
        (("CRAM-MD5", "LOGIN"), True, "LOGIN"),
        (("CRAM-MD5",), True, "CRAM-MD5"),
    ],
)
def test_the_best_mechanism_is_used_with_any_password(offered, encrypted, used, tls):
    login = (LOGIN["username"], LOGIN["password"])
    with FakeNextHop(login=login, mechanisms=offered, tls=tls) as server:
        opened(server, tls="starttls" if encrypted else "off", **LOGIN)
        assert auths(server) == [used]


def test_another_mechanism_is_tried_when_one_is_refused():
    with FakeNextHop(login=("joe", "x"), mechanisms=("CRAM-MD5", "PLAIN")) as server:
        first = at("AUTH", b"535 5.7.8 not that way\r\n", argument="CRAM-MD5")
        server.script = first
        opened(server, username="joe", password="x")
        assert auths(server) == ["CRAM-MD5", "PLAIN"]


@pytest.mark.parametrize(
    ("encrypted", "tried"), [(True, ["PLAIN"]), (False, ["CRAM-MD5", "PLAIN"])]
)
def test_a_wrong_password_is_shown_only_once(encrypted, tried, tls):
    """Each failure counts for whoever locks users out."""
    with FakeNextHop(login=("joe", "other"), mechanisms=ALL, tls=tls) as server:
        how = "starttls" if encrypted else "off"
        assert "refuses the login" in failure_of(server, tls=how, username="joe", password="x")
        assert auths(server) == tried


def test_a_mechanism_that_is_offered_but_unknown_is_passed_over():
    refuses = at("AUTH", b"504 5.5.4 unknown\r\n", connection=1)
    with FakeNextHop(refuses, login=("joe", "x"), mechanisms=("PLAIN", "LOGIN")) as server:
        failure_of(server, username="joe", password="x")
        assert auths(server) == ["PLAIN", "LOGIN"]


def test_a_login_that_cannot_be_judged_now_is_not_tried_otherwise():
    with FakeNextHop(
        at("AUTH", b"454 4.7.0 database down\r\n"), login=("joe", "x"), mechanisms=ALL
    ) as server:
        heard = failure_of(server, username="joe", password="x")
        assert heard.endswith(" cannot judge the login now (454)")
        assert auths(server) == ["CRAM-MD5"]


@pytest.mark.parametrize("code", [421, 454, 501, 535])
def test_a_next_hop_that_repeats_the_password_is_not_quoted(code):
    said = b"%d secret is wrong\r\n" % code
    with FakeNextHop(at("AUTH", said), login=("joe", "x")) as server:
        heard = failure_of(server, username="joe", password="secret")
    assert heard.startswith("451 4.7.0 ")
    assert "secret" not in heard


def test_a_next_hop_that_hangs_up_after_a_refusal_has_refused():
    with FakeNextHop(
        at("AUTH", Act(b"535 no\r\n", close=True)), login=("joe", "x"), mechanisms=ALL
    ) as server:
        heard = failure_of(server, username="joe", password="x")
    assert heard.endswith(" refuses the login (SMTPAUTH_USERNAME)")


def test_a_challenge_that_is_none_is_an_error(monkeypatch):
    monkeypatch.setattr("fakes.b64", lambda octets: "no base64")
    with FakeNextHop(login=("joe", "x"), mechanisms=("CRAM-MD5",)) as server:
        heard = failure_of(server, username="joe", password="x")
    assert heard.endswith("its challenge for CRAM-MD5 is not base64")


def test_who_says_that_one_is_logged_in_already_does_not_let_one_in():
    with FakeNextHop(at("AUTH", b"503 5.5.1 you are logged in\r\n"), login=("a", "b")) as server:
        assert "refuses the login" in failure_of(server, username="a", password="b")


def test_nothing_is_sent_in_the_clear_to_another_machine(far):
    with FakeNextHop(login=("joe", "x"), mechanisms=("PLAIN", "LOGIN")) as server:
        heard = failure_of(server, username="joe", password="x")
        assert heard == (
            f"451 4.7.11 next hop 127.0.0.1:{server.port} would get the password in the clear:"
            ' set SMTPSSL = True, or SMTPTLS = "off" to allow that'
        )
        assert auths(server) == []


def test_a_refused_digest_is_not_followed_by_the_password_itself(far):
    with FakeNextHop(login=("joe", "other"), mechanisms=ALL) as server:
        assert "refuses the login" in failure_of(server, username="joe", password="x")
        assert auths(server) == ["CRAM-MD5"]


@pytest.mark.parametrize("how", [{"clear_password": True}, {"tls": "starttls"}])
def test_a_password_goes_to_another_machine_where_that_is_allowed(how, far, tls):
    with FakeNextHop(login=("joe", "x"), mechanisms=("LOGIN",), tls=tls) as server:
        opened(server, username="joe", password="x", **how)
        assert auths(server) == ["LOGIN"]


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({}, "offers no login"),
        ({"tls": True}, "offers no login without SMTPSSL"),
        ({"login": ("a", "b"), "mechanisms": ("GSSAPI", "XOAUTH2")}, "mechanisms: GSSAPI, XOAUTH2"),
    ],
)
def test_a_next_hop_that_cannot_be_logged_in_to_is_told_of(features, words, tls):
    features = {**features, "tls": tls} if "tls" in features else features
    with FakeNextHop(**features) as server:
        heard = failure_of(server, username="joe", password="x")
    assert heard.startswith("451 4.7.4 next hop ")
    assert heard.endswith(words)


# Steps by themselves.


def test_what_has_been_learned_can_be_seen_step_by_step(tls):
    with FakeNextHop(tls=tls, login=("joe", "x")) as server:
        hop = hop_of(server, tls="starttls", username="joe", password="x")
        with failures_of(hop), greeted(hop) as client:
            assert client.greeting == "next.example ESMTP fake"
            assert client.certificate is None
            client.secure()
            assert client.certificate.names == ("127.0.0.1",)
            assert client.certificate.issuer == "commonName=127.0.0.1"
            assert client.log_in() == "PLAIN"
            client.close()


def test_nothing_stays_open_when_no_session_can_be_opened(tls):
    for stage in STAGES:
        with FakeNextHop(at(stage, b"554 no\r\n"), tls=tls, login=("a", "b")) as server:
            before = len(os.listdir("/proc/self/fd"))
            failure_of(server, tls="starttls", username="a", password="b")
            wait_for(lambda: server.closed_connections == 1)
            assert len(os.listdir("/proc/self/fd")) <= before
