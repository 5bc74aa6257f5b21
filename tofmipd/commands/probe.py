"""`tofmipd probe`: what a next hop is and offers, and whether mail could be handed to it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import smtplib
import ssl

from tofmipd.arguments import Parser, place, tls_policy
from tofmipd.cli import absolute, host_name, person
from tofmipd.commands.userprofile import own_files
from tofmipd.errors import CONFIG, UNAVAILABLE, Fatal
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.opening import Client, NoLogin, failures_of, greeted
from tofmipd.handoff.replies import BadReply
from tofmipd.handoff.trust import NotTrusted, PeerCertificate, date_of
from tofmipd.privsep.nexthops import configured_hops, way_to_encrypt
from tofmipd.settings import NextHopLimits
from tofmipd.smtp.reply import printable
from tofmipd.tmda.errors import UserFileError

_USAGE = "tofmipd probe [-c CONFIG] [--tls MODE] [--ca FILE] [HOST[:PORT]]"
_DESCRIPTION = """\
Open a session with a next hop and say what it is and offers; no mail is sent.  Without
HOST it is about those of your configuration, and your login there is tried."""
# Somebody waits for it.
_LIMITS = NextHopLimits(connect_timeout=15, reply_timeout=30)

Lines = list[tuple[str, str]]


def main(arguments: list[str]) -> int:
    """Probe; 0 if each next hop can be used, 69 or 78 by the first that cannot.  Raises Fatal."""
    options = _parse(arguments)
    hops = [_named(options)] if options.place else _configured(options)
    status = 0
    for number, hop in enumerate(hops):
        lines, found = _probe(hop, may_lack_tls=bool(options.place) and not options.tls)
        print("\n" * bool(number) + as_text(lines), flush=True)
        status = status or found
    return status


def as_text(lines: Lines) -> str:
    """Without a newline at its end; a next hop may say what no terminal should see."""
    return "\n".join(f"{label + ':':<13}{printable(text)}" for label, text in lines)


def _named(options: argparse.Namespace) -> NextHop:
    host, port = options.place
    hop = NextHop(
        host,
        port,
        local_name=host_name(),
        tls=way_to_encrypt(port),
        cafile=options.ca,
        cafile_setting="--ca",
        connect_timeout=_LIMITS.connect_timeout,
        reply_timeout=_LIMITS.reply_timeout,
    )
    return _with_policy(hop, options.tls)


def _configured(options: argparse.Namespace) -> list[NextHop]:
    """Raises Fatal."""
    try:
        config = own_files(options.config, with_filter=False, with_key=False).profile().config
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    if config.mail_transport != "smtp":
        text = "mail goes to a sendmail program (MAIL_TRANSPORT); name a HOST:PORT to probe"
        raise Fatal(CONFIG, f"{config.origin}: {text}")
    hops = configured_hops(config, _LIMITS, host_name())
    if options.ca:
        hops = tuple(dataclasses.replace(h, cafile=options.ca, cafile_setting="--ca") for h in hops)
    return [_with_policy(hop, options.tls) for hop in hops]


def _with_policy(hop: NextHop, mode: str | None) -> NextHop:
    """As ``--tls`` says, if it says anything."""
    if mode is None:
        return hop
    if mode == "off":
        return dataclasses.replace(hop, tls="off", trust="")
    tls = way_to_encrypt(hop.port) if hop.tls == "off" else hop.tls
    return dataclasses.replace(hop, tls=tls, trust=mode)


def _probe(hop: NextHop, *, may_lack_tls: bool) -> tuple[Lines, int]:
    """What is told of it, and the exit status."""
    lines: Lines = []
    try:
        _look(hop, lines, may_lack_tls)
        return lines, 0
    except HandOffFailed as error:
        failure = error
    if isinstance(failure.__cause__, NotTrusted):
        # What it shows can be seen all the same.
        anyone = dataclasses.replace(hop, trust="encrypt", username="", password="")
        with contextlib.suppress(HandOffFailed):
            again: Lines = []
            _look(anyone, again, may_lack_tls)
            lines = [_refused(line, failure) for line in again]
            return lines, UNAVAILABLE
    lines.append(("failure", failure.reply.lines[0]))
    return lines, _status(failure)


def _refused(line: tuple[str, str], failure: HandOffFailed) -> tuple[str, str]:
    label, text = line
    return (label, f"no: {failure.reply.lines[0]}") if label == "accepted" else (label, text)


def _status(failure: HandOffFailed) -> int:
    """Whose fault it is: a login, or a file, is for the configuration to mend."""
    match failure.__cause__:
        case NoLogin() | smtplib.SMTPAuthenticationError():
            return CONFIG
    return CONFIG if failure.reply.detail == "3.5" else UNAVAILABLE


def _look(hop: NextHop, lines: Lines, may_lack_tls: bool) -> None:
    """Add what is learned as soon as it is known.  Raises HandOffFailed."""
    lines.append(("next hop", str(hop)))
    with failures_of(hop), greeted(hop) as client:
        lines.append(("address", client.address))
        lines.append(("greeting", client.greeting))
        before = client.mechanisms
        offered = "starttls" in client.esmtp_features
        if hop.tls == "starttls" and (offered or not may_lack_tls):
            client.secure()
        lines.extend(_extensions(client))
        lines.extend(_encryption(client, offered=offered))
        lines.append(("mechanisms", ", ".join(client.mechanisms) or "none"))
        if isinstance(client.sock, ssl.SSLSocket) and hop.tls == "starttls":
            lines.append(("without TLS", ", ".join(before) or "none"))
        if hop.username and hop.password:
            lines.append(("login", f"{hop.username} by {client.log_in()}"))
        client.expect_silence()
        with contextlib.suppress(OSError, BadReply):
            client.docmd("QUIT")
        client.close()


def _extensions(client: Client) -> Lines:
    names = sorted(name.upper() for name in client.esmtp_features)
    size = client.esmtp_features.get("size")
    if size is None:
        limit = "not told (no SIZE)"
    else:
        # RFC 1870 section 3: 0 stands for no limit.
        limit = f"{size} octets" if size.strip("0") else "none"
    return [("extensions", ", ".join(names) or "none"), ("size limit", limit)]


def _encryption(client: Client, *, offered: bool) -> Lines:
    sock = client.sock
    if not isinstance(sock, ssl.SSLSocket):
        return [("TLS", "offered, not asked for" if offered else "not offered")]
    way = "from the first octet" if client.hop.tls == "implicit" else "by STARTTLS"
    cipher = sock.cipher()
    lines = [("TLS", f"{sock.version()}, {cipher[0] if cipher else 'no cipher'}, {way}")]
    certificate = client.certificate
    if certificate is not None:
        lines.extend(_certificate(certificate))
    verified = client.hop.verified or client.hop.fingerprint
    return [*lines, ("accepted", "yes" if verified else "yes, but it was not verified")]


def _certificate(certificate: PeerCertificate) -> Lines:
    return [
        ("certificate", f"for {certificate.shown_names}"),
        ("issuer", certificate.issuer),
        ("valid", f"{date_of(certificate.begins)} to {date_of(certificate.ends)}"),
        ("fingerprint", certificate.fingerprint),
    ]


def make_parser() -> Parser:
    parser = Parser("tofmipd probe", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    add(
        "--tls",
        metavar="MODE",
        type=tls_policy,
        help="verify, encrypt, fingerprint:SHA256 or off (default: as configured; for HOST verify,"
        " and no TLS if it offers none)",
    )
    add("--ca", metavar="FILE", default="", help="authorities for its certificate, PEM")
    add("place", nargs="?", metavar="HOST[:PORT]", type=place, help="another one (port: 25)")
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    options = make_parser().parse_known(arguments)
    options.ca = absolute(options.ca, person().home)
    return options
