"""Global mode put together: who is started with which rights, and what each of them runs."""

from __future__ import annotations

import dataclasses

# What others import when they need it first: by then this is another uid's process, which may not
# be able to read a library that was installed for root.
import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.unicode_escape  # noqa: F401
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from tofmipd import cpus
from tofmipd import log as log_module
from tofmipd.auth.files import SourceFileError
from tofmipd.auth.saslprep import import_tables
from tofmipd.auth.sources import attempted, chain_of
from tofmipd.encrypted import Encryption
from tofmipd.errors import CANT_CREATE, CONFIG, Fatal
from tofmipd.handoff.smtp import Pool
from tofmipd.onesession import Connection
from tofmipd.privsep import attempts, confine, linux
from tofmipd.privsep.accounts import Admission, NoAccount
from tofmipd.privsep.authserver import AuthServer, Files
from tofmipd.privsep.channel import Channel
from tofmipd.privsep.children import Birth, end_with_monitor
from tofmipd.privsep.directories import make_private
from tofmipd.privsep.drop import Rights, become
from tofmipd.privsep.frames import Control, Kind
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.keyfiles import Keys, reader_of
from tofmipd.privsep.logins import Logins
from tofmipd.privsep.offer import Offer
from tofmipd.privsep.outboxes import OutboxError, make_base, make_own
from tofmipd.privsep.personal import quota_of, throttle_of
from tofmipd.privsep.plan import Change, Plan
from tofmipd.privsep.remote import RemoteGate
from tofmipd.privsep.users import User, house, retries_of, user_of
from tofmipd.privsep.virtualdomains import VirtualDomains
from tofmipd.privsep.worker import Shipping, Worker
from tofmipd.renewal import Renewal, check_scripts, close, listen
from tofmipd.server import Listener, Service, service_of
from tofmipd.settings import GlobalMode, Settings
from tofmipd.systemd import Supervisor
from tofmipd.tls.files import Watch, paths_of

log = logging.getLogger(__name__)

_NO_USER = os.EX_NOUSER
# Beyond what its limits let the server and a worker take.
_STOP_GRACE_SECONDS = 5
# What a session needs in the server: the client's socket, the worker's channel, a file, a spare.
_DESCRIPTORS_PER_SESSION = 4


