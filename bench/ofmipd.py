"""How tofmipd and its ancestor tmda-ofmipd are configured and started."""

import contextlib
import os
import pwd
import subprocess
from dataclasses import replace
from pathlib import Path

from launch import ALL_USERS, HOST, PASSWORD, USER, Launch, Place
from programs import Programs

USER_CONFIG = """\
MAIL_TRANSPORT = "smtp"
SMTPHOST = "{host}:{port}"
FULLNAME = "Bench Sender"
USERNAME = "sender"
HOSTNAME = "example.org"
CRYPT_KEY_FILE = "{home}/.tmda/crypt_key"
"""

KEY = "0123456789abcdef" * 2 + "01234567\n"
SERVICE = f"{USER}-service"

MSMTP_CONFIG = """\
account default
host {host}
port {port}
domain proxy.example.org
"""


def home_of(place: Place) -> Path:
    """The home directory that the server is shown."""
    return place.directory / "home"


def write_passwords(place: Place) -> str:
    """One password for all."""
    return place.write("auth", "".join(f"{user}:{PASSWORD}\n" for user in ALL_USERS), 0o600)


def write_files(place: Place) -> list[str]:
    """Write AUTHFILE, key and CONFIGDIR/USER/config; return the options naming them."""
    auth = write_passwords(place)
    place.write("home/.tmda/crypt_key", KEY, 0o600)
    config = USER_CONFIG.format(host=HOST, port=place.sink_port, home=home_of(place))
    for user in ALL_USERS:
        place.write(f"config/{user}/config", config)
    return ["-a", auth, "-c", str(place.directory / "config")]


def tofmipd_launch(place: Place, *arguments: str) -> Launch:
    """Serves whoever starts it (--personal), also root."""
    return Launch(
        [*place.programs["TOFMIPD"], "--personal", *arguments, *write_files(place)],
        {"HOME": str(home_of(place))},
    )


def prepare_tofmipd(place: Place) -> Launch:
    """Tags each message and hands it over before it acknowledges it."""
    return tofmipd_launch(place, "-f", "-p", f"{HOST}:{place.port}")


def global_unusable(_: Programs) -> str | None:
    """Root serves accounts, which are made for the measurement and removed after it."""
    if os.getuid() != 0:
        return "needs root"
    for name in (SERVICE, *ALL_USERS):
        with contextlib.suppress(KeyError):
            return f"there is an account {pwd.getpwnam(name).pw_name} already"
    return None


def prepare_global(place: Place) -> Launch:
    """All users of a system, each with a worker of his own."""
    homes = place.directory / "accounts"
    homes.mkdir()
    for user in (SERVICE, *ALL_USERS):
        home = homes / user
        add = ["useradd", "--user-group", "--no-create-home", "--home-dir", str(home), user]
        subprocess.run(add, check=True)
        config = USER_CONFIG.format(host=HOST, port=place.sink_port, home=home)
        place.write(f"accounts/{user}/.tmda/config", config)
        place.write(f"accounts/{user}/.tmda/crypt_key", KEY, 0o600)
        entry = pwd.getpwnam(user)
        for path in [home, *home.rglob("*")]:
            os.chown(path, entry.pw_uid, entry.pw_gid)
    options = ["-f", "-p", f"{HOST}:{place.port}", "-a", write_passwords(place), "-u", SERVICE]
    return Launch([*place.programs["TOFMIPD"], *options])


def remove_accounts() -> None:
    """Those that ``prepare_global`` has made."""
    for user in (SERVICE, *ALL_USERS):
        subprocess.run(["userdel", user], stderr=subprocess.DEVNULL, check=False)


def one_session_tofmipd(place: Place) -> Launch:
    """For one session on descriptor 0."""
    return tofmipd_launch(place, "-1")


def tofmipd_version(programs: Programs) -> list[str]:
    """Command that prints it."""
    return [*programs["TOFMIPD"], "--version"]


def tmda_launch(place: Place, *arguments: str) -> Launch:
    """tmda-ofmipd itself, whose scripts say `env python`."""
    interpreter = place.programs["TMDA_PYTHON"]
    bin_directory = place.directory / "bin"
    bin_directory.mkdir(exist_ok=True)
    (bin_directory / "python").symlink_to(interpreter[0])
    home = str(home_of(place))
    return Launch(
        [*interpreter, *place.programs["TMDA_OFMIPD"], *arguments, *write_files(place)],
        {
            "PATH": f"{bin_directory}:{os.environ['PATH']}",
            "HOME": home,
            "TMDA_TEST_HOME": home,
        },
    )


def listening(place: Place) -> list[str]:
    """Options for the foreground, our port and enough connections."""
    return ["-f", "-C", "1000", "-p", f"{HOST}:{place.port}"]


def prepare_tmda_tagging(place: Place) -> Launch:
    """Each message goes through a tmda-inject process, which tags it."""
    return tmda_launch(place, *listening(place))


def prepare_tmda_pure(place: Place) -> Launch:
    """Each message is piped to a sendmail command, here msmtp."""
    launch = tmda_launch(place, "-P", *listening(place))
    # A user with a configuration would be tagged all the same.
    (place.directory / "config" / USER / "config").unlink()
    place.write("home/.msmtprc", MSMTP_CONFIG.format(host=HOST, port=place.sink_port), 0o600)
    sendmail = {"TMDA_SENDMAIL_PROGRAM": place.programs["MSMTP"][0]}
    return replace(launch, environment=launch.environment | sendmail)


def one_session_tmda(place: Place) -> Launch:
    """For one session on descriptor 0."""
    return tmda_launch(place, "-1")
