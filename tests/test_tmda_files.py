"""The files of a user: who may open what, and writing that leaves nothing torn or half done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import threading

import pytest
from forking import Child, in_child

from tofmipd.tmda import files as files_module
from tofmipd.tmda.files import Files, append, append_once, stamp, write_all

WAIT_SECONDS = 20


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def files(home):
    return Files(str(home))


@pytest.fixture
def confined(home):
    return Files(str(home), confined=True)


def all_at_once(count, act):
    """Run ``act(number)`` in so many threads that begin together; what they return."""
    results = [None] * count
    gate = threading.Barrier(count)

    def live(number):
        gate.wait(WAIT_SECONDS)
        results[number] = act(number)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    return results


# Names


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("~", "{home}"),
        ("~/", "{home}/"),
        ("~/a/b", "{home}/a/b"),
        ("a/b", "{home}/a/b"),
        ("./a", "{home}/./a"),
        ("/a/b", "/a/b"),
        ("a~", "{home}/a~"),
        ("~root", "/root"),
        ("~root/x", "/root/x"),
        ("~nobody-has-this-name/x", "{home}/~nobody-has-this-name/x"),
        ("", ""),
    ],
)
def test_a_name_begins_at_home(files, home, monkeypatch, name, path):
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.chdir("/")
    assert files.expand(name) == path.format(home=home)


# Reading


def test_a_file_that_is_not_there_is_none_and_any_other_trouble_is_an_error(files, home):
    (home / "file").write_bytes(b"\xff\x00\r\n")
    (home / "loop").symlink_to(home / "loop")
    assert files.read(str(home / "file")) == b"\xff\x00\r\n"
    assert files.read(str(home / "none")) is None
    for path in (home, home / "file/below", home / "loop", home / ("n" * 300)):
        with pytest.raises(OSError, match=r".") as caught:
            files.read(str(path))
        assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(ValueError, match="null"):
        files.read("a\0b")


def test_what_is_opened_is_not_inherited(files, home):
    descriptor = files.open(str(home / "new"), os.O_WRONLY | os.O_CREAT)
    try:
        assert not os.get_inheritable(descriptor)
        assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("writer", [False, True])
def test_a_pipe_is_neither_an_empty_file_nor_a_reason_to_wait(files, home, writer):
    """Whoever names one by mistake would see rules fail to match for no reason to be seen."""
    path = str(home / "pipe")
    os.mkfifo(path)

    def act():
        with contextlib.ExitStack() as stack:
            if writer:
                stack.callback(os.close, os.open(path, os.O_RDWR | os.O_NONBLOCK))
            with pytest.raises(OSError, match=r"."):
                files.read(path)

    ended = in_child(act)
    assert ended.status == 0, ended.said


def test_a_device_may_stand_for_an_empty_file(files):
    assert files.read("/dev/null") == b""


# What has changed


@pytest.mark.parametrize("change", ["append", "same size", "same time", "replace", "mode"])
def test_a_stamp_changes_with_the_file(home, change):
    path = home / "file"
    path.write_bytes(b"one\n")
    os.utime(path, ns=(10**18, 10**18))
    before = stamp(str(path))
    assert before is not None
    assert before == stamp(str(path))
    if change == "append":
        with open(path, "ab") as file:
            file.write(b"x")
        os.utime(path, ns=(10**18, 10**18))
    elif change == "same size":
        path.write_bytes(b"two\n")
    elif change == "same time":
        # As rsync --inplace --times leaves it.
        path.write_bytes(b"two\n")
        os.utime(path, ns=(10**18, 10**18))
    elif change == "replace":
        (home / "new").write_bytes(b"two\n")
        os.utime(home / "new", ns=(10**18, 10**18))
        os.replace(home / "new", path)
    else:
        path.chmod(0o640)
    assert stamp(str(path)) != before


@pytest.mark.parametrize("path", ["none", "file/below", "a\0b"])
def test_what_is_not_there_has_no_stamp(home, path):
    (home / "file").write_bytes(b"")
    assert stamp(f"{home}/{path}") is None


# Confined


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_bytes(b"secret\n")
    return path


ESCAPES = ["absolute", "dots", "link", "link to link", "linked directory", "hidden dots", "proc"]


def escape(kind, home, outside):
    """A name of the secret."""
    if kind == "absolute":
        return str(outside / "secret")
    if kind == "dots":
        return f"{home}/../outside/secret"
    if kind == "link":
        (home / "link").symlink_to(outside / "secret")
        return str(home / "link")
    if kind == "link to link":
        (home / "second").symlink_to("../outside/secret")
        (home / "link").symlink_to("second")
        return str(home / "link")
    if kind == "linked directory":
        (home / "down").symlink_to(outside)
        return str(home / "down/secret")
    if kind == "hidden dots":
        (home / "d").mkdir()
        return str(home / "d/../../outside/secret")
    (home / "root").symlink_to("/proc/self/root")
    return f"{home}/root{outside}/secret"


@pytest.mark.parametrize("kind", ESCAPES)
def test_confined_nothing_outside_the_home_is_read(files, confined, home, outside, kind):
    path = escape(kind, home, outside)
    assert files.read(path) == b"secret\n"
    with pytest.raises(PermissionError, match="not below your home"):
        confined.read(path)


@pytest.mark.parametrize("kind", ESCAPES)
@pytest.mark.parametrize("how", ["append", "replace", "locked"])
def test_confined_nothing_outside_the_home_is_written(confined, home, outside, kind, how):
    path = escape(kind, home, outside)
    before = sorted(os.listdir(outside))
    act = {
        "append": lambda: append_once(confined, path, b"x@x.example"),
        "replace": lambda: confined.replace(path, b"new\n"),
        "locked": lambda: append(confined, path, b"new\n"),
    }[how]
    # A link in the home may be replaced: that is the user's own.
    if how == "replace" and kind in ("link", "link to link"):
        act()
    else:
        with pytest.raises(PermissionError, match="not below your home"):
            act()
    assert (outside / "secret").read_bytes() == b"secret\n"
    assert sorted(os.listdir(outside)) == before


def test_confined_a_link_to_nowhere_makes_no_file_outside(confined, home, outside):
    (home / "link").symlink_to(outside / "new")
    with pytest.raises(PermissionError, match="not below your home"):
        append_once(confined, str(home / "link"), b"x@x.example")
    assert not (outside / "new").exists()


def test_confined_a_home_whose_name_another_begins_with_is_another(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home2").mkdir()
    (tmp_path / "home2/file").write_bytes(b"x")
    confined = Files(str(tmp_path / "home"), confined=True)
    with pytest.raises(PermissionError, match="not below your home"):
        confined.read(str(tmp_path / "home2/file"))


def test_confined_links_within_the_home_and_a_home_that_is_a_link_are_good(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")
    (tmp_path / "real/file").write_bytes(b"x\n")
    (tmp_path / "real/link").symlink_to("file")
    confined = Files(str(tmp_path / "home"), confined=True)
    for name in ("file", "link"):
        assert confined.read(str(tmp_path / "home" / name)) == b"x\n"
        assert confined.read(str(tmp_path / "real" / name)) == b"x\n"
    assert confined.read(str(tmp_path / "home/none")) is None
    assert confined.names(str(tmp_path / "home")) == ["file", "link"]


def test_confined_what_the_administrator_names_may_be_anywhere(confined, outside):
    path = str(outside / "secret")
    confined.allow([path])
    assert confined.read(path) == b"secret\n"
    with pytest.raises(PermissionError, match="not below your home"):
        confined.read(f"{outside}/./secret")


def test_confined_a_directory_outside_the_home_is_not_listed(files, confined, home, outside):
    (home / "down").symlink_to(outside)
    assert files.names(str(home / "down")) == ["secret"]
    for path in (outside, home / "down", home / "../outside"):
        with pytest.raises(PermissionError, match="not below your home"):
            confined.names(str(path))


# Replacing


def test_a_replaced_file_is_whole_at_any_time(files, home):
    path = str(home / "file")
    texts = [bytes([letter]) * 200_000 for letter in b"ab"]
    files.replace(path, texts[0])
    ended = threading.Event()
    seen = []

    def read():
        while not ended.is_set():
            seen.append(files.read(path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        files.replace(path, texts[number % 2])
    ended.set()
    reader.join(WAIT_SECONDS)
    assert seen
    assert set(seen) <= set(texts)
    assert os.listdir(home) == ["file"]


def test_several_may_replace_a_file_at_once(files, home):
    path = str(home / "file")
    texts = [bytes([65 + number]) * 50_000 for number in range(10)]
    all_at_once(10, lambda number: files.replace(path, texts[number]))
    assert files.read(path) in texts
    assert os.listdir(home) == ["file"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(files, home):
    (home / "directory").mkdir()
    with pytest.raises(OSError, match=r"."):
        files.replace(str(home / "directory"), b"x")
    assert os.listdir(home) == ["directory"]


# Appending


@pytest.mark.parametrize(
    ("before", "address", "after"),
    [
        (None, b"a@x.example", b"a@x.example\n"),
        (b"", b"a@x.example", b"a@x.example\n"),
        (b"b@x.example\n", b"a@x.example", b"b@x.example\na@x.example\n"),
        (b"b@x.example", b"a@x.example", b"b@x.example\na@x.example\n"),
        (b"b@x.example\r\n", b"a@x.example", b"b@x.example\r\na@x.example\n"),
        (b"A@X.Example\n", b"a@x.example", None),
        (b"a@x.example\n", b"A@X.EXAMPLE", None),
        (b"  a@x.example \t\r\n", b"a@x.example", None),
        (b"a@x.example", b"a@x.example", None),
        (b"a@x.example # a friend\n", b"a@x.example", None),
        (b"a@x.example#\n", b"a@x.example", None),
        (b"#a@x.example\n", b"a@x.example", b"#a@x.example\na@x.example\n"),
        (b"xa@x.example\na@x.example2\n", b"a@x.example", b"{}a@x.example\n"),
        (b"a@x.exam\nple\n", b"a@x.example", b"{}a@x.example\n"),
        (b"\xff\xfe\0\n", b"\xe9@x.example", b"{}\xe9@x.example\n"),
    ],
)
def test_an_address_is_put_on_a_list_once(files, home, before, address, after):
    path = home / "list"
    if before is not None:
        path.write_bytes(before)
    assert append_once(files, str(path), address) is (after is not None)
    expected = before if after is None else after.replace(b"{}", before or b"")
    assert path.read_bytes() == expected
    assert append_once(files, str(path), address) is False
    assert path.read_bytes() == expected


def test_an_address_with_the_sign_of_a_comment_is_put_there_once_too(files, home):
    path = str(home / "list")
    assert append_once(files, path, b"a#b@x.example")
    assert not append_once(files, path, b"A#b@x.example")


@pytest.mark.parametrize(
    ("before", "addresses", "after"),
    [
        (b"", [], None),
        (b"", [b"a@x", b"b@x"], b"a@x\nb@x\n"),
        (b"", [b"a@x", b"b@x", b"B@X"], b"a@x\nb@x\n"),
        (b"b@x", [b"a@x", b"B@X"], b"b@x\na@x\n"),
        (b"A@X\n# c@x\nb@x # c@x\n", [b"a@x", b"b@x"], None),
    ],
)
def test_several_addresses_are_put_there_in_their_order(files, home, before, addresses, after):
    (home / "list").write_bytes(before)
    assert append_once(files, str(home / "list"), *addresses) is (after is not None)
    assert (home / "list").read_bytes() == (before if after is None else after)


def test_a_new_list_is_nobody_elses(files, home):
    append_once(files, str(home / "list"), b"a@x.example")
    assert (home / "list").stat().st_mode & 0o777 == 0o600


# A list takes a while to read, so that others come meanwhile.
LISTED = b"".join(b"old%d@x.example\n" % number for number in range(20_000))
ADDRESSES = [b"%dx%s@x.example" % (number, b"y" * 50) for number in range(5)]


def test_twenty_threads_put_each_address_there_once(files, home):
    path = home / "list"
    path.write_bytes(LISTED)
    done = all_at_once(
        20, lambda _: [append_once(files, str(path), address) for address in ADDRESSES]
    )
    assert sorted(path.read_bytes().removeprefix(LISTED).split()) == sorted(ADDRESSES)
    assert sum(map(sum, done)) == len(ADDRESSES)


def test_twenty_processes_put_each_address_there_once(files, home):
    path = home / "list"
    path.write_bytes(LISTED)
    gate, hold = os.pipe()

    def act():
        os.close(hold)
        os.read(gate, 1)
        for address in ADDRESSES:
            append_once(files, str(path), address)
        append(files, str(path), b"end of %d\n" % os.getpid())

    children = [Child(act) for _ in range(20)]
    os.close(gate)
    os.close(hold)
    assert [child.end().status for child in children] == [0] * 20
    lines = path.read_bytes().removeprefix(LISTED).split(b"\n")
    ends = [b"end of %d" % child.pid for child in children]
    assert sorted(lines) == sorted([b"", *ADDRESSES, *ends])


@pytest.fixture
def holder(home, request):
    """Another process that holds the lock of the list until its input ends."""
    kind = getattr(request, "param", "-x")
    path = home / "list"
    path.write_bytes(b"b@x.example\n")
    process = subprocess.Popen(
        ["flock", kind, str(path), "sh", "-c", "echo locked; cat >/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.stdin.close()
    process.stdout.close()
    process.wait(WAIT_SECONDS)


@pytest.mark.parametrize("holder", ["-x", "-s"], indirect=True)
def test_a_list_that_another_keeps_locked_is_given_up_after_a_while(
    files, home, holder, monkeypatch
):
    monkeypatch.setattr(files_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match="locked"):
        append_once(files, str(home / "list"), b"a@x.example")
    assert (home / "list").read_bytes() == b"b@x.example\n"


def appending(files, path, address):
    """Put an address on a list in a thread."""
    thread = threading.Thread(target=append_once, args=(files, path, address))
    thread.start()
    return thread


def test_a_list_is_written_when_the_other_lets_go_of_it(files, home, holder):
    thread = appending(files, str(home / "list"), b"a@x.example")
    (home / "list").write_bytes(b"b@x.example\nc@x.example\n")
    assert b"a@x.example" not in (home / "list").read_bytes()
    holder.stdin.close()
    thread.join(WAIT_SECONDS)
    assert (home / "list").read_bytes() == b"b@x.example\nc@x.example\na@x.example\n"


def waits_for_a_lock(path):
    """Whether this process has a file of that name open beside the holder of the lock."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").split(" ")[0] == path:
                return True
    return False


