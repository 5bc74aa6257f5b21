"""What `tofmipd queue` does in one outbox, always as the user whose it is: each function yields
objects of JSON, so that a process of its own can do it as well.

Nothing but octets comes from there: whoever prints them escapes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from tofmipd.handoff import inventory
from tofmipd.handoff.copy import HandOffFailed, Transport
from tofmipd.handoff.outbox import BAD, Outbox
from tofmipd.handoff.retries import Retries, Tried
from tofmipd.handoff.smtp import Pool
from tofmipd.handoff.stored import REFUSED, TAKEN, TOLD, BadEnvelope
from tofmipd.privsep.users import Submits, User, house, retries_of, user_of
from tofmipd.settings import SenderCheck, Settings

Line = dict[str, Any]

# What may come of a message.  HELD: somebody else is trying it.
SENT, WAITS, FAILED, HELD, GONE = "sent", "waiting", "failed", "held", "gone"
BROKEN, REMOVED, MISCONFIGURED = "broken", "removed", "misconfigured"


def names(directory: str) -> Iterator[Line]:
    """One object: the ``ids`` of all messages, or the ``fault`` that keeps them from being seen,
    and whether a right is missing."""
    try:
        yield {"ids": sorted(inventory.ids(Outbox(directory)))}
    except OSError as error:
        denied = isinstance(error, PermissionError)
        yield {"fault": error.strerror or str(error), "denied": denied}


def look(directory: str, ids: Iterable[str], *, texts: bool = False) -> Iterator[Line]:
    """A description of each message that is still there; with ``texts`` each of its copies has its
    ``header``."""
    outbox = Outbox(directory)
    for id_ in ids:
        told = inventory.describe(outbox, id_)
        if told is not None:
            if texts and told["state"] != inventory.BROKEN:
                _add_headers(outbox, told)
            yield told


def _add_headers(outbox: Outbox, told: Line) -> None:
    try:
        headers = inventory.headers(outbox, told["id"], told)
    except (BadEnvelope, OSError) as error:
        told["fault"] = str(error)
        return
    for copy, header in zip(told["copies"], headers, strict=True):
        copy["header"] = header


def read(directory: str, told: Line) -> Iterator[Line]:
    """The body of a message that is described, in pieces."""
    outbox = Outbox(directory)
    try:
        for text in inventory.body(outbox, told["id"], told):
            yield {"text": text}
    except (BadEnvelope, OSError) as error:
        yield {"fault": str(error)}


def retry(
    settings: Settings, directory: str, user_named: Callable[[str], User], ids: Iterable[str]
) -> Iterator[Line]:
    """Try messages, the reports that come of it too, and say of each what became of it.

    ``user_named`` says who hands over for a login.
    """
    pool = Pool()
    try:
        yield from _Trial(settings, directory, user_named, pool).run(ids)
    finally:
        pool.close()


class _Trial:
    def __init__(
        self, settings: Settings, directory: str, user_named: Callable[[str], User], pool: Pool
    ) -> None:
        # How long a message may wait is for the daemon to know, which may have been told another
        # time: nothing is given up here.
        queue = settings.queue._replace(lifetime=float("inf"), warning=False)
        settings = settings._replace(queue=queue, sender_check=SenderCheck("off"))
        self._retries = _quiet_retries(settings, directory)
        place = house(settings, pool, retries=self._retries)
        form: Literal["python", "literal"] = "python" if settings.global_mode else "literal"
        self._serving: Callable[[str], Submits] = functools.cache(
            lambda login: user_of(settings, place, user_named(login), form=form)
        )
        self._retries.transports = self._transport

    def _transport(self, login: str, local_address: str) -> Transport:
        """Raises HandOffFailed."""
        return self._serving(login).transport(local_address)

    def run(self, ids: Iterable[str]) -> Iterator[Line]:
        for id_ in ids:
            said = self._said(id_)
            yield said
            if said.get("refused"):
                # Reports to the sender are messages of their own.
                for report in self._new(id_):
                    yield self._said(report)

    def _new(self, id_: str) -> list[str]:
        """Reports that an attempt has made."""
        known = self._retries.upcoming()
        return sorted(report for report in known if report.startswith(f"{id_}."))

    def _said(self, id_: str) -> Line:
        outbox = self._retries.outbox
        told = inventory.describe(outbox, id_)
        try:
            if told is not None and told["login"] is not None:
                # Before anything is noted as an attempt: these files are to be put right first.
                self._transport(told["login"], told["local_address"])
            tried = self._retries.attempt(id_, again=True)
        except HandOffFailed as error:
            return {"id": id_, "outcome": MISCONFIGURED, "reply": error.detail or str(error)}
        except BadEnvelope as error:
            outbox.spoil(id_)
            return {"id": id_, "outcome": BROKEN, "reply": str(error)}
        except OSError as error:
            return {"id": id_, "outcome": BROKEN, "reply": error.strerror or str(error)}
        if tried is None:
            return {"id": id_, "outcome": _why_not(outbox, id_)}
        return _came_of(tried)


def _quiet_retries(settings: Settings, directory: str) -> Retries:
    """What begins nothing by itself."""
    retries = retries_of(settings, directory, lambda *line: None)
    retries.stop(0)
    return retries


def _why_not(outbox: Outbox, id_: str) -> str:
    return HELD if inventory.describe(outbox, id_) is not None else GONE


def _came_of(tried: Tried) -> Line:
    pair = tried.pair
    last = [pair.history.last[p] for p in tried.places if p in pair.history.last]
    counts = {what: sum(event.what == what for event in last) for what in (TAKEN, REFUSED, TOLD)}
    outcome = SENT if tried.due is None else WAITS
    if pair.state == BAD:
        outcome = FAILED
    return {
        "id": pair.id,
        "outcome": outcome,
        "taken": counts[TAKEN],
        "refused": counts[REFUSED] + counts[TOLD],
        "waiting": len(pair.history.waiting(pair.stored)),
        "next_attempt": tried.due,
        "reply": inventory.last_reply(last),
    }


def remove(directory: str, ids: Iterable[str]) -> Iterator[Line]:
    """Remove messages that nobody has; ``lost`` is how many recipients will never get one, None
    where that cannot be told."""
    outbox = Outbox(directory)
    for id_ in ids:
        try:
            pair = outbox.take(id_)
            if pair is None:
                yield {"id": id_, "outcome": _why_not(outbox, id_)}
                continue
            with pair:
                history, stored = pair.history, pair.stored
                lost = len(history.waiting(stored)) + len(history.refused(stored))
                pair.remove()
            yield {"id": id_, "outcome": REMOVED, "lost": lost}
        except (BadEnvelope, OSError) as error:
            yield _remove_broken(outbox, id_, str(error))


def _remove_broken(outbox: Outbox, id_: str, fault: str) -> Line:
    told = inventory.describe(outbox, id_)
    if told is None:
        return {"id": id_, "outcome": GONE}
    if told["state"] != inventory.BROKEN:
        return {"id": id_, "outcome": BROKEN, "reply": fault}
    try:
        inventory.remove_broken(outbox, id_)
    except OSError as error:
        return {"id": id_, "outcome": BROKEN, "reply": error.strerror or str(error)}
    return {"id": id_, "outcome": REMOVED, "lost": None}
