"""The command line: help, versions, what is refused and how, and what options become."""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tofmipd import __version__, cli
from tofmipd.arguments import host_port, host_port_v6, networks, positive, rates, seconds
from tofmipd.options import FLAGS, make_parser
from tofmipd.settings import GlobalMode, Listen, LogSettings, Quotas, Rate, Relay, SourceSpec

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
    " --max-errors --max-auth-failures --auth-failures-per-address"
    " --login-timeout --idle-timeout --data-timeout --remoteauth-ca --remoteauth-tls"
    " --nexthop-connect-timeout --nexthop-timeout --nexthop-dot-timeout"
    " --relay --relay-tls --relay-ca --log-format --syslog-facility"
    " --min-uid --max-workers --source-timeout --source-attempts --script-timeout --cpus"
    " --limit --limit-recipients --limit-file --proxy-protocol --xclient"
)
GROUPS = (
    "General",
    "Connection",
    "Authentication",
    "Encryption",
    "Next Hop",
    "Virtual Domains",
    "Limits",
)


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
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(cli, "GLOBAL_CONFIG", str(tmp_path / "none"))
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
    """Each is parsed without complaint."""
    _, out, _ = run("--help")
    for words in re.findall(r"(?m)^  e\.g\. tofmipd (.*)$", out):
        cli.settings_from(["--personal", *shlex.split(words)])


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
        (
            ["--proxy-protocol=192.0.2.1/24"],
            "'192.0.2.1/24' is no network, but 192.0.2.0/24 is one",
        ),
        (["--proxy-protocol", "haproxy"], "'haproxy' is no network, such as 192.0.2.0/24 or"),
        (["--proxy-protocol="], "'' is no network"),
        (["-p", ":1,proxy="], "'' is no network"),
        (["-p", ":1,proxy=192.0.2.1,proxy=none"], "behind the comma goes ssl"),
        (["-p", ":1,ssl,plain"], "behind the comma goes ssl"),
        (["--xclient", "--spool"], "--xclient is of no use with --spool"),
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
        (["--min-uid", "0"], "'0' is not a whole number of at least 1"),
        (["--min-uid", "root"], "'root' is not a whole number"),
        (["--max-workers", "0"], "'0' is not a whole number of at least 1"),
        (["--script-timeout", "0"], "'0' is not a number of seconds"),
        (["--source-timeout", "x"], "'x' is not a number of seconds"),
        (["--received=all"], "'full', 'private', 'none'"),
        (["--tls"], "on, optional, localoptional"),
        (["--tls", "-f"], "on, optional, localoptional"),
        (["--tls=off"], "on, optional, localoptional"),
        (["--tls=on"], "--ssl-cert and --ssl-key"),
        (["--ssl", "--ssl-cert", "c"], "each --ssl-cert needs its --ssl-key"),
        (["--ssl-key", "k", "--tls=on"], "each --ssl-cert needs its --ssl-key"),
        (["-p", "localhost:1,ssl"], "--ssl-cert and --ssl-key"),
        (["-p", "localhost:1,tls"], "behind the comma goes ssl, plain, tls=on"),
        (["-p", "localhost:1,"], "behind the comma goes"),
        ([*CERTIFICATE], "of no use without --ssl"),
        (["--ciphers", "HIGH"], "of no use without --ssl"),
        (["--ssl-sni-dir", "d"], "of no use without --ssl"),
        (["--ssl-client-ca", "f"], "of no use without --ssl"),
        (["--ssl", "-p", "localhost:1,plain", *CERTIFICATE], "of no use without --ssl"),
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
    assert host_port(text) == Listen(host, port, mode="")


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
    assert host_port_v6(text) == Listen(host, port, ipv6=True, mode="")


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
    for convert in (host_port, host_port_v6, networks, positive, seconds):
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
    assert limits.auth_failures_per_address == 10
    assert (made.programs.source_timeout, made.programs.source_attempts) == (10, 16)
    assert (made.remote_ca, made.remote_tls) == ("", "verified")
    hop = made.next_hop
    assert (hop.connect_timeout, hop.reply_timeout, hop.dot_timeout) == (30, 120, 600)


