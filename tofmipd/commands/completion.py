"""`tofmipd completion`: what a shell needs to complete command lines, made from the parsers."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from tofmipd import options as daemon
from tofmipd.arguments import Parser

_USAGE = """tofmipd completion bash | zsh | fish

       tofmipd completion bash >~/.local/share/bash-completion/completions/tofmipd
       tofmipd completion fish >~/.config/fish/completions/tofmipd.fish"""
_DESCRIPTION = """\
Print what makes a shell complete the words and options of tofmipd.  For zsh the file is
_tofmipd in a directory of its fpath; "source <(tofmipd completion zsh)" does as well."""
# What a value is, by its name in the help.
_KINDS = {"FILE": "files", "PATH": "files", "PROGRAM": "files", "MESSAGE": "files"}
_KINDS |= {"DIR": "directories", "USER": "users"}


@dataclass(frozen=True)
class Value:
    """What may follow an option, or stand alone: one of ``choices``, or of a ``kind``.

    The kind is "files", "directories", "users", or "" where nothing can be said.
    """

    name: str
    kind: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """``value`` is None for a flag; one that is not ``needed`` stands behind "=" only."""

    names: tuple[str, ...]
    text: str
    value: Value | None = None
    needed: bool = True


@dataclass(frozen=True)
class Command:
    """The command line behind a word; that of the daemon has the word ""."""

    word: str
    text: str
    options: tuple[Option, ...]
    operands: Value


def main(arguments: list[str]) -> int:
    """Print the script for a shell."""
    options = make_parser().parse_known(arguments)
    print(script(options.shell), end="")
    return 0


def make_parser() -> Parser:
    parser = Parser("tofmipd completion", _DESCRIPTION, _USAGE)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("shell", choices=tuple(_SHELLS), metavar="SHELL", help=", ".join(_SHELLS))
    return parser


def script(shell: str) -> str:
    return _SHELLS[shell](commands())


def commands() -> tuple[Command, ...]:
    words = {"": "the daemon", **daemon.COMMANDS}
    return tuple(_command(word, text) for word, text in words.items())


def parser_of(word: str) -> Parser:
    """The parser of a tool, or of the daemon for ""."""
    if not word:
        return daemon.make_parser()
    module = importlib.import_module(f"tofmipd.commands.{word}")
    return cast(Callable[[], Parser], module.make_parser)()


def _command(word: str, text: str) -> Command:
    parser = parser_of(word)
    # argparse has no public way to ask for what has been added.
    flags = [_option(action) for action in parser._actions if action.option_strings]
    if parser.takes_daemon_options:
        own = {name for option in flags for name in option.names}
        flags += [one for one in _command("", "").options if not own & {*one.names}]
    operands = [_value(action) for action in parser._actions if not action.option_strings]
    if not word or parser.verbs:
        operands = [Value("WORD", choices=parser.verbs if word else tuple(daemon.COMMANDS))]
    return Command(word, text, tuple(flags), operands[0] if operands else Value(""))


def _option(action: argparse.Action) -> Option:
    text = (action.help or "").replace("%%", "%")
    if action.nargs == 0:
        return Option(tuple(action.option_strings), text)
    return Option(tuple(action.option_strings), text, _value(action), action.nargs != "?")


def _value(action: argparse.Action) -> Value:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    choices = tuple(str(choice) for choice in action.choices or ())
    return Value(name, "" if choices else _KINDS.get(name, ""), choices)


def _bash(commands: tuple[Command, ...]) -> str:
    return f"""\
# Completion of tofmipd for bash.
_tofmipd() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    local word= kind= choices= options= IFS=$' \\t\\n'
    # bash takes "=" for a word of its own.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    if ((COMP_CWORD > 1)) && [[ ${{COMP_WORDS[1]}} != -* ]]; then
        word=${{COMP_WORDS[1]}}
    fi
    case $word in
{"".join(_bash_cases(commands))}\
    esac
    if [[ -z $kind && $current == -* ]]; then
        choices=$options
    fi
    case $kind in
    files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    directories) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    users) mapfile -t COMPREPLY < <(compgen -u -- "$current") ;;
    unknown) COMPREPLY=() ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$current") ;;
    esac
}}
complete -F _tofmipd tofmipd
"""


def _bash_cases(commands: tuple[Command, ...]) -> Iterator[str]:
    for command in commands:
        names = " ".join(name for option in command.options for name in option.names)
        yield f"    {command.word or chr(39) * 2})\n"
        yield f"        options={shlex.quote(names)} {_bash_choices(command.operands)}\n"
        yield "        case $previous in\n"
        for option in command.options:
            if option.value is not None and option.needed:
                yield f"        {' | '.join(option.names)}) {_bash_value(option.value)} ;;\n"
        if command.operands.kind:
            yield f"        *) [[ $current == -* ]] || kind={command.operands.kind} ;;\n"
        yield "        esac\n        ;;\n"


def _bash_choices(value: Value) -> str:
    return f"choices={shlex.quote(' '.join(value.choices))}"


def _bash_value(value: Value) -> str:
    if value.choices:
        return f"kind=choices {_bash_choices(value)}"
    return f"kind={value.kind or 'unknown'}"


def _zsh(commands: tuple[Command, ...]) -> str:
    cases = "".join(
        f"  {command.word or chr(39) * 2})\n    _arguments -s : \\\n{_zsh_specs(command)} ;;\n"
        for command in commands
    )
    return f"""\
