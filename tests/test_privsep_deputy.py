"""Work that root has done as somebody else: what comes back is data, and the wait has an end."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import pytest
from fakes import wait_for

from tofmipd.privsep.deputy import Deputy, DeputyFailed
from tofmipd.privsep.drop import Rights
from tofmipd.privsep.identity import Identity

pytestmark = pytest.mark.root

NOBODY = 65534
LONG_SECONDS = 30.0


def deputy(limit_seconds: float = LONG_SECONDS) -> Deputy:
    rights = Rights("nobody", NOBODY, NOBODY, (NOBODY,))
    return Deputy(Identity("nobody", "nobody"), rights, "/nonexistent", limit_seconds)


def where():
    yield {
        "uids": os.getresuid(),
        "gids": os.getresgid(),
        "groups": os.getgroups(),
        "environment": dict(os.environ),
        "umask": os.umask(0),
        "session": os.getsid(0) == os.getpid(),
        "standard": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
    }


def test_it_is_done_by_a_process_of_the_user_in_a_clean_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("TZ", "UTC")
    (told,) = deputy().lines(where)
    assert told["uids"] == told["gids"] == [NOBODY] * 3
    assert set(told["groups"]) <= {NOBODY}
    assert set(told["environment"]) == {"PATH", "HOME", "LOGIN", "LOGNAME", "USER", "TZ"}
    assert told["umask"] == 0o077
    assert told["session"]
    assert told["standard"] == [os.devnull] * 3
    assert (os.getuid(), os.environ["SECRET"]) == (0, "x")


def open_files():
    for number in range(3, 1000):
        with contextlib.suppress(OSError):
            yield {"inode": os.fstat(number).st_ino}


def test_nothing_of_roots_is_open(tmp_path):
    with open(tmp_path / "secret", "w") as file:
        secret = os.fstat(file.fileno()).st_ino
        found = [line["inode"] for line in deputy().lines(open_files)]
    # What the lines go through, and the channel that all children have.
    assert len(found) == 2
    assert secret not in found


def test_lines_of_any_length_arrive_in_order():
    sent = [{"n": n, "text": "é\n" * (n * 1000)} for n in range(50)]
    assert list(deputy().lines(lambda: iter(sent))) == sent


def sleeping():
    yield {"pid": os.getpid()}
    time.sleep(1000)


def crashing():
    yield {"pid": os.getpid()}
    raise RuntimeError("x")


def killed():
    yield {"pid": os.getpid()}
    os.kill(os.getpid(), 9)


def saying(octets: bytes):
    """Write to all that is open, as a user's program may."""

    def work():
        yield {"pid": os.getpid()}
        for number in range(3, 50):
            with contextlib.suppress(OSError):
                os.write(number, octets)

    return work


@pytest.mark.parametrize(
    ("work", "limit_seconds", "said"),
    [
        (sleeping, 0.5, "gave no answer within 0.5 s"),
        (crashing, LONG_SECONDS, "ended with status 70"),
        (killed, LONG_SECONDS, "killed by SIGKILL"),
        (saying(b"nonsense\n"), LONG_SECONDS, "talks nonsense"),
        (saying(b"[1]\n"), LONG_SECONDS, "talks nonsense"),
        (saying(b"[" * 5000 + b"\n"), LONG_SECONDS, "talks nonsense"),
        (saying(b'{"a": ' + b"9" * 5000 + b"}\n"), LONG_SECONDS, "talks nonsense"),
        (saying(b"\xff\n"), LONG_SECONDS, "talks nonsense"),
    ],
)
def test_what_goes_wrong_is_said_and_no_process_is_left(work, limit_seconds, said):
    lines = deputy(limit_seconds).lines(work)
    pid = next(lines)["pid"]
    with pytest.raises(DeputyFailed) as caught:
        list(lines)
    assert said in str(caught.value)
    assert not os.path.exists(f"/proc/{pid}")


def with_child():
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        time.sleep(1000)
    yield {"pid": pid}
    time.sleep(1000)


def test_who_listens_no_more_leaves_nobody_behind():
    lines = deputy().lines(with_child)
    pid = next(lines)["pid"]
    assert os.path.exists(f"/proc/{pid}")
    lines.close()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}") or _is_dead(pid))


def _is_dead(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "ZX"
    return True


def test_standard_output_is_not_written_twice(capfd):
    print("once")
    assert list(deputy().lines(lambda: iter([{"a": 1}]))) == [{"a": 1}]
    sys.stdout.flush()
    assert capfd.readouterr().out == "once\n"
