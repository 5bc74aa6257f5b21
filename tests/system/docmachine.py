"""A machine as the documents have it: names, addresses, accounts and ports of its own.

It consists of namespaces.  What is written there is gone with it, and so are its processes; what
it has no layer of its own for cannot be written.  ``you`` and ``anna`` have accounts; all names of
the documents are this machine, with a next hop on ports 25 and 587, and in the place of sendmail,
that takes everything.

What the documents run and the machine has not is done by stand-ins, which write down how they were
called; STAND_INS has them, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blocks import BLOCKS
from running import KEY, PROGRAM, cannot_run, wait_until

ROOT = Path(__file__).parents[2]
PASSWORD = "a-password"
# Of the password, as crypt(3) makes it.
_HASH = "$6$documents$"
_HASH += "eUfXUdGR7UgmaLqhkWAcvQ45ZpFBcRScA05RBogHq85ozBn9/v4d46WsFNjjrfaU6Z0/hOs5TX0j3wQCY85UO."
UIDS = {"you": 41_001, "anna": 41_002, "tofmipd": 410}
# Of virtual domains.
OWNERS = {"olga": 41_003, "peter": 41_004, "vpopmail": 89}
NAMES = "mail.example.org imap.example.org pop.example.org ldap.example.org ad.example.org"
ADDRESSES = ("192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128")
# For all commands of a block, and for the machine to be there.
_LIMIT_SECONDS = 120
_LAYERS = ("/etc", "/home", "/opt", "/root", "/run", "/tmp", "/usr/local", "/usr/sbin", "/var")
_NGINX_MODULES = sorted(Path("/etc/nginx/modules-enabled").glob("*.conf"))
# What cannot run here: its name, what it does beside being written down, and why.
STAND_INS = {
    "systemctl": ("", "no systemd runs in the machine"),
    "journalctl": ("", "no systemd runs in the machine"),
    "systemd-sysusers": ("", "test_systemd_units.py runs it, below a directory"),
    "systemd-tmpfiles": ("", "test_systemd_units.py runs it, below a directory"),
    "listvdomain": ('echo "$1 ./users/$1"', "VMailMgr is no package of Debian"),
    "apt": ("", "the packages are there; the machine has no network"),
    "certbot": ("", "the authority is in the internet"),
    "ssh": ("", "the machine has no network"),
    "fail2ban-client": ("", "it would need the firewall, and a server of its own"),
    "htpasswd": ("cat >/dev/null", "Apache's tools are no peers of ours"),
    "crontab": ('test "$1" = -l || cat >/dev/null', "no cron runs in the machine"),
    "pip": ("", "it would fetch packages"),
    "sudo": ('exec "$@"', "these blocks are run by root already"),
    "python3": (
        'test "$1 $2" = "-m venv" || exec /usr/bin/python3 "$@"\n'
        'mkdir -p "$3/bin"; ln -sf /usr/local/bin/tofmipd /usr/local/bin/pip "$3/bin"',
        "a virtual environment holds nothing without pip",
    ),
}
# A daemon that does not return would hold the commands behind it up, as it does in a window.  There
# is one at a time: the documents show them one after the other.  What a terminal would be asked for
# is in files: init asks only at one.
_TOFMIPD = f"""\
#!/bin/sh
case "${{1-}} $#" in
"init 1")
    test $USER = root || exec script -qec "{PROGRAM} init" /dev/null </run/doc/answers ;;
esac
case "${{1-}}" in
-b) exec {PROGRAM} "$@" ;;
user) exec {PROGRAM} "$@" </run/doc/password ;;
[a-z]* | -V | -h | --help | --version) exec {PROGRAM} "$@" ;;
esac
end-daemons
: >/run/doc/log
echo "$*" >/run/doc/daemon
umask 022
PATH=/usr/bin:/bin:/usr/sbin:/sbin {PROGRAM} -f "$@" </dev/null >>/run/doc/log 2>&1 &
echo $! >>/run/doc/pids
until grep -q Listening /run/doc/log; do
    kill -0 $! 2>/dev/null || {{ cat /run/doc/log >&2; exit 70; }}
    sleep 0.01
done
"""
# Address, name, way out, user name there, whether clients elsewhere connect.
_ANSWERS = "you@example.org\n\nmail.example.org:587\n\nno\n"
# As the next hop dumps what it takes.
_SENDMAIL = """\
#!/bin/sh
while test "$1" != --; do shift; done
shift
{ printf 'X-Rcpt-Args: <%s>\\n' "$@"; cat; } >/run/doc/sink/sendmail-$$
"""
_END_DAEMONS = """\
#!/bin/sh
for pid in $(cat /run/doc/pids 2>/dev/null); do
    kill $pid 2>/dev/null || continue
    while kill -0 $pid 2>/dev/null; do sleep 0.01; done
