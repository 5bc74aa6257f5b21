"""Whatever stands in a message, or comes instead of one: one message at most leaves, normalised.

Row BX-20, SMTP smuggling: two programs disagree about the end of a message, and what stands behind
it in the one's view is a second message, with an envelope of the attacker's choice, in the other's.
"""

from __future__ import annotations

import contextlib
import re
import socket

import pytest
from clients import Dialogue, dialogue, logged_in
from hops import RawHop
from running import to_smtp, tofmipd, wait_until

TO = "x@example.net"
HEADER = b"From: Bobby <bobby@example.org>\r\nSubject: x\r\n\r\n"
BARE = "550 5.6.0 Error: the message holds a bare CR or LF"
TAKEN = "250 2.0.0 Ok: queued as RAW"
MUCH = "552 5.3.4 Error: the message is far beyond the size limit"
# What an attacker has behind his end of data.
PREY = "prey@example.net"
SECOND = (
    b"MAIL FROM:<boss@example.org>\r\nRCPT TO:<prey@example.net>\r\nDATA\r\n"
    b"From: boss@example.org\r\nSubject: smuggled\r\n\r\nsmuggled\r\n"
)

# False ends of data.
BARE_FORMS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\n\n.\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n",
    b"\r\r.\r\r",
    b"\n\r.\n\r",
    b"\n\x00.\r\n",
    b"\n.\x00\n",
]
TIDY_FORMS = [
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\r\n..\r\n",
    b"\r\n. \r\n",
    b"\r\n .\r\n",
    b"\r\n\t.\r\n",
    b"\r\n\xff.\r\n",
    b"\r\n.\xff\r\n",
    b"\r\n.\x85\r\n",
    b"\r\n\xe2\x80\xa8.\xe2\x80\xa8\r\n",
    b"\r\n.\x1a\r\n",
    b"\r\n\xef\xbb\xbf.\r\n",
]
FORMS = BARE_FORMS + TIDY_FORMS


def mended(octets: bytes) -> bytes:
    return re.sub(rb"\r\n|\r|\n", b"\r\n", octets)


def stuffed(octets: bytes) -> bytes:
    return re.sub(rb"(?<=\r\n)\.", b"..", octets)


def alone_doubled(octets: bytes) -> bytes:
    """What DATA does where line ends are mended: only a lone dot would have become an end."""
    return re.sub(rb"(?<=\r\n)\.(?=\r\n)", b"..", octets)


def by_data(talk: Dialogue, octets: bytes) -> str:
    """Send a message as it is, and its end in a packet of its own; the reply."""
    assert talk.say("DATA").startswith("354")
    talk.send(octets)
    talk.send(b"\r\n.\r\n")
    return talk.reply()


def by_chunk(talk: Dialogue, octets: bytes) -> str:
    return chunks(talk, octets + b"\r\n")[-1]


def chunks(talk: Dialogue, *octets: bytes) -> list[str]:
    """Send all in one go, the last as the LAST one; the replies."""
    last = len(octets) - 1
    words = [b"BDAT %d" % len(x) + b" LAST" * (n == last) for n, x in enumerate(octets)]
    talk.send(b"".join(w + b"\r\n" + x for w, x in zip(words, octets, strict=True)))
    return [talk.reply() for _ in octets]


BY = {"DATA": by_data, "BDAT": by_chunk}


def kept(way: str, octets: bytes) -> bytes:
    """How a mended message travels on."""
    return {"DATA": alone_doubled, "BDAT": stuffed}[way](mended(octets)) + b"\r\n"


def is_normal(hop: RawHop) -> bool:
    """Whether what the next hop got is as strict as can be: no bare line end and no lone dot, in
    commands neither."""
    messages = [stored.octets for stored in hop.stored]
    return not any(
        re.search(rb"\r(?!\n)|(?<!\r)\n|(?<=\r\n)\.\r\n", b"\r\n" + octets) for octets in messages
    ) and not any("\r" in command for command in hop.commands)


def body_of(hop: RawHop) -> bytes:
    (stored,) = hop.stored
    return stored.octets.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="module")
def mending(standing):
    """A second daemon for the same person, which mends line ends."""
    with tofmipd(standing.home, "--bare-newline=fix") as running:
        yield running


# The matrix.


