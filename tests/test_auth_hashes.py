"""What may stand for a password in the password file: each form, and what is nearly one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import sys
import threading
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tofmipd.auth import hashes
from tofmipd.auth.hashes import (
    CLEAR_ONLY,
    SCRAM_ITERATIONS,
    Clear,
    parse_secret,
    plain_text,
    scram_text,
    scrypt_text,
    system_crypt,
)

EVERY = {"PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256"}
BASE64 = st.binary(max_size=40).map(base64.b64encode)


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets).rstrip(b"=")


def needs_crypt(*settings_: bytes):
    """Skip where the system's crypt does not know one of these."""
    missing = [one for one in settings_ if system_crypt(b"", one) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the crypt of this system knows no {missing}")


# RFC 7914 section 12; the first of its vectors has no salt, the last takes a gigabyte.
SCRYPT = [
    (
        b"password",
        b"$scrypt$ln=10,r=8,p=16$" + b64(b"NaCl") + b"$%s",
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d98"
        "30dac727afb94a83ee6d8360cbdfa2cc0640",
    ),
    (
        b"pleaseletmein",
        b"$scrypt$ln=14,r=8,p=1$" + b64(b"SodiumChloride") + b"$%s",
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2d5432955613f0fcf62d49705242a"
        "9af9e61e85dc0d651e40dfcf017b45575887",
    ),
]

# Of the specification of SHA-crypt.
SHA_512 = (
    b"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS"
    b"35inz1"
)
SHA_512_ROUNDS = (
    b"$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZe"
    b"HBy/YTBmSK6H9qs/y3RnOaw5v."
)
SHA_256 = b"$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"


@pytest.mark.parametrize(("password", "form", "digest"), SCRYPT)
@pytest.mark.parametrize("scheme", [b"", b"{SCRYPT}"])
def test_scrypt_is_that_of_the_rfc(password, form, digest, scheme):
    secret = parse_secret(scheme + form % b64(bytes.fromhex(digest)))
    assert secret.matches(password)
    assert not secret.matches(password + b" ")
    assert (secret.mechanisms, secret.costly) == (CLEAR_ONLY, True)


@needs_crypt(b"$6$saltstring", b"$5$saltstring")
@pytest.mark.parametrize("text", [SHA_512, SHA_512_ROUNDS, SHA_256])
@pytest.mark.parametrize("scheme", [b"", b"{CRYPT}"])
def test_sha_crypt_is_that_of_its_specification(text, scheme):
    secret = parse_secret(scheme + text)
    assert secret.matches(b"Hello world!")
    assert not secret.matches(b"Hello world")
    assert not secret.matches(b"Hello world!\0")
    assert (secret.mechanisms, secret.costly) == (CLEAR_ONLY, True)


@needs_crypt(b"$y$j75$salt", b"$2b$04$abcdefghijklmnopqrstuu")
@pytest.mark.parametrize(
    "setting", [b"$y$j75$salt", b"$2b$04$abcdefghijklmnopqrstuu", b"$1$ab", b"ab"]
)
def test_whatever_else_the_system_s_crypt_knows_is_taken(setting):
    text = system_crypt(b"FooBar", setting)
    secret = parse_secret(b"{CRYPT}" + text)
    assert secret.matches(b"FooBar")
    assert not secret.matches(b"Foobar")
    # DES is never meant without the word: it could be a password
    assert isinstance(parse_secret(text), Clear) == (setting == b"ab")


def scram_of(mechanism: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    """RFC 5802 section 3, made without ours."""
    name = "sha1" if mechanism == "SCRAM-SHA-1" else "sha256"
    salted = hashlib.pbkdf2_hmac(name, password, salt, iterations)
    client = hmac.new(salted, b"Client Key", name).digest()
    parts = (salt, hashlib.new(name, client).digest(), hmac.digest(salted, b"Server Key", name))
    return b"%d,%s" % (iterations, b",".join(map(base64.b64encode, parts)))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-1", "SCRAM-SHA-256"])
@pytest.mark.parametrize(("salt", "iterations"), [(b"s", 1), (b"salt" * 8, 4096)])
def test_a_verifier_of_scram_serves_its_mechanism_and_those_that_show_the_password(
    mechanism, salt, iterations
):
    text = scram_of(mechanism, b"FooBar", salt, iterations)
    secret = parse_secret(b"{%s}%s" % (mechanism.encode(), text))
    assert secret.matches(b"FooBar")
    assert not secret.matches(b"Foobar")
    assert (secret.mechanisms, secret.costly) == (CLEAR_ONLY | {mechanism}, True)
    assert (secret.verifier.salt, secret.verifier.iterations) == (salt, iterations)


@pytest.mark.parametrize(
    ("text", "password"),
    [
        (b"FooBar", b"FooBar"),
        (b"", b""),
        (b"{PLAIN}", b""),
        (b"{PLAIN}{PLAIN}x", b"{PLAIN}x"),
        (b"{PLAIN}$6$salt$hash", b"$6$salt$hash"),
        (b"\xff\xfe", b"\xff\xfe"),
        # what only looks like a scheme or a hash
        (b"{plain}x", b"{plain}x"),
        (b"{PLAIN", b"{PLAIN"),
        (b"{}x", b"{}x"),
        (b"{A B}x", b"{A B}x"),
        (b"x{PLAIN}y", b"x{PLAIN}y"),
        (b"{1A}x", b"{1A}x"),
        *((text, text) for text in (b"$", b"$$", b"$x$y", b"$6", b"$6$", b"$6$a b", b"$8$a$b")),
        *((text, text) for text in (b"$100 a day", b"a$6$b", b"$2$a$b", b"$6$\xc3\xa4$b")),
    ],
)
def test_anything_else_is_the_password_itself(text, password):
    secret = parse_secret(text)
    assert isinstance(secret, Clear)
    assert secret.written == password
    assert secret.matches(password)
    assert not secret.matches(password + b"x")
    assert (secret.mechanisms, secret.costly) == (EVERY, False)


def test_a_clear_password_is_compared_in_one_form():
    secret = parse_secret("pa\u0308ss".encode())
    assert secret.written == "pa\u0308ss".encode()
    assert secret.matches("p\u00e4ss".encode())


SALT, DIGEST, SHA_1 = b64(b"salt"), b64(bytes(32)), base64.b64encode(bytes(20))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # no scheme that there is
        (b"{SHA}c2VjcmV0", "unknown scheme {SHA}; there are PLAIN, SCRYPT"),
        (b"{SSHA256}c2VjcmV0", "unknown scheme {SSHA256}"),
        (b"{SCRAM-SHA-512}1,a,b,c", "unknown scheme {SCRAM-SHA-512}"),
        (b"{X}c2VjcmV0", "a password that begins with a brace is written {PLAIN}..."),
        # scrypt
        (b"{SCRYPT}", "not $scrypt$ln="),
        (b"{SCRYPT}c2VjcmV0", "not $scrypt$ln="),
        (b"$scrypt$c2VjcmV0", "not $scrypt$ln="),
        (b"$scrypt$ln=14,r=8$%s$%s" % (SALT, DIGEST), "not $scrypt$ln="),
        (b"$scrypt$r=8,ln=14,p=1$%s$%s" % (SALT, DIGEST), "not $scrypt$ln="),
        (b"$scrypt$ln=14,r=8,p=1$%s" % DIGEST, "not $scrypt$ln="),
        (b"$scrypt$ln=14,r=8,p=1$$%s" % DIGEST, "not $scrypt$ln="),
        (b"$scrypt$ln=14,r=8,p=1$%s$%s=" % (SALT, DIGEST), "not $scrypt$ln="),
        (b"$scrypt$ln=-1,r=8,p=1$%s$%s" % (SALT, DIGEST), "not $scrypt$ln="),
        (b"$scrypt$ln=0,r=8,p=1$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=14,r=0,p=1$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=14,r=8,p=0$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=18,r=8,p=1$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=32,r=1,p=1$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=99,r=999,p=999$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        # RFC 7914 section 2: N must be less than 2^(128 * r / 8)
        (b"$scrypt$ln=16,r=1,p=1$%s$%s" % (SALT, DIGEST), "scrypt with parameters"),
        (b"$scrypt$ln=14,r=8,p=1$%s$%s" % (SALT, b64(bytes(15))), "too short a hash"),
        (b"$scrypt$ln=14,r=8,p=1$_$%s" % DIGEST, "not base64"),
        (b"$scrypt$ln=14,r=8,p=1$A$%s" % DIGEST, "not base64"),
        # SCRAM
        (b"{SCRAM-SHA-1}", "not {SCRAM-SHA-1}ITERATIONS,SALT,STOREDKEY,SERVERKEY"),
        (b"{SCRAM-SHA-256}c2VjcmV0", "not {SCRAM-SHA-256}ITERATIONS"),
        (b"{SCRAM-SHA-1}4096,%s,%s" % (SALT, SHA_1), "not {SCRAM-SHA-1}ITERATIONS"),
        (b"{SCRAM-SHA-1}4096,%s,%s,%s,x" % (SALT, SHA_1, SHA_1), "not {SCRAM-SHA-1}ITERATIONS"),
        (b"{SCRAM-SHA-1}x,%s,%s,%s" % (SALT, SHA_1, SHA_1), "not {SCRAM-SHA-1}ITERATIONS"),
        (b"{SCRAM-SHA-1}123456789,%s,%s,%s" % (SALT, SHA_1, SHA_1), "not {SCRAM-SHA-1}ITERATIONS"),
        (b"{SCRAM-SHA-1}0,%s,%s,%s" % (SALT, SHA_1, SHA_1), "parts of a wrong size"),
        (b"{SCRAM-SHA-1}4096,=,%s,%s" % (SHA_1, SHA_1), "parts of a wrong size"),
        (b"{SCRAM-SHA-1}4096,%s,%s,%s" % (SALT, DIGEST, SHA_1), "parts of a wrong size"),
        (b"{SCRAM-SHA-1}4096,%s,%s,%s" % (SALT, SHA_1, DIGEST), "parts of a wrong size"),
        (b"{SCRAM-SHA-256}4096,%s,%s,%s" % (SALT, SHA_1, SHA_1), "parts of a wrong size"),
        (b"{SCRAM-SHA-1}4096,%s,A,%s" % (SALT, SHA_1), "not base64"),
        # crypt
        (b"{CRYPT}", "does not know hashes like this one"),
        (b"{CRYPT}x", "does not know hashes like this one"),
        (b"{CRYPT}*", "does not know hashes like this one"),
        (b"{CRYPT}!secret", "does not know hashes like this one"),
        (b"{CRYPT}$secret", "does not know hashes like this one"),
        (b"{CRYPT}$0$secret", "does not know $0$"),
        (b"{CRYPT}$\xc3\xa4$secret", "does not know $"),
    ],
)
def test_what_is_nearly_a_form_is_refused_without_showing_it(text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        parse_secret(text)
    assert str(caught.value).isprintable()
    for secret in ("c2VjcmV0", "secret", SALT.decode(), DIGEST.decode()):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("text", [b"{ARGON2ID}$argon2id$v=19$x", b"$argon2id$v=19$x"])
def test_without_the_package_argon2_says_what_is_needed(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "argon2", None)
    with pytest.raises(ValueError, match=r"needs the package argon2-cffi \(pip install"):
        parse_secret(text)


def test_argon2_is_taken_where_the_package_is_there():
    argon2 = pytest.importorskip("argon2", reason="argon2-cffi is not installed")
    text = argon2.PasswordHasher(time_cost=1, memory_cost=64).hash(b"FooBar").encode()
    for form in (text, b"{ARGON2ID}" + text):
        secret = parse_secret(form)
        assert secret.matches(b"FooBar")
        assert not secret.matches(b"Foobar")
        assert (secret.mechanisms, secret.costly) == (CLEAR_ONLY, True)
    for bad in (
        text[:20],
        b"{ARGON2ID}" + text.replace(b"id", b"i"),
        b"{ARGON2ID}\xff",
        text.replace(b"m=64", b"m=999999"),
    ):
        with pytest.raises(ValueError, match="argon2id"):
            parse_secret(bad)


def test_no_secret_is_shown():
    texts = [b"sEcReT", b"{PLAIN}sEcReT", b"{SCRAM-SHA-1}" + scram_of("SCRAM-SHA-1", b"x", b"s", 1)]
    texts += [scrypt_text(b"x", b"salt"), SHA_512]
    for text in texts:
        shown = repr(parse_secret(text))
        assert text[-6:].decode() not in shown
        assert re.findall("b'[^']*'", shown) in ([], ["b'salt'"], ["b's'"])


# Making them.


@pytest.mark.parametrize("password", [b"FooBar", b"", b"{PLAIN}", "pa\u0308ss".encode(), b"\xff"])
def test_what_is_made_of_a_password_is_good_for_it(password):
    prepared = "p\u00e4ss".encode() if b"\xcc" in password else password
    made = [scrypt_text(password, b"0123456789abcdef"), plain_text(password)]
    made += [scram_text(password, b"salt", name) for name in ("SCRAM-SHA-1", "SCRAM-SHA-256")]
    for text in made:
        secret = parse_secret(text)
        assert secret.matches(prepared)
        assert not secret.matches(prepared + b"x")
        assert b"\n" not in text
        assert b":" not in text
    assert made[0].startswith(b"{SCRYPT}$scrypt$ln=14,r=8,p=1$MDEyMzQ1Njc4OWFiY2RlZg$")
    for text, name in zip(made[2:], ("SCRAM-SHA-1", "SCRAM-SHA-256"), strict=True):
        expected = scram_of(name, prepared, b"salt", SCRAM_ITERATIONS)
        assert text == b"{%s}%s" % (name.encode(), expected)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"{PLAIN}", b"{X}", b"{", b"$6$", b"$y$a", b"$1$a$b", b"$2b$x"]).flatmap(
            lambda head: st.binary(max_size=5).map(head.__add__)
        ),
    )
)
@example(b"{PLAIN}{PLAIN}")
@example(b"$1$a")
def test_any_clear_password_can_be_written(password):
    secret = parse_secret(plain_text(password))
    assert isinstance(secret, Clear)
    assert secret.written == password


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.one_of(
                BASE64,
                st.sampled_from([b"{SCRYPT}", b"{CRYPT}", b"{SCRAM-SHA-1}", b"{PLAIN}", b"{Z}"]),
                st.sampled_from(
                    [b"$scrypt$", b"ln=", b"1", b"5", b",r=", b",p=", b"$", b",", b"="]
                ),
                st.sampled_from(
                    [b"$6$", b"$5$rounds=1000$", b"$1$", b"$2b$04$", b"ab", b"/.", b"_"]
                ),
            ),
            max_size=8,
        ).map(b"".join),
    )
)
def test_any_octets_are_a_secret_that_can_be_asked_or_a_value_error(octets):
    try:
        secret = parse_secret(octets)
    except ValueError:
        return
    assert secret.mechanisms >= CLEAR_ONLY
    if not octets.startswith((b"$2", b"{CRYPT}$2")):  # may take hours
        assert secret.matches(b"nobody has this one") in (True, False)


