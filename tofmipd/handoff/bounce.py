"""Messages to a sender whose mail could not be handed on (RFC 3461 section 6, 3464, 6522, 6533).

A report to an ASCII address is ASCII throughout, whatever it tells of: it needs nothing of a next
hop that may have refused the message because it takes no more than that.  Only a whole message
that is sent back may need 8BITMIME.  A report to an address beyond ASCII needs SMTPUTF8 anyway.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tofmipd.dates import rfc5322_date
from tofmipd.handoff import foreign
from tofmipd.handoff.copy import Parameters

# RFC 5322 section 2.1.1, without the CRLF.
_LIMIT_OCTETS = 998

_BOUNDARY = re.compile(r"[A-Za-z0-9_.=-]{1,70}")
_REPLY = re.compile(r"([245])[0-9]{2}(?:[ -](?:([245])(\.[0-9]{1,3}\.[0-9]{1,3})(?= |$))?|$)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_NOT_TEXT = re.compile(rb"[^\t\r\n -\xff]|\x7f|[^\r\n]{%d}" % (_LIMIT_OCTETS + 1))

# The first row that a status begins with.
_ADVICE = (
    ("5.1.7", "Your own address was refused; ask your postmaster."),
    ("5.1.8", "Your own address was refused; ask your postmaster."),
    ("5.1.", "Look for a mistake in the address, then send the message again."),
    ("5.2.2", "The mailbox is full; send the message again later."),
    ("5.2.3", "The message is too large; send less at once."),
    ("5.3.4", "The message is too large; send less at once."),
    ("5.7.", "A rule forbids it; ask the recipient in another way, or your postmaster."),
    ("5.", "Sending it again as it is will not help; ask your postmaster."),
    ("4.", "The reason may pass; send the message again later, or ask your postmaster."),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """One recipient who has not got the message.

    ``reply`` is the next hop's own, e.g. "550 5.1.1 <x>: no such user", "" if it never answered;
    with an empty ``next_hop`` it is ours.
    ``original`` is ORCPT as RCPT had it, "" for none; ``at`` is the time of the last attempt in
    seconds since 1970, 0 if not known.
    """

    recipient: bytes
    reply: str
    next_hop: str
    original: str = ""
    at: float = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a report tells.

    ``sender`` is the envelope sender of the message, to whom the report goes.  ``message_id`` is
    the report's own, with its brackets.  ``envid`` is xtext as MAIL had it, "" for none.  Times
    are in seconds since 1970; with ``retry_until`` the report is a warning.  ``eight_bit``: the
    message is not ASCII throughout.
    """

    host_name: str
    message_id: str
    sender: bytes
    arrived: float
    now: float
    failures: tuple[Failure, ...]
    envid: str = ""
    retry_until: float = 0
    eight_bit: bool = False


def may_bounce(sender: bytes, notify: str, *, delayed: bool = False) -> bool:
    """Whether a sender is told of a recipient (RFC 5321 section 6.1, RFC 3461 section 4.1).

    ``notify`` is the value of NOTIFY, "" for none.  With ``delayed`` it is about a warning.
    """
    wanted = "DELAY" if delayed else "FAILURE"
    return bool(sender) and (not notify or wanted in notify.upper().split(","))


def needs(report: Report, header: bytes, *, full: bool = False) -> Parameters:
    """What the next hop has to offer for this report."""
    smtputf8 = not report.sender.isascii()
    eight_bit = smtputf8 or (full and (report.eight_bit or not header.isascii()))
    return Parameters(eight_bit=eight_bit, smtputf8=smtputf8)


def status_of(reply: str, *, delayed: bool = False) -> str:
    """The status (RFC 3463) that a reply amounts to.

    It is the reply's own unless that contradicts the code or the action: with a warning the class
    is always 4.  A failure may be of class 4 too: the time for trying was over.
    """
    said = foreign.reply(reply)
    if not said:
        return "4.4.1"
    match = _REPLY.match(said)
    kind = "4" if delayed or (match and match[1] == "4") else "5"
    if match and match[1] == match[2] == kind:
        return kind + match[3]
    return f"{kind}.0.0"


