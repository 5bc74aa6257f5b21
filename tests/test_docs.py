"""The documents, held against the program: options, settings, actions, examples, links."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tofmipd
import tofmipd.privsep
from tofmipd import cli, errors, options
from tofmipd.commands import inject
from tofmipd.smtp import replies
from tofmipd.smtp.reply import Reply
from tofmipd.tmda import actions, config, userfiles
from tofmipd.tmda import filter as filter_module
from tofmipd.tmda.actions import Action, Context, Option, make_address, parse_action
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.cookies import TagSettings
from tofmipd.tmda.filter import parse_filter

ROOT = Path(__file__).parent.parent
MAN = ROOT / "docs" / "man"
PAGES = ["tofmipd.8", "tofmipd.conf.5", "tofmipd-filter.5"]
HOME = "/home/you"


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
    return re.findall(r"^```\w*\n(.*?)^```$", markdown, re.S | re.M)


# The manual pages as such


@pytest.mark.peer("mandoc")
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_to_complain_about(name):
    result = subprocess.run(
        ["mandoc", "-Tlint", "-W", "warning", str(MAN / name)], capture_output=True, text=True
    )
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


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


@pytest.mark.parametrize("action", parser_actions(), ids=lambda a: a.option_strings[-1])
def test_what_is_not_built_yet_is_marked_and_nothing_else(action):
    assert ("Not built yet." in entry_of(action)) == (action.dest in cli._NOT_BUILT_YET)


@pytest.mark.parametrize(
    "action",
    [a for a in parser_actions() if a.default and isinstance(a.default, str | int | float)],
    ids=lambda a: a.option_strings[-1],
)
def test_a_default_is_the_one_in_the_page(action):
    if isinstance(action.default, bool):
        pytest.skip("a flag")
    shown = str(action.default).removesuffix(".0")
    assert re.search(rf"Default:\s+(?:\.Li )?{re.escape(shown)}[\s.,(]", entry_of(action))


def tool_help(word: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main([word, "--help"])
    return capsys.readouterr().out


def test_every_tool_has_its_part():
    tools = section(read_page("tofmipd.8"), "TOOLS")
    assert re.findall(r"^\.Ss (.*)$", tools, re.M) == list(cli.COMMANDS)


@pytest.mark.parametrize("word", cli.COMMANDS)
def test_every_option_of_a_tool_is_in_the_page_and_no_other(word, capsys):
    entries = items(section(section(read_page("tofmipd.8"), "TOOLS"), word, "Ss"))
    help_text = tool_help(word, capsys).partition("options:")[2]
    known = set(re.findall(r"(?<!\S)(--?[a-zA-Z][a-z-]*)", help_text)) - {"-h", "--help"}
    heads = "\n".join(entries)
    found = long_options(heads) | {f"-{name}" for name in re.findall(r"Fl (\w)(?!\S)", heads)}
    assert found == known


def test_the_rest_of_the_page_names_no_unknown_option(capsys):
    text = without_other_programs(read_page("tofmipd.8"))
    known = {name for action in parser_actions() for name in action.option_strings}
    for word in cli.COMMANDS:
        known |= set(re.findall(r"--[a-z-]+", tool_help(word, capsys)))
    mentioned = long_options(text) | set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert mentioned - known == {"--option"}


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
    read = re.findall(r'environ\.get\("(\w+)"', (ROOT / "tofmipd/cli.py").read_text())
    # USER is for a uid without an account.
    assert {head.removeprefix("Ev ") for head in items(text)} == {*read} - {"USER"}


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


def test_settings_without_effect_are_named_and_no_other():
    heads = items(section(read_page("tofmipd.conf.5"), "NOT BUILT YET"))
    assert {head.removeprefix("Va ") for head in heads} == set(config._NOT_BUILT_YET)


def shown_default(value: object) -> str | None:
    """How the page shows a default; None where it says it in words."""
    match value:
        case "" | ():
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
}


@pytest.mark.parametrize("name", config.SETTINGS)
def test_a_setting_takes_the_type_in_the_page_and_refuses_others(name):
    convert = config.SETTINGS[name].metadata["convert"]
    kind = documented_settings()[name][0]
    values = {"MAIL_TRANSPORT": "smtp", "RECEIVED": "full", "ACTION_OUTGOING": "bare"}
    convert(values.get(name, GIVEN[kind]))
    assert config.SETTINGS[name].metadata["path"] == (kind == "path")
    for other, value in GIVEN.items():
        if other != kind and {other, kind} not in ({"text", "path"}, {"flag", "number"}):
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
    python, ini = literal_blocks(section(read_page("tofmipd.conf.5"), "DESCRIPTION"))
    one = configured(tmp_path, python, "")
    assert (one.username, one.dated_timeout, one.smtphost) == ("you", "2w", "mail.example.org:587")
    assert (one.mail_transport, one.smtpssl, one.smtpauth_username) == ("smtp", True, "you")
    assert one.added_headers_client == (("X-Primary-Address", "you@example.org"),)
    two = configured(tmp_path, ini, "CONFIG_EXEC = False\n")
    assert (two.username, two.hmac_bytes, two.smtpssl) == ("you", 5, True)
    assert (two.smtpauth_password, two.tags_dated) == ("12%34", ("until", "dated"))
    assert two.added_headers_client == (("X-Primary-Address", "you@example.org"),)


CLEANED = """\
import os
from tofmipd.globalmode import _clean_environment
from tofmipd.privsep.identity import Identity
_clean_environment(Identity("you", "you"), "/home/you")
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
    found = [re.match(r"Cm (\w+)(?!\S)", head) for head in heads]
    assert all(found), heads
    return {match[1] for match in found if match}


