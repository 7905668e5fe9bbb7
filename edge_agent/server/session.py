"""One-time links and the browser sessions they begin.

Why: a browser cannot send a bearer token by itself, and the token in a link would stay in its
history. Flows in: a wish for a link from somebody who may ask for anything (Unix socket or token).
Flows out: a code that works once within five minutes, then a cookie that works for twelve hours.
Both are random, kept in memory only (hashed), and bounded in number. Not here: HTTP (dashboard.py),
where a cookie counts (auth.py).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

CODE_S = 300.0
SESSION_S = 12 * 3600.0
MAX_LIVE = 16
"""Of codes, and of sessions; the oldest gives way."""
SECRET_BYTES = 32


class _Secrets:
    """Live secrets by hash, with the time at which each ends."""

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
        """Looked up by hash, so that the time it takes tells nothing about a secret."""
        ends = self._ends.get(_hash(secret))
        return ends is not None and self._clock() < ends

    def use_up(self, secret: str) -> bool:
        is_live = self.is_live(secret)
        self._ends.pop(_hash(secret), None)
        return is_live


class Sessions:
    """Used by the event loop only. `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._codes = _Secrets(CODE_S, clock)
        self._cookies = _Secrets(SESSION_S, clock)

    def code(self) -> str:
        """A new code for a link."""
        return self._codes.issue()

    def enter(self, code: str) -> str | None:
        """The cookie for a code, which is used up by this; None for any other text."""
        return self._cookies.issue() if self._codes.use_up(code) else None

    def is_valid(self, cookie: str) -> bool:
        return self._cookies.is_live(cookie)


def cookie_name(port: int) -> str:
    """Browsers share cookies between the ports of one host."""
    return f"edge_agent_{port}"


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
