"""The C library's heap: large arrays get mappings of their own, and freed memory is returned.

Why it exists: glibc maps large blocks separately and returns them when they are freed, but it
raises the threshold for "large" to the size of the largest block freed so far. After that, a freed
buffer of 20 MB stays with the process, and a plan in bytes would be a guess. Also, Gemma's
vocabulary, which is loaded once, would leave 20 MB of holes for the whole run. Flows in: nothing.
Flows out: settings of the C library; with a library other than glibc the functions do nothing. Not
here: what is allocated (memory_estimate.py).
"""

from __future__ import annotations

import contextlib
import ctypes

MAPPED_BYTES = 1 << 20
"""Blocks of at least this size get a mapping of their own. The cost of a mapping does not matter,
because the trainer's large buffers are made once and used again."""
_M_MMAP_THRESHOLD = -3


def map_large_blocks() -> None:
    """Fix glibc's threshold for mappings at MAPPED_BYTES for the rest of the process's life."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def give_back() -> None:
    """Return the heap's free memory to the system."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
