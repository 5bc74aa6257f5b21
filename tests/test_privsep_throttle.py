"""The throttle script: what it is asked, and what its answers mean (feature row TO-82)."""

from __future__ import annotations

import logging

import pytest

from tofmipd.privsep.throttle import Throttle

EXCEEDED = "450 4.7.1 Outgoing mail quota exceeded"
UNKNOWN = "451 4.3.0 Error: the quota cannot be looked up now, try again later"


@pytest.fixture
def throttle_that(tmp_path):
    def make(body: str, *, timeout: float = 10) -> Throttle:
        path = tmp_path / "throttle"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return Throttle(str(path), "/usr/local/bin:/usr/bin:/bin", timeout)

    return make


@pytest.mark.parametrize(
    ("body", "reply", "level", "logged"),
    [
        ("exit 0", "None", 0, ""),
        ("echo much to say; exit 0", "None", 0, ""),
        ("exit 1", EXCEEDED, logging.WARNING, "s=1f throttled user='joe' status=1 said=''"),
        ("echo 100 a day; exit 75", EXCEEDED, logging.WARNING, "status=75 said='100 a day'"),
        ("printf 'a\\nb\\033'; exit 2", EXCEEDED, logging.WARNING, r"said='a\\nb\\x1b'"),
        ("kill -9 $$", EXCEEDED, logging.WARNING, "status=-9 said=''"),
        ("sleep 60", UNKNOWN, logging.ERROR, "s=1f throttle script does not end in 0.2 s"),
        ("yes", UNKNOWN, logging.ERROR, "s=1f throttle script does not end in 0.2 s"),
    ],
)
def test_the_status_decides(throttle_that, body, reply, level, logged, caplog):
    caplog.set_level(logging.DEBUG)
    limit = 0.2 if body in ("sleep 60", "yes") else 10
    assert str(throttle_that(body, timeout=limit).refusal("joe", "1f")) == reply
    assert [record.levelno for record in caplog.records] == [level] * bool(logged)
    assert logged in caplog.text


def test_much_output_is_cut_in_the_log(throttle_that, caplog):
    throttle_that("yes | head -c 100000; exit 1").refusal("joe", "1f")
    (record,) = caplog.records
    assert len(record.getMessage()) < 600


@pytest.mark.parametrize("login", ["joe", "a;touch x", "$(touch x)", "a b", "é", "*"])
def test_the_login_name_is_the_only_argument_and_no_shell_sees_it(
    throttle_that, tmp_path, login, caplog
):
    script = throttle_that('cd "${0%/*}"; printf %s "$#$1" >said; exit 0')
    assert script.refusal(login, "1f") is None
    assert (tmp_path / "said").read_text() == f"1{login}"
    assert {path.name for path in tmp_path.iterdir()} == {"throttle", "said"}


def test_the_environment_is_small(throttle_that, tmp_path, monkeypatch):
    monkeypatch.setenv("LEAK", "secret")
    script = throttle_that(f"/usr/bin/env | grep -v ^PWD= | sort >{tmp_path}/said")
    assert script.refusal("joe", "1f") is None
    assert (tmp_path / "said").read_text().splitlines() == [
        "HOME=/",
        "LOGIN=joe",
        "PATH=/usr/local/bin:/usr/bin:/bin",
    ]


@pytest.mark.parametrize("login", ["joe", "a\0b"])
def test_a_script_that_cannot_be_run_is_a_reason_to_try_later(tmp_path, login, caplog):
    throttle = Throttle(str(tmp_path / "none"), "/bin", 5)
    assert str(throttle.refusal(login, "1f")) == UNKNOWN
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "s=1f throttle script" in record.getMessage()
