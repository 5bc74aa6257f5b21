"""Options that do not go together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tofmipd.settings import DEFAULT_PORT, TLS_MODES, Listen

# What is wrong, and the options that it is about.
Contradiction = tuple[str, tuple[str, ...]]

_OF_TLS = ("ssl_cert", "ssl_key", "ssl_sni_dir", "ssl_client_ca", "ciphers")


def listeners(options: argparse.Namespace) -> tuple[Listen, ...]:
    """Where to listen, each with its mode and its proxies."""
    general = tuple(network for some in options.proxy_protocol for network in some) or None
    mode = "ssl" if options.ssl else options.tls or "plain"
    asked = [*options.proxyport, *options.ipv6proxyport] or [
        Listen("localhost", DEFAULT_PORT, mode="")
    ]
    return tuple(
        spec._replace(
            mode=spec.mode or mode, proxies=general if spec.proxies is None else spec.proxies
        )
        for spec in asked
    )


def contradictions(
    options: argparse.Namespace, *, activated: bool = False
) -> Iterator[Contradiction]:
    """All of them.  ``activated``: sockets will be passed, which say how they are encrypted."""
    if options.configdir and options.vhome_script:
        yield "-c and -S exclude each other", ("configdir", "vhome_script")
    if options.xclient and options.spool:
        yield (
            "--xclient is of no use with --spool: the client is gone by then",
            ("xclient", "spool"),
        )
    if options.log_format == "journal" and (options.log_file or not options.foreground):
        text = "--log-format=journal is for standard error: with -f, without --log-file"
        yield text, ("log_format", "log_file", "foreground")
    yield from _of_tls(options, activated=activated)
    yield from _of_relay(options)


def _of_tls(options: argparse.Namespace, *, activated: bool) -> Iterator[Contradiction]:
    if options.tls is not None and options.tls not in TLS_MODES:
        yield f"--tls takes one of {', '.join(TLS_MODES)}, e.g. --tls=on", ("tls",)
        return
    if options.ssl and options.tls:
        text = "--ssl and --tls exclude each other; -p HOST:PORT,ssl is for one listener"
        yield text, ("ssl", "tls")
    encrypted = [spec for spec in listeners(options) if spec.mode != "plain"]
    if len(options.ssl_cert) != len(options.ssl_key):
        text = "each --ssl-cert needs its --ssl-key, and the other way round"
        yield text, ("ssl_cert", "ssl_key")
    elif encrypted and not options.ssl_cert:
        text = "--ssl and --tls need both --ssl-cert and --ssl-key"
        yield text, ("ssl", "tls", "proxyport", "ipv6proxyport")
    elif not (encrypted or activated) and any(getattr(options, name) for name in _OF_TLS):
        yield "certificates and ciphers are of no use without --ssl or --tls=MODE", _OF_TLS


def _of_relay(options: argparse.Namespace) -> Iterator[Contradiction]:
    if (options.relay_tls or options.relay_ca) and not options.relay:
        text = "--relay-tls and --relay-ca are of no use without --relay"
        yield text, ("relay_tls", "relay_ca")
    if options.relay_ca and options.relay_tls not in (None, "verify"):
        text = "--relay-ca is of no use unless certificates are verified"
        yield text, ("relay_ca", "relay_tls")
