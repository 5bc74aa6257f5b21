"""XCLIENT: telling the next hop for whom a message is handed over (Postfix's XCLIENT_README)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

UNKNOWN = "[UNAVAILABLE]"
# With the verb and the line end.
_COMMAND_LIMIT_OCTETS = 512
_VERB = "XCLIENT"
# RFC 3461 section 4: what xtext has as it is.
_NOT_PLAIN = re.compile(rb"[^!-*,-<>-~]")


@dataclass(frozen=True, slots=True)
class Submitter:
    """Whoever has submitted a message; "" and 0 stand for what is not known.

    ``address`` is without brackets, ``protocol`` is the word of RFC 3848.
    """

    address: str
    port: int = 0
    login: str = ""
    helo: str = ""
    protocol: str = ""


def command(submitter: Submitter, offered: Collection[str], *, with_login: bool) -> str:
    """The command, with those attributes that the next hop has offered; "" for none of them.

    The address says most, and without it nothing is said.  ``with_login`` is off where the login
    at the next hop is another one.  An attribute for which there is no room is said to be unknown:
    otherwise that of the client before would stand.
    """
    names = {name.upper() for name in offered}
    if "ADDR" not in names:
        return ""
    values = _values(submitter)
    if not with_login:
        del values["LOGIN"]
    told = {name: value for name, value in values.items() if name in names}
    room = _COMMAND_LIMIT_OCTETS - len(f"{_VERB}\r\n")
    room -= sum(len(f" {name}={UNKNOWN}") for name in told)
    words = [_VERB]
    for name, value in told.items():
        more = len(value) - len(UNKNOWN)
        if more > room:
            value, more = UNKNOWN, 0
        room -= more
        words.append(f"{name}={value}")
    return " ".join(words)


def _values(submitter: Submitter) -> dict[str, str]:
    """All attributes, the more important ones first."""
    address = f"IPV6:{submitter.address}" if ":" in submitter.address else submitter.address
    return {
        "ADDR": xtext(address) or UNKNOWN,
        "NAME": UNKNOWN,
        "PORT": str(submitter.port) if submitter.port else UNKNOWN,
        "PROTO": "SMTP" if submitter.protocol == "SMTP" else "ESMTP",
        "LOGIN": xtext(submitter.login) or UNKNOWN,
        "HELO": xtext(submitter.helo) or UNKNOWN,
    }


def xtext(text: str) -> str:
    """RFC 3461 section 4."""
    octets = text.encode("utf-8", "replace")
    return _NOT_PLAIN.sub(lambda match: b"+%02X" % match[0][0], octets).decode("ascii")
