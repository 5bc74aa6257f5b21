"""What the daemon was told to do: one frozen object, all defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

DEFAULT_PORT = 8025


class Listen(NamedTuple):
    """One address to listen on; ``host`` is "" for all interfaces."""

    host: str
    port: int
    ipv6: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.ipv6 else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a session; times in seconds, sizes in octets (design, section 6)."""

    connections: int = 1000
    login_timeout: float = 60
    idle_timeout: float = 300
    data_timeout: float = 180
    size: int = 50 << 20
    max_recipients: int = 1000
    max_errors: int = 10
    max_auth_failures: int = 3
    # The answer to a failed login comes this long after it, times the number of failures.
    failure_delay: float = 1.0
    # How long sessions may take to finish a message when the service is asked to stop.
    stop_timeout: float = 30


@dataclass(frozen=True, slots=True)
class NextHopLimits:
    """How long the next hop may take, in seconds."""

    connect_timeout: float = 30
    reply_timeout: float = 120
    dot_timeout: float = 600


@dataclass(frozen=True, slots=True)
class Person:
    """Who runs a personal daemon."""

    uid: int
    name: str
    full_name: str
    home: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it; a function gets the part that it uses."""

    person: Person
    listen: tuple[Listen, ...] = (Listen("localhost", DEFAULT_PORT),)
    # How the person chooses another port, for the message that one is taken.
    port_hint: str = "-p HOST:PORT"
    authfile: str = ""
    configdir: str = ""
    site_config: str = "/etc/tmdarc"
    host_name: str = "localhost"
    foreground: bool = False
    debug: bool = False
    log: bool = False
    quiet: bool = False
    log_file: str = ""
    one_cpu: bool = True
    insecure_auth: bool = False
    fix_bare_newline: bool = False
    received: str = "full"
    limits: Limits = field(default_factory=Limits)
    next_hop: NextHopLimits = field(default_factory=NextHopLimits)
