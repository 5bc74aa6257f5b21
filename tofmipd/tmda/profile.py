"""All that tagging needs to know of a user, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass

from tofmipd.tmda.config import Config
from tofmipd.tmda.cookies import TagSettings
from tofmipd.tmda.filter import Filter
from tofmipd.tmda.library import Library


@dataclass(frozen=True, slots=True)
class Profile:
    """The user's files as they stood when they were last read.

    ``library`` has the lists that rules name; ``followup`` are the mailing lists of
    MAIL_FOLLOWUP_TO, in lower case.
    """

    config: Config
    tags: TagSettings
    filter: Filter
    library: Library
    followup: frozenset[bytes] = frozenset()


def tag_settings(config: Config, key: bytes) -> TagSettings:
    """The part of a configuration that cookies depend on."""

    def octets(words: tuple[str, ...]) -> tuple[bytes, ...]:
        return tuple(word.encode("utf-8", "surrogateescape") for word in words)

    return TagSettings(
        key=key,
        recipient_delimiter=config.recipient_delimiter.encode("utf-8", "surrogateescape"),
        hmac_bytes=config.hmac_bytes,
        dated_timeout=config.dated_timeout,
        tags_confirm=octets(config.tags_confirm),
        tags_dated=octets(config.tags_dated),
        tags_keyword=octets(config.tags_keyword),
        tags_sender=octets(config.tags_sender),
    )
