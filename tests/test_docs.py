"""The documents, held against the program: options, settings, actions, examples, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pkgutil
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import tofmipd
import tofmipd.privsep
from tofmipd import cli, errors, options
from tofmipd.auth import asking, checkpassword, hashes, imap, ldap, pop3, remote
from tofmipd.auth import sources as auth_sources
from tofmipd.auth.certificates import Certificates
from tofmipd.auth.credentials import NAME_LIMIT, Certificate, Password, Verdict
from tofmipd.auth.ipmap import parse_map
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.commands import inject
from tofmipd.commands.completion import parser_of
from tofmipd.commands.effective import as_text
from tofmipd.given import NOT_IN_FILE, from_file
from tofmipd.privsep import errands, outbound
from tofmipd.privsep.senders import parse_senders
from tofmipd.settings import ProgramLimits
from tofmipd.smtp import replies
from tofmipd.smtp.reply import Reply
from tofmipd.tmda import actions, config, sources, userfiles
from tofmipd.tmda.actions import Action, Context, Option, make_address, parse_action
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.cookies import TagSettings
from tofmipd.tmda.errors import ConfigError
from tofmipd.tmda.parser import parse_filter

ROOT = Path(__file__).parent.parent
MAN = ROOT / "docs" / "man"
PAGES = ["tofmipd.8", "tofmipd.conf.5", "tofmipd-filter.5", "tofmipd-auth.5"]
HOME = "/home/you"
REFERENCE = re.compile(r"^\.Xr (tofmipd[\w.-]*) ([58])", re.M)


def read_page(name: str) -> str:
    return (MAN / name).read_text()


def section(text: str, title: str, macro: str = "Sh") -> str:
    """What stands below a heading, up to the next one of its rank or higher."""
    ranks = "Sh" if macro == "Sh" else "Sh|Ss"
    match = re.search(
        rf"^\.{macro} {re.escape(title)}\n(.*?)(?=^\.(?:{ranks}) |\Z)", text, re.S | re.M
    )
    assert match is not None, f"no {macro} {title!r}"
    return match[1]


def items(text: str) -> dict[str, str]:
    """The entries of the lists in a piece of a page: each head with what is said of it."""
    found = re.findall(r"^\.It (.*)\n((?:(?!\.It |\.El).*\n)*)", text, re.M)
    return dict(found)


def long_options(text: str) -> set[str]:
    return {f"--{name}" for name in re.findall(r"Fl -([a-z][a-z0-9-]*)", text)}


def without_other_programs(text: str) -> str:
    """Without the commands that make accounts, whose options are not ours."""
    return re.sub(r"^.*\b(?:user|group)add\b(?:.*\\e?\n)*.*$", "", text, flags=re.M)


def literal_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$", text, re.S | re.M)
    return [block.replace("\\e", "\\") for block in blocks]


def code_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```[^\n]*\n(.*?)^```$", markdown, re.S | re.M)


KEY = "0123456789abcdef0123456789abcdef01234567"


class Home:
    """A home in which the program runs: the configuration sends by a program that keeps it all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(".tmda/crypt_key", KEY, 0o600)
        self.write("sendmail", f'#!/bin/sh\n{{ echo "ARGV: $*"; cat; }} >>{path}/sent\n', 0o700)
        self.write(".tmda/config", self.config())
        self.write("tofmipd", f'#!/bin/sh\nexec {sys.executable} -m tofmipd "$@"\n', 0o700)

    def config(self) -> str:
        return f"""\
USERNAME = "you"
HOSTNAME = "example.org"
FULLNAME = "Your Name"
SENDMAIL_PROGRAM = "{self.path}/sendmail"
"""

    def write(self, name: str, text: str, mode: int = 0o600) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def files(self) -> userfiles.UserFiles:
        return userfiles.UserFiles("", Surroundings(str(self.path), "you", "", "host.example"))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.path),
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def run(
        self, *words: str, text: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return self.shell('exec tofmipd "$@"', *words, text=text, **variables)

    def shell(
        self, command: str, *words: str, text: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command, "sh", *words],
            env=self.environment | variables,
            cwd=self.path,
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def sent(self) -> str:
        path = self.path / "sent"
        return path.read_text() if path.exists() else ""


# The manual pages as such


@pytest.mark.peer("mandoc")
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_to_complain_about(name):
    result = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", str(MAN / name)], capture_output=True, text=True
    )
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


@pytest.mark.peer("man", "groff")
@pytest.mark.parametrize("name", PAGES)
def test_man_formats_a_page_without_a_warning(name):
    result = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(MAN / name)],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_that_another_one_names_is_there(name):
    named = {f"{title}.{number}" for title, number in REFERENCE.findall(read_page(name))}
    assert named <= set(PAGES)
    assert name != "tofmipd.8" or named == set(PAGES) - {name}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_option_that_the_program_has_not(name):
    text = without_other_programs(read_page(name))
    mentioned = long_options(text) | set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert mentioned - {"--option"} <= set().union(*map(options_of, ["", *cli.COMMANDS]))


def test_there_is_no_other_page():
    assert sorted(path.name for path in MAN.iterdir()) == sorted(PAGES)


# tofmipd(8)


def parser_actions() -> list[argparse.Action]:
    return options.make_parser()._actions


def entry_of(action: argparse.Action) -> str:
    """What OPTIONS says of an option."""
    name = max(action.option_strings, key=len)
    head = f"Fl {name.removeprefix('-')}"
    entries = items(section(read_page("tofmipd.8"), "OPTIONS"))
    found = [text for key, text in entries.items() if re.search(rf"{re.escape(head)}(?!\S)", key)]
    assert len(found) == 1, f"{name} has {len(found)} entries"
    return found[0]