def test_places_of_both_protocols_replace_the_default():
    """TO-76, TO-77."""
    made = settings("-p", "a:1", "-6", "[::1]:2", "--proxyport=b:3")
    assert made.listen == (Listen("a", 1), Listen("b", 3), Listen("::1", 2, ipv6=True))


PROXIES = {name: networks(name) for name in ("192.0.2.0/24", "198.51.100.1", "2001:db8::/32")}
NET, HOST, NET6 = PROXIES.values()


@pytest.mark.parametrize(
    ("arguments", "proxies"),
    [
        (["-p", "a:1"], [None]),
        (["--proxy-protocol", "192.0.2.0/24"], [NET]),
        (
            ["--proxy-protocol=192.0.2.0/24,198.51.100.1", "--proxy-protocol=2001:db8::/32"],
            [NET + HOST + NET6],
        ),
        (["-p", "a:1", "-6", "b:2", "--proxy-protocol=192.0.2.0/24"], [NET, NET]),
        (["-p", "a:1,proxy=192.0.2.0/24+2001:db8::/32", "-p", "b:2"], [NET + NET6, None]),
        (
            [
                *("--proxy-protocol=192.0.2.0/24", "-p", "a:1,proxy=none"),
                *("-6", "[::1]:2,proxy=2001:db8::/32", "-p", "b:2,plain,proxy=198.51.100.1"),
            ],
            [(), HOST, NET6],
        ),
    ],
)
def test_each_listener_has_its_own_proxies_or_those_of_all(arguments, proxies):
    assert [spec.proxies for spec in settings(*arguments).listen] == proxies


def test_xclient_is_off_unless_asked_for():
    assert (settings().xclient, settings("--xclient").xclient) == (False, True)


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


# Global mode.  The uid is pretended: root may run these tests, or anybody.


