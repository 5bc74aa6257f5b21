"""Whose addresses a login may use: spellings of an address, the file of senders, accounts."""

from __future__ import annotations

import logging
import os
import pwd
import threading
import time

import pytest
from forking import in_child
from hypothesis import given
from hypothesis import strategies as st

from tofmipd.privsep.senders import Accounts, SenderRules, SendersError, SendersFile, parse_senders
from tofmipd.settings import SenderCheck
from tofmipd.tmda import header

HOST, NAMES = "mx.example.org", ("mx.example.org", "localhost", "bücher.example")
# bobby logs in; "a-b" has a delimiter in its name, and "news" belongs to the system.
ACCOUNTS = frozenset({"bobby", "chloe", "a-b", "a", "news"})
NOBODY = SendersFile("")


def refusal(
    block,
    mode="others",
    *,
    sender="",
    login="bobby",
    delimiter="-",
    file=NOBODY,
    names=NAMES,
    exists=ACCOUNTS.__contains__,
    own_names=(),
):
    """The reply to a message with this header, "" for none."""
    made = SenderRules.of(SenderCheck(mode, names), 1000, own_names=own_names)
    rules = SenderRules(made.check, file, exists, made.own_names)
    octets = block if isinstance(block, bytes) else block.encode()
    fields, _ = header.parse(octets + b"\r\n\r\n")
    reply = rules.refusal(login, sender, fields, delimiter, "1")
    return "" if reply is None else str(reply)


def of_address(address, mode="others", **more):
    """The same answer must come for an envelope sender and for From, which is returned."""
    said = refusal(f"From: Bobby <{address}>", mode, **more)
    assert refusal("Subject: x", mode, sender=address, **more) == said
    return said


OTHERS = "is the address of another account (sender-check=others)"
NOT_YOURS = "is not an address of yours (sender-check=own)"


# Addresses as they should be.


@pytest.mark.parametrize(
    ("address", "others", "own"),
    [
        (f"bobby@{HOST}", True, True),
        (f"BobbY@{HOST.upper()}", True, True),
        (f"bobby@{HOST}.", True, True),
        ("bobby@localhost", True, True),
        ("bobby@xn--bcher-kva.example", True, True),
        ("bobby", True, True),
        ("bobby@[192.0.2.1]", True, True),
        ('"bobby"@localhost', True, True),
        # Tagged and other forms of it.
        (f"bobby-dated-1234567890.abcdef@{HOST}", True, True),
        (f"bobby+dated+1234567890.abcdef@{HOST}", True, True),
        (f"bobby-sender-abcdef+x@{HOST}", True, True),
        (f"bobby-chloe@{HOST}", True, True),
        # Nobody's, or of other places.
        (f"sales@{HOST}", True, False),
        (f"bobbyx@{HOST}", True, False),
        (f"-bobby@{HOST}", True, False),
        (f"chloex@{HOST}", True, False),
        ("bobby@other.example", True, False),
        ("chloe@other.example", True, False),
        (f"chloe@a.{HOST}", True, False),
        (f"chloe@{HOST}.example", True, False),
        (f"x@other.example-chloe@{HOST}x", True, False),
        # Other accounts'.
        (f"chloe@{HOST}", False, False),
        ("chloe", False, False),
        (f"chloe-dated-1234567890.abcdef@{HOST}", False, False),
        (f"chloe+x@{HOST}", False, False),
        (f"news@{HOST}", False, False),
        (f"news-letter@{HOST}", False, False),
        ("chloe@xn--bcher-kva.example", False, False),
    ],
)
def test_a_login_may_use_its_own_address_in_all_forms_and_nobody_else_s(address, others, own):
    assert (of_address(address) == "") == others
    assert (of_address(address, "own") == "") == own
    assert of_address(address, "off") == ""


