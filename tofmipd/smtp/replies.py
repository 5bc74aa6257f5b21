"""All replies with fixed texts (RFC 5321 section 4.2.3, RFC 3463, RFC 4954 section 6)."""

from __future__ import annotations

import math

from tofmipd.smtp.reply import Reply

OK = Reply(250, "0.0", ("Ok",))
BYE = Reply(221, "0.0", ("Bye",), closes=True)
HELP = Reply(
    214,
    "0.0",
    (
        "EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT",
        "Mail submission as in RFC 6409; log in first",
    ),
)
VRFY_NOT_TOLD = Reply(252, "0.0", ("I cannot verify an address, but will take mail for it",))
SENDER_OK = Reply(250, "1.0", ("Sender ok",))
RECIPIENT_OK = Reply(250, "1.5", ("Recipient ok",))
START_DATA = Reply(354, "", ("End data with <CR><LF>.<CR><LF>",))

EMPTY_COMMAND = Reply(500, "5.2", ("Error: bad syntax",))
LINE_TOO_LONG = Reply(500, "5.2", ("Error: line too long",), closes=True)
# RFC 4954 section 6.
AUTH_TOO_LONG = Reply(500, "5.6", ("Error: AUTH line too long",), closes=True)
COMMAND_TOO_LONG = Reply(500, "5.2", ("Error: command too long",))
BARE_LINE_END = Reply(500, "5.2", ("Error: a line must end with CR LF",), closes=True)
NOT_ASCII = Reply(500, "5.2", ("Error: commands are ASCII",))
NEED_HELLO_NAME = Reply(501, "5.4", ("Syntax: EHLO hostname",))
NEED_HELO_NAME = Reply(501, "5.4", ("Syntax: HELO hostname",))
NO_RSET_ARGUMENT = Reply(501, "5.4", ("Syntax: RSET",))
NO_DATA_ARGUMENT = Reply(501, "5.4", ("Syntax: DATA",))
VRFY_SYNTAX = Reply(501, "5.4", ("Syntax: VRFY address",))
MAIL_SYNTAX = Reply(501, "5.4", ("Syntax: MAIL FROM:<address>",))
RCPT_SYNTAX = Reply(501, "5.4", ("Syntax: RCPT TO:<address>",))
BAD_SENDER = Reply(501, "1.7", ("Error: the sender's address has bad syntax",))
BAD_RECIPIENT = Reply(501, "1.3", ("Error: the recipient's address has bad syntax",))
NEED_SMTPUTF8 = Reply(553, "6.7", ("Error: an address beyond ASCII needs MAIL with SMTPUTF8",))
# RFC 6531 section 3.5: another code for MAIL than for RCPT.
SENDER_NEEDS_SMTPUTF8 = Reply(550, "6.7", NEED_SMTPUTF8.lines)
BAD_SMTPUTF8 = Reply(501, "5.4", ("Syntax: SMTPUTF8 takes no value",))
BAD_RET = Reply(501, "5.4", ("Syntax: RET=FULL or RET=HDRS",))
BAD_ENVID = Reply(501, "5.4", ("Syntax: ENVID=xtext of at most 100 characters",))
BAD_NOTIFY = Reply(501, "5.4", ("Syntax: NOTIFY=NEVER, or of SUCCESS,FAILURE,DELAY",))
BAD_ORCPT = Reply(501, "5.4", ("Syntax: ORCPT=type;xtext",))
BAD_AUTH = Reply(501, "5.4", ("Syntax: AUTH=<> or AUTH=xtext",))
BAD_SIZE = Reply(501, "5.4", ("Syntax: SIZE=number",))
BAD_BODY = Reply(501, "5.4", ("Syntax: BODY=7BIT or BODY=8BITMIME",))
NESTED_MAIL = Reply(503, "5.1", ("Error: nested MAIL command",))
NEED_MAIL = Reply(503, "5.1", ("Error: need MAIL command",))
NEED_RCPT = Reply(503, "5.1", ("Error: need RCPT command",))
BDAT_GOES_ON = Reply(503, "5.1", ("Error: this message comes by BDAT",))
# How many octets follow is not known then, so nothing after it can be trusted.
BAD_BDAT = Reply(501, "5.4", ("Syntax: BDAT octets [LAST]",), closes=True)
TOO_MANY_RECIPIENTS = Reply(452, "5.3", ("Error: too many recipients",))
TOO_MANY_ERRORS = Reply(421, "7.0", ("Too many errors, closing the connection",), closes=True)