def test_an_address_is_not_lost_when_the_list_is_replaced_meanwhile(files, home, holder):
    """The other writes a new list and gives it the name before it lets go of the old one."""
    path = str(home / "list")
    thread = appending(files, path, b"a@x.example")
    pause = threading.Event()
    for _ in range(1000):
        if waits_for_a_lock(path):
            break
        pause.wait(0.01)
    (home / "new").write_bytes(b"c@x.example\n")
    os.replace(home / "new", path)
    holder.stdin.close()
    thread.join(WAIT_SECONDS)
    assert (home / "list").read_bytes() == b"c@x.example\na@x.example\n"


def test_a_lock_ends_with_the_writing(files, home):
    path = str(home / "list")
    append_once(files, path, b"a@x.example")
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(RuntimeError), files.locked(path):
        raise RuntimeError
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# No room


def test_what_does_not_fit_is_taken_back(files, home):
    """A limit for the size of files stands for a full disk: it can be had without root."""
    before = b"b@x.example\n" * 100
    (home / "list").write_bytes(before)
    (home / "log").write_bytes(before)

    def act():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, len(before) + 10))
        refused = []
        for write in (
            lambda: append_once(files, str(home / "list"), b"a" * 20 + b"@x.example"),
            lambda: append(files, str(home / "log"), b"x" * 1000),
            lambda: files.replace(str(home / "list"), b"y" * 5000),
        ):
            try:
                write()
            except OSError as error:
                refused.append(error.strerror)
        return len(refused)

    assert in_child(act) == (0, "3\n")
    assert (home / "list").read_bytes() == before
    assert (home / "log").read_bytes() == before
    assert sorted(os.listdir(home)) == ["list", "log"]


