"""Where the outboxes are that `tofmipd queue` is about, and as whom it works in them.

Root has everything done as the user whose outbox it is, reading included (``privsep.deputy``): who
owns a directory can put anything there at any time, and where only his own rights count, neither a
link nor a file that never answers can lead anywhere.  What root does itself is to look at names in
directories that he has opened without following links.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tofmipd.cli import absolute, options_of, person, settings_from
from tofmipd.errors import CONFIG, Fatal
from tofmipd.privsep.accounts import Account, Admission, NoAccount
from tofmipd.privsep.deputy import Deputy
from tofmipd.privsep.drop import Rights
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.outboxes import identity_of, may_hold_any
from tofmipd.privsep.users import User
from tofmipd.settings import GLOBAL_OUTBOXES, GlobalMode, Queue, Settings

# Options of the daemon that say how messages leave, as `tofmipd queue retry` takes them.
AS_DAEMON = ("configdir", "vhome_script", "relay", "relay_tls", "relay_ca")
_LOOK_SECONDS = 30.0
# For one message: several copies may each wait for a next hop that does not answer.
_ATTEMPT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Box:
    """One outbox.  ``rights`` are those of its owner, None where this process has them."""

    user: str
    directory: str
    rights: Rights | None = None

    @property
    def identity(self) -> Identity:
        return identity_of(self.user)

    @property
    def deputy(self) -> Deputy | None:
        """Who looks at what is there, None for this process."""
        if self.rights is None:
            return None
        return Deputy(self.identity, self.rights, "/", _LOOK_SECONDS)


def settings_for(options: argparse.Namespace) -> Settings:
    """Those of the daemon.  To try a message takes all of them, to look at one no question to the
    name service.  Raises Fatal."""
    if options.verb == "retry":
        words = {name: getattr(options, name) for name in ("outbox", *AS_DAEMON)}
        given = [f"--{name.replace('_', '-')}={word}" for name, word in words.items() if word]
        given += ["--pure-proxy"] if options.pure_proxy else []
        given += ["--personal"] if options.personal else []
        return settings_from(given)
    who = person()
    mode = GlobalMode() if who.uid == 0 and not options.personal else None
    outbox = options.outbox
    if not outbox:
        outbox = options_of(["--personal"] if options.personal else []).options.outbox
    return Settings(who, global_mode=mode, queue=Queue(directory=absolute(outbox, who.home)))


def boxes_of(settings: Settings, fault: Callable[[str], None]) -> Iterator[Box]:
    """Those of the person, or as root of all; ``fault`` hears what is left out.  Raises Fatal."""
    if settings.global_mode is not None:
        yield from _boxes_of_all(settings.outbox, fault)
        return
    who = settings.person
    yield Box(who.name, settings.outbox)
    shared = os.path.join(GLOBAL_OUTBOXES, who.name)
    if not settings.queue.directory and who.uid != 0 and _owner(shared) == who.uid:
        yield Box(who.name, shared)


def _owner(path: str) -> int | None:
    """Whose directory that is, None if it is none."""
    with contextlib.suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return status.st_uid
    return None


def _boxes_of_all(base: str, fault: Callable[[str], None]) -> Iterator[Box]:
    """What is below a directory that nobody but root can have put anything into.  Raises Fatal."""
    try:
        status = os.stat(base, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            text = "must be a directory of root's that nobody else can write to"
            raise Fatal(CONFIG, f"{base} {text}; --personal is for your own outbox")
        found = sorted(os.listdir(base))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fatal(CONFIG, f"{base}: {error.strerror}") from None
    for name in found:
        path = os.path.join(base, name)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or not may_hold_any(path):
                continue
            if status.st_uid == 0 or status.st_gid == 0:
                fault(f"{path} belongs to root; it must belong to the user")
                continue
            # Also of an account that is no more.
            rights = Rights(name, status.st_uid, status.st_gid, (status.st_gid,))
            yield Box(name, path, rights)


def who_tries(settings: Settings, box: Box) -> tuple[Deputy | None, Callable[[str], User]]:
    """Who hands over what is in an outbox, and as whom.  Raises Fatal."""
    if box.rights is None:
        who = settings.person
        return None, lambda login: User(login, who.home, who.full_name)
    identity = box.identity
    account = _account(box)
    own = settings.configdir or settings.scripts.virtual_home
    if identity.login != identity.account and not own:
        raise Fatal(CONFIG, "a virtual user's; name the daemon's script (-S) for his configuration")
    user = User(identity.login, account.home, account.full_name)
    return Deputy(identity, account.rights, account.home, _ATTEMPT_SECONDS), lambda _: user


def _account(box: Box) -> Account:
    """Raises Fatal."""
    try:
        # Whom the daemon admits has a directory here.
        account = Admission(min_uid=1, service_uid=0).account(box.identity.account)
    except NoAccount as error:
        raise Fatal(CONFIG, str(error)) from None
    if box.rights is None or account.rights.uid != box.rights.uid:
        raise Fatal(CONFIG, f"it does not belong to {account.rights.name}")
    return account
