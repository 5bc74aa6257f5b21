"""The pure proxy (TO-80, TO-81): -P passes mail of users without a configuration on unchanged."""

from __future__ import annotations

import os
import shutil

import pytest
from clients import logged_in, submit, wire
from hops import make_sendmail
from running import ADDRESS, make_home, usual_umask

from tofmipd.cli import settings_from

TO = "x@example.net"
ADVICE = "554 5.3.5 You have no TMDA configuration here: run 'tofmipd init' first"
# As the program must get it, but for its line ends.
LINES = (
    b"Received: from elsewhere; Mon, 1 Jan 2024 00:00:00 +0000",
    b"bcc: hidden@example.net",
    b"From: \xc3\xa4nne <bobby@example.org>",
    b"Subject:no blank,  two blanks, tab\tand \xff\xfe",
    b"DKIM-Signature: v=1; a=rsa-sha256;" + b" x" * 200,
    b"X-TMDA: sender",
    b"X-Folded: one",
    b"\t two ",
    b"This line is no field",
    b"",
    b".",
    b"..",
    b".one",
    b"",
    b"From the beginning of a line",
    b"8 bits \xe4\xf6\xfc \x80\xff, NUL \x00, bell \x07",
    b"trailing blanks  ",
    b" " * 2000,
    b"",
    b"",
)
OF_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}


def local(lines: tuple[bytes, ...]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@pytest.fixture
def newcomer(tmp_path):
    """A home with nothing but a password file."""
    home = make_home(tmp_path / "home größer")
    for name in ("config", "crypt_key", "filters/outgoing"):
        (home.tmda / name).unlink()
    return home


@pytest.fixture
def proxy(start, newcomer, sendmail):
    program = {"TMDA_SENDMAIL_PROGRAM": str(sendmail.path), "SECRET": "x"}
    return start(newcomer, "-P", variables=program)


# In personal mode.


def test_the_message_gets_to_the_program_octet_by_octet(proxy, sendmail):
    said = submit(proxy.port, TO, message=wire(LINES), sender="any.one@example.com")
    assert said == "250 2.0.0 Ok: sendmail exited with 0"
    ((arguments, _, message),) = sendmail.runs()
    assert arguments == ["-f", "any.one@example.com", "-i", "--", TO]
    assert message == local(LINES)
    proxy.says("INFO", "passed through", f"to='{TO}'", "reply=", "sender='any.one@example.com'")


def test_all_recipients_are_in_one_run_in_their_order(proxy, sendmail):
    to = [
        "z@example.net",
        "a@example.net",
        "-f@example.net",
        "$HOME`x`@example.net",
        "a@b.example",
    ]
    assert submit(proxy.port, *to).startswith("250")
    ((arguments, _, _),) = sendmail.runs()
    assert arguments == ["-f", ADDRESS, "-i", "--", *to]


def test_the_null_sender_is_a_pair_of_brackets(proxy, sendmail):
    assert submit(proxy.port, TO, sender="").startswith("250")
    ((arguments, _, _),) = sendmail.runs()
    assert arguments == ["-f", "<>", "-i", "--", TO]


def test_the_program_gets_little_of_the_daemon_s_environment(proxy, sendmail, newcomer):
    """TO-87."""
    assert submit(proxy.port, TO).startswith("250")
    ((_, environment, _),) = sendmail.runs()
    assert {k: v for k, v in environment.items() if k not in {*OF_THE_SHELL, "PATH"}} == {
        "HOME": str(newcomer.path),
        "LOGIN": "bobby",
        "LOGNAME": "bobby",
        "USER": "bobby",
        "TCPLOCALIP": "127.0.0.1",
    }


@pytest.mark.parametrize(
    "lines",
    [(), (b"",), (b"", b"body"), (b"no header at all",), (b".",), (b"Subject: x",)],
    ids=repr,
)
def test_messages_without_header_or_body_pass_too(lines, proxy, sendmail):
    assert submit(proxy.port, TO, message=wire(lines)).startswith("250")
    ((_, _, message),) = sendmail.runs()
    assert message == local(lines)


def test_a_message_of_several_mebibytes_passes_unchanged(proxy, sendmail):
    lines = (b"Subject: big", b"", *(b".%07d" % n + b"\xe4" * 60 for n in range(50_000)))
    assert submit(proxy.port, TO, message=wire(lines)).startswith("250")
    ((_, _, message),) = sendmail.runs()
    assert message == local(lines)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (os.EX_TEMPFAIL, "451 4.3.0 sendmail cannot take the message now (status 75)"),
        (os.EX_NOUSER, "554 5.1.1 sendmail refuses the message (status 67)"),
        (os.EX_IOERR, "451 4.3.0 "),
        (os.EX_USAGE, "554 5.5.4 "),
        (1, "554 5.0.0 "),
    ],
)
def test_the_status_of_the_program_becomes_the_reply(status, said, proxy, sendmail):
    sendmail.exit_with(status)
    assert submit(proxy.port, TO).startswith(said)
    proxy.says("WARNING", f"hand-off to {sendmail.path} failed: {said.strip()}")


