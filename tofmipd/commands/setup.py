"""What a person needs before a first mail can be sent, written but never overwritten."""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass, field

from tofmipd.auth import hashes, scram
from tofmipd.commands.keygen import new_key
from tofmipd.commands.newfiles import make_directory, write_if_missing

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
_AS_THE_DAEMON = '# MAIL_TRANSPORT = "smtp"    (without it, where the daemon sends it)\n'

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
class Way:
    """How mail leaves: to ``smtp_host``, or by sendmail where that is "".

    ``encrypted`` demands TLS, trusted as ``trust`` says ("" for verified); with ``user`` goes a
    login.
    """

    smtp_host: str = ""
    encrypted: bool = False
    trust: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def policy(self) -> str:
        """What --relay-tls has to say."""
        return self.trust or ("verify" if self.encrypted else "off")

    @property
    def settings(self) -> str:
        """The lines of a configuration."""
        if not self.smtp_host:
            return _SENDMAIL
        lines = ['MAIL_TRANSPORT = "smtp"', f"SMTPHOST = {self.smtp_host!r}"]
        lines += ["SMTPSSL = True"] * self.encrypted
        lines += [f"SMTPTLS = {self.trust!r}"] * bool(self.trust)
        if self.user:
            lines.append(f"SMTPAUTH_USERNAME = {self.user!r}")
            lines.append(f"SMTPAUTH_PASSWORD = {self.password!r}")
        return "".join(f"{line}\n" for line in lines)


def new_password() -> str:
    """Good for nothing but this login; it never looks like an option."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write.  ``way`` is None where it is the daemon's to say; ``password`` is "" where
    there is to be no password file."""

    home: str
    login: str
    address: str
    full_name: str = ""
    way: Way | None = field(default_factory=Way)
    filter_text: str = _FILTER
    password: str = field(default_factory=new_password, repr=False)
    hashed: bool = False

    @property
    def directory(self) -> str:
        return f"{self.home}/.tmda"

    @property
    def config(self) -> str:
        username, _, hostname = self.address.rpartition("@")
        return _CONFIG.format(
            username=username,
            hostname=hostname,
            transport=self.way.settings if self.way is not None else _AS_THE_DAEMON,
            full_name=f"FULLNAME = {self.full_name!r}\n" if self.full_name else "",
        )

    @property
    def passwords(self) -> str:
        secret = self.password
        if self.hashed:
            salt = secrets.token_bytes(scram.SALT_OCTETS)
            secret = hashes.scrypt_text(self.password.encode(), salt).decode()
        return f"# user:password, a line each; mode 0600\n{self.login}:{secret}\n"


def write_all(plan: Plan) -> list[tuple[str, bool]]:
    """Make what is missing; each path, and whether it is new.  Raises Fatal."""
    for path in (plan.directory, f"{plan.directory}/filters"):
        make_directory(path)
    files = {
        "crypt_key": new_key(),
        "config": plan.config,
        "filters/outgoing": plan.filter_text,
    }
    if plan.password:
        files["tofmipd"] = plan.passwords
    paths = {f"{plan.directory}/{name}": text for name, text in files.items()}
    return [(path, write_if_missing(path, text)) for path, text in paths.items()]


def client_lines(
    login: str, password: str, address: str, host: str, port: int, to: str = "friend@example.net"
) -> list[str]:
    """Commands that send a first mail, to be pasted into a shell."""
    mail = f"From: {address}\nTo: {to}\nSubject: Hello\n\nIt works.\n"
    words = (_for_printf(mail), f"{login}:{password}", login, password, address, to)
    mail, pair, login, password, address, to = map(shlex.quote, words)
    return [
        f"printf {mail} | curl -sS --url smtp://{host}:{port} --user {pair}"
        f" --mail-from {address} --mail-rcpt {to} --crlf --upload-file -",
        f"swaks --server {host} --port {port} --auth PLAIN --auth-user {login}"
        f" --auth-password {password} --from {address} --to {to}",
    ]


def _for_printf(text: str) -> str:
    """What printf(1) makes this text of."""
    return text.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
