"""What `tofmipd init` says at its end: the next commands, and what mail clients need."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tofmipd.commands.daemonfile import is_local
from tofmipd.settings import Listen

if TYPE_CHECKING:
    from tofmipd.commands.selfsigned import Shown

_UNIT = "tofmipd.service"
_UNIT_DIRECTORIES = ("/etc/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd")
_BOOTED_BY_SYSTEMD = "/run/systemd/system"
_WIDTH = 88
# Options about the user's configuration, and about the daemon's file.
OF_CONFIG = ("address", "name", "smtp", "sendmail", "smtp-tls", "smtp-user")
OF_DAEMON = ("elsewhere", "host", "ssl-cert", "port")
OF_SYSTEM = ("smtp", "sendmail", "smtp-tls", "login", *OF_DAEMON)

SECURITY = {
    "plain": "no encryption",
    "ssl": "SSL/TLS",
    "on": "STARTTLS",
    "optional": "STARTTLS",
    "localoptional": "STARTTLS",
}


def program() -> str:
    """How this program can be called from a shell."""
    called = os.path.abspath(sys.argv[0])
    if os.path.basename(called) == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m tofmipd"
    known = shutil.which("tofmipd")
    if known is not None and os.path.realpath(known) == os.path.realpath(called):
        return "tofmipd"
    return shlex.quote(called)


def start_command(home: str, *, personal: bool, options: str = "") -> str:
    """By systemd where its unit is installed, else in the foreground."""
    kind = "user" if personal else "system"
    directories = [f"{directory}/{kind}" for directory in _UNIT_DIRECTORIES]
    if personal:
        directories.append(f"{home}/.config/systemd/user")
    units = [f"{directory}/{_UNIT}" for directory in directories]
    if os.path.isdir(_BOOTED_BY_SYSTEMD) and any(map(os.path.exists, units)):
        return f"systemctl {'--user ' * personal}enable --now tofmipd"
    return f"{program()} -f{options}"


def print_files(files: Iterable[tuple[str, bool]]) -> None:
    for path, new in files:
        print(f"{'made' if new else 'kept'}  {path}", flush=True)


def note_kept(path: str, options: argparse.Namespace, names: Sequence[str]) -> None:
    """Say which of these options come too late, for the file is there and stays."""
    late = [f"--{name}" for name in names if getattr(options, name.replace("-", "_"))]
    if late and os.path.lexists(path):
        changes = "change" if len(late) > 1 else "changes"
        print(f"note  {path} is kept, so {', '.join(late)} {changes} nothing")


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Label and text, the texts one below the other; what is to be pasted is never broken."""
    print()
    for label, text in rows:
        print(f"{label + ':':<12}{text}")


def print_clients(
    places: Sequence[Listen], host: str, user: str, password: str, *, local: str = "localhost"
) -> None:
    """The settings of mail clients, on this machine and elsewhere."""
    rows = []
    for place in places:
        if is_local(place) and place.mode == "plain":
            rows.append(("on this machine", local, place))
        elif place.mode != "plain" and not place.ipv6:
            rows.append(("everywhere", host, place))
    print("\nMail clients:")
    for where, server, place in rows:
        security = SECURITY[place.mode]
        print(f"  {where + ',':<17}server {server}, port {place.port}, {security}")
    print(f"  {'all,':<17}normal password; user name {user}, password {password}")


def print_certificate(seen: Shown | None) -> None:
    """What is to be known of a certificate that nobody vouches for; nothing of others."""
    if seen is None or not seen.self_signed:
        return
    text = (
        f"The certificate is self-signed, for {', '.join(seen.names)}, until {seen.last_day}:"
        " clients will warn of it.  Accept it there, for good, if they show this SHA-256"
        " fingerprint:"
    )
    print()
    print(textwrap.fill(text, _WIDTH, break_on_hyphens=False, break_long_words=False))
    print(f"  {seen.fingerprint}")
