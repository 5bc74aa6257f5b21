"""A private Postfix: own configuration, own queue, own ports; mail for example.net is stored."""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import pwd
import re
import secrets
import shutil
import signal
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certificates import OVER, authority
from hops import Hop, Stored
from running import HOST, ending, free_port, greets, usual_umask, wait_until

NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD = "proxy", "next hop's secret"

_MAIN = """\
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = /dev/stdout
myhostname = hop.example.net
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
message_size_limit = 60000000
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = example.net
virtual_mailbox_base = {base}/box
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
smtpd_tls_cert_file = {base}/cert.pem
smtpd_tls_key_file = {base}/key.pem
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:{host}:{auth_port}
smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
"""

_MASTER = """\
{host}:{port} inet n - n - - smtpd
{submissions}
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
proxymap  unix  - - n - - proxymap
virtual   unix  - n n - - virtual
error     unix  - - n - - error
retry     unix  - - n - - error
anvil     unix  - - n - 1 anvil
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
showq     unix  n - n - - showq
"""

_SUBMISSION = (
    "smtpd_tls_security_level=encrypt",
    "smtpd_sasl_auth_enable=yes",
    "smtpd_client_restrictions=permit_sasl_authenticated,reject",
)
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
# The name and the days of certificates that are not good for this machine.
OTHER_NAME = "other.example.org"
# They take XCLIENT from this machine.
_BELIEVING = "smtpd_authorized_xclient_hosts=127.0.0.0/8"
BAD_CERTIFICATES: dict[str, dict[str, Any]] = {
    "other": {"dns": [OTHER_NAME]},
    "expired": {"dns": ["localhost"], "days": OVER},
}

_SENDMAIL = """\
#!/bin/sh
exec {program} -C {base}/conf "$@"
"""


@dataclass(frozen=True)
class Postfix(Hop):
    """A running one.  ``submission`` is the port that wants TLS and a login.

    ``others`` are such ports too: "implicit" begins with TLS, those of BAD_CERTIFICATES show them,
    and a mechanism is the only one at its port, which demands no TLS.  "xclient submission" takes
    XCLIENT, and so does "xclient", which demands nothing.
    """

    base: Path
    port: int
    submission: int
    others: Mapping[str, int]

    @property
    def sendmail(self) -> Path:
        """Its own sendmail program, for this instance."""
        return self.base / "sendmail"

    @property
    def certificate(self) -> Path:
        return self.base / "cert.pem"

    @property
    def authority(self) -> Path:
        """That of the certificates of BAD_CERTIFICATES."""
        return self.base / "ca.crt"

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def messages(self) -> list[Stored]:
        return [self._parse(path.read_bytes()) for path in (self.base / "box/all/new").glob("*")]

    @staticmethod
    def _parse(octets: bytes) -> Stored:
        """Without the lines that its delivery agent adds, but with its Received."""
        match = re.match(rb"Return-Path: <(.*)>\nX-Original-To: .*\nDelivered-To: (.*)\n", octets)
        assert match is not None
        return Stored(match[1].decode(), (match[2].decode(),), octets[match.end() :])