@pytest.mark.parametrize("way", BY)
@pytest.mark.parametrize("form", BARE_FORMS)
def test_a_false_end_with_a_bare_line_end_is_refused(way, form, daemon, hop):
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert BY[way](talk, HEADER + b"one" + form + SECOND) == BARE
        # The session is where it should be: nothing is answered that was not asked.
        assert talk.say("NOOP") == "250 2.0.0 Ok"
        assert talk.say("RCPT TO:<x@example.net>").startswith("503")
    assert hop.commands == []


@pytest.mark.parametrize("way", BY)
@pytest.mark.parametrize("form", BARE_FORMS)
def test_a_false_end_that_is_mended_ends_nothing_further_on(way, form, mending, home, hop):
    octets = b"one" + form + SECOND
    with logged_in(mending.port) as talk:
        talk.envelope(TO)
        assert BY[way](talk, HEADER + octets) == TAKEN
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    assert body_of(hop) == kept(way, octets)
    assert is_normal(hop)
    assert [line[:4] for line in hop.commands].count("MAIL") == 1


@pytest.mark.parametrize("way", BY)
@pytest.mark.parametrize("form", TIDY_FORMS)
@pytest.mark.parametrize("fix", [False, True], ids=["reject", "fix"])
def test_what_is_nearly_an_end_is_text(way, form, fix, daemon, mending, home, hop):
    octets = b"one" + form + SECOND
    with logged_in((mending if fix else daemon).port) as talk:
        talk.envelope(TO)
        assert BY[way](talk, HEADER + octets) == TAKEN
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    expected = octets if way == "DATA" else stuffed(octets)
    assert body_of(hop) == expected + b"\r\n"
    assert is_normal(hop)


@pytest.mark.parametrize("form", FORMS)
def test_a_false_end_at_the_very_beginning_or_end_is_text_or_refused(form, daemon, hop):
    """Without a header before it, and with the true end right behind it."""
    with logged_in(daemon.port) as talk:
        for octets in (form + SECOND, HEADER + form):
            for way in BY.values():
                talk.envelope(TO)
                bare = re.search(rb"\r(?!\n)|(?<!\r)\n", octets + b"\r\n")
                assert way(talk, octets) == (BARE if bare else TAKEN)
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    assert is_normal(hop)
    assert not hop.for_recipient(PREY)


@pytest.mark.parametrize("fix", [False, True], ids=["reject", "fix"])
def test_the_true_end_is_found_across_packets(fix, daemon, mending, home, hop):
    """A dot at every boundary: octet by octet, and cut in two at each place."""
    octets = b"one\r\n..\r\n...\r\n.\r\n"
    with logged_in((mending if fix else daemon).port) as talk:
        for cuts in ([[n] for n in range(len(octets) + 1)], [range(1, len(octets))]):
            for places in cuts:
                talk.envelope(TO)
                assert talk.say("DATA").startswith("354")
                starts = [0, *places]
                for start, end in zip(starts, [*places, len(octets)], strict=True):
                    talk.send(octets[start:end])
                assert talk.reply() == TAKEN
                assert talk.say("NOOP") == "250 2.0.0 Ok"
    bodies = {stored.octets.partition(b"\r\n\r\n")[2] for stored in hop.stored}
    assert bodies == {b"one\r\n..\r\n...\r\n"}
    assert len(hop.stored) == len(octets) + 2


def test_a_dot_at_once_is_an_empty_message_and_what_follows_a_command(daemon, hop):
    with logged_in(daemon.port) as talk:
        for ending in (b".\r\n", b"\r\n.\r\n", b"\r\n\r\n.\r\n"):
            talk.envelope(TO)
            talk.send(b"DATA\r\n" + ending + b"NOOP\r\n" + ending[-3:] + b"NOOP\r\n")
            replies = [talk.reply() for _ in range(5)]
            assert [reply[:3] for reply in replies] == ["354", "250", "250", "502", "250"]
    assert len(hop.stored) == 3
    assert is_normal(hop)


# A real mail server behind it.


