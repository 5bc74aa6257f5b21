"""The parts of `tofmipd demo`; the system tests run the whole."""

from __future__ import annotations

import itertools
import re

import pytest

from tofmipd.auth.credentials import Judgement, Password, Verdict
from tofmipd.commands import demo
from tofmipd.commands.demo import Maildir
from tofmipd.content import Content
from tofmipd.errors import CANT_CREATE, Fatal
from tofmipd.smtp.envelope import Envelope, Peer


@pytest.fixture
def maildir(tmp_path):
    made = Maildir(str(tmp_path / "Maildir"), itertools.count(1))
    made.make()
    return made


def content(octets: bytes) -> Content:
    made = Content()
    made.write(octets)
    return made


def test_a_message_is_filed_as_local_text_below_its_envelope(maildir, tmp_path):
    envelope = Envelope("a@b.example", recipients=["c@d.example", "e@f.example"])
    reply = maildir.submit(envelope, content(b"Subject: x\r\n\r\n..dot\r\n\xff\r\n"))
    assert reply.code == 250
    match = re.fullmatch(r"Ok: stored as (new/\S+)", reply.lines[0])
    assert match is not None
    assert (tmp_path / "Maildir" / match[1]).read_bytes() == (
        b"Return-Path: <a@b.example>\nX-Envelope-To: <c@d.example>\n"
        b"X-Envelope-To: <e@f.example>\nSubject: x\n\n.dot\n\xff\n"
    )
    assert not list((tmp_path / "Maildir/tmp").iterdir())


def test_each_message_has_a_file_of_its_own(maildir, tmp_path):
    for _ in range(50):
        assert maildir.submit(Envelope("", recipients=["x@y"]), content(b"\r\n")).code == 250
    assert len(list((tmp_path / "Maildir/new").iterdir())) == 50


def test_a_folder_that_has_gone_defers(maildir, tmp_path):
    (tmp_path / "Maildir").rename(tmp_path / "gone")
    assert maildir.submit(Envelope("", recipients=["x@y"]), content(b"\r\n")).code == 452


def test_nobody_can_log_in_to_the_receiver(maildir):
    assert maildir.mechanisms == frozenset()
    judgement = maildir.admit("id", Peer()).verify(Password("you", b"x"), "PLAIN")
    assert judgement == Judgement(Verdict.REJECTED)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to start in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_folder_that_cannot_be_made_is_named(folder):
    (folder / "file").write_text("")
    with pytest.raises(Fatal, match=f"cannot make {folder}/file/.tmda") as caught:
        demo.main(["--directory", "file"])
    assert caught.value.status == CANT_CREATE
