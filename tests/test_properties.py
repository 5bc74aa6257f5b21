"""What must hold for any input that is right, or nearly right: whole sessions and their parts.

The fuzz targets say what is checked of an input that nobody knows beforehand; here the inputs are
made by the grammars, so that it is also known what must come of them.
"""

from __future__ import annotations

import itertools

import pytest
from fakes import b64
from fuzz import frames as frame_target
from fuzz import header as header_target
from fuzz import message as message_target
from fuzz import newlines, paths, replies, session
from fuzz import proxy as proxy_target
from fuzz import sasl as sasl_target
from fuzz.pieces import ways
from fuzz.session import LOGIN, Circumstances, talk
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyheaders import NOOP, tls, value, version_1, version_2

from tofmipd.auth.credentials import (
    Certificate,
    CramMd5,
    Judgement,
    Origin,
    Password,
    Scram,
    Verdict,
)
from tofmipd.auth.saslprep import login_name
from tofmipd.handoff.replies import NextHopReply
from tofmipd.privsep import frames
from tofmipd.privsep.frames import Control, Login, Submission
from tofmipd.proxyprotocol import Endpoint, parse
from tofmipd.smtp.envelope import Envelope, Peer
from tofmipd.smtp.reply import Reply
from tofmipd.smtp.syntax import parse_recipient, parse_sender

any_input = settings(max_examples=100, deadline=None)
many_inputs = settings(max_examples=250, deadline=None)

# Inputs that are nearly right: some octets more, less or other than they should be.
SLIPS = st.sampled_from(
    [
        *[b"", b"", b"\r", b"\n", b"\r\n", b"\r\n.\r\n", b".", b" ", b"\t", b"<", b">", b"@", b":"],
        *[b'"', b"\\", b"=", b"1", b"999999999", b"\0", b"\xff", b"\xc3\xa4", b"\xe2\x80\xa8"],
    ]
)
HEADS = st.one_of(
    st.binary(min_size=4, max_size=4),
    st.lists(st.integers(0, 7), min_size=4, max_size=4).map(bytes),
)


@st.composite
def nearly(draw, right):
    octets = draw(right)
    for _ in range(draw(st.integers(0, 2))):
        place, gone = draw(st.integers(0, len(octets))), draw(st.integers(0, 3))
        octets = octets[:place] + draw(SLIPS) + octets[place + gone :]
    return octets


@st.composite
def in_any_case(draw, text):
    upper = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    pairs = zip(text, upper, strict=True)
    return "".join(sign.upper() if up else sign.lower() for sign, up in pairs)


# Addresses by the grammar of RFC 5321, section 4.1.2, and of RFC 6531, section 3.3.

ATEXT = "abcXYZ019!#$%&'*+/=?^_`{|}~-"
QUOTED_SIGNS = [*' a.<>@,;:()[]"\\', "ab", "..", "\\a"]


def dot_strings(signs):
    return st.lists(st.text(signs, min_size=1, max_size=5), min_size=1, max_size=3).map(".".join)


def quoted(signs):
    return '"' + "".join(f"\\{sign}" if sign in '"\\' else sign for sign in signs) + '"'


LABELS = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from("abZ09"),
    st.text("ab-Z0", max_size=4),
    st.sampled_from("abZ09"),
)
DOMAINS = st.one_of(
    st.lists(LABELS, min_size=1, max_size=3).map(".".join),
    st.sampled_from(["[192.0.2.1]", "[IPv6:2001:db8::1]", "[IPv6:::ffff:192.0.2.1]"]),
)
LOCALS = st.one_of(
    dot_strings(ATEXT), st.lists(st.sampled_from(QUOTED_SIGNS), max_size=6).map(quoted)
)
MAILBOXES = st.builds(lambda local, domain: f"{local}@{domain}", LOCALS, DOMAINS)
WIDE_MAILBOXES = st.builds(
    lambda local, domain: f"{local}@{domain}", dot_strings("aä中\U0001f600"), dot_strings("aßя")
)
ROUTES = st.one_of(
    st.just(""),
    st.lists(DOMAINS, min_size=1, max_size=2).map(
        lambda domains: ",".join(f"@{domain}" for domain in domains) + ":"
    ),
)
NAMES = st.from_regex(r"[A-Z0-9][A-Z0-9-]{0,5}", fullmatch=True)
VALUES = st.one_of(st.none(), st.from_regex(r"[!-<>-~]{1,8}", fullmatch=True))
PARAMETERS = st.dictionaries(NAMES, VALUES, max_size=3)
PARSERS = st.sampled_from([("FROM:", parse_sender), ("TO:", parse_recipient)])


