"""The user's configuration: its three forms, its defaults, and what is said of its faults."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.tmda.actions import Action
from tofmipd.tmda.config import (
    SETTINGS,
    Config,
    SourceFile,
    Surroundings,
    build,
)
from tofmipd.tmda.errors import ConfigError
from tofmipd.tmda.files import Files
from tofmipd.tmda.readers import read_ini, read_literals, run_python
from tofmipd.tmda.values import TRUTH

PATH = "/home/alice/.tmda/config"
AROUND = Surroundings("/home/alice", "alice", "Alice Liddell", "mail.example.com")
READERS = {"python": run_python, "literal": read_literals, "ini": read_ini}


def load(source, form="python", around=AROUND):
    """A configuration by one of its readers, as the user's files are read."""
    octets = source if isinstance(source, bytes) else source.encode()
    if form == "ini":
        octets = b"[TMDA_CONFIG]\n" + octets
    names = dict(TRUTH)
    READERS[form](octets, PATH, names)
    return build(names, around, SourceFile(PATH, octets), expand=Files(around.home).expand)


def error_of(source, form="python"):
    with pytest.raises(ConfigError) as caught:
        load(source, form)
    error = caught.value
    assert str(error) == f"{PATH}:{error.line}: {error.problem}".replace(":0:", ":")
    return error


# Defaults


def test_an_empty_configuration_has_the_defaults_of_the_original():
    config = load("")
    assert config == Config(
        origin=PATH,
        action_outgoing=Action("dated"),
        dated_timeout="5d",
        hmac_bytes=3,
        recipient_delimiter="-",
        tags_confirm=("confirm",),
        tags_dated=("dated",),
        tags_keyword=("keyword",),
        tags_sender=("sender",),
        datadir="/home/alice/.tmda",
        crypt_key_file="/home/alice/.tmda/crypt_key",
        filter_outgoing="/home/alice/.tmda/filters/outgoing",
        mail_transfer_agent="qmail",
        mail_transport="sendmail",
        smtphost="localhost",
        message_from_style="angles",
        message_tag_header_style="angles",
        username="alice",
        hostname="mail.example.com",
        fullname="Alice Liddell",
    )
    assert config.added_headers_client == config.purged_headers_client == config.fingerprint == ()
    assert not config.allow_mode_640
    assert not config.smtpssl


@pytest.mark.parametrize("form", READERS)
def test_every_form_may_be_empty(form):
    assert load("", form) == load("")


@pytest.mark.parametrize(
    ("environment", "fullname", "hostname", "username"),
    [
        ({}, "Alice Liddell", "mail.example.com", "alice"),
        ({"TMDANAME": "T", "QMAILNAME": "Q", "NAME": "N"}, "T", "mail.example.com", "alice"),
        ({"QMAILNAME": "Q", "NAME": "N", "MAILNAME": "M"}, "Q", "mail.example.com", "alice"),
        ({"NAME": "N", "MAILNAME": "M"}, "N", "mail.example.com", "alice"),
        ({"TMDANAME": "", "MAILNAME": "M"}, "M", "mail.example.com", "alice"),
        ({"TMDAHOST": "t", "QMAILHOST": "q", "MAILHOST": "m"}, "Alice Liddell", "t", "alice"),
        ({"QMAILHOST": "q", "MAILHOST": "m"}, "Alice Liddell", "q", "alice"),
        ({"MAILHOST": "m"}, "Alice Liddell", "m", "alice"),
        (
            {"TMDAUSER": "t", "QMAILUSER": "q", "USER": "u"},
            "Alice Liddell",
            "mail.example.com",
            "t",
        ),
        ({"USER": "u", "LOGNAME": "l"}, "Alice Liddell", "mail.example.com", "u"),
        ({"LOGNAME": "l"}, "Alice Liddell", "mail.example.com", "l"),
    ],
)
def test_the_environment_given_replaces_defaults_in_the_old_order(
    environment, fullname, hostname, username
):
    around = Surroundings("/home/alice", "alice", "Alice Liddell", "mail.example.com", environment)
    config = load("", around=around)
    assert (config.fullname, config.hostname, config.username) == (fullname, hostname, username)
    given = load('FULLNAME = "F"\nHOSTNAME = "H"\nUSERNAME = "U"\n', around=around)
    assert (given.fullname, given.hostname, given.username) == ("F", "H", "U")