#compdef tofmipd
# Completion of tofmipd for zsh.
_tofmipd() {{
  local word=
  if (( CURRENT > 2 )) && [[ $words[2] != -* ]]; then
    word=$words[2]
    shift words
    (( CURRENT-- ))
  fi
  case $word in
{cases}\
  esac
}}
if [[ $funcstack[1] == _tofmipd ]]; then
  _tofmipd "$@"
else
  compdef _tofmipd tofmipd
fi
"""


def _zsh_specs(command: Command) -> str:
    specs = [_zsh_option(name, option) for option in command.options for name in option.names]
    operands = command.operands
    if not command.word:
        rows = [
            f"{word}\\:{shlex.quote(_zsh_text(text))}" for word, text in daemon.COMMANDS.items()
        ]
        specs.append(f"1:word:(({' '.join(rows)}))")
    elif operands.name:
        specs.append(f"*:{_zsh_text(operands.name)}:{_zsh_action(operands)}")
    return " \\\n".join(f"      {shlex.quote(spec)}" for spec in specs)


def _zsh_option(name: str, option: Option) -> str:
    text = f"[{_zsh_text(option.text)}]"
    if option.value is None:
        return f"*{name}{text}"
    equals = "" if not name.startswith("--") else "=" if option.needed else "=-"
    colon = ":" if option.needed else "::"
    return f"*{name}{equals}{text}{colon}{_zsh_text(option.value.name)}:{_zsh_action(option.value)}"


def _zsh_action(value: Value) -> str:
    if value.choices:
        return f"({' '.join(value.choices)})"
    return {"files": "_files", "directories": "_files -/", "users": "_users"}.get(value.kind, " ")


def _zsh_text(text: str) -> str:
    for special in ("\\", ":", "[", "]"):
        text = text.replace(special, f"\\{special}")
    return text


def _fish(commands: tuple[Command, ...]) -> str:
    return f"""\
# Completion of tofmipd for fish.
function __tofmipd_word
    set -l words (commandline -opc)
    if set -q words[2]; and not string match -q -- '-*' $words[2]
        test "$words[2]" = "$argv[1]"
    else
        test -z "$argv[1]"
    end
end
function __tofmipd_begins
    test (count (commandline -opc)) -eq 1
end
complete -c tofmipd -f
{"".join(_fish_lines(commands))}"""


def _fish_lines(commands: tuple[Command, ...]) -> Iterator[str]:
    for word, text in daemon.COMMANDS.items():
        yield f"complete -c tofmipd -n __tofmipd_begins -a {word} -d {_fish_text(text)}\n"
    for command in commands:
        condition = _fish_text(f"__tofmipd_word {command.word or chr(34) * 2}")
        for option in command.options:
            words = [_fish_name(name) for name in option.names]
            if option.value is not None and option.needed:
                words.append(_fish_value(option.value))
            words.append(f"-d {_fish_text(option.text)}")
            yield f"complete -c tofmipd -n {condition} {' '.join(words)}\n"
        if command.word and (command.operands.kind or command.operands.choices):
            yield f"complete -c tofmipd -n {condition} {_fish_operands(command.operands)}\n"


def _fish_name(name: str) -> str:
    return f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"


def _fish_operands(value: Value) -> str:
    return _fish_value(value).removeprefix("-x ").removeprefix("-r ")


def _fish_value(value: Value) -> str:
    """With -x, an option has a value that is no file; with -r, one that may be."""
    kinds = {"files": "-r -F", "directories": "-x -a '(__fish_complete_directories)'"}
    kinds |= {"users": "-x -a '(__fish_complete_users)'"}
    if value.choices:
        return f"-x -a {_fish_text(' '.join(value.choices))}"
    return kinds.get(value.kind, "-x")


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
