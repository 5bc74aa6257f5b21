"""What `init` and `demo` write: complete, usable as it is, and never over something else."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess

import pytest

from tofmipd.auth.credentials import Password, Verdict
from tofmipd.auth.passwordfile import PasswordFile, read_passwords
from tofmipd.commands import setup
from tofmipd.commands.setup import Plan, Way, client_lines, write_all
from tofmipd.errors import CANT_CREATE, Fatal
from tofmipd.privsep.nexthops import names_next_hop
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles

NAMES = ("crypt_key", "config", "filters/outgoing", "tofmipd")


def profile_of(plan: Plan) -> Profile:
    """The files as the daemon reads them."""
    around = Surroundings(plan.home, plan.login, "From The Account", "host.example")
    return UserFiles(f"{plan.directory}/config", around, required=True).profile()


def test_four_files_are_made_for_the_owner_alone(tmp_path):
    old = os.umask(0)
    try:
        made = write_all(Plan(str(tmp_path), "bobby", "bobby@example.org"))
    finally:
        os.umask(old)
    assert made == [(f"{tmp_path}/.tmda/{name}", True) for name in NAMES]
    for name in NAMES:
        assert stat.S_IMODE((tmp_path / ".tmda" / name).stat().st_mode) == 0o600
    for name in ("", "filters"):
        assert stat.S_IMODE((tmp_path / ".tmda" / name).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_is_kept(name, tmp_path):
    path = tmp_path / ".tmda" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    made = dict(write_all(Plan(str(tmp_path), "bobby", "bobby@example.org")))
    assert path.read_text() == "mine"
    assert made == {f"{tmp_path}/.tmda/{other}": other != name for other in NAMES}


def test_nothing_is_written_through_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / ".tmda").mkdir()
    (tmp_path / ".tmda/config").symlink_to(tmp_path / "elsewhere")
    write_all(Plan(str(tmp_path), "bobby", "bobby@example.org"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(
        Fatal, match=f"cannot make {tmp_path}/home/.tmda: Not a directory"
    ) as caught:
        write_all(Plan(f"{tmp_path}/home", "bobby", "bobby@example.org"))
    assert caught.value.status == CANT_CREATE


@pytest.mark.parametrize(
    ("full_name", "expected"),
    [
        ("", "From The Account"),
        ("Bobby Brown", "Bobby Brown"),
        ('Böb "Bob" O\'Brown\\', 'Böb "Bob" O\'Brown\\'),
    ],
)
@pytest.mark.parametrize(
    ("smtp_host", "transport", "host"),
    [("", "sendmail", "localhost"), ("mail.example:587", "smtp", "mail.example:587")],
)
def test_the_configuration_says_what_was_planned(
    full_name, expected, smtp_host, transport, host, tmp_path
):
    plan = Plan(str(tmp_path), "bobby", "b.brown@example.org", full_name, Way(smtp_host))
    write_all(plan)
    config = profile_of(plan).config
    assert (config.username, config.hostname) == ("b.brown", "example.org")
    assert config.fullname == expected
    assert (config.mail_transport, config.smtphost) == (transport, host)


WAYS = [
    (Way("mail.example"), {"smtpssl": False}),
    (Way("mail.example:587", encrypted=True), {"smtpssl": True, "smtptls": ""}),
    (Way("mail.example", True, "encrypt"), {"smtpssl": True, "smtptls": "encrypt"}),
    (
        Way("mail.example", user="b'ob", password='pass"wörd\\'),
        {"smtpauth_username": "b'ob", "smtpauth_password": 'pass"wörd\\'},
    ),
]


@pytest.mark.parametrize(("way", "expected"), WAYS)
def test_the_configuration_says_how_the_server_is_talked_to(way, expected, tmp_path):
    plan = Plan(str(tmp_path), "bobby", "bobby@example.org", way=way)
    write_all(plan)
    config = profile_of(plan).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_whose_mail_the_daemon_sends_has_a_configuration_without_a_way(tmp_path):
    plan = Plan(str(tmp_path), "bobby", "bobby@example.org", way=None, password="")
    assert f"{plan.directory}/tofmipd" not in dict(write_all(plan))
    assert not names_next_hop(profile_of(plan).config)


def test_a_password_can_be_hashed(tmp_path):
    plan = Plan(str(tmp_path), "bobby", "bobby@example.org", hashed=True)
    write_all(plan)
    source = PasswordFile(f"{plan.directory}/tofmipd", os.getuid())
    assert plan.password not in (tmp_path / ".tmda/tofmipd").read_text()
    assert source.check(Password("bobby", plan.password.encode())) is Verdict.ACCEPTED
    assert source.check(Password("bobby", b"another")) is Verdict.REJECTED


def test_secrets_are_in_no_representation():
    plan = Plan("/h", "bobby", "bobby@example.org", way=Way("h", user="u", password="hidden"))
    assert plan.password not in repr(plan)
    assert "hidden" not in repr(plan)


def test_the_filter_that_is_written_has_no_rule_of_its_own(tmp_path):
    plan = Plan(str(tmp_path), "bobby", "bobby@example.org")
    write_all(plan)
    profile = profile_of(plan)
    assert profile.filter.rules == ()
    assert len(profile.tags.key) == 20


def test_the_rules_that_it_suggests_are_correct(tmp_path):
    plan = Plan(str(tmp_path), "bobby", "bobby@example.org")
    write_all(plan)
    path = tmp_path / ".tmda/filters/outgoing"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# to "))
    )
    assert len(profile_of(plan).filter.rules) == 4


def test_the_login_that_is_made_is_good_and_new_each_time(tmp_path):
    passwords = set()
    for number in range(20):
        plan = Plan(f"{tmp_path}/{number}", "bobby", "bobby@example.org")
        write_all(plan)
        found = read_passwords(f"{plan.directory}/tofmipd", os.getuid())
        assert list(found) == ["bobby"]
        passwords.add(found["bobby"].written)
    assert len(passwords) == 20
    assert min(len(password) for password in passwords) >= 16


def test_no_password_that_is_made_looks_like_an_option(tmp_path):
    """Commands that are to be pasted give it as a word of its own."""
    for number in range(400):
        path = tmp_path / str(number)
        write_all(Plan(str(path), "bobby", "bobby@example.org"))
        secret = read_passwords(f"{path}/.tmda/tofmipd", os.getuid())["bobby"]
        assert not secret.written.startswith(b"-")


@pytest.mark.parametrize(
    ("login", "password", "address"),
    [
        ("bobby", "FooBar", "bobby@example.org"),
        ("bobby", 'it\'s a $(secret) `x` "y" \\ & ;', "bobby@example.org"),
        ("bob by", "x", "a&b;c$d'e@example.org"),
        ("bobby", "100%s", "50%d@example.org"),
    ],
)
def test_the_lines_to_paste_survive_a_shell(login, password, address):
    curl, swaks = (shlex.split(line) for line in client_lines(login, password, address, "h", 25))
    for name, value in [
        ("--auth-user", login),
        ("--auth-password", password),
        ("--from", address),
        ("--server", "h"),
        ("--port", "25"),
    ]:
        assert swaks[swaks.index(name) + 1] == value
    for name, value in [
        ("--url", "smtp://h:25"),
        ("--user", f"{login}:{password}"),
        ("--mail-from", address),
        ("--mail-rcpt", "friend@example.net"),
    ]:
        assert curl[curl.index(name) + 1] == value


def test_the_message_to_paste_is_the_same_behind_the_shell():
    line, _ = client_lines("bobby", "x", "50%d\\n@example.org", "h", 25, to="it's@me.example")
    command, _, _ = line.partition(" | ")
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[:2] == ["From: 50%d\\n@example.org", "To: it's@me.example"]


def test_the_files_name_no_manual_page_that_is_not_there():
    pages = os.path.join(os.path.dirname(__file__), "../docs/man")
    text = setup._CONFIG + setup._FILTER
    named = {word.strip(";,.") for word in text.split() if "(5)" in word}
    missing = [name for name in named if not os.path.exists(f"{pages}/{name[:-3]}.5")]
    assert not missing
