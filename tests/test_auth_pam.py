"""PAM as far as it goes without PAM: where it cannot be used, and what an attempt does.

Services of their own, with accounts, are tried in tests/system.
"""

from __future__ import annotations

import sys
import types

import pytest

from tofmipd.auth import pam
from tofmipd.auth.credentials import NOWHERE, Origin, Password, Verdict
from tofmipd.auth.pam import PamError, attempt, prepare

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
BOBBY = Password("bobby", b"FooBar")


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A directory of services with one of them."""
    monkeypatch.setattr(pam, "_DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(pam, "_ONE_FILE", str(tmp_path / "pam.conf"))
    (tmp_path / "mail").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["", "../mail", "a/b", "/etc/pam.d/mail", "-x", ".x", "a b", "a\n", "ü", "x" * 65, "a\0"],
)
def test_what_is_no_name_of_a_service_is_told_in_one_line(service, name):
    with pytest.raises(PamError, match="is not the name of a PAM service") as caught:
        prepare(name)
    assert str(caught.value).isprintable()


def test_a_service_that_there_is_not_is_told_with_what_mends_it(service):
    with pytest.raises(PamError, match="there is no PAM service tofmipd: make ") as caught:
        prepare("tofmipd")
    assert f"{service}/tofmipd" in str(caught.value)


@pytest.mark.parametrize(("name", "found"), [("other", True), ("othe", False), ("required", False)])
def test_a_service_may_stand_in_the_one_file_of_old(service, name, found, monkeypatch):
    (service / "pam.conf").write_text("# x\n\nother auth required pam_deny.so\n")
    monkeypatch.setitem(sys.modules, "pam", types.SimpleNamespace(PamAuthenticator=object))
    if found:
        prepare(name)
    else:
        with pytest.raises(PamError, match="there is no PAM service"):
            prepare(name)


def test_without_python_pam_it_is_told_what_is_needed(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "pam", None)
    with pytest.raises(PamError, match=r"needs python-pam \(pip install python-pam\)"):
        prepare("mail")


@pytest.mark.parametrize("error", [OSError("no libpam"), AttributeError("x"), TypeError("x")])
def test_a_library_that_cannot_be_used_is_told(service, monkeypatch, error):
    def broken():
        raise error

    monkeypatch.setitem(sys.modules, "pam", types.SimpleNamespace(PamAuthenticator=broken))
    with pytest.raises(PamError, match="the PAM library cannot be used"):
        prepare("mail")


# An attempt.


class Authenticator:
    """Stands for the one of python-pam: calls pam_authenticate, and says what it is told to."""

    answer: tuple[object, int, object] = (True, 0, b"Success")
    calls: list[tuple]

    def __init__(self) -> None:
        type(self).calls = []
        self.code, self.reason = 0, b""
        self.pam_authenticate = lambda handle, flags: self.note("authenticate", flags)
        self.pam_set_item = lambda handle, item, value: self.note("item", item)

    def note(self, *what) -> int:
        self.calls.append(what)
        return 0

    def authenticate(self, user, password, service, resetcreds):
        self.note("ask", user, password, service, resetcreds)
        self.pam_authenticate("handle", 4)
        good, self.code, self.reason = self.answer
        if isinstance(good, Exception):
            raise good
        return good


@pytest.fixture
def authenticator(monkeypatch):
    monkeypatch.setitem(sys.modules, "pam", types.SimpleNamespace(PamAuthenticator=Authenticator))
    return Authenticator


@pytest.mark.parametrize(
    ("answer", "verdict", "words"),
    [
        ((True, 0, b"Success"), YES, ""),
        ((False, 7, b"Authentication failure"), NO, "Authentication failure (7)"),
        ((False, 10, "User not known"), NO, "User not known (10)"),
        ((False, 13, b"expired"), NO, "expired (13)"),
        ((False, 12, b"token expired"), NO, "token expired (12)"),
        ((False, 8, b"too many"), NO, "too many (8)"),
        ((False, 9, b"cannot reach it"), MAYBE, "cannot reach it (9)"),
        ((False, 4, b"system error"), MAYBE, "system error (4)"),
        ((False, 1, b"no module"), MAYBE, "no module (1)"),
        ((False, 99, b"\xff"), MAYBE, "\ufffd (99)"),
        # only both together are a yes
        ((True, 7, b"odd"), NO, "odd (7)"),
        ((True, 4, b"odd"), MAYBE, "odd (4)"),
        ((False, 0, b"odd"), MAYBE, "odd (0)"),
        ((1, 0, b"odd"), MAYBE, "odd (0)"),
        ((None, 0, b"odd"), MAYBE, "odd (0)"),
        ((ValueError("NUL"), 0, b""), NO, "a name or password that PAM cannot have"),
        ((UnicodeError("x"), 0, b""), NO, "a name or password that PAM cannot have"),
    ],
)
def test_what_pam_says_is_a_verdict(authenticator, monkeypatch, answer, verdict, words):
    monkeypatch.setattr(authenticator, "answer", answer)
    assert attempt("mail", BOBBY, NOWHERE) == (verdict, words)


def test_it_is_asked_once_with_no_empty_passwords_and_no_credentials_set(authenticator):
    """PAM_DISALLOW_NULL_AUTHTOK is 1, PAM_RHOST is 4."""
    attempt("mail", BOBBY, Origin("192.0.2.7"))
    assert authenticator.calls == [
        ("ask", "bobby", b"FooBar", "mail", False),
        ("item", 4),
        ("authenticate", 5),
    ]


def test_an_address_that_is_not_known_is_not_told(authenticator):
    attempt("mail", BOBBY, NOWHERE)
    assert [what for what, *_ in authenticator.calls] == ["ask", "authenticate"]
