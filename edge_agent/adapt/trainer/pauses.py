"""What the front last asked of the trainer: set by the reader thread, obeyed between two steps.

Flows in: Pause, Continue and Stop. Flows out: the reason to pause, whether to stop, and a wait that
ends as soon as either changes. Not here: sockets (process.py), obeying (interlude.py).
"""

from __future__ import annotations

import threading

from edge_agent.adapt.messages import Continue, Pause, Stop, ToTrainer


class StopAsked(Exception):
    """The run ends here, to be resumed later; raised only where everything is saved."""


class Orders:
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
