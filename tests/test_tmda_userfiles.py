"""The files of a user: where they are, when they are read again, and what may be wrong."""

from __future__ import annotations

import contextlib
import gc
import os
import sqlite3
import threading

import pytest
from fakes import PATIENCE_SECONDS, wait_for

from tofmipd.commands.userprofile import own_files
from tofmipd.tmda.actions import Action
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import ConfigError, FilterError, KeyFileError, MissingConfig, UserFileError
from tofmipd.tmda.files import stamp
from tofmipd.tmda.userfiles import UserFiles, read_key

KEY_TEXT = "00112233445566778899aabbccddeeff01234567"
KEY = bytes.fromhex(KEY_TEXT)


class Home:
    """A user's home directory with a key, and what else a test writes."""

    def __init__(self, path):
        self.path = path
        self.config = path / ".tmda/config"
        self.key = path / ".tmda/crypt_key"
        self.filter = path / ".tmda/filters/outgoing"
        self.site = path / "tmdarc"
        self.count = path / "count"
        self.filter.parent.mkdir(parents=True)
        self.write(self.key, KEY_TEXT + "\n")

    def write(self, path, text, mode=0o600):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)

    def replace(self, path, text):
        """As editors do it: a new file takes the place of the old one."""
        new = path.with_name(path.name + ".new")
        self.write(new, text)
        os.replace(new, path)

    def write_counted(self, text=""):
        """A configuration that notes each time it is executed."""
        self.write(self.config, f"open({str(self.count)!r}, 'a').write('x')\n{text}")

    def reads(self):
        return len(self.count.read_text()) if self.count.exists() else 0

    def files(self, config_path=None, **options):
        around = Surroundings(str(self.path), "alice", "Alice Liddell", "mail.example.com")
        path = str(self.config) if config_path is None else config_path
        return UserFiles(path, around, **options)

    def profile(self, **options):
        return self.files(**options).profile()

    def error(self, **options):
        with pytest.raises(UserFileError) as caught:
            self.profile(**options)
        return caught.value


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


# Where they are


def test_a_profile_is_configuration_key_and_filter(home):
    home.write(home.config, 'USERNAME = "al"\nRECIPIENT_DELIMITER = "+"\nHMAC_BYTES = 5\n')
    home.write(home.filter, "to * sender\n")
    profile = home.profile()
    assert profile.config.username == "al"
    assert profile.config.origin == str(home.config)
    assert (profile.tags.key, profile.tags.hmac_bytes) == (KEY, 5)
    assert profile.tags.recipient_delimiter == b"+"
    match = profile.filter.find(b"bob@x.example", b"al@mail.example.com")
    assert match.actions == (("from", Action("sender")),)


def test_every_name_of_the_tags_reaches_the_cookies(home):
    home.write(
        home.config,
        "TAGS_CONFIRM = ['c']\nTAGS_DATED = ['d', 'dated']\nTAGS_KEYWORD = ['kéy']\n"
        "TAGS_SENDER = ['s']\nDATED_TIMEOUT = '2w'\n",
    )
    tags = home.profile().tags
    assert (tags.tags_confirm, tags.tags_dated) == ((b"c",), (b"d", b"dated"))
    assert (tags.tags_keyword, tags.tags_sender) == (("kéy".encode(),), (b"s",))
    assert tags.dated_timeout == "2w"


def test_without_a_configuration_all_defaults_hold(home):
    profile = home.profile()
    assert profile.config.action_outgoing == Action("dated")
    assert profile.filter.rules == ()


def test_a_configuration_can_be_required(home):
    files = home.files(required=True)
    for _ in range(2):
        with pytest.raises(MissingConfig) as caught:
            files.profile()
        assert caught.value.path == str(home.config)
    home.write(home.config, "HMAC_BYTES = 4\n")
    assert files.profile().config.hmac_bytes == 4