def parameter(name, value):
    return name if value is None else f"{name}={value}"


@many_inputs
@given(PARSERS, ROUTES, st.one_of(MAILBOXES, WIDE_MAILBOXES), PARAMETERS, st.data())
def test_an_address_by_the_grammar_is_taken_with_its_parameters(
    parser, route, mailbox, parameters, data
):
    keyword, parse = parser
    keyword = data.draw(in_any_case(keyword)) + data.draw(st.sampled_from(["", " "]))
    names = [data.draw(in_any_case(name)) for name in parameters]
    words = [*map(parameter, names, parameters.values())]
    blank = data.draw(st.sampled_from([" ", "  "]))
    argument = blank.join([f"{keyword}<{route}{mailbox}>", *words])
    assert parse(argument) == (mailbox, parameters)
    if mailbox.isascii():
        assert paths.is_mailbox(mailbox) or "IPv6" in mailbox
    if not route and " " not in mailbox and not mailbox.startswith('"'):
        assert parse(blank.join([keyword + mailbox, *words])) == (mailbox, parameters)


@any_input
@given(PARSERS, MAILBOXES, PARAMETERS.filter(bool), st.data())
def test_a_parameter_given_twice_is_refused(parser, mailbox, parameters, data):
    keyword, parse = parser
    words = [*map(parameter, parameters, parameters.values())]
    again = data.draw(st.sampled_from(sorted(parameters)).flatmap(in_any_case))
    outcome = paths.parsed(parse, " ".join([f"{keyword}<{mailbox}>", *words, again]))
    assert isinstance(outcome, Reply)
    assert outcome.code == 501


ARGUMENTS = st.builds(
    lambda keyword, route, mailbox, parameters: " ".join(
        [f"{keyword}<{route}{mailbox}>", *map(parameter, parameters, parameters.values())]
    ).encode(),
    st.sampled_from(["FROM:", "TO:"]),
    ROUTES,
    st.one_of(MAILBOXES, WIDE_MAILBOXES),
    PARAMETERS,
)


@many_inputs
@given(nearly(ARGUMENTS))
def test_an_argument_that_is_nearly_right_gives_a_clean_address_or_none(octets):
    paths.check(octets)


# Messages and the ways they come in.

LINES = st.one_of(
    st.sampled_from([b"", b".", b"..", b".a", b"a", b" .", b"Subject: x", b".\0", b"\xff\xfe"]),
    st.binary(max_size=12).map(lambda octets: octets.translate(None, b"\r\n")),
)
MESSAGES = st.lists(LINES, max_size=6).map(lambda lines: b"".join(x + b"\r\n" for x in lines))
# With line ends that are none, by themselves and next to dots.
UNTIDY_LINES = st.tuples(
    LINES, st.sampled_from([b"\r\n", b"\r\n", b"\r", b"\n", b"\r\r\n", b"\n\r"])
)
UNTIDY = st.lists(UNTIDY_LINES, max_size=6).map(lambda pairs: b"".join(a + b for a, b in pairs))
RECIPIENTS = st.lists(MAILBOXES, min_size=1, max_size=3)
SENDERS = st.one_of(st.just(""), MAILBOXES)
LOGGED_IN = Circumstances(logged_in=True)
MENDING = Circumstances(logged_in=True, fix_bare_newline=True)


def envelope_commands(sender, recipients):
    lines = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients)]
    return "".join(line + "\r\n" for line in lines).encode()


