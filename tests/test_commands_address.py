"""`tofmipd address`: makes the addresses of filters and of TMDA's own tool, and checks them."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import re
import time

import pytest
from test_tmda_vectors import ADDRESSES, CHECKS, octets, parametrized

from tofmipd import cli
from tofmipd.commands import address
from tofmipd.errors import CONFIG, DATA, TEMPORARY, USAGE, Fatal
from tofmipd.tmda.cookies import Check, TagSettings

KEY = "00112233445566778899aabbccddeeff01234567"
TOOL = [case for case in ADDRESSES if case["op"].startswith("tool_")]
MADE = [case for case in ADDRESSES if case["op"] in ("dated", "sender", "domain", "keyword")]
CHECKED = [case for case in ADDRESSES if case["op"] == "check"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TMDA_TIMEOUT", raising=False)
    tmda = tmp_path / ".tmda"
    tmda.mkdir()
    (tmda / "config").write_text('USERNAME = "bobby"\nHOSTNAME = "example.org"\n')
    (tmda / "crypt_key").write_text(KEY)
    (tmda / "crypt_key").chmod(0o600)
    return tmp_path


# The vectors


def configure(case, home):
    """Write the files of a case."""
    settings = case.get("config") or {}
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    (home / ".tmda/config").write_text(text)
    (home / ".tmda/crypt_key").write_text(case["crypt_key"])


def text_of(argument):
    """A text of the vectors as an argument of a command line."""
    return octets(argument).decode("utf-8", "surrogateescape")


def mac(case, *data):
    """What a cookie with these data has, by another way than the program's own."""
    key = bytes.fromhex(case["crypt_key"].strip())
    digits = 2 * (case.get("config") or {}).get("HMAC_BYTES", 3)
    return hmac.new(key, b"".join(data), hashlib.sha1).hexdigest()[:digits]


DATED = re.compile(r"([0-9]+)\.([0-9a-f]*)@")


def moved(made, case, since):
    """A dated address that was made just now, as it would have been made at the case's time."""
    match = DATED.search(made)
    assert match is not None, made
    expiry = match[1]
    assert match[2] == mac(case, expiry.encode())
    # Between start and end of the tool's run; the seconds of the timeout are not known here.
    candidates = [
        int(expiry) - then + int(case["time"]) for then in range(int(since), int(time.time()) + 1)
    ]
    wanted = DATED.search(case["expect"]["result"])
    assert wanted is not None
    assert int(wanted[1]) in candidates
    cookie = f"{wanted[1]}.{mac(case, wanted[1].encode())}@"
    return made[: match.start()] + cookie + made[match.end() :]


@parametrized(MADE)
def test_an_address_is_the_one_that_the_original_made(case, home, capfd):
    configure(case, home)
    base, option = map(text_of, case["args"])
    since = time.time()
    status = cli.main(["address", f"-a{base}", "-n", f"--{case['op']}={option}"])
    made = capfd.readouterr()
    wanted = case["expect"].get("result")
    if wanted is None or not case["crypt_key"]:
        # An empty key is an error here.
        assert status in (USAGE, CONFIG)
        assert (made.out, made.err.count("\n")) == ("", 1)
        return
    assert (status, made.err) == (0, "")
    found = moved(made.out, case, since) if case["op"] == "dated" else made.out
    assert found == text_of(wanted)


@parametrized(TOOL)
def test_with_tool_it_is_the_one_that_the_originals_tool_made(case, home, capfd):
    configure(case, home)
    base, option = map(text_of, case["args"])
    kind = case["op"].removeprefix("tool_")
    since = time.time()
    given = [f"-a{base}"] if base else []
    assert cli.main(["address", "--tool", *given, "-n", f"--{kind}={option}"]) == 0
    made = capfd.readouterr().out
    found = moved(made, case, since) if kind == "dated" else made
    assert found == text_of(case["expect"]["result"])


