"""`tofmipd inject -M`: which rule of the filter matches (TMDA reference, section 4.10)."""

from __future__ import annotations

from tofmipd.arguments import Parser
from tofmipd.commands.userprofile import own_profile
from tofmipd.errors import UNAVAILABLE, Fatal
from tofmipd.tmda.filter import Filter

_USAGE = "tofmipd inject [-c CONFIG] -M RECIPIENT SENDER"


def main(arguments: list[str]) -> int:
    """Print the rule that would decide for a message of SENDER to RECIPIENT."""
    parser = Parser("tofmipd inject", "Ask the outgoing filter; nothing is sent.", _USAGE)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("-c", "--config", metavar="FILE", default="", help="not ~/.tmda/config")
    parser.add_argument(
        "-M", "--match", nargs=2, metavar=("RECIPIENT", "SENDER"), help="the two addresses"
    )
    options = parser.parse_known(arguments)
    if options.match is None:
        raise Fatal(UNAVAILABLE, "sending by 'inject' is not built yet; see -M")
    recipient, sender = options.match
    print(match_report(own_profile(options.config).filter, recipient, sender))
    return 0


def match_report(filter_: Filter, recipient: str, sender: str) -> str:
    """The report, without a newline at its end."""
    title = f"Checking {filter_.path}"
    match = filter_.find(
        recipient.encode("utf-8", "surrogateescape"), sender.encode("utf-8", "surrogateescape")
    )
    dashes = "-" * len(title)
    verdict = "Sorry, no matching lines." if match is None else f"MATCH: {match.rule.text}"
    return "\n".join([title, dashes, f"To: {recipient}", f"From: {sender}", dashes, verdict])
