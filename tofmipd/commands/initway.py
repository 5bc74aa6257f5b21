"""How mail is to leave: what `tofmipd init` finds out about that."""

from __future__ import annotations

import argparse
import os
import ssl

from tofmipd.arguments import place
from tofmipd.cli import host_name
from tofmipd.commands.prompt import ask_password
from tofmipd.commands.questions import Questions
from tofmipd.commands.setup import Way
from tofmipd.errors import DATA, USAGE, Fatal
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.opening import failures_of, greeted
from tofmipd.handoff.sendmail import PROGRAMS
from tofmipd.handoff.trust import NotTrusted
from tofmipd.privsep.nexthops import way_to_encrypt

SENDMAIL = "sendmail"
# Where TLS is always offered, if anything is (RFC 6409, RFC 8314).
_SUBMISSION_PORTS = (465, 587)
_CONNECT_SECONDS, _REPLY_SECONDS = 10, 10


def choose(options: argparse.Namespace, questions: Questions, *, with_login: bool = True) -> Way:
    """By the options, else by answers.  Raises Fatal."""
    host = SENDMAIL if options.sendmail else options.smtp
    if not host:
        default = SENDMAIL if any(map(os.path.exists, PROGRAMS)) else "localhost"
        host = questions.text(
            "Mail leaves by sendmail, or by a server HOST[:PORT]", default, server
        )
    if host == SENDMAIL:
        return Way()
    name, port = place(host)
    hop = NextHop(
        name,
        port,
        local_name=host_name(),
        tls=way_to_encrypt(port),
        connect_timeout=_CONNECT_SECONDS,
        reply_timeout=_REPLY_SECONDS,
    )
    if options.smtp_tls:
        encrypted = options.smtp_tls != "off"
    else:
        encrypted = hop.tls == "implicit" if hop.loopback else _wants_tls(hop)
    trust = "" if options.smtp_tls in (None, "verify") else options.smtp_tls
    user, password = _login(options, questions, hop) if with_login else ("", "")
    if user and not (encrypted or hop.loopback or trust == "off"):
        print(f"note  {hop} gets your password by CRAM-MD5 only, for it offers no TLS")
    return Way(host, encrypted, trust, user, password)


def server(text: str) -> str:
    """HOST or HOST:PORT, or the word for the program.  Raises Fatal."""
    if text == SENDMAIL:
        return text
    try:
        place(text)
    except argparse.ArgumentTypeError as error:
        raise Fatal(USAGE, str(error)) from None
    return text


def _login(options: argparse.Namespace, questions: Questions, hop: NextHop) -> tuple[str, str]:
    """User name and password, both "" for none.  Raises Fatal."""
    user = options.smtp_user
    if not user and not options.smtp:
        user = questions.text(f"User name at {hop}, if it wants a login", "")
    if not user:
        return "", ""
    octets = ask_password(f"{user} at {hop}", options.smtp_password_file)
    try:
        return user, octets.decode()
    except UnicodeDecodeError:
        raise Fatal(DATA, "the password for the server is not UTF-8") from None


def _wants_tls(hop: NextHop) -> bool:
    """Whether the server offers TLS; says what was found."""
    try:
        with failures_of(hop), greeted(hop) as client:
            offered = isinstance(client.sock, ssl.SSLSocket) or client.has_extn("starttls")
            if offered and hop.tls == "starttls":
                client.secure()
            client.close()
    except HandOffFailed as error:
        reason = error.reply.lines[0]
        if isinstance(error.__cause__, NotTrusted):
            print(f"note  {reason}; 'tofmipd probe' says more")
            return True
        offered = hop.port in _SUBMISSION_PORTS
        taken = "it is taken to offer TLS" if offered else "without TLS"
        print(f"note  {hop} cannot be asked now ({reason}): {taken}")
        return offered
    print(f"note  {hop} offers {'TLS, and its certificate is good' if offered else 'no TLS'}")
    return offered
