"""Hand-off by SMTP to a server that speaks the real protocol, and can be made to fail."""

from __future__ import annotations

import hashlib
import threading
import time
import tracemalloc

import pytest
from fakes import (
    CLOSE,
    FEATURES,
    STALL,
    Act,
    FakeNextHop,
    at,
    copy_of,
    server_context,
    wait_for,
)

from tofmipd.handoff import smtp
from tofmipd.handoff.copy import HandOffFailed
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.smtp import Pool, SmtpTransport

POOLS = []


def new_pool():
    """One that is closed at the end of the test."""
    POOLS.append(Pool())
    return POOLS[-1]


@pytest.fixture(autouse=True)
def _pools_end():
    yield
    while POOLS:
        POOLS.pop().close()


def hop_of(server, **fields):
    fields = {"connect_timeout": 5, "reply_timeout": 5, "dot_timeout": 5} | fields
    return NextHop("127.0.0.1", server.port, **fields)


def transport_to(server, **fields):
    return SmtpTransport([hop_of(server, **fields)], new_pool())


def failure_of(transport, copy=None):
    """What the client hears when the copy is not taken."""
    with pytest.raises(HandOffFailed) as caught:
        transport.send(copy or copy_of())
    return str(caught.value.reply)


def without(*names):
    return tuple(feature for feature in FEATURES if feature.split()[0] not in names)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return server_context(tmp_path_factory.mktemp("tls"))


# What arrives.