@pytest.mark.parametrize("vector", TOOL, ids=lambda vector: vector["id"])
def test_the_vectors_of_the_originals_tool_hold(vector):
    options = argparse.Namespace(
        keyword=None, sender=None, domain=None, dated=None, timeout="", tool=True
    )
    setattr(options, vector["op"].removeprefix("tool_"), vector["args"][1])
    config = vector.get("config", {})
    tags = TagSettings(
        bytes.fromhex(vector["crypt_key"]),
        **{
            name.lower(): tuple(word.encode() for word in value)
            for name, value in config.items()
            if name.startswith("TAGS_")
        },
    )
    base = vector["args"][0] or f"{config['USERNAME']}@{config['HOSTNAME']}"
    made = address.make(tags, base.encode(), options, vector.get("time", 0))
    assert made.decode() == vector["expect"]["result"]


def test_there_are_vectors_of_each_kind():
    assert {case["op"] for case in TOOL} == {"tool_dated", "tool_keyword", "tool_sender"}
    assert len(MADE) + len(TOOL) + len(CHECKED) == 144


def of_today(given, case):
    """A dated address of the vectors whose distance from now is that from the case's time; a mac
    that was wrong is wrong again."""
    match = DATED.search(given)
    if match is None:
        return given
    expiry = str(int(match[1]) - int(case["time"]) + int(time.time()) + 5)
    cookie = mac(case, expiry.encode())
    if match[2] != mac(case, match[1].encode()):
        cookie = cookie[:-1] + ("1" if cookie.endswith("0") else "0")
    return given[: match.start()] + f"{expiry}.{cookie}@" + given[match.end() :]


@parametrized(CHECKED)
def test_an_address_is_judged_as_in_the_original(case, home, capfd):
    configure(case, home)
    given, *correspondent = map(text_of, case["args"])
    given = of_today(given, case)
    verdict, kind = CHECKS[case["expect"].get("result") or case["expect"]["error"]]
    status = cli.main(["address", "--json", "--check", given, *correspondent])
    told = json.loads(capfd.readouterr().out)
    assert status == (0 if verdict is Check.VALID else DATA)
    assert (told["address"], told["verdict"]) == (given, verdict.value)
    assert kind is None or told["kind"] == kind.name.lower()


# What it prints


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-s", "Carol@Remote.Example"], "bobby-sender-a3c664@example.org\n"),
        (["-s", "remote.example", "-n"], "bobby-sender-088a85@example.org"),
        (["-k", "Sh.op", "-a", "Al@X.example"], r"Al-keyword-sh\?op\.[0-9a-f]{6}@X\.example\n"),
        (["--domain", "Carol@Remote.Example"], "bobby-sender-088a85@example.org\n"),
        (
            ["--tool", "-k", "MixedCase", "-a", "Alice@example.com"],
            "alice-keyword-MixedCase.10bac6@example.com\n",
        ),
        (["-s", "remote.example", "--json"], '{"address": "bobby-sender-088a85@example.org"}\n'),
        (["-n"], r"bobby-dated-[0-9]{10}\.[0-9a-f]{6}@example.org"),
    ],
)
def test_it_prints_the_address(arguments, expected, capsys):
    assert address.main(arguments) == 0
    out = capsys.readouterr().out
    assert out == expected or re.fullmatch(expected, out)


@pytest.mark.parametrize(
    ("arguments", "variable", "seconds"),
    [
        ([], "", 5 * 86400),
        (["-d"], "", 5 * 86400),
        (["-d", "1w"], "", 7 * 86400),
        (["-d", "-t", "2h"], "", 7200),
        (["-t", "2h"], "", 7200),
        (["-d"], "3h", 3 * 3600),
        ([], "3h", 3 * 3600),
        (["-d", "-t", "2h"], "3h", 7200),
        (["-d", "1h", "-t", "2h"], "3h", 3600),
    ],
)
def test_a_dated_address_expires_when_asked_to(arguments, variable, seconds, capsys, monkeypatch):
    """TMDA_TIMEOUT counts for the tool, as in the original (reference, section 1.2)."""
    monkeypatch.setenv("TMDA_TIMEOUT", variable)
    assert address.main(arguments) == 0
    match = re.search(r"-dated-([0-9]+)\.", capsys.readouterr().out)
    assert match is not None
    assert abs(int(match[1]) - time.time() - seconds) < 60


