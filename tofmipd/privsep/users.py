"""What deals with the messages of one user, put together from the settings."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tofmipd.content import Content
from tofmipd.handoff.attempt import Note, Rules
from tofmipd.handoff.copy import HandOffFailed, Transport
from tofmipd.handoff.outbox import Outbox
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.nexthops import relay_hops
from tofmipd.privsep.outbound import House, Observer, Outbound, Owner
from tofmipd.privsep.virtualdomains import HomeScript, NoHome
from tofmipd.settings import GlobalMode, Settings
from tofmipd.smtp.envelope import Envelope
from tofmipd.smtp.reply import Reply
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.userfiles import UserFiles

if TYPE_CHECKING:
    from tofmipd.privsep.senders import SenderRules

log = logging.getLogger(__name__)

_NO_HOME = Reply(451, "3.5", ("Error: your home directory cannot be found",))
# For so long an answer of the script holds.
_HOME_SECONDS = 60

Loading = Callable[[], AbstractContextManager[None]]


class Submits(Protocol):
    """Takes messages of one user and hands them over."""

    def submit(self, envelope: Envelope, content: Content, session_id: str) -> Reply: ...

    def transport(self, local_address: str) -> Transport:
        """What hands this user's messages over now.  Raises HandOffFailed."""
        ...


@dataclass(frozen=True, slots=True)
class User:
    """A user of this process.

    ``home`` is that of the account which the process runs as; of a virtual user the script knows
    another.
    """

    login: str
    home: str
    full_name: str


def retries_of(
    settings: Settings,
    directory: str,
    note: Note,
    begin_thread: Callable[[], None] = lambda: None,
    *,
    watches: bool = False,
) -> Retries:
    """What looks after the outbox in a directory; it does not run yet."""
    queue = settings.queue
    rules = Rules(settings.host_name, queue.lifetime, queue.warning, queue.first_pause)
    return Retries(Outbox(directory), rules, note, begin_thread, watches=watches)


def house(
    settings: Settings,
    pool: Pool,
    observer: Observer | None = None,
    retries: Retries | None = None,
) -> House:
    """What all users of this process have in common."""
    return House(
        settings.host_name,
        settings.received,
        settings.next_hop,
        pool,
        observer,
        settings.scripts.pass_through,
        script_timeout=settings.programs.script_timeout,
        pass_eight_bit=settings.pass_eight_bit,
        senders=_sender_rules(settings),
        retries=retries,
        spool=settings.queue.spool,
        xclient=settings.xclient,
        relay=relay_hops(
            settings.relay,
            settings.next_hop,
            settings.host_name,
            pass_eight_bit=settings.pass_eight_bit,
        ),
    )


def _sender_rules(settings: Settings) -> SenderRules | None:
    if settings.sender_check.mode == "off":
        return None
    # Most of it is tables of Unicode, which a personal daemon has no use for.
    from tofmipd.privsep.senders import SenderRules

    if settings.global_mode is not None:
        return SenderRules.of(settings.sender_check, settings.global_mode.min_uid)
    # A personal daemon's logins all stand for the person.
    person = settings.person
    names = (person.name.lower(),)
    return SenderRules.of(settings.sender_check, GlobalMode().min_uid, person.uid, names)


def home_script(settings: Settings) -> HomeScript | None:
    scripts = settings.scripts
    if not scripts.virtual_home:
        return None
    timeout = settings.programs.script_timeout
    return HomeScript(scripts.virtual_home, scripts.search_path, timeout)


def user_of(
    settings: Settings,
    place: House,
    user: User,
    *,
    form: Literal["python", "literal"] = "python",
    loading: Loading = contextlib.nullcontext,
) -> Submits:
    """What deals with a user's messages.

    ``form`` says how a virtual user's configuration is read, "literal" where the process does not
    run as the owner of his domain.
    """
    script = home_script(settings)
    if script is not None:
        return VirtualUser(settings, place, user, script, form, loading)
    path = config_of(settings, user.login)
    # A worker has nothing in it but what is the user's, and a personal daemon is his own.
    return _outbound(settings, place, user, path, user.home, os.environ, "python", loading)


