"""The examples below contrib/vhome are files that work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tofmipd.privsep.virtualdomains import HomeScript, NoHome
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.userfiles import UserFiles

VHOME = Path(__file__).parent.parent / "contrib/vhome"

# What VMailMgr says: the heading, then a line for each user that was asked for.
LISTVDOMAIN = """\
#!/bin/sh
cd "$HOME" || exit 1
printf '%s\\n' "$@" > arguments
echo User Mailbox Aliases
while read -r user rest; do
    test "$user" != "$1" || { printf '%s\\n' "$user $rest"; exit 0; }
done < users
echo "listvdomain: unknown user '$1'" >&2
exit 1
"""
VUSERINFO = """\
#!/bin/sh
printf '%s\\n' "$@" > "$HOME/arguments"
while read -r user answer; do
    test "$user" != "$2" || { printf '%s\\n' "$answer"; exit 0; }
done < "$HOME/users"
echo "no such user $2"
exit 255
"""


@pytest.fixture
def home(tmp_path):
    """Of the owner; programs are found in ``bin`` beside it."""
    (tmp_path / "bin").mkdir()
    home = tmp_path / "größter Besitzer"
    home.mkdir()
    return home


def install(home: Path, name: str, text: str) -> None:
    path = home.parent / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def ask(script: str, home: Path, *arguments: str) -> tuple[int, str]:
    """Status of a script, and all that it writes."""
    done = subprocess.run(
        [VHOME / script, *arguments],
        env={"PATH": f"{home.parent}/bin:{os.environ['PATH']}", "HOME": str(home)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=10,
        check=False,
    )
    return done.returncode, done.stdout


def asked(home: Path) -> list[str]:
    """The arguments of the last program that a script has run."""
    return (home / "arguments").read_text().splitlines()


@pytest.mark.parametrize("script", ["vhome-vmailmgr", "vhome-vpopmail"])
def test_a_script_can_be_run_and_is_posix_sh(script):
    path = VHOME / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "directory"),
    [
        ("ann ./users/ann", "users/ann"),
        ("ann ./users/ann ann@example.net bob@example.net", "users/ann"),
        ("ann ./.users/ann", ".users/ann"),
        ("ann.o'hara ./users/ann:o'hara", "users/ann:o'hara"),
        ("änne ./users/änne", "users/änne"),
        (r"a\tb ./users/a", "users/a"),
        ("$(touch${IFS}x) ./users/x", "users/x"),
    ],
)
def test_vmailmgr_s_directory_is_below_the_owner_s_home(line, directory, home):
    """TO-85."""
    install(home, "listvdomain", LISTVDOMAIN)
    (home / "users").write_text(f"other ./users/other\n{line}\nlast ./users/last\n")
    user = line.split()[0]
    assert ask("vhome-vmailmgr", home, user, "example.org") == (0, f"{home}/{directory}\n")
    assert asked(home) == [user]
    assert sorted(os.listdir(home)) == ["arguments", "users"]


@pytest.mark.parametrize(
    "line",
    [
        "other ./users/other",
        "ann",
        "ann - ann@example.net",
        "ann No ann@example.net",
        "ann ./users/ann(disabled)",
        "ann ./../peter/users/ann",
        "ann ./",
        "ann /",
    ],
)
def test_a_user_whom_vmailmgr_gives_no_directory_has_no_home(line, home):
    install(home, "listvdomain", LISTVDOMAIN)
    (home / "users").write_text(line + "\n")
    assert ask("vhome-vmailmgr", home, "ann", "example.org") == (1, "")


def test_of_several_lines_only_the_user_s_own_counts(home):
    """A version that lists all users whatever it is asked."""
    lines = "User Mailbox Aliases\njoann ./users/joann\nann-x ./users/ann-x\nann ./users/ann\n"
    install(home, "listvdomain", f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    assert ask("vhome-vmailmgr", home, "ann", "example.org") == (0, f"{home}/users/ann\n")
    assert ask("vhome-vmailmgr", home, "nn", "example.org") == (1, "")


def test_the_directory_comes_from_dumpvuser_where_listvdomain_does_not_tell_it(home):
    install(home, "listvdomain", LISTVDOMAIN)
    (home / "users").write_text("ann Yes ann@example.net\n")
    assert ask("vhome-vmailmgr", home, "ann", "example.org") == (1, "")
    install(home, "dumpvuser", '#!/bin/sh\necho "Name: $1"\necho "Directory: ./users/$1"\n')
    assert ask("vhome-vmailmgr", home, "ann", "example.org") == (0, f"{home}/users/ann\n")


@pytest.mark.parametrize(
    ("answer", "directory"),
    [
        ("/home/vpopmail/domains/example.org/ann", "/home/vpopmail/domains/example.org/ann"),
        ("dir: /home/vpopmail/domains/x/ann", "/home/vpopmail/domains/x/ann"),
        ("dir:/home/vpopmail/domains/x/ann", "/home/vpopmail/domains/x/ann"),
        ("dir:       /d/x/ann", "/d/x/ann"),
        ("/d/größte Domain/ann", "/d/größte Domain/ann"),
    ],
)
def test_vpopmail_s_answer_is_the_home(answer, directory, home):
    """TO-85."""
    install(home, "vuserinfo", VUSERINFO)
    (home / "users").write_text(f"ann@example.org {answer}\n")
    assert ask("vhome-vpopmail", home, "ann", "example.org") == (0, directory + "\n")
    assert asked(home) == ["-d", "ann@example.org"]


@pytest.mark.parametrize("answer", ["", "no such user", "dir:", "/", "users/ann"])
def test_what_vpopmail_says_is_no_home_unless_it_is_a_path(answer, home):
    install(home, "vuserinfo", VUSERINFO)
    (home / "users").write_text(f"ann@example.org {answer}\n")
    assert ask("vhome-vpopmail", home, "ann", "example.org") == (1, "")


@pytest.mark.parametrize("script", ["vhome-vmailmgr", "vhome-vpopmail"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("bob", "example.org"),
        ("", "example.org"),
        ("-D", "example.org"),
        ("*", "example.org"),
        ("a b", "example.org"),
        ("$(touch x)", "`touch x`"),
        (),
    ],
)
def test_an_unknown_user_has_no_home_and_the_script_says_nothing(script, arguments, home):
    """TO-85."""
    install(home, "listvdomain", LISTVDOMAIN)
    install(home, "vuserinfo", VUSERINFO)
    (home / "users").write_text("ann ./users/ann\nann@example.org /d/ann\n")
    assert ask(script, home, *arguments) == (1, "")
    assert set(os.listdir(home)) <= {"arguments", "users"}


@pytest.mark.parametrize("script", ["vhome-vmailmgr", "vhome-vpopmail"])
def test_without_the_programs_there_is_no_home(script, home):
    assert ask(script, home, "ann", "example.org") == (1, "")


def test_the_daemon_understands_what_the_scripts_say(home):
    install(home, "listvdomain", LISTVDOMAIN)
    (home / "users").write_text("ann ./users/ann\n")
    path = f"{home.parent}/bin:{os.environ['PATH']}"
    script = HomeScript(str(VHOME / "vhome-vmailmgr"), path, 10)
    assert script.home("ann@example.org", str(home), "127.0.0.1") == f"{home}/users/ann"
    with pytest.raises(NoHome, match=r"ended with 1 for 'bob@example\.org'"):
        script.home("bob@example.org", str(home), "127.0.0.1")


def configuration(home: Path, **lines: object):
    """The settings of a virtual user who writes ``lines``, after those of the site."""
    tmda = home / ".tmda"
    tmda.mkdir()
    (tmda / "config").write_text("".join(f"{name} = {value!r}\n" for name, value in lines.items()))
    (tmda / "crypt_key").write_text("00" * 20)
    (tmda / "crypt_key").chmod(0o600)
    around = Surroundings(str(home), "ann@example.org", "", "mx.example")
    files = UserFiles(f"{tmda}/config", around, site_path=str(VHOME / "vtmdarc"), required=True)
    return files.profile().config


def test_the_site_s_configuration_uses_what_is_known_of_a_virtual_user(home, monkeypatch):
    """TO-85."""
    monkeypatch.setenv("VUSERDIR", str(home))
    monkeypatch.setenv("VDOMAIN", "example.org")
    config = configuration(home)
    assert (config.username, config.hostname) == ("ann", "example.org")
    assert config.crypt_key_file == f"{home}/.tmda/crypt_key"
    assert config.filter_outgoing == f"{home}/.tmda/filters/outgoing"


def test_the_site_s_configuration_serves_others_too(home, monkeypatch):
    """It is read in a personal daemon, and for users who are no virtual ones."""
    monkeypatch.delenv("VUSERDIR", raising=False)
    monkeypatch.delenv("VDOMAIN", raising=False)
    config = configuration(home, RECIPIENT_DELIMITER="+")
    assert config.hostname == "mx.example"
    assert config.crypt_key_file == f"{home}/.tmda/crypt_key"
    assert config.recipient_delimiter == "+"
