"""Look for inputs that break a promise: `python tests/fuzz/run.py [TARGET ...] [--seconds N]`.

Without a target all of them run, one after the other, guided by coverage (atheris).  What has led
to new places is kept in `corpus/TARGET`, for the next run.  An input that breaks something becomes
a file in `found/`, with another beside it that says how to repeat it: with `--input FILE`, which
needs no atheris.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
TARGETS = (
    "session",
    "message",
    "newlines",
    "paths",
    "sasl",
    "replies",
    "frames",
    "header",
    "proxy",
)
INPUT_LIMIT_OCTETS = 4096
# One input that takes longer is a finding too.
INPUT_LIMIT_SECONDS = 10
MEMORY_LIMIT_MEBIBYTES = 1024
# libFuzzer's status for a finding of any kind is not zero; how it ends when there is none:
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")
_KEPT_LINES = 60


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.input is not None:
        return repeat(options.targets, options.input)
    if options.within:
        return fuzz(options.targets[0], options.seconds)
    names = options.targets or list(TARGETS)
    failed = [name for name in names if not run(name, options.seconds)]
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run.py", description="fuzz targets of tofmipd")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target; 60 if not given")
    parser.add_argument("--input", type=Path, metavar="FILE", help="check this input only")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    return parser


def load(name: str) -> ModuleType:
    """The module of a target.  Raises SystemExit for a name that is none."""
    if name not in TARGETS:
        raise SystemExit(f"run.py: there is no target {name!r}; there are {', '.join(TARGETS)}")
    return importlib.import_module(f"fuzz.{name}")


def repeat(names: list[str], path: Path) -> int:
    """Check one input; a defect escapes as the exception that it is."""
    if len(names) != 1:
        raise SystemExit("run.py: --input takes one target")
    load(names[0]).check(path.read_bytes())
    print(f"{names[0]}: nothing wrong with {path}")
    return 0


def run(name: str, seconds: int) -> bool:
    """Run one target in a process of its own; whether it found nothing."""
    target, found = load(name), HERE / "found"
    corpus = HERE / "corpus" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    before = set(found.iterdir())
    command = [sys.executable, __file__, "--within", "--seconds", str(seconds), name]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert child.stdout is not None
    lines = _last(child.stdout)
    status = child.wait()
    new = sorted(set(found.iterdir()) - before)
    for path in new:
        describe(path, name, lines)
    text = "\n".join(lines)
    done, covered = _DONE.search(text), _COVERED.findall(text)
    if status == 0 and not new and done is not None:
        places = covered[-1][0] if covered else "?"
        print(
            f"{name}: nothing found; {done[1]} runs in {done[2]} s, {places} places covered",
            flush=True,
        )
        return True
    print(text[max(text.find("==="), 0) :], file=sys.stderr)
    shown = ", ".join(str(path) for path in new) or f"status {status}"
    print(f"{name}: {shown}", file=sys.stderr)
    return False


def _last(output: Iterable[str]) -> list[str]:
    lines: list[str] = []
    for line in output:
        lines.append(line.rstrip("\n"))
        del lines[:-_KEPT_LINES]
    return lines


def describe(path: Path, name: str, lines: list[str]) -> None:
    """Beside an input that was found: how to repeat it, what it is, what it did."""
    octets = path.read_bytes()
    shown = path.relative_to(HERE.parent.parent)
    text = [
        f"python tests/fuzz/run.py {name} --input {shown}",
        "",
        f"Once it is mended, keep the input: mv {shown} tests/fuzz/inputs/{name}/WHAT-IT-IS",
        "",
        f"The octets: {octets!r}",
        "",
        *lines,
    ]
    path.with_name(path.name + ".txt").write_text("\n".join(text) + "\n")


def fuzz(name: str, seconds: int) -> int:
    """Run one target in this process until the time is over or something is found."""
    try:
        import atheris  # type: ignore[import-untyped]
    except ImportError:
        raise SystemExit("run.py: atheris is not installed; `make fuzz` does that") from None
    # The readings by the book too: where the program leaves a decision to a pattern or to C, they
    # have branches that tell one input from another.
    with atheris.instrument_imports(include=["tofmipd", "fuzz"]):
        target = load(name)
    corpus, words = HERE / "corpus" / name, HERE / "corpus" / f"{name}.words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.WORDS))
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_LIMIT_OCTETS}",
        f"-timeout={INPUT_LIMIT_SECONDS}",
        f"-rss_limit_mb={MEMORY_LIMIT_MEBIBYTES}",
        f"-dict={words}",
        f"-artifact_prefix={HERE / 'found'}/{name}-",
        str(corpus),
    ]
    kept = HERE / "inputs" / name
    if kept.is_dir():
        arguments.append(str(kept))
    atheris.Setup(arguments, target.check)
    atheris.Fuzz()
    return 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{octet:02x}" for octet in word)


if __name__ == "__main__":
    # The targets are a package beside the helpers of the tests; nothing is imported from here.
    sys.path[0] = str(HERE.parent)
    sys.exit(main(sys.argv[1:]))