@pytest.mark.parametrize(
    ("login", "address", "allowed"),
    [
        ("a-b", f"a-b@{HOST}", True),
        ("a-b", f"a-b-dated-1.x@{HOST}", True),
        ("a-b", f"a@{HOST}", False),
        ("a-b", f"a-c@{HOST}", False),
        ("a", f"a-c@{HOST}", True),
        ("a", f"a-b@{HOST}", False),
        ("a", f"a-b-dated-1.x@{HOST}", False),
    ],
)
def test_the_longest_name_of_an_account_in_an_address_counts(login, address, allowed):
    assert (of_address(address, login=login) == "") == allowed
    assert (of_address(address, "own", login=login) == "") == allowed


@pytest.mark.parametrize("delimiter", ["=", "--", ".", "*", "|", "_X_"])
def test_a_user_s_own_delimiter_makes_forms_of_his_address(delimiter):
    tagged = f"bobby{delimiter}dated{delimiter}1.x@{HOST}"
    assert refusal("Subject: x", "own", sender=tagged, delimiter=delimiter) == ""
    assert NOT_YOURS in refusal("Subject: x", "own", sender=f"bobby!x@{HOST}", delimiter=delimiter)


def test_an_address_with_a_great_many_delimiters_asks_for_few_accounts():
    asked = []
    sender = f"-x{'-y' * 5000}@{HOST}"
    assert refusal("Subject: x", sender=sender, exists=lambda name: asked.append(name)) == ""
    assert 2 <= len(asked) <= 40
    assert "-x" in asked
    assert "" not in asked


@pytest.mark.parametrize(
    ("address", "others", "own"),
    [
        ("bob@customer.example", True, True),
        ("Bob-dated-1.x@Customer.Example.", True, True),
        ("ann@customer.example", False, False),
        ("bob@other.example", True, False),
        (f"bob@{HOST}", True, False),
        (f"chloe@{HOST}", False, False),
    ],
)
def test_a_virtual_user_has_one_address_in_his_domain(address, others, own):
    login = "bob@customer.example"
    assert (of_address(address, login=login) == "") == others
    assert (of_address(address, "own", login=login) == "") == own


def test_all_names_of_a_person_are_his_own():
    more = {"login": "work", "own_names": ("bobby",)}
    assert of_address(f"bobby-x@{HOST}", "own", **more) == ""
    assert of_address(f"work@{HOST}", "own", **more) == ""
    assert OTHERS in of_address(f"chloe@{HOST}", **more)


@pytest.mark.parametrize("mode", ["others", "own"])
def test_the_null_sender_and_a_message_without_from_are_nobody_s(mode):
    assert refusal("Subject: x", mode) == ""
    assert refusal("From:", mode) == ""
    assert refusal(f"From: bobby@{HOST}", mode) == ""
    assert refusal(f"From: chloe@{HOST}", mode) != ""


def test_a_refusal_names_address_and_rule_in_one_bounded_line(caplog):
    said = of_address(f"Chloe@{HOST}")
    assert said == f"553 5.7.1 <Chloe@{HOST}> {OTHERS}"
    assert of_address("x@other.example", "own") == f"553 5.7.1 <x@other.example> {NOT_YOURS}"
    assert caplog.messages[0] == f"s=1 refused: user='bobby' <Chloe@{HOST}> {OTHERS}"
    long = refusal(f"From: {'é' * 3000}@{HOST}", "own")
    assert len(long) < 200
    assert long.isascii()


def test_each_of_many_authors_must_be_allowed():
    two = f"bobby@{HOST}, friend@other.example"
    assert refusal(f"From: {two}") == ""
    assert "<friend@other.example>" in refusal(f"From: {two}", "own")
    assert OTHERS in refusal(f"From: {two},\r\n chloe@{HOST}")


def test_a_from_without_end_is_refused_without_a_look_at_its_addresses():
    asked = []
    many = ",\r\n ".join(f"a{number}@{HOST}" for number in range(2000))
    said = refusal(f"From: {many}", exists=lambda name: asked.append(name))
    assert said.startswith("553 5.7.1 From is longer than 10000 octets")
    assert not asked
    assert refusal(f"From: {many}", "off") == ""


# Addresses as somebody writes them who wants to be taken for chloe.