def test_the_environment_of_the_process_is_nobodys(monkeypatch):
    for name in ("TMDANAME", "TMDAHOST", "TMDAUSER", "USER", "LOGNAME", "NAME"):
        monkeypatch.setenv(name, "daemon")
    config = load("")
    assert (config.fullname, config.hostname) == ("Alice Liddell", "mail.example.com")
    assert config.username == "alice"


def test_a_login_with_a_domain_is_a_user_name_without_it():
    around = Surroundings("/home/alice", "alice@corp.example", "", "h")
    assert load("", around=around).username == "alice"


def test_a_tilde_is_the_home_of_the_surroundings_whatever_home_says(monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    config = load(
        'DATADIR = "~/tmda"\nSENDMAIL_PROGRAM = "~/bin/sendmail"\nSMTPSSL_CAFILE = "~"\n'
        'SMTPSSL_KEYFILE = "~root/key"\nSMTPSSL_CERTFILE = "/a/~/b"\n'
    )
    assert config.datadir == "/home/alice/tmda"
    assert config.crypt_key_file == "/home/alice/tmda/crypt_key"
    assert config.filter_outgoing == "/home/alice/tmda/filters/outgoing"
    assert config.sendmail_program == "/home/alice/bin/sendmail"
    assert config.smtpssl_cafile == "/home/alice"
    assert config.smtpssl_keyfile == "/root/key"
    assert config.smtpssl_certfile == "/a/~/b"


def test_paths_that_are_given_do_not_follow_the_data_directory():
    config = load('DATADIR = "/d"\nCRYPT_KEY_FILE = "~/key"\nFILTER_OUTGOING = "rules"\n')
    assert (config.crypt_key_file, config.filter_outgoing) == (
        "/home/alice/key",
        "/home/alice/rules",
    )


# Values


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ('ACTION_OUTGOING = "dated=8d"', Action("dated", b"8d")),
        ('ACTION_OUTGOING = "bare"', Action("bare")),
        ('ADDED_HEADERS_CLIENT = {"X-B": "2", "X-A": "1"}', (("X-A", "1"), ("X-B", "2"))),
        ("ALLOW_MODE_640 = True", True),
        ("ALLOW_MODE_640 = 1", True),
        ("ALLOW_MODE_640 = Yes", True),
        ("ALLOW_MODE_640 = on", True),
        ("ALLOW_MODE_640 = False", False),
        ("ALLOW_MODE_640 = 0", False),
        ("ALLOW_MODE_640 = NO", False),
        ("ALLOW_MODE_640 = off", False),
        ("ALLOW_MODE_640 = false", False),
        ('ALLOW_MODE_640 = "no"', False),
        ('DATED_TIMEOUT = "2w"', "2w"),
        ("HMAC_BYTES = 10", 10),
        ("HMAC_BYTES = 0", 0),
        ('PURGED_HEADERS_CLIENT = ["X-Mailer"]', ("X-Mailer",)),
        ('PURGED_HEADERS_CLIENT = ("a", "b")', ("a", "b")),
        ("PURGED_HEADERS_CLIENT = []", ()),
        ('RECIPIENT_DELIMITER = "+"', "+"),
        ('TAGS_DATED = ["d", "dated"]', ("d", "dated")),
        ('SMTPAUTH_PASSWORD = "50%; #x"', "50%; #x"),
        ('SMTPAUTH_PASSWORD = "12345"', "12345"),
        ('FULLNAME = "Jürgen"', "Jürgen"),
        ('MAIL_TRANSPORT = "smtp"', "smtp"),
        ('SMTPHOST = "a.example:587"', "a.example:587"),
        ('SMTPHOST = ["a.example", "[::1]:587"]', ("a.example", "[::1]:587")),
        ("SMTPSSL = True", True),
        ("SMTPSSL = off", False),
        ('SMTPSSL = "starttls"', "starttls"),
        ('SMTPSSL = "Implicit"', "implicit"),
        ('SMTPTLS = "verify"', "verify"),
        ('SMTPTLS = "Encrypt"', "encrypt"),
        ('SMTPTLS = "off"', "off"),
        (f'SMTPTLS = "fingerprint:{"AB:" * 31}CD"', f"fingerprint:{'ab' * 31}cd"),
    ],
)
def test_a_value_is_the_same_in_every_form(form, assignment, value):
    name = assignment.partition(" ")[0].lower()
    config = load(assignment + "\n", form)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ('BARE_APPEND = "~/lists/friends"', "/home/alice/lists/friends"),
        ('BARE_APPEND = "lists/friends"', "/home/alice/lists/friends"),
        ('BARE_APPEND = "/lists/friends"', "/lists/friends"),
        ('BARE_APPEND = ""', ""),
        ("BARE_APPEND = None", ""),
        (
            'DB_BARE_APPEND = "INSERT INTO a VALUES (%(recipient)s)"',
            "INSERT INTO a VALUES (%(recipient)s)",
        ),
        ("DB_CONNECTION = None", None),
        ('FINGERPRINT = ["from", "body"]', ("from", "body")),
        ('FINGERPRINT = ("Body",)', ("Body",)),
        ("FINGERPRINT = []", ()),
        ('LOGFILE_OUTGOING = "~/log"', "/home/alice/log"),
        ('MAIL_FOLLOWUP_TO = "~/lists"', "/home/alice/lists"),
        ('MAIL_FOLLOWUP_TO = "lists"', "/home/alice/lists"),
        ('MAIL_FOLLOWUP_TO = ["l@x", "m@x"]', ("l@x", "m@x")),
        ('MAIL_FOLLOWUP_TO = ("l@x",)', ("l@x",)),
        ("MAIL_FOLLOWUP_TO = []", ()),
        ('MAIL_FOLLOWUP_TO = ""', ""),
        ("X_TMDA_IN_SUBJECT = True", True),
        ("X_TMDA_IN_SUBJECT = 1", True),
        ("X_TMDA_IN_SUBJECT = on", True),
        ("X_TMDA_IN_SUBJECT = False", False),
        ("X_TMDA_IN_SUBJECT = No", False),
        ('TMDAINJECT = "di"', "di"),
        ('MESSAGE_FROM_STYLE = "address"', "address"),
        ('MESSAGE_TAG_HEADER_STYLE = "address"', "address"),
        ('MAIL_TRANSFER_AGENT = "postfix"', "postfix"),
        ("SMTP_MAX_SESSIONS_PER_CONNECTION = 10", 10),
        ('ACTION_OUTGOING = "shell=date"', Action("shell", b"date")),
        ('ACTION_OUTGOING = "bare=append"', Action("bare", b"append")),
    ],
)
def test_settings_of_injection_have_their_kind_in_every_form(form, assignment, value):
    if form == "ini" and assignment.endswith("None"):
        assignment = assignment.removesuffix("None")
    name = assignment.partition(" ")[0].lower()
    assert getattr(load(assignment + "\n", form), name) == value


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("bare_append", ""),
        ("db_bare_append", ""),
        ("db_connection", None),
        ("fingerprint", ()),
        ("logfile_outgoing", ""),
        ("mail_followup_to", ""),
        ("x_tmda_in_subject", False),
        ("tmdainject", ""),
        ("added_headers_client", ()),
        ("purged_headers_client", ()),
    ],
)
def test_settings_of_injection_do_nothing_unless_they_are_given(name, default):
    assert getattr(load(""), name) == default


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("BARE_APPEND = 5", "BARE_APPEND must be a text in quotes, not 5"),
        ("BARE_APPEND = ['a']", "BARE_APPEND must be a text in quotes, not ['a']"),
        ("LOGFILE_OUTGOING = ['a']", "LOGFILE_OUTGOING must be a text in quotes, not ['a']"),
        ("DB_BARE_APPEND = ('a',)", "DB_BARE_APPEND must be a text in quotes, not ('a',)"),
        ("DB_CONNECTION = 5", "DB_CONNECTION must be a connection to a database"),
        ("DB_CONNECTION = ['a']", "DB_CONNECTION must be a connection to a database"),
        ("FINGERPRINT = 'body'", "FINGERPRINT must be a list of texts"),
        ("FINGERPRINT = {'body': 1}", "FINGERPRINT must be a list of texts"),
        ("FINGERPRINT = [1]", "FINGERPRINT must be a text in quotes, not [1]"),
        ("MAIL_FOLLOWUP_TO = [1]", "MAIL_FOLLOWUP_TO must be the name of a file, or a list"),
        ("MAIL_FOLLOWUP_TO = {'l@x': 1}", "MAIL_FOLLOWUP_TO must be the name of a file, or a list"),
        ("X_TMDA_IN_SUBJECT = 'maybe'", "X_TMDA_IN_SUBJECT must be True or False, not 'maybe'"),
        ("X_TMDA_IN_SUBJECT = []", "X_TMDA_IN_SUBJECT must be True or False, not []"),
        ("TMDAINJECT = ['d']", "TMDAINJECT must be a text in quotes, not ['d']"),
    ],
)
def test_settings_of_injection_of_another_kind_are_named_with_their_line(form, assignment, says):
    text = assignment.partition(" = ")[2]
    if form == "ini" and "must be a text in quotes" in says and assignment[:11] != "FINGERPRINT":
        # There any value is a text.
        name = assignment.partition(" ")[0].lower()
        assert getattr(load(assignment + "\n", form), name).endswith(text)
        return
    error = error_of(f"# a comment\n\n{assignment}\n", form)
    assert error.problem.startswith(says)
    assert error.line == (4 if form == "ini" else 3)