def test_a_tilde_is_the_home_of_the_user_whatever_home_says(home, monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    (home.path / "d/filters").mkdir(parents=True)
    home.write(home.path / "d/crypt_key", "ff" * 20)
    home.write(home.path / "rules", "to * bare\n")
    home.write(home.config, 'DATADIR = "~/d"\nFILTER_OUTGOING = "~/rules"\n')
    profile = home.profile()
    assert profile.tags.key == b"\xff" * 20
    assert profile.filter.path == str(home.path / "rules")
    assert len(profile.filter.rules) == 1


def test_a_filter_in_any_encoding_is_matched_as_octets(home):
    home.write(home.filter, b"to \xe9t\xe9@x.example bare\nto \xc3\xa9@x.example sender\n")
    rules = home.profile().filter
    assert rules.find(b"\xe9t\xe9@x.example", b"").rule.place.line == 1
    assert rules.find("é@x.example".encode(), b"").rule.place.line == 2
    assert rules.find(b"\xe9@x.example", b"") is None


# The site's file


def test_the_users_file_wins_over_the_sites_and_can_use_its_names(home):
    home.write(home.site, 'HMAC_BYTES = 7\nDATED_TIMEOUT = "1d"\nDOMAIN = "corp.example"\n')
    home.write(home.config, 'DATED_TIMEOUT = "2d"\nHOSTNAME = "mail." + DOMAIN\n')
    config = home.profile(site_path=str(home.site)).config
    assert (config.hmac_bytes, config.dated_timeout) == (7, "2d")
    assert config.hostname == "mail.corp.example"


@pytest.mark.parametrize("site", [None, "nowhere"])
def test_a_missing_file_of_the_site_does_no_harm(home, site):
    home.write(home.config, "HMAC_BYTES = 4\n")
    site_path = site and str(home.path / site)
    assert home.profile(site_path=site_path).config.hmac_bytes == 4


@pytest.mark.parametrize(
    ("asked", "site", "found"),
    [
        ("~/asked", "TMDARC = '~/own'\n", "asked"),
        ("", "TMDARC = '~/own'\n", "own"),
        ("", "TMDARC = ''\n", ".tmda/config"),
        ("", "", ".tmda/config"),
    ],
)
def test_the_site_can_say_where_the_users_file_is_unless_told_otherwise(home, asked, site, found):
    home.write(home.site, site)
    for name in (".tmda/config", "own", "asked"):
        home.write(home.path / name, f"FULLNAME = {name!r}\n")
    config = home.profile(config_path=asked, site_path=str(home.site)).config
    assert (config.fullname, config.origin) == (found, str(home.path / found))


@pytest.mark.parametrize("word", ["False", "No", "off", "0", "'0'"])
def test_the_site_can_forbid_programs(home, word):
    home.write(home.site, f"CONFIG_EXEC = {word}\n")
    home.write(
        home.config,
        "[TMDA_CONFIG]\nallow_mode_640 = False\nHMAC_BYTES = 10\nUSERNAME = bob\n",
    )
    config = home.profile(site_path=str(home.site)).config
    assert (config.allow_mode_640, config.hmac_bytes, config.username) == (False, 10, "bob")


def test_a_program_that_the_site_forbids_is_not_executed(home):
    home.write(home.site, "CONFIG_EXEC = False\n")
    home.write_counted()
    error = home.error(site_path=str(home.site))
    assert isinstance(error, ConfigError)
    assert (error.path, error.line) == (str(home.config), 1)
    assert home.reads() == 0


def test_an_error_in_the_sites_file_is_reported_as_there(home):
    home.write(home.site, "X = 1\nX = Y\n")
    home.write(home.config, "")
    error = home.error(site_path=str(home.site))
    assert (error.path, error.line) == (str(home.site), 2)


@pytest.mark.parametrize("own", ["", "# mine\nUSERNAME = 'al'\n", None])
def test_a_wrong_value_in_the_sites_file_is_not_blamed_on_the_user(home, own):
    home.write(home.site, "\nHMAC_BYTES = 'three'\n")
    if own is not None:
        home.write(home.config, own)
    error = home.error(site_path=str(home.site))
    assert (error.path, error.line) == (str(home.site), 2)


@pytest.mark.parametrize("word", ["True", "False"])
def test_the_literal_form_runs_nothing_whatever_the_site_says(home, word):
    home.write(home.site, f"CONFIG_EXEC = {word}\n")
    home.write_counted()
    error = home.error(form="literal", site_path=str(home.site))
    assert (error.path, error.line) == (str(home.config), 1)
    assert home.reads() == 0
    home.write(home.config, 'USERNAME = "bob"\n')
    config = home.profile(form="literal", site_path=str(home.site)).config
    assert config.username == "bob"


# The key


@pytest.mark.parametrize(
    ("mode", "allowed", "allowed_640"),
    [
        (0o400, True, True),
        (0o600, True, True),
        (0o640, False, True),
        (0o440, False, False),
        (0o644, False, False),
        (0o604, False, False),
        (0o660, False, False),
        (0o700, False, False),
        (0o000, False, False),
        (0o4600, False, False),
        (0o1600, False, False),
    ],
    ids=oct,
)
@pytest.mark.parametrize("allow_mode_640", [False, True])
def test_only_the_owner_may_read_the_key(home, mode, allowed, allowed_640, allow_mode_640):
    home.key.chmod(mode)
    if mode == 0 and os.getuid() != 0:
        pytest.skip("needs root to open it at all")
    if allowed_640 if allow_mode_640 else allowed:
        assert read_key(str(home.key), allow_mode_640) == KEY
        return
    with pytest.raises(KeyFileError) as caught:
        read_key(str(home.key), allow_mode_640)
    modes = "0400 or 0600 or 0640" if allow_mode_640 else "0400 or 0600"
    assert f"mode {mode:04o}, must be {modes}" in str(caught.value)
    assert str(caught.value).startswith(f"{home.key}: ")


def test_the_configuration_can_allow_its_group_to_read_the_key(home):
    home.key.chmod(0o640)
    assert isinstance(home.error(), KeyFileError)
    home.write(home.config, "ALLOW_MODE_640 = True\n")
    assert home.profile().tags.key == KEY


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (KEY_TEXT, KEY),
        (KEY_TEXT.upper(), KEY),
        (f" \t{KEY_TEXT}\r\n\n", KEY),
        ("ab", b"\xab"),
        ("00" * 80, b"\x00" * 80),
    ],
)
def test_a_key_is_hexadecimal_digits_of_any_number(home, text, key):
    home.write(home.key, text)
    assert read_key(str(home.key)) == key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("abc", "not an even number of hexadecimal digits"),
        ("zz", "not an even number of hexadecimal digits"),
        ("0x" + KEY_TEXT, "not an even number of hexadecimal digits"),
        ("0011 2233", "not an even number of hexadecimal digits"),
        ("0011\n2233", "not an even number of hexadecimal digits"),
        (b"\xff\x00", "not an even number of hexadecimal digits"),
        (KEY_TEXT + "g", "not an even number of hexadecimal digits"),
    ],
)
def test_a_key_that_is_none_is_refused_without_showing_it(home, text, says):
    home.write(home.key, text)
    error = home.error()
    assert isinstance(error, KeyFileError)
    assert error.path == str(home.key)
    assert error.problem.startswith(says)
    assert KEY_TEXT not in str(error)


