"""Encryption as clients and administrators see it, with real clients and octet by octet."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import running
import test_network
from accounts import Account, new_account
from certificates import (
    HOST_NAME,
    NOT_YET,
    OVER,
    Files,
    Issued,
    authority,
    client_context,
    intermediate,
    key_of,
    key_pem,
    replace,
    stranger,
    x509,
)
from clients import Dialogue, Sent, dialogue, plain, run_client
from hops import RawHop, make_sendmail, raw_hop
from running import (
    ADDRESS,
    HOST,
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    PROGRAM,
    Daemon,
    Home,
    ending,
    environment,
    make_home,
    run,
    to_program,
    to_smtp,
    tofmipd,
    wait_until,
)

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"
MODES = ("ssl", "tls=on", "tls=optional", "tls=localoptional", "plain")
TLS_REQUIRED = "530 5.7.0 Must issue a STARTTLS command first"


# A daemon, and connections to it; other modules use them too.


def listening(port: int, host: str = HOST) -> bool:
    """Whether connections are taken there, of whatever kind."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


@contextlib.contextmanager
def encrypting(home: Home, *options: str, modes: Sequence[str] = MODES, **more) -> Iterator[Daemon]:
    """As running.tofmipd, with one listener for each mode."""
    listen = [word for mode in modes for word in ("-p", f"{HOST}:0,{mode}")]
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # There is no greeting to wait for where TLS comes first.
            patch.setattr(running, "greets", listening)
            daemon = stack.enter_context(tofmipd(home, "-d", *options, listen=listen, **more))
        yield daemon


@contextlib.contextmanager
def encrypted(
    port: int,
    context: ssl.SSLContext | None = None,
    *,
    at_once: bool = False,
    name: str = HOST_NAME,
    session: ssl.SSLSession | None = None,
) -> Iterator[Dialogue]:
    """A dialogue through TLS, whose greeting has been read."""
    with dialogue(port, greeted=not at_once) as talk:
        if not at_once:
            assert talk.say("EHLO plain.example").startswith("250")
            assert talk.say("STARTTLS") == "220 2.0.0 Ready to start TLS"
        secure = wrapped(talk, context, name, session)
        with secure:
            if at_once:
                assert talk.reply().startswith("220 ")
            yield talk


def wrapped(
    talk: Dialogue,
    context: ssl.SSLContext | None = None,
    name: str = HOST_NAME,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """The handshake; all that the dialogue says from now on goes through TLS."""
    context = context or client_context()
    talk.socket = context.wrap_socket(talk.socket, server_hostname=name, session=session)
    return talk.socket


def serial_of(sock: socket.socket) -> str:
    """That of the certificate that the server has shown."""
    assert isinstance(sock, ssl.SSLSocket)
    der = sock.getpeercert(binary_form=True)
    assert der is not None
    return f"{x509.load_der_x509_certificate(der).serial_number:X}"


def certified(issued: Issued, directory: Path, *trusted) -> ssl.SSLContext:
    """That of a client with a certificate of its own."""
    files = issued.save(directory, f"client-{issued.serial}")
    return client_context(*trusted, certificate=files)


def of(name: str, **more) -> Issued:
    """A client's certificate."""
    return authority().issue(name, dns=(), **more)


@dataclass(frozen=True)
class Safe:
    """A daemon with a listener for each mode, and what it shows."""

    home: Home
    daemon: Daemon
    hop: RawHop
    ecdsa: Issued
    rsa: Issued
    named: Issued
    ca: Path

    def port(self, mode: str) -> int:
        return self.daemon.places[MODES.index(mode)][1]


@pytest.fixture(scope="module")
def standing_safe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Safe]:
    directory = tmp_path_factory.mktemp("safe")
    ecdsa, rsa = intermediate().issue(), intermediate().issue(kind="rsa")
    named = authority().issue("", dns=("other.example.org", "*.many.example.org"), number=1)
    replace(directory / "names" / "other.pem", named.chain + named.key_pem)
    ca = authority().save(directory)
    with raw_hop() as hop:
        home = make_home(directory / "home", to_smtp(hop.port))
        options = (
            *ecdsa.save(directory, "ecdsa").options,
            *rsa.save(directory, "rsa").options,
            *("--ssl-sni-dir", str(directory / "names"), "--ssl-client-ca", str(ca)),
        )
        with encrypting(home, *options) as daemon:
            yield Safe(home, daemon, hop, ecdsa, rsa, named, ca)


@pytest.fixture
def safe(standing_safe: Safe) -> Safe:
    standing_safe.daemon.forget()
    standing_safe.hop.reset()
    return standing_safe


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return authority().issue().save(tmp_path)


def ehlo(talk: Dialogue) -> list[str]:
    """The keywords."""
    first, *lines = talk.say("EHLO client.example").split("\n")
    assert first.startswith("250"), first
    return [line[4:] for line in lines]


# Those that do not show the password, and those that are bound to the channel of TLS 1.3.
HIDING = ("CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256")
BOUND = ("SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS")


def mechanisms(talk: Dialogue) -> list[str]:
    return [word for line in ehlo(talk) if line.startswith("AUTH ") for word in line.split()[1:]]


# Real clients.


def by_swaks(safe: Safe, mode: str, *options: str) -> Sent:
    return run_client(
        *("swaks", "--server", HOST, "--port", str(safe.port(mode)), *options),
        *("--auth", "PLAIN", "--auth-user", LOGIN, "--auth-password", PASSWORD),
        *("--from", ADDRESS, "--to", TO, "--helo", "client.example"),
    )


