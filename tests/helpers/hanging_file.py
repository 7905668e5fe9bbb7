"""A file whose driver does not answer: reads of it block until the test lets them go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import until

from edge_agent.monitor.sensors import kernel_file

LIMIT_S = 0.2
"""In place of half a second, so that a test is short."""


@contextmanager
def hanging(*paths: Path) -> Iterator[threading.Event]:
    """Every read of `paths` blocks until the event is set, or until the block ends."""
    goes_on = threading.Event()
    real = kernel_file._read

    def read(path: str, limit: int) -> tuple[bytes | None, str]:
        if Path(path) in paths:
            goes_on.wait()
        return real(path, limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_file, "_read", read)
        patch.setattr(kernel_file, "READ_LIMIT_S", LIMIT_S)
        try:
            yield goes_on
        finally:
            goes_on.set()
            until(lambda: not any(one.is_stuck for one in kernel_file._left_out.values()))
            kernel_file._left_out.clear()
