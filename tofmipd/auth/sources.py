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
    """The mechanisms that all sources can serve, known without making them."""
    return frozenset.intersection(*(MECHANISMS[spec.kind] for spec in settings.all_sources))


def chain_of(settings: Settings, owner: int, opener: Opener) -> Chain:
    """All sources in the order in which they were given.

    ``owner`` is the uid that password files must belong to, ``opener`` as for open().  Raises
    PasswordFileError.
    """
    return Chain([_source(settings, spec, owner, opener) for spec in settings.all_sources])


def _source(settings: Settings, spec: SourceSpec, owner: int, opener: Opener) -> Source:
    if spec.kind == "file":
        return PasswordFile(spec.argument, owner, opener)
    from tofmipd.auth.imap import BY_LOCAL_ADDRESS, ImapSource, remote_server
    from tofmipd.auth.ipmap import IpMap

    server = remote_server(spec.argument)
    ipmap = IpMap(settings.ipauthmap, opener) if server.host == BY_LOCAL_ADDRESS else None
    return ImapSource(server, settings.programs.source_timeout, ipmap)
