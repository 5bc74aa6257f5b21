"""Tagged addresses: how they are made, and how they are checked.

Source: TMDA reference, section 1.  Addresses are octets; "lower case" concerns ASCII letters
only, as bytes.lower() has it.  Times are seconds since 1970.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tofmipd.tmda.errors import SettingError, TagError

_TIMEOUT = re.compile(r"0*([0-9]{1,15})([YMwdhms])\n?", re.ASCII)
_UNIT_SECONDS = {
    "Y": 365 * 86400,
    "M": 30 * 86400,
    "w": 7 * 86400,
    "d": 86400,
    "h": 3600,
    "m": 60,
    "s": 1,
}
_NOT_A_KEYWORD_OCTET = re.compile(rb"[^A-Za-z0-9!#$%&*+\-/=?^_`{|}'~]")
_EXPIRY = re.compile(rb"([0-9]{1,30})\.([^.]*)")


@dataclass(frozen=True, slots=True)
class TagSettings:
    """What an address is tagged with; the names are those of the user's settings in lower case."""

    key: bytes = field(repr=False)
    recipient_delimiter: bytes = b"-"
    hmac_bytes: int = 3
    dated_timeout: str = "5d"
    tags_confirm: tuple[bytes, ...] = (b"confirm",)
    tags_dated: tuple[bytes, ...] = (b"dated",)
    tags_keyword: tuple[bytes, ...] = (b"keyword",)
    tags_sender: tuple[bytes, ...] = (b"sender",)


class Kind(enum.Enum):
    """What an address was tagged as; the value is the built-in tag word."""

    CONFIRM = b"confirm"
    DATED = b"dated"
    KEYWORD = b"keyword"
    SENDER = b"sender"


class Check(enum.Enum):
    """What came of checking a tagged address."""

    VALID = "valid"
    EXPIRED = "expired"
    BAD = "bad"
    UNTAGGED = "untagged"


def seconds(timeout: str) -> int:
    """The length of a timeout such as ``5d``; raises TagError (reference 1.2)."""
    match = _TIMEOUT.fullmatch(timeout)
    if match is None:
        raise TagError(f"invalid timeout {timeout!r}: write a number and one of Y M w d h m s")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def mac(settings: TagSettings, *data: bytes) -> bytes:
    """The cookie's hash: hexadecimal digits, two for each of HMAC_BYTES."""
    digest = hmac.digest(settings.key, b"".join(data), hashlib.sha1)
    return digest.hex().encode()[: 2 * settings.hmac_bytes]


def dated_cookie(settings: TagSettings, timeout: str, now: float) -> bytes:
    """``timeout`` may be empty: then the setting DATED_TIMEOUT holds."""
    try:
        length = seconds(timeout or settings.dated_timeout)
    except TagError as error:
        raise error if timeout else SettingError("DATED_TIMEOUT", str(error)) from None
    expiry = b"%d" % (math.floor(now) + length)
    return expiry + b"." + mac(settings, expiry)


def sender_cookie(settings: TagSettings, correspondent: bytes) -> bytes:
    return mac(settings, correspondent.lower())


def keyword_cookie(settings: TagSettings, keyword: bytes) -> bytes:
    """The case of ``keyword`` is kept here; keyword_address lowers it."""
    word = _NOT_A_KEYWORD_OCTET.sub(b"?", keyword)
    word = word.replace(settings.recipient_delimiter, b"?")
    return word + b"." + mac(settings, word)


def _split(address: bytes) -> tuple[bytes, bytes]:
    local, at, domain = address.partition(b"@")
    if not at or b"@" in domain:
        raise TagError(f"{address.decode('utf-8', 'replace')!r} is not an address with one @")
    return local, domain


def _join(settings: TagSettings, address: bytes, *words: bytes) -> bytes:
    local, domain = _split(address)
    return settings.recipient_delimiter.join([local, *words]) + b"@" + domain


def dated_address(settings: TagSettings, address: bytes, timeout: str, now: float) -> bytes:
    cookie = dated_cookie(settings, timeout, now)
    return _join(settings, address, settings.tags_dated[0], cookie)


