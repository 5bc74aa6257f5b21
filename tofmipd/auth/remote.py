"""Servers that judge logins: what ``-R`` names (feature row TO-50)."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass

from tofmipd.auth.ipmap import parse_port

PORTS = {
    "imap": 143,
    "imaps": 993,
    "pop3": 110,
    "pop3s": 995,
    "apop": 110,
    "ldap": 389,
    "ldaps": 636,
}
# Encrypted from the first octet.
ENCRYPTED = frozenset({"imaps", "pop3s", "ldaps"})
# The host that stands for whatever the map of local addresses says.
BY_LOCAL_ADDRESS = "0.0.0.0"
_FORM = "must be SCHEME://HOST[:PORT], and for ldap and ldaps /DN behind it"
_LDAP_FORM = "must be ldap://HOST[:PORT]/DN with %s for the user name in it"
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class RemoteTls:
    """How connections to such servers are protected.

    ``ca_file`` is a file of authorities, "" for those of the system.  With ``verified`` the
    certificate must be good for the host that was named.  With ``demanded`` no password goes to
    another machine in the clear: it must take STARTTLS (or STLS) then.
    """

    ca_file: str = ""
    verified: bool = True
    demanded: bool = True


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """Whom to ask; an IPv6 address in ``host`` is without brackets.

    ``dn`` is the distinguished name of a user in a directory, ``%s`` his name.
    """

    scheme: str
    host: str
    port: int
    dn: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme} {host}:{self.port}"


def remote_server(url: str) -> RemoteServer:
    """Parse ``SCHEME://HOST[:PORT][/DN]``.  Raises ValueError with one line, without any
    password."""
    scheme, separator, place = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(_FORM)
    if scheme not in PORTS:
        raise ValueError(f"unknown scheme {scheme!r}; there are {', '.join(PORTS)}")
    dn = ""
    if scheme in ("ldap", "ldaps"):
        place, _, dn = place.partition("/")
        if "%s" not in dn or not dn.isprintable():
            raise ValueError(_LDAP_FORM)
    if "@" in place:
        raise ValueError(f"a user has no place in it, {_FORM}")
    if re.search("[/?#]", place):
        raise ValueError(f"nothing may follow host and port, {_FORM}")
    host, port = _split_place(place)
    number = PORTS[scheme] if port is None else parse_port(port)
    return RemoteServer(scheme, _host(host), number, dn)


def _split_place(place: str) -> tuple[str, str | None]:
    """The host, still with its brackets if any, and the text of the port or None."""
    match = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(.*))?", place, re.DOTALL)
    if match is None or ":" in (match[2] or ""):
        raise ValueError(f"bad host or port {place!r}; an IPv6 address needs brackets: [::1]")
    return match[1], match[2]


def _host(text: str) -> str:
    with contextlib.suppress(ValueError):
        if text.startswith("[") and text.isascii() and text.isprintable():
            return str(ipaddress.IPv6Address(text[1:-1]))
        if re.fullmatch("[0-9.]+", text):
            return str(ipaddress.IPv4Address(text))
        if _HOST_NAME.fullmatch(text):
            return text
    raise ValueError(f"not a host: {text!r}, {_FORM}")
