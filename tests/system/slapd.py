"""A private slapd: own configuration, own entries, own ports; it needs no root."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fakes import make_certificate
from running import HOST, ending, free_port, usual_umask, wait_until

BASE = "dc=example,dc=org"
PEOPLE, ANSWERS = f"ou=people,{BASE}", f"ou=answers,{BASE}"

# RFC 4511 section 4.1.9, for ``answers``.
BUSY, CONFIDENTIALITY_REQUIRED, SLOW = "51", "13", "0 sleeptime=60"

_CONFIGURATION = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload retcode
pidfile {base}/pid
{options}
database mdb
suffix "{suffix}"
directory {base}/data
access to attrs=userPassword by anonymous auth by * none
access to * by * read
overlay retcode
retcode-parent "{answers}"
{items}
"""

_ROOT = f"""\
dn: {BASE}
objectClass: domain
dc: example

dn: {PEOPLE}
objectClass: organizationalUnit
ou: people
"""


@dataclass(frozen=True)
class Slapd:
    """A running one.  By ``certificate`` clients can check ``tls_port``, and ``port`` once it has
    been told StartTLS."""

    base: Path
    host: str
    port: int
    tls_port: int
    certificate: str
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def binds(self) -> list[str]:
        """The names of all simple binds that it was asked for, as it writes them."""
        return re.findall(r' BIND dn="(.*)" method=128\n', self.log())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def slapd(
    users: Mapping[str, str] | None = None,
    *,
    host: str = HOST,
    encrypted: bool = True,
    anonymous: bool = False,
    answers: Mapping[str, str] | None = None,
) -> Iterator[Slapd]:
    """Start it on free ports of an address, and end it surely.

    ``users`` are names and passwords of entries below PEOPLE.  One that is not ``encrypted`` knows
    no StartTLS, and has nobody at its ``tls_port``.  ``anonymous`` lets a name with an
    empty password succeed, as RFC 4513 section 5.1.2 warns.  ``answers`` are names below ANSWERS
    and what a bind of each gets, whatever the password: the number of a result, which may be
    followed by ``sleeptime=SECONDS``, or ``refer(url)``.  Tests that use it bear the mark
    peer("slapd").
    """
    with tempfile.TemporaryDirectory(prefix="tofmipd-slapd-") as directory:
        base = Path(directory)
        # Other accounts read the certificate.
        base.chmod(0o755)
        with usual_umask():
            certificate, key = make_certificate(base, host)
            options = ["allow bind_anon_dn bind_anon_cred"] if anonymous else []
            if encrypted:
                options += [f"TLSCertificateFile {certificate}", f"TLSCertificateKeyFile {key}"]
            _configure(base, options, answers or {})
            _fill(base, users or {})
        running = _start(base, host, certificate, encrypted=encrypted)
        with ending(running.process):
            wait_until(lambda: _listens(running), "slapd to listen")
            yield running


def refer(url: str) -> str:
    """An answer that sends the client to another server."""
    return f'10 ref="{url}"'


def dn(name: str, parent: str = PEOPLE) -> str:
    """The distinguished name of a user's entry."""
    return f"uid={escaped(name)},{parent}"


def escaped(name: str) -> str:
    """For a distinguished name (RFC 4514 section 2.4): all but ASCII letters and digits in hex."""
    octets = (bytes([octet]) for octet in name.encode())
    return "".join(o.decode() if o.isalnum() else f"\\{o.hex()}" for o in octets)


def _configure(base: Path, options: Sequence[str], answers: Mapping[str, str]) -> None:
    items = "\n".join(
        # The file has escapes of its own.
        f'retcode-item "uid={escaped(name)}" {answer} op=bind'.replace("\\", "\\\\")
        for name, answer in answers.items()
    )
    (base / "conf").write_text(
        _CONFIGURATION.format(
            base=base,
            options="\n".join(options),
            suffix=BASE,
            answers=ANSWERS,
            items=items,
        )
    )


def _fill(base: Path, users: Mapping[str, str]) -> None:
    (base / "data").mkdir()
    (base / "ldif").write_text("\n".join([_ROOT, *(_entry(*user) for user in users.items())]))
    program = shutil.which("slapadd") or "slapadd"
    command = [program, "-q", "-f", str(base / "conf"), "-l", str(base / "ldif")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _entry(name: str, password: str) -> str:
    return (
        f"dn: {dn(name)}\nobjectClass: account\nobjectClass: simpleSecurityObject\n"
        f"uid:: {_base64(name)}\nuserPassword:: {_base64(password)}\n"
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _start(base: Path, host: str, certificate: str, *, encrypted: bool) -> Slapd:
    port, tls_port = free_port(), free_port()
    places = f"ldap://{host}:{port}" + f" ldaps://{host}:{tls_port}" * encrypted
    program = shutil.which("slapd") or "slapd"
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            # -d keeps it in the foreground and has it write there what it is asked for.
            [program, "-f", str(base / "conf"), "-h", places, "-d", "stats"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return Slapd(base, host, port, tls_port, certificate, process)


def _listens(running: Slapd) -> bool:
    assert running.process.poll() is None, running.log()
    with contextlib.suppress(OSError), socket.create_connection((running.host, running.port), 5):
        return True
    return False
