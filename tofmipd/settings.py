"""What the daemon was told to do: one frozen object, all defaults.

Named tuples, since a process for one session has no time to make so many data classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

DEFAULT_PORT = 8025
GLOBAL_OUTBOXES = "/var/spool/tofmipd"
# How STARTTLS is offered (feature rows TO-60 to TO-62).
TLS_MODES = ("on", "optional", "localoptional")
# How connections to servers that judge logins are protected: by certificates, by whatever
# certificate there is, or not at all unless the scheme says so.
REMOTE_TLS_MODES = ("verified", "unverified", "none")
# Whose addresses a login may not use as its own (feature row BX-1).
SENDER_CHECKS = ("off", "others", "own")
LOG_FORMS = ("text", "json", "journal")
# Of syslog (RFC 5424 section 6.2.1), as far as a mail program may have use for them.
FACILITIES = {"user": 1, "mail": 2, "daemon": 3} | {f"local{n}": 16 + n for n in range(8)}
# Units of time in limits, the largest first, in seconds.
TIME_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}

Network: TypeAlias = "IPv4Network | IPv6Network"


class Listen(NamedTuple):
    """One address to listen on; ``host`` is "" for all interfaces.

    ``mode`` is one of TLS_MODES, "ssl" for TLS from the first octet, "plain" for none.  From the
    networks of ``proxies`` the PROXY protocol is spoken, None stands for what all others do.
    """

    host: str
    port: int
    ipv6: bool = False
    mode: str = "plain"
    proxies: tuple[Network, ...] | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.ipv6 else self.host
        return f"{host}:{self.port}"


class Place(NamedTuple):
    """A server to call on; an IPv6 address in ``host`` is without brackets."""

    host: str
    port: int


class SourceSpec(NamedTuple):
    """A source as it was asked for; ``kind`` is "file", "remote", "program" or "pam"."""

    kind: str
    argument: str


class Rate(NamedTuple):
    """At most so many in any stretch of time of so many seconds."""

    most: int
    seconds: int

    @property
    def span(self) -> tuple[int, str]:
        """The time as a number and one of TIME_UNITS, the largest that fits."""
        unit = next(unit for unit, size in TIME_UNITS.items() if self.seconds % size == 0)
        return self.seconds // TIME_UNITS[unit], unit

    def __str__(self) -> str:
        number, unit = self.span
        return f"{self.most}/{number}{unit}"


class Quotas(NamedTuple):
    """What one login may send; all rates hold.  Counts are kept in ``file``."""

    messages: tuple[Rate, ...] = ()
    recipients: tuple[Rate, ...] = ()
    file: str = ""

    @property
    def given(self) -> bool:
        return bool(self.messages or self.recipients)


class Limits(NamedTuple):
    """Limits of a session; times in seconds, sizes in octets (design, section 6)."""

    connections: int = 1000
    # Not of those from this machine.
    connections_per_address: int = 50
    login_timeout: float = 60
    idle_timeout: float = 300
    data_timeout: float = 180
    # Octets per second, of a message that has taken longer than a minute.
    minimum_rate: int = 100
    write_timeout: float = 120
    size: int = 50 << 20
    max_recipients: int = 1000
    max_errors: int = 10
    max_auth_failures: int = 3
    # So many failed logins in ten minutes, then the address must wait; not this machine's own.
    auth_failures_per_address: int = 10
    # The answer to a failed login comes this long after it at least, longer with each failure.
    failure_delay: float = 1.0
    # How long sessions may take to finish a message when the service is asked to stop.
    stop_timeout: float = 30


class EncryptionSettings(NamedTuple):
    """Certificates for TLS.

    ``pairs`` are paths of a chain and its key, one for each kind of key; ``sni_directory`` has
    more, for other names.  ``client_ca`` is a file of authorities whose certificates are logins.
    "" stands for none.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    ciphers: str = ""
    client_ca: str = ""
    sni_directory: str = ""


class NextHopLimits(NamedTuple):
    """How long the next hop may take, in seconds."""

    connect_timeout: float = 30
    reply_timeout: float = 120
    dot_timeout: float = 600


class Relay(NamedTuple):
    """The next hops of users whose configuration names none, in order of preference.

    ``tls`` is "verify", "encrypt", "off", "fingerprint:" and a SHA-256, or "" for the usual:
    verify, but off on this machine.  ``ca_file`` has authorities, "" for those of the system.
    """

    places: tuple[Place, ...] = ()
    tls: str = ""
    ca_file: str = ""


class ProgramLimits(NamedTuple):
    """How long what others provide may take, in seconds: a source of logins, a script.

    ``source_attempts`` is how many logins one source is asked about at a time.
    """

    source_timeout: float = 10
    script_timeout: float = 30
    source_attempts: int = 16


