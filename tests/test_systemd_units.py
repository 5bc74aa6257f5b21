"""The units below etc/systemd, and the files beside them, as systemd's own tools see them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from units import SYSTEM, USER, settings

from tofmipd import errors
from tofmipd.options import COMMANDS, make_parser

ETC = SYSTEM.parent
PROGRAMS = ("/opt/tofmipd/bin/tofmipd", "%h/tofmipd/bin/tofmipd")
# Of those that run the daemon's code for everybody, and of the drop-in for one person.
EXPOSURE_LIMIT = 4.0
ROOTS = ["tofmipd.service", "tofmipd@.service", "tofmipd-inetd@.service", "tofmipd-queue.service"]
SERVICES = [*sorted(SYSTEM.glob("*.service")), *sorted(USER.glob("*.service"))]
SANDBOX = re.compile(r"\n# Workers become .*?(?=\n\n|\n?\Z)", re.S)


def name_of(path: Path) -> str:
    return str(path.relative_to(SYSTEM))


def analyze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Units of other packages have sockets there, whose paths must not be too long.
    with tempfile.TemporaryDirectory() as runtime:
        return subprocess.run(
            ["systemd-analyze", *arguments],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": runtime, "HOME": str(cwd)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of all in which the program is one that is there."""
    copy = tmp_path / "units"
    shutil.copytree(SYSTEM, copy)
    for unit in copy.rglob("*.service"):
        text = unit.read_text()
        for program in PROGRAMS:
            text = text.replace(program, "/bin/true")
        unit.write_text(text)
    return copy


@pytest.mark.peer("systemd-analyze")
@pytest.mark.parametrize("whose", ["system", "user"])
def test_systemd_finds_nothing_wrong_with_any_unit(units, whose):
    place = units if whose == "system" else units / "user"
    names = [path.name for path in sorted(place.iterdir()) if path.is_file()]
    assert len(names) >= 6
    verified = analyze(f"--{whose}", "verify", "--man=no", *names, cwd=place)
    assert (verified.returncode, verified.stderr) == (0, "")


@pytest.mark.peer("systemd-analyze")
def test_a_mistake_in_a_unit_would_be_found(units):
    unit = units / "tofmipd.service"
    unit.write_text(unit.read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "WatchDogSec" in analyze("verify", "--man=no", unit.name, cwd=units).stderr


def exposure(unit: str, cwd: Path, whose: str = "system") -> float:
    said = analyze(f"--{whose}", "security", "--offline=true", unit, cwd=cwd).stdout
    (level,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    return float(level)


@pytest.mark.peer("systemd-analyze")
@pytest.mark.parametrize("name", ROOTS)
def test_what_root_runs_is_exposed_little(units, name):
    assert exposure(name, units) <= EXPOSURE_LIMIT


@pytest.mark.peer("systemd-analyze")
def test_so_is_a_person_with_the_drop_in(units):
    unit, drop_in = USER / "tofmipd.service", USER / "tofmipd.service.d/hardened.conf"
    (units / "hardened.service").write_text(unit.read_text() + drop_in.read_text())
    assert exposure("hardened.service", units, "user") <= EXPOSURE_LIMIT


def test_all_that_root_runs_has_the_same_sandbox():
    first, *others = [SANDBOX.findall((SYSTEM / name).read_text()) for name in ROOTS]
    assert len(first) == 1
    assert first[0].count("\n") >= 30
    assert all(other == first for other in others)


@pytest.mark.parametrize("path", SERVICES, ids=name_of)
def test_units_start_the_program_as_it_can_be_started(path):
    unit = settings(path)
    commands = unit["Service.ExecStart"] + unit.get("Service.ExecReload", [])
    for command in commands:
        program, *arguments = shlex.split(re.sub(r"\$\w*OPTIONS", "", command).replace("%i", "x"))
        if program == "/bin/kill":
            continue
        assert program == PROGRAMS[path.parent == USER]
        if arguments[0] in COMMANDS:
            continue
        known = {name for action in make_parser()._actions for name in action.option_strings}
        assert {word for word in arguments if word.startswith("-")} <= known


@pytest.mark.parametrize("path", SERVICES, ids=name_of)
def test_a_restart_is_tried_only_where_it_can_help(path):
    unit = settings(path)
    daemon = "-f" in unit["Service.ExecStart"][0].split()
    # The start itself says what is wrong; for what comes before it, systemd would try for ever.
    assert "Service.ExecStartPre" not in unit
    assert (unit.get("Service.Restart") == ["on-failure"]) == daemon
    if daemon:
        never = unit["Service.RestartPreventExitStatus"][0].split()
        assert never == [str(s) for s in (errors.USAGE, errors.PERMISSION, errors.CONFIG)]


@pytest.mark.peer("systemd-sysusers", "systemd-tmpfiles")
@pytest.mark.root
def test_account_and_directories_are_made(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    for command, file in [
        (("systemd-sysusers",), "sysusers.d/tofmipd.conf"),
        (("systemd-tmpfiles", "--create"), "tmpfiles.d/tofmipd.conf"),
    ]:
        subprocess.run([*command, f"--root={root}", ETC / file], check=True, timeout=60)
    (account,) = (root / "etc/passwd").read_text().splitlines()
    name, _, uid, gid, _, home, shell = account.split(":")
    assert (name, home, shell) == ("tofmipd", "/nonexistent", "/usr/sbin/nologin")
    assert 0 < int(uid) < 1000
    made = {path: (root / path).stat() for path in ("var/lib/tofmipd", "var/spool/tofmipd")}
    found = [(oct(s.st_mode & 0o7777), s.st_uid, s.st_gid) for s in made.values()]
    assert found == [("0o700", int(uid), int(gid)), ("0o711", 0, 0)]
