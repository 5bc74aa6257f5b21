"""Global mode with no more than etc/systemd/tofmipd.service leaves it (BX-19)."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeNextHop, at
from pamservice import UNIX, pam_service, set_password
from running import HOST, LIMIT_SECONDS, Daemon, to_program, to_smtp, wait_until
from sandbox import sandboxed
from test_sources import add_packages
from units import SYSTEM, settings, words
from village import Village, Villager, processes, status

UNIT = SYSTEM / "tofmipd.service"
CAPABILITIES = words(settings(UNIT), "CapabilityBoundingSet")
pytestmark = [pytest.mark.root, pytest.mark.peer("systemd-analyze", "unshare")]


@pytest.fixture
def confined(village: Village, tmp_path: Path) -> Village:
    """The village, whose daemon is in the sandbox."""
    add_packages(village.variables, "pam")
    program = (*sandboxed(UNIT, tmp_path), *village.program)
    return dataclasses.replace(village, program=program)


@pytest.fixture
def daemon(confined: Village) -> Iterator[Daemon]:
    """People's passwords are in the file but for the first one's, whose is PAM's."""
    first, *others = confined.people
    set_password(first.name, first.password)
    confined.write_passwords({person.name: person.password for person in others})
    with pam_service(UNIX) as service, confined.daemon("-m", service) as running:
        yield running


def send(daemon: Daemon, person: Villager, *recipients: str) -> None:
    with smtplib.SMTP(HOST, daemon.port, timeout=LIMIT_SECONDS) as client:
        client.login(person.name, person.password)
        text = "Subject: x\r\n\r\nbody\r\n"
        client.sendmail(f"{person.name}@example.org", recipients, text)


@pytest.fixture
def drop(village: Village) -> Iterator[tuple[Path, Path]]:
    """A sendmail program that works like Postfix's, and the queue: only a group may write there,
    and a program that has its rights."""
    group = village.service_gid
    queue, helper = village.directory / "maildrop", village.directory / "postdrop"
    queue.mkdir()
    os.chown(queue, 0, group)
    queue.chmod(0o730)
    shutil.copy("/bin/dd", helper)
    os.chown(helper, 0, group)
    helper.chmod(0o2755)
    program = village.directory / "sendmail"
    program.write_text(f"#!/bin/sh\nexec {helper} of={queue}/$$ status=none\n")
    program.chmod(0o755)
    yield program, queue
    shutil.rmtree(queue)


def test_the_daemon_has_no_more_than_the_unit_says(daemon):
    for pid in processes(daemon).values():
        assert status(pid)["Seccomp"] == "2"
    monitor = status(daemon.pid)
    # kill, setgid, setuid, setpcap, bind, and so on: none of them is what owns the machine.
    assert (monitor["NoNewPrivs"], monitor["CapEff"]) == ("0", monitor["CapBnd"])
    assert bin(int(monitor["CapBnd"], 16)).count("1") == len(CAPABILITIES)


def test_mail_goes_out_whoever_judges_the_login(daemon, village, village_hop):
    for number, person in enumerate(village.people[:2]):
        person.configure(to_smtp(village_hop.port), 'BARE_APPEND = "~/.tmda/known"')
        person.write("filters/outgoing", "to * bare=append\n")
        send(daemon, person, f"x{number}@example.net")
        assert village_hop.message(f"x{number}@example.net").sender == f"{person.name}@example.org"
        assert (person.home.tmda / "known").read_text() == f"x{number}@example.net\n"
    assert {person.name for person in village.people[:2]} <= processes(daemon).keys()


def test_a_sendmail_program_that_is_setgid_has_its_group(daemon, village, drop):
    program, queue = drop
    person = village.people[1]
    person.configure(to_program(program))
    send(daemon, person, "x@example.net")
    (file,) = queue.iterdir()
    assert b"\nbody\n" in file.read_bytes()
    assert file.stat().st_gid == village.service_gid


def test_what_waits_is_handed_over_later(confined, village, tmp_path):
    person = village.people[1]
    person.write("filters/outgoing", "to a@* dated=1d\nto * bare\n")
    with FakeNextHop(at("DOT", b"451 4.3.0 later\r\n", message=2)) as hop:
        person.configure(to_smtp(hop.port))
        with confined.daemon("--queue-retry", "1s") as daemon:
            send(daemon, person, "a@example.net", "b@example.net")
            wait_until(lambda: len(hop.messages) == 2, "the second attempt")
            wait_until(lambda: not list(village.outboxes.glob("*/*")), "an empty outbox")


def test_a_reload_makes_new_processes_of_what_only_root_can_read(confined, tmp_path, village_hop):
    person = dataclasses.replace(confined.people[1], password="another")
    options = tmp_path / "tofmipd.conf"
    options.write_text("size 1000000\n")
    with confined.daemon("--config", str(options)) as daemon:
        options.write_text("size 2000000\n")
        same = ("--config", str(options), "-p", f"{HOST}:{daemon.port}")
        # What the unit runs before it reloads.
        checked = confined.run("check", *confined.options(*same))
        assert checked.returncode == 0, checked.stdout + checked.stderr
        confined.write_passwords({person.name: person.password})
        daemon.process.send_signal(signal.SIGHUP)
        daemon.says("changed: size")
        send(daemon, person, "x@example.net")
    assert village_hop.message("x@example.net")
