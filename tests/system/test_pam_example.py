"""etc/pam.d/tofmipd is a service that PAM takes, as it is and as its comments say (TO-54)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import dialogue, plain
from pamservice import expired, pam_service, set_password
from running import tofmipd

pytestmark = pytest.mark.root

EXAMPLE = (Path(__file__).parents[2] / "etc/pam.d/tofmipd").read_text()
OWN = "auth     required  pam_unix.so nodelay\naccount  required  pam_unix.so\n"
CHANGES = {
    "as it is": [],
    "as the others": [
        (OWN, ""),
        ("#auth     include   common-auth ", "auth include common-auth "),
        ("#account  include   common-account", "account include common-account"),
    ],
    "members of a group": [
        ("#account  required  pam_succeed_if", "account required pam_succeed_if")
    ],
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_service_lets_accounts_in_by_their_passwords(name, village, home, hop):
    anna, _, carl = village.people
    rules = EXAMPLE
    for old, new in CHANGES[name]:
        assert rules.count(old) == 1
        rules = rules.replace(old, new)
    # Each of them is in such a group, so this one lets only one of them in.
    rules = rules.replace(" mail-users", f" {anna.name}x")
    for person in village.people:
        set_password(person.name, person.password)

    def judge(login: tuple[str, str]) -> str:
        with dialogue(daemon.port) as talk:
            talk.say("EHLO client.example")
            return talk.say(f"AUTH PLAIN {plain(*login)}")[:9]

    logins = [(p.name, p.password) for p in village.people]
    others = "535 5.7.8" if name == "members of a group" else "235 2.7.0"
    with (
        pam_service(rules) as service,
        tofmipd(home, "-m", service) as daemon,
        ThreadPoolExecutor(5) as pool,
        expired(carl.name),
    ):
        replies = list(pool.map(judge, [*logins, (anna.name, "wrong"), ("no-such", "x")]))
    assert replies == ["235 2.7.0", others, "535 5.7.8", "535 5.7.8", "535 5.7.8"]
