"""Command line and configuration file together: what counts, and where it was said."""

from __future__ import annotations

import os
import pwd

import pytest

from tofmipd import cli, given
from tofmipd.errors import CONFIG, PERMISSION, USAGE, Fatal
from tofmipd.options import make_parser
from tofmipd.settings import Listen, SourceSpec


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(home):
    path = home / ".config/tofmipd.conf"
    path.parent.mkdir()
    return path


def gather(*arguments: str) -> cli.Gathered:
    return cli.gather(["--personal", *arguments])


def faults(*arguments: str) -> tuple[int, list[str]]:
    with pytest.raises(Fatal) as caught:
        gather(*arguments)
    return caught.value.status, caught.value.lines


def test_the_command_line_goes_before_the_file_and_that_before_the_defaults(file):
    file.write_text("size 100\nmax-errors 5\n")
    made = gather("--size", "7")
    limits = made.settings.limits
    assert (limits.size, limits.max_errors, limits.max_recipients) == (7, 5, 1000)
    assert made.settings.config_file == str(file)
    origins = [made.given.origin(name) for name in ("size", "max_errors", "max_recipients")]
    assert origins == ["command line", f"{file}:2", "default"]


def test_a_value_counts_also_where_it_is_the_default(file):
    file.write_text("max-errors 5\nreceived none\nspool\n")
    made = gather("--max-errors", "10", "--received=full")
    assert (made.settings.limits.max_errors, made.settings.received) == (10, "full")


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        ("spool", [], True),
        ("spool yes", [], True),
        ("spool no", [], False),
        ("spool = yes", [], True),
        ("spool no", ["--spool"], True),
    ],
)
def test_a_switch_is_its_name_or_yes_or_no(file, lines, arguments, expected):
    file.write_text(lines)
    assert gather(*arguments).settings.queue.spool is expected


@pytest.mark.parametrize(
    ("lines", "arguments", "foreground"),
    [
        ("foreground", [], True),
        ("background no", [], True),
        ("background", [], False),
        ("foreground no", [], False),
        ("foreground", ["-b"], False),
        ("background", ["-f"], True),
    ],
)
def test_foreground_and_background_are_one_switch(file, lines, arguments, foreground):
    file.write_text(lines)
    assert gather(*arguments).settings.foreground is foreground


SOURCES = "pamauth x\nauthfile /p\nremoteauth imap://h\n"


@pytest.mark.parametrize(
    ("lines", "arguments", "expected"),
    [
        (SOURCES, [], [("pam", "x"), ("file", "/p"), ("remote", "imap://h")]),
        (SOURCES, ["-a", "~/q"], [("file", "{home}/q")]),
        (SOURCES, ["-m", "y", "-R", "imaps://i"], [("pam", "y"), ("remote", "imaps://i")]),
        ("authfile ~/a\nauthfile ~/b", [], [("file", "{home}/a"), ("file", "{home}/b")]),
    ],
)
def test_all_sources_of_the_command_line_replace_all_of_the_file(
    home, file, lines, arguments, expected
):
    file.write_text(lines)
    wanted = [SourceSpec(kind, text.format(home=home)) for kind, text in expected]
    assert list(gather(*arguments).settings.all_sources) == wanted


def test_a_password_file_of_the_file_is_not_the_one_of_another_source(file):
    file.write_text("authfile /p")
    assert gather("-R", "imap://h").settings.authfile.endswith("/.tmda/tofmipd")


LISTEN = "proxyport localhost:1\nipv6proxyport [::1]:2\nproxyport localhost:3,plain\n"


def test_all_listeners_of_the_command_line_replace_all_of_the_file(file):
    file.write_text(LISTEN)
    first, second, third = gather().settings.listen
    assert (first, second) == (Listen("localhost", 1), Listen("localhost", 3))
    assert third == Listen("::1", 2, ipv6=True)
    assert gather("-p", "localhost:9").settings.listen == (Listen("localhost", 9),)


