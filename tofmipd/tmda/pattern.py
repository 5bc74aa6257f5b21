"""The pattern language of filters (TMDA reference, section 4.8)."""

from __future__ import annotations

import fnmatch
import re


def compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """A pattern as an expression to ``fullmatch`` against a lower-case key.

    ``*``, ``?`` and sets are those of the shell, also across ``@`` and dots; backslash is
    literal.  If the last ``@`` is followed by ``=``, the domain and all its sub-domains match.
    """
    text = pattern.lower().decode("latin-1")
    expression = fnmatch.translate(text)
    local, at, domain = text.rpartition("@")
    if at and domain.startswith("="):
        own = fnmatch.translate(f"{local}@{domain[1:]}")
        below = fnmatch.translate(f"{local}@*.{domain[1:]}")
        expression = f"{own}|{below}"
    return re.compile(expression.encode("latin-1"))
