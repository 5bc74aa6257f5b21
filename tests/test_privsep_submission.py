"""A message as it comes in: where its header ends, and what it is stamped with."""

from __future__ import annotations

import re
import threading
import time

import pytest
from fakes import LOOPBACK, content_of, in_pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.content import MEMORY_LIMIT_OCTETS, as_local_text, stuffed
from tofmipd.privsep.submission import (
    AGENT,
    HEADER_LIMIT_OCTETS,
    SessionStamps,
    parsed_header,
    received_value,
)
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.tmda import header
from tofmipd.tmda.config import SourceFile, Surroundings, build


def parse(wire, cuts=()):
    """Fields, and what a program on this machine gets for the body."""
    content = content_of(in_pieces(wire, cuts))
    try:
        fields, start = parsed_header(content)
        return fields, b"".join(as_local_text(content.blocks(start)))
    finally:
        content.close()


# Where the header ends


@pytest.mark.parametrize(
    ("wire", "block", "body"),
    [
        (b"", b"", b""),
        (b"\r\n", b"", b""),
        (b"\r\nHello\r\n", b"", b"Hello\n"),
        (b"\r\n..dot\r\n", b"", b".dot\n"),
        (b"A: b\r\n\r\nHello\r\n", b"A: b\r\n", b"Hello\n"),
        (b"A: b\r\n\r\n..\r\n...\r\n", b"A: b\r\n", b".\n..\n"),
        (b"A: b\r\n\r\n", b"A: b\r\n", b""),
        (b"A: b\r\n", b"A: b\r\n", b""),
        (b"A: b\r\n\r\n\r\nHello\r\n", b"A: b\r\n", b"\nHello\n"),
        (b"..A: b\r\n\r\nHello\r\n", b".A: b\r\n", b"Hello\n"),
        (b"A: b\r\n..c: d\r\n\r\nx\r\n", b"A: b\r\n.c: d\r\n", b"x\n"),
        # A client that doubles no dots.
        (b".A: b\r\n.C: d\r\n\r\n..e\r\n", b"A: b\r\nC: d\r\n", b".e\n"),
        (b"A: b\r\n .c\r\n\r\nx\r\n", b"A: b\r\n .c\r\n", b"x\n"),
        (b"A: b\r\n..\r\nC: d\r\n\r\nx\r\n", b"A: b\r\n", b".\nC: d\n\nx\n"),
        (b"A: b\r\n.no field\r\n\r\nx\r\n", b"A: b\r\n", b"no field\n\nx\n"),
        (b"A: b\r\nno field\r\n\r\nx\r\n", b"A: b\r\n", b"no field\n\nx\n"),
        (b"From a@x Thu\r\nA: b\r\n\r\nx\r\n", b"A: b\r\n", b"x\n"),
        (b" fold of nothing\r\nA: b\r\n\r\nx\r\n", b"A: b\r\n", b"x\n"),
        (b"A: b\r\n \r\n\r\nx\r\n", b"A: b\r\n \r\n", b"x\n"),
    ],
)
def test_fields_and_body_part_at_the_empty_line_or_before_what_is_no_field(wire, block, body):
    fields, found = parse(wire)
    assert b"".join(field.octets for field in fields) == block
    assert found == body


lines = st.lists(
    st.one_of(
        st.sampled_from(
            [b"A: b", b"", b".", b"..", b" x", b"\t", b".A: b", b"no field", b"From x"]
        ),
        st.binary(max_size=8).map(lambda octets: octets.translate(None, b"\r\n")),
    ),
    max_size=10,
)


@settings(max_examples=300, deadline=None)
@given(lines, st.lists(st.integers(1, 30), max_size=6))
@example([b".A: b", b".C: d", b"", b".x"], [])
def test_no_line_is_lost_between_header_and_body(message, cuts):
    """What a client sends that doubles its dots comes out whole."""
    local = b"".join(line + b"\n" for line in message)
    wire = stuffed(local.replace(b"\n", b"\r\n"))
    fields, body = parse(wire, cuts)
    block = b"".join(field.octets for field in fields).replace(b"\r\n", b"\n")
    plain = local
    while plain.startswith((b" ", b"\t")) or (plain is local and plain.startswith(b"From ")):
        plain = plain.partition(b"\n")[2]
    assert plain in (block + body, block + b"\n" + body)


