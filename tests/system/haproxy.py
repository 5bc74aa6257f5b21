"""HAProxy as a user sets it up, but for the places."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from running import ending


@contextlib.contextmanager
def haproxy(directory: Path, recipe: str, places: Mapping[str, str]) -> Iterator[None]:
    """One in the foreground, with other words in the place of some in the recipe.

    It listens when its configuration has been read, before this comes back.
    """
    text = recipe
    for word, other in places.items():
        assert word in text, f"{word} is not in the recipe"
        text = text.replace(word, other)
    path = directory / "haproxy.cfg"
    path.write_text(text)
    program = shutil.which("haproxy") or "haproxy"
    checked = subprocess.run(
        [program, "-c", "-f", str(path)], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-db", "-f", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    with ending(process):
        yield
        assert process.poll() is None, (directory / "haproxy.log").read_text(errors="replace")