class Queue(NamedTuple):
    """What becomes of messages that cannot be handed over at once.

    ``directory`` is where outboxes are: a person's own, or in global mode the directory of those
    of all users.  A message is tried again after ``first_pause``, then ever more seldom, and goes
    back after ``lifetime``, both in seconds; with ``warning`` its sender hears of a delay.  With
    ``spool`` every message goes there first.
    """

    directory: str = ""
    spool: bool = False
    lifetime: float = 5 * 86400
    warning: bool = False
    first_pause: float = 60


class GlobalMode(NamedTuple):
    """What only a daemon that root starts for all users needs.

    ``service`` is the account of server and auth.  No worker runs as an account with a uid below
    ``min_uid``; there are at most ``max_workers``, and one leaves after ``worker_idle`` seconds
    without a message.
    """

    service: str = "tofmipd"
    min_uid: int = 1000
    max_workers: int = 200
    worker_idle: float = 30

    @property
    def roles(self) -> str:
        """Who runs as whom, for the start and for ``-V`` (feature row TO-20)."""
        return (
            f"monitor: root, server and auth: {self.service},"
            f" workers: the user who logged in (uid {self.min_uid} or above)"
        )


class Scripts(NamedTuple):
    """Programs of the administrator, "" for none.

    ``throttle`` is asked before each message, ``virtual_home`` for the home of a virtual user,
    whose domain belongs to an account by the file ``virtual_domains``.  ``pass_through`` is the
    sendmail program for users without a configuration.  ``search_path`` is their PATH.
    """

    throttle: str = ""
    virtual_home: str = ""
    virtual_domains: str = "/var/qmail/control/virtualdomains"
    pass_through: str = ""
    search_path: str = ""


class SenderCheck(NamedTuple):
    """Which senders' addresses a login may use.

    ``mode`` is one of SENDER_CHECKS; ``domains`` are those at which accounts have their
    addresses; ``senders`` is a file of further addresses for users.
    """

    mode: str = "off"
    domains: tuple[str, ...] = ()
    senders: str = ""


class LogSettings(NamedTuple):
    """What a log line looks like.

    ``form`` is one of LOG_FORMS, or "" for the one that fits where the lines go; ``facility`` is
    that of syslog.  ``journal``: the journal of systemd reads standard error.
    """

    form: str = ""
    facility: str = "mail"
    journal: bool = False


class Person(NamedTuple):
    """Who runs a personal daemon."""

    uid: int
    name: str
    full_name: str
    home: str


class Settings(NamedTuple):
    """All of it; a function gets the part that it uses.

    ``global_mode`` is None for a personal daemon.  ``user_config`` and ``user_filter`` replace a
    person's own configuration and filter, "" for none.
    """

    person: Person
    listen: tuple[Listen, ...] = (Listen("localhost", DEFAULT_PORT),)
    # How the person chooses another port, for the message that one is taken.
    port_hint: str = "-p HOST:PORT"
    global_mode: GlobalMode | None = None
    # What has been read, "" for none.
    config_file: str = ""
    authfile: str = ""
    sources: tuple[SourceSpec, ...] = ()
    ipauthmap: str = "/etc/ipauthmap"
    # For servers of ``sources``: authorities, "" for the system's, and one of REMOTE_TLS_MODES.
    remote_ca: str = ""
    remote_tls: str = "verified"
    # Only these are offered, of those that sources can serve; none stands for all.
    mechanisms: tuple[str, ...] = ()
    sender_check: SenderCheck = SenderCheck()
    configdir: str = ""
    site_config: str = "/etc/tmdarc"
    user_config: str = ""
    user_filter: str = ""
    scripts: Scripts = Scripts()
    host_name: str = "localhost"
    foreground: bool = False
    # Serve the connection on descriptor 0 instead of listening.
    one_session: bool = False
    pid_file: str = ""
    debug: bool = False
    log: bool = False
    quiet: bool = False
    log_file: str = ""
    log_settings: LogSettings = LogSettings()
    one_cpu: bool = True
    insecure_auth: bool = False
    fix_bare_newline: bool = False
    # Tell next hops that ask for it who the client is.
    xclient: bool = False
    # Pass 8-bit messages on to a next hop that does not say that it takes them.
    pass_eight_bit: bool = False
    encryption: EncryptionSettings = EncryptionSettings()
    received: str = "full"
    limits: Limits = Limits()
    quotas: Quotas = Quotas()
    next_hop: NextHopLimits = NextHopLimits()
    relay: Relay = Relay()
    programs: ProgramLimits = ProgramLimits()
    queue: Queue = Queue()

    @property
    def outbox(self) -> str:
        """The outbox of the person, or the directory of those of all users."""
        if self.queue.directory:
            return self.queue.directory
        return GLOBAL_OUTBOXES if self.global_mode else f"{self.person.home}/.tmda/outbox"

    @property
    def all_sources(self) -> tuple[SourceSpec, ...]:
        """Those that were asked for, else the password file."""
        return self.sources or (SourceSpec("file", self.authfile),)


class Options(NamedTuple):
    """Settings, and what they come from: the values of all options by destination."""

    settings: Settings
    values: Mapping[str, object]