@pytest.mark.peer("swaks")
def test_swaks_sends_by_tls_at_once(safe):
    """TO-59; Received says so (RFC 3848)."""
    sent = by_swaks(safe, "ssl", "-tlsc")
    assert sent.status == 0, sent.words
    received = safe.hop.message(TO).value("Received")
    assert " with ESMTPSA " in received
    assert "using SMTP over TLS, TLSv1.3 TLS_AES_256_GCM_SHA384" in received


@pytest.mark.peer("swaks")
@pytest.mark.parametrize("mode", ["tls=on", "tls=optional", "tls=localoptional"])
def test_swaks_sends_by_starttls(mode, safe):
    """TO-60, TO-61."""
    sent = by_swaks(safe, mode, "-tls")
    assert sent.status == 0, sent.words
    assert "using STARTTLS, TLSv1.3 " in safe.hop.message(TO).value("Received")


@pytest.mark.peer("swaks")
@pytest.mark.parametrize(
    ("mode", "served"),
    [("tls=on", False), ("tls=optional", True), ("tls=localoptional", True), ("plain", True)],
)
def test_swaks_sends_in_the_clear_where_it_may(mode, served, safe):
    """TO-60 to TO-62, from this machine."""
    sent = by_swaks(safe, mode)
    assert (sent.status == 0) is served, sent.words
    if served:
        received = safe.hop.message(TO).value("Received")
        assert "with ESMTPA" in received
        assert "TLS" not in received
    else:
        assert safe.hop.messages() == []


def curl(*words: str) -> Sent:
    return run_client(
        *("curl", "-sS", "-v", "--user", f"{LOGIN}:{PASSWORD}", "--mail-from", ADDRESS),
        *("--mail-rcpt", TO, "--crlf", "--upload-file", "-", *words),
        text="Subject: x\n\nx\n",
    )


def msmtp(safe: Safe, mode: str, directory: Path) -> Sent:
    configuration = directory / "msmtprc"
    configuration.write_text(
        f"account default\nhost {HOST}\nport {safe.port(mode)}\ntls on\n"
        f"tls_starttls {'off' if mode == 'ssl' else 'on'}\ntls_trust_file {safe.ca}\n"
        f"auth on\nuser {LOGIN}\npassword {PASSWORD}\nfrom {ADDRESS}\n"
    )
    configuration.chmod(0o600)
    command = ("msmtp", "--file", str(configuration), "--debug", "--", TO)
    return run_client(*command, text="Subject: x\n\nx\n")


@pytest.mark.peer("curl")
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl_sends_and_checks_the_chain(mode, version, safe):
    """TO-66."""
    scheme = "smtps" if mode == "ssl" else "smtp"
    sent = curl(
        *("--url", f"{scheme}://{HOST}:{safe.port(mode)}", "--ssl-reqd", "--cacert", str(safe.ca)),
        *(f"--tlsv{version}", "--tls-max", version),
    )
    assert sent.status == 0, sent.words
    assert f"TLSv{version}" in safe.hop.message(TO).value("Received")


@pytest.mark.peer("msmtp")
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
def test_msmtp_sends_and_checks_the_chain(mode, safe, tmp_path):
    """TO-66: the client of GnuTLS."""
    sent = msmtp(safe, mode, tmp_path)
    assert sent.status == 0, sent.words
    assert "ESMTPSA" in safe.hop.message(TO).value("Received")


@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
def test_python_s_own_library_sends(mode, safe):
    """TO-66, with the defaults of both."""
    context = ssl.create_default_context(cafile=safe.ca)
    port = safe.port(mode)
    if mode == "ssl":
        client = smtplib.SMTP_SSL(HOST, port, timeout=LIMIT_SECONDS, context=context)
    else:
        client = smtplib.SMTP(HOST, port, timeout=LIMIT_SECONDS)
    with client:
        if mode != "ssl":
            client.starttls(context=context)
        client.login(LOGIN, PASSWORD)
        assert client.sendmail(ADDRESS, [TO], b"Subject: x\r\n\r\nx\r\n") == {}
    assert "ESMTPSA" in safe.hop.message(TO).value("Received")


def gnutls(safe: Safe, mode: str, *options: str) -> Sent:
    return run_client(
        *("gnutls-cli", "--x509cafile", str(safe.ca), "--crlf", *options),
        *(() if mode == "ssl" else ("--starttls-proto=smtp",)),
        *("--port", str(safe.port(mode)), HOST),
        text="QUIT\n",
    )


@pytest.mark.peer("gnutls-cli")
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
@pytest.mark.parametrize("version", ["TLS1.2", "TLS1.3"])
def test_gnutls_gets_through(mode, version, safe):
    """TO-66."""
    sent = gnutls(safe, mode, "--priority", f"NORMAL:-VERS-ALL:+VERS-{version}")
    assert sent.status == 0, sent.words
    assert f"({version}-X.509)" in sent.words
    assert "The certificate is trusted" in sent.words


@pytest.mark.peer("gnutls-cli")
@pytest.mark.parametrize("version", ["TLS1.0", "TLS1.1"])
def test_gnutls_does_not_by_an_old_version(version, safe):
    """TO-65."""
    sent = gnutls(safe, "ssl", "--priority", f"NORMAL:-VERS-ALL:+VERS-{version}:%COMPAT")
    assert sent.status != 0
    assert "fatal alert" in sent.words


# What openssl sees.


