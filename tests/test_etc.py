"""The examples below etc/ are files that work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.inject import Stamp, tag_message
from tofmipd.tmda.userfiles import UserFiles

ETC = Path(__file__).parent.parent / "etc"
STAMP = Stamp(1_700_000_000, b"Tue, 14 Nov 2023 22:13:20 +0000", None, b"<1@here>", b"tofmipd")


@pytest.fixture
def profile(tmp_path):
    shutil.copytree(ETC / "dot-tmda", tmp_path / ".tmda")
    key = tmp_path / ".tmda/crypt_key"
    key.write_text("0123456789abcdef0123456789abcdef01234567\n")
    key.chmod(0o600)
    files = UserFiles("", Surroundings(str(tmp_path), "you", "", "mx.example"), required=True)
    return files.profile()


@pytest.mark.parametrize(
    ("recipient", "beginning"),
    [
        ("boss@sales.example.org", "you@example.org"),
        ("x@books.example", "you+keyword+books."),
        ("orders@any.example", "you+keyword+orders."),
        ("x@bank.example", "you+sender+"),
        ("x@company.example", "you+sender+"),
        ("newsletter@any.example", "you+news@example.org"),
        ("friend@any.example", "you+dated+1701209600."),
    ],
)
def test_the_example_tags_as_its_comments_say(profile, recipient, beginning):
    (copy,) = tag_message(profile, [], [recipient.encode()], STAMP)
    assert copy.reports[0].sender_after.decode().startswith(beginning)


def test_the_example_of_a_newsletter_has_a_sender_and_answers_of_its_own(profile):
    (copy,) = tag_message(profile, [], [b"newsletter@any.example"], STAMP)
    assert copy.sender.startswith(b"you+dated+1700259200.")
    assert b"Reply-To: Your Name <you@example.org>\r\n" in copy.header
    assert b"Organization: Example\r\n" in copy.header
