"""Reads one small file of sysfs or procfs: a value, or None and the reason.

Flows in: a path. Flows out: text, or a number inside a plausible range. Nothing raises but GivenUp:
a sensor file that is absent, unreadable (EACCES), broken (EIO), empty or full of garbage is a fact
that the caller reports. So is a file whose driver does not answer. Python cannot end a thread that
hangs in a read; each read is therefore on record, and whoever supervises the thread (`in_time`, the
sampler's watchdog) leaves that one file out and goes on in another thread. Not here: which files
there are (the sensors beside this file), a service that hangs (monitor/sensor_watch.py).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

READ_LIMIT_S = 0.5
RETRY_AFTER_S = 60.0
_READ_BYTES = 4096

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


class GivenUp(Exception):
    """The calling thread was abandoned while it read. It must end and change nothing."""


@dataclass
class _LeftOut:
    """A file that did not answer. `is_stuck`: an abandoned thread still hangs in it."""

    reason: str
    retry_at_s: float
    is_stuck: bool = True

    @property
    def is_over(self) -> bool:
        return not self.is_stuck and time.monotonic() >= self.retry_at_s


_lock = threading.Lock()
"""Guards the ends of reads: a read has returned, or its thread is abandoned, and not both."""
_under_way: dict[int, tuple[str, float]] = {}
"""By thread: the file that it reads, and since when (monotonic seconds)."""
_left_out: dict[str, _LeftOut] = {}


def left_out(root: Path) -> dict[str, str]:
    """The files below `root` that are not read now because they did not answer, with reasons."""
    start = f"{str(root).rstrip('/')}/"
    return {at: one.reason for at, one in _left_out.copy().items() if at.startswith(start)}


def give_up(thread: int) -> float | None:
    """Abandon this thread if its read exceeds READ_LIMIT_S, and leave that file out.

    None: it was abandoned. Otherwise the seconds after which to ask again.
    """
    with _lock:
        path, since_s = _under_way.get(thread, ("", 0.0))
        left_s = since_s + READ_LIMIT_S - time.monotonic()
        if not path or left_s > 0:
            return min(READ_LIMIT_S, left_s) if path else READ_LIMIT_S
        del _under_way[thread]
        reason = f"{path}: a read did not return within {READ_LIMIT_S:g} s"
        _left_out[path] = _LeftOut(reason, time.monotonic() + RETRY_AFTER_S)
    _LOG.warning("%s; the file is left out", reason)
    return None


def in_time(work: Callable[[], T]) -> T:
    """The result of `work`, which reads files: begun anew without each file that does not answer.

    Raises what `work` raises.
    """
    while True:
        result: Future[T] = Future()
        thread = threading.Thread(target=_fill, args=(result, work), name="sensors", daemon=True)
        thread.start()
        left_s: float | None = READ_LIMIT_S
        while left_s is not None:
            if wait([result], left_s).done:
                return result.result()
            left_s = give_up(thread.ident or 0)


def _fill(result: Future[T], work: Callable[[], T]) -> None:
    try:
        result.set_result(work())
    except GivenUp:
        return
    except Exception as error:
        result.set_exception(error)


def read_text(path: Path | str, limit: int = _READ_BYTES) -> tuple[str | None, str]:
    """The file's text without surrounding white space and NULs, or None and the reason.

    Raises GivenUp in a thread that was abandoned meanwhile.

    >>> read_text("/proc/sys/kernel/ostype")
    ('Linux', '')
    """
    name, thread = os.fspath(path), threading.get_ident()
    left_out = _left_out.get(name)
    if left_out is not None and not left_out.is_over:
        return None, left_out.reason
    _under_way[thread] = (name, time.monotonic())
    raw, reason = _read(name, limit)
    with _lock:
        is_abandoned = _under_way.pop(thread, None) is None
        if is_abandoned:
            _left_out[name].is_stuck = False
            raise GivenUp
        if left_out is not None:
            _left_out.pop(name, None)
    if raw is None:
        return None, reason
    text = raw.decode("utf-8", "replace").strip("\0 \t\r\n")
    return (text, "") if text else (None, f"{path}: empty")


def _read(path: str, limit: int) -> tuple[bytes | None, str]:
    """At most `limit` bytes, or None and the reason. A named pipe is refused: it would block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None, f"{path}: it is not a regular file"
            raw = os.read(descriptor, limit)
            while limit > _READ_BYTES and (more := os.read(descriptor, limit - len(raw))):
                raw += more  # procfs gives a page at a time
            return raw, ""
        finally:
            os.close(descriptor)
    except OSError as error:
        return None, f"{path}: {error.strerror}"


def read_number(path: Path | str, low: float, high: float) -> tuple[float | None, str]:
    """A number in [low, high], or None and the reason.

    The range matters: a converter that has lost its measurement reports 65535 and no error.
    """
    text, reason = read_text(path)
    if text is None:
        return None, reason
    try:
        value = float(text)
    except ValueError:
        return None, f"{path}: {text[:40]!r} is not a number"
    if not low <= value <= high:
        return None, f"{path}: {text[:40]} is outside {low:g} to {high:g}"
    return value, ""


def listing(directory: Path, pattern: str) -> list[Path]:
    """Paths below `directory` that match, sorted; [] when the directory cannot be read."""
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []
