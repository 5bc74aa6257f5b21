"""The throttle script (TO-82): it may refuse a message, and nothing else comes of it."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import logged_in, submit
from running import HOST, PASSWORD, make_home, run, to_smtp, usual_umask, wait_until

from tofmipd.errors import Fatal
from tofmipd.renewal import check_scripts
from tofmipd.settings import Scripts

TO = "x@example.net"
EXCEEDED = "450 4.7.1 Outgoing mail quota exceeded"
UNKNOWN = "451 4.3.0 Error: the quota cannot be looked up now, try again later"
# Writes down who runs it and with what; what comes of it depends on a file.
SCRIPT = """\
#!/bin/sh
cd "{records}" || exit 70
name=$$
{{ id -u; id -G; echo "$#"; printf '%s\\n' "$@"; }} > "new.$name"
env | grep -v -E '^(PWD|OLDPWD|SHLVL|_)=' >> "new.$name"
mv "new.$name" "asked.$name"
. ./answer
"""


class Script:
    """A throttle script and what it was given."""

    def __init__(self, directory: Path) -> None:
        with usual_umask():
            self.records = directory / "throttle größer"
            self.records.mkdir()
            self.records.chmod(0o777)
            self.path = self.records / "throttle script"
            self.path.write_text(SCRIPT.format(records=self.records))
            self.path.chmod(0o755)
        self.answer("exit 0")

    def answer(self, lines: str) -> None:
        new = self.records / "answer.new"
        new.write_text(lines + "\n")
        new.chmod(0o644)
        new.replace(self.records / "answer")

    def runs(self) -> list[tuple[str, str, list[str], dict[str, str]]]:
        """Uid, groups, arguments, environment of each run, in order."""
        result = []
        paths = self.records.glob("asked.*")
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            uid, groups, count, *lines = path.read_text().splitlines()
            arguments, variables = lines[: int(count)], lines[int(count) :]
            result.append((uid, groups, arguments, dict(x.split("=", 1) for x in variables)))
        return result


@pytest.fixture
def script(tmp_path):
    return Script(tmp_path)


@pytest.fixture
def throttled(start, home, script):
    return start(home, "-t", str(script.path), "--script-timeout", "1", variables={"SECRET": "x"})


# In personal mode.


def test_the_status_decides_on_each_message(throttled, hop, script):
    with logged_in(throttled.port) as talk:
        for lines, said in (
            ("exit 0", "250 2.0.0 Ok"),
            ("echo you have sent enough; exit 1", EXCEEDED),
            ("exit 100", EXCEEDED),
            ("kill -9 $$", EXCEEDED),
            ("echo nothing to say; exit 0", "250 2.0.0 Ok"),
        ):
            script.answer(lines)
            talk.envelope(TO)
            assert talk.data(b"Subject: x\r\n\r\nx\r\n.\r\n").startswith(said), lines
    throttled.says("WARNING", "throttled user='bobby' status=1 said='you have sent enough'")
    assert len(hop.messages()) == 2
    assert len(script.runs()) == 5


def test_the_login_is_the_only_argument_and_the_environment_is_clean(throttled, hop, script, home):
    assert submit(throttled.port, TO, "y@example.net", login="BOBBY").startswith("250")
    ((uid, _, arguments, environment),) = script.runs()
    assert int(uid) == os.getuid()
    assert arguments == ["bobby"]
    assert environment.pop("PATH")
    assert environment == {"HOME": "/", "LOGIN": "bobby"}


@pytest.mark.parametrize(
    "login",
    [
        "a b",
        "user;touch x",
        "$(touch x)",
        "`touch x`",
        "user|touch x",
        "*",
        "a'b\"c",
        "a\\nb",
        "ä%s ß",
        "user&touch x",
        "user>x",
        "user@example.org",
    ],
)
def test_there_is_no_shell_between_a_login_and_the_script(login, throttled, hop, script, home):
    home.write("tofmipd", f"{login}:{PASSWORD}\n")
    assert submit(throttled.port, TO, login=login).startswith("250")
    ((_, _, arguments, _),) = script.runs()
    assert arguments == [login]
    assert not any((path / "x").exists() for path in (Path("/"), script.records, home.path))


def test_a_script_that_hangs_defers_the_mail_of_those_who_wait_for_it(throttled, hop, script):
    script.answer(
        "if mkdir first 2>/dev/null; then echo $$ > pid.new; mv pid.new pid; sleep 60; fi"
    )
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(submit, throttled.port, TO)
        wait_until(lambda: (script.records / "pid").exists(), "the script")
        assert submit(throttled.port, "y@example.net").startswith("250")
        assert not hanging.done()
        assert hanging.result() == UNKNOWN
    throttled.says("ERROR", "throttle script does not end in 1 s")
    pid = (script.records / "pid").read_text().strip()
    wait_until(lambda: not Path("/proc", pid).exists(), "the end of the script")
    assert [message.recipients for message in hop.messages()] == [("y@example.net",)]


def test_a_script_that_is_gone_or_broken_defers_the_mail(throttled, hop, script):
    script.path.write_text("#!/no/such/interpreter\n")
    assert submit(throttled.port, TO) == UNKNOWN
    throttled.says("ERROR", "throttle script", "cannot be run: [Errno 2]")
    throttled.forget()
    script.path.unlink()
    assert submit(throttled.port, TO) == UNKNOWN
    throttled.says("ERROR", "throttle script", "cannot be run: [Errno 2]")
    assert hop.messages() == []


def test_what_a_script_says_cannot_forge_log_lines(throttled, hop, script):
    script.answer("printf 'one\\n2026-01-01 ERROR two\\r\\033[31m'; exit 1")
    assert submit(throttled.port, TO) == EXCEEDED
    line = throttled.says("WARNING", "throttled user='bobby'")
    assert "one" in line
    assert "two" in line
    assert "\033" not in throttled.text()


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [("missing größer", 0, "is not there"), ("plain", 0o644, "cannot be executed (chmod 755)")],
)
@pytest.mark.parametrize(
    "mode_of_daemon", ["--personal", pytest.param("", marks=[pytest.mark.root])]
)
def test_a_script_that_cannot_be_run_is_an_error_at_the_start(
    mode_of_daemon, name, mode, words, tmp_path
):
    home = make_home(tmp_path / "home")
    path = tmp_path / name
    if mode:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    options = [mode_of_daemon] if mode_of_daemon else ["-u", "daemon"]
    done = run(*options, "-f", "-p", f"{HOST}:0", "-t", str(path), home=home)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == f"tofmipd: {path} {words}; -t names a program\n"


def test_a_directory_is_no_script(tmp_path):
    with pytest.raises(Fatal, match="-t names a program") as error:
        check_scripts(Scripts(throttle=str(tmp_path)))
    assert error.value.status == os.EX_CONFIG


# In global mode.


@pytest.fixture
def village_script(village):
    script = Script(village.directory)
    yield script
    shutil.rmtree(script.records)


@pytest.mark.root
def test_in_global_mode_the_script_runs_as_the_service_and_decides(
    village, village_hop, village_script
):
    bobby, chloe, _ = village.people
    options = ("-t", str(village_script.path), "--script-timeout", "1")
    with village.daemon(*options, variables={"SECRET": "x"}) as daemon:
        for person, lines, said in (
            (bobby, "exit 0", "250"),
            (bobby, "exit 1", EXCEEDED),
            (chloe, "exit 0", "250"),
            (chloe, "exec sleep 60", UNKNOWN),
            (chloe, f'test "$1" != {chloe.name}', EXCEEDED),
            (bobby, f'test "$1" != {chloe.name}', "250"),
        ):
            village_script.answer(lines)
            reply = submit(daemon.port, TO, login=person.name, password=person.password)
            assert reply.startswith(said), lines
    assert len(village_hop.messages()) == 3
    runs = village_script.runs()
    names = [bobby.name] * 2 + [chloe.name] * 3 + [bobby.name]
    assert [arguments for _, _, arguments, _ in runs] == [[name] for name in names]
    for uid, groups, (name,), environment in runs:
        assert int(uid) == village.service_uid
        assert "0" not in groups.split()
        assert environment.pop("PATH")
        assert environment == {"HOME": "/", "LOGIN": name}


@pytest.mark.root
def test_in_global_mode_a_script_that_only_root_can_run_is_a_start_error(village, village_script):
    village_script.path.chmod(0o700)
    place = ("-p", f"{HOST}:0")
    done = village.run("-f", *place, *village.options("-t", str(village_script.path)))
    assert done.returncode == os.EX_CONFIG
    assert f"{village_script.path} cannot be executed by {village.service}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("user", ["a b", "$(touch x)", "user;touch x"])
def test_in_global_mode_a_virtual_login_is_one_argument(user, village, village_hop, village_script):
    bobby = village.people[0]
    login = f"{user}@a.example"
    village.write_passwords({login: PASSWORD})
    vhome = village_script.records / "vhome"
    vhome.write_text(f"#!/bin/sh\necho {bobby.home.path}\n")
    vhome.chmod(0o755)
    domains = village_script.records / "virtualdomains"
    domains.write_text(f"a.example:{bobby.name}\n")
    bobby.configure(to_smtp(village_hop.port))
    options = ("-t", str(village_script.path), "-S", str(vhome), "-v", str(domains))
    with village.daemon(*options) as daemon:
        assert submit(daemon.port, TO, login=login).startswith("250")
    ((_, _, arguments, _),) = village_script.runs()
    assert arguments == [login]
    assert not any((path / "x").exists() for path in (Path("/"), village_script.records))
