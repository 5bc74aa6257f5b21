"""One user's files, as what deals with his messages would find them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tofmipd.auth.files import without_waiting
from tofmipd.commands.checkreport import Report
from tofmipd.errors import PERMISSION, Fatal
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.sendmail import sendmail_program
from tofmipd.handoff.trust import context_for
from tofmipd.privsep.accounts import Admission, NoAccount, service_rights
from tofmipd.privsep.deputy import Deputy, DeputyFailed
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.nexthops import configured_hops, names_next_hop
from tofmipd.privsep.users import User, config_of, files_of, home_script, virtual_variables
from tofmipd.privsep.virtualdomains import NoHome, VirtualDomains
from tofmipd.settings import GlobalMode, Settings
from tofmipd.tmda.errors import FilterError, KeyFileError, MissingConfig, TagError, UserFileError
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.sources import Question
from tofmipd.tmda.userfiles import UserFiles

# An object of JSON: what has been found, by what it is.
Line = dict[str, Any]
Form = Literal["python", "literal"]

_FAULT, _NOTE, _GOOD = "fault", "note", "good"
_MOST_LINES = 10_000
# Beyond what a configuration may take.
_GRACE_SECONDS = 5.0
# Somebody who is on no list.
_NOBODY = b"nobody@example.invalid"
# They make a database of a list, which is for the daemon to do.
_MAKING = frozenset({"autocdb", "autodbm"})


def check_user(report: Report, settings: Settings, login: str) -> None:
    """``login`` is "" for the person who runs a personal daemon.  Raises Fatal."""
    mode, who = settings.global_mode, settings.person
    if mode is not None:
        if login:
            _check_as_him(report, settings, mode, login)
        return
    others = settings.configdir or settings.scripts.virtual_home
    if not login and others:
        return
    if login and login != who.name and not others:
        raise Fatal(PERMISSION, f"only root can ask for {login}; try: sudo tofmipd check ...")
    user = User(login or who.name, who.home, who.full_name)
    for line in _lines(settings, user, "literal"):
        _take(report, line)


def _check_as_him(report: Report, settings: Settings, mode: GlobalMode, login: str) -> None:
    """In a child that has his rights."""
    try:
        owner = _owner(settings, login)
        account = Admission(mode.min_uid, service_rights(mode.service).uid).account(owner)
    except Fatal:
        # Without that account there is no daemon: told of already.
        return
    except NoAccount as error:
        report.blame(f"{login!r} may not log in: {error}")
        return
    limit = settings.programs.script_timeout + _GRACE_SECONDS
    deputy = Deputy(Identity(owner, login), account.rights, account.home, limit, "tofmipd-check")
    user = User(login, account.home, account.full_name)
    try:
        with contextlib.closing(deputy.lines(lambda: _lines(settings, user, "python"))) as lines:
            for number, line in enumerate(lines):
                if number >= _MOST_LINES or not _take(report, line):
                    raise DeputyFailed("talks nonsense")
    except DeputyFailed as error:
        report.blame(f"{login}: the process for him {error}")
    except OSError as error:
        report.blame(f"{login}: no process for him: {error.strerror}")


def _owner(settings: Settings, login: str) -> str:
    """The account that a login belongs to.  Raises NoAccount."""
    scripts = settings.scripts
    if not scripts.virtual_home:
        return login
    try:
        owner = VirtualDomains(scripts.virtual_domains, without_waiting).owner(login)
    except OSError:
        owner = None
    if owner is None:
        raise NoAccount("it is in no virtual domain")
    return owner


def _take(report: Report, line: Line) -> bool:
    """A line of a child, which may have run anything; whether it makes sense."""
    kinds = {_FAULT: report.blame, _NOTE: report.notes.append, _GOOD: report.good.append}
    ((kind, text),) = line.items() if len(line) == 1 else (("", ""),)
    if kind not in kinds or not isinstance(text, str):
        return False
    kinds[kind](text)
    return True


def _lines(settings: Settings, user: User, virtual_form: Form) -> Iterator[Line]:
    """All that is found; this process has the rights of the user."""
    path, home = config_of(settings, user.login), user.home
    form: Form = "python"
    variables: Mapping[str, str] = os.environ
    script = home_script(settings)
    if script is not None:
        try:
            home = script.home(user.login, user.home, "")
        except NoHome as error:
            yield {_FAULT: str(error)}
            return
        path, form = f"{home}/.tmda/config", virtual_form
        variables = virtual_variables(user.login, home)
        if form == "python":
            os.environ.update(variables)
            variables = os.environ

    def files(*, with_key: bool = True) -> UserFiles:
        return files_of(settings, user, path, home, variables, form, with_key=with_key)

    try:
        try:
            profile = files().profile()
        except KeyFileError as error:
            yield {_FAULT: str(error)}
            profile = files(with_key=False).profile()
    except MissingConfig as error:
        yield {_NOTE if settings.scripts.pass_through else _FAULT: str(error)}
        return
    except FilterError as error:
        yield from ({_FAULT: _one(fault)} for fault in (error, *error.others))
        return
    except UserFileError as error:
        yield {_FAULT: str(error)}
        return
    yield from _lists(profile)
    yield from _next_hop(settings, profile)
    rules = len(profile.filter.rules)
    yield {_GOOD: f"user: {user.login}, {profile.config.origin}, rules of the filter: {rules}"}


def _one(error: FilterError) -> str:
    """Without the others."""
    return UserFileError.__str__(error)


def _lists(profile: Profile) -> Iterator[Line]:
    """What rules look something up in; a statement is not run."""
    lists = profile.library.reading()
    for rule in profile.filter.rules:
        question = rule.question
        if question is None or question.kind == "sql":
            continue
        options = {key: value for key, value in question.options.items() if key not in _MAKING}
        try:
            lists.look_up(Question(question.kind, question.match, options), (_NOBODY,), _NOBODY)
        except TagError as error:
            yield {_FAULT: f"{rule.place.path}:{rule.place.line}: {error}"}


def _next_hop(settings: Settings, profile: Profile) -> Iterator[Line]:
    config = profile.config
    if settings.relay.places and not names_next_hop(config):
        return
    if config.mail_transport != "smtp":
        program = sendmail_program(config.sendmail_program)
        if not (os.path.isfile(program) and os.access(program, os.X_OK)):
            yield {_FAULT: f"{config.origin}: the sendmail program {program} cannot be executed"}
        return
    for hop in configured_hops(config, settings.next_hop, settings.host_name)[:1]:
        try:
            context_for(hop)
        except HandOffFailed as error:
            yield {_FAULT: f"{config.origin}: {error.reply.lines[0]}"}
