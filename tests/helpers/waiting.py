"""How tests wait for another thread or process: they poll, and give up after a generous deadline.

Flows in: a condition. Flows out: its first true value, or a failed test. No test may depend on the
machine's speed: DEADLINE_S catches conditions that never come true, not those that come late.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

DEADLINE_S = 120.0
"""Below pytest's limit for a test (pyproject.toml), so that the failure names the condition."""
POLL_S = 0.01

T = TypeVar("T")


def until(condition: Callable[[], T], poll_s: float = POLL_S) -> T:
    """Wait for and return the first true value of `condition`. `until_async` is for event loops."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not true within {DEADLINE_S:g} s: {found!r}"
        time.sleep(poll_s)
    return found


async def until_async(condition: Callable[[], T]) -> T:
    """As `until`, while the event loop runs."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not true within {DEADLINE_S:g} s: {found!r}"
        await asyncio.sleep(POLL_S)
    return found


def has_ended(pid: int) -> bool:
    """Whether the process has ended, also if its parent has not yet read its exit status."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except (FileNotFoundError, ProcessLookupError):
        return True


class ManualClock:
    """A clock that stands still until a test sets it. Pass it as `monotonic`."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
