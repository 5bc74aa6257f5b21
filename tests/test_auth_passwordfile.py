"""The password file: its format, who may own it, and what happens when it changes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import statistics
import tempfile
import threading
import time

import pytest
from fakes import (
    ALL_MECHANISMS,
    RFC2195_CHALLENGE,
    RFC2195_DIGEST,
    RFC2195_SECRET,
    ScramClient,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth import passwordfile
from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import CramMd5, Password, Verdict
from tofmipd.auth.hashes import parse_secret, scram_text
from tofmipd.auth.passwordfile import PasswordFile, PasswordFileError, Table, read_passwords
from tofmipd.auth.saslprep import login_name
from tofmipd.auth.scram import ClientFirst, Exchange

YES, NO, MAYBE = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.UNAVAILABLE
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
    found = read_passwords(put(path, text), OWNER)
    assert {name: secret.written for name, secret in found.items()} == passwords


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
    # That is done for nobody's name only; it takes some microseconds.
    monkeypatch.setattr(Table, "_made_up", lambda *arguments: bytes(32))
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


# Hashes beside clear passwords.


def scrypt_of(password, r=1):
    digest = hashlib.scrypt(password, salt=b"salt", n=1 << 10, r=r, p=4, dklen=32)
    parts = (base64.b64encode(part).rstrip(b"=").decode() for part in (b"salt", digest))
    return f"{{SCRYPT}}$scrypt$ln=10,r={r},p=4${'$'.join(parts)}"


def scram_of(password, mechanism="SCRAM-SHA-256"):
    return scram_text(password, b"some salt of its own", mechanism).decode()


ALWAYS = {"PLAIN", "LOGIN"}


@pytest.mark.parametrize(
    ("secrets", "mechanisms"),
    [
        ([], set(ALL_MECHANISMS)),
        (["one"], set(ALL_MECHANISMS)),
        (["one", "{PLAIN}{two}", ""], set(ALL_MECHANISMS)),
        ([scrypt_of(b"x")], ALWAYS),
        (["one", scrypt_of(b"x")], ALWAYS),
        ([scram_of(b"x")], ALWAYS | {"SCRAM-SHA-256"}),
        ([scram_of(b"x"), "one"], ALWAYS | {"SCRAM-SHA-256"}),
        ([scram_of(b"x", "SCRAM-SHA-1"), "one"], ALWAYS | {"SCRAM-SHA-1"}),
        ([scram_of(b"x"), scram_of(b"x", "SCRAM-SHA-1")], ALWAYS),
        ([scram_of(b"x"), scrypt_of(b"x")], ALWAYS),
    ],
)
def test_only_what_every_entry_can_serve_is_offered(path, secrets, mechanisms):
    source = password_file(path, "".join(f"user{n}:{one}\n" for n, one in enumerate(secrets)))
    assert source.mechanisms == mechanisms


def test_what_can_be_served_changes_with_the_file(path):
    source = password_file(path, "bobby:FooBar\n")
    put(path, f"bobby:FooBar\nchloe:{scrypt_of(b'x')}\n")
    assert source.mechanisms == ALWAYS
    put(path, "bobby:FooBar\n")
    assert source.mechanisms == set(ALL_MECHANISMS)
    # a file that is no good changes nothing
    put(path, "bobby\n")
    assert source.mechanisms == set(ALL_MECHANISMS)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bobby:{SHA}secret", "unknown scheme {SHA}"),
        ("bobby: {SCRYPT}secret", "not $scrypt$ln="),
        ("bobby:{SCRAM-SHA-1}1,secret,secret,secret", "parts of a wrong size"),
    ],
)
def test_a_line_whose_hash_is_none_is_an_error_with_its_place(path, line, words):
    put(path, f"chloe:x\n{line}\n")
    with pytest.raises(PasswordFileError) as caught:
        PasswordFile(str(path), OWNER)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_hashed_password_is_accepted_and_no_other_again_and_again(path):
    text = f"bobby:{scrypt_of(b'FooBar')}\nchloe:{scrypt_of(b'FooBar')}\nd:{scram_of(b'd')}\n"
    source = password_file(path, text)
    for _ in range(2):
        for user, password, verdict in (
            ("bobby", b"FooBar", YES),
            ("bobby", b"foobar", NO),
            ("bobby", b"", NO),
            ("chloe", b"FooBar", YES),
            ("nobody", b"FooBar", NO),
            ("d", b"d", YES),
            ("d", b"FooBar", NO),
        ):
            assert source.check(Password(user, password)) is verdict, user


def test_a_password_that_was_right_is_not_hashed_again_as_long_as_the_file_is_the_same(
    path, monkeypatch
):
    source = password_file(path, f"bobby:{scrypt_of(b'FooBar')}\n")
    hashed = []
    real = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *a, **more: hashed.append(1) or real(*a, **more))
    assert [source.check(Password("bobby", b"FooBar")) for _ in range(3)] == [YES] * 3
    assert len(hashed) == 1
    assert [source.check(Password("bobby", b"Wrong")) for _ in range(3)] == [NO] * 3
    assert len(hashed) == 4
    put(path, f"bobby:{scrypt_of(b'new')}\n")
    assert source.check(Password("bobby", b"FooBar")) is NO
    assert source.check(Password("bobby", b"new")) is YES


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("written", ["p\u00e4ss", "pa\u0308ss"])
@pytest.mark.parametrize("typed", ["p\u00e4ss", "pa\u0308ss", "p\u00e4\u00adss"])
def test_a_password_may_be_typed_in_any_form(path, hashed, written, typed):
    """RFC 4013.  Who hashed it may have prepared it, or not."""
    made = scrypt_of(written.encode()) if hashed else written
    source = password_file(path, f"bobby:{made}\n")
    same = not hashed or written == "p\u00e4ss" or typed == written
    assert source.check(Password("bobby", typed.encode())) is (YES if same else NO)
    assert source.check(Password("bobby", b"pass")) is NO


@pytest.mark.parametrize("written", ["", "{PLAIN}", "\u00ad", "\u200b\u00ad"])
def test_nobody_can_log_in_with_a_password_of_which_nothing_is_left(path, written):
    source = password_file(path, f"bobby:{written}\nchloe:x\n")
    for password in (b"", written.encode(), "\u00ad".encode()):
        assert source.check(Password("bobby", password)) is NO
    assert not source.verifier("bobby", "SCRAM-SHA-256")[1]


def test_names_are_looked_up_in_one_form(path):
    source = password_file(path, "JO\u0308RG:one\n\uff22obby:two\n")
    assert source.check(Password(login_name("j\u00d6rg".encode()), b"one")) is YES
    assert source.check(Password("bobby", b"two")) is YES


@pytest.mark.parametrize("password", ["p\u00e4ss", "pa\u0308ss"])
def test_cram_md5_takes_a_password_as_it_is_written_and_prepared(path, password):
    source = password_file(path, "bobby:pa\u0308ss\n")
    digest = hmac.digest(password.encode(), b"<1@x>", "md5").hex().encode()
    assert source.check(CramMd5("bobby", digest, b"<1@x>")) is YES


def test_cram_md5_never_succeeds_for_a_hashed_password(path):
    source = password_file(path, f"bobby:{scrypt_of(b'FooBar')}\n")
    for secret in (b"FooBar", b"", source._key):
        digest = hmac.digest(secret, b"<1@x>", "md5").hex().encode()
        assert source.check(CramMd5("bobby", digest, b"<1@x>")) is NO


def test_too_many_costly_checks_at_a_time_are_unavailable(path, monkeypatch, caplog):
    monkeypatch.setattr(passwordfile, "AT_ONCE", threading.BoundedSemaphore(1))
    text = f"bobby:{scrypt_of(b'FooBar')}\nclear:x\n"
    source = PasswordFile(put(path, text), OWNER, timeout_seconds=0.05)
    with passwordfile.AT_ONCE:
        assert source.check(Password("bobby", b"FooBar")) is MAYBE
        assert source.check(Password("clear", b"x")) is YES
    assert caplog.messages == [f"password file {path} unavailable: too many logins at a time"]
    assert [source.check(Password("bobby", b"FooBar")) for _ in range(2)] == [YES] * 2


def test_no_memory_for_a_hash_is_unavailable_and_leaves_room_for_others(path, monkeypatch, caplog):
    def none_left(*_, **__):
        raise MemoryError

    source = password_file(path, f"bobby:{scrypt_of(b'FooBar')}\n")
    monkeypatch.setattr(hashlib, "scrypt", none_left)
    for _ in range(10):
        assert source.check(Password("bobby", b"FooBar")) is MAYBE
    monkeypatch.undo()
    assert source.check(Password("bobby", b"FooBar")) is YES
    assert "no memory for a hash" in caplog.text


# SCRAM: what a client is told of a user, and of nobody.


def challenge_of(source, user, mechanism="SCRAM-SHA-256"):
    """Salt, iterations, and whether the user is known."""
    verifier, known = source.verifier(user, mechanism)
    return verifier.salt, verifier.iterations, known


FORMS = {
    "clear": "bobby:FooBar\nchloe:x\n",
    "verifiers": f"bobby:{scram_of(b'FooBar')}\nchloe:{scram_of(b'x')}\n",
    "none": "",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_what_is_made_up_for_a_name_is_the_same_after_a_restart(path, text):
    one, other = (password_file(path, text) for _ in range(2))
    names = ["nobody", "somebody", "jörg"]
    for mechanism in ("SCRAM-SHA-1", "SCRAM-SHA-256"):
        made_up = [challenge_of(one, name, mechanism) for name in names]
        assert made_up == [challenge_of(other, name, mechanism) for name in names]
        assert len({salt for salt, _, _ in made_up}) == len(names)
        assert not any(known for _, _, known in made_up)
    # nor does it change with the file, as long as the users are of the same kind
    before = challenge_of(one, "nobody")
    put(path, text + "# more\n")
    assert challenge_of(one, "nobody") == before


@pytest.mark.parametrize("form", ["clear", "verifiers"])
def test_an_unknown_user_has_salt_and_iterations_of_the_same_kind_as_a_known_one(path, form):
    source = password_file(path, FORMS[form])
    real_salt, real_iterations, known = challenge_of(source, "bobby")
    assert known
    for name in ("nobody", "somebody"):
        salt, iterations, known = challenge_of(source, name)
        assert (len(salt), iterations, known) == (len(real_salt), real_iterations, False)
        assert salt != real_salt


def test_two_machines_make_up_different_things(path, monkeypatch):
    salts = set()
    for key in (b"1" * 32, b"2" * 32):
        monkeypatch.setattr(passwordfile, "_lasting_key", lambda path, key=key: key)
        salts.add(challenge_of(password_file(path, "bobby:x\n"), "nobody")[0])
    assert len(salts) == 2


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1", "SCRAM-SHA-256"])
@pytest.mark.parametrize(
    ("user", "password", "verdict"),
    [
        ("bobby", b"FooBar", YES),
        ("bobby", b"Wrong", NO),
        ("hashed", b"FooBar", YES),
        ("hashed", b"Wrong", NO),
        ("umlaut", "p\u00e4ss".encode(), YES),
        ("nobody", b"FooBar", NO),
        ("empty", b"", NO),
    ],
)
def test_scram_against_a_file(path, mechanism, user, password, verdict):
    hashed = scram_of(b"FooBar", mechanism)
    source = password_file(path, f"bobby:FooBar\nhashed:{hashed}\numlaut:pa\u0308ss\nempty:\n")
    for _ in range(2):
        verifier, known = source.verifier(user, mechanism)
        client = ScramClient(mechanism, user.encode(), password)
        exchange = Exchange(ClientFirst.parse(client.first), verifier, b"nonce", known=known)
        answer = exchange.finish(client.final(exchange.challenge), b"")
        assert answer == (client.expected if verdict is YES else None)


@pytest.mark.parametrize("entry", [scrypt_of(b"FooBar"), scram_of(b"FooBar", "SCRAM-SHA-1")])
def test_scram_never_succeeds_with_a_hash_of_another_kind(path, entry):
    source = password_file(path, f"bobby:{entry}\n")
    for password in (b"FooBar", b"", source._key):
        verifier, known = source.verifier("bobby", "SCRAM-SHA-256")
        client = ScramClient("SCRAM-SHA-256", b"bobby", password)
        exchange = Exchange(ClientFirst.parse(client.first), verifier, b"nonce", known=known)
        assert exchange.finish(client.final(exchange.challenge), b"") is None


# Time tells nothing.


def medians(*calls, rounds=25):
    """How long each takes, in seconds; they take turns, so that all have the same conditions."""
    times = [[] for _ in calls]
    for number in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call(number)
            taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


COSTLY = {"scrypt": scrypt_of(b"FooBar", 16), "SCRAM": scram_of(b"FooBar")}


@pytest.mark.parametrize("entry", COSTLY.values(), ids=COSTLY)
def test_a_hash_takes_equally_long_for_an_unknown_user_and_for_a_wrong_password(path, entry):
    """Also for one whose right password was seen before."""
    source = password_file(path, f"bobby:{entry}\nchloe:{entry}\n")
    assert source.check(Password("chloe", b"FooBar")) is YES
    alone, *others = medians(
        lambda n: parse_secret(entry.encode()).matches(b"FooBar"),
        lambda n: source.check(Password("bobby", b"wrong%d" % n)),
        lambda n: source.check(Password("chloe", b"wrong%d" % n)),
        lambda n: source.check(Password(f"nobody{n}", b"wrong")),
    )
    for taken in others:
        assert 0.5 < taken / alone < 2


def test_a_clear_password_takes_equally_long_for_an_unknown_user(path):
    source = password_file(path, "bobby:FooBar\n")
    known, unknown, cram_known, cram_unknown = medians(
        lambda n: source.check(Password("bobby", b"wrong%d" % n)),
        lambda n: source.check(Password(f"nobody{n}", b"wrong")),
        lambda n: source.check(CramMd5("bobby", b"0" * 32, b"<%d@x>" % n)),
        lambda n: source.check(CramMd5(f"nobody{n}", b"0" * 32, b"<1@x>")),
        rounds=200,
    )
    assert abs(known - unknown) < 0.0002
    assert abs(cram_known - cram_unknown) < 0.0002


@pytest.mark.parametrize("entry", ["FooBar", scram_of(b"FooBar")], ids=["clear", "verifier"])
def test_a_challenge_comes_equally_soon_for_an_unknown_user(path, entry):
    """Each name is asked about for the first time: nothing that was made for it can help."""
    text = "".join(f"user{number}:{entry}\n" for number in range(40))
    chain = Chain([password_file(path, text)])
    known, unknown = medians(
        lambda n: chain.exchange("SCRAM-SHA-256", b"n,,n=user%d,r=x" % n),
        lambda n: chain.exchange("SCRAM-SHA-256", b"n,,n=nobody%d,r=x" % n),
        rounds=40,
    )
    assert abs(known - unknown) < 0.0003


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