def report(
    report: Report, header: bytes, *, boundary: str, full: Iterable[bytes] | None = None
) -> Iterator[bytes]:
    """The whole report in large pieces; its envelope sender is the null one.

    ``header`` is the header block of the message, ``full`` all of the message if it is to be sent
    back (RET=FULL).  Lines end with CRLF, dots are not doubled, neither here nor in ``full``.
    ``boundary`` must be random.  Raises ValueError, at once, if it is in the text of the report or
    in ``header``, if it cannot be one, for the null sender, or if there are no failures.
    """
    if not report.sender or not report.failures:
        raise ValueError("a report needs a sender and a failure")
    wanted = needs(report, header, full=full is not None)
    parts = [_text_part(report, full is not None), _status_part(report)]
    if full is None:
        parts.append(_header_part(_tidy(header), wanted.smtputf8))
    if not _BOUNDARY.fullmatch(boundary) or any(boundary.encode() in p for p in (*parts, header)):
        raise ValueError(f"not a boundary for this report: {boundary!r}")
    delimiter = f"\r\n--{boundary}".encode()
    start = _head(report, boundary, wanted.eight_bit)
    start += b"".join(delimiter + b"\r\n" + part for part in parts)
    end = delimiter + b"--\r\n"
    if full is None:
        return iter((start + end,))
    start += delimiter + b"\r\n" + _message_head(header, wanted)
    return _around(start, full, end)


def _around(start: bytes, full: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    yield start
    yield from full
    yield end


def _head(report: Report, boundary: str, eight_bit: bool) -> bytes:
    subject = "Your mail is delayed" if report.retry_until else "Your mail could not be delivered"
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{foreign.host(report.host_name)}>",
        f"To: <{foreign.mailbox(report.sender)}>",
        f"Subject: {subject}",
        f"Date: {rfc5322_date(report.now)}",
        f"Message-ID: {foreign.escaped(report.message_id)}",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f' boundary="{boundary}"',
        *(["Content-Transfer-Encoding: 8bit"] if eight_bit else []),
    ]
    return _octets(lines)


# What a person reads.


def _text_part(report: Report, full: bool) -> bytes:
    what = "your message" if full else "the header of your message"
    lines = [*_introduction(report), ""]
    for failure in report.failures:
        lines += [*_story(failure, delayed=bool(report.retry_until)), ""]
    lines += foreign.wrapped(f"Next come the same facts for mail programs, and {what}.")
    content = _octets(lines)
    charset = "us-ascii" if content.isascii() else "utf-8"
    return _part(f"text/plain; charset={charset}", content, eight_bit=not report.sender.isascii())


def _introduction(report: Report) -> list[str]:
    arrived = f" of {rfc5322_date(report.arrived)}" if report.arrived else ""
    whom = "this recipient" if len(report.failures) == 1 else "these recipients"
    first = foreign.wrapped(f"This is the mail system at {foreign.host(report.host_name)}.")
    if not report.retry_until:
        text = (
            f"Your message{arrived} could not be delivered to {whom}, and will not be tried again:"
        )
        return [*first, "", *foreign.wrapped(text)]
    until = rfc5322_date(report.retry_until)
    nothing = "This is only a warning. You need not do anything; do not send the message again."
    text = f"Your message{arrived} has not been delivered yet to {whom}. It is still being tried,"
    return [*first, "", *foreign.wrapped(nothing), "", *foreign.wrapped(f"{text} until {until}:")]


