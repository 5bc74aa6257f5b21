"""`tofmipd test`: send one mail through a running tofmipd and say what became of it."""

from __future__ import annotations

import argparse
import base64
import os
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from tofmipd import network
from tofmipd.arguments import Parser, host_port
from tofmipd.cli import absolute, host_name, person, personal_config_file
from tofmipd.commands import daemonfile
from tofmipd.commands.explain import Explanation, as_lines, explained, visible
from tofmipd.commands.prompt import ask_password
from tofmipd.commands.userprofile import first_login, own_profile
from tofmipd.content import Content
from tofmipd.dates import rfc5322_date
from tofmipd.errors import CONFIG, DATA, TEMPORARY, UNAVAILABLE, Fatal
from tofmipd.privsep.nexthops import names_next_hop
from tofmipd.settings import Listen
from tofmipd.smtp.reply import printable
from tofmipd.tmda.config import Config

_USAGE = """tofmipd test [--server HOST:PORT] [--ca FILE] [--from ADDRESS]
                    [-a FILE | --user NAME] [--password-file FILE] ADDRESS"""
_DESCRIPTION = """\
Send one mail through a running tofmipd, and say how: the server, the login, the rule
that decides and the tagged address, what was replied, and whether the mail waits."""
# A greeting comes at once; a filter or a next hop may take their time.
_GREETING_SECONDS, _REPLY_SECONDS = 15, 660
_Command = Callable[[], tuple[int, bytes]]
_ADDRESS = re.compile(r"[!-;=?-~]+")
_KEPT = re.compile(r"queued as (tofmipd\.[0-9.]+)")
# What to do about a reply, by its beginning; the first that fits.
_REMEDIES = (
    ("535", "if the password was right, look with 'tofmipd user' whether the daemon has it"),
    ("538", "without TLS the daemon takes no password from there"),
    ("530", "the daemon wants TLS first"),
    ("451 4.3.5", "'tofmipd explain' shows it without sending"),
    ("554 5.3.5", "'tofmipd init' makes one"),
    ("451 4.4.", "'tofmipd probe' says more about the next hop"),
    ("451 4.7.", "'tofmipd probe' says more about the next hop"),
    ("454", "whoever judges logins does not answer; the log of the daemon says why"),
    ("4", "the log of the daemon says more; try again later"),
    ("5", "the log of the daemon says who refuses"),
)


@dataclass(frozen=True, slots=True)
class _Mail:
    sender: str
    recipient: str

    @property
    def octets(self) -> bytes:
        return (
            f"From: {self.sender}\r\nTo: {self.recipient}\r\nSubject: test of tofmipd\r\n"
            f"Date: {rfc5322_date(time.time())}\r\n\r\nThis mail went through tofmipd.\r\n"
        ).encode()


def main(arguments: list[str]) -> int:
    """Send one mail to the address given; status 0 if the daemon took it.  Raises Fatal."""
    options = _parse(arguments)
    login, password, mine = _login(options)
    config = own_profile().config if mine else None
    if password is None:
        password = ask_password(login, options.password_file)
    sender = options.sender or _own_address(config, login)
    mail = _Mail(_address(sender), _address(options.address))
    place = options.server or _default_server()
    with _Client(place, options.ca) as client:
        _show("server", f"{place}, {client.encryption}")
        client.log_in(login, password)
        _show("login", login)
        if config is not None:
            _explain(mail, config)
        said = client.send(mail)
    _show("taken", said)
    kept = _KEPT.search(said)
    if kept:
        personal = " --personal" * (person().uid == 0 and not _daemon_file()[1])
        look = f"tofmipd queue show{personal} {kept[1]}"
        _show("outbox", f"kept there until the next hop has it; see '{look}'")
    return 0


def _show(label: str, text: str) -> None:
    print(f"{label + ':':<10}{visible(text)}", flush=True)


def _login(options: argparse.Namespace) -> tuple[str, bytes | None, bool]:
    """User name, password or None for one that is to be asked for, and whether the mail is tagged
    by the files of who runs this."""
    who = person()
    if options.user:
        # Root asks for others; everybody else has his own daemon, or his own account.
        return options.user, None, who.uid != 0 or options.user == who.name
    path = absolute(options.authfile or f"{who.home}/.tmda/tofmipd", who.home)
    if not options.authfile and not os.path.exists(path) and _daemon_file()[1]:
        return who.name, None, True
    login, password = first_login(path, who.uid)
    return login, None if options.password_file else password, True


