"""The directory of the service's own: who else could change what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tofmipd.errors import Fatal
from tofmipd.privsep.directories import make_private
from tofmipd.privsep.drop import Rights

SERVICE = Rights("service", 54321, 54322, (54322,))

pytestmark = pytest.mark.root


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "place"


def test_one_that_is_missing_is_made_for_the_account_alone(place):
    for _ in range(2):
        make_private(str(place), SERVICE)
        status = place.stat()
        assert (status.st_uid, status.st_gid) == (SERVICE.uid, SERVICE.gid)
        assert stat.S_IMODE(status.st_mode) == 0o700


def test_only_the_last_part_of_its_name_is_made(place):
    with pytest.raises(Fatal, match="No such file or directory") as error:
        make_private(str(place / "below"), SERVICE)
    assert error.value.status == os.EX_CANTCREAT
    assert not place.exists()


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o755, SERVICE.uid, None),
        (0o775, SERVICE.uid, "others can write it"),
        (0o1777, SERVICE.uid, "others can write it"),
        (0o700, 0, "uid 0 owns it"),
        (0o700, 54323, "uid 54323 owns it"),
    ],
)
def test_one_that_is_there_is_taken_as_it_is_or_not_at_all(place, mode, owner, words):
    place.mkdir()
    os.chown(place, owner, 0)
    place.chmod(mode)
    before = place.stat()
    if words is None:
        make_private(str(place), SERVICE)
    else:
        with pytest.raises(Fatal, match=words) as error:
            make_private(str(place), SERVICE)
        assert error.value.status == os.EX_CONFIG
        assert "chown service" in str(error.value)
    assert (place.stat().st_mode, place.stat().st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.parametrize("kind", ["link", "dangling link", "file"])
def test_what_is_no_directory_is_refused_and_left_alone(place, kind):
    target = place.with_name("target")
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(target)
    if kind == "link":
        target.mkdir()
    with pytest.raises(Fatal) as error:
        make_private(str(place), SERVICE)
    assert str(error.value).startswith(f"{place}: ")
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.stat().st_uid == 0


@pytest.mark.parametrize(
    ("mode", "owner", "words"),
    [
        (0o755, 0, None),
        (0o755, SERVICE.uid, None),
        (0o1777, 0, None),
        (0o777, 0, "others can write"),
        (0o1777, 54323, "uid 54323 owns"),
        (0o755, 54323, "uid 54323 owns"),
    ],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_who_owns_or_writes_a_directory_above_could_put_another_there(
    place, mode, owner, words, depth
):
    place.mkdir()
    below = place.joinpath(*["above"] * (depth - 1), "own")
    below.parent.mkdir(exist_ok=True)
    os.chown(place, owner, 0)
    place.chmod(mode)
    if words is None:
        make_private(str(below), SERVICE)
        assert below.stat().st_uid == SERVICE.uid
    else:
        with pytest.raises(Fatal, match=f"{words} {place}, and could put another in its place"):
            make_private(str(below), SERVICE)
        assert not below.exists()


def test_a_link_above_it_is_looked_at_where_it_leads(place):
    place.mkdir()
    place.chmod(0o777)
    link = place.with_name("link")
    link.symlink_to(place)
    with pytest.raises(Fatal, match=f"others can write {place}"):
        make_private(str(link / "own"), SERVICE)
