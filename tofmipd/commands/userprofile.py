"""The files of the person who runs a tool."""

from __future__ import annotations

from tofmipd.cli import host_name, person
from tofmipd.errors import CONFIG, Fatal
from tofmipd.settings import Settings
from tofmipd.tmda.config import Surroundings
from tofmipd.tmda.errors import UserFileError
from tofmipd.tmda.profile import Profile
from tofmipd.tmda.userfiles import UserFiles


def own_profile(config: str = "") -> Profile:
    """Configuration, key and filter as the daemon would see them.  Raises Fatal."""
    who = person()
    surroundings = Surroundings(who.home, who.name, who.full_name, host_name())
    try:
        return UserFiles(config, surroundings, site_path=Settings(who).site_config).profile()
    except UserFileError as error:
        raise Fatal(CONFIG, str(error)) from None
