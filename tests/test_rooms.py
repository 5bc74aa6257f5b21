"""Who may import whom: the table of rooms in docs/architecture.md, held against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tofmipd"
ALWAYS = {"__init__"}


def room_table() -> dict[str, set[str]]:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", text, re.MULTILINE)
    return {room: set(re.findall(r"`(\w+)`", allowed)) for room, allowed in rows}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("tofmipd")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tofmipd"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module or "")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path) for path in FILES}
GRAPH = {module_name(path): imports_of(path, MODULES) for path in FILES}


def test_the_table_names_every_room_and_no_other():
    rooms = {room_of(module) for module in MODULES} - ALWAYS - {"__main__"}
    assert set(room_table()) == rooms


@pytest.mark.parametrize("module", sorted(MODULES - {"tofmipd", "tofmipd.__main__"}))
def test_a_module_imports_only_what_its_room_may(module):
    allowed = room_table()[room_of(module)] | {room_of(module)} | ALWAYS
    wrong = {other for other in GRAPH[module] if room_of(other) not in allowed}
    assert not wrong, f"{module} imports {wrong}; docs/architecture.md allows {sorted(allowed)}"


def test_no_imports_go_in_a_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(GRAPH.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


# Modules that are imported only where a listener has TLS, and what pyOpenSSL consists of.
WITH_OPENSSL = {*PACKAGE.glob("tls/*.py"), PACKAGE / "auth/certificates.py"} - {
    PACKAGE / "tls/files.py"
}
# Modules that are imported only where a source of that kind is asked for; argon2 only for a hash.
WITH = {
    "auth/ldap.py": ("ldap3", "pyasn1"),
    "auth/pam.py": ("pam",),
    "auth/hashes.py": ("argon2",),
    "commands/selfsigned.py": ("cryptography",),
}


def test_the_core_imports_nothing_but_the_standard_library():
    import sys

    for path in FILES:
        more = {"tofmipd", *(("OpenSSL", "cryptography") if path in WITH_OPENSSL else ())}
        more.update(WITH.get(str(path.relative_to(PACKAGE)), ()))
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or top in more, f"{path}: {name}"


PURE = ["smtp/*.py", "tmda/*.py", "proxyprotocol.py"]
PURE += [f"handoff/{name}.py" for name in ("replies", "bounce", "foreign", "xclient")]
PURE += [f"auth/{name}.py" for name in ("credentials", "scram", "saslprep", "remote")]
READERS = {"userfiles.py", "files.py", "library.py", "database.py", "dbmfiles.py"}
IMPURE = {"socket", "select", "threading", "subprocess", "time", "os", "logging", "ssl", "random"}


@pytest.mark.parametrize(
    "path", [p for pattern in PURE for p in sorted(PACKAGE.glob(pattern)) if p.name not in READERS]
)
def test_a_pure_module_has_no_clock_socket_thread_or_log(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not IMPURE & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in IMPURE
