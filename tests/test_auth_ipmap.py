"""The map of local addresses: its format, and what happens when the file changes."""

from __future__ import annotations

import ipaddress
import logging
import os
import tempfile
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth import ipmap
from tofmipd.auth.ipmap import IpMap, parse_map, parse_port

ELSEWHERE = ("127.0.0.1", None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ipauthmap"


def put(path, text):
    """Write the file anew, the way an editor does: so that its inode changes."""
    new = path.with_name("new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.rename(path)
    return str(path)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("line", "local", "found"),
    [
        ("192.0.2.1 198.51.100.1", "192.0.2.1", ("198.51.100.1", None)),
        ("192.0.2.1 198.51.100.1 1143", "192.0.2.1", ("198.51.100.1", 1143)),
        (" \t192.0.2.1\t \t198.51.100.1  65535 \r", "192.0.2.1", ("198.51.100.1", 65535)),
        ("192.0.2.1 198.51.100.1#143", "192.0.2.1", ("198.51.100.1", None)),
        ("192.0.2.1 198.51.100.1 # größer", "192.0.2.1", ("198.51.100.1", None)),
        # The old form
        ("192.0.2.1:198.51.100.1", "192.0.2.1", ("198.51.100.1", None)),
        ("192.0.2.1:198.51.100.1:1", "192.0.2.1", ("198.51.100.1", 1)),
        ("\t192.0.2.1:198.51.100.1:0143# x", "192.0.2.1", ("198.51.100.1", 143)),
        # IPv6, in any spelling
        ("2001:db8::1 ::1 143", "2001:0DB8:0:0::0001", ("::1", 143)),
        ("2001:0DB8:0:0:0:0:0:1 0:0::1", "2001:db8::1", ("::1", None)),
        ("2001:db8::1 198.51.100.1", "2001:db8::1", ("198.51.100.1", None)),
        ("192.0.2.1 2001:db8::1", "192.0.2.1", ("2001:db8::1", None)),
        ("fe80::1%eth0 fe80::2%eth0", "fe80::1%eth0", ("fe80::2%eth0", None)),
        # IPv4 written as IPv6
        ("192.0.2.1 198.51.100.1", "::ffff:192.0.2.1", ("198.51.100.1", None)),
        ("::FFFF:192.0.2.1 198.51.100.1", "192.0.2.1", ("198.51.100.1", None)),
        ("::ffff:c000:201 ::ffff:198.51.100.1", "192.0.2.1", ("198.51.100.1", None)),
    ],
)
def test_a_line_maps_a_local_address_to_a_server(path, caplog, line, local, found):
    assert IpMap(put(path, line)).find(local) == found
    assert IpMap(put(path, f"# first\n\n{line}\n   \n")).find(local) == found
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "local", ["192.0.2.2", "::1", "::192.0.2.1", "", "localhost", "192.0.2.1 ", "\0", "é", "3"]
)
def test_what_is_not_listed_goes_to_this_machine(path, local):
    assert IpMap(put(path, "192.0.2.1 198.51.100.1 143\n")).find(local) == ELSEWHERE


def test_the_last_line_for_an_address_counts(path):
    text = "192.0.2.1 198.51.100.1\n::ffff:192.0.2.1 198.51.100.2 2\n192.0.2.1:198.51.100.3\n"
    assert IpMap(put(path, text)).find("192.0.2.1") == ("198.51.100.3", None)