def test_a_connection_is_whatever_gives_a_cursor():
    config = load("import sqlite3\nDB_CONNECTION = sqlite3.connect(':memory:')\n")
    assert config.db_connection.execute("SELECT 1").fetchone() == (1,)
    config.db_connection.close()


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("text", ["dbname=x password=hunter2", "mysql://bobby:hunter2@db/x"])
def test_a_connection_that_is_only_a_text_is_refused_without_showing_it(form, text):
    error = error_of(f"DB_CONNECTION = '{text}'\n", form)
    assert error.problem.startswith("DB_CONNECTION must be a connection to a database")
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("import sqlite3\n\nDB_CONNECTION = sqlite3.connect('/nowhere/at/all')\n", 3, "unable to"),
        ("import no_such_database\nDB_CONNECTION = None\n", 1, "ModuleNotFoundError"),
    ],
)
def test_a_database_that_cannot_be_opened_is_an_error_with_its_line(source, line, says):
    error = error_of(source)
    assert error.line == line
    assert says in error.problem


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("FULLNAME = Alice Liddell", "Alice Liddell"),
        ("fullname: Alice P. Liddell", "Alice P. Liddell"),
        ('FullName = it\'s 100% "me"', 'it\'s 100% "me"'),
        ("FULLNAME = 'quoted'", "quoted"),
        ("FULLNAME =    ", "Alice Liddell"),
        ("FULLNAME = ${HOME}", "${HOME}"),
    ],
)
def test_a_text_in_ini_form_needs_no_quotes(line, value):
    assert load(line + "\n", "ini").fullname == value


