"""Arguments of MAIL and RCPT (RFC 5321 section 4.1.2)."""

from __future__ import annotations

import re

from tofmipd.smtp import replies
from tofmipd.smtp.reply import BadCommand, Reply

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL = rf"(?:{_ATOM}(?:\.{_ATOM})*|\"(?:[ !#-\[\]-~]|\\[ -~])*\")"
_DOMAIN = r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?|\[[!-Z^-~]+\])"
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"
# A name without a domain is for the next hop to complete or to refuse.
_MAILBOX = rf"({_LOCAL}(?:@{_DOMAIN})?)"
_PATH = re.compile(rf"<{_ROUTE}{_MAILBOX}>|{_MAILBOX}")
_NULL_PATH = re.compile(r"<>")
_PATH_END = re.compile(r"<(?:[^\">]|\"(?:[^\"\\]|\\.)*\")*>|[^\s<]\S*|<\S*", re.ASCII)
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")

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
    if not path.isascii():
        raise BadCommand(replies.NOT_ASCII_ADDRESS)
    match = _PATH.fullmatch(path)
    if match is None:
        raise BadCommand(bad)
    return match[1] or match[2]


def _parameters(rest: str, usage: Reply) -> Parameters:
    """``keyword[=value]`` words; keywords in upper case (RFC 5321 section 4.1.2)."""
    if rest and not rest.startswith(" "):
        raise BadCommand(usage)
    parameters: Parameters = {}
    for word in rest.split():
        match = _PARAMETER.fullmatch(word)
        if match is None or match[1].upper() in parameters:
            raise BadCommand(usage)
        parameters[match[1].upper()] = match[2]
    return parameters
