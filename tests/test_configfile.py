"""The daemon's configuration file as text, and who may have written it."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tofmipd import configfile
from tofmipd.errors import CONFIG, Fatal


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("size 100", "size", "100"),
        ("  size\t 100 \r", "size", "100"),
        ("size=100", "size", "100"),
        ("size = 100", "size", "100"),
        ("spool", "spool", None),
        ("spool # every message", "spool", None),
        ("size 100 # octets", "size", "100"),
        ("log-file /var/log/a#b", "log-file", "/var/log/a#b"),
        ("authprog /bin/check -u 'a b' /bin/true", "authprog", "/bin/check -u 'a b' /bin/true"),
        ("remoteauth ldap://h/uid=%s,dc=x", "remoteauth", "ldap://h/uid=%s,dc=x"),
        ('log-file ""', "log-file", ""),
        ('log-file "/a b # c"', "log-file", "/a b # c"),
        ('log-file "/a" # c', "log-file", "/a"),
        (r'authprog "/c \"x y\" \\ \n"', "authprog", r'/c "x y" \ \n'),
        ('authprog /c "x y" # z', "authprog", '/c "x y"'),
        ("log-file /ä", "log-file", "/ä"),
        ("\ufeffsize 1", "size", "1"),
    ],
)
def test_a_line_is_a_name_and_a_value(text, name, value):
    assert configfile.parse(text) == ([(1, name, value)], [])


@pytest.mark.parametrize("text", ["", "\n\n", "# size 1", "   # x", "#"])
def test_what_says_nothing_is_passed_over(text):
    assert configfile.parse(text) == ([], [])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("= 100", "not OPTION VALUE"),
        ('"size" 100', "not OPTION VALUE"),
        ('log-file "/a', "quotes go around the whole value"),
        ('authprog "/a b" c', "quotes go around the whole value"),
        ('log-file "/a"#b', "quotes go around the whole value"),
        ("log-file /a\0b", "a control character"),
        ("log-file /a\x1b[2Jb", "a control character"),
    ],
)
def test_all_bad_lines_are_told_and_the_others_count(line, words):
    lines, problems = configfile.parse(f"size 1\n{line}\n\n{line}\nspool\n")
    assert [(one.number, one.name) for one in lines] == [(1, "size"), (5, "spool")]
    assert [one.number for one in problems] == [2, 4]
    assert all(words in one.text for one in problems)


@given(st.text())
def test_any_text_is_lines_or_problems(text):
    lines, problems = configfile.parse(text)
    numbers = [one.number for one in (*lines, *problems)]
    assert len(set(numbers)) == len(numbers) <= text.count("\n") + 1


@given(st.text(st.characters(blacklist_categories=("Cc",))))
def test_what_is_written_is_read_again(value):
    assert configfile.parse(configfile.written("name", value)) == ([(1, "name", value)], [])


def test_a_file_that_nobody_has_named_may_be_missing(tmp_path):
    path = str(tmp_path / "missing" / "tofmipd.conf")
    assert configfile.read(path, named=False) is None
    with pytest.raises(Fatal, match="there is no such file; --config names one") as caught:
        configfile.read(path, named=True)
    assert caught.value.status == CONFIG


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tofmipd.conf"
    path.write_text("size 1\n")
    path.chmod(0o644)
    return path


def test_octets_that_are_no_utf_8_stay_what_they_are(file):
    file.write_bytes(b"log-file /\xff\n")
    text = configfile.read(str(file), named=True)
    assert os.fsencode(configfile.parse(text)[0][0].value) == b"/\xff"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.chmod(0o664), "others than root can change it (chown root "),
        (lambda path: path.chmod(0o602), "others than root can change it (chown root "),
        (lambda path: os.chown(path, 1, 0), "others than root can change it (chown root "),
        (lambda path: path.parent.chmod(0o777), "and put another file in its place (chown root "),
        (lambda path: os.chown(path.parent, 1, 0), "and put another file in its place"),
    ],
)
@pytest.mark.root
def test_root_obeys_no_file_that_others_can_change(file, spoil, words):
    assert configfile.read(str(file), named=False) == "size 1\n"
    spoil(file)
    with pytest.raises(Fatal, match=f"^{re.escape(str(file))}: ") as caught:
        configfile.read(str(file), named=False)
    assert words in str(caught.value)
    assert caught.value.status == CONFIG


@pytest.mark.root
def test_root_looks_at_the_directory_that_a_link_leads_to(file, tmp_path_factory):
    link = tmp_path_factory.mktemp("link") / "tofmipd.conf"
    link.symlink_to(file)
    assert configfile.read(str(link), named=False) == "size 1\n"
    file.parent.chmod(0o777)
    with pytest.raises(Fatal, match=f"others than root can change {file.parent},"):
        configfile.read(str(link), named=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "Is a directory|not a regular file"),
        (lambda path: os.mkfifo(path), "not a regular file; --config none"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"#"), "more than 1048576 octets"),
    ],
)
def test_what_is_no_file_of_options_is_refused_at_once(tmp_path, make, words):
    path = tmp_path / "tofmipd.conf"
    make(path)
    with pytest.raises(Fatal, match=words) as caught:
        configfile.read(str(path), named=False)
    assert caught.value.status == CONFIG