BAD = [
    "192.0.2.1",
    "192.0.2.1 198.51.100.1 143 x",
    "192.0.2.1 server.example",
    "192.0.2.1 198.51.100.1 imap",
    "192.0.2.1 198.51.100.1 0",
    "192.0.2.1 198.51.100.1 65536",
    "192.0.2.1 198.51.100.1 -1",
    "192.0.2.1 198.51.100.1 ١٤٣",
    "192.0.2.1 198.51.100.1 " + "9" * 5000,
    "192.0.2.1\N{NO-BREAK SPACE}198.51.100.1",
    "192.0.2.300 198.51.100.1",
    "192.0.2.01 198.51.100.1",
    "192.0.2.1 198.51.100.1:143",
    "192.0.2.1 [::1]",
    "192.0.2.1/32 198.51.100.1",
    "fe80::1%a\0 198.51.100.1",
    "192.0.2.1 fe80::1%\0",
    "192.0.2.1 fe80::1%é",
    "192.0.2.1:198.51.100.1:",
    "192.0.2.1:198.51.100.1:0",
    "192.0.2.1:198.51.100.1:143:1",
    "192.0.2.1:",
    ":198.51.100.1",
    "::1:::1",
    "1:2",
    "\N{BYTE ORDER MARK}192.0.2.1 198.51.100.1",
    b"192.0.2.1 198.51.100.1 \xff",
    b"\x00",
]


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_logged_with_its_number_and_skipped(path, caplog, line):
    octets = line if isinstance(line, bytes) else line.encode()
    text = b"192.0.2.2 198.51.100.2\n\n" + octets + b"\n192.0.2.3 198.51.100.3\n"
    servers = IpMap(put(path, text))
    assert [servers.find(f"192.0.2.{n}")[0] for n in (1, 2, 3)] == [
        "127.0.0.1",
        "198.51.100.2",
        "198.51.100.3",
    ]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{path}:3: line skipped: ")
    assert "\n" not in warning
    assert len(warning) < len(str(path)) + 500


def test_a_missing_file_is_an_empty_map_until_it_is_there(path, caplog):
    servers = IpMap(str(path))
    assert servers.find("192.0.2.1") == ELSEWHERE
    assert warnings(caplog) == []
    put(path, "192.0.2.1 198.51.100.1\n")
    assert servers.find("192.0.2.1") == ("198.51.100.1", None)
    path.unlink()
    assert [servers.find("192.0.2.1") for _ in range(3)] == [ELSEWHERE] * 3
    assert warnings(caplog) == [f"{path}: gone, the map is empty"]


def make_directory(path):
    path.mkdir()


def make_pipe(path):
    os.mkfifo(path)


def make_loop(path):
    path.symlink_to(path)


def make_too_big(path):
    put(path, b"# 45678\n" * (1 << 17) + b"192.0.2.1 198.51.100.9\n")


@pytest.mark.parametrize("spoil", [make_directory, make_pipe, make_loop, make_too_big])
def test_a_file_that_cannot_be_read_leaves_the_old_map_in_force(path, caplog, spoil):
    servers = IpMap(put(path, "192.0.2.1 198.51.100.1\n"))
    assert servers.find("192.0.2.1")[0] == "198.51.100.1"
    path.unlink()
    spoil(path)
    for _ in range(3):
        assert servers.find("192.0.2.1")[0] == "198.51.100.1"
    (warning,) = warnings(caplog)  # not one for every login
    assert warning.startswith(f"{path}: cannot be read, unchanged in memory: ")
    if path.is_dir():
        path.rmdir()
    put(path, "192.0.2.1 198.51.100.2\n")
    assert servers.find("192.0.2.1")[0] == "198.51.100.2"


def test_a_path_that_no_file_can_have_is_an_empty_map():
    assert IpMap("a\0b").find("192.0.2.1") == ELSEWHERE
    assert IpMap("").find("192.0.2.1") == ELSEWHERE