def test_a_missing_key_is_refused_with_the_way_to_make_one(home):
    home.key.unlink()
    error = home.error()
    assert isinstance(error, KeyFileError)
    assert str(error) == f"{home.key}: missing; make one with 'tofmipd keygen'"


def test_a_key_may_stand_behind_a_link(home):
    home.key.rename(home.path / "real")
    home.key.symlink_to(home.path / "real")
    assert home.profile().tags.key == KEY


# What may be wrong


@pytest.mark.parametrize(
    ("name", "kind"), [("config", ConfigError), ("key", KeyFileError), ("filter", FilterError)]
)
def test_a_directory_in_the_place_of_a_file_is_reported(home, name, kind):
    path = getattr(home, name)
    path.unlink(missing_ok=True)
    path.mkdir()
    error = home.error()
    assert isinstance(error, kind)
    assert error.path == str(path)
    assert "directory" in error.problem


def lowest_free_descriptor():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("name", ["config", "key", "filter"])
def test_a_directory_in_the_place_of_a_file_costs_no_descriptor(home, name):
    path = getattr(home, name)
    path.unlink(missing_ok=True)
    path.mkdir()
    before = lowest_free_descriptor()
    for _ in range(3):
        home.error()
    assert lowest_free_descriptor() == before


def test_a_pipe_in_the_place_of_the_key_does_not_hang(home):
    home.key.unlink()
    os.mkfifo(home.key, 0o600)
    assert isinstance(home.error(), KeyFileError)


@pytest.mark.parametrize("name", ["CRYPT_KEY_FILE", "FILTER_OUTGOING", "DATADIR"])
@pytest.mark.parametrize("path", [r"/a\0b", r"/a\ud800b"])
def test_a_path_that_no_file_can_have_is_an_error_of_the_files(home, name, path):
    home.write(home.config, f"{name} = '{path}'\n")
    assert isinstance(home.error(), UserFileError)


def test_an_error_of_the_filter_names_its_file_and_lines(home):
    home.write(home.filter, "to * bare\nto * bogus\n\nnonsense\n")
    error = home.error()
    assert isinstance(error, FilterError)
    assert (error.path, error.line) == (str(home.filter), 2)
    assert [other.line for other in error.others] == [4]


def test_an_error_in_brief_shows_no_path_outside_the_directory(home):
    home.write(home.config, "X = Y\n")
    assert home.error().brief(str(home.path / ".tmda")).startswith("config line 1: NameError")
    home.write(home.config, f"CRYPT_KEY_FILE = '{home.path}/secrets/key'\n")
    assert home.error().brief(str(home.path / ".tmda")).startswith("key: missing")


@pytest.mark.parametrize(
    ("name", "broken", "mended"),
    [
        ("config", "HMAC_BYTES = 'x'\n", "HMAC_BYTES = 4\n"),
        ("config", "import nowhere_to_be_found\n", ""),
        ("filter", "to * bogus\n", "to * bare\n"),
        ("key", "zz", "00"),
    ],
)
def test_mending_a_file_mends_the_error(home, name, broken, mended):
    path = getattr(home, name)
    files = home.files()
    home.write(path, broken)
    for _ in range(2):
        with pytest.raises(UserFileError) as caught:
            files.profile()
        assert caught.value.path == str(path)
    home.replace(path, mended)
    assert files.profile() is files.profile()
    home.replace(path, broken)
    with pytest.raises(UserFileError):
        files.profile()


def test_a_key_file_that_was_missing_is_found_when_it_is_made(home):
    home.key.unlink()
    files = home.files()
    with pytest.raises(KeyFileError):
        files.profile()
    home.write(home.key, KEY_TEXT)
    assert files.profile().tags.key == KEY


# When they are read again


def test_files_that_have_not_changed_are_read_once(home):
    home.write_counted()
    home.write(home.filter, "to * bare\n")
    home.write(home.site, "")
    files = home.files(site_path=str(home.site))
    profiles = {id(files.profile()) for _ in range(5)}
    assert len(profiles) == 1
    assert home.reads() == 1


def touched(home, path):
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))


