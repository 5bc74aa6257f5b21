"""What was measured, and the tables that show it."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workloads import IDLE_KEY, Workload


@dataclass(frozen=True)
class Round:
    """One load on one contender.

    The fields up to ``idle`` are those of the load generator's result; CPU
    time is per accepted message, ``delivered`` counts recipients.
    """

    messages: int
    failures: int
    seconds: float
    messages_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    sessions: int
    setup_p50_ms: float
    setup_p99_ms: float
    idle: int
    delivered: int
    delivered_per_second: float
    cpu_ms: float
    rss_mib: float
    pss_mib: float


@dataclass(frozen=True)
class Idle:
    """Memory of idle sessions: before them, and per session."""

    sessions: int
    base_rss_mib: float
    rss_kib: float
    pss_kib: float


@dataclass(frozen=True)
class Timing:
    """One start of a program: until its greeting or else its exit, and its CPU time."""

    wall_ms: float
    cpu_ms: float


Rounds = Mapping[str, Sequence[Round]]  # by contender


def note(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr, flush=True)


def table(title: str, remark: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, numbers to the right; nothing when it has no row."""
    if not rows:
        return
    print(f"### {title}\n")
    if remark:
        print(f"{remark}\n")
    print(f"| {' | '.join(header)} |")
    print(f"|{'|'.join(['---'] + ['---:'] * (len(header) - 1))}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def median_of(rounds: Sequence[Round], field: str, digits: int) -> str:
    """Median of a field over the rounds."""
    return f"{statistics.median(getattr(r, field) for r in rounds):.{digits}f}"


def maximum_of(rounds: Sequence[Round], field: str) -> str:
    """Largest value of a field."""
    return f"{max(getattr(r, field) for r in rounds):.1f}"


def paired_ratio(rounds: Sequence[Round], reference: Sequence[Round], field: str) -> str:
    """Median of the ratios of rounds that ran next to each other.

    A disturbance of the machine hits both halves of a pair, so it does not
    show in their ratio. A slow contender has fewer rounds than the reference.
    """
    pairs = [
        (getattr(r, field), getattr(s, field)) for r, s in zip(rounds, reference, strict=False)
    ]
    ratios = [value / base for value, base in pairs if base]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


COLUMNS: dict[str, Callable[[Sequence[Round], Sequence[Round]], str]] = {
    "rounds": lambda rounds, _: str(len(rounds)),
    "accepted/s": lambda rounds, _: median_of(rounds, "messages_per_second", 1),
    "delivered/s": lambda rounds, _: median_of(rounds, "delivered_per_second", 1),
    "CPU ms/msg": lambda rounds, _: median_of(rounds, "cpu_ms", 3),
    "peak RSS MiB": lambda rounds, _: maximum_of(rounds, "rss_mib"),
    "PSS MiB": lambda rounds, _: maximum_of(rounds, "pss_mib"),
    "p50 ms": lambda rounds, _: median_of(rounds, "p50_ms", 2),
    "p99 ms": lambda rounds, _: median_of(rounds, "p99_ms", 2),
    "CPU ratio": lambda rounds, reference: paired_ratio(rounds, reference, "cpu_ms"),
    "msg/s ratio": lambda rounds, reference: paired_ratio(rounds, reference, "messages_per_second"),
    "failures": lambda rounds, _: str(sum(r.failures for r in rounds)),
}


def report_workload(workload: Workload, rounds: Rounds, reference: str, quick: bool) -> None:
    """Print the table of one workload; its heading tells a quick run."""
    measured = {name: done for name, done in rounds.items() if done}
    base = measured.get(reference, [])
    title = f"({workload.key}) {workload.title}{' (quick)' if quick else ''}"
    remark = f"Ratios are to {reference}." if base else ""
    rows = [
        [name, *(column(done, base) for column in COLUMNS.values())]
        for name, done in measured.items()
    ]
    table(title, remark, ["contender", *COLUMNS], rows)


def report_idle(results: Mapping[str, Idle], sessions: int) -> None:
    """Print the table of idle sessions."""
    title = f"({IDLE_KEY}) {sessions} idle authenticated sessions"
    header = ["contender", "sessions", "base RSS MiB", "RSS KiB/session", "PSS KiB/session"]
    rows = [
        [
            name,
            str(result.sessions),
            f"{result.base_rss_mib:.1f}",
            f"{result.rss_kib:.1f}",
            f"{result.pss_kib:.1f}",
        ]
        for name, result in results.items()
    ]
    table(title, "", header, rows)


def report_startup(results: Mapping[str, Sequence[Timing]], bare: str) -> None:
    """Print the table of start-up times; ``bare`` is the command that others are compared with."""
    rows = []
    least = statistics.median(timing.wall_ms for timing in results[bare])
    for name, timings in results.items():
        wall = [timing.wall_ms for timing in timings]
        cpu = [timing.cpu_ms for timing in timings]
        rows.append(
            [
                name,
                f"{statistics.median(wall):.1f}",
                f"{min(wall):.1f}",
                f"{statistics.median(wall) - least:+.1f}",
                f"{statistics.median(cpu):.1f}",
            ]
        )
    table(
        "Start-up",
        "",
        ["command", "wall ms median", "wall ms min", "above bare", "CPU ms median"],
        rows,
    )
