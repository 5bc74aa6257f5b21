"""The monitor of global mode: one thread, root's rights, and no more than frames to read.

It takes nothing of a client's: no message and no password ever passes it.  It starts the server,
auth and the workers, gives a session that has proved an identity a channel to that identity's
worker, and replaces what dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections import deque

from tofmipd.errors import SOFTWARE, Fatal
from tofmipd.privsep import children, frames
from tofmipd.privsep.channel import Channel, Gone
from tofmipd.privsep.children import Child, Deaf
from tofmipd.privsep.crew import Crew
from tofmipd.privsep.frames import BadFrame, Control, Kind, Refusal
from tofmipd.privsep.identity import Identity
from tofmipd.privsep.outboxes import Chores
from tofmipd.privsep.plan import Change, Plan, Post
from tofmipd.privsep.workers import Worker, Workers
from tofmipd.smtp.reply import printable

log = logging.getLogger(__name__)

_START_LIMIT_SECONDS = 30
# Who waits for a place among the workers gets an answer after this.
_ROOM_LIMIT_SECONDS = 10
_OFFENCES_LIMIT = 20
_FRAMES_AT_ONCE = 64
# All that auth can have queued: a session may ask for its worker only after what auth said of it.
_FRAMES_OF_AUTH = 4096
_WORKER_FRAMES_LIMIT = 3
# Log lines of a worker: so many at once, and so many a second.
_LINES_LIMIT, _LINES_A_SECOND = 2000, 100
_LINE_LENGTH = 1000
_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
# How long a worker that has been used keeps its place, and one that leaves may take for it before
# another one has to go as well.
_TURN_SECONDS = 0.2
_LEAVING_SECONDS = 1
# How many of one identity may be leaving.
_LEAVING_LIMIT = 2
# Of crews that still have sessions of the time before a change.
_RETIRED_LIMIT = 5


class Monitor:
    """Raises nothing once it runs; ``signals`` is a descriptor that gives signal numbers."""

    def __init__(self, plan: Plan, signals: int) -> None:
        self._signals = signals
        os.set_blocking(signals, False)
        self._poll = select.poll()
        self._poll.register(signals, select.POLLIN)
        # The one that serves, one that is to, and those that still have sessions.
        self._crew = Crew(plan)
        self._successor: Crew | None = None
        self._retired: list[Crew] = []
        self._change: Change | None = None
        self._ready_until = 0.0
        self._workers = Workers()
        self._children: dict[int, Child] = {}
        self._queue: deque[tuple[float, Crew, int]] = deque()
        self._room_at = 0.0
        self._stop_at: float | None = None
        self._started = False
        self._status = 0
        self._failure: Fatal | None = None
        self._handlers = {
            Kind.READY: self._ready,
            Kind.FAILED: self._failed,
            Kind.GRANT: self._grant,
            Kind.END: self._end,
            Kind.USED: self._used,
            Kind.STUCK: self._stuck,
            Kind.PROVED: self._proved,
            Kind.OPEN: self._open,
            Kind.IDLE: self._idle,
            Kind.LINE: self._line,
        }
        self._chores = Chores(plan.outboxes)

    def start(self) -> None:
        """Have the server and auth running.  Raises Fatal with what one of them could not do."""
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        self._fill(self._crew, self._crew.auth)
        self._fill(self._crew, self._crew.server)
        while not self._crew.complete and self._stop_at is None:
            self._turn()
            if self._failure is None and time.monotonic() > deadline:
                self._failure = Fatal(SOFTWARE, "the server or auth did not start in time")
            if self._failure is not None:
                self._kill_all()
                for pid in self._children:
                    os.waitpid(pid, 0)
                raise self._failure
        self._started = True
        self._chores.begin()

    @property
    def stopping(self) -> bool:
        return self._stop_at is not None

    @property
    def _plan(self) -> Plan:
        return self._crew.plan

    def _crews(self) -> list[Crew]:
        successor = [self._successor] if self._successor is not None else []
        return [self._crew, *successor, *self._retired]

    def _crew_of(self, child: Child) -> Crew | None:
        """None for a worker's."""
        return next((crew for crew in self._crews() if crew.has(child)), None)

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status."""
        while self._stop_at is None or self._children:
            self._turn()
        return self._status

    def _turn(self) -> None:
        """Wait for something to happen, and deal with it."""
        try:
            events = self._poll.poll(max(self._patience(), 0) * 1000)
        except InterruptedError:  # pragma: no cover - only where poll is not restarted
            events = []
        by_descriptor = {child.control.fileno(): child for child in self._children.values()}
        ready = {descriptor for descriptor, _ in events}
        for crew in self._crews():
            if crew.auth.child is not None:
                self._read(crew.auth.child)
        for descriptor, event in events:
            child = by_descriptor.get(descriptor)
            if child is None or child.pid not in self._children:
                continue
            if event & select.POLLOUT:
                self._send_waiting(child)
            if event & ~select.POLLOUT:
                self._read(child)
        if self._signals in ready:
            self._obey_signals()
        self._keep_time()

    def _patience(self) -> float:
        """Seconds until the next thing is due, a minute at most."""
        now = time.monotonic()
        times = [now + 60]
        if self._stop_at is None:
            posts = [post for crew in self._crews() for post in crew.posts]
            times += [post.due for post in posts if post.due is not None]
        times += [child.kill_at for child in self._children.values() if child.kill_at is not None]
        times += [self._ready_until] if self._successor is not None else []
        times += [self._queue[0][0], self._room_at] if self._queue else []
        times += [self._stop_at] if self._stop_at is not None else []
        times += [self._plan.keys.due] if self._plan.keys is not None else []
        beat = self._plan.supervisor.beat_at
        times += [beat] if beat is not None else []
        chore = self._chores.next() if self._stop_at is None else None
        times += [chore] if chore is not None else []
        return min(times) - now

    def _keep_time(self) -> None:
        now = time.monotonic()
        self._plan.supervisor.beat()
        for crew in self._crews():
            for post in crew.posts:
                if post.due is not None and post.due <= now and self._stop_at is None:
                    self._fill(crew, post)
        if self._successor is not None and self._ready_until <= now:
            self._discard_successor(stuck=True)
            self._refuse_change("the new server or auth did not start in time")
        for child in list(self._children.values()):
            if child.kill_at is not None and child.kill_at <= now:
                log.warning("%s (pid %d) does not end and is killed", child.name, child.pid)
                child.kill_at = None
                children.kill(child, group=isinstance(child, Worker))
        while self._queue and self._queue[0][0] <= now:
            _, crew, session = self._queue.popleft()
            log.warning("all %d workers are busy, a session is turned away", self._workers.count)
            self._refuse(crew, session, Refusal.NO_ROOM)
        if self._queue and self._room_at <= now:
            self._make_room()
        if self._stop_at is not None and self._stop_at <= now:
            self._kill_all()
        if self._plan.keys is not None and self._plan.keys.look(now):
            self._send_keys()
        if self._stop_at is None:
            self._see_to_chores(now)

    # Signals.

    def _obey_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            numbers = os.read(self._signals, 1000)
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._obey_stop(number)
            if signal.SIGHUP in numbers:
                # Once for all that have come so far.
                self._obey_reload()
        self._reap()

    def _obey_stop(self, number: int) -> None:
        if self._stop_at is None:
            log.info("stopping on %s", signal.Signals(number).name)
            self._begin_stop()

    def _begin_stop(self) -> None:
        self._plan.supervisor.stopping()
        self._stop_at = time.monotonic() + self._plan.stop_timeout
        if self._successor is not None:
            self._discard_successor()
        self._plan.close_listeners()
        for crew in self._crews():
            crew.stand_down()
            if crew.server.child is not None:
                self._send(crew.server.child, Control(Kind.STOP))
        self._end_others()

    def _end_others(self) -> None:
        """Once all servers are gone nobody needs the others any more."""
        if any(crew.server.child is not None for crew in self._crews()):
            return
        for worker in self._workers.all():
            self._dismiss(worker)
        for crew in self._crews():
            if crew.auth.child is not None:
                self._send(crew.auth.child, Control(Kind.STOP))

    # Another set of options.

    def _obey_reload(self) -> None:
        """Read all anew that may have changed.  Where that is wrong all stays as it is."""
        if self.stopping or not self._started:
            return
        self._plan.supervisor.reloading()
        self._reopen_log()
        if self._successor is not None:
            # What is read now counts, not what was to come into force.
            self._discard_successor()
        try:
            self._change = self._plan.reload()
        except Fatal as error:
            self._refuse_change(str(error))
            return
        except Exception:
            log.exception("internal error")
            self._refuse_change("internal error")
            return
        if self._change is None:
            self._send_keys()
            self._plan.supervisor.ready("serving")
            return
        self._successor = Crew(self._change.plan)
        self._ready_until = time.monotonic() + _START_LIMIT_SECONDS
        # Its server, which accepts at once, comes when this one is ready.
        self._fill(self._successor, self._successor.auth)

    def _change_over(self, successor: Crew) -> None:
        """It serves from now on; sessions that have begun go on with what they began with."""
        assert self._change is not None
        old, self._crew, self._successor = self._crew, successor, None
        old.retired = True
        self._retired.append(old)
        if old.server.child is not None:
            self._send(old.server.child, Control(Kind.RETIRE))
        old.server.due = None
        for crew in self._retired[:-_RETIRED_LIMIT]:
            if crew.server.child is not None:
                self._send(crew.server.child, Control(Kind.STOP))
        self._dissolve(old)
        for worker in self._workers.serving():
            # Not of its own will: what it has begun keeps nobody from another one.
            worker.replaced = True
            self._dismiss(worker)
        if self._chores.base != self._plan.outboxes:
            self._chores = Chores(self._plan.outboxes)
            self._chores.begin()
        self._change.applied()
        self._change = None
        self._plan.supervisor.ready("serving")

    def _give_up_change(self, why: str) -> None:
        self._discard_successor()
        self._refuse_change(why)

    def _refuse_change(self, why: str) -> None:
        for line in why.splitlines():
            log.error("nothing has changed: %s", line)
        self._plan.supervisor.ready("serving; the last reload was refused")

    def _discard_successor(self, *, stuck: bool = False) -> None:
        """It is not to serve.  Its server may have clients already, which it serves to the end
        unless it is ``stuck``."""
        successor, self._successor = self._successor, None
        assert successor is not None
        assert self._change is not None
        successor.retired = successor.discarded = True
        successor.server.due = None
        self._retired.append(successor)
        server = successor.server.child
        if server is None or stuck:
            for child in successor.children():
                self._lose(child)
        else:
            self._send(server, Control(Kind.RETIRE))
        self._dissolve(successor)
        self._change.given_up()
        self._change = None

    def _dissolve(self, crew: Crew) -> None:
        """Its server is gone, or was never there: auth goes too, and then nothing is left."""
        if crew.server.child is None:
            crew.stand_down()
            if crew.auth.child is not None:
                self._send(crew.auth.child, Control(Kind.STOP))
        if crew.gone:
            self._retired.remove(crew)

    def _reopen_log(self) -> None:
        descriptor = self._plan.reopen()
        if descriptor is not None:
            for crew in self._crews():
                for child in crew.children():
                    self._send(child, Control(Kind.LOG), (descriptor,))
            log.info("log file opened again")

    def _send_keys(self) -> None:
        """Give the server its certificates and keys anew; one that starts now reads them itself."""
        server = self._crew.server.child
        if self._plan.keys is not None and server is not None and server.ready:
            self._plan.keys.send(lambda frame, files: self._send(server, frame, files))

    def _kill_all(self) -> None:
        self._stop_at = time.monotonic() + _START_LIMIT_SECONDS
        for child in self._children.values():
            if self._started:
                log.warning("%s (pid %d) is killed", child.name, child.pid)
            children.kill(child, group=isinstance(child, Worker))

    # Birth and death.

    def _fill(self, crew: Crew, post: Post) -> None:
        """Start a server or auth, and connect the two."""
        post.due = None
        try:
            child = children.fork(post.birth, self._channels())
        except OSError as error:
            log.error("%s cannot be started: %s", post.birth.name, error.strerror)
            post.vacated()
            return
        post.child = child
        post.begun = time.monotonic()
        self._adopt(child)
        server, auth = crew.server.child, crew.auth.child
        if server is not None and auth is not None:
            try:
                ours, theirs = Channel.pair()
            except OSError as error:
                log.error("server and auth cannot be connected: %s", error.strerror)
                self._lose(child)
                return
            self._send(auth, Control(Kind.CONNECT), (ours.fileno(),))
            self._send(server, Control(Kind.CONNECT), (theirs.fileno(),))
            ours.close()
            theirs.close()

    def _channels(self) -> list[Channel]:
        return [child.control for child in self._children.values()]

    def _adopt(self, child: Child) -> None:
        self._children[child.pid] = child
        self._poll.register(child.control, select.POLLIN)

    def _reap(self) -> None:
        """See who has died.  A dead worker keeps its number until its group is killed too."""
        with contextlib.suppress(ChildProcessError):
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while (dead := os.waitid(os.P_ALL, 0, options)) is not None:
                child = self._children.get(dead.si_pid)
                if child is not None:
                    # What it said last counts; and as long as it is not reaped, the number of
                    # its group is nobody else's.
                    self._read(child)
                    children.kill(child, group=isinstance(child, Worker))
                    if isinstance(child, Worker) and dead.si_code != os.CLD_EXITED:
                        children.kill_session(child.pid)
                _, status = os.waitpid(dead.si_pid, 0)
                if child is not None:
                    self._bury(child, status)

    def _bury(self, child: Child, status: int) -> None:
        del self._children[child.pid]
        self._poll.unregister(child.control)
        child.close()
        crew = self._crew_of(child)
        expected = status == 0 or (crew is not None and crew.discarded)
        level = logging.INFO if expected else logging.WARNING
        if not self._started and self._failure is not None:
            level = logging.DEBUG
        log.log(level, "%s (pid %d) %s", child.name, child.pid, children.how_it_ended(status))
        if isinstance(child, Worker):
            self._workers.remove(child)
            self._chores.ended(child.identity, died=status != 0)
            self._serve_queue()
            return
        assert crew is not None
        if self._plan.once and child is crew.server.child and not self.stopping:
            self._status = 0 if status == 0 else SOFTWARE
            self._begin_stop()
        if not self._started and self._failure is None and not self.stopping:
            how = children.how_it_ended(status)
            self._failure = Fatal(SOFTWARE, f"{child.name} cannot start: {how}")
        if child is crew.auth.child:
            crew.auth.vacated()
        else:
            crew.server_lost()
            self._queue = deque(waiting for waiting in self._queue if waiting[1] is not crew)
        if self._stop_at is not None:
            crew.stand_down()
            self._end_others()
        elif crew is self._successor:
            self._give_up_change(f"the new {child.name}: {children.how_it_ended(status)}")
        elif crew.retired:
            self._dissolve(crew)

    # Frames.

    def _read(self, child: Child) -> None:
        """Obey what a child says.  One that breaks the rules is killed, which replaces it."""
        if child.distrusted:
            return
        allowed, most = frames.FROM_WORKER, _FRAMES_AT_ONCE
        crew = self._crew_of(child)
        if crew is not None and child is crew.server.child:
            allowed = frames.FROM_SERVER
        elif crew is not None:
            allowed, most = frames.FROM_AUTH, _FRAMES_OF_AUTH
        try:
            for _ in range(most):
                octets = child.control.receive_strictly(frames.CONTROL_LIMIT_OCTETS)
                frame = frames.decode_control(octets, allowed)
                if frame.kind is Kind.GRANT and crew is not None and crew.auth.child is not None:
                    # Whom the session has proved to be was said before it was told so itself.
                    self._read(crew.auth.child)
                self._handlers[frame.kind](child, frame)
        except BlockingIOError:
            pass
        except Gone:
            self._lose(child)
        except BadFrame as error:
            log.error("%s (pid %d) breaks the protocol: %s", child.name, child.pid, error)
            child.distrusted = True
            self._lose(child)

    def _lose(self, child: Child) -> None:
        """Kill a child that is of no use any more; nobody is sent to it, though it is not buried
        yet."""
        if isinstance(child, Worker):
            self._workers.retire(child)
        children.kill(child, group=isinstance(child, Worker))

    def _send(self, child: Child, frame: Control, descriptors: tuple[int, ...] = ()) -> None:
        """Never waits.  A child that is gone, or does not listen, is lost."""
        try:
            if child.send(frame.encode(), descriptors):
                self._poll.modify(child.control, select.POLLIN | select.POLLOUT)
        except Deaf:
            log.error("%s (pid %d) does not listen and is killed", child.name, child.pid)
            self._lose(child)
        except (Gone, OSError):
            self._lose(child)

    def _send_waiting(self, child: Child) -> None:
        try:
            if not child.send_waiting():
                self._poll.modify(child.control, select.POLLIN)
        except (Gone, OSError):
            self._lose(child)

    def _ready(self, child: Child, frame: Control) -> None:
        child.ready = True
        if self._started:
            log.debug("%s (pid %d) is ready", child.name, child.pid)
        successor = self._successor
        if successor is not None and successor.has(child):
            if successor.complete:
                self._change_over(successor)
            elif successor.server.child is None:
                self._fill(successor, successor.server)

    def _failed(self, child: Child, frame: Control) -> None:
        """``number`` is the exit status that the failure deserves.

        At the start of all it ends the program with one line; later it is for the log.
        """
        text = printable(frame.texts[0])
        if self._successor is not None and self._successor.has(child):
            self._give_up_change(text)
            return
        if self._started:
            log.error("%s (pid %d) cannot start: %s", child.name, child.pid, text)
        self._failure = Fatal(frame.number & 0xFF, frame.texts[0])

    def _proved(self, child: Child, frame: Control) -> None:
        crew = self._crew_of(child)
        if crew is not None:
            crew.proved(frame.number, Identity(*frame.texts))

    def _end(self, child: Child, frame: Control) -> None:
        crew = self._crew_of(child)
        if crew is not None:
            crew.sessions.pop(frame.number, None)

    def _worker_for(self, child: Child, frame: Control) -> Worker | None:
        """That of the identity which a session of this server has proved."""
        crew = self._crew_of(child)
        identity = crew.sessions.get(frame.number) if crew is not None else None
        return self._workers.find(identity) if identity is not None else None

    def _used(self, child: Child, frame: Control) -> None:
        """An identity's worker has had another message."""
        worker = self._worker_for(child, frame)
        if worker is not None:
            self._workers.use(worker)

    def _stuck(self, child: Child, frame: Control) -> None:
        """The server waits in vain for an identity's worker."""
        worker = self._worker_for(child, frame)
        if worker is not None:
            log.warning("%s (pid %d) does not answer and is killed", worker.name, worker.pid)
            self._lose(worker)

    def _open(self, child: Child, frame: Control) -> None:
        """Open a file for auth, which has not the rights: only those that were configured."""
        crew = self._crew_of(child)
        files = crew.plan.files if crew is not None else ()
        if frame.number >= len(files):
            raise BadFrame(f"there is no file {frame.number}")
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(files[frame.number], flags)
        except OSError as error:
            number = frame.number | ((error.errno or 0) << 16)
            self._send(child, Control(Kind.FILE, number))
            return
        self._send(child, Control(Kind.FILE, frame.number), (descriptor,))
        os.close(descriptor)

    # Workers.

    def _grant(self, child: Child, frame: Control) -> None:
        """A session wants a channel to the worker of whom it has proved to be."""
        session, crew = frame.number, self._crew_of(child)
        if crew is None:
            return
        identity = crew.sessions.get(session)
        if identity is None:
            crew.offences += 1
            log.warning(
                "the server asks for a worker for session %x, which has proved nothing", session
            )
            self._refuse(crew, session, Refusal.NOT_PROVED)
            if crew.offences > _OFFENCES_LIMIT:
                raise BadFrame("too many sessions that have proved nothing")
            return
        worker = self._workers.find(identity)
        if worker is not None:
            # It may have died, or asked to leave.
            self._read(worker)
            worker = self._workers.find(identity)
        if worker is None and self._workers.leaving_of(identity) >= _LEAVING_LIMIT:
            log.warning("workers for %r do not leave", identity.login)
            self._refuse(crew, session, Refusal.NO_ROOM)
            return
        if worker is None and self._workers.count >= self._plan.max_workers:
            if len(self._queue) > self._plan.sessions:
                self._refuse(crew, session, Refusal.NO_ROOM)
                return
            self._queue.append((time.monotonic() + _ROOM_LIMIT_SECONDS, crew, session))
            self._make_room()
            return
        self._introduce(crew, session, worker or self._start_worker(identity))

    def _make_room(self) -> None:
        """Let as many workers go as there are identities that wait for a place.

        One that has been used just now keeps its place for a while, or those who share too few
        places would only chase each other; one that does not leave at once does not count.
        """
        now = time.monotonic()
        asked_lately = now - _LEAVING_SECONDS + self._plan.leave_timeout
        leaving = [worker.kill_at for worker in self._workers.all() if worker.kill_at is not None]
        lately = sum(kill_at > asked_lately for kill_at in leaving)
        waiting = {crew.sessions.get(session) for _, crew, session in self._queue}
        oldest = self._workers.least_recently_used()
        self._room_at = now + _TURN_SECONDS
        if oldest is not None and lately < len(waiting) and oldest.used <= now - _TURN_SECONDS:
            self._dismiss(oldest)

    def _introduce(self, crew: Crew, session: int, worker: Worker | None) -> None:
        """Give the server and the worker the two ends of a new channel."""
        if worker is None or crew.server.child is None:
            self._refuse(crew, session, Refusal.NO_ROOM)
            return
        try:
            ours, theirs = Channel.pair()
        except OSError as error:
            log.error("no channel for a session: %s", error.strerror)
            self._refuse(crew, session, Refusal.NO_ROOM)
            return
        self._workers.use(worker)
        self._send(worker, Control(Kind.SERVE), (theirs.fileno(),))
        self._send(crew.server.child, Control(Kind.GRANTED, session), (ours.fileno(),))
        ours.close()
        theirs.close()

    def _refuse(self, crew: Crew, session: int, why: Refusal) -> None:
        if crew.server.child is not None:
            self._send(crew.server.child, Control(Kind.REFUSED, session, (str(int(why)),)))

    def _start_worker(self, identity: Identity) -> Worker | None:
        birth = self._plan.worker(identity)
        try:
            child = children.fork(birth, self._channels())
        except OSError as error:
            log.error("%s cannot be started: %s", birth.name, error.strerror)
            return None
        worker = Worker(child.name, child.pid, child.control, identity=identity)
        self._adopt(worker)
        self._workers.add(worker)
        log.info("%s started, pid %d", worker.name, worker.pid)
        return worker

    def _dismiss(self, worker: Worker) -> None:
        """The worker finishes what it has and ends; who comes later gets another one."""
        self._workers.retire(worker)
        if worker.kill_at is None:
            worker.kill_at = time.monotonic() + self._plan.leave_timeout
            self._send(worker, Control(Kind.LEAVE))

    def _idle(self, child: Child, frame: Control) -> None:
        """A worker has had nothing to do for a while."""
        if isinstance(child, Worker):
            child.frames += 1
            if child.frames > _WORKER_FRAMES_LIMIT:
                raise BadFrame("talks too much")
            self._dismiss(child)

    def _line(self, child: Child, frame: Control) -> None:
        """A line for the log about what a worker does when no session of his waits for it.

        It is the user's word: it cannot be taken for a line of anybody else.
        """
        if isinstance(child, Worker):
            child.lines += 1
            if child.lines > _LINES_LIMIT + _LINES_A_SECOND * (time.monotonic() - child.born):
                raise BadFrame("talks too much")
            level = frame.number if frame.number in _LEVELS else logging.INFO
            claim = self._plan.unpack(frame.texts[0]) if self._plan.unpack is not None else None
            text = printable(frame.texts[0] if claim is None else claim.text, _LINE_LENGTH)
            shown = text if claim is None else claim.shown_as(text)
            log.log(level, "outbox of %r: %s", child.identity.login, shown)

    def _see_to_chores(self, now: float) -> None:
        """Start workers for outboxes in which something is due; sessions go first."""
        self._chores.look(now)
        for identity in self._chores.take(now):
            if self._workers.find(identity) is not None:
                continue
            if self._workers.count >= self._plan.max_workers or self._queue:
                self._chores.put_off(identity)
            else:
                self._start_worker(identity)

    def _serve_queue(self) -> None:
        """There is room: the sessions that wait, in the order of their coming."""
        waiting, self._queue = self._queue, deque()
        while waiting:
            due, crew, session = waiting.popleft()
            identity = crew.sessions.get(session)
            if identity is None:
                continue
            worker = self._workers.find(identity)
            if worker is None and self._workers.count >= self._plan.max_workers:
                self._queue.append((due, crew, session))
                continue
            self._introduce(crew, session, worker or self._start_worker(identity))
