"""`tofmipd user`: one line of the password file is changed, and all others stay."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd import cli
from tofmipd.auth.credentials import Password, Verdict
from tofmipd.auth.passwordfile import PasswordFile, name_in_file, read_passwords, split_line
from tofmipd.commands.user import with_line
from tofmipd.errors import CONFIG, DATA, PERMISSION, TEMPORARY, USAGE

HASHED = b"{SCRYPT}$scrypt$ln=4,r=8,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
SCRAM = b"{SCRAM-SHA-256}4096,c2FsdA==,%s=,%s=" % (b"A" * 43, b"B" * 43)
SCRAM_1 = b"{SCRAM-SHA-1}4096,c2FsdA==,%s=,%s=" % (b"A" * 27, b"B" * 27)
SCHEMES = ["scrypt", "scram-sha-256", "scram-sha-1", "plain"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.touch(0o600)
    return path


@pytest.fixture
def user(path, monkeypatch, capsys):
    """Run the tool for ``path`` with this on standard input; status, output, errors."""

    def user(*words: str | bytes, text: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        password = ["--password-file=-"] if text else []
        arguments = [os.fsdecode(word) for word in words]
        try:
            status = cli.main(["user", "-a", str(path), *password, *arguments])
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    # Without the word at the front, as a person would write it.
    return lambda verb, *words, text=b"": user(verb, *words, text=text)


def right(path, name, password) -> bool:
    verdict = PasswordFile(str(path), os.getuid()).check(Password(name, password))
    return verdict is Verdict.ACCEPTED


# The lines


@pytest.mark.parametrize(
    ("before", "added", "removed"),
    [
        (b"", b"bob:N\n", b""),
        (b"ann:a\n", b"ann:a\nbob:N\n", b"ann:a\n"),
        (b"ann:a", b"ann:a\nbob:N\n", b"ann:a"),
        (b"ann:a\r\n", b"ann:a\r\nbob:N\r\n", b"ann:a\r\n"),
        (b"#c\r\nann:a", b"#c\r\nann:a\r\nbob:N\r\n", b"#c\r\nann:a"),
        (b"bob:b\n", b"bob:N\n", b""),
        (b"bob:b", b"bob:N", b""),
        (b"ann:a\nbob:b", b"ann:a\nbob:N", b"ann:a\n"),
        (b"bob:b\rann:a\r", b"bob:N\rann:a\r", b"ann:a\r"),
        (b" BOB : b \r\n\n# x\n", b"bob:N\r\n\n# x\n", b"\n# x\n"),
        (b"bob:1\n# x\nBob:2\n \nann:a\n", b"# x\nbob:N\n \nann:a\n", b"# x\n \nann:a\n"),
        (b"#bob:b\nbobby:c\n", b"#bob:b\nbobby:c\nbob:N\n", b"#bob:b\nbobby:c\n"),
        ("bo\u00adb:b\n".encode(), b"bob:N\n", b""),
        (b"\xff:\xfe\n\0:x\n", b"\xff:\xfe\n\0:x\nbob:N\n", b"\xff:\xfe\n\0:x\n"),
        (b"\n\n", b"\n\nbob:N\n", b"\n\n"),
    ],
)
def test_one_line_is_changed_and_all_others_stay(before, added, removed):
    assert with_line(before, "bob", b"bob:N") == added
    assert with_line(before, "bob", None) == removed


LINE = st.sampled_from(
    [b"", b" ", b"# bob:x", b"bob:old", b" BoB:\t old", b"ann:a:b", b"\xff:x", b"b\xc3\xbcb:\xfe"]
)
END = st.sampled_from([b"\n", b"\r\n", b"\r"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(LINE, END)), st.booleans())
def test_whatever_the_file_holds_the_others_keep_their_octets(rows, open_end):
    text = b"".join(line + end for line, end in rows)
    text = text.removesuffix(rows[-1][1]) if rows and open_end else text

    def others(text: bytes) -> bytes:
        lines = text.splitlines(keepends=True)
        return b"".join(x for x in lines if (split_line(x) or [b""])[0].lower() != b"bob")

    assert others(with_line(text, "bob", None)) == others(text)
    # An end that was missing may have come.
    added = others(with_line(text, "bob", b"bob:N")).removeprefix(others(text))
    assert added in (b"", b"\n", b"\r\n", b"\r")
    mine = with_line(text, "bob", b"bob:N").splitlines()
    assert mine.count(b"bob:N") == 1
    assert with_line(text, "bob", None).count(b"ob:") == sum(line == b"# bob:x" for line, _ in rows)


# Names and passwords


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("Ann", "ann"),
        ("ann@Example.org", "ann@example.org"),
        ("GRÜßE", "grüße"),
        ("Ａnn", "ann"),
        ("two words", "two words"),
        ("a#b{c}", "a#b{c}"),
        ("x" * 255, "x" * 255),
    ],
)
def test_a_name_is_written_as_a_login_has_it(word, name, user, path):
    assert user("add", word, text=b"FooBar")[0] == 0
    assert list(read_passwords(str(path), os.getuid())) == [name]
    assert right(path, name, b"FooBar")
    assert user("add", name, text=b"FooBar")[0] == DATA
    assert user("del", word) == (0, "", "")
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "word",
    [
        *["", " ", " ann", "ann ", "ann\u00a0", ".ann", "../ann", "a/b", "a:b", "#ann", "a\nb"],
        *["a\x1bb", "a\u202eb", "\u00ad", "x" * 256, b"\xff"],
        # In small letters it is another name than the one that is made of it when the file is read.
        "\u03aa\u0301",
    ],
)
def test_what_can_be_no_login_name_is_refused(word, user, path):
    path.write_bytes(b"bob:b\n")
    for verb in ("add", "passwd", "test"):
        status, out, err = user(verb, word, text=b"FooBar")
        assert (status, out) == (DATA, "")
        assert re.fullmatch(r"tofmipd: .* (cannot be a login name: .*|is not UTF-8)\n", err)
    assert path.read_bytes() == b"bob:b\n"


def test_a_name_may_begin_with_a_dash_where_it_is_only_removed(user, path):
    path.write_bytes(b"-x:a\na/b:c\nbob:b\n")
    assert user("del", "a/b") == (0, "", "")
    assert user("del", "--", "-x") == (0, "", "")
    assert path.read_bytes() == b"bob:b\n"


@pytest.mark.parametrize("password", [b" x", b"x ", b"\tx", b"x\x0b", b" "])
def test_a_blank_at_an_end_is_kept_by_a_hash_and_refused_in_clear_text(password, user, path):
    status, _, err = user("add", "ann", "--scheme=plain", text=password)
    assert (status, path.read_bytes()) == (DATA, b"")
    assert "keeps no blank at an end" in err
    assert user("add", "ann", text=password)[0] == 0
    assert right(path, "ann", password)
    assert not right(path, "ann", password.strip())


PASSWORDS = ["FooBar", "a:b #c", "{SCRYPT}x", "{PLAIN}", "$6$x$y", "{x}", "Grüße\u00a0²", "#"]


@pytest.mark.parametrize("password", [*map(str.encode, PASSWORDS), b"\xff\xfe"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_is_added_with_a_scheme_can_log_in(scheme, password, user, path):
    assert user("add", "Ann", "--scheme", scheme, text=password + b"\n") == (0, "", "")
    assert right(path, "ann", password)
    assert not right(path, "ann", password + b"x")
    assert user("list") == (0, f"ann  {scheme}\n", "")
    assert (password in path.read_bytes()) == (scheme == "plain")
    assert user("test", "ANN", text=password) == (0, "ann: the password is right\n", "")


def test_no_two_entries_have_the_same_salt(user, path):
    for name, scheme in (("a", "scrypt"), ("b", "scrypt"), ("c", "scram-sha-1")):
        user("add", name, f"--scheme={scheme}", text=b"FooBar")
    secrets = list(read_passwords(str(path), os.getuid()).values())
    assert len({getattr(x, "salt", None) or x.verifier.salt for x in secrets}) == 3


# What becomes of the file


@pytest.mark.parametrize(
    ("entry", "options", "scheme", "note"),
    [
        (b"old", [], "plain", r"bob: the password stays in clear text; .*\n"),
        (b"{PLAIN}old", [], "plain", r"bob: the password stays in clear text; .*\n"),
        (b"old", ["--scheme=plain"], "plain", ""),
        (
            b"old",
            ["--scheme=scrypt"],
            "scrypt",
            r"no longer offered: CRAM-MD5, SCRAM-SHA-1, SCRAM-SHA-256 .*\n",
        ),
        (
            b"old",
            ["--scheme=scram-sha-256"],
            "scram-sha-256",
            r"no longer offered: CRAM-MD5, SCRAM-SHA-1 .*\n",
        ),
        (HASHED, [], "scrypt", ""),
        (HASHED, ["--scheme=plain"], "plain", ""),
        (SCRAM, [], "scram-sha-256", ""),
        (SCRAM_1, [], "scram-sha-1", ""),
        (SCRAM, ["--scheme=scram-sha-1"], "scram-sha-1", r"no longer offered: SCRAM-SHA-256 .*\n"),
        (b"", [], "scrypt", r"no longer offered: CRAM-MD5, .*\n"),
    ],
)
def test_a_new_password_is_kept_as_the_old_one_was(entry, options, scheme, note, user, path):
    path.write_bytes(b"bob:x\n# bob\nBob: " + entry + b"\n\n")
    status, out, err = user("passwd", "bob", *options, text=b"FooBar")
    assert (status, out) == (0, "")
    assert re.fullmatch(f"tofmipd user: {note}" if note else "", err)
    assert user("list")[1] == f"bob  {scheme}\n"
    assert right(path, "bob", b"FooBar")
    assert re.fullmatch(rb"# bob\nbob:[^\n]+\n\n", path.read_bytes())


@pytest.mark.parametrize(
    ("before", "scheme", "lost"),
    [
        (b"", "scrypt", ""),
        (b"# nobody\n", "scrypt", ""),
        (b"bob:x\n", "plain", ""),
        (b"bob:x\n", "scrypt", "CRAM-MD5, SCRAM-SHA-1, SCRAM-SHA-256"),
        (b"bob:x\n", "scram-sha-1", "CRAM-MD5, SCRAM-SHA-256"),
        (b"bob:%s\n" % SCRAM, "scram-sha-1", "SCRAM-SHA-256"),
        (b"bob:%s\n" % SCRAM, "scram-sha-256", ""),
        (b"bob:%s\n" % SCRAM, "plain", ""),
        (b"bob:%s\n" % HASHED, "scrypt", ""),
        (b"bob:%s\n" % HASHED, "scram-sha-1", ""),
    ],
)
def test_what_the_others_can_no_longer_use_is_said(before, scheme, lost, user, path):
    path.write_bytes(before)
    old = PasswordFile(str(path), os.getuid()).mechanisms
    err = user("add", "ann", f"--scheme={scheme}", text=b"FooBar")[2]
    said = f"no longer offered: {lost} (not every entry can serve that now)"
    assert err == (f"tofmipd user: {said}\n" if lost else "")
    new = PasswordFile(str(path), os.getuid()).mechanisms
    assert not lost or old - new == {*lost.split(", ")}


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_mode_and_comments_stay_and_nothing_else_is_left(mode, user, path):
    path.write_bytes(b"# some people\r\nbob:x\r\n")
    path.chmod(mode)
    assert user("add", "ann", "--scheme=plain", text=b"FooBar") == (0, "", "")
    assert path.read_bytes() == b"# some people\r\nbob:x\r\nann:FooBar\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_missing_file_is_made_by_add_alone(user, path):
    path.unlink()
    for words in (["passwd", "ann"], ["del", "ann"], ["test", "ann"], ["list"]):
        text = b"" if words[0] in ("del", "list") else b"FooBar"
        status, _, err = user(*words, text=text)
        assert status == CONFIG
        assert err.startswith(f"tofmipd: {path}: no such password file; ")
        assert not any(path.parent.iterdir())
    os.umask(0)
    assert user("add", "ann", text=b"FooBar") == (0, "", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert user("list") == (0, "ann  scrypt\n", "")


def make_readable(path):
    path.chmod(0o640)


def make_broken(path):
    path.write_bytes(b"bob:x\nno colon\n")


def make_unknown(path):
    path.write_bytes(b"bob:{MD5}x\n")


def make_pipe(path):
    path.unlink()
    os.mkfifo(path, 0o600)


def make_directory(path):
    path.unlink()
    path.mkdir(0o600)


def make_somebody_elses(path):
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (make_readable, "mode 0640, must be 0600 or 0400"),
        (make_broken, ":2: no colon in the line"),
        (make_unknown, ":1: unknown scheme {MD5}"),
        (make_pipe, "not a regular file"),
        (make_directory, "Is a directory"),
        pytest.param(make_somebody_elses, "owned by uid 12345", marks=pytest.mark.root),
    ],
)
def test_what_the_daemon_would_not_take_is_not_touched(spoil, words, user, path):
    path.write_bytes(b"bob:x\n")
    spoil(path)
    before = path.stat()
    for verb in ("add", "passwd", "test", "del", "list"):
        name = [] if verb == "list" else ["ann" if verb == "add" else "bob"]
        text = b"" if verb in ("del", "list") else b"FooBar"
        status, out, err = user(verb, *name, text=text)
        assert (status, out) == (CONFIG, "")
        assert words in err
        assert err.count("\n") == 1
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_who_is_there_is_not_added_and_who_is_not_is_not_changed(user, path):
    path.write_bytes(b"bob:x\nempty:\n")
    for words, said in (
        (["add", "BOB"], "there is a user 'bob' already; use 'passwd'"),
        (["add", "empty"], "there is a user 'empty' already; use 'passwd'"),
        (["passwd", "ann"], "there is no user 'ann'; 'list' shows all"),
        (["del", "ann"], "there is no user 'ann'; 'list' shows all"),
    ):
        text = b"" if words[0] == "del" else b"FooBar"
        assert user(*words, text=text) == (DATA, "", f"tofmipd: {path}: {said}\n")
    assert path.read_bytes() == b"bob:x\nempty:\n"


def test_nobody_is_asked_for_a_password_in_vain(user, path, monkeypatch):
    def asked(*arguments: object, **options: object) -> bytes:
        pytest.fail("asked for a password")

    monkeypatch.setattr("tofmipd.commands.user.ask_password", asked)
    path.write_bytes(b"bob:x\n")
    assert user("add", "bob")[0] == user("passwd", "ann")[0] == DATA
    assert user("test", "ann")[0] == PERMISSION


def test_who_came_in_between_is_not_lost(user, path, monkeypatch):
    """Between the question and the answer somebody else has changed the file."""

    def ask(*arguments: object, **options: object) -> bytes:
        path.write_bytes(b"bob:new\n" + (b"ann:other\n" if collides else b""))
        return b"FooBar"

    monkeypatch.setattr("tofmipd.commands.user.ask_password", ask)
    collides = False
    assert user("add", "ann", "--scheme=plain")[0] == 0
    assert path.read_bytes() == b"bob:new\nann:FooBar\n"
    path.write_bytes(b"")
    collides = True
    assert user("add", "ann")[0] == DATA
    assert path.read_bytes() == b"bob:new\nann:other\n"


# What is shown


def test_list_shows_names_and_schemes_and_never_a_secret(user, path):
    path.write_bytes(
        b"# x\nBob:one\nann:%s\nc:%s\nd:%s\ne:{PLAIN}two\nf:\n" % (HASHED, SCRAM, SCRAM_1)
        + b"g\x1b[2J:three\nbob:four\n"
    )
    schemes = ["plain", "scrypt", "scram-sha-256", "scram-sha-1", "plain", "none", "plain"]
    names = ["bob", "ann", "c", "d", "e", "f", "g\x1b[2j"]
    status, out, err = user("list")
    assert (status, err) == (0, "")
    shown = [re.split(" {2,}", line) for line in out.splitlines()]
    assert shown == [[n, s] for n, s in zip([*names[:-1], r"'g\x1b[2j'"], schemes, strict=True)]
    status, out, err = user("list", "--json")
    assert json.loads(out) == {
        "users": [{"name": n, "scheme": s} for n, s in zip(names, schemes, strict=True)]
    }
    path.write_bytes(b"")
    assert user("list") == (0, "", "")
    assert json.loads(user("list", "--json")[1]) == {"users": []}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_generated_password_is_printed_once_and_is_right(scheme, user, path):
    status, out, err = user("add", "ann", "--generate", f"--scheme={scheme}")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"[A-Za-z0-9]{20}\n", out)
    assert right(path, "ann", out.strip().encode())
    assert user("passwd", "ann", "--generate")[1] not in ("", out)
    assert not right(path, "ann", out.strip().encode())


def test_a_password_that_is_not_stored_is_not_shown(user, path):
    path.write_bytes(b"bob:x\n")
    path.chmod(0o644)
    status, out, _ = user("passwd", "bob", "--generate")
    assert (status, out) == (CONFIG, "")


def test_test_says_whether_a_password_is_right(user, path, monkeypatch):
    path.write_bytes(b"bob:x\nempty:\nann:%s\n" % HASHED)
    rows = [
        ("bob", b"x", 0, "bob: the password is right\n", ""),
        ("BOB", b"x\n", 0, "bob: the password is right\n", ""),
        ("bob", b"X", PERMISSION, "", "tofmipd: bob: the password is wrong\n"),
        ("ann", b"x", PERMISSION, "", "tofmipd: ann: the password is wrong\n"),
        ("empty", b"x", PERMISSION, "", "tofmipd: empty: the password is wrong\n"),
        ("zoe", b"x", PERMISSION, "", f"tofmipd: {path}: there is no user 'zoe'\n"),
    ]
    for name, password, *expected in rows:
        assert user("test", name, text=password) == tuple(expected)
    monkeypatch.setattr(PasswordFile, "check", lambda *_: Verdict.UNAVAILABLE)
    status, out, err = user("test", "bob", text=b"x")
    assert (status, out) == (TEMPORARY, "")
    assert "it cannot be told" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the first word is one of add, passwd, test, del, list; see --help"),
        (["ad", "ann"], "the first word is one of add"),
        (["add"], "add takes one NAME"),
        (["add", "ann", "secret"], "a password is asked for, or read from a file"),
        (["list", "ann"], "list takes no NAME"),
        (["list", "--generate"], "list takes no --generate"),
        (["del", "ann", "--scheme=plain"], "del takes no --scheme"),
        (["test", "ann", "--json"], "test takes no --json"),
        (["del", "ann", "--password-file=-"], "del takes no --password-file"),
        (["add", "ann", "--generate", "--password-file=-"], "not allowed with"),
        (["add", "ann", "--scheme=md5"], "invalid choice: 'md5'"),
        (["add", "-x"], "unrecognized arguments: -x"),
    ],
)
def test_wrong_usage_is_one_line(words, said, user, path):
    before = path.stat()
    status, out, err = user(*words) if words else user("--personal")
    assert (status, out) == (USAGE, "")
    assert said in err
    assert err.count("\n") == 1
    assert path.stat() == before


@pytest.mark.parametrize(
    ("uid", "options", "expected"),
    [
        (0, [], "/etc/tofmipd"),
        (0, ["--personal"], "{home}/.tmda/tofmipd"),
        (12345, [], "{home}/.tmda/tofmipd"),
        (12345, ["--personal"], "{home}/.tmda/tofmipd"),
        (12345, ["-a", "~/other"], "{home}/other"),
    ],
)
def test_the_file_is_the_one_of_the_daemon(uid, options, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Nobody has this name, whatever file this machine has.
    assert cli.main(["user", "del", "no:body", *options]) in (DATA, CONFIG)
    assert capsys.readouterr().err.startswith(f"tofmipd: {expected.format(home=tmp_path)}: ")


def test_a_name_of_other_octets_can_be_removed(user, path):
    path.write_bytes(b"\xff:x\nbob:b\n")
    assert name_in_file(b"\xff") == "\ufffd"
    assert user("del", b"\xff") == (0, "", "")
    assert path.read_bytes() == b"bob:b\n"


def test_without_a_name_it_is_the_password_file_of_the_daemon(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    conf = tmp_path / ".config/tofmipd.conf"
    conf.parent.mkdir()
    for text, path in [
        ("pamauth x\nauthfile ~/one\nauthfile ~/two\n", tmp_path / "one"),
        ("size 1\n", tmp_path / ".tmda/tofmipd"),
    ]:
        conf.write_text(text)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"in-{path.name}:x\n")
        path.chmod(0o600)
        assert cli.main(["user", "list", "--personal"]) == 0
        assert capsys.readouterr().out.startswith(f"in-{path.name} ")