def openssl(port: int, *options: str, starttls: bool = False) -> Sent:
    """``openssl s_client`` that says nothing."""
    more = ("-starttls", "smtp") if starttls else ()
    command = ("openssl", "s_client", "-connect", f"{HOST}:{port}", *more, *options)
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return Sent(done.returncode, done.stdout + done.stderr)


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_openssl_is_shown_the_whole_chain_and_can_check_it(mode, kind, safe):
    """TO-64."""
    done = openssl(
        safe.port(mode),
        *("-showcerts", "-CAfile", str(safe.ca), "-verify_return_error", "-tls1_2"),
        *("-verify_hostname", HOST_NAME),
        *("-cipher", f"ECDHE-{kind.upper()}-AES128-GCM-SHA256"),
        starttls=mode != "ssl",
    )
    assert done.status == 0, done.words
    shown = re.findall(r"-----BEGIN.*?-----END CERTIFICATE-----\n", done.words, re.DOTALL)
    issued = safe.ecdsa if kind == "ecdsa" else safe.rsa
    assert "".join(shown[:2]) == issued.chain.decode()
    assert "Verify return code: 0 (ok)" in done.words


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_the_client_s_signature_algorithms_choose_the_kind_of_key(version, kind, safe):
    """ECDSA and RSA side by side."""
    algorithms = "ecdsa_secp256r1_sha256" if kind == "ecdsa" else "rsa_pss_rsae_sha256"
    done = openssl(safe.port("ssl"), version, "-sigalgs", algorithms)
    assert done.status == 0, done.words
    assert f"Peer signature type: {'ECDSA' if kind == 'ecdsa' else 'RSA-PSS'}" in done.words


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
def test_old_versions_are_refused_with_an_alert(version, mode, safe):
    """TO-65."""
    options = (version, "-cipher", "ALL:@SECLEVEL=0")
    done = openssl(safe.port(mode), *options, starttls=mode != "ssl")
    assert done.status != 0
    assert "alert protocol version" in done.words
    safe.daemon.says("no TLS: TLS handshake: unsupported protocol")


@pytest.mark.peer("openssl")
def test_nothing_is_compressed_and_renegotiation_is_the_secure_kind(safe):
    done = openssl(safe.port("ssl"), "-tls1_2", "-comp")
    assert "Compression: NONE" in done.words
    assert "Secure Renegotiation IS supported" in done.words


@pytest.mark.peer("openssl")
def test_a_client_cannot_make_the_server_shake_hands_again_and_again(safe):
    process = subprocess.Popen(
        [*("openssl", "s_client", "-tls1_2", "-connect"), f"{HOST}:{safe.port('ssl')}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ending(process), process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Data that cross the new handshake would end the connection in any case.
        assert any(line.startswith("220 ") for line in process.stdout)
        process.stdin.write("R\n")
        process.stdin.flush()
        # It ends by itself.
        process.wait(LIMIT_SECONDS)
        words = process.stdout.read()
    assert "RENEGOTIATING" in words
    assert "no renegotiation" in words


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("other.example.org", "named"),
        ("a.many.example.org", "named"),
        (HOST_NAME, "ecdsa"),
        ("nobody.example.org", "ecdsa"),
        ("many.example.org", "ecdsa"),
    ],
)
@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
def test_the_name_that_is_asked_for_chooses_the_certificate(name, which, mode, safe):
    context = client_context()
    context.check_hostname = False
    with encrypted(safe.port(mode), context, at_once=mode == "ssl", name=name) as talk:
        assert serial_of(talk.socket) == getattr(safe, which).serial


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_can_be_resumed_and_still_needs_a_login(version, safe):
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with encrypted(safe.port("tls=on"), context) as talk:
        talk.log_in()
        session = talk.socket.session
        assert not talk.socket.session_reused
    with encrypted(safe.port("tls=on"), context, session=session) as talk:
        assert talk.socket.session_reused
        assert talk.say("EHLO client.example").startswith("250")
        assert talk.say(f"MAIL FROM:<{ADDRESS}>").startswith("530 ")


# What is offered.


@pytest.mark.parametrize(
    ("mode", "before", "starttls"),
    [
        ("tls=on", [], True),
        ("tls=optional", ["PLAIN", "LOGIN", *HIDING], True),
        ("tls=localoptional", ["PLAIN", "LOGIN", *HIDING], True),
        ("plain", ["PLAIN", "LOGIN", *HIDING], False),
    ],
)
def test_ehlo_says_before_tls_what_may_be_done(mode, before, starttls, safe):
    """TO-60 to TO-62: several listeners of one daemon, each in its own way."""
    with dialogue(safe.port(mode)) as talk:
        assert mechanisms(talk) == before
        assert ("STARTTLS" in ehlo(talk)) is starttls


@pytest.mark.parametrize("mode", MODES[:-1])
def test_ehlo_says_behind_tls_that_all_may(mode, safe):
    with encrypted(safe.port(mode), at_once=mode == "ssl") as talk:
        assert mechanisms(talk) == ["PLAIN", "LOGIN", *HIDING, *BOUND]
        assert "STARTTLS" not in ehlo(talk)
        assert talk.say("STARTTLS") == "503 5.5.1 Error: the connection is encrypted already"


@pytest.mark.parametrize("line", ["MAIL FROM:<a@b.example>", "RSET", f"AUTH PLAIN {plain()}"])
def test_before_tls_it_has_to_come_first(line, safe):
    """TO-61."""
    with dialogue(safe.port("tls=on")) as talk:
        assert talk.say(line) == TLS_REQUIRED
        assert talk.say("NOOP") == "250 2.0.0 Ok"


# STARTTLS.


def test_starttls_takes_no_argument_and_comes_before_the_login(safe):
    """TO-63."""
    with dialogue(safe.port("tls=optional")) as talk:
        assert talk.say("STARTTLS now") == "501 5.5.4 Syntax: STARTTLS"
        talk.log_in()
        assert talk.say("STARTTLS") == "503 5.5.1 Error: STARTTLS must come before AUTH"
        talk.envelope(TO)
        assert talk.data(MESSAGE).startswith("250")


