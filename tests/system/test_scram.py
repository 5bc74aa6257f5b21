"""SCRAM (RFC 5802, RFC 7677, RFC 9266): with clients of GNU SASL, and step by step."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import re
import secrets
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from certificates import authority, client_context
from clients import Dialogue, Mail, Sent, by_msmtp, dialogue, run_client
from hops import RawHop, raw_hop
from OpenSSL import SSL
from running import HOST, LOGIN, PASSWORD, Daemon, make_home, to_smtp
from test_tls import encrypted, encrypting, mechanisms

TO = "x@example.net"
YES, NO = "235 2.7.0 AUTH successful", "535 5.7.8 "
ENCRYPT = "538 5.7.11 "
MODES = ("plain", "tls=optional")
ALONE = ["SCRAM-SHA-1", "SCRAM-SHA-256"]
BOUND = [f"{name}-PLUS" for name in ALONE]
USERS = {LOGIN: PASSWORD, "chloé": "pä ß:{x}", "a,b=c": "x,y=z"}
# Nobody fails twice: the second refusal would be later, and the fifth another one.
FAILING = [f"tim{number}" for number in range(6)]
DAEMONS = 3


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


@dataclass(frozen=True)
class Attempt:
    """What a client of SCRAM says.

    ``header`` is the beginning of its first message, ``binding`` the octets that it binds
    itself to.
    """

    mechanism: str
    user: str = LOGIN
    password: str = PASSWORD
    header: str = "n,,"
    binding: bytes = b""

    def run(self, talk: Dialogue, confirmation: str = "") -> str:
        """The final reply; what the server proves of itself must be right.

        ``confirmation`` is what is said to that.
        """
        name = "sha1" if "SHA-1" in self.mechanism else "sha256"
        nonce = secrets.token_urlsafe()
        user = self.user.replace("=", "=3D").replace(",", "=2C")
        first = f"n={user},r={nonce}"
        said = talk.say(f"AUTH {self.mechanism} {b64((self.header + first).encode())}")
        if not said.startswith("334 "):
            return said
        challenge = base64.b64decode(said[4:]).decode()
        fields = dict(field.split("=", 1) for field in challenge.split(","))
        assert fields["r"].startswith(nonce)
        assert len(fields["r"]) > len(nonce) + 16
        assert int(fields["i"]) >= 4096
        salt = base64.b64decode(fields["s"])
        salted = hashlib.pbkdf2_hmac(name, self.password.encode(), salt, int(fields["i"]))
        client_key, server_key = (
            hmac.digest(salted, label, name) for label in (b"Client Key", b"Server Key")
        )
        final = f"c={b64(self.header.encode() + self.binding)},r={fields['r']}"
        message = f"{first},{challenge},{final}".encode()
        signature = hmac.digest(hashlib.new(name, client_key).digest(), message, name)
        proof_of_server = hmac.digest(server_key, message, name)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        said = talk.say(b64(f"{final},p={b64(proof)}".encode()))
        if not said.startswith("334 "):
            return said
        assert base64.b64decode(said[4:]) == b"v=" + b64(proof_of_server).encode()
        return talk.say(confirmation)


@dataclass(frozen=True)
class Standing:
    """``plain`` and ``secure`` are ports, those of the first of the daemons; on ``secure`` there
    is STARTTLS."""

    hop: RawHop
    daemons: list[Daemon]
    ca: Path

    @property
    def plain(self) -> int:
        return self.daemons[0].places[0][1]

    @property
    def secure(self) -> int:
        return self.daemons[0].places[1][1]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    directory = tmp_path_factory.mktemp("scram")
    options = authority().issue().save(directory).options
    ca = authority().save(directory)
    with raw_hop() as hop, contextlib.ExitStack() as stack:
        home = make_home(directory / "home", to_smtp(hop.port))
        users = USERS | dict.fromkeys(FAILING, PASSWORD)
        home.write("tofmipd", "".join(f"{user}:{word}\n" for user, word in users.items()))
        daemons = [
            stack.enter_context(encrypting(home, *options, modes=MODES)) for _ in range(DAEMONS)
        ]
        yield Standing(hop, daemons, ca)


@contextlib.contextmanager
def bound(port: int) -> Iterator[tuple[Dialogue, bytes]]:
    """A dialogue through TLS 1.3, and what can be exported of it (RFC 9266)."""
    with dialogue(port) as talk:
        assert talk.say("EHLO client.example").startswith("250")
        assert talk.say("STARTTLS").startswith("220")
        # The library has no limits of time of its own.
        talk.socket.settimeout(None)
        link = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), talk.socket)
        link.set_connect_state()
        link.do_handshake()
        talk.socket = link
        assert talk.say("EHLO client.example").startswith("250")
        yield talk, link.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")


# On a connection that is not encrypted.
CLEAR = [
    *((Attempt(name), YES) for name in ALONE),
    *((Attempt(name), ENCRYPT) for name in BOUND),
    (Attempt(ALONE[0], FAILING[0], "foobar"), NO),
    (Attempt(ALONE[1], FAILING[1], "foobar"), NO),
    (Attempt(ALONE[1], "nobody"), NO),
    (Attempt(ALONE[1].lower()), YES),
    (Attempt(ALONE[1], "BOBBY"), YES),
    (Attempt(ALONE[1], "ｂobby"), YES),
    (Attempt(ALONE[1], "chloé", USERS["chloé"]), YES),
    (Attempt(ALONE[1], "CHLOE\N{COMBINING ACUTE ACCENT}", USERS["chloé"]), YES),
    (Attempt(ALONE[1], "chloe", USERS["chloé"]), NO),
    (Attempt(ALONE[1], "a,b=c", USERS["a,b=c"]), YES),
    (Attempt(ALONE[1], header="n,a=Bobby,"), YES),
    # It could bind itself to a channel, and has not seen that this is offered.
    (Attempt(ALONE[1], header="y,,"), YES),
]
# On one that is, with what the channel has for ``binding``, unless it has some of its own.
EXPORTER = "p=tls-exporter,,"
SECURE = [
    *((Attempt(name, header=EXPORTER), YES) for name in BOUND),
    *((Attempt(name), YES) for name in ALONE),
    (Attempt(BOUND[0], FAILING[2], "foobar", EXPORTER), NO),
    (Attempt(BOUND[1], FAILING[3], "foobar", EXPORTER), NO),
    (Attempt(BOUND[1], FAILING[4], header=EXPORTER, binding=b"x" * 32), NO),
    # These are refused as nobody's.  Somebody has taken -PLUS out of what the client was shown:
    (Attempt(ALONE[1], header="y,,"), NO),
    (Attempt(ALONE[1], header=EXPORTER), NO),
    (Attempt(ALONE[1], header="n,a=chloe,"), NO),
    (Attempt(BOUND[1], header="n,,"), NO),
    (Attempt(BOUND[1], header="y,,"), NO),
    (Attempt(BOUND[1], header="p=tls-unique,,"), NO),
]


def shown(row: tuple[Attempt, str]) -> str:
    attempt, reply = row
    return f"{attempt.mechanism} {attempt.user} {attempt.header} {reply[:3]}"


@pytest.fixture(scope="module")
def replies(serving: Standing) -> dict[str, list[str]]:
    """To all of CLEAR and SECURE at the same time, for a refusal takes a second."""

    def clear(number: int) -> str:
        with dialogue(serving.plain) as talk:
            assert talk.say("EHLO client.example").startswith("250")
            return CLEAR[number][0].run(talk)

    def secure(number: int) -> str:
        port = serving.daemons[number % DAEMONS].places[1][1]
        with bound(port) as (talk, exported):
            attempt = SECURE[number][0]
            if attempt.header.startswith("p=") and not attempt.binding:
                attempt = dataclasses.replace(attempt, binding=exported)
            return attempt.run(talk)

    with ThreadPoolExecutor(len(CLEAR) + len(SECURE)) as pool:
        found = pool.map(clear, range(len(CLEAR))), pool.map(secure, range(len(SECURE)))
        return {"clear": list(found[0]), "secure": list(found[1])}


@pytest.mark.parametrize("number", range(len(CLEAR)), ids=lambda n: shown(CLEAR[n]))
def test_a_client_proves_that_it_knows_the_password(number, replies):
    """BX-21; names and passwords beyond ASCII as RFC 4013 has them."""
    assert replies["clear"][number].startswith(CLEAR[number][1])


@pytest.mark.parametrize("number", range(len(SECURE)), ids=lambda n: shown(SECURE[n]))
def test_a_client_binds_itself_to_its_channel(number, replies):
    """RFC 5802 section 6."""
    assert replies["secure"][number].startswith(SECURE[number][1])


def test_what_is_bound_to_a_channel_is_offered_where_there_is_one(serving):
    with dialogue(serving.secure) as talk:
        assert mechanisms(talk) == ["PLAIN", "LOGIN", "CRAM-MD5", *ALONE]
    with bound(serving.secure) as (talk, _):
        assert mechanisms(talk) == ["PLAIN", "LOGIN", "CRAM-MD5", *ALONE, *BOUND]
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with encrypted(serving.secure, context) as talk:
        assert mechanisms(talk) == ["PLAIN", "LOGIN", "CRAM-MD5", *ALONE]


@pytest.mark.parametrize("confirmation", ["*", "eA==", "?"])
def test_a_client_that_does_not_trust_the_server_is_not_logged_in(confirmation, serving):
    with dialogue(serving.plain) as talk:
        talk.say("EHLO client.example")
        assert Attempt(ALONE[1]).run(talk, confirmation).startswith("501 ")
        assert talk.say("MAIL FROM:<bobby@example.org>").startswith("530")
        assert Attempt(ALONE[1]).run(talk) == YES


def test_what_was_overheard_serves_nobody_else(serving):
    """Each exchange has a nonce of the server's."""
    heard: list[str] = []
    attempt = Attempt(ALONE[1], FAILING[5])
    with dialogue(serving.plain) as talk:
        talk.say("EHLO client.example")
        ear = SimpleNamespace(say=lambda line: (heard.append(line), talk.say(line))[1])
        assert attempt.run(ear) == YES
    with dialogue(serving.plain) as talk:
        talk.say("EHLO client.example")
        assert talk.say(heard[0]).startswith("334 ")
        assert talk.say(heard[1]).startswith(NO)


