"""What is done for a message beside tagging it: commands, lists of recipients, the user's log."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from tofmipd import programs
from tofmipd.smtp.reply import printable
from tofmipd.tmda import header, outlog
from tofmipd.tmda.actions import Shell, no_shell
from tofmipd.tmda.config import Config
from tofmipd.tmda.errors import ConfigError, TagError
from tofmipd.tmda.files import Files, append, append_once, reason
from tofmipd.tmda.inject import Report, Tagged
from tofmipd.tmda.profile import Profile

log = logging.getLogger(__name__)

SHELL_OUTPUT_OCTETS = 65536
# So many commands of one message may take all the time that they have.
_COMMANDS_AT_THEIR_LIMIT = 10

# Blanks, comments and wildcards of lists (TMDA reference, section 4.8).
_NOT_IN_A_LIST = re.compile(rb"[\s#*?\[]|@=")


def variables_of(login: str, home: str) -> dict[str, str]:
    """The environment of programs that run for a user (feature row TO-87)."""
    return {
        "PATH": programs.PATH,
        "HOME": home,
        "LOGIN": login,
        "LOGNAME": login,
        "USER": login,
    }


class Errands:
    """Of one user, by his files.  Safe for threads; ``script_timeout`` is in seconds."""

    def __init__(self, files: Files, home: str, script_timeout: float) -> None:
        self._files = files
        self._home = home
        self._timeout = script_timeout

    def shell(self, environment: Callable[[], Mapping[str, str]]) -> Shell:
        """What runs the commands of a filter: nothing where this is not the user's own process.

        ``environment`` gives their variables, when there is a command.
        """
        if self._files.confined:
            return no_shell
        return _OneMessage(environment, self._home, self._timeout).run

    def append_recipients(self, tagged: Sequence[Tagged], profile: Profile) -> None:
        """What ``bare=append`` asks for.  Raises ConfigError; it comes before the hand-off."""
        config = profile.config
        asked = [(copy, report) for copy in tagged for report in copy.reports if report.appends]
        if asked and config.bare_append:
            self._append(config, [report.recipient for _, report in asked])
        if config.db_bare_append:
            for copy, report in asked:
                _insert(profile, copy, report)

    def _append(self, config: Config, recipients: Sequence[bytes]) -> None:
        wanted = []
        for recipient in recipients:
            if _NOT_IN_A_LIST.search(recipient):
                # A stranger chooses where answers go; on a list this would stand for others.
                log.warning("%s: BARE_APPEND: %r means others in a list", config.origin, recipient)
            else:
                wanted.append(recipient)
        try:
            if wanted:
                append_once(self._files, config.bare_append, *wanted)
        except (OSError, ValueError) as error:
            line = config.lines.get("BARE_APPEND", 0)
            problem = f"BARE_APPEND: {config.bare_append} cannot be written: {reason(error)}"
            raise ConfigError(config.origin, line, problem) from None

    def write_log(
        self,
        tagged: Sequence[Tagged],
        recipients: Sequence[bytes],
        config: Config,
        date: bytes,
        size: int,
    ) -> None:
        """LOGFILE_OUTGOING: the copies that have been taken, in the order of the recipients.

        The mail has gone, so a log that cannot be written is only a warning.
        """
        entries = {
            report.recipient: outlog.entry(
                copy.fields, copy.sender, report.recipient, report.rule, date, size
            )
            for copy in tagged
            for report in copy.reports
        }
        text = b"".join(entries[recipient] for recipient in recipients if recipient in entries)
        path = config.logfile_outgoing
        try:
            append(self._files, path, text)
        except (OSError, ValueError) as error:
            log.warning(
                "%s: LOGFILE_OUTGOING: %s cannot be written: %s", config.origin, path, reason(error)
            )


def _insert(profile: Profile, copy: Tagged, report: Report) -> None:
    """DB_BARE_APPEND; as in the original, what goes wrong here stops no mail."""
    config, database = profile.config, profile.library.database
    own = f"{config.username}@{config.hostname}"
    values = {
        "recipient": report.recipient.decode("utf-8", "replace"),
        "fromheader": header.unfold(header.first(copy.fields, b"from") or b"").decode(
            "utf-8", "replace"
        ),
        "username": config.username,
        "hostname": config.hostname,
        "sender": own,
    }
    try:
        if database is None:
            raise TagError("the configuration opens no database: set DB_CONNECTION")
        # ASCII only, as everywhere.
        lowered = {name: value.encode().lower().decode() for name, value in values.items()}
        database.insert(config.db_bare_append, lowered)
    except TagError as error:
        log.warning("%s: DB_BARE_APPEND: %s", config.origin, error)


class _OneMessage:
    """The commands for the recipients of one message: each is limited, and so are all together."""

    def __init__(
        self, environment: Callable[[], Mapping[str, str]], home: str, timeout: float
    ) -> None:
        self._environment = environment
        self._home = home
        self._timeout = timeout
        self._left = timeout * _COMMANDS_AT_THEIR_LIMIT

    def run(self, command: str, recipient: bytes) -> bytes:
        """See tmda.actions.Shell."""
        begun = time.monotonic()
        timeout = max(min(self._timeout, self._left), 0.001)
        try:
            return run_shell(self._environment(), self._home, timeout, command, recipient)
        finally:
            self._left -= time.monotonic() - begun


def run_shell(
    environment: Mapping[str, str], directory: str, timeout: float, command: str, recipient: bytes
) -> bytes:
    """See tmda.actions.Shell; the command finds TMDA_RECIPIENT and TMDA_VRECIPIENT (feature row
    TO-87), nothing to read, and no descriptor."""
    to = recipient.decode("utf-8", "surrogateescape")
    variables = {"TMDA_RECIPIENT": to, "TMDA_VRECIPIENT": to.replace("@", "=")}
    try:
        outcome = programs.run(
            ["/bin/sh", "-c", command],
            {**environment, **variables},
            timeout,
            directory=directory if os.path.isdir(directory) else "/",
            output_limit=SHELL_OUTPUT_OCTETS + 1,
            ends_at_limit=True,
        )
    except (OSError, ValueError) as error:
        raise TagError(f"the command {command!r} cannot be run: {reason(error)}") from None
    if len(outcome.output) > SHELL_OUTPUT_OCTETS:
        raise TagError(f"the command {command!r} prints more than {SHELL_OUTPUT_OCTETS} octets")
    if outcome.status is None:
        raise TagError(f"the command {command!r} did not end within {timeout:g} s")
    if outcome.status:
        said = printable(outcome.output.decode("utf-8", "replace").strip(), 100)
        how = f"by signal {-outcome.status}" if outcome.status < 0 else f"with {outcome.status}"
        raise TagError(f"the command {command!r} ended {how}" + (f": {said}" if said else ""))
    return outcome.output.removesuffix(b"\n")
