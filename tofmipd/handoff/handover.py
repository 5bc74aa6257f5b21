"""A message's copies on their way out, while its client waits: all or nothing until the first one
is taken; from then on nothing is lost."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tofmipd.handoff.attempt import Told
from tofmipd.handoff.copy import Copy, HandOffFailed, Transport
from tofmipd.handoff.outbox import Draft
from tofmipd.handoff.retries import Retries
from tofmipd.handoff.stored import DEFERRED, REFUSED, TAKEN, Event, Origin, Place
from tofmipd.smtp.replies import INTERNAL_ERROR
from tofmipd.smtp.reply import Reply, printable

log = logging.getLogger(__name__)

# What a next hop's reply begins with and ours has already.
_OWN_WORDS = re.compile(r"\A[0-9]{3}(?: [0-9]\.[0-9]+\.[0-9]+)?(?: *ok(?:\b:?))? *", re.IGNORECASE)
_NO_ROOM = Reply(451, "3.0", ("Error: your message cannot be kept here now, try again later",))

# Told of each copy that is taken: its number, and what the next hop said.
TakenCopy = Callable[[int, str], None]
# Told of each copy that the outbox has now: its number, and the name of the message there.
KeptCopy = Callable[[int, str], None]


def _nobody(number: int, queue: str) -> None:
    """Wants to know."""


class HandedOver(NamedTuple):
    """``reply`` is for the client; the first ``copies`` of the message are on their way."""

    reply: Reply
    copies: int


def hand_over(
    copies: Sequence[Copy],
    transport: Transport,
    origin: Origin,
    retries: Retries | None,
    taken: TakenCopy,
    kept: KeptCopy = _nobody,
) -> HandedOver:
    """Hand copies of one message over.

    With more than one of them the outbox is prepared first, so that what comes after the first
    copy cannot fail for want of room.  Without ``retries`` the client hears how many have it.
    """
    if len(copies) == 1 or retries is None:
        return _Handover(copies, transport, origin, taken, kept).run(None, None)
    try:
        draft = retries.outbox.prepare(copies, origin)
    except OSError as error:
        return _no_room(origin, retries, error)
    with draft:
        return _Handover(copies, transport, origin, taken, kept).run(retries, draft)


def keep(
    copies: Sequence[Copy], origin: Origin, retries: Retries, kept: KeptCopy = _nobody
) -> HandedOver:
    """Put all copies into the outbox first."""
    now = time.time()
    try:
        with retries.outbox.prepare(copies, origin) as draft:
            draft.commit([], now)
    except OSError as error:
        return _no_room(origin, retries, error)
    retries.add(draft.id, now)
    for number in range(len(copies)):
        kept(number, draft.id)
    return HandedOver(Reply(250, "0.0", (f"Ok: queued as {draft.id}",)), len(copies))


def _no_room(origin: Origin, retries: Retries, error: OSError) -> HandedOver:
    log.error(
        "s=%s deferred: the outbox %s cannot be written: %s",
        origin.session_id,
        retries.outbox.directory,
        error.strerror or error,
    )
    return HandedOver(_NO_ROOM, 0)


class _Handover:
    """One message; it is used once."""

    def __init__(
        self,
        copies: Sequence[Copy],
        transport: Transport,
        origin: Origin,
        taken: TakenCopy,
        kept: KeptCopy,
    ) -> None:
        self._copies = copies
        self._transport = transport
        self._origin = origin
        self._taken = taken
        self._kept = kept
        self._said: list[str] = []

    def run(self, retries: Retries | None, draft: Draft | None) -> HandedOver:
        session = self._origin.session_id
        try:
            self._transport.send_all(self._copies, self._take)
        except HandOffFailed as error:
            log.warning("s=%s hand-off to %s failed: %s", session, self._transport, error)
            if not self._said:
                return HandedOver(error.reply, 0)
            return self._put_off(error, retries, draft)
        except Exception:
            if not self._said:
                raise
            # Some have it: a defect of ours must not cost the others the message.
            log.exception("s=%s internal error", session)
            if len(self._said) < len(self._copies):
                return self._put_off(HandOffFailed(INTERNAL_ERROR), retries, draft)
        words = printable(_OWN_WORDS.sub("", self._said[-1])) or "sent"
        return HandedOver(Reply(250, "0.0", (f"Ok: {words}",)), len(self._copies))

    def _take(self, said: str) -> None:
        self._said.append(said)
        self._taken(len(self._said) - 1, said)

    def _put_off(
        self, error: HandOffFailed, retries: Retries | None, draft: Draft | None
    ) -> HandedOver:
        """Some have it: we answer for the others."""
        if retries is None or draft is None:
            return self._stopped_short(error)
        due = retries.first_due(error.reply)
        try:
            draft.commit(self._events(error), due)
        except OSError as trouble:
            _no_room(self._origin, retries, trouble)
            return self._stopped_short(error)
        retries.add(draft.id, due)
        done, total = self._counts()
        log.warning(
            "s=%s %d of %d recipients have this message, the outbox has it for the others queue=%s",
            self._origin.session_id,
            done,
            total,
            draft.id,
        )
        self._tell_rest(error, draft.id)
        text = f"Ok: taken for {done} of {total} recipients, queued as {draft.id} for the others"
        return HandedOver(Reply(250, "0.0", (text,)), len(self._copies))

    def _events(self, error: HandOffFailed) -> list[Event]:
        """What has become of each recipient until now."""
        now, by = time.time(), str(self._transport)
        said_by = by if error.heard else ""
        failed = len(self._said)
        rest = self._copies[failed].recipients
        what = REFUSED if self._final(error) else DEFERRED
        events = [
            Event(TAKEN, now, Place(number, recipient), by, said)
            for number, said in enumerate(self._said)
            for recipient in range(len(self._copies[number].recipients))
        ]
        events += [
            Event(what, now, Place(failed, recipient), said_by, str(error.reply))
            for recipient in range(len(rest))
        ]
        return events

    def _final(self, error: HandOffFailed) -> bool:
        """Which one of several was refused is found out when it is tried again."""
        return error.reply.code >= 500 and len(self._copies[len(self._said)].recipients) == 1

    def _tell_rest(self, error: HandOffFailed, queue: str) -> None:
        """Have the log say what has become of those who do not have it."""
        failed = len(self._said)
        if self._final(error):
            copy, by = self._copies[failed], str(self._transport) if error.heard else ""
            told = Told.of(self._origin, copy, queue)
            told.not_taken(copy.recipients[0], by, error.reply, str(error))
            failed += 1
        for number in range(failed, len(self._copies)):
            self._kept(number, queue)

    def _stopped_short(self, error: HandOffFailed) -> HandedOver:
        """What the client hears where nobody answers for the rest."""
        done, total = self._counts()
        log.error(
            "s=%s only %d of %d recipients have this message", self._origin.session_id, done, total
        )
        text = f"taken for {done} of {total} recipients, then: {error.reply.lines[0]}"
        return HandedOver(Reply(451, "3.0", (printable(text),)), len(self._said))

    def _counts(self) -> tuple[int, int]:
        """How many recipients have it, and how many there are."""
        numbers = [len(copy.recipients) for copy in self._copies]
        return sum(numbers[: len(self._said)]), sum(numbers)
