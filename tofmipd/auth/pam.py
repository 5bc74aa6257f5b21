"""One login judged by PAM, in a process that may hang or die of it (row TO-54, ecosystem 3.2).

Modules of PAM wait for networks, sleep after a failure and now and then crash: only what can be
killed calls them.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

from tofmipd.auth.credentials import Origin, Password, Verdict

_SERVICE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
_DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/local/etc/pam.d")
_ONE_FILE = "/etc/pam.conf"

_RHOST = 4
_DISALLOW_NULL_AUTHTOK = 1
_SUCCESS = 0
# What says that login or account is not good (pam(3), the numbers of Linux-PAM).
_REFUSALS = frozenset({6, 7, 8, 10, 11, 12, 13, 16, 17, 27})


class PamError(Exception):
    """PAM cannot be used; ``str()`` says why, and what to do."""


def prepare(service: str) -> None:
    """Load what an attempt needs.  Raises PamError."""
    if not _SERVICE_NAME.fullmatch(service):
        raise PamError(f"-m: {service!r} is not the name of a PAM service, e.g. tofmipd")
    paths = [f"{directory}/{service}" for directory in _DIRECTORIES]
    if not any(map(os.path.exists, paths)) and not _in_one_file(service):
        raise PamError(
            f"there is no PAM service {service}: make {paths[0]} (etc/pam.d/tofmipd is an example)"
            " or name another with -m"
        )
    try:
        import pam

        pam.PamAuthenticator()
    except ImportError as error:
        raise PamError(f"-m needs python-pam (pip install python-pam): {error}") from None
    except (OSError, AttributeError, TypeError) as error:
        raise PamError(f"the PAM library cannot be used: {error}") from None


def _in_one_file(service: str) -> bool:
    try:
        with open(_ONE_FILE, encoding="utf-8", errors="replace") as file:
            return any(line.split(maxsplit=1)[:1] == [service] for line in file)
    except OSError:
        return False


def attempt(service: str, credentials: Password, origin: Origin) -> tuple[Verdict, str]:
    """Ask PAM for password and account; the verdict, and words for the log unless it is good."""
    import pam

    # A fresh one each time: with python-pam before 2.1 they share what they must not.
    authenticator = pam.PamAuthenticator()
    _complete(authenticator, origin.address)
    try:
        good = authenticator.authenticate(
            credentials.user, credentials.password, service=service, resetcreds=False
        )
    except (ValueError, UnicodeError):
        return Verdict.REJECTED, "a name or password that PAM cannot have"
    code, reason = authenticator.code, authenticator.reason
    words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
    if good is True and code == _SUCCESS:
        return Verdict.ACCEPTED, ""
    verdict = Verdict.REJECTED if code in _REFUSALS else Verdict.UNAVAILABLE
    return verdict, f"{words} ({code})"


def _complete(authenticator: Any, address: str) -> None:
    """Let modules know where the client is, and let no account in that has no password.

    python-pam does neither, and has no option for it: its call of pam_authenticate(3) is
    replaced by one that does.
    """
    call = authenticator.pam_authenticate
    library = ctypes.CDLL(None)
    set_item = getattr(authenticator, "pam_set_item", None) or library.pam_set_item

    def authenticate(handle: Any, flags: int) -> int:
        if address:
            host = ctypes.cast(ctypes.c_char_p(address.encode()), ctypes.c_void_p)
            set_item(handle, _RHOST, host)
        return int(call(handle, flags | _DISALLOW_NULL_AUTHTOK))

    authenticator.pam_authenticate = authenticate