@pytest.mark.root
@pytest.mark.peer("postfix")
@pytest.mark.parametrize("way", BY)
@pytest.mark.parametrize("fix", [False, True], ids=["reject", "fix"])
def test_postfix_gets_one_message_at_most(way, fix, daemon, mending, home, postfix):
    home.configure(to_smtp(postfix.port))
    name = f"smuggled-{way}-{fix}".lower()
    prey = f"prey-{name}@example.net"
    second = SECOND.replace(PREY.encode(), prey.encode())
    expected = {}
    with logged_in((mending if fix else daemon).port) as talk:
        for number, form in enumerate(FORMS):
            to = f"{name}-{number}@example.net"
            talk.envelope(to)
            said = BY[way](talk, HEADER + b"one" + form + second)
            if form in BARE_FORMS and not fix:
                assert said == BARE
            else:
                assert said.startswith("250 2.0.0 Ok: queued as ")
                expected[to] = mended(b"one" + form + second + b"\r\n")
        talk.envelope(f"{name}-last@example.net")
        assert by_data(talk, HEADER + b"last").startswith("250")
        expected[f"{name}-last@example.net"] = b"last\r\n"

    def arrived() -> dict[str, bytes] | None:
        found = {x.recipients[0]: x.body for x in postfix.messages() if name in x.recipients[0]}
        return found if found.keys() >= expected.keys() else None

    found = wait_until(arrived, "all messages") or {}
    assert found.keys() == expected.keys()
    for to, octets in expected.items():
        text = octets
        if way == "DATA":
            # What came with its dots doubled, as far as they were, arrives without.
            text = re.sub(rb"(?<=\r\n)\.(?!\r\n)", b"", octets)
        assert found[to] == text.replace(b"\r\n", b"\n"), to


@pytest.mark.root
@pytest.mark.peer("postfix")
def test_chunks_reach_postfix_as_the_text_they_are(daemon, home, postfix):
    home.configure(to_smtp(postfix.port))
    with logged_in(daemon.port) as talk:
        for number, text in enumerate(TEXTS):
            talk.envelope(f"text-{number}@example.net")
            cut = len(text) // 2
            assert chunks(talk, HEADER, text[:cut], text[cut:])[-1].startswith("250")
    for number, text in enumerate(TEXTS):
        ended = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
        body = postfix.message(f"text-{number}@example.net").body
        assert body == ended.replace(b"\r\n", b"\n")


# BDAT.

