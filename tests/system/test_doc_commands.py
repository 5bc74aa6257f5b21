"""Every command of README and docs is run: a section at a time, on a machine as it describes."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocks import BLOCKS, Block
from docmachine import STAND_INS, Machine, new_machine
from running import wait_until

PEERS = ("unshare", "nsenter", "setpriv", "ip", "smtp-sink", "openssl", "curl", "swaks", "msmtp")
PEERS += ("gnutls-cli", "gsasl", "jq", "mutt", "git", "fail2ban-regex", "nginx")
# Sections that need no more than this follow each other on one machine, as a reader's do on his.
SHARE = [frozenset({"home", "daemon"}), frozenset({"root", "service"})]
# To whom a command sends mail.
RECIPIENT = re.compile(
    r"(?:tofmipd test(?: --server \S+)?|--to|--mail-rcpt|To:|mutt -s \w+) ([\w.]+@[\w.]+)"
)
# Tags that expire, and by what name the next hop calls a message.
CHANGES_EACH_TIME = re.compile(r"(?<=-)[0-9]{10}\.[0-9a-f]{6}|(?<= Ok): (?:queued as \w+|sent)")

pytestmark = [pytest.mark.root, pytest.mark.peer(*PEERS)]


def obeyed(block: Block) -> bool:
    """Whether it is commands, and run here."""
    commands = block.language in ("sh", "console") and not block.path
    return commands and not {"elsewhere", "script"} & set(block.words)


def sections() -> list:
    found = []
    for key, group in itertools.groupby(BLOCKS, lambda block: (block.document, block.section)):
        blocks = list(group)
        if any(map(obeyed, blocks)):
            found.append(pytest.param(blocks, id=" ".join(key)))
    return found


@contextlib.contextmanager
def furnished() -> Iterator[Machine]:
    with (
        tempfile.TemporaryDirectory(prefix="tofmipd-machine-") as name,
        new_machine(Path(name)) as made,
    ):
        yield made


@pytest.fixture
def machine():
    with furnished() as made:
        yield made


class Shared:
    """The machine of the last section, for the next one of the document that needs the same."""

    def __init__(self) -> None:
        self._of: tuple[str, frozenset[str]] | None = None
        self._machine = contextlib.ExitStack()
        self._made: Machine | None = None

    def machine(self, blocks: list[Block]) -> Machine:
        words = frozenset(word for block in blocks if obeyed(block) for word in block.words)
        common = next((one for one in SHARE if words <= one), None)
        of = None if common is None else (blocks[0].document, common)
        if self._made is None or of is None or of != self._of:
            self.close()
            self._made = self._machine.enter_context(furnished())
        self._of = of
        self._made.begin()
        return self._made

    def close(self) -> None:
        self._made = None
        self._machine.close()


@pytest.fixture(scope="module")
def shared():
    with contextlib.closing(Shared()) as made:
        yield made


@pytest.mark.parametrize("blocks", sections())
def test_the_commands_of_a_section_do_what_they_are_for(blocks, shared):
    machine = shared.machine(blocks)
    for block in blocks:
        if block.path:
            machine.write(block.path, block.text, 0o755 if block.language == "sh" else 0o600)
    for block in blocks:
        if obeyed(block):
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
