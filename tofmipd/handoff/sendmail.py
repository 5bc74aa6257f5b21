"""Hand-off to a sendmail program (TMDA reference, section 5.10)."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tofmipd import programs
from tofmipd.content import as_local_text
from tofmipd.handoff.copy import Copy, HandOffFailed, Outcome, Taken
from tofmipd.handoff.replies import NextHopReply, refusal
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

PROGRAMS = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
# Statuses that say that message, addresses or sender are to blame; what they say of it.  All others
# that no table has are final, too, as sendmail and Postfix have it.
_FINAL = {os.EX_USAGE: "5.4", os.EX_DATAERR: "6.0", os.EX_NOUSER: "1.1", os.EX_NOPERM: "7.1"}
# Those that say that the machine, the program's own settings or its next hop are.  msmtp uses
# NOHOST, where its next hop is not found, PROTOCOL, and UNAVAILABLE for what may pass as well.
_TEMPORARY = {
    os.EX_NOINPUT: "3.5",
    os.EX_NOHOST: "4.3",
    os.EX_UNAVAILABLE: "3.0",
    os.EX_SOFTWARE: "3.0",
    os.EX_OSERR: "3.0",
    os.EX_OSFILE: "3.5",
    os.EX_CANTCREAT: "3.0",
    os.EX_IOERR: "3.0",
    os.EX_TEMPFAIL: "3.0",
    os.EX_PROTOCOL: "5.0",
    os.EX_CONFIG: "3.5",
    # qmail.
    111: "3.0",
    # What a shell says of a script or a program that it cannot run, and when there is no process.
    2: "3.5",
    126: "3.5",
    127: "3.5",
}
# A shell says so of a program that a signal has ended.
_BY_SIGNAL = 128
# Errors of starting a program that pass when others have ended.
_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_WORDS_OCTETS = 65536
_SHOWN_CHARACTERS = 400
# A reply of the next hop, at the beginning of a line or behind a colon; no status of HTTP.
_REPLY = re.compile(r"(?:^|: )(421|45[0-5]|53[0458]|55[0-6])[ -](.*)$", re.MULTILINE)
# Those that concern the program's own login or TLS: to the client they would speak of his.
_NOT_LET_IN = frozenset({454, 530, 534, 535, 538})


def sendmail_program(configured: str) -> str:
    """The program that a configuration names, else the first that is there."""
    if configured:
        return configured
    return next((path for path in PROGRAMS if os.path.exists(path)), PROGRAMS[0])


@dataclass(frozen=True, slots=True)
class SendmailTransport:
    """``program -i -f SENDER -- RECIPIENT...``, the message on standard input.

    ``null_sender`` is how the null sender is spelt for ``-f``.  ``timeout`` is in seconds for
    the whole run.  The program gets ``environment`` and no other variable.  ``sender_first`` puts
    ``-i`` behind the sender, where some wrappers look for it.  ``knows_dsn``: it takes -N, -R and
    -V as Postfix does; to Exim -N means to deliver nothing.
    """

    program: str
    null_sender: str
    environment: Mapping[str, str]
    directory: str = "/"
    timeout: float = 600
    sender_first: bool = False
    knows_dsn: bool = False

    def __str__(self) -> str:
        return self.program

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        """See Transport.  A program can only be asked by giving it the message."""
        for copy in copies:
            taken(self.send(copy))

    def send_to_some(self, copy: Copy) -> Outcome:
        """See Transport.  A program does not tell one recipient from another."""
        return Outcome(self.send(copy), {})

    def send(self, copy: Copy) -> str:
        """See Transport.  Standard input is a file: a program that stalls holds up no pipe."""
        sender = copy.sender.decode("utf-8", "surrogateescape") or self.null_sender
        recipients = [address.decode("utf-8", "surrogateescape") for address in copy.recipients]
        flags = ["-f", sender, "-i"] if self.sender_first else ["-i", "-f", sender]
        flags += self._dsn_flags(copy)
        arguments = [self.program, *flags, "--", *recipients]
        try:
            with tempfile.TemporaryFile() as message:
                for block in as_local_text(copy.blocks()):
                    message.write(block)
                message.seek(0)
                status, output = self._run(arguments, message)
        except OSError as error:
            raise _temporary("3.1", f"no room for the message: {error.strerror}") from error
        self._judge(copy, status, output)
        return f"{os.path.basename(self.program)} exited with 0"

    def _dsn_flags(self, copy: Copy) -> list[str]:
        """Raises HandOffFailed for what a program cannot be asked for."""
        parameters = copy.parameters
        if not parameters.dsn:
            return []
        if not self.knows_dsn:
            text = "no delivery notifications (DSN) by this sendmail program; for Postfix's set"
            raise HandOffFailed(Reply(554, "3.3", (f"{text} MAIL_TRANSFER_AGENT",)))
        asked = {_notify(address, parameters.notices) for address in copy.recipients}
        if len(asked) > 1:
            text = "a sendmail program takes the same NOTIFY for all recipients only"
            raise HandOffFailed(Reply(554, "3.3", (text,)))
        notify = asked.pop()
        flags = ["-N", notify] if notify else []
        flags += ["-R", parameters.ret.lower()] if parameters.ret else []
        flags += ["-V", _from_xtext(parameters.envid)] if parameters.envid else []
        return flags

    def _run(self, arguments: list[str], message: IO[bytes]) -> tuple[int, bytes]:
        """The exit status and the beginning of what the program wrote."""
        try:
            outcome = programs.run(
                arguments,
                self.environment,
                self.timeout,
                stdin=message,
                directory=self.directory,
                output_limit=_WORDS_OCTETS,
            )
        except (OSError, ValueError) as error:
            raise self._not_started(error) from error
        if outcome.status is None:
            text = f"{self.program} did not end within {self.timeout:g} s"
            raise _temporary("3.0", text, _shown(_words(outcome.output)))
        return outcome.status, outcome.output

    def _not_started(self, error: OSError | ValueError) -> HandOffFailed:
        number = getattr(error, "errno", None)
        if number == errno.E2BIG:
            text = f"too many recipients for one run of {self.program}"
            return HandOffFailed(Reply(554, "5.3", (printable(text),)))
        reason = getattr(error, "strerror", None) or str(error)
        if number == errno.ENOEXEC:
            reason += "; a script must begin with #!"
        elif number == errno.ENOENT and os.path.exists(self.program):
            reason += " (what its first line names)"
        detail = "3.2" if number in _NO_ROOM else "3.5"
        return _temporary(detail, f"{self.program} cannot be run: {reason}")

    def _judge(self, copy: Copy, status: int, output: bytes) -> None:
        """Raises HandOffFailed unless the program has taken the copy."""
        words = _words(output)
        name = printable(os.path.basename(self.program))
        if status == 0:
            if words:
                log.info("%s has taken a message and says: %s", name, _shown(words))
            return
        reply = _next_hop_reply(words, copy.recipients)
        own = _reply(name, status)
        if reply is None or (reply.code >= 500 > own.code and status != os.EX_UNAVAILABLE):
            raise HandOffFailed(own, _shown(words))
        if reply.code in _NOT_LET_IN:
            text = f"the next hop does not let {name} in (status {status})"
            raise _temporary("7.0", text, _shown(words))
        raise HandOffFailed(reply, f"status {status}: {_shown(words)}", heard=True)


def _words(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()


def _shown(words: str) -> str:
    """Beginning and end, as a log line may have them."""
    if len(words) <= 2 * _SHOWN_CHARACTERS:
        return printable(words, 4 * _SHOWN_CHARACTERS)
    parts = words[:_SHOWN_CHARACTERS], words[-_SHOWN_CHARACTERS:]
    return " [...] ".join(printable(part, 2 * _SHOWN_CHARACTERS) for part in parts)


def _reply(name: str, status: int) -> Reply:
    """What a status other than 0 means to the client."""
    number = -status if status < 0 else status - _BY_SIGNAL
    if status < 0 or number in signal.valid_signals():
        return Reply(451, "3.0", (f"{name} was ended by signal {number}",))
    if status in _TEMPORARY:
        text = f"{name} cannot take the message now (status {status})"
        return Reply(451, _TEMPORARY[status], (text,))
    return Reply(554, _FINAL.get(status, "0.0"), (f"{name} refuses the message (status {status})",))


def _next_hop_reply(words: str, recipients: Sequence[bytes]) -> Reply | None:
    """What the next hop has told the program, if it repeats that; one that may pass comes first.

    The recipient is named if the program speaks of only one.
    """
    found = [(int(match[1]), match[2].strip()) for match in _REPLY.finditer(words)]
    if not found:
        return None
    code = next((code for code, _ in found if code < 500), found[0][0])
    text = " ".join(text for other, text in found if other == code)
    named = [one for one in (r.decode("utf-8", "replace") for r in recipients) if one in words]
    return refusal(NextHopReply(code, text), named[0] if len(named) == 1 else "")


def _notify(address: bytes, notices: Mapping[bytes, bytes]) -> str:
    """The NOTIFY of a recipient.  Raises HandOffFailed for an ORCPT of somebody else."""
    notify, own = "", ("rfc822", address.decode("utf-8", "surrogateescape"))
    for word in notices.get(address, b"").decode("utf-8", "surrogateescape").split():
        name, _, value = word.partition("=")
        kind, _, original = value.partition(";")
        if name == "NOTIFY":
            notify = value.lower()
        elif (kind.lower(), _from_xtext(original)) != own:
            text = "a sendmail program takes no other original recipient (ORCPT)"
            raise HandOffFailed(Reply(554, "3.3", (text,)))
    return notify


def _from_xtext(text: str) -> str:
    """RFC 3461 section 4."""
    return _XTEXT.sub(lambda match: chr(int(match[1], 16)), text)


def _temporary(detail: str, text: str, said: str = "") -> HandOffFailed:
    return HandOffFailed(Reply(451, detail, (printable(text),)), said)