done
: >/run/doc/pids
"""
_SET_UP = """\
set -e
ip link set lo up
for address in {addresses}; do ip address add $address dev lo; done
mount -t tmpfs none "$1"
cd "$1"
for place in {places}; do
    layer=$(echo $place | tr / _)
    mkdir -p "$layer/work" "$layer/new"
    chmod --reference=$place "$layer/new"
    mount -t overlay -o "lowerdir=$place,upperdir=$layer/new,workdir=$layer/work" none $place
    chmod o+rx $place
done
# Whatever is not one of these is the host's.
mount -o remount,bind,ro /
sed -i -E '/^({users}):/d' /etc/passwd /etc/group /etc/shadow /etc/gshadow
rm -rf /etc/tofmipd* /etc/tmdarc /var/lib/tofmipd /var/spool/tofmipd
hostname mail.example.org
echo "127.0.0.1 mail.example.org localhost {names}" >/etc/hosts
echo "::1 localhost" >>/etc/hosts
rm -rf /run/doc
mkdir -m 1777 /run/doc
mkdir -m 1777 /run/doc/sink
cd /run/doc/sink
smtp-sink -u root -d %M. 127.0.0.1:25 100 &
echo $! >/run/doc/sink-25
smtp-sink -u root -d %M. 127.0.0.1:587 100 &
echo $! >/run/doc/sink-587
touch /run/doc/up
while :; do sleep 1000; done
"""


@dataclass(frozen=True)
class Ran:
    """What has come of a script; ``words`` are its output and errors."""

    status: int
    words: str


class Machine:
    """``pid`` is that of its first process."""

    def __init__(self, pid: int) -> None:
        # Not subprocess's own limit, which is looked at every 50 ms.
        self._enter = [
            *("timeout", "--signal=KILL", str(_LIMIT_SECONDS)),
            *("nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--uts"),
            f"--wdns={ROOT}",
        ]
        self._root = Path(f"/proc/{pid}/root")
        self._done: set[str] = set()
        self._furnish()

    def path(self, path: str) -> Path:
        """What is called so in the machine; ``~`` is the home of ``you``."""
        return self._root / path.replace("~", "home/you", 1).removeprefix("/")

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        """A file, in ``you``'s home his own, else root's."""
        place = self.path(path)
        missing = [one for one in (place, *place.parents) if not one.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # a link would lead out of the machine
        place.write_text(text)
        place.chmod(mode)
        if place.is_relative_to(self.path("~")):
            for one in missing:
                os.chown(one, UIDS["you"], UIDS["you"])

    def run(self, script: str, user: str = "you") -> Ran:
        """Run commands as a shell does that stops at the first failure."""
        home = "/root" if user == "root" else f"/home/{user}"
        own = [] if user == "root" else ["setpriv", f"--reuid={user}", "--regid", user]
        # Not a pipe: what a command leaves running may keep that open.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                [
                    *(*self._enter, *own, *(["--clear-groups"] if own else []), "env", "-i"),
                    *(f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "LC_ALL=C.UTF-8"),
                    "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                    *("sh", "-e", "-c", f"cd {home}\n{script}"),
                ],
                input=f"{PASSWORD}\n" * 20,
                stdout=output,
                stderr=output,
                text=True,
            )
            output.seek(0)
            return Ran(result.returncode, output.read())

    def prepare(self, way: str) -> None:
        """Make it so that ``way`` (blocks.WAYS) is true, once."""
        if way not in self._done and way in _MAKES:
            self._done.add(way)
            _MAKES[way](self)

    def begin(self) -> None:
        """Forget what the section before has sent and called."""
        for path in self.path("/run/doc/sink").iterdir():
            path.unlink()
        self.write("/run/doc/calls", "", 0o666)
        self._done.discard("daemon")

    def runs(self, options: str) -> bool:
        """Whether the daemon that was started last has these, and has not ended."""
        pids = self.path("/run/doc/pids").read_text().split()
        started = self.path("/run/doc/daemon").read_text().strip()
        return started == options and all(self.path(f"/proc/{pid}").exists() for pid in pids)

    def received(self) -> set[str]:
        """To whom the next hop has got mail."""
        dumps = [path.read_text("latin-1") for path in self.path("/run/doc/sink").iterdir()]
        return {name for dump in dumps for name in re.findall("X-Rcpt-Args: <(.*?)>", dump)}

    def calls(self) -> list[str]:
        """How stand-ins were called."""
        return self.path("/run/doc/calls").read_text().splitlines()

    def must(self, script: str, user: str = "you") -> None:
        ran = self.run(script, user)
        assert ran.status == 0, ran.words

    def _furnish(self) -> None:
        for name, uid in UIDS.items():
            if name != "tofmipd":
                self.add_account(name, uid)
                self.path(f"/home/{name}").mkdir(mode=0o700)
                os.chown(self.path(f"/home/{name}"), uid, uid)
        self.write("/usr/local/bin/tofmipd", _TOFMIPD, 0o755)
        self.write("/usr/local/bin/end-daemons", _END_DAEMONS, 0o755)
        for name, (does, _) in STAND_INS.items():
            line = f'#!/bin/sh\necho "{name} $*" >>/run/doc/calls\n{does}\n'
            self.write(f"/usr/local/bin/{name}", line, 0o755)
        for name in ("tofmipd", "pip"):
            self.write(f"/opt/tofmipd/bin/{name}", f'#!/bin/sh\nexec {name} "$@"\n', 0o755)
        self.write("/run/doc/password", f"{PASSWORD}\n", 0o644)
        self.write("/run/doc/answers", _ANSWERS, 0o644)
        self.write("/run/doc/calls", "", 0o666)
        self.write("/run/doc/log", "", 0o666)
        self.write("/run/doc/daemon", "", 0o666)
        self.write("/run/doc/pids", "", 0o666)
        self.write("~/mail.txt", "From: you@example.org\nTo: friend@example.net\n\nIt works.\n")
        self.write("/usr/sbin/sendmail", _SENDMAIL, 0o755)
        for name in ("etc", "contrib"):
            self.path(f"/home/you/{name}").symlink_to(ROOT / name)
            with contextlib.suppress(FileExistsError):
                self.path(f"/root/{name}").symlink_to(ROOT / name)

    def add_account(self, name: str, uid: int) -> None:
        for path, line in (
            ("/etc/passwd", f"{name}:x:{uid}:{uid}:Your Name:/home/{name}:/bin/sh\n"),
            ("/etc/group", f"{name}:x:{uid}:\n"),
            ("/etc/shadow", f"{name}:{_HASH}:20000::::::\n"),
        ):
            with self.path(path).open("a") as file:
                file.write(line)


def _home(machine: Machine) -> None:
    """What `tofmipd init` makes, for mail.example.org, if it is not there."""
    for name, text in {
        "crypt_key": KEY,
        "filters/outgoing": "",
        "tofmipd": f"you:{PASSWORD}\nanna:{PASSWORD}\n",
        "config": 'USERNAME = "you"\nHOSTNAME = "example.org"\nFULLNAME = "Your Name"\n'
        'MAIL_TRANSPORT = "smtp"\nSMTPHOST = "mail.example.org:25"\n',
    }.items():
        if not machine.path(f"~/.tmda/{name}").exists():
            machine.write(f"~/.tmda/{name}", text)


def _daemon(machine: Machine) -> None:
    machine.prepare("home")
    if not machine.runs("-f"):
        machine.must("tofmipd -f")


def _queued(machine: Machine) -> None:
    """A message waits that the next hop did not take."""
    machine.prepare("home")
    config = machine.path("~/.tmda/config")
    there = config.read_text()
    config.write_text(there.replace(":25", ":26"))
    machine.must("tofmipd -f --spool\ntofmipd test friend@example.net\nend-daemons")
    config.write_text(there)


def _service(machine: Machine) -> None:
    """The account and the PAM service, a password file for all, and something on the log."""
    machine.add_account("tofmipd", UIDS["tofmipd"])
    machine.write("/etc/tofmipd", f"you:{PASSWORD}\n")
    machine.write("/etc/pam.d/tofmipd", (ROOT / "etc/pam.d/tofmipd").read_text(), 0o644)
    machine.write("/var/log/tofmipd.log", _of_document("authentication.md", "INFO s="), 0o644)


def _certificates(machine: Machine) -> None:
    """As certbot leaves them; the machine trusts their authority, and port 587 is free."""
    machine.must(
        "d=/etc/letsencrypt/live/mail.example.org; mkdir -p $d; cd $d\n"
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30"
        " -subj /CN=mail.example.org -addext subjectAltName=DNS:mail.example.org"
        " -keyout privkey.pem -out fullchain.pem 2>/dev/null\n"
        "cat fullchain.pem >>/etc/ssl/certs/ca-certificates.crt\n"
        "ln -s $d/fullchain.pem /etc/ssl/certs/$(openssl x509 -hash -noout -in fullchain.pem).0\n"
        "cp fullchain.pem /root/chain.pem; cp privkey.pem /root/key.pem\n"
        "read pid </run/doc/sink-587; kill $pid; while kill -0 $pid 2>/dev/null; do :; done",
        "root",
    )


_SERVER = """\
d=/etc/letsencrypt/live/mail.example.org
tofmipd -p 0.0.0.0:465,ssl -p 0.0.0.0:587,tls=on -p 127.0.0.1:8025,plain \\
    --ssl-cert $d/fullchain.pem --ssl-key $d/privkey.pem"""


def _server(machine: Machine, more: str = "") -> None:
    """The server for everybody of tls.md."""
    for way in ("home", "service", "certificates"):
        machine.prepare(way)
    machine.must(f"{_SERVER} {more}", "root")


def _server_ca(machine: Machine) -> None:
    """The same with the authority that the commands before it have made, and files for anna."""
    _server(machine, "--ssl-client-ca /home/you/ca.pem")
    machine.must("cp -R /home/you/.tmda /home/anna; chown -R anna: /home/anna", "root")


def _try_tls(machine: Machine) -> None:
    """The daemon to try TLS with of tls.md."""
    machine.prepare("home")
    machine.must(_of_document("tls.md", "tofmipd cert"))


def _json_log(machine: Machine) -> None:
    machine.prepare("home")
    machine.must("touch /var/log/tofmipd.log; chown you: /var/log/tofmipd.log", "root")
    machine.must(
        "tofmipd --log-format json --log-file /var/log/tofmipd.log\ntofmipd test friend@example.net"
    )


def _virtual(machine: Machine) -> None:
    machine.prepare("service")
    for name, uid in OWNERS.items():
        machine.add_account(name, uid)
    machine.must(
        "mkdir -p /etc/tofmipd.d; install -m 755 contrib/vhome/vhome-vmailmgr /usr/local/bin/",
        "root",
    )


def _nginx(machine: Machine) -> None:
    """nginx as behind.md has it, in front of a daemon on port 8025."""
    machine.prepare("certificates")
    modules = "".join(f"include {path};\n" for path in _NGINX_MODULES)
    stream = _of_document("behind.md", "stream {")
    machine.write("/etc/nginx/nginx.conf", f"{modules}events {{}}\n{stream}", 0o644)
    machine.must("nginx", "root")


def _proxies(machine: Machine) -> None:
    machine.must("ip address add 10.0.0.11/32 dev lo", "root")


def _of_document(document: str, beginning: str) -> str:
    """The text of the first block there that begins so."""
    return next(
        block.text
        for block in BLOCKS
        if block.document == document and block.text.startswith(beginning)
    )


# What makes it so that a word of blocks.WAYS is true; nothing for the others.
_MAKES: dict[str, Callable[[Machine], None]] = {
    "home": _home,
    "daemon": _daemon,
    "queued": _queued,
    "service": _service,
    "certificates": _certificates,
    "server": _server,
    "server-ca": _server_ca,
    "try-tls": _try_tls,
    "json-log": _json_log,
    "virtual": _virtual,
    "nginx": _nginx,
    "proxies": _proxies,
}


@contextlib.contextmanager
def new_machine(directory: Path) -> Iterator[Machine]:
    """A running machine; ``directory`` is empty and of this machine alone."""
    hidden = [
        str(place)
        for path in (Path(sys.base_prefix), Path(sys.prefix), ROOT)
        for place in reversed(path.parents)
        if not place.stat().st_mode & 0o001
    ]
    places = dict.fromkeys([*_LAYERS, *hidden])
    script = _SET_UP.format(
        addresses=" ".join(ADDRESSES),
        names=NAMES,
        places=" ".join(places),
        users="|".join(UIDS | OWNERS),
    )
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child"),
            *("--mount-proc", "sh", "-c", script, "sh", str(directory)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Machine(_first_process(process))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _first_process(process: subprocess.Popen[bytes]) -> int:
    """Its pid out here, when it is ready."""

    def ready() -> int:
        if process.poll() is not None:
            assert process.stderr is not None
            cannot_run(f"no machine can be made here: {process.stderr.read().decode()}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if Path(f"/proc/{child}/root/run/doc/up").exists():
                return int(child)
        return 0

    return wait_until(ready, "the machine", _LIMIT_SECONDS)
