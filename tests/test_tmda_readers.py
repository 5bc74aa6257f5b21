"""Reading a configuration: what is said of lines that were good in Python 2, and of others."""

from __future__ import annotations

import re

import pytest

from tofmipd.tmda import readers
from tofmipd.tmda.errors import ConfigError
from tofmipd.tmda.readers import read_literals, run_python
from tofmipd.tmda.values import TRUTH

PATH = "/home/alice/.tmda/config"
HINT = "; written for Python 2"


def error_of(source, reader=run_python):
    with pytest.raises(ConfigError) as caught:
        reader(source.encode(), PATH, dict(TRUTH))
    return caught.value


# Lines for Python 2: the source, the line to blame, what is advised.
PYTHON_2 = [
    ("print 'reading'\n", 1, "write print(...), not print ..."),
    ("X = 1\nif X:\n    print X, 'is set'\n", 3, "write print(...), not print ..."),
    ("print '%s' % 1, `1`\n", 1, "write print(...), not print ..."),
    ("import sys\n\nprint >>sys.stderr, 'reading'\n", 3, "write print(..., file=f)"),
    ("exec 'X = 1'\n", 1, "write exec(...), not exec ..."),
    ("exec 'X = 1' in {}\n", 1, "write exec(...), not exec ..."),
    (
        "try:\n    X = 1\nexcept ValueError, error:\n    X = 2\n",
        3,
        "write 'except X as e:', not 'except X, e:'",
    ),
    (
        "try:\n    X = 1\nexcept (OSError, IOError), error:\n    X = 2\n",
        3,
        "write 'except X as e:', not 'except X, e:'",
    ),
    ("import os\nos.umask(0077)\n", 2, "write octal numbers as 0o600, not 0600"),
    ("MODE = 0600\n", 1, "write octal numbers as 0o600, not 0600"),
    ("MODES = [0400, 0600]\n", 1, "write octal numbers as 0o600, not 0600"),
    ("MODE = 0777L\n", 1, "write octal numbers as 0o600, not 0600"),
    ("SIZE = 10L\n", 1, "write numbers without an L"),
    ("SIZE = 0L\n", 1, "write numbers without an L"),
    ("SIZE = 50l\n", 1, "write numbers without an L"),
    ("SIZE = 0xFFL\n", 1, "write numbers without an L"),
    ("if 1 <> 2:\n    X = 1\n", 1, "write != in place of <>"),
    ("X = 'a'<>'b'\n", 1, "write != in place of <>"),
    ("raise ValueError, 'no'\n", 1, "write 'raise X(\"text\")', not 'raise X, \"text\"'"),
    ("if 1:\n    raise KeyError, 1\n", 2, "write 'raise X(\"text\")', not 'raise X, \"text\"'"),
    ("X = `1`\n", 1, "write repr(x), not `x`"),
    ("FULLNAME = ur'A\\w'\n", 1, "write texts without ur"),
    ('FULLNAME = ur"A"\n', 1, "write texts without ur"),
    ("FULLNAME = UR'A'\n", 1, "write texts without ur"),
    ("FULLNAME = uR'A'\n", 1, "write texts without ur"),
    ("if 1:\n\tX = 1\n        Y = 1\n", 3, "indent with blanks only, or with tabs only"),
    ("FULLNAME = unicode('A')\n", 1, "write str, not unicode"),
    ("isinstance('', basestring)\n", 1, ""),
    ("HMAC_BYTES = long(3)\n", 1, ""),
    ("X = raw_input()\n", 1, ""),
    ("for i in xrange(3):\n    pass\n", 1, ""),
    ("X = reduce(max, [1, 2])\n", 1, ""),
    ("for line in file('/etc/hosts'):\n    pass\n", 1, ""),
    ("execfile('/etc/tmdarc')\n", 1, ""),
    ("X = {}.has_key('a')\n", 1, ""),
    ("for k, v in {}.iteritems():\n    pass\n", 1, ""),
    ("X = {}.itervalues()\n", 1, ""),
    ("X = {}.iterkeys()\n", 1, ""),
    ("import string\nX = string.lower('A')\n", 2, "use the methods of texts"),
    ("import string\nX = string.join(['a'], '')\n", 2, "use the methods of texts"),
    ("import os\nX = os.getcwdu()\n", 2, "write os.getcwd()"),
    ("import urllib2\n", 1, ""),
    ("import ConfigParser\n", 1, ""),
    ("import commands\nX = commands.getoutput('id')\n", 1, ""),
    ("import cPickle\n", 1, ""),
    ("from StringIO import StringIO\n", 1, ""),
    ("import anydbm\n", 1, ""),
    ("from sets import Set\n", 1, ""),
    ("from TMDA import Defaults\n", 1, ""),
    ("import TMDA.Util\n", 1, ""),
    ("def f():\n    return unicode('')\n\nX = f()\n", 2, "write str, not unicode"),
]


