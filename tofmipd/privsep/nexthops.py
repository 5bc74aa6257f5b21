"""Next hops as a user's configuration, or the administrator, asks for them."""

from __future__ import annotations

from dataclasses import replace

from tofmipd.handoff.nexthop import MESSAGES_PER_CONNECTION, NextHop
from tofmipd.settings import NextHopLimits, Relay
from tofmipd.tmda.config import Config
from tofmipd.tmda.values import split_smtphost

# RFC 8314 section 3.3.
IMPLICIT_TLS_PORT = 465
_SMTP_PORT = 25


def configured_hops(
    config: Config, limits: NextHopLimits, local_name: str, *, pass_eight_bit: bool = False
) -> tuple[NextHop, ...]:
    """Those of SMTPHOST, in order of preference."""
    hosts = config.smtphost if isinstance(config.smtphost, tuple) else (config.smtphost,)
    default_port = IMPLICIT_TLS_PORT if config.smtpssl == "implicit" else _SMTP_PORT
    hops = []
    for host, port in (split_smtphost(text, default_port) for text in hosts):
        hop = NextHop(
            host,
            port,
            username=config.smtpauth_username,
            password=config.smtpauth_password,
            tls=_tls(config, port),
            trust="" if config.smtptls == "off" else config.smtptls,
            cafile=config.smtpssl_cafile,
            certfile=config.smtpssl_certfile,
            keyfile=config.smtpssl_keyfile,
            clear_password=config.smtptls == "off",
            local_name=local_name,
            connect_timeout=limits.connect_timeout,
            reply_timeout=limits.reply_timeout,
            dot_timeout=limits.dot_timeout,
            messages=config.smtp_max_sessions_per_connection or MESSAGES_PER_CONNECTION,
            pass_eight_bit=pass_eight_bit,
        )
        hops.append(hop)
    return tuple(hops)


def _tls(config: Config, port: int) -> str:
    match config.smtpssl:
        case str() as way:
            return way
        case False if config.smtptls in ("", "off"):
            return "off"
    return way_to_encrypt(port)


def way_to_encrypt(port: int) -> str:
    return "implicit" if port == IMPLICIT_TLS_PORT else "starttls"


def relay_hops(
    relay: Relay, limits: NextHopLimits, local_name: str, *, pass_eight_bit: bool = False
) -> tuple[NextHop, ...]:
    """Those of the administrator, in order of preference."""
    hops = []
    trust = relay.tls or ("verify" if relay.ca_file else "")
    for host, port in relay.places:
        hop = NextHop(
            host,
            port,
            trust="" if trust == "off" else trust,
            cafile=relay.ca_file,
            cafile_setting="--relay-ca",
            local_name=local_name,
            connect_timeout=limits.connect_timeout,
            reply_timeout=limits.reply_timeout,
            dot_timeout=limits.dot_timeout,
            pass_eight_bit=pass_eight_bit,
        )
        clear = trust == "off" or (not trust and hop.loopback)
        hops.append(hop if clear else replace(hop, tls=way_to_encrypt(port)))
    return tuple(hops)


def names_next_hop(config: Config) -> bool:
    """Whether the configuration itself says where mail goes."""
    return any(config.names.get(name) is not None for name in ("MAIL_TRANSPORT", "SMTPHOST"))
