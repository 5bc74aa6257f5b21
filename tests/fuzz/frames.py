"""Frames between processes: refused, or a value that gives the same octets again.

Input: which kind of frame, then the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fuzz.paths import is_clean
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

WORDS = (b"\0\0\0\1", b"\0\1", b"\xff\xff", b"\0\0", b"\xef\xbf\xbd")
TABLES = {
    "from the server": frames.FROM_SERVER,
    "from auth": frames.FROM_AUTH,
    "from a worker": frames.FROM_WORKER,
    "to the server": frames.TO_SERVER,
    "to auth": frames.TO_AUTH,
    "to a worker": frames.TO_WORKER,
    "to auth from the server": frames.TO_AUTH_FROM_SERVER,
}
_FLAGS_PLACE, _WITH_NOTICES = 8, 4
# What was no UTF-8 is replaced where nobody needs to know it; the frame cannot be made again.
REPLACED = "\ufffd"


def check(octets: bytes) -> None:
    name = KINDS[int.from_bytes(octets[:1], "big") % len(KINDS)]
    frame = octets[1:]
    try:
        again = AGAIN[name](frame)
    except BadFrame:
        return
    assert again in (frame, None), f"{frame!r} comes back as {again!r}"


def check_envelope(envelope: Envelope) -> None:
    """What a session takes from a client arrives at the worker as it is."""
    octets = frames.encode_envelope(envelope, "1")
    assert frames.decode_envelope(octets, envelope.login) == (envelope, "1")


def _control(table: dict[Kind, int]) -> Callable[[bytes], bytes]:
    def again(octets: bytes) -> bytes:
        frame = frames.decode_control(octets, table)
        assert len(frame.texts) == table[frame.kind]
        assert not set("\0\r\n") & set("".join(frame.texts))
        return frame.encode()

    return again


def _request(octets: bytes) -> bytes | None:
    login = frames.decode_auth_request(octets)
    if isinstance(login, Opening):
        return frames.encode_opening(login)
    again = frames.encode_login(login)
    assert frames.decode_auth_request(again) == login
    # Only SCRAM is bound to a channel: what else says so is made without it.
    odd = not isinstance(login.credentials, Scram) and len(again) != len(octets)
    return None if odd or REPLACED in login.credentials.user else again


def _judgement(octets: bytes) -> bytes | None:
    judgement, account = frames.decode_judgement(octets)
    assert min(judgement.delay, judgement.wait) >= 0
    again = frames.encode_judgement(judgement, account)
    assert frames.decode_judgement(again)[0].verdict is judgement.verdict
    # Times of whole seconds, and not too many, come back as they are.
    whole = all(time % 1 == 0 and time < 1e6 for time in (judgement.delay, judgement.wait))
    return again if whole else None


def _submission(octets: bytes) -> bytes:
    submission = frames.decode_submission(octets)
    parts = (submission.envelope, submission.inline)
    assert submission.files == parts.count(None)
    return submission.encode()


def _envelope(octets: bytes) -> bytes | None:
    envelope, session_id = frames.decode_envelope(octets, "bobby")
    assert envelope.login == "bobby"
    assert envelope.recipients
    assert "" not in envelope.recipients
    assert set(envelope.notices) <= set(envelope.recipients)
    said = (envelope.ret, envelope.envid, *envelope.notices.values())
    for text in (envelope.sender, *envelope.recipients, *said):
        assert is_clean(text)
        assert text.isascii() or envelope.smtputf8
    for text in (session_id, envelope.helo, envelope.protocol, envelope.encryption):
        assert not set("\0\r\n") & set(text)
    again = frames.encode_envelope(envelope, session_id)
    # A recipient has one notice, however often it is named; there may be none where some are
    # announced.
    twice = envelope.notices and len(set(envelope.recipients)) < len(envelope.recipients)
    none = octets[_FLAGS_PLACE] & _WITH_NOTICES and not envelope.notices
    return None if twice or none else again


def _answer(octets: bytes) -> bytes | None:
    reply, lines = frames.decode_answer(octets)
    if reply is None:
        again = frames.encode_lines(lines)
    else:
        assert reply.encode().count(b"\n") == 1
        again = frames.encode_answer(reply, lines)
    # A reply or line that we would have made shorter ourselves.
    cut = reply is not None and len(reply.lines[0]) > 400
    return None if cut or any(REPLACED in text for _, text in lines) else again


# Decodes a frame and encodes what that gave; None if that cannot be the same.
AGAIN: dict[str, Callable[[bytes], bytes | None]] = {
    **{name: _control(table) for name, table in TABLES.items()},
    "request": _request,
    "judgement": _judgement,
    "submission": _submission,
    "envelope": _envelope,
    "answer": _answer,
}
KINDS = list(AGAIN)


def numbered(name: str, frame: bytes) -> bytes:
    """The input for a frame of that kind."""
    return bytes([KINDS.index(name)]) + frame


def seeds() -> Iterator[bytes]:
    for name, table in TABLES.items():
        for kind, count in table.items():
            yield numbered(name, Control(kind, 7, ("bobby",) * count).encode())
    origin = Origin("192.0.2.1", "127.0.0.1")
    for message in (b"", b"n,,n=user,r=fyko"):
        yield numbered("request", frames.encode_opening(Opening(9, "SCRAM-SHA-1", message)))
    for credentials in (
        Password("bobby", b"\0\xff"),
        CramMd5("tim", b"b913"),
        Certificate("bobby", b"DER"),
        Scram("bobby", b"c=biws,r=x,p=v0X8", b"binding"),
    ):
        yield numbered("request", frames.encode_login(Login(7, "0a", "PLAIN", credentials, origin)))
    for judgement in (Judgement(Verdict.ACCEPTED, b"v=x"), Judgement(Verdict.REJECTED, b"", 1, 60)):
        yield numbered("judgement", frames.encode_judgement(judgement, "bobby"))
    for envelope in (b"abc", None):
        for inline in (b"hello\r\n", None):
            yield numbered("submission", Submission(7, 3, envelope, inline).encode())
    peer = Peer("2001:db8::1", 65535, True, "127.0.0.1")
    for recipients in (["x@example.net"], ["x@y", '"a b"@z']):
        mail = Envelope("a@b", "bobby", "laptop", "ESMTPA", peer, 99, True, recipients)
        yield numbered("envelope", frames.encode_envelope(mail, "00ab"))
        mail.encryption, mail.smtputf8, mail.ret, mail.envid = "TLSv1.3", True, "HDRS", "a+2Bb"
        mail.notices = {recipients[0]: "NOTIFY=NEVER ORCPT=utf-8;\xe4"}
        yield numbered("envelope", frames.encode_envelope(mail, "00ab"))
    lines = [(20, "sent"), (30, "h\xe9")]
    yield numbered("answer", frames.encode_lines(lines))
    yield numbered("answer", frames.encode_answer(Reply(250, "0.0", ("Ok",)), lines))