def _outbound(
    settings: Settings,
    place: House,
    user: User,
    path: str,
    home: str,
    variables: Mapping[str, str],
    form: Literal["python", "literal"],
    loading: Loading,
) -> Outbound:
    files = files_of(settings, user, path, home, variables, form, loading=loading)
    return Outbound(Owner(user.login, home), files, place)


def config_of(settings: Settings, login: str) -> str:
    """The configuration that the settings name for a login, "" for the usual one."""
    return f"{settings.configdir}/{login}/config" if settings.configdir else settings.user_config


def files_of(
    settings: Settings,
    user: User,
    path: str,
    home: str,
    variables: Mapping[str, str],
    form: Literal["python", "literal"],
    *,
    loading: Loading = contextlib.nullcontext,
    with_key: bool = True,
) -> UserFiles:
    """Configuration, key and filter; ``home`` is that of the files."""
    return UserFiles(
        path,
        Surroundings(home, user.login, user.full_name, settings.host_name, variables=variables),
        site_path=settings.site_config or None,
        form=form,
        required=True,
        with_key=with_key,
        filter_path=settings.user_filter,
        loading=loading,
    )


def virtual_variables(login: str, home: str) -> dict[str, str]:
    """What a virtual user's files find in the environment (row TO-85)."""
    return {"HOME": home, "VUSERDIR": home, "VDOMAIN": login.partition("@")[2]}


class VirtualUser:
    """A user whose home a script knows; it may depend on the address that the client chose."""

    def __init__(
        self,
        settings: Settings,
        place: House,
        user: User,
        script: HomeScript,
        form: Literal["python", "literal"],
        loading: Loading,
    ) -> None:
        self._settings = settings
        self._place = place
        self._user = user
        self._script = script
        self._form = form
        self._loading = loading
        self._lock = threading.Lock()
        self._one_home_at_a_time = threading.Lock()
        self._homes: dict[str, tuple[float, str]] = {}
        self._outbounds: dict[str, Outbound] = {}

    def submit(self, envelope: Envelope, content: Content, session_id: str) -> Reply:
        """See Outbound.submit."""
        try:
            outbound = self._outbound(envelope.peer.local_address)
        except NoHome as error:
            log.error("s=%s deferred: %s", session_id, error)
            return _NO_HOME
        return outbound.submit(envelope, content, session_id)

    def transport(self, local_address: str) -> Transport:
        """See Outbound.transport."""
        try:
            outbound = self._outbound(local_address)
        except NoHome as error:
            raise HandOffFailed(_NO_HOME, str(error)) from error
        return outbound.transport(local_address)

    def _outbound(self, local_address: str) -> Outbound:
        with self._lock:
            asked, home = self._homes.get(local_address, (0.0, ""))
            if not home or time.monotonic() - asked > _HOME_SECONDS:
                home = self._script.home(self._user.login, self._user.home, local_address)
                self._homes[local_address] = (time.monotonic(), home)
            if home not in self._outbounds:
                path = f"{home}/.tmda/config"
                loading = self._loading
                variables: Mapping[str, str] = virtual_variables(self._user.login, home)
                if self._form == "python":
                    loading = functools.partial(self._with_environment, home)
                    variables = os.environ
                self._outbounds[home] = _outbound(
                    self._settings,
                    self._place,
                    self._user,
                    path,
                    home,
                    variables,
                    self._form,
                    loading,
                )
            return self._outbounds[home]

    @contextlib.contextmanager
    def _with_environment(self, home: str) -> Iterator[None]:
        """Within this files are read, and programs in them find HOME, VUSERDIR and VDOMAIN (row
        TO-85).

        The environment is that of the whole process, which serves this login alone.
        """
        with self._one_home_at_a_time:
            os.environ.update(virtual_variables(self._user.login, home))
            with self._loading():
                yield
