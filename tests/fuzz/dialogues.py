"""What the clients of tests/dialogues say: inputs to begin with."""

from __future__ import annotations

from collections.abc import Iterator

from test_smtp_dialogues import FILES, read


def conversations() -> Iterator[bytes]:
    """All that the client of each conversation sends."""
    for path in FILES:
        for groups in read(path).conversations:
            yield b"".join(group.octets for group in groups)


def lines() -> list[bytes]:
    """Each line of any client, without its end."""
    found = {line for talk in conversations() for line in talk.split(b"\r\n")}
    return sorted(line for line in found if len(line) < 1000)