def test_every_long_option_is_in_the_page_and_no_other():
    known = {name for action in parser_actions() for name in action.option_strings}
    heads = "\n".join(items(section(read_page("tofmipd.8"), "OPTIONS")))
    assert long_options(heads) == {name for name in known if name.startswith("--")}


def test_every_short_option_is_in_the_page_and_no_other():
    known = {name for action in parser_actions() for name in action.option_strings}
    heads = "\n".join(items(section(read_page("tofmipd.8"), "OPTIONS")))
    assert {f"-{name}" for name in re.findall(r"Fl (\w)(?!\S)", heads)} == {
        name for name in known if not name.startswith("--")
    }


def test_short_and_long_names_stand_together():
    heads = list(items(section(read_page("tofmipd.8"), "OPTIONS")))
    for action in parser_actions():
        names = [f"Fl {name.removeprefix('-')}" for name in action.option_strings]
        assert any(all(re.search(rf"{n}(?!\S)", head) for n in names) for head in heads), names


def test_groups_have_the_titles_and_examples_of_the_help():
    page = section(read_page("tofmipd.8"), "OPTIONS")
    all_groups = options.make_parser()._action_groups
    groups = [g for g in all_groups if (g.description or "").startswith("e.g. ")]
    assert [g.title for g in groups] == re.findall(r"^\.Ss (.*)$", page, re.M)
    for group in groups:
        text = section(page, str(group.title), "Ss")
        names = {name for action in group._group_actions for name in action.option_strings}
        assert long_options("\n".join(items(text))) == {n for n in names if n.startswith("--")}
        assert f"Example:\n.Dl {str(group.description).removeprefix('e.g. ')}\n" in text


@pytest.mark.parametrize(
    "action",
    [a for a in parser_actions() if a.default and isinstance(a.default, str | int | float)],
    ids=lambda a: a.option_strings[-1],
)
def test_a_default_is_the_one_in_the_page(action):
    if isinstance(action.default, bool):
        pytest.skip("a flag")
    shown = as_text(action, action.default)
    assert re.search(rf"Default:\s+(?:\.Li )?{re.escape(shown)}[\s.,(]", entry_of(action))


def options_of(word: str) -> set[str]:
    """The names of the options of a tool, or for "" of the daemon."""
    return {name for action in parser_of(word)._actions for name in action.option_strings}


def test_every_tool_has_its_part():
    tools = section(read_page("tofmipd.8"), "TOOLS")
    assert re.findall(r"^\.Ss (.*)$", tools, re.M) == list(cli.COMMANDS)


@pytest.mark.parametrize("word", cli.COMMANDS)
def test_every_option_of_a_tool_is_in_the_page_and_no_other(word):
    entries = items(section(section(read_page("tofmipd.8"), "TOOLS"), word, "Ss"))
    heads = "\n".join(entries)
    found = long_options(heads) | {f"-{name}" for name in re.findall(r"Fl (\w)(?!\S)", heads)}
    help_names = next(
        set(action.option_strings)
        for action in parser_of(word)._actions
        if "--help" in action.option_strings
    )
    assert found == options_of(word) - help_names


@pytest.mark.parametrize("word", ["", *cli.COMMANDS])
def test_the_help_of_a_word_shows_its_options(word, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([word, "--help"] if word else ["--help"])
    shown = capsys.readouterr().out
    assert not ended.value.code
    for name in options_of(word):
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown), name


# tofmipd(8): what the program says


def page_text(title: str, macro: str = "Sh") -> str:
    """A section on one line, without macros and their escapes."""
    text = re.sub(r"^\.[A-Z]\w ?", "", section(read_page("tofmipd.8"), title, macro), flags=re.M)
    return " ".join(text.replace("\\e", "\\").split())


def modules(package: ModuleType = tofmipd) -> list[ModuleType]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [importlib.import_module(info.name) for info in found if "__main__" not in info.name]


