"""Global mode: the rights of each process, and what a user's own program can do with his."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clients import dialogue, logged_in, plain, submit
from hops import RawHop
from running import HOST, LIMIT_SECONDS, Daemon, to_program, to_smtp, wait_until
from village import (
    Village,
    Villager,
    descriptors,
    in_memory,
    processes,
    status,
    worker_of,
)

pytestmark = pytest.mark.root

TO = "x@example.net"
SECRET = "TheSecretOfWhoStartedIt"
# What root's environment may hold and no user is to see.
VARIABLES = {
    "SECRET": SECRET,
    "LD_LIBRARY_PATH": "/nonexistent/directory",
    "TCPREMOTEIP": "6.6.6.6",
    "TCPLOCALIP": "6.6.6.7",
    "PYTHONWARNINGS": "ignore",
    "TZ": "Europe/Vienna",
}
# Root's own groups and umask are nobody else's; a descriptor that came along is not either.
_START = """\
import os, resource, sys
if os.getuid() == 0:
    os.setgroups([0, 4, 24])
os.umask(0)
number = int(sys.argv[1])
if number:
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    os.dup2(os.open("/etc/passwd", os.O_RDONLY), number)
os.execv(sys.argv[2], sys.argv[2:])
"""

# A user's configuration can do anything that the user can; this one tells how far that goes.
_PROBE = """\
import errno, json, os, pathlib, resource, signal

home = pathlib.Path(os.environ["HOME"])
asked = json.loads((home / ".tmda/asked").read_text())

