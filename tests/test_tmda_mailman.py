"""Lists of Mailman 2, as its Python 2 wrote them; nothing in them is carried out."""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import pickletools
import resource
import struct

import pytest
from forking import in_child
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.tmda.mailman import BadList, members, read_marshal, read_pickle

# One and the same table, by cPickle of Python 2.7.  ``bounce_info`` has an instance of a class
# without a base, ``new`` one of a class with one, ``more`` one of a class made of list.
PICKLES = {
    0: b"(dp1\nS'private'\np3\nI01\nsS'owner'\np4\n(lp5\nS'alice@x.example'\np6\nasS'members'\n"
    b"p7\n(dp8\nS'bob@x.example'\np9\nI0\nsS'carol@x.example'\np10\nS'Carol@X.example'\np11\n"
    b"ssS'next_digest_number'\np12\nL12345678901234567890L\nsS'ban_list'\np13\n(lp14\n"
    b"sS'bounce_info'\np15\n(dp16\ng9\n(iMailman.Bouncer\n_BounceInfo\np17\n(dp18\nS'member'\n"
    b"p19\ng9\nsS'date'\np20\n(I2004\nI2\nI29\ntp21\nsS'score'\np22\nF1\nsbssS'digest_members'\n"
    b"p24\n(dp25\nVdave@x.example\np26\nI0\nsS'j\\xfcrgen@x.example'\np27\nI0\nssS'nothing'\n"
    b"p28\nNsS'new'\np29\nccopy_reg\n_reconstructor\np30\n(cMailman.Bouncer\nNew\np31\n"
    b"c__builtin__\nobject\np32\nNtRp33\n(dp34\nS'x'\nI1\nsbsS'more'\np35\ng30\n"
    b"(cMailman.Bouncer\nL\np36\nc__builtin__\nlist\np37\n(lp38\nS'a'\natRp39\ns.",
    1: b"}q\x01(U\x07privateq\x03I01\nU\x05ownerq\x04]q\x05U\x0falice@x.exampleq\x06aU\x07members"
    b"q\x07}q\x08(U\rbob@x.exampleq\tK\x00U\x0fcarol@x.exampleq\nU\x0fCarol@X.exampleq\x0bu"
    b"U\x12next_digest_numberq\x0cL12345678901234567890L\nU\x08ban_listq\r]U\x0bbounce_infoq\x0e"
    b"}q\x0fh\t(cMailman.Bouncer\n_BounceInfo\nq\x10oq\x11}q\x12(U\x06memberq\x13h\tU\x04date"
    b"q\x14(M\xd4\x07K\x02K\x1dtq\x15U\x05scoreq\x16G?\xf0\x00\x00\x00\x00\x00\x00ubs"
    b"U\x0edigest_membersq\x18}q\x19(X\x0e\x00\x00\x00dave@x.exampleq\x1aK\x00"
    b"U\x10j\xfcrgen@x.exampleq\x1bK\x00uU\x07nothingq\x1cNU\x03newq\x1dccopy_reg\n"
    b'_reconstructor\nq\x1e(cMailman.Bouncer\nNew\nq\x1fc__builtin__\nobject\nq NtRq!}q"U\x01x'
    b"K\x01sbU\x04moreq#h\x1e(cMailman.Bouncer\nL\nq$c__builtin__\nlist\nq%]q&U\x01aatRq'u.",
    2: b"\x80\x02}q\x01(U\x07privateq\x03\x88U\x05ownerq\x04]q\x05U\x0falice@x.exampleq\x06a"
    b"U\x07membersq\x07}q\x08(U\rbob@x.exampleq\tK\x00U\x0fcarol@x.exampleq\nU\x0f"
    b"Carol@X.exampleq\x0buU\x12next_digest_numberq\x0c\x8a\t\xd2\n\x1f\xeb\x8c\xa9T\xab\x00"
    b"U\x08ban_listq\r]U\x0bbounce_infoq\x0e}q\x0fh\t(cMailman.Bouncer\n_BounceInfo\nq\x10oq\x11}"
    b"q\x12(U\x06memberq\x13h\tU\x04dateq\x14M\xd4\x07K\x02K\x1d\x87q\x15U\x05scoreq\x16G?\xf0"
    b"\x00\x00\x00\x00\x00\x00ubsU\x0edigest_membersq\x18}q\x19(X\x0e\x00\x00\x00dave@x.example"
    b"q\x1aK\x00U\x10j\xfcrgen@x.exampleq\x1bK\x00uU\x07nothingq\x1cNU\x03newq\x1d"
    b'cMailman.Bouncer\nNew\nq\x1e)\x81q\x1f}q U\x01xK\x01sbU\x04moreq!cMailman.Bouncer\nL\nq")'
    b"\x81q#U\x01aa}q$bu.",
}

