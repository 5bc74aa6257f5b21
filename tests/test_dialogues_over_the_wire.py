"""The conversations of tests/dialogues over real connections, in plain and with TLS.

A service with its listeners talks to the clients of the files; what stands behind the gate is a
stand-in that says what it is asked.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Files, authority, client_context
from fakes import Client, Judge, described
from test_smtp_dialogues import FILES, HOST_NAME, Dialogue, Group, compare, lines_of, read

from tofmipd.auth.credentials import Credentials, Judgement
from tofmipd.auth.scram import PLUS
from tofmipd.content import Content
from tofmipd.pump import Encrypt
from tofmipd.server import Listener, Service, bind
from tofmipd.settings import TLS_MODES, EncryptionSettings, Limits, Listen
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.session import Policy
from tofmipd.tls.contexts import Contexts
from tofmipd.tls.wire import encryptor

DIALOGUES = {path.stem: read(path) for path in FILES}
IN_PLAIN = [name for name, dialogue in DIALOGUES.items() if not dialogue.at_once]
# What comes before STARTTLS, or is kept for it, cannot be shown where TLS is there already.
AT_ONCE = [
    name
    for name, dialogue in DIALOGUES.items()
    if dialogue.at_once or not (dialogue.policy.withheld or "G: starttls" in dialogue.lines)
]
# The words of RFC 3848 and RFC 6531 when the same comes through TLS; there is none for HELO.
SECURE = {"ESMTP": "ESMTPS", "ESMTPA": "ESMTPSA", "UTF8SMTPA": "UTF8SMTPSA", "SMTP": "SMTP"}
NO_STARTTLS = re.compile("S: 503 5.5.1 Error: STARTTLS .*")
NOT_THE_LAST_LINE = re.compile(r"S: (?:[0-9]{3}-.*|\.\.\.)")


class Gate:
    """A gate and its passes in one, for one conversation after the other."""

    def __init__(self, mechanisms: frozenset[str]) -> None:
        self.mechanisms = mechanisms
        self.events: list[str] = []
        self.play(Dialogue())

    def play(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self._judge = Judge(dialogue.passwords)
        self._judge.unavailable = dialogue.unavailable
        self.events.clear()

    def admit(self, session_id: str, peer: Peer) -> Gate:
        return self

    def challenge(self, mechanism: str, opening: bytes) -> bytes:
        self.events.append("G: challenge")
        return self._judge.challenge(mechanism, opening)

    def verify(self, credentials: Credentials, mechanism: str) -> Judgement:
        self.events.append(f"G: verify {mechanism} {credentials.user}")
        return self._judge.judge(credentials)

    def submit(self, envelope: Envelope, content: Content) -> Reply:
        self.events.append("G: " + described(envelope))
        self.events += lines_of(b"".join(content.blocks()))
        return self.dialogue.outcome

    def close(self) -> None:
        pass


def service_for(policy: Policy, encrypt: Encrypt | None = None) -> Service:
    """A service with the limits of a policy, and a gate that knows its mechanisms."""
    limits = Limits(
        size=policy.size_limit_octets,
        max_recipients=policy.max_recipients,
        max_errors=policy.max_errors,
        max_auth_failures=policy.max_auth_failures,
        failure_delay=0,
        login_timeout=20,
        idle_timeout=20,
        data_timeout=20,
        stop_timeout=5,
    )
    names = (*policy.mechanisms, *policy.withheld)
    gate = Gate(frozenset(name for name in names if not name.endswith(PLUS)))
    return Service(gate, HOST_NAME, limits, needs_login=policy.needs_login, encrypt=encrypt)


class Place:
    """A service with one listener, for all dialogues of one policy."""

    def __init__(self, policy: Policy, encrypt: Encrypt, *, tls_first: bool) -> None:
        self.service = service_for(policy, encrypt)
        assert isinstance(self.service._gate, Gate)
        self.gate = self.service._gate
        modes = ("plain", *TLS_MODES)
        modes = [mode for mode in modes if self.service.policy(mode, near=True) == policy]
        if tls_first:
            modes = ["ssl"]
        elif not modes:
            # It is for clients elsewhere, and those of a test are near.
            modes = ["plain"]
            self.service._policies["plain", True, self.gate.mechanisms] = policy
        self.listener = Listener(bind(Listen("127.0.0.1", 0)), self.service, modes[0])
        self.listener.start()

    def close(self) -> None:
        self.service.begin_stop()
        self.listener.stop()
        assert self.service.stop()


class Material:
    """Certificates: the server's, and one for each list of names that a client may have."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        files = authority().issue().save(directory)
        settings = EncryptionSettings(
            ((str(files.chain), str(files.key)),), client_ca=str(authority().save(directory))
        )
        self.encrypt = encryptor(Contexts(settings))

    def wrap(self, sock: socket.socket, names: tuple[str, ...]) -> ssl.SSLSocket:
        """The client's side of a handshake."""
        if names not in self._contexts:
            self._contexts[names] = client_context(certificate=self._certificate(names))
        return self._contexts[names].wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        )

    def _certificate(self, names: tuple[str, ...]) -> Files | None:
        if not names:
            return None
        issued = authority().issue(names[0], mail=names[1:], dns=())
        return issued.save(self._directory, names[0])


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def place_for(material):
    """Where a dialogue can be played; all are closed at the end."""
    places: dict[tuple[Policy, bool], Place] = {}

    def find(policy: Policy, *, tls_first: bool) -> Place:
        key = policy, tls_first
        if key not in places:
            places[key] = Place(policy, material.encrypt, tls_first=tls_first)
        return places[key]

    yield find
    for place in places.values():
        place.close()


