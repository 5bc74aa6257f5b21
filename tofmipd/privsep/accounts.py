"""Accounts of the system, and which of them a login may become."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from tofmipd.errors import CONFIG, Fatal
from tofmipd.privsep.drop import Rights

_MAKE_ACCOUNT = (
    "groupadd --system {0}; useradd --system --gid {0} --home-dir /nonexistent --no-create-home"
    " --shell /nonexistent {0} (Linux), or pw useradd {0} -d /nonexistent"
    " -s /nonexistent (FreeBSD)"
)


class NoAccount(Exception):
    """A login stands for nobody whom it may become; ``str()`` is for the log."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account whose rights a process can take."""

    rights: Rights
    home: str
    full_name: str


def service_rights(name: str) -> Rights:
    """Those of the account that server and auth run as.  Raises Fatal."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise Fatal(
            CONFIG,
            f"there is no account {name} to run as; make it: {_MAKE_ACCOUNT.format(name)}"
            ", or name another with -u",
        ) from None
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise Fatal(CONFIG, f"-u {name} has the rights of root; name an account without any")
    groups = os.getgrouplist(name, entry.pw_gid)
    return Rights(name, entry.pw_uid, entry.pw_gid, tuple(groups))


@dataclass(frozen=True, slots=True)
class Admission:
    """Which accounts workers may run as: none below ``min_uid``, not the service's, never root."""

    min_uid: int
    service_uid: int

    def account(self, name: str) -> Account:
        """Look an account up.  Raises NoAccount.  May wait for a name service."""
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError, UnicodeEncodeError):
            raise NoAccount(f"{name!r} is no account of this system") from None
        if entry.pw_uid == 0 or entry.pw_gid == 0:
            raise NoAccount(f"{name!r} has the uid or gid of root")
        if entry.pw_uid < self.min_uid:
            raise NoAccount(f"{name!r} has uid {entry.pw_uid}, below --min-uid {self.min_uid}")
        if entry.pw_uid == self.service_uid:
            raise NoAccount(f"{name!r} is the account of the service itself")
        groups = os.getgrouplist(name, entry.pw_gid)
        rights = Rights(name, entry.pw_uid, entry.pw_gid, tuple(groups))
        return Account(rights, entry.pw_dir, entry.pw_gecos.partition(",")[0])