# Another by marshal of Python 2.7, in the three versions that it can write: from 1 on, words that
# occur again are numbers, from 2 on fractions are binary.
_MARSHAL = (
    b"{W\x03\x00\x00\x00bigl\x05\x00\x00\x00\xd2\n>V3&\xa5Z\n\x00W\x03\x00\x00\x00oneW\x07\x00\x00"
    b"\x00membersW\x05\x00\x00\x00owner[\x01\x00\x00\x00s\x0f\x00\x00\x00alice@x.exampleAGAIN{s\r"
    b"\x00\x00\x00bob@x.examplei\x00\x00\x00\x00s\x0f\x00\x00\x00carol@x.examples\x0f\x00\x00\x00"
    b"Carol@X.example0W\x04\x00\x00\x00date(\x03\x00\x00\x00i\xd4\x07\x00\x00i\x02\x00\x00\x00i\x1d"
    b"\x00\x00\x00W\x03\x00\x00\x00yesTW\x04\x00\x00\x00noneNW\x02\x00\x00\x00noFW\x03\x00\x00\x00"
    b"negl\xfe\xff\xff\xff@\x1c\x01\x00W\x0e\x00\x00\x00digest_members{s\x10\x00\x00\x00j\xfcrgen@x"
    b".examplei\x00\x00\x00\x00u\x0e\x00\x00\x00dave@x.examplei\x00\x00\x00\x000W\x05\x00\x00\x00"
    b"scoreFLOATW\x03\x00\x00\x00maxI\x00\xf2\x05*\x01\x00\x00\x000"
)
MARSHALS = {
    version: _MARSHAL.replace(b"W", word).replace(b"AGAIN", again).replace(b"FLOAT", fraction)
    for version, word, again, fraction in [
        (0, b"s", b"s\x07\x00\x00\x00members", b"f\x030.5"),
        (1, b"t", b"R\x02\x00\x00\x00", b"f\x030.5"),
        (2, b"t", b"R\x02\x00\x00\x00", b"g\x00\x00\x00\x00\x00\x00\xe0?"),
    ]
}

READERS = {"pickle": read_pickle, "marshal": read_marshal}


# What Mailman writes


@pytest.mark.parametrize("protocol", PICKLES)
def test_a_pickle_of_python_2_has_the_members_of_a_list(protocol):
    table = read_pickle(PICKLES[protocol])
    assert members(table, "members") == {b"bob@x.example", b"carol@x.example"}
    assert members(table, "digest_members") == {b"dave@x.example", b"j\xfcrgen@x.example"}
    assert members(table, "owner") == {b"alice@x.example"}
    assert members(table, "ban_list") == frozenset()
    assert members(table, "bounce_info") == {b"bob@x.example"}
    assert table["next_digest_number"] == 12345678901234567890
    assert (table["private"], table["nothing"]) == (True, None)
    assert type(table["new"]).__module__ == "tofmipd.tmda.mailman"


