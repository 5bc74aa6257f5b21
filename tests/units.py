"""The units of etc/systemd, as far as tests have to understand them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEM = Path(__file__).parent.parent / "etc/systemd"
USER = SYSTEM / "user"


def settings(path: Path) -> dict[str, list[str]]:
    """What a unit sets, by "Section.Name"; one that is set twice has two values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().replace("\\\n", " ").splitlines():
        name, assigned, value = line.partition("=")
        if line.startswith("["):
            section = line.strip("[]")
        elif assigned and not line.startswith("#"):
            found.setdefault(f"{section}.{name}", []).append(value.strip())
    return found


def words(unit: dict[str, list[str]], name: str) -> list[str]:
    """Of a setting that is a list of words."""
    return [word for value in unit.get(f"Service.{name}", []) for word in value.split()]


def system_calls(names: Iterable[str]) -> Iterator[str]:
    """Those that an allow list means; a name with @ is a set of them."""
    for name in names:
        if not name.startswith("@"):
            yield name
            continue
        command = ["systemd-analyze", "syscall-filter", "--no-pager", name]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        listed = (line.strip() for line in lines.splitlines()[1:])
        yield from system_calls(line for line in listed if line and not line.startswith("#"))
