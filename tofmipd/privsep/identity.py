"""Whom a session has proved to be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The account to become, and the name of the login.  They differ for virtual users only."""

    account: str
    login: str