@pytest.mark.parametrize(("source", "line", "advice"), PYTHON_2)
def test_a_line_for_python_2_is_told_so_and_what_to_write(source, line, advice):
    error = error_of(source)
    assert error.line == line
    assert error.problem.endswith(f"{HINT}: {advice}" if advice else HINT)


@pytest.mark.parametrize("row", readers._PYTHON_2, ids=lambda row: row[1] or row[0])
def test_every_row_of_the_table_has_a_line_that_needs_it(row):
    """A row that nothing needs, because this Python says it in other words, helps nobody."""
    pattern, advice = row

    def needs(source):
        first, _, _ = error_of(source).problem.partition(HINT)
        said = first.removeprefix("syntax error: ")
        return any(re.search(pattern, f"{said} {line}") for line in source.split("\n"))

    assert any(
        needs(source) and error_of(source).problem.endswith(advice)
        for source, _, _ in PYTHON_2
        if HINT in error_of(source).problem
    )


ORDINARY = [
    "DATED_TIMEOUT = 5d\n",
    "DATED_TIMEOUT_VIRTUAL = 5d\n",
    "LABEL = 3x\n",
    "MODEL = 5d  # see the manual\n",
    "HMAC_BYTES = three\n",
    "FULLNAME = Alice Liddell\n",
    "FULLNAME = 'Alice\n",
    "FULLNAME = u'Alice' +\n",
    "FULLNAME = u'Alice' u'Liddell' x\n",
    "FULLNAME = 'Alice', = 'b'\n",
    "FULLNAME = 'no > or <' 'x' y\n",
    "TAGS_DATED = ['dated'\n",
    "TAGS_DATED = 'dated']\n",
    "ACTION_OUTGOING = dated=5d\n",
    "if 1\n    X = 1\n",
    "  X = 1\n",
    "X == 1 = 2\n",
    "import nowhere_to_be_found\n",
    "from os import nothing_like_that\n",
    "import os\nos.nothing_like_that()\n",
    "X = open('/nowhere/at/all')\n",
    "X = {}['key']\n",
    "X = 1 / 0\n",
    "X = 'a' + 1\n",
    "X = int('5d')\n",
    "X = 1 >> 'a'\n",
    "raise ValueError('my own')\n",
    "raise SystemExit(1)\n",
    "def f(:\n    pass\n",
    "X = (1,\n     2\n     3)\n",
    "X = {}.nothing\n",
    "USERNAME = getpass.getuser()\n",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_errors_are_not_blamed_on_python_2(source):
    assert HINT not in error_of(source).problem


@pytest.mark.parametrize(
    "source",
    [
        "print('x')\n",
        "X = 0o600\nY = 0\nZ = 00\n",
        "X = u'a'\n",
        "try:\n    X = 1\nexcept ValueError as e:\n    X = 2\n",
        "X = {}.items()\n",
        "from __future__ import print_function\n",
        "# -*- coding: utf-8 -*-\nX = 1\n",
        "\ufeffX = 1\n",
        "X = 1\r\nif X:\r\n    Y = 2\r\n",
    ],
)
def test_what_both_versions_understand_is_read(source):
    names = {}
    run_python(source.encode(), PATH, names)
    assert "__builtins__" in names


def test_a_configuration_in_latin_1_that_says_so_is_read():
    names = {}
    run_python(b"# -*- coding: latin-1 -*-\nFULLNAME = 'J\xfcrgen'\n", PATH, names)
    assert names["FULLNAME"] == "Jürgen"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("X = 1\nSMTPAUTH_PASSWORD = 0600\n", 2),
        ("SMTPAUTH_PASSWORD = unicode('hunter2')\n", 1),
        ("print 'hunter2', SMTPAUTH_PASSWORD\n", 1),
        ("X = {'SMTPAUTH_PASSWORD':\n     unicode('hunter2')}\n", 2),
    ],
)
def test_the_hint_shows_no_password(source, line):
    error = error_of(source)
    assert error.line == line
    assert "in a line with a password" in error.problem
    assert HINT in error.problem
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("source", ["X = 0600\n", "print 'x'\n", "X = 10L\n", "X = ur'a'\n"])
def test_the_literal_form_gives_the_same_hints(source):
    assert error_of(source, read_literals).problem == error_of(source).problem
    assert HINT in error_of(source, read_literals).problem


def test_an_error_in_another_file_is_blamed_on_the_line_that_leads_there(tmp_path):
    other = tmp_path / "other.py"
    other.write_text("\n\n\nprint 'x'\n")
    error = error_of(f"X = 1\nexec(compile(open({str(other)!r}).read(), {str(other)!r}, 'exec'))\n")
    assert (error.path, error.line) == (PATH, 2)
    assert HINT in error.problem
