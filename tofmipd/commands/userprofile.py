"""The files of the person who runs a tool, or of the one whom root asks about."""

from __future__ import annotations

import os

from tofmipd.auth.hashes import Clear
from tofmipd.auth.passwordfile import PasswordFileError, read_passwords
from tofmipd.cli import absolute, host_name, person
from tofmipd.errors import CONFIG, PERMISSION, Fatal
from tofmipd.privsep.accounts import Admission, NoAccount
from tofmipd.privsep.drop import become
from tofmipd.privsep.errands import variables_of
from tofmipd.settings import Settings
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import UserFileError
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles


def first_login(path: str, uid: int) -> tuple[str, bytes | None]:
    """The first user of a password file and the password, None if it is hashed.  Raises Fatal."""
    try:
        passwords = read_passwords(path, uid)
    except PasswordFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    if not passwords:
        raise Fatal(CONFIG, f"{path}: no user in it; add a line user:password")
    name, secret = next(iter(passwords.items()))
    return name, secret.written if isinstance(secret, Clear) else None


def from_here(path: str) -> str:
    """A path of the command line whatever becomes of this process; ``~`` is left for the user's
    own home."""
    return path if not path or path.startswith("~") else os.path.abspath(path)


def become_user(name: str) -> None:
    """Be that user from now on, as a worker of the daemon would be.  Raises Fatal."""
    if os.getuid() != 0:
        if name == person().name:
            return
        raise Fatal(PERMISSION, f"only root can ask for {name}; try: sudo tofmipd ...")
    try:
        account = Admission(min_uid=1, service_uid=0).account(name)
    except NoAccount as error:
        raise Fatal(CONFIG, str(error)) from None
    # What that imports when it is first needed may be nothing that this user can read.
    host_name()
    zone = os.environ.get("TZ")
    os.environ.clear()
    os.environ.update(variables_of(name, account.home))
    if zone is not None:
        os.environ["TZ"] = zone
    os.umask(0o077)
    os.chdir("/")
    become(account.rights)


def own_files(
    config: str = "", filter_path: str = "", *, with_filter: bool = True, with_key: bool = True
) -> UserFiles:
    """Configuration, key and filter.  A configuration that is named must be there; a filter that is
    missing counts as empty.

    Otherwise GLOBAL_TMDARC, TMDARC and TMDA_FILTER_OUTGOING name files, and the variables of the
    reference's section 3.3 replace defaults, as they did for the original's programs.
    """
    who = person()
    environment = dict(os.environ)
    surroundings = Surroundings(
        who.home, who.name, who.full_name, host_name(), environment, environment
    )
    rules = absolute(filter_path or environment.get("TMDA_FILTER_OUTGOING", ""), who.home)
    site = absolute(environment.get("GLOBAL_TMDARC", ""), who.home)
    return UserFiles(
        absolute(config or environment.get("TMDARC", ""), who.home),
        surroundings,
        site_path=site or Settings(who).site_config,
        required=bool(config),
        with_filter=with_filter,
        with_key=with_key,
        filter_path=rules,
    )


def own_profile(config: str = "", filter_path: str = "", *, with_filter: bool = True) -> Profile:
    """The state of these files.  Raises Fatal."""
    try:
        return own_files(config, filter_path, with_filter=with_filter).profile()
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
