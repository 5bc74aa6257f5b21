"""Every fenced block of README and docs says what it is, and there is a way to try it.

See blocks.py for the words behind the backticks; commands are run by system/test_doc_commands.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import BLOCKS, DOCUMENTS, ROOT, WAYS, Block, blocks_of

from tofmipd import options
from tofmipd.auth.ipmap import parse_map
from tofmipd.commands import queue
from tofmipd.events import ALL, Json
from tofmipd.given import from_file
from tofmipd.privsep.senders import parse_senders
from tofmipd.privsep.virtualdomains import VirtualDomains
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.parser import parse_filter
from tofmipd.tmda.userfiles import UserFiles

# Who runs a block marked "elsewhere": document and beginning, a test, and what must stand there.
ELSEWHERE = {
    ("README.md", "make run"): ("tests/system/test_demo.py", '"demo"'),
    ("services.md", "tcpserver "): ("tests/system/superservers.py", 'document("tcpserver ")'),
    ("services.md", "systemd-socket-activate --inetd"): (
        "tests/system/superservers.py",
        'document("systemd-socket-activate --inetd")',
    ),
    ("services.md", "systemd-socket-activate -l"): (
        "tests/system/test_supervised.py",
        'document("systemd-socket-activate -l',
    ),
    ("contrib/stunnel-xinetd/README.md", ""): ("tests/system/test_stunnel.py", "commands("),
    ("contrib/stunnel-daemon/README.md", ""): ("tests/system/test_stunnel.py", '"stunnel-daemon")'),
    ("tools.md", "$ "): ("tests/test_docs.py", "test_the_tools_print_what_the_examples_show"),
}


def by_config(block: Block, directory: Path) -> None:
    """What a user's configuration may hold; relative to a home of its own."""
    (directory / ".tmda").mkdir()
    (directory / ".tmda/config").write_text(block.text)
    key = directory / ".tmda/crypt_key"
    key.write_text("00" * 20)
    key.chmod(0o600)
    UserFiles("", Surroundings(str(directory), "you", "", "host.example")).profile()


def by_filter(block: Block, directory: Path) -> None:
    assert parse_filter(block.text, "outgoing")


def by_options(block: Block, directory: Path) -> None:
    options.make_parser().parse_known(block.text.replace("\\\n", " ").split())


def by_daemon(block: Block, directory: Path) -> None:
    assert from_file(options.make_parser(), block.path, block.text).faults == ()


def by_shell(block: Block, directory: Path) -> None:
    _must(["sh", "-n"], directory, block.text)


def by_log(block: Block, directory: Path) -> None:
    """An object, perhaps cut off at its end: made again from its values, it is the same."""
    told = json.loads(block.text)
    given = [name for name in told if name not in ("time", "level", "event", "message")]
    (text,) = [text for text, row in ALL.items() if row.split() == [told["event"], *given]]
    level = logging.getLevelNamesMapping()[told["level"].upper()]
    values = tuple(told[name] for name in given)
    record = logging.LogRecord("tofmipd", level, "", 0, text, values, None)
    again = json.loads(Json().format(record))
    assert list(again) == list(told)
    assert again.pop("message").startswith(told.pop("message").removesuffix("..."))
    assert again | {"time": told["time"]} == told


def by_systemd(block: Block, directory: Path) -> None:
    """Settings to be added to a unit of ours."""
    place = directory / block.path.removeprefix("/etc/systemd/system/")
    unit = directory / place.parent.name.removesuffix(".d")
    installed = (ROOT / "etc/systemd" / unit.name).read_text()
    unit.write_text(installed.replace("/opt/tofmipd/bin/tofmipd", "/bin/true"))
    place.parent.mkdir()
    place.write_text(block.text)
    _must(["systemd-analyze", "verify", "--man=no", str(unit)], directory)


def by_cron(block: Block, directory: Path) -> None:
    """A line of a file below /etc/cron.d: when, who, and a tool."""
    found = re.fullmatch(r"(?:[\d*/,-]+ ){5}root /opt/tofmipd/bin/tofmipd queue (.*)\n", block.text)
    assert found is not None
    queue.make_parser().parse_known(found[1].split())


def by_domains(block: Block, directory: Path) -> None:
    file = directory / "domains"
    file.write_text(block.text)
    file.chmod(0o644)
    domains = VirtualDomains(str(file), os.open)
    assert domains.owner("ann@x.example.net") == "olga"


def by_map(block: Block, directory: Path) -> None:
    assert parse_map("map", block.text.encode())


def by_senders(block: Block, directory: Path) -> None:
    assert parse_senders("senders", block.text.encode())


def by_library(block: Block, directory: Path) -> None:
    """Run by test_docs.py."""
    compile(block.text, str(block), "exec")


