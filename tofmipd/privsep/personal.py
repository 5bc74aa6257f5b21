"""Personal mode put together: the gate of a person who serves himself."""

from __future__ import annotations

from tofmipd.auth.chain import Chain
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.direct import DirectGate
from tofmipd.privsep.outbound import House, Identity, Observer, Outbound
from tofmipd.settings import Settings
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.userfiles import UserFiles


def personal_gate(settings: Settings, pool: Pool, observer: Observer | None = None) -> DirectGate:
    """All logins stand for the person who runs the process.

    With a configuration directory each login has a configuration of its own there; everything
    else, the person's home included, stays.  Raises PasswordFileError.
    """
    person = settings.person
    chain = Chain([PasswordFile(settings.authfile, person.uid)])
    house = House(settings.host_name, settings.received, settings.next_hop, pool, observer)

    def outbound_for(login: str) -> Outbound:
        path = f"{settings.configdir}/{login}/config" if settings.configdir else ""
        files = UserFiles(
            path,
            surroundings(settings, login),
            site_path=settings.site_config or None,
            required=True,
        )
        return Outbound(Identity(login, person.home), files, house)

    return DirectGate(chain, settings.host_name, outbound_for)


def surroundings(settings: Settings, login: str) -> Surroundings:
    person = settings.person
    return Surroundings(person.home, login, person.full_name, settings.host_name)