def replaced_by_as_many_octets(home, path):
    times = path.stat()
    home.replace(path, path.read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def made_longer_at_the_same_time(home, path):
    times = path.stat()
    path.write_bytes(path.read_bytes() + b"\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def given_another_mode(home, path):
    path.chmod(0o400)


@pytest.mark.parametrize("name", ["config", "key", "filter", "site"])
@pytest.mark.parametrize(
    "change",
    [
        touched,
        replaced_by_as_many_octets,
        made_longer_at_the_same_time,
        given_another_mode,
    ],
)
def test_a_change_of_any_file_makes_all_be_read_again_once(home, name, change):
    home.write_counted()
    home.write(home.filter, "to * bare\n")
    home.write(home.site, "X = 1\n")
    files = home.files(site_path=str(home.site))
    before = files.profile()
    change(home, getattr(home, name))
    after = files.profile()
    assert after is not before
    assert files.profile() is after
    assert home.reads() == 2


def test_what_changed_holds_at_once(home):
    home.write(home.config, "HMAC_BYTES = 4\n")
    home.write(home.filter, "to * bare\n")
    files = home.files()
    assert files.profile().config.hmac_bytes == 4
    home.replace(home.config, "HMAC_BYTES = 5\n")
    assert files.profile().config.hmac_bytes == 5
    assert files.profile().tags.hmac_bytes == 5
    home.replace(home.filter, "to * kw=k\n")
    assert files.profile().filter.rules[0].text == "to * tag from kw=k"
    home.replace(home.key, "ff")
    assert files.profile().tags.key == b"\xff"
    home.key.chmod(0o644)
    with pytest.raises(KeyFileError):
        files.profile()
    home.key.chmod(0o600)
    assert files.profile().tags.key == b"\xff"


def test_files_that_appear_or_go_are_noticed(home):
    files = home.files(site_path=str(home.site))
    assert files.profile().config.hmac_bytes == 3
    home.write(home.config, "HMAC_BYTES = 4\n")
    assert files.profile().config.hmac_bytes == 4
    home.write(home.site, "USERNAME = 'site'\n")
    assert files.profile().config.username == "site"
    home.write(home.filter, "to * bare\n")
    assert len(files.profile().filter.rules) == 1
    home.filter.unlink()
    assert files.profile().filter.rules == ()
    home.config.unlink()
    assert files.profile().config.hmac_bytes == 3


def test_a_file_that_is_no_longer_named_is_no_longer_watched(home):
    home.write(home.config, "FILTER_OUTGOING = '~/one'\n")
    home.write(home.path / "one", "to * bare\n")
    files = home.files()
    files.profile()
    home.replace(home.config, "FILTER_OUTGOING = '~/two'\n")
    profile = files.profile()
    home.replace(home.path / "one", "nonsense\n")
    assert files.profile() is profile


def test_a_stamp_tells_a_file_from_none(home):
    assert stamp(str(home.key)) == stamp(str(home.key))
    assert stamp(str(home.path / "nowhere")) is None
    assert stamp(str(home.key / "below a file")) is None


def test_many_threads_at_once_read_the_files_once(home):
    home.write_counted()
    files = home.files()
    start, seen = threading.Barrier(8), []

    def ask():
        start.wait(timeout=10)
        seen.append(files.profile())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(seen) == 8
    assert all(profile is seen[0] for profile in seen)
    assert home.reads() == 1


# What a filter names besides


@pytest.mark.parametrize("name", ["one", "~/two", "~/deep/er/three"])
def test_a_file_that_the_filter_includes_is_watched(home, name):
    path = home.path / name.removeprefix("~/")
    path.parent.mkdir(parents=True, exist_ok=True)
    home.write(path, "to * ext=a\n")
    home.write(home.filter, f"include {name}\n")
    files = home.files()
    before = files.profile()
    assert before.filter.rules[0].text == "to * tag from ext=a"
    assert files.profile() is before
    home.replace(path, "to * ext=b\n")
    assert files.profile().filter.rules[0].text == "to * tag from ext=b"
    path.unlink()
    with pytest.raises(FilterError, match="there is no file"):
        files.profile()
    home.write(path, "to * ext=c\n")
    assert files.profile().filter.rules[0].text == "to * tag from ext=c"


def test_a_file_that_may_miss_is_noticed_when_it_appears_and_when_it_goes(home):
    home.write(home.filter, "include -optional ~/more\nto * bare\n")
    files = home.files()
    assert len(files.profile().filter.rules) == 1
    home.write(home.path / "more", "to a@x ext=a\n")
    assert len(files.profile().filter.rules) == 2
    (home.path / "more").unlink()
    assert len(files.profile().filter.rules) == 1


def decided(profile, recipient=b"bob@x"):
    match = profile.filter.find(recipient, b"alice@x", profile.library.reading())
    return match and match.text


def test_a_list_is_read_again_when_it_changes_and_the_configuration_is_not(home):
    home.write_counted()
    home.write(home.filter, "to-file ~/list bare\n")
    home.write(home.path / "list", "eve@x\n")
    files = home.files()
    profile = files.profile()
    assert decided(profile) is None
    home.replace(home.path / "list", "eve@x\nbob@x ext=a\n")
    assert files.profile() is profile
    assert decided(profile) == "to-file ~/list tag from ext=a"
    home.replace(home.path / "list", "eve@x\n")
    assert decided(profile) is None
    (home.path / "list").unlink()
    with pytest.raises(FilterError, match="there is no file"):
        decided(profile)
    assert home.reads() == 1


def test_one_message_sees_one_state_of_a_list(home):
    home.write(home.filter, "to-file ~/list ext=list\nto * bare\n")
    home.write(home.path / "list", "bob@x\n")
    profile = home.profile()
    lists = profile.library.reading()
    assert profile.filter.find(b"bob@x", b"a@x", lists).text.startswith("to-file")
    home.replace(home.path / "list", "eve@x\n")
    assert profile.filter.find(b"bob@x", b"a@x", lists).text.startswith("to-file")
    assert decided(profile) == "to * tag from bare"


# MAIL_FOLLOWUP_TO


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        (b"", set()),
        (b"l@x\n", {b"l@x"}),
        (b"l@x", {b"l@x"}),
        (b"  L@X \t\r\n\n\nm@x\n", {b"l@x", b"m@x"}),
        # Every line counts; nothing is a comment.
        (b"# mine\nl@x # list\n", {b"# mine", b"l@x # list"}),
        (b"\xfc@x\n", {b"\xfc@x"}),
    ],
)
def test_lists_to_follow_up_to_are_the_lines_of_a_file(home, text, lists):
    home.write(home.config, "MAIL_FOLLOWUP_TO = '~/lists'\n")
    home.write(home.path / "lists", text)
    assert home.profile().followup == lists