def test_starttls_is_out_of_order_where_it_is_not_offered(safe):
    """TO-63."""
    with dialogue(safe.port("plain")) as talk:
        assert talk.say("STARTTLS") == "503 5.5.1 Error: STARTTLS is not offered here"


@pytest.mark.parametrize(
    "behind",
    [
        b"MAIL FROM:<early@b.example>\r\n",
        b"EHLO early.example\r\nAUTH PLAIN " + plain().encode() + b"\r\n",
        b"NOOP\r\n" * 1000,
        b"QUIT",
    ],
    ids=["MAIL", "AUTH", "much", "half a line"],
)
def test_what_is_sent_behind_starttls_in_the_clear_is_not_obeyed(behind, safe):
    """TO-63: in one packet; somebody between the two might have put it there."""
    with dialogue(safe.port("tls=optional")) as talk:
        assert talk.say("EHLO plain.example").startswith("250")
        talk.send(b"STARTTLS\r\n" + behind)
        assert talk.reply() == "220 2.0.0 Ready to start TLS"
        with wrapped(talk):
            # What comes next is the answer to this and to nothing before it.
            assert talk.say("VRFY x").startswith("252 ")
            assert talk.say(f"MAIL FROM:<{ADDRESS}>").startswith("530 5.7.0 Error: Auth")
            talk.log_in()
            assert talk.say("RCPT TO:<x@example.net>") == "503 5.5.1 Error: need MAIL command"
    assert f"{len(behind)} octets behind STARTTLS are ignored" in safe.daemon.text()


def test_a_hello_that_comes_too_early_is_ignored_too(safe):
    """It has not waited for the go-ahead; another one after it is as good as new."""
    outgoing = ssl.MemoryBIO()
    hello = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    with dialogue(safe.port("tls=on")) as talk:
        talk.send(b"STARTTLS\r\n" + outgoing.read())
        assert talk.reply().startswith("220 ")
        with wrapped(talk):
            assert talk.say("NOOP") == "250 2.0.0 Ok"


def test_who_the_client_said_it_was_is_forgotten(safe):
    """TO-63: what it said in the clear is in no Received."""
    with dialogue(safe.port("tls=optional")) as talk:
        assert talk.say("EHLO spoofed.example").startswith("250")
        assert talk.say("STARTTLS").startswith("220 ")
        with wrapped(talk):
            assert talk.say(f"AUTH PLAIN {plain()}").startswith("235 ")
            talk.envelope(TO)
            assert talk.data(MESSAGE).startswith("250")
    received = safe.hop.message(TO).value("Received")
    assert "spoofed" not in received


def test_how_much_was_wrong_is_not_forgotten(safe):
    """The limit of ten errors counts on."""
    with dialogue(safe.port("tls=on")) as talk:
        for _ in range(9):
            assert talk.say("HOP").startswith("502 ")
        assert talk.say("STARTTLS").startswith("220 ")
        with wrapped(talk):
            assert talk.say("HOP").startswith("421 ")


# Client certificates.


def external(name: str = "") -> str:
    return "AUTH EXTERNAL " + (base64.b64encode(name.encode()).decode() or "=")


@pytest.mark.parametrize("mode", ["ssl", "tls=on"])
@pytest.mark.parametrize("identity", ["", "anna", "ANNA", "anna@example.org"])
def test_a_client_s_certificate_is_a_login(mode, identity, safe, tmp_path):
    anna = of("anna", mail=("anna@example.org",))
    context = certified(anna, tmp_path)
    with encrypted(safe.port(mode), context, at_once=mode == "ssl") as talk:
        assert mechanisms(talk) == ["PLAIN", "LOGIN", *HIDING, *BOUND, "EXTERNAL"]
        assert talk.say(external(identity)) == "235 2.7.0 AUTH successful"
        talk.envelope(TO)
        assert talk.data(MESSAGE).startswith("250")
    assert len(safe.hop.messages()) == 1
    login = identity.lower() or "anna"
    accepted = rf"auth accepted .*mechanism=EXTERNAL source=certificate .*user='{login}'"
    assert re.search(accepted, safe.daemon.text())


def test_an_empty_line_answers_its_prompt(safe, tmp_path):
    """RFC 4422: the client has nothing to say."""
    with encrypted(safe.port("tls=on"), certified(of("anna"), tmp_path)) as talk:
        ehlo(talk)
        assert talk.say("AUTH EXTERNAL") == "334 "
        assert talk.say("").startswith("235 ")


def test_a_certificate_is_nobody_else_s_login(safe, tmp_path):
    with encrypted(safe.port("tls=on"), certified(of("anna"), tmp_path)) as talk:
        ehlo(talk)
        assert talk.say(external(LOGIN)).startswith("535 ")
        assert talk.say(f"MAIL FROM:<{ADDRESS}>").startswith("530 ")
        assert talk.say(f"AUTH PLAIN {plain()}").startswith("235 ")


def test_without_a_certificate_a_password_will_do(safe):
    with encrypted(safe.port("tls=on")) as talk:
        assert "EXTERNAL" not in mechanisms(talk)
        assert talk.say(external()) == "504 5.5.4 AUTH type unimplemented"
        assert talk.say(f"AUTH PLAIN {plain()}").startswith("235 ")


