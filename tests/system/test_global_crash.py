"""Global mode: whatever process dies at whatever moment, service is back within a second, and no
message is lost after its 250 or delivered twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import dialogue, logged_in, plain, submit
from globalchild import (
    BACK_SECONDS,
    STAGES,
    Crew,
    doomed,
    finish,
    is_back,
    kill,
    message,
    only_child,
    processor_seconds,
    sends,
    standing_still,
    state,
    with_limits,
)
from hops import RawHop
from running import Daemon, to_program, wait_until
from village import Village, Villager, worker_of

pytestmark = pytest.mark.root

TO = "x@example.net"
MESSAGE = b"Subject: x\r\n\r\nx\r\n.\r\n"
# As if each of the processes that die had lived for long: it is replaced at once.
LONG_LIVED = {"privsep.plan._QUICK_DEATH_SECONDS": 0.0}


@pytest.fixture(scope="module")
def lasting(village_once: Village, village_hop_once: RawHop) -> Iterator[Daemon]:
    """A daemon for many crashes."""
    village_once.reset(village_hop_once.port)
    with with_limits(village_once, LONG_LIVED).daemon() as daemon:
        yield daemon


@pytest.fixture
def daemon(lasting: Daemon, village: Village) -> Daemon:
    lasting.forget()
    return lasting


def log_in(daemon: Daemon, person: Villager) -> str:
    """The code of the reply to a login."""
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        return talk.say(f"AUTH PLAIN {plain(person.name, person.password)}")[:3]


def expected(process: str, stage: str) -> tuple[str, int]:
    """What the client hears in the end, and how often the message arrives."""
    place = STAGES.index(stage)
    if stage == "reply":
        return "250", 1
    match process:
        case "server":
            return "", int(stage == "dot")
        case "worker" if stage == "dot":
            # The next hop has all of it and takes it, though nobody waits for its answer.
            return "451", 1
        case "auth" if stage == "challenge":
            return "454", 0
    assert place < STAGES.index("reply")
    return "250", 1


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("process", ["server", "auth", "worker"])
def test_a_process_killed_at_any_stage_of_a_message(process, stage, daemon, village, village_hop):
    crew = Crew(daemon, village)
    bobby, chloe, _ = village.people
    assert sends(daemon, bobby, "before@example.net")
    recipient = f"{process}-{stage.lower()}@example.net"
    steps = message(daemon, bobby, recipient, village_hop)
    while next(steps) != stage:
        pass
    worker = worker_of(daemon, bobby)
    victim = worker if process == "worker" else only_child(daemon, process)
    begun = time.monotonic()
    kill(victim)
    said = finish(steps)
    is_back(daemon, (bobby, chloe), village_hop, begun)

    reply, count = expected(process, stage)
    assert said.startswith(reply)
    assert bool(said) == bool(reply)
    wait_until(lambda: len(village_hop.for_recipient(recipient)) == count, "the message", 2)
    wait_until(crew.is_whole, "a family without the dead", 1)
    assert victim not in crew.alive()
    assert " rejected " not in daemon.text()
    assert "Traceback" not in daemon.text()


@pytest.mark.parametrize("process", ["server", "auth", "worker"])
def test_a_process_that_has_just_been_started_is_replaced_within_a_second(
    process, village, village_hop
):
    """With the pause that follows a quick death."""
    bobby, chloe, _ = village.people
    with with_limits(village).daemon() as daemon:
        crew = Crew(daemon, village)
        assert sends(daemon, bobby, TO)
        begun = time.monotonic()
        kill(only_child(daemon, process))
        is_back(daemon, (bobby, chloe), village_hop, begun)
        wait_until(crew.is_whole, "a family without the dead", 1)
    assert not crew.alive()


def test_a_client_in_the_backlog_of_a_dead_server_is_served_by_the_next(daemon):
    victim = only_child(daemon, "server")
    with standing_still(victim), dialogue(daemon.port, greeted=False) as talk:
        begun = time.monotonic()
        kill(victim)
        assert talk.reply().startswith("220 ")
        assert time.monotonic() - begun < BACK_SECONDS


def test_a_login_that_auth_has_not_read_when_it_dies_is_judged_by_the_next(daemon, village):
    bobby = village.people[0]
    victim = only_child(daemon, "auth")
    with dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        with standing_still(victim):
            talk.send(b"AUTH PLAIN %s\r\n" % plain(bobby.name, bobby.password).encode())
            time.sleep(0.1)  # Nobody can tell when the request lies in auth's queue.
            kill(victim)
            assert talk.reply().startswith("235 ")


def test_auth_dying_within_twenty_logins_rejects_nobody(daemon, village, village_hop):
    bobby, chloe, _ = village.people
    victim = only_child(daemon, "auth")
    with ThreadPoolExecutor(20) as pool:
        with standing_still(victim):
            said = [pool.submit(log_in, daemon, bobby) for _ in range(20)]
            wait_until(lambda: daemon.text().count("C: AUTH") == 20, "twenty logins")
            begun = time.monotonic()
            kill(victim)
        is_back(daemon, (bobby, chloe), village_hop, begun)
        assert {reply.result(10) for reply in said} <= {"235", "454"}
    assert " rejected " not in daemon.text()
    assert "Traceback" not in daemon.text()


def test_logins_after_the_death_of_auth_wait_for_the_next(village):
    """Also those that first try channels to the dead one, of which there are several."""
    bobby = village.people[0]
    with with_limits(village).daemon() as daemon, ThreadPoolExecutor(4) as pool:
        with standing_still(only_child(daemon, "auth")):
            several = [pool.submit(log_in, daemon, bobby) for _ in range(4)]
            wait_until(lambda: daemon.text().count("C: AUTH") == 4, "four logins")
            time.sleep(0.1)  # Nobody can tell when each has a channel of its own.
        assert {reply.result(10) for reply in several} == {"235"}
        kill(only_child(daemon, "auth"))
        assert log_in(daemon, bobby) == "235"


def test_without_auth_a_challenge_fails_for_a_while(village):
    """454 as for any login that cannot be judged; and no defect is logged."""
    slow = {"privsep.plan._PAUSE_SECONDS": 1.0, "privsep.authchannels._AUTH_START_SECONDS": 0.1}
    with doomed(with_limits(village, slow)) as daemon, dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        kill(only_child(daemon, "auth"))
        assert talk.say("AUTH CRAM-MD5").startswith("454 ")
        assert talk.say("NOOP").startswith("250 ")
        assert "Traceback" not in daemon.text()


def test_the_next_message_of_a_session_whose_idle_worker_has_died_is_delivered(
    daemon, village, village_hop
):
    bobby = village.people[0]
    with logged_in(daemon.port, bobby.name, bobby.password) as talk:
        for number in range(3):
            recipient = f"{number}@example.net"
            talk.envelope(recipient)
            assert talk.data(MESSAGE).startswith("250")
            assert len(village_hop.for_recipient(recipient)) == 1
            kill(worker_of(daemon, bobby) or 0)


def test_a_message_while_its_idle_worker_is_dying_finds_the_next(daemon, village):
    """It may be taken by the dying one, which is said; else somebody takes it at once."""
    bobby = village.people[0]
    with logged_in(daemon.port, bobby.name, bobby.password) as talk:
        for _ in range(15):
            talk.envelope(TO)
            assert talk.data(MESSAGE)
            worker = worker_of(daemon, bobby)
            talk.envelope(TO)
            if worker is not None:
                os.kill(worker, signal.SIGKILL)
            said = talk.data(MESSAGE)
            assert said.startswith("250") or "has died" in said


def test_a_message_that_a_worker_has_not_read_when_it_dies_is_delivered_once(
    daemon, village, village_hop
):
    bobby = village.people[0]
    with logged_in(daemon.port, bobby.name, bobby.password) as talk:
        talk.envelope("first@example.net")
        assert talk.data(MESSAGE).startswith("250")
        worker = worker_of(daemon, bobby)
        assert worker
        with standing_still(worker):
            talk.envelope(TO)
            assert talk.say("DATA").startswith("354")
            talk.send(MESSAGE)
            time.sleep(0.1)  # Nobody can tell when the message lies in the worker's queue.
            kill(worker)
            assert talk.reply().startswith("250")
    assert len(village_hop.for_recipient(TO)) == 1


SILENCE = {"privsep.remote.SILENCE_LIMIT_SECONDS": 0.6, "privsep.worker.HEARTBEAT_SECONDS": 0.2}
# A worker that had nothing to do first looks at the clock when that has been so for long.
SOON_IDLE = {"worker_idle": 0.3}


def test_a_worker_that_stands_still_with_a_message_is_replaced(village, village_hop):
    bobby, chloe, _ = village.people
    with with_limits(village, SILENCE).daemon() as daemon:
        crew = Crew(daemon, village)
        assert sends(daemon, bobby, TO)
        worker = worker_of(daemon, bobby)
        assert worker
        with standing_still(worker):
            begun = time.monotonic()
            said = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
            assert said.startswith("451 4.3.0 ")
            assert 0.5 < time.monotonic() - begun < 2
            is_back(daemon, (bobby, chloe), village_hop, time.monotonic())
        assert worker_of(daemon, bobby) not in (None, worker)
        wait_until(crew.is_whole, "a family without the dead", 1)
        assert daemon.says("does not answer and is killed", f"pid {worker}")
    assert len(village_hop.for_recipient(TO)) == 1


def test_a_worker_that_waits_for_the_next_hop_is_not_taken_for_dead(village, village_hop):
    """Nothing but the next hop's own limits ends that."""
    bobby = village.people[0]
    patient = with_limits(village, SILENCE, mode=SOON_IDLE)
    with patient.daemon() as daemon, ThreadPoolExecutor() as pool:
        village_hop.may_answer.clear()
        login = {"login": bobby.name, "password": bobby.password}
        reply = pool.submit(submit, daemon.port, TO, **login)
        assert village_hop.data_complete.wait(5)
        time.sleep(1.5)  # More than twice the limit.
        assert not reply.done()
        village_hop.may_answer.set()
        assert reply.result(5).startswith("250")
    assert len(village_hop.messages()) == 1