def test_each_value_of_a_list_has_its_origin(file):
    file.write_text(f"{SOURCES}{LISTEN}")
    origins = gather().given.origins
    assert origins["sources"] == (f"{file}:1", f"{file}:2", f"{file}:3")
    assert origins["proxyport"] == (f"{file}:4", f"{file}:6")
    assert gather("-p:1", "-p:2").given.origins["proxyport"] == ("command line",) * 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("szie 100", "unknown option 'szie'; did you mean size?"),
        ("--size 100", "unknown option '--size'; did you mean size?"),
        ("log_file /x", "unknown option 'log_file'; did you mean log-file?"),
        ("p localhost:1", "unknown option 'p'; did you mean proxyport?"),
        ("-C 5", "unknown option '-C'; did you mean connections?"),
        ("xyzzy", "unknown option 'xyzzy'; tofmipd --help shows all, without the dashes"),
        ("help", "help is for the command line only"),
        ("--version", "version is for the command line only"),
        ("config /x", "config is for the command line only"),
        ("personal", "personal is for the command line only"),
        ("one-session", "one-session is for the command line only"),
        ("size", "size: its value is missing: size OCTETS"),
        ("received", "received: its value is missing: received WORD"),
        ("tls", "tls: its value is missing: tls MODE"),
        ("size many", "size: 'many' is not a whole number of at least 1"),
        ("proxyport 8025", "proxyport: '8025' is not HOST:PORT"),
        ("received all", "received: invalid choice: 'all' (choose from 'full', 'private', 'none')"),
        ("spool maybe", "spool: yes or no, not 'maybe'"),
        (
            "log-file tofmipd.log",
            "log-file: 'tofmipd.log' must begin with / or ~/, for a file is read anywhere",
        ),
        (
            "authfile ~bobby/x",
            "authfile: '~bobby/x' must begin with / or ~/, for a file is read anywhere",
        ),
        ("max-errors 3\nmax-errors 4", "max-errors: line 1 says it already"),
        ("foreground\nbackground", "background: line 1 says it already"),
        ("tls off", "--tls takes one of on, optional, localoptional, e.g. --tls=on"),
        ("ssl-cert /c", "each --ssl-cert needs its --ssl-key, and the other way round"),
        ("mechanisms PLAIN,LOGAN", "--mechanisms: there is no 'LOGAN'; there are "),
        ("remoteauth imap://you:secret@h", "-R: a user has no place in it, must be SCHEME"),
    ],
)
def test_a_fault_of_the_file_names_file_line_and_the_nearest_name(file, line, said):
    file.write_text(f"{line}\n")
    status, (only,) = faults()
    assert only.startswith(f"{file}:{line.count(chr(10)) + 1}: {said}")
    assert status == CONFIG
    assert "secret" not in only


def test_all_faults_are_told_in_the_order_of_their_lines(file):
    file.write_text('szie 1\nsize 2\nsize "3\nspool maybe\n')
    status, lines = faults()
    assert status == CONFIG
    assert [line.split(":")[1] for line in lines] == ["1", "3", "4"]


def test_every_option_that_can_be_in_a_file_can_be_given_a_value(file):
    """No name of a file is one that the command line does not know."""
    parser = make_parser()
    names = given.in_file(parser)
    assert {"size", "proxyport", "tls", "background"} <= names.keys()
    assert not names.keys() & {"help", "version", "config", "personal", "one-session"}
    for name, action in names.items():
        assert f"--{name}" in action.option_strings


@pytest.mark.parametrize(
    ("lines", "arguments", "said"),
    [
        (
            "tls on\nssl-cert /c\nssl-key /k",
            ["--ssl"],
            "{file}:1: --ssl and --tls exclude each other; -p HOST:PORT,ssl is for one listener"
            " (--ssl: command line)",
        ),
        (
            "vhome-script /v\nconfigdir /c",
            [],
            "{file}:2: -c and -S exclude each other (--vhome-script: {file}:1)",
        ),
        (
            "relay-ca /c",
            ["--relay=h", "--relay-tls=off"],
            "{file}:1: --relay-ca is of no use unless certificates are verified"
            " (--relay-tls: command line)",
        ),
    ],
)
def test_a_contradiction_says_where_each_side_comes_from(file, lines, arguments, said):
    file.write_text(lines)
    assert faults(*arguments) == (CONFIG, [said.format(file=file)])


def test_a_contradiction_of_the_command_line_alone_is_wrong_usage(file):
    file.write_text("size 1")
    assert faults("-c/x", "-S/y") == (USAGE, ["-c and -S exclude each other"])


