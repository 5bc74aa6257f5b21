"""What the processes of global mode say to each other: both directions, and every kind of noise."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.auth.credentials import (
    Certificate,
    CramMd5,
    Judgement,
    Origin,
    Password,
    Scram,
    Verdict,
)
from tofmipd.privsep import frames
from tofmipd.privsep.frames import BadFrame, Control, Kind, Login, Opening, Submission
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply

TABLES = {
    "from the server": frames.FROM_SERVER,
    "from auth": frames.FROM_AUTH,
    "from a worker": frames.FROM_WORKER,
    "to the server": frames.TO_SERVER,
    "to auth": frames.TO_AUTH,
    "to a worker": frames.TO_WORKER,
    "to auth from the server": frames.TO_AUTH_FROM_SERVER,
}
DECODERS = {
    **{
        name: lambda octets, t=table: frames.decode_control(octets, t)
        for name, table in TABLES.items()
    },
    "request": frames.decode_auth_request,
    "judgement": frames.decode_judgement,
    "submission": frames.decode_submission,
    "envelope": lambda octets: frames.decode_envelope(octets, "bobby"),
    "answer": frames.decode_answer,
}

PEER = Peer("2001:db8::1", 65535, True, "127.0.0.1")
ENVELOPE = Envelope(
    "bobby@example.org", "bobby", "laptop.example", "ESMTPSA", PEER, 1234, True, ["x@y", "-f@z"]
)
LOGIN = Login(7, "00ab", "PLAIN", Password("bobby", b"\0\xff\r\n"), Origin("::1", "127.0.0.1"))
CRAM = Login(2**64 - 1, "ff", "CRAM-MD5", CramMd5("b", b"0123"), Origin())
BOUND = Login(7, "1", "SCRAM-SHA-1-PLUS", Scram("b", b"c=,r=,p=", b"\0" * 32), Origin())
YES, NO = Verdict.ACCEPTED, Verdict.REJECTED
TAKEN = Reply(250, "0.0", ("Ok: taken",))
LINES = [(20, "sent"), (255, ""), (0, "é\n")]

# One of each, for truncation and the like.
SAMPLES = [
    ("from the server", Control(Kind.GRANT, 2**64 - 1).encode()),
    ("from auth", Control(Kind.PROVED, 5, ("bobby", "bobby@example.org")).encode()),
    ("to the server", Control(Kind.REFUSED, 5, ("2",)).encode()),
    ("request", frames.encode_opening(Opening(9, "CRAM-MD5", b""))),
    ("request", frames.encode_opening(Opening(9, "SCRAM-SHA-1", b"n,,n=b,r=x"))),
    ("request", frames.encode_login(LOGIN)),
    ("request", frames.encode_login(CRAM)),
    ("request", frames.encode_login(BOUND)),
    ("judgement", frames.encode_judgement(Judgement(YES, b"v=x"), "bobby")),
    ("judgement", frames.encode_judgement(Judgement(NO, delay=1.5, wait=60))),
    ("submission", Submission(5, 3, b"abc", b"hello").encode()),
    ("submission", Submission(5, 3, None, b"hello").encode()),
    ("submission", Submission(5, 3, b"abc", None).encode()),
    ("submission", Submission(5, 3, None, None).encode()),
    ("envelope", frames.encode_envelope(ENVELOPE, "00ab")),
    ("answer", frames.encode_lines(LINES)),
    ("answer", frames.encode_answer(TAKEN, LINES)),
]
ANY = settings(max_examples=300, deadline=None)


def names(samples):
    return [f"{name} {len(octets)}" for name, octets in samples]


def refuses(name, octets):
    with pytest.raises(BadFrame):
        DECODERS[name](octets)


# Both directions.


@pytest.mark.parametrize("name", TABLES)
def test_a_control_frame_arrives_as_it_was_sent(name):
    for kind, count in TABLES[name].items():
        texts = ("b\udcfcbby", "x" * 1024, "")[:count]
        for number in (0, 1, 2**64 - 1):
            frame = Control(kind, number, texts)
            assert frames.decode_control(frame.encode(), TABLES[name]) == frame


@pytest.mark.parametrize("name", TABLES)
def test_only_the_kinds_of_its_sender_are_taken_each_with_its_number_of_texts(name):
    for kind in range(256):
        for count in range(4):
            octets = struct.pack("!BQB", kind, 1, count) + b"\0\1a" * count
            if TABLES[name].get(kind) == count:
                assert frames.decode_control(octets, TABLES[name]).kind == kind
            else:
                refuses(name, octets)


@pytest.mark.parametrize(
    "credentials",
    [
        Password("bobby", b"secret"),
        Password("", b""),
        Password("a" * 255, b"\0" * 0xFFFF),
        Password("n\0\r\nel", b"x"),
        CramMd5("bobby", b"b913a602c7eda7a495b4e6e7334d3890"),
        Certificate("bobby", b"0\x82\0\r\n"),
        Scram("bobby", b"c=biws,r=x,p=v0X8"),
        Scram("bobby", b"\0" * 12288, b"\xff" * 64),
    ],
    ids=lambda credentials: f"{type(credentials).__name__} {credentials.user[:5]!r}",
)
def test_a_login_arrives_as_it_was_sent(credentials):
    login = Login(2**64 - 1, "00ab", "PLAIN", credentials, Origin("fe80::1%eth0", ""))
    assert frames.decode_auth_request(frames.encode_login(login)) == login


def test_a_challenge_of_ours_is_not_sent_to_those_who_made_it():
    login = Login(1, "1", "CRAM-MD5", CramMd5("b", b"00", b"<1.2@mx>"), Origin())
    arrived = frames.decode_auth_request(frames.encode_login(login))
    assert arrived.credentials == CramMd5("b", b"00", b"")


@pytest.mark.parametrize("number", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("message", [b"", b"n,,n=user,r=fyko", b"\xff\0\r\n" * 3000])
def test_the_wish_for_a_challenge_arrives_with_what_the_client_said(number, message):
    opening = Opening(number, "SCRAM-SHA-256-PLUS", message)
    assert frames.decode_auth_request(frames.encode_opening(opening)) == opening


@pytest.mark.parametrize("account", ["", "bobby", "b\udcfcbby"])
@pytest.mark.parametrize(
    "judgement",
    [
        *map(Judgement, Verdict),
        Judgement(YES, b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="),
        Judgement(YES, b"\0\xff\r\n" * 256),
        Judgement(NO, delay=0.25),
        Judgement(NO, delay=16.0, wait=3600.125),
    ],
)
def test_every_judgement_arrives_as_it_was_sent(judgement, account):
    arrived = frames.decode_judgement(frames.encode_judgement(judgement, account))
    assert arrived == (judgement, account)


def test_a_time_without_end_arrives_as_a_long_one():
    endless = Judgement(NO, delay=float("inf"), wait=1e30)
    arrived, _ = frames.decode_judgement(frames.encode_judgement(endless))
    assert 86400 < arrived.wait < 1e7
    assert 86400 < arrived.delay < 1e7


@pytest.mark.parametrize("envelope", [None, b"", b"abc"])
@pytest.mark.parametrize("inline", [None, b"", b"hello\r\n"])
def test_a_submission_says_which_parts_come_in_files(envelope, inline):
    size = 2**40 if inline is None else len(inline)
    octets = frames.ENVELOPE_LIMIT_OCTETS if envelope is None else len(envelope)
    sent = Submission(size, octets, envelope, inline)
    assert frames.decode_submission(sent.encode()) == sent
    assert sent.files == [envelope, inline].count(None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sender": ""},
        {"sender": '"a b"@x', "recipients": ["a@b"] * 1000},
        {"helo": "h" * 255, "eight_bit": False, "peer": Peer(), "size_octets": 2**64 - 1},
        {"recipients": ["a" * 4096]},
        {"encryption": "using STARTTLS, TLSv1.3 TLS_AES_256_GCM_SHA384"},
        {"ret": "FULL", "envid": "QQ314159"},
        {"recipients": ["a@b", "c@d"], "notices": {"c@d": "NOTIFY=NEVER ORCPT=rfc822;c@d"}},
        {"smtputf8": True, "sender": "ä@ö", "recipients": ["用户@例子.广告"]},
        {"smtputf8": True, "recipients": ["ä@b"], "notices": {"ä@b": "ORCPT=utf-8;ä@b"}},
    ],
)
def test_an_envelope_arrives_as_it_was_sent_but_for_the_login_name(changes):
    values = {name: getattr(ENVELOPE, name) for name in Envelope.__slots__}
    sent = Envelope(**values | changes | {"login": "whoever"})
    arrived, session_id = frames.decode_envelope(frames.encode_envelope(sent, "00ab"), "bobby")
    assert session_id == "00ab"
    assert arrived == Envelope(**values | changes | {"login": "bobby"})


@pytest.mark.parametrize("lines", [[], LINES, [(10, "x" * 8000)] * 3])
def test_an_answer_arrives_with_its_lines(lines):
    assert frames.decode_answer(frames.encode_lines(lines)) == (None, lines)
    for reply in (TAKEN, Reply(451, "", ("",)), Reply(599, "999.999", ("é " * 199 + "é",))):
        assert frames.decode_answer(frames.encode_answer(reply, lines)) == (reply, lines)


def test_a_reply_becomes_one_line_of_bounded_length():
    reply = Reply(550, "1.1", ("first", "second", "😀" * 1000))
    arrived, _ = frames.decode_answer(frames.encode_answer(reply, []))
    assert arrived.lines == ("first second " + "😀" * 387,)


def test_a_line_for_the_log_is_cut_and_what_is_no_text_is_replaced():
    octets = frames.encode_lines([(20, "é" * 5000), (20, "a\udcffb")])
    _, lines = frames.decode_answer(octets)
    assert lines == [(20, "é" * 4000), (20, "a?b")]


# What cannot be encoded.


@pytest.mark.parametrize(
    "login",
    [
        Login(1, "1", "PLAIN", Password("a" * 65536, b"x"), Origin()),
        Login(1, "1", "PLAIN", Password("a", b"x" * 65536), Origin()),
    ],
    ids=["name", "password"],
)
def test_a_login_that_is_far_too_long_is_not_sent(login):
    with pytest.raises(ValueError, match="too long"):
        frames.encode_login(login)


def test_an_opening_that_is_far_too_long_is_not_sent():
    with pytest.raises(ValueError, match="too long"):
        frames.encode_opening(Opening(1, "SCRAM-SHA-1", b"x" * 65536))


def test_an_address_that_is_far_too_long_is_not_sent():
    with pytest.raises(ValueError, match="too long"):
        frames.encode_envelope(Envelope("a" * 65536, recipients=["x@y"]), "1")


# What is refused.


def control(*texts: bytes, kind=Kind.PROVED) -> bytes:
    packed = b"".join(struct.pack("!H", len(text)) + text for text in texts)
    return struct.pack("!BQB", kind, 1, len(texts)) + packed


def envelope(*, count=1, flags=(0, 0), fields=None) -> bytes:
    head = struct.pack("!QBBHIQ", 0, *flags, 25, count, 0)
    values = {"id": b"1", "helo": b"h", "protocol": b"ESMTP", "address": b"", "local": b""}
    values |= {"encryption": b"", "ret": b"", "envid": b""}
    values |= {"sender": b"a@b", "recipient": b"c@d"} | (fields or {})
    return head + b"".join(struct.pack("!H", len(text)) + text for text in values.values())


def answer(code=250, detail=b"0.0", text=b"Ok", *, kind=Kind.ANSWER, texts=1) -> bytes:
    parts = [struct.pack("!H", len(part)) + part for part in (detail, text)] if texts else []
    return struct.pack("!BHHB", kind, code, 0, texts) + b"".join(parts)


BAD = [
    ("from auth", control(b"a" * 1025, b"b")),
    ("from auth", control(b"a\0", b"b")),
    ("from auth", control(b"a", b"b\n")),
    ("from auth", control(b"a\r", b"b")),
    ("from auth", control(b"a", b"b") + b"\0" * frames.CONTROL_LIMIT_OCTETS),
    ("request", struct.pack("!BQB", Kind.CHALLENGE, 1, 1) + b"\0\0\0\0"),
    ("request", frames.encode_opening(Opening(1, "S" * 41, b""))),
    ("request", frames.encode_opening(Opening(1, "S\n", b""))),
    ("request", struct.pack("!BQB", Kind.SUBMIT, 1, 0)),
    (
        "request",
        b"\x12" + frames.encode_login(LOGIN)[1:9] + b"\4" + frames.encode_login(LOGIN)[10:],
    ),
    ("request", frames.encode_login(Login(1, "1" * 41, "PLAIN", LOGIN.credentials, Origin()))),
    ("request", frames.encode_login(Login(1, "1\n", "PLAIN", LOGIN.credentials, Origin()))),
    ("request", frames.encode_login(Login(1, "1", "P" * 41, LOGIN.credentials, Origin()))),
    ("request", frames.encode_login(Login(1, "1", "P", LOGIN.credentials, Origin("1" * 81)))),
    ("request", frames.encode_login(Login(1, "1", "P", LOGIN.credentials, Origin("", "\0")))),
    ("request", frames.encode_login(Login(1, "1", "P", Scram("b", b"x", b"x" * 65), Origin()))),
    ("judgement", b"\3" + bytes(12)),
    ("judgement", b"\xff" + bytes(12)),
    ("judgement", bytes(9) + b"\0\2a\n\0\0"),
    ("judgement", frames.encode_judgement(Judgement(YES, b"v" * 1025))),
    ("submission", struct.pack("!BIQB", Kind.ANSWER, 0, 0, 0)),
    ("submission", struct.pack("!BIQB", Kind.SUBMIT, 0, 0, 4)),
    ("submission", struct.pack("!BIQB", Kind.SUBMIT, 0, 2**64 - 1, 0)),
    ("submission", struct.pack("!BIQB", Kind.SUBMIT, frames.ENVELOPE_LIMIT_OCTETS + 1, 0, 2)),
    ("envelope", envelope(count=0, fields={"recipient": b""})),
    ("envelope", envelope(count=2)),
    ("envelope", envelope(count=frames.RECIPIENTS_LIMIT + 1)),
    ("envelope", envelope(count=2**32 - 1)),
    ("envelope", envelope(flags=(8, 0))),
    ("envelope", envelope(flags=(4, 0))),
    ("envelope", envelope(flags=(4, 0), fields={"notice": b"N" * 4097})),
    ("envelope", envelope(flags=(4, 0), fields={"notice": b"NOTIFY=NEVER\r\nQUIT"})),
    ("envelope", envelope(fields={"notice": b"NOTIFY=NEVER"})),
    ("envelope", envelope(fields={"encryption": b"T" * 121})),
    ("envelope", envelope(fields={"encryption": b"TLS\r\nX: y"})),
    ("envelope", envelope(fields={"ret": b"FULLY"})),
    ("envelope", envelope(fields={"ret": "ü".encode()})),
    ("envelope", envelope(fields={"envid": b"e" * 101})),
    ("envelope", envelope(fields={"envid": b"e\t"})),
    ("envelope", envelope(flags=(2, 0), fields={"sender": "a\u2028@b".encode()})),
    ("envelope", envelope(flags=(2, 0), fields={"sender": "a\x85@b".encode()})),
    ("envelope", envelope(flags=(2, 0), fields={"sender": b"\xff@b"})),
    ("envelope", envelope(flags=(0, 2))),
    ("envelope", envelope(fields={"id": b"1" * 41})),
    ("envelope", envelope(fields={"id": b"1\n2"})),
    ("envelope", envelope(fields={"helo": b"h" * 1201})),
    ("envelope", envelope(fields={"helo": b"h\r\nX: y"})),
    ("envelope", envelope(fields={"protocol": b"p" * 41})),
    ("envelope", envelope(fields={"address": b"1" * 81})),
    ("envelope", envelope(fields={"local": b"\0"})),
    ("envelope", envelope(fields={"sender": b"a" * 4097})),
    ("envelope", envelope(fields={"sender": "é@b".encode()})),
    ("envelope", envelope(fields={"sender": b"a@b\n"})),
    ("envelope", envelope(fields={"sender": b"a\t@b"})),
    ("envelope", envelope(fields={"recipient": b""})),
    ("envelope", envelope(fields={"recipient": b"a\0@b"})),
    ("envelope", envelope(fields={"recipient": b"a\x7f@b"})),
    *(("answer", answer(code)) for code in (0, 1, 199, 200, 235, 251, 354, 399, 600, 65535)),
    ("answer", answer(detail=b"5.1.1")),
    ("answer", answer(detail=b"1.")),
    ("answer", answer(detail=b"1234.1")),
    ("answer", answer(detail="٣.1".encode())),
    ("answer", answer(text=b"Ok\r\n250 Ok")),
    ("answer", answer(text=b"\x1b[2J")),
    ("answer", answer(text=b"\xff")),
    ("answer", answer(text=b"a" * 1601)),
    ("answer", answer(kind=Kind.SUBMIT)),
    ("answer", answer(kind=Kind.LINES)),
    ("answer", answer(texts=0)),
    ("answer", answer(texts=2)),
    ("answer", struct.pack("!BHHB", Kind.LINES, 0, 1, 0) + b"\x14\x1f\x41" + b"x" * 8001),
    ("answer", struct.pack("!BHHB", Kind.LINES, 0, 65535, 0)),
]


@pytest.mark.parametrize(("name", "octets"), BAD)
def test_what_goes_beyond_a_limit_or_holds_what_it_must_not_is_refused(name, octets):
    refuses(name, octets)


@pytest.mark.parametrize(
    ("name", "octets"),
    [
        ("from auth", control(b"a" * 1024, b"b" * 1024)),
        ("envelope", envelope()),
        ("envelope", envelope(flags=(4, 0), fields={"notice": b""})),
        ("envelope", envelope(flags=(2, 0), fields={"sender": "ä@b".encode()})),
        ("answer", answer()),
        ("answer", answer(detail=b"")),
        ("answer", answer(400)),
        ("answer", answer(599)),
        ("answer", answer(text=b"a" * 1600)),
    ],
)
def test_the_frames_that_the_bad_ones_are_made_from_are_good(name, octets):
    DECODERS[name](octets)


@pytest.mark.parametrize(("name", "octets"), SAMPLES, ids=names(SAMPLES))
def test_a_frame_is_refused_at_every_other_length(name, octets):
    for length in range(len(octets)):
        refuses(name, octets[:length])
    for more in (b"\0", b"x", octets):
        refuses(name, octets + more)


@pytest.mark.parametrize(("name", "octets"), SAMPLES, ids=names(SAMPLES))
def test_no_flipped_bit_is_worse_than_a_bad_frame(name, octets):
    for place in range(len(octets)):
        for bit in range(8):
            flipped = bytearray(octets)
            flipped[place] ^= 1 << bit
            with contextlib.suppress(BadFrame):
                DECODERS[name](bytes(flipped))


# Noise: any octets, and those that begin as a frame does.
HEADS = st.sampled_from(
    sorted({octets[:cut] for _, octets in SAMPLES for cut in (1, 9, 10, 20, 40)})
)
FIELDS = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.builds(lambda text: struct.pack("!H", len(text)) + text, st.binary(max_size=60)),
    ),
    max_size=8,
).map(b"".join)
NOISE = st.one_of(st.binary(max_size=400), st.builds(bytes.__add__, HEADS, FIELDS))


@pytest.mark.parametrize("name", DECODERS)
@ANY
@given(octets=NOISE)
@example(octets=b"")
@example(octets=b"\xff" * frames.WORKER_LIMIT_OCTETS)
@example(octets=b"\0" * frames.WORKER_LIMIT_OCTETS)
def test_noise_is_a_bad_frame_or_a_frame_and_nothing_else(name, octets):
    with contextlib.suppress(BadFrame):
        DECODERS[name](octets)


@ANY
@given(octets=NOISE)
def test_what_is_let_through_to_the_monitor_is_bounded_and_clean(octets):
    for table in TABLES.values():
        with contextlib.suppress(BadFrame):
            frame = frames.decode_control(octets, table)
            assert len(frame.texts) == table[frame.kind]
            assert all(len(text) <= 1024 for text in frame.texts)
            assert not set("\0\r\n") & set("".join(frame.texts))
            assert frame.encode() == octets


@ANY
@given(
    st.lists(st.tuples(st.integers(0, 255), st.text(max_size=50)), max_size=20),
    st.text(max_size=300),
)
def test_any_log_lines_and_any_text_of_a_reply_can_be_answered(lines, text):
    reply = Reply(250, "0.0", ("".join(c for c in text if c.isprintable()),))
    arrived, logged = frames.decode_answer(frames.encode_answer(reply, lines))
    assert arrived == reply
    assert [level for level, _ in logged] == [level for level, _ in lines]