@pytest.mark.parametrize("variable", ["soon", "5", "-5d", " 5d", "5d 6d"])
def test_a_wrong_timeout_in_the_environment_is_an_error_only_where_it_counts(
    variable, capsys, monkeypatch
):
    monkeypatch.setenv("TMDA_TIMEOUT", variable)
    with pytest.raises(Fatal, match="invalid timeout"):
        address.main(["-d"])
    assert address.main(["-k", "shop"]) == 0
    assert address.main(["-d", "5d"]) == 0


# Both directions


@pytest.mark.parametrize(
    ("make", "check", "verdict"),
    [
        (["-d", "1d"], [], "VALID dated address"),
        (["-d", "9s"], [], "VALID dated address"),
        (["-k", "shop"], [], "VALID keyword address"),
        (["-s", "c@d.example"], ["c@d.example"], "VALID sender address"),
        (["-s", "c@d.example"], ["C@D.Example"], "VALID sender address"),
        (["-s", "d.example"], ["any@sub.d.example"], "VALID sender address"),
        (["-s", "c@d.example"], ["x@d.example"], "BAD sender address"),
        (["-s", "c@d.example"], ["c@sub.d.example"], "BAD sender address"),
        (["--domain", "c@d.example"], ["x@d.example"], "VALID sender address"),
        (["--domain", "c@d.example"], ["x@e.d.example"], "VALID sender address"),
        (["--domain", "c@d.example"], ["x@c.b.a.d.example"], "VALID sender address"),
        (["--domain", "c@d.example"], ["x@notd.example"], "BAD sender address"),
        (["--domain", "c@e.d.example"], ["x@d.example"], "BAD sender address"),
        (["--domain", "c@d.example"], ["<>"], "BAD sender address"),
        (["-s", "c@d.example"], [], "UNKNOWN sender address"),
        (["-d", "1d"], ["who@ever.example"], "VALID dated address"),
    ],
)
@pytest.mark.parametrize(
    "settings",
    ["", 'RECIPIENT_DELIMITER = "+"\n', "HMAC_BYTES = 20\n", 'TAGS_DATED = ["D"]\n'],
)
def test_what_it_made_it_checks(settings, make, check, verdict, home, capsys):
    """TO-113."""
    with (home / ".tmda/config").open("a") as file:
        file.write(settings)
    address.main([*make, "-n"])
    made = capsys.readouterr().out
    for given in (made, made.upper()):
        status = address.main(["--check", given, *check])
        assert capsys.readouterr().out == verdict + "\n"
        assert status == {"VALID": 0, "BAD": DATA, "UNKNOWN": TEMPORARY}[verdict.split()[0]]


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ("bobby@example.org", "UNTAGGED"),
        ("bobby-lists@example.org", "UNTAGGED"),
        ("", "UNTAGGED"),
        ("@", "UNTAGGED"),
        ("bobby-dated-1234999890.be01c1@example.org", "EXPIRED dated address"),
        ("bobby-dated-1234999890.000000@example.org", "EXPIRED dated address"),
        ("bobby-dated-9999999999.000000@example.org", "BAD dated address"),
        ("bobby-dated-9999999999@example.org", "BAD dated address"),
        ("bobby-dated-" + "9" * 5000 + ".000000@example.org", "BAD dated address"),
        ("bobby-dated-٣٣٣٣٣٣٣٣٣٣.000000@example.org", "BAD dated address"),
        ("bobby-dated-@example.org", "BAD dated address"),
        ("bobby-keyword-shop.000000@example.org", "BAD keyword address"),
        ("bobby-keyword-.@example.org", "BAD keyword address"),
        ("bobby-keyword-\udcff.\udcff@example.org", "BAD keyword address"),
    ],
)
@pytest.mark.parametrize("correspondent", [[], ["a@b.example"], [""]])
def test_what_does_not_hold_has_status_65(given, verdict, correspondent, capfd):
    assert cli.main(["address", "--check", given, *correspondent]) == DATA
    assert capfd.readouterr() == (verdict + "\n", "")


