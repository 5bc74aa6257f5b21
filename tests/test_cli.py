"""The command line: help, versions, what is refused and how, and what options become."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tofmipd import __version__, cli
from tofmipd.arguments import host_port, host_port_v6, positive, seconds
from tofmipd.errors import Fatal
from tofmipd.settings import Listen

# Of the ancestor (reference section 6.1), with the long names of the feature table.
ANCESTORS_OPTIONS = (
    "-h --help -V --version -d --debug -L --log -b --background -f --foreground -u --username"
    " -c --configdir -p --proxyport -6 --ipv6proxyport -C --connections -1 --one-session"
    " -P --pure-proxy -t --throttle-script --ssl --tls --ssl-cert --ssl-key --ciphers"
    " -R --remoteauth -A --authprog -a --authfile -m --pamauth -S --vhome-script"
    " -v --vdomains-path"
)
NEW_OPTIONS = (
    "--personal --received --log-file --bare-newline --insecure-auth --size --max-recipients"
    " --max-errors --max-auth-failures --login-timeout --idle-timeout --data-timeout"
    " --nexthop-connect-timeout --nexthop-timeout --nexthop-dot-timeout"
)
GROUPS = ("General", "Connection", "Authentication", "Encryption", "Virtual Domains", "Limits")


@pytest.fixture
def run(capsys):
    """Run the program in this process; its status and what it printed on both."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(list(arguments))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing here may touch the files of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_standard_output(option, run):
    """TO-69."""
    status, out, err = run(option)
    assert (status, err) == (0, "")
    assert out.startswith("usage: tofmipd [options]\n")


def test_help_fits_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run("--help")
    assert max(len(line) for line in out.splitlines()) <= 90


def test_help_is_grouped_with_one_example_a_group(run):
    """TO-69."""
    _, out, _ = run("--help")
    sections = re.split(r"(?m)^([A-Z][A-Za-z ]+):$", out)
    groups = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(GROUPS) <= set(groups)
    for name in GROUPS:
        assert len(re.findall(r"(?m)^  e\.g\. tofmipd ", groups[name])) == 1, name


@pytest.mark.parametrize("option", f"{ANCESTORS_OPTIONS} {NEW_OPTIONS}".split())
def test_help_explains_every_option(option, run):
    _, out, _ = run("--help")
    lines = [
        line for line in out.splitlines() if re.match(rf"  (\S.*[ ,])?{option}[ ,\[]", line + " ")
    ]
    assert lines, option


def test_examples_of_the_help_are_correct(run):
    """Each is parsed without complaint, though some ask for what is not built yet."""
    _, out, _ = run("--help")
    for words in re.findall(r"(?m)^  e\.g\. tofmipd (.*)$", out):
        complaint = ""
        try:
            cli.settings_from(["--personal", *words.split()])
        except Fatal as error:
            complaint = str(error)
        assert not complaint or "not built yet" in complaint


def test_every_tool_is_listed_and_has_help(run):
    _, out, _ = run("--help")
    for word in cli.COMMANDS:
        assert re.search(rf"(?m)^  {word} ", out)
        status, own, err = run(word, "--help")
        assert (status, err) == (0, "")
        assert own.startswith(f"usage: tofmipd {word}")
        assert max(len(line) for line in own.splitlines()) <= 90


def test_versions_are_short_and_full(run):
    """TO-70."""
    assert run("--version") == (0, f"tofmipd {__version__}\n", "")
    status, out, err = run("-V")
    assert (status, err) == (0, "")
    for words in (f"tofmipd {__version__}", "Python 3.", "OpenSSL", "pyOpenSSL", "ldap3"):
        assert words in out


@pytest.mark.parametrize("option", ["--help", "-V"])
def test_a_reader_that_stops_reading_is_no_error(option):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "tofmipd", option],
            stdout=closed,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name[:6] != "PYTHON"},
            timeout=20,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, b"")