def test_lists_to_follow_up_to_may_be_in_the_configuration(home):
    home.write(home.config, "MAIL_FOLLOWUP_TO = ['L@X', ' m@x ', '', 'j\u00fc@x']\n")
    assert home.profile().followup == {b"l@x", b"m@x", "jü@x".encode()}


def test_a_file_of_lists_is_read_again_when_it_changes_and_may_miss(home):
    home.write(home.config, "MAIL_FOLLOWUP_TO = '~/lists'\n")
    files = home.files()
    assert files.profile().followup == frozenset()
    home.write(home.path / "lists", "l@x\n")
    assert files.profile().followup == {b"l@x"}
    home.replace(home.path / "lists", "l@x\nm@x\n")
    assert files.profile().followup == {b"l@x", b"m@x"}
    assert files.profile() is files.profile()
    (home.path / "lists").unlink()
    assert files.profile().followup == frozenset()


def test_a_file_of_lists_that_cannot_be_read_is_an_error(home):
    home.write(home.config, "MAIL_FOLLOWUP_TO = '~/lists'\n")
    (home.path / "lists").mkdir()
    error = home.error()
    assert (error.path, error.problem) == (
        str(home.path / "lists"),
        "cannot be read: Is a directory",
    )


# Databases

OPEN = """\
import sqlite3
with open({count!r}, "a") as file:
    file.write("x")
DB_CONNECTION = sqlite3.connect({path!r})
"""
ASK = "to-sql -wildcards 'SELECT who, action FROM friends' bare\n"


@pytest.fixture
def database(home):
    """A home whose configuration opens a database; gives a connection to it."""
    path = str(home.path / "friends.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE friends (who TEXT, action TEXT)")
        connection.execute("INSERT INTO friends VALUES ('bob@x', 'ext=friend')")
        connection.commit()
        home.write(home.config, OPEN.format(count=str(home.count), path=path))
        home.write(home.filter, ASK)
        yield connection


def database_threads():
    return sum(thread.name == "database" for thread in threading.enumerate())


@pytest.fixture
def no_thread_is_left():
    """Threads of databases that nobody uses any more end."""
    gc.collect()
    before = database_threads()
    yield
    gc.collect()
    wait_for(lambda: database_threads() <= before)


FOUND = f"{ASK.partition(' bare')[0].replace(chr(39), '')} tag from ext=friend"


def test_a_connection_of_the_configuration_serves_all_threads(home, database, no_thread_is_left):
    """sqlite3 lets only that thread use a connection which has opened it."""
    files = home.files()
    start, found = threading.Barrier(8), []

    def ask():
        start.wait(PATIENCE_SECONDS)
        found.extend(decided(files.profile()) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert found == [FOUND] * 40
    assert home.reads() == 1


def test_rows_that_change_count_at_once(home, database, no_thread_is_left):
    profile = home.profile()
    assert decided(profile, b"eve@x") is None
    database.execute("INSERT INTO friends VALUES ('eve@x', NULL)")
    database.commit()
    assert decided(profile, b"eve@x").endswith(" tag from bare")
    database.execute("DELETE FROM friends")
    database.commit()
    assert decided(profile, b"eve@x") is None


def test_a_connection_that_failed_is_opened_again_by_the_configuration(
    home, database, no_thread_is_left
):
    files = home.files()
    first = files.profile()
    database.execute("ALTER TABLE friends RENAME TO away")
    database.commit()
    with pytest.raises(FilterError, match="the database says OperationalError: no such table"):
        decided(first)
    database.execute("ALTER TABLE away RENAME TO friends")
    database.commit()
    second = files.profile()
    assert second is not first
    assert decided(second) == FOUND
    assert files.profile() is second
    assert home.reads() == 2
    # A message that is still on its way with the old one is served as well.
    assert decided(first) == FOUND


@pytest.mark.parametrize("times", [1, 5])
def test_each_change_of_the_configuration_ends_the_thread_of_the_old_connection(
    home, database, no_thread_is_left, times
):
    files = home.files()
    before = database_threads()
    profile = files.profile()
    text = home.config.read_text()
    for number in range(times):
        assert decided(profile) == FOUND
        home.replace(home.config, f"{text}# {number}\n")
        profile = files.profile()
    gc.collect()
    wait_for(lambda: database_threads() == before + 1)
    assert decided(profile) == FOUND
    assert home.reads() == times + 1


def test_a_configuration_that_opens_no_database_keeps_no_thread(home, no_thread_is_left):
    before = database_threads()
    files = home.files()
    profile = files.profile()
    wait_for(lambda: database_threads() <= before)
    home.write(home.filter, ASK)
    with pytest.raises(FilterError, match="opens no database: set DB_CONNECTION"):
        decided(files.profile())
    assert profile.library.database is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config", "import sqlite3\nDB_CONNECTION = sqlite3.connect(':memory:')\n1 / 0\n"),
        ("config", "1 / 0\n"),
        ("config", "HMAC_BYTES = 'x'\n"),
        ("config", "raise SystemExit\n"),
        ("config", "DB_CONNECTION = 5\n"),
        ("key", "zz"),
        ("filter", "nonsense\n"),
    ],
)
def test_files_with_errors_leave_no_thread_behind(home, database, no_thread_is_left, name, text):
    files = home.files()
    home.write(getattr(home, name), text)
    for _ in range(3):
        with pytest.raises(UserFileError):
            files.profile()