def result(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    except ValueError as error:
        return str(error)
    return "done"

other, gid = asked["uid"], asked["gid"]
calls = [
    *((name, (number,)) for name in ("setuid", "seteuid") for number in (0, other)),
    *((name, (number,)) for name in ("setgid", "setegid") for number in (0, gid)),
    *((name, (0, 0)) for name in ("setreuid", "setregid")),
    *((name, (0, 0, 0)) for name in ("setresuid", "setresgid")),
    ("setresuid", (-1, -1, 0)), ("setresgid", (-1, -1, 0)),
    ("setgroups", ([],)), ("setgroups", ([0],)), ("setgroups", ([gid],)),
    ("chroot", ("/",)), ("chown", (str(home), 0, 0)), ("setpriority", (os.PRIO_PROCESS, 0, -1)),
    *(("kill", (pid, 0)) for pid in asked["pids"]),
    *(("open", (f"/proc/{pid}/{name}", os.O_RDONLY))
      for pid in asked["pids"] for name in ("mem", "environ", "maps")),
    *(("listdir", (f"/proc/{pid}/fd",)) for pid in asked["pids"]),
    *(("open", (path, os.O_RDONLY)) for path in asked["files"]),
    *(("open", (path, os.O_WRONLY)) for path in asked["files"]),
    *(("listdir", (path,)) for path in asked["directories"]),
]
found = {f"{name}{arguments}": result(getattr(os, name), *arguments) for name, arguments in calls}
found["more descriptors"] = result(resource.setrlimit, resource.RLIMIT_NOFILE, (9999, 9999))

(home / "made").write_text("x")
(home / "made.directory").mkdir()
made = os.umask(0)
os.umask(made)
text = json.dumps({
    "attempts": found,
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "environment": dict(os.environ),
    "umask": made,
    "directory": os.getcwd(),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "status": open("/proc/self/status").read(),
})
(home / "found.new").write_text(text)
os.rename(home / "found.new", home / "found")
"""

# A sendmail program that tells who runs it, with what.
_SENDMAIL = """\
#!/bin/sh
{ id -u; id -g; id -G; umask; echo $(ls /proc/self/fd); } > "$HOME/sendmail.who"
env > "$HOME/sendmail.env"
cat > "$HOME/sendmail.message"
"""


@dataclass(frozen=True)
class Place:
    """A daemon with a worker for each of three people."""

    village: Village
    hop: RawHop
    daemon: Daemon

    @property
    def people(self) -> tuple[Villager, ...]:
        return self.village.people

    def send(self, person: Villager, message: bytes | None = None) -> str:
        return submit(
            self.daemon.port, TO, message=message, login=person.name, password=person.password
        )

    def worker(self, person: Villager) -> int:
        """The pid of a person's worker, which there must be."""
        pid = worker_of(self.daemon, person)
        assert pid
        return pid

    def processes(self) -> dict[str, int]:
        """All of them; workers by the names of their accounts, each of whom has one."""
        found = processes(self.daemon)
        assert set(found) == {"monitor", "server", "auth", *(p.name for p in self.people)}
        return found

    def probe(self, person: Villager, **asked: object) -> dict[str, Any]:
        """Run a program in the configuration of a person; what it has found."""
        questions = {"uid": 1, "gid": 1, "pids": [], "files": [], "directories": [], **asked}
        person.write("asked", json.dumps(questions))
        person.write("probe.py", _PROBE)
        for name in ("made", "found"):
            (person.home.path / name).unlink(missing_ok=True)
        if (person.home.path / "made.directory").exists():
            (person.home.path / "made.directory").rmdir()
        path = person.home.tmda / "probe.py"
        person.configure(to_smtp(self.hop.port), f"exec(open({str(path)!r}).read(), {{}})")
        reply = self.send(person)
        assert reply.startswith("250"), reply
        found: dict[str, Any] = json.loads((person.home.path / "found").read_text())
        return found


def started_by(village: Village, descriptor: int = 0) -> Village:
    """The village, its daemon started by somebody who has more than root needs."""
    start = (sys.executable, "-c", _START, str(descriptor))
    return dataclasses.replace(village, program=(*start, *village.program))


@pytest.fixture(scope="module")
def standing_village(
    village_once: Village, village_hop_once: RawHop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    village_hop_once.reset()
    village_once.reset(village_hop_once.port)
    log = str(tmp_path_factory.mktemp("log") / "log")
    with started_by(village_once).daemon("--log-file", log, variables=VARIABLES) as daemon:
        yield Place(village_once, village_hop_once, daemon)


@pytest.fixture
def place(standing_village: Place, village: Village) -> Place:
    """Files as good as new; each person has sent one message, so there are three workers."""
    for person in standing_village.people:
        assert standing_village.send(person).startswith("250")
    standing_village.hop.reset()
    return standing_village


def groups_of(name: str, gid: int) -> set[int]:
    return set(os.getgrouplist(name, gid))


def ids_in_status(pid: int) -> tuple[set[int], set[int], set[int]]:
    """All four uids, all four gids and all groups of a process."""
    lines = status(pid)
    uids, gids, groups = (lines[name].split() for name in ("Uid", "Gid", "Groups"))
    assert (len(uids), len(gids)) == (4, 4)
    return set(map(int, uids)), set(map(int, gids)), set(map(int, groups))


# Who runs as whom.


@pytest.mark.parametrize("name", ["server", "auth"])
def test_server_and_auth_have_the_service_account_s_ids_and_no_capability(name, place):
    """TO-5: real, effective, saved and file system ids; no capability can come back."""
    pid = place.processes()[name]
    gid = place.village.service_gid
    groups = groups_of(place.village.service, gid)
    assert ids_in_status(pid) == ({place.village.service_uid}, {gid}, groups)
    lines = status(pid)
    for word in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[word], 16) == 0, word
    assert lines["NoNewPrivs"] == "1"


def test_each_worker_has_just_its_user_s_ids_and_groups(place):
    """TO-5: three accounts, each in a group of its own and in one more."""
    for person in place.people:
        pid = place.worker(person)
        groups = groups_of(person.name, person.gid)
        assert len(groups) == 2
        assert ids_in_status(pid) == ({person.uid}, {person.gid}, groups)
        lines = status(pid)
        for word in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(lines[word], 16) == 0, word


def test_every_thread_of_a_process_has_the_same_ids(place):
    for name, pid in place.processes().items():
        ids = {
            tuple(lines[word] for word in ("Uid", "Gid", "Groups", "CapEff", "CapBnd"))
            for lines in map(thread_status, Path(f"/proc/{pid}/task").iterdir())
            if lines
        }
        assert len(ids) == 1, name


def thread_status(task: Path) -> dict[str, str]:
    """None of one that has ended meanwhile."""
    try:
        lines = (task / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# What a user's program can do.


def test_a_user_s_program_has_no_way_back_and_none_to_others(place):
    """It tries to become root or another user, to signal and to read other processes and files."""
    bobby, chloe, _ = place.people
    pids = [pid for name, pid in place.processes().items() if name != bobby.name]
    files = ["/etc/shadow", str(place.village.passwords), log_of(place)]
    files += [str(chloe.home.tmda / name) for name in ("crypt_key", "config")]
    found = place.probe(
        bobby,
        uid=chloe.uid,
        gid=chloe.gid,
        pids=pids,
        files=files,
        directories=[str(chloe.home.path), "/root"],
    )
    done = {what: how for what, how in found["attempts"].items() if how not in ("EPERM", "EACCES")}
    assert done == {"more descriptors": "not allowed to raise maximum limit"}
    assert len(found["attempts"]) > 50
    uids, gids, groups = found["ids"]
    assert (uids, gids) == ([bobby.uid] * 3, [bobby.gid] * 3)
    assert set(groups) == groups_of(bobby.name, bobby.gid)


def test_what_a_user_s_program_makes_is_the_user_s_alone(place):
    """Whatever the umask of whoever started the daemon."""
    bobby = place.people[0]
    found = place.probe(bobby)
    assert found["umask"] == 0o077
    for name, mode in (("made", 0o600), ("found", 0o600), ("made.directory", 0o700)):
        made = (bobby.home.path / name).stat()
        assert (made.st_uid, made.st_gid) == (bobby.uid, bobby.gid), name
        assert stat.S_IMODE(made.st_mode) == mode, name


def test_a_user_s_program_sees_nothing_of_the_environment_of_the_daemon(place):
    """Only the time zone passes."""
    bobby = place.people[0]
    found = place.probe(bobby)
    environment = found["environment"]
    assert SECRET not in str(environment)
    assert environment.pop("PATH").startswith("/usr/local/sbin:")
    assert environment == {
        "HOME": str(bobby.home.path),
        "LOGIN": bobby.name,
        "LOGNAME": bobby.name,
        "USER": bobby.name,
        "TZ": VARIABLES["TZ"],
    }
    assert found["directory"] == "/"
    assert found["blocked"] == []


def test_a_sendmail_program_runs_as_the_user_with_a_clean_environment(place):
    """TO-5, TO-87."""
    script = place.village.directory / "sendmail"
    script.write_text(_SENDMAIL)
    script.chmod(0o755)
    for person in place.people[:2]:
        person.configure(to_program(script))
        assert place.send(person).startswith("250")
        who = (person.home.path / "sendmail.who").read_text().splitlines()
        assert who[:2] == [str(person.uid), str(person.gid)]
        assert set(map(int, who[2].split())) == groups_of(person.name, person.gid)
        assert who[3] == "0077"
        text = (person.home.path / "sendmail.env").read_text()
        assert SECRET not in text
        environment = dict(line.split("=", 1) for line in text.splitlines())
        # The shell adds the last ones itself.
        shell_s = {"PWD", "OLDPWD", "SHLVL", "_"}
        expected = {"PATH", "HOME", "LOGIN", "LOGNAME", "USER", "TCPLOCALIP"}
        assert set(environment) - shell_s == expected
        assert environment["HOME"] == str(person.home.path)
        assert {environment[x] for x in ("LOGIN", "LOGNAME", "USER")} == {person.name}
        assert environment["TCPLOCALIP"] == HOST
        for name in ("who", "env", "message"):
            made = (person.home.path / f"sendmail.{name}").stat()
            assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (person.uid, 0o600)
        # The last one is that by which the list was read.
        assert who[4].split() == ["0", "1", "2", "3"]


def test_all_files_of_the_people_are_still_theirs_after_their_mail(place):
    for person in place.people:
        assert place.send(person).startswith("250")
        for path in [person.home.path, *person.home.path.rglob("*")]:
            assert (path.lstat().st_uid, path.lstat().st_gid) == (person.uid, person.gid), path


@pytest.mark.parametrize("way", ["named by CRYPT_KEY_FILE", "by a link"])
def test_the_key_of_another_user_is_out_of_reach(way, place):
    """Its mode is 0600, and who reads it is not root."""
    bobby, chloe, _ = place.people
    key = chloe.home.tmda / "crypt_key"
    if way == "by a link":
        (bobby.home.tmda / "crypt_key").unlink()
        (bobby.home.tmda / "crypt_key").symlink_to(key)
        bobby.configure(to_smtp(place.hop.port))
    else:
        bobby.configure(to_smtp(place.hop.port), f'CRYPT_KEY_FILE = "{key}"')
    reply = place.send(bobby)
    assert reply.startswith("451 4.3.5 ")
    assert not place.hop.messages()
    assert place.send(chloe).startswith("250")


# Descriptors.


def listening_inodes() -> set[str]:
    """Sockets on which anybody of this machine listens for TCP connections."""
    found = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(name).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                found.add(f"socket:[{words[9]}]")
    return found


def channel_inodes() -> set[str]:
    """Sockets that connect processes of this machine."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {f"socket:[{line.split()[6]}]" for line in lines}


def kinds(pid: int) -> Counter[str]:
    """How many descriptors of each kind a process has; files by their names."""
    listening, channels = listening_inodes(), channel_inodes()
    found: Counter[str] = Counter()
    for target in descriptors(pid).values():
        if target in listening:
            found["listener"] += 1
        elif target in channels:
            found["channel"] += 1
        elif target.startswith("socket:"):
            found["connection"] += 1
        elif target.startswith("pipe:"):
            found["pipe"] += 1
        else:
            found[target] += 1
    return found


def faults_in_descriptors(place: Place) -> list[str]:
    """What processes have open that they need not, or the other way round, while no client is
    connected.

    Server and workers keep channels to each other, and so do server and auth: then each has one
    end.  A worker keeps connections to the next hop.
    """
    found = {name: kinds(pid) for name, pid in place.processes().items()}
    people = [person.name for person in place.people]
    # Standard output and error output are where the start lines went to.
    common = {"/dev/null": 1, str(place.daemon.log): 2, log_of(place): 1}
    expected = {
        "monitor": {**common, "listener": 1, "channel": 2 + len(people), "pipe": 2},
        "server": {**common, "listener": 1},
        "auth": common,
        **{name: {"/dev/null": 3} for name in people},
    }
    # All but the one to the monitor.
    channels = {name: found[name].pop("channel", 0) - 1 for name in found if name != "monitor"}
    connections = {name: found[name].pop("connection", 0) for name in people}
    faults = [f"{x}: {dict(found[x])}" for x in found if dict(found[x]) != expected[x]]
    if channels["server"] != sum(count for name, count in channels.items() if name != "server"):
        faults.append(f"ends of channels: {channels}")
    if max(channels[name] for name in ("auth", *people)) > 8 or min(channels.values()) < 0:
        faults.append(f"too many or too few channels: {channels}")
    if max(connections.values()) > 8:
        faults.append(f"too many connections: {connections}")
    return faults


def log_of(place: Place) -> str:
    return next(x for x in descriptors(place.daemon.pid).values() if x.endswith("/log"))


def settle(place: Place) -> None:
    """Wait until there are no faults; sessions end a moment after their clients."""
    deadline = time.monotonic() + 5
    while (faults := faults_in_descriptors(place)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not faults


def test_each_process_has_the_descriptors_that_it_needs_and_no_other(place):
    """No listener in auth and workers, no log and no password file in workers, and so on."""
    settle(place)
    for person in place.people:
        found = descriptors(place.worker(person))
        assert [found[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_no_two_processes_share_a_channel(place):
    """Only the listener is open twice, in the server and in the monitor that will bind no other."""
    with logged_in(place.daemon.port, place.people[0].name, place.people[0].password):
        holders: dict[str, set[str]] = {}
        for name, pid in place.processes().items():
            for target in descriptors(pid).values():
                if target.startswith(("socket:", "pipe:")):
                    holders.setdefault(target, set()).add(name)
        shared = {target: names for target, names in holders.items() if len(names) > 1}
        assert list(shared.values()) == [{"monitor", "server"}]
        assert set(shared) <= listening_inodes()


@pytest.mark.parametrize("number", [40, 3000])
def test_a_descriptor_of_whoever_started_the_daemon_reaches_no_child(number, village, village_hop):
    bobby = village.people[0]
    with started_by(village, number).daemon() as daemon:
        reply = submit(daemon.port, TO, login=bobby.name, password=bobby.password)
        assert reply.startswith("250")
        found = processes(daemon)
        del found["monitor"]
        having = [name for name, pid in found.items() if "/etc/passwd" in descriptors(pid).values()]
        assert len(found) == 3
        assert having == []


def test_fifty_sessions_leave_no_descriptor_behind(place):
    """Messages of all sizes, sessions that end in all ways, at once and one after the other."""
    port = place.daemon.port
    sizes = (10, 100_000, 2_000_000)
    big = [b"Subject: x\r\n\r\n" + b"x\r\n" * (size // 3) for size in sizes]

    def session(number: int) -> None:
        person = place.people[number % 3]
        match number % 5:
            case 0:
                with dialogue(port):
                    pass
            case 1:
                with logged_in(port, person.name, person.password) as talk:
                    talk.envelope(TO)
                    assert talk.say("DATA").startswith("354")
                    talk.send(big[1][:1000])
            case _:
                assert place.send(person, big[number // 5 % 3]).startswith("250")

    for number in range(25):
        session(number)
    settle(place)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(session, range(25)))
    settle(place)


# What a process keeps for itself.

# Run as somebody: what can be had of a process.
_LOOK = """\
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid, found = int(sys.argv[1]), {}
for name in ("mem", "environ", "maps", "auxv"):
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            file.read(0 if name == "mem" else 100)
        found[name] = "done"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
try:
    found["fd"] = str(os.listdir(f"/proc/{pid}/fd") and "done")
except OSError as error:
    found["fd"] = errno.errorcode[error.errno]
PTRACE_SEIZE = 0x4206
seized = libc.ptrace(PTRACE_SEIZE, pid, None, None)
found["ptrace"] = "done" if seized == 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps(found))
"""


def look_into(pid: int, uid: int, gid: int) -> dict[str, str]:
    """Try it as that user; what the attempts came to."""
    done = subprocess.run(
        [sys.executable if uid == 0 else "/usr/bin/python3", "-c", _LOOK, str(pid)],
        **({} if uid == 0 else {"user": uid, "group": gid, "extra_groups": []}),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.peer("python3")
def test_a_process_of_the_same_user_cannot_look_into_server_auth_and_worker(place):
    """Neither its memory nor its environment; the kernel gives these files to root."""
    bobby, found = place.people[0], place.processes()
    service = (place.village.service_uid, place.village.service_gid)
    for name, who in (
        (bobby.name, (bobby.uid, bobby.gid)),
        ("server", service),
        ("auth", service),
    ):
        pid = found[name]
        attempts = look_into(pid, *who)
        assert set(attempts.values()) <= {"EPERM", "EACCES"}, (name, attempts)
        for file in ("mem", "environ", "maps", "fd"):
            assert Path(f"/proc/{pid}/{file}").stat().st_uid == 0, (name, file)
    # An ordinary process of his can be looked into: the attempts work.
    other = subprocess.Popen(["sleep", "60"], user=bobby.uid, group=bobby.gid, extra_groups=[])
    try:
        wait_until(lambda: "sleep" in Path(f"/proc/{other.pid}/cmdline").read_text(), "sleep")
        assert look_into(other.pid, bobby.uid, bobby.gid)["environ"] == "done"
    finally:
        other.kill()
        other.wait()


def test_passwords_are_in_the_memory_of_server_and_auth_only(place):
    """The monitor, of which each worker begins as a copy, never learns one: not even when the
    password file changes, which it opens and does not read."""
    people = place.people
    new = {person.name: f"planted-{person.name}-{os.urandom(8).hex()}" for person in people}
    place.village.write_passwords(new)
    for person in people:
        reply = submit(place.daemon.port, TO, login=person.name, password=new[person.name])
        assert reply.startswith("250")
    with logged_in(place.daemon.port, people[0].name, new[people[0].name]):
        words = [word.encode() for word in new.values()]
        words += [plain(name, word).encode() for name, word in new.items()]
        words += [base64.b64encode(word.encode()).rstrip(b"=") for word in new.values()]
        found = place.processes()
        # They are found where they are: those who look in vain have looked.
        assert set(words[:3]) <= in_memory(found["auth"], *words)
        for name, pid in found.items():
            if name not in ("auth", "server"):
                assert in_memory(pid, *words) == set(), name


def test_a_message_is_in_no_memory_but_its_sender_s_worker_and_the_server(place):
    """Neither in the monitor nor in auth nor with another user, now and afterwards, in a worker
    that starts later too."""
    bobby, chloe, _ = place.people
    marker = f"planted-{os.urandom(12).hex()}".encode()
    message = b"Subject: x\r\n\r\n" + marker + b"\r\n"

    def holders() -> set[str]:
        return {name for name, pid in place.processes().items() if in_memory(pid, marker)}

    place.hop.may_answer.clear()
    with ThreadPoolExecutor() as pool:
        reply = pool.submit(place.send, bobby, message)
        assert place.hop.data_complete.wait(LIMIT_SECONDS)
        assert bobby.name in holders()
        assert holders() <= {bobby.name, "server"}
        place.hop.may_answer.set()
        assert reply.result(LIMIT_SECONDS).startswith("250")
    # Another worker in the place of an old one.
    old = place.worker(chloe)
    os.kill(old, 9)
    wait_until(lambda: worker_of(place.daemon, chloe) != old, "the end of a worker")
    assert place.send(chloe).startswith("250")
    assert place.worker(chloe) != old
    assert holders() <= {bobby.name, "server"}


def test_the_environment_of_the_daemon_is_in_no_worker_s_memory(place):
    """A user's program can read all memory of its own process."""
    pid = place.worker(place.people[0])
    assert in_memory(place.daemon.pid, SECRET.encode())
    assert not in_memory(pid, SECRET.encode())
