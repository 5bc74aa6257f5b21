"""Global mode: everybody's mail goes out, tagged with the sender's own key, under his own uid."""

from __future__ import annotations

import re

import pytest
from clients import submit
from village import worker_of

pytestmark = pytest.mark.root


def test_each_user_s_mail_is_tagged_as_his_own_files_say(village, village_hop):
    """TO-5."""
    bobby, chloe, _ = village.people
    chloe.write("filters/outgoing", "to * sender\n")
    with village.daemon() as daemon:
        for person in (bobby, chloe):
            sent = submit(daemon.port, "x@example.net", login=person.name, password=person.password)
            assert sent.startswith("250")
            assert worker_of(daemon, person)
    first, second = village_hop.messages()
    assert re.search(r"<bobby-dated-[0-9]+\.[0-9a-f]+@example.org>", first.value("From"))
    assert re.search(r"<bobby-sender-[0-9a-f]+@example.org>", second.value("From"))
