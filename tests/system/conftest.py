"""What the tests of the whole program share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import submit
from hops import RawHop, Sendmail, SmtpSink, Stored, make_sendmail, raw_hop, smtp_sink
from postfix import Postfix, running_postfix
from running import Daemon, Home, make_home, to_smtp, tofmipd
from village import Village, new_village


@pytest.fixture(scope="session")
def postfix() -> Iterator[Postfix]:
    """Tests that use it bear the marks root and peer("postfix")."""
    with running_postfix() as running:
        yield running


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SmtpSink]:
    with smtp_sink(tmp_path / "sink") as running:
        yield running


@pytest.fixture
def sendmail(tmp_path: Path) -> Sendmail:
    return make_sendmail(tmp_path / "program")


@pytest.fixture(scope="session")
def village_once() -> Iterator[Village]:
    with new_village() as made:
        yield made


@pytest.fixture
def village(village_once: Village, village_hop: RawHop) -> Village:
    """Three people whose next hop is ``village_hop``.  Tests that use it bear the mark root."""
    village_once.reset(village_hop.port)
    return village_once


@pytest.fixture(scope="session")
def village_hop_once() -> Iterator[RawHop]:
    with raw_hop() as hop:
        yield hop


@pytest.fixture
def village_hop(village_hop_once: RawHop) -> RawHop:
    village_hop_once.reset()
    return village_hop_once


@dataclass(frozen=True)
class Standing:
    """A daemon in front of a next hop, for all tests of a module."""

    hop: RawHop
    home: Home
    daemon: Daemon


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    directory = tmp_path_factory.mktemp("home")
    with raw_hop() as hop:
        home = make_home(directory, to_smtp(hop.port))
        with tofmipd(home, "-d") as daemon:
            yield Standing(hop, home, daemon)


@pytest.fixture
def hop(standing: Standing) -> RawHop:
    """The next hop, as good as new."""
    standing.hop.reset()
    return standing.hop


@pytest.fixture
def home(standing: Standing, hop: RawHop) -> Home:
    """The files of somebody whose next hop is ``hop``; a test may change them."""
    return make_home(standing.home.path, to_smtp(hop.port))


@pytest.fixture
def daemon(standing: Standing, home: Home) -> Daemon:
    """A daemon for ``home``; its log begins with the test."""
    standing.daemon.forget()
    return standing.daemon


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Start a daemon; arguments as for running.tofmipd.  All end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(tofmipd(*args, **kwargs))


def _message(*fields: str) -> bytes:
    lines = fields or ("From: Bobby <bobby@example.org>", "To: x@example.net", "Subject: x")
    return "\r\n".join([*lines, "", "body", ""]).encode()


@pytest.fixture
def send(daemon: Daemon, home: Home, hop: RawHop) -> Callable[..., list[Stored]]:
    """Configure, send one message, and say what arrived, in the order of arrival."""

    def send(
        *settings: str,
        rules: str = "",
        to: tuple[str, ...] = ("x@example.net",),
        fields: tuple[str, ...] = (),
        sender: str = "bobby@example.org",
    ) -> list[Stored]:
        home.configure(to_smtp(hop.port), *settings)
        home.write("filters/outgoing", rules)
        reply = submit(daemon.port, *to, message=_message(*fields), sender=sender)
        assert reply.startswith("250"), reply
        return hop.messages()

    return send