CERTIFICATE = ("--ssl-cert", "c", "--ssl-key", "k")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-x"], "unknown option '-x'"),
        (["--forground"], "unknown option '--forground'; did you mean --foreground?"),
        (["--proxport=:1"], "unknown option '--proxport'; did you mean --proxyport?"),
        (["--auth-file", "x"], "'--auth-file'; did you mean --authfile?"),
        (["--insecure_auth"], "'--insecure_auth'; did you mean --insecure-auth?"),
        (["--fore"], "unknown option '--fore'"),
        (["-f", "extra"], "unknown argument 'extra'"),
        (["extra"], "there is no command 'extra'; there are init, test, "),
        (["-p"], "-p/--proxyport: expected one argument"),
        (["-p", "8025"], "'8025' is not HOST:PORT"),
        (["-p", "x:99999"], "'x:99999' is not HOST:PORT"),
        (["-p", "[::1]:25"], "'[::1]:25': IPv6 addresses go with -6"),
        (["-p", "::1:25"], "'::1:25': IPv6 addresses go with -6"),
        (["-6", "[::1]:x"], "'[::1]:x' is not HOST:PORT"),
        (["-C", "0"], "'0' is not a whole number of at least 1"),
        (["-C", "many"], "'many' is not a whole number"),
        (["--size", "-1"], "--size"),
        (["--idle-timeout", "0"], "'0' is not a number of seconds"),
        (["--received=all"], "'full', 'private', 'none'"),
        (["--tls"], "on, optional, localoptional"),
        (["--tls", "-f"], "on, optional, localoptional"),
        (["--tls=off"], "on, optional, localoptional"),
        (["--tls=on"], "--ssl-cert and --ssl-key"),
        (["--ssl", "--ssl-cert", "c"], "--ssl-cert and --ssl-key"),
        (["--ssl", "--tls=on", *CERTIFICATE], "exclude each other"),
        (["-c", "/x", "-S", "/y"], "-c and -S exclude each other"),
        (["address", "--chek", "x"], "'--chek'; did you mean --check?"),
        (["address", "-k", "a", "-s", "b@c"], "not allowed with argument"),
        (["address", "--check", "a", "b", "c"], "at most one correspondent"),
        (["keygen", "x"], "unknown argument 'x'"),
        (["test"], "ADDRESS"),
        (["init", "--adress", "x@y"], "did you mean --address?"),
        (["demo", "--port", "x"], "'x'"),
        (["demo", "--port", "70000"], "70000"),
    ],
)
def test_wrong_usage_is_told_in_one_line_with_status_64(arguments, words, run):
    status, out, err = run(*arguments)
    assert (status, out) == (os.EX_USAGE, "")
    assert err.startswith("tofmipd")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["-1"], "-1, --one-session"),
        (["--one-session"], "-1, --one-session"),
        (["--ssl", *CERTIFICATE], "--ssl"),
        (["--tls=on", *CERTIFICATE], "--tls"),
        (["--tls", "optional", *CERTIFICATE], "--tls"),
        (["--tls=localoptional", *CERTIFICATE], "--tls"),
        (["--ssl-cert", "c"], "--ssl-cert"),
        (["--ssl-key", "k"], "--ssl-key"),
        (["--ciphers", "HIGH"], "--ciphers"),
        (["-R", "imap://host", "-R", "ldap://host/%s"], "-R ldap://host/%s"),
        (["-R", "pop3://host"], "-R pop3://host"),
        (["-A", "/bin/checkpassword -- /bin/true"], "-A, --authprog"),
        (["-m", "login"], "-m, --pamauth"),
        (["inject"], "'inject'"),
    ],
)
def test_what_is_not_built_yet_is_told_in_one_line_with_status_69(arguments, option, run):
    status, out, err = run(*arguments)
    assert (status, out) == (os.EX_UNAVAILABLE, "")
    assert err.startswith("tofmipd: ")
    assert err.count("\n") == 1
    assert option in err
    assert "not built yet" in err


@pytest.mark.root
def test_root_is_told_how_to_serve_itself(run):
    status, _, err = run("init")
    assert status == os.EX_UNAVAILABLE
    assert "--personal" in err
    assert err.count("\n") == 1