def test_in_the_clear_there_is_no_certificate(safe):
    with dialogue(safe.port("tls=optional")) as talk:
        assert "EXTERNAL" not in mechanisms(talk)
        assert not talk.say(external("bobby")).startswith("235")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: stranger().issue("anna", dns=()), "certificate"),
        (lambda: of("anna", days=OVER), "expired|verify failed"),
        (lambda: of("anna", days=NOT_YET), "not yet valid|verify failed"),
    ],
    ids=["another authority", "expired", "not yet"],
)
def test_a_bad_certificate_ends_the_handshake(made, words, version, safe, tmp_path):
    context = certified(made(), tmp_path)
    context.minimum_version = context.maximum_version = version

    def talk() -> str:
        """Up to TLS 1.2 the handshake itself fails, from then on what comes after it.

        The alert is heard even by who speaks at once.
        """
        with encrypted(safe.port("tls=on"), context) as talk:
            return talk.say("NOOP")

    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        talk()
    told = re.compile(rf"no TLS: TLS handshake: .*({words})")
    wait_until(lambda: told.search(safe.daemon.text()), "the reason in the log")


@pytest.mark.peer("curl")
def test_curl_logs_in_by_its_certificate(safe, tmp_path):
    files = of("anna").save(tmp_path, "anna")
    sent = run_client(
        *("curl", "-sS", "-v", "--url", f"smtps://{HOST}:{safe.port('ssl')}"),
        *("--cacert", str(safe.ca), "--cert", str(files.chain), "--key", str(files.key)),
        *("--user", "anna:", "--login-options", "AUTH=EXTERNAL", "--mail-from", ADDRESS),
        *("--mail-rcpt", TO, "--crlf", "--upload-file", "-"),
        text="Subject: x\n\nx\n",
    )
    assert sent.status == 0, sent.words
    assert len(safe.hop.messages()) == 1


# Starting.


def refused(home: Home, *options: str) -> subprocess.CompletedProcess[str]:
    return run("--personal", "-p", f"{HOST}:0", *options, home=home)


