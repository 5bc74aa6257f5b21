"""What is known of a transaction besides the message itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of the connection, and the address at this end that the client chose.

    Addresses are without brackets, "" where not known.
    """

    address: str = ""
    port: int = 0
    loopback: bool = False
    local_address: str = ""

    def __str__(self) -> str:
        return self.address or "unknown"


@dataclass(frozen=True, slots=True)
class Encryption:
    """What a TLS handshake has led to; version and cipher are "" where not known.

    ``at_once``: it came first on the connection (RFC 8314), not by STARTTLS.  ``certificate``
    is the client's, as DER, b"" for none that could be verified; ``names`` are whom it names.
    ``binding`` are the octets of the channel binding "tls-exporter" (RFC 9266), b"" for none.
    """

    version: str
    cipher: str
    at_once: bool = False
    certificate: bytes = b""
    names: tuple[str, ...] = ()
    binding: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        how = "SMTP over TLS" if self.at_once else "STARTTLS"
        names = " ".join(filter(None, (self.version, self.cipher)))
        return f"using {how}, {names}" if names else f"using {how}"


@dataclass(slots=True)
class Envelope:
    """One transaction (RFC 5321 section 3.3) and how it came in.

    ``sender`` is "" for the null reverse-path.  ``size_octets`` is what the client announced, 0
    if nothing.  ``protocol`` is the word for the "with" clause of Received (RFC 3848),
    ``encryption`` what that field says of TLS.  ``ret`` and ``envid`` are those of RFC 3461;
    ``notices`` holds for each recipient that has them its NOTIFY and ORCPT as RCPT has them.
    ``complete_at`` is when the message's last octet had come in, of time.monotonic(), 0 if nobody
    knows.
    """

    sender: str
    login: str = ""
    helo: str = ""
    protocol: str = "ESMTPA"
    peer: Peer = Peer()
    size_octets: int = 0
    eight_bit: bool = False
    recipients: list[str] = field(default_factory=list)
    encryption: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    notices: dict[str, str] = field(default_factory=dict)
    complete_at: float = field(default=0.0, compare=False)
