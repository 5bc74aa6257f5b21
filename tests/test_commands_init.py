"""`tofmipd init`: from nothing to everything that a first mail needs (BX-10)."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tofmipd import cli
from tofmipd.cli import person
from tofmipd.commands import init, initglobal, initnext
from tofmipd.errors import CANT_CREATE, CONFIG, USAGE, Fatal

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(sys, "argv", ["/opt/tofmipd/bin/tofmipd", "init"])
    # What is for all users is for tests with a machine of their own (tests/system/machine.py).
    monkeypatch.setattr(init, "for_everybody", lambda *_: pytest.fail("this would change /etc"))
    return tmp_path


def run(*arguments: str) -> int:
    return init.main(["--personal", *arguments])


def config(home) -> str:
    return (home / ".tmda/config").read_text()


def everything(home) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_it_says_what_was_made_and_what_comes_next(home, capsys):
    assert run("--address", "bobby@example.org", "--smtp", "127.0.0.1:587") == 0
    out = capsys.readouterr().out
    for name in ("crypt_key", "config", "filters/outgoing", "tofmipd"):
        assert f"made  {home}/.tmda/{name}\n" in out
    assert f"made  {home}/.config/tofmipd.conf\n" in out
    (port,) = re.findall(
        r"(?m)^proxyport localhost:(\d+)$", (home / ".config/tofmipd.conf").read_text()
    )
    login, password = (home / ".tmda/tofmipd").read_text().split()[-1].split(":")
    assert login == person().name.lower()
    assert f"server localhost, port {port}, no encryption\n" in out
    assert f"user name {login}, password {password}\n" in out
    program = "/opt/tofmipd/bin/tofmipd"
    assert re.search(rf"(?m)^Next: +{program} -f( --personal)?$", out)
    assert f"{program} test bobby@example.org\n" in out
    for client in ("curl", "swaks"):
        (line,) = [line for line in out.splitlines() if f" {client} " in line]
        assert password in line
        assert "bobby@example.org" in line
        assert port in line
    assert "SMTPHOST = '127.0.0.1:587'" in config(home)


@pytest.mark.parametrize("options", [[], ["--elsewhere", "--host", "box.example"]])
def test_a_second_run_keeps_everything_and_says_the_same_again(options, home, capsys):
    run("--address", "bobby@example.org", "--sendmail", *options)
    before, first = everything(home), capsys.readouterr().out
    run()
    assert everything(home) == before
    second = capsys.readouterr().out
    assert second.partition("\n\n")[2] == first.partition("\n\n")[2]
    kept = re.findall(r"(?m)^kept  (.*)$", second)
    assert set(kept) <= set(re.findall(r"(?m)^made  (.*)$", first))
    assert {f"{home}/.tmda/config", f"{home}/.config/tofmipd.conf"} <= set(kept)
    assert "made  " not in second


def test_options_for_a_file_that_is_kept_are_said_to_change_nothing(home, capsys):
    run("--sendmail")
    before = everything(home)
    capsys.readouterr()
    run("--address", "other@example.org", "--smtp", "localhost", "--elsewhere", "--port", "99")
    assert everything(home) == before
    out = capsys.readouterr().out
    assert f"note  {home}/.tmda/config is kept, so --address, --smtp change nothing\n" in out
    conf = f"{home}/.config/tofmipd.conf"
    assert f"note  {conf} is kept, so --elsewhere, --port change nothing\n" in out


def test_all_that_is_written_is_for_the_owner_alone_whatever_the_umask(home):
    old = os.umask(0)
    try:
        run("--elsewhere", "--sendmail")
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}


def test_without_an_address_the_account_and_the_host_make_one(home):
    run()
    assert f"USERNAME = {person().name!r}\n" in config(home)


@pytest.mark.parametrize(
    "address", ["bobby", "@example.org", "bobby@", "a@b@c", "a b@c", "a@b c", "<a@b>", "a@b\n", ""]
)
def test_what_is_no_address_is_refused_before_anything_is_written(address, home):
    with pytest.raises(Fatal) as caught:
        run("--address", address or " ")
    assert caught.value.status == USAGE
    assert "is not an address such as you@example.org" in str(caught.value)
    assert not list(home.iterdir())


@pytest.mark.parametrize("address", ["o'brien@example.org", "a+b@example.org", "a_b.c@x-y.example"])
def test_addresses_with_unusual_signs_are_taken(address, home):
    assert run("--address", address) == 0
    local = address.partition("@")[0]
    assert f"USERNAME = {local!r}\n" in config(home)


@pytest.mark.parametrize("text", ["", "# nobody yet\n"])
def test_a_password_file_without_a_user_is_said(text, home):
    run()
    (home / ".tmda/tofmipd").write_text(text)
    with pytest.raises(Fatal, match="no user in it; add a line user:password") as caught:
        run()
    assert caught.value.status == CONFIG


def test_a_password_file_of_a_wrong_mode_is_said(home):
    run()
    path = home / ".tmda/tofmipd"
    path.chmod(0o644)
    with pytest.raises(Fatal, match=f"{path}: mode 0644, must be 0600 or 0400") as caught:
        run()
    assert caught.value.status == os.EX_CONFIG


def test_a_hashed_password_is_shown_once(home, capsys):
    run("--hash-password")
    out = capsys.readouterr().out
    (password,) = re.findall(r"password ([0-9a-f]{16})$", out, re.M)
    assert f"--auth-password {password} " in out
    assert password not in (home / ".tmda/tofmipd").read_text()
    run()
    out = capsys.readouterr().out
    assert "password the one you know\n" in out
    assert "swaks" not in out


@pytest.mark.parametrize(
    ("directory", "kind"), [(".tmda", "link"), (".tmda/filters", "link"), (".tmda", "file")]
)
def test_nothing_is_written_where_it_might_be_anothers(directory, kind, home, tmp_path_factory):
    path = home / directory
    path.parent.mkdir(exist_ok=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    if kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_text("")
    before = everything(home)
    with pytest.raises(Fatal, match=f"{path} is .*; nothing is written there") as caught:
        run()
    assert caught.value.status == CANT_CREATE
    assert everything(home) == before
    assert list(elsewhere.iterdir()) == []


@pytest.mark.root
def test_root_writes_nothing_into_the_home_of_another(home):
    os.chown(home, 65534, 65534)
    with pytest.raises(Fatal, match=r"HOME is .*, which is another's") as caught:
        run()
    assert caught.value.status == CANT_CREATE
    assert list(home.iterdir()) == []


def test_a_home_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    with pytest.raises(Fatal, match="your home /nowhere/at/all: No such file or directory"):
        run()


def test_the_files_of_a_user_are_none_for_a_daemon(home, capsys):
    assert init.main(["--user-files", "--address", "bobby@example.org"]) == 0
    names = {str(Path(path).relative_to(home)) for path in everything(home)}
    assert names == {".tmda/crypt_key", ".tmda/config", ".tmda/filters/outgoing"}
    assert not re.search(r"(?m)^MAIL_TRANSPORT|^SMTPHOST", config(home))
    out = capsys.readouterr().out
    assert "tofmipd test bobby@example.org\n" in out
    assert "tofmipd -f" not in out


# Certificates


def test_clients_elsewhere_get_a_place_of_their_own_with_tls(home, capsys):
    run("--elsewhere", "--host", "box.example.org")
    lines = (home / ".config/tofmipd.conf").read_text().splitlines()
    assert "proxyport 0.0.0.0:8465,ssl" in lines
    assert f"ssl-cert {home}/.tmda/tls-cert.pem" in lines
    assert f"ssl-key {home}/.tmda/tls-key.pem" in lines
    out = capsys.readouterr().out
    assert "server box.example.org, port 8465, SSL/TLS\n" in out
    assert re.search(r"(?m)^  ([0-9A-F]{2}:){31}[0-9A-F]{2}$", out)


@pytest.fixture
def pair(tmp_path_factory):
    from tofmipd.commands.selfsigned import make_pair

    directory = tmp_path_factory.mktemp("pair")
    paths = str(directory / "c.pem"), str(directory / "k.pem")
    make_pair(*paths, ["mine.example"])
    return paths


def test_a_certificate_that_is_there_is_taken_where_it_is(pair, home, capsys):
    run("--ssl-cert", pair[0], "--ssl-key", pair[1])
    lines = (home / ".config/tofmipd.conf").read_text().splitlines()
    assert f"ssl-cert {pair[0]}" in lines
    assert f"ssl-key {pair[1]}" in lines
    assert not (home / ".tmda/tls-key.pem").exists()
    assert "server mine.example, port 8465, SSL/TLS\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("none.pem", "k.pem", "none.pem: No such file or directory"),
        ("c.pem", "none.pem", "none.pem: No such file or directory"),
        ("k.pem", "c.pem", "not a certificate and its key"),
        ("c.pem", "other.pem", "the key is not that of the certificate"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_before_anything_is_written(
    cert, key, said, pair, home
):
    from tofmipd.commands.selfsigned import new_key

    directory = os.path.dirname(pair[0])
    Path(directory, "other.pem").write_text(new_key())
    with pytest.raises(Fatal, match=said) as caught:
        run("--ssl-cert", f"{directory}/{cert}", "--ssl-key", f"{directory}/{key}")
    assert caught.value.status == CONFIG
    assert list(home.iterdir()) == []


# How mail leaves


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sendmail"], ['MAIL_TRANSPORT = "sendmail"']),
        (["--smtp", "localhost"], ["SMTPHOST = 'localhost'"]),
        (["--smtp", "127.0.0.1:465"], ["SMTPHOST = '127.0.0.1:465'", "SMTPSSL = True"]),
        (["--smtp", "a.example", "--smtp-tls=verify"], ["SMTPSSL = True"]),
        (["--smtp", "a.example", "--smtp-tls=off"], ["SMTPTLS = 'off'"]),
        (
            ["--smtp", "localhost", "--smtp-user=u", "--smtp-password-file={home}/word"],
            ["SMTPAUTH_USERNAME = 'u'", "SMTPAUTH_PASSWORD = 'wörd'"],
        ),
    ],
)
def test_options_say_how_mail_leaves(words, expected, home):
    (home / "word").write_text("wörd\n")
    run(*(word.format(home=home) for word in words))
    lines = config(home).splitlines()
    assert [line for line in expected if line not in lines] == []


def test_a_server_that_cannot_be_asked_is_taken_to_be_what_its_port_says(home, capsys):
    run("--smtp", "no.invalid:587")
    assert "note  no.invalid:587 cannot be asked now" in capsys.readouterr().out
    assert "SMTPSSL = True" in config(home)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--personal", "--ssl-cert", "x"], "--ssl-cert needs --ssl-key"),
        (["--personal", "--smtp-user", "x"], "--smtp-user is of no use without --smtp"),
        (["--personal", "--smtp-tls", "off"], "--smtp-tls is of no use without --smtp"),
        (["--personal", "--smtp", "a:b"], "--smtp: 'a:b' is not HOST or HOST:PORT"),
        (["--personal", "--smtp", "a", "--sendmail"], "not allowed with argument"),
        (["--personal", "--login", "pam"], "--login is for root"),
        (["--personal", "--port", "0"], "'0' is not a port"),
        (["--personal", "--nmae", "x"], "unknown option '--nmae'; did you mean --name?"),
        (["--user-files", "--elsewhere"], "--user-files makes nothing for a daemon"),
        (["--user-files", "--personal"], "not allowed with argument"),
        pytest.param(["--address", "a@b"], "--address is for one person", marks=pytest.mark.root),
    ],
)
def test_options_that_do_not_go_together_get_one_line(words, said, home, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", *words])
    assert ended.value.code == USAGE
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("called", "known", "expected"),
    [
        ("/usr/bin/tofmipd", "/usr/bin/tofmipd", "tofmipd"),
        ("/opt/x/tofmipd", "/usr/bin/tofmipd", "/opt/x/tofmipd"),
        ("/opt/a dir/tofmipd", None, "'/opt/a dir/tofmipd'"),
        ("/x/tofmipd/__main__.py", None, f"{sys.executable} -m tofmipd"),
    ],
)
def test_commands_to_paste_call_the_program_that_runs(called, known, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(shutil, "which", lambda name: known)
    assert initnext.program() == expected


@pytest.mark.parametrize(("personal", "middle"), [(True, "--user "), (False, "")])
def test_where_a_unit_is_installed_it_is_what_starts_the_daemon(
    personal, middle, home, monkeypatch
):
    monkeypatch.setattr(initnext, "_BOOTED_BY_SYSTEMD", str(home))
    assert initnext.start_command(str(home), personal=personal).endswith("tofmipd -f")
    monkeypatch.setattr(initnext, "_UNIT_DIRECTORIES", (str(home),))
    for kind in ("user", "system"):
        (home / kind).mkdir()
        (home / kind / "tofmipd.service").write_text("")
    command = initnext.start_command(str(home), personal=personal)
    assert command == f"systemctl {middle}enable --now tofmipd"


def test_the_service_of_pam_that_is_written_is_the_one_of_the_examples():
    def rules(text: str) -> list[list[str]]:
        return [line.split() for line in text.splitlines() if line and not line.startswith("#")]

    example = (ROOT / "etc/pam.d/tofmipd").read_text()
    assert rules(initglobal.PAM_TEXT) == rules(example)
