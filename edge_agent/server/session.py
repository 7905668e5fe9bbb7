"""One-time links and the browser sessions that they begin.

Why it exists: a browser cannot send a bearer token by itself, and a token in a link would stay in
the browser's history. Flows in: a request for a link from a caller who may ask for anything (Unix
socket or token). Flows out: a code that works once within five minutes, then a cookie that works
for twelve hours. Both are random, kept in memory only and hashed, and limited in number. Not here:
HTTP (dashboard.py), which requests a cookie lets in (auth.py).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

CODE_S = 300.0
SESSION_S = 12 * 3600.0
MAX_LIVE = 16
"""The most codes, and the most sessions, at a time; a new one replaces the oldest."""
SECRET_BYTES = 32


class _Secrets:
    """Live secrets by their hash, with the time at which each expires."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float]) -> None:
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._ends: dict[bytes, float] = {}

    def issue(self) -> str:
        secret = secrets.token_urlsafe(SECRET_BYTES)
        while len(self._ends) >= MAX_LIVE:
            del self._ends[min(self._ends, key=lambda one: self._ends[one])]
        self._ends[_hash(secret)] = self._clock() + self._lifetime_s
        return secret

    def is_live(self, secret: str) -> bool:
        """Whether the secret is known and has not expired.

        The look-up is by hash, so that its duration reveals nothing about a secret.
        """
        ends = self._ends.get(_hash(secret))
        return ends is not None and self._clock() < ends

    def use_up(self, secret: str) -> bool:
        """Whether the secret was live; it is not any more."""
        is_live = self.is_live(secret)
        self._ends.pop(_hash(secret), None)
        return is_live


class Sessions:
    """Codes and sessions, for the event loop's thread only. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._codes = _Secrets(CODE_S, clock)
        self._cookies = _Secrets(SESSION_S, clock)

    def code(self) -> str:
        """A new code for a link."""
        return self._codes.issue()

    def enter(self, code: str) -> str | None:
        """Exchange a code for a new cookie; None when the code is not live."""
        return self._cookies.issue() if self._codes.use_up(code) else None

    def is_valid(self, cookie: str) -> bool:
        """Whether this is the cookie of a session that has not expired."""
        return self._cookies.is_live(cookie)


def cookie_name(port: int) -> str:
    """The cookie's name contains the port, because browsers share cookies between ports of one
    host."""
    return f"edge_agent_{port}"


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
