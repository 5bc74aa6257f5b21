"""What a person needs before a first mail can be sent, written but never overwritten."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from dataclasses import dataclass

from tofmipd.commands.keygen import new_key, write_new
from tofmipd.errors import CANT_CREATE, Fatal

_CONFIG = """\
# Configuration of TMDA addresses; tofmipd.conf(5) lists all settings.
# This file is Python: NAME = "text", NAME = number, NAME = ["list", "of", "texts"].

# Your address, for messages that bear none: USERNAME@HOSTNAME
USERNAME = {username!r}
HOSTNAME = {hostname!r}
{full_name}
# What happens to your address when no line of filters/outgoing matches, and
# for how long a dated address takes answers (Y M w d h m s).
ACTION_OUTGOING = "dated"
DATED_TIMEOUT = "5d"

# Where mail goes: "sendmail" runs a program, "smtp" talks to a server.
{transport}"""

_SENDMAIL = 'MAIL_TRANSPORT = "sendmail"\n'
_SMTP = 'MAIL_TRANSPORT = "smtp"\nSMTPHOST = {smtp_host!r}\n'

_FILTER = """\
# What becomes of your address, by recipient; the first line that matches wins.
# tofmipd-filter(5) tells all.  Try it: tofmipd explain --to RECIPIENT
#
#   to   <pattern>   <action>
#
# to   *@=lists.example.org    bare          # the address as it is
# to   shop@*                  kw=shop       # can be revoked as a whole
# to   *@=bank.example         sender        # good for this one correspondent
# to   friend@*                dated=4w      # expires
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write.  ``smtp_host`` is "" for hand-off by sendmail."""

    home: str
    login: str
    address: str
    full_name: str = ""
    smtp_host: str = ""
    filter_text: str = _FILTER

    @property
    def directory(self) -> str:
        return f"{self.home}/.tmda"


def write_all(plan: Plan) -> list[tuple[str, bool]]:
    """Make what is missing; each path, and whether it is new.  Raises Fatal."""
    username, _, hostname = plan.address.rpartition("@")
    transport = _SMTP.format(smtp_host=plan.smtp_host) if plan.smtp_host else _SENDMAIL
    full_name = f"FULLNAME = {plan.full_name!r}\n" if plan.full_name else ""
    config = _CONFIG.format(
        username=username, hostname=hostname, transport=transport, full_name=full_name
    )
    passwords = f"# user:password, a line each; mode 0600\n{plan.login}:{secrets.token_hex(8)}\n"
    for path in (plan.directory, f"{plan.directory}/filters"):
        _make_directory(path)
    return [
        (path, _write_if_missing(path, text))
        for path, text in (
            (f"{plan.directory}/crypt_key", new_key()),
            (f"{plan.directory}/config", config),
            (f"{plan.directory}/filters/outgoing", plan.filter_text),
            (f"{plan.directory}/tofmipd", passwords),
        )
    ]


def _make_directory(path: str) -> None:
    try:
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, mode=0o700)
    except OSError as error:
        raise Fatal(CANT_CREATE, f"cannot make {path}: {error.strerror}") from None


def _write_if_missing(path: str, text: str) -> bool:
    if os.path.lexists(path):
        return False
    write_new(path, text)
    return True


def client_lines(login: str, password: str, address: str, host: str, port: int) -> list[str]:
    """Commands that send a first mail, to be pasted into a shell."""
    mail = f"From: {address}\\nTo: friend@example.net\\nSubject: Hello\\n\\nIt works.\\n"
    quoted = [shlex.quote(text) for text in (mail, f"{login}:{password}", login, password, address)]
    mail, pair, login, password, address = quoted
    return [
        f"printf {mail} | curl -sS --url smtp://{host}:{port} --user {pair}"
        f" --mail-from {address} --mail-rcpt friend@example.net --crlf --upload-file -",
        f"swaks --server {host} --port {port} --auth PLAIN --auth-user {login}"
        f" --auth-password {password} --from {address} --to friend@example.net",
    ]
