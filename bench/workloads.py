"""The loads that contenders are measured under."""

from dataclasses import dataclass

from launch import MANY_USERS


@dataclass(frozen=True)
class Workload:
    """One kind of load; sizes in octets, ``time_limit`` in seconds per round."""

    key: str
    title: str
    connections: int
    per_connection: int
    messages: int
    slow_messages: int  # instead of ``messages``, for contenders marked slow
    size: int = 2048
    recipients: int = 1
    pipelining: bool = False
    users: int = 0  # 0: all sessions are one user's
    time_limit: int = 60


WORKLOADS = [
    Workload("a", "2 KB, 10 connections, 20 messages each", 10, 20, 2000, 60),
    Workload(
        "p",
        "2 KB, 10 connections, 20 messages each, PIPELINING",
        10,
        20,
        2000,
        60,
        pipelining=True,
    ),
    Workload("b", "2 KB, 10 connections, 1 message each", 10, 1, 1000, 60),
    Workload("c", "100 KB, 10 connections", 10, 20, 400, 40, size=100_000),
    Workload("d", "5 MB, 2 connections", 2, 5, 20, 4, size=5_000_000),
    Workload("u", "2 KB, 10 users, 20 messages per connection", 10, 20, 2000, 60, users=MANY_USERS),
    Workload("e", "2 KB, 200 connections", 200, 10, 2000, 100, time_limit=40),
    Workload("f", "2 KB, 10 recipients, 10 connections", 10, 20, 1000, 20, recipients=10),
]
IDLE_KEY = "g"
ALL_KEYS = [workload.key for workload in WORKLOADS] + [IDLE_KEY]
QUICK_KEYS = ["a", "p", "b", "c"]

# Makes a proxy import, fork and connect what it needs before memory is read.
WARM_UP = Workload("", "warm-up", 1, 5, 5, 5)
