"""Which files hold certificates and keys, and when they have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from certificates import replace

from tofmipd.settings import EncryptionSettings
from tofmipd.tls import files
from tofmipd.tls.files import LIMIT_OCTETS, Watch, pairs_among, paths_of, read, stamps_of


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """A directory for more names, in both layouts, with things that do not count."""
    directory = tmp_path / "names"
    for name in (
        "b.pem",
        "a.pem",
        "a.key",
        "README",
        ".hidden.swp",
        "live/fullchain.pem",
        "live/privkey.pem",
        "live/cert.pem",
        "empty/nothing",
    ):
        replace(directory / name, b"x")
    return directory


def settings(directory: Path, *pairs: tuple[str, str], **more: str) -> EncryptionSettings:
    return EncryptionSettings(pairs=pairs, sni_directory=str(directory), **more)


def test_all_files_are_listed_each_once(names):
    asked = settings(names, ("/x/c.pem", "/x/k.pem"), ("/x/both.pem", "/x/both.pem"))
    assert paths_of(asked) == [
        "/x/c.pem",
        "/x/k.pem",
        "/x/both.pem",
        f"{names}/a.pem",
        f"{names}/b.pem",
        f"{names}/live/fullchain.pem",
        f"{names}/live/privkey.pem",
    ]


def test_without_a_directory_there_are_only_the_named_ones():
    asked = EncryptionSettings(pairs=(("c", "k"),), client_ca="ca")
    assert paths_of(asked) == ["c", "k", "ca"]
    assert pairs_among(asked, paths_of(asked)) == []


def test_authorities_in_the_directory_are_no_name_of_their_own(names):
    """A file that was named for something else all the same has a pair only where it lies."""
    asked = settings(names, client_ca="/elsewhere/ca.pem")
    assert "/elsewhere/ca.pem" in paths_of(asked)
    assert "/elsewhere/ca.pem" not in [chain for chain, _ in pairs_among(asked, paths_of(asked))]


def test_the_pairs_of_the_directory_are_found_among_the_paths(names):
    asked = settings(names, ("/x/c.pem", "/x/k.pem"))
    live = (f"{names}/live/fullchain.pem", f"{names}/live/privkey.pem")
    both = [(f"{names}/{name}.pem", f"{names}/{name}.pem") for name in "ab"]
    assert pairs_among(asked, paths_of(asked)) == [*both, live]


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        paths_of(settings(tmp_path / "none"))


def test_a_link_counts_as_what_it_leads_to(names, tmp_path):
    """As certbot keeps them: live/NAME/fullchain.pem leads into archive."""
    target = replace(tmp_path / "archive" / "fullchain1.pem", b"one")
    (names / "linked").mkdir()
    link = names / "linked" / "fullchain.pem"
    link.symlink_to(target)
    assert str(link) in paths_of(settings(names))
    before = stamps_of([str(link)])
    other = replace(tmp_path / "archive" / "fullchain2.pem", b"two")
    link.unlink()
    link.symlink_to(other)
    assert stamps_of([str(link)]) != before


def test_a_stamp_changes_with_inode_size_and_time(tmp_path):
    path = replace(tmp_path / "x", b"abc")
    status = path.stat()
    seen = {stamps_of([str(path)])}
    with path.open("ab") as file:
        file.write(b"d")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(stamps_of([str(path)]))
    replace(path, b"abcd")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    seen.add(stamps_of([str(path)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(stamps_of([str(path)]))
    path.unlink()
    seen.add(stamps_of([str(path)]))
    assert len(seen) == 5
    assert stamps_of([str(path)]) == (None,)


def test_a_file_is_read_up_to_a_limit(tmp_path):
    path = replace(tmp_path / "x", b"y" * (LIMIT_OCTETS + 1))
    assert len(read(str(path))) == LIMIT_OCTETS


# The watch.


@pytest.fixture
def pair(tmp_path: Path) -> EncryptionSettings:
    return EncryptionSettings(
        pairs=((str(replace(tmp_path / "c", b"1")), str(replace(tmp_path / "k", b"1"))),)
    )


def looks(watch: Watch, count: int = 5) -> list[bool]:
    return [watch.changed() for _ in range(count)]


def test_nothing_changes_by_itself(pair):
    assert not any(looks(Watch(pair)))


def test_a_change_is_told_once_when_it_has_settled(pair, tmp_path):
    watch = Watch(pair)
    replace(tmp_path / "c", b"2")
    assert looks(watch) == [False, True, False, False, False]


def test_two_files_that_change_one_after_the_other_are_told_of_together(pair, tmp_path):
    """Else a new chain would be read with the old key."""
    watch = Watch(pair)
    replace(tmp_path / "c", b"2")
    assert not watch.changed()
    replace(tmp_path / "k", b"2")
    assert not watch.changed()
    assert looks(watch, 2) == [True, False]


def test_a_change_that_is_undone_is_none(pair, tmp_path):
    watch = Watch(pair)
    kept = (tmp_path / "kept").resolve()
    (tmp_path / "c").rename(kept)
    assert not watch.changed()
    kept.rename(tmp_path / "c")
    assert not any(looks(watch))


def test_a_file_that_disappears_is_a_change_and_so_is_its_return(pair, tmp_path):
    watch = Watch(pair)
    (tmp_path / "k").unlink()
    assert looks(watch, 3) == [False, True, False]
    replace(tmp_path / "k", b"3")
    assert looks(watch, 3) == [False, True, False]


def test_what_changed_before_the_first_look_but_after_the_start_is_told(pair, tmp_path):
    watch = Watch(pair)
    replace(tmp_path / "c", b"2")
    replace(tmp_path / "k", b"2")
    assert looks(watch, 3) == [False, True, False]


@pytest.mark.parametrize("name", ["c.pem", "more/fullchain.pem"])
def test_a_name_that_is_added_is_a_change(name, names):
    watch = Watch(settings(names))
    replace(names / name, b"x")
    assert looks(watch, 3) == [False, True, False]


def test_a_file_that_does_not_count_is_no_change(names):
    watch = Watch(settings(names))
    replace(names / "notes", b"x")
    assert not any(looks(watch))


def test_a_directory_that_goes_and_comes_back_does_no_harm(names, tmp_path):
    watch = Watch(settings(names))
    names.rename(tmp_path / "moved")
    assert looks(watch, 3) == [False, True, False]
    (tmp_path / "moved").rename(names)
    assert looks(watch, 3) == [False, True, False]


def test_a_directory_with_far_too_much_in_it_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PAIRS_LIMIT", 3)
    for name in "abcdef":
        replace(tmp_path / "names" / f"{name}.pem", b"x")
    assert len(paths_of(settings(tmp_path / "names"))) == 3