def fixed_replies(package: ModuleType = tofmipd) -> set[Reply]:
    """The refusals with a fixed text, but for those of a client that breaks the protocol."""
    values = [value for module in modules(package) for value in vars(module).values()]
    found = {value for value in values if isinstance(value, Reply) and value.code >= 400}
    return {reply for reply in found if reply.code // 10 != 50}


def test_every_refusal_is_explained():
    heads = " ".join(items(section(read_page("tofmipd.8"), "What the client hears", "Ss")))
    for reply in fixed_replies():
        assert f"{reply.code} {reply.status}" in heads, reply


def test_what_refusals_of_workers_and_scripts_say_is_in_the_page():
    text = page_text("DIAGNOSTICS")
    for reply in fixed_replies(tofmipd.privsep):
        said = reply.lines[0].removeprefix("Error: ")
        if not any(reply is value for value in vars(replies).values()):
            assert re.split("[,:]", said)[0] in text, reply


def log_lines() -> dict[str, str]:
    """The format of every line that the program may log, and where that is done."""
    found = {}
    for path in sorted((ROOT / "tofmipd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(ast.Name("log"), _),
                    args=[ast.Constant(str(text)), *_] | [_, ast.Constant(str(text)), *_],
                ):
                    found[text] = f"{path.name}:{node.lineno}"
    return found


@pytest.mark.parametrize("line", log_lines())
def test_every_log_line_is_in_the_page(line):
    pieces = re.split(r"%[-+.0-9]*[a-z]", line.removeprefix("s=%s "))
    longest = " ".join(max(pieces, key=len).split())
    assert longest in page_text("LOGGING"), log_lines()[line]


def test_every_variable_that_the_daemon_reads_is_in_the_page_and_no_other():
    text = section(read_page("tofmipd.8"), "ENVIRONMENT").partition("No other variable")[0]
    read = re.findall(r'environ(?:\.get|ment)\("(\w+)"', (ROOT / "tofmipd/cli.py").read_text())
    # USER is for a uid without an account.
    assert {head.removeprefix("Ev ") for head in items(text)} == {*read} - {"USER"}


def test_every_variable_that_a_tool_reads_is_in_the_page():
    paths = [*(ROOT / "tofmipd/commands").glob("*.py"), ROOT / "tofmipd/tmda/config.py"]
    # X-TMDA is a field; these are settings, and TMDA stands for itself.
    no_variables = {*config.SETTINGS, "TMDA", "TMDA_CONFIG"}
    read = {
        name
        for path in paths
        for name in re.findall(r"\"((?:TMDA|QMAIL|MAIL)[A-Z_]*|NAME)\"", path.read_text())
    }
    text = section(read_page("tofmipd.8"), "ENVIRONMENT")
    assert read - no_variables <= set(re.findall(r"\b[A-Z_]+\b", "\n".join(items(text))))
    assert "QMAILUSER" in read


def test_every_exit_status_is_in_the_page():
    known = {value for value in vars(errors).values() if isinstance(value, int)}
    assert known <= {int(head) for head in items(section(read_page("tofmipd.8"), "EXIT STATUS"))}


def test_the_processes_have_the_names_in_the_page():
    names = items(section(read_page("tofmipd.8"), "Global mode", "Ss"))
    source = (ROOT / "tofmipd/globalmode.py").read_text() + (ROOT / "tofmipd/daemon.py").read_text()
    shown = {head.removeprefix("Li ") for head in names}
    assert shown == set(re.findall(r'"(tofmipd-\w+)"', source))
    assert all(len(name) <= 15 for name in shown)


# tofmipd.conf(5)

SETTING = re.compile(r"Va ([A-Z0-9_]+) Pq ([^;]+) ; (.*)")


def documented_settings() -> dict[str, tuple[str, str]]:
    heads = items(section(read_page("tofmipd.conf.5"), "SETTINGS"))
    matches = [SETTING.fullmatch(head) for head in heads]
    assert all(matches), heads
    return {match[1]: (match[2], match[3]) for match in matches if match}


def test_every_setting_is_in_the_page_and_no_other():
    assert set(documented_settings()) == set(config.SETTINGS)


def shown_default(value: object) -> str | None:
    """How the page shows a default; None where it says it in words."""
    match value:
        case "" | () | None:
            return None
        case str() if value.startswith("~"):
            return f"Pa {value}"
        case bool() | int() | str() | Action():
            return f"Li {value}"
        case (str(word),):
            return f'Li ["{word}"]'
    raise AssertionError(f"how is {value!r} shown?")


@pytest.mark.parametrize("name", config.SETTINGS)
def test_the_default_of_a_setting_is_the_one_in_the_page(name):
    shown = shown_default(config.SETTINGS[name].default)
    if shown is None:
        assert "Li" not in documented_settings()[name][1].split()
    else:
        assert documented_settings()[name][1] == shown


GIVEN = {
    "text": "text",
    "flag": True,
    "number": 7,
    "path": "~/x",
    "list of texts": ["a"],
    "table of names and texts": {"X-A": "b"},
    "connection": sqlite3.connect(":memory:"),
}
# What a kind takes beside itself.
TAKES = {
    "text": {"path"},
    "path": {"text"},
    "flag": {"number"},
    "path or list of texts": {"path", "text", "list of texts"},
    "text or list of texts": {"path", "text", "list of texts"},
}
VALUES = {
    "MAIL_TRANSPORT": "smtp",
    "RECEIVED": "full",
    "ACTION_OUTGOING": "bare",
    "SMTPTLS": "verify",
}


@pytest.mark.parametrize("name", config.SETTINGS)
def test_a_setting_takes_the_type_in_the_page_and_refuses_others(name):
    convert = config.SETTINGS[name].metadata["convert"]
    kind = documented_settings()[name][0]
    assert kind in GIVEN or kind in TAKES
    assert config.SETTINGS[name].metadata["path"] == kind.startswith("path")
    for other, value in GIVEN.items():
        if other == kind or other in TAKES.get(kind, ()):
            convert(VALUES.get(name, value))
        else:
            with pytest.raises(TypeError):
                convert(value)


def configured(path: Path, text: str, site: str) -> config.Config:
    """The configuration that these texts make, read as the daemon reads it."""
    key = path / "key"
    key.write_text("00" * 20)
    key.chmod(0o600)
    (path / "tmdarc").write_text(f"CRYPT_KEY_FILE = {str(key)!r}\n{site}")
    (path / "config").write_text(text)
    files = userfiles.UserFiles(
        str(path / "config"),
        Surroundings(HOME, "you", "You", "host.example"),
        site_path=str(path / "tmdarc"),
    )
    return files.profile().config


def test_the_examples_of_a_configuration_work(tmp_path):
    python, ini, _ = literal_blocks(section(read_page("tofmipd.conf.5"), "DESCRIPTION"))
    one = configured(tmp_path, python, "")
    assert (one.username, one.dated_timeout, one.smtphost) == ("you", "2w", "mail.example.org:587")
    assert (one.mail_transport, one.smtpssl, one.smtpauth_username) == ("smtp", True, "you")
    assert one.added_headers_client == (("X-Primary-Address", "you@example.org"),)
    two = configured(tmp_path, ini, "CONFIG_EXEC = False\n")
    assert (two.username, two.hmac_bytes, two.smtpssl) == ("you", 5, True)
    assert (two.smtpauth_password, two.tags_dated) == ("12%34", ("until", "dated"))
    assert two.added_headers_client == (("X-Primary-Address", "you@example.org"),)


def test_the_example_of_the_daemons_file_works():
    page = section(read_page("tofmipd.conf.5"), "THE FILE OF THE DAEMON")
    example, _ = literal_blocks(page)
    made = from_file(options.make_parser(), "conf", example)
    assert made.faults == ()
    given_there = made.options
    assert [place.mode for place in given_there.proxyport] == ["ssl", "on"]
    assert (given_there.spool, given_there.log_file) == (True, "/var/log/my mail.log")
    assert [spec.kind for spec in given_there.sources] == ["pam"]


def test_what_is_said_of_faults_of_the_daemons_file_is_in_the_page():
    page = section(read_page("tofmipd.conf.5"), "THE FILE OF THE DAEMON")
    said = literal_blocks(page)[1].splitlines()
    text = "\n\nszie 3\nspool maybe\n"
    made = from_file(options.make_parser(), "/etc/tofmipd.conf", text)
    assert [str(fault) for fault in made.faults] == said


def test_what_the_daemons_file_cannot_have_is_in_the_page():
    page = section(read_page("tofmipd.conf.5"), "THE FILE OF THE DAEMON")
    (line,) = re.findall(r"command line only:\n\.Fl (.*) \.\n", page)
    assert line.split(" , ") == sorted(f"-{name}" for name in NOT_IN_FILE)


# What was good in Python 2; the line that the page names is the last one of it.
PYTHON_2 = ['print "hello"', "try:\n    x = 1\nexcept IOError, e:", "MODE = 0600"]


def test_what_is_said_of_python_2_is_in_the_page(tmp_path):
    block = literal_blocks(section(read_page("tofmipd.conf.5"), "DESCRIPTION"))[-1]
    shown = [" ".join(text.split()) for text in block.split("~/.tmda/config:")[1:]]
    assert len(shown) == len(PYTHON_2)
    for text, statement in zip(shown, PYTHON_2, strict=True):
        line, _, said = text.partition(": ")
        before = "\n" * (int(line) - 1 - statement.count("\n"))
        with pytest.raises(ConfigError) as caught:
            configured(tmp_path, f"{before}{statement}\n    pass\n", "")
        assert (caught.value.line, caught.value.problem) == (int(line), said)


CLEANED = """\
import os
from tofmipd.privsep.confine import clean_environment
from tofmipd.privsep.identity import Identity
clean_environment(Identity("you", "you"), "/home/you")
print(os.getcwd(), *os.environ)
"""


def test_the_environment_of_a_configuration_is_the_one_in_the_page():
    heads = items(section(read_page("tofmipd.conf.5"), "What a configuration finds", "Ss"))
    shown = {name for head in heads for name in head.removeprefix("Ev ").split(" , ")}
    result = subprocess.run(
        [sys.executable, "-c", CLEANED],
        env={**os.environ, "TZ": "UTC", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    directory, *names = result.stdout.split()
    assert directory == "/"
    assert set(names) | {"VUSERDIR", "VDOMAIN"} == shown


# tofmipd-filter(5)


def names_of(title: str) -> set[str]:
    """The names in the heads of a section."""
    heads = items(section(read_page("tofmipd-filter.5"), title))
    found = [re.match(r"Cm ([\w-]+)(?!\S)", head) for head in heads]
    assert all(found), heads
    return {match[1] for match in found if match}


def heads_of_sources() -> list[str]:
    text = section(read_page("tofmipd-filter.5"), "SOURCES")
    return re.findall(r"^\.It (.*)$", text, re.M)


def test_every_source_is_in_the_page_and_no_other():
    assert names_of("SOURCES") == set(sources.SOURCES)


@pytest.mark.parametrize("source", sources.SOURCES)
def test_the_options_of_a_source_are_those_in_the_page(source):
    heads = [head for head in heads_of_sources() if head.startswith(f"Cm {source} ")]
    kind = sources.KINDS[source.partition("-")[2]]
    shown = {
        name: bool(value)
        for head in heads
        for name, value in re.findall(r"(?:Fl |\| )(\w+)( Ns = Ns Ar)?", head)
    }
    assert shown == dict(kind.options)
    for name in kind.required:
        assert all(f"Fl {name}" in head and f"Oo Fl {name}" not in head for head in heads)


def test_every_action_is_in_the_page_and_no_other():
    assert names_of("ACTIONS") == {*actions.TABLE, actions.DEFAULT}


@pytest.mark.parametrize("name", actions.TABLE)
def test_the_option_of_an_action_is_as_in_the_page(name):
    heads = items(section(read_page("tofmipd-filter.5"), "ACTIONS"))
    head = next(head for head in heads if re.match(rf"Cm {name}(?!\w)", head))
    option = actions.TABLE[name].option
    assert ("Ns Oo = Ns" in head) == (option is Option.OPTIONAL)
    assert (f"Cm {name} Ns = Ns Ar" in head) == (option is Option.REQUIRED)


def test_what_is_refused_is_named_in_the_page():
    wrong = set(re.findall(r"[\w-]+", section(read_page("tofmipd-filter.5"), "DIAGNOSTICS")))
    assert wrong >= actions._INCOMING
    assert wrong >= sources.INCOMING


def test_the_limits_of_a_command_are_those_in_the_page():
    text = " ".join(section(read_page("tofmipd-filter.5"), "COMMANDS").split())
    assert f"more than {errands.SHELL_OUTPUT_OCTETS >> 10} KiB" in text
    assert (
        f"longer than {outbound.House.__dataclass_fields__['script_timeout'].default} sec" in text
    )


def test_the_example_filter_does_what_the_page_says():
    rules, *asked = literal_blocks(section(read_page("tofmipd-filter.5"), "EXAMPLES"))[:4]
    parsed = parse_filter(rules, f"{HOME}/.tmda/filters/outgoing")
    for block in asked:
        command, _, report = block.partition("\n")
        words = command.split()
        assert words[:4] == ["$", "tofmipd", "inject", "-M"]
        assert inject.match_report(parsed, *words[4:]) == report.rstrip("\n")


@pytest.fixture
def lists_home(tmp_path):
    """A home with what the page shows of lists and databases."""
    friends, python, rules = literal_blocks(section(read_page("tofmipd-filter.5"), "EXAMPLES"))[5:]
    home = Home(tmp_path)
    # The page looks for the database in the home of who runs the program.
    home.write(".tmda/config", python.replace("~/", f"{tmp_path}/"))
    home.write(".tmda/lists/friends", friends)
    home.write(".tmda/lists/bare", "old@any.example\n")
    home.write(".tmda/filters/outgoing", rules)
    with sqlite3.connect(tmp_path / ".tmda/lists.db") as database:
        database.execute("CREATE TABLE known (addr text unique, action text)")
        rows = [("eve@any.example", "kw=eve"), ("dom.example", None)]
        database.executemany("INSERT INTO known VALUES (?, ?)", rows)
    database.close()
    return home


@pytest.mark.parametrize(
    ("recipient", "decided"),
    [
        ("anna@other.example", "tag from dated=4w"),
        ("bert@cs.uni.example", "tag from bare"),
        ("any@club.example", "tag from kw=club"),
        ("old@any.example", "tag from bare"),
        ("x@sub.shop.example", "tag from kw=shops"),
        ("hotline@any.example", 'tag from dated=3d x-answer-within "3d"'),
        ("Eve@any.example", "tag from kw=eve"),
        ("x@dom.example", "tag from sender"),
        ("diary@any.example", 'tag x-mood shell="date +%A"'),
    ],
)
def test_the_examples_of_lists_and_databases_do_what_the_page_says(lists_home, recipient, decided):
    profile = lists_home.files().profile()
    match = profile.filter.find(recipient.encode(), b"you@example.org", profile.library.reading())
    assert match is not None
    assert match.text.endswith(f" {decided}")


def test_a_recipient_of_the_example_gets_into_its_database_once(lists_home, tmp_path):
    profile = lists_home.files().profile()
    statement = profile.config.db_bare_append
    for _ in range(2):
        profile.library.database.insert(statement, {"recipient": "new@any.example"})
    with sqlite3.connect(tmp_path / ".tmda/lists.db") as database:
        found = database.execute("SELECT addr FROM known WHERE addr LIKE 'new%'").fetchall()
    database.close()
    assert found == [("new@any.example",)]


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("to-file -autocdb -autodbm list bare", "-autodbm"),
        ("to-sql 'SELECT addr FROM known' bare", "-wildcards"),
        ("to-mailman -optional list bare", "-attr"),
    ],
)
def test_options_that_the_page_asks_for_must_be_there(lists_home, rule, word):
    lists_home.write(".tmda/filters/outgoing", f"{rule}\n")
    result = lists_home.run("explain", "--to", "a@b.example")
    assert result.returncode == errors.CONFIG
    assert word in result.stdout


def test_the_example_addresses_are_what_the_actions_make():
    text = section(read_page("tofmipd-filter.5"), "EXAMPLES")
    found = re.search(
        r"Addresses that.*\n\.Li (\S+)\nfor.*\n\.Li (\S+) ,\nwith.*\n\.Li (\S+) ,\nat (\d+)", text
    )
    assert found is not None
    tags = TagSettings(key=bytes.fromhex(found[3]))
    context = Context(tags, found[1].encode(), found[2].encode(), int(found[4]))
    lines = literal_blocks(text)[4].splitlines()
    assert len(lines) == 10
    for line in lines:
        action, address = line.split()
        assert make_address(parse_action(action), context).decode() == address


# tofmipd-auth(5)


def auth_section(title: str, macro: str = "Sh") -> str:
    return section(read_page("tofmipd-auth.5"), title, macro)


def test_the_sources_have_the_names_in_the_page_and_no_others():
    table = section(read_page("tofmipd-auth.5"), "DESCRIPTION")
    shown = set(re.findall(r"Li (\w+(?: , \w+)*) Ta", table))
    kinds = set(re.findall(r'^    name = "(\w+)"', modules_text("auth"), re.M))
    known = kinds | set(auth_sources._NAMES.values()) | {"pop3", "apop"}
    assert {name for names in shown for name in names.split(" , ")} == known
    assert set(options_of("")) >= {f"-{x}" for x in re.findall(r"Fl (-?[\w-]+) Ta", table)}


def modules_text(package: str) -> str:
    return "".join(path.read_text() for path in (ROOT / "tofmipd" / package).glob("*.py"))


def test_every_form_of_a_password_is_in_the_page_and_no_other():
    heads = " ".join(items(auth_section("PASSWORD FILE")))
    with pytest.raises(ValueError, match="there are") as caught:
        hashes.parse_secret(b"{NONE}x")
    known = set(re.findall(r"\b[A-Z][A-Z0-9-]{4,}\b", str(caught.value)))
    assert set(re.findall(r"\{([A-Z0-9-]+)\}", heads)) == known


def test_a_hash_counts_without_braces_where_the_page_says_so():
    text = auth_section("PASSWORD FILE").partition("A text that begins with")[2].split("counts")[0]
    shown = re.findall(r"\$\w+\$", text)
    assert len(shown) == 13
    for beginning in shown:
        assert hashes._MODULAR.fullmatch(f"{beginning}x".encode())
    marks = hashes._MODULAR.pattern.decode().partition("(?:")[2].partition(")")[0]
    assert len(shown) == len(marks.replace("2[aby]", "2a|2b|2y").split("|"))


def test_every_kind_of_server_is_in_the_page_with_its_port():
    entries = items(auth_section("SERVERS"))
    for scheme, port in remote.PORTS.items():
        (said,) = [text for head, text in entries.items() if f" {scheme}:// " in f" {head}"]
        assert re.search(rf"Ports? (?:\d+ and )?{port}\b", said)
    text = " ".join(entries.values())
    for words in (imap._TROUBLE_CODES, pop3._TROUBLE, ldap._REFUSALS.values()):
        assert set(words) <= set(re.findall(r"[\w/-]+", text))


def test_the_limits_of_a_login_are_those_in_the_page():
    text = " ".join(read_page("tofmipd-auth.5").split())
    limits = ProgramLimits()
    assert f"asked {limits.source_attempts} at a time" in text
    assert f"takes {limits.source_timeout:g} seconds" in text
    assert f"more than {asking.PASSWORD_LIMIT_OCTETS} octets" in text
    assert f"longer than {NAME_LIMIT} characters" in text
    assert f"at most {checkpassword.LIMIT_OCTETS} octets" in text
    assert f"{checkpassword._SHOWN_OCTETS} octets of it" in text


@pytest.fixture
def auth_examples() -> list[str]:
    return literal_blocks(auth_section("EXAMPLES"))


def test_the_example_of_a_password_file_lets_all_three_in(auth_examples, tmp_path):
    path = tmp_path / "users"
    path.write_text(auth_examples[0])
    path.chmod(0o600)
    file = PasswordFile(str(path), os.getuid())
    assert file.mechanisms == {"PLAIN", "LOGIN"}
    for name in ("anna", "bert", "chloe"):
        assert file.check(Password(name, b"secret")) is Verdict.ACCEPTED
        assert file.check(Password(name, b"wrong")) is Verdict.REJECTED


def test_the_examples_of_a_map_and_of_senders_have_no_wrong_line(auth_examples, caplog):
    assert len(parse_map("map", auth_examples[1].encode())) == 4
    assert set(parse_senders("senders", auth_examples[2].encode())) == {"bobby", "anna@example.org"}
    assert not caplog.records


@pytest.mark.parametrize(("password", "status"), [("date +%A", 0), ("echo wrong", 1)])
def test_the_example_of_a_program_judges(auth_examples, tmp_path, password, status):
    program = tmp_path / "today"
    program.write_text(auth_examples[3])
    program.chmod(0o700)
    given = subprocess.run(password.split(), capture_output=True, text=True).stdout.strip()
    result = subprocess.run(
        ["sh", "-c", 'exec "$0" true 3<&0', str(program)],
        input=f"anna\0{given}\0Y1\0".encode(),
    )
    assert result.returncode == status


# docs/tools.md


def tools_blocks(beginning: str = "") -> list[str]:
    blocks = code_blocks((ROOT / "docs/tools.md").read_text())
    return [block for block in blocks if block.startswith(beginning)]


@pytest.fixture
def tools_home(tmp_path):
    """The home that docs/tools.md begins with."""
    settings, rules, mail, *_ = tools_blocks()
    home = Home(tmp_path)
    home.write(".tmda/config", settings)
    home.write(".tmda/filters/outgoing", rules)
    home.write("mail.txt", mail)
    home.write("wrong.txt", "to a@* Bare\n# a comment\nform b@* bare\n")
    return home


@pytest.mark.parametrize("block", tools_blocks("$ "))
def test_the_tools_print_what_the_examples_show(tools_home, block):
    said = ""
    for command in re.findall(r"^\$ (.*)$", block, re.M):
        said += f"$ {command}\n{tools_home.shell(command).stdout}"
    said = re.sub(r"tofmipd/[0-9.]+", "tofmipd/0.1.0", said)
    # No two certificates have these in common.
    for line in re.findall(r"(?m)^(?:until|SHA-256): .*$", block):
        said = re.sub(rf"(?m)^{line.partition(':')[0]}: .*$", line, said)
    assert said.replace(str(tools_home.path), HOME) == block


def tagged(kind: str) -> str:
    """An address of the example, good for friend@example.net where that matters."""
    tags = TagSettings(key=bytes.fromhex(KEY))
    context = Context(tags, b"you@example.org", b"friend@example.net", 0)
    return make_address(parse_action(kind), context).decode()


@pytest.fixture
def tag_check(tools_home):
    (script,) = tools_blocks("#!/bin/sh\ntofmipd=")
    (revoked,) = tools_blocks("case $recipient in")
    line = "/opt/tofmipd/bin/tofmipd"
    assert line in script
    script = script.replace(line, str(tools_home.path / "tofmipd"))
    tools_home.write("tag-check", script.replace("case $(", f"{revoked}case $("), 0o700)
    tools_home.write("evil@example.net", f"open({str(tools_home.path / 'taken')!r}, 'w')\n")
    return tools_home


@pytest.mark.parametrize(
    ("recipient", "sender", "status"),
    [
        (tagged("sender"), "friend@example.net", 0),
        (tagged("sender"), "stranger@example.net", 77),
        (tagged("sender"), "", 77),
        (tagged("domain"), "stranger@mail.example.net", 0),
        (tagged("dated=90Y"), "", 0),
        (tagged("dated=1s"), "friend@example.net", 77),
        (tagged("kw=book"), "stranger@example.net", 0),
        (tagged("kw=shop"), "stranger@example.net", 77),
        (tagged("kw=shop").upper(), "stranger@example.net", 77),
        ("you@example.org", "stranger@example.net", 0),
        ("you-dated-x.y@example.org", "stranger@example.net", 77),
        # What begins with "-" is an address like any other.
        (tagged("sender"), "-h", 77),
        (tagged("sender"), "--help", 77),
        (tagged("sender"), "-cevil@example.net", 77),
        (tagged("sender"), "--config=evil@example.net", 77),
        ("-h", "friend@example.net", 0),
        ("-cevil@example.net", "friend@example.net", 0),
        ("$(touch taken)", "`touch taken`", 0),
        ("", "", 0),
    ],
)
def test_the_delivery_script_lets_pass_what_is_good(tag_check, recipient, sender, status):
    by_name = tag_check.shell("./tag-check", RECIPIENT=recipient, SENDER=sender)
    assert (by_name.returncode, by_name.stderr) == (status, "")
    by_word = tag_check.shell('./tag-check "$@"', recipient, sender)
    assert (by_word.returncode, by_word.stderr) == (status, "")
    assert bool(by_name.stdout) == (status == 77)
    assert not (tag_check.path / "taken").exists()


@pytest.mark.parametrize("recipient", [tagged("sender"), "you-confirm-1.2.abcdef@example.org"])
def test_the_delivery_script_refuses_nothing_while_it_cannot_tell(tag_check, recipient):
    (tag_check.path / ".tmda/crypt_key").chmod(0o644)
    assert tag_check.shell("./tag-check", recipient, "a@b.example").returncode == 75
    (tag_check.path / ".tmda/crypt_key").chmod(0o600)
    known = tag_check.shell('./tag-check "$@"', recipient, "friend@example.net").returncode
    assert known == (75 if "confirm" in recipient else 0)


@pytest.mark.parametrize("sender", ["work@example.com", "Me <work@example.com>", "work"])
def test_explain_names_the_rule_that_tags(tools_home, sender):
    rules = "from work@example.com ext=by-rule\nfrom you@example.org ext=by-rule\nto * bare\n"
    tools_home.write(".tmda/filters/outgoing", rules)
    result = tools_home.run("explain", "--to", "a@b.example", "--from", sender)
    assert result.returncode == 0
    assert "ext=by-rule" in result.stdout
    assert "-by-rule@example" in result.stdout


@pytest.fixture
def foreign_home():
    """A home of somebody else, who gets nowhere near the directories of pytest."""
    account = pwd.getpwnam("nobody")
    home = Home(Path(tempfile.mkdtemp(prefix="tofmipd-docs-")))
    config = f'{home.config()}DATADIR = "{home.path}/.tmda"\n'
    home.write(".tmda/config", config)
    home.write(".tmda/filters/outgoing", "to a@* shell=id>&2\nto b@* kw=shop\n")
    for path in [home.path, *home.path.rglob("*")]:
        os.chown(path, account.pw_uid, account.pw_gid)
    yield home
    shutil.rmtree(home.path)


@pytest.mark.root
def test_root_asks_for_a_user_with_his_files_and_rights(foreign_home):
    words = ["--user", "nobody", "-c", ".tmda/config"]
    told = foreign_home.run("explain", *words, "--to", "b@c.example")
    assert (told.returncode, told.stderr) == (0, "")
    assert "you-keyword-shop.89c754@example.org" in told.stdout
    told = foreign_home.run("explain", *words, "--to", "a@c.example")
    assert "uid=65534(nobody)" in told.stdout
    assert "uid=0" not in told.stdout
    made = foreign_home.run("address", *words, "-k", "shop")
    assert (made.returncode, made.stdout) == (0, "you-keyword-shop.89c754@example.org\n")
    checked = foreign_home.run("address", *words, "--check", made.stdout.strip())
    assert (checked.returncode, checked.stdout) == (0, "VALID keyword address\n")


# docs/troubleshooting.md, docs/migrating.md


def rows(document: str, title: str) -> list[list[str]]:
    """The cells of the tables whose first column has that title."""
    text = (ROOT / "docs" / document).read_text()
    tables = re.findall(rf"^\| {re.escape(title)} \|.*\n\|[ -|]*\n((?:\|.*\n)+)", text, re.M)
    lines = "".join(tables).splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def said_by_the_program() -> str:
    """Every text in its source, and what the lines of its log look like."""
    texts = [read_page("tofmipd.8"), (ROOT / "docs/authentication.md").read_text()]
    for path in sorted((ROOT / "tofmipd").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts += [
            n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
    return "\n".join(texts)


def test_the_program_says_what_the_advice_begins_with():
    said = said_by_the_program()
    advice = [*rows("troubleshooting.md", "words"), *rows("troubleshooting.md", "line of the log")]
    assert len(advice) >= 15
    for first, *_ in advice:
        for words in re.findall("`([^`]+)`", first):
            if words not in ("Address already in use", "Permission denied", "Connection refused"):
                assert words.removeprefix("reason=") in said, words


# What the original's reference lists, beside those of help and version.
OPTIONS_OF_THE_ORIGINAL = "-d -L -b -f -u -c -p -6 -C -1 -P -t --ssl --tls --ssl-cert --ssl-key"
OPTIONS_OF_THE_ORIGINAL += " --ciphers -a -A -m -R -S -v -V --version -h"


def test_every_option_of_the_original_is_told_and_understood():
    told = " ".join(row[0] for row in rows("migrating.md", "option of tmda-ofmipd"))
    names = set(re.findall(r"(?<!\S)`?(--?[\w-]+)", told))
    assert names == set(OPTIONS_OF_THE_ORIGINAL.split())
    assert names <= options_of("")


# All documents


def test_the_list_of_documents_is_whole():
    listed = set(re.findall(r"\]\(([\w.-]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_no_sentence_stands_in_two_documents():
    found: dict[str, str] = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = re.sub(r"^ *```.*?```$", "", path.read_text(), flags=re.S | re.M)
        for piece in re.split(r"\n\s*\n|\n *(?:-|[0-9]+\.) |\|", text):
            for sentence in re.split(r"(?<=[.:;]) +", " ".join(piece.split())):
                if len(sentence) >= 45 and re.match("[A-Za-z]", sentence):
                    assert found.setdefault(sentence, path.name) == path.name, sentence


# docs/library.md


@pytest.mark.parametrize("block", code_blocks((ROOT / "docs/library.md").read_text()))
def test_the_examples_of_the_library_work(block, tmp_path):
    home = Home(tmp_path)
    home.write(".tmda/filters/outgoing", "to a@* kw=shop\n")
    program = block.replace(HOME, str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=home.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    if "tag_message" in block:
        assert result.stdout.count("It works.") == 2
        assert "you-keyword-shop.89c754@example.org a@shop.example\n" in result.stdout
        assert re.search(
            r"^you-dated-\d+\.\w{6}@example\.org b@shop\.example$", result.stdout, re.M
        )


# docs/tls.md


@pytest.fixture
def authority(tmp_path):
    """A directory in which the commands for an authority and a login have been given."""
    text = (ROOT / "docs/tls.md").read_text().partition("## Logins by certificate")[2]
    commands = [block for block in code_blocks(text) if block.startswith("openssl req")]
    home = Home(tmp_path)
    for block in commands:
        result = home.shell(f"set -e\n{block}", OPENSSL_CONF="/etc/ssl/openssl.cnf")
        assert result.returncode == 0, result.stderr
    assert "anna.pem: OK" in result.stdout
    return tmp_path


@pytest.mark.peer("openssl")
def test_the_commands_for_logins_by_certificate_make_one(authority):
    certificates = Certificates(str(authority / "ca.pem"))
    shown = x509.load_pem_x509_certificate((authority / "anna.pem").read_bytes())
    der = shown.public_bytes(Encoding.DER)
    assert certificates.check(Certificate("anna", der)) is Verdict.ACCEPTED
    assert certificates.check(Certificate("bert", der)) is Verdict.REJECTED
    assert (authority / "anna.key").stat().st_mode & 0o077 == 0


def test_the_options_of_the_service_are_options_of_the_program(tmp_path):
    (block,) = [b for b in code_blocks((ROOT / "docs/tls.md").read_text()) if "OPTIONS=" in b]
    told = re.search(r'OPTIONS="([^"]*)"', block)
    assert told is not None
    words = told[1].replace("\\\n", " ").split()
    known = options.make_parser().parse_args(words)
    assert [str(place) for place in known.proxyport] == [
        "0.0.0.0:465",
        "0.0.0.0:587",
        "127.0.0.1:8025",
    ]
    assert [place.mode for place in known.ipv6proxyport] == ["ssl", "on"]
    assert "tofmipd -f $OPTIONS" in (ROOT / "etc/systemd/tofmipd.service").read_text()


# docs/clients.md


def test_the_sendmail_command_of_the_examples_sends(tmp_path):
    blocks = code_blocks((ROOT / "docs/clients.md").read_text())
    (command,) = [block for block in blocks if "| tofmipd inject -t" in block]
    home = Home(tmp_path)
    result = home.shell(command)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    assert re.match(r"ARGV: -i -f you-dated-\S+@example\.org -- friend@example\.net\n", home.sent)
    assert home.sent.endswith("\n\nIt works.\n")


MAIL = "To: friend@example.net\nSubject: Hello\n\nIt works.\n"


@pytest.mark.parametrize(
    ("words", "recipients"),
    [
        (["-oi", "-oem", "--", "a@b.example"], "a@b.example"),
        (["-i", "a@b.example", "c@b.example"], "a@b.example c@b.example"),
        (["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "you"], "you"),
        (["-t"], "friend@example.net"),
        (["-i", "-t", "-f", "you@example.org"], "friend@example.net"),
        # What follows "--" is a recipient, whatever it looks like.
        (["-i", "--", "-t"], "-t"),
        (["-i", "--", "-cevil@example.net"], "-cevil@example.net"),
        (["-i", "--", "-M", "a@b.example", "c@d.example"], "-M a@b.example c@d.example"),
        (["--", "a@b.example", "--"], "a@b.example --"),
    ],
)
def test_inject_takes_what_mail_programs_say(tmp_path, words, recipients):
    home = Home(tmp_path)
    home.write(".tmda/filters/outgoing", "to * bare\n")
    home.write("evil@example.net", f"open({str(tmp_path / 'taken')!r}, 'w')\n")
    result = home.run("inject", *words, text=MAIL)
    assert not (tmp_path / "taken").exists()
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
    assert home.sent.startswith(f"ARGV: -i -f you@example.org -- {recipients}\n")


@pytest.mark.parametrize("mode", ["s", "p", "i", "d", "v", "t"])
def test_inject_does_not_take_another_task_for_sending(tmp_path, mode):
    home = Home(tmp_path)
    result = home.run("inject", f"-b{mode}", "a@b.example", text=MAIL)
    assert (result.returncode, home.sent) == (errors.USAGE, "")


@pytest.mark.peer("msmtp")
def test_msmtp_understands_the_example_of_its_configuration(tmp_path):
    text = (ROOT / "docs/clients.md").read_text()
    (block,) = [block for block in code_blocks(text) if block.startswith("account ")]
    path = tmp_path / ".msmtprc"
    path.write_text(block)
    path.chmod(0o600)
    (tmp_path / ".tmda").mkdir()
    (tmp_path / ".tmda" / "tofmipd").write_text("you:secret\n")
    result = subprocess.run(
        ["msmtp", "--pretend", "friend@example.net"],
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    shown = result.stdout + result.stderr
    for line in ("host = localhost", "port = 8025", "auth = PLAIN", "from = you@example.org"):
        assert line in shown
    for line in ("tls = off", "allow_from_override = off", "set_from_header = on"):
        assert line in shown


def test_options_in_the_documents_are_options_of_the_program():
    known = set().union(*map(options_of, ["", *cli.COMMANDS]))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = without_other_programs(path.read_text())
        for command in re.findall(r"tofmipd [^\n`]*", text):
            found = set(re.findall(r"(?<!\S)--[a-z-]+", command))
            assert found <= known, f"{path.name}: {command}"


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert not file or (path.parent / file).exists(), target
        if not file:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {title.lower().replace(" ", "-") for title in titles}, target