AT = f"@{HOST}"
SPELLINGS = [
    f"chloe{AT}",
    f"CHLOE@{HOST.title()}",
    f"<chloe{AT}>",
    f"Bobby <chloe{AT}>",
    f"chloe{AT} (Bobby)",
    # Quotes and backslashes.
    f'"chloe"{AT}',
    f'"ch\\loe"{AT}',
    f'"ch"loe{AT}',
    f'ch"lo"e{AT}',
    f'"chloe{AT}',
    f"\\chloe{AT}",
    f"'chloe{AT}'",
    # Comments, blanks, folds, dots.
    f"ch(x)loe(y){AT}",
    f"chloe @ (at) {HOST.replace('.', ' . ')}",
    f"chl\r\n oe\r\n\t{AT}",
    f"Bobby\r\n <chloe\r\n {AT}>",
    f"chloe{AT}.",
    f"chloe{AT}..",
    f"chloe.{AT}",
    f"chloe@.{HOST}",
    # Routes, ways to go, literals, no domain.
    f"<@other.example:chloe{AT}>",
    f"<@a.example,@b.example:chloe{AT}>",
    f"<bobby{AT}:chloe{AT}>",
    f"chloe%{HOST}{AT}",
    f"chloe%{HOST}",
    f"{HOST}!chloe",
    f"x!chloe{AT}",
    "chloe@[192.0.2.1]",
    "chloe@[IPv6:2001:db8::1]",
    "chloe@192.0.2.1",
    "chloe",
    "Chloe (Bobby)",
    "<chloe>",
    # Lists, groups, and what is missing or too much.
    f"bobby{AT}, chloe{AT}",
    f"bobby{AT}; chloe{AT}",
    f"bobby{AT} chloe{AT}",
    f"Friends: bobby{AT}, chloe{AT};",
    f"chloe{AT} <bobby{AT}>",
    f"bobby{AT} <chloe{AT}>",
    f"<bobby{AT}> <chloe{AT}>",
    f"<chloe{AT}",
    f"<<chloe{AT}>>",
    f")chloe{AT}",
    f"[chloe{AT}]",
    f"x chloe{AT}",
    f"mailto:chloe{AT}",
    f"chloe{AT}@other.example",
    f"bobby{AT}, chloe",
    f'bobby{AT}, "x <chloe{AT}>',
    # As a name, which is all that many readers show.
    f'"chloe{AT}" <bobby{AT}>',
    f"bobby{AT} (chloe{AT})",
    f"bobby{AT} (chloe{AT}",
    # Encoded words, also in the place of an address.
    f"=?utf-8?q?chloe=40{HOST}?= <bobby{AT}>",
    "=?US-ASCII?B?Y2hsb2VAbXguZXhhbXBsZS5vcmc=?=@other.example",
    "=?x-nothing?B?Y2hsb2VAbXguZXhhbXBsZS5vcmc?= <bobby@mx.example.org>",
    f"=?utf-8?q?ch?=\r\n =?utf-8?q?loe?={AT}",
    f"=?utf-8?q?chloe=40{HOST}=00?=@other.example",
    f"=?utf-8?q?chloe=40{HOST}=00x?= <bobby{AT}>",
    # What is not seen, other forms of letters and dots, and what is dropped on the way.
    f"ch\0loe{AT}",
    f"bobby{AT}, chl\x08oe{AT}",
    f"ch\N{SOFT HYPHEN}loe{AT}",
    f"ch\N{ZERO WIDTH SPACE}loe{AT}",
    f"chloe\N{RIGHT-TO-LEFT MARK}{AT}",
    f"\N{FULLWIDTH LATIN SMALL LETTER C}hloe{AT}",
    f"chloe\N{FULLWIDTH COMMERCIAL AT}{HOST}",
    f"chloe@{HOST.replace('.', chr(0x3002))}",
    f"chloe@{HOST.replace('.', chr(0xFF0E))}",
    "chloe@\N{MATHEMATICAL BOLD SMALL M}x.example.org",
    "chloe@BÜCHER.example",
    "chloe@bu\N{COMBINING DIAERESIS}cher.example",
    "chloe@XN--Bcher-Kva.example",
]