TEXTS = [
    b"",
    b".",
    b"..",
    b".\r\n",
    b"..\r\n.\r\n...\r\n",
    b"\r\n.\r\n",
    b"a\r\n.\r\nb\r\n",
    b"no line end",
    b"two\r\n.no line end",
    b"end\r\n.",
    b".x\r\n..y\r\n",
    b"\r\n\r\n",
    b"QUIT\r\n.\r\nQUIT\r\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_chunks_arrive_with_their_dots_and_one_line_end_at_the_end(text, daemon, hop):
    """Whole, split at every octet, and octet by octet; with empty chunks everywhere."""
    octets = HEADER + text
    with logged_in(daemon.port) as talk:
        ways = [[octets], [octets, b""], [b"", octets[:3], b"", octets[3:], b"", b""]]
        ways += [[octets[:cut], octets[cut:]] for cut in range(len(HEADER) - 3, len(octets))]
        ways += [[octets[n : n + 1] for n in range(len(octets))]]
        for pieces in ways:
            talk.envelope(TO)
            *taken, said = chunks(talk, *pieces)
            assert said == TAKEN
            assert taken == [f"250 2.0.0 {len(piece)} octets received" for piece in pieces[:-1]]
    ended = text if text.endswith(b"\r\n") or not text else text + b"\r\n"
    bodies = {stored.octets.partition(b"\r\n\r\n")[2] for stored in hop.stored}
    assert bodies == {stuffed(b"\r\n" + ended)[2:]}
    assert len(hop.stored) == len(ways)


@pytest.mark.parametrize("pieces", [[b""], [b"", b""], [b"x"], [b"x", b""], [b"\r", b"\n"], [b"."]])
def test_the_smallest_messages_in_chunks_are_messages(pieces, daemon, hop):
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert chunks(talk, *pieces)[-1] == TAKEN
        talk.envelope(TO)
        assert chunks(talk, HEADER, b"next")[-1] == TAKEN
    assert len(hop.stored) == 2
    assert is_normal(hop)
    assert hop.stored[1].octets.endswith(b"\r\n\r\nnext\r\n")


@pytest.mark.parametrize(
    "cut", [b"\r|\n.\r\nMAIL", b"\r\n|.\r\nMAIL", b"\r\n.|\r\nMAIL", b"\r\n.\r|\n"]
)
def test_a_chunk_may_end_within_what_would_be_an_end(cut, daemon, hop):
    first, second = cut.split(b"|")
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        assert chunks(talk, HEADER + b"one" + first, second)[-1] == TAKEN
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    assert body_of(hop) == b"one\r\n..\r\n" + b"MAIL\r\n" * cut.endswith(b"MAIL")


def answer(talk: Dialogue, octets: bytes) -> str:
    talk.send(octets)
    return talk.reply()


# Steps of a session that is logged in and has given sender and recipient: what is sent, and the
# replies.  Octets of a chunk look like commands, which must not be obeyed.
STEPS = {
    "DATA between": [
        (b"BDAT 4\r\nRSET", "250 2.0.0 4 octets received"),
        (b"DATA\r\n", "503 5.5.1 Error: this message comes by BDAT"),
        (b"BDAT 4 LAST\r\nQUIT", TAKEN),
    ],
    "MAIL and RCPT between": [
        (b"BDAT 4\r\nRSET", "250 2.0.0 4 octets received"),
        (b"MAIL FROM:<a@b.example>\r\n", "503 5.5.1 .*"),
        (b"RCPT TO:<prey@example.net>\r\n", "503 5.5.1 .*"),
        (b"AUTH PLAIN\r\n", "503 5.5.1 .*"),
        (b"STARTTLS\r\n", "503 5.5.1 .*"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
        (b"bdat 4 last\r\nQUIT", TAKEN),
    ],
    "RSET between": [
        (b"BDAT 6\r\nQUIT\r\n", "250 2.0.0 6 octets received"),
        (b"RSET\r\n", "250 2.0.0 Ok"),
        (b"BDAT 6 LAST\r\nQUIT\r\n", "503 5.5.1 Error: need MAIL command"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
    ],
    "EHLO between": [
        (b"BDAT 6\r\nQUIT\r\n", "250 2.0.0 6 octets received"),
        (b"EHLO x\r\n", "(?s)250-.*"),
        (b"BDAT 6 LAST\r\nQUIT\r\n", "503 5.5.1 Error: need MAIL command"),
        (b"DATA\r\n", "503 5.5.1 Error: need MAIL command"),
    ],
    "too big in one": [
        (b"BDAT 100001 LAST\r\n" + b"QUIT\r\n" * 16666 + b"QUIT\r", "552 5.3.4 .*"),
        (b"BDAT 6 LAST\r\nQUIT\r\n", "503 5.5.1 Error: need MAIL command"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
    ],
    "too big together": [
        (b"BDAT 60000\r\n" + b"QUIT\r\n" * 10000, "250 2.0.0 60000 octets received"),
        (b"BDAT 60000\r\n" + b"QUIT\r\n" * 10000, "552 5.3.4 .*"),
        (b"BDAT 60000\r\n" + b"QUIT\r\n" * 10000, "503 5.5.1 Error: need MAIL command"),
        (b"BDAT 0 LAST\r\n", "503 5.5.1 Error: need MAIL command"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
    ],
    "bare line end": [
        (b"BDAT 6\r\nQUIT\n\n", "250 2.0.0 6 octets received"),
        (b"BDAT 6\r\nQUIT\r\n", "250 2.0.0 6 octets received"),
        (b"BDAT 6 LAST\r\nQUIT\r\n", BARE),
        (b"BDAT 6 LAST\r\nQUIT\r\n", "503 5.5.1 Error: need MAIL command"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
    ],
    "by BDAT and by DATA in turn": [
        (b"BDAT 4 LAST\r\nQUIT", TAKEN),
        (b"MAIL FROM:<a@b.example>\r\n", "250 .*"),
        (b"RCPT TO:<y@example.net>\r\n", "250 .*"),
        (b"DATA\r\n", "354 .*"),
        (b"BDAT 4 LAST\r\n.\r\n", TAKEN),
        (b"BDAT 4 LAST\r\nQUIT", "503 5.5.1 Error: need MAIL command"),
        (b"NOOP\r\n", "250 2.0.0 Ok"),
    ],
}


@pytest.fixture(scope="module")
def small(standing):
    """A daemon that takes 100,000 octets a message."""
    with tofmipd(standing.home, "--size", "100000") as running:
        yield running


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_chunks_and_commands_are_told_apart(name, pipelined, small, home, hop):
    steps = STEPS[name]
    with logged_in(small.port) as talk:
        talk.envelope(TO)
        if pipelined:
            talk.send(b"".join(octets for octets, _ in steps))
            said = [talk.reply() for _ in steps]
        else:
            said = [answer(talk, octets) for octets, _ in steps]
        for reply, (_, expected) in zip(said, steps, strict=True):
            assert reply == expected or re.fullmatch(expected, reply), said
        assert talk.say("QUIT").startswith("221")
        assert talk.reply() == ""
    assert len(hop.stored) == [expected for _, expected in steps].count(TAKEN)
    assert not hop.for_recipient(PREY)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([], "503 5.5.1 Error: need MAIL command"),
        (["MAIL FROM:<a@b.example>"], "503 5.5.1 Error: need RCPT command"),
        (["MAIL FROM:<a@b.example>", "RCPT TO:<>"], "503 5.5.1 Error: need RCPT command"),
        (["MAIL FROM:<@@>"], "503 5.5.1 Error: need MAIL command"),
        (["MAIL FROM:<a@b.example> SIZE=99999999"], "503 5.5.1 Error: need MAIL command"),
    ],
)
def test_a_chunk_without_a_place_is_read_and_forgotten(before, said, small, home, hop):
    octets = b"RCPT TO:<prey@example.net>\r\n" + SECOND
    with logged_in(small.port) as talk:
        for line in before:
            talk.say(line)
        assert chunks(talk, octets, octets) == [said, "503 5.5.1 Error: need MAIL command"]
        assert talk.say("NOOP") == "250 2.0.0 Ok"
    assert hop.commands == []


def test_chunks_before_the_login_are_read_up_to_a_limit_and_never_obeyed(daemon, hop):
    octets = b"AUTH PLAIN AGJvYmJ5AEZvb0Jhcg==\r\n" * 100
    with dialogue(daemon.port) as talk:
        assert chunks(talk, octets, octets) == ["530 5.7.0 Error: Authentication required"] * 2
        assert talk.say("MAIL FROM:<a@b.example>").startswith("530")
        with contextlib.suppress(ConnectionError):
            talk.send(b"BDAT 65537 LAST\r\n" + octets * 10)
        assert talk.reply() == "530 5.7.0 Error: Authentication required"
        assert talk.reply() == ""
    assert hop.commands == []


@pytest.mark.parametrize(
    "argument", ["", "x", "-1", "+4", "4x", "0x4", "4 FIRST", "4 LAST x", "4,5", "٤"]
)
def test_after_a_chunk_of_unknown_size_nothing_is_obeyed(argument, daemon, hop):
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        talk.send(f"BDAT {argument}\r\nRSET\r\n".encode() + SECOND + b".\r\n")
        assert talk.reply() == "501 5.5.4 Syntax: BDAT octets [LAST]"
        assert talk.reply() == ""
    assert hop.commands == []


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize(
    "size", ["200001", "9" * 10, "9" * 18, "9" * 19, "9" * 400], ids=lambda size: str(len(size))
)
def test_after_a_chunk_far_too_big_nothing_is_obeyed(size, placed, small, home, hop):
    with logged_in(small.port) as talk:
        if placed:
            talk.envelope(TO)
        talk.send(f"BDAT {size} LAST\r\n".encode() + SECOND + b".\r\n")
        syntax = "501 5.5.4 Syntax: BDAT octets [LAST]"
        assert talk.reply() == (MUCH if len(size) < 19 else syntax)
        assert talk.reply() == ""
    assert hop.commands == []


@pytest.mark.parametrize("octets", [b"BDAT 100 LAST\r\n" + HEADER, b"BDAT 4\r\nabcd", b"BDAT 4 LA"])
@pytest.mark.parametrize("half", [False, True], ids=["closed", "half-open"])
def test_a_message_whose_last_octet_never_comes_is_not_sent(octets, half, daemon, hop):
    daemon.forget()
    with logged_in(daemon.port) as talk:
        talk.envelope(TO)
        talk.send(octets)
        if half:
            talk.socket.shutdown(socket.SHUT_WR)
            while talk.reply():
                pass
    daemon.says(" end after ")
    assert hop.commands == []


# Global mode.


@pytest.mark.root
@pytest.mark.parametrize("fix", [False, True], ids=["reject", "fix"])
def test_through_all_processes_of_global_mode_one_message_at_most_leaves(fix, village, village_hop):
    person = village.people[0]
    options = ["--bare-newline=fix"] if fix else []
    with (
        village.daemon(*options) as daemon,
        logged_in(daemon.port, person.name, person.password) as talk,
    ):
        for form in FORMS:
            for way in BY:
                village_hop.reset()
                octets = b"one" + form + SECOND
                talk.envelope(TO)
                said = BY[way](talk, HEADER + octets)
                if form in BARE_FORMS and not fix:
                    assert said == BARE
                    assert village_hop.commands == []
                    continue
                assert said == TAKEN
                expected = kept(way, octets)
                if way == "DATA" and form in TIDY_FORMS:
                    expected = octets + b"\r\n"
                assert body_of(village_hop) == expected
                assert is_normal(village_hop)
