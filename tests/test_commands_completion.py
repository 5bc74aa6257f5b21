"""`tofmipd completion`, asked by the shells themselves."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tofmipd import options
from tofmipd.commands import completion

SHELLS = [pytest.param(name, marks=pytest.mark.peer(name)) for name in ("bash", "zsh", "fish")]
WORDS = ["", *options.COMMANDS]
LIMIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("completion")
    made = {}
    for name in completion._SHELLS:
        made[name] = directory / name
        made[name].write_text(completion.script(name))
    for name in ("file-of-mine", "with blank"):
        (directory / name).touch()
    (directory / "dir-of-mine").mkdir()
    return made


@pytest.mark.parametrize("word", WORDS)
def test_every_option_of_a_word_is_known_with_its_help(word):
    (command,) = [one for one in completion.commands() if one.word == word]
    parser = completion.parser_of(word)
    shown = parser.format_help()
    if parser.takes_daemon_options:
        shown += completion.parser_of("").format_help()
    for option in command.options:
        for name in option.names:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown), name
        assert "".join(option.text.split()) in "".join(shown.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_finds_no_mistake_in_the_script(shell, scripts):
    result = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("shell", completion._SHELLS)
def test_the_tool_prints_the_script_of_the_shell(shell, scripts, capsys):
    assert completion.main([shell]) == 0
    assert capsys.readouterr().out == scripts[shell].read_text()


def test_another_shell_is_a_mistake_of_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        completion.main(["csh"])
    assert ended.value.code == 64
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "zsh" in said


# A command line, and some of what it can become; what stands behind "!" it cannot.
LINES = [
    ("tofmipd --queue-", ["--queue-retry", "--queue-lifetime", "--queue-warning", "!--spool"]),
    ("tofmipd q", ["queue", "!user"]),
    ("tofmipd -f --sender-check ", ["off", "others", "own"]),
    ("tofmipd --sender-check=ot", ["others", "!off"]),
    ("tofmipd queue ", ["list", "show", "retry", "remove"]),
    ("tofmipd queue remove --f", ["--force", "!--foreground"]),
    ("tofmipd user --scheme scram-sha-", ["scram-sha-256", "scram-sha-1", "!plain"]),
    ("tofmipd completion ", ["bash", "zsh", "fish"]),
    ("tofmipd --log-file file-", ["file-of-mine"]),
    ("tofmipd --outbox dir-", ["dir-of-mine"]),
    ("tofmipd explain --to a@b.example file-", ["file-of-mine"]),
    ("tofmipd -u ro", ["root"]),
    ("tofmipd check --pri", ["--print"]),
    ("tofmipd check --spo", ["--spool"]),
]


def check(found: str, wanted: list[str]) -> None:
    for word in wanted:
        there = re.search(rf"(?<![\w-]){re.escape(word.lstrip('!'))}(?![\w-])", found)
        assert bool(there) != word.startswith("!"), (word, found)


@pytest.mark.peer("bash")
@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_bash_completes(line, wanted, scripts):
    # As bash itself does it, "=" is a word.
    words = re.findall(r"=|[^\s=]+", line) + ([""] if line.endswith(" ") else [])
    asked = subprocess.run(
        [
            *("bash", "--norc", "-c"),
            'compopt() { :; }; source "$0"; complete -p tofmipd; COMP_WORDS=("$@");'
            ' COMP_CWORD=$(($# - 1)); _tofmipd; printf "%s\\n" "${COMPREPLY[@]}"',
            *(str(scripts["bash"]), *words),
        ],
        cwd=scripts["bash"].parent,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    told, _, found = asked.stdout.partition("\n")
    assert told == "complete -F _tofmipd tofmipd"
    check(found, wanted)


@pytest.mark.peer("fish")
@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_fish_completes(line, wanted, scripts, tmp_path):
    asked = subprocess.run(
        [
            *("fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"'),
            *(str(scripts["fish"]), line),
        ],
        cwd=scripts["fish"].parent,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert (asked.returncode, asked.stderr) == (0, "")
    check("\n".join(row.partition("\t")[0] for row in asked.stdout.splitlines()), wanted)


Asking = Callable[[str], str]


@pytest.fixture(scope="module")
def zsh(scripts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """A zsh at a terminal; it says what it shows for a line when the key Tab is pressed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(scripts["zsh"].parent)
        home = str(tmp_path_factory.getbasetemp())
        os.execvpe(
            "zsh",
            ["zsh", "-f", "-i"],
            {"PATH": os.environ["PATH"], "HOME": home, "TERM": "dumb", "COLUMNS": "300"},
        )

    numbers = itertools.count()

    def obey(words: str) -> str:
        """What it shows until it has run a command behind what has been typed."""
        number = next(numbers)
        os.write(terminal, f"{words}print -n 'end''{number}.'\n".encode())
        shown, deadline = b"", time.monotonic() + LIMIT_SECONDS
        while b"end%d." % number not in shown:
            ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
            assert ready, shown
            shown += os.read(terminal, 65536)
        return shown.decode(errors="replace")

    obey(
        "PS1=; unsetopt list_ambiguous; autoload -U compinit; compinit -D;"
        " take() { print -r -- \"<$BUFFER>\"; BUFFER= }; zle -N take; bindkey '^X' take;"
        f" source {scripts['zsh']}; "
    )
    yield lambda line: obey(f"{line}\t\x18")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)


@pytest.mark.peer("zsh")
@pytest.mark.parametrize(("line", "wanted"), LINES)
def test_zsh_completes(line, wanted, zsh):
    check(zsh(line), wanted)
