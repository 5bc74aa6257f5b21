"""No room, and no right: the client hears 451 in time, nobody gets a copy, and service goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import submit
from hops import RawHop
from outboxes import fill, mounted, unfill
from running import LOGIN, PASSWORD, Daemon, Home, make_home, to_smtp, tofmipd, wait_until
from village import Village, Villager

pytestmark = pytest.mark.root

RULES = "to a@* dated=1d\nto b@* dated=2d\nto * bare\n"
TO = ("a@example.net", "b@example.net", "c@example.net")
NO_ROOM = "451 4.3.0 Error: your message cannot be kept here now, try again later"
# Those that lead to the outbox before anything else is done.
WAYS = [((), TO), (("--spool",), TO[:1])]


@pytest.fixture
def home(tmp_path: Path, village_hop: RawHop) -> Home:
    return make_home(tmp_path / "home", to_smtp(village_hop.port), rules=RULES)


@dataclass(frozen=True)
class Place:
    """A daemon whose outbox is on a disk of its own, and who uses it."""

    daemon: Daemon
    disk: Path
    hop: RawHop
    login: str = LOGIN
    password: str = PASSWORD

    def submit(self, *recipients: str, message: bytes | None = None) -> str:
        return submit(
            self.daemon.port,
            *recipients,
            message=message,
            login=self.login,
            password=self.password,
        )

    def offered(self) -> list[str]:
        return [line for line in self.hop.commands if line.startswith(("MAIL", "RCPT", "DATA"))]

    def left(self) -> list[str]:
        """The files of all outboxes, but for what fills the disk."""
        return [path.name for path in self.disk.rglob("*.*")]

    def serves(self, *recipients: str) -> None:
        """All is well: a message is taken, and its recipients get it once."""
        self.hop.reset()
        assert self.submit(*recipients).startswith("250 ")
        for recipient in recipients:
            self.hop.message(recipient)
        # Only then its room is free again.
        wait_until(lambda: self.left() == [], "the outbox to be empty")


@contextlib.contextmanager
def personal(home: Home, hop: RawHop, *options: str) -> Iterator[Place]:
    with (
        mounted(home.tmda / "outbox", "size=1m", "mode=700") as disk,
        tofmipd(home, *options) as daemon,
    ):
        yield Place(daemon, disk, hop)


@contextlib.contextmanager
def everybodys(village: Village, hop: RawHop, *options: str) -> Iterator[Place]:
    person = village.people[0]
    person.write("filters/outgoing", RULES)
    with (
        mounted(village.outboxes, "size=1m", "mode=711") as disk,
        village.daemon(*options) as daemon,
    ):
        yield Place(daemon, disk, hop, person.name, person.password)


@pytest.fixture(params=["personal", "global"])
def start(request: pytest.FixtureRequest, home: Home, village: Village, village_hop: RawHop):
    """Starts a daemon with such an outbox."""
    if request.param == "personal":
        return lambda *options: personal(home, village_hop, *options)
    return lambda *options: everybodys(village, village_hop, *options)


@pytest.mark.parametrize(("options", "recipients"), WAYS)
def test_on_a_full_disk_nobody_gets_a_copy(options, recipients, start):
    with start(*options) as place:
        # The outbox is there, so that only the message itself lacks room.
        place.serves(*recipients)
        fill(place.disk)
        place.hop.reset()
        for _ in range(2):
            assert place.submit(*recipients) == NO_ROOM
        place.daemon.says("deferred: the outbox", "cannot be written: No space left on device")
        assert place.offered() == []
        assert place.left() == []
        unfill(place.disk)
        place.serves(*recipients)


@pytest.mark.parametrize(("options", "recipients"), WAYS)
def test_a_message_that_is_too_big_for_the_disk_leaves_nothing_behind(options, recipients, start):
    message = b"Subject: big\r\n\r\n" + (b"x" * 70 + b"\r\n") * 40_000
    with start(*options) as place:
        assert place.submit(*recipients, message=message) == NO_ROOM
        assert place.offered() == []
        assert place.left() == []
        place.serves(*recipients)


def test_a_message_for_which_no_outbox_is_needed_goes_out_all_the_same(start):
    with start() as place:
        fill(place.disk)
        place.serves(TO[0])


@pytest.mark.parametrize(("options", "recipients"), WAYS)
def test_where_nothing_may_be_written_nobody_gets_a_copy(options, recipients, start):
    with start(*options) as place:
        place.serves(*recipients)
        place.hop.reset()
        remount(place.disk, "ro")
        assert place.submit(*recipients) == NO_ROOM
        place.daemon.says("deferred: the outbox", "Read-only file system")
        assert place.offered() == []
        remount(place.disk, "rw")
        place.serves(*recipients)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_a_directory_without_the_right_to_write_is_no_outbox(village, village_hop):
    person = village.people[0]
    with everybodys(village, village_hop, "--spool") as place:
        place.serves(TO[0])
        own = place.disk / person.name
        own.chmod(0o500)
        assert place.submit(TO[0]) == NO_ROOM
        place.daemon.says("deferred: the outbox", "Permission denied")
        own.chmod(0o700)
        place.serves(TO[0])


def test_what_cannot_be_written_down_is_not_handed_over_again_and_again(home, village_hop):
    """The room for what becomes of each recipient is there before anybody is offered anything."""
    many = tuple(f"{number}@example.net" for number in range(20))
    with personal(home, village_hop, "--spool", "--queue-retry", "1s") as place:
        village_hop.refuse["CONNECT"] = b"421 4.3.2 not now"
        assert place.submit(*many).startswith("250 ")
        place.daemon.says("deferred to=", many[-1])
        fill(place.disk)
        village_hop.reset()
        place.daemon.says("outbox: ", "No space left on device")
        assert village_hop.stored == []
        unfill(place.disk)
        assert place.daemon.stop() == 0
        (envelope,) = place.disk.glob("*.envelope")
        os.utime(envelope, (0, 0))
        with tofmipd(home) as daemon:
            village_hop.message(many[0])
            daemon.says("sent to=", many[-1])
    assert [message.recipients for message in village_hop.stored] == [many]


def test_without_room_for_big_messages_small_ones_go_on(home, tmp_path, village_hop):
    """What is above a mebibyte waits in a file below TMPDIR."""
    message = b"Subject: big\r\n\r\n" + (b"x" * 70 + b"\r\n") * 40_000
    temporary = tmp_path / "tmp"
    with (
        mounted(temporary, "size=1m"),
        tofmipd(home, variables={"TMPDIR": str(temporary)}) as daemon,
    ):
        place = Place(daemon, temporary, village_hop)
        for _ in range(2):
            assert place.submit(TO[0], message=message).startswith("452 4.3.1 ")
        assert place.offered() == []
        assert list(temporary.iterdir()) == []
        place.serves(*TO)


@contextlib.contextmanager
def quota_of(person: Villager, outboxes: Path, directory: Path) -> Iterator[None]:
    """The outboxes on a btrfs, where that of the person may take no more than a little."""
    image = directory / "btrfs"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    outboxes.mkdir()
    own = outboxes / person.name
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True, capture_output=True)
    mounting = subprocess.run(["mount", "-o", "loop", str(image), str(outboxes)], check=False)
    if mounting.returncode:
        pytest.skip("no btrfs can be mounted here")
    try:
        outboxes.chmod(0o711)
        for words in ("quota enable .", f"subvolume create {own}", f"qgroup limit 256K {own}"):
            command = ["btrfs", *words.split()]
            subprocess.run(command, cwd=outboxes, check=True, capture_output=True)
        os.chown(own, person.uid, person.gid)
        own.chmod(0o700)
        yield
    finally:
        subprocess.run(["umount", str(outboxes)], check=True)
        outboxes.rmdir()


@pytest.mark.peer("mkfs.btrfs")
def test_who_has_used_up_his_quota_hurts_nobody_else(village, village_hop, tmp_path):
    bobby, chloe, _ = village.people
    with contextlib.ExitStack() as stack:
        stack.enter_context(quota_of(bobby, village.outboxes, tmp_path))
        daemon = stack.enter_context(village.daemon("--spool"))
        own = Place(daemon, village.outboxes, village_hop, bobby.name, bobby.password)
        others = Place(daemon, village.outboxes, village_hop, chloe.name, chloe.password)
        own.serves(TO[0])
        assert fill_as(bobby.uid, village.outboxes / bobby.name) == errno.EDQUOT
        assert own.submit(TO[0]) == NO_ROOM
        daemon.says("deferred: the outbox", os.strerror(errno.EDQUOT))
        others.serves(TO[1])
        unfill(village.outboxes / bobby.name)
        own.serves(TO[0])


def fill_as(uid: int, directory: Path) -> int:
    """Leave no room there for that account; the number of the error."""
    script = (
        "import sys\n"
        "try:\n"
        "    with open(sys.argv[1], 'wb', buffering=0) as file:\n"
        "        while True: file.write(bytes(4096))\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    command = ["python3", "-c", script, str(directory / "filler")]
    return subprocess.run(command, user=uid, extra_groups=[], check=False).returncode