def by_data(message):
    """A message as a client sends it that doubles its dots."""
    return b"DATA\r\n" + newlines.stuffed_by_the_book(message) + b".\r\n"


@st.composite
def by_chunks(draw, message, most=5):
    """The BDAT commands for a message, and how many there are."""
    cuts = draw(st.lists(st.integers(0, len(message)), max_size=most - 1))
    places = [0, *sorted(cuts), len(message)]
    chunks = [message[start:end] for start, end in itertools.pairwise(places)]
    text = b""
    for number, chunk in enumerate(chunks):
        last = b" LAST" if number == len(chunks) - 1 else b""
        text += b"BDAT %d%s\r\n" % (len(chunk), last) + chunk
    return text, len(chunks)


def talk_in_all_ways(head, text, circumstances):
    """What came of a session in the clear, which is the same in whatever pieces."""
    talks = [talk(pieces, [], circumstances) for pieces in ways(head, text)]
    return session.check_talks(talks, circumstances)


def codes(heard):
    """Of the replies between the greeting with the login and the goodbye."""
    found = session.check_replies(heard.said)
    assert (found[:2], found[-1]) == ([220, 235], 221)
    return found[2:-1]


@any_input
@given(SENDERS, RECIPIENTS, MESSAGES, HEADS)
def test_a_message_by_data_goes_on_as_it_was_sent(sender, recipients, message, head):
    text = envelope_commands(sender, recipients) + by_data(message) + b"NOOP\r\nQUIT\r\n"
    heard = talk_in_all_ways(head, text, LOGGED_IN)
    ((envelope, wire),) = heard.submitted
    assert (envelope.sender, envelope.recipients) == (sender, recipients)
    assert wire == newlines.stuffed_by_the_book(message)
    assert codes(heard) == [250, *[250] * len(recipients), 354, 250, 250]


@any_input
@given(SENDERS, RECIPIENTS, st.one_of(MESSAGES, MESSAGES.map(lambda m: m[:-2])), HEADS, st.data())
def test_a_message_by_bdat_goes_on_as_it_was_sent(sender, recipients, message, head, data):
    chunks, count = data.draw(by_chunks(message))
    text = envelope_commands(sender, recipients) + chunks + b"NOOP\r\nQUIT\r\n"
    heard = talk_in_all_ways(head, text, LOGGED_IN)
    ((envelope, wire),) = heard.submitted
    assert (envelope.sender, envelope.recipients) == (sender, recipients)
    assert wire == newlines.stuffed_by_the_book(message)
    assert codes(heard) == [250, *[250] * len(recipients), *[250] * count, 250]


@any_input
@given(UNTIDY, HEADS, st.booleans())
def test_bare_line_ends_by_data_are_refused_or_mended_and_nothing_is_lost(message, head, mend):
    sent = message_target.by_the_book(message + b"\r\n.\r\n").written
    text = envelope_commands("a@b", ["c@d"]) + b"DATA\r\n" + sent + b".\r\nNOOP\r\nQUIT\r\n"
    heard = talk_in_all_ways(head, text, MENDING if mend else LOGGED_IN)
    if mend:
        ((_, wire),) = heard.submitted
        assert wire == newlines.lone_dots_doubled(newlines.mended_by_the_book(sent))
    else:
        bare = message_target.has_bare_newline(sent)
        assert [wire for _, wire in heard.submitted] == ([] if bare else [sent])
    assert codes(heard)[-1] == 250
    assert codes(heard)[:3] == [250, 250, 354]


@any_input
@given(UNTIDY, HEADS, st.booleans(), st.data())
def test_bare_line_ends_by_bdat_are_refused_or_mended_and_nothing_is_lost(
    message, head, mend, data
):
    chunks, count = data.draw(by_chunks(message))
    text = envelope_commands("a@b", ["c@d"]) + chunks + b"NOOP\r\nQUIT\r\n"
    heard = talk_in_all_ways(head, text, MENDING if mend else LOGGED_IN)
    if mend:
        message = newlines.mended_by_the_book(message)
    if message_target.has_bare_newline(message):
        assert heard.submitted == []
        assert 550 in codes(heard)
    else:
        assert [wire for _, wire in heard.submitted] == [newlines.stuffed_by_the_book(message)]
    # However it ends, each chunk gets one reply, and what follows is a command again.
    assert len(codes(heard)) == 2 + count + 1
    assert codes(heard)[-1] == 250