@pytest.mark.parametrize("size", [10, MEMORY_LIMIT_OCTETS + 10])
def test_a_body_in_memory_or_in_a_file_begins_at_the_same_place(size):
    body = b"..x\r\n" * (size // 5)
    fields, found = parse(b".A: b\r\n..C: d\r\n\r\n" + body, [7, 4000])
    assert [field.name for field in fields] == [b"a", b".c"]
    assert found == b".x\n" * (size // 5)


@pytest.mark.parametrize("beyond", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("dot", [b"", b".."])
def test_a_header_may_be_as_long_as_the_limit_and_no_longer(beyond, dot):
    head = dot + b"X: "
    octets = HEADER_LIMIT_OCTETS + beyond - len(head) - 4
    wire = head + b"y" * octets + b"\r\n\r\n" + b"body\r\n"
    content = content_of(wire)
    fields, start = parsed_header(content)
    content.close()
    if start <= HEADER_LIMIT_OCTETS:
        assert wire[start:] == b"body\r\n"
        assert len(fields) == 1
    else:
        assert beyond > 0


def test_a_header_that_never_ends_is_told_by_its_place():
    for wire in (
        b"X: y\r\n" * 300_000,
        b"X: " + b"y" * (2 << 20),
        b"X: y\r\n y" + b"z" * (2 << 20),
    ):
        content = content_of(wire)
        assert parsed_header(content)[1] > HEADER_LIMIT_OCTETS
        content.close()


# The stamp

AROUND = Surroundings("/home/alice", "alice", "", "mail.example")


def config_of(**names):
    return build(names, AROUND, SourceFile("config", b""))


def envelope(**fields):
    return Envelope("", **{"helo": "client.example", "peer": LOOPBACK, **fields})


def test_a_stamp_has_the_time_a_trace_and_a_message_id():
    before = time.time()
    stamp = SessionStamps("mx.example", "full").stamp(config_of(), envelope())
    assert before <= stamp.now <= time.time()
    date = stamp.date.decode()
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} [+-]\d{4}", date)
    assert stamp.received == (
        b"from client.example (127.0.0.1) by mx.example (tofmipd) with ESMTPA; " + stamp.date
    )
    assert re.fullmatch(rb"<%d\.\d+\.[0-9a-f]+\.TMDA@mx\.example>" % stamp.now, stamp.message_id)
    assert stamp.agent == AGENT
    assert re.fullmatch(rb"tofmipd/[0-9.a-z+]+", AGENT)


def test_no_message_id_comes_twice_whatever_threads_ask():
    stamps, found = SessionStamps("mx.example", "full"), []

    def ask():
        found.extend(stamps.stamp(config_of(), envelope()).message_id for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(set(found)) == len(found) == 1600


@pytest.mark.parametrize(
    ("style", "own", "trace"),
    [
        ("full", "", b"from client.example (192.0.2.7) by mx.example (tofmipd) with ESMTPA; "),
        ("private", "", b"from [127.0.0.1] by mx.example (tofmipd) with ESMTPA; "),
        ("none", "", None),
        ("none", "full", b"from client.example (192.0.2.7) by mx.example (tofmipd) with ESMTPA; "),
        ("full", "private", b"from [127.0.0.1] by mx.example (tofmipd) with ESMTPA; "),
        ("full", "none", None),
    ],
)
def test_the_users_wish_for_the_trace_is_stronger_than_the_sites(style, own, trace):
    stamp = SessionStamps("mx.example", style).stamp(
        config_of(RECEIVED=own), envelope(peer=Peer("192.0.2.7"))
    )
    assert stamp.received == (trace and trace + stamp.date)


@pytest.mark.parametrize(
    "helo",
    [
        "",
        " ",
        "a\r\nBcc: eve@x",
        "a (b) by evil.example with SMTP; now",
        "\x00\x1b[2J",
        "x" * 100_000,
        "ü" * 300,
        "\udcff",
    ],
)
def test_whatever_a_client_calls_itself_the_trace_is_one_short_line(helo):
    value = received_value("full", envelope(helo=helo), "mx.example", "date")
    assert len(value) < 350
    assert value.count(b" by ") == value.count(b";") == 1
    field = header.make_field(b"Received", value)
    (read,), end = header.parse(field.octets)
    assert (read.name, end) == (b"received", len(field.octets))


def test_a_long_trace_can_be_written():
    value = received_value("full", envelope(helo="x" * 255), "h" * 255, "d" * 31)
    assert max(map(len, header.make_field(b"Received", value).octets.split(b"\r\n"))) < 998
