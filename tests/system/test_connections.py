"""Where clients can connect, how many at once, and for how long."""

from __future__ import annotations

import re

import pytest
from clients import Mail, by_curl, dialogue, logged_in
from running import DATE, HOST, greets

TO = "x@example.net"
MESSAGE = b"From: bobby@example.org\r\nSubject: x\r\n\r\nx\r\n.\r\n"


def test_the_start_is_announced_with_date_and_places(start, home):
    """TO-18."""
    daemon = start(home, "-d", listen=("-p", f"{HOST}:0", "-6", "[::1]:0"))
    first, second, third = daemon.text().splitlines()[:3]
    assert re.fullmatch(rf"tofmipd started at {DATE}", first)
    assert second == f"\tListening on 127.0.0.1:{daemon.places[0][1]}"
    assert third == f"\tListening on [::1]:{daemon.places[1][1]}"


def test_several_places_are_listened_on_by_both_protocols(start, home, hop):
    """TO-7, TO-76, TO-77."""
    places = ("-p", f"{HOST}:0", "-p", "127.0.0.2:0", "-6", "[::1]:0", "-6", "::1:0")
    daemon = start(home, listen=places)
    assert [host for host, _ in daemon.places] == ["127.0.0.1", "127.0.0.2", "::1", "::1"]
    assert len({port for _, port in daemon.places}) == 4
    for host, port in daemon.places:
        with dialogue(port, host) as talk:
            talk.log_in()
            talk.envelope(f"x{port}@example.net")
            assert talk.data(MESSAGE).startswith("250")
        client = "::1" if host == "::1" else "127.0.0.1"
        assert f"({client})" in hop.message(f"x{port}@example.net").value("Received")


def test_an_empty_host_means_all_interfaces(start, home):
    """TO-76."""
    (place,) = start(home, listen=("-p", ":0")).places
    assert place[0] == "0.0.0.0"
    assert greets(place[1], "127.0.0.3")


@pytest.mark.peer("curl")
def test_curl_reaches_ipv6(start, home, hop, tmp_path):
    """TO-77."""
    (place,) = start(home, listen=("-6", "[::1]:0")).places
    sent = by_curl(Mail((TO,), "Subject: x\n\nx\n"), place[1], tmp_path, host="[::1]")
    assert sent.status == 0, sent.words
    assert "(::1)" in hop.message(TO).value("Received")


def test_clients_beyond_the_limit_wait_until_there_is_room(start, home):
    """TO-78."""
    daemon = start(home, "-C", "2")
    with dialogue(daemon.port) as one, dialogue(daemon.port) as two:
        with dialogue(daemon.port, greeted=False) as three:
            three.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):
                three.reply()
            three.socket.settimeout(10)
            assert one.say("QUIT").startswith("221")
            one.socket.close()
            assert three.reply().startswith("220")
        assert two.say("NOOP").startswith("250")


def test_a_session_that_does_not_log_in_is_ended(start, home):
    with dialogue(start(home, "--login-timeout", "0.5").port) as talk:
        talk.say("EHLO x")
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""


def test_an_idle_session_is_ended(start, home):
    with logged_in(start(home, "--idle-timeout", "0.3").port) as talk:
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""


def test_a_message_that_stalls_is_given_up(start, home, hop):
    with logged_in(start(home, "--data-timeout", "0.3").port) as talk:
        talk.envelope(TO)
        assert talk.say("DATA").startswith("354")
        talk.send(b"Subject: x\r\n\r\nnever en")
        assert talk.reply().startswith("421 4.4.2 ")
        assert talk.reply() == ""
    assert not hop.commands