def test_a_name_that_nobody_has_gets_a_challenge_like_any_other(serving):
    """The same one each time but for the nonce."""
    found = []
    for user in ("nobody", "nobody", "somebody"):
        with dialogue(serving.plain) as talk:
            talk.say("EHLO client.example")
            said = talk.say(f"AUTH SCRAM-SHA-256 {b64(f'n,,n={user},r=abc'.encode())}")
            found.append(base64.b64decode(said[4:]).decode().split(",")[1:])
    assert found[0] == found[1] != found[2]
    assert {len(x) for x in found} == {2}


# Clients of GNU SASL.


@pytest.mark.peer("msmtp")
@pytest.mark.parametrize("mechanism", ALONE)
@pytest.mark.parametrize("user", [LOGIN, "chloé"])
def test_msmtp_sends(mechanism, user, serving, tmp_path):
    serving.hop.reset()
    mail = Mail((TO,), "Subject: x\n\nx\n", mechanism=mechanism, login=user, password=USERS[user])
    sent = by_msmtp(mail, serving.plain, tmp_path)
    assert sent.status == 0, sent.words
    assert f"--> AUTH {mechanism}\n" in sent.words
    assert len(serving.hop.messages()) == 1


def gsasl(port: int, mechanism: str, password: str, *options: str, user: str = LOGIN) -> Sent:
    return run_client(
        *("gsasl", "--smtp", "--verbose", f"--connect={HOST}:{port}", "--mechanism", mechanism),
        *("--authentication-id", user, "--password", password, *options),
    )


