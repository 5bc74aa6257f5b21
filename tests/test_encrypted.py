"""Whether a daemon has encryption, and what is said when it cannot have it."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
from certificates import authority

from tofmipd.encrypted import Encryption
from tofmipd.errors import Fatal
from tofmipd.settings import EncryptionSettings, Listen, Person, Settings

PERSON = Person(os.getuid(), "bobby", "Bobby", "/nonexistent")


def settings(mode: str, *pairs: tuple[str, str]) -> Settings:
    return Settings(
        PERSON, (Listen("localhost", 1, mode=mode),), encryption=EncryptionSettings(pairs)
    )


def test_without_a_listener_that_needs_it_nothing_is_imported(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("OpenSSL", "cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("tofmipd.tls")]:
        monkeypatch.delitem(sys.modules, name)
    encryption = Encryption(settings("plain"))
    assert encryption.encrypt is None
    assert not encryption.watched
    assert not encryption.changed()
    encryption.reload()
    assert not any(name.split(".")[0] == "OpenSSL" for name in sys.modules)


def test_without_the_library_its_name_is_told(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tofmipd.tls")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)
    with pytest.raises(Fatal, match=r"TLS needs pyOpenSSL \(pip install pyOpenSSL\)") as caught:
        Encryption(settings("ssl", ("c", "k")))
    assert caught.value.status == os.EX_UNAVAILABLE


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_key_that_everybody_can_read_is_a_warning(tmp_path: Path, mode, warned, caplog):
    files = authority().issue("localhost").save(tmp_path)
    pair = str(files.chain), str(files.key)
    os.chmod(files.key, mode)
    with caplog.at_level(logging.WARNING, "tofmipd"):
        assert Encryption(settings("ssl", pair)).encrypt is not None
    assert warned == ("everybody on this machine can read the key" in caplog.text)