def sender_address(settings: TagSettings, address: bytes, correspondent: bytes) -> bytes:
    cookie = sender_cookie(settings, correspondent)
    return _join(settings, address, settings.tags_sender[0], cookie)


def domain_address(settings: TagSettings, address: bytes, correspondent: bytes) -> bytes:
    return sender_address(settings, address, correspondent.rpartition(b"@")[2])


def keyword_address(
    settings: TagSettings, address: bytes, keyword: bytes, *, keep_case: bool = False
) -> bytes:
    """``keep_case`` as the original's address tool has it; such a keyword cannot be checked."""
    cookie = keyword_cookie(settings, keyword if keep_case else keyword.lower())
    return _join(settings, address, settings.tags_keyword[0], cookie)


def extension_address(settings: TagSettings, address: bytes, extension: bytes) -> bytes:
    return _join(settings, address, extension)


def confirm_address(settings: TagSettings, address: bytes, *data: bytes) -> bytes:
    """``data`` is the time, the process id and perhaps a word (reference 1.5)."""
    cookie = b".".join([*data[:2], mac(settings, *data)])
    return _join(settings, address, settings.tags_confirm[0], cookie)


def fingerprint(settings: TagSettings, values: Iterable[bytes]) -> bytes:
    """27 characters of base64 over all values (reference 1.6)."""
    digest = hmac.new(settings.key, digestmod=hashlib.sha1)
    for value in values:
        digest.update(value)
    return as_fingerprint(digest)


def as_fingerprint(digest: hmac.HMAC) -> bytes:
    return base64.b64encode(digest.digest()).rstrip(b"=")


def _kind(settings: TagSettings, word: bytes) -> Kind | None:
    """The kind that the lower-case ``word`` stands for."""
    for kind, words in (
        (Kind.CONFIRM, settings.tags_confirm),
        (Kind.DATED, settings.tags_dated),
        (Kind.SENDER, settings.tags_sender),
        (Kind.KEYWORD, settings.tags_keyword),
    ):
        if word == kind.value or word in (tag.lower() for tag in words):
            return kind
    return None


def check_address(
    settings: TagSettings, address: bytes, correspondent: bytes, now: float
) -> tuple[Check, Kind | None]:
    """Is ``address`` one that was made with these settings (reference 1.3)?

    ``correspondent`` matters for sender addresses only.  The kind is None when the address is
    untagged.  Confirm addresses need what only the incoming side knows: they count as BAD.
    """
    local = address.lower().rpartition(b"@")[0]
    pieces = local.split(settings.recipient_delimiter.lower())
    kind = _kind(settings, pieces[-2]) if len(pieces) > 1 else None
    if kind is None:
        return Check.UNTAGGED, None
    cookie = pieces[-1]
    if kind is Kind.DATED:
        return _check_dated(settings, cookie, now), kind
    if kind is Kind.SENDER:
        good = any(
            hmac.compare_digest(cookie, sender_cookie(settings, name))
            for name in _correspondent_and_domains(correspondent)
        )
        return (Check.VALID if good else Check.BAD), kind
    if kind is Kind.KEYWORD:
        word, _, code = cookie.rpartition(b".")
        good = hmac.compare_digest(code, mac(settings, word))
        return (Check.VALID if good else Check.BAD), kind
    return Check.BAD, kind


def _check_dated(settings: TagSettings, cookie: bytes, now: float) -> Check:
    match = _EXPIRY.fullmatch(cookie)
    if match is None:
        return Check.BAD
    if math.floor(now) > int(match[1]):
        return Check.EXPIRED
    return Check.VALID if hmac.compare_digest(match[2], mac(settings, match[1])) else Check.BAD


def _correspondent_and_domains(correspondent: bytes) -> Iterable[bytes]:
    """The address, its domain, and each parent domain in turn."""
    name = correspondent.lower()
    yield name
    name = name.rpartition(b"@")[2]
    yield name
    while b"." in name:
        name = name.partition(b".")[2]
        yield name