def test_a_connection_ends_with_its_user(home, database, no_thread_is_left):
    log = str(home.path / "log")
    home.write(
        home.config,
        f"""\
import sqlite3
class Noting(sqlite3.Connection):
    def close(self):
        with open({log!r}, "a") as file:
            file.write("closed ")
        super().close()
DB_CONNECTION = sqlite3.connect({str(home.path / "friends.db")!r}, factory=Noting)
""",
    )
    files = home.files()
    assert decided(files.profile()) == FOUND
    assert not os.path.exists(log)
    del files
    gc.collect()
    wait_for(lambda: os.path.exists(log))


# Of users whose rights cannot be taken


def literal(home, **options):
    return home.files(form="literal", **options)


def refused(home, says, **options):
    """The error of the files, or of what they name."""
    with pytest.raises(UserFileError) as caught:
        decided(literal(home, **options).profile())
    assert says in str(caught.value)
    return caught.value


@pytest.fixture
def outside(tmp_path_factory):
    """A directory beside the home with files that others would like to read."""
    path = tmp_path_factory.mktemp("outside")
    for name in ("file", "config", "crypt_key"):
        (path / name).write_text("ee" * 20 + "\n")
        (path / name).chmod(0o600)
    (path / "subscribers").mkdir()
    (path / "subscribers/a").write_text("Tbob@x\0")
    return path


PATHS = ["BARE_APPEND", "CRYPT_KEY_FILE", "DATADIR", "FILTER_OUTGOING", "LOGFILE_OUTGOING"]
PATHS += ["MAIL_FOLLOWUP_TO", "SMTPSSL_CAFILE", "SMTPSSL_CERTFILE", "SMTPSSL_KEYFILE"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("way", ["absolute", "dots", "link", "directory link", "of another user"])
def test_no_setting_of_a_virtual_user_leads_out_of_his_home(home, outside, name, way):
    (home.path / "link").symlink_to(outside / "file")
    (home.path / "way").symlink_to(outside)
    path = {
        "absolute": str(outside / "file"),
        "dots": os.path.relpath(outside / "file", home.path),
        "link": "~/link",
        "directory link": "~/way/file",
        "of another user": "~root/file",
    }[way]
    home.write(home.config, f"# mine\n{name} = {path!r}\n")
    error = refused(home, "must be below your home here")
    assert (error.path, error.line) == (str(home.config), 2)
    assert error.problem.startswith(name) or name == "DATADIR"


@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("DATADIR",)])
@pytest.mark.parametrize("path", [r"~/a\0b", r"/a\ud800b"])
def test_a_path_that_no_file_can_have_is_an_error_of_a_virtual_users_files(home, name, path):
    home.write(home.config, f"{name} = '{path}'\n")
    with pytest.raises(UserFileError):
        literal(home).profile()


@pytest.mark.parametrize(
    "rule",
    [
        "include {}",
        "include -optional {}",
        "to-file {} bare",
        "to-file -optional {} bare",
        "to-file -autocdb {} bare",
        "to-file -autodbm {} bare",
        "from-file {} bare",
        "to-cdb {} bare",
        "to-cdb -optional {} bare",
    ],
)
@pytest.mark.parametrize("way", ["absolute", "link", "directory link"])
def test_no_rule_of_a_virtual_user_leads_out_of_his_home(home, outside, rule, way):
    (home.path / "link").symlink_to(outside / "file")
    (home.path / "way").symlink_to(outside)
    path = {"absolute": outside / "file", "link": "~/link", "directory link": "~/way/file"}[way]
    home.write(home.filter, f"# mine\n{rule.format(path)}\n")
    error = refused(home, "cannot be read: is not below your home")
    assert (error.path, error.line) == (str(home.filter), 2)
    assert "eeee" not in str(error)
    assert sorted(os.listdir(outside)) == ["config", "crypt_key", "file", "subscribers"]


@pytest.mark.parametrize("rule", ["to-ezmlm {} bare", "to-mailman -attr=members {} bare"])
def test_no_mailing_list_outside_is_looked_at_for_a_virtual_user(home, outside, rule):
    home.write(home.filter, rule.format(outside) + "\n")
    refused(home, "cannot be read: is not below your home")


@pytest.mark.parametrize("rule", ["to-dbm {} bare", "to-dbm -optional {} bare"])
def test_databases_in_files_are_not_opened_for_a_virtual_user(home, outside, rule):
    """What opens them follows links."""
    home.write(home.filter, rule.format(outside / "file") + "\n")
    refused(home, "DBM databases are not read here")


@pytest.mark.parametrize("rule", ["to-file -autocdb {} bare", "to-file {} bare", "to-cdb {} bare"])
def test_a_virtual_user_does_not_learn_which_files_there_are_outside(home, outside, rule):
    said = []
    for name in ("file", "missing", "missing/file", "subscribers/file"):
        home.write(home.filter, rule.format(outside / name) + "\n")
        with pytest.raises(UserFileError) as caught:
            decided(literal(home).profile())
        said.append(str(caught.value).replace(str(outside / name), "FILE"))
    assert set(said) == {said[0]}


@pytest.mark.parametrize("name", ["config", "filter"])
def test_the_files_of_a_virtual_user_are_no_links_that_lead_out(home, outside, name):
    path = getattr(home, name)
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "file")
    error = refused(home, "below your home")
    assert "eeee" not in str(error)