def test_every_source_is_in_the_page_and_no_other():
    assert names_of("SOURCES") == set(filter_module.SOURCES)


def test_every_action_is_in_the_page_and_no_other():
    assert names_of("ACTIONS") == {*actions.TABLE, actions.DEFAULT}


@pytest.mark.parametrize("name", actions.TABLE)
def test_the_option_of_an_action_is_as_in_the_page(name):
    heads = items(section(read_page("tofmipd-filter.5"), "ACTIONS"))
    head = next(head for head in heads if re.match(rf"Cm {name}(?!\w)", head))
    option = actions.TABLE[name].option
    if name == "bare":  # it takes one, but only for what is not built yet
        option = Option.NONE
    assert ("Ns Oo = Ns Ar" in head) == (option is Option.OPTIONAL)
    assert (f"Cm {name} Ns = Ns Ar" in head) == (option is Option.REQUIRED)


def test_what_is_refused_is_named_in_the_page():
    text = read_page("tofmipd-filter.5")
    missing = set(re.findall(r"[\w-]+", section(text, "NOT BUILT YET")))
    assert actions._NOT_BUILT_YET | {"include", "macro", "append"} <= missing
    for suffix in ("file", "cdb", "dbm", "ezmlm", "mailman", "sql"):
        assert filter_module._NOT_BUILT_YET.fullmatch(f"to-{suffix}")
        assert {f"to-{suffix}", f"-{suffix}"} & missing
    wrong = set(re.findall(r"[\w-]+", section(text, "DIAGNOSTICS")))
    assert wrong >= actions._INCOMING
    assert wrong >= set(filter_module._INCOMING.pattern.split("|"))


def test_the_example_filter_does_what_the_page_says():
    rules, *asked, _ = literal_blocks(section(read_page("tofmipd-filter.5"), "EXAMPLES"))
    parsed = parse_filter(rules, f"{HOME}/.tmda/filters/outgoing")
    assert len(asked) == 3
    for block in asked:
        command, _, report = block.partition("\n")
        words = command.split()
        assert words[:4] == ["$", "tofmipd", "inject", "-M"]
        assert inject.match_report(parsed, *words[4:]) == report.rstrip("\n")


def test_the_example_addresses_are_what_the_actions_make():
    text = section(read_page("tofmipd-filter.5"), "EXAMPLES")
    found = re.search(
        r"Addresses that.*\n\.Li (\S+)\nfor.*\n\.Li (\S+) ,\nwith.*\n\.Li (\S+) ,\nat (\d+)", text
    )
    assert found is not None
    tags = TagSettings(key=bytes.fromhex(found[3]))
    context = Context(tags, found[1].encode(), found[2].encode(), int(found[4]))
    lines = literal_blocks(text)[-1].splitlines()
    assert len(lines) == 10
    for line in lines:
        action, address = line.split()
        assert make_address(parse_action(action), context).decode() == address


# docs/clients.md


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


def test_options_in_the_documents_are_options_of_the_program(capsys):
    known = {name for action in parser_actions() for name in action.option_strings}
    for word in cli.COMMANDS:
        known |= set(re.findall(r"--[a-z-]+", tool_help(word, capsys)))
    for name in ("docs/clients.md", "docs/differences.md", "docs/security.md", "README.md"):
        text = without_other_programs((ROOT / name).read_text())
        commands = re.findall(r"tofmipd [^\n`]*", text)
        for command in commands:
            found = set(re.findall(r"(?<!\S)--[a-z-]+", command))
            assert found <= known, f"{name}: {command}"


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda path: path.name,
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