@pytest.mark.parametrize("version", MARSHALS)
def test_a_marshalled_table_of_python_2_has_the_members_of_a_list(version):
    table = read_marshal(MARSHALS[version])
    assert members(table, "members") == {b"bob@x.example", b"carol@x.example"}
    assert members(table, "digest_members") == {b"dave@x.example", b"j\xfcrgen@x.example"}
    assert members(table, "owner") == {b"alice@x.example"}
    assert (table["one"], table["score"]) == ("members", 0.5)
    assert (table["big"], table["neg"], table["max"]) == (12345678901234567890, -40000, 5000000000)
    assert (table["date"], table["yes"], table["no"]) == ((2004, 2, 29), True, False)
    assert table["none"] is None


@pytest.mark.parametrize("name", ["private", "nothing", "new", "next_digest_number", "Members", ""])
def test_an_attribute_that_has_no_members_is_an_error_that_names_it(name):
    with pytest.raises(BadList, match=repr(name)):
        members(read_pickle(PICKLES[2]), name)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_python_3_are_read_too(protocol):
    table = {"members": {"Bob@X.example": 0}, "owner": ["a@x"], "set": {"c@x"}, b"octets": ["d@x"]}
    found = read_pickle(pickle.dumps(table, protocol))
    assert members(found, "members") == {b"bob@x.example"}
    assert members(found, "owner") == {b"a@x"}
    assert b"octets" not in found
    if protocol >= 4:
        assert members(found, "set") == {b"c@x"}


@pytest.mark.parametrize("version", [0, 1, 2])
def test_old_marshalled_tables_of_python_3_are_read_too(version):
    table = {"members": {"Bob@X.example": 0}, "owner": ["a@x"], "deep": [[({},)]], "f": -1.5}
    found = read_marshal(marshal.dumps(table, version))
    assert members(found, "members") == {b"bob@x.example"}
    assert (found["deep"], found["f"]) == ([[({},)]], -1.5)


@pytest.mark.parametrize("value", [None, True, 1, "members", ["members"], (), b"members"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_table_is_no_list(reader, value):
    octets = pickle.dumps(value, 2) if reader == "pickle" else marshal.dumps(value, 2)
    with pytest.raises(BadList):
        READERS[reader](octets)


def test_members_that_are_no_texts_are_none():
    table = {"members": ["A@x", 1, None, b"b@x", ("c@x",), "ü@x", "\u4e00@x"]}
    assert members(table, "members") == {b"a@x", b"\xfc@x", b"?@x"}


# What nobody should write


def tell(module, name, *arguments):
    """A call in a pickle of protocol 0."""
    return b"c%s\n%s\n(%stR" % (module, name, b"".join(map(told, arguments)))


def told(word):
    return b"S'" + word.replace(b"'", rb"\'") + b"'\n"


def hostile(marker):
    """Pickles that would write a file if anything in them were carried out."""
    path = str(marker).encode()
    code = b"open('" + path + b"', 'w')"
    touch = b"touch " + path
    return {
        "system": tell(b"os", b"system", touch) + b".",
        "posix": tell(b"posix", b"system", touch) + b".",
        "eval": tell(b"builtins", b"eval", code) + b".",
        "eval of python 2": tell(b"__builtin__", b"eval", code) + b".",
        "exec": tell(b"builtins", b"exec", code) + b".",
        "open": tell(b"io", b"open", path, b"w") + b".",
        "inside": b"(dS'members'\n(d" + tell(b"os", b"system", touch) + b"I0\nss.",
        "instance": b"(" + told(touch) + b"ios\nsystem\n.",
        "object": b"(cos\nsystem\n" + told(touch) + b"o.",
        "newobj": b"\x80\x02cos\nsystem\n(U" + bytes([len(touch)]) + touch + b"t\x81.",
        "stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(touch)])
        + touch
        + b"\x85R.",
        "newobj_ex": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(touch)])
        + touch
        + b"\x85}\x92.",
        "dotted": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.system\x93\x8c"
        + bytes([len(touch)])
        + touch
        + b"\x85R.",
        "build": b"(ios\nsystem\n(dS'__setstate__'\n" + tell(b"os", b"system", touch) + b"sb.",
        "slots": b"cos\nsystem\nN(dS'__call__'\n" + tell(b"os", b"system", touch) + b"s\x86b.",
        "build a class": b"cos\nsystem\n(dS'__init__'\ncos\nsystem\nsb(S'x'\ntR.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Pos.system\n.",
        "persistent object": tell(b"os", b"system", touch) + b"Q.",
        "own class": b"ctofmipd.tmda.mailman\n_Harmless\n(tR.",
    }