SMALL = Circumstances(logged_in=True, small_limits=True)
LIMIT_OCTETS = SMALL.policy.size_limit_octets


@any_input
@given(st.integers(LIMIT_OCTETS - 3, LIMIT_OCTETS + 3), HEADS, st.booleans(), st.data())
def test_a_message_up_to_the_limit_is_taken_and_a_longer_one_read_to_its_end(
    size, head, chunked, data
):
    message = b"a" * (size - 2) + b"\r\n"
    text, count = data.draw(by_chunks(message, most=3)) if chunked else (by_data(message), 2)
    text = envelope_commands("a@b", ["c@d"]) + text + b"RSET\r\nQUIT\r\n"
    heard = talk_in_all_ways(head, text, SMALL)
    if size <= LIMIT_OCTETS:
        assert [wire for _, wire in heard.submitted] == [message]
        assert codes(heard)[-2:] == [250, 250]
    else:
        assert heard.submitted == []
        assert 552 in codes(heard)
    assert len(codes(heard)) == 2 + count + 1


ALPHABET = [b"\r", b"\n", b".", b"a"]


@pytest.mark.parametrize("length", range(7))
def test_all_short_messages_end_where_the_book_says_whatever_the_cuts(length):
    for octets in map(b"".join, itertools.product(ALPHABET, repeat=length)):
        expected = message_target.by_the_book(octets)
        for cut in range(max(length, 1)):
            pieces = [piece for piece in (octets[:cut], octets[cut:]) if piece]
            outcome = message_target.read(pieces, 1 << 40)
            assert outcome.rest == expected.rest
            if expected.rest is not None:
                assert outcome == expected


@pytest.mark.parametrize("length", range(6))
def test_all_short_messages_are_mended_and_stuffed_by_the_book_whatever_the_cuts(length):
    for octets in map(b"".join, itertools.product(ALPHABET, repeat=length)):
        for cut in range(max(length, 1)):
            newlines.check(bytes([max(cut - 1, 0), 0, 7, 7]) + octets)


# Whole dialogues.

LOGINS = [
    [LOGIN.strip()],
    [b"AUTH LOGIN", b"Ym9iYnk=", b"Rm9vQmFy"],
    [b"AUTH PLAIN", b"AGJvYmJ5AEZvb0Jhcg=="],
    [b"AUTH PLAIN", b"*"],
    [b"AUTH LOGIN", b"Ym9iYnk=", b"d3Jvbmc="],
    [b"AUTH CRAM-MD5", b"Ym9iYnkgMDEyMw=="],
    [b"AUTH EXTERNAL", b""],
]
SIMPLE = ["EHLO x.example", "HELO x", "NOOP", "RSET", "VRFY a", "HELP", "DATA", "STARTTLS", "FOO"]
MAIL_PARAMETERS = ["", " SIZE=30", " BODY=8BITMIME", " SMTPUTF8", " RET=HDRS ENVID=a+2Bb", " X=1"]
RCPT_PARAMETERS = ["", " NOTIFY=NEVER", " NOTIFY=DELAY,FAILURE ORCPT=rfc822;a+40b", " ORCPT=a"]


