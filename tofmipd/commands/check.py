"""`tofmipd check`: what is wrong with options and files, all at once (feature row BX-8)."""

from __future__ import annotations

import argparse
import logging
import sys

from tofmipd.arguments import Parser
from tofmipd.cli import attempt, current_directory
from tofmipd.commands.checkdaemon import check_daemon
from tofmipd.commands.checkports import check_ports
from tofmipd.commands.checkreport import Report
from tofmipd.commands.checkuser import check_user
from tofmipd.commands.effective import effective
from tofmipd.commands.queuetext import shown
from tofmipd.errors import CONFIG

_USAGE = "tofmipd check [daemon's options] [--user NAME] [--print]"
_DESCRIPTION = """\
Look at options and files as the daemon would at its start, and say all that is wrong.
Nothing is changed, and nothing is started; a running tofmipd does not mind.  The
options are those of the daemon, and its configuration file is read."""


def main(arguments: list[str]) -> int:
    """Check; 0 if the daemon could start so, else 78.  Raises Fatal for a wrong command line."""
    options, rest = _parse(arguments)
    # What is printed is good anywhere.
    settings, given = attempt(rest, current_directory())
    if options.print and settings is not None and not given.faults:
        for line in effective(settings, given):
            print(line)
        return 0
    report = Report(given)
    for fault in given.faults:
        report.faults.append(str(fault) if fault.place else f"command line: {fault}")
    if settings is not None and not options.print:
        report.good.append(f"options: {settings.config_file or 'no configuration file'}")
        # What checks would log they say here.
        logging.getLogger("tofmipd").propagate = False
        check_daemon(report, settings)
        if not settings.one_session:
            check_ports(report, settings)
        check_user(report, settings, options.user)
    return _tell(report)


def _tell(report: Report) -> int:
    if not report.faults:
        for line in report.good:
            print(f"ok: {shown(line)}")
    for line in report.notes:
        print(f"note: {shown(line)}")
    for line in report.faults:
        print(shown(line), file=sys.stderr)
    return CONFIG if report.faults else 0


def make_parser() -> Parser:
    parser = Parser("tofmipd check", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add(
        "--user",
        metavar="NAME",
        default="",
        help="the files of this login, too, with the rights of its account (default: your own,"
        " as root nobody's)",
    )
    add("--print", action="store_true", help="only print what is in force, and where it was said")
    parser.takes_daemon_options = True
    return parser


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Its own options, and those of the daemon."""
    return make_parser().parse_known_args(arguments)
