"""What may stand in the place of a password in the password file (feature row BX-23).

======================== ==================================================================
form                     what it is
======================== ==================================================================
``text``                 the password itself
``{PLAIN}text``          the same, for one that looks like something below
``{SCRYPT}$scrypt$...``  scrypt (RFC 7914) as ``$scrypt$ln=LOG2N,r=R,p=P$SALT$HASH``, base64
                         without padding; what ``tofmipd user`` writes
``{SCRAM-SHA-256}...``   verifier of SCRAM (RFC 5802 section 3), also ``{SCRAM-SHA-1}``:
                         ``ITERATIONS,SALT,STOREDKEY,SERVERKEY``, base64
``{CRYPT}$6$...``        what the system's crypt(3) knows: ``$6$``, ``$y$``, ``$2b$`` ...
``{ARGON2ID}$argon2id$`` with the package argon2-cffi
======================== ==================================================================

``$6$...`` and the like are taken for what they look like also without the braces.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import functools
import hashlib
import hmac
import re
import threading
from dataclasses import dataclass, field
from typing import Protocol

from tofmipd.auth import scram
from tofmipd.auth.saslprep import prepared_password

CLEAR_ONLY = frozenset({"PLAIN", "LOGIN"})
_SCHEME = re.compile(rb"\{([A-Z][A-Z0-9-]*)\}")
_MODULAR = re.compile(rb"\$(?:scrypt|argon2id|y|gy|7|6|5|2[aby]|sha1|md5|1)\$[!-~]+")
_SCRYPT = re.compile(
    rb"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,3}),p=([0-9]{1,3})\$([\w+/]+)\$([\w+/]+)", re.ASCII
)
_SCRAM = re.compile(rb"([0-9]{1,8}),([\w+/=]+),([\w+/=]+),([\w+/=]+)", re.ASCII)

# 16 MiB and some 50 ms a time: each login of each session pays it (OWASP's table has it in its
# row for little memory with p=5; guessing is slowed by the limiter as well).
_LOG2_N, _R, _P = 14, 8, 1
_LIMIT_OCTETS = 256 << 20
SCRAM_ITERATIONS = 50_000


class Secret(Protocol):
    """One user's password in whatever form.  Safe for threads.

    ``mechanisms`` are those that it can serve; ``costly`` says that a check takes milliseconds.
    """

    @property
    def mechanisms(self) -> frozenset[str]: ...

    @property
    def costly(self) -> bool: ...

    def matches(self, password: bytes) -> bool:
        """Whether it is this password.  Takes equally long for a right and a wrong one."""
        ...


@dataclass(frozen=True, slots=True)
class Clear:
    """The password itself, prepared (RFC 4013) and as it is written: it serves every mechanism."""

    password: bytes = field(repr=False)
    written: bytes = field(repr=False)
    mechanisms: frozenset[str] = frozenset({*CLEAR_ONLY, "CRAM-MD5", *scram.HASHES})
    costly: bool = False

    def matches(self, password: bytes) -> bool:
        given, own = (hashlib.sha256(one).digest() for one in (password, self.password))
        return hmac.compare_digest(given, own)


@dataclass(frozen=True, slots=True)
class Scram:
    """A verifier; it serves its own mechanism and those that show the password."""

    verifier: scram.Verifier
    mechanisms: frozenset[str]
    costly: bool = True

    def matches(self, password: bytes) -> bool:
        return self.verifier.matches(password)


@dataclass(frozen=True, slots=True)
class Scrypt:
    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes = field(repr=False)
    mechanisms: frozenset[str] = CLEAR_ONLY
    costly: bool = True

    def matches(self, password: bytes) -> bool:
        made = _scrypt(password, self.salt, self.log2_n, self.r, self.p, len(self.digest))
        return hmac.compare_digest(made, self.digest)


@dataclass(frozen=True, slots=True)
class Crypt:
    setting: bytes = field(repr=False)
    mechanisms: frozenset[str] = CLEAR_ONLY
    costly: bool = True

    def matches(self, password: bytes) -> bool:
        made = system_crypt(password, self.setting)
        return made is not None and hmac.compare_digest(made, self.setting)


@dataclass(frozen=True, slots=True)
class Argon2:
    text: bytes = field(repr=False)
    mechanisms: frozenset[str] = CLEAR_ONLY
    costly: bool = True

    def matches(self, password: bytes) -> bool:
        from argon2 import exceptions, low_level

        try:
            return bool(low_level.verify_secret(self.text, password, low_level.Type.ID))
        except (exceptions.VerificationError, exceptions.InvalidHash):
            return False


def parse_secret(text: bytes) -> Secret:
    """What stands behind the colon of a line.  Raises ValueError that says in short what is
    wrong; nothing of the text is in it but the scheme."""
    match = _SCHEME.match(text)
    if match is None:
        return _modular(text) if _MODULAR.fullmatch(text) else _clear(text)
    scheme, rest = match[1].decode("ascii"), text[match.end() :]
    match scheme:
        case "PLAIN":
            return _clear(rest)
        case "CRYPT":
            return _crypt(rest)
        case "SCRYPT":
            return _parse_scrypt(rest)
        case "ARGON2ID":
            return _argon2(rest)
        case "SCRAM-SHA-1" | "SCRAM-SHA-256":
            return _parse_scram(scheme, rest)
    raise ValueError(
        f"unknown scheme {{{scheme}}}; there are PLAIN, SCRYPT, CRYPT, ARGON2ID, SCRAM-SHA-1 and"
        " SCRAM-SHA-256 (a password that begins with a brace is written {PLAIN}...)"
    )


def _clear(password: bytes) -> Clear:
    return Clear(prepared_password(password), password)


def _modular(text: bytes) -> Secret:
    if text.startswith(b"$scrypt$"):
        return _parse_scrypt(text)
    if text.startswith(b"$argon2id$"):
        return _argon2(text)
    return _crypt(text)


def _parse_scrypt(text: bytes) -> Scrypt:
    match = _SCRYPT.fullmatch(text)
    if match is None:
        raise ValueError("not $scrypt$ln=...,r=...,p=...$SALT$HASH")
    log2_n, r, p = (int(match[number]) for number in (1, 2, 3))
    # RFC 7914 section 2 has the last of these limits.
    if not (0 < log2_n < min(32, 16 * r) and p) or 128 * r * (p + (1 << log2_n)) > _LIMIT_OCTETS:
        raise ValueError("scrypt with parameters that take too much memory, or make no sense")
    salt, digest = _decoded(match[4]), _decoded(match[5])
    if len(digest) < 16:
        raise ValueError("scrypt with too short a hash")
    return Scrypt(log2_n, r, p, salt, digest)


def _parse_scram(scheme: str, text: bytes) -> Scram:
    match = _SCRAM.fullmatch(text)
    if match is None:
        raise ValueError(f"not {{{scheme}}}ITERATIONS,SALT,STOREDKEY,SERVERKEY")
    name = scram.HASHES[scheme]
    salt, stored, server = (_decoded(match[number]) for number in (2, 3, 4))
    size = hashlib.new(name).digest_size
    if not salt or len(stored) != size or len(server) != size or not int(match[1]):
        raise ValueError(f"{{{scheme}}} with parts of a wrong size")
    verifier = scram.Verifier(name, salt, int(match[1]), stored, server)
    return Scram(verifier, CLEAR_ONLY | {scheme})


def _decoded(text: bytes) -> bytes:
    """Base64 with or without its padding.  Raises ValueError."""
    bare = text.rstrip(b"=")
    try:
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except binascii.Error:
        raise ValueError("a part is not base64") from None


def _crypt(setting: bytes) -> Crypt:
    scheme = setting[: setting.find(b"$", 1) + 1] if setting.startswith(b"$") else b""
    if not _crypt_knows(setting, scheme):
        shown = scheme.decode("ascii", "replace") or "hashes like this one"
        raise ValueError(f"this system's crypt does not know {shown}")
    return Crypt(setting)


# One try for each scheme: with some a try takes a tenth of a second.
_known_schemes: dict[bytes, bool] = {}


def _crypt_knows(setting: bytes, scheme: bytes) -> bool:
    if not scheme:
        return system_crypt(b"", setting) is not None
    if scheme not in _known_schemes:
        _known_schemes[scheme] = system_crypt(b"", setting) is not None
    return _known_schemes[scheme]


def _argon2(text: bytes) -> Argon2:
    try:
        from argon2 import Type, exceptions, extract_parameters
    except ImportError:
        raise ValueError(
            "ARGON2ID needs the package argon2-cffi (pip install argon2-cffi)"
        ) from None
    try:
        parameters = extract_parameters(text.decode("ascii"))
    except (exceptions.InvalidHash, UnicodeDecodeError):
        raise ValueError("not $argon2id$...") from None
    if parameters.type is not Type.ID:
        raise ValueError("not $argon2id$...")
    if parameters.memory_cost << 10 > _LIMIT_OCTETS:
        raise ValueError("$argon2id$ with parameters that take too much memory")
    return Argon2(text)


def _scrypt(password: bytes, salt: bytes, log2_n: int, r: int, p: int, octets: int) -> bytes:
    """RFC 7914 section 6."""
    room = 128 * r * (p + 2 + (1 << log2_n)) + (1 << 20)
    return hashlib.scrypt(password, salt=salt, n=1 << log2_n, r=r, p=p, maxmem=room, dklen=octets)


# Room for what any C library keeps there: 32 KiB with libxcrypt, 128 KiB with glibc's own.
_CRYPT_DATA_OCTETS = 256 << 10
_NOT_FOR_CRYPT = re.compile(rb"[\0\r\n:]")


def system_crypt(password: bytes, setting: bytes) -> bytes | None:
    """crypt(3) of the system, None where it cannot.  Other threads run on meanwhile."""
    function = _crypt_function()
    if function is None or b"\0" in password or _NOT_FOR_CRYPT.search(setting):
        return None
    room = ctypes.create_string_buffer(_CRYPT_DATA_OCTETS)
    made: bytes | None = function(password, setting, room)
    return None if made is None or made.startswith(b"*") else made


@functools.cache
def _crypt_function() -> ctypes._NamedFuncPointer | None:
    """Python's own module crypt is gone from 3.13 on, and holds all threads up."""
    for name in ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so", None):
        try:
            function = ctypes.CDLL(name).crypt_r
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)
        function.restype = ctypes.c_char_p
        return function
    return None


