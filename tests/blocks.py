"""The fenced blocks of README, docs and contrib: commands, configurations, output.

The words behind the three backticks say what a block is and what the tests do with it; readers see
none but the first one's colours.

- ``sh`` is commands, which system/test_doc_commands.py runs, on a machine on which the words behind
  it (WAYS) are true; ``sh elsewhere`` is run by another test, ``sh script`` is a part of a script.
- ``console`` is the same with output, commands being behind "$ ".
- ``text`` is text.
- Anything else is a file: a word with a slash in it is where it goes before the commands of the
  section are run, another word is a key of CHECKS in test_doc_blocks.py.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "contrib").rglob("README.md"))
# What may stand behind ``sh`` and ``console``.
WAYS = {
    "new": "nothing is there but the accounts of the machine",
    "root": "root runs it",
    "home": "the user has what tofmipd init makes",
    "daemon": "the same, and a daemon of his runs",
    "queued": "a message waits in his outbox",
    "service": "all users are served: account, password file, PAM service",
    "certificates": "the machine has the certificate of its name",
    "server": "all users are served by TLS",
    "server-ca": "the same, with the authority for logins that the commands before it have made",
    "try-tls": "the daemon of tls.md to try TLS with runs",
    "json-log": "a daemon of the user's writes /var/log/tofmipd.log in JSON, and has sent a mail",
    "virtual": "root serves virtual users of VMailMgr",
    "nginx": "the nginx of behind.md runs",
    "proxies": "the machine has the addresses of proxies.md",
}
# A block, perhaps within a list, or a heading.
_BLOCK = re.compile(r"^( *)```(.*)\n((?:(?! *```).*\n)*)\1```$|^## (.*)$", re.M)


@dataclass(frozen=True)
class Block:
    """``section`` is the heading that it stands below, ``words`` are those behind the language."""

    document: str
    section: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def path(self) -> str:
        """Where a file goes; "" for none."""
        return next((word for word in self.words if "/" in word), "")

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    section, found = "", []
    for match in _BLOCK.finditer(text):
        if match[4] is not None:
            section = match[4]
            continue
        language, *words = match[2].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        name = str(path.relative_to(ROOT)).removeprefix("docs/")
        found.append(Block(name, section, line, language, tuple(words), textwrap.dedent(match[3])))
    return found


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