@pytest.mark.parametrize(
    "correspondent", ["", "@", ".", "a@b.example", "\udcff@x", "x" * 10000, "\n"]
)
def test_a_sender_address_is_bad_for_whoever_it_was_not_made_for(correspondent, capfd):
    given = ["bobby-sender-a3c664@example.org", correspondent]
    assert cli.main(["address", "--check", *given]) == DATA
    assert capfd.readouterr() == ("BAD sender address\n", "")


def test_a_long_correspondent_takes_no_long_time(capfd):
    """Each label of the domain is tried."""
    given = ["bobby-sender-a3c664@example.org", "a@" + "b." * 2000]
    before = time.process_time()
    assert cli.main(["address", "--check", *given]) == DATA
    assert time.process_time() - before < 2


def test_an_address_made_with_another_key_is_bad(home, capsys):
    made = []
    for arguments in (["-d", "1d"], ["-k", "shop"], ["-s", "c@d.example"]):
        address.main([*arguments, "-n"])
        made.append(capsys.readouterr().out)
    (home / ".tmda/crypt_key").write_text("ff" * 20)
    for one, kind in zip(made, ("dated", "keyword", "sender"), strict=True):
        assert address.main(["--check", one, "c@d.example"]) == DATA
        assert capsys.readouterr().out == f"BAD {kind} address\n"


def spoil_mode(home):
    (home / ".tmda/crypt_key").chmod(0o644)
    return "mode 0644"


def remove_key(home):
    (home / ".tmda/crypt_key").unlink()
    return "crypt_key: missing"


def empty_key(home):
    (home / ".tmda/crypt_key").write_text("")
    return "crypt_key: empty"


def spoil_config(home):
    (home / ".tmda/config").write_text("\nHMAC_BYTES = 'three'\n")
    return "config:2: HMAC_BYTES"


def config_is_a_directory(home):
    (home / ".tmda/config").unlink()
    (home / ".tmda/config").mkdir()
    return "config: cannot be read"


@pytest.mark.parametrize(
    "spoil", [spoil_mode, remove_key, empty_key, spoil_config, config_is_a_directory]
)
def test_what_cannot_be_told_is_no_reason_to_refuse_mail(spoil, home, capsys):
    """A delivery script that ends with 75 is tried again."""
    words = spoil(home)
    assert address.main(["--check", "bobby-keyword-shop.000000@example.org", "--json"]) == TEMPORARY
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["verdict"], told["kind"]) == ("unknown", None)
    assert words in told["reason"]
    assert told["reason"] in printed.err
    assert address.main(["--check", "bobby@example.org"]) == TEMPORARY
    assert capsys.readouterr().out == "UNKNOWN\n"


def test_a_sender_address_without_its_correspondent_says_what_is_missing(capsys):
    assert address.main(["--check", "bobby-sender-a3c664@example.org", "--json"]) == TEMPORARY
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["verdict"], told["kind"]) == ("unknown", "sender")
    assert "--check ADDRESS CORRESPONDENT" in told["reason"]
    assert printed.err == f"tofmipd address: {told['reason']}\n"


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (["bobby@example.org"], {"verdict": "untagged", "kind": None}),
        (
            ["bobby-sender-a3c664@example.org", "carol@remote.example"],
            {"verdict": "valid", "kind": "sender"},
        ),
        (["bobby-sender-a3c664@example.org", "x"], {"verdict": "bad", "kind": "sender"}),
        (
            ["bobby-dated-1234999890.be01c1@example.org"],
            {"verdict": "expired", "kind": "dated"},
        ),
        (["B\udcff-keyword-x.50d6fe@h"], {"verdict": "valid", "kind": "keyword"}),
    ],
)
def test_a_verdict_can_be_one_object(check, told, capfd):
    status = cli.main(["address", "--json", "--check", *check])
    assert json.loads(capfd.readouterr().out) == {"address": check[0]} | told
    assert status == (0 if told["verdict"] == "valid" else DATA)


