"""Which tests can run here: peers and root are asked for by marks."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

IN_CI = os.environ.get("CI", "") not in ("", "0", "false")

HERE = Path(__file__).parent
# Modules of the tests import each other's helpers by plain names.
sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def _logger_as_it_was():
    """The program sets its logger up once; a test that runs it must not do so for the others."""
    loggers = [logging.getLogger(name) for name in ("tofmipd", "tofmipd.trace")]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    for one, level, propagate, handlers in before:
        one.setLevel(level)
        one.propagate = propagate
        one.handlers[:] = handlers


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip with a reason where a peer or root is missing."""
    reasons = []
    for mark in item.iter_markers("peer"):
        missing = [program for program in mark.args if shutil.which(program) is None]
        if missing:
            reasons.append(f"not installed: {', '.join(missing)} (make test installs them as root)")
    if item.get_closest_marker("root") is not None and os.getuid() != 0:
        reasons.append("needs root")
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """In CI nothing that needs a peer or root is skipped, for whatever reason: it fails."""
    report = yield
    asks = any(item.get_closest_marker(name) is not None for name in ("peer", "root"))
    if IN_CI and asks and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def _umask_as_it_was():
    """A daemon sets its own."""
    old = os.umask(0o022)
    os.umask(old)
    yield
    os.umask(old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB.  Tests that use it bear the mark root."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(path)]
    mounted = subprocess.run(mount, capture_output=True, timeout=20)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=20)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Processes that run all tests together share what is dear: to rewrite the asserts.

    Each imports the modules in an order of its own, and finds in the cache what others have done.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args != session.config.getini("testpaths"):
        return
    sys.path.insert(0, str(HERE / "system"))
    paths = sorted(HERE.rglob("test_*.py"))
    begin = len(paths) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for path in [*paths[begin:], *paths[:begin]]:
        importlib.import_module(path.stem)


def pytest_collection_finish() -> None:
    """What has been collected stays, so nobody looks at it again: neither this process in search of
    garbage, nor a forked one, which would get a copy of its own."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> object:
    """What a test has logged need not be UTF-8; what goes from one process to another must be."""
    return _as_text((yield))


def _as_text(value: object) -> object:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _as_text(inner) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(map(_as_text, value))
    return value