@pytest.fixture(scope="module")
def somebody(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_home(tmp_path_factory.mktemp("somebody"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--ssl --tls=on --ssl-cert c --ssl-key k", "exclude each other"),
        ("--tls", "on, optional, localoptional"),
        ("--tls=on --ssl-key k", "--ssl-cert"),
        ("-p localhost:1,tls --ssl-cert c --ssl-key k", "behind the comma"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options, words, somebody):
    """TO-59."""
    result = refused(somebody, *options.split())
    assert result.returncode == os.EX_USAGE
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("background", ["-f", "-b"])
@pytest.mark.parametrize("what", ["another key", "no key"])
def test_a_pair_that_cannot_be_used_is_told_at_the_start(what, background, files, somebody):
    """TO-64: by one line that names the file; before the daemon goes into the background."""
    if what == "no key":
        files.key.unlink()
    else:
        replace(files.key, key_pem(key_of("ecdsa", 7)))
    result = refused(somebody, background, "--ssl", *files.options)
    assert result.returncode == os.EX_CONFIG, result.stderr
    assert result.stderr.startswith("tofmipd: ")
    assert result.stderr.count("\n") == 1
    assert str(files.key) in result.stderr


def test_a_tilde_is_the_home_directory(somebody, hop):
    """TO-64."""
    authority().issue().save(somebody.path, "mine")
    options = ("--ssl-cert", "~/mine.pem", "--ssl-key", "~/mine.key")
    with (
        encrypting(somebody, *options, modes=["ssl"]) as daemon,
        encrypted(daemon.port, at_once=True) as talk,
    ):
        assert talk.say("NOOP") == "250 2.0.0 Ok"


def test_the_options_for_all_listeners_count_for_those_that_say_nothing(somebody, files):
    listen = ("-p", f"{HOST}:0", "-p", f"{HOST}:0,plain", "-p", f"{HOST}:0,tls=optional")
    with tofmipd(somebody, "--tls=on", *files.options, listen=listen) as daemon:
        found = []
        for _, port in daemon.places:
            with dialogue(port) as talk:
                found.append(("STARTTLS" in ehlo(talk), bool(mechanisms(talk))))
    assert found == [(True, False), (False, True), (True, True)]


def test_a_list_of_ciphers_is_honoured(somebody, files):
    """TO-65."""
    only = "ECDHE-ECDSA-AES128-GCM-SHA256"
    with encrypting(somebody, *files.options, "--ciphers", only, modes=["ssl"]) as daemon:
        for cipher, served in ((only, True), ("ECDHE-ECDSA-AES256-GCM-SHA384", False)):
            context = client_context()
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(cipher)
            if served:
                with encrypted(daemon.port, context, at_once=True) as talk:
                    assert talk.socket.cipher()[0] == cipher
            else:
                with pytest.raises(ssl.SSLError), encrypted(daemon.port, context, at_once=True):
                    pass
        daemon.says("no TLS: TLS handshake: no shared cipher")


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with new_account(f"tls{os.getpid() % 100_000}") as made:
        yield made


@pytest.mark.root
def test_a_key_that_its_user_may_not_read_is_told(account, tmp_path_factory):
    directory = account.home.path / "certificates"
    files = authority().issue().save(directory)
    for path in (directory, files.chain, account.home.path):
        os.chown(path, account.uid, account.uid)
    os.chmod(directory, 0o755)
    try:
        import_works(account)
        result = run(
            *("-f", "-p", f"{HOST}:0", "--ssl", *files.options),
            home=account.home,
            program=account.program,
            variables=account.variables,
            user=account.uid,
        )
    finally:
        files.key.unlink()
    assert result.returncode == os.EX_CONFIG, result.stderr
    assert result.stderr == f"tofmipd: {files.key}: cannot be read: Permission denied\n"


def import_works(account: Account) -> None:
    """Skip where the interpreter that accounts can run has no library for TLS."""
    done = subprocess.run(
        [account.program[0], "-c", "import OpenSSL"],
        user=account.uid,
        group=account.uid,
        env={"PATH": os.environ["PATH"]},
        check=False,
        capture_output=True,
    )
    if done.returncode:
        running.cannot_run(f"{account.program[0]} has no pyOpenSSL that all accounts can import")


# Much, and many.


def test_twenty_megabytes_arrive_octet_for_octet_by_data(safe):
    body = big_body()
    with encrypted(safe.port("tls=on")) as talk:
        talk.log_in()
        talk.envelope(TO)
        octets = b"Subject: x\r\n\r\n" + body
        assert talk.data(octets + b".\r\n").startswith("250")
    assert same(safe.hop.message(TO).body, body)


def test_twenty_megabytes_arrive_octet_for_octet_by_chunks(safe):
    body = big_body()
    octets = b"Subject: x\r\n\r\n" + body
    half = len(octets) // 2 + 1
    with encrypted(safe.port("ssl"), at_once=True) as talk:
        talk.log_in()
        talk.envelope(TO)
        talk.send(b"BDAT %d\r\n" % half + octets[:half])
        assert talk.reply().startswith("250")
        talk.send(b"BDAT %d LAST\r\n" % (len(octets) - half) + octets[half:])
        assert talk.reply().startswith("250")
    assert same(safe.hop.message(TO).body, body)


def big_body() -> bytes:
    """20 MB of lines of which none is like another."""
    line = b"0123456789abcdefghijklmnopqrstuvwxyz" * 2
    return b"".join(b"%06d %s\r\n" % (number, line) for number in range(250_000))


def same(one: bytes, other: bytes) -> bool:
    """Without a comparison of megabytes in a report."""
    return hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


def test_fifty_sessions_at_once_are_served(safe):
    ready = threading.Barrier(50, timeout=LIMIT_SECONDS)

    def send(number: int) -> str:
        mode = ("ssl", "tls=on")[number % 2]
        with encrypted(safe.port(mode), at_once=mode == "ssl") as talk:
            # All handshakes have been done, and nobody has gone.
            ready.wait()
            talk.log_in()
            talk.envelope(f"r{number}@example.net")
            return talk.data(MESSAGE)

    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(send, range(50)))
    assert all(reply.startswith("250") for reply in replies), replies
    recipients = {recipient for m in safe.hop.messages() for recipient in m.recipients}
    assert recipients == {f"r{number}@example.net" for number in range(50)}


# Hostile clients.


@dataclass(frozen=True)
class Impatient:
    """A daemon that waits for nobody for more than a second."""

    daemon: Daemon
    hop: RawHop

    @property
    def ssl(self) -> int:
        return self.daemon.places[0][1]

    @property
    def tls(self) -> int:
        return self.daemon.places[1][1]

    def serves(self) -> None:
        """Somebody else is served meanwhile."""
        with encrypted(self.tls) as talk:
            assert talk.say("NOOP") == "250 2.0.0 Ok"


SECONDS = 1.0


@pytest.fixture(scope="module")
def standing_impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Impatient]:
    directory = tmp_path_factory.mktemp("impatient")
    files = authority().issue().save(directory)
    limits = ("login", "idle", "data", "write")
    options = [word for name in limits for word in (f"--{name}-timeout", str(SECONDS))]
    with raw_hop() as hop:
        home = make_home(directory / "home", to_smtp(hop.port))
        with encrypting(home, *files.options, *options, modes=["ssl", "tls=on"]) as daemon:
            yield Impatient(daemon, hop)


@pytest.fixture
def impatient(standing_impatient: Impatient) -> Impatient:
    standing_impatient.hop.reset()
    standing_impatient.daemon.forget()
    return standing_impatient


def hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    client = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST_NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def until_cut(sock: socket.socket, *, feed: bytes = b"", pause: float = 0.02) -> float:
    """How long it takes until the other end closes while octets go there one by one."""
    begun = time.monotonic()
    sock.settimeout(pause)
    place = 0
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while time.monotonic() - begun < LIMIT_SECONDS:
            try:
                if not sock.recv(65536):
                    break
            except TimeoutError:
                if place < len(feed):
                    socket.socket.sendall(sock, feed[place : place + 1])
                    place += 1
    return time.monotonic() - begun


def assert_cut_in_time(seconds: float) -> None:
    assert SECONDS - 0.3 < seconds < SECONDS + 3


def test_thirty_silent_handshakes_keep_nobody_waiting(safe):
    """TO-68."""
    with contextlib.ExitStack() as stack:
        for number in range(30):
            mode = ("ssl", "tls=on")[number % 2]
            talk = stack.enter_context(dialogue(safe.port(mode), greeted=mode != "ssl"))
            if mode != "ssl":
                assert talk.say("STARTTLS").startswith("220 ")
        begun = time.monotonic()
        for mode in ("ssl", "tls=on"):
            with encrypted(safe.port(mode), at_once=mode == "ssl") as talk:
                talk.log_in()
                talk.envelope(f"{mode[:3]}@example.net")
                assert talk.data(MESSAGE).startswith("250")
        assert time.monotonic() - begun < 5
    assert len(safe.hop.messages()) == 2


def test_a_handshake_that_takes_too_long_is_cut(impatient):
    """TO-68: silent or octet by octet, the deadline of the login does not begin anew with each
    octet, nor with STARTTLS."""

    def lasts(octets: bytes, at_once: bool) -> float:
        with dialogue(impatient.ssl if at_once else impatient.tls, greeted=not at_once) as talk:
            if not at_once:
                assert talk.say("STARTTLS").startswith("220 ")
            return until_cut(talk.socket, feed=octets)

    cases = [(octets, at_once) for octets in (b"", hello()) for at_once in (True, False)]
    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(lasts, *case) for case in cases]
        impatient.serves()
        for client in clients:
            assert_cut_in_time(client.result())
    assert impatient.daemon.text().count("no TLS: the TLS handshake takes too long") == 4


