"""What a user's first message costs who has no worker yet, next to the second."""

import base64
import smtplib
import statistics
import time
from collections.abc import Sequence

from contenders import Contender
from launch import ALL_USERS, HOST, PASSWORD
from programs import Programs
from report import note
from running import all_running

MESSAGE = b"From: <a@example.org>\r\nTo: <b@example.net>\r\nSubject: x\r\n\r\nx\r\n"


def message_ms(port: int, user: str) -> float:
    """From MAIL to the reply to the message, in a session of its own that has logged in."""
    with smtplib.SMTP(HOST, port, timeout=30) as client:
        client.ehlo()
        code, text = client.docmd(
            "AUTH", "PLAIN " + base64.b64encode(f"\0{user}\0{PASSWORD}".encode()).decode()
        )
        if code != 235:
            raise RuntimeError(f"{user} cannot log in: {code} {text!r}")
        begun = time.perf_counter()
        client.sendmail("a@example.org", ["b@example.net"], MESSAGE)
        return (time.perf_counter() - begun) * 1000


def measure_cold(contenders: Sequence[Contender], programs: Programs) -> None:
    """Measure and print, for those that know many users."""
    chosen = [contender for contender in contenders if contender.many_users]
    print("| contender | users | first message ms, median (most) | second | added |")
    print("|---|---:|---:|---:|---:|")
    with all_running(chosen, programs) as running:
        for proxy in running:
            try:
                first = [message_ms(proxy.port, user) for user in ALL_USERS]
                second = [message_ms(proxy.port, user) for user in ALL_USERS]
            except (OSError, RuntimeError, smtplib.SMTPException) as error:
                note(f"{proxy.contender.name}: {error}")
                continue
            cold, warm = statistics.median(first), statistics.median(second)
            print(
                f"| {proxy.contender.name} | {len(first)} | {cold:.1f} ({max(first):.1f}) "
                f"| {warm:.1f} ({max(second):.1f}) | {cold - warm:.1f} |"
            )