@pytest.fixture
def _no_environment(monkeypatch):
    for name in ("TMDARC", "TMDA_FILTER_OUTGOING", "GLOBAL_TMDARC", "TMDA_SENDMAIL_PROGRAM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def as_root(monkeypatch, _no_environment):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    return cli.settings_from


@pytest.fixture
def as_bobby(monkeypatch, _no_environment):
    entry = pwd.struct_passwd(("bobby", "x", 4321, 4321, "Bobby B.,,", "/home/bobby", "/bin/sh"))
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    return cli.settings_from


def test_root_serves_everybody_unless_it_says_personal(as_root, home):
    made = as_root([])
    assert made.global_mode == GlobalMode("tofmipd", 1000, 200)
    assert (made.authfile, made.ipauthmap) == ("/etc/tofmipd", "/etc/ipauthmap")
    personal = as_root(["--personal"])
    assert personal.global_mode is None
    assert personal.authfile == f"{home}/.tmda/tofmipd"
    assert personal.ipauthmap == f"{home}/.tmda/ipauthmap"


@pytest.mark.parametrize(
    ("arguments", "mode"),
    [
        (["-u", "mail"], GlobalMode("mail", 1000, 200)),
        (["--username", "mail", "--min-uid", "500"], GlobalMode("mail", 500, 200)),
        (["--max-workers=7"], GlobalMode("tofmipd", 1000, 7)),
        # Who that is, the start finds out.
        (["-u", "root", "--min-uid=1"], GlobalMode("root", 1, 200)),
    ],
)
def test_root_may_choose_the_account_of_the_service_and_its_limits(as_root, arguments, mode):
    """TO-74."""
    assert as_root(arguments).global_mode == mode


@pytest.mark.parametrize(
    ("who", "name"), [("as_bobby", "root"), ("as_bobby", "tofmipd"), ("as_root", "tofmipd")]
)
def test_only_root_runs_as_somebody_else(who, name, request, run):
    """TO-74.  A personal daemon of root's is root's own."""
    request.getfixturevalue(who)
    status, out, err = run("--personal", "-u", name)
    assert (status, out) == (os.EX_NOPERM, "")
    assert err == f"tofmipd: only root can run as -u {name}; start as root\n"


def test_the_versions_say_who_would_run_as_whom(run):
    """TO-20."""
    _, out, _ = run("-u", "mail", "--min-uid", "500", "-V")
    for words in ("monitor: root", "server and auth: mail", "uid 500 or above"):
        assert words in out.splitlines()[-1]


def test_an_ordinary_user_needs_no_word_to_serve_himself(as_bobby, home):
    for arguments in ([], ["--personal"], ["-u", "bobby"]):
        made = as_bobby(arguments)
        assert made.global_mode is None
        assert (made.person.name, made.person.full_name) == ("bobby", "Bobby B.")
        assert made.person.home == str(home)


@pytest.mark.parametrize(
    ("arguments", "specs"),
    [
        ([], []),
        (["-a", "/p"], [("file", "/p")]),
        (["-R", "imap://h"], [("remote", "imap://h")]),
        (["-R", "imap://h", "-a", "~/p"], [("remote", "imap://h"), ("file", "{home}/p")]),
        (
            ["-a", "/p", "-R", "imaps://h:1", "--authfile=q", "--remoteauth", "imap://i"],
            [
                ("file", "/p"),
                ("remote", "imaps://h:1"),
                ("file", "{home}/q"),
                ("remote", "imap://i"),
            ],
        ),
        (
            ["-m", "mail", "-A", "/c /bin/true", "-R", "ldaps://h/%s", "--pamauth=x", "-A/d"],
            [
                ("pam", "mail"),
                ("program", "/c /bin/true"),
                ("remote", "ldaps://h/%s"),
                ("pam", "x"),
                ("program", "/d"),
            ],
        ),
    ],
)
def test_sources_are_asked_in_the_order_given(as_bobby, home, arguments, specs):
    expected = [SourceSpec(kind, text.format(home=home)) for kind, text in specs]
    made = as_bobby(arguments)
    assert list(made.sources) == expected
    assert list(made.all_sources) == expected or not expected


def test_lines_are_for_the_journal_where_it_reads_standard_error(monkeypatch):
    """systemd.exec(5): device and inode say whether standard error is still what it was."""
    status = os.fstat(2)
    there, other = (f"{status.st_dev}:{status.st_ino + n}" for n in (0, 1))
    for stream, journal in ((there, True), (other, False), ("", False), ("x", False)):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        assert settings("-f").log_settings == LogSettings("", "mail", journal)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        (["--syslog-facility", "kern"], "argument --syslog-facility: invalid choice: 'kern'"),
        (["--log-format=journal"], "--log-format=journal is for standard error: with -f"),
        (["-f", "--log-format=journal", "--log-file=x"], "without --log-file"),
    ],
)
def test_a_wrong_form_of_the_log_is_one_line(run, arguments, words):
    status, out, error = run(*arguments)
    assert (status, out) == (64, "")
    assert words in error
    assert error.count("\n") == 1