def _story(failure: Failure, *, delayed: bool) -> list[str]:
    """Who, what the next hop said, and what can be done."""
    hop = foreign.reply(failure.next_hop)
    lines = [f"  <{foreign.address(failure.recipient)}>"]
    if said := foreign.reply(failure.reply):
        what = f"{hop} said:" if hop else "What went wrong:"
        lines += [*foreign.wrapped(what, "    "), *foreign.wrapped(said, "      ")]
    else:
        lines += foreign.wrapped(f"{hop or 'The next hop'} did not answer.", "    ")
    if not delayed:
        status = status_of(failure.reply)
        advice = next(text for start, text in _ADVICE if status.startswith(start))
        lines += foreign.wrapped(advice, "    ")
    return lines


# What a program reads (RFC 3464 section 2).


def _status_part(report: Report) -> bytes:
    utf8 = not report.sender.isascii()
    lines = []
    if report.envid:
        lines.append(f"Original-Envelope-Id: {foreign.envelope_id(report.envid)}")
    lines.append(f"Reporting-MTA: dns; {foreign.host(report.host_name)}")
    if report.arrived:
        lines.append(f"Arrival-Date: {rfc5322_date(report.arrived)}")
    for failure in report.failures:
        lines += ["", *_recipient_fields(failure, report.retry_until, utf8)]
    content = _octets(lines)
    kind = "message/delivery-status" if content.isascii() else "message/global-delivery-status"
    return _part(kind, content, eight_bit=utf8)


def _recipient_fields(failure: Failure, retry_until: float, utf8: bool) -> list[str]:
    lines = []
    if original := foreign.original_recipient(failure.original, utf8=utf8):
        lines.append(f"Original-Recipient: {original}")
    lines += [
        f"Final-Recipient: {foreign.final_recipient(failure.recipient, utf8=utf8)}",
        f"Action: {'delayed' if retry_until else 'failed'}",
        f"Status: {status_of(failure.reply, delayed=bool(retry_until))}",
    ]
    if mta := foreign.mta(failure.next_hop):
        lines.append(f"Remote-MTA: dns; {mta}")
    if said := foreign.reply(failure.reply, ascii_only=not utf8):
        kind = "smtp" if _REPLY.match(said) else "x-tofmipd"
        lines += foreign.wrapped(f"Diagnostic-Code: {kind}; {said}", after=" ")
    if failure.at:
        lines.append(f"Last-Attempt-Date: {rfc5322_date(failure.at)}")
    if retry_until:
        lines.append(f"Will-Retry-Until: {rfc5322_date(retry_until)}")
    return lines


# What has been sent.


def _header_part(header: bytes, utf8: bool) -> bytes:
    """The header block as RFC 6522 section 4 and RFC 6533 section 5 have it."""
    if utf8 and not header.isascii() and _is_utf8(header) and not _NOT_TEXT.search(header):
        return _part("message/global-headers", header, eight_bit=True)
    return _part("text/rfc822-headers", header, eight_bit=False)


def _message_head(header: bytes, wanted: Parameters) -> bytes:
    beyond = wanted.smtputf8 and not header.isascii() and _is_utf8(header)
    kind = "message/global" if beyond else "message/rfc822"
    encoding = "8bit" if wanted.eight_bit else "7bit"
    return _octets([f"Content-Type: {kind}", f"Content-Transfer-Encoding: {encoding}", ""])


def _tidy(header: bytes) -> bytes:
    """The fields alone, without the empty line and what may follow it."""
    lines = b"\r\n" + _LINE_END.sub(b"\r\n", header)
    fields = lines.partition(b"\r\n\r\n")[0].removeprefix(b"\r\n")
    return fields if not fields or fields.endswith(b"\r\n") else fields + b"\r\n"


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def _part(kind: str, content: bytes, *, eight_bit: bool) -> bytes:
    """A body part, encoded where it cannot travel as it is."""
    encoding = "7bit" if content.isascii() else "8bit"
    if _NOT_TEXT.search(content) or (encoding == "8bit" and not eight_bit):
        encoding, content = "quoted-printable", binascii.b2a_qp(content)
    head = [f"Content-Type: {kind}", f"Content-Transfer-Encoding: {encoding}", ""]
    return _octets(head) + content


def _octets(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()