LONG_LINE = b"x" * 100_000
BODIES = {
    "empty": b"",
    "lines": b"one\r\n\r\ntwo\r\n",
    "dots": b"..\r\n...\r\n..a\r\n\r\n..\r\n",
    "unstuffed dot": b".a\r\n",
    "all octets": bytes(set(range(256)) - set(b"\r\n")) + b"\r\n",
    "long line": LONG_LINE + b"\r\n",
    "a megabyte": (b"x" * 998 + b"\r\n") * 1100,
    "three megabytes": (b"." + b"y" * 1021 + b"\r\n") * 3000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("features", [FEATURES, ()])
def test_the_next_hop_gets_the_octets_of_the_message(body, features):
    copy = copy_of(body, header=b"Subject: test\r\n.dot: yes\r\n\r\n")
    with FakeNextHop(features=features) as server:
        said = transport_to(server).send(copy)
        (message,) = server.messages
        assert message.wire == b"Subject: test\r\n..dot: yes\r\n\r\n" + body
        assert server.violations == []
    assert said == "250 2.0.0 Ok: queued as FAKE1"


@pytest.mark.parametrize("sender", [b"", b"a@example.org", b'"a b"@example.org', b"a@[192.0.2.1]"])
def test_sender_and_recipients_stand_in_the_envelope(sender):
    recipients = (b"x@example.net", b'"x y"@example.net', b"-z@example.net", b"root")
    with FakeNextHop() as server:
        transport_to(server).send(copy_of(sender=sender, recipients=recipients))
        (message,) = server.messages
    assert message.sender == sender.decode()
    assert message.recipients == [recipient.decode() for recipient in recipients]


def test_commands_travel_together_where_the_next_hop_takes_that():
    recipients = (b"x@example.net", b"y@example.net")
    with FakeNextHop(features=("PIPELINING",)) as server:
        transport_to(server).send(copy_of(recipients=recipients))
        assert server.groups == [
            [
                "MAIL FROM:<a@example.org>",
                "RCPT TO:<x@example.net>",
                "RCPT TO:<y@example.net>",
                "DATA",
            ]
        ]


def test_commands_wait_for_each_other_where_it_does_not():
    recipients = tuple(b"x%d@example.net" % number for number in range(5))
    with FakeNextHop(features=("SIZE 1000000",)) as server:
        transport_to(server).send(copy_of(recipients=recipients))
        assert [len(group) for group in server.groups] == [1]
        assert server.violations == []


@pytest.mark.parametrize("features", [FEATURES, ()])
def test_many_recipients_are_no_problem(features):
    recipients = tuple(b"x%d@example.net" % number for number in range(350))
    with FakeNextHop(features=features) as server:
        transport_to(server).send(copy_of(recipients=recipients))
        (message,) = server.messages
    assert message.recipients == [recipient.decode() for recipient in recipients]


def test_the_size_is_told_where_it_is_asked_for():
    copy = copy_of(b"x" * 100 + b"\r\n", header=b"A: b\r\n\r\n")
    with FakeNextHop() as server:
        transport_to(server).send(copy)
        assert "MAIL FROM:<a@example.org> SIZE=110" in server.commands
    with FakeNextHop(features=without("SIZE")) as server:
        transport_to(server).send(copy)
        assert "MAIL FROM:<a@example.org>" in server.commands


def test_eight_bit_is_told_when_the_client_told_it():
    with FakeNextHop(features=without("SIZE")) as server:
        transport_to(server).send(copy_of(b"\xe4\r\n", eight_bit=True))
        transport_to(server).send(copy_of(b"\xe4\r\n"))
        mails = [line for line in server.commands if line.startswith("MAIL")]
        assert mails == ["MAIL FROM:<a@example.org> BODY=8BITMIME", "MAIL FROM:<a@example.org>"]


def test_an_eight_bit_message_is_not_given_to_a_next_hop_that_takes_none():
    with FakeNextHop(features=without("8BITMIME")) as server:
        heard = failure_of(transport_to(server), copy_of(b"\xe4\r\n", eight_bit=True))
        assert heard.startswith("554 5.6.3 ")
        assert server.groups == []


def test_a_next_hop_without_ehlo_is_spoken_to_without_extensions():
    with FakeNextHop(at("EHLO", b"502 5.5.1 what?\r\n")) as server:
        transport_to(server, local_name="mx.example").send(copy_of())
        assert server.commands[:3] == [
            "ehlo mx.example",
            "helo mx.example",
            "MAIL FROM:<a@example.org>",
        ]
        assert len(server.messages) == 1


def test_memory_does_not_grow_with_the_message():
    block = (b"z" * 1022 + b"\r\n") * 256
    body = [block] * 120
    digest = hashlib.sha256(b"A: b\r\n\r\n")
    for piece in body:
        digest.update(piece)
    copy = copy_of(body, header=b"A: b\r\n\r\n")
    with FakeNextHop(keep=False) as server:
        transport = transport_to(server, dot_timeout=30)
        transport.send(copy_of())
        tracemalloc.start()
        try:
            transport.send(copy)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert server.messages[-1].digest == digest.hexdigest()
        assert server.messages[-1].size_octets > 30_000_000
    assert peak < 4_000_000
    copy.content.close()


# Connections that are kept.


def test_one_connection_serves_many_messages():
    with FakeNextHop() as server:
        transport = transport_to(server)
        for number in range(5):
            transport.send(copy_of(b"%d\r\n" % number))
        assert server.connections == 1
        assert [message.text[-3:-2] for message in server.messages] == [
            b"0",
            b"1",
            b"2",
            b"3",
            b"4",
        ]


def test_transports_of_equal_next_hops_share_a_pool():
    with FakeNextHop(login=("joe", "secret")) as server:
        pool = new_pool()
        for password in ("secret", "secret"):
            hop = hop_of(server, username="joe", password=password)
            SmtpTransport([hop], pool).send(copy_of())
        assert server.connections == 1
        wrong = SmtpTransport([hop_of(server, username="joe", password="other")], pool)
        assert failure_of(wrong).startswith("451 4.7.0 ")


def test_a_connection_serves_only_so_many_messages():
    with FakeNextHop() as server:
        transport = transport_to(server, messages=2)
        for _ in range(5):
            transport.send(copy_of())
        assert [message.connection for message in server.messages] == [1, 1, 2, 2, 3]
        wait_for(lambda: server.transcripts[1][-1] == "QUIT")
        assert server.transcripts[0][-1] == "QUIT"
        assert server.transcripts[2][-1] != "QUIT"


def test_closing_the_pool_says_goodbye():
    with FakeNextHop() as server:
        pool = new_pool()
        SmtpTransport([hop_of(server)], pool).send(copy_of())
        pool.close()
        wait_for(lambda: server.closed_connections == 1)
        assert server.commands[-1] == "QUIT"


def test_a_connection_that_was_idle_for_too_long_is_not_kept(monkeypatch):
    monkeypatch.setattr(smtp, "IDLE_LIMIT_SECONDS", -1)
    with FakeNextHop() as server:
        transport = transport_to(server)
        transport.send(copy_of())
        wait_for(lambda: server.closed_connections == 1)
        transport.send(copy_of())
        assert server.connections == 2


def test_many_threads_share_the_connections():
    with FakeNextHop() as server:
        transport = transport_to(server)

        def work():
            for _ in range(10):
                transport.send(copy_of())

        threads = [threading.Thread(target=work, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(server.messages) == 60
        assert server.connections <= 6
        assert server.violations == []


def test_a_kept_connection_that_has_gone_is_replaced_quietly(caplog):
    with FakeNextHop() as server:
        transport = transport_to(server)
        transport.send(copy_of())
        server.hang_up()
        wait_for(lambda: server.closed_connections == 1)
        transport.send(copy_of())
        assert [message.connection for message in server.messages] == [1, 2]
    assert caplog.records == []


@pytest.mark.parametrize(
    "extra", [b"421 4.4.2 idle for too long\r\n", b"250 what?\r\n", b"2", b"garbage"]
)
def test_a_kept_connection_on_which_something_unasked_came_is_replaced(extra):
    said = Act(b"250 2.0.0 Ok\r\n" + extra)
    with FakeNextHop(at("DOT", said, connection=1)) as server:
        transport = transport_to(server)
        transport.send(copy_of())
        transport.send(copy_of())
        assert [message.connection for message in server.messages] == [1, 2]
        wait_for(lambda: server.closed_connections == 1)


@pytest.mark.parametrize(
    "act", [CLOSE, Act(b"421 4.3.2 shutting down\r\n", close=True), Act(b"421 4.3.2 bye\r\n")]
)
@pytest.mark.parametrize("features", [FEATURES, ()])
def test_a_kept_connection_that_ends_at_the_next_mail_is_replaced_once(act, features):
    with FakeNextHop(at("MAIL", act, connection=1, message=2), features=features) as server:
        transport = transport_to(server)
        transport.send(copy_of(b"first\r\n"))
        transport.send(copy_of(b"second\r\n"))
        assert [message.connection for message in server.messages] == [1, 2]
        assert server.messages[1].wire.endswith(b"second\r\n")


@pytest.mark.parametrize("stage", ["RCPT", "DATA"])
@pytest.mark.parametrize("act", [CLOSE, Act(b"421 4.3.2 shutting down\r\n", close=True)])
def test_a_kept_connection_that_ends_before_the_message_is_replaced(act, stage):
    with FakeNextHop(at(stage, act, connection=1, message=2)) as server:
        transport = transport_to(server)
        transport.send(copy_of())
        transport.send(copy_of())
        assert [message.connection for message in server.messages] == [1, 2]


def test_a_second_connection_that_ends_as_well_is_not_replaced():
    def script(moment):
        ends = moment.stage == "MAIL" and (moment.message == 2 or moment.connection > 1)
        return CLOSE if ends else None

    with FakeNextHop(script) as server:
        transport = transport_to(server)
        transport.send(copy_of())
        assert failure_of(transport).startswith("451 4.4.2 ")
        assert server.connections == 2
        assert len(server.messages) == 1


@pytest.mark.parametrize("act", [CLOSE, STALL, Act(b"garbage\r\n"), Act(b"250-half", close=True)])
def test_what_the_next_hop_may_have_taken_is_not_sent_again(act):
    with FakeNextHop(at("DOT", act, message=2)) as server:
        transport = transport_to(server, dot_timeout=0.3)
        transport.send(copy_of())
        assert failure_of(transport).startswith(("451 4.4.2 ", "451 4.5.0 "))
        assert server.connections == 1
        assert sum(line == "DATA" for line in server.commands) == 2


def test_a_kept_connection_that_ends_within_a_message_is_a_failure():
    with FakeNextHop(at("BODY", CLOSE, message=2), features=()) as server:
        transport = transport_to(server)
        transport.send(copy_of())
        heard = failure_of(transport, copy_of([b"x" * 998 + b"\r\n"] * 5000))
        assert heard.startswith("451 4.4.2 ")
        assert server.connections == 1


# Idle connections.


@pytest.fixture
def sweepers():
    """Gives the threads for idle connections that have begun since."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name == "idle" and t not in before]


@pytest.fixture
def soon(monkeypatch):
    """Connections are idle for too long at once."""
    monkeypatch.setattr(smtp, "IDLE_LIMIT_SECONDS", 0.1)


def test_a_connection_that_nobody_uses_ends_with_a_goodbye(soon, sweepers):
    with FakeNextHop() as server:
        transport_to(server).send(copy_of())
        wait_for(lambda: server.closed_connections == 1)
        assert server.commands[-1] == "QUIT"
        assert server.violations == []
    wait_for(lambda: not sweepers())


def test_one_thread_looks_after_all_idle_connections_and_ends_with_the_pool(sweepers):
    pool = new_pool()
    with FakeNextHop() as one, FakeNextHop() as other:
        for server in (one, other, one, other):
            SmtpTransport([hop_of(server)], pool).send(copy_of())
            assert len(sweepers()) == 1
        pool.close()
        assert sweepers() == []
        wait_for(lambda: one.closed_connections == other.closed_connections == 1)


def test_there_is_no_thread_where_nothing_is_kept(sweepers):
    with FakeNextHop() as server:
        transport_to(server, messages=1).send(copy_of())
        assert sweepers() == []


def test_messages_go_on_where_no_thread_can_be_had(monkeypatch, sweepers):
    def start(thread):
        raise RuntimeError("can't start new thread")

    with FakeNextHop() as server:
        pool = new_pool()
        connection = pool.take([hop_of(server)])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            pool.give_back(connection)
        assert sweepers() == []
        SmtpTransport([hop_of(server)], pool).send(copy_of())
        assert server.connections == 1
        assert len(sweepers()) == 1


def test_what_is_given_back_to_a_closed_pool_is_not_kept(sweepers):
    with FakeNextHop() as server:
        pool = new_pool()
        connection = pool.take([hop_of(server)])
        pool.close()
        pool.give_back(connection)
        wait_for(lambda: server.closed_connections == 1)
        assert server.commands[-1] == "QUIT"
        assert sweepers() == []


# Several next hops.


def transport_to_all(*servers, pool=None, **fields):
    return SmtpTransport([hop_of(server, **fields) for server in servers], pool or new_pool())


def gone():
    server = FakeNextHop()
    server.close()
    return server


def test_the_first_next_hop_is_preferred(caplog):
    with FakeNextHop() as first, FakeNextHop() as second:
        transport = transport_to_all(first, second)
        for _ in range(3):
            transport.send(copy_of())
        assert (len(first.messages), second.connections) == (3, 0)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("script", "fields"),
    [
        (at("GREETING", b"554 5.3.2 not now\r\n"), {}),
        (at("GREETING", CLOSE), {}),
        (at("GREETING", STALL), {"connect_timeout": 0.3}),
        (at("EHLO", CLOSE), {}),
        (at("STARTTLS", b"454 4.7.0 no\r\n"), {"tls": "starttls"}),
        (at("AUTH", b"535 5.7.8 no\r\n"), {"username": "joe", "password": "x"}),
    ],
)
def test_the_next_one_is_used_when_one_cannot_be_opened(script, fields, tls, caplog):
    features = {"tls": tls[0], "login": ("joe", "x")}
    with FakeNextHop(script, **features) as bad, FakeNextHop(**features) as good:
        fields = {"username": "joe", "password": "x", **fields}
        transport_to_all(bad, good, **fields).send(copy_of())
        assert len(good.messages) == 1
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        told = record.getMessage()
        assert told.startswith(f"next hop 127.0.0.1:{good.port} is used instead: next hop ")
        assert f"127.0.0.1:{bad.port}" in told


def test_one_that_could_not_be_opened_comes_last_for_a_while(monkeypatch):
    refuses = at("GREETING", b"554 5.3.2 not now\r\n")
    with FakeNextHop(refuses) as first, FakeNextHop() as second:
        pool = new_pool()
        transport = transport_to_all(first, second, pool=pool, messages=1)
        for _ in range(4):
            transport.send(copy_of())
        assert (first.connections, len(second.messages)) == (1, 4)
        # The other's failure brings it back sooner.
        first.script = lambda moment: None
        second.refuse_connections()
        transport.send(copy_of())
        transport.send(copy_of())
        assert len(first.messages) == 2


def test_after_that_while_the_first_is_tried_again(monkeypatch):
    monkeypatch.setattr(smtp, "AVOID_SECONDS", 0)
    refuses = at("GREETING", b"554 no\r\n", connection=1)
    with FakeNextHop(refuses) as first, FakeNextHop() as second:
        transport = transport_to_all(first, second, messages=1)
        transport.send(copy_of())
        transport.send(copy_of())
        assert (len(first.messages), len(second.messages)) == (1, 1)


def test_only_one_message_waits_to_see_whether_the_first_is_back(monkeypatch):
    monkeypatch.setattr(smtp, "AVOID_SECONDS", 0)
    asked, answers = threading.Event(), threading.Event()

    def script(moment):
        if moment.connection == 1:
            return CLOSE
        if moment.stage == "GREETING":
            asked.set()
            answers.wait(20)
        return None

    with FakeNextHop(script) as first, FakeNextHop() as second:
        transport = transport_to_all(first, second, connect_timeout=20)
        transport.send(copy_of())
        monkeypatch.setattr(smtp, "AVOID_SECONDS", 60)
        waiting = threading.Thread(target=transport.send, args=(copy_of(),), daemon=True)
        waiting.start()
        assert asked.wait(20)
        transport.send(copy_of())
        assert len(second.messages) == 2
        answers.set()
        waiting.join(20)
        transport.send(copy_of())
        assert (len(first.messages), len(second.messages)) == (2, 2)


def test_when_none_can_be_opened_the_first_is_named():
    first, second = gone(), gone()
    transport = transport_to_all(first, second)
    for _ in range(3):
        said = failure_of(transport)
        assert said == f"451 4.4.1 next hop 127.0.0.1:{first.port}: Connection refused"


def test_a_refused_recipient_is_no_reason_to_ask_another():
    refuses = at("RCPT", b"550 5.1.1 unknown\r\n")
    with FakeNextHop(refuses) as first, FakeNextHop() as second:
        assert failure_of(transport_to_all(first, second)).startswith("550 5.1.1 ")
        assert second.connections == 0


def test_a_connection_that_went_stale_is_replaced_by_one_to_the_next():
    with FakeNextHop(at("MAIL", CLOSE, message=2)) as first, FakeNextHop() as second:
        transport = transport_to_all(first, second)
        transport.send(copy_of())
        first.refuse_connections()
        transport.send(copy_of())
        assert (len(first.messages), len(second.messages)) == (1, 1)


def test_what_is_known_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr(smtp, "_AVOIDED_LIMIT", 10)
    pool, good = new_pool(), gone()
    for port in range(50):
        with pytest.raises(HandOffFailed):
            pool.take([NextHop("127.0.0.1", good.port, username=str(port)), hop_of(good)])
    assert len(pool._avoided) <= 10


def test_a_transport_is_called_by_all_its_next_hops():
    hops = [NextHop("a.example"), NextHop("::1", 587)]
    assert str(SmtpTransport(hops, new_pool())) == "a.example:25,[::1]:587"


# Several copies are offered before the first is sent.

OFFER = [
    copy_of(b"one\r\n", sender=b"a-1@example.org", recipients=(b"x@example.net", b"y@example.net")),
    copy_of(b"two\r\n", sender=b"a-2@example.org", recipients=(b"z@example.net",)),
]


@pytest.mark.parametrize("features", [FEATURES, ()])
def test_all_recipients_are_offered_before_the_first_message(features):
    with FakeNextHop(features=features) as server:
        said = []
        transport_to(server).send_all(OFFER, said.append)
        verbs = [line.partition(" ")[0] for line in server.commands[1:]]
        second = ["MAIL", "RCPT"]
        first = ["MAIL", "RCPT", "RCPT", "DATA"]
        assert verbs == [*second, "RSET", *first, *second, "DATA"]
        assert server.connections == 1
        assert [message.sender for message in server.messages] == [
            "a-1@example.org",
            "a-2@example.org",
        ]
        assert said == ["250 2.0.0 Ok: queued as FAKE1", "250 2.0.0 Ok: queued as FAKE2"]
        assert server.violations == []


def test_offering_takes_no_round_trip_of_its_own():
    with FakeNextHop() as server:
        transport_to(server).send_all(OFFER, lambda said: None)
        assert [group[-1] for group in server.groups[:1]] == ["DATA"]


@pytest.mark.parametrize("features", [FEATURES, ()])
@pytest.mark.parametrize("address", ["x@example.net", "y@example.net", "z@example.net"])
def test_a_recipient_that_is_refused_keeps_all_copies_from_being_sent(address, features):
    script = at("RCPT", b"550 5.1.1 unknown\r\n", argument=f"TO:<{address}>")
    with FakeNextHop(script, features=features) as server:
        said = []
        with pytest.raises(HandOffFailed) as caught:
            transport_to(server).send_all(OFFER, said.append)
        assert str(caught.value.reply) == f"550 5.1.1 <{address}>: unknown"
        assert said == server.messages == []


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "BODY", "DOT"])
def test_what_was_taken_before_a_failure_is_told(stage):
    def script(moment):
        return CLOSE if moment.stage == stage and moment.message == 2 else None

    with FakeNextHop(script) as server:
        said = []
        with pytest.raises(HandOffFailed) as caught:
            transport_to(server).send_all(OFFER, said.append)
        assert str(caught.value.reply).startswith("451 4.4.2 ")
        assert len(said) == len(server.messages) == server.connections == 1


def test_copies_go_over_a_new_connection_where_the_kept_one_has_gone():
    with FakeNextHop(at("MAIL", CLOSE, connection=1, message=2)) as server:
        transport = transport_to(server)
        transport.send(copy_of())
        transport.send_all(OFFER, lambda said: None)
        assert [message.connection for message in server.messages] == [1, 2, 2]


# To those that are not refused.


@pytest.mark.parametrize("features", [FEATURES, ()])
def test_who_is_refused_is_left_out_where_nobody_waits(features):
    script = at("RCPT", b"550 5.1.1 unknown\r\n", argument="TO:<x@example.net>")
    with FakeNextHop(script, features=features) as server:
        said, refused = transport_to(server).send_to_some(OFFER[0])
        assert said == "250 2.0.0 Ok: queued as FAKE1"
        assert {a: str(reply) for a, reply in refused.items()} == {
            b"x@example.net": "550 5.1.1 <x@example.net>: unknown"
        }
        assert [message.recipients for message in server.messages] == [["y@example.net"]]
        assert server.violations == []


def test_where_all_are_refused_nothing_is_given_and_the_connection_is_kept():
    with FakeNextHop(at("RCPT", b"450 4.2.1 later\r\n")) as server:
        transport = transport_to(server)
        for _ in range(2):
            said, refused = transport.send_to_some(OFFER[0])
            assert said == ""
            assert set(refused) == set(OFFER[0].recipients)
        assert server.messages == []
        assert server.connections == 1
        assert "DATA" not in server.commands


# Refusals.


@pytest.mark.parametrize("features", [FEATURES, ()])
@pytest.mark.parametrize(
    ("stage", "said", "heard"),
    [
        ("MAIL", b"550 5.7.1 not you\r\n", "550 5.7.1 <a@example.org>: not you"),
        ("MAIL", b"451 try later\r\n", "451 4.0.0 <a@example.org>: try later"),
        ("MAIL", b"421 4.3.2 going\r\n", "451 4.3.2 <a@example.org>: going"),
        ("MAIL", b"354 what\r\n", "451 4.0.0 <a@example.org>: what"),
        ("RCPT", b"550 5.1.1 unknown\r\n", "550 5.1.1 <x@example.net>: unknown"),
        (
            "RCPT",
            b"550-5.1.1 unknown\r\n550 5.1.1 really\r\n",
            "550 5.1.1 <x@example.net>: unknown 5.1.1 really",
        ),
        ("RCPT", b"452 4.2.2 full\r\n", "452 4.2.2 <x@example.net>: full"),
        ("RCPT", b"421 4.3.2 going\r\n", "451 4.3.2 <x@example.net>: going"),
        ("DATA", b"554 5.5.1 no\r\n", "554 5.5.1 no"),
        ("DATA", b"250 yes?\r\n", "451 4.0.0 yes?"),
        ("DOT", b"554 5.7.1 spam\r\n", "554 5.7.1 spam"),
        ("DOT", b"452 4.3.1 disk full\r\n", "452 4.3.1 disk full"),
        ("DOT", b"354 more?\r\n", "451 4.0.0 more?"),
    ],
)
def test_the_client_hears_what_the_next_hop_said(stage, said, heard, features):
    with FakeNextHop(at(stage, said), features=features) as server:
        assert failure_of(transport_to(server)) == heard
        wait_for(lambda: server.closed_connections == 1)
        assert server.messages == []


@pytest.mark.parametrize("features", [FEATURES, ()])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_when_one_recipient_is_refused_nobody_gets_anything(number, features):
    recipients = (b"one@example.net", b"two@example.net", b"three@example.net")
    bad = recipients[number].decode()
    script = at("RCPT", b"550 5.1.1 unknown\r\n", argument=f"TO:<{bad}>")
    with FakeNextHop(script, features=features) as server:
        heard = failure_of(transport_to(server), copy_of(recipients=recipients))
        assert heard == f"550 5.1.1 <{bad}>: unknown"
        wait_for(lambda: server.closed_connections == 1)
        assert server.messages == []


def test_after_a_refusal_the_next_message_gets_a_connection_of_its_own():
    with FakeNextHop(at("RCPT", b"550 5.1.1 unknown\r\n", connection=1)) as server:
        transport = transport_to(server)
        assert failure_of(transport).startswith("550 ")
        transport.send(copy_of(b"second\r\n"))
        assert [message.connection for message in server.messages] == [2]


def test_a_refusal_in_the_middle_of_a_message_is_heard():
    script = at("BODY", Act(b"552 5.3.4 too big\r\n", close=True))
    with FakeNextHop(script) as server:
        heard = failure_of(transport_to(server), copy_of([b"x" * 998 + b"\r\n"] * 20_000))
        assert heard == "552 5.3.4 too big"
        assert server.messages == []


@pytest.mark.parametrize(
    ("stage", "said"),
    [("DATA", b"354 go on\r\n250 2.0.0 more\r\n"), ("BODY", b"250 2.0.0 more\r\n")],
)
def test_a_reply_too_many_is_not_taken_for_that_to_the_dot(stage, said):
    lies = iter([Act(said)])

    def script(moment):
        if moment.stage == "DOT":
            return Act(b"554 5.6.0 no\r\n")
        return next(lies, None) if moment.stage == stage else None

    # More than systems keep for a connection, in blocks: most has arrived before the last one goes.
    copy = copy_of([b"x" * 998 + b"\r\n"] * 20_000)
    copy.content.descriptor()
    with FakeNextHop(script) as server:
        heard = failure_of(transport_to(server), copy)
        assert heard.startswith("451 4.4.2 ")
        assert server.messages == []


@pytest.mark.parametrize(
    "address",
    [
        b"x@example.net>\r\nRCPT TO:<all@example.net",
        b"x\n@example.net",
        b"x\r@example.net",
        b"x@example.net SIZE=1",
        b"x y@example.net",
        b"<x@example.net>",
        b"x>@example.net",
        b"x@example.net\0",
        b"x\x7f@example.net",
        b"\tx@example.net",
        b'"x\r\n"@example.net',
        b'"x"@example.net> SIZE=1',
        b'"x y"',
    ],
)
def test_an_address_that_could_leave_its_brackets_is_never_sent(address):
    with FakeNextHop() as server:
        for copy in (copy_of(sender=address), copy_of(recipients=(b"y@example.net", address))):
            heard = failure_of(transport_to(server), copy)
            assert heard.startswith("451 4.3.5 not an address: ")
            assert heard.isprintable()
        assert server.groups == []
        assert {line.split()[0].upper() for line in server.commands} <= {"EHLO"}


# A next hop that cannot be had.


def test_a_next_hop_that_is_down_is_a_reason_to_try_later():
    server = FakeNextHop()
    server.close()
    heard = failure_of(transport_to(server))
    assert heard == f"451 4.4.1 next hop 127.0.0.1:{server.port}: Connection refused"


@pytest.mark.parametrize(
    ("host", "port"),
    [("a..b", 25), ("x" * 300, 25), ("-", 25), ("\x00", 25), ("127.0.0.1", 0), ("127.0.0.1", -1)],
)
def test_a_next_hop_that_has_no_address_is_a_reason_to_try_later(host, port):
    transport = SmtpTransport([NextHop(host, port, connect_timeout=1)], new_pool())
    heard = failure_of(transport)
    assert heard.startswith("451 4.4.1 next hop ")
    assert heard.isprintable()


@pytest.mark.parametrize(
    ("stage", "act", "words"),
    [
        ("GREETING", Act(b"554 5.7.1 not here\r\n"), "says: 554 5.7.1 not here"),
        ("GREETING", Act(b"421 busy\r\n", close=True), "says: 421 busy"),
        ("GREETING", Act(b"250 hello\r\n"), "says: 250 hello"),
        ("GREETING", Act(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True), ""),
        ("GREETING", Act(b"\xff\0\r\n\x1b[31m\r\n", close=True), ""),
        ("GREETING", Act(b"220-" + b"x" * 20_000 + b"\r\n", close=True), ""),
        ("GREETING", CLOSE, "closed"),
        ("GREETING", STALL, ""),
        ("EHLO", CLOSE, "closed"),
        ("EHLO", STALL, ""),
    ],
)
def test_a_next_hop_that_does_not_greet_properly_is_a_reason_to_try_later(stage, act, words):
    with FakeNextHop(at(stage, act)) as server:
        begun = time.monotonic()
        heard = failure_of(transport_to(server, connect_timeout=0.3, reply_timeout=0.3))
        assert time.monotonic() - begun < 3
    assert heard.startswith(f"451 4.4.1 next hop 127.0.0.1:{server.port}")
    assert words in heard
    assert heard.isprintable()


@pytest.mark.parametrize("features", [FEATURES, ()])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_next_hop_that_stalls_is_given_up(stage, features):
    with FakeNextHop(at(stage, STALL), features=features) as server:
        begun = time.monotonic()
        heard = failure_of(transport_to(server, reply_timeout=0.3, dot_timeout=0.3))
        assert time.monotonic() - begun < 3
        assert server.messages == [] or stage == "DOT"
    assert heard.startswith("451 4.4.2 next hop ")
    assert "does not answer in time" in heard


@pytest.mark.parametrize("stage", ["MAIL", "DOT"])
def test_a_reply_that_drips_does_not_stretch_the_time(stage):
    with FakeNextHop(at(stage, Act(b"2", drip=True))) as server:
        begun = time.monotonic()
        heard = failure_of(transport_to(server, reply_timeout=0.3, dot_timeout=0.3))
        assert time.monotonic() - begun < 3
    assert heard.startswith("451 4.4.2 ")


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "DOT"])
@pytest.mark.parametrize(
    "octets",
    [b"250 bare\n", b"what?\r\n", b"250-a\r\n550 b\r\n", b"250 " + b"x" * 5000, b"\0\0\0\r\n"],
)
def test_a_next_hop_that_talks_nonsense_is_given_up(stage, octets):
    with FakeNextHop(at(stage, octets)) as server:
        assert failure_of(transport_to(server)).startswith("451 4.5.0 next hop ")
        wait_for(lambda: server.closed_connections == 1)


# Login and TLS.


def test_a_login_is_made_once_for_each_connection():
    with FakeNextHop(login=("joe", "secret")) as server:
        transport = transport_to(server, username="joe", password="secret")
        transport.send(copy_of())
        transport.send(copy_of())
        assert len(server.messages) == 2
        assert sum(line.startswith("AUTH") for line in server.commands) == 1


@pytest.mark.parametrize(
    ("login", "heard"),
    [(("joe", "other"), "451 4.7.0 next hop "), (None, "451 4.7.4 next hop ")],
)
def test_a_refused_login_is_a_reason_to_try_later_and_shows_no_secret(login, heard):
    with FakeNextHop(login=login) as server:
        said = failure_of(transport_to(server, username="joe", password="secret"))
        assert said.startswith(heard)
        assert "secret" not in said
        assert server.groups == []


def test_a_password_beyond_ascii_shows_no_secret_either():
    with FakeNextHop(login=("joe", "x")) as server:
        said = failure_of(transport_to(server, username="joe", password="geheim\u00e4"))
    assert said.startswith("451 4.")
    assert "geheim" not in said


def test_tls_is_started_and_the_connection_kept(tls):
    context, cafile = tls
    with FakeNextHop(tls=context, login=("joe", "secret")) as server:
        transport = transport_to(
            server, tls="starttls", cafile=cafile, username="joe", password="secret"
        )
        for _ in range(3):
            transport.send(copy_of([b"x" * 998 + b"\r\n"] * 2000))
        assert server.connections == 1
        assert len(server.messages) == 3
        assert server.transcripts[0][:3] == ["ehlo localhost", "STARTTLS", "ehlo localhost"]


def test_on_this_machine_a_certificate_need_not_be_known(tls):
    with FakeNextHop(tls=tls[0]) as server:
        transport_to(server, tls="starttls").send(copy_of())
        assert len(server.messages) == 1


def test_a_certificate_of_another_is_refused_when_a_file_says_whose_it_must_be(tls, tmp_path):
    _, other = server_context(tmp_path)
    with FakeNextHop(tls=tls[0]) as server:
        said = failure_of(transport_to(server, tls="starttls", cafile=other))
        assert said == (
            "451 4.7.5 certificate of 127.0.0.1 is signed by an unknown authority (SMTPSSL_CAFILE)"
        )
        assert server.groups == []


def test_a_certificate_for_another_name_is_refused(tmp_path):
    context, cafile = server_context(tmp_path, "127.0.0.2")
    with FakeNextHop(tls=context) as server:
        said = failure_of(transport_to(server, tls="starttls", cafile=cafile))
        assert said == "451 4.7.5 certificate of 127.0.0.1 is for 127.0.0.2"
        assert server.groups == []


def test_tls_that_is_not_offered_is_never_done_without():
    with FakeNextHop() as server:
        assert failure_of(transport_to(server, tls="starttls")).startswith("451 4.7.4 next hop ")
        assert server.groups == []


@pytest.mark.parametrize("files", [{"cafile": "/nonexistent/ca"}, {"certfile": "/nonexistent/c"}])
def test_files_of_tls_that_are_missing_are_a_reason_to_try_later(tls, files):
    with FakeNextHop(tls=tls[0]) as server:
        said = failure_of(transport_to(server, tls="starttls", **files))
        assert said.startswith("451 4.3.5 ")
        assert "/nonexistent" not in said


# What a next hop is called.


@pytest.mark.parametrize(
    ("host", "shown", "loopback"),
    [
        ("mail.example", "mail.example:25", False),
        ("localhost", "localhost:25", True),
        ("127.0.0.5", "127.0.0.5:25", True),
        ("::1", "[::1]:25", True),
        ("2001:db8::1", "[2001:db8::1]:25", False),
    ],
)
def test_a_next_hop_is_called_by_host_and_port(host, shown, loopback):
    assert str(NextHop(host)) == shown
    assert NextHop(host).loopback is loopback


def test_a_next_hop_does_not_show_its_password():
    assert "secret" not in repr(NextHop("mail.example", password="secret"))