@pytest.mark.parametrize(
    "check",
    [
        ["--", "-dash-keyword-x.50d6fe@example.org"],
        ["--", "bobby-sender-a3c664@example.org", "carol@remote.example"],
        ["--", "bobby-keyword-x.50d6fe@example.org", "-c/nonexistent/config"],
        ["--", "bobby-keyword-x.50d6fe@example.org", "--json"],
        ["--", "bobby-keyword-x.50d6fe@example.org", "-"],
    ],
)
def test_behind_two_dashes_all_is_address(check, capfd):
    """Strangers choose both: what a delivery script passes on must never be an option."""
    assert cli.main(["address", "--check", *check]) == 0
    assert re.fullmatch(r"VALID (sender|keyword) address\n", capfd.readouterr().out)


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-d", "5x"], "invalid timeout '5x'"),
        (["-d", "soon"], "invalid timeout 'soon'"),
        (["-a", "nope"], "'nope' is not an address with one @"),
        (["-a", "a@b@c"], "is not an address with one @"),
    ],
)
def test_what_cannot_be_tagged_is_wrong_usage(arguments, words):
    with pytest.raises(Fatal, match=words) as caught:
        address.main(arguments)
    assert caught.value.status == USAGE


@pytest.mark.parametrize(
    "arguments",
    [
        ["-d", "-k", "x"],
        ["-s", "a@b", "--domain", "a@b"],
        ["--check"],
        ["--check", "a@b", "c@d", "e@f"],
        ["--check", "a@b", "-k", "x"],
        ["-k"],
        ["a@b"],
        ["--chek", "a@b"],
    ],
)
def test_wrong_options_are_told_in_one_line(arguments, capfd):
    with pytest.raises(SystemExit) as caught:
        cli.main(["address", *arguments])
    assert caught.value.code == USAGE
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"tofmipd address: [^\n]+\n", printed.err)


# Files


def test_another_configuration_may_be_named(home, capsys):
    other = home / "other"
    other.write_text('USERNAME = "me"\nHOSTNAME = "here.example"\nRECIPIENT_DELIMITER = "+"\n')
    assert address.main(["-c", str(other), "-k", "x", "-n"]) == 0
    made = capsys.readouterr().out
    assert made.startswith("me+keyword+x.")
    assert address.main(["-c", str(other), "--check", made]) == 0
    assert address.main(["--check", made]) == DATA


def test_a_missing_key_is_said(home):
    (home / ".tmda/crypt_key").unlink()
    with pytest.raises(Fatal, match="crypt_key: missing; make one with 'tofmipd keygen'") as caught:
        address.main([])
    assert caught.value.status == os.EX_CONFIG


def test_an_error_in_the_filter_is_not_its_business(home, capsys):
    (home / ".tmda/filters").mkdir()
    (home / ".tmda/filters/outgoing").write_text("to oops\n")
    assert address.main(["-k", "shop"]) == 0
    made = capsys.readouterr().out.strip()
    assert made.startswith("bobby-keyword-shop.")
    assert address.main(["--check", made]) == 0


def test_a_configuration_that_is_named_must_be_there(home):
    with pytest.raises(Fatal, match="typo: missing"):
        address.main(["-c", str(home / "typo"), "-k", "shop"])


@pytest.mark.parametrize("correspondent", [[], ["c@d.example"]])
def test_of_a_confirm_address_nothing_can_be_told(correspondent, capsys):
    """Its hash holds a word that only the incoming side knows (reference, section 1.5)."""
    given = "bobby-confirm-1234567890.4242.f1b7c8@example.org"
    assert address.main(["--check", given, *correspondent]) == TEMPORARY
    printed = capsys.readouterr()
    assert printed.out == "UNKNOWN confirm address\n"
    assert "asked for the confirmation" in printed.err
