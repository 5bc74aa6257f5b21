"""CPU time and memory of a contender, however many processes it has."""

import contextlib
import os
import threading
import time
from pathlib import Path

RSS_INTERVAL = 0.05  # seconds
PAGE_OCTETS = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class CgroupMeter:
    """A control group for one contender: version 1 (cpuacct) or version 2.

    The kernel's counter includes processes that have exited, whoever reaped
    them. Raises OSError where no such group can be made.
    """

    def __init__(self, name: str) -> None:
        self.root_pid = 0
        self._directory = self._parent() / f"smtpbench-{os.getpid()}-{name}"
        self._directory.mkdir()
        self._version_1 = (self._directory / "cpuacct.usage").exists()

    @staticmethod
    def _parent() -> Path:
        """Our own group in the first hierarchy that counts CPU time."""
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                own[controller] = path
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for _, mount_point, kind, options, *_ in mounts:
            if kind == "cgroup" and "cpuacct" in options.split(",") and "cpuacct" in own:
                return Path(mount_point + own["cpuacct"])
        for _, mount_point, kind, *_ in mounts:
            if kind == "cgroup2" and "" in own:
                return Path(mount_point + own[""])
        raise FileNotFoundError("no control group with CPU accounting")

    def enter(self) -> None:
        """Move the calling process into the group; for a child before exec."""
        (self._directory / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> list[int]:
        """The processes that are alive; none once the group is closed."""
        try:
            text = (self._directory / "cgroup.procs").read_text()
        except FileNotFoundError:
            return []
        return [int(pid) for pid in text.split()]

    def cpu_seconds(self) -> float:
        """User and system time since the group was made."""
        if self._version_1:
            return int((self._directory / "cpuacct.usage").read_text()) / 1e9
        text = (self._directory / "cpu.stat").read_text()
        return int(text.split()[1]) / 1e6  # usage_usec comes first

    def close(self) -> None:
        """Remove the group, waiting up to 5 seconds for it to become empty."""
        for _ in range(50):
            with contextlib.suppress(OSError):
                self._directory.rmdir()
            if not self._directory.exists():
                return
            time.sleep(0.1)


class TreeMeter:
    """Sums /proc over the process ``root_pid`` and its descendants.

    Exited children count once a parent in the tree has reaped them; those
    of a parent that ignores SIGCHLD are lost.
    """

    def __init__(self) -> None:
        self.root_pid = 0

    def enter(self) -> None:
        """Nothing: a child belongs to the tree by its parent."""

    @staticmethod
    def _stat_fields(pid: int) -> list[str]:
        """The fields after the command name, which may hold spaces itself."""
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

    def pids(self) -> list[int]:
        """The processes that are alive, the root first."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    parent = int(self._stat_fields(int(entry))[1])
                    children.setdefault(parent, []).append(int(entry))
        tree = [self.root_pid] if os.path.exists(f"/proc/{self.root_pid}") else []
        for pid in tree:  # grows while it is walked
            tree.extend(children.get(pid, ()))
        return tree

    def cpu_seconds(self) -> float:
        """User and system time of the tree, reaped children included."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                ticks += sum(int(number) for number in self._stat_fields(pid)[11:15])
        return ticks / TICKS_PER_SECOND

    def close(self) -> None:
        """Nothing to give back."""


Meter = CgroupMeter | TreeMeter


def make_meter(name: str) -> Meter:
    """The exact meter where the system allows it, else the one that reads /proc."""
    try:
        return CgroupMeter(name)
    except OSError:
        return TreeMeter()


def accounting_name() -> str:
    """Which kind of meter this run uses, for the head of a report."""
    meter = make_meter("probe")
    meter.close()
    return "control groups" if isinstance(meter, CgroupMeter) else "process trees"


def memory_mib(meter: Meter, field: str) -> float:
    """Sum of a field of smaps_rollup: "Rss" or "Pss"."""
    total_kib = 0
    for pid in meter.pids():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    total_kib += int(line.split()[1])
    return total_kib / 1024


class RssSampler(threading.Thread):
    """While entered, keeps the largest sum of resident sets in ``peak_mib``."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(name="rss-sampler", daemon=True)
        self.peak_mib = 0.0
        self._meter = meter
        self._finished = threading.Event()

    def __enter__(self) -> "RssSampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self.join()

    def run(self) -> None:
        """Sample until the block is left, at least once."""
        while True:
            pages = 0
            for pid in self._meter.pids():
                with contextlib.suppress(OSError, IndexError):
                    pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.peak_mib = max(self.peak_mib, pages * PAGE_OCTETS / 2**20)
            if self._finished.wait(RSS_INTERVAL):
                return