def test_next_hops_of_the_administrator_have_an_order(home):
    assert settings().relay == Relay()
    made = settings("--relay", "a.example:587,[::1]:465,b", "--relay-ca", "ca.pem")
    assert made.relay.places == (("a.example", 587), ("::1", 465), ("b", 25))
    assert (made.relay.tls, made.relay.ca_file) == ("", f"{home}/ca.pem")
    shown = "AB:" * 31 + "CD"
    for written, meant in [("off", "off"), (f"Fingerprint:{shown}", f"fingerprint:{'ab' * 31}cd")]:
        assert settings("--relay=a", f"--relay-tls={written}").relay.tls == meant


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--relay", "a:"], "'a:' is not HOST or HOST:PORT"),
        (["--relay", "a,"], "'' is not HOST or HOST:PORT"),
        (["--relay", "::1"], "'::1' is not HOST or HOST:PORT"),
        (["--relay", "a:70000"], "'a:70000' is not HOST or HOST:PORT"),
        (["--relay", "a", "--relay-tls", "maybe"], "'maybe' is not verify, encrypt, off"),
        (["--relay", "a", "--relay-tls", "fingerprint:ab"], "'fingerprint:ab' is not verify"),
        (["--relay-tls", "off"], "--relay-tls and --relay-ca are of no use without --relay"),
        (["--relay-ca", "f"], "--relay-tls and --relay-ca are of no use without --relay"),
        (
            ["--relay", "a", "--relay-ca", "f", "--relay-tls", "encrypt"],
            "--relay-ca is of no use unless certificates are verified",
        ),
    ],
)
def test_a_wrong_next_hop_is_one_line(run, arguments, words):
    status, out, error = run(*arguments)
    assert (status, out) == (64, "")
    assert words in error
    assert error.count("\n") == 1


def test_without_a_source_the_password_file_is_the_only_one(as_root):
    assert as_root([]).all_sources == (SourceSpec("file", "/etc/tofmipd"),)
    assert as_root(["-R", "imap://h"]).all_sources == (SourceSpec("remote", "imap://h"),)


VALUES = {"TMDARC": "~/rc", "TMDA_FILTER_OUTGOING": "f", "GLOBAL_TMDARC": "/etc/../other"}


@pytest.mark.parametrize(
    ("who", "user_config", "user_filter"),
    [("as_bobby", "{home}/rc", "{home}/f"), ("as_root", "", "")],
)
def test_what_roots_environment_says_of_a_persons_files_is_not_for_all(
    who, user_config, user_filter, request, home, monkeypatch
):
    """TO-86."""
    make = request.getfixturevalue(who)
    nothing = make([])
    assert (nothing.user_config, nothing.user_filter) == ("", "")
    assert nothing.site_config == "/etc/tmdarc"
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    made = make([])
    assert made.user_config == user_config.format(home=home)
    assert made.user_filter == user_filter.format(home=home)
    assert made.site_config == "/other"
    if who == "as_root":
        assert make(["--personal"]).user_config == f"{home}/rc"


@pytest.mark.parametrize("who", ["as_bobby", "as_root"])
def test_the_program_for_a_pure_proxy_comes_from_the_environment(who, request, monkeypatch):
    """TO-80, TO-86."""
    make = request.getfixturevalue(who)
    assert make([]).scripts.pass_through == ""
    assert make(["-P"]).scripts.pass_through == "/usr/sbin/sendmail"
    for value, program in (("", "/usr/sbin/sendmail"), ("/opt/mail", "/opt/mail")):
        monkeypatch.setenv("TMDA_SENDMAIL_PROGRAM", value)
        assert make(["--pure-proxy"]).scripts.pass_through == program
    assert make([]).scripts.pass_through == ""


@pytest.mark.parametrize("who", ["as_bobby", "as_root"])
def test_scripts_and_the_directory_of_configurations_become_absolute(who, request, home):
    """TO-82 to TO-84."""
    make = request.getfixturevalue(who)
    scripts = make([]).scripts
    assert (scripts.throttle, scripts.virtual_home) == ("", "")
    assert scripts.virtual_domains == "/var/qmail/control/virtualdomains"
    scripts = make(["-t", "throttle", "-S", "~/vhome", "-v", "/x/../domains"]).scripts
    assert scripts.throttle == f"{home}/throttle"
    assert scripts.virtual_home == f"{home}/vhome"
    assert scripts.virtual_domains == "/domains"
    assert make(["-c", "configs"]).configdir == f"{home}/configs"


