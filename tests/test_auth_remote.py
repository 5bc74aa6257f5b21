"""What -R names: schemes, hosts, ports, and where a directory has its users."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tofmipd.auth.remote import PORTS, RemoteServer, remote_server


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("imap://mail.example", RemoteServer("imap", "mail.example", 143)),
        ("imaps://mail.example", RemoteServer("imaps", "mail.example", 993)),
        ("IMAPS://Mail_1.example:1", RemoteServer("imaps", "Mail_1.example", 1)),
        ("imap://localhost:65535", RemoteServer("imap", "localhost", 65535)),
        ("imap://192.0.2.1:0143", RemoteServer("imap", "192.0.2.1", 143)),
        ("imap://0.0.0.0", RemoteServer("imap", "0.0.0.0", 143)),
        ("imap://[::1]", RemoteServer("imap", "::1", 143)),
        ("imaps://[2001:DB8::0:1]:1993", RemoteServer("imaps", "2001:db8::1", 1993)),
        ("imap://[fe80::1%eth0]:143", RemoteServer("imap", "fe80::1%eth0", 143)),
        ("pop3://mail.example", RemoteServer("pop3", "mail.example", 110)),
        ("POP3S://mail.example", RemoteServer("pop3s", "mail.example", 995)),
        ("apop://mail.example", RemoteServer("apop", "mail.example", 110)),
        ("ldap://[::1]/uid=%s,dc=x", RemoteServer("ldap", "::1", 389, "uid=%s,dc=x")),
        ("ldaps://h:1/%s@x", RemoteServer("ldaps", "h", 1, "%s@x")),
        # what is behind the slash is the directory's
        (
            "ldaps://h/uid=%s,ou=a/b?c#d,o=ü@x:1",
            RemoteServer("ldaps", "h", 636, "uid=%s,ou=a/b?c#d,o=ü@x:1"),
        ),
    ],
)
def test_a_url_is_scheme_host_and_port(url, server):
    assert remote_server(url) == server


@pytest.mark.parametrize(
    ("server", "text"),
    [
        (RemoteServer("imap", "mail.example", 143), "imap mail.example:143"),
        (RemoteServer("imaps", "::1", 993), "imaps [::1]:993"),
        (RemoteServer("ldap", "h", 389, "cn=%s"), "ldap h:389"),
    ],
)
def test_a_server_looks_like_host_and_port(server, text):
    assert str(server) == text


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be SCHEME://HOST"),
        ("mail.example", "must be SCHEME://HOST"),
        ("imap:mail.example", "must be SCHEME://HOST"),
        (
            "://mail.example",
            "unknown scheme ''; there are imap, imaps, pop3, pop3s, apop, ldap, ldaps",
        ),
        ("smtp://mail.example", "unknown scheme 'smtp'; there are imap, imaps"),
        ("imap ://mail.example", "unknown scheme 'imap '"),
        ("a\nb://mail.example", "unknown scheme 'a\\nb'"),
        ("ldap://mail.example", "must be ldap://HOST[:PORT]/DN with %s"),
        ("ldap://mail.example/", "must be ldap://HOST[:PORT]/DN with %s"),
        ("ldaps://mail.example/cn=joe,dc=x", "must be ldap://HOST[:PORT]/DN with %s"),
        ("ldap://mail.example/cn=%s\n,dc=x", "must be ldap://HOST[:PORT]/DN with %s"),
        ("ldap://joe:secret@mail.example/cn=%s", "a user has no place in it"),
        ("ldap:///cn=%s", "not a host: ''"),
        ("ldap://mail.example?x/cn=%s", "nothing may follow host and port"),
        ("pop3://mail.example/cn=%s", "nothing may follow host and port"),
        ("imap://", "not a host: ''"),
        ("imap://:143", "not a host: ''"),
        ("imap://mail.example/", "nothing may follow host and port"),
        ("imap://mail.example:143/INBOX", "nothing may follow host and port"),
        ("imap://mail.example?x", "nothing may follow host and port"),
        ("imap://mail.example#x", "nothing may follow host and port"),
        ("imap://bobby:secret@mail.example", "a user has no place in it"),
        ("imap://bobby:secret@[::1]:143", "a user has no place in it"),
        ("imap://mail.example:", "not a port"),
        ("imap://mail.example:0", "not a port"),
        ("imap://mail.example:65536", "not a port"),
        ("imap://mail.example:imap", "not a port"),
        ("imap://mail.example:１４３", "not a port"),
        ("imap://mail.example:143\n", "not a port"),
        ("imap://::1", "an IPv6 address needs brackets: [::1]"),
        ("imap://::1:143", "an IPv6 address needs brackets: [::1]"),
        ("imap://[::1]143", "an IPv6 address needs brackets: [::1]"),
        ("imap://[::1", "an IPv6 address needs brackets: [::1]"),
        ("imap://[", "not a host: '['"),
        ("imap://[]", "not a host: '[]'"),
        ("imap://[192.0.2.1]", "not a host"),
        ("imap://[mail.example]", "not a host"),
        ("imap://[fe80::1%\0]", "not a host"),
        ("imap://[fe80::1%é]", "not a host"),
        ("imap://192.0.2.300", "not a host"),
        ("imap://192.0.2.1.", "not a host"),
        ("imap://1", "not a host"),
        ("imap://mail..example", "not a host"),
        ("imap://.example", "not a host"),
        ("imap://mail example", "not a host"),
        ("imap://mail.example\n", "not a host"),
        ("imap://mäil.example", "not a host"),
        (f"imap://{'a' * 64}.example", "not a host"),
        (f"imap://{'.'.join(['a'] * 128)}", "not a host"),
    ],
)
def test_a_bad_url_is_refused_with_one_line(url, words):
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        remote_server(url)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(
            st.sampled_from(
                [
                    "imap",
                    "ldaps",
                    "%s",
                    "://",
                    ":",
                    "[",
                    "]",
                    "::1",
                    "/",
                    "@",
                    "%",
                    "143",
                    "a.b",
                    "\n",
                ]
            ),
            max_size=8,
        ).map("".join),
        st.text(max_size=20).map("imap://".__add__),
    )
)
def test_any_text_is_a_server_or_one_line_of_an_error(text):
    problem = ""
    try:
        server = remote_server(text)
    except ValueError as error:
        problem = str(error)
    assert problem.isprintable()
    if problem:
        return
    assert server.scheme in PORTS
    assert ("%s" in server.dn) == server.scheme.startswith("ldap")
    assert server.dn.isprintable()
    assert server.host.isascii()
    assert server.host.isprintable()
    assert 0 < server.port < 65536
    host = f"[{server.host}]" if ":" in server.host else server.host
    dn = f"/{server.dn}" if server.dn else ""
    assert remote_server(f"{server.scheme}://{host}:{server.port}{dn}") == server
