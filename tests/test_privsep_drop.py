"""Giving up root: everything is gone, nothing leads back, and any difference is found."""

from __future__ import annotations

import ctypes
import os
import tempfile

import pytest
from forking import in_child

from tofmipd.errors import PERMISSION
from tofmipd.privsep import linux
from tofmipd.privsep.drop import Rights, become, faults

# Numbers that no account has.
UID, GID, MORE, OTHER = 54321, 54322, 54323, 54324
RIGHTS = Rights("somebody", UID, GID, (GID, MORE))
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")

_KEEP_CAPABILITIES = 8
_CHOWN, _SETGID, _SETUID = 1 << 0, 1 << 6, 1 << 7
_ALL = _CHOWN | _SETGID | _SETUID
_library = ctypes.CDLL(None, use_errno=True)


def status() -> dict[str, str]:
    """What the kernel says of this process."""
    with open("/proc/self/status") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def capset(effective: int, permitted: int, inheritable: int) -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(effective, permitted, inheritable, 0, 0, 0)
    assert _library.capset(header, sets) == 0


def keep_capabilities() -> None:
    assert _library.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0) == 0


# Becoming somebody.


@pytest.mark.root
def test_all_ids_groups_and_capabilities_are_those_of_the_account():
    def act():
        become(RIGHTS)
        return [status()[name] for name in ("Uid", "Gid", "Groups", *CAPABILITIES)]

    ids = ["\t".join([str(number)] * 4) for number in (UID, GID)]
    assert in_child(act) == (0, f"{[*ids, f'{GID} {MORE}', *['0' * 16] * 4]}\n")


@pytest.mark.root
def test_capabilities_that_were_to_outlive_the_change_of_ids_are_given_up():
    def act():
        capset(_ALL, _ALL, _CHOWN)
        keep_capabilities()
        become(RIGHTS)
        return {status()[name] for name in CAPABILITIES}

    assert in_child(act) == (0, f"{ {'0' * 16} }\n")


@pytest.mark.root
@pytest.mark.parametrize(
    "way_back",
    [
        lambda: os.setuid(0),
        lambda: os.seteuid(0),
        lambda: os.setresuid(-1, 0, -1),
        lambda: os.setreuid(0, -1),
        lambda: os.setgid(0),
        lambda: os.setegid(0),
        lambda: os.setresgid(-1, -1, 0),
        lambda: os.setgroups([0]),
        lambda: os.setuid(OTHER),
        lambda: os.kill(1, 0),
        lambda: os.chroot("/"),
        lambda: os.open("/proc/1/mem", os.O_RDONLY),
        lambda: os.open("/etc/shadow", os.O_RDONLY),
    ],
)
def test_there_is_no_way_back(way_back):
    def act():
        become(RIGHTS)
        try:
            way_back()
        except PermissionError:
            return "refused"

    assert in_child(act) == (0, "refused\n")


@pytest.mark.root
def test_a_child_and_a_program_of_the_process_have_no_more_rights():
    def act():
        become(RIGHTS)
        if os.fork() == 0:
            os.dup2(2, 1)
            os.execv("/bin/sh", ["sh", "-c", "id -u; id -g; id -G; grep CapEff /proc/self/status"])
        os.wait()

    ended = in_child(lambda: (os.dup2(os.sys.stderr.fileno(), 2), act())[1])
    assert ended == (0, f"{UID}\n{GID}\n{GID} {MORE}\nCapEff:\t{'0' * 16}\n")


# Refusals.


@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (0, GID), (-1, GID), (UID, -1)])
def test_nobody_becomes_root_and_no_id_is_left_as_it_was(uid, gid):
    """-1 would mean "as it is" to the kernel."""
    ended = in_child(lambda: become(Rights("root", uid, gid, (gid,))))
    assert ended.status == PERMISSION
    assert ended.said.endswith(f" refuses to run as uid {uid}, gid {gid}\n")
    assert ended.said.count("\n") == 1


@pytest.mark.root
def test_the_group_of_root_is_refused_too():
    ended = in_child(lambda: become(Rights("somebody", UID, 0, (0,))))
    assert ended.status == PERMISSION
    assert "is not what it should be as somebody: setgid(0) is possible" in ended.said


@pytest.mark.root
def test_who_is_not_root_becomes_nobody_else():
    def act():
        become(RIGHTS)
        become(Rights("another", OTHER, OTHER, (OTHER,)))

    ended = in_child(act)
    assert ended.status == PERMISSION
    assert ended.said.endswith(" cannot become another: Operation not permitted\n")


def test_nobody_can_catch_the_end_and_go_on():
    def act():
        try:
            become(Rights("root", 0, 0, ()))
        except BaseException:
            return "caught"
        finally:
            print("went on")

    ended = in_child(act)
    assert ended.status == PERMISSION == 77
    assert "caught" not in ended.said
    assert "went on" not in ended.said


LIES = {
    "setgroups": (lambda groups: None, "groups"),
    "setresgid": (lambda real, effective, saved: os.setegid(effective), "gids"),
    "setresuid": (lambda real, effective, saved: os.seteuid(effective), "uids"),
}


@pytest.mark.root
@pytest.mark.parametrize("call", LIES)
def test_a_system_call_that_does_half_of_its_work_ends_the_process(call):
    def act():
        os.setgroups([0, OTHER])
        setattr(os, call, LIES[call][0])
        become(RIGHTS)

    ended = in_child(act)
    assert ended.status == PERMISSION
    assert f"is not what it should be as somebody: {LIES[call][1]} " in ended.said
    assert ended.said.count("\n") == 1


