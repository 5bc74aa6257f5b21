"""The sources that settings ask for, and what is told where one cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fakes import ALL_MECHANISMS

from tofmipd.auth.attempts import AttemptSource
from tofmipd.auth.files import SourceFileError, without_waiting
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.auth.sources import attempted, chain_of
from tofmipd.settings import Person, ProgramLimits, Settings, SourceSpec

CLEAR = {"PLAIN", "LOGIN"}


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "tofmipd"
    path.write_text("bobby:FooBar\n")
    path.chmod(0o600)

    def make(*specs, **fields):
        person = Person(os.getuid(), "x", "", str(tmp_path))
        sources = tuple(SourceSpec(kind, text or str(path)) for kind, text in specs)
        return Settings(person, authfile=str(path), sources=sources, **fields)

    return make


def sources_of(settings, attempts=None):
    return chain_of(settings, os.getuid(), without_waiting, attempts)._sources


def nobody(source, credentials, origin, timeout_seconds):
    raise AssertionError("nothing is asked when a source is made")


ROWS = [
    ("file", "", "file", set(ALL_MECHANISMS)),
    ("remote", "imaps://127.0.0.1", "imap", CLEAR),
    ("remote", "pop3://127.0.0.1", "pop3", CLEAR),
    ("remote", "apop://127.0.0.1", "apop", CLEAR),
    ("remote", "ldaps://127.0.0.1/uid=%s", "ldap", CLEAR),
    ("program", "/bin/check -s x -- /bin/true", "checkpassword", CLEAR),
    ("pam", "tofmipd", "pam", CLEAR),
]


@pytest.mark.parametrize(("kind", "text", "name", "mechanisms"), ROWS)
def test_each_kind_has_its_source(settings, kind, text, name, mechanisms):
    if name == "ldap":
        pytest.importorskip("ldap3", reason="ldap3 is not installed")
    (source,) = sources_of(settings((kind, text)), nobody)
    assert (source.name, source.mechanisms) == (name, mechanisms)


def test_without_any_the_password_file_is_the_source(settings):
    (source,) = sources_of(settings())
    assert isinstance(source, PasswordFile)


def test_they_keep_their_order_and_those_of_the_helper_their_numbers(settings):
    specs = [
        ("pam", "one"),
        ("file", ""),
        ("program", "/bin/check"),
        ("pam", "one"),
        ("pam", "two"),
    ]
    made = settings(*specs)
    assert [spec.argument for spec in attempted(made)] == ["one", "/bin/check", "one", "two"]
    asked = []

    def note(source, credentials, origin, timeout_seconds):
        asked.append((source, timeout_seconds))
        return None, ""

    from asked import BOBBY

    sources = sources_of(made, note)
    assert [source.name for source in sources] == ["pam", "file", "checkpassword", "pam", "pam"]
    for source in sources:
        if isinstance(source, AttemptSource):
            source.check(BOBBY)
    # two of the same kind and name are one
    assert [number for number, _ in asked] == [0, 1, 0, 3]


def test_limits_reach_the_sources(settings):
    made = settings(
        ("remote", "imap://127.0.0.1"),
        ("program", "/bin/check"),
        programs=ProgramLimits(source_timeout=0.5, source_attempts=1),
    )
    for source in sources_of(made, nobody):
        assert source._timeout_seconds == 0.5
        assert source._places._initial_value == 1


def test_one_that_has_less_takes_the_others_mechanisms_away(settings):
    chain = chain_of(settings(("file", ""), ("pam", "x")), os.getuid(), without_waiting, nobody)
    assert chain.mechanisms == CLEAR


def test_without_the_library_for_directories_it_is_told_in_one_line(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "ldap3", None)
    monkeypatch.delitem(sys.modules, "tofmipd.auth.ldap", raising=False)
    with pytest.raises(SourceFileError, match=r"-R ldap: needs ldap3 \(pip install ldap3\)"):
        sources_of(settings(("remote", "ldap://h/uid=%s")))


@pytest.mark.parametrize("url", ["imaps://h", "pop3://h", "ldaps://h/uid=%s"])
@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), (b"no PEM", "")])
def test_authorities_that_are_none_are_told_in_one_line(settings, tmp_path, url, content, words):
    if url.startswith("ldap"):
        pytest.importorskip("ldap3", reason="ldap3 is not installed")
    path = tmp_path / "authorities"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceFileError, match="--remoteauth-ca names a PEM file") as caught:
        sources_of(settings(("remote", url), remote_ca=str(path)))
    assert str(caught.value).startswith(f"{path}: cannot be used as authorities (")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_is_not_asked_for_is_not_imported():
    """The libraries for directories, PAM and Argon2 need not be there."""
    code = (
        "import sys\n"
        "for name in ('ldap3', 'pam', 'argon2', 'pyasn1'): sys.modules[name] = None\n"
        "import tofmipd.cli, tofmipd.globalmode, tofmipd.privsep.attempts, tofmipd.auth.sources\n"
        "import tofmipd.auth.passwordfile, tofmipd.auth.pop3, tofmipd.auth.imap, tofmipd.auth.pam\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
