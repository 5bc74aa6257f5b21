"""One session on descriptors 0 and 1, for super-servers (feature rows TO-8 to TO-16).

inetd, xinetd, tcpserver and systemd pass the client's connection; stunnel, ssh and shells pass a
pair of local sockets or pipes, behind which anybody may be.  A process is started for each session,
so that nothing is imported before it is needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tofmipd.errors import CONFIG, NO_INPUT, USAGE, Fatal

if TYPE_CHECKING:
    from threading import Thread

    from tofmipd.smtp.envelope import Peer

_BLOCK_OCTETS = 65536
# Of what is wrong, in the log of the system.
_LINES_LIMIT = 20
_UNAVAILABLE = b"421 4.3.2 Service not available, try again later\r\n"
# Who says where the client is: tcpserver, xinetd and stunnel, systemd.
_REMOTE = (
    ("TCPREMOTEIP", "TCPREMOTEPORT"),
    ("REMOTE_HOST", "REMOTE_PORT"),
    ("REMOTE_ADDR", "REMOTE_PORT"),
)
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class Connection:
    """The client's connection.

    It is taken off descriptors 0 and 1, so that no program that is started later has it.
    ``environment`` may name the client; ``passed`` is the connection if systemd has passed it
    elsewhere.  Raises Fatal.
    """

    def __init__(self, environment: Mapping[str, str], passed: socket.socket | None = None) -> None:
        self._ends: tuple[int, ...] = ()
        self._writer: Thread | None = None
        sock = passed or _socket()
        if sock is None:
            self._ends = os.dup(0), os.dup(1)
        elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise Fatal(
                CONFIG,
                "descriptor 0 listens, but -1 serves a connection: use nowait in inetd.conf,"
                " wait = no for xinetd, Accept=yes for systemd",
            )
        self._socket = sock
        self._environment = dict(environment)
        self.greeted = False
        if passed is None:
            _fill_with_nothing((0, 1))

    def greet(self, host_name: str) -> None:
        """Say what a session says first (RFC 5321 section 3.1).

        What the session needs is imported while the client makes up its mind.
        """
        self.greeted = True
        greeting = f"220 {host_name} ESMTP tofmipd\r\n".encode()
        # Who is gone already is noticed by the session.
        with contextlib.suppress(OSError):
            if self._socket is None:
                os.write(self._ends[1], greeting)
            else:
                self._socket.send(greeting)

    def client(self) -> tuple[Peer, bool]:
        """Who it is, and whether the octets cross no network on their way here: who passes them on
        within this machine answers for the way before that."""
        peer = peer_of(self._environment, self._socket)
        direct = self._socket is not None and self._socket.family in _INTERNET
        return peer, peer.loopback or not direct

    def descriptors(self) -> tuple[int, ...]:
        """What a child needs to have of it."""
        return self._ends if self._socket is None else (self._socket.fileno(),)

    def open(self) -> socket.socket:
        """The socket to serve; called once, by the process that does.

        Pipes are copied to and from one, for a session wants to wait with limits.
        """
        if self._socket is not None:
            return self._socket
        import threading

        outer, inner = socket.socketpair()
        source, sink = self._ends
        for end in self._ends:
            os.set_blocking(end, True)
        threading.Thread(target=_copy_in, args=(source, outer), daemon=True).start()
        self._writer = threading.Thread(target=_copy_out, args=(outer, sink), daemon=True)
        self._writer.start()
        return inner

    def finish(self, limit_seconds: float) -> None:
        """After the session: wait for what is still on its way to the client."""
        if self._writer is not None:
            self._writer.join(limit_seconds)
        self.close()

    def close(self) -> None:
        """Give it up, without a word; another process may go on with it."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                os.close(end)
        self._ends = ()
        if self._socket is not None:
            self._socket.close()

    def refuse(self) -> None:
        """There can be no session: say so, as to any command (RFC 5321 section 3.8)."""
        with contextlib.suppress(OSError):
            if self._socket is None:
                os.write(self._ends[1], _UNAVAILABLE)
                return
            from tofmipd.wire import Wire

            wire = Wire(self._socket)
            wire.queue(_UNAVAILABLE)
            wire.flush()
            wire.close(linger=True)


def _socket() -> socket.socket | None:
    """What is on both descriptors, if it is one stream socket.  Raises Fatal."""
    try:
        one, other = os.fstat(0), os.fstat(1)
    except OSError:
        text = "-1 serves the connection on descriptors 0 and 1, and one of them is not open"
        raise Fatal(NO_INPUT, text) from None
    if not (stat.S_ISSOCK(one.st_mode) and os.path.samestat(one, other)):
        return None
    sock = socket.socket(fileno=os.dup(0))
    if sock.type != socket.SOCK_STREAM:
        raise Fatal(USAGE, "descriptor 0 is a socket of a kind that SMTP does not run over")
    return sock


