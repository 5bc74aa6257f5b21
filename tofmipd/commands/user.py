"""`tofmipd user`: the users of a password file (feature row BX-24)."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import string
import sys

from tofmipd.arguments import Parser
from tofmipd.auth import hashes, scram
from tofmipd.auth.credentials import Password, Verdict, is_login_name
from tofmipd.auth.files import without_waiting
from tofmipd.auth.hashes import Secret, parse_secret
from tofmipd.auth.passwordfile import (
    PasswordFile,
    PasswordFileError,
    Table,
    name_in_file,
    read_passwords,
    split_line,
)
from tofmipd.auth.saslprep import login_name
from tofmipd.cli import absolute, options_of, person
from tofmipd.commands.prompt import ask_password
from tofmipd.commands.rewrite import rewrite
from tofmipd.errors import CONFIG, DATA, PERMISSION, TEMPORARY, Fatal
from tofmipd.settings import Person

_USAGE = """tofmipd user add | passwd [-a FILE] [--scheme SCHEME]
                          [--password-file FILE | --generate] NAME
       tofmipd user test [-a FILE] [--password-file FILE] NAME
       tofmipd user del [-a FILE] NAME
       tofmipd user list [-a FILE] [--json]"""
_DESCRIPTION = """\
Add, change, try, remove and list the users of a password file.  A running tofmipd
sees what has changed at the next login."""
_SCHEMES = ("scrypt", "scram-sha-256", "scram-sha-1", "plain")
_SCRAM = {hash_name: name.lower() for name, hash_name in scram.HASHES.items()}
# The options besides -a and --personal that a verb takes.
_OPTIONS = {
    "add": {"scheme", "password_file", "generate"},
    "passwd": {"scheme", "password_file", "generate"},
    "test": {"password_file"},
    "del": set(),
    "list": {"json"},
}
# Without letters and digits that look alike; 20 of them are 115 bits.
_SIGNS = "".join(sorted({*string.ascii_letters, *string.digits} - set("0O1lIo5S")))
_GENERATED_LENGTH = 20


def main(arguments: list[str]) -> int:
    """Do what the verb says; the exit status."""
    options = _parse(arguments)
    who = person()
    path = options.authfile or _file_of_daemon(who, personal=options.personal)
    users = _Users(absolute(path, who.home), who.uid)
    match options.verb:
        case "list":
            _list(users, as_json=options.json)
        case "test":
            _test(users, _login_name(options.name), options.password_file)
        case "del":
            name = name_in_file(os.fsencode(options.name))
            users.demand(name, there=True)
            users.replace(name, None, there=True)
        case verb:
            _set_password(users, _login_name(options.name), options, there=verb == "passwd")
    return 0


def _file_of_daemon(who: Person, *, personal: bool) -> str:
    """The first one of its configuration file, else the usual one.  Raises Fatal."""
    sources = options_of(["--personal"] if personal else []).options.sources
    files = [spec.argument for spec in sources if spec.kind == "file"]
    usual = f"{who.home}/.tmda/tofmipd" if personal or who.uid != 0 else "/etc/tofmipd"
    return files[0] if files else usual


def _set_password(users: _Users, name: str, options: argparse.Namespace, *, there: bool) -> None:
    # Nobody shall type a password for nothing; once more when the file is written.
    found = users.demand(name, there=there)
    scheme = options.scheme
    if scheme is None and there:
        scheme = _scheme_of(found[name])
        if scheme == "plain":
            _note(f"{name}: the password stays in clear text; --scheme scrypt would hash it")
    if scheme not in _SCHEMES:
        scheme = "scrypt"
    if options.generate:
        password = "".join(secrets.choice(_SIGNS) for _ in range(_GENERATED_LENGTH)).encode()
    else:
        password = ask_password(name, options.password_file, twice=True)
    lost = users.replace(name, _secret_text(scheme, password), there=there)
    if lost:
        _note(f"no longer offered: {', '.join(sorted(lost))} (not every entry can serve that now)")
    if options.generate:
        print(password.decode())


def _test(users: _Users, name: str, password_file: str) -> None:
    """Raises Fatal unless the password is right."""
    try:
        source = PasswordFile(users.path, users.uid)
    except PasswordFileError as error:
        raise Fatal(CONFIG, str(error)) from None
    if name not in users.read()[1]:
        raise Fatal(PERMISSION, f"{users.path}: there is no user {name!r}")
    match source.check(Password(name, ask_password(name, password_file))):
        case Verdict.ACCEPTED:
            print(f"{name}: the password is right")
        case Verdict.REJECTED:
            raise Fatal(PERMISSION, f"{name}: the password is wrong")
        case Verdict.UNAVAILABLE:
            raise Fatal(TEMPORARY, f"{name}: it cannot be told whether the password is right")


def _list(users: _Users, *, as_json: bool) -> None:
    rows = [(name, _scheme_of(secret)) for name, secret in users.read()[1].items()]
    if as_json:
        print(json.dumps({"users": [{"name": name, "scheme": scheme} for name, scheme in rows]}))
        return
    shown = [(name if name.isprintable() else ascii(name), scheme) for name, scheme in rows]
    width = max((len(name) for name, _ in shown), default=0)
    for name, scheme in shown:
        print(f"{name:<{width}}  {scheme}")


class _Users:
    """A password file, which must be as the daemon demands; each method raises Fatal."""

    def __init__(self, path: str, uid: int) -> None:
        self.path, self.uid = path, uid

    def read(self, *, may_be_missing: bool = False) -> tuple[bytes, dict[str, Secret]]:
        """The content, and what the daemon makes of it."""
        if may_be_missing and not os.path.exists(self.path):
            return b"", {}
        try:
            found = read_passwords(self.path, self.uid)
            with open(self.path, "rb", opener=without_waiting) as file:
                return file.read(), found
        except PasswordFileError as error:
            raise Fatal(CONFIG, str(error)) from None
        except OSError as error:
            raise Fatal(CONFIG, f"{self.path}: cannot be read ({error.strerror})") from None

    def demand(self, name: str, *, there: bool) -> dict[str, Secret]:
        """All users; ``there`` says whether this one must be among them, or must not."""
        _, found = self.read(may_be_missing=not there)
        self._demand(name, found, there=there)
        return found

    def _demand(self, name: str, found: dict[str, Secret], *, there: bool) -> None:
        if there and name not in found:
            raise Fatal(DATA, f"{self.path}: there is no user {name!r}; 'list' shows all")
        if not there and name in found:
            raise Fatal(DATA, f"{self.path}: there is a user {name!r} already; use 'passwd'")

    def replace(self, name: str, secret: bytes | None, *, there: bool) -> frozenset[str]:
        """Write the file with this in the place of the user's password; None removes him.

        Returns the mechanisms that the file has served and does not serve now.
        """
        lost: frozenset[str] = frozenset()

        def change() -> bytes:
            nonlocal lost
            text, found = self.read(may_be_missing=not there)
            self._demand(name, found, there=there)
            if secret is None:
                return with_line(text, name, None)
            if found:
                after = Table(found | {name: parse_secret(secret)}, b"")
                lost = Table(found, b"").mechanisms - after.mechanisms
            return with_line(text, name, name.encode() + b":" + secret)

        rewrite(self.path, change)
        return lost


def with_line(text: bytes, name: str, line: bytes | None) -> bytes:
    """The content of a password file with this line, given without its end, as the only one of the
    user: in the place of his last, else at the end.  None removes all of his lines."""
    lines = text.splitlines(keepends=True)
    places = [number for number, one in enumerate(lines) if _is_of(one, name)]
    if line is not None and places:
        last = places.pop()
        lines[last] = line + _end_of(lines[last])
    elif line is not None:
        end = (_end_of(lines[0]) if lines else b"") or b"\n"
        if lines and not _end_of(lines[-1]):
            lines[-1] += end
        lines.append(line + end)
    return b"".join(one for number, one in enumerate(lines) if number not in places)


def _is_of(line: bytes, name: str) -> bool:
    entry = split_line(line)
    return entry is not None and name_in_file(entry[0]) == name


def _end_of(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]


def _login_name(word: str) -> str:
    """The name as a login has it, if it can be written into the file.  Raises Fatal."""
    try:
        name = login_name(os.fsencode(word))
    except UnicodeDecodeError:
        raise Fatal(DATA, f"{word!r} is not UTF-8") from None
    line = name.encode() + b":x"
    entry = split_line(line)
    if not is_login_name(name) or entry != (name.encode(), b"x") or name_in_file(entry[0]) != name:
        raise Fatal(
            DATA,
            f"{word!r} cannot be a login name: it must not begin with '-', '.' or '#', hold '/',"
            " ':' or control characters, begin or end with a blank, or be empty or very long",
        )
    return name


def _secret_text(scheme: str, password: bytes) -> bytes:
    """What stands behind the colon.  Raises Fatal."""
    salt = secrets.token_bytes(scram.SALT_OCTETS)
    match scheme:
        case "plain":
            if password != password.strip():
                raise Fatal(
                    DATA,
                    "in clear text the file keeps no blank at an end of a password; take another"
                    " password, or another --scheme",
                )
            return hashes.plain_text(password)
        case "scrypt":
            return hashes.scrypt_text(password, salt)
    return hashes.scram_text(password, salt, scheme.upper())


def _scheme_of(secret: Secret) -> str:
    match secret:
        case hashes.Clear(written=b""):
            return "none"
        case hashes.Clear():
            return "plain"
        case hashes.Scram(verifier=verifier):
            return _SCRAM[verifier.hash_name]
    return type(secret).__name__.lower()


def _note(text: str) -> None:
    print(f"tofmipd user: {text}", file=sys.stderr)


def make_parser() -> Parser:
    parser = Parser("tofmipd user", _DESCRIPTION, _USAGE)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("words", nargs="*", help=argparse.SUPPRESS)
    parser.verbs = tuple(_OPTIONS)
    add(
        "-a",
        "--authfile",
        metavar="FILE",
        help="the password file (default: ~/.tmda/tofmipd, for root /etc/tofmipd)",
    )
    add("--personal", action="store_true", help="as root: your own file")
    add(
        "--scheme",
        metavar="SCHEME",
        choices=_SCHEMES,
        help=f"how to keep the password: {', '.join(_SCHEMES)} (default: as it was, else scrypt)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--password-file",
        metavar="FILE",
        default="",
        help="the password is its first line; - is standard input (default: ask)",
    )
    source.add_argument(
        "--generate", action="store_true", help="make a random password and print it"
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_words(arguments)
    _check(parser, options)
    return options


def _check(parser: Parser, options: argparse.Namespace) -> None:
    verb, *names = options.words or [""]
    if verb not in _OPTIONS:
        parser.error(f"the first word is one of {', '.join(_OPTIONS)}; see --help")
    if len(names) != (verb != "list"):
        wanted = "no NAME" if verb == "list" else "one NAME"
        hint = "; a password is asked for, or read from a file" if len(names) > 1 else ""
        parser.error(f"{verb} takes {wanted}{hint}")
    for option in ("scheme", "password_file", "generate", "json"):
        if getattr(options, option) and option not in _OPTIONS[verb]:
            parser.error(f"{verb} takes no --{option.replace('_', '-')}")
    options.verb, options.name = verb, "".join(names)
