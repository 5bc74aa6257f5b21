"""A second opinion on tagged addresses: openssl computes their macs."""

from __future__ import annotations

import re
import subprocess
import time

from hops import Stored
from running import KEY

DAY = 86400


def openssl_mac(data: str, key: str = KEY, digits: int = 6) -> str:
    """HMAC-SHA1 of ``data`` by another program, cut to ``digits``."""
    result = subprocess.run(
        ["openssl", "dgst", "-sha1", "-mac", "hmac", "-macopt", f"hexkey:{key}"],
        input=data.encode(),
        capture_output=True,
        check=True,
    )
    return result.stdout.decode().split()[-1][:digits]


def dated(stored: Stored, seconds: int, pattern: str = r"bobby-dated-(\d+)\.(\w+)@example\.org"):
    """Assert that the sender of a message is a good dated address; its cookie."""
    match = re.fullmatch(pattern, stored.sender)
    assert match is not None, stored.sender
    assert abs(int(match[1]) - time.time() - seconds) < 60
    return match
