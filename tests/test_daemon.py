"""Start-up and the end in pieces; the system tests run the whole."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest

from tofmipd import daemon
from tofmipd.errors import CANT_CREATE, CONFIG, UNAVAILABLE, Fatal
from tofmipd.settings import Listen, Person, Settings


@pytest.fixture(autouse=True)
def _umask_as_it_was():
    """A daemon sets its own."""
    old = os.umask(0o022)
    os.umask(old)
    yield
    os.umask(old)


def settings(tmp_path, *places: Listen, **others) -> Settings:
    person = Person(os.getuid(), "bobby", "Bobby", str(tmp_path))
    return Settings(person, places, authfile=str(tmp_path / "passwords"), **others)


def free(*, ipv6: bool = False) -> Listen:
    """Port 0: whatever is free."""
    return Listen("::1" if ipv6 else "127.0.0.1", 0, ipv6)


def test_all_places_are_announced(tmp_path, capsys):
    """TO-18."""
    made = settings(tmp_path, free(), free(ipv6=True))
    sockets = daemon.listen(made)
    daemon.announce(sockets)
    printed = capsys.readouterr()
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    first, second, third = printed.err.splitlines()
    assert re.fullmatch(r"tofmipd started at [A-Z][a-z]{2}, .* [+-][0-9]{4}", first)
    assert second == f"\tListening on 127.0.0.1:{ports[0]}"
    assert third == f"\tListening on [::1]:{ports[1]}"
    assert printed.out == ""


def test_when_one_place_cannot_be_had_the_others_are_given_back(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = Listen("127.0.0.1", taken.getsockname()[1])
        made = settings(tmp_path, Listen("127.0.0.1", port), place, port_hint="--somehow")
        with pytest.raises(Fatal) as caught:
            daemon.listen(made)
    assert caught.value.status == UNAVAILABLE
    expected = f"cannot listen on {place}: Address already in use; choose another with --somehow"
    assert str(caught.value) == expected
    socket.create_server(("127.0.0.1", port)).close()


def test_nothing_is_listened_on_when_nobody_could_log_in(tmp_path, capsys):
    with pytest.raises(Fatal, match="no such password file") as caught:
        daemon.run(settings(tmp_path, free(), foreground=True))
    assert caught.value.status == CONFIG
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(Fatal, match="cannot write the log file /none/log: No such file") as caught:
        daemon.set_up_log(settings(tmp_path, log_file="/none/log"))
    assert caught.value.status == CANT_CREATE


def test_a_signal_can_be_read_as_its_number():
    number = signal.SIGUSR1
    before = signal.getsignal(number)
    reader = daemon.catch_signals(number)
    try:
        os.kill(os.getpid(), number)
        assert os.read(reader, 1) == bytes([number])
    finally:
        os.close(signal.set_wakeup_fd(-1))
        os.close(reader)
        signal.signal(number, before)