class Player:
    """One conversation on one connection."""

    def __init__(
        self, place: Place, dialogue: Dialogue, material: Material, *, tls_first: bool
    ) -> None:
        self._gate = place.gate
        self._gate.play(dialogue)
        self._ended = False
        self._names = dialogue.names
        self._material = material
        self._client = Client.connect(place.listener.port)
        if tls_first:
            self._encrypt()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def play(self, group: Group) -> None:
        self._client.raw(group.octets)
        said = [line for line in group.expected if line.startswith("S: ")]
        asked = [line for line in group.expected if not line.startswith("S: ")]
        compare(list(self._replies(said)), said, group.sent)
        if "G: starttls" in asked:
            assert group.expected[-1] == "G: starttls"
            self._encrypt()
            self._gate.events.append("G: starttls")
        compare(self._gate.events, asked, group.sent)
        self._gate.events.clear()

    def end(self) -> None:
        """Nothing more comes."""
        if self._ended:
            return
        if isinstance(self._client.socket, ssl.SSLSocket):
            # It raises for octets of the other side that nobody has read.
            self._client.socket = self._client.socket.unwrap()
        self._client.socket.shutdown(socket.SHUT_WR)
        assert self._client.rest() == b""

    def _replies(self, expected: list[str]) -> Iterator[str]:
        """As many lines as belong to so many replies."""
        for _ in (line for line in expected if not NOT_THE_LAST_LINE.fullmatch(line)):
            reply = self._client.reply()
            if not reply:
                self._ended = True
                yield "S: <closed>"
                return
            yield from (f"S: {line}" for line in reply.split("\n"))

    def _encrypt(self) -> None:
        self._client.socket = self._material.wrap(self._client.socket, self._names)


def secured(line: str) -> str:
    """What is expected in the place of a line when TLS is there from the beginning."""
    if line.startswith("G: submit "):
        word = line.split(" ")[2]
        return line.replace(f" {word} ", f" {SECURE[word]} ", 1)
    return NO_STARTTLS.sub("S: 503 5.5.1 Error: the connection is encrypted already", line)


def with_tls(groups: list[Group]) -> Iterator[Group]:
    for sent, expected in groups:
        yield Group(sent, [secured(line) for line in expected if line != "S: 250-STARTTLS"])


def test_no_dialogue_is_left_out():
    assert {*IN_PLAIN, *AT_ONCE} == set(DIALOGUES)
    assert len(IN_PLAIN) > 100
    assert len(AT_ONCE) > 75


@pytest.mark.parametrize("name", [name for name in DIALOGUES if not name.startswith("client-")])
def test_a_dialogue_is_held_under_a_policy_that_a_service_makes(name):
    policy = DIALOGUES[name].policy
    service = service_for(policy)
    modes = ("plain", "ssl", *TLS_MODES)
    assert policy in [service.policy(mode, near=near) for mode in modes for near in (True, False)]


@pytest.mark.parametrize("name", IN_PLAIN)
def test_the_same_is_said_over_a_connection(name, place_for, material, caplog):
    dialogue = DIALOGUES[name]
    for groups in dialogue.conversations:
        play(groups, dialogue, place_for, material, tls_first=False)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("name", AT_ONCE)
def test_the_same_is_said_where_tls_comes_first(name, place_for, material, caplog):
    dialogue = DIALOGUES[name]
    for groups in dialogue.conversations:
        adapted = groups if dialogue.at_once else list(with_tls(groups))
        play(adapted, dialogue, place_for, material, tls_first=True)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def play(
    groups: list[Group], dialogue: Dialogue, place_for, material: Material, *, tls_first: bool
) -> None:
    place = place_for(dialogue.policy, tls_first=tls_first)
    with Player(place, dialogue, material, tls_first=tls_first) as player:
        for group in groups:
            player.play(group)
        player.end()