def _daemon_file() -> tuple[str, bool]:
    """The configuration file of the daemon that is asked without --server, and whether that one is
    root's."""
    path = personal_config_file(person())
    everybody = not os.path.exists(path) and os.path.exists(daemonfile.GLOBAL_PATH)
    return (daemonfile.GLOBAL_PATH if everybody else path), everybody


def _default_server() -> Listen:
    return daemonfile.nearest(daemonfile.listeners(_daemon_file()[0]))


def _own_address(config: Config | None, login: str) -> str:
    return f"{config.username}@{config.hostname}" if config else f"{login}@{host_name()}"


def _address(text: str) -> str:
    """Raises Fatal for what cannot go into a command."""
    if not _ADDRESS.fullmatch(text):
        raise Fatal(DATA, f"{text!r} is not an address such as you@example.net")
    return text


def _explain(mail: _Mail, config: Config) -> None:
    """Say what the daemon will do.  Raises Fatal where the files have a fault."""
    content = Content()
    content.write(mail.octets)
    asked = argparse.Namespace(config="", filter="", sender="", to=mail.recipient)
    told = explained(asked, content)
    content.close()
    for path, line, problem in told.errors[:1]:
        place = f"{path}:{line}: " if line else f"{path}: " if path else ""
        text = f"{place}{problem}; mend that: nothing was sent"
        raise Fatal(told.status, text)
    relay = daemonfile.value(_daemon_file()[0], "relay")
    if relay and not names_next_hop(config):
        told.next_hop = f"{relay} by SMTP"
    _show_explanation(told, mail.recipient)


def _show_explanation(told: Explanation, recipient: str) -> None:
    shown = {"asked", "rule", "From", "sender", "next hop"}
    for label, text in as_lines(told, recipient):
        if label in shown:
            _show(label, text)


