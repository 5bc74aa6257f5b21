"""`tofmipd init` for oneself: all that a daemon of one's own needs, or one's own files alone."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass

from tofmipd.cli import host_name, personal_config_file
from tofmipd.commands import daemonfile, initway, setup
from tofmipd.commands.certificate import Pair, certificate_of, choose_pair, name_on
from tofmipd.commands.initnext import (
    OF_CONFIG,
    OF_DAEMON,
    note_kept,
    print_certificate,
    print_clients,
    print_files,
    print_table,
    program,
    start_command,
)
from tofmipd.commands.newfiles import demand_own
from tofmipd.commands.questions import Questions
from tofmipd.commands.setup import Plan, client_lines
from tofmipd.commands.userprofile import first_login, own_files
from tofmipd.errors import CANT_CREATE, USAGE, Fatal
from tofmipd.settings import DEFAULT_PORT, Person
from tofmipd.tmda.errors import UserFileError

TLS_PORT = 8465
_ADDRESS = re.compile(r"[^@\s<>\"]+@[^@\s<>\"']+")


@dataclass(frozen=True, slots=True)
class _Wishes:
    """All that was told or asked for, before anything is written."""

    plan: Plan
    port: int
    pair: Pair | None
    host: str


def personal(options: argparse.Namespace, who: Person) -> int:
    """Make what is missing and say what comes next.  Raises Fatal."""
    tmda = f"{who.home}/.tmda"
    _demand_own_home(who)
    for directory in (tmda, f"{tmda}/filters"):
        demand_own(directory, who.uid)
    questions = Questions()
    if not (options.user_files or options.personal) and os.path.exists(daemonfile.GLOBAL_PATH):
        question = f"{daemonfile.GLOBAL_PATH} is there; is its daemon yours, too"
        options.user_files = questions.asked and questions.yes(question, default=True)
    wishes = _wishes(options, who, questions)
    made = setup.write_all(wishes.plan)
    print_files(made)
    if options.user_files:
        _say_what_users_do(who, wishes)
        return 0
    if wishes.pair is not None:
        print_files(wishes.pair.make())
    path = personal_config_file(who)
    print_files([daemonfile.write(path, _daemon_lines(wishes))])
    fresh = dict(made)[f"{tmda}/tofmipd"]
    _say_what_next(who, wishes, wishes.plan.password if fresh else "")
    return 0


def _demand_own_home(who: Person) -> None:
    """Root must not write where another may put links in the way.  Raises Fatal."""
    try:
        owner = os.stat(who.home).st_uid
    except OSError as error:
        raise Fatal(CANT_CREATE, f"your home {who.home}: {error.strerror}") from None
    if who.uid == 0 and owner != 0:
        text = f"HOME is {who.home}, which is another's; be him (su), or take your own (sudo -H)"
        raise Fatal(CANT_CREATE, text)


def _wishes(options: argparse.Namespace, who: Person, questions: Questions) -> _Wishes:
    """Raises Fatal.  Asked is only what will be written."""
    tmda = f"{who.home}/.tmda"
    note_kept(f"{tmda}/config", options, OF_CONFIG)
    note_kept(personal_config_file(who), options, OF_DAEMON)
    plan = _plan(options, who, questions)
    port, pair = DEFAULT_PORT, None
    if not options.user_files and not os.path.lexists(personal_config_file(who)):
        port = options.port or daemonfile.free_port(DEFAULT_PORT)
        paths = f"{tmda}/tls-cert.pem", f"{tmda}/tls-key.pem"
        pair = choose_pair(options, questions, *paths)
    return _Wishes(plan, port, pair, options.host)


def _plan(options: argparse.Namespace, who: Person, questions: Questions) -> Plan:
    """Raises Fatal."""
    login = who.name.lower()
    password = "" if options.user_files else setup.new_password()
    default = options.address or f"{who.name}@{host_name()}"
    if os.path.lexists(f"{who.home}/.tmda/config"):
        if options.address:
            address_of(options.address)
        address = _configured_address(who) or default
        return Plan(who.home, login, address, password=password, hashed=options.hash_password)
    if options.address:
        address = address_of(options.address)
    else:
        address = questions.text("Your address", default, address_of)
    name = options.name
    if name is None:
        name = questions.text("Your name", who.full_name, full_name)
    way = None
    if not options.user_files or options.smtp or options.sendmail:
        way = initway.choose(options, questions)
    return Plan(
        who.home,
        login,
        address,
        full_name(name),
        way,
        password=password,
        hashed=options.hash_password,
    )


def address_of(text: str) -> str:
    """Raises Fatal for what is no address."""
    if not _ADDRESS.fullmatch(text) or not text.isprintable():
        raise Fatal(USAGE, f"{text!r} is not an address such as you@example.org")
    return text


def full_name(text: str) -> str:
    """Raises Fatal for what cannot stand in a header field."""
    if not text.isprintable():
        raise Fatal(USAGE, f"{text!r} holds what cannot be printed")
    return text


def _configured_address(who: Person) -> str:
    """What the configuration that is there says, "" if it cannot be read."""
    try:
        files = own_files(f"{who.home}/.tmda/config", with_filter=False, with_key=False)
        config = files.profile().config
    except (UserFileError, Fatal):
        return ""
    return f"{config.username}@{config.hostname}"


def _daemon_lines(wishes: _Wishes) -> list[tuple[str, str]]:
    lines = [("proxyport", f"localhost:{wishes.port}")]
    if wishes.pair is not None:
        lines += daemonfile.everywhere(daemonfile.free_port(TLS_PORT), "ssl")
        lines += [("ssl-cert", wishes.pair.cert), ("ssl-key", wishes.pair.key)]
    return lines


def _say_what_users_do(who: Person, wishes: _Wishes) -> None:
    """Whose daemon is root's."""
    address = wishes.plan.address
    print_table([("Next", f"{program()} test {address}"), ("rules", _explain(address))])


def _explain(address: str) -> str:
    return f"{program()} explain --to {address}"


def _say_what_next(who: Person, wishes: _Wishes, password: str) -> None:
    """``password`` is "" where the file has one that was there before."""
    plan, root = wishes.plan, " --personal" * (who.uid == 0)
    login, known = _login(who, plan)
    password = password or known
    path = personal_config_file(who)
    places, seen = daemonfile.listeners(path), certificate_of(path)
    near = daemonfile.nearest(places)
    rows = [
        ("Next", start_command(who.home, personal=True, options=root)),
        ("and then", f"{program()} test {plan.address}"),
    ]
    if password and near.mode == "plain":
        lines = client_lines(login, password, plan.address, near.host, near.port, to=plan.address)
        rows += [("or", line) for line in lines]
    print_table(rows)
    print_clients(places, wishes.host or name_on(seen), login, password or "the one you know")
    print_certificate(seen)


def _login(who: Person, plan: Plan) -> tuple[str, str]:
    """Whom the daemon lets in, and the password, "" where nobody can tell."""
    login, octets = first_login(f"{plan.directory}/tofmipd", who.uid)
    return login, "" if octets is None else octets.decode("utf-8", "replace")
