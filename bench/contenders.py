"""The contenders: what each one needs, and how it is configured and started."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch import HOST, PASSWORD, USER, Launch, Place
from ofmipd import (
    global_unusable,
    one_session_tmda,
    one_session_tofmipd,
    prepare_global,
    prepare_tmda_pure,
    prepare_tmda_tagging,
    prepare_tofmipd,
    remove_accounts,
    tofmipd_version,
)
from programs import HERE, Programs


def always(_: Programs) -> None:
    """No reason against running."""


@dataclass(frozen=True)
class Contender:
    """One server that can be measured.

    ``unusable`` and ``version`` get the programs found. The first returns a
    reason not to run, the second a command that prints a version.
    ``account_variable`` names an environment variable with the account that
    root starts the contender under, instead of ``default_account``.
    """

    name: str
    needs: tuple[str, ...]
    prepare: Callable[[Place], Launch]
    unusable: Callable[[Programs], str | None] = always
    version: Callable[[Programs], list[str]] | None = None
    one_session: Callable[[Place], Launch] | None = None
    account_variable: str = ""
    default_account: str | None = None
    is_proxy: bool = True
    many_users: bool = False  # knows all that a workload may have
    clean_up: Callable[[], None] | None = None
    slow: bool = False  # reduced message counts, fewer rounds

    def account(self) -> str | None:
        """The account to run under, None: the one we have."""
        if not self.account_variable or os.getuid() != 0:
            return None
        return os.environ.get(self.account_variable) or self.default_account


def prepare_direct(place: Place) -> Launch:
    """The sink itself, loaded without a proxy."""
    return Launch([*place.programs["SMTPSINK"], str(place.port)])


def prepare_emailrelay(place: Place) -> Launch:
    """Forwards each message before it acknowledges it (--immediate)."""
    secrets = place.write("secrets", f"server plain {USER} {PASSWORD}\n", 0o600)
    spool = place.directory / "spool"
    spool.mkdir()
    arguments = [
        *place.programs["EMAILRELAY"],
        *("--no-daemon", "--immediate"),
        *("--interface", HOST, "--port", str(place.port)),
        *("--forward-to", f"{HOST}:{place.sink_port}"),
        *("--server-auth", secrets, "--spool-dir", str(spool)),
        *("--user", pwd.getpwuid(os.getuid()).pw_name),
        *("--domain", "proxy.example.org"),
    ]
    return Launch(arguments)


def emailrelay_version(programs: Programs) -> list[str]:
    """Command that prints it."""
    return [*programs["EMAILRELAY"], "--version"]


POSTFIX_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
myhostname = proxy.example.org
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [{host}]:{sink_port}
smtpd_peername_lookup = no
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = proxy.example.org
cyrus_sasl_config_path = {base}/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
message_size_limit = 50000000
"""

POSTFIX_MASTER = """\
{host}:{port} inet n - n - 600 smtpd
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
"""

POSTFIX_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
sasldb_path: {sasldb}
"""


def postfix_unusable(_: Programs) -> str | None:
    """Postfix starts as root only, and runs its parts as its own user."""
    if os.getuid() != 0:
        return "needs root"
    try:
        pwd.getpwnam("postfix")
    except KeyError:
        return "there is no user postfix"
    return None


def postfix_version(programs: Programs) -> list[str]:
    """Command that prints it; postconf lies beside postfix."""
    return [str(Path(programs["POSTFIX"][0]).with_name("postconf")), "-d", "-h", "mail_version"]


def prepare_postfix(place: Place) -> Launch:
    """A private instance with its own queue, syncing its queue files."""
    base = place.directory
    (base / "queue").mkdir()
    (base / "data").mkdir()
    shutil.chown(base / "data", "postfix")
    sasldb = base / "sasl" / "sasldb2"
    main = POSTFIX_MAIN.format(base=base, host=HOST, sink_port=place.sink_port)
    place.write("main.cf", main)
    place.write("master.cf", POSTFIX_MASTER.format(host=HOST, port=place.port))
    place.write("sasl/smtpd.conf", POSTFIX_SASL.format(sasldb=sasldb))
    saslpasswd = [*place.programs["SASLPASSWD"], "-p", "-c", "-f", str(sasldb)]
    subprocess.run(
        [*saslpasswd, "-u", "proxy.example.org", USER], input=PASSWORD.encode(), check=True
    )
    shutil.chown(sasldb, "postfix")
    return Launch([*place.programs["POSTFIX"], "-c", str(base), "start-fg"])


def aiosmtpd_unusable(programs: Programs) -> str | None:
    """Both libraries must be there for the interpreter that was found."""
    python = programs["AIOSMTPD_PYTHON"]
    check = subprocess.run(
        [*python, "-c", "import aiosmtpd, aiosmtplib"], stderr=subprocess.DEVNULL, check=False
    )
    if check.returncode == 0:
        return None
    return f"{python[0]} lacks aiosmtpd or aiosmtplib (set AIOSMTPD_PYTHON)"


def aiosmtpd_version(programs: Programs) -> list[str]:
    """Command that prints it."""
    return [*programs["AIOSMTPD_PYTHON"], "-c", "import aiosmtpd as a; print(a.__version__)"]


def prepare_aiosmtpd(place: Place) -> Launch:
    """The small proxy beside this file."""
    script = [*place.programs["AIOSMTPD_PYTHON"], "-W", "ignore", str(HERE / "aiosmtpd_proxy.py")]
    return Launch([*script, str(place.port), str(place.sink_port), USER, PASSWORD])


# As root, tmda-ofmipd changes to system accounts named like its mail users;
# for a measurement it runs under an account without privileges instead.
CONTENDERS = [
    Contender("direct", (), prepare_direct, is_proxy=False),
    Contender("emailrelay", ("EMAILRELAY",), prepare_emailrelay, version=emailrelay_version),
    Contender(
        "postfix",
        ("POSTFIX", "SASLPASSWD"),
        prepare_postfix,
        unusable=postfix_unusable,
        version=postfix_version,
    ),
    Contender(
        "aiosmtpd-proxy",
        ("AIOSMTPD_PYTHON",),
        prepare_aiosmtpd,
        unusable=aiosmtpd_unusable,
        version=aiosmtpd_version,
    ),
    Contender(
        "tofmipd",
        ("TOFMIPD",),
        prepare_tofmipd,
        version=tofmipd_version,
        one_session=one_session_tofmipd,
        account_variable="TOFMIPD_ACCOUNT",
        many_users=True,
    ),
    Contender(
        "tofmipd-global",
        ("TOFMIPD",),
        prepare_global,
        unusable=global_unusable,
        version=tofmipd_version,
        many_users=True,
        clean_up=remove_accounts,
    ),
    Contender(
        "tmda-ofmipd-pure",
        ("TMDA_PYTHON", "TMDA_OFMIPD", "MSMTP"),
        prepare_tmda_pure,
        account_variable="TMDA_ACCOUNT",
        default_account="nobody",
        slow=True,
    ),
    Contender(
        "tmda-ofmipd-tag",
        ("TMDA_PYTHON", "TMDA_OFMIPD"),
        prepare_tmda_tagging,
        one_session=one_session_tmda,
        account_variable="TMDA_ACCOUNT",
        default_account="nobody",
        slow=True,
    ),
]