@pytest.mark.parametrize("kind", hostile("x"))
def test_a_pickle_can_have_nothing_carried_out(tmp_path, kind):
    marker = tmp_path / "marker"
    octets = hostile(marker)[kind]
    with contextlib.suppress(BadList):
        members(read_pickle(octets), "members")
    assert not marker.exists()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["system", "eval", "exec", "open", "posix", "stack", "instance"])
def test_those_pickles_would_do_it_if_anybody_let_them(tmp_path, kind):
    """Else the test before this one could not fail."""
    marker = tmp_path / "marker"
    in_child(lambda: pickle.loads(hostile(marker)[kind]) and None)
    assert marker.exists()


def test_one_pickle_changes_nothing_for_the_next():
    for octets in hostile("/dev/null").values():
        with contextlib.suppress(BadList):
            read_pickle(octets)
    for protocol, octets in PICKLES.items():
        test_a_pickle_of_python_2_has_the_members_of_a_list(protocol)
        assert octets


NESTED = 2_000_000


@pytest.mark.parametrize(
    ("reader", "octets"),
    [
        ("pickle", b"\x80\x02}N" + b"\x85" * NESTED + b"Ns."),
        ("pickle", b"\x80\x02}(" + b"(" * NESTED + b"t" * NESTED + b"Nu."),
        ("pickle", b"\x80\x02}" + b"]" * NESTED + b"a" * (NESTED - 1) + b"Ns."),
        ("pickle", b"\x80\x02" + b"}" * NESTED + b"."),
        ("pickle", b"\x80\x04\x8f" + b"(\x8f" * 100_000 + b"\x90" * 100_000 + b"."),
        ("pickle", b"\x80\x04}N" + b"\x85\x91"[:1] * 10 + b"Ns."),
        ("marshal", b"(\x01\x00\x00\x00" * NESTED),
        ("marshal", b"{" * NESTED),
        ("marshal", b"{" + b"(\x01\x00\x00\x00" * 900 + b"NN0"),
    ],
    ids=range(9),
)
def test_what_is_nested_very_deep_does_not_end_the_process(reader, octets):
    """In C, the hash of a tuple of tuples has no limit but the stack."""

    def act():
        with contextlib.suppress(BadList):
            READERS[reader](octets)

    ended = in_child(act)
    assert ended.status == 0, ended.said


