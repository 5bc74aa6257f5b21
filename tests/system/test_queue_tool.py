"""`tofmipd queue` beside a running daemon, as the user and as root, among hostile files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import submit
from fakes import STALL, FakeNextHop, at
from running import PROGRAM, Home, environment, make_home, run, to_smtp, tofmipd, wait_until
from village import Village, Villager

from tofmipd.errors import CONFIG, NO_INPUT, PERMISSION, TEMPORARY, USAGE

RULES = "to a@* dated=1d\nto * bare\n"
TO = ("a@example.net", "b@example.net")


def queue(home: Home, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tool for one's own outbox."""
    ended = run("queue", *words, "--personal", home=home)
    assert "Traceback" not in ended.stderr
    return ended


def listed(ended: subprocess.CompletedProcess[str]) -> list[dict]:
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


@pytest.fixture
def home(tmp_path: Path):
    return make_home(tmp_path, rules=RULES)


def left_by_daemon(home: Home) -> str:
    """What stays in the outbox when the next hop takes one copy of two; its id."""
    with FakeNextHop(at("DOT", b"451 4.3.0 later\r\n", message=2)) as hop:
        home.configure(to_smtp(hop.port))
        with tofmipd(home) as daemon:
            assert submit(daemon.port, *TO).startswith("250 ")
    (envelope,) = (home.tmda / "outbox").glob("*.envelope")
    return envelope.name.removesuffix(".envelope")


def test_a_message_can_be_followed_from_the_outbox_to_its_end(home):
    id_ = left_by_daemon(home)
    (message,) = listed(queue(home, "--json"))
    assert (message["id"], message["state"]) == (id_, "waiting")
    assert [message[what] for what in ("waiting", "taken", "refused")] == [1, 1, 0]
    assert [copy["recipients"][0]["state"] for copy in message["copies"]] == ["taken", "waiting"]
    assert "451 4.3.0 later" in message["last_reply"]
    shown = queue(home, "show", id_, "--body").stdout
    assert "b@example.net: waits" in shown
    assert shown.endswith("\n\nhello\n")
    with FakeNextHop() as hop:
        home.configure(to_smtp(hop.port))
        ended = queue(home, "retry", id_)
        assert ended.returncode == 0
        assert ended.stdout.startswith(f"{id_}: sent to 1 recipient: 250 ")
        assert [message.recipients for message in hop.messages] == [["b@example.net"]]
    assert queue(home).stdout == "nothing waits for the next hop\n"
    assert queue(home, "show", id_).returncode == NO_INPUT


def test_what_a_daemon_is_trying_is_left_to_it(home):
    id_ = left_by_daemon(home)
    envelope = home.tmda / f"outbox/{id_}.envelope"
    with FakeNextHop(at("DOT", STALL)) as hop:
        home.configure(to_smtp(hop.port))
        os.utime(envelope, (0, 0))
        with tofmipd(home, "--queue-retry", "1h"):
            wait_until(lambda: hop.connections, "the daemon's attempt")
            assert [message["state"] for message in listed(queue(home, "--json"))] == ["trying"]
            for words in (["retry", id_], ["retry", "--all"], ["remove", "--force", id_]):
                ended = queue(home, *words)
                assert ended.returncode == TEMPORARY
                assert ended.stdout == f"{id_}: is being tried by somebody else\n"
            assert queue(home, "show", id_, "--body").stdout.endswith("\n\nhello\n")
            assert hop.connections == 1
            hop.close()
            wait_until(envelope.exists, "the end of the attempt")
        (message,) = listed(queue(home, "--json"))
        assert (message["state"], message["waiting"]) == ("waiting", 1)


def test_nothing_is_removed_without_being_asked(home):
    id_ = left_by_daemon(home)
    ended = queue(home, "remove", id_)
    assert (ended.returncode, ended.stdout) == (USAGE, "")
    assert len(listed(queue(home, "--json"))) == 1
    ended = queue(home, "remove", "--force", id_)
    assert ended.stdout == f"{id_}: removed; 1 recipient will never get it\n"
    assert os.listdir(home.tmda / "outbox") == []


