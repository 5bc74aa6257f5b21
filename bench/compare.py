#!/usr/bin/env python3
"""Measure authenticated SMTP submission proxies side by side.

    compare.py --quick
    compare.py --contenders direct,postfix,tofmipd --workloads a,b --rounds 5
    compare.py --startup            (one-session start-up times only)
    compare.py --cold               (a user's first message)

README.md beside this file tells what is measured and how to read the tables.
"""

import argparse
import dataclasses
import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cold import measure_cold
from contenders import CONTENDERS, Contender
from machine import describe
from programs import CANDIDATES, Programs, SetupError, find_programs, load_tools
from report import Idle, Round, note, report_idle, report_workload
from running import Running, all_running
from startup import measure_startup
from workloads import ALL_KEYS, IDLE_KEY, QUICK_KEYS, WORKLOADS, Workload

ROUNDS, QUICK_ROUNDS, SLOW_ROUNDS = 5, 3, 2
IDLE_SESSIONS = 500
REFERENCES = ("emailrelay", "aiosmtpd-proxy")  # the first that was measured
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Options:
    """The command line; ``reference`` is empty when it names none."""

    contenders: list[str]
    reference: str
    workloads: list[str]
    rounds: int
    slow_rounds: int
    scale: float
    idle_sessions: int
    startup: bool
    cold: bool
    quick: bool
    quickack: bool
    smtpload: str | None
    smtpsink: str | None
    json: Path | None


def choose_contenders(names: Sequence[str], programs: Programs) -> list[Contender]:
    """Those asked for (or all) that can run here. Raises SetupError if none can."""
    chosen = []
    for contender in CONTENDERS:
        if names and contender.name not in names:
            continue
        missing = [variable for variable in contender.needs if variable not in programs]
        if missing:
            reason: str | None = f"{CANDIDATES[missing[0]][-1]} not found (set {missing[0]})"
        else:
            reason = contender.unusable(programs)
        if reason:
            note(f"skipped {contender.name}: {reason}")
        else:
            chosen.append(contender)
    if not chosen:
        raise SetupError("no contender can run here")
    return chosen


