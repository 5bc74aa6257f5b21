"""The outboxes of global mode: whose directory is which, and when somebody must look into one."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest
from outboxes import mounted

from tofmipd.privsep import linux, outboxes
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.outboxes import (
    Chores,
    OutboxError,
    due_of,
    identity_of,
    make_base,
    make_own,
    name_of,
)

ANNA = Identity("anna", "anna")
HOUR = 3600.0
# Nobody's.
UID = 61234


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_base(str(tmp_path / "base"))
    return tmp_path / "base"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Names.


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        (ANNA, "anna"),
        (Identity("DOM\\anna", "DOM\\anna"), "DOM\\anna"),
        (Identity("host", "joe@shop.example"), "host:joe@shop.example"),
        (Identity("host", "j+x=y@shop.example"), "host:j+x=y@shop.example"),
        (Identity("host", "größe@shop.example"), "host:gr%C3%B6%C3%9Fe@shop.example"),
        (Identity("host", "a:b%41@shop.example"), "host:a%3Ab%2541@shop.example"),
        (Identity("host", "../../etc@shop.example"), "host:..%2F..%2Fetc@shop.example"),
        (Identity("host", "x@shop.example/../.."), "host:x@shop.example%2F..%2F.."),
        (Identity("host", ".."), "host:.."),
        (Identity("host", "a\udcffb@x"), "host:a%FFb@x"),
        (Identity("host", ""), "host:"),
    ],
)
def test_each_identity_has_a_name_of_its_own_without_a_slash(identity, name):
    assert name_of(identity) == name
    assert identity_of(name) == identity
    assert "/" not in name


# The directory of all.


def test_only_root_can_list_or_make_anything_in_the_base(base):
    assert mode_of(base) == 0o711
    make_base(str(base))
    base.chmod(0o700)
    make_base(str(base))
    assert mode_of(base) == 0o711


@pytest.mark.parametrize("kind", ["file", "link", "writable", "of another"])
def test_a_base_that_somebody_else_could_change_is_refused(kind, tmp_path):
    base = tmp_path / "base"
    match kind:
        case "file":
            base.write_bytes(b"")
        case "link":
            base.symlink_to(tmp_path)
        case "writable":
            base.mkdir()
            base.chmod(0o775)
        case "of another":
            if os.getuid():
                pytest.skip("needs root")
            base.mkdir()
            os.chown(base, UID, UID)
    with pytest.raises(OutboxError, match=str(base)):
        make_base(str(base))


def test_a_base_that_cannot_be_made_is_said_with_its_option(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutboxError, match="Not a directory; see --outbox"):
        make_base(str(tmp_path / "file/base"))


# One identity's own.


@pytest.mark.root
def test_an_own_directory_is_its_accounts_alone(base):
    for _ in range(2):
        path = Path(make_own(str(base), ANNA, UID, UID + 1))
        status = path.stat()
        assert (path, status.st_uid, status.st_gid) == (base / "anna", UID, UID + 1)
        assert mode_of(path) == 0o700


@pytest.mark.root
def test_who_dies_before_it_is_given_away_leaves_no_harm(base):
    (base / "anna").mkdir()
    assert Path(make_own(str(base), ANNA, UID, UID)).stat().st_uid == UID


@pytest.mark.root
@pytest.mark.parametrize("kind", ["link", "file", "writable", "of another"])
def test_what_is_not_his_alone_is_refused_and_left_as_it_is(kind, base, tmp_path):
    own, target = base / "anna", tmp_path / "target"
    target.mkdir()
    match kind:
        case "link":
            own.symlink_to(target)
        case "file":
            own.write_bytes(b"")
        case "writable":
            own.mkdir()
            os.chown(own, UID, UID)
            own.chmod(0o777)
        case "of another":
            own.mkdir()
            os.chown(own, UID + 1, UID)
    before = own.lstat()
    with pytest.raises(OutboxError, match="must be a directory of uid 61234"):
        make_own(str(base), ANNA, UID, UID)
    assert (own.lstat().st_uid, own.lstat().st_mode) == (before.st_uid, before.st_mode)
    assert target.stat().st_uid == os.getuid()


@pytest.mark.root
def test_a_login_leads_to_no_other_directory(base, tmp_path):
    make_own(str(base), Identity("host", "x@shop"), UID, UID)
    make_own(str(base), Identity("host", "x@shop/../../../etc"), UID, UID)
    assert sorted(path.name for path in base.iterdir()) == [
        "host:x@shop",
        "host:x@shop%2F..%2F..%2F..%2Fetc",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_name_that_is_too_long_is_said(base):
    with pytest.raises(OutboxError, match="File name too long"):
        make_own(str(base), Identity("host", "x" * 300), os.getuid(), os.getgid())


# When something is due.


def put(path: Path, due: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (due, due), follow_symlinks=False)


def test_the_earliest_envelope_counts(base):
    assert due_of(str(base), "anna") is None
    (base / "anna").mkdir()
    assert due_of(str(base), "anna") is None
    for name, due in [
        ("c.envelope", 500),
        ("a.envelope", 300),
        ("b.envelope.busy", 400),
        ("n.envelope.new", 10),
        ("b.envelope.bad", 20),
        ("a.content", 30),
        ("nonsense", 40),
    ]:
        put(base / "anna" / name, due)
    assert due_of(str(base), "anna") == 300


@pytest.mark.parametrize("due", [-(2**40), 0, 2**40])
def test_odd_times_are_due_now_or_before(due, base):
    put(base / "anna/x.envelope", due)
    found = due_of(str(base), "anna")
    assert found is not None
    assert found <= time.time()


def test_what_a_user_puts_there_does_no_harm(base, tmp_path):
    """The monitor, which is root, follows nothing, opens nothing and waits for nothing."""
    own = base / "anna"
    own.mkdir()
    (own / "link.envelope").symlink_to("/nonexistent")
    (own / "loop.envelope").symlink_to(own / "loop.envelope")
    os.mkfifo(own / "fifo.envelope")
    (own / "directory.envelope").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(own / "socket.envelope"))
    (own / ("\udcff\n\x1b[2J" + "x" * 200 + ".envelope")).write_bytes(b"")
    assert due_of(str(base), "anna") == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_what_is_no_directory_is_not_looked_into(kind, base, tmp_path):
    put(tmp_path / "target/x.envelope", 5)
    match kind:
        case "link":
            (base / "anna").symlink_to(tmp_path / "target")
        case "file":
            (base / "anna").write_bytes(b"")
        case "fifo":
            os.mkfifo(base / "anna")
    assert due_of(str(base), "anna") is None


@pytest.mark.root
@pytest.mark.skipif(not linux.PRESENT, reason="mounts can be told on Linux only")
def test_a_mount_of_the_users_own_is_not_looked_into(base):
    """A file system of his (FUSE) would answer when he likes."""
    with mounted(base / "anna", "size=64k") as own:
        put(own / "x.envelope", 5)
        assert due_of(str(base), "anna") is None


def test_where_there_is_too_much_to_look_at_the_worker_has_to(base, monkeypatch):
    monkeypatch.setattr(outboxes, "_LOOK_LIMIT", 20)
    for number in range(30):
        put(base / f"anna/{number}.junk", 5)
    assert due_of(str(base), "anna") == 0


# What is to be done.


class Calendar(Chores):
    """Chores; ``planned`` has how many seconds each login was put off."""

    def __init__(self, base: str) -> None:
        super().__init__(base)
        self.planned: dict[str, float] = {}

    def _plan(self, identity: Identity, seconds: float) -> None:
        super()._plan(identity, seconds)
        self.planned[identity.login] = seconds


def calendar(base: Path) -> Calendar:
    return Calendar(str(base))


def test_at_the_start_all_that_waits_is_planned(base):
    put(base / "anna/x.envelope", 5)
    put(base / "host:joe@shop.example/x.envelope", time.time() + HOUR)
    put(base / "idle/x.envelope.bad", 5)
    put(base / "file.envelope", 5)
    chores = calendar(base)
    assert chores.next() is None
    chores.begin()
    assert chores.planned == {
        "anna": 0,
        "joe@shop.example": pytest.approx(HOUR, abs=60),
    }
    assert chores.take(time.monotonic() + 60) == [ANNA]
    assert chores.take(time.monotonic() + 60) == []
    assert chores.take(time.monotonic() + 2 * HOUR) == [Identity("host", "joe@shop.example")]
    assert chores.next() is None


def test_many_do_not_begin_at_once(base):
    for number in range(20):
        put(base / f"user{number:02}/x.envelope", 5)
    chores = calendar(base)
    chores.begin()
    seconds = sorted(chores.planned.values())
    assert seconds == pytest.approx([number * 0.05 for number in range(20)])


def test_where_no_outboxes_are_there_is_nothing_to_do(tmp_path):
    for base in ("", str(tmp_path / "nothing")):
        chores = Chores(base)
        chores.begin()
        chores.ended(ANNA, died=True)
        assert chores.next() is None


def test_after_a_worker_has_ended_the_next_one_comes_when_something_is_due(base):
    chores = calendar(base)
    chores.ended(ANNA, died=False)
    assert chores.next() is None
    put(base / "anna/x.envelope", time.time() + HOUR)
    chores.ended(ANNA, died=False)
    assert chores.planned == {"anna": pytest.approx(HOUR, abs=60)}
    (base / "anna/x.envelope").unlink()
    chores.ended(ANNA, died=False)
    assert chores.next() is None


def test_what_has_just_become_due_has_a_short_rest(base):
    put(base / "anna/x.envelope", time.time())
    chores = calendar(base)
    chores.ended(ANNA, died=False)
    assert chores.planned == {"anna": 5}


@pytest.mark.parametrize(("due", "died"), [(5, False), (5, True), (None, True)])
def test_who_dies_or_leaves_it_undone_rests_ever_longer(due, died, base):
    put(base / "anna/x.envelope", time.time() if due is None else due)
    chores = calendar(base)
    rests = []
    for _ in range(9):
        chores.ended(ANNA, died=died)
        rests.append(chores.planned["anna"])
    assert rests == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    put(base / "anna/x.envelope", time.time() + 50)
    chores.ended(ANNA, died=False)
    chores.ended(ANNA, died=True)
    assert chores.planned["anna"] == 60


def test_where_there_is_no_place_it_is_tried_again(base):
    chores = calendar(base)
    chores.put_off(ANNA)
    assert chores.planned == {"anna": 5}
