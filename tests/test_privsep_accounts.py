"""Which accounts processes may run as, and what is said of those that are refused."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from tofmipd.errors import CONFIG, Fatal
from tofmipd.privsep.accounts import Account, Admission, NoAccount, service_rights
from tofmipd.privsep.drop import Rights


@pytest.fixture
def accounts(monkeypatch):
    """The system has these accounts and no others."""
    rows = [
        ("root", 0, 0, "root", "/root"),
        ("toor", 0, 100, "", "/root"),
        ("wheel", 1003, 0, "", "/"),
        ("tofmipd", 1500, 1500, "", "/nonexistent"),
        ("low", 999, 999, "", "/"),
        ("first", 1000, 1000, "First User,Room 1,,", "/home/first"),
        ("anna", 1001, 1002, "Anna", "/home/anna"),
    ]
    known = {name: pwd.struct_passwd((name, "x", *row, "/bin/sh")) for name, *row in rows}
    monkeypatch.setattr(pwd, "getpwnam", known.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 2000])


def test_a_missing_service_account_is_told_with_the_commands_that_make_it():
    with pytest.raises(Fatal) as caught:
        service_rights("no-such-account")
    text = str(caught.value)
    assert caught.value.status == CONFIG == 78
    assert "\n" not in text
    for words in (
        "there is no account no-such-account to run as; make it: ",
        "groupadd --system no-such-account; ",
        "useradd --system --gid no-such-account ",
        " (Linux)",
        "pw useradd no-such-account ",
        " (FreeBSD)",
        "-u",
    ):
        assert words in text


@pytest.mark.parametrize("name", ["root", "toor", "wheel"])
def test_the_service_has_nothing_of_root(accounts, name):
    with pytest.raises(Fatal, match=f"-u {name} has the rights of root") as caught:
        service_rights(name)
    assert caught.value.status == CONFIG


def test_the_service_has_the_ids_and_groups_of_its_account(accounts):
    assert service_rights("tofmipd") == Rights("tofmipd", 1500, 1500, (1500, 2000))


def test_an_account_of_this_system_is_found_with_all_its_groups():
    entry = pwd.getpwnam("nobody")
    rights = Admission(1, 12345).account("nobody").rights
    listed = {group.gr_gid for group in grp.getgrall() if "nobody" in group.gr_mem}
    assert (rights.uid, rights.gid) == (entry.pw_uid, entry.pw_gid)
    assert set(rights.groups) == {entry.pw_gid, *listed}


@pytest.mark.parametrize(
    ("name", "full_name", "uid", "gid"),
    [("first", "First User", 1000, 1000), ("anna", "Anna", 1001, 1002)],
)
def test_an_ordinary_account_is_admitted(accounts, name, full_name, uid, gid):
    account = Admission(1000, 1500).account(name)
    assert account == Account(Rights(name, uid, gid, (gid, 2000)), f"/home/{name}", full_name)


@pytest.mark.parametrize(
    ("name", "min_uid", "reason"),
    [
        ("root", 1000, "'root' has the uid or gid of root"),
        ("root", 0, "'root' has the uid or gid of root"),
        ("toor", 0, "'toor' has the uid or gid of root"),
        ("wheel", 1000, "'wheel' has the uid or gid of root"),
        ("low", 1000, "'low' has uid 999, below --min-uid 1000"),
        ("first", 1001, "'first' has uid 1000, below --min-uid 1001"),
        ("tofmipd", 1000, "'tofmipd' is the account of the service itself"),
        ("nobody-here", 1000, "'nobody-here' is no account of this system"),
        ("", 1000, "'' is no account of this system"),
        ("a\nb", 1000, r"'a\nb' is no account of this system"),
    ],
)
def test_all_others_are_refused_with_the_reason_on_one_line(accounts, name, min_uid, reason):
    with pytest.raises(NoAccount) as caught:
        Admission(min_uid, 1500).account(name)
    assert str(caught.value) == reason


@pytest.mark.parametrize("name", ["a\0b", "\udc80", chr(0xD800), "é", "a" * 5000, "/", "-", "0"])
def test_a_name_that_no_account_can_have_is_no_account(name):
    with pytest.raises(NoAccount, match="is no account of this system"):
        Admission(1, 12345).account(name)
