"""Every command of README and docs is run: a section at a time, on a machine as it describes."""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from blocks import BLOCKS, Block
from docmachine import STAND_INS, Machine, new_machine
from running import wait_until

PEERS = ("unshare", "nsenter", "setpriv", "ip", "smtp-sink", "openssl", "curl", "swaks", "msmtp")
PEERS += ("gnutls-cli", "gsasl", "jq", "mutt", "git", "fail2ban-regex", "nginx")
# To whom a command sends mail.
RECIPIENT = re.compile(
    r"(?:tofmipd test(?: --server \S+)?|--to|--mail-rcpt|To:|mutt -s \w+) ([\w.]+@[\w.]+)"
)
# Tags that expire, and by what name the next hop calls a message.
CHANGES_EACH_TIME = re.compile(r"(?<=-)[0-9]{10}\.[0-9a-f]{6}|(?<= Ok): (?:queued as \w+|sent)")

pytestmark = [pytest.mark.root, pytest.mark.peer(*PEERS)]


def runs_here(block: Block) -> bool:
    return block.language in ("sh", "console") and not {"elsewhere", "script"} & set(block.words)


def sections() -> list:
    found = []
    for key, group in itertools.groupby(BLOCKS, lambda block: (block.document, block.section)):
        blocks = list(group)
        if any(runs_here(block) and not block.path for block in blocks):
            found.append(pytest.param(blocks, id=" ".join(key)))
    return found


@pytest.fixture
def machine():
    with (
        tempfile.TemporaryDirectory(prefix="tofmipd-machine-") as name,
        new_machine(Path(name)) as made,
    ):
        yield made


@pytest.mark.parametrize("blocks", sections())
def test_the_commands_of_a_section_do_what_they_are_for(blocks, machine):
    for block in blocks:
        if block.path:
            machine.write(block.path, block.text, 0o755 if block.language == "sh" else 0o600)
    for block in blocks:
        if runs_here(block) and not block.path:
            for word in block.words:
                machine.prepare(word)
            run = show if block.language == "console" else obey
            run(block, machine, "root" if "root" in block.words else "you")
    log = machine.path("/run/doc/log")
    assert not log.exists() or "Traceback" not in log.read_text()


def obey(block: Block, machine: Machine, user: str) -> None:
    ran = machine.run(f"cd {directory_of(block)}\n{as_script(block.text)}", user)
    assert ran.status == 0, f"{block}: {ran.words}"
    assert "Traceback" not in ran.words
    assert "internal error" not in ran.words
    wanted = {
        address
        for line in block.text.replace("\\\n", "").splitlines()
        if "tofmipd explain" not in line
        for address in RECIPIENT.findall(line)
    }
    wait_until(lambda: wanted <= machine.received(), f"{block}: mail to {wanted}")
    called = {line.split()[0] for line in machine.calls()}
    words = set(re.findall(r"[\w.-]+", re.sub(r"#.*|'[^']*'", "", block.text)))
    assert words & (STAND_INS.keys() - {"python3"}) <= called, block


def directory_of(block: Block) -> str:
    """Where commands are given: those of contrib beside their files."""
    return f"~/{Path(block.document).parent}" if block.document.startswith("contrib/") else "~"


def as_script(text: str) -> str:
    """The commands, with those that must fail as a condition."""
    return re.sub(r"^(.*\S)\s+# must fail$", r"if \1; then false; fi", text, flags=re.M)


def show(block: Block, machine: Machine, user: str) -> None:
    """Commands behind "$ " print what stands there, "..." being any lines."""
    said = ""
    for command in re.findall(r"^\$ (.*)$", block.text, re.M):
        ran = machine.run(command, user)
        assert ran.status == 0, f"{block}: {ran.words}"
        said += f"$ {command}\n{ran.words}"
    wanted = re.escape(CHANGES_EACH_TIME.sub("N", block.text)).replace("\\.\\.\\.\\\n", "(?:.*\n)*")
    assert re.fullmatch(wanted, CHANGES_EACH_TIME.sub("N", said)), f"{block}: {said}"


def test_a_machine_leaves_nothing_behind(machine):
    machine.prepare("service")
    machine.must("touch /etc/of-this-machine /home/you/mine /opt/new /var/lib/new", "root")
    for path in ("/etc/of-this-machine", "/home/you", "/opt/new", "/var/lib/new"):
        assert machine.path(path).exists()
        assert not Path(path).exists()
    assert "Read-only" in machine.run("touch /usr/bin/new", "root").words
    assert subprocess.run(["id", "you"], capture_output=True).returncode
