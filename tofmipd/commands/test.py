"""`tofmipd test`: send one mail through a running tofmipd and say what became of it."""

from __future__ import annotations

import argparse
import base64
import os
import smtplib
import ssl
import time

from tofmipd.arguments import Parser, host_port
from tofmipd.cli import person
from tofmipd.commands.prompt import ask_password
from tofmipd.commands.userprofile import first_login, own_profile
from tofmipd.dates import rfc5322_date
from tofmipd.errors import CONFIG, DATA, TEMPORARY, UNAVAILABLE, Fatal
from tofmipd.settings import DEFAULT_PORT, Listen

_USAGE = """tofmipd test [--server HOST:PORT] [--from ADDRESS]
                    [-a FILE | --user NAME] [--password-file FILE] ADDRESS"""
_TIMEOUT_SECONDS = 60


def main(arguments: list[str]) -> int:
    """Send one mail to the address given; status 0 if the daemon took it."""
    options = _parse(arguments)
    login, password = _login(options)
    config = own_profile().config
    if password is None:
        password = ask_password(login, options.password_file)
    sender = options.sender or f"{config.username}@{config.hostname}"
    said = _send(options.server, login, password, sender, options.address)
    print(f"taken: {said}")
    return 0


def _login(options: argparse.Namespace) -> tuple[str, bytes | None]:
    """User name and password, None for one that is to be asked for."""
    if options.user:
        return options.user, None
    who = person()
    login, password = first_login(options.authfile or f"{who.home}/.tmda/tofmipd", who.uid)
    return login, None if options.password_file else password


def _send(server: Listen, login: str, password: bytes, sender: str, recipient: str) -> str:
    """What the daemon said to the message.  Raises Fatal."""
    message = (
        f"From: {sender}\r\nTo: {recipient}\r\nSubject: test of tofmipd\r\n"
        f"Date: {rfc5322_date(time.time())}\r\n\r\nThis mail went through tofmipd.\r\n"
    )
    try:
        with _connected(server) as client:
            client.ehlo()
            if client.has_extn("starttls"):
                client.starttls(context=_context(server.host))
                client.ehlo()
            # smtplib's login() takes ASCII only, and tries a wrong password in every mechanism.
            response = base64.b64encode(b"\0" + os.fsencode(login) + b"\0" + password)
            code, text = client.docmd("AUTH", "PLAIN " + response.decode())
            if code < 400:
                client.mail(sender)
                code, text = client.rcpt(recipient)
            if code < 400:
                code, text = client.data(message.encode())
    except smtplib.SMTPDataError as error:
        code, text = error.smtp_code, _octets(error.smtp_error)
    except smtplib.SMTPResponseException as error:
        raise Fatal(CONFIG, f"refused: {error.smtp_code} {_octets(error.smtp_error)!r}") from None
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise Fatal(UNAVAILABLE, f"{server}: {reason}; is 'tofmipd -f' running?") from None
    said = f"{code} {text.decode('utf-8', 'replace')}"
    if code >= 400:
        raise Fatal(TEMPORARY if code < 500 else DATA, f"refused: {said}")
    return said


def _connected(server: Listen) -> smtplib.SMTP:
    host, port = server.host, server.port
    if server.mode == "ssl":
        return smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_SECONDS, context=_context(host))
    return smtplib.SMTP(host, port, timeout=_TIMEOUT_SECONDS)


def _context(host: str) -> ssl.SSLContext:
    """On this very machine a certificate is for the names that others know it by."""
    context = ssl.create_default_context()
    if host == "localhost" or host.startswith("127.") or host == "::1":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _octets(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser("tofmipd test", "Send one mail through a running tofmipd.", _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("address", metavar="ADDRESS", help="the recipient")
    add(
        "--server",
        metavar="HOST:PORT",
        type=host_port,
        default=Listen("localhost", DEFAULT_PORT),
        help=f"where tofmipd listens (default: localhost:{DEFAULT_PORT})",
    )
    add("--from", dest="sender", metavar="ADDRESS", help="your address (default: as configured)")
    login = parser.add_mutually_exclusive_group()
    login.add_argument(
        "-a",
        "--authfile",
        metavar="FILE",
        help="log in as the first user of this password file (default: ~/.tmda/tofmipd)",
    )
    login.add_argument("--user", metavar="NAME", default="", help="log in as this user")
    add(
        "--password-file",
        metavar="FILE",
        default="",
        help="the password is its first line; - is standard input (default: the one of the"
        " password file; one that is hashed there, or that of --user, is asked for)",
    )
    options = parser.parse_known(arguments)
    if options.server.proxies is not None:
        parser.error("--server: proxies are for who listens")
    return options
