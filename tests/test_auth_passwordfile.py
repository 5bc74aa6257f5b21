"""The password file: its format, who may own it, and what happens when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import tempfile
import threading

import pytest
from fakes import RFC2195_CHALLENGE, RFC2195_DIGEST, RFC2195_SECRET
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth import passwordfile
from tofmipd.auth.credentials import CramMd5, Password, Verdict
from tofmipd.auth.passwordfile import PasswordFile, PasswordFileError, read_passwords

YES, NO = Verdict.ACCEPTED, Verdict.REJECTED
OWNER = os.getuid()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tofmipd"


def put(path, text, mode=0o600):
    """Write the file anew, the way an editor does: so that its inode changes."""
    octets = text.encode() if isinstance(text, str) else text
    new = path.with_name("new")
    new.write_bytes(octets)
    new.chmod(mode)
    new.rename(path)
    return str(path)


def password_file(path, text):
    return PasswordFile(put(path, text), OWNER)


@pytest.mark.parametrize(
    ("text", "passwords"),
    [
        ("", {}),
        ("bobby:FooBar\n", {"bobby": b"FooBar"}),
        ("bobby:FooBar", {"bobby": b"FooBar"}),
        ("bobby:FooBar\r\n", {"bobby": b"FooBar"}),
        (
            "bobby:FooBar\nchloe:baz_bap\njohndoe:8i9/hjuy+33\n",
            {"bobby": b"FooBar", "chloe": b"baz_bap", "johndoe": b"8i9/hjuy+33"},
        ),
        ("  bobby \t:\t Foo Bar  \n", {"bobby": b"Foo Bar"}),
        ("bobby:a:b:c\n", {"bobby": b"a:b:c"}),
        ("Bobby:FooBar\n", {"bobby": b"FooBar"}),
        ("bobby:one\nBOBBY:two\n", {"bobby": b"two"}),
        ("# a comment: yes\n\n   \n  # another\nbobby:x\n", {"bobby": b"x"}),
        ("bobby:#x\n", {"bobby": b"#x"}),
        ("bobby:\n", {"bobby": b""}),
        ("bobby@example.org:x\n", {"bobby@example.org": b"x"}),
        ("JÖRG:pä\n", {"jörg": "pä".encode()}),
        (b"bobby:\xff\xfe\n", {"bobby": b"\xff\xfe"}),
    ],
)
def test_a_file_is_lines_of_user_colon_password(path, text, passwords):
    assert read_passwords(put(path, text), OWNER) == passwords


def test_a_line_without_colon_is_an_error_with_its_place_and_its_cure(path):
    put(path, "# users\nbobby:FooBar\n\nsecret-without-user\n")
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    assert str(caught.value).startswith(f"{path}:4: ")
    assert "user:password" in str(caught.value)
    assert f"(edit line 4 of {path})" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_only_the_owner_may_have_rights(path, mode):
    put(path, "bobby:FooBar\n", mode)
    assert PasswordFile(str(path), OWNER).check(Password("bobby", b"FooBar")) is YES


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o700, 0o1600, 0o444, 0o620])
def test_any_other_mode_is_refused_with_the_command_that_mends_it(path, mode):
    put(path, "bobby:FooBar\n", mode)
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    assert f"mode {mode:04o}, must be 0600 or 0400 (chmod 600 {path})" in str(caught.value)


def test_a_foreign_owner_is_refused_with_the_command_that_mends_it(path):
    put(path, "bobby:FooBar\n")
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER + 1)
    assert f"owned by uid {OWNER}, must be owned by uid {OWNER + 1}" in str(caught.value)
    assert f"chown {OWNER + 1} {path}" in str(caught.value)


def test_a_missing_file_is_refused_with_what_makes_one(path):
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    assert str(caught.value).startswith(f"{path}: no such password file")
    assert "tofmipd init" in str(caught.value)


def test_a_directory_is_refused(path):
    path.mkdir(mode=0o700)
    with pytest.raises(PasswordFileError, match=r"directory|not a regular file"):
        PasswordFile(str(path), OWNER)


def test_what_cannot_be_opened_is_refused_with_the_reason(path):
    path.symlink_to(path)
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    assert "cannot be read (Too many levels of symbolic links)" in str(caught.value)
    assert f"readable by uid {OWNER}" in str(caught.value)


def test_an_unreadable_file_is_refused(path):
    put(path, "bobby:FooBar\n", 0o000)
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    # Root may read everything, so there it is refused for its mode.
    assert re.search(r"cannot be read \(Permission denied\)|mode 0000", str(caught.value))


def test_a_pipe_is_refused_instead_of_waiting_for_a_writer(path):
    os.mkfifo(path, 0o600)
    errors = []

    def make():
        try:
            PasswordFile(str(path), OWNER)
        except PasswordFileError as error:
            errors.append(str(error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(0.5)
    waiting = thread.is_alive()
    if waiting:  # let it go on
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        thread.join(2)
    assert not waiting
    assert "not a regular file" in errors[0]


@pytest.mark.parametrize(
    ("credentials", "verdict"),
    [
        (Password("bobby", b"FooBar"), YES),
        (Password("bobby", b"foobar"), NO),
        (Password("bobby", b"FooBar "), NO),
        (Password("bobby", b""), NO),
        (Password("nobody", b"FooBar"), NO),
        (Password("nobody", b""), NO),
        (Password("", b""), NO),
        (Password("empty", b""), NO),
        (CramMd5("tim", RFC2195_DIGEST, RFC2195_CHALLENGE), YES),
        (CramMd5("tim", RFC2195_DIGEST, b"<2@example.org>"), NO),
        (CramMd5("bobby", RFC2195_DIGEST, RFC2195_CHALLENGE), NO),
        (CramMd5("nobody", RFC2195_DIGEST, RFC2195_CHALLENGE), NO),
        (CramMd5("tim", b"", RFC2195_CHALLENGE), NO),
        (CramMd5("tim", b"\xff" * 32, RFC2195_CHALLENGE), NO),
        (CramMd5("empty", hmac.digest(b"", b"<1@x>", "md5").hex().encode(), b"<1@x>"), NO),
    ],
)
def test_only_the_right_password_of_a_known_user_is_accepted(path, credentials, verdict):
    text = f"bobby:FooBar\ntim:{RFC2195_SECRET.decode()}\nempty:\n"
    assert password_file(path, text).check(credentials) is verdict


@pytest.mark.parametrize(
    "make", [lambda user: Password(user, b"Wrong"), lambda user: CramMd5(user, b"0" * 32, b"<1@x>")]
)
def test_an_unknown_user_costs_the_same_work_as_a_wrong_password(path, monkeypatch, make):
    source = password_file(path, "bobby:FooBar\nempty:\n")
    work = []

    def counting(module, name):
        real = getattr(module, name)

        def call(*arguments):
            work.append((name, [len(a) if isinstance(a, bytes) else a for a in arguments[1:]]))
            return real(*arguments)

        monkeypatch.setattr(module, name, call)

    counting(hashlib, "sha256")
    counting(hmac, "digest")
    counting(hmac, "compare_digest")
    seen = {}
    for user in ("bobby", "nobody", "empty"):
        work.clear()
        assert source.check(make(user)) is NO
        seen[user] = list(work)
    assert seen["bobby"]
    assert seen["bobby"] == seen["nobody"] == seen["empty"]


def test_a_change_of_the_file_counts_at_once(path):
    source = password_file(path, "bobby:one\n")
    put(path, "bobby:two\nchloe:three\n")
    assert source.check(Password("bobby", b"one")) is NO
    assert source.check(Password("bobby", b"two")) is YES
    assert source.check(Password("chloe", b"three")) is YES


def test_a_change_in_place_counts_too(path):
    source = password_file(path, "bobby:one\n")
    path.write_text("bobby:three\n")
    assert source.check(Password("bobby", b"three")) is YES


def test_an_unchanged_file_is_not_read_again(path, monkeypatch):
    source = password_file(path, "bobby:one\n")
    reads = []
    real = passwordfile.read_passwords
    monkeypatch.setattr(
        passwordfile, "read_passwords", lambda *arguments: reads.append(1) or real(*arguments)
    )
    for _ in range(5):
        assert source.check(Password("bobby", b"one")) is YES
    assert reads == []


def remove(path):
    path.unlink()


def spoil_mode(path):
    path.chmod(0o644)


def spoil_line(path):
    put(path, "bobby\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove, "no such password file"),
        (spoil_mode, "mode 0644"),
        (spoil_line, ":1: no colon"),
    ],
)
def test_a_file_that_becomes_wrong_leaves_the_old_one_in_force(path, caplog, spoil, words):
    source = password_file(path, "bobby:one\n")
    spoil(path)
    with caplog.at_level(logging.INFO, "tofmipd"):
        for _ in range(3):
            assert source.check(Password("bobby", b"one")) is YES
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert words in record.getMessage()
    # and mended it counts again
    put(path, "bobby:two\n")
    assert source.check(Password("bobby", b"two")) is YES


def test_a_user_in_the_old_and_the_new_file_can_log_in_all_the_time(path):
    source = password_file(path, "bobby:one\n")
    verdicts, stop = set(), threading.Event()

    def ask():
        while not stop.is_set():
            verdicts.add(source.check(Password("bobby", b"one")))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        put(path, f"user{number}:x\nbobby:one\n")
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert verdicts == {YES}
    assert source.check(Password("user99", b"x")) is YES


# Noise


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from([b"bobby", b":", b"#", b"\n", b"\r", b" ", b"\0", b"\xff", b"\x0b"]),
            max_size=20,
        ).map(b"".join),
    )
)
def test_any_octets_are_passwords_or_a_password_file_error(octets):
    with tempfile.NamedTemporaryFile() as file:
        file.write(octets)
        file.flush()
        try:
            passwords = read_passwords(file.name, OWNER)
        except PasswordFileError:
            return
        assert all(name == name.lower() for name in passwords)
