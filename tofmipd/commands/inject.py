"""`tofmipd inject`: sends a message like a sendmail program, tagged (TMDA reference, section 5)."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO

from tofmipd.arguments import Parser
from tofmipd.cli import host_name, person
from tofmipd.commands.userprofile import own_files, own_profile
from tofmipd.content import Content, as_wire_text
from tofmipd.dates import rfc5322_date
from tofmipd.errors import CONFIG, DATA, TEMPORARY, UNAVAILABLE, Fatal
from tofmipd.handoff.smtp import Pool
from tofmipd.privsep.outbound import House, Outbound, Owner
from tofmipd.privsep.submission import AGENT, parsed_header
from tofmipd.settings import NextHopLimits
from tofmipd.smtp.envelope import Envelope
from tofmipd.smtp.reply import Reply
from tofmipd.tmda import header
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import MessageError, TagError, UserFileError
from tofmipd.tmda.filter import Filter
from tofmipd.tmda.inject import SENDER, Report, Stamp, header_recipients
from tofmipd.tmda.library import Library
from tofmipd.tmda.mailbox import format_mailbox

_USAGE = """tofmipd inject [-c CONFIG] [-O FILTER] [-t] [-f ADDRESS] [RECIPIENT ...] < MESSAGE
       tofmipd inject [-c CONFIG] [-O FILTER] -M RECIPIENT SENDER"""
_DESCRIPTION = """\
Send the message on standard input to the recipients, or to those whom its header names."""
# What the original ends with when it is asked to be told apart from a program that sent nothing.
_SENT_QUIETLY = 99
_BLOCK_OCTETS = 256 << 10
_LINE_ENDS = re.compile(rb"\r?\n")
# Tells a sendmail program that is a wrapper of this one how deep it is in.
_LOOP = "TOFMIPD_INJECT"
_LOOPS_LIMIT = 5
# What these warn of is in the last line as well.
_TOLD_ELSEWHERE = ("tofmipd.privsep.outbound", "tofmipd.handoff.handover")
# Options of other sendmail programs that change nothing here, and what follows them.
_IGNORED = (("-o", "X"), ("-B", "TYPE"), ("-N", "DSN"), ("-R", "DSN"), ("-h", "HOPS"))
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def main(arguments: list[str]) -> int:
    """Send; 0 when all recipients' copies have been taken, else a status of sysexits.h."""
    options = _parse(arguments)
    if options.match:
        profile = own_profile(options.config, options.filter)
        recipient, sender = options.match
        print(match_report(profile.filter, recipient, sender, profile.library))
        return 0
    _log_to_stderr()
    content = Content()
    try:
        return _send(options, content)
    finally:
        content.close()


def _send(options: argparse.Namespace, content: Content) -> int:
    """Raises Fatal."""
    reading = Reading(standard_input())
    try:
        for block in as_wire_text(reading.blocks()):
            content.write(block)
    except OSError as error:
        raise Fatal(TEMPORARY, f"no room for the message: {error.strerror}") from None
    if _loops() >= _LOOPS_LIMIT:
        raise Fatal(CONFIG, "SENDMAIL_PROGRAM leads back to 'tofmipd inject'; name another one")
    content = _with_sender(content, options)
    recipients = _recipients(options, content)
    if not recipients:
        print("tofmipd inject: no recipients, nothing sent", file=sys.stderr)
        return 0
    files = own_files(options.config, options.filter)
    who = person()
    name = host_name()
    pool = Pool()
    house = House(name, "full", NextHopLimits(), pool, _tell if options.verbose else None)
    owner = Owner(who.name, who.home, {_LOOP: str(_loops() + 1)})
    outbound = Outbound(owner, files, house, ProgramStamps(name))
    envelope = Envelope(
        options.sender,
        who.name,
        eight_bit=reading.eight_bit or not options.name.isascii(),
        recipients=recipients,
    )
    try:
        if reading.bare_return and files.profile().config.mail_transport == "smtp":
            raise Fatal(DATA, "the message has a carriage return that ends no line")
        reply = outbound.deliver(envelope, content, "inject")
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    except MessageError as error:
        raise Fatal(DATA, str(error)) from None
    finally:
        pool.close()
    if not reply.positive:
        raise Fatal(_status(reply), f"not sent: {reply}")
    return _SENT_QUIETLY if options.quiet else 0


def _loops() -> int:
    """How many of this program have started each other by SENDMAIL_PROGRAM."""
    text = os.environ.get(_LOOP, "0")
    return int(text) if re.fullmatch(r"[0-9]{1,3}", text, re.ASCII) else 0


def standard_input() -> IO[bytes]:
    """Raises Fatal where whoever started the program has closed it."""
    if sys.stdin is None:
        raise Fatal(UNAVAILABLE, "no message: standard input is closed")
    return sys.stdin.buffer