@dataclass(frozen=True)
class GlobalDaemon:
    """All that the processes start from: every one of them begins as a copy of the monitor.

    ``sockets`` listen already; ``rights`` are those of the service's account.  With a
    ``connection`` that is all there is to serve.
    """

    settings: Settings
    mode: GlobalMode
    rights: Rights
    sockets: tuple[socket.socket, ...]
    monitor: int
    supervisor: Supervisor
    renewal: Renewal
    connection: Connection | None = None
    # Not empty once there has been a server: who replaces it serves with what there is.
    begun: list[bool] = field(default_factory=list)
    # Nothing shows a password before auth has said what it can serve.
    offer: Offer = field(default_factory=lambda: Offer(frozenset()))

    def plan(self) -> Plan:
        settings, limits = self.settings, self.settings.limits
        events = self._events()
        confine.descriptors(4 * self.mode.max_workers + 1000)
        return Plan(
            server=Birth(
                "server",
                "tofmipd-server",
                self.serve,
                keep=self._descriptors(),
            ),
            auth=Birth("auth", "tofmipd-auth", self.judge),
            worker=lambda identity: Birth(
                f"worker for {identity.login!r}",
                "tofmipd-worker",
                lambda control: self.work(identity, control),
                apart=True,
            ),
            files=self._files(),
            max_workers=self.mode.max_workers,
            sessions=4 * limits.connections,
            stop_timeout=limits.stop_timeout + _STOP_GRACE_SECONDS,
            leave_timeout=self._leave_seconds,
            reopen=_reopen_log,
            close_listeners=self._close_sockets,
            keys=self._keys(),
            outboxes="" if self.connection is not None else settings.outbox,
            supervisor=self.supervisor,
            once=self.connection is not None,
            reload=self._reload,
            unpack=events.unpacked if events is not None else None,
        )

    def _reload(self) -> Change | None:
        """Called in the monitor.  Raises Fatal."""
        changed = self.renewal.changed()
        if changed is None:
            return None
        settings, before = changed.settings, self.settings
        check_scripts(settings.scripts)
        make_places(settings, self.rights)
        sockets = listen(settings, zip(before.listen, self.sockets, strict=True))
        try:
            successor = dataclasses.replace(
                self,
                settings=settings,
                mode=settings.global_mode or self.mode,
                sockets=tuple(sockets),
                begun=[],
                offer=Offer(frozenset()),
            )
            plan = successor.plan()
        except BaseException:
            close(sockets, but=self.sockets)
            raise
        # Children have it from their birth.
        _set_log_levels(settings)

        def applied() -> None:
            successor.begun.append(True)
            self.renewal.take(changed)
            close(self.sockets, but=sockets)

        def given_up() -> None:
            _set_log_levels(before)
            close(sockets, but=self.sockets)

        return Change(plan, applied, given_up)

    def _descriptors(self) -> tuple[int, ...]:
        """Those that the server serves."""
        if self.connection is not None:
            return self.connection.descriptors()
        return tuple(sock.fileno() for sock in self.sockets)

    def _events(self) -> ModuleType | None:
        """What makes events of the lines of workers, if the log is to have any."""
        if self.settings.log_settings.form != "json":
            return None
        from tofmipd import events

        return events

    @property
    def _leave_seconds(self) -> float:
        """How long a worker may take for what it has begun."""
        hop = self.settings.next_hop
        longest = hop.connect_timeout + 2 * hop.reply_timeout + hop.dot_timeout
        return self.settings.programs.script_timeout + longest

    def _keys(self) -> Keys | None:
        """What the server gets again when it changes: it may not read it any more by then."""
        settings = self.settings.encryption
        if not settings.pairs:
            return None
        watch = Watch(settings)
        return Keys(lambda: paths_of(settings), watch.changed, watch.taken)

    def _files(self) -> tuple[str, ...]:
        """Those that auth reads and only root may."""
        settings = self.settings
        paths = [spec.argument for spec in settings.all_sources if spec.kind == "file"]
        if settings.scripts.virtual_home:
            paths.append(settings.scripts.virtual_domains)
        if settings.encryption.client_ca:
            paths.append(settings.encryption.client_ca)
        return (*paths, settings.ipauthmap)

    def _close_sockets(self) -> None:
        for sock in self.sockets:
            sock.close()

    def _admission(self) -> Admission:
        return Admission(self.mode.min_uid, self.rights.uid)

    # The server.

    def serve(self, control: Channel) -> int:
        """Everything that clients see, under the service's account."""
        settings = self.settings
        confine.descriptors(_DESCRIPTORS_PER_SESSION * settings.limits.connections + 200)
        try:
            encryption = Encryption(settings, again=bool(self.begun))
            quota = quota_of(settings)
            self._step_down()
            if quota is not None and not self.begun:
                quota.check()
        except Fatal as error:
            return _failed(control, str(error), error.status)
        events = self._events()
        script = settings.scripts.throttle
        if script and not os.access(script, os.X_OK):
            return _failed(
                control,
                f"{script} cannot be executed by {self.rights.name} (chmod 755, and its"
                " directories too); -t names a program",
            )
        if settings.one_cpu:
            cpus.keep_to_one(self.monitor)
        # One source may keep a login waiting after the other.
        auth_limit = settings.programs.source_timeout * len(settings.all_sources) + 5
        gate = RemoteGate(
            control,
            self.offer,
            auth_limit,
            throttle_of(settings),
            lambda files: encryption.take(list(files), reader_of(files)),
            quota,
            events.unpacked if events is not None else None,
        )
        service = service_of(settings, gate, encryption.encrypt)
        stop, retire = threading.Event(), threading.Event()

        def obey_stop() -> None:
            stop.set()
            service.begin_stop()
            retire.set()

        threading.Thread(target=gate.obey, args=(obey_stop, retire.set), daemon=True).start()
        if self.connection is not None:
            control.send(Control(Kind.READY).encode())
            self._serve_one(self.connection, service, stop)
        else:
            self._serve_all(
                service, stop, retire, lambda: control.send(Control(Kind.READY).encode())
            )
        if quota is not None:
            quota.close()
        return 0

    def _serve_all(
        self,
        service: Service,
        stop: threading.Event,
        retire: threading.Event,
        ready: Callable[[], None],
    ) -> None:
        listeners = [
            Listener(sock, service, where.mode, where.proxies or ())
            for where, sock in zip(self.settings.listen, self.sockets, strict=True)
        ]
        for listener in listeners:
            listener.start()
        ready()
        retire.wait()
        if not stop.is_set():
            service.retire()
            for listener in listeners:
                # Its successor listens on.
                listener.retire()
            service.drain()
        else:
            for listener in listeners:
                listener.stop()
        if not service.stop():
            log.warning("some sessions did not end in time and are cut off")

    def _serve_one(self, connection: Connection, service: Service, stop: threading.Event) -> None:
        def obey() -> None:
            stop.wait()
            service.stop()

        threading.Thread(target=obey, daemon=True).start()
        # The client is there already, and is to hear what auth offers.
        self.offer.wait(stop)
        sock, where = connection.open(), self.settings.listen[0]
        peer, near = connection.client()
        service.serve_only(sock, peer, where, near=near, greeted=connection.greeted)
        connection.finish(self.settings.limits.write_timeout)

    def _step_down(self) -> None:
        """Become the service's account, with nothing that could ever lead back."""
        import_tables()
        linux.drop_bounding_set()
        become(self.rights)
        linux.hide()
        linux.gain_nothing()
        end_with_monitor(self.monitor)

    # Auth.

    def judge(self, control: Channel) -> int:
        """Judges logins.  What only root may read is read before root is given up."""
        settings = self.settings
        # A channel of each session that logs in, and a connection to whoever is asked about it.
        confine.descriptors(2 * settings.limits.connections + 200)
        files = Files(control, self._files())
        domains = None
        specs = attempted(settings)
        try:
            # Before there is a second thread, and as root.
            helper = attempts.start(specs, lambda: os._exit(1)) if specs else None
            chain = chain_of(settings, 0, files.opener, helper)
            if settings.scripts.virtual_home:
                domains = VirtualDomains(settings.scripts.virtual_domains, files.opener)
        except SourceFileError as error:
            return _failed(control, str(error))
        except OSError as error:
            text = f"cannot read {error.filename}: {error.strerror}; name the file with -v"
            return _failed(control, text)
        self.offer.publish(chain.mechanisms)
        self._step_down()
        files.ask_from_now_on()
        if not os.access(os.__file__, os.R_OK):
            log.warning(
                "%s may not read Python's library (%s), and users may not either: their"
                " configurations cannot import all modules; install tofmipd where all can read it",
                self.rights.name,
                os.path.dirname(os.__file__),
            )
        identity_of = _identities(self._admission(), domains)
        logins = Logins(chain, settings.host_name, identity_of, settings.limits)
        return AuthServer(control, logins, files, self.offer).run()

    # A worker.

    def work(self, identity: Identity, control: Channel) -> int:
        """Deals with the messages of one user, as that user."""
        settings = self.settings
        try:
            account = self._admission().account(identity.account)
        except NoAccount:
            return _NO_USER
        outbox, fault = self._outbox(identity, account.rights)
        confine.confine(account.rights.uid)
        become(account.rights)
        linux.hide()
        end_with_monitor(self.monitor)
        if settings.one_cpu:
            cpus.keep_to_one(account.rights.uid, but=self.monitor)
        os.umask(0o077)
        confine.clean_environment(identity, account.home)
        events = self._events()
        shipping = Shipping(events.packed if events is not None else None)
        shipping.setFormatter(log_module.OneLine("%(message)s"))
        log_module.replace_handler(shipping)
        if fault:
            log.error("no outbox: %s", fault)
        pool = Pool()
        retries = retries_of(
            settings, outbox, shipping.note, lambda: shipping.look_after_outbox(control)
        )
        idle = self.mode.worker_idle
        worker = Worker(
            control,
            identity.login,
            shipping,
            idle_timeout=idle,
            occupied=lambda: retries.occupied(idle),
            # Bare line ends that are mended may double a message.
            size_limit_octets=2 * settings.limits.size + 1024,
        )
        user = User(identity.login, account.home, account.full_name)
        limit = settings.programs.script_timeout
        place = dataclasses.replace(house(settings, pool, retries=retries), note=shipping.note)
        serving = user_of(settings, place, user, loading=lambda: worker.loading(limit))
        retries.transports = lambda _, local_address: serving.transport(local_address)
        if not fault:
            retries.start()
        status = worker.run(serving.submit)
        if self.connection is None:
            retries.stop(self._leave_seconds)
        else:
            # Nobody starts it again when something is due.
            retries.finish(self._leave_seconds)
        pool.close()
        return status

    def _outbox(self, identity: Identity, rights: Rights) -> tuple[str, str]:
        """Its directory, made while this is root yet, and what is wrong with it."""
        try:
            path = make_own(self.settings.outbox, identity, rights.uid, rights.gid)
        except OutboxError as error:
            return os.devnull, str(error)
        return path, ""


