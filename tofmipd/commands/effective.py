"""Options as they are in force, in the form of the configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from tofmipd.arguments import duration
from tofmipd.configfile import written
from tofmipd.given import DEFAULT, Given, in_file, is_source
from tofmipd.options import make_parser
from tofmipd.settings import DEFAULT_PORT, TIME_UNITS, Listen, Place, Settings

_SOURCES = {"file": "authfile", "remote": "remoteauth", "program": "authprog", "pam": "pamauth"}
# Defaults that depend on who starts the daemon.
_DEPENDING: dict[str, Callable[[Settings], str]] = {
    "username": lambda settings: settings.global_mode.service if settings.global_mode else "",
    "outbox": lambda settings: settings.outbox,
    "senders": lambda settings: settings.sender_check.senders,
    "sender_check": lambda settings: settings.sender_check.mode,
    "limit_file": lambda settings: settings.quotas.file,
}


def effective(settings: Settings, given: Given) -> Iterator[str]:
    """A line for each value, its origin behind it as a comment.  Together they are a file that
    says the same; what has no value is a comment."""
    told: set[str] = set()
    for name, action in in_file(make_parser()).items():
        if is_source(action):
            if "sources" not in told:
                yield from _sources(settings, given)
            told.add("sources")
        elif action.dest not in told and action.const is not False:
            yield from _option(name, action, settings, given)
            told.add(action.dest)


def _sources(settings: Settings, given: Given) -> Iterator[str]:
    for index, spec in enumerate(settings.all_sources):
        yield _line(_SOURCES[spec.kind], spec.argument, given.origin("sources", index))


def _option(name: str, action: argparse.Action, settings: Settings, given: Given) -> Iterator[str]:
    values = _values(action, settings, given)
    for index, value in enumerate(values):
        yield _line(name, as_text(action, value), given.origin(action.dest, index))
    if not values:
        yield f"# {name}: not set"


def _values(action: argparse.Action, settings: Settings, given: Given) -> list[Any]:
    value = getattr(given.options, action.dest)
    if action.dest == "proxyport" and not (value or given.options.ipv6proxyport):
        return [Listen("localhost", DEFAULT_PORT, mode="")]
    if isinstance(value, list):
        return value
    if value in (None, "") and action.dest in _DEPENDING:
        value = _DEPENDING[action.dest](settings)
    return [] if value in (None, "", ()) else [value]


def _line(name: str, value: str, origin: str) -> str:
    return f"{written(name, value)}  # {origin or DEFAULT}"


def as_text(action: argparse.Action, value: Any) -> str:
    """A value as it is written."""
    match value:
        case bool():
            return "yes" if value is action.const else "no"
        case Listen():
            mode = {"": "", "ssl": ",ssl", "plain": ",plain"}.get(value.mode, f",tls={value.mode}")
            return f"{value}{mode}{_proxies(value)}"
        case tuple():
            return ",".join(map(_one_of_several, value))
        case int() | float() if action.type is duration:
            unit = next(unit for unit, size in TIME_UNITS.items() if value % size == 0)
            return f"{value / TIME_UNITS[unit]:.0f}{unit}"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)


def _proxies(listen: Listen) -> str:
    if listen.proxies is None:
        return ""
    return f",proxy={'+'.join(map(str, listen.proxies)) or 'none'}"


def _one_of_several(value: Any) -> str:
    if isinstance(value, Place):
        return f"[{value.host}]:{value.port}" if ":" in value.host else f"{value.host}:{value.port}"
    return str(value)