@st.composite
def parts_of_a_dialogue(draw):
    """One of what a dialogue is made of: commands that belong together, with what follows them."""
    message = draw(MESSAGES)
    chunks, _ = draw(by_chunks(message))
    verb = draw(st.sampled_from(SIMPLE).flatmap(in_any_case)).encode() + b"\r\n"
    mailbox = draw(st.one_of(MAILBOXES, WIDE_MAILBOXES))
    mail = f"MAIL FROM:<{mailbox}>{draw(st.sampled_from(MAIL_PARAMETERS))}\r\n".encode()
    rcpt = f"RCPT TO:<{mailbox}>{draw(st.sampled_from(RCPT_PARAMETERS))}\r\n".encode()
    login = b"".join(line + b"\r\n" for line in draw(st.sampled_from(LOGINS)))
    whole = mail + rcpt + draw(st.sampled_from([chunks, by_data(message)]))
    return draw(st.sampled_from([verb, mail, rcpt, login, chunks, by_data(message), whole, whole]))


DIALOGUES = st.lists(parts_of_a_dialogue(), max_size=6).map(b"".join)
CIRCUMSTANCES = st.integers(0, 2047).map(lambda number: number.to_bytes(2, "little"))


@many_inputs
@given(CIRCUMSTANCES, HEADS, nearly(DIALOGUES), st.one_of(st.just(b""), nearly(DIALOGUES)))
def test_a_dialogue_that_is_nearly_right_breaks_nothing(circumstances, head, clear, encrypted):
    session.check(circumstances + head + clear + session.TLS + encrypted)


BEFORE_TLS = st.lists(
    st.sampled_from([b"EHLO evil.example\r\n", b"HELO evil\r\n", b"NOOP\r\n", b"RSET\r\n"]),
    max_size=3,
).map(b"".join)


@any_input
@given(BEFORE_TLS, nearly(DIALOGUES), DIALOGUES, st.booleans())
def test_nothing_said_in_the_clear_has_a_place_in_the_encrypted_session(
    before, injected, encrypted, known
):
    circumstances = Circumstances(starttls=True, certificate=known)
    clear = before + b"STARTTLS\r\n"
    plain = talk([b"STARTTLS\r\n"], [encrypted], circumstances)
    for early in ([clear + injected], [clear, injected]):
        heard = talk(early, [encrypted], circumstances)
        assert heard.submitted == plain.submitted
        assert heard.users == plain.users
        ready = b"220 2.0.0 Ready to start TLS\r\n"
        assert heard.said.partition(ready)[2] == plain.said.partition(ready)[2]


# Logins.

NOT_NUL = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
USERS = st.text(NOT_NUL, min_size=1, max_size=12)
SECRETS = st.binary(min_size=1, max_size=12).map(lambda octets: octets.replace(b"\0", b"x"))


def exchange(name, user, secret):
    """What a client answers to the challenges of a mechanism, and the credentials that it shows."""
    octets = user.encode()
    known = login_name(octets)
    if name == "PLAIN":
        return [b"\0" + octets + b"\0" + secret], Password(known, secret)
    if name == "LOGIN":
        return [octets, secret], Password(known, secret)
    if name == "CRAM-MD5":
        digest = secret.hex().encode()
        return [octets + b" " + digest], CramMd5(known, digest)
    escaped = octets.replace(b"=", b"=3D").replace(b",", b"=2C")
    return [b"n,,n=%s,r=x" % escaped, secret], Scram(known, secret)


@any_input
@given(st.sampled_from(["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1"]), USERS, SECRETS)
def test_a_mechanism_ends_with_the_name_and_the_secret_that_were_sent(name, user, secret):
    responses, expected = exchange(name, user, secret)
    start = sasl_target.Start()
    assert sasl_target.run(name, start, responses) == expected
    assert sasl_target.run(name, start, responses[:-1]) is None


@any_input
@given(st.sampled_from(sasl_target.NAMES), st.booleans(), USERS, SECRETS, st.data())
def test_responses_that_are_nearly_right_are_read_by_the_book(name, encrypted, user, secret, data):
    responses, _ = exchange(name, user, secret)
    text = b"\n".join(responses)
    number = sasl_target.NAMES.index(name) + 128 * encrypted
    sasl_target.check(bytes([number]) + data.draw(nearly(st.just(text))))
    sasl_target.check(bytes([number]) + data.draw(nearly(st.just(b64(text).encode()))))


# Replies of the next hop.

TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=10)
HOP_REPLIES = st.lists(
    st.tuples(st.integers(200, 599), st.lists(TEXTS, min_size=1, max_size=3)), max_size=4
)


def hop_reply(code, texts):
    last = len(texts) - 1
    lines = [f"{code}{' ' if n == last else '-'}{text}\r\n" for n, text in enumerate(texts)]
    return "".join(lines).encode()


def said_by_the_next_hop(said):
    return b"".join(hop_reply(code, texts) for code, texts in said)


@any_input
@given(HOP_REPLIES, HEADS)
def test_replies_of_the_next_hop_are_read_whatever_the_pieces(said, head):
    text = said_by_the_next_hop(said)
    ascii_blanks = " \t\n\r\x0b\x0c"
    expected = [(c, " ".join(text.strip(ascii_blanks) for text in texts)) for c, texts in said]
    for pieces in ways(head, text):
        assert replies.read(pieces) == expected
    for code, text in expected:
        replies.check_refusal(NextHopReply(code, text))


@many_inputs
@given(HEADS, nearly(HOP_REPLIES.map(said_by_the_next_hop)))
def test_what_is_nearly_a_reply_is_read_by_the_book(head, octets):
    replies.check(head + octets)


# Frames.

IN_A_LINE = st.characters(exclude_characters="\0\r\n", exclude_categories=("Cs",))
# An octet that is no UTF-8 is such a surrogate.
LINE_TEXTS = st.text(st.one_of(IN_A_LINE, st.just("\udcff")), max_size=20)
ASCII_TEXTS = st.from_regex(r"[!-~]{1,20}", fullmatch=True)
NUMBERS = st.integers(0, 2**64 - 1)
CREDENTIALS = st.one_of(
    st.builds(Password, st.text(NOT_NUL, max_size=20), st.binary(max_size=20)),
    st.builds(CramMd5, st.text(NOT_NUL, max_size=20), st.binary(max_size=20)),
    st.builds(Certificate, st.text(NOT_NUL, max_size=20), st.binary(max_size=20)),
    st.builds(Scram, st.text(NOT_NUL, max_size=20), st.binary(), st.binary(max_size=64)),
)
PEERS = st.builds(
    Peer, ASCII_TEXTS, st.integers(0, 65535), st.booleans(), st.one_of(st.just(""), ASCII_TEXTS)
)


@st.composite
def envelopes(draw):
    wide = draw(st.booleans())
    mailboxes = st.one_of(MAILBOXES, WIDE_MAILBOXES) if wide else MAILBOXES
    recipients = draw(st.lists(mailboxes, min_size=1, max_size=4))
    notices = draw(st.dictionaries(st.sampled_from(recipients), ASCII_TEXTS, max_size=2))
    return Envelope(
        draw(st.one_of(st.just(""), mailboxes)),
        "bobby",
        draw(LINE_TEXTS),
        draw(ASCII_TEXTS),
        draw(PEERS),
        draw(NUMBERS),
        draw(st.booleans()),
        recipients,
        draw(LINE_TEXTS),
        wide,
        draw(st.sampled_from(["", "FULL", "HDRS"])),
        draw(st.one_of(st.just(""), ASCII_TEXTS)),
        notices,
    )


@any_input
@given(envelopes())
def test_any_envelope_arrives_as_it_was_sent(envelope):
    frame_target.check_envelope(envelope)


LOGIN_FRAMES = st.builds(
    Login,
    NUMBERS,
    ASCII_TEXTS,
    ASCII_TEXTS,
    CREDENTIALS,
    st.builds(Origin, LINE_TEXTS, LINE_TEXTS),
)


@any_input
@given(LOGIN_FRAMES)
def test_any_login_arrives_as_it_was_sent(login):
    assert frames.decode_auth_request(frames.encode_login(login)) == login


@st.composite
def control_frames(draw):
    name = draw(st.sampled_from(sorted(frame_target.TABLES)))
    kind, count = draw(st.sampled_from(sorted(frame_target.TABLES[name].items())))
    texts = draw(st.lists(LINE_TEXTS, min_size=count, max_size=count))
    return name, Control(kind, draw(NUMBERS), tuple(texts)).encode()