def make_places(settings: Settings, rights: Rights) -> None:
    """The directories of outboxes and limits.  Raises Fatal."""
    try:
        make_base(settings.outbox)
    except OutboxError as error:
        raise Fatal(CANT_CREATE, str(error)) from None
    if settings.quotas.given:
        make_private(os.path.dirname(settings.quotas.file), rights)


def _set_log_levels(settings: Settings) -> None:
    log_module.set_levels(debug=settings.debug, log=settings.log, quiet=settings.quiet)


def _failed(control: Channel, text: str, status: int = CONFIG) -> int:
    """Tell the monitor why there can be no service."""
    control.send(Control(Kind.FAILED, status, (text[:300],)).encode())
    return status


def _identities(admission: Admission, domains: VirtualDomains | None) -> Callable[[str], Identity]:
    """Whom a login name stands for: an account of that name, or the owner of its domain."""

    def identity(login: str) -> Identity:
        owner = login if domains is None else domains.owner(login)
        if owner is None:
            raise NoAccount(f"{login!r} is in no virtual domain")
        admission.account(owner)
        return Identity(owner, login)

    return identity


def _reopen_log() -> int | None:
    """Begin a new log file; its descriptor, for the others who write to it."""
    handler = log_module.shared_file()
    if handler is None:
        return None
    try:
        handler.reopen()
    except OSError as error:
        log.error("the log file cannot be opened again: %s", error)
        return None
    return handler.descriptor
