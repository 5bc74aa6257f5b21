"""The certificate of a daemon whose clients are elsewhere: one that is there, or a new one."""

from __future__ import annotations

import argparse
import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tofmipd.cli import absolute, host_name, person
from tofmipd.commands import daemonfile
from tofmipd.commands.questions import Questions
from tofmipd.errors import CONFIG, Fatal

if TYPE_CHECKING:
    from tofmipd.commands.selfsigned import Shown


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of chain and key; for a self-signed one the ``names`` that it is to have."""

    cert: str
    key: str
    self_signed: bool = False
    names: tuple[str, ...] = ()
    cert_mode: int = 0o600

    def make(self) -> list[tuple[str, bool]]:
        """What is missing; each path, and whether it is new.  Raises Fatal."""
        if not self.self_signed:
            return []
        from tofmipd.commands.selfsigned import make_pair

        return make_pair(self.cert, self.key, self.names, cert_mode=self.cert_mode)


def certificate_of(path: str) -> Shown | None:
    """What is to be seen of the certificate that the daemon's file names, if it names one.

    Raises Fatal.
    """
    cert = daemonfile.value(path, "ssl-cert")
    if not cert:
        return None
    from tofmipd.commands.selfsigned import shown

    return shown(absolute(cert, person().home))


def name_on(seen: Shown | None) -> str:
    """By which name clients call this machine."""
    names = [name for name in seen.names if "*" not in name] if seen else []
    return names[0] if names else host_name()


def choose_pair(
    options: argparse.Namespace,
    questions: Questions,
    cert: str,
    key: str,
    *,
    cert_mode: int = 0o600,
) -> Pair | None:
    """None if only this machine is to connect; a new pair goes to the paths given.

    Raises Fatal.
    """
    home = person().home
    if options.ssl_cert:
        return _existing(absolute(options.ssl_cert, home), absolute(options.ssl_key, home))
    elsewhere = options.elsewhere or bool(options.host)
    if not elsewhere and not questions.yes(
        "Shall mail clients on other machines be able to connect, by TLS", default=False
    ):
        return None
    if not elsewhere:
        question = "File with the certificate, or new for a self-signed one"
        path = questions.text(question, "new", lambda text: _readable(text, home))
        if path != "new":
            question = "File with its key"
            return _existing(path, questions.text(question, path, lambda t: _readable(t, home)))
    name = options.host or questions.text("Name of this machine for them", host_name(), _host)
    return Pair(cert, key, True, tuple(dict.fromkeys((_host(name), _host(host_name())))), cert_mode)


def _host(name: str) -> str:
    from tofmipd.commands.selfsigned import names_for

    return names_for([name])[0]


def _readable(text: str, home: str) -> str:
    if text == "new":
        return text
    path = absolute(text, home)
    if not os.access(path, os.R_OK):
        raise Fatal(CONFIG, f"{path} cannot be read")
    return path


def _existing(cert: str, key: str) -> Pair:
    """A chain and its key.  Raises Fatal."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Nobody is asked for a passphrase: the daemon could not ask, either.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        reason = "the key is not that of the certificate"
        if error.reason != "KEY_VALUES_MISMATCH":
            reason = "not a certificate and its key, without a passphrase, in PEM form"
        raise Fatal(CONFIG, f"{cert}, {key}: {reason}") from None
    except OSError as error:
        path = cert if not os.access(cert, os.R_OK) else key
        raise Fatal(CONFIG, f"{path}: {error.strerror}") from None
    return Pair(cert, key)