# Differences.


def drop(*, uids=(UID, UID, UID), gids=(GID, GID, GID), groups=(GID, MORE)) -> None:
    os.setgroups(groups)
    os.setresgid(*gids)
    os.setresuid(*uids)


def file_system_uid() -> None:
    """Only the id that counts for files is still root's."""
    keep_capabilities()
    drop()
    capset(_SETUID, _SETUID, 0)
    _library.setfsuid(0)
    capset(0, 0, 0)


def with_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    keep_capabilities()
    drop()
    capset(effective, permitted, inheritable)


PARTIAL = {
    "nothing at all": (lambda: None, ["uids ", "gids ", "CapEff ", "setuid(0) is possible"]),
    "real uid kept": (lambda: drop(uids=(0, UID, UID)), ["uids ", "seteuid(0) is possible"]),
    "saved uid kept": (lambda: drop(uids=(UID, UID, 0)), ["uids ", "setuid(0) is possible"]),
    "file system uid kept": (file_system_uid, [f"Uid {UID}\t{UID}\t{UID}\t0"]),
    "another uid": (lambda: drop(uids=(OTHER,) * 3), ["uids ", "Uid "]),
    "real gid kept": (lambda: drop(gids=(0, GID, GID)), ["gids ", "setegid(0) is possible"]),
    "saved gid kept": (lambda: drop(gids=(GID, GID, 0)), ["gids ", "setgid(0) is possible"]),
    "another gid": (lambda: drop(gids=(OTHER,) * 3), ["gids ", "Gid "]),
    "a group more": (lambda: drop(groups=(GID, MORE, OTHER)), ["groups "]),
    "root's group": (lambda: drop(groups=(GID, MORE, 0)), ["groups "]),
    "a group less": (lambda: drop(groups=(GID,)), ["groups "]),
    "no group": (lambda: drop(groups=()), ["groups "]),
    "permitted": (lambda: with_capabilities(0, _CHOWN, 0), ["CapPrm 0000000000000001"]),
    "effective": (lambda: with_capabilities(_CHOWN, _CHOWN, 0), ["CapEff 0000000000000001"]),
    "inheritable": (lambda: with_capabilities(0, 0, _CHOWN), ["CapInh 0000000000000001"]),
}


@pytest.mark.root
@pytest.mark.parametrize("case", PARTIAL)
def test_every_kind_of_difference_is_found(case):
    act, words = PARTIAL[case]

    def look():
        act()
        return "\n".join(faults(RIGHTS))

    ended = in_child(look)
    assert ended.status == 0
    for word in words:
        assert word in ended.said


@pytest.mark.root
@pytest.mark.parametrize("groups", [(GID, MORE), (MORE, GID), (MORE,)])
def test_where_there_is_no_difference_none_is_found(groups):
    """The primary group may be among the others or not; the order says nothing."""

    def look():
        drop(groups=groups)
        return faults(RIGHTS)

    assert in_child(look) == (0, "[]\n")


@pytest.mark.root
def test_without_the_word_of_the_kernel_nothing_is_believed(monkeypatch):
    monkeypatch.setattr("tofmipd.privsep.drop._STATUS", "/proc/none/status")
    ended = in_child(lambda: become(RIGHTS))
    assert ended.status == PERMISSION
    assert "/proc/none/status cannot be read: No such file" in ended.said


# What Linux offers besides.


@pytest.mark.root
def test_no_program_gains_what_is_out_of_bounds():
    def act():
        linux.drop_bounding_set()
        become(RIGHTS)
        linux.gain_nothing()
        return [status()[name] for name in ("CapBnd", "NoNewPrivs")]

    assert in_child(act) == (0, f"{['0' * 16, '1']}\n")


@pytest.mark.root
def test_a_hidden_process_cannot_be_looked_into_by_its_own_account():
    def act():
        become(RIGHTS)
        linux.hide()
        reader, writer = os.pipe()
        mine = os.getpid()
        if os.fork() == 0:
            try:
                os.open(f"/proc/{mine}/mem", os.O_RDONLY)
                os.write(writer, b"seen")
            except PermissionError:
                os.write(writer, b"refused")
            finally:
                os._exit(0)
        os.wait()
        return os.read(reader, 20).decode()

    assert in_child(act) == (0, "refused\n")


@pytest.mark.root
def test_files_of_root_and_of_others_are_out_of_reach():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        for owner, mode in ((0, 0o600), (OTHER, 0o600), (OTHER, 0o660)):
            path = f"{directory}/{owner}-{mode:o}"
            with open(path, "w"):
                pass
            os.chmod(path, mode)
            os.chown(path, owner, owner)

        def act():
            become(RIGHTS)
            for name in os.listdir(directory):
                try:
                    os.open(f"{directory}/{name}", os.O_RDONLY)
                except PermissionError:
                    continue
                return name

        assert in_child(act) == (0, "")


def test_the_name_of_a_process_is_shown_cut_to_what_fits():
    def act():
        linux.set_name("tofmipd-monitor-and-more")
        with open("/proc/self/comm") as file:
            return file.read().strip()

    assert in_child(act) == (0, "tofmipd-monitor\n")
