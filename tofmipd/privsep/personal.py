"""Personal mode put together: the gate of a person who serves himself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tofmipd.auth.files import without_waiting
from tofmipd.auth.sources import attempted, chain_of
from tofmipd.errors import UNAVAILABLE, Fatal
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep import attempts
from tofmipd.privsep.accounts import NoAccount
from tofmipd.privsep.attempts import Helper
from tofmipd.privsep.direct import DirectGate
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.logins import Logins
from tofmipd.privsep.outbound import Observer
from tofmipd.privsep.throttle import Throttle
from tofmipd.privsep.users import User, house, retries_of, user_of
from tofmipd.settings import Settings

if TYPE_CHECKING:
    from tofmipd.privsep.quota import Quota

log = logging.getLogger(__name__)


def personal_retries(settings: Settings) -> Retries:
    """What looks after the person's outbox; it is started when there is a gate."""
    return retries_of(settings, settings.outbox, log.info, watches=True)


def personal_gate(
    settings: Settings,
    pool: Pool,
    observer: Observer | None = None,
    retries: Retries | None = None,
    helper: Helper | None = None,
) -> DirectGate:
    """All logins stand for the person who runs the process.

    With a configuration directory each login has a configuration of its own there; with a script
    for virtual users each has a home of its own.

    ``helper`` makes attempts for the sources that need one.  Raises SourceFileError, and Fatal for
    a file of limits that is of no use.
    """
    person = settings.person
    chain = chain_of(settings, person.uid, without_waiting, helper)
    quota = quota_of(settings)
    if quota is not None:
        quota.check()
    place = house(settings, pool, observer, retries)
    logins = Logins(
        chain, settings.host_name, lambda login: _identity(settings, login), settings.limits
    )
    gate = DirectGate(
        logins,
        lambda login: user_of(
            settings, place, User(login, person.home, person.full_name), form="literal"
        ),
        throttle_of(settings),
        quota,
    )
    if retries is not None:
        retries.transports = lambda login, address: gate.user(login).transport(address)
    return gate


def start_helper(settings: Settings) -> Helper | None:
    """None if no source needs one.  The caller has one thread.  Raises SourceFileError."""
    specs = attempted(settings)
    return attempts.start(specs) if specs else None


def _identity(settings: Settings, login: str) -> Identity:
    user, at, domain = login.partition("@")
    if settings.scripts.virtual_home and not (user and at and domain):
        raise NoAccount(f"{login!r} is not USER@DOMAIN")
    return Identity(settings.person.name, login)


def throttle_of(settings: Settings) -> Throttle | None:
    scripts = settings.scripts
    if not scripts.throttle:
        return None
    return Throttle(scripts.throttle, scripts.search_path, settings.programs.script_timeout)


def quota_of(settings: Settings) -> Quota | None:
    """None without limits.  Raises Fatal where Python has no SQLite."""
    if not settings.quotas.given:
        return None
    try:
        from tofmipd.privsep.quota import Quota
    except ImportError as error:
        raise Fatal(UNAVAILABLE, f"--limit needs Python's module sqlite3: {error}") from None
    return Quota(settings.quotas)