def by_mutt(block: Block, directory: Path) -> None:
    _must(["mutt", "-n", "-F", _written(block, directory), "-D"], directory)


def by_msmtp(block: Block, directory: Path) -> None:
    _must(["msmtp", "-C", _written(block, directory), "--pretend", "a@b.example"], directory)


def _written(block: Block, home: Path) -> str:
    """A path with the text of the block; the home has a password file."""
    (home / ".tmda").mkdir()
    (home / ".tmda/tofmipd").write_text("you:a-password\n")
    path = home / "file"
    path.write_text(block.text)
    path.chmod(0o600)
    return str(path)


def by_nobody(reason: str) -> Callable[[Block, Path], None]:
    """For what no program that is here reads."""
    assert reason
    return lambda block, directory: None


def _must(command: list[str], home: Path, text: str = "") -> None:
    ran = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"},
    )
    assert (ran.returncode, ran.stderr) == (0, "")


# What a file or a part of one is checked by: its path, or the word behind the language.
CHECKS: dict[str, Callable[[Block, Path], None]] = {
    "config": by_config,
    "~/.tmda/config": by_config,
    "filter": by_filter,
    "~/.tmda/filters/outgoing": by_filter,
    "options": by_options,
    "~/.config/tofmipd.conf": by_daemon,
    "/etc/tofmipd.conf": by_daemon,
    "library": by_library,
    "muttrc": by_mutt,
    "~/.muttrc": by_mutt,
    "~/.msmtprc": by_msmtp,
    "/etc/ipauthmap": by_map,
    "/etc/tofmipd.d/senders": by_senders,
    "log": by_log,
    "/etc/systemd/system/tofmipd.service.d/exim.conf": by_systemd,
    "/etc/cron.d/tofmipd": by_cron,
    "inetd": by_nobody("run by system/test_one_session_peers.py, with other places"),
    "stunnel": by_nobody("run by system/test_one_session_peers.py, with other places"),
    "/var/qmail/control/virtualdomains": by_domains,
    "haproxy": by_nobody("run by system/test_proxies.py, with other addresses"),
    "postfix": by_nobody("run by system/test_proxies.py, with other addresses"),
    "nginx": by_nobody("nginx wants the certificates, which the machine of the commands has"),
    "~/.qmail-default": by_nobody("qmail is no package of Debian"),
    "~/.procmailrc": by_nobody("procmail has no check without a delivery"),
    "~/.mailfilter": by_nobody("maildrop has no check without a delivery"),
}
# Programs that the checks need.
PEERS = {"mutt": by_mutt, "msmtp": by_msmtp, "systemd-analyze": by_systemd}
COMMANDS = [block for block in BLOCKS if block.language in ("sh", "console")]
FILES = [block for block in BLOCKS if block.language not in ("sh", "console", "text")]


def with_peer(block: Block) -> object:
    """A parameter of a test that needs the program that reads the block."""
    check = CHECKS.get("".join(block.words))
    peers = [name for name, one in PEERS.items() if one is check]
    return pytest.param(block, marks=[pytest.mark.peer(*peers)], id=str(block))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_block_is_overlooked(path):
    marks = sum(line.lstrip(" >").startswith("```") for line in path.read_text().splitlines())
    assert marks == 2 * len(blocks_of(path))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_what_it_is(block):
    assert block.language, f"{block}: name a language, and a way to try it (tests/blocks.py)"
    assert not block.text.startswith("$ ") or block.language == "console"


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_have_a_way_to_be_run(block):
    if block.language == "sh" and (block.path or "script" in block.words):
        by_shell(block, ROOT)
    elif "elsewhere" in block.words:
        test, said = next(
            test
            for (document, beginning), test in ELSEWHERE.items()
            if block.document == document and block.text.startswith(beginning)
        )
        assert said in (ROOT / test).read_text()
    else:
        assert block.words, f"{block}: say on what machine (WAYS of tests/blocks.py)"
        assert set(block.words) <= WAYS.keys(), block
        assert not block.text.count("sudo ") or "root" in block.words, block


@pytest.mark.parametrize("block", [with_peer(block) for block in FILES])
def test_whoever_reads_a_file_finds_no_mistake_in_it(block, tmp_path, caplog):
    (name,) = block.words
    assert name in CHECKS, f"{block}: name its reader in CHECKS of {Path(__file__).name}"
    CHECKS[name](block, tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_no_entry_is_left_over():
    assert {name for name, _ in ELSEWHERE} <= {b.document for b in COMMANDS}
    assert CHECKS.keys() == {word for block in FILES for word in block.words}
    assert WAYS.keys() <= {word for block in COMMANDS for word in block.words}
