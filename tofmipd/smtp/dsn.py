"""Parameters of delivery status notifications (RFC 3461 section 4)."""

from __future__ import annotations

import re

# RFC 3461 section 4: what is not itself is +XX.
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})"
_HEX = re.compile(r"\+[0-9A-Fa-f]{2}")
# RFC 3461 section 4.4: what it stands for is printable ASCII, or it would break lines of a report.
_ENVID = re.compile(r"(?:[!-*,-<>-~]|\+(?:09|[2-6][0-9A-F]|7[0-9A-E])){1,100}")
# RFC 6533 section 3 adds the type utf-8, whose signs may also be there as they are.
_ORCPT = re.compile(
    rf"(?i:utf-8);(?:{_XTEXT}|\\x\{{[0-9A-F]{{2,6}}\}}|[^\x00-\xa0\ud800-\udfff])+"
    rf"|[A-Za-z0-9][A-Za-z0-9-]*;{_XTEXT}+"
)
_ORCPT_LIMIT = 500
_EVENTS = ("SUCCESS", "FAILURE", "DELAY")


def in_capitals(value: str) -> str:
    """xtext with its digits as the RFC has them; there are clients that write +3d."""
    return _HEX.sub(lambda match: match[0].upper(), value)


def is_envid(value: str) -> bool:
    return bool(_ENVID.fullmatch(value))


def is_orcpt(value: str) -> bool:
    return len(value) <= _ORCPT_LIMIT and bool(_ORCPT.fullmatch(value))


def notify(value: str) -> str:
    """The value in its usual form.  Raises ValueError."""
    words = list(dict.fromkeys(value.upper().split(",")))
    if value.upper() != "NEVER" and not set(words) <= set(_EVENTS):
        raise ValueError(f"not a NOTIFY: {value}")
    return ",".join(words)