def test_a_record_that_comes_octet_by_octet_does_not_outlast_the_limit(impatient):
    """--login-timeout and --idle-timeout."""

    def lasts(logged_in: bool) -> float:
        with by_hand(impatient) as client:
            if logged_in:
                client.ask(b"EHLO x\r\n")
                assert client.ask(f"AUTH PLAIN {plain()}\r\n".encode()).startswith(b"235")
            record = client.record(b"NOOP " + b"x" * 400 + b"\r\n")
            return until_cut(client.socket, feed=record)

    with ThreadPoolExecutor() as pool:
        for seconds in pool.map(lasts, (True, False)):
            assert_cut_in_time(seconds)
    assert impatient.daemon.text().count("timeout: the client is too slow") == 2


class ByHand:
    """A client whose records are in its hands."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=HOST_NAME)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                sock.sendall(self._out.read())
                self._in.write(sock.recv(65536))
            else:
                sock.sendall(self._out.read())
                return

    def record(self, octets: bytes) -> bytes:
        self._tls.write(octets)
        return self._out.read()

    def hear(self) -> bytes:
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                octets = self.socket.recv(65536)
                if not octets:
                    return b""
                self._in.write(octets)

    def ask(self, octets: bytes) -> bytes:
        self.socket.sendall(self.record(octets))
        return self.hear()


@contextlib.contextmanager
def by_hand(impatient: Impatient) -> Iterator[ByHand]:
    with dialogue(impatient.ssl, greeted=False) as talk:
        client = ByHand(talk.socket)
        assert client.hear().startswith(b"220 ")
        yield client


def test_a_client_that_never_stops_talking_has_to_log_in_in_time(impatient):
    """There is always another command, so that nobody would ever look at the clock."""
    with encrypted(impatient.ssl, at_once=True) as talk:
        begun = time.monotonic()
        talk.socket.setblocking(False)
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            while time.monotonic() - begun < 5:
                with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    talk.socket.send(b"NOOP\r\n" * 500)
                with contextlib.suppress(ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    if not talk.socket.recv(65536):
                        break
        assert_cut_in_time(time.monotonic() - begun)


def test_a_client_that_never_reads_its_replies_is_cut(impatient):
    """--write-timeout."""
    with dialogue(impatient.ssl, greeted=False) as talk:
        talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client = ByHand(talk.socket)
        client.ask(b"EHLO x\r\n")
        client.ask(f"AUTH PLAIN {plain()}\r\n".encode())
        talk.socket.settimeout(LIMIT_SECONDS)
        begun = time.monotonic()
        question = b"HELP\r\n" * 2000
        with contextlib.suppress(ConnectionError, TimeoutError):
            while time.monotonic() - begun < LIMIT_SECONDS:
                talk.socket.sendall(client.record(question))
        assert SECONDS - 0.3 < time.monotonic() - begun < 3 * SECONDS + 5
    assert "timeout: the client does not read its replies" in impatient.daemon.text()


@pytest.mark.parametrize("octets", [b"\x00" * 200, b"\xff" * 200, b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("at_once", [True, False], ids=["ssl", "starttls"])
def test_garbage_instead_of_tls_ends_the_connection_at_once(octets, at_once, safe):
    with dialogue(safe.port("ssl" if at_once else "tls=on"), greeted=not at_once) as talk:
        if not at_once:
            assert talk.say("STARTTLS").startswith("220 ")
        talk.send(octets)
        with contextlib.suppress(ConnectionError):
            rest = talk.socket.recv(1000)
            assert rest == b"" or rest[0] == 21
    safe.daemon.says("no TLS: TLS handshake: ")


def test_a_client_of_plain_smtp_where_tls_comes_first_is_parted_from(safe):
    """It waits for a greeting, and gets none; what it says is taken for no command."""
    with dialogue(safe.port("ssl"), greeted=False) as talk:
        talk.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            talk.socket.recv(100)
        talk.socket.settimeout(LIMIT_SECONDS)
        talk.send(b"EHLO client.example\r\n")
        with contextlib.suppress(ConnectionError):
            assert not talk.socket.recv(1000).startswith(b"2")
    assert "EHLO" not in safe.daemon.text()


@pytest.mark.parametrize("newline", [b"\n", b"\x0b", b"\r\n"])
@pytest.mark.parametrize("mode", ["plain", "tls=on"])
def test_a_client_that_begins_tls_too_early_is_told_so_at_once(mode, newline, safe):
    """Whether or not its hello happens to hold what might be the end of a line."""
    octets = hello().replace(b"\n", newline)
    with dialogue(safe.port(mode)) as talk:
        talk.send(octets)
        begun = time.monotonic()
        assert talk.reply().startswith("500 5.5.1 Error: TLS begins with STARTTLS here")
        assert talk.reply() == ""
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("where", ["handshake", "session", "record", "data", "record in data"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_vanishes_leaves_nothing_behind(where, how, safe):
    """And nothing of an unfinished message is sent on."""
    with dialogue(safe.port("tls=on")) as talk:
        assert talk.say("STARTTLS").startswith("220 ")
        raw = talk.socket.dup()
        if where == "handshake":
            raw.sendall(hello())
        else:
            wrapped(talk)
            talk.log_in()
        if where in ("data", "record in data"):
            talk.envelope(TO)
            assert talk.say("DATA").startswith("354")
            talk.send(b"Subject: x\r\n\r\nx\r\n")
        if where.startswith("record"):
            raw.sendall(b"\x17\x03\x03\x40\x00" + bytes(100))
        if how == "reset":
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        raw.close()
        talk.socket.close()
    safe.daemon.says(" end after ")
    assert safe.hop.messages() == []
    assert not [line for line in safe.hop.commands if line.startswith("MAIL")]


@pytest.mark.parametrize("final", [b"", b".", b".\r"])
def test_a_message_that_is_cut_off_is_not_sent(final, safe):
    """Somebody between the two ends the connection: that is not the end of the message."""
    with encrypted(safe.port("tls=on")) as talk:
        talk.log_in()
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(b"Subject: x\r\n\r\nI do not owe you anything\r\n" + final)
        # Without the goodbye of TLS.
        talk.socket.shutdown(socket.SHUT_WR)
        safe.daemon.says(" end after ")
    assert safe.hop.messages() == []


def test_nor_is_one_after_which_the_client_says_goodbye(safe):
    with encrypted(safe.port("tls=on")) as talk:
        talk.log_in()
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(b"Subject: x\r\n\r\nx\r\n")
        with contextlib.suppress(OSError):
            talk.socket.unwrap()
        safe.daemon.says(" end after ")
    assert safe.hop.messages() == []


# The end.


def test_a_hanging_handshake_does_not_hold_up_the_end(somebody, files):
    """SIGTERM; nor does a session that waits for a record."""
    with (
        encrypting(somebody, *files.options, modes=["ssl", "tls=on"]) as daemon,
        dialogue(daemon.places[0][1], greeted=False) as silent,
        dialogue(daemon.places[0][1], greeted=False) as half,
        dialogue(daemon.places[1][1]) as started,
    ):
        half.send(hello())
        assert half.socket.recv(1) == b"\x16"
        assert started.say("STARTTLS").startswith("220 ")
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 5
        for talk in (silent, started):
            with contextlib.suppress(ConnectionError):
                assert talk.socket.recv(1000) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_idle_sessions_are_told_of_the_end(version, somebody, files):
    """TO-19, through TLS, and with its goodbye."""
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with (
        encrypting(somebody, *files.options, modes=["tls=on"]) as daemon,
        encrypted(daemon.port, context) as talk,
    ):
        talk.log_in()
        daemon.process.send_signal(signal.SIGTERM)
        assert talk.reply() == "421 4.3.2 The service is shutting down"
        assert talk.reply() == ""


def test_a_message_under_way_is_delivered_before_the_end(somebody, files):
    with raw_hop() as hop:
        somebody.configure(to_smtp(hop.port))
        with (
            encrypting(somebody, *files.options, modes=["tls=on"]) as daemon,
            encrypted(daemon.port) as talk,
        ):
            talk.log_in()
            talk.envelope(TO)
            assert talk.say("DATA").startswith("354")
            talk.send(MESSAGE[:30])
            daemon.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listening(daemon.port), "the port to close")
            talk.send(MESSAGE[30:])
            assert talk.reply().startswith("250")
            assert talk.reply().startswith("421 4.3.2 ")
        assert len(hop.messages()) == 1


# Secrets.


def test_no_log_shows_a_key_or_what_was_encrypted(safe, tmp_path):
    """With -d, which shows most."""
    secret = b"the words between us"
    with encrypted(safe.port("tls=on"), certified(of("anna"), tmp_path)) as talk:
        ehlo(talk)
        talk.say(external())
        talk.envelope(TO)
        talk.data(b"Subject: x\r\n\r\n" + secret + b"\r\n.\r\n")
    text = safe.daemon.log.read_text()
    assert "auth accepted" in text
    assert secret.decode() not in text
    assert "PRIVATE KEY" not in text
    for issued in (safe.ecdsa, safe.rsa, safe.named):
        for line in issued.key_pem.decode().splitlines()[1:-1]:
            assert line not in text


# Clients elsewhere.

elsewhere = test_network.network


@pytest.mark.root
@pytest.mark.peer("ip", "swaks")
def test_only_a_client_on_this_machine_may_speak_in_the_clear(elsewhere, tmp_path, files):
    """TO-62: from another address STARTTLS has to come first."""
    program = make_sendmail(tmp_path / "program")
    home = make_home(tmp_path / "home", to_program(program.path))
    log = home.path / "daemon.log"
    name, (_, servers) = next(iter(elsewhere.clients.items()))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", elsewhere.server, PROGRAM, "--personal", "-f"),
                *("-p", "0.0.0.0:8025", "--tls=localoptional", *files.options),
            ],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    with ending(process):
        wait_until(lambda: b"Listening on" in log.read_bytes(), "the start lines")
        command = (
            *("--port", "8025", "--auth", "PLAIN", "--auth-user", LOGIN),
            *("--auth-password", PASSWORD, "--from", ADDRESS, "--to", TO, "--helo", "x.example"),
        )
        far = ("ip", "netns", "exec", name, "swaks", "--server", servers)
        near = ("ip", "netns", "exec", elsewhere.server, "swaks", "--server", HOST)
        plainly = run_client(*far, *command)
        assert plainly.status != 0
        assert "AUTH" not in "".join(re.findall(r"<-  250.*\n", plainly.words))
        asked = run_client(*far, *command[:2], "--quit-after", "MAIL", "--from", ADDRESS)
        assert TLS_REQUIRED in asked.words
        assert program.messages() == []
        assert run_client(*far, *command, "-tls").status == 0
        assert run_client(*near, *command).status == 0
    received = [message.value("Received") for message in program.messages()]
    assert sorted("ESMTPSA" in value for value in received) == [False, True]