def test_an_interrupted_reader_is_no_error(home):
    left_by_daemon(home)
    command = f"{PROGRAM} queue --json --personal | head -c 1"
    ended = subprocess.run(
        ["/bin/sh", "-c", command], env=environment(home), capture_output=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == (b"[", b"")


# Global mode


class Post:
    """A village whose people have mail that waits."""

    def __init__(self, village: Village) -> None:
        self.village = village
        self.people = village.people

    def box(self, person: Villager) -> Path:
        return self.village.outboxes / person.name

    def root(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.village.run("queue", *words, "--outbox", str(self.village.outboxes))

    def user(self, person: Villager, *words: str) -> subprocess.CompletedProcess[str]:
        return run(
            "queue",
            *words,
            home=person.home,
            program=self.village.program,
            variables=self.village.variables,
            user=person.uid,
        )

    def id_of(self, person: Villager) -> str:
        (envelope,) = self.box(person).glob("*.envelope")
        return envelope.name.removesuffix(".envelope")

    def was_tried(self, person: Villager) -> bool:
        for path in self.box(person).glob("*.envelope"):
            # It has another name while somebody tries it.
            with contextlib.suppress(FileNotFoundError):
                return b"\nTried: " in path.read_bytes()
        return False

    def own(self, person: Villager) -> None:
        for path in self.box(person).iterdir():
            os.chown(path, person.uid, person.gid, follow_symlinks=False)


@pytest.fixture
def post(village, village_hop) -> Iterator[Post]:
    """Each of the people has sent a message that the next hop does not take yet."""
    shutil.rmtree(village.outboxes, ignore_errors=True)
    made = Post(village)
    with FakeNextHop(at("MAIL", b"451 4.3.0 later\r\n")) as hop:
        for person in made.people:
            person.configure(to_smtp(hop.port))
        with village.daemon("--spool", "--queue-retry", "1h") as daemon:
            for person in made.people:
                said = submit(daemon.port, TO[0], login=person.name, password=person.password)
                assert said.startswith("250 "), said
            for person in made.people:
                wait_until(lambda person=person: made.was_tried(person), "the first attempt")
    for person in made.people:
        person.configure(to_smtp(village_hop.port))
    yield made
    shutil.rmtree(village.outboxes, ignore_errors=True)


@pytest.mark.root
def test_root_sees_all_and_each_user_his_own(post):
    messages = listed(post.root("--json"))
    assert sorted(message["user"] for message in messages) == [p.name for p in post.people]
    assert {message["state"] for message in messages} == {"waiting"}
    head, *rows = post.root().stdout.splitlines()
    assert head.split()[:2] == ["ID", "USER"]
    assert sorted(row.split()[1] for row in rows) == [p.name for p in post.people]
    ann, ben, _ = post.people
    (own,) = listed(post.user(ann, "--json", "--outbox", str(post.box(ann))))
    assert own["id"] == post.id_of(ann)
    assert "a@example.net: waits" in post.root("show", post.id_of(ben)).stdout
    assert post.root("show", post.id_of(ben), "--body").stdout.endswith("\n\nhello\n")


@pytest.mark.root
@pytest.mark.parametrize(
    "verb", [["list"], ["show", "ID"], ["retry", "ID"], ["remove", "-f", "ID"]]
)
def test_a_user_gets_nowhere_near_another_ones(verb, post, village_hop):
    ann, ben, _ = post.people
    words = [{"ID": post.id_of(ben), "-f": "--force"}.get(word, word) for word in verb]
    for place in (post.box(ben), post.village.outboxes):
        ended = post.user(ann, *words, "--outbox", str(place))
        assert (ended.returncode, ended.stdout) == (PERMISSION, "")
        assert ended.stderr == f"tofmipd queue: {place}: Permission denied\n"
    assert post.id_of(ben)
    assert village_hop.messages() == []


@pytest.mark.root
def test_root_has_messages_tried_as_their_users(post, village_hop):
    ann, ben, cat = post.people
    trace = 'import os\nopen(os.path.expanduser("~/trace"), "a").write(repr(['
    trace += 'os.getresuid(), os.getresgid(), os.umask(0o77), sorted(os.environ)]) + "\\n")'
    ann.configure(to_smtp(village_hop.port), trace)
    ids = [post.id_of(person) for person in (ann, ben)]
    ended = post.root("retry", *ids)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(
        line.partition(": sent to 1 ")[0] for line in ended.stdout.splitlines()
    ) == sorted(ids)
    assert len(village_hop.messages()) == 2
    (line,) = (ann.home.path / "trace").read_text().splitlines()
    uids, gids = (ann.uid,) * 3, (ann.gid,) * 3
    names = ["HOME", "LOGIN", "LOGNAME", "PATH", "USER"]
    assert line == repr([uids, gids, 0o077, names])
    assert [message["user"] for message in listed(post.root("--json"))] == [cat.name]
    assert post.user(cat, "retry", "--all", "--outbox", str(post.box(cat))).returncode == 0
    assert listed(post.root("--json")) == []


@pytest.mark.root
def test_root_removes_what_users_have(post):
    ann, ben, _ = post.people
    ended = post.root("remove", "--force", post.id_of(ann), post.id_of(ben))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.count("removed; 1 recipient will never get it\n") == 2
    assert [os.listdir(post.box(person)) for person in (ann, ben)] == [[], []]
    assert len(listed(post.root("--json"))) == 1


HOSTILE = {
    "speaks out of turn": "import os\nfor fd in range(60):\n try: os.write(fd, b'{\"id\": 1}\\n')\n"
    " except OSError: pass",
    "speaks for others": 'import os\nfor fd in range(60):\n try: os.write(fd, b\'{"id": "x",'
    ' "outcome": "sent", "taken": 1, "refused": 0, "waiting": 0}\\n\')\n except OSError: pass',
    "ends the process": "import os\nos._exit(0)",
    "kills the process": "import os\nos.kill(os.getpid(), 9)",
    "is no Python": "SMTPHOST = ",
}


@pytest.mark.root
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_user_is_alone_with_what_he_does(name, post, village_hop):
    _, ben, _ = post.people
    ben.configure(HOSTILE[name])
    ended = post.root("retry", "--all")
    assert ended.returncode == (CONFIG if name == "is no Python" else TEMPORARY)
    assert ben.name in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    sent = [line for line in ended.stdout.splitlines() if ": sent to 1 recipient" in line]
    assert len(sent) == 2
    assert len(village_hop.messages()) == 2
    (left,) = listed(post.root("--json"))
    assert left["user"] == ben.name


@pytest.mark.root
def test_hostile_files_are_listed_and_lead_nowhere(post):
    ann, *_ = post.people
    box = post.box(ann)
    secret = post.village.directory / "secret"
    secret.write_text("Format: tofmipd 1\nsecret: 1\nEnd\n")
    secret.chmod(0o600)
    (box / "link.envelope").symlink_to(secret)
    os.mkfifo(box / "fifo.envelope")
    (box / "\x1b[2J.envelope").write_bytes(os.urandom(1000))
    (box / "dir.envelope").mkdir()
    for number in range(10_000):
        (box / f"n{number}.envelope.bad").write_bytes(b"garbage")
    post.own(ann)
    messages = listed(post.root("--json"))
    assert len(messages) == 10_007
    broken = {message["id"] for message in messages if message["state"] == "broken"}
    assert len(broken) == 10_004
    assert {"link", "fifo", "dir", "\x1b[2J", "n9999"} <= broken
    shown = post.root()
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert "secret" not in shown.stdout + post.root("show", "link", "--body").stdout
    assert post.root("remove", "--force", "link", "fifo", "\x1b[2J").returncode == 0
    assert secret.exists()
    assert not list(box.glob("[lf\x1b]*.envelope"))


@pytest.mark.root
def test_links_in_the_place_of_outboxes_are_not_followed(post):
    ann, ben, _ = post.people
    shutil.rmtree(post.box(ann))
    post.box(ann).symlink_to(post.box(ben))
    assert ann.name not in {message["user"] for message in listed(post.root("--json"))}
    os.unlink(post.box(ann))


@pytest.mark.root
def test_what_an_account_has_left_behind_can_be_seen_and_removed(post):
    ann, *_ = post.people
    id_ = post.id_of(ann)
    gone = post.village.outboxes / "no-such-account"
    post.box(ann).rename(gone)
    for path in (gone, *gone.iterdir()):
        os.chown(path, 61234, 61234)
    assert "no-such-account" in post.root().stdout
    ended = post.root("retry", id_)
    assert (ended.returncode, ended.stdout) == (CONFIG, "")
    assert "'no-such-account' is no account of this system" in ended.stderr
    assert post.root("remove", "--force", id_).returncode == 0


@pytest.mark.root
def test_a_virtual_users_mail_is_tried_with_his_own_configuration_only(post, village_hop, tmp_path):
    ann, *_ = post.people
    id_ = post.id_of(ann)
    post.box(ann).rename(post.village.outboxes / f"{ann.name}:you@virtual.example")
    ended = post.root("retry", id_)
    assert (ended.returncode, ended.stdout, village_hop.messages()) == (CONFIG, "", [])
    assert "-S" in ended.stderr
    configs = post.village.directory / "configs/you@virtual.example"
    configs.mkdir(parents=True, exist_ok=True)
    (configs / "config").write_text(f'HOSTNAME = "x.example"\n{to_smtp(village_hop.port)}\n')
    ended = post.root("retry", id_, "-c", str(configs.parent))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(village_hop.messages()) == 1


@pytest.mark.root
@pytest.mark.parametrize("wrong", ["root's", "writable"])
def test_directories_that_are_not_as_they_must_be_are_said(wrong, post):
    ann, *_ = post.people
    if wrong == "root's":
        os.chown(post.box(ann), 0, 0)
        ended = post.root("list", "--json")
        assert len(json.loads(ended.stdout)) == 2
        assert str(post.box(ann)) in ended.stderr
    else:
        post.village.outboxes.chmod(0o777)
        ended = post.root("list")
        assert ended.stdout == ""
    assert ended.returncode == CONFIG
    assert ended.stderr.count("\n") == 1


@pytest.mark.root
def test_the_daemon_of_root_goes_on_with_what_the_tool_leaves(post, village_hop):
    ann, *_ = post.people
    with FakeNextHop(at("MAIL", b"451 4.3.0 later\r\n")) as hop:
        ann.configure(to_smtp(hop.port))
        ended = post.root("retry", post.id_of(ann))
        assert ended.returncode == TEMPORARY
        assert "1 still waits" in ended.stdout
    ann.configure(to_smtp(village_hop.port))
    envelope = post.box(ann) / f"{post.id_of(ann)}.envelope"
    os.utime(envelope, (0, 0))
    with post.village.daemon():
        wait_until(lambda: not list(post.box(ann).glob("*")), "the daemon's attempt")
    assert len(village_hop.messages()) == 1


def test_the_users_part_of_the_common_place_is_his_too(home, tmp_path, monkeypatch):
    from tofmipd.commands import queueboxes
    from tofmipd.settings import Person, Queue, Settings

    monkeypatch.setattr(queueboxes, "GLOBAL_OUTBOXES", str(tmp_path))
    (tmp_path / "anna").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "anna")
    uid = os.getuid() or 12345
    with contextlib.suppress(PermissionError):
        os.chown(tmp_path / "anna", uid, -1)

    def found(name: str, uid: int, outbox: str = "") -> list[str]:
        person = Person(uid, name, "", "/home/x")
        settings = Settings(person, queue=Queue(directory=outbox))
        return [box.directory for box in queueboxes.boxes_of(settings, pytest.fail)]

    own = "/home/x/.tmda/outbox"
    assert found("anna", uid) == [own, str(tmp_path / "anna")]
    assert found("anna", uid + 1) == [own]
    assert found("link", uid) == [own]
    assert found("ben", uid) == [own]
    assert found("anna", uid, "/other") == ["/other"]
