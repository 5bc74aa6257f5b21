"""stunnel before tofmipd, set up as contrib/ tells (TO-9, TO-14, TO-15)."""

from __future__ import annotations

import os
import re
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import authority
from hops import RawHop
from running import HOST, LIMIT_SECONDS, LOGIN, PASSWORD, free_port, make_home, to_smtp
from superservers import INSTALLED, ROOT, Program, document, listening, replaced, xinetd_with
from village import Village

CLIENT, STUNNEL = "127.0.0.2", "127.0.0.3"
INSTALLED_FILES = "/usr/local/etc/tofmipd-stunnel"
EXAMPLE = ROOT / "contrib/stunnel-xinetd"
pytestmark = [pytest.mark.root, pytest.mark.peer("stunnel4")]


def commands(beginning: str, example: str = "stunnel-xinetd") -> str:
    """Those of the README that begin so."""
    return document(beginning, f"contrib/{example}/README.md")


def shell(text: str) -> str:
    """What commands print, given in the directory of the example; all must succeed."""
    result = subprocess.run(
        ["sh", "-ec", text],
        cwd=EXAMPLE,
        env={"PATH": os.environ["PATH"] + ":/usr/sbin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@dataclass(frozen=True)
class Example:
    """contrib/stunnel-xinetd, running."""

    port: int
    program: Program

    def shell(self, beginning: str, more: str = "") -> str:
        """Give a command of the README, with more words."""
        command = replaced(commands(beginning), {"465": str(self.port)})
        return shell(command.rstrip("\n") + more)


@pytest.fixture
def example(village: Village, tmp_path: Path) -> Iterator[Example]:
    """As it is, but for its two paths, and a port that is free."""
    program = Program(
        village.directory / tmp_path.name,
        "root",
        village.program,
        village.options(),
        village.variables,
    )
    program.install()
    place, port = program.directory, free_port()
    paths = {INSTALLED_FILES: str(place / "files"), "sudo ": ""}
    shell(replaced(commands("sudo install"), {**paths, "/etc/xinetd.d": str(place)}))
    shell(replaced(commands("cd "), paths))
    for name in ("files/stunnel.conf", "files/session", "tofmipd-stunnel"):
        text = (place / name).read_text()
        text = text.replace(INSTALLED_FILES, str(place / "files"))
        (place / name).write_text(text.replace(INSTALLED, str(program.path)))
    service = replaced(
        (place / "tofmipd-stunnel").read_text(), {"= 465": f"= {port}\n\tbind = {HOST}"}
    )
    with xinetd_with(service, place, port):
        yield Example(port, program)


@pytest.mark.peer("xinetd", "openssl")
def test_the_check_of_the_example_shows_a_dialogue(example):
    said = example.shell("printf")
    assert re.search(r"^220 .*\n(250-.*\n)*250-AUTH .*PLAIN.*\n(250-.*\n)*250 .*\n221 ", said, re.M)
    assert example.program.statuses(1) == [0]


@pytest.mark.peer("xinetd", "swaks")
def test_through_the_example_mail_is_sent_with_the_address_of_the_client(
    example, village, village_hop
):
    person = village.people[0]
    own = f"--auth-user {person.name} --auth-password {person.password}"
    told = f" {own} --local-interface {CLIENT} --from {person.name}@example.org --protocol ESMTP"
    said = example.shell("swaks", told)
    assert "~> QUIT" in said
    assert example.program.statuses(1) == [0]
    stored = village_hop.message("friend@example.net")
    assert stored.sender.startswith(f"{person.name}-dated-")
    assert f"({CLIENT})" in stored.values("Received")[0]


def test_a_daemon_behind_stunnel_knows_the_client(tmp_path, village_hop: RawHop, start):
    """TO-14.  stunnel has an address of its own, so that the test can reach the daemon as well."""
    command = commands("tofmipd", "stunnel-daemon")
    told = {"127.0.0.1:8025": f"{HOST}:0", "proxy=127.0.0.1": f"proxy={STUNNEL}"}
    _, *listen = replaced(command, told).split()
    home = make_home(tmp_path / "home", to_smtp(village_hop.port))
    daemon = start(home, *listen[2:], listen=listen[:2])
    files = authority().issue(dns=["localhost"]).save(tmp_path)
    port = free_port()
    changes = {
        "pid = /run/tofmipd-stunnel.pid": "foreground = yes\npid =",
        "accept = 465": f"accept = {HOST}:{port}\nlocal = {STUNNEL}",
        "8025": str(daemon.port),
        f"{INSTALLED_FILES}/cert.pem": str(files.chain),
        f"{INSTALLED_FILES}/key.pem": str(files.key),
    }
    file = tmp_path / "stunnel.conf"
    file.write_text(replaced((ROOT / "contrib/stunnel-daemon/stunnel.conf").read_text(), changes))
    context = ssl.create_default_context(cafile=str(authority().save(tmp_path)))
    with listening(["stunnel4", str(file)], tmp_path, port):
        with smtplib.SMTP_SSL(
            "localhost", port, timeout=LIMIT_SECONDS, source_address=(CLIENT, 0), context=context
        ) as client:
            client.login(LOGIN, PASSWORD)
            client.sendmail("bobby@example.org", ["x@example.net"], b"Subject: x\r\n\r\nbody\r\n")
        stored = village_hop.message("x@example.net")
    assert f"({CLIENT})" in stored.values("Received")[0]
