"""Behind real proxies, with the recipe of docs/proxies.md, and before a Postfix that is told."""

from __future__ import annotations

import contextlib
import re
import signal
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import Dialogue, logged_in
from fakes import make_certificate
from haproxy import haproxy
from hops import RawHop, Stored, raw_hop
from postfix import NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD
from proxyheaders import tls, version_2
from running import (
    ADDRESS,
    HOST,
    LIMIT_SECONDS,
    LOGIN,
    PASSWORD,
    Daemon,
    free_port,
    make_home,
    to_smtp,
    tofmipd,
    wait_until,
)
from village import Village

DOCUMENT = Path(__file__).parent.parent.parent / "docs/proxies.md"
# HAProxy connects from there, and a client that is neither it nor the usual one.
PROXY, CLIENT = "127.0.0.2", "127.0.0.3"
ELSEWHERE = "203.0.113.9"
TO = "x@example.net"
MESSAGE = b"From: Bobby <bobby@example.org>\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def recipe(beginning: str) -> str:
    """The block of the document that begins so."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```$", DOCUMENT.read_text(), re.S | re.M)
    (found,) = [block for block in blocks if block.startswith(beginning)]
    return str(found)


@dataclass(frozen=True)
class Cluster:
    """HAProxy before three daemons; ``ports`` are those of its frontends by their names."""

    hop: RawHop
    daemons: tuple[Daemon, ...]
    ports: dict[str, int]
    certificate: str

    def text(self) -> str:
        return "".join(daemon.text() for daemon in self.daemons)

    def message(self, recipient: str) -> Stored:
        return self.hop.message(recipient)


# Beside what the recipe has: version 1.
MORE = """
frontend legacy
    bind {host}:{legacy}
    default_backend legacy

backend legacy
    source {proxy}
    server one {host}:{one} send-proxy
