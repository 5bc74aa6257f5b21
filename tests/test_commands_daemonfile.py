"""The daemon's file as the tools write it, and what they learn from it."""

from __future__ import annotations

import socket
import stat

import pytest

from tofmipd.commands import daemonfile
from tofmipd.settings import Listen


def test_a_file_that_was_written_says_what_it_was_told(tmp_path):
    path = f"{tmp_path}/new/tofmipd.conf"
    lines = [("proxyport", "localhost:8026"), ("ssl-cert", '/with "quotes" #/c.pem')]
    assert daemonfile.write(path, lines) == (path, True)
    assert daemonfile.write(path, []) == (path, False)
    assert daemonfile.listeners(path) == (Listen("localhost", 8026),)
    assert stat.S_IMODE((tmp_path / "new/tofmipd.conf").stat().st_mode) == 0o600
    text = (tmp_path / "new/tofmipd.conf").read_text()
    assert text.endswith('proxyport localhost:8026\nssl-cert "/with \\"quotes\\" #/c.pem"\n')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [Listen("localhost", 8025)]),
        ("", [Listen("localhost", 8025)]),
        ("tls on\n", [Listen("localhost", 8025, mode="on")]),
        ("ssl\n  proxyport = :25  # all\n", [Listen("", 25, mode="ssl")]),
        ("# proxyport h:1\nproxyport h:2\n", [Listen("h", 2)]),
        (
            "proxyport h:1,ssl\nipv6proxyport [::1]:2\ntls optional\n",
            [Listen("h", 1, mode="ssl"), Listen("::1", 2, True, "optional")],
        ),
        ("proxyport nonsense\n\0\xff\n", [Listen("localhost", 8025)]),
    ],
)
def test_where_the_daemon_listens_is_read(text, expected, tmp_path):
    path = tmp_path / "tofmipd.conf"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert daemonfile.listeners(str(path)) == tuple(expected)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([Listen("0.0.0.0", 465, mode="ssl"), Listen("localhost", 8025)], "localhost:8025"),
        ([Listen("0.0.0.0", 465, mode="ssl"), Listen("0.0.0.0", 587, mode="on")], "localhost:465"),
        ([Listen("::", 587, True, "on")], "localhost:587"),
        ([Listen("10.0.0.1", 25, mode="on"), Listen("127.0.0.9", 26, mode="on")], "127.0.0.9:26"),
        ([Listen("mail.example", 8025)], "mail.example:8025"),
        ([Listen("localhost", 1, proxies=()), Listen("localhost", 2, mode="on")], "localhost:2"),
    ],
)
def test_a_tool_takes_the_nearest_place(places, expected):
    assert str(daemonfile.nearest(places)._replace(ipv6=False)) == expected


def test_a_port_that_somebody_has_is_not_proposed():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not daemonfile.is_free(port)
        assert port < daemonfile.free_port(port) < port + 20
    assert daemonfile.free_port(port) == port
