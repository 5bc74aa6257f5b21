"""What the preparation of a contender is given, and what it returns."""

from dataclasses import dataclass, field
from pathlib import Path

from programs import Programs

HOST = "127.0.0.1"
USER, PASSWORD = "tofbench", "s3cret-pass"
# Those of a workload with many users are called USER0, USER1 ...
MANY_USERS = 10
ALL_USERS = [USER, *(f"{USER}{number}" for number in range(MANY_USERS))]


@dataclass(frozen=True)
class Place:
    """Where a contender runs: its directory, its ports, the programs found."""

    directory: Path
    port: int
    sink_port: int
    programs: Programs

    def write(self, name: str, text: str, mode: int = 0o644) -> str:
        """Write a file below the directory; return its path."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return str(path)


@dataclass(frozen=True)
class Launch:
    """A command line, and what is added to the environment for it."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
