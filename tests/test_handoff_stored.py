"""The text of envelope files: what is written is what is read, and noise is BadEnvelope."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from fakes import copy_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.handoff import stored
from tofmipd.handoff.copy import Parameters
from tofmipd.handoff.stored import (
    DEFERRED,
    EVENT_LIMIT_OCTETS,
    REFUSED,
    TAKEN,
    TOLD,
    TRIED,
    WARNED,
    BadEnvelope,
    Event,
    History,
    Origin,
    Place,
    Stored,
    StoredCopy,
    decode,
    encode,
    places,
    stored_of,
)

ONE = Stored(
    Origin("größe%@example.org", "7f3a", 1790000000.25, "127.0.0.1"),
    (
        StoredCopy(b"a@example.org", (b'"b c"@example.net', "ü@example.net".encode()), 120),
        StoredCopy(b"", (b"50%@example.net",), 8),
    ),
    128,
    Parameters(True, True, "HDRS", "QQ+2B1", {b"50%@example.net": b"NOTIFY=NEVER ORCPT=x;y"}),
)
ONE_TEXT = b"""\
Format: tofmipd 1
Login: gr%C3%B6%C3%9Fe%25@example.org
Session: 7f3a
Arrived: 1790000000.250
Body: 128
Local-Address: 127.0.0.1
Extensions: 8BITMIME SMTPUTF8
Ret: HDRS
Envid: QQ+2B1
Copy: 120
From: a@example.org
To: "b%20c"@example.net
To: %C3%BC@example.net
Copy: 8
From: 
To: 50%25@example.net NOTIFY=NEVER ORCPT=x;y
End
"""  # noqa: W291
EVENTS = (
    Event(TAKEN, 1790000001, Place(0, 0), "mail.example.org:25", "250 2.0.0 Ok: queued as X"),
    Event(REFUSED, 1790000002, Place(0, 1), "/usr/sbin/send mail", "550 5.1.1 gone"),
    Event(DEFERRED, 1790000003, Place(1, 0), "", "451 4.3.5 later"),
    Event(TRIED, 1790000004),
    Event(TOLD, 1790000005, Place(0, 1)),
    Event(WARNED, 1790000006),
)
EVENTS_TEXT = b"""\
Taken: 1.1 1790000001 mail.example.org:25 250 2.0.0 Ok: queued as X
Refused: 1.2 1790000002 /usr/sbin/send%20mail 550 5.1.1 gone
Deferred: 2.1 1790000003  451 4.3.5 later
Tried: 1790000004
Told: 1.2 1790000005
Warned: 1790000006
"""
WHOLE = ONE_TEXT + EVENTS_TEXT


def history_of(*events: Event) -> History:
    history = History()
    for event in events:
        history.add(event)
    return history


def test_the_text_is_as_documented():
    assert encode(ONE) == ONE_TEXT
    assert b"".join(event.encode() for event in EVENTS) == EVENTS_TEXT
    assert decode(WHOLE) == (ONE, history_of(*EVENTS))


def test_what_was_not_asked_for_is_not_written():
    plain = stored_of([copy_of()], Origin("bobby", "7f3a", 5))
    assert encode(plain) == (
        b"Format: tofmipd 1\nLogin: bobby\nSession: 7f3a\nArrived: 5.000\nBody: 17\n"
        b"Copy: 17\nFrom: a@example.org\nTo: x@example.net\nEnd\n"
    )
    assert decode(encode(plain)) == (plain, History())


# Round trips.

any_input = settings(deadline=None)

ADDRESSES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.encode),
    st.binary(min_size=1).filter(lambda octets: not any(c < 32 or c == 127 for c in octets)),
    st.sampled_from([b'"a b"@x', b"a%20b@x", b"End", b"<>", b"a\xc3\xbc@x", b"\xff\xfe@x"]),
)
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.just("a\udcff\nb: c")
# Milliseconds, which floats keep.
TIMES = st.integers(0, 10**12).map(lambda number: number / 1000)
PARAMETERS = st.tuples(st.booleans(), st.booleans(), st.sampled_from(["", "FULL", "HDRS"]), WORDS)


@st.composite
def envelopes(draw) -> Stored:
    copies = draw(
        st.lists(
            st.builds(
                StoredCopy,
                st.just(b"") | ADDRESSES,
                st.lists(ADDRESSES, min_size=1, max_size=4).map(tuple),
                st.integers(0, 10**9),
            ),
            min_size=1,
            max_size=4,
        )
    )
    everybody = [address for copy in copies for address in copy.recipients]
    notice = st.lists(WORDS.filter(bool), min_size=1, max_size=2).map(" ".join).map(str.encode)
    notices = draw(st.dictionaries(st.sampled_from(everybody), notice))
    return Stored(
        Origin(draw(TEXTS), draw(TEXTS), draw(TIMES), draw(TEXTS)),
        tuple(copies),
        sum(copy.header_octets for copy in copies),
        Parameters(*draw(PARAMETERS), notices),
    )


REPLIES = WORDS.filter(bool)
TIMES_OF_EVENTS = st.integers(0, 10**10).map(float)
EVENTS_OF_ALL = st.one_of(
    st.builds(Event, st.sampled_from([TRIED, WARNED]), TIMES_OF_EVENTS, st.none()),
    st.builds(
        Event,
        st.sampled_from([TAKEN, REFUSED, DEFERRED, TOLD]),
        TIMES_OF_EVENTS,
        st.builds(Place, st.integers(0, 3), st.integers(0, 3)),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        REPLIES,
    ),
)


@any_input
@given(envelopes(), st.lists(EVENTS_OF_ALL, max_size=6), st.integers(0, 3000))
def test_what_is_written_is_read(envelope, events, reserved):
    octets = encode(envelope) + b"".join(event.encode() for event in events)
    assert decode(octets + b"\0" * reserved) == (envelope, history_of(*events))


@any_input
@given(st.builds(Event, st.just(TAKEN), TIMES, st.just(Place(10**6, 10**6)), TEXTS, TEXTS))
@example(Event(TAKEN, 1e9, Place(10**6, 10**6), "ü" * 1000, "ü" * 1000))
@example(Event(TAKEN, -5.0, Place(0, 0), "", "\r\nTaken: 1.1 5\n"))
def test_an_event_is_one_line_of_bounded_length_that_can_be_read(event):
    line = event.encode()
    assert line.count(b"\n") == 1
    assert len(line) <= EVENT_LIMIT_OCTETS
    _, history = decode(ONE_TEXT + line)
    assert history.what(event.place) == event.what


# Damage.


@pytest.mark.parametrize("padding", [b"", b"\0" * 500])
def test_a_last_line_that_was_cut_off_is_left_out(padding):
    for end in range(len(ONE_TEXT), len(WHOLE)):
        _, history = decode(WHOLE[:end] + padding)
        whole_lines = WHOLE[:end].count(b"\n") - ONE_TEXT.count(b"\n")
        assert history == history_of(*EVENTS[:whole_lines])


def test_a_first_part_that_was_cut_off_is_refused():
    for end in range(len(ONE_TEXT)):
        with pytest.raises(BadEnvelope):
            decode(ONE_TEXT[:end])


def changed(old: str, new: str) -> bytes:
    assert old.encode() in WHOLE
    return WHOLE.replace(old.encode(), new.encode(), 1)


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\0" * 5000,
        changed("tofmipd 1", "tofmipd 2"),
        changed("Format: tofmipd 1\n", ""),
        changed("Login", "Logout"),
        changed("gr%C3", "gr\xc3"),
        changed("1790000000.250", "nan"),
        changed("1790000000.250", "inf"),
        changed("1790000000.250", "-1"),
        changed("1790000000.250", "1e300"),
        changed("Body: 128", "Body: 127"),
        changed("Body: 128", "Body: -128"),
        changed("Copy: 120", "Copy: +120"),
        changed("Copy: 120", "Copy: 136").replace(b"Copy: 8", b"Copy: -8"),
        changed("Copy: 8", "Copy: " + "9" * 5000),
        changed("Copy: 8\n", ""),
        changed("From: a@example.org\n", ""),
        changed("From: a@", "From: %0AFrom: b@"),
        changed("To: 50%25", "To: 50%0D%0ARSET%0D%0A"),
        changed("To: 50%25@example.net NOTIFY=NEVER ORCPT=x;y\n", ""),
        changed("Ret: HDRS", "Ret: ü"),
        changed("Taken: 1.1", "Taken: 1"),
        changed("Taken: 1.1 1790000001", "Taken: 1.1 " + "9" * 400),
        changed("Taken: 1.1", "Taken: 1.\u0661"),
        changed("Tried", "Stolen"),
        changed("Tried: 1790000004", "Tried: \0"),
        changed("Told: 1.2 1790000005\n", "\n"),
        WHOLE + b"\xff\xfe\n",
    ],
)
def test_what_nobody_has_written_is_refused(octets):
    with pytest.raises(BadEnvelope):
        decode(octets)


@any_input
@given(st.binary() | st.binary().map(lambda octets: ONE_TEXT + octets))
def test_of_noise_nothing_comes_but_bad_envelope(octets):
    with contextlib.suppress(BadEnvelope):
        decode(octets)


@any_input
@given(st.data())
def test_of_damage_nothing_comes_but_bad_envelope(data):
    octets = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadEnvelope):
        decode(bytes(octets))


# What has become of whom.


@pytest.mark.parametrize(
    ("events", "waiting", "refused", "counts"),
    [
        ((), 3, 0, {"": 3}),
        (EVENTS[:1], 2, 0, {TAKEN: 1, "": 2}),
        (EVENTS[:3], 1, 1, {TAKEN: 1, REFUSED: 1, DEFERRED: 1}),
        (EVENTS, 1, 0, {TAKEN: 1, TOLD: 1, DEFERRED: 1}),
        # Of places that there are not.
        ((Event(TAKEN, 5, Place(7, 7)), Event(TAKEN, 5, Place(-1, 0))), 3, 0, {"": 3}),
    ],
)
def test_the_last_event_of_a_recipient_counts(events, waiting, refused, counts):
    history = history_of(*events)
    assert len(history.waiting(ONE)) == waiting
    assert len(history.refused(ONE)) == refused
    assert Counter(history.what(place) for place in places(ONE)) == counts
    assert len(list(places(ONE))) == 3


def test_attempts_and_the_warning_belong_to_the_whole():
    _, history = decode(WHOLE + b"Tried: 1790000099\n")
    assert (history.tries, history.warned) == (2, True)
    assert stored.decode(ONE_TEXT)[1].warned is False