# crypt(3) of the system.


@pytest.mark.parametrize("octets", [b"\0", b"a\0b"])
def test_crypt_is_not_asked_about_what_it_would_cut(octets):
    assert system_crypt(octets, b"$6$salt") is None
    assert system_crypt(b"x", b"$6$" + octets) is None


@pytest.mark.parametrize(
    "setting", [b"", b"x", b"*", b"*0", b"$", b"$6$a:b", b"$6$a\nb", b"\xff\xff"]
)
def test_what_crypt_refuses_is_none(setting):
    assert system_crypt(b"x", setting) is None


def test_without_crypt_its_hashes_are_refused(monkeypatch):
    monkeypatch.setattr(hashes, "_crypt_function", lambda: None)
    monkeypatch.setattr(hashes, "_known_schemes", {})
    with pytest.raises(ValueError, match=r"this system's crypt does not know \$6\$"):
        parse_secret(SHA_512)


@needs_crypt(b"$6$saltstring")
def test_crypt_gives_each_thread_its_own_answer():
    count, right = 4, []
    texts = [system_crypt(b"p%d" % n, b"$6$rounds=5000$salt%d" % n) for n in range(count)]
    secrets = [parse_secret(text) for text in texts]

    def ask(number: int) -> None:
        for _ in range(5):
            right.extend(
                secret.matches(b"p%d" % number) == (place == number)
                for place, secret in enumerate(secrets)
            )

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 5 * count * count


@needs_crypt(b"$6$saltstring")
def test_other_threads_run_while_crypt_is_at_work():
    done = threading.Event()

    def work() -> None:
        begun = time.monotonic()
        system_crypt(b"x", b"$6$rounds=400000$salt")
        took.append(time.monotonic() - begun)
        done.set()

    took: list[float] = []
    longest_gap, last = 0.0, time.monotonic()
    threading.Thread(target=work).start()
    while not done.is_set():
        now = time.monotonic()
        longest_gap, last = max(longest_gap, now - last), now
    assert longest_gap < took[0] / 2
