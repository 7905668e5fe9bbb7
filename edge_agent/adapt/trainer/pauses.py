"""The front's orders to pause or stop, and the waits of the trainer between two steps.

Why it exists: the trainer must make room for answers within one step, and a disk that is full or
fails must not end a run: the run then pauses with its last good checkpoint, and the save is tried
again until it succeeds or the front stops the run. Flows in: Pause, Continue and Stop from the
reader thread; functions that save. Flows out: the right to go on, or StopAsked once everything is
saved. Not here: the socket (process.py), what is saved (training_loop.py), when to pause
(adapt/pause_policy.py).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TypeVar

from edge_agent.adapt.messages import Continue, Pause, Stop, ToTrainer
from edge_agent.adapt.trainer.reporter import TELL_S, Reporter

RETRY_S = 5.0
"""Seconds between two tries to save on a disk that is full or fails."""
STORAGE_CODES = {
    **{errno.ENOSPC: "storage_full", errno.EDQUOT: "storage_full"},
    **{errno.EROFS: "storage_failed", errno.EIO: "storage_failed"},
}
Result = TypeVar("Result")


class StopAsked(Exception):
    """The front stops the run, which can be resumed later. Raised only when everything is saved."""


class FrontOrders:
    """The front's last orders. Safe to use from several threads, and from a signal handler of the
    main thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pause_reason: str | None = None
        self._is_stopping = False

    @property
    def pause_reason(self) -> str | None:
        """Why the run shall pause; None: it shall compute."""
        return self._pause_reason

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def take(self, message: ToTrainer) -> None:
        """Record an order. A second Pause changes only the reason; a Stop cannot be undone."""
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
        """Wait for the next order, at most `seconds`."""
        with self._changed:
            if not self._is_stopping:
                self._changed.wait(seconds)


class Pauses:
    """Lets the main thread of a run pause, stop and save. One object for each run."""

    def __init__(self, orders: FrontOrders, reporter: Reporter) -> None:
        self._orders = orders
        self._reporter = reporter

    def rest(self, save: Callable[[], object] | None = None) -> None:
        """Return at once without orders; else call `save`, and wait while there is a reason to
        pause. Raises StopAsked when the front stops the run.

            pauses.rest(lambda: checkpoints.save(checkpoint))
        """
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
        """Call `write` until the disk accepts it, and return its result.

        While the disk is full or fails, the run pauses, and `write` is called again every RETRY_S
        seconds. Raises StopAsked when the front stops the run meanwhile, and any OSError that is
        not in STORAGE_CODES.
        """
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
