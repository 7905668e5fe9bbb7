"""log.jsonl of a run: one JSON line for each step; a log that cannot be written stops no training.

Why it exists: people and tools follow a run by its log. Flows in: dicts. Flows out: lines. An
incomplete last line, left by a kill, is cut off when the log is opened again. On a full disk the
newest MAX_PENDING lines wait in memory until there is room. The file is not synced, so a power cut
may lose the last lines; a resumed run does not read them. Not here: checkpoints (checkpoint.py).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.json_lines import dumps

MAX_PENDING = 10_000
"""Lines that wait in memory while the disk is full."""
_TAIL_BYTES = 1 << 16


class RunLog:
    """The log, open for appending until `close`."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when the file cannot be opened."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        self._end = self._whole_lines()
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)

    def _whole_lines(self) -> int:
        """Number of bytes up to and including the last line end."""
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - _TAIL_BYTES)
        tail = os.pread(self._descriptor, _TAIL_BYTES, start)
        return start + tail.rfind(b"\n") + 1

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a line, or keep it for the next call if the disk refuses it. Raises no OSError."""
        line = dumps(record).encode("utf-8", "backslashreplace")
        self._pending.append(line + b"\n")
        block = b"".join(self._pending)
        try:
            os.ftruncate(self._descriptor, self._end)
            if os.pwrite(self._descriptor, block, self._end) < len(block):
                return  # the next call cuts off the part that was written
        except OSError:
            return
        self._end += len(block)
        self._pending.clear()

    def close(self) -> None:
        os.close(self._descriptor)
