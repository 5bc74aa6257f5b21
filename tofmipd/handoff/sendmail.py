"""Hand-off to a sendmail program (TMDA reference, section 5.10)."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tofmipd import programs
from tofmipd.content import as_local_text
from tofmipd.handoff.copy import Copy, HandOffFailed, Outcome, Taken
from tofmipd.smtp.reply import Reply, printable

PROGRAMS = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
_XTEXT = re.compile(r"\+([0-9A-F]{2})")
# sysexits.h: failures that may pass.  All others are final, as Postfix and qmail have it.
# 126 and 127 are a shell's words for a program that it could not run.
_TEMPORARY = frozenset({os.EX_OSERR, os.EX_IOERR, os.EX_TEMPFAIL, 126, 127})
_STATUS = {os.EX_NOUSER: "1.1", os.EX_NOHOST: "1.2", os.EX_DATAERR: "6.0", os.EX_NOPERM: "7.1"}


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
        self._judge(status, output)
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
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise _temporary("3.5", f"{self.program} cannot be run: {reason}") from error
        if outcome.status is None:
            raise _temporary("3.0", f"{self.program} did not end within {self.timeout:g} s")
        return outcome.status, outcome.output

    def _judge(self, status: int, output: bytes) -> None:
        if status == 0:
            return
        said = printable(output.decode("utf-8", "replace").strip())
        name = os.path.basename(self.program)
        if status < 0:
            raise _temporary("3.0", f"{name} was ended by signal {-status}", said)
        if status in _TEMPORARY:
            raise _temporary("3.0", f"{name} cannot take the message now (status {status})", said)
        text = f"{name} refuses the message (status {status})"
        raise HandOffFailed(Reply(554, _STATUS.get(status, "0.0"), (text,)), said)


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