def test_a_change_counts_at_once_and_no_change_reads_nothing(path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        ipmap, "parse_map", lambda *arguments: reads.append(1) or parse_map(*arguments)
    )
    servers = IpMap(put(path, "192.0.2.1 198.51.100.1\n"))
    assert reads == []
    for text, host, count in [
        ("192.0.2.1 198.51.100.1\n", "198.51.100.1", 1),
        ("192.0.2.1 198.51.100.2\n", "198.51.100.2", 2),
        ("192.0.2.1 198.51.100.33\n", "198.51.100.33", 3),
    ]:
        if count > 1:
            put(path, text)
        assert [servers.find("192.0.2.1")[0] for _ in range(3)] == [host] * 3
        assert len(reads) == count
    path.write_text("192.0.2.1 198.51.100.4 4\n")  # in place
    assert servers.find("192.0.2.1") == ("198.51.100.4", 4)
    before = path.stat()
    path.write_text("192.0.2.1 198.51.100.5 5\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # neither size nor inode
    assert servers.find("192.0.2.1") == ("198.51.100.5", 5)


def test_the_file_is_opened_by_the_opener(path, tmp_path, caplog):
    real = put(tmp_path / "real", "192.0.2.1 198.51.100.1\n")
    asked = []

    def opener(name, flags):
        asked.append((name, flags & os.O_ACCMODE))
        return os.open(real, flags)

    servers = IpMap("only/known/elsewhere", opener)
    assert servers.find("192.0.2.1") == ("198.51.100.1", None)
    assert set(asked) == {("only/known/elsewhere", os.O_RDONLY)}
    put(tmp_path / "real", "192.0.2.1 198.51.100.2\n")
    assert servers.find("192.0.2.1") == ("198.51.100.2", None)


def test_an_opener_that_fails_leaves_the_old_map_in_force(path, caplog):
    put(path, "192.0.2.1 198.51.100.1\n")
    trouble = []

    def opener(name, flags):
        if trouble:
            raise trouble[0]
        return os.open(name, flags)

    servers = IpMap(str(path), opener)
    assert servers.find("192.0.2.1")[0] == "198.51.100.1"
    for trouble[:] in [[PermissionError(13, "Permission denied")], [ConnectionError("gone")]]:
        assert servers.find("192.0.2.1")[0] == "198.51.100.1"
        assert warnings(caplog)[-1].endswith(str(trouble[0].strerror or trouble[0]))


def test_a_lookup_leaves_no_descriptor_open(path):
    servers = IpMap(put(path, "192.0.2.1 198.51.100.1\n"))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        put(path, f"192.0.2.1 198.51.100.{number}\n")
        servers.find("192.0.2.1")
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_find_an_address_of_the_old_and_the_new_file_all_the_time(path):
    servers = IpMap(put(path, "192.0.2.1 198.51.100.1\n"))
    found, stop = set(), threading.Event()

    def ask():
        while not stop.is_set():
            found.add(servers.find("192.0.2.1"))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        put(path, f"192.0.2.{number + 2} 198.51.100.2\n192.0.2.1 198.51.100.1\n")
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert found == {("198.51.100.1", None)}
    assert servers.find("192.0.2.101")[0] == "198.51.100.2"


@pytest.mark.parametrize(
    "text", ["", "0", "00000", "65536", "99999", "100000", "+1", "-1", " 1", "1_0", "1.0", "१"]
)
def test_a_port_is_a_plain_number_from_1_to_65535(text):
    with pytest.raises(ValueError, match="not a port"):
        parse_port(text)
    assert parse_port("1") == 1
    assert parse_port("65535") == 65535


# Noise

ADDRESSES = st.one_of(st.ip_addresses().map(str), st.sampled_from(["::ffff:192.0.2.1", "1.2.3"]))
PIECES = st.one_of(
    ADDRESSES.map(str.encode),
    st.integers(-1, 70000).map(lambda n: str(n).encode()),
    st.sampled_from([b" ", b"\t", b":", b"#", b"\n", b"\r\n", b"%", b"\0", b"\xff", b"\x0b"]),
    st.binary(max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_any_octets_are_a_map_of_good_addresses_and_ports(octets):
    logging.getLogger("tofmipd.auth.ipmap").disabled = True
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(octets)
            file.flush()
            servers = IpMap(file.name)
            servers.find("")
            for local, place in parse_map("x", octets).items():
                assert servers.find(str(local)) == place
                ipaddress.ip_address(place[0])
                assert place[1] is None or 0 < place[1] < 65536
    finally:
        logging.getLogger("tofmipd.auth.ipmap").disabled = False


@settings(max_examples=200, deadline=None)
@given(ADDRESSES, ADDRESSES, st.one_of(st.none(), st.integers(1, 65535)))
def test_every_good_line_is_understood(local, remote, port):
    line = f"{local} {remote}" + ("" if port is None else f" {port}")
    good = "1.2.3" not in (local, remote)
    (found,) = parse_map("x", line.encode()).values() or [None]
    assert (found is not None) == good
    if good:
        assert found[1] == port


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_may_be_asked_for(text):
    assert IpMap("").find(text) == ELSEWHERE