DELAYS = st.floats(0, 1e5)
FRAMES = st.one_of(
    control_frames(),
    st.tuples(st.just("request"), LOGIN_FRAMES.map(frames.encode_login)),
    st.tuples(st.just("envelope"), st.builds(frames.encode_envelope, envelopes(), ASCII_TEXTS)),
    st.tuples(
        st.just("judgement"),
        st.builds(
            frames.encode_judgement,
            st.builds(Judgement, st.sampled_from(Verdict), st.binary(max_size=30), DELAYS, DELAYS),
            LINE_TEXTS,
        ),
    ),
    st.tuples(
        st.just("submission"),
        st.builds(
            lambda envelope, inline: Submission(len(inline), len(envelope), envelope, inline),
            st.binary(max_size=20),
            st.binary(max_size=20),
        ).map(Submission.encode),
    ),
    st.tuples(
        st.just("answer"),
        st.builds(
            lambda text, lines: frames.encode_answer(Reply(550, "5.1", (text,)), lines),
            TEXTS.filter(str.isprintable),
            st.lists(st.tuples(st.integers(0, 255), TEXTS), max_size=3),
        ),
    ),
).map(lambda pair: frame_target.numbered(*pair))


@many_inputs
@given(nearly(FRAMES))
def test_a_frame_that_is_nearly_right_is_refused_or_comes_back_as_it_is(octets):
    frame_target.check(octets)


# Headers.

FIELD_NAMES = st.sampled_from([b"From", b"to", b"X-Y", b"Subject", b"Received", b"!~"])
FIELDS = st.builds(
    lambda name, blank, folds: name + blank + b":" + b"\r\n\t".join(folds) + b"\r\n",
    FIELD_NAMES,
    st.sampled_from([b"", b"", b" ", b" \t"]),
    st.lists(LINES, min_size=1, max_size=3),
)
HEADERS = st.builds(
    lambda first, fields, end: first + b"".join(fields) + end,
    st.sampled_from([b"", b"", b"From a@x Thu\r\n", b" stray\r\n", b"From a@x\r\n\tstray\r\n"]),
    st.lists(FIELDS, max_size=5),
    st.sampled_from([b"", b"\r\n", b"\r\nbody\r\n", b"no field\r\n", b"\r\n\r\nX: y\r\n"]),
)


@many_inputs
@given(nearly(HEADERS))
def test_a_header_that_is_nearly_right_is_taken_apart_by_the_book(octets):
    header_target.check(octets)


# Headers of the PROXY protocol.


@st.composite
def proxied(draw):
    """Two ends, whether there was TLS, and the header that says so."""
    addresses = st.ip_addresses(v=draw(st.sampled_from([4, 6])))
    source, destination = (str(draw(addresses)) for _ in range(2))
    ports = draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
    more = draw(st.lists(st.sampled_from([tls(), value(NOOP, b"x"), value(0xE0, b"")]), max_size=3))
    if more or draw(st.booleans()):
        header = version_2(source, destination, ports, b"".join(more))
    else:
        header = version_1(source, destination, ports)
    ends = Endpoint(source, ports[0]), Endpoint(destination, ports[1])
    return ends, tls() in more, header


def is_mapped(end):
    return end.address.startswith("::ffff:")


@any_input
@given(proxied(), st.binary(max_size=50))
def test_what_a_proxy_says_is_understood_whatever_follows(said, behind):
    ends, by_tls, octets = said
    header = parse(octets + behind)
    assert header.octets == len(octets)
    assert (header.tls is not None) is by_tls
    if not any(map(is_mapped, ends)):
        assert (header.source, header.destination) == ends


@many_inputs
@given(HEADS, nearly(proxied().map(lambda said: said[2])))
def test_what_is_nearly_a_header_of_a_proxy_is_read_by_the_book(head, octets):
    proxy_target.check(head + octets)