@pytest.mark.parametrize(
    "text", ["12345", "007", "1e5", "None", "True", "[x]", "['x']", "#1", "5d"]
)
def test_a_text_in_ini_form_stays_a_text_whatever_it_looks_like(text):
    assert load(f"SMTPAUTH_PASSWORD = {text}\n", "ini").smtpauth_password == text


def test_a_program_may_compute_what_it_likes():
    source = (
        "import os.path\n"
        "def half(number):\n"
        "    return number // 2\n"
        "HMAC_BYTES = half(21)\n"
        "ALLOW_MODE_640 = Yes and not OFF\n"
        "USERNAME = os.path.basename('/home/bob')\n"
        "FULLNAME = b'J\\xfcrgen'\n"
    )
    config = load(source)
    assert (config.hmac_bytes, config.allow_mode_640, config.username) == (10, True, "bob")
    assert config.fullname == "J\udcfcrgen"


@pytest.mark.parametrize("form", ["python", "literal"])
def test_the_last_of_several_assignments_holds(form):
    assert load('HMAC_BYTES = "wrong"\n\nHMAC_BYTES = 4\n', form).hmac_bytes == 4


@pytest.mark.parametrize("form", ["python", "literal", "ini"])
def test_unknown_names_are_nobodys_business(form):
    assert load("MY_OWN_NAME = 7\nDELIVERY = '~/Mailbox'\n", form) == load("")


