"""The files of a user: where they are, when they are read again, and what may be wrong."""

from __future__ import annotations

import os
import threading

import pytest

from tofmipd.tmda.actions import Action
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import ConfigError, FilterError, KeyFileError, MissingConfig, UserFileError
from tofmipd.tmda.userfiles import UserFiles, read_key, stamp

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
    assert rules.find(b"\xe9t\xe9@x.example", b"").rule.line == 1
    assert rules.find("é@x.example".encode(), b"").rule.line == 2
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
