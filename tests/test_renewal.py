"""What a daemon takes over of options that have changed; the system tests send SIGHUP."""

from __future__ import annotations

from tofmipd.renewal import Renewal
from tofmipd.settings import GlobalMode, Options, Person, Settings


def settings(mode: GlobalMode) -> Settings:
    return Settings(Person(0, "root", "", "/root"), global_mode=mode)


def test_of_the_global_mode_only_the_number_of_workers_changes():
    before, after = GlobalMode("a", 500, 2), GlobalMode("b", 1000, 3)
    now = [before]

    def read() -> Options:
        values = {"username": now[0].service, "min_uid": now[0].min_uid}
        return Options(settings(now[0]), values | {"max_workers": now[0].max_workers})

    renewal = Renewal(settings(before), read)
    now[0] = after
    changed = renewal.changed()
    assert changed is not None
    assert changed.names == "max-workers"
    assert changed.settings.global_mode == GlobalMode("a", 500, 3)
