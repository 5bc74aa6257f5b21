"""Makes guessing of passwords slow, by the address that it comes from (feature row BX-4).

Nobody is ever locked out by what happens elsewhere: what is counted is an address, and the pair of
an address and a user name.  Addresses of this machine are counted in pairs only, since all clients
of a tunnel or a web mailer come from there.  Time comes in as an argument, in seconds of a clock
that never goes back.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from tofmipd.auth.credentials import Verdict

_Name = TypeVar("_Name")
_Value = TypeVar("_Value")

# Failures are forgotten when there was none for so long.
WINDOW_SECONDS = 600.0
# So many of each kind are remembered, the latest: a million addresses take no more memory.
_RECORDS = 20_000
_TRUSTED_SECONDS = 30 * 86400.0
_PAIR_LIMIT = 5
_PAIR_WAIT_SECONDS, _PAIR_WAIT_LIMIT_SECONDS = 15.0, 900.0
# On this machine somebody else may be guessing through the same tunnel.
_NEAR_WAIT_LIMIT_SECONDS = 60.0
_ADDRESS_WAIT_SECONDS, _ADDRESS_WAIT_LIMIT_SECONDS = 60.0, 3600.0
# While one attempt after a wait is under way the others of that address have to wait for it.
_TURN_SECONDS = 2.0
_DELAY_LIMIT = 16.0
_MARKS = 4


@dataclass(slots=True)
class _Record:
    """``failures`` since there was a pause, the ``last`` of them, ``until`` when to wait, and how
    many attempts are ``pending``.  ``marks`` are of the wrong passwords seen last."""

    failures: int = 0
    last: float = 0.0
    until: float = 0.0
    pending: int = 0
    marks: tuple[bytes, ...] = ()


class Limiter:
    """Counts failed logins.  Safe for threads.

    An address may fail ``per_address`` times, in ten minutes without a longer pause, and must
    then wait, longer each time; ``base_delay`` (seconds) is how late the answer to a first
    failure is.  ``key`` is random.
    """

    def __init__(self, per_address: int, base_delay: float, key: bytes) -> None:
        self._per_address = per_address
        self._base_delay = base_delay
        self._key = key
        self._lock = threading.Lock()
        self._addresses: OrderedDict[str, _Record] = OrderedDict()
        self._pairs: OrderedDict[bytes, _Record] = OrderedDict()
        # When a user last logged in from an address: whatever else fails there, he is asked.
        self._trusted: OrderedDict[bytes, float] = OrderedDict()

    def ask(self, address: str, user: str, now: float) -> float:
        """How many seconds must pass before anybody may be asked about this login; 0: it may go
        on, and its verdict must come to ``tell``."""
        place, pair = self._names(address, user)
        with self._lock:
            records = [(_known(self._pairs, pair, now), _PAIR_LIMIT)]
            trusted = now - self._trusted.get(pair, -_TRUSTED_SECONDS) < _TRUSTED_SECONDS
            if place and not trusted:
                records.append((_known(self._addresses, place, now), self._per_address))
            waits = [_wait(record, limit, now) for record, limit in records if record is not None]
            wait = max(waits, default=0.0)
            if wait <= 0:
                for record, _ in records:
                    if record is not None:
                        record.pending += 1
            return wait

    def tell(self, address: str, user: str, verdict: Verdict, mark: bytes, now: float) -> float:
        """What has become of it; how late the answer may be, in seconds after the question.

        ``mark`` stands for the password, b"" where it was not shown: a client that repeats the
        same wrong one is no guesser.
        """
        place, pair = self._names(address, user)
        with self._lock:
            for record in (self._pairs.get(pair), self._addresses.get(place)):
                if record is not None and record.pending:
                    record.pending -= 1
            if verdict is Verdict.ACCEPTED:
                self._pairs.pop(pair, None)
                self._trusted.pop(pair, None)
                _remember(self._trusted, pair, now)
            if verdict is not Verdict.REJECTED:
                return 0.0
            return self._base_delay * self._failed(place, pair, mark, now)

    def mark(self, password: bytes) -> bytes:
        """Stands for a password as long as this process lives."""
        return hashlib.blake2b(password, key=self._key, digest_size=8).digest()

    def _failed(self, place: str, pair: bytes, mark: bytes, now: float) -> float:
        """Count it; the factor by which the answer is late."""
        record = _known(self._pairs, pair, now) or _remember(self._pairs, pair, _Record())
        if mark and mark in record.marks:
            return 1.0
        if mark:
            record.marks = (mark, *record.marks)[:_MARKS]
        self._pairs.move_to_end(pair)
        most = _PAIR_WAIT_LIMIT_SECONDS if place else _NEAR_WAIT_LIMIT_SECONDS
        _count(record, _PAIR_LIMIT, _PAIR_WAIT_SECONDS, most, now)
        factor = 2.0 ** min(record.failures - 1, 8)
        if place:
            record = _known(self._addresses, place, now) or _remember(
                self._addresses, place, _Record()
            )
            self._addresses.move_to_end(place)
            limit = self._per_address
            _count(record, limit, _ADDRESS_WAIT_SECONDS, _ADDRESS_WAIT_LIMIT_SECONDS, now)
            factor = max(factor, (1 + record.failures) / 2)
        return min(factor, _DELAY_LIMIT)

    def _names(self, address: str, user: str) -> tuple[str, bytes]:
        """What counts as one address, "" for this machine; and the pair with the user."""
        place = "" if not address or is_loopback(address) else network_of(address)
        pair = hashlib.blake2b(
            f"{place} {user}".encode("utf-8", "replace"), key=self._key, digest_size=16
        )
        return place, pair.digest()


def _known(records: OrderedDict[_Name, _Record], name: _Name, now: float) -> _Record | None:
    """The record of that name unless it is out of date."""
    record = records.get(name)
    if record is None:
        return None
    if now - max(record.last, record.until) > WINDOW_SECONDS and not record.pending:
        del records[name]
        return None
    return record


def _remember(records: OrderedDict[_Name, _Value], name: _Name, value: _Value) -> _Value:
    """As the latest; the oldest one goes where there are too many."""
    records[name] = value
    if len(records) > _RECORDS:
        records.popitem(last=False)
    return value


def _wait(record: _Record, limit: int, now: float) -> float:
    """Who has had to wait gets one attempt at a time."""
    if record.until > now:
        return record.until - now
    return _TURN_SECONDS if record.failures >= limit and record.pending else 0.0


def _count(record: _Record, limit: int, wait: float, most: float, now: float) -> None:
    record.failures += 1
    record.last = now
    beyond = record.failures - limit
    if beyond >= 0:
        record.until = now + min(wait * 2.0 ** min(beyond, 20), most)


def is_loopback(address: str) -> bool:
    plain = address.removeprefix("::ffff:")
    return plain.startswith("127.") or address == "::1"


def network_of(address: str) -> str:
    """What counts as one address: all of a /64 of IPv6 are one customer's."""
    if ":" not in address or address.startswith("::ffff:"):
        return address
    try:
        return ipaddress.IPv6Address(address).packed[:8].hex()
    except ValueError:
        return address