def test_links_within_the_home_are_followed(home):
    (home.path / "real").mkdir()
    home.write(home.path / "real/rules", "to-file ~/list bare\ninclude ~/more\n")
    home.write(home.path / "real/list", "bob@x ext=a\n")
    home.write(home.path / "real/more", "to * bare\n")
    home.filter.symlink_to(home.path / "real/rules")
    (home.path / "list").symlink_to("real/list")
    (home.path / "more").symlink_to(home.path / "real/more")
    profile = literal(home).profile()
    assert decided(profile) == "to-file ~/list tag from ext=a"
    assert decided(profile, b"eve@x") == "to * tag from bare"


def test_a_home_that_is_itself_behind_a_link_is_a_home(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")
    home = Home(tmp_path / "home")
    home.write(home.filter, "to-file ~/list bare\n")
    home.write(home.path / "list", "bob@x\n")
    assert decided(literal(home).profile()) == "to-file ~/list tag from bare"


def test_what_the_site_names_may_be_anywhere(home, outside):
    (outside / "filter").write_text("to-file ~/list bare\n")
    home.write(home.path / "list", "bob@x\n")
    home.write(
        home.site,
        f"FILTER_OUTGOING = '{outside}/filter'\nCRYPT_KEY_FILE = '{outside}/crypt_key'\n"
        f"MAIL_FOLLOWUP_TO = '{outside}/file'\nLOGFILE_OUTGOING = '{outside}/log'\n"
        f"BARE_APPEND = '{outside}/list'\nSENDMAIL_PROGRAM = '/usr/sbin/sendmail'\n",
    )
    home.write(home.config, "USERNAME = 'bobby'\n")
    profile = literal(home, site_path=str(home.site)).profile()
    assert decided(profile) == "to-file ~/list tag from bare"
    assert profile.tags.key == b"\xee" * 20
    assert profile.followup == {b"ee" * 20}
    assert profile.config.logfile_outgoing == f"{outside}/log"
    assert profile.config.sendmail_program == "/usr/sbin/sendmail"


@pytest.mark.parametrize("name", ["LOGFILE_OUTGOING", "MAIL_FOLLOWUP_TO", "CRYPT_KEY_FILE"])
def test_a_user_cannot_use_what_the_site_names_for_something_else(home, outside, name):
    """Another path than the site's is his own again, also when it is below one of the site's."""
    home.write(home.site, f"FILTER_OUTGOING = '{outside}/file'\nBARE_APPEND = '{outside}/list'\n")
    home.write(home.config, f"{name} = '{outside}/file'\n")
    refused(home, f"{name} must be below your home here", site_path=str(home.site))


def test_the_directory_that_the_site_names_may_be_anywhere(home, outside):
    """Key and filter are there then."""
    (outside / "filters").mkdir()
    (outside / "filters/outgoing").write_text("to * ext=site\n")
    home.write(home.site, f"DATADIR = '{outside}'\n")
    home.write(home.config, "USERNAME = 'bobby'\n")
    profile = literal(home, site_path=str(home.site)).profile()
    assert profile.tags.key == b"\xee" * 20
    assert decided(profile) == "to * tag from ext=site"


@pytest.mark.parametrize("path", ["~/own", "own", "~/real/../own"])
@pytest.mark.parametrize("name", ["FILTER_OUTGOING", "MAIL_FOLLOWUP_TO", "CRYPT_KEY_FILE"])
def test_what_the_site_names_in_each_home_is_no_way_out_of_it(home, outside, name, path):
    """The site says where; the user could put a link there."""
    (home.path / "real").mkdir()
    home.write(home.site, f"{name} = {path!r}\n")
    home.write(home.config, "USERNAME = 'bobby'\n")
    (home.path / "own").symlink_to(outside / "file")
    error = refused(home, "below your home", site_path=str(home.site))
    assert "eeee" not in str(error)


@pytest.mark.parametrize("name", ["BARE_APPEND", "LOGFILE_OUTGOING"])
def test_what_the_site_lets_grow_in_each_home_is_no_way_out_of_it(home, outside, name):
    home.write(home.site, f"{name} = '~/own'\n")
    home.write(home.config, "USERNAME = 'bobby'\n")
    files = literal(home, site_path=str(home.site))
    path = getattr(files.profile().config, name.lower())
    with files.files.locked(path):
        pass
    (home.path / "own").unlink()
    (home.path / "own").symlink_to(outside / "file")
    with pytest.raises(OSError, match="is not below your home"), files.files.locked(path):
        pass


@pytest.mark.parametrize(
    "source",
    [
        "SENDMAIL_PROGRAM = '/bin/sh'\n",
        "SENDMAIL_PROGRAM = ''\n",
        "X = 1\nSENDMAIL_PROGRAM = '~/bin/mine'\n",
    ],
)
def test_a_virtual_user_names_no_program(home, source):
    home.write(home.config, source)
    error = refused(home, "SENDMAIL_PROGRAM is not allowed here")
    assert error.line == source.count("\n")


def test_a_virtual_users_list_is_replaced_by_no_link_while_it_grows(home, outside):
    home.write(home.config, "BARE_APPEND = '~/list'\n")
    files = literal(home)
    path = files.profile().config.bare_append
    (home.path / "list").symlink_to(outside / "file")
    before = (outside / "file").read_bytes()
    with pytest.raises(OSError, match="is not below your home"), files.files.locked(path):
        pass
    (home.path / "list").unlink()
    (home.path / "list").symlink_to(outside / "new")
    with pytest.raises(OSError, match="is not below your home"), files.files.locked(path):
        pass
    assert (outside / "file").read_bytes() == before
    assert not (outside / "new").exists()


def test_a_virtual_user_has_no_database(home):
    home.write(home.config, "DB_CONNECTION = 'x'\n")
    refused(home, "DB_CONNECTION must be a connection to a database")


SITE_DATABASE = """\
import sqlite3
DB_CONNECTION = sqlite3.connect({path!r})
FILTER_OUTGOING = {rules!r}
DB_BARE_APPEND = "INSERT INTO friends VALUES (%(recipient)s, NULL)"
"""


@pytest.mark.parametrize("own", ["FILTER_OUTGOING = '~/.tmda/filters/outgoing'\n", ""])
def test_the_sites_database_answers_the_sites_filter_only(home, database, outside, own):
    """A statement of a virtual user would be carried out with the rights of the site."""
    (outside / "rules").write_text(ASK)
    path, rules = str(home.path / "friends.db"), str(outside / "rules")
    home.write(home.site, SITE_DATABASE.format(path=path, rules=rules))
    home.write(home.config, "USERNAME = 'bobby'\n" + own)
    home.write(home.filter, "to-sql -wildcards 'SELECT action, who FROM friends' bare\n")
    profile = literal(home, site_path=str(home.site)).profile()
    if own:
        with pytest.raises(FilterError, match="database"):
            decided(profile)
    else:
        assert decided(profile) == FOUND


def test_a_virtual_user_does_not_say_what_is_written_to_the_sites_database(home, database, outside):
    path, rules = str(home.path / "friends.db"), str(outside / "file")
    home.write(home.site, SITE_DATABASE.format(path=path, rules=rules))
    home.write(home.config, "DB_BARE_APPEND = 'DELETE FROM friends'\n")
    refused(home, "DB_BARE_APPEND is not allowed here", site_path=str(home.site))


# By the tools


@pytest.fixture
def person(home, monkeypatch):
    """Whoever runs a tool, at home there, and with none of the variables."""
    for name in ("TMDARC", "GLOBAL_TMDARC", "TMDA_FILTER_OUTGOING", "TMDAUSER", "TMDAHOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home.path))
    monkeypatch.chdir("/")
    home.write(home.config, "FULLNAME = 'usual'\n")
    home.write(home.filter, "to * ext=usual\n")
    home.write(home.path / "other", "FULLNAME = 'other'\n")
    home.write(home.path / "rules", "to * ext=other\n")
    home.write(home.path / "third", "to * ext=third\n")
    home.write(home.site, "DATED_TIMEOUT = '9d'\nFULLNAME = 'site'\n")
    return home


@pytest.mark.parametrize(
    ("asked", "variables", "fullname"),
    [
        ("", {}, "usual"),
        ("", {"TMDARC": ""}, "usual"),
        ("", {"TMDARC": "~/other"}, "other"),
        ("", {"TMDARC": "{home}/other"}, "other"),
        ("~/other", {}, "other"),
        ("~/other", {"TMDARC": "~/.tmda/config"}, "other"),
    ],
)
def test_tools_read_the_configuration_that_is_asked_for_or_that_tmdarc_names(
    person, monkeypatch, asked, variables, fullname
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{home}", str(person.path)))
    assert own_files(asked).profile().config.fullname == fullname


@pytest.mark.parametrize(
    ("asked", "variable", "option"),
    [
        ("", None, b"usual"),
        ("", "", b"usual"),
        ("", "~/rules", b"other"),
        ("~/third", "~/rules", b"third"),
        ("~/third", None, b"third"),
    ],
)
def test_tools_ask_the_filter_that_is_asked_for_or_that_the_environment_names(
    person, monkeypatch, asked, variable, option
):
    person.write(person.config, "FILTER_OUTGOING = '~/.tmda/filters/outgoing'\n")
    if variable is not None:
        monkeypatch.setenv("TMDA_FILTER_OUTGOING", variable)
    profile = own_files("", asked).profile()
    assert profile.filter.rules[0].actions == (("from", Action("ext", option)),)


def test_tools_read_the_sites_file_that_the_environment_names(person, monkeypatch):
    """The original read none at all then."""
    monkeypatch.setenv("GLOBAL_TMDARC", "~/tmdarc")
    config = own_files().profile().config
    assert (config.dated_timeout, config.fullname) == ("9d", "usual")


def test_a_site_file_that_is_named_and_missing_is_no_error_and_replaces_the_usual_one(
    person, monkeypatch
):
    monkeypatch.setenv("GLOBAL_TMDARC", str(person.path / "nowhere"))
    assert own_files().profile().config.dated_timeout == "5d"


def test_tools_take_defaults_and_variables_of_filters_from_the_environment(person, monkeypatch):
    for name, value in {"TMDAUSER": "u", "TMDAHOST": "h.example", "MY_EXT": "mine"}.items():
        monkeypatch.setenv(name, value)
    person.write(person.filter, "to * ext=${MY_EXT}\n")
    profile = own_files().profile()
    assert (profile.config.username, profile.config.hostname) == ("u", "h.example")
    assert profile.filter.rules[0].actions == (("from", Action("ext", b"mine")),)


def test_a_configuration_that_a_tool_was_told_to_use_must_be_there(person, monkeypatch):
    with pytest.raises(MissingConfig):
        own_files("~/nowhere").profile()
    monkeypatch.setenv("TMDARC", "~/nowhere")
    assert own_files().profile().config.origin == str(person.path / "nowhere")