class _Client:
    """A session with the daemon; whatever goes wrong is raised as Fatal."""

    def __init__(self, place: Listen, ca_file: str) -> None:
        self._place, self._ca_file = place, ca_file
        self._smtp: smtplib.SMTP | None = None

    def __enter__(self) -> _Client:
        try:
            self._smtp = self._connected()
            if self._smtp.sock is not None:
                self._smtp.sock.settimeout(_REPLY_SECONDS)
            self._smtp.ehlo()
            if self._place.mode != "ssl" and self._smtp.has_extn("starttls"):
                self._smtp.starttls(context=self._context())
                self._smtp.ehlo()
        except (OSError, UnicodeError) as error:
            raise self._failure(error) from None
        return self

    def __exit__(self, *reason: object) -> None:
        if self._smtp is not None:
            self._smtp.close()

    @property
    def smtp(self) -> smtplib.SMTP:
        assert self._smtp is not None
        return self._smtp

    @property
    def encryption(self) -> str:
        sock = self.smtp.sock
        if not isinstance(sock, ssl.SSLSocket):
            return "without TLS"
        way = "from the first octet" if self._place.mode == "ssl" else "by STARTTLS"
        return f"{sock.version()} {way}"

    def log_in(self, login: str, password: bytes) -> None:
        sock = self.smtp.sock
        if sock is not None and not (isinstance(sock, ssl.SSLSocket) or _is_near(sock)):
            text = "offers no TLS, and your password is not sent in the clear to another machine"
            raise Fatal(UNAVAILABLE, f"{self._place} {text}")
        # smtplib's login() takes ASCII only, and tries a wrong password in every mechanism.
        response = base64.b64encode(b"\0" + os.fsencode(login) + b"\0" + password)
        self._command(lambda: self.smtp.docmd("AUTH", "PLAIN " + response.decode()))

    def send(self, mail: _Mail) -> str:
        """What the daemon said to the message."""
        self._command(lambda: self.smtp.mail(mail.sender))
        self._command(lambda: self.smtp.rcpt(mail.recipient))
        said = self._command(lambda: self.smtp.data(mail.octets))
        self._command(lambda: self.smtp.docmd("QUIT"), needed=False)
        return said

    def _command(self, give: _Command, *, needed: bool = True) -> str:
        """The reply."""
        try:
            code, text = give()
        except smtplib.SMTPResponseException as error:
            code, text = error.smtp_code, _octets(error.smtp_error)
        except OSError as error:
            if not needed:
                return ""
            raise self._failure(error) from None
        said = f"{code} {text.decode('utf-8', 'replace')}"
        if code >= 400 and needed:
            remedy = next(words for start, words in _REMEDIES if said.startswith(start))
            status = TEMPORARY if code < 500 else DATA
            raise Fatal(status, f"refused: {printable(said)}; {remedy}")
        return said

    def _connected(self) -> smtplib.SMTP:
        host, port = self._place.host or "localhost", self._place.port
        if self._place.mode == "ssl":
            context = self._context()
            return smtplib.SMTP_SSL(host, port, timeout=_GREETING_SECONDS, context=context)
        return smtplib.SMTP(host, port, timeout=_GREETING_SECONDS)

    def _context(self) -> ssl.SSLContext:
        """On this very machine a certificate is for the names that others know it by."""
        try:
            context = ssl.create_default_context(cafile=self._ca_file or None)
        except OSError as error:
            pem = isinstance(error, ssl.SSLError)
            reason = "no certificate in PEM form" if pem else error.strerror
            raise Fatal(CONFIG, f"{self._ca_file}: {reason}") from None
        if daemonfile.is_local(self._place) and not self._ca_file:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _failure(self, error: Exception) -> Fatal:
        place = self._place
        match error:
            case smtplib.SMTPResponseException(smtp_code=-1):
                return Fatal(UNAVAILABLE, f"{place}: whoever answers there does not speak SMTP")
            case smtplib.SMTPResponseException(smtp_code=code, smtp_error=text):
                said = printable(_octets(text).decode("utf-8", "replace"))
                return Fatal(CONFIG, f"{place} refused: {code} {said}")
            case ssl.SSLCertVerificationError(verify_message=why):
                words = f"certificate not to be trusted: {why}; --ca FILE names one that is"
                return Fatal(UNAVAILABLE, f"{place}: {words}")
            case ssl.SSLError():
                words = f"no TLS there: {error.reason or error}"
                return Fatal(UNAVAILABLE, f"{place}: {words}; is {place} the right port?")
            case smtplib.SMTPServerDisconnected() | TimeoutError() if place.mode != "ssl":
                words = "no answer; if TLS comes first there, say --server"
                return Fatal(UNAVAILABLE, f"{place}: {words} {place},ssl")
            case UnicodeError():
                return Fatal(UNAVAILABLE, f"{place}: that is not the name of a host")
        reason = getattr(error, "strerror", None) or error
        return Fatal(UNAVAILABLE, f"{place}: {reason}; is 'tofmipd -f' running?")


def _is_near(sock: socket.socket) -> bool:
    """Whether the other end is on this machine."""
    return network.is_near(sock.getpeername()[0])


def _octets(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def make_parser() -> Parser:
    parser = Parser("tofmipd test", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("address", metavar="ADDRESS", help="the recipient")
    add(
        "--server",
        metavar="HOST:PORT",
        type=host_port,
        help="where tofmipd listens (default: as its configuration file says, else localhost:8025)",
    )
    add("--ca", metavar="FILE", default="", help="the certificate to trust, or an authority's, PEM")
    add("--from", dest="sender", metavar="ADDRESS", help="your address (default: as configured)")
    login = parser.add_mutually_exclusive_group()
    login.add_argument(
        "-a",
        "--authfile",
        metavar="FILE",
        help="log in as the first user of this password file (default: ~/.tmda/tofmipd; without"
        " it, and with /etc/tofmipd.conf, as your account)",
    )
    login.add_argument("--user", metavar="NAME", default="", help="log in as this user")
    add(
        "--password-file",
        metavar="FILE",
        default="",
        help="the password is its first line; - is standard input (default: the one of the"
        " password file; one that is hashed there, or that of --user, is asked for)",
    )
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_known(arguments)
    if options.server and options.server.proxies is not None:
        parser.error("--server: proxies are for who listens")
    options.ca = absolute(options.ca, person().home)
    return options
