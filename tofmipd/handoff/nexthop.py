"""What is known of a next hop before it is called on."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

MESSAGES_PER_CONNECTION = 100
# Before the fingerprint of a certificate.
FINGERPRINT = "fingerprint:"


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where to, as whom, how; times are in seconds.  Equal ones share connections.

    ``tls`` is "off", "starttls" or "implicit" (RFC 8314 section 3.3).  ``trust`` is "verify",
    "encrypt" for any certificate, or "fingerprint:" and the SHA-256 of the right one in
    hexadecimal; "" verifies, but on this machine only by ``cafile``.
    """

    host: str
    port: int = 25
    username: str = ""
    password: str = field(default="", repr=False)
    tls: str = "off"
    trust: str = ""
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    # The password may go to another machine as it is, without TLS.
    clear_password: bool = False
    local_name: str = "localhost"
    connect_timeout: float = 30
    reply_timeout: float = 120
    dot_timeout: float = 600
    messages: int = MESSAGES_PER_CONNECTION
    # Send 8-bit messages also where 8BITMIME is not offered.
    pass_eight_bit: bool = False
    # How whoever chose it is to name another ``cafile``.
    cafile_setting: str = "SMTPSSL_CAFILE"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def logs_in(self) -> bool:
        """Whether there is a login of ours for it."""
        return bool(self.username and self.password)

    @property
    def loopback(self) -> bool:
        """Whether it is on this very machine, as its name alone tells."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def fingerprint(self) -> str:
        """Of the only certificate that is trusted, in lower case; "" where that is not asked."""
        if not self.trust.startswith(FINGERPRINT):
            return ""
        return self.trust.removeprefix(FINGERPRINT).replace(":", "").lower()

    @property
    def verified(self) -> bool:
        """Whether an authority must vouch for the certificate, and it be good for the host."""
        return self.trust == "verify" or not (self.trust or (self.loopback and not self.cafile))
