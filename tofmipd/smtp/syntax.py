"""Arguments of MAIL and RCPT (RFC 5321 section 4.1.2, RFC 6531 section 3.3)."""

from __future__ import annotations

import re

from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand, Reply

# Signs beyond ASCII; octets that are no UTF-8 have become surrogates.  No controls, no line ends,
# no blanks and nothing that turns the direction of what is shown.
BEYOND_ASCII = (
    r"\xa1-\u061b\u061d-\u167f\u1681-\u1fff\u200c\u200d\u2010-\u2027\u2030-\u205e\u2070-\u2fff"
    r"\u3001-\ud7ff\ue000-\ufefe\uff00-\ufff8\U00010000-\U0010ffff"
)
NOT_IN_A_COMMAND = re.compile(rf"[^ -~{BEYOND_ASCII}]")
# Paths take all signs beyond ASCII and are searched for those that are none: with a set of them in
# each place, this pattern would take a third of the time that a start of the program takes.
_ATOM = r"[^\x00- \"(),.:;<>@\[-\]\x7f]+"
_LOCAL = rf"(?:{_ATOM}(?:\.{_ATOM})*|\"(?:[^\x00-\x1f\"\\\x7f]|\\[ -~])*\")"
# Those that could end the brackets, or open a quoted string, are in no literal that anybody has.
_LITERAL = r"\[(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[A-Za-z][A-Za-z0-9-]*:[!#-;=?-Z^-~]+)\]"
_NAME = r"[^\x00-/:-@\[-^`{-\x7f]"
_INSIDE = r"(?:[^\x00-,./:-@\[-^`{-\x7f]|\.(?!\.))"
_DOMAIN = rf"(?:{_NAME}(?:{_INSIDE}*{_NAME})?\.?|{_LITERAL})"
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"
# A name without a domain is for the next hop to complete or to refuse.
_MAILBOX = rf"({_LOCAL}(?:@{_DOMAIN})?)"
_PATH = re.compile(rf"<{_ROUTE}{_MAILBOX}>|{_MAILBOX}")
_NULL_PATH = re.compile(r"<>")
_PATH_END = re.compile(r"<(?:[^\">]|\"(?:[^\"\\]|\\.)*\")*>|[^\s<]\S*|<\S*", re.ASCII)
_PARAMETER = re.compile(rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~{BEYOND_ASCII}]+))?")

Parameters = dict[str, str | None]


def parse_sender(argument: str) -> tuple[str, Parameters]:
    """``FROM:<reverse-path> [parameters]``.  The null path gives "".  Raises BadCommand."""
    path, rest = _split(argument, "FROM:", replies.MAIL_SYNTAX)
    if _NULL_PATH.fullmatch(path):
        return "", _parameters(rest, replies.MAIL_SYNTAX)
    return _mailbox(path, replies.BAD_SENDER), _parameters(rest, replies.MAIL_SYNTAX)


def parse_recipient(argument: str) -> tuple[str, Parameters]:
    """``TO:<forward-path> [parameters]``.  A source route is dropped.  Raises BadCommand."""
    path, rest = _split(argument, "TO:", replies.RCPT_SYNTAX)
    return _mailbox(path, replies.BAD_RECIPIENT), _parameters(rest, replies.RCPT_SYNTAX)


def length_of_path(argument: str) -> int:
    """How much of the argument of MAIL or RCPT is not parameters, in characters."""
    keyword = argument.find(":") + 1
    start = len(argument) - len(argument[keyword:].lstrip(" "))
    match = _PATH_END.match(argument, start)
    return match.end() if match else len(argument)


def _split(argument: str, keyword: str, usage: Reply) -> tuple[str, str]:
    """The path and what follows it."""
    if argument[: len(keyword)].upper() != keyword:
        raise BadCommand(usage)
    text = argument[len(keyword) :].lstrip(" ")
    match = _PATH_END.match(text)
    if match is None:
        raise BadCommand(usage)
    return match[0], text[match.end() :]


def _mailbox(path: str, bad: Reply) -> str:
    match = _PATH.fullmatch(path)
    if match is None or NOT_IN_A_COMMAND.search(path):
        raise BadCommand(bad)
    return match[1] or match[2]


def _parameters(rest: str, usage: Reply) -> Parameters:
    """``keyword[=value]`` words; keywords in upper case (RFC 5321 section 4.1.2)."""
    parameters: Parameters = {}
    if not rest:
        return parameters
    if not rest.startswith(" "):
        raise BadCommand(usage)
    for word in filter(None, rest.split(" ")):
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in parameters:
            raise BadCommand(usage)
        parameters[match[1].upper()] = match[2]
    return parameters
