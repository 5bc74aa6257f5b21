"""`tofmipd queue`: what waits for the next hop, for the user and for root."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tofmipd.arguments import Parser
from tofmipd.commands import queuetext, queuework
from tofmipd.commands.queueboxes import AS_DAEMON, Box, boxes_of, settings_for, who_tries
from tofmipd.errors import (
    CONFIG,
    DATA,
    NO_INPUT,
    PERMISSION,
    TEMPORARY,
    UNAVAILABLE,
    USAGE,
    Fatal,
)
from tofmipd.privsep.deputy import Deputy, DeputyFailed
from tofmipd.privsep.users import User
from tofmipd.settings import GLOBAL_OUTBOXES, Settings

_USAGE = """tofmipd queue [list] [--outbox DIR] [--json]
       tofmipd queue show [--outbox DIR] [--body] [--json] ID
       tofmipd queue retry [--outbox DIR] [daemon's options] ID ... | --all | --due
       tofmipd queue remove [--outbox DIR] [--force] ID ..."""
_DESCRIPTION = """\
List, show, try and remove the messages that wait for the next hop: your own, or as root
those of all users.  A running tofmipd does not mind."""
# The options besides --outbox and --personal that a verb takes.
_OPTIONS = {
    "list": {"json"},
    "show": {"json", "body"},
    "retry": {"all", "due", "pure_proxy", *AS_DAEMON},
    "remove": {"force"},
}
# Of one message: itself and the reports for its copies.
_MOST_LINES = 10_000
# The graver one first: a run has one status for all that came of it.
_GRAVITY = (CONFIG, PERMISSION, TEMPORARY, UNAVAILABLE, DATA, 0)
_STATUS = {
    queuework.SENT: 0,
    queuework.REMOVED: 0,
    queuework.GONE: 0,
    queuework.WAITS: TEMPORARY,
    queuework.HELD: TEMPORARY,
    queuework.FAILED: UNAVAILABLE,
    queuework.BROKEN: DATA,
    queuework.MISCONFIGURED: CONFIG,
}

Line = dict[str, Any]
Work = Callable[[], Iterator[Line]]


# A message, by its outbox and its id.
Found = Mapping[Box, Sequence[str]]


def main(arguments: list[str]) -> int:
    """Do what the verb says; the exit status."""
    options = _parse(arguments)
    logging.getLogger("tofmipd").addHandler(logging.NullHandler())
    tool = _Tool(settings_for(options))
    match options.verb:
        case "list":
            _list(tool, as_json=options.json)
        case "show":
            _show(tool, options)
        case "retry":
            _retry(tool, options)
        case "remove":
            _remove(tool, options)
    return tool.status


@dataclass(slots=True)
class _Tool:
    """What this run is about, and what it ends with."""

    settings: Settings
    status: int = 0
    faults: int = 0
    _ids: dict[Box, list[str]] | None = None

    def came_to(self, status: int) -> None:
        self.status = min(self.status, status, key=_GRAVITY.index)

    def fault(self, status: int, text: str) -> None:
        """Say what went wrong, and go on."""
        print(f"tofmipd queue: {queuetext.shown(text)}", file=sys.stderr)
        self.faults += 1
        self.came_to(status)

    def run(self, box: Box, work: Work, deputy: Deputy | None = None) -> Iterator[Line]:
        """Have it done as the owner of the outbox."""
        deputy = deputy or box.deputy
        if deputy is None:
            yield from work()
            return
        try:
            with contextlib.closing(deputy.lines(work)) as lines:
                yield from lines
        except DeputyFailed as error:
            self.fault(TEMPORARY, f"{box.directory}: the process for {box.user} {error}")
        except OSError as error:
            self.fault(TEMPORARY, f"{box.directory}: no process for {box.user}: {error.strerror}")

    def found(self) -> Found:
        """All messages.  Raises Fatal."""
        if self._ids is None:
            self._ids = {}
            for box in boxes_of(self.settings, lambda text: self.fault(CONFIG, text)):
                ids = self._ids_in(box)
                if ids:
                    self._ids[box] = ids
        return self._ids

    def _ids_in(self, box: Box) -> list[str]:
        ids: list[str] = []
        for line in self.run(box, lambda: queuework.names(box.directory)):
            if "fault" in line:
                status = PERMISSION if line["denied"] else TEMPORARY
                self.fault(status, f"{box.directory}: {line['fault']}")
            else:
                ids += line["ids"]
        return ids

    def find(self, wanted: Sequence[str]) -> Found:
        """Those with these ids, none if nothing can be seen.  Raises Fatal unless all are there."""
        everything = self.found()
        if self.status and not everything:
            return {}
        known = sorted({id_ for ids in everything.values() for id_ in ids})
        for id_ in wanted:
            if id_ not in known:
                near = difflib.get_close_matches(id_, known, 1)
                hint = f"did you mean {queuetext.shown(near[0])}?" if near else "'list' shows all"
                raise Fatal(NO_INPUT, f"there is no message {id_!r}; {hint}")
        chosen = {box: [id_ for id_ in ids if id_ in wanted] for box, ids in everything.items()}
        return {box: ids for box, ids in chosen.items() if ids}

    def due(self) -> Found:
        """Those whose time has come."""
        now = time.time()
        ripe = {}
        for box, ids in self.found().items():
            lines = self.run(box, _look_at(box, ids, texts=False))
            told = {line["id"] for line in lines if _is_due(line["next_attempt"], now)}
            chosen = [id_ for id_ in ids if id_ in told]
            if chosen:
                ripe[box] = chosen
        return ripe

    def described(self, found: Found, *, texts: bool = False) -> list[Line]:
        """What is known of them, with the user; the oldest first."""
        told = []
        for box, ids in found.items():
            work = _look_at(box, ids, texts=texts)
            told += [line | {"user": box.user} for line in self.run(box, work)]
        return sorted(told, key=lambda line: (line["arrived"] or 0, line["id"]))


def _is_due(moment: object, now: float) -> bool:
    return isinstance(moment, int | float) and moment <= now


def _look_at(box: Box, ids: Sequence[str], *, texts: bool) -> Work:
    return lambda: queuework.look(box.directory, ids, texts=texts)


# list, show


def _list(tool: _Tool, *, as_json: bool) -> None:
    messages = tool.described(tool.found())
    if as_json:
        print(json.dumps([queuetext.for_programs(message) for message in messages], indent=2))
    elif messages:
        for line in queuetext.table(messages, users=tool.settings.global_mode is not None):
            print(line)
    elif not tool.status:
        print("nothing waits for the next hop")


def _show(tool: _Tool, options: argparse.Namespace) -> None:
    found = tool.find(options.ids)
    for box in found:
        messages = tool.described({box: found[box]}, texts=True)
        if not messages and not tool.status:
            raise Fatal(NO_INPUT, f"the message {options.ids[0]!r} has gone just now")
        for message in messages:
            body = _body(tool, box, message) if options.body else None
            if options.json:
                told = queuetext.for_programs(message)
                more = {} if body is None else {"body": "".join(body)}
                print(json.dumps(told | more, indent=2))
                continue
            for line in queuetext.report(message):
                print(line)
            if body is not None:
                print()
                for line in queuetext.lines(body):
                    print(line)


def _body(tool: _Tool, box: Box, message: Line) -> Iterator[str]:
    """In pieces."""
    if message["state"] == "broken":
        return
    for line in tool.run(box, lambda: queuework.read(box.directory, message)):
        if "fault" in line:
            tool.fault(DATA, f"{message['id']}: {line['fault']}")
        else:
            yield line["text"]


# retry, remove


def _retry(tool: _Tool, options: argparse.Namespace) -> None:
    found = _chosen(tool, options)
    if not found and not options.due and not tool.status:
        print("nothing waits for the next hop")
    for box, ids in found.items():
        try:
            deputy, user_named = who_tries(tool.settings, box)
        except Fatal as error:
            tool.fault(error.status, f"{box.directory}: {error}")
            continue
        lines = tool.run(box, _trial(tool.settings, box, user_named, ids), deputy)
        _tell(tool, box, lines, ids)


def _chosen(tool: _Tool, options: argparse.Namespace) -> Found:
    if options.due:
        return tool.due()
    return tool.found() if options.all else tool.find(options.ids)


def _trial(
    settings: Settings, box: Box, user_named: Callable[[str], User], ids: Sequence[str]
) -> Work:
    return lambda: queuework.retry(settings, box.directory, user_named, ids)


def _tell(tool: _Tool, box: Box, lines: Iterable[Line], ids: Iterable[str]) -> None:
    """Print what came of messages.  A process that has run a user's files may say anything."""
    asked = tuple(ids)
    missing = set(asked)
    faults = tool.faults
    for number, line in enumerate(lines):
        good = _is_outcome(line) and line["id"].startswith(asked)
        if not good or number > _MOST_LINES * len(asked):
            tool.fault(TEMPORARY, f"{box.directory}: the process for {box.user} talks nonsense")
            return
        missing.discard(line["id"])
        print(queuetext.outcome(line), flush=True)
        tool.came_to(_STATUS[line["outcome"]])
    if missing and tool.faults == faults:
        text = f"the process for {box.user} has ended without a word on {min(missing)}"
        tool.fault(TEMPORARY, f"{box.directory}: {text}")


def _is_outcome(line: Line) -> bool:
    numbers = [line.get(name, 0) for name in ("taken", "refused", "waiting", "lost")]
    due = line.get("next_attempt")
    return (
        isinstance(line.get("id"), str)
        and isinstance(line.get("outcome"), str)
        and line["outcome"] in _STATUS
        and all(number is None or isinstance(number, int) for number in numbers)
        and (due is None or (isinstance(due, int | float) and 0 <= due < 1 << 40))
    )


def _remove(tool: _Tool, options: argparse.Namespace) -> None:
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if not options.force and not terminal:
        text = "remove asks first, and standard input is no terminal; --force removes at once"
        raise Fatal(USAGE, text)
    found = tool.find(options.ids)
    if found and not options.force and not _confirmed(tool, found):
        print("nothing is removed")
        return
    for box, ids in found.items():
        _tell(tool, box, tool.run(box, _removal(box, ids)), ids)


def _removal(box: Box, ids: Sequence[str]) -> Work:
    return lambda: queuework.remove(box.directory, ids)


def _confirmed(tool: _Tool, found: Found) -> bool:
    messages = tool.described(found)
    lost = sum(message["waiting"] + message["refused"] for message in messages)
    what = queuetext.several(len(messages), "message")
    whom = queuetext.several(lost, "recipient")
    print(f"Remove {what}?  {whom} will never get it. [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def make_parser() -> Parser:
    parser = Parser("tofmipd queue", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("words", nargs="*", help=argparse.SUPPRESS)
    parser.verbs = tuple(_OPTIONS)
    add(
        "--outbox",
        metavar="DIR",
        default="",
        help=f"where they are (default: ~/.tmda/outbox, {GLOBAL_OUTBOXES}/USER; root: all of"
        f" {GLOBAL_OUTBOXES})",
    )
    add("--personal", action="store_true", help="as root: your own")
    add("--json", action="store_true", help="list: print a JSON array; show: an object")
    add("--body", action="store_true", help="show: the body, too")
    add("--all", action="store_true", help="retry: all, also those that have failed")
    add("--due", action="store_true", help="retry: those whose time has come, if there are any")
    add(
        "-c",
        "--configdir",
        metavar="DIR",
        default="",
        help="retry: the configuration of each login is DIR/USER/config",
    )
    add(
        "-S",
        "--vhome-script",
        metavar="PATH",
        default="",
        help="retry: the script that knows the homes of virtual users",
    )
    add(
        "-P",
        "--pure-proxy",
        action="store_true",
        help="retry: by sendmail for users without a configuration",
    )
    add("--relay", metavar="HOST[:PORT],...", default="", help="retry: as for the daemon")
    add("--relay-tls", metavar="MODE", default="", help="retry: likewise")
    add("--relay-ca", metavar="FILE", default="", help="retry: likewise")
    add("--force", action="store_true", help="remove: without asking")
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_words(arguments)
    _check(parser, options)
    return options


def _check(parser: Parser, options: argparse.Namespace) -> None:
    verb, *ids = options.words or ["list"]
    if verb not in _OPTIONS:
        parser.error(f"the first word is one of {', '.join(_OPTIONS)}; see --help")
    for option in sorted(set().union(*_OPTIONS.values())):
        if getattr(options, option) and option not in _OPTIONS[verb]:
            parser.error(f"{verb} takes no --{option.replace('_', '-')}")
    if verb == "list" and ids:
        parser.error("list takes no ID; 'show ID' tells all about one")
    if verb == "show" and len(ids) != 1:
        parser.error("show takes one ID; 'list' shows all")
    if verb == "retry" and bool(ids) + options.all + options.due != 1:
        parser.error("retry takes IDs, or --all, or --due")
    if verb == "remove" and not ids:
        parser.error("remove takes IDs; 'list' shows all")
    options.verb, options.ids = verb, ids
