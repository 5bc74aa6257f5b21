"""Minimal authenticating SMTP proxy on aiosmtpd, a yardstick for compare.py.

    python3 aiosmtpd_proxy.py LISTEN_PORT NEXT_HOP_PORT USER PASSWORD

One asyncio event loop. Each message is forwarded with aiosmtplib over a new
next-hop connection before the client gets its final reply.
"""

import asyncio
import sys
from collections.abc import Callable

import aiosmtplib
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

LOOPBACK = "127.0.0.1"
NAME = "proxy.example.org"
BACKLOG = 1024

Authenticator = Callable[[SMTP, Session, Envelope, str, LoginPassword], AuthResult]


class Forwarder:
    """Hands each message to the next hop at once."""

    def __init__(self, next_hop_port: int) -> None:
        self._next_hop_port = next_hop_port

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """The reply to a message; aiosmtpd finds this method by its name."""
        try:
            async with aiosmtplib.SMTP(
                hostname=LOOPBACK,
                port=self._next_hop_port,
                local_hostname=NAME,
                start_tls=False,
            ) as next_hop:
                await next_hop.sendmail(
                    envelope.mail_from or "", envelope.rcpt_tos, envelope.original_content or b""
                )
        except (aiosmtplib.SMTPException, OSError) as error:
            return f"451 Forwarding failed: {type(error).__name__}"
        return "250 Ok"


def make_authenticator(user: bytes, password: bytes) -> Authenticator:
    """Accepts one user."""

    def authenticate(
        server: SMTP,
        session: Session,
        envelope: Envelope,
        mechanism: str,
        credentials: LoginPassword,
    ) -> AuthResult:
        success = credentials.login == user and credentials.password == password
        return AuthResult(success=success, handled=False)

    return authenticate


async def serve(listen_port: int, next_hop_port: int, user: str, password: str) -> None:
    """Serve until cancelled."""
    authenticator = make_authenticator(user.encode(), password.encode())

    def new_session() -> SMTP:
        return SMTP(
            Forwarder(next_hop_port),
            hostname=NAME,
            authenticator=authenticator,
            auth_required=True,
            auth_require_tls=False,
        )

    server = await asyncio.get_running_loop().create_server(
        new_session, LOOPBACK, listen_port, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    _, listen, next_hop, account, secret = sys.argv
    asyncio.run(serve(int(listen), int(next_hop), account, secret))