def test_scripts_get_the_search_path_of_who_starts_the_daemon(as_root, monkeypatch):
    monkeypatch.setenv("PATH", "/a:/b")
    assert as_root([]).scripts.search_path == "/a:/b"
    monkeypatch.delenv("PATH")
    assert as_root([]).scripts.search_path.startswith("/usr/local/sbin:")


def test_the_time_of_others_programs_can_be_chosen(as_root):
    made = as_root(["--source-timeout=1.5", "--script-timeout", "2"])
    assert (made.programs.source_timeout, made.programs.script_timeout) == (1.5, 2)
    assert (as_root([]).programs.source_timeout, as_root([]).programs.script_timeout) == (10, 30)


def test_all_cpus_are_used_only_if_wanted(as_root):
    assert as_root([]).one_cpu
    assert not as_root(["--cpus=all"]).one_cpu


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("100/1h", [(100, 3600)], "100/1h"),
        ("100/1h,500/1d", [(100, 3600), (500, 86400)], "100/1h 500/1d"),
        (" 1/90s , 2/120m", [(1, 90), (2, 7200)], "1/90s 2/2h"),
        ("999999999/99999d,0010/048h", [(999999999, 99999 * 86400), (10, 172800)], None),
        ("1/1s,1/1s", [(1, 1), (1, 1)], "1/1s 1/1s"),
    ],
)
def test_a_limit_is_a_number_in_a_time(text, expected, shown):
    found = rates(text)
    assert list(found) == expected
    assert shown is None or " ".join(map(str, found)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "100", "100/h", "100/1", "/1h", "0/1h", "1/0h", "-1/1h", "1/1w", "1/1H"),
        *(
            "1/1h,",
            "1/1h;1/1d",
            "1.5/1h",
            "1e3/1h",
            "1 /1h",
            "²/1h",
            "1/1h\n2/1d",
            "9" * 10 + "/1h",
        ),
    ],
)
@pytest.mark.parametrize("option", ["--limit", "--limit-recipients"])
def test_a_limit_that_is_none_is_refused_in_one_line(run, option, text):
    status, printed, said = run(f"{option}={text}")
    assert (status, printed) == (os.EX_USAGE, "")
    assert re.fullmatch(rf"tofmipd: argument {option}: '.*' is not COUNT/TIME, such as .*\n", said)


@pytest.mark.parametrize(
    ("who", "file"), [("as_bobby", "{home}/.tmda/limits"), ("as_root", "/var/lib/tofmipd/limits")]
)
def test_limits_are_counted_in_a_file_of_the_mode(who, file, request, home):
    make = request.getfixturevalue(who)
    assert make([]).quotas == Quotas((), (), file.format(home=home))
    assert not make(["--limit-file", "x"]).quotas.given
    made = make(["--limit", "5/1m", "--limit-recipients=7/1d", "--limit-file", "~/x"]).quotas
    assert made == Quotas((Rate(5, 60),), (Rate(7, 86400),), f"{home}/x")
    assert made.given


def test_one_session_is_seen_in_any_cluster_of_letters():
    """Before the command line is parsed: who is a super-server's client hears no complaint."""
    flags = [
        name[1]
        for action in make_parser().table
        for name in action.option_strings
        if action.nargs == 0 and len(name) == 2
    ]
    assert sorted(flags) == sorted(FLAGS + "1")
    for word in ("-1", "-L1", "-1a", "-dLf1afile", "--one-session"):
        assert cli._asks_for_one(word), word
    for word in ("-p1.example:25", "-a1", "-", "--", "-L", "--limit=1", "1", "-C1"):
        assert not cli._asks_for_one(word), word


def test_where_the_file_is_counts_for_no_option(tmp_path):
    """Or SIGHUP would tell of an option that nobody can give."""
    file = tmp_path / "tofmipd.conf"
    file.write_text("size 7\n")
    arguments = ["--personal", "--config", str(file)]
    values = cli._options(arguments, "").values
    assert values["size"] == 7
    assert "config_file" not in values