# Faults


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("HMAC_BYTES = THREE\n", 1, "NameError: name 'THREE' is not defined"),
        ("X = 1\n\nHMAC_BYTES = (\n", 3, "syntax error: '(' was never closed"),
        ("X = 1\n  Y = 2\n", 2, "syntax error: unexpected indent"),
        ("X = 1\nimport nowhere_to_be_found\n", 2, "ModuleNotFoundError"),
        ("X = 1\nraise SystemExit(3)\n", 2, "SystemExit: 3"),
        ("import sys\n\nsys.exit('no')\n", 3, "SystemExit: no"),
        ("X = 1\nX = X / 0\n", 2, "ZeroDivisionError"),
        ("X = int('ten')\n", 1, "ValueError: invalid literal"),
        ("def f():\n    return 1 / 0\n\nX = f()\n", 2, "ZeroDivisionError"),
        ("X = 1\nopen('/nowhere/at/all')\n", 2, "FileNotFoundError"),
        ("def f():\n    f()\nf()\n", 2, "RecursionError"),
        (b"X = 1\nY = '\xfc'\n", 2, "syntax error: (unicode error)"),
        (b"X = 1\n\0\n", 2, "syntax error: a NUL octet"),
        ("X = 1\n\nY = eval('1 +')\n", 3, "syntax error"),
    ],
)
def test_a_program_that_fails_is_reported_with_its_line(source, line, says):
    error = error_of(source)
    assert error.line == line
    assert error.problem.startswith(says) or says in error.problem


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ('HMAC_BYTES = "three"', "HMAC_BYTES must be a whole number, 0 or more, not 'three'"),
        ("HMAC_BYTES = -1", "HMAC_BYTES must be a whole number, 0 or more, not -1"),
        ("HMAC_BYTES = 2.5", "HMAC_BYTES must be a whole number, 0 or more, not 2.5"),
        ("HMAC_BYTES = True", "HMAC_BYTES must be a whole number, 0 or more, not True"),
        ('ALLOW_MODE_640 = "perhaps"', "ALLOW_MODE_640 must be True or False, not 'perhaps'"),
        ('TAGS_DATED = "dated"', "TAGS_DATED must be a list of texts"),
        ("TAGS_DATED = []", "TAGS_DATED must be a list of at least one word"),
        ('TAGS_DATED = [""]', "TAGS_DATED must be a list of at least one word"),
        ("TAGS_DATED = [1]", "TAGS_DATED must be a text in quotes, not [1]"),
        ("PURGED_HEADERS_CLIENT = {'bcc': ''}", "PURGED_HEADERS_CLIENT must be a list of texts"),
        ("ADDED_HEADERS_CLIENT = ['X-A']", "ADDED_HEADERS_CLIENT must be a table"),
        ("ADDED_HEADERS_CLIENT = {'X A': 'b'}", "ADDED_HEADERS_CLIENT must be a table"),
        ("ADDED_HEADERS_CLIENT = {'X-A:': 'b'}", "ADDED_HEADERS_CLIENT must be a table"),
        ("ADDED_HEADERS_CLIENT = {'': 'b'}", "ADDED_HEADERS_CLIENT must be a table"),
        (r"ADDED_HEADERS_CLIENT = {'X-A': 'b\nBcc: c'}", "table of texts without line ends"),
        (r"ADDED_HEADERS_CLIENT = {'X-A': 'b\rBcc: c'}", "table of texts without line ends"),
        (r"ADDED_HEADERS_CLIENT = {'X-A\n': 'b'}", "ADDED_HEADERS_CLIENT must be a table"),
        ('MAIL_TRANSPORT = "uucp"', "MAIL_TRANSPORT must be one of 'sendmail', 'smtp', not 'uucp'"),
        ('ACTION_OUTGOING = "Dated"', "lower case: 'dated'"),
        ('ACTION_OUTGOING = "nonsense"', "there is no action 'nonsense'"),
        ('ACTION_OUTGOING = "exp"', "needs an option"),
        ('ACTION_OUTGOING = "default"', "an action other than 'default'"),
        ('ACTION_OUTGOING = "drop"', "for incoming mail only"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_line(form, assignment, says):
    error = error_of(f"# a comment\n\n{assignment}\nUSERNAME = 'a'\n", form)
    assert says in error.problem
    assert error.problem.startswith(assignment.partition(" ")[0])
    assert error.line == (4 if form == "ini" else 3)


@pytest.mark.parametrize("form", ["python", "literal"])
def test_of_several_assignments_the_last_one_is_blamed(form):
    assert error_of('HMAC_BYTES = 3\n\nHMAC_BYTES = "x"\nMY_HMAC_BYTES = 3\n', form).line == 3


TEXTS = sorted(
    name
    for name, item in SETTINGS.items()
    if isinstance(item.default, str) and name != "MAIL_TRANSPORT"
)


@pytest.mark.parametrize("form", ["python", "literal"])
@pytest.mark.parametrize(
    "assignment",
    [
        *(f"{name} = {{}}" for name in TEXTS),
        "FINGERPRINT = [{}]",
        "MAIL_FOLLOWUP_TO = [{}]",
        "PURGED_HEADERS_CLIENT = [{}]",
        "TAGS_DATED = [{}]",
        "ADDED_HEADERS_CLIENT = {{'X-A': {}}}",
        "ACTION_OUTGOING = 'ext=' {}",
    ],
)
def test_a_text_that_has_no_octets_is_refused(form, assignment):
    """Half of a pair of surrogates: no encoding has it, so no header can."""
    error = error_of("\n" + assignment.format(r"'a\ud800b'") + "\n", form)
    assert error.problem.startswith(assignment.partition(" ")[0])
    assert error.line == 2


@pytest.mark.parametrize("delimiter", ["", "@", "a@b", "\n", "\r\n", " ", "\x00"])
def test_a_delimiter_that_no_address_can_have_is_refused(delimiter):
    error = error_of(f"RECIPIENT_DELIMITER = {delimiter!r}\n")
    assert error.problem.startswith("RECIPIENT_DELIMITER must be ")
    assert error.line == 1


@pytest.mark.parametrize("form", ["python", "literal"])
@pytest.mark.parametrize("value", ["5", "5.0", "True", "['5d']", "('5d',)"])
def test_a_text_needs_quotes_where_numbers_and_lists_have_none(form, value):
    error = error_of(f"\nDATED_TIMEOUT = {value}\n", form)
    assert error.problem == f"DATED_TIMEOUT must be a text in quotes, not {value}"
    assert error.line == 2


@pytest.mark.parametrize("form", ["python", "literal"])
@pytest.mark.parametrize(
    ("assignment", "wanted"),
    [
        ("SMTPHOST = []", "HOST or HOST:PORT, or a list of these"),
        ("SMTPHOST = ['a', 'b:x']", "HOST or HOST:PORT, or a list of these"),
        ("SMTPHOST = ['a', 25]", "HOST or HOST:PORT, or a list of these"),
        ("SMTPHOST = 25", "HOST or HOST:PORT, or a list of these"),
        ("SMTPHOST = 'a b'", "HOST or HOST:PORT"),
        ("SMTPSSL = 'ssl'", "True, False, 'starttls' or 'implicit'"),
        ("SMTPTLS = 'may'", "'verify', 'encrypt', 'off', or 'fingerprint:'"),
        ("SMTPTLS = 'fingerprint:abcd'", "'verify', 'encrypt', 'off', or 'fingerprint:'"),
        (f"SMTPTLS = 'sha1:{'0' * 64}'", "'verify', 'encrypt', 'off', or 'fingerprint:'"),
        ("SMTPTLS = True", "a text in quotes"),
    ],
)
def test_a_wrong_next_hop_is_refused_with_what_it_must_be(form, assignment, wanted):
    error = error_of(f"\n{assignment}\n", form)
    assert error.problem.startswith(f"{assignment.split()[0]} must be {wanted}")
    assert error.line == 2


@pytest.mark.parametrize("asked", ["True", "'starttls'", "'implicit'"])
def test_tls_cannot_be_asked_for_and_be_off(asked):
    error = error_of(f"SMTPSSL = {asked}\nSMTPTLS = 'off'\n")
    assert error.problem == "SMTPTLS = 'off' contradicts SMTPSSL, which asks for TLS"
    assert error.line == 2
    assert load("SMTPSSL = False\nSMTPTLS = 'off'\n").smtptls == "off"


@pytest.mark.parametrize("form", ["python", "literal"])
@pytest.mark.parametrize("value", ["['hunter2']", "{'hunter2': 1}"])
def test_a_password_of_the_wrong_kind_is_not_shown(form, value):
    error = error_of(f"SMTPAUTH_PASSWORD = {value}\n", form)
    assert error.problem.startswith("SMTPAUTH_PASSWORD must be a text in quotes")
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("form", ["python", "literal"])
@pytest.mark.parametrize("value", ["hunter2", "'' + hunter2", '"hunter2'])
def test_a_password_that_makes_the_file_fail_is_not_shown(form, value):
    error = error_of(f"SMTPAUTH_USERNAME = 'a'\nSMTPAUTH_PASSWORD = {value}\n", form)
    assert error.line == 2
    assert "hunter2" not in str(error)


def test_a_configuration_never_shows_its_values():
    config = load('SMTPAUTH_PASSWORD = "hunter2"\n')
    assert config.smtpauth_password == "hunter2"
    assert "hunter2" not in f"{config} {config!r}"


@pytest.mark.parametrize(
    "statement",
    [
        "import os",
        "import os; os.system('touch {proof}')",
        "__import__('os').system('touch {proof}')",
        "X = __import__('os').system('touch {proof}')",
        "X = open('{proof}', 'w')",
        "X = [open('{proof}', 'w')]",
        "X = f\"{{open('{proof}', 'w')}}\"",
        "X = (lambda: 1)()",
        "X = Y",
        "X = Y = 1",
        "X: int = 1",
        "X += 1",
        "X[0] = 1",
        "X.y = 1",
        "X, Z = 1, 2",
        "X = 'a' + 'b'",
        "X = 'a' % 1",
        "X = [i for i in 'ab']",
        "del X",
        "def f(): pass",
        "class A: X = open('{proof}', 'w')",
        "if 1: X = 1",
        "'just a text'",
        "pass",
        "exec('X = 1')",
    ],
)
def test_the_literal_form_refuses_all_but_literals_and_runs_nothing(tmp_path, statement):
    proof = tmp_path / "proof"
    code = statement.format(proof=str(proof))
    error = error_of(f"HMAC_BYTES = 4\n\n{code}\n", "literal")
    assert error.line == 3
    assert error.problem == "only NAME = text, number or list is allowed here"
    assert not proof.exists()


@pytest.mark.parametrize(
    ("source", "line"),
    [("X = 1\nX = (\n", 2), ("X = 1\n\n  Y = 2\n", 3), (b"X = 1\nY = '\xfc'\n", 2), (b"\0", 1)],
)
def test_the_literal_form_reports_broken_syntax_with_its_line(source, line):
    error = error_of(source, "literal")
    assert error.line == line
    assert "syntax error" in error.problem


@pytest.mark.parametrize("unit", ["-", "(", "[", "not ", "1+"])
@pytest.mark.parametrize("form", ["python", "literal"])
def test_nesting_without_end_is_an_error_of_the_file(form, unit):
    assert error_of(f"X = {unit * 100_000}1\n", form).path == PATH


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("USERNAME = alice\n", 1, "no section headers"),
        ("", 0, "the section [TMDA_CONFIG] is missing"),
        ("[OTHER]\nUSERNAME = alice\n", 0, "the section [TMDA_CONFIG] is missing"),
        ("[TMDA_CONFIG]\nA = 1\na = 2\n", 3, "already exists"),
        ("[TMDA_CONFIG]\n[TMDA_CONFIG]\n", 2, "already exists"),
        ("[TMDA_CONFIG]\n\nnonsense\n", 3, "not in INI form"),
        ("[TMDA_CONFIG]\nA = 1\n= 2\n", 3, "not in INI form"),
    ],
)
def test_a_file_that_is_not_in_ini_form_is_reported_with_its_line(source, line, says):
    with pytest.raises(ConfigError, match=r"\A/home/alice/.tmda/config:") as caught:
        read_ini(source.encode(), PATH, {})
    assert caught.value.line == line
    assert says in caught.value.problem


def test_every_setting_has_a_default_that_passes_its_own_check():
    config = Config(origin=PATH)
    for name, item in SETTINGS.items():
        value = getattr(config, item.name)
        if name == "DB_CONNECTION":
            continue  # whose default is none
        if isinstance(value, Action):
            value = str(value)
        if name == "ADDED_HEADERS_CLIENT":
            value = dict(value)
        assert item.metadata["convert"](value) == getattr(config, item.name), name


# Noise


WORDS = [
    "USERNAME",
    "=",
    "1",
    "'x'",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ":",
    ",",
    "\n",
    " ",
    "\0",
    "@",
    "é",
]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(WORDS)).map("".join)))
@pytest.mark.parametrize("form", ["literal", "ini"])
def test_any_octets_are_a_configuration_or_a_config_error(form, source):
    """The third form executes what it reads, so noise is not for it."""
    try:
        config = load(source, form)
    except ConfigError:
        return
    assert config.origin == PATH
