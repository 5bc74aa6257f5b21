"""Who a message says has written it, as any program or person might read it.

Programs do not agree on what is wrong with a field, and many show a name only: so there are the
addresses that a From has, and all else in it that can be taken for one.
"""

from __future__ import annotations

import binascii
import contextlib
import itertools
import quopri
import re
import unicodedata
from collections.abc import Iterator, Sequence

from tofmipd.tmda.header import Field
from tofmipd.tmda.mailbox import mailboxes

# Of a message that is being resent the second is the sender's own.
_NAMES = (b"from", b"resent-from")
_USUAL = re.compile(r"[\w.+=-]+", re.ASCII)
_NOT_IN_A_NAME = frozenset(' \\"(),:;<>[]')
# What people put around an address.
_AROUND = "'`*."
_APART = re.compile(r'[\s\x00-\x1f\x7f"(),:;<>\[\]]+')
_ENCODED_WORD = re.compile(r"=\?[^? ]+\?([BbQq])\?([^? ]*)\?=")
_BLANKS_BETWEEN = re.compile(r"(?<=\?=)\s+(?==\?)")
_DOMAIN_LIMIT = 255


def values(fields: Sequence[Field]) -> list[bytes]:
    """Of the fields that name authors; there may be several of a name."""
    return [field.value for field in fields if field.name in _NAMES]


def addresses(value: bytes) -> list[str]:
    """Those that a field has; one may lack its domain."""
    return [box.address.decode("utf-8", "replace") for box in mailboxes(value)]


def lookalikes(value: bytes) -> Iterator[str]:
    """All words with an "@", also in names, comments and encoded words (RFC 2047)."""
    text = unicodedata.normalize("NFKC", value.decode("utf-8", "replace"))
    decoded = _ENCODED_WORD.sub(_decoded, _BLANKS_BETWEEN.sub("", text))
    for shown in dict.fromkeys((text, decoded)):
        for word in _APART.split(shown):
            pieces = word.split("@")
            for local, domain in itertools.pairwise(pieces):
                if local:
                    yield f"{local}@{domain}"


def _decoded(word: re.Match[str]) -> str:
    """Whatever its character set is: an address has ASCII only."""
    octets = word[2].encode("utf-8", "replace")
    try:
        if word[1] in "Bb":
            octets = binascii.a2b_base64(octets + b"==")
        else:
            octets = quopri.decodestring(octets, header=True)
    except binascii.Error:
        return word[0]
    return octets.decode("utf-8", "replace")


def parts(address: str) -> tuple[str, str]:
    """Local part and domain ("" for none) in the form in which names are compared: quotes, what
    cannot be seen and other forms of the same letters make no difference.

    "host!name" is that name: who has to read it here is that host.
    """
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = address, ""
    domain = domain.strip()
    if not domain.startswith("["):
        domain = _plain(domain)
    return _plain(local).rpartition("!")[2], domain.lower()


def _plain(text: str) -> str:
    if not _USUAL.fullmatch(text):
        text = unicodedata.normalize("NFKC", text)
        text = "".join(c for c in text if c.isprintable() and c not in _NOT_IN_A_NAME)
    return text.lower().strip(_AROUND)


def domain_name(domain: str) -> str:
    """A domain as DNS has it (RFC 3490); what can be none is left as it is."""
    if not domain.isascii() and len(domain) <= _DOMAIN_LIMIT:
        with contextlib.suppress(UnicodeError):
            domain = domain.encode("idna").decode()
    return domain.lower().strip(".")
