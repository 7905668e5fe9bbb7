"""What the trainer tells while it works, and how much memory it takes.

Flows in: Progress after each step. Flows out: the same to the front, again every second while a
step lasts; RssAnon sampled ten times a second, from which the peak is known. A thread of its own,
because a step of a large model lasts a minute on a small board. Not here: the socket (process.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.adapt.messages import FromTrainer, TrainingProgress
from edge_agent.monitor.sensors.memory import rss_anon_bytes

TELL_S = 1.0
SAMPLE_S = 0.1
_ROOT = Path("/")


class Reporter:
    """Use as a context manager. `send` is called by one thread at a time."""

    def __init__(self, send: Callable[[FromTrainer], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="reporter", daemon=True)
        self.latest = TrainingProgress("prepare", 0, 0, 0.0)
        self.peak_bytes = 0
        """Highest RssAnon seen so far, this process and (after a resume) those before."""

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, **fields: Any) -> TrainingProgress:
        """Change some fields of the last Progress and send it."""
        with self._lock:
            self.latest = msgspec.structs.replace(
                self.latest, rss_anon_bytes=self._sampled(), **fields
            )
            self._send(self.latest)
            return self.latest

    def note(self, text: str) -> None:
        """What the next Progress says: within a second, or with the next step."""
        with self._lock:
            self.latest = msgspec.structs.replace(self.latest, note=text)
            self._sampled()

    def tell(self, record: FromTrainer) -> None:
        """Any other record."""
        with self._lock:
            self._send(record)

    def _tick(self) -> None:
        samples = round(TELL_S / SAMPLE_S)
        count = 0
        while not self._ended.wait(SAMPLE_S):
            count += 1
            with self._lock:
                now_bytes = self._sampled()
                if count % samples == 0:
                    self.latest = msgspec.structs.replace(self.latest, rss_anon_bytes=now_bytes)
                    self._send(self.latest)

    def _sampled(self) -> int | None:
        now_bytes = rss_anon_bytes(_ROOT, os.getpid())
        self.peak_bytes = max(self.peak_bytes, now_bytes or 0)
        return now_bytes