@pytest.mark.parametrize("value", SPELLINGS)
@pytest.mark.parametrize("mode", ["others", "own"])
def test_no_spelling_of_another_s_address_passes(value, mode):
    assert refusal(f"From: {value}", mode).startswith("553 5.7.1 <")


@pytest.mark.parametrize(
    "sender",
    [
        f'"chloe"{AT}',
        f'"ch\\loe"{AT}',
        f"chloe{AT}.",
        f"chloe%x{AT}",
        f"ch\N{SOFT HYPHEN}loe{AT}",
        f"\N{FULLWIDTH LATIN SMALL LETTER C}hloe{AT}",
        f"chloe@{HOST.replace('.', chr(0x3002))}",
        "chloe",
    ],
)
@pytest.mark.parametrize("mode", ["others", "own"])
def test_no_spelling_passes_as_an_envelope_sender(sender, mode):
    for names in (NAMES, (f"{HOST}.",)):
        assert refusal("Subject: x", mode, sender=sender, names=names).startswith("553 5.7.1 <")


@pytest.mark.parametrize(
    "block",
    [
        f"From : chloe{AT}",
        f"FROM\t: chloe{AT}",
        f"From:chloe{AT}",
        f"Subject: x\r\nfrom:\r\n chloe{AT}",
        f"From: bobby{AT}\r\nFrom: chloe{AT}",
        f"From: chloe{AT}\r\nFrom: bobby{AT}",
        f"From x\r\nFrom: chloe{AT}",
        # Who resends is the sender; and whose message that was is what is shown.
        f"From: bobby{AT}\r\nResent-From: chloe{AT}",
        f"From: chloe{AT}\r\nResent-From: bobby{AT}",
        f"Resent-From: bobby{AT}\r\nResent-From: chloe{AT}",
    ],
)
def test_every_field_with_an_author_is_looked_at(block):
    assert OTHERS in refusal(block)
    assert refusal(block.replace("chloe", "bobby")) == ""


@pytest.mark.parametrize(
    "block",
    [
        f"From: Chloe Smith <bobby{AT}>",
        f'From: "Smith, Chloe" <bobby{AT}>',
        f"From: =?utf-8?q?Chl=C3=B6e?= =?utf-8?b?Q2hsb2U=?= <bobby{AT}>",
        f"From: Bobby @ Work <bobby{AT}>",
        f"From: bobby{AT} (for chloe)",
        f'From: "chloe@other.example" <bobby{AT}>',
        f"From: bobby{AT}\r\nTo: chloe{AT}\r\nReply-To: chloe{AT}\r\nX-From: chloe{AT}",
        f"From: bobby{AT}\r\n\r\nFrom: chloe{AT}",
        "From: undisclosed-authors:;",
        "From: \N{BROKEN BAR} <>",
        f"From: =?utf-8?b?!?= =?q?b?x?= =??= <bobby{AT}>",
        b"From: \xff\xfe <bobby@mx.example.org>",
    ],
)
def test_what_names_nobody_else_passes(block):
    assert refusal(block) == ""


@given(st.binary(max_size=60), st.sampled_from(["others", "own"]))
def test_no_header_makes_it_fail(octets, mode):
    value = octets.replace(b"\r", b"").replace(b"\n", b"\r\n ")
    refusal(b"From: " + value, mode)
    refusal(b"Subject: x", mode, sender=octets.decode("utf-8", "replace"))


# The file of senders.


@pytest.fixture
def path(tmp_path):
    return tmp_path / "senders"


