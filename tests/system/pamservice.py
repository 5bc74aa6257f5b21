"""Services of PAM, and accounts with passwords for them; both need root.

Not named after PAM alone: a module of that name would hide python-pam's from what is tested.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = "/etc/pam.d"

# The rules of services.  HANGING and CRASHING act on the process that calls PAM, which must be none
# of the tests'; what hangs ends soon after that process, and after a minute at the latest.
UNIX = """\
auth required pam_unix.so nodelay
account required pam_unix.so
"""
# A failure takes some two seconds, as usual.
SLOW_TO_REFUSE = UNIX.replace(" nodelay", "")
# An account without a password would do.
NULLOK = UNIX.replace("nodelay", "nodelay nullok")
DENYING = """\
auth required pam_deny.so
account required pam_deny.so
"""
HANGING = """\
auth required pam_exec.so quiet /bin/sh -c \\
    [for x in $(seq 600); do kill -0 $PPID || exit; sleep 0.1; done]
account required pam_permit.so
"""
CRASHING = """\
auth required pam_exec.so quiet /bin/sh -c [kill -SEGV $PPID]
account required pam_permit.so
"""


@contextlib.contextmanager
def pam_service(rules: str) -> Iterator[str]:
    """A service with these rules; its name, which is unlike any other's."""
    with tempfile.NamedTemporaryFile("w", prefix="tofmipd-", dir=_DIRECTORY) as file:
        file.write(rules)
        file.flush()
        os.chmod(file.name, 0o644)
        yield Path(file.name).name


@contextlib.contextmanager
def account(name: str, password: str | None) -> Iterator[None]:
    """An account without a home, gone afterwards; None stands for no password at all."""
    subprocess.run(["useradd", "--no-create-home", "--user-group", name], check=True)
    try:
        if password is None:
            subprocess.run(["passwd", "--quiet", "--delete", name], check=True)
        else:
            set_password(name, password)
        yield
    finally:
        subprocess.run(["userdel", name], check=True)


def set_password(account: str, password: str) -> None:
    """Both without a line end, the account's name without a colon."""
    subprocess.run(["chpasswd"], input=f"{account}:{password}\n".encode(), check=True)


@contextlib.contextmanager
def expired(account: str) -> Iterator[None]:
    """The account has been over for decades, and lives on afterwards."""
    subprocess.run(["chage", "--expiredate", "1", account], check=True)
    try:
        yield
    finally:
        subprocess.run(["chage", "--expiredate", "-1", account], check=True)