def test_a_program_that_is_not_there_defers_the_mail(proxy, sendmail):
    sendmail.path.unlink()
    assert submit(proxy.port, TO).startswith("451 4.3.5 ")
    proxy.says("WARNING", str(sendmail.path), "cannot be run: No such file or directory")


def test_who_has_a_configuration_is_tagged_from_the_next_message_on(
    proxy, newcomer, sendmail, tmp_path
):
    other = make_sendmail(tmp_path / "other")
    with logged_in(proxy.port) as talk:
        for _ in range(2):
            talk.envelope(TO)
            assert talk.data(b"From: bobby@example.org\r\n\r\nx\r\n.\r\n").startswith("250")
            lines = f'SENDMAIL_PROGRAM = "{other.path}"\nACTION_OUTGOING = "sender"\n'
            newcomer.write("crypt_key", "00" * 20)
            newcomer.write("config", lines)
    (untagged,) = sendmail.messages()
    assert untagged.sender == ADDRESS
    (tagged,) = other.messages()
    assert tagged.sender.startswith("bobby-sender-")
    assert tagged.values("Received")


def test_a_configuration_that_is_wrong_is_not_passed_by(proxy, newcomer, sendmail):
    """Only its absence means that its owner wants no tags."""
    newcomer.write("config", "HMAC_BYTES = nonsense\n")
    assert submit(proxy.port, TO).startswith("451 4.3.5 Error in your TMDA files: config")
    newcomer.write("config", "")
    assert submit(proxy.port, TO).startswith("451 4.3.5 Error in your TMDA files: crypt_key")
    assert sendmail.runs() == []


def test_without_p_and_without_a_configuration_the_client_is_told_what_to_do(
    start, newcomer, sendmail
):
    """TO-81."""
    daemon = start(newcomer, variables={"TMDA_SENDMAIL_PROGRAM": str(sendmail.path)})
    assert submit(daemon.port, TO) == ADVICE
    daemon.says("ERROR", "refused: ", f"{newcomer.tmda}/config", "missing; make one")
    assert sendmail.runs() == []


@pytest.mark.parametrize(
    ("options", "value", "program"),
    [
        (["-P"], None, "/usr/sbin/sendmail"),
        (["-P"], "", "/usr/sbin/sendmail"),
        (["-P"], "/opt/größer/sendmail", "/opt/größer/sendmail"),
        ([], "/opt/größer/sendmail", ""),
    ],
)
def test_the_variable_names_another_program_than_the_usual_one(
    options, value, program, monkeypatch
):
    monkeypatch.delenv("TMDA_SENDMAIL_PROGRAM", raising=False)
    if value is not None:
        monkeypatch.setenv("TMDA_SENDMAIL_PROGRAM", value)
    assert settings_from(["--personal", *options]).scripts.pass_through == program


