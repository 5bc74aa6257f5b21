"""Hand-off to a sendmail program (TMDA reference, section 5.10)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from tofmipd import programs
from tofmipd.content import as_local_text
from tofmipd.handoff.copy import Copy, HandOffFailed
from tofmipd.smtp.reply import Reply, printable

PROGRAMS = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
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
    ``-i`` behind the sender, where some wrappers look for it.
    """

    program: str
    null_sender: str
    environment: Mapping[str, str]
    directory: str = "/"
    timeout: float = 600
    sender_first: bool = False

    def __str__(self) -> str:
        return self.program

    def offer(self, copies: Sequence[Copy]) -> None:
        """A program can only be asked by giving it the message."""

    def send(self, copy: Copy) -> str:
        """See Transport.  Standard input is a file: a program that stalls holds up no pipe."""
        sender = copy.sender.decode("utf-8", "surrogateescape") or self.null_sender
        recipients = [address.decode("utf-8", "surrogateescape") for address in copy.recipients]
        flags = ["-f", sender, "-i"] if self.sender_first else ["-i", "-f", sender]
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


def _temporary(detail: str, text: str, said: str = "") -> HandOffFailed:
    return HandOffFailed(Reply(451, detail, (printable(text),)), said)
