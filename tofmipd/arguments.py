"""Command lines: a parser whose errors are one line, and the types of arguments."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from tofmipd.errors import USAGE
from tofmipd.settings import TIME_UNITS, TLS_MODES, Listen, Network, Place, Rate

_WIDTH = 88


class _Format(argparse.RawDescriptionHelpFormatter):
    """Help of one width whatever the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=_WIDTH)


class Parser(argparse.ArgumentParser):
    """Ends with status 64 (EX_USAGE) and one line; names the nearest option to an unknown one.

    For completion: ``verbs`` are the words of which one comes first, () where there are none;
    the options of the daemon may stand there, too, where it ``takes_daemon_options``.
    """

    verbs: tuple[str, ...] = ()
    takes_daemon_options = False

    def __init__(
        self, prog: str, description: str, usage: str, *, exit_on_error: bool = True
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=_Format,
            allow_abbrev=False,
            add_help=False,
            exit_on_error=exit_on_error,
        )
        self._optionals.title = "options"

    def parse_known(self, arguments: list[str]) -> argparse.Namespace:
        """Parse all of ``arguments``; ends the program for an unknown one."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return options

    def parse_words(self, arguments: list[str]) -> argparse.Namespace:
        """Parse options and ``words`` in any order; what follows "--" is a word, whatever it
        begins with."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        options = self.parse_intermixed_args(arguments[:end])
        options.words += arguments[end + 1 :]
        return options

    @property
    def table(self) -> list[argparse.Action]:
        """All options, in the order of the help."""
        return list(self._actions)

    @property
    def defaults(self) -> dict[str, Any]:
        return {action.dest: action.default for action in self._actions} | self._defaults

    def given(self, arguments: list[str]) -> argparse.Namespace:
        """What is said there; None stands for all that is not.  Raises ValueError.

        The parser is one that does not exit on errors.
        """
        options = argparse.Namespace(**dict.fromkeys(self.defaults))
        try:
            options, unknown = self.parse_known_args(arguments, options)
        except argparse.ArgumentError as error:
            raise ValueError(str(error)) from None
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        return options

    def fault_of(self, word: str) -> str:
        """Why ``--name=value`` cannot be said, "" if it can."""
        try:
            self.parse_known_args([word])
        except argparse.ArgumentError as error:
            return error.message
        return ""

    def _unknown(self, word: str) -> str:
        name = word.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        near = nearest(name, known)
        hint = f"; did you mean {near}?" if near else "; see --help"
        what = "option" if word.startswith("-") else "argument"
        return f"unknown {what} {name!r}{hint}"

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(USAGE)


def nearest(word: str, known: Iterable[str]) -> str:
    """The one that was probably meant, "" for none."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


def host_port(text: str) -> Listen:
    """``HOST:PORT[,MODE][,proxy=NET+NET...]``, split at the last colon; an empty host means all
    interfaces.

    MODE is ``ssl``, ``tls=on`` and the like, or ``plain``; without one it is "", which is for
    the options of all listeners to say, and so are proxies of None.
    """
    listen = _host_port(text)
    if ":" in listen.host or "[" in listen.host:
        raise argparse.ArgumentTypeError(f"{text!r}: IPv6 addresses go with -6")
    return listen


_MODES = {"ssl": "ssl", "plain": "plain"} | {f"tls={word}": word for word in TLS_MODES}
_PROXY = "proxy="


def _host_port(text: str) -> Listen:
    place, *words = text.split(",")
    host, colon, port = place.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    modes = [word for word in words if word in _MODES]
    proxies = [word for word in words if word.startswith(_PROXY)]
    if len(modes) + len(proxies) < len(words) or max(len(modes), len(proxies)) > 1:
        known = f"{', '.join(_MODES)}, {_PROXY}NET+NET..."
        raise argparse.ArgumentTypeError(f"{text!r}: behind the comma goes {known}")
    return Listen(
        host,
        int(port),
        mode=_MODES[modes[0]] if modes else "",
        proxies=_proxies(proxies[0].removeprefix(_PROXY)) if proxies else None,
    )


def _proxies(text: str) -> tuple[Network, ...]:
    return () if text == "none" else tuple(_network(word) for word in text.split("+"))


def networks(text: str) -> tuple[Network, ...]:
    """Networks, or single addresses, with commas between."""
    return tuple(_network(word) for word in text.split(","))


def _network(word: str) -> Network:
    import ipaddress

    try:
        return ipaddress.ip_network(word)
    except ValueError:
        pass
    hint = "such as 192.0.2.0/24 or 2001:db8::1"
    with contextlib.suppress(ValueError):
        hint = f"but {ipaddress.ip_network(word, strict=False)} is one"
    raise argparse.ArgumentTypeError(f"{word!r} is no network, {hint}")


def host_port_v6(text: str) -> Listen:
    """The same for IPv6; the host may stand in brackets."""
    listen = _host_port(text)
    return listen._replace(host=listen.host.removeprefix("[").removesuffix("]"), ipv6=True)


def places(text: str) -> tuple[Place, ...]:
    """``HOST[:PORT]``, or several with commas between; IPv6 addresses stand in brackets."""
    return tuple(place(part) for part in text.split(","))


def place(text: str) -> Place:
    """``HOST[:PORT]``."""
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::([0-9]{1,5}))?", text, re.ASCII
    )
    if match is None or not 0 < int(match[3] or 25) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST or HOST:PORT")
    return Place(match[1] or match[2], int(match[3] or 25))


def tls_policy(text: str) -> str:
    """``verify``, ``encrypt``, ``off`` or ``fingerprint:`` and a SHA-256."""
    word, _, digits = text.lower().partition(":")
    digits = digits.replace(":", "")
    if word == "fingerprint" and re.fullmatch("[0-9a-f]{64}", digits):
        return f"fingerprint:{digits}"
    if text not in ("verify", "encrypt", "off"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not verify, encrypt, off, or fingerprint: and 64 hexadecimal digits"
        )
    return text


def positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,8}(\.[0-9]{1,3})?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


_UNITS = {"": 1} | TIME_UNITS


def duration(text: str) -> float:
    """In seconds: ``90``, ``30m``, ``4h``, ``5d``."""
    match = re.fullmatch(r"([0-9]{1,8})([smhd]?)", text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 4h or 5d")
    return float(match[1]) * _UNITS[match[2]]


def rates(text: str) -> tuple[Rate, ...]:
    """``COUNT/TIME``, several with commas; TIME is a whole number of s, m, h or d."""
    return tuple(_rate(word.strip()) for word in text.split(","))


def _rate(word: str) -> Rate:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,5})([smhd])", word)
    if match is None or not (int(match[1]) and int(match[2])):
        raise argparse.ArgumentTypeError(f"{word!r} is not COUNT/TIME, such as 100/1h or 500/7d")
    return Rate(int(match[1]), int(match[2]) * TIME_UNITS[match[3]])