def message_count(proxy: Running, workload: Workload, scale: float, warm_up: bool) -> int:
    """How many messages one round has: less for a slow contender, few to warm up."""
    slow = proxy.contender.slow
    messages = max(int((workload.slow_messages if slow else workload.messages) * scale), 2)
    if warm_up:
        return min(messages, 3 if slow else messages // 10 + 1)
    return messages


def reference_among(rounds: dict[str, list[Round]], wanted: str) -> str:
    """The contender that the others are compared to."""
    if wanted:
        return wanted
    measured = [name for name, done in rounds.items() if done]
    for name in (*REFERENCES, *measured):
        if name in measured and name != "direct":
            return name
    return "direct"


def measure(
    workload: Workload, contenders: Sequence[Contender], programs: Programs, options: Options
) -> dict[str, list[Round]]:
    """Measure and print one workload, in interleaved rounds: A B C, A B C, ..."""
    if workload.users:
        contenders = [contender for contender in contenders if contender.many_users]
    with all_running(contenders, programs) as running:
        rounds: dict[str, list[Round]] = {proxy.contender.name: [] for proxy in running}
        for number in range(-1, options.rounds):  # -1 is to warm up
            for proxy in running:
                if proxy.contender.slow and number >= options.slow_rounds:
                    continue
                warm_up = number < 0
                messages = message_count(proxy, workload, options.scale, warm_up)
                result = proxy.round(workload, messages)
                if not warm_up:
                    rounds[proxy.contender.name].append(result)
                expected = result.messages * workload.recipients
                if result.failures or result.delivered < expected:
                    note(
                        f"{workload.key} {proxy.contender.name}: {result.failures} failures, "
                        f"{result.delivered} of {expected} delivered. {proxy.complaint}"
                    )
    reference = reference_among(rounds, options.reference)
    report_workload(workload, rounds, reference, options.quick)
    return rounds


def measure_idle(
    contenders: Sequence[Contender], programs: Programs, sessions: int
) -> dict[str, Idle]:
    """Measure and print what idle sessions cost."""
    proxies = [contender for contender in contenders if contender.is_proxy]
    with all_running(proxies, programs) as running:
        results = {proxy.contender.name: proxy.idle_memory(sessions) for proxy in running}
    report_idle(results, sessions)
    return results


def measurements(
    contenders: Sequence[Contender], programs: Programs, options: Options
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Key and function of each measurement that was asked for."""
    if options.startup:
        yield "startup", functools.partial(measure_startup, contenders, programs)
        return
    if options.cold:
        yield "cold", functools.partial(measure_cold, contenders, programs)
        return
    for workload in WORKLOADS:
        if workload.key in options.workloads:
            yield workload.key, functools.partial(measure, workload, contenders, programs, options)
    if IDLE_KEY in options.workloads:
        sessions = options.idle_sessions
        yield IDLE_KEY, functools.partial(measure_idle, contenders, programs, sessions)


def words(text: str) -> list[str]:
    """The parts of a comma-separated list."""
    return [word for word in text.split(",") if word]


def make_parser() -> argparse.ArgumentParser:
    """The options; None stands for a default that depends on --quick."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"workloads {','.join(QUICK_KEYS)} in 3 rounds")
    add("--contenders", type=words, default=[], help="comma-separated; default: all usable")
    add("--reference", default="", help=f"default: {', '.join(REFERENCES)} or the first usable")
    add("--workloads", type=words, help=f"comma-separated; default: {','.join(ALL_KEYS)}")
    add("--rounds", type=int, help=f"default: {ROUNDS}")
    add("--slow-rounds", type=int, default=SLOW_ROUNDS, help=f"default: {SLOW_ROUNDS}")
    add("--scale", type=float, default=1.0, help="multiplies all message counts")
    add("--idle-sessions", type=int, default=IDLE_SESSIONS, help=f"default: {IDLE_SESSIONS}")
    add("--startup", action="store_true", help="measure one-session start-up only")
    add("--cold", action="store_true", help="measure users' first messages only")
    add("--quickack", action="store_true", help="next hop acknowledges without delay")
    add("--smtpload", help="path of the load generator")
    add("--smtpsink", help="path of the sink")
    add("--json", type=Path, help="file for all single results")
    return parser


def parse_options() -> Options:
    """Read the command line; ends the program when it is wrong."""
    parser = make_parser()
    given = parser.parse_args()
    if given.workloads is None:
        given.workloads = QUICK_KEYS if given.quick else ALL_KEYS
    if given.rounds is None:
        given.rounds = QUICK_ROUNDS if given.quick else ROUNDS
    known = [contender.name for contender in CONTENDERS]
    for name in [*given.contenders, *words(given.reference)]:
        if name not in known:
            parser.error(f"no contender {name!r}; there are {', '.join(known)}")
    for key in given.workloads:
        if key not in ALL_KEYS:
            parser.error(f"no workload {key!r}; there are {', '.join(ALL_KEYS)}")
    if given.rounds < 1 or given.scale <= 0 or given.idle_sessions < 1:
        parser.error("--rounds, --scale and --idle-sessions must be positive")
    return Options(**vars(given))


def unwind(number: int, _: FrameType | None) -> None:
    """End by an exception, so that all that was started is ended, undisturbed."""
    for sign in SIGNALS:
        signal.signal(sign, signal.SIG_IGN)
    note(f"ended by {signal.Signals(number).name}")
    sys.exit(128 + number)


def find_all_programs(options: Options) -> dict[str, list[str]]:
    """Everything that this run needs to start. Raises SetupError."""
    settings = dict(os.environ)
    programs = find_programs(settings)
    if options.startup:
        return programs
    for variable, path in (("SMTPLOAD", options.smtpload), ("SMTPSINK", options.smtpsink)):
        if path:
            settings[variable] = shlex.quote(path)
    programs |= load_tools(settings)
    if options.quickack:
        programs["SMTPSINK"].append("-q")
    return programs


def compare(options: Options) -> None:
    """Measure all that was asked for. Raises SetupError."""
    programs = find_all_programs(options)
    contenders = choose_contenders(options.contenders, programs)
    if options.startup:
        contenders = [contender for contender in contenders if contender.one_session]
    print(f"{describe(contenders, programs)}\n", flush=True)
    results = {}
    for key, measurement in measurements(contenders, programs, options):
        results[key] = measurement()
        if options.json:
            text = json.dumps(results, indent=1, default=dataclasses.asdict)
            options.json.write_text(f"{text}\n")


def main() -> None:
    """Run from the command line."""
    options = parse_options()
    for sign in SIGNALS:
        if signal.getsignal(sign) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(sign, unwind)
    try:
        compare(options)
    except SetupError as error:
        note(f"compare.py: {error}")
        sys.exit(error.status)
    except RuntimeError as error:  # of the load generator: nothing can be measured
        sys.exit(f"compare.py: {error}")


if __name__ == "__main__":
    main()
