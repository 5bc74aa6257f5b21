"""A private Dovecot: own configuration, own accounts, own ports; it serves IMAP and POP3."""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fakes import make_certificate
from running import HOST, free_port, usual_umask, wait_until

# Debian's place; it is not on the search path, and a package of its own.
POP3 = "/usr/lib/dovecot/pop3-login"

# The greeting of POP3 has a stamp because APOP is a mechanism.
# Rejections are not delayed, nor remembered against the address that they went to.
_CONFIGURATION = """\
protocols = imap pop3
listen = {host}
base_dir = {base}/run
state_dir = {base}/state
log_path = {base}/log
first_valid_uid = 1
mail_location = maildir:~/mail
auth_mechanisms = plain apop
auth_failure_delay = 0
disable_plaintext_auth = no
ssl = {ssl}
ssl_cert = <{certificate}
ssl_key = <{key}
passdb {{
  driver = passwd-file
  args = {base}/users
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={base}/homes/%u
}}
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3_port}
  }}
  inet_listener pop3s {{
    port = {pop3s_port}
    ssl = yes
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""


@dataclass(frozen=True)
class Dovecot:
    """A running one.  ``certificate`` is the file by which clients can check the TLS ports.

    The other two take STARTTLS and STLS, but do not ask for it.
    """

    base: Path
    host: str
    port: int
    tls_port: int
    pop3_port: int
    pop3s_port: int
    certificate: str
    process: subprocess.Popen[bytes]

    def log(self) -> str:
        path = self.base / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """End it and all of its processes, and wait until they are gone."""
        if _session_lives(self.process.pid):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not _session_lives(self.process.pid), "the end of Dovecot")


@contextlib.contextmanager
def dovecot(
    host: str = HOST, users: Mapping[str, str] | None = None, *, encrypted: bool = True
) -> Iterator[Dovecot]:
    """Start it (as root only) on free ports of an address, and end it surely.

    ``users`` are names and passwords.  One that is not ``encrypted`` knows no TLS.  Tests that use
    it bear the marks root and peer("dovecot", POP3).
    """
    # Other accounts work below it, so it cannot be among the directories of pytest.
    with tempfile.TemporaryDirectory(prefix="tofmipd-dovecot-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        with usual_umask():
            running = _start(base, host, users or {}, encrypted=encrypted)
        try:
            wait_until(lambda: _greets(running), "the greeting of Dovecot")
            yield running
        finally:
            running.stop()


def _start(base: Path, host: str, users: Mapping[str, str], *, encrypted: bool) -> Dovecot:
    names = ("port", "tls_port", "pop3_port", "pop3s_port")
    ports = {name: free_port(host) for name in names}
    certificate, key = make_certificate(base, host)
    account = pwd.getpwnam("dovecot")
    for name in ("state", "homes"):
        (base / name).mkdir()
    os.chown(base / "homes", account.pw_uid, account.pw_gid)
    (base / "users").write_text("".join(_user_line(*user) for user in users.items()))
    (base / "conf").write_text(
        _CONFIGURATION.format(
            base=base,
            host=host,
            **ports,
            certificate=certificate,
            key=key,
            uid=account.pw_uid,
            gid=account.pw_gid,
            ssl="yes" if encrypted else "no",
        )
    )
    process = subprocess.Popen(
        [shutil.which("dovecot") or "dovecot", "-F", "-c", str(base / "conf")],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return Dovecot(base=base, host=host, certificate=certificate, process=process, **ports)


def _user_line(name: str, password: str) -> str:
    """Encoded, for a password may have a colon in it."""
    return f"{name}:{{PLAIN.b64}}{base64.b64encode(password.encode()).decode()}\n"


def _greets(running: Dovecot) -> bool:
    """Whether it takes connections on its port."""
    assert running.process.poll() is None, running.log()
    with (
        contextlib.suppress(OSError),
        socket.create_connection((running.host, running.port), timeout=5) as probe,
    ):
        return probe.recv(4) == b"* OK"
    return False


def _session_lives(leader: int) -> bool:
    """Whether a process of the session is left; those nobody has waited for do not count."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                return True
    return False