def test_an_unexpected_error_is_one_line_and_a_traceback_only_for_debug(run, monkeypatch):
    def fail(arguments):
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "settings_from", fail)
    status, _, err = run("-f")
    assert (status, err) == (os.EX_SOFTWARE, "tofmipd: internal error: RuntimeError: boom\n")
    status, _, err = run("-f", "-d")
    assert status == os.EX_SOFTWARE
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:8025", "localhost", 8025),
        (":8025", "", 8025),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("host:65535", "host", 65535),
        ("host:00025", "host", 25),
    ],
)
def test_host_and_port_are_split_at_the_last_colon(text, host, port):
    """TO-76."""
    assert host_port(text) == Listen(host, port)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("[::1]:8025", "::1", 8025),
        ("::1:8025", "::1", 8025),
        ("[::]:25", "::", 25),
        (":::25", "::", 25),
        (":25", "", 25),
        ("[fe80::1%eth0]:25", "fe80::1%eth0", 25),
    ],
)
def test_the_host_of_ipv6_may_stand_in_brackets(text, host, port):
    """TO-77."""
    assert host_port_v6(text) == Listen(host, port, ipv6=True)


NO_PLACES = ["", ":", "host", "8025", "host:", "host:x", "host:-1", "host:65536", "h:123456"]


@pytest.mark.parametrize("text", [*NO_PLACES, "host:²", "host:٣", "host: 25", "host:25 "])
@pytest.mark.parametrize("convert", [host_port, host_port_v6])
def test_what_is_no_place_is_refused(convert, text):
    with pytest.raises(argparse.ArgumentTypeError):
        convert(text)


@given(st.text())
@example("host:²")
@example("[]:1")
def test_types_of_arguments_raise_nothing_but_their_declared_error(text):
    for convert in (host_port, host_port_v6, positive, seconds):
        with contextlib.suppress(argparse.ArgumentTypeError):
            convert(text)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1000", 1000), ("007", 7)])
def test_positive_numbers_are_taken(text, value):
    assert positive(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("0.5", 0.5), ("600", 600), ("1.125", 1.125)]
)
def test_seconds_may_have_a_fraction(text, value):
    assert seconds(text) == value


def settings(*arguments: str):
    return cli.settings_from(["--personal", *arguments])


def test_defaults_are_those_of_the_design(home):
    made = settings()
    assert made.listen == (Listen("localhost", 8025),)
    assert made.authfile == f"{home}/.tmda/tofmipd"
    assert not made.foreground
    assert made.received == "full"
    assert not made.insecure_auth
    assert not made.fix_bare_newline
    limits = made.limits
    assert (limits.connections, limits.size, limits.max_recipients) == (1000, 50 << 20, 1000)
    assert (limits.login_timeout, limits.idle_timeout, limits.data_timeout) == (60, 300, 180)
    assert (limits.max_errors, limits.max_auth_failures) == (10, 3)
    hop = made.next_hop
    assert (hop.connect_timeout, hop.reply_timeout, hop.dot_timeout) == (30, 120, 600)


def test_places_of_both_protocols_replace_the_default():
    """TO-76, TO-77."""
    made = settings("-p", "a:1", "-6", "[::1]:2", "--proxyport=b:3")
    assert made.listen == (Listen("a", 1), Listen("b", 3), Listen("::1", 2, ipv6=True))


@pytest.mark.parametrize(
    ("option", "field"), [("-a", "authfile"), ("-c", "configdir"), ("--log-file", "log_file")]
)
@pytest.mark.parametrize(
    ("given_path", "path"), [("~/x", "{home}/x"), ("/y/../z", "/z"), ("~", "{home}")]
)
def test_paths_become_absolute_for_the_daemon_leaves_its_directory(
    option, field, given_path, path, home
):
    assert getattr(settings(option, given_path), field) == path.format(home=home)


def test_a_relative_path_begins_at_the_current_directory():
    assert settings("-a", "passwords").authfile == f"{os.getcwd()}/passwords"


@pytest.mark.parametrize(
    ("arguments", "foreground"),
    [([], False), (["-f"], True), (["-b"], False), (["-f", "-b"], False), (["-b", "-f"], True)],
)
def test_the_last_word_on_background_counts(arguments, foreground):
    """TO-73."""
    assert settings(*arguments).foreground is foreground


def test_the_own_name_may_be_given_as_user():
    """TO-74, as far as it goes without other users."""
    name = cli.person().name
    assert settings("-u", name).person.name == name


def test_without_home_the_password_entry_counts(monkeypatch):
    monkeypatch.delenv("HOME")
    assert cli.person().home == os.path.expanduser("~")
