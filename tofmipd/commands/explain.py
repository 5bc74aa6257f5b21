"""`tofmipd explain`: what would become of a message, and why (feature row BX-26)."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from typing import IO, Any

from tofmipd.arguments import Parser
from tofmipd.cli import host_name, person
from tofmipd.commands.inject import ProgramStamps, Reading, standard_input
from tofmipd.commands.userprofile import become_user, from_here, own_files
from tofmipd.content import Content, as_local_text, as_wire_text
from tofmipd.errors import CONFIG, DATA, UNAVAILABLE, Fatal
from tofmipd.handoff.sendmail import sendmail_program
from tofmipd.privsep.errands import Errands, variables_of
from tofmipd.privsep.submission import parsed_header
from tofmipd.settings import ProgramLimits
from tofmipd.smtp.envelope import Envelope
from tofmipd.tmda import header
from tofmipd.tmda.actions import Action, Shell
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import FilterError, KeyFileError, MessageError, TagError, UserFileError
from tofmipd.tmda.files import Files
from tofmipd.tmda.filter import Match
from tofmipd.tmda.header import Field
from tofmipd.tmda.inject import Message, Outside, Tagged, own_address, tag_message
from tofmipd.tmda.override import Override, take_override

_USAGE = """tofmipd explain [-c CONFIG] [-O FILTER] [--user USER] [--json]
                       --to RECIPIENT [--from SENDER] [MESSAGE]"""
_DESCRIPTION = """\
Say which rule decides for a recipient and what becomes of the message; nothing is sent.
Commands of shell= actions are run, for they make the address.  MESSAGE is a file, - for
standard input; without it a message that has nothing but From is asked about."""


@dataclass(slots=True)
class Explanation:
    """All that is told.  ``errors`` are file, line and message, as far as each is known."""

    match: Match | None = None
    override: str = ""
    default: Action | None = None
    filter_path: str = ""
    copies: list[Tagged] = field(default_factory=list)
    before: list[Field] = field(default_factory=list)
    next_hop: str = ""
    errors: list[tuple[str, int, str]] = field(default_factory=list)
    status: int = 0


def main(arguments: list[str]) -> int:
    """Explain; 0 if the message could be sent, 78 or 65 if the user's files or it have errors."""
    options = make_parser().parse_known(arguments)
    # What is read for the user is read before his rights are taken.
    content = _content(options)
    if options.user:
        options.config, options.filter = from_here(options.config), from_here(options.filter)
        become_user(options.user)
    try:
        explanation = explained(options, content)
    finally:
        content.close()
    if options.json:
        print(json.dumps(as_json(explanation), indent=2))
    else:
        print(as_text(explanation, options.to))
    return explanation.status


def explained(options: argparse.Namespace, content: Content) -> Explanation:
    """What would become of the message; ``options`` are config, filter, sender and to.

    Raises Fatal.
    """
    told = Explanation()
    try:
        _explain(told, options, content)
    except MessageError as error:
        told.errors.append(("", 0, str(error)))
        told.status = DATA
    except UserFileError as error:
        each = [error, *error.others] if isinstance(error, FilterError) else [error]
        told.errors += [(one.path, one.line, one.problem) for one in each]
        told.status = CONFIG
    return told


def _content(options: argparse.Namespace) -> Content:
    """The message asked about.  Raises Fatal."""
    content = Content()
    try:
        if options.message == "-":
            _fill(content, standard_input())
        elif options.message:
            with open(options.message, "rb") as file:
                _fill(content, file)
    except OSError as error:
        raise Fatal(UNAVAILABLE, f"{options.message}: {error.strerror}") from None
    return content


def _fill(content: Content, file: IO[bytes]) -> None:
    for block in as_wire_text(Reading(file).blocks()):
        content.write(block)


def _explain(told: Explanation, options: argparse.Namespace, content: Content) -> None:
    """Tell as much as there is before the first error.  Raises UserFileError, MessageError."""
    files = own_files(options.config, options.filter)
    missing_key: KeyFileError | None = None
    try:
        profile = files.profile()
    except KeyFileError as error:
        # Which rule decides can be told without it.
        missing_key = error
        profile = own_files(options.config, options.filter, with_key=False).profile()
    config = profile.config
    told.default = config.action_outgoing
    told.filter_path = profile.filter.path
    told.next_hop = _next_hop(config)
    fields, body_start = parsed_header(content)
    if options.sender:
        fields = _with_from(fields, _octets(options.sender))
    told.before = fields
    recipient, lists = _octets(options.to), profile.library.reading()
    override, rest = take_override(fields, in_subject=config.x_tmda_in_subject)
    told.override = _override_text(override)
    if override is None:
        sender = own_address(config, rest)
        told.match = profile.filter.find(recipient, sender, lists)
    if missing_key is not None:
        raise missing_key
    stamp = ProgramStamps(host_name()).stamp(config, Envelope(options.sender))
    message = Message(fields, [recipient], lambda: as_local_text(content.blocks(body_start)))
    outside = Outside(lists, _shell(files.files))
    told.copies = tag_message(profile, message, stamp, outside)