@pytest.mark.root
def test_on_a_full_disk_nothing_is_half_written(small_disk):
    files = Files(str(small_disk))
    path = small_disk / "list"
    addresses = [b"%04d%s@x.example" % (number, b"y" * 900) for number in range(200)]
    kept = []
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - the one that fails
        for address in addresses:
            append_once(files, str(path), address)
            kept.append(address)
    assert len(kept) > 10
    assert path.read_bytes() == b"".join(address + b"\n" for address in kept)
    with pytest.raises(OSError, match="No space left"):
        append(files, str(path), b"z" * 5000)
    with pytest.raises(OSError, match="No space left"):
        files.replace(str(path), b"z" * 60_000)
    assert path.read_bytes() == b"".join(address + b"\n" for address in kept)
    assert os.listdir(small_disk) == ["list"]


def test_octets_that_are_written_in_pieces_arrive_in_order():
    """A pipe takes what fits; the rest follows."""
    reader, writer = os.pipe()
    octets = bytes(range(256)) * 2000
    found = []

    def read():
        with open(reader, "rb") as pipe:
            found.append(pipe.read())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        write_all(writer, octets)
    finally:
        os.close(writer)
        thread.join(WAIT_SECONDS)
    assert found == [octets]


def test_a_list_that_may_not_be_written_is_an_error(home):
    """Root may write anywhere, so somebody without rights tries."""
    (home / "list").write_bytes(b"b@x.example\n")
    (home / "list").chmod(0o444)
    home.chmod(0o555)

    def act():
        # The directories above are not for everybody.
        os.chdir(home)
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        files = Files(".")
        refused = 0
        for write in (
            lambda: append_once(files, "list", b"a@x.example"),
            lambda: append_once(files, "new", b"a@x.example"),
            lambda: files.replace("list", b"x"),
        ):
            with contextlib.suppress(PermissionError):
                write()
                continue
            refused += 1
        return refused

    try:
        assert in_child(act) == (0, "3\n")
    finally:
        home.chmod(0o755)
    assert (home / "list").read_bytes() == b"b@x.example\n"
    assert os.listdir(home) == ["list"]


def test_a_list_that_is_replaced_again_and_again_is_given_up_after_a_while(
    files, home, monkeypatch
):
    """Whoever owns it could hold a thread for ever otherwise."""
    path = home / "list"
    path.write_bytes(b"")
    lock = fcntl.flock

    def replaced(descriptor, how):
        (home / "new").write_bytes(b"")
        os.replace(home / "new", path)
        lock(descriptor, how)

    monkeypatch.setattr(files_module.fcntl, "flock", replaced)
    monkeypatch.setattr(files_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(TimeoutError):
        append_once(files, str(path), b"a@x.example")
    assert path.read_bytes() == b""


def test_what_has_no_size_beforehand_is_limited_too(files, monkeypatch):
    monkeypatch.setattr(files_module, "LIMIT_OCTETS", 100)
    assert os.stat("/proc/self/status").st_size == 0
    with pytest.raises(OSError, match="more than 100 octets"):
        files.read("/proc/self/status")
    monkeypatch.setattr(files_module, "LIMIT_OCTETS", 1 << 20)
    assert files.read("/proc/self/status").startswith(b"Name:")
