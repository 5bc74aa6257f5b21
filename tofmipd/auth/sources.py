"""The sources that the settings ask for.  A new kind of source is a new row here."""

from __future__ import annotations

from tofmipd.auth.chain import Chain
from tofmipd.auth.credentials import Source
from tofmipd.auth.files import Opener
from tofmipd.auth.passwordfile import PasswordFile
from tofmipd.settings import Settings, SourceSpec

_CLEAR_ONLY = frozenset({"PLAIN", "LOGIN"})
MECHANISMS = {"file": PasswordFile.mechanisms, "remote": _CLEAR_ONLY}


def offered(settings: Settings) -> frozenset[str]:
    """The mechanisms that all sources can serve, known without making them, and EXTERNAL where
    certificates are asked for."""
    common = frozenset.intersection(*(MECHANISMS[spec.kind] for spec in settings.all_sources))
    return common | ({"EXTERNAL"} if settings.encryption.client_ca else frozenset())


def chain_of(settings: Settings, owner: int, opener: Opener) -> Chain:
    """All sources in the order in which they were given.

    ``owner`` is the uid that password files must belong to, ``opener`` as for open().  Raises
    PasswordFileError, and AuthorityError if certificates are asked for.
    """
    certificates: Source | None = None
    if settings.encryption.client_ca:
        from tofmipd.auth.certificates import Certificates

        certificates = Certificates(settings.encryption.client_ca, opener)
    sources = [_source(settings, spec, owner, opener) for spec in settings.all_sources]
    return Chain(sources, certificates)


def _source(settings: Settings, spec: SourceSpec, owner: int, opener: Opener) -> Source:
    if spec.kind == "file":
        return PasswordFile(spec.argument, owner, opener)
    from tofmipd.auth.imap import BY_LOCAL_ADDRESS, ImapSource, remote_server
    from tofmipd.auth.ipmap import IpMap

    server = remote_server(spec.argument)
    ipmap = IpMap(settings.ipauthmap, opener) if server.host == BY_LOCAL_ADDRESS else None
    return ImapSource(server, settings.programs.source_timeout, ipmap)