MESSAGE_TOO_BIG = Reply(552, "3.4", ("Error: the message exceeds the size limit",))
MUCH_TOO_BIG = Reply(552, "3.4", ("Error: the message is far beyond the size limit",), closes=True)
BARE_NEWLINE = Reply(550, "6.0", ("Error: the message holds a bare CR or LF",))
HEADER_TOO_BIG = Reply(552, "3.4", ("Error: the message's header is too big",))
TOO_MANY_HOPS = Reply(554, "4.6", ("Error: too many Received fields, the mail goes round",))
NO_ROOM = Reply(452, "3.1", ("Error: no room for the message now, try again later",))
INTERNAL_ERROR = Reply(451, "3.0", ("Error: internal error, the log has more",))

READY_FOR_TLS = Reply(220, "0.0", ("Ready to start TLS",))
NO_STARTTLS_ARGUMENT = Reply(501, "5.4", ("Syntax: STARTTLS",))
TLS_TWICE = Reply(503, "5.1", ("Error: the connection is encrypted already",))
TLS_NOT_OFFERED = Reply(503, "5.1", ("Error: STARTTLS is not offered here",))
TLS_AFTER_AUTH = Reply(503, "5.1", ("Error: STARTTLS must come before AUTH",))
TLS_REQUIRED = Reply(530, "7.0", ("Must issue a STARTTLS command first",))
TLS_AT_ONCE = Reply(500, "5.1", ("Error: TLS begins with STARTTLS here",), closes=True)
NOT_SMTP = Reply(
    421, "7.0", ("Error: this is a mail server, not what you are looking for",), closes=True
)

AUTH_REQUIRED = Reply(530, "7.0", ("Error: Authentication required",))
# What follows is too much to be thrown away.
AUTH_REQUIRED_BEFORE_BDAT = Reply(530, "7.0", AUTH_REQUIRED.lines, closes=True)
AUTH_SYNTAX = Reply(501, "5.4", ("Syntax: AUTH mechanism [initial-response]",))
# RFC 4954 section 4.
AUTH_SERVER_FIRST = Reply(501, "7.0", ("This AUTH type takes no initial response",))
AUTH_ACCEPTED = Reply(235, "7.0", ("AUTH successful",))
AUTH_REJECTED = Reply(535, "7.8", ("AUTH failed: user name or password is wrong",))
AUTH_TEMPORARY = Reply(454, "7.0", ("Temporary authentication failure",))
AUTH_TWICE = Reply(503, "5.1", ("Error: already authenticated",))
AUTH_IN_TRANSACTION = Reply(503, "5.1", ("Error: AUTH is not allowed during a transaction",))
AUTH_UNKNOWN = Reply(504, "5.4", ("AUTH type unimplemented",))
AUTH_NEEDS_TLS = Reply(538, "7.11", ("Encryption required for this AUTH type",))
AUTH_CANCELLED = Reply(501, "7.0", ("AUTH exchange cancelled",))
AUTH_MALFORMED = Reply(501, "5.2", ("malformed AUTH input",))
TOO_MANY_FAILURES = Reply(421, "7.0", ("Too many failed logins",), closes=True)

TIMED_OUT = Reply(421, "4.2", ("Timeout, closing the connection",), closes=True)
TOO_MANY_CONNECTIONS = Reply(421, "3.2", ("Too many connections from your address",), closes=True)
SHUTTING_DOWN = Reply(421, "3.2", ("The service is shutting down",), closes=True)


def greeting(host_name: str) -> Reply:
    return Reply(220, "", (f"{host_name} ESMTP tofmipd",))


def helo(host_name: str) -> Reply:
    return Reply(250, "", (host_name,))


def ehlo(host_name: str, keywords: tuple[str, ...]) -> Reply:
    return Reply(250, "", (host_name, *keywords))


def unknown_command(verb: str) -> Reply:
    """``verb`` is "" where it might be a secret."""
    named = f'"{verb[:40]}" ' if verb else ""
    return Reply(502, "5.1", (f"Error: command {named}not implemented",))


def unknown_parameter(name: str) -> Reply:
    return Reply(555, "5.4", (f'Error: parameter "{name[:40]}" not recognized',))


def chunk_taken(octets: int) -> Reply:
    """RFC 3030 section 2."""
    return Reply(250, "0.0", (f"{octets} octets received",))


def must_wait(seconds: float) -> Reply:
    """Too many logins of the client's address have failed, or of this user there."""
    text = f"Too many failed logins from your address, try again in {math.ceil(seconds)} seconds"
    return Reply(421, "7.0", (text,), closes=True)


def prompt(challenge: str) -> Reply:
    """A server challenge, already in base64 (RFC 4954 section 4)."""
    return Reply(334, "", (challenge,))