def put(path, text, mode=0o644):
    """Write the file anew, the way an editor does."""
    new = path.with_name("new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    new.chmod(mode)
    new.replace(path)
    return SendersFile(str(path), os.getuid())


FILE = """\
# addresses beside the own ones
#bobby: *

bobby: *@bobby.example, Sales@Example.org
chloe:chloe@*.example\t, a?@example.org,,
 Bobby :  *@=club.example   info-x@example.org *@*IPv6:2001:db8::*
Jörg : chloe@mx.example.org,
"""


@pytest.mark.parametrize(
    ("login", "address", "allowed"),
    [
        ("bobby", "any.thing@bobby.example", True),
        ("bobby", "any@BOBBY.example.", True),
        ("bobby", "any@a.bobby.example", False),
        ("bobby", "sales@example.org", True),
        ("bobby", "sales-dated-1.x@example.org", True),
        ("bobby", "sales+eu@example.org", True),
        ("bobby", '"sales"@example.org', True),
        ("bobby", "salesx@example.org", False),
        ("bobby", "x@a.club.example", True),
        ("bobby", "x@club.example", True),
        ("bobby", "info-x@example.org", True),
        ("bobby", "info-x-dated-1.x@example.org", True),
        ("bobby", "info@example.org", False),
        ("bobby", "x@[IPv6:2001:db8::1]", True),
        ("bobby", "x@[IPv6:2001:db9::1]", False),
        ("bobby", "chloe@x.example", False),
        ("chloe", "chloe@x.example", True),
        ("chloe", "a1@example.org", True),
        ("chloe", "a12@example.org", False),
        ("chloe", "sales@example.org", False),
        ("jörg", f"chloe-x@{HOST}", True),
    ],
)
def test_a_line_allows_a_user_more_addresses_and_their_tagged_forms(
    path, login, address, allowed, caplog
):
    file = put(path, FILE)
    assert file.find(login) is not None
    assert caplog.messages == []
    assert (of_address(address, "own", login=login, file=file) == "") == allowed


def test_a_line_allows_the_address_of_another_account(path):
    file = put(path, f"bobby: news@{HOST}\r\n")
    assert of_address(f"news-letter@{HOST}", file=file) == ""
    assert OTHERS in of_address(f"chloe@{HOST}", file=file)


@pytest.mark.parametrize(
    "line",
    ["bobby", "bobby:", "bobby: ,", ": x@example.org", "x@example.org", b"b\xff: x@example.org"],
)
def test_a_bad_line_is_logged_with_its_number_and_skipped(line, caplog):
    octets = line if isinstance(line, bytes) else line.encode()
    found = parse_senders("/f", b"ann: a@example.org\n\n" + octets + b"\nbob: b@example.org")
    assert set(found) == {"ann", "bob"}
    assert caplog.messages == ["/f:3: line skipped: not USER: ADDRESS, ADDRESS"]


@given(st.binary(max_size=200))
def test_no_text_of_the_file_makes_it_fail(text):
    for patterns in parse_senders("/f", text).values():
        patterns.first(b"x@example.org")


def test_a_change_of_the_file_counts_at_once(path):
    file, address = SendersFile(str(path), os.getuid()), "x@a.example"

    def allowed():
        return of_address(address, "own", file=file) == ""

    assert not allowed()
    put(path, "bobby: x@a.example\n")
    assert allowed()
    put(path, "bobby: x@b.example\n")
    assert not allowed()
    with path.open("a") as text:
        text.write("bobby: x@a.example\n")
    assert allowed()
    path.unlink()
    assert not allowed()


def _directory(path):
    path.mkdir()


def _fifo(path):
    os.mkfifo(path, 0o644)


def _below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("")


TROUBLES = {
    "writable by all": (lambda path: put(path, FILE, 0o646), "others can write it"),
    "writable by a group": (lambda path: put(path, FILE, 0o664), "others can write it"),
    "too big": (lambda path: put(path, b"#" * (4 << 20) + b"\n"), "more than 4194304 octets"),
    "directory": (_directory, "directory"),
    "pipe": (_fifo, "not a regular file"),
    "below a file": (_below_a_file, "cannot be read (Not a directory)"),
}


@pytest.mark.parametrize(("make", "why"), TROUBLES.values(), ids=TROUBLES)
def test_a_file_that_cannot_be_trusted_or_read_puts_off_mail_that_needs_it(
    make, why, tmp_path, caplog
):
    path = tmp_path / "directory" / "senders"
    path.parent.mkdir()
    file = SendersFile(str(path), os.getuid())
    make(path)
    later = "451 4.3.5 Error: the list of senders cannot be read, the log has more"
    for mode, needs, does_not in (
        ("others", f"chloe@{HOST}", "x@other.example"),
        ("own", "x@other.example", f"bobby-x@{HOST}"),
    ):
        assert refusal(f"From: {needs}", mode, file=file) == later
        assert refusal(f"From: {does_not}", mode, file=file) == ""
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert caplog.messages[0].startswith(f"s=1 deferred: {path}: ")
    assert why in caplog.messages[0]


def test_a_file_that_has_been_mended_serves_again(path):
    file = put(path, FILE)
    assert file.find("bobby") is not None
    path.chmod(0o666)
    for _ in range(2):
        with pytest.raises(SendersError, match=r"chown root .*; chmod 644"):
            file.find("bobby")
    path.chmod(0o644)
    assert file.find("bobby") is not None


@pytest.mark.root
def test_the_file_belongs_to_root_or_to_the_person_who_is_served(path):
    for owner, person, good in ((0, 0, True), (0, 12345, True), (12345, 12345, True)):
        put(path, FILE)
        os.chown(path, owner, owner)
        assert (SendersFile(str(path), person).find("bobby") is not None) == good
    for person in (0, 54321):
        with pytest.raises(SendersError, match="others can write it"):
            SendersFile(str(path), person).find("bobby")


@pytest.mark.root
def test_a_file_that_only_root_may_read_is_an_error_that_says_what_to_do(path):
    file = put(path, FILE, 0o600)
    for directory in (path.parent, *path.parent.parents[:3]):
        directory.chmod(0o755)

    def find():
        os.setresuid(12345, 12345, 12345)
        try:
            file.find("bobby")
        except SendersError as error:
            return str(error)

    ended = in_child(find)
    assert ended.status == 0
    assert f"{path}: cannot be read (Permission denied)" in ended.said
    assert f"chmod 644 {path}" in ended.said


def test_threads_see_the_old_file_or_the_new_one(path):
    file = put(path, "bobby: x0@example.org\n")
    failures, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            patterns = file.find("bobby")
            keys = (b"x0@example.org", b"x1@example.org")
            if patterns is None or [patterns.first(key) for key in keys].count(0) != 1:
                failures.append(patterns)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(60):
        put(path, f"bobby: x{number % 2}@example.org\n")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# Accounts.

ROOT = pwd.getpwuid(0)


def test_an_account_that_is_nobody_s_has_no_extensions():
    """Row BX-1: news-letter@ is no address of the account "news"."""
    rules = SenderRules.of(SenderCheck("others", (HOST,)), 1000)
    for local, words in (("root", "another account"), ("root-letter", ""), ("root+x", "")):
        reply = rules.refusal("bobby", f"{local}@{HOST}", [], "-", "s")
        assert words in str(reply or "")
        assert bool(reply) == bool(words)


def test_accounts_are_those_of_the_system():
    accounts = Accounts()
    assert accounts.exists(pwd.getpwuid(0).pw_name)
    for name in ("", "no such account", "é", "\udcff", "a\0b", "x" * 100_000):
        assert not accounts.exists(name), name


def test_an_account_is_looked_up_once_a_minute(monkeypatch):
    asked, now = [], [1000.0]

    def look_up(name):
        asked.append(name)
        if name not in ACCOUNTS:
            raise KeyError(name)
        return ROOT

    monkeypatch.setattr(pwd, "getpwnam", look_up)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    accounts = Accounts()
    for seconds, times in ((0, 1), (59, 1), (2, 2), (59, 2)):
        now[0] += seconds
        assert accounts.exists("bobby")
        assert not accounts.exists("nobody")
        assert len(asked) == 2 * times


def test_what_is_remembered_of_accounts_is_bounded(monkeypatch):
    asked = []
    monkeypatch.setattr(pwd, "getpwnam", lambda name: asked.append(name) or ROOT)
    accounts = Accounts()
    for number in range(30_000):
        accounts.exists(f"a{number}")
    before = len(asked)
    for number in range(30_000):
        accounts.exists(f"a{number}")
    assert len(asked) - before >= 20_000
