"""The sources that the settings ask for.  A new kind of source is a new row here."""

from __future__ import annotations

from tofmipd.auth.attempts import Attempts, AttemptSource
from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import Source
from tofmipd.auth.files import Opener, SourceFileError
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.auth.remote import BY_LOCAL_ADDRESS, RemoteTls, remote_server
from tofmipd.settings import Settings, SourceSpec

# The names of sources that attempts are made for, in the log.
_NAMES = {"pam": "pam", "program": "checkpassword"}


def attempted(settings: Settings) -> tuple[SourceSpec, ...]:
    """The sources that need a helper to make attempts, in the order of their numbers there."""
    return tuple(spec for spec in settings.all_sources if spec.kind in _NAMES)


def chain_of(
    settings: Settings, owner: int, opener: Opener, attempts: Attempts | None = None
) -> Chain:
    """All sources in the order in which they were given.

    ``owner`` is the uid that password files must belong to, ``opener`` as for open().
    ``attempts`` makes those of ``attempted`` sources.  Raises SourceFileError.
    """
    certificates: Source | None = None
    if settings.encryption.client_ca:
        from tofmipd.auth.certificates import Certificates

        certificates = Certificates(settings.encryption.client_ca, opener)
    sources = [_source(settings, spec, owner, opener, attempts) for spec in settings.all_sources]
    return Chain(sources, certificates)


def _source(
    settings: Settings,
    spec: SourceSpec,
    owner: int,
    opener: Opener,
    attempts: Attempts | None,
) -> Source:
    timeout, at_once = settings.programs.source_timeout, settings.programs.source_attempts
    if spec.kind == "file":
        return PasswordFile(spec.argument, owner, opener, timeout)
    if spec.kind == "remote":
        return _remote(settings, spec.argument, opener)
    assert attempts is not None
    number = attempted(settings).index(spec)
    label = spec.argument.split()[0] if spec.kind == "program" else spec.argument
    return AttemptSource(_NAMES[spec.kind], label, number, attempts, timeout, at_once)


def _remote(settings: Settings, url: str, opener: Opener) -> Source:
    from tofmipd.auth.ipmap import IpMap

    server = remote_server(url)
    ipmap = IpMap(settings.ipauthmap, opener) if server.host == BY_LOCAL_ADDRESS else None
    mode = settings.remote_tls
    tls = RemoteTls(settings.remote_ca, mode == "verified", mode != "none")
    limits = settings.programs.source_timeout, ipmap, tls, settings.programs.source_attempts
    try:
        if server.scheme.startswith("imap"):
            from tofmipd.auth.imap import ImapSource

            return ImapSource(server, *limits)
        if server.scheme.startswith("ldap"):
            from tofmipd.auth.ldap import LdapSource

            return LdapSource(server, *limits)
        from tofmipd.auth.pop3 import Pop3Source

        return Pop3Source(server, *limits)
    except ImportError as error:
        text = f"-R {server.scheme}: needs ldap3 (pip install ldap3): {error}"
        raise SourceFileError(text) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise SourceFileError(
            f"{settings.remote_ca}: cannot be used as authorities ({reason}); --remoteauth-ca"
            " names a PEM file of certificates"
        ) from None