def test_a_configuration_directory_decides_for_each_login(start, newcomer, sendmail, tmp_path):
    """TO-75 and TO-80."""
    directory = tmp_path / "configurations größer"
    (directory / "chloe").mkdir(parents=True)
    newcomer.write("crypt_key", "00" * 20)
    newcomer.write("tofmipd", "bobby:FooBar\nchloe:FooBar\n")
    (directory / "chloe/config").write_text(
        f'SENDMAIL_PROGRAM = "{sendmail.path}"\nACTION_OUTGOING = "ext=tagged"\n'
    )
    program = {"TMDA_SENDMAIL_PROGRAM": str(sendmail.path)}
    daemon = start(newcomer, "-P", "-c", str(directory), variables=program)
    for login in ("bobby", "chloe"):
        assert submit(daemon.port, TO, login=login).startswith("250")
    senders = {
        env["LOGIN"]: arguments[arguments.index("-f") + 1] for arguments, env, _ in sendmail.runs()
    }
    assert senders == {"bobby": ADDRESS, "chloe": "bobby-tagged@example.org"}


# In global mode.


@pytest.fixture
def village_sendmail(village):
    directory = village.directory / "program größer"
    with usual_umask():
        sendmail = make_sendmail(directory)
    sendmail.directory.chmod(0o777)
    yield sendmail
    shutil.rmtree(directory)


@pytest.mark.root
def test_in_global_mode_the_program_runs_as_the_user(village, village_hop, village_sendmail):
    bobby, chloe, _ = village.people
    (bobby.home.tmda / "config").unlink()
    program = {"TMDA_SENDMAIL_PROGRAM": str(village_sendmail.path), "SECRET": "x"}
    login = {"login": bobby.name, "password": bobby.password}
    with village.daemon("-P", variables=program) as daemon:
        to = ("b@example.net", "a@example.net")
        assert submit(daemon.port, *to, message=wire(LINES), **login).startswith("250")
        ((arguments, environment, message),) = village_sendmail.runs()
        assert arguments == ["-f", ADDRESS, "-i", "--", *to]
        assert message == local(LINES)
        assert {k: v for k, v in environment.items() if k not in {*OF_THE_SHELL, "PATH"}} == {
            "HOME": str(bobby.home.path),
            "LOGIN": bobby.name,
            "LOGNAME": bobby.name,
            "USER": bobby.name,
            "TCPLOCALIP": "127.0.0.1",
        }
        (path,) = village_sendmail.directory.glob("*.message")
        assert (path.stat().st_uid, path.stat().st_gid) == (bobby.uid, bobby.gid)
        # The other has a configuration.
        sent = submit(daemon.port, TO, login=chloe.name, password=chloe.password)
        assert sent.startswith("250")
        assert village_hop.message(TO).sender.startswith("bobby-dated-")
        assert submit(daemon.port, TO, sender="", **login).startswith("250")
        assert ["-f", "<>", "-i", "--", TO] in [run[0] for run in village_sendmail.runs()]
        for status, code in ((os.EX_TEMPFAIL, "451 4.3.0 "), (os.EX_NOUSER, "554 5.1.1 ")):
            village_sendmail.exit_with(status)
            assert submit(daemon.port, TO, **login).startswith(code)


@pytest.mark.root
def test_in_global_mode_a_user_without_a_configuration_is_told_what_to_do(village, village_hop):
    """TO-81."""
    bobby = village.people[0]
    (bobby.home.tmda / "config").unlink()
    with village.daemon() as daemon:
        assert submit(daemon.port, TO, login=bobby.name, password=bobby.password) == ADVICE
        daemon.says("ERROR", "refused: ", f"{bobby.home.tmda}/config", "missing")
    assert village_hop.messages() == []
