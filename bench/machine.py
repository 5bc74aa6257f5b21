"""What a report says of the machine and of the programs that were measured."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from contenders import Contender
from meters import accounting_name
from programs import Programs

VERSION_LIMIT = 10  # seconds
VERSION = re.compile(r"\d+\.\d[\w.+~-]*")


def cpu_model() -> str:
    """As the kernel names it, or the architecture where it names none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def version_of(contender: Contender, programs: Programs) -> str | None:
    """What the program says of itself, None when it says nothing we understand."""
    if contender.version is None:
        return None
    try:
        answer = subprocess.run(
            contender.version(programs),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=VERSION_LIMIT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = VERSION.search(answer.stdout)
    return found.group() if found else None


def describe(contenders: Iterable[Contender], programs: Programs) -> str:
    """One line: when, on what, how accounted, and the versions that are known."""
    facts = [
        time.strftime("%Y-%m-%d %H:%M"),
        cpu_model(),
        f"{os.cpu_count()} cores",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"accounting by {accounting_name()}",
    ]
    for contender in contenders:
        if version := version_of(contender, programs):
            facts.append(f"{contender.name} {version}")
    return ", ".join(facts)
