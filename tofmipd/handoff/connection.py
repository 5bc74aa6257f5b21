"""One connection to a next hop: smtplib sets it up, the transactions are ours."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tofmipd.handoff.copy import Copy, HandOffFailed, Outcome, Taken
from tofmipd.handoff.nexthop import NextHop
from tofmipd.handoff.opening import NoLogin, open_client
from tofmipd.handoff.replies import BadReply, NextHopReply, ReplyReader, refusal
from tofmipd.handoff.xclient import Submitter
from tofmipd.smtp.reply import Reply, printable

_BATCH = 100
# A local part may be a quoted string, and may have a tag behind it.
_ADDRESS = re.compile(
    rb"[^\x00-\x20\x7f<>\"]*|"
    rb"\"(?:[^\x00-\x1f\x7f\"\\]|\\[ -~])*\"[^\x00-\x20\x7f<>\"]*@[^\x00-\x20\x7f<>\"]+"
)
_RECEIVE_OCTETS = 8192

_T = TypeVar("_T")
# A command, and the address that it is about if it is MAIL or RCPT.
_Entry = tuple[bytes, bytes | None]
_RESET: _Entry = (b"RSET\r\n", None)
_DATA: _Entry = (b"DATA\r\n", None)


class Stale(Exception):
    """A kept connection had gone before the next hop was ready for a message."""


class Connection:
    """An open, greeted, authenticated session with the next hop, which has been told of the
    ``submitter`` of the first message if it takes that.

    Raises HandOffFailed when it cannot be made.
    """

    def __init__(self, hop: NextHop, submitter: Submitter | None = None) -> None:
        self.hop = hop
        self._reader = ReplyReader()
        # Whether the next hop waits for a message, or has had one, since this was taken into use.
        self._committed = False
        self.messages = 0
        self.usable = True
        self._limit_seconds = 0.0
        # When it was last kept for another message; 0 for a connection that never was.
        self.idle_since = 0.0
        self._client = client = open_client(hop, submitter)
        self._learn_features()
        self._socket = client.sock
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _learn_features(self) -> None:
        self._features = {name.lower() for name in self._client.esmtp_features}
        self._batch = _BATCH if "pipelining" in self._features else 1

    def close(self) -> None:
        self.usable = False
        self._client.close()

    def quit(self) -> None:
        """Part politely; what the next hop says to it does not matter."""
        try:
            self._socket.settimeout(1)
            self._socket.sendall(b"QUIT\r\n")
        except OSError:
            pass
        self.close()

    @property
    def bound(self) -> bool:
        """Whether it is of use for messages of one client only."""
        return self._client.told is not None and not self._client.takes_xclient

    def fits(self, submitter: Submitter | None) -> bool:
        """Whether the next hop does not take that client, or us for None, for somebody else."""
        told = self._client.told
        return told is None or told == submitter or not (submitter is None or self.bound)

    def alive(self) -> bool:
        """Whether the next hop has neither closed nor said anything unasked."""
        return self.usable and self._reader.idle and not self._readable()

    def _readable(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))

    def send_all(self, copies: Sequence[Copy], taken: Taken) -> None:
        """See Transport.send_all.  Raises HandOffFailed, and Stale if this connection had been kept
        and is gone."""
        self._guarded(copies[0].submitter, lambda: self._transactions(copies, taken))

    def send_to_some(self, copy: Copy) -> Outcome:
        """See Transport.send_to_some.  Raises as ``send_all`` does."""
        return self._guarded(copy.submitter, lambda: self._partial_transaction(copy))

    def _guarded(self, submitter: Submitter | None, action: Callable[[], _T]) -> _T:
        """Do it for that client; any failure makes an end of this connection."""
        self._committed = False
        try:
            if submitter is not None and submitter != self._client.told:
                self._introduce(submitter)
            return action()
        except HandOffFailed:
            self.close()
            raise
        except (OSError, BadReply) as error:
            self.close()
            # Nothing of a message has gone yet: another connection may try.
            if self.idle_since and not self._committed and not isinstance(error, TimeoutError):
                raise Stale from error
            raise HandOffFailed(_lost(self.hop, error)) from error

    def _introduce(self, submitter: Submitter) -> None:
        """Tell of the client, if the next hop takes that.  Raises OSError, BadReply: for a
        connection that was kept there is another."""
        client = self._client
        # The client's own waits have other limits.
        self._limit_seconds = 0.0
        if client.introduce(submitter):
            if self.hop.logs_in:
                try:
                    client.log_in()
                except NoLogin as error:
                    raise ConnectionAbortedError(str(error)) from error
            client.expect_silence()
            self._learn_features()
        elif client.told is not None:
            raise ConnectionAbortedError("it takes this client for another")

    def _transactions(self, copies: Sequence[Copy], taken: Taken) -> None:
        """Senders and recipients of all copies come before the first message; those of the
        others are taken back, for a next hop knows one transaction at a time."""
        first, *others = copies
        offers = [entry for copy in others for entry in (*self._envelope(copy), _RESET)]
        self._begin_message([*offers, *self._envelope(first), _DATA])
        taken(self._message(first))
        for copy in others:
            self._begin_message([*self._envelope(copy), _DATA])
            taken(self._message(copy))

    def _partial_transaction(self, copy: Copy) -> Outcome:
        """Leave out recipients that are refused, as long as one is not."""
        (mail, _), *recipients = self._envelope(copy)
        self._commands([(mail, copy.sender)])
        refused: dict[bytes, Reply] = {}
        for start in range(0, len(recipients), self._batch):
            batch = recipients[start : start + self._batch]
            self._send(b"".join([command for command, _ in batch]))
            for _, address in batch:
                reply = self._answer()
                if reply.code // 100 != 2 and address is not None:
                    refused[address] = refusal(reply, address.decode("utf-8", "replace"))
        if len(refused) == len(set(copy.recipients)):
            self._commands([_RESET])
            return Outcome("", refused)
        self._begin_message([_DATA])
        return Outcome(self._message(copy), refused)

    def _begin_message(self, entries: Sequence[_Entry]) -> None:
        reply = self._commands(entries)
        if reply.code != 354:
            raise HandOffFailed(refusal(reply), heard=True)
        self._committed = True

    def _message(self, copy: Copy) -> str:
        """Give the message itself; returns what the next hop says of it."""
        try:
            self._send_body(copy)
        except ConnectionError as error:
            early = self._early_reply()
            if early is None or early.code < 400:
                raise error
            raise HandOffFailed(refusal(early), heard=True) from error
        reply = self._reply(self.hop.dot_timeout)
        if reply.code // 100 != 2:
            raise HandOffFailed(refusal(reply), heard=True)
        if not self._reader.idle:
            self.usable = False
        self.messages += 1
        return str(reply)

    def _envelope(self, copy: Copy) -> list[_Entry]:
        """MAIL and RCPT commands, each with the address that a refusal is about."""
        entries: list[_Entry] = [(self._mail_command(copy), copy.sender)]
        notices = copy.parameters.notices
        for address in copy.recipients:
            command = b"RCPT TO:<%s>" % _checked(address)
            if address in notices:
                command += b" " + notices[address]
            entries.append((command + b"\r\n", address))
        return entries

    def _mail_command(self, copy: Copy) -> bytes:
        """With all that was asked for.  Raises HandOffFailed where the next hop has it not."""
        parameters = copy.parameters
        command = b"MAIL FROM:<%s>" % _checked(copy.sender)
        if "size" in self._features:
            command += b" SIZE=%d" % copy.size_octets
        if parameters.eight_bit and "8bitmime" in self._features:
            command += b" BODY=8BITMIME"
        elif parameters.eight_bit and not self.hop.pass_eight_bit:
            raise _impossible(554, "6.3", "does not take 8-bit messages")
        to_all = all(address.isascii() for address in copy.recipients)
        if "smtputf8" in self._features:
            if parameters.smtputf8 or not (to_all and copy.sender.isascii()):
                command += b" SMTPUTF8"
        elif not copy.sender.isascii():
            # RFC 6531 section 3.5: another code than for a recipient's.
            raise _impossible(550, "6.7", "does not take addresses beyond ASCII")
        elif not to_all:
            raise _impossible(553, "6.7", "does not take addresses beyond ASCII")
        elif parameters.smtputf8 and not copy.header.isascii():
            raise _impossible(554, "6.9", "does not take header fields beyond ASCII")
        if parameters.dsn:
            if "dsn" not in self._features:
                raise _impossible(554, "3.3", "does not send the notifications asked for (DSN)")
            command += b" RET=%s" % parameters.ret.encode() if parameters.ret else b""
            command += b" ENVID=%s" % parameters.envid.encode() if parameters.envid else b""
        return command + b"\r\n"

    def _commands(self, entries: Sequence[_Entry]) -> NextHopReply:
        """Send all, together where the next hop takes that (RFC 2920); the last reply.

        Raises HandOffFailed for the first refusal of a sender or of a recipient.
        """
        for start in range(0, len(entries), self._batch):
            batch = entries[start : start + self._batch]
            self._send(b"".join([command for command, _ in batch]))
            for _, about in batch:
                reply = self._answer()
                if about is not None and reply.code // 100 != 2:
                    who = about.decode("utf-8", "replace")
                    raise HandOffFailed(refusal(reply, who), heard=True)
        return reply

    def _answer(self) -> NextHopReply:
        """The reply to a command; 421 is the end of the connection, whatever it was."""
        reply = self._reply(self.hop.reply_timeout)
        if reply.code == 421 and self.idle_since and not self._committed:
            raise ConnectionResetError("closed by the next hop")
        return reply

    def _send(self, octets: bytes) -> None:
        """Raises TimeoutError, ConnectionError."""
        self._limit(self.hop.reply_timeout)
        self._socket.sendall(octets)

    def _limit(self, seconds: float) -> None:
        """How long each call may take; telling the system costs as much as a call."""
        if seconds != self._limit_seconds:
            self._socket.settimeout(seconds)
            self._limit_seconds = seconds

    def _send_body(self, copy: Copy) -> None:
        """The body goes out in its blocks; the last one, with the dot, ends a line.

        Each of them has the time of a reply.
        """
        self._limit(self.hop.reply_timeout)
        held, before = b"", b""
        for block in copy.blocks():
            if held:
                self._socket.sendall(held)
                before = held[-1:]
            held = block
        self._expect_silence()
        ends_a_line = (before + held).endswith(b"\r\n")
        self._socket.sendall(held + (b".\r\n" if ends_a_line else b"\r\n.\r\n"))

    def _expect_silence(self) -> None:
        """What is said before the dot would be taken for the reply to it.

        Raises ConnectionError.
        """
        if self._readable():
            self._limit(0)
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                self._reader.feed(self._received())
            self._limit(self.hop.reply_timeout)
        if not self._reader.idle:
            raise ConnectionAbortedError("it did not wait for the end of the message")

    def _reply(self, limit_seconds: float) -> NextHopReply:
        """The next reply.  Raises TimeoutError, ConnectionError, BadReply."""
        if (reply := self._reader.reply()) is not None:
            return reply
        deadline = time.monotonic() + limit_seconds
        left = limit_seconds
        while reply is None:
            if left <= 0:
                raise TimeoutError("no whole reply in time")
            self._limit(left)
            self._reader.feed(self._received())
            reply = self._reader.reply()
            left = deadline - time.monotonic()
        return reply

    def _received(self) -> bytes:
        octets = self._socket.recv(_RECEIVE_OCTETS)
        if not octets:
            raise ConnectionResetError("closed by the next hop")
        return octets

    def _early_reply(self) -> NextHopReply | None:
        """What the next hop said before it closed in the middle of a message."""
        try:
            return self._reply(1)
        except (OSError, BadReply):
            return None


def _impossible(code: int, detail: str, what: str) -> HandOffFailed:
    """Nothing is ever left out or changed without a word: the client is told instead."""
    return HandOffFailed(Reply(code, detail, (f"The next hop {what}",)))


def _checked(address: bytes) -> bytes:
    """The address as it may stand between angle brackets."""
    if not _ADDRESS.fullmatch(address):
        text = printable(f"not an address: {address.decode('utf-8', 'replace')}", 120)
        raise HandOffFailed(Reply(451, "3.5", (text,)))
    return address


def _lost(hop: NextHop, error: Exception) -> Reply:
    if isinstance(error, BadReply):
        return _temporary("5.0", f"next hop {hop}: {error}")
    if isinstance(error, TimeoutError):
        return _temporary("4.2", f"next hop {hop} does not answer in time")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _temporary("4.2", f"connection to next hop {hop} lost: {reason}")


def _temporary(detail: str, text: str) -> Reply:
    return Reply(451, detail, (printable(text),))