# Making them.


def scrypt_text(password: bytes, salt: bytes) -> bytes:
    """The form of a password that ``tofmipd user`` writes; ``salt`` is random."""
    digest = _scrypt(prepared_password(password), salt, _LOG2_N, _R, _P, 32)
    head = b"{SCRYPT}$scrypt$ln=%d,r=%d,p=%d" % (_LOG2_N, _R, _P)
    return b"$".join((head, *(base64.b64encode(part).rstrip(b"=") for part in (salt, digest))))


def scram_text(password: bytes, salt: bytes, mechanism: str) -> bytes:
    """A verifier for ``mechanism``; ``salt`` is random."""
    made = scram.verifier_of(
        prepared_password(password), salt, SCRAM_ITERATIONS, scram.HASHES[mechanism]
    )
    parts = (base64.b64encode(part) for part in (made.salt, made.stored_key, made.server_key))
    return b",".join((b"{%s}%d" % (mechanism.encode(), made.iterations), *parts))


def plain_text(password: bytes) -> bytes:
    """A clear password, marked as such where it could be taken for something else."""
    looks = _SCHEME.match(password) or _MODULAR.fullmatch(password)
    return b"{PLAIN}" + password if looks else password


# So many costly checks at a time: each takes memory, and a CPU.
AT_ONCE = threading.BoundedSemaphore(4)
