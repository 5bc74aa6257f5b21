"""Which files hold certificates and keys, and whether they have changed.

Nothing here looks into them: in global mode this runs where no secret may be read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from tofmipd.settings import EncryptionSettings

LIMIT_OCTETS = 1 << 20
# What a program that renews certificates calls the two in a directory of their own.
CHAIN_NAME, KEY_NAME = "fullchain.pem", "privkey.pem"
_PAIRS_LIMIT = 1000

Stamps = tuple[tuple[int, ...] | None, ...]


def paths_of(settings: EncryptionSettings) -> list[str]:
    """All files, each once.  Raises OSError."""
    paths = [path for pair in settings.pairs for path in pair]
    if settings.client_ca:
        paths.append(settings.client_ca)
    if settings.sni_directory:
        for name in sorted(os.listdir(settings.sni_directory))[:_PAIRS_LIMIT]:
            path = os.path.join(settings.sni_directory, name)
            if name.endswith(".pem"):
                paths.append(path)
            elif os.path.exists(os.path.join(path, CHAIN_NAME)):
                paths += (os.path.join(path, CHAIN_NAME), os.path.join(path, KEY_NAME))
    return list(dict.fromkeys(paths))


def pairs_among(settings: EncryptionSettings, paths: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of the directory for more names: a file with both, or a directory with one each."""
    pairs = []
    for path in paths if settings.sni_directory else ():
        directory, name = os.path.split(path)
        if directory == settings.sni_directory:
            pairs.append((path, path))
        elif os.path.dirname(directory) == settings.sni_directory and name == CHAIN_NAME:
            pairs.append((path, os.path.join(directory, KEY_NAME)))
    return pairs


def stamps_of(paths: Sequence[str]) -> Stamps:
    """What changes when a file does; None for one that is not there."""
    return tuple(map(_stamp, paths))


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read(path: str) -> bytes:
    """Raises OSError."""
    with open(path, "rb") as file:
        return file.read(LIMIT_OCTETS)


def is_open_to_all(path: str) -> bool:
    """Whether everybody may read it; False where nobody can tell."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


class Watch:
    """Tells once when files have changed and then stayed as they are for one more look."""

    def __init__(self, settings: EncryptionSettings) -> None:
        self._settings = settings
        self._known = self._seen = self._look()

    def _look(self) -> object:
        try:
            paths = paths_of(self._settings)
        except OSError:
            return None
        return paths, stamps_of(paths)

    def taken(self) -> None:
        """The files have been read just now, for whatever reason."""
        self._known = self._seen = self._look()

    def changed(self) -> bool:
        """Look again.  Chain and key are replaced one after the other, which takes a moment."""
        now = self._look()
        settled, self._seen = now == self._seen, now
        if not settled or now == self._known:
            return False
        self._known = now
        return True
