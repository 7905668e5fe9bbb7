"""Between two steps: obey the front, and wait for room on a full disk.

Flows in: what to save and how. Flows out: the right to go on, or StopAsked once everything is
saved. A disk that is full or fails pauses the run with its last good checkpoint; the save is tried
again until it succeeds or the front gives up. Not here: what is saved (training_loop.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TypeVar

from edge_agent.adapt.trainer.pauses import Orders, StopAsked
from edge_agent.adapt.trainer.reporter import TELL_S, Reporter

RETRY_S = 5.0
STORAGE_CODES = {
    **{errno.ENOSPC: "storage_full", errno.EDQUOT: "storage_full"},
    **{errno.EROFS: "storage_failed", errno.EIO: "storage_failed"},
}

Result = TypeVar("Result")


class Interlude:
    """One per run, used by its main thread."""

    def __init__(self, orders: Orders, reporter: Reporter) -> None:
        self._orders = orders
        self._reporter = reporter

    def rest(self, save: Callable[[], object] | None = None) -> None:
        """Returns when there is no reason to pause. Raises StopAsked. Saves before either."""
        if self._orders.pause_reason is None and not self._orders.is_stopping:
            return
        if save is not None:
            self.persist(save)
        phase = self._reporter.latest.phase
        while not self._orders.is_stopping:
            reason = self._orders.pause_reason
            if reason is None:
                self._reporter.progress(phase=phase, note="")
                return
            if (self._reporter.latest.phase, self._reporter.latest.note) != ("paused", reason):
                self._reporter.progress(phase="paused", note=reason)
            self._orders.wait(TELL_S)
        raise StopAsked

    def persist(self, write: Callable[[], Result]) -> Result:
        """What `write` returns, once the disk lets it. Raises StopAsked, other OSErrors."""
        before = self._reporter.latest
        while True:
            try:
                result = write()
            except OSError as error:
                code = STORAGE_CODES.get(error.errno or 0)
                if code is None:
                    raise
                self._wait_for_storage(code, error)
                continue
            if self._reporter.latest.code:
                self._reporter.progress(phase=before.phase, note=before.note, code="")
            return result

    def _wait_for_storage(self, code: str, error: OSError) -> None:
        if self._orders.is_stopping:
            raise StopAsked
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        note = f"the disk cannot be written: {reason}{where}; the last checkpoint is whole"
        self._reporter.progress(phase="paused", note=note, code=code)
        self._orders.wait(RETRY_S)