def _with_from(fields: list[Field], sender: bytes) -> list[Field]:
    """The header as if the message were from somebody else.  Raises MessageError."""
    name = b"From" if header.first(fields, b"resent-from") is None else b"Resent-From"
    try:
        field = header.make_field(name, b" ".join(sender.split()))
    except TagError as error:
        raise MessageError("From", str(error)) from None
    return [field, *header.without(fields, (name.lower(),))]


def _shell(files: Files) -> Shell:
    who = person()
    timeout = ProgramLimits().script_timeout
    return Errands(files, who.home, timeout).shell(lambda: variables_of(who.name, who.home))


def _override_text(override: Override | None) -> str:
    if override is None:
        return ""
    return override.text or "X-TMDA: not one word, so ACTION_OUTGOING holds"


def _next_hop(config: Config) -> str:
    if config.mail_transport == "smtp":
        hosts = [config.smtphost] if isinstance(config.smtphost, str) else config.smtphost
        return f"{', '.join(hosts)} by SMTP"
    return sendmail_program(config.sendmail_program)


def changes(before: list[Field], after: list[Field]) -> list[tuple[str, str | None]]:
    """Names and values of the fields that are new, and names without a value of those gone."""
    kept = {one.octets for one in before}
    new = [one for one in after if one.octets not in kept]
    names = {one.name for one in after}
    gone = dict.fromkeys(
        one.octets.partition(b":")[0].strip() for one in before if one.name not in names
    )
    made: list[tuple[str, str | None]] = [
        (_text(one.octets.partition(b":")[0]), _text(header.unfold(one.value))) for one in new
    ]
    return made + [(_text(name), None) for name in gone]


def as_json(told: Explanation) -> dict[str, Any]:
    """The explanation as one object; docs/tools.md has its shape."""
    match = told.match
    rule = match and {
        "file": match.rule.place.path,
        "line": match.rule.place.line,
        "text": match.text,
    }
    return {
        "rule": rule,
        "actions": {name: _pair(action) for name, action in match.actions} if match else {},
        "override": told.override or None,
        "action_outgoing": str(told.default) if told.default else None,
        "copies": [
            {
                "envelope_sender": _text(copy.sender) or "<>",
                "recipients": [_text(recipient) for recipient in copy.recipients],
                "from": _text(header.unfold(header.first(copy.fields, b"from") or b"")),
                "changed_headers": [list(pair) for pair in changes(told.before, copy.fields)],
                "appends": any(report.appends for report in copy.reports),
            }
            for copy in told.copies
        ],
        "next_hop": told.next_hop or None,
        "errors": [
            {"file": path, "line": line, "message": problem} for path, line, problem in told.errors
        ],
    }


def _pair(action: Action) -> list[str | None]:
    """Type and option; the type of a text is None."""
    return [action.name or None, None if action.option is None else _text(action.option)]


def as_text(told: Explanation, recipient: str) -> str:
    """The explanation for a person, without a newline at its end."""
    lines = as_lines(told, recipient)
    return "\n".join(f"{label + ':':<10}{visible(text)}" for label, text in lines)


def as_lines(told: Explanation, recipient: str) -> list[tuple[str, str]]:
    """Labels and texts; these may hold what no terminal should see."""
    lines = [("to", recipient)]
    if told.override:
        lines.append(("asked", told.override))
    elif told.match is not None:
        place = told.match.rule.place
        lines.append(("rule", f"{place.path}:{place.line}: {told.match.text}"))
    elif told.default is not None and not told.errors:
        why = "none matches"
        if not os.path.exists(told.filter_path):
            why = f"there is no file {told.filter_path}"
        lines.append(("rule", f"{why}: ACTION_OUTGOING, {told.default}"))
    for copy in told.copies:
        changed = dict(changes(told.before, copy.fields))
        lines.append(("From", changed.pop("From", None) or _from(copy)))
        lines.append(("sender", _text(copy.sender) or "<>"))
        if any(report.appends for report in copy.reports):
            lines.append(("append", f"{recipient} would be put on the list of BARE_APPEND"))
        lines += [
            ("change", f"{name}: {value}") for name, value in changed.items() if value is not None
        ]
        lines += [("remove", name) for name, value in changed.items() if value is None]
        lines.append(("next hop", told.next_hop))
    lines += [("error", _place(path, line) + problem) for path, line, problem in told.errors]
    return lines


def visible(text: str) -> str:
    """Foreign text for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _from(copy: Tagged) -> str:
    return _text(header.unfold(header.first(copy.fields, b"from") or b"")) + " (unchanged)"


def _place(path: str, line: int) -> str:
    if not path:
        return ""
    return f"{path}:{line}: " if line else f"{path}: "


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def make_parser() -> Parser:
    parser = Parser("tofmipd explain", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    add("-O", "--filter", metavar="FILE", default="", help="not the filter of the configuration")
    add("--user", metavar="USER", default="", help="as root: with this user's files and rights")
    add("--to", metavar="RECIPIENT", required=True, help="for whom the message is")
    add(
        "--from",
        dest="sender",
        metavar="SENDER",
        default="",
        help="your address (default: as in the message)",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("message", nargs="?", metavar="MESSAGE", default="", help="a file with the message")
    return parser