"""


@contextlib.contextmanager
def running_cluster(directory: Path, hop: RawHop) -> Iterator[Cluster]:
    """Takes as long as three daemons need to start."""
    certificate, key = make_certificate(directory)
    (directory / "both.pem").write_text(Path(certificate).read_text() + Path(key).read_text())
    tls_options = ("--ssl-cert", certificate, "--ssl-key", key)
    listen = ("-p", f"{HOST}:0,tls=optional,proxy={PROXY}")
    ports = {name: free_port() for name in ("submission", "submissions", "legacy")}
    with contextlib.ExitStack() as stack:
        daemons = []
        for name in ("one", "two", "three"):
            (directory / name).mkdir()
            home = make_home(directory / name, to_smtp(hop.port))
            daemons.append(stack.enter_context(tofmipd(home, *tls_options, listen=listen)))
        places = {
            "192.0.2.10:587": f"{HOST}:{ports['submission']}",
            "192.0.2.10:465": f"{HOST}:{ports['submissions']}",
            "/etc/haproxy/mail.example.org.pem": str(directory / "both.pem"),
            "10.0.0.10": PROXY,
            "inter 5s": "inter 300ms",
        }
        for number, daemon in enumerate(daemons, 11):
            places[f"10.0.0.{number}:8025"] = f"{HOST}:{daemon.port}"
        more = MORE.format(host=HOST, proxy=PROXY, one=daemons[0].port, legacy=ports["legacy"])
        text = recipe("global\n") + more
        stack.enter_context(haproxy(directory, text, places))
        for port in ports.values():
            wait_until(lambda port=port: takes_connections(port), "HAProxy")
        yield Cluster(hop, tuple(daemons), ports, certificate)


def takes_connections(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), LIMIT_SECONDS):
        return True
    return False


@pytest.fixture(scope="module")
def cluster_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with raw_hop() as hop, running_cluster(tmp_path_factory.mktemp("cluster"), hop) as cluster:
        yield cluster


@pytest.fixture
def cluster(cluster_once: Cluster) -> Cluster:
    cluster_once.hop.reset()
    return cluster_once


def send(client: smtplib.SMTP, recipient: str = TO) -> None:
    client.login(LOGIN, PASSWORD)
    client.sendmail(ADDRESS, [recipient], b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n")


def at(cluster: Cluster, name: str) -> smtplib.SMTP:
    """A client whose address is CLIENT."""
    port, source = cluster.ports[name], (CLIENT, 0)
    if name == "submissions":
        context = ssl.create_default_context(cafile=cluster.certificate)
        return smtplib.SMTP_SSL(
            HOST, port, timeout=LIMIT_SECONDS, source_address=source, context=context
        )
    return smtplib.SMTP(HOST, port, timeout=LIMIT_SECONDS, source_address=source)


@pytest.mark.peer("haproxy")
@pytest.mark.parametrize(
    ("frontend", "how"),
    [
        ("submission", rf"\({CLIENT}\) by \S+ \(tofmipd\) with ESMTPA "),
        ("legacy", rf"\({CLIENT}\) by \S+ \(tofmipd\) with ESMTPA "),
        ("submissions", rf"\({CLIENT}\) \(using SMTP over TLS, TLSv1\.3 TLS_\S+\) .* ESMTPSA "),
    ],
)
def test_mail_through_haproxy_is_the_clients(cluster, frontend, how):
    with at(cluster, frontend) as client:
        send(client)
        offered = client.esmtp_features
    assert ("starttls" in offered) is (frontend != "submissions")
    assert re.search(how, cluster.message(TO).values("Received")[0])
    assert f"session from {CLIENT}" in cluster.text()


@pytest.mark.peer("haproxy")
def test_starttls_goes_through_haproxy(cluster):
    with at(cluster, "submission") as client:
        client.starttls(context=ssl.create_default_context(cafile=cluster.certificate))
        send(client)
    received = cluster.message(TO).values("Received")[0]
    assert f"({CLIENT}) (using STARTTLS, " in received


@pytest.mark.peer("haproxy")
def test_health_checks_of_haproxy_are_no_warnings(cluster):
    for daemon in cluster.daemons:
        wait_until(lambda daemon=daemon: daemon.text().count(f"session from {PROXY}") > 1, "checks")
    assert "no PROXY header" not in cluster.text()


class Crowd:
    """Clients that send until every message of theirs is accepted.

    A message whose session breaks off is sent again.
    """

    def __init__(self, port: int, messages: int) -> None:
        self._port = port
        self._messages = messages
        self.accepted: list[str] = []
        self.broken = 0

    def __call__(self, name: str) -> None:
        for number in range(self._messages):
            recipient = f"{name}.{number}@example.net"
            while not self._sent(recipient):
                self.broken += 1
            self.accepted.append(recipient)

    def _sent(self, recipient: str) -> bool:
        try:
            with logged_in(self._port) as talk:
                talk.envelope(recipient)
                return talk.data(MESSAGE).startswith("250 ")
        except (AssertionError, OSError):
            return False


@pytest.mark.peer("haproxy")
def test_no_accepted_message_is_lost_when_one_of_three_is_killed(tmp_path):
    """Issue 8: under load, with messages of which nobody knows yet what the next hop says."""
    with raw_hop() as hop, doomed(tmp_path, hop) as cluster, ThreadPoolExecutor(6) as pool:
        crowd = Crowd(cluster.ports["submission"], 15)
        clients = [pool.submit(crowd, f"c{number}") for number in range(6)]
        wait_until(lambda: len(crowd.accepted) >= 20, "the first messages")
        hop.may_answer.clear()
        busy = sum(not client.done() for client in clients)
        wait_until(lambda: hop.commands.count("DATA") - len(hop.stored) >= busy, "all to wait")
        victim = max(cluster.daemons, key=open_sessions)
        victim.process.kill()
        victim.process.wait()
        hop.may_answer.set()
        for client in clients:
            client.result(3 * LIMIT_SECONDS)
        assert crowd.broken > 0
        assert len(set(crowd.accepted)) == len(crowd.accepted) == 6 * 15
        delivered = {recipient for message in hop.stored for recipient in message.recipients}
        assert set(crowd.accepted) <= delivered
        assert all(" sent to=" in daemon.text() for daemon in cluster.daemons)


def open_sessions(daemon: Daemon) -> int:
    text = daemon.text()
    return text.count(" session from ") - text.count(" end after ")


class _Over(Exception):
    pass


@contextlib.contextmanager
def doomed(directory: Path, hop: RawHop) -> Iterator[Cluster]:
    """A cluster whose daemons need not live to their orderly end."""
    with contextlib.suppress(_Over), running_cluster(directory, hop) as cluster:
        yield cluster
        raise _Over


# Headers that are forged, or come from another proxy: swaks makes its own.


def by_swaks(port: int, source: str, version: str) -> subprocess.CompletedProcess[str]:
    family = "TCP4" if version == "1" else "AF_INET"
    return subprocess.run(
        [
            *("swaks", "--server", HOST, "--port", str(port), "--local-interface", source),
            *("--proxy-version", version, "--proxy-family", family),
            *("--proxy-source", ELSEWHERE, "--proxy-source-port", "4711"),
            *("--proxy-dest", "192.0.2.1", "--proxy-dest-port", "465"),
            *("--auth", "CRAM-MD5", "--auth-user", LOGIN, "--auth-password", PASSWORD),
            *("--from", ADDRESS, "--to", TO),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


@pytest.mark.peer("swaks")
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_header_counts_from_the_proxy_and_is_closed_from_elsewhere(tmp_path, version):
    with raw_hop() as hop:
        home = make_home(tmp_path, to_smtp(hop.port))
        with tofmipd(home, "--proxy-protocol", f"{PROXY},2001:db8::/32") as daemon:
            sent = by_swaks(daemon.port, PROXY, version)
            assert sent.returncode == 0, sent.stdout
            assert f"({ELSEWHERE})" in hop.message(TO).values("Received")[0]
            daemon.says(f"ip={ELSEWHERE} ", "auth accepted")
            forged = by_swaks(daemon.port, "127.0.0.1", version)
            assert forged.returncode != 0
            daemon.says("WARNING", "closed without a word: it begins with a PROXY header")
            assert len(hop.stored) == 1


def test_who_is_a_proxy_can_change_without_a_restart(tmp_path):
    conf = tmp_path / "conf"
    conf.write_text("")
    header = version_2(ELSEWHERE, "192.0.2.1")
    with raw_hop() as hop:
        home = make_home(tmp_path, to_smtp(hop.port))
        with tofmipd(home, "--config", str(conf)) as daemon:
            conf.write_text(f"proxy-protocol {PROXY}\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.says("changed: proxy-protocol")
            with announced(daemon.port, header) as talk:
                assert "PLAIN" not in talk.say("EHLO client.example")
            daemon.says(f"session from {ELSEWHERE}")


# XCLIENT


@contextlib.contextmanager
def announced(port: int, header: bytes) -> Iterator[Dialogue]:
    """A session of a client for whom a proxy speaks."""
    with socket.create_connection((HOST, port), LIMIT_SECONDS, (PROXY, 0)) as sock:
        talk = Dialogue(sock)
        talk.send(header)
        assert talk.reply().startswith("220 ")
        yield talk


def deliver(talk: Dialogue, *recipients: str, sender: str = ADDRESS) -> None:
    for recipient in recipients:
        talk.envelope(recipient, sender=sender)
        assert talk.data(MESSAGE).startswith("250 ")


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_postfix_hears_of_each_client_and_of_none_by_mistake(postfix, tmp_path):
    home = make_home(tmp_path, to_smtp(postfix.others["xclient"]))
    mark = tmp_path.name
    clients = {f"{mark}{number}@example.net": f"203.0.113.{number}" for number in (1, 2, 3)}
    with tofmipd(home, "--xclient", "--proxy-protocol", PROXY) as daemon:
        for _ in range(2):
            for recipient, address in clients.items():
                with announced(daemon.port, version_2(address, "192.0.2.1", more=tls())) as talk:
                    talk.log_in()
                    deliver(talk, recipient, recipient)
        assert "refuses XCLIENT" not in daemon.text()
    for recipient, address in clients.items():
        messages = wait_until(
            lambda recipient=recipient: (
                found if len(found := postfix.for_recipient(recipient)) == 4 else []
            ),
            "four messages",
        )
        for message in messages:
            assert f"(unknown [{address}])" in message.values("Received")[0]
    assert f"client=unknown[203.0.113.1], sasl_method=XCLIENT, sasl_username={LOGIN}" in (
        postfix.log()
    )


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize(
    ("name", "shown"), [("xclient submission", ELSEWHERE), ("implicit", "127.0.0.1")]
)
def test_a_login_at_postfix_stays_ours(postfix, tmp_path, name, shown):
    """The other one does not offer XCLIENT, and gets the message all the same."""
    home = make_home(
        tmp_path,
        to_smtp(postfix.others[name]),
        f'SMTPAUTH_USERNAME = "{NEXT_HOP_LOGIN}"',
        f'SMTPAUTH_PASSWORD = "{NEXT_HOP_PASSWORD}"',
        f'SMTPSSL = "{"implicit" if name == "implicit" else "starttls"}"',
        f'SMTPSSL_CAFILE = "{postfix.certificate}"',
    )
    recipient = f"{tmp_path.name}@example.net"
    with (
        tofmipd(home, "--xclient", "--proxy-protocol", PROXY) as daemon,
        announced(daemon.port, version_2(ELSEWHERE, "192.0.2.1", more=tls())) as talk,
    ):
        talk.log_in()
        deliver(talk, recipient)
    received = postfix.message(recipient).values("Received")[0]
    assert f"(unknown [{shown}])" in received
    assert "with ESMTPSA" in received
    sent = rf"client=unknown\[{re.escape(shown)}\], sasl_method=\w+, sasl_username=(\w+)"
    assert re.findall(sent, postfix.log())[-1] == NEXT_HOP_LOGIN


# Global mode: the address goes from the server through auth and to the worker.


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_with_separated_processes_all_of_them_see_the_client(village: Village, postfix):
    bobby = village.people[0]
    bobby.configure(to_smtp(postfix.others["xclient"]))
    recipient = f"{bobby.name}@example.net"
    with village.daemon("--xclient", "--proxy-protocol", PROXY) as daemon:
        with announced(daemon.port, version_2(ELSEWHERE, "192.0.2.1", more=tls())) as talk:
            talk.log_in(bobby.name, bobby.password)
            deliver(talk, recipient, sender=f"{bobby.name}@example.org")
        daemon.says("auth accepted", f"ip={ELSEWHERE} ")
        with announced(daemon.port, version_2("127.0.0.1", "127.0.0.1")) as talk:
            assert " PLAIN " in talk.say("EHLO client.example")
    theirs, ours = postfix.message(recipient).values("Received")
    assert f"(unknown [{ELSEWHERE}])" in theirs
    assert f"({ELSEWHERE}) (using SMTP over TLS, TLSv1.3 TLS_AES_128_GCM_SHA256)" in ours
    assert f"sasl_method=XCLIENT, sasl_username={bobby.name}" in postfix.log()
