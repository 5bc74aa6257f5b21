"""The field X-TMDA-Fingerprint (TMDA reference, sections 1.6 and 5.7)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable

from tofmipd.tmda.cookies import TagSettings, as_fingerprint
from tofmipd.tmda.header import Field

NAME = b"X-TMDA-Fingerprint"
BODY = "body"

# Gives the body, as programs on this machine have it, in pieces.
Body = Callable[[], Iterable[bytes]]


class Fingerprints:
    """Makes the field for each copy of one message.

    ``names`` are those of FINGERPRINT.  The body is read once for all copies that agree in what
    comes before it.
    """

    def __init__(self, tags: TagSettings, names: Iterable[str], body: Body) -> None:
        self._key = tags.key
        # A field may be called so, too: in capitals.
        self._names = [(name.lower(), name == BODY) for name in names]
        self._body = body
        self._with_body: dict[tuple[bytes, ...], tuple[hmac.HMAC, bool]] = {}

    def value(self, fields: Iterable[Field]) -> bytes | None:
        """The fingerprint of a copy, None if it has nothing of what is asked for."""
        first: dict[str, Field] = {}
        for field in fields:
            first.setdefault(field.name.decode("latin-1"), field)
        digest = hmac.new(self._key, digestmod=hashlib.sha1)
        some = False
        before: tuple[bytes, ...] = ()
        for name, is_body in self._names:
            if is_body:
                digest, has_body = self._after_body(digest, before)
                some = some or has_body
                before += (b"",)
            elif name in first:
                text = first[name].text
                digest.update(text)
                some = some or bool(text)
                before += (text,)
        return as_fingerprint(digest) if some else None

    def _after_body(self, digest: hmac.HMAC, before: tuple[bytes, ...]) -> tuple[hmac.HMAC, bool]:
        if before not in self._with_body:
            state, some = digest.copy(), False
            for piece in self._body():
                state.update(piece)
                some = some or bool(piece)
            self._with_body[before] = state, some
        state, some = self._with_body[before]
        return state.copy(), some
