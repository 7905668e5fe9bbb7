"""log.jsonl of a run: one JSON line for each step, flushed, never in the way of the training.

Flows in: dicts. Flows out: lines. A line that a kill tore is cut off when the log is opened again;
on a full disk lines wait in memory (the newest MAX_PENDING) until there is room. It is not synced:
after a power cut the last lines may be missing, and nothing is resumed from it. Not here:
checkpoints.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_PENDING = 10_000
_TAIL_BYTES = 1 << 16


class RunLog:
    """Open for appending. `close` it."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be opened at all."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._end = self._whole_lines()
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)

    def _whole_lines(self) -> int:
        """Bytes up to the last line end."""
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._descriptor, _TAIL_BYTES, start)
        return start + tail.rfind(b"\n") + 1

    def append(self, record: Mapping[str, Any]) -> None:
        """Never raises for want of space."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self._pending.append(line + b"\n")
        block = b"".join(self._pending)
        try:
            os.ftruncate(self._descriptor, self._end)
            if os.pwrite(self._descriptor, block, self._end) < len(block):
                return  # the part is cut off before the next try
        except OSError:
            return
        self._end += len(block)
        self._pending.clear()

    def close(self) -> None:
        os.close(self._descriptor)