def test_a_server_that_dies_again_and_again_is_not_replaced_in_a_hurry(village, village_hop):
    """Pauses of 0.05, 0.1, 0.2 and from then on 0.4 seconds."""
    bobby, chloe, _ = village.people
    pauses = {
        "privsep.plan._PAUSE_SECONDS": 0.05,
        "privsep.plan._PAUSE_LIMIT_SECONDS": 0.4,
    }
    with with_limits(village, pauses).daemon() as daemon:
        crew = Crew(daemon, village)
        begun, used = time.monotonic(), processor_seconds(daemon.pid)
        for _ in range(8):
            kill(only_child(daemon, "server"))
        assert time.monotonic() - begun > 0.05 + 0.1 + 0.2 + 4 * 0.4
        is_back(daemon, (bobby, chloe), village_hop, time.monotonic() + 0.4)
        assert daemon.text().count("killed by SIGKILL") == 8
        assert processor_seconds(daemon.pid) - used < 0.5
        wait_until(crew.is_whole, "a family without the dead", 1)


def test_nobody_outlives_the_monitor(village, village_hop):
    """Not a worker that waits for the next hop, not one in an endless loop of its user's."""
    bobby, chloe, diana = village.people
    chloe.configure("while True: pass")
    village_hop.may_answer.clear()
    with doomed(with_limits(village)) as daemon, ThreadPoolExecutor() as pool:
        crew = Crew(daemon, village)
        assert log_in(daemon, diana) == "235"
        for person in (bobby, chloe):
            pool.submit(sends, daemon, person, TO)
            wait_until(lambda person=person: worker_of(daemon, person), "the worker")
        assert village_hop.data_complete.wait(5)
        assert len(crew.alive()) == 5
        begun = time.monotonic()
        daemon.process.kill()
        daemon.process.wait()
        left = begun + BACK_SECONDS - time.monotonic()
        wait_until(lambda: not crew.alive(), "the end of all", left)


