"""Global mode: everybody's mail goes out, tagged with the sender's own key, under his own uid."""

from __future__ import annotations

import re

import pytest
from clients import dialogue, submit
from hops import raw_hop
from running import HOST, to_smtp
from village import worker_of

pytestmark = pytest.mark.root


def test_each_user_s_mail_is_tagged_as_his_own_files_say(village, village_hop):
    """TO-5."""
    bobby, chloe, _ = village.people
    chloe.write("filters/outgoing", "to * sender\n")
    with village.daemon() as daemon:
        for person in (bobby, chloe):
            sent = submit(daemon.port, "x@example.net", login=person.name, password=person.password)
            assert sent.startswith("250")
            assert worker_of(daemon, person)
    first, second = village_hop.messages()
    assert re.search(r"<bobby-dated-[0-9]+\.[0-9a-f]+@example.org>", first.value("From"))
    assert re.search(r"<bobby-sender-[0-9a-f]+@example.org>", second.value("From"))


@pytest.mark.parametrize("chunked", [False, True])
def test_all_that_was_asked_for_passes_from_server_to_worker(village, chunked):
    """RFC 6531, 3461, 3030: also where the envelope travels in a frame."""
    bobby = village.people[0]
    text = "From: bobby@example.org\r\nSubject: Grüße\r\n\r\n.ä\r\n".encode()
    keywords = ("PIPELINING", "8BITMIME", "SMTPUTF8", "DSN")
    with raw_hop(keywords=keywords) as hop, village.daemon() as daemon:
        bobby.configure(to_smtp(hop.port))
        with dialogue(daemon.port) as talk:
            talk.log_in(bobby.name, bobby.password)
            mail = "MAIL FROM:<bobby@example.org> SMTPUTF8 BODY=8BITMIME RET=HDRS ENVID=Q+2B"
            assert talk.say(mail).startswith("250")
            rcpt = "RCPT TO:<jörg@bücher.example> NOTIFY=DELAY ORCPT=utf-8;jörg@bücher.example"
            assert talk.say(rcpt).startswith("250")
            if chunked:
                talk.send(b"BDAT %d LAST\r\n" % len(text) + text)
                assert talk.reply().startswith("250")
            else:
                assert talk.data(text.replace(b"\n.", b"\n..") + b".\r\n").startswith("250")
    (stored,) = hop.messages()
    assert stored.octets.endswith("\r\n\r\n..ä\r\n".encode())
    assert re.search(r" with UTF8SMTPA id [0-9a-f]{8};", stored.value("Received"))
    mail, rcpt = (line for line in hop.commands if line[:4] in ("MAIL", "RCPT"))
    assert mail.endswith("> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=Q+2B")
    assert rcpt.endswith("<jörg@bücher.example> NOTIFY=DELAY ORCPT=utf-8;jörg@bücher.example")


def test_the_administrator_names_the_next_hop_of_who_names_none(village, village_hop):
    bobby, chloe, _ = village.people
    bobby.configure("")
    with raw_hop() as relay, village.daemon("--relay", f"{HOST}:{relay.port}") as daemon:
        for person in (bobby, chloe):
            sent = submit(daemon.port, "x@example.net", login=person.name, password=person.password)
            assert sent.startswith("250")
        assert len(relay.messages()) == len(village_hop.messages()) == 1
        assert "bobby-dated-" in relay.messages()[0].sender