@pytest.mark.peer("gsasl")
@pytest.mark.parametrize("mechanism", [*ALONE, *BOUND])
def test_gsasl_logs_in_and_finds_the_server_s_proof_good(mechanism, serving):
    """Over TLS it says that it could bind itself, or does so."""
    options = ("--starttls", f"--x509-ca-file={serving.ca}")
    plus = () if mechanism in BOUND else ("--no-cb",)
    sent = gsasl(serving.secure, mechanism, PASSWORD, *options, *plus)
    assert sent.status == 0, sent.words
    assert YES in sent.words


@pytest.mark.peer("gsasl")
def test_gsasl_gets_a_wrong_password_refused(serving):
    sent = gsasl(serving.plain, ALONE[1], "wrong", "--no-starttls")
    assert sent.status != 0
    assert NO in sent.words


@pytest.mark.peer("gsasl", "msmtp")
def test_a_verifier_that_gsasl_has_made_is_as_good_as_the_password(start, home, hop, tmp_path):
    """BX-23: it serves its own mechanism and those that show the password."""
    made = run_client(
        *("gsasl", "--mkpasswd", "--mechanism", "SCRAM-SHA-256", "--password", PASSWORD),
        *("--iteration-count", "10000"),
    )
    verifier = re.search(r"\{SCRAM-SHA-256\}\S+", made.words)[0]
    home.write("tofmipd", f"{LOGIN}:{verifier}\n")
    daemon = start(home)
    with dialogue(daemon.port) as talk:
        assert mechanisms(talk) == ["PLAIN", "LOGIN", "SCRAM-SHA-256"]
        assert Attempt("SCRAM-SHA-256", password="foobar").run(talk).startswith(NO)
        assert Attempt("SCRAM-SHA-256").run(talk) == YES
    for mechanism in ("PLAIN", "SCRAM-SHA-256"):
        mail = Mail((TO,), "Subject: x\n\nx\n", mechanism=mechanism)
        sent = by_msmtp(mail, daemon.port, tmp_path)
        assert sent.status == 0, sent.words
    assert len(hop.messages()) == 2


# Global mode.


@pytest.mark.root
@pytest.mark.peer("gsasl", "msmtp")
def test_in_global_mode_the_exchange_is_made_by_auth(village, village_hop, tmp_path):
    bobby, chloe, _ = village.people
    options = authority().issue().save(tmp_path).options
    with village.daemon("--tls=optional", *options) as daemon:
        mail = Mail((TO,), "Subject: x\n\nx\n", mechanism="SCRAM-SHA-256")
        mail = dataclasses.replace(mail, login=bobby.name, password=bobby.password)
        sent = by_msmtp(mail, daemon.port, tmp_path)
        assert sent.status == 0, sent.words
        assert len(village_hop.messages()) == 1
        for mechanism in BOUND:
            options = ("--starttls", "--x509-ca-file=")
            sent = gsasl(daemon.port, mechanism, chloe.password, *options, user=chloe.name)
            assert sent.status == 0, sent.words
        with bound(daemon.port) as (talk, exported):
            attempt = Attempt(BOUND[1], bobby.name, bobby.password, EXPORTER, exported)
            assert dataclasses.replace(attempt, binding=b"x").run(talk).startswith(NO)
            assert dataclasses.replace(attempt, user="nobody").run(talk).startswith(NO)
            assert attempt.run(talk) == YES