class Reading:
    """A message from a program on this machine, whose lines end with LF, or all with CR LF.

    ``eight_bit``: it is not all ASCII; ``bare_return``: it has a CR elsewhere.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.eight_bit = False
        self.bare_return = False

    def blocks(self) -> Iterator[bytes]:
        """Raises Fatal."""
        first = self._read()
        blocks: Iterable[bytes] = itertools.chain([first], iter(self._read, b""))
        end = _LINE_ENDS.search(first)
        if end is not None and end[0] == b"\r\n":
            blocks = _without_returns(blocks)
        for block in blocks:
            self.eight_bit = self.eight_bit or not block.isascii()
            self.bare_return = self.bare_return or b"\r" in block
            yield block

    def _read(self) -> bytes:
        try:
            return self._file.read(_BLOCK_OCTETS)
        except OSError as error:
            raise Fatal(UNAVAILABLE, f"the message cannot be read: {error.strerror}") from None


def _without_returns(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """CR LF becomes LF, also where a block ends between them."""
    held = b""
    for block in blocks:
        text = held + block
        held = b"\r" if text.endswith(b"\r") else b""
        yield text[: len(text) - len(held)].replace(b"\r\n", b"\n")
    yield held


def _with_sender(content: Content, options: argparse.Namespace) -> Content:
    """The content; a message without From gets one of -f and -F, if they were given.

    Raises Fatal.
    """
    fields, _ = parsed_header(content)
    names = {field.name for field in fields}
    address = _octets(options.sender)
    if not SENDER.fullmatch(address) or b"@" not in address:
        address = b""
    value = format_mailbox(_octets(" ".join(options.name.split())), address, "angles")
    if not value or names & {b"from", b"resent-from"}:
        return content
    try:
        field = header.make_field(b"From", value)
    except TagError as error:
        raise Fatal(DATA, str(error)) from None
    named = Content()
    named.write(field.octets)
    for block in content.blocks():
        named.write(block)
    content.close()
    return named


def _recipients(options: argparse.Namespace, content: Content) -> list[str]:
    """Those of the command line; with -t, or without any, those of the header.  Raises Fatal."""
    found = [_octets(recipient) for recipient in options.recipients]
    named = bool(found)
    if not named and "QMAILRCPTS" in os.environ:
        named = True
        found = [line.lower() for line in os.environb[b"QMAILRCPTS"].split(b"\n") if line]
    if options.from_header or not named:
        found += header_recipients(parsed_header(content)[0])
    for recipient in found:
        try:
            good = SENDER.fullmatch(recipient) and recipient.decode()
        except UnicodeDecodeError:
            good = None
        if not good:
            raise Fatal(DATA, f"{recipient.decode('utf-8', 'replace')!r} is no address")
    return [recipient.decode() for recipient in found]


class ProgramStamps:
    """What messages that come in by this program are stamped with (reference, section 5.4)."""

    def __init__(self, host: str) -> None:
        self._host = host

    def stamp(self, config: Config, envelope: Envelope, session_id: str = "") -> Stamp:
        """The environment may name the trace field, and both parts of the Message-ID."""
        now = time.time()
        date = rfc5322_date(now)
        around = os.environ.get
        host = next(filter(None, map(around, _ID_HOSTS)), self._host)
        tag = around("TMDAIDTAG") or "TMDA"
        user = "" if config.received == "private" else f", from uid {os.getuid()}"
        received = around("TMDA_OFMIPD_RECEIVED")
        if received is None:
            received = f"by {self._host} (tofmipd inject{user}); {date}"
        message_id = f"<{int(now)}.{os.getpid()}.{tag}@{host}>"
        return Stamp(
            now=now,
            date=date.encode(),
            received=None if config.received == "none" else _one_line(received),
            message_id=_one_line(message_id),
            agent=AGENT,
        )


_ID_HOSTS = ("TMDAIDHOST", "QMAILIDHOST", "TMDAHOST", "QMAILHOST", "MAILHOST")


def _one_line(text: str) -> bytes:
    return _CONTROL.sub(b"?", _octets(" ".join(text.split())))


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _status(reply: Reply) -> int:
    return TEMPORARY if reply.code < 500 else UNAVAILABLE


def _tell(sender: str, reports: tuple[Report, ...], said: str) -> None:
    """The mail has gone: that nobody can be told so is no failure."""
    for report in reports:
        to = report.recipient.decode("utf-8", "replace")
        with contextlib.suppress(OSError):
            print(f"to {to} from {sender or '<>'}: {said}", file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    """Warnings that the exit status does not tell."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tofmipd inject: %(message)s"))
    handler.addFilter(lambda record: record.name not in _TOLD_ELSEWHERE)
    logging.getLogger().addHandler(handler)


def match_report(
    filter_: Filter, recipient: str, sender: str, library: Library | None = None
) -> str:
    """What -M says, without a newline at its end (reference, section 4.10).  Raises Fatal."""
    title = f"Checking {filter_.path}"
    lists = library.reading() if library is not None else None
    try:
        match = filter_.find(_octets(recipient), _octets(sender), lists)
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    dashes = "-" * len(title)
    verdict = "Sorry, no matching lines." if match is None else f"MATCH: {match.text}"
    return "\n".join([title, dashes, f"To: {recipient}", f"From: {sender}", dashes, verdict])


def make_parser() -> Parser:
    parser = Parser("tofmipd inject", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("--help", action="help", help="show this and exit")
    add("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    add("-O", "--filter", metavar="FILE", default="", help="not the filter of the configuration")
    add("-M", "--match", nargs=2, metavar=("RECIPIENT", "SENDER"), help="say which rule matches")
    add("-t", "--from-header", action="store_true", help="also to whom the header names")
    add("-f", "-r", dest="sender", metavar="ADDRESS", default="", help="for a message without From")
    add("-F", dest="name", metavar="NAME", default="", help="the name beside it")
    add("-q", "--quiet", action="store_true", help="end with status 99 when all is sent")
    add("-v", "--verbose", action="store_true", help="say what the next hop said")
    add("-i", dest="ignored", action="store_true", help="no effect: a lone dot never ends anything")
    for option, metavar in _IGNORED:
        add(option, dest="ignored", metavar=metavar, help="no effect, as other programs have it")
    for option in ("-G", "-U", "-n"):
        add(option, dest="ignored", action="store_true", help="no effect, likewise")
    add("-b", dest="ignored", choices=("m",), help="no effect; there is no other mode")
    add("recipients", nargs="*", metavar="RECIPIENT")
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    # argparse forgets "--" when it comes back for the recipients, and would find options there.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = make_parser().parse_intermixed_args(arguments[:end])
    options.recipients += arguments[end + 1 :]
    return options
