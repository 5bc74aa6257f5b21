"""Encryption for a daemon: nothing of it is imported where no listener has any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tofmipd.errors import CONFIG, UNAVAILABLE, Fatal
from tofmipd.settings import Settings

if TYPE_CHECKING:
    from tofmipd.pump import Encrypt
    from tofmipd.tls.contexts import Contexts
    from tofmipd.tls.files import Watch

# How often it is looked whether files have changed.
LOOK_SECONDS = 5.0


class Encryption:
    """Certificates as they are in force.  Raises Fatal when they cannot be used at the start.

    ``again``: in the place of a process that has died, with which they may have expired.
    """

    def __init__(self, settings: Settings, *, again: bool = False) -> None:
        self._settings = settings.encryption
        self._contexts: Contexts | None = None
        self._watch: Watch | None = None
        self.encrypt: Encrypt | None = None
        if all(where.mode == "plain" for where in settings.listen):
            return
        try:
            from tofmipd.tls.contexts import Contexts
            from tofmipd.tls.files import Watch
            from tofmipd.tls.material import TlsError
            from tofmipd.tls.wire import encryptor
        except ImportError as error:
            text = f"TLS needs pyOpenSSL (pip install pyOpenSSL): {error}"
            raise Fatal(UNAVAILABLE, text) from None
        try:
            self._watch = Watch(settings.encryption)
            self._contexts = Contexts(settings.encryption, expired=again)
        except TlsError as error:
            raise Fatal(CONFIG, str(error)) from None
        self.encrypt = encryptor(self._contexts)

    @property
    def watched(self) -> bool:
        return self._watch is not None

    def changed(self) -> bool:
        """Whether files are other ones than at the last look."""
        return self._watch is not None and self._watch.changed()

    def reload(self) -> None:
        """Read the files again; bad ones change nothing but the log."""
        from tofmipd.tls.files import paths_of

        if self._contexts is None or self._watch is None:
            return
        self._watch.taken()
        try:
            self._contexts.reload(paths_of(self._settings))
        except OSError as error:
            self._contexts.complain(error)

    def take(self, paths: Sequence[str], read: Callable[[str], bytes]) -> None:
        """The same with files that another process has opened."""
        if self._contexts is not None:
            self._contexts.reload(paths, read)