@pytest.mark.parametrize(
    "octets",
    [
        b"\x80\x02Nr\x00\x00\x00\x01.",
        b"Np17000000\n.",
        b"\x80\x02X\xff\xff\xff\x7fx.",
        b"\x80\x04\x8d\x00\x00\x00\x00\x10\x00\x00\x00x.",
        b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00x.",
        b"\x80\x04\x95\x00\x00\x00\x40\x00\x00\x00\x00N.",
        b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    ],
    ids=["memo", "memo in text", "text", "long text", "octets", "frame", "number"],
)
def test_a_number_in_a_pickle_sets_no_memory_aside(octets):
    def act():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.suppress(BadList):
            read_pickle(octets)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000

    assert in_child(act) == (0, "True\n")


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{",
        b"{t\x07\x00\x00\x00membersR\x01\x00\x00\x000",
        b"{R\x00\x00\x00\x00N0",
        b"{R\xff\xff\xff\xffN0",
        b"{[\x00\x00\x00\x00N0",
        b"{{0N0",
        b"{s\xff\xff\xff\x7fxN0",
        b"{s\xff\xff\xff\xffxN0",
        # Lengths that lead back to where they stand.
        b"{s\xfb\xff\xff\xff",
        b"[\x01\x00\x00\x00(\xfb\xff\xff\xff",
        b"{([\xff\xff\xff\x7f",
        b"{Nl\xff\xff\xff\x7fxxxx0",
        b"{Nl\x00\x00\x00\x800",
        b"{Nf\x03abc0",
        b"{Nf\x000",
        b"{c\x00\x00\x00\x00",
        b"{Nx\x011\x0110",
        b"0",
        b"\0",
        b"{\xfa\x01aN0",
    ],
)
def test_a_damaged_table_is_found_out(octets):
    def act():
        with pytest.raises(BadList):
            read_marshal(octets)

    ended = in_child(act)
    assert ended.status == 0, ended.said


@pytest.mark.parametrize("octets", [b"", b".", b"(", b"text", b"\x80\x09N.", b"}q", b"I0\n", b"S'"])
def test_a_damaged_pickle_is_found_out(octets):
    with pytest.raises(BadList):
        read_pickle(octets)


@pytest.mark.parametrize("reader", READERS)
def test_a_list_that_ends_anywhere_is_found_out(reader):
    whole = PICKLES[2] if reader == "pickle" else MARSHALS[2]
    for end in range(len(whole)):
        with pytest.raises(BadList):
            READERS[reader](whole[:end])


# The opcodes that take what follows as a number of octets or an index would only end the pickle.
OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]
PIECES = [
    *OPCODES,
    *[b"cos\nsystem\n", b"(ios\nsystem\n", b"S'true'\n", b"I1\n", b"\x80\x02", b"U\x01a", b"K\x01"],
    *[
        b"(dS'members'\n",
        b"q\x01",
        b"h\x01",
        b"g1\n",
        b"p1\n",
        b"Va\n",
        b"N",
        b"N",
        b"(",
        b"]",
        b"}",
    ],
]


@settings(max_examples=800, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from(PIECES), max_size=20).map(lambda some: b"".join(some) + b"."),
    )
)
def test_noise_in_a_pickle_ends_in_a_table_or_in_bad_list(octets):
    # A memo of 4 GiB is the business of another test.
    if b"r" in octets or b"p" in octets:
        return
    with contextlib.suppress(BadList):
        table = read_pickle(octets)
        assert isinstance(table, dict)
        members(table, "members")


_FOUR = st.one_of(st.integers(0, 3), st.sampled_from([-1, 255, 2**31 - 1, -(2**31)])).map(
    lambda number: struct.pack("<i", number)
)
_BITS = st.one_of(st.sampled_from([bytes([one]) for one in b"NTF.SiIlfgstRu([{0cx<>"]), _FOUR)


@settings(max_examples=800, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(_BITS, max_size=30).map(b"".join)))
def test_noise_in_a_marshalled_table_ends_in_a_table_or_in_bad_list(octets):
    for text in (octets, b"{" + octets):
        with contextlib.suppress(BadList):
            table = read_marshal(text)
            assert isinstance(table, dict)
            members(table, "members")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text("abc_", max_size=8),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text("aé@")
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.lists(inner, max_size=3).map(tuple),
                st.dictionaries(st.text("ab@"), inner, max_size=4),
            ),
            max_leaves=12,
        ),
        max_size=5,
    ),
    st.sampled_from([0, 1, 2]),
)
def test_tables_come_back_as_they_were(table, version):
    assert read_marshal(marshal.dumps(table, version)) == table
    assert listed(read_pickle(pickle.dumps(table, version))) == listed(table)


def listed(value):
    """The same with lists for tuples: which it is makes no difference to members."""
    if isinstance(value, dict):
        return {name: listed(item) for name, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value
