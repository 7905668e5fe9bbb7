"""The C library's heap: large arrays are mapped alone, and what is freed goes back to the system.

Why it exists: glibc raises its threshold for mapping to the largest block ever freed, after which a
freed buffer of 20 MB stays with the process; a plan in bytes would be a guess. And the vocabulary
of Gemma, read once, would leave 20 MB of holes for the whole run. Does nothing where the C library
is another one. Not here: what is allocated.
"""

from __future__ import annotations

import contextlib
import ctypes

MAPPED_BYTES = 1 << 20
"""Blocks from this size on. The trainer's large buffers are made once and used again."""
_M_MMAP_THRESHOLD = -3


def map_large_blocks() -> None:
    """For the rest of the process's life."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def give_back() -> None:
    """What is free in the heap, to the system."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
