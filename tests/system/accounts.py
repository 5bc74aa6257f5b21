"""An ordinary account of its own, for root's tests, and a copy of the program that it can run."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from running import Home

_PACKAGE = Path(__file__).parents[2] / "tofmipd"
_NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 11))"


@dataclass(frozen=True)
class Account:
    """``program`` and ``variables`` start tofmipd under it: see running.tofmipd."""

    name: str
    uid: int
    home: Home
    program: tuple[str, ...]
    variables: dict[str, str]


@contextlib.contextmanager
def new_account(name: str) -> Iterator[Account]:
    """Make an account with a home directory; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tofmipd-account-") as directory:
        # The account cannot look into the directories of whoever runs the tests.
        os.chmod(directory, 0o755)
        variables = copy_of_program(Path(directory, "lib"))
        home = f"{directory}/home"
        add = ["useradd", "--user-group", "--create-home", "--home-dir", home]
        subprocess.run([*add, "--comment", "Test Person,,,", name], check=True)
        try:
            uid = pwd.getpwnam(name).pw_uid
            program = (python_for(uid), "-m", "tofmipd")
            yield Account(name, uid, Home(Path(home)), program, variables)
        finally:
            subprocess.run(["userdel", name], check=True)


def copy_of_program(library: Path) -> dict[str, str]:
    """Copy the package where every account can read it; the variables that make it be found."""
    package = Path(shutil.copytree(_PACKAGE, library / "tofmipd"))
    for path in [library, package, *package.rglob("*")]:
        path.chmod(0o755)
    return {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"}


def python_for(uid: int) -> str:
    """An interpreter that the account can run; that of a virtual environment may be hidden."""
    for path in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(PermissionError):
            done = subprocess.run([path, "-c", _NEW_ENOUGH], user=uid, group=uid, check=False)
            if done.returncode == 0:
                return path
    raise RuntimeError("other accounts can run no Python here that is new enough")