def _fill_with_nothing(descriptors: tuple[int, ...]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def _copy_in(source: int, outer: socket.socket) -> None:
    typed = _is_typed(source)
    with contextlib.suppress(OSError):
        while octets := os.read(source, _BLOCK_OCTETS):
            outer.sendall(octets.replace(b"\n", b"\r\n") if typed else octets)
    with contextlib.suppress(OSError):
        outer.shutdown(socket.SHUT_WR)


def _is_typed(descriptor: int) -> bool:
    """Whether it is a terminal whose lines somebody types: the key that ends one gives LF."""
    if not os.isatty(descriptor):
        return False
    import termios

    try:
        local_modes: int = termios.tcgetattr(descriptor)[3]
    except termios.error:  # closed meanwhile
        return False
    return bool(local_modes & termios.ICANON)


def _copy_out(outer: socket.socket, sink: int) -> None:
    with contextlib.suppress(OSError):
        while octets := outer.recv(_BLOCK_OCTETS):
            while octets:
                octets = octets[os.write(sink, octets) :]
    # Whoever is to be told more is gone.
    with contextlib.suppress(OSError):
        outer.shutdown(socket.SHUT_RDWR)


def peer_of(environment: Mapping[str, str], sock: socket.socket | None) -> Peer:
    """The client, as whoever started this process says it, else as the socket does."""
    from tofmipd.smtp.envelope import Peer

    remote, local = _ends_of(sock)
    for name, port in _REMOTE:
        address = _address(environment.get(name, ""))
        if address:
            remote = address, _port(environment.get(port, ""))
            break
    own = _address(environment.get("TCPLOCALIP", "")) or local
    return Peer(remote[0], remote[1], _is_loopback(remote[0]), own)


def _ends_of(sock: socket.socket | None) -> tuple[tuple[str, int], str]:
    if sock is None or sock.family not in _INTERNET:
        return ("", 0), ""
    try:
        remote, local = sock.getpeername(), sock.getsockname()
    except OSError:  # gone already
        return ("", 0), ""
    return (_address(remote[0]), int(remote[1])), _address(local[0])


def _is_loopback(address: str) -> bool:
    """Also a client of which nothing is known: it came from a program on this machine."""
    from tofmipd.auth.limiter import is_loopback

    return not address or is_loopback(address)


def _address(text: str) -> str:
    """The text if it is an address, without its zone; "" for names and anything else."""
    text = text.partition("%")[0]
    for family in _INTERNET:
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            return text
    return ""


def _port(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else 0


class Discretion:
    """Keeps from the client what is meant for the administrator.

    Super-servers pass the connection as descriptor 2, too; what is printed there is kept until
    it can be logged.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._kept = -1
        if _stderr_is_clients(environment):
            self._kept = _nameless_file()
            os.dup2(self._kept, 2)

    @property
    def needed(self) -> bool:
        return self._kept >= 0

    def said(self) -> str:
        """All that has been printed so far; from now on it is lost."""
        if not self.needed:
            return ""
        sys.stderr.flush()
        _fill_with_nothing((2,))
        return os.pread(self._kept, _BLOCK_OCTETS, 0).decode("utf-8", "replace").strip()


def _nameless_file() -> int:
    """Unlike a pipe that nobody reads it is never full.  Raises OSError."""
    try:
        return os.memfd_create("said")
    except (AttributeError, OSError):  # another system than Linux
        import tempfile

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())


def _stderr_is_clients(environment: Mapping[str, str]) -> bool:
    try:
        error = os.fstat(2)
        shared = any(os.path.samestat(error, os.fstat(number)) for number in (0, 1))
    except OSError:
        return False
    # A person at a terminal wants to see it; a client that comes by a pseudo terminal is named.
    person = os.isatty(2) and not any(environment.get(name) for name, _ in _REMOTE)
    return shared and not person and not stat.S_ISREG(error.st_mode) and not _is_null(error)


def _is_null(status: os.stat_result) -> bool:
    return os.path.samestat(status, os.stat(os.devnull))


def guarded(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run the program for one session; its exit status.

    Whatever goes wrong before there is a session, the client hears 421 and nothing else.
    """
    discretion = Discretion(os.environ)
    try:
        os.fstat(2)
    except OSError:
        # The connection would get its number, and programs that are started would complain there.
        from tofmipd.background import open_missing

        open_missing((2,))
    try:
        # In the foreground log lines go to standard error.
        status = run([*arguments, "-b" if discretion.needed else "-f"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    if status:
        if discretion.needed:
            for line in discretion.said().splitlines()[:_LINES_LIMIT]:
                _log(line.removeprefix("tofmipd: "))
        if discretion.needed or not os.isatty(1):
            with contextlib.suppress(OSError):
                # Nothing once the connection has been taken, which was told itself.
                os.write(1, _UNAVAILABLE)
    return status


def _log(text: str) -> None:
    if "logging" in sys.modules:
        import logging

        if logging.getLogger("tofmipd").handlers:
            logging.getLogger(__name__).error("%s", text)
            return
    # It has not got as far as the options that say where log lines go.
    import syslog

    syslog.openlog("tofmipd", syslog.LOG_PID, syslog.LOG_MAIL)
    syslog.syslog(syslog.LOG_ERR, text)
