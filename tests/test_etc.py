"""The examples below etc/ are files that work."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tofmipd import cli, configfile
from tofmipd.commands.effective import effective
from tofmipd.given import from_file, in_file
from tofmipd.options import make_parser
from tofmipd.privsep.errands import Errands
from tofmipd.privsep.senders import parse_senders
from tofmipd.tmda import header
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.inject import Message, Outside, Stamp, tag_message
from tofmipd.tmda.userfiles import UserFiles

ETC = Path(__file__).parent.parent / "etc"
STAMP = Stamp(1_700_000_000, b"Tue, 14 Nov 2023 22:13:20 +0000", None, b"<1@here>", b"tofmipd")


@pytest.fixture
def files(tmp_path):
    shutil.copytree(ETC / "dot-tmda", tmp_path / ".tmda")
    key = tmp_path / ".tmda/crypt_key"
    key.write_text("0123456789abcdef0123456789abcdef01234567\n")
    key.chmod(0o600)
    return UserFiles("", Surroundings(str(tmp_path), "you", "", "mx.example"), required=True)


def tag(files, recipient, head=b""):
    profile = files.profile()
    message = Message(header.parse(head)[0], [recipient.encode()])
    return tag_message(profile, message, STAMP, Outside(profile.library.reading()))


@pytest.mark.parametrize(
    ("recipient", "beginning"),
    [
        ("boss@sales.example.org", "you@example.org"),
        ("talk@lists.example.net", "you@example.org"),
        ("anna@other.example", "you+dated+1702419200."),
        ("bert@home.example", "you+dated+1731536000."),
        ("alto@choir.example", "you+keyword+choir."),
        ("x@books.example", "you+keyword+books."),
        ("orders@any.example", "you+keyword+orders."),
        ("x@bank.example", "you+sender+"),
        ("x@loans.bank.example", "you+sender+"),
        ("x@company.example", "you+sender+"),
        ("newsletter@any.example", "you+news@example.org"),
        ("friend@any.example", "you+dated+1701209600."),
    ],
)
def test_the_example_tags_as_its_comments_say(files, recipient, beginning):
    (copy,) = tag(files, recipient)
    assert copy.reports[0].sender_after.decode().startswith(beginning)


def test_the_example_of_a_newsletter_has_a_sender_and_answers_of_its_own(files):
    (copy,) = tag(files, "newsletter@any.example")
    assert copy.sender.startswith(b"you+dated+1700259200.")
    assert b"Reply-To: Your Name <you@example.org>\r\n" in copy.header
    assert b"Organization: Example\r\n" in copy.header


def test_a_second_address_is_left_alone(files):
    (copy,) = tag(files, "friend@any.example", b"From: me@club.example\r\n")
    assert copy.sender == b"me@club.example"


def test_who_gets_the_plain_address_by_x_tmda_keeps_it(files, tmp_path):
    copies = tag(files, "new@any.example", b"X-TMDA: bare=append\r\n")
    Errands(files.files, str(tmp_path), 30).append_recipients(copies, files.profile())
    assert (tmp_path / ".tmda/lists/known").read_text() == "new@any.example\n"
    (copy,) = tag(files, "New@any.example")
    assert copy.sender == b"you@example.org"


def test_answers_to_a_list_do_not_come_twice(files):
    (copy,) = tag(files, "talk@lists.example.net", b"To: talk@lists.example.net\r\n")
    assert b"Mail-Followup-To: talk@lists.example.net\r\n" in copy.header


@pytest.mark.parametrize(
    ("login", "address", "allowed"),
    [
        ("bobby", "any@bobby.example", True),
        ("bobby", "any@a.bobby.example", False),
        ("bobby", "sales@example.org", True),
        ("bobby", "chloe@example.org", True),
        ("chloe", "any@club.example", True),
        ("chloe", "any@a.club.example", True),
        ("chloe", "news@example.org", True),
        ("chloe", "sales@example.org", False),
        ("anna@example.com", "info@example.com", True),
    ],
)
def test_the_example_of_senders_allows_what_its_comments_say(login, address, allowed, caplog):
    patterns = parse_senders("senders", (ETC / "senders").read_bytes())[login]
    assert (patterns.first(address.encode()) is not None) == allowed
    assert caplog.messages == []


# The daemon's options


def options_of_the_example():
    """Name, value and the comment above of each option that is commented out."""
    text = (ETC / "tofmipd.conf").read_text()
    return re.findall(r"^((?:# .*\n)*)(?:#\S.*\n)*?#([a-z][a-z0-9-]*) (.*)$", text, re.MULTILINE)


def in_force(monkeypatch):
    """Values of root's daemon without any option."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    settings, given = cli.attempt(["--config=none"])
    lines = [line for line in effective(settings, given) if not line.startswith("# ")]
    return dict(line.removesuffix("  # default").split(" ", 1) for line in lines)


def test_the_example_has_every_option_that_a_file_can_have_and_no_other():
    names = [name for _, name, _ in options_of_the_example()]
    assert sorted(names) == sorted(in_file(make_parser()))


def test_the_example_has_the_defaults_and_says_where_there_is_none(monkeypatch):
    defaults = in_force(monkeypatch) | {"background": "yes"}
    for comment, name, value in options_of_the_example():
        assert from_file(make_parser(), "conf", f"{name} {value}").faults == ()
        if name in defaults:
            assert value == defaults[name]
        else:
            assert "# Default: none" in comment or name == "ssl-key", name


def test_the_example_as_it_is_says_nothing():
    assert configfile.parse((ETC / "tofmipd.conf").read_text()) == ([], [])


def test_each_example_is_named_in_the_list_of_them():
    named = {line.split()[0] for line in (ETC / "README").read_text().splitlines()[2:]}
    for path in (path for path in ETC.rglob("*") if path.is_file() and path.name != "README"):
        parents = {f"{parent}/" for parent in path.relative_to(ETC).parents}
        assert named & {str(path.relative_to(ETC)), *parents}, path
    assert all((ETC / name).exists() for name in named)
