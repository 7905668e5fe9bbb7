"""Reads one small file of sysfs or procfs: a value, or None and the reason.

Flows in: a path. Flows out: text, or a number inside a plausible range. Nothing raises: a sensor
file that is absent, unreadable (EACCES), broken (EIO), empty or full of garbage is a fact that the
caller reports. Not here: which files there are (the sensors beside this file).
"""

from __future__ import annotations

import os
from pathlib import Path

_READ_BYTES = 4096


def read_text(path: Path | str, limit: int = _READ_BYTES) -> tuple[str | None, str]:
    """The file's text without surrounding white space and NULs, or None and the reason.

    >>> read_text("/proc/sys/kernel/ostype")
    ('Linux', '')
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    try:
        raw = os.read(descriptor, limit)
    except OSError as error:
        return None, f"{path}: {error.strerror}"
    finally:
        os.close(descriptor)
    text = raw.decode("utf-8", "replace").strip("\0 \t\r\n")
    return (text, "") if text else (None, f"{path}: empty")


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