@contextlib.contextmanager
def running_postfix() -> Iterator[Postfix]:
    """Start it (as root only) and end all of its processes."""
    with contextlib.ExitStack() as stack:
        # Other accounts work below it, so it cannot be among the directories of pytest.
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tofmipd-postfix-")))
        base.chmod(0o755)
        names = ("implicit", *BAD_CERTIFICATES, *MECHANISMS, "xclient", "xclient submission")
        others = {name: free_port() for name in names}
        postfix = Postfix(base, free_port(), free_port(), others)
        auth_ports = {name: stack.enter_context(_auth_service(name)) for name in MECHANISMS}
        with usual_umask():
            _write_files(postfix, auth_ports)
        with (base / "log").open("wb") as log:
            process = subprocess.Popen(
                [shutil.which("postfix") or "postfix", "-c", str(base / "conf"), "start-fg"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        stack.enter_context(ending(process))
        wait_until(lambda: greets(postfix.port), "the greeting of Postfix")
        # The master leads a session of its own, and its children are in it.
        master = int((base / "queue/pid/master.pid").read_text())
        stack.callback(_end_session, master)
        yield postfix


def _end_session(leader: int) -> None:
    """End Postfix's master and its children, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGTERM)
    wait_until(lambda: not _members(leader), "the end of Postfix")


def _members(session: int) -> list[str]:
    """The live processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z":
                found.append(path.parent.name)
    return found


def _write_files(postfix: Postfix, auth_ports: Mapping[str, int]) -> None:
    base = postfix.base
    account = pwd.getpwnam("postfix")
    for name in ("conf", "queue", "data", "box"):
        (base / name).mkdir()
    for name in ("data", "box"):
        os.chown(base / name, account.pw_uid, account.pw_gid)
    make_certificate(base)
    authority().save(base)
    options = {"implicit": ["smtpd_tls_wrappermode=yes"], "xclient submission": [_BELIEVING]}
    for name, fields in BAD_CERTIFICATES.items():
        chain, key = authority().issue("", kind="rsa", **fields).save(base, name)
        options[name] = [f"smtpd_tls_cert_file={chain}", f"smtpd_tls_key_file={key}"]
    for name, port in auth_ports.items():
        path = f"smtpd_sasl_path=inet:{HOST}:{port}"
        options[name] = [path, "smtpd_tls_security_level=may"]
    services = [_service(postfix.submission, ())]
    services += [_service(postfix.others[name], more) for name, more in options.items()]
    more = (_BELIEVING, "smtpd_sasl_auth_enable=yes")
    services.append(_service(postfix.others["xclient"], more, ()))
    names = {
        "base": base,
        "host": HOST,
        "port": postfix.port,
        "submissions": "\n".join(services),
        "auth_port": auth_ports["PLAIN"],
        "uid": account.pw_uid,
        "gid": account.pw_gid,
        "program": shutil.which("sendmail") or "/usr/sbin/sendmail",
    }
    (base / "conf/main.cf").write_text(_MAIN.format(**names))
    (base / "conf/master.cf").write_text(_MASTER.format(**names))
    postfix.sendmail.write_text(_SENDMAIL.format(**names))
    postfix.sendmail.chmod(0o755)


def _service(port: int, more: Iterable[str], demands: Iterable[str] = _SUBMISSION) -> str:
    """Lines of master.cf."""
    lines = [f"{HOST}:{port} inet n - n - - smtpd", *(f"-o {o}" for o in (*demands, *more))]
    return "\n    ".join(lines)


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for this machine's loopback, beside its key."""
    certificate = directory / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(directory / "key.pem"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate


class _Auth(socketserver.StreamRequestHandler):
    """The server's side of Dovecot's authentication protocol, as far as Postfix uses it."""

    server: _AuthServer

    def handle(self) -> None:
        mechanism = self.server.mechanism
        self._say("VERSION\t1\t1")
        self._say(f"MECH\t{mechanism}" + ("" if mechanism == "CRAM-MD5" else "\tplaintext"))
        self._say("SPID\t1\nCUID\t1\nCOOKIE\t00\nDONE")
        while words := self._words():
            if words[0] == "AUTH":
                number = words[1]
                initial = next((w[5:] for w in words if w.startswith("resp=")), None)
                user, good = getattr(self, "_" + mechanism.lower().replace("-", "_"))(
                    lambda challenge, number=number: self._ask(number, challenge), initial
                )
                self._say(f"{'OK' if good else 'FAIL'}\t{number}\tuser={user}")

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\n")

    def _words(self) -> list[str]:
        """Of the next line; none at the end."""
        line = self.rfile.readline().decode()
        return line.rstrip("\n").split("\t") if line else []

    def _ask(self, number: str, challenge: str) -> str:
        self._say(f"CONT\t{number}\t{base64.b64encode(challenge.encode()).decode()}")
        return base64.b64decode([*self._words(), "", "", ""][2]).decode()

    def _plain(self, ask: Callable[[str], str], initial: str | None) -> tuple[str, bool]:
        response = ask("") if initial is None else base64.b64decode(initial).decode()
        _, user, password = (response + "\0\0").split("\0")[:3]
        return user, (user, password) == (NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD)

    def _login(self, ask: Callable[[str], str], _: str | None) -> tuple[str, bool]:
        user, password = ask("Username:"), ask("Password:")
        return user, (user, password) == (NEXT_HOP_LOGIN, NEXT_HOP_PASSWORD)

    def _cram_md5(self, ask: Callable[[str], str], _: str | None) -> tuple[str, bool]:
        challenge = f"<{secrets.token_hex(8)}@hop.example.net>"
        user, _, digest = ask(challenge).rpartition(" ")
        right = hmac.digest(NEXT_HOP_PASSWORD.encode(), challenge.encode(), "md5").hex()
        return user, (user, digest) == (NEXT_HOP_LOGIN, right)


class _AuthServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism
        super().__init__((HOST, 0), _Auth)


@contextlib.contextmanager
def _auth_service(mechanism: str) -> Iterator[int]:
    """Judges logins for Postfix, so that no SASL packages are needed; the port."""
    with _AuthServer(mechanism) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
