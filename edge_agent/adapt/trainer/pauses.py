"""What the front last asked of the trainer: set by the reader thread, obeyed between two steps.

Flows in: Pause, Continue and Stop. Flows out: the reason to pause, whether to stop, and a wait that
ends as soon as either changes. Not here: sockets (process.py), obeying (interlude.py).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from edge_agent.adapt.messages import Continue, Pause, Stop, ToTrainer
from edge_agent.adapt.trainer.reporter import TELL_S, Reporter

RETRY_S = 5.0
STORAGE_CODES = {
    **{errno.ENOSPC: "storage_full", errno.EDQUOT: "storage_full"},
    **{errno.EROFS: "storage_failed", errno.EIO: "storage_failed"},
}
Result = TypeVar("Result")


class StopAsked(Exception):
    """The run ends here, to be resumed later; raised only where everything is saved."""


class FrontOrders:
    """Safe from several threads and from a signal handler of the main thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pause_reason: str | None = None
        self._is_stopping = False

    @property
    def pause_reason(self) -> str | None:
        """None: compute."""
        return self._pause_reason

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def take(self, message: ToTrainer) -> None:
        """A second Pause only changes the reason; nothing undoes a Stop."""
        with self._changed:
            match message:
                case Pause():
                    self._pause_reason = message.reason
                case Continue():
                    self._pause_reason = None
                case Stop():
                    self._is_stopping = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until the next order, at most `seconds`."""
        with self._changed:
            if not self._is_stopping:
                self._changed.wait(seconds)


class Pauses:
    """One per run, used by its main thread."""

    def __init__(self, orders: FrontOrders, reporter: Reporter) -> None:
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