def test_a_monitor_that_stands_still_costs_no_message_of_a_session_with_a_worker(
    daemon, village, village_hop
):
    """It is in the way of nothing but logins and first messages, and goes on where it was."""
    bobby, chloe, _ = village.people
    with logged_in(daemon.port, bobby.name, bobby.password) as talk:
        talk.envelope("first@example.net")
        assert talk.data(MESSAGE).startswith("250")
        with standing_still(daemon.pid):
            talk.envelope(TO)
            assert talk.data(MESSAGE).startswith("250")
    is_back(daemon, (bobby, chloe), village_hop, time.monotonic())


def test_a_program_of_a_worker_that_is_killed_is_not_left_alone(daemon, village, tmp_path):
    bobby = village.people[0]
    program = bobby.write("hangs", "#!/bin/sh\necho $$ > ~/.tmda/pid\nexec sleep 20\n", 0o700)
    bobby.configure(to_program(program))
    pid_file = bobby.home.tmda / "pid"
    with ThreadPoolExecutor() as pool:
        pool.submit(sends, daemon, bobby, TO)
        pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the program"))
        try:
            kill(worker_of(daemon, bobby) or 0)
            # Whoever adopts orphans here may reap them late.
            wait_until(lambda: state(pid) in ("", "Z"), "its end", BACK_SECONDS)
        finally:
            if state(pid):
                os.kill(pid, signal.SIGKILL)
