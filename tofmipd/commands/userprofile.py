"""The files of the person who runs a tool."""

from __future__ import annotations

from tofmipd.auth.passwordfile import PasswordFileError, read_passwords
from tofmipd.cli import host_name, person
from tofmipd.errors import CONFIG, Fatal
from tofmipd.settings import Settings
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import UserFileError
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles


def first_login(path: str, uid: int) -> tuple[str, bytes]:
    """The first user of a password file and the password.  Raises Fatal."""
    try:
        passwords = read_passwords(path, uid)
    except PasswordFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    if not passwords:
        raise Fatal(CONFIG, f"{path}: no user in it; add a line user:password")
    return next(iter(passwords.items()))


def own_profile(config: str = "", *, with_filter: bool = True) -> Profile:
    """Configuration, key and filter as the daemon would see them.

    A configuration that is named must be there.  Raises Fatal.
    """
    who = person()
    surroundings = Surroundings(who.home, who.name, who.full_name, host_name())
    try:
        return UserFiles(
            config,
            surroundings,
            site_path=Settings(who).site_config,
            required=bool(config),
            with_filter=with_filter,
        ).profile()
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