def test_several_contradictions_are_several_lines():
    status, lines = faults("-c/x", "-S/y", "--ssl", "--relay-ca", "f")
    assert (status, len(lines)) == (USAGE, 3)


def test_a_file_cannot_make_somebody_another_account(file):
    file.write_text("username somebody-else")
    said = f"{file}:1: only root can run as -u somebody-else; start as root"
    assert faults() == (PERMISSION, [said])


def test_another_file_may_be_named_or_none(file, home):
    file.write_text("size 1")
    (home / "other").write_text("size 2")
    for word, size, path in [
        ("other", 2, f"{home}/other"),
        ("~/other", 2, f"{home}/other"),
        ("none", 50 << 20, ""),
        ("", 50 << 20, ""),
    ]:
        settings = gather("--config", word).settings
        assert (settings.limits.size, settings.config_file) == (size, path)
    status, (line,) = faults("--config=/nonexistent/file")
    assert status == CONFIG
    assert line.startswith("/nonexistent/file: there is no such file")


def test_a_missing_default_file_is_no_fault():
    assert gather().settings.config_file == ""


@pytest.mark.parametrize(("variable", "counts"), [("{home}/xdg", True), ("xdg", False)])
def test_the_personal_file_is_where_xdg_has_it(home, file, monkeypatch, variable, counts):
    file.write_text("size 1")
    other = home / "xdg/tofmipd.conf"
    other.parent.mkdir()
    other.write_text("size 2")
    monkeypatch.setenv("XDG_CONFIG_HOME", variable.format(home=home))
    assert gather().settings.config_file == str(other if counts else file)


def test_root_for_all_has_a_file_of_its_own(monkeypatch):
    read = []
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli, "read_config", lambda path, named: read.append((path, named)))
    cli.gather([])
    assert read == [("/etc/tofmipd.conf", False)]


def test_an_ordinary_user_reads_his_own(monkeypatch, file):
    file.write_text("size 1")
    entry = pwd.struct_passwd(("bobby", "x", 4321, 4321, "", "/home/bobby", "/bin/sh"))
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: entry)
    assert cli.gather([]).settings.limits.size == 1


def test_paths_of_the_command_line_begin_where_the_program_was_started(home, monkeypatch):
    """A daemon leaves that directory, and may ask again."""
    (home / "conf").write_text("log-file ~/log")
    (home / "start").mkdir()
    arguments = ["--personal", "--config", "../conf", "-a", "p", "--ssl", "--ssl-cert=c"]
    arguments += ["--ssl-key", "/k", "-c", "~/d"]
    monkeypatch.setenv("TMDARC", "rc")
    monkeypatch.chdir("/")
    made = cli.gather(arguments, f"{home}/start").settings
    monkeypatch.chdir(home / "start")
    assert cli.gather(arguments).settings == made
    assert made.config_file == f"{home}/conf"
    assert made.all_sources == (SourceSpec("file", f"{home}/start/p"),)
    assert made.encryption.pairs == ((f"{home}/start/c", "/k"),)
    assert (made.configdir, made.log_file) == (f"{home}/d", f"{home}/log")
    assert made.user_config == f"{home}/start/rc"


def test_the_program_tells_each_fault_in_a_line_of_its_own(file, capsys):
    file.write_text("szie 1\nspool maybe\n")
    assert cli.main(["--personal"]) == CONFIG
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["tofmipd", f"{file}:1"],
        ["tofmipd", f"{file}:2"],
    ]


def test_help_and_versions_need_no_file(file, capsys):
    file.write_text("szie 1")
    for word in ("--help", "-V", "--version"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["--personal", word])
        assert ended.value.code == 0
    assert capsys.readouterr().err == ""


def test_asking_again_gives_the_new_settings_or_all_faults_and_prints_nothing(file, capsys):
    file.write_text("size 1")
    first = gather().settings
    file.write_text("size 2")
    assert gather().settings.limits.size == 2
    file.write_text("size 2\nszie 3\nspool x\n")
    assert len(faults()[1]) == 2
    file.write_text("size 1")
    assert gather().settings == first
    assert capsys.readouterr() == ("", "")
