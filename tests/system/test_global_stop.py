"""Global mode: an orderly end finishes what is under way, in all processes, and in bounded time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import dialogue, logged_in, submit
from globalchild import (
    STAGES,
    Crew,
    finish,
    kill,
    message,
    only_child,
    processor_seconds,
    sends,
    standing_still,
    with_limits,
)
from running import HOST, Daemon, ending, environment, wait_until
from village import children, worker_of

pytestmark = pytest.mark.root

TO = "x@example.net"
MESSAGE = b"Subject: x\r\n\r\nx\r\n.\r\n"
GOODBYE = "421 4.3.2 The service is shutting down"
# So that the test of what does not end takes a second and not half a minute.
SHORT = {"stop_timeout": 0.6}
SHORT_GRACE = {"globalmode._STOP_GRACE_SECONDS": 0.4}


def refuses(daemon: Daemon) -> bool:
    """Whether no new client gets through."""
    try:
        socket.create_connection((HOST, daemon.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # The port was closed in this very moment.
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_finishes_messages_and_parts_from_all_others(number, village, village_hop):
    """TO-19: sessions at every stage of a message."""
    bobby, chloe, _ = village.people
    with with_limits(village).daemon() as daemon:
        crew = Crew(daemon, village)
        assert sends(daemon, chloe, TO)
        sessions = {}
        for stage in STAGES:
            # The last one at the next hop is at "dot": it holds all answers back.
            if stage not in ("dot", "reply"):
                sessions[stage] = message(daemon, bobby, f"{stage}@example.net", village_hop)
                assert stage in sessions[stage]
        sessions["dot"] = message(daemon, bobby, "dot@example.net", village_hop)
        assert "dot" in sessions["dot"]
        daemon.process.send_signal(number)
        wait_until(lambda: refuses(daemon), "the port to close", 2)
        assert daemon.process.poll() is None

        said = {stage: finish(steps) for stage, steps in sessions.items()}
        under_way = ("DATA", "body", "dot")
        assert said == {x: "250" if x in under_way else GOODBYE for x in said}
        begun = time.monotonic()
        assert daemon.process.wait(5) == 0
        assert time.monotonic() - begun < 2
        assert not crew.alive()
    assert {x.recipients[0] for x in village_hop.messages()} == {
        *(f"{stage}@example.net" for stage in under_way),
        TO,
    }


def test_an_idle_session_hears_of_the_end_after_its_message(village, village_hop):
    bobby = village.people[0]
    with with_limits(village).daemon() as daemon:
        steps = message(daemon, bobby, TO, village_hop)
        assert "reply" in steps
        with logged_in(daemon.port, bobby.name, bobby.password) as talk:
            talk.envelope(TO)
            assert talk.data(MESSAGE).startswith("250")
            daemon.process.send_signal(signal.SIGTERM)
            assert talk.reply() == GOODBYE
            assert talk.reply() == ""


def test_an_idle_daemon_with_workers_ends_at_once(village):
    with with_limits(village).daemon() as daemon:
        crew = Crew(daemon, village)
        for person in village.people:
            assert sends(daemon, person, TO)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 2
        assert not crew.alive()


def test_systemd_s_sigterm_to_all_processes_stops_no_message(village, village_hop):
    """KillMode=control-group; and a second time while the end is under way."""
    bobby, chloe, _ = village.people
    with with_limits(village).daemon() as daemon:
        crew = Crew(daemon, village)
        coming = message(daemon, chloe, "coming@example.net", village_hop)
        assert "body" in coming
        leaving = message(daemon, bobby, "leaving@example.net", village_hop)
        assert "dot" in leaving
        for _ in range(2):
            for pid in (daemon.pid, *children(daemon.pid)):
                os.kill(pid, signal.SIGTERM)
            wait_until(lambda: refuses(daemon), "the port to close", 2)
        assert [finish(leaving), finish(coming)] == ["250", "250"]
        assert daemon.process.wait(5) == 0
        assert not crew.alive()
    assert len(village_hop.messages()) == 2


def test_signals_to_the_children_alone_change_nothing(village, village_hop):
    bobby = village.people[0]
    with with_limits(village).daemon() as daemon:
        assert sends(daemon, bobby, "first@example.net")
        before = children(daemon.pid)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            for pid in before:
                os.kill(pid, number)
        assert sends(daemon, bobby, TO)
        assert children(daemon.pid) == before


def test_impatience_changes_nothing(village, village_hop):
    """Several signals, of both kinds, some of them at the very end."""
    bobby = village.people[0]
    with with_limits(village).daemon() as daemon:
        steps = message(daemon, bobby, TO, village_hop)
        assert "dot" in steps
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            daemon.process.send_signal(number)
        wait_until(lambda: refuses(daemon), "the port to close", 2)
        assert finish(steps) == "250"
        deadline = time.monotonic() + 5
        while daemon.process.poll() is None and time.monotonic() < deadline:
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(1) == 0
    assert len(village_hop.messages()) == 1


def test_a_stuck_next_hop_does_not_hold_up_the_end(village, village_hop):
    bobby = village.people[0]
    short = with_limits(village, SHORT_GRACE, SHORT)
    with short.daemon() as daemon, ThreadPoolExecutor() as pool:
        crew = Crew(daemon, village)
        village_hop.may_answer.clear()
        login = {"login": bobby.name, "password": bobby.password}
        said = pool.submit(submit, daemon.port, TO, **login)
        assert village_hop.data_complete.wait(5)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert 0.5 < time.monotonic() - begun < 3
        assert not crew.alive()
        assert said.result(1) == ""
        village_hop.may_answer.set()


@pytest.mark.parametrize("name", ["server", "auth", "worker"])
def test_a_process_that_stands_still_does_not_hold_up_the_end(name, village):
    bobby = village.people[0]
    with with_limits(village, SHORT_GRACE, SHORT).daemon() as daemon:
        crew = Crew(daemon, village)
        assert sends(daemon, bobby, TO)
        with standing_still(only_child(daemon, name)):
            begun = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - begun < 3
            assert not crew.alive()


def test_an_endless_loop_of_a_user_does_not_hold_up_the_end(village):
    bobby = village.people[0]
    bobby.configure("while True: pass")
    short = with_limits(village, SHORT_GRACE, SHORT)
    with short.daemon() as daemon, ThreadPoolExecutor() as pool:
        crew = Crew(daemon, village)
        pool.submit(sends, daemon, bobby, TO)
        wait_until(lambda: worker_of(daemon, bobby), "the worker")
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 3
        assert not crew.alive()


def test_a_worker_finishes_though_the_server_has_died_before_the_end(village, village_hop):
    """And while it does, the monitor has nothing to do and does nothing."""
    bobby = village.people[0]
    with with_limits(village).daemon() as daemon:
        crew = Crew(daemon, village)
        steps = message(daemon, bobby, TO, village_hop)
        assert "dot" in steps
        kill(only_child(daemon, "server"))
        only_child(daemon, "server")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not children(daemon.pid, "auth"), "the end of auth", 2)
        used = processor_seconds(daemon.pid)
        time.sleep(0.5)
        busy = processor_seconds(daemon.pid) - used
        assert finish(steps) == ""
        assert daemon.process.wait(5) == 0
        assert not crew.alive()
    assert len(village_hop.messages()) == 1
    assert busy < 0.1


def test_the_end_comes_while_there_is_no_server(village):
    slow = {"privsep.plan._PAUSE_SECONDS": 5.0}
    with with_limits(village, slow).daemon() as daemon:
        crew = Crew(daemon, village)
        assert sends(daemon, village.people[0], TO)
        kill(only_child(daemon, "server"))
        wait_until(lambda: not children(daemon.pid, "server"), "the burial", 1)
        begun = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begun < 2
        assert not crew.alive()


def test_the_end_comes_while_logins_are_judged(village):
    """An unanswered login is cut off or judged, never rejected."""
    with with_limits(village, SHORT_GRACE, SHORT).daemon() as daemon, dialogue(daemon.port) as talk:
        talk.say("EHLO client.example")
        with standing_still(only_child(daemon, "auth")):
            talk.send(b"AUTH CRAM-MD5\r\n")
            daemon.says("C: AUTH")
            assert daemon.stop() == 0
        assert talk.reply()[:3] in ("", "334", "421", "454")


_SLOW_AUTH = """\
import time
from tofmipd.globalmode import GlobalDaemon
judge = GlobalDaemon.judge
GlobalDaemon.judge = lambda *words: (time.sleep(0.5), judge(*words))[1]
"""


def test_a_stop_within_the_start_is_no_failure(village):
    """systemd would call any status but 0 one."""
    python, option, code = with_limits(village).program
    process = subprocess.Popen(
        [python, option, _SLOW_AUTH + code, "-f", "-p", f"{HOST}:0", *village.options()],
        env=environment(None) | village.variables,
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
    )
    with ending(process):
        wait_until(lambda: len(children(process.pid)) == 2, "server and auth")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=5)
    assert process.returncode == 0, said
