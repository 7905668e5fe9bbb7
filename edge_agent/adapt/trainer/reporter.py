"""What the trainer tells while it works, and how much memory it takes.

Why it exists: a step of a large model lasts a minute on a small board, and the front must see
meanwhile that the trainer is alive. So a thread sends the last progress again every second, and
samples the process's memory (RssAnon) ten times a second to find its peak. Flows in: progress after
each step. Flows out: TrainingProgress to the front, and `peak_bytes`. Not here: the socket
(process.py).
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
"""Seconds between two messages to the front."""
SAMPLE_S = 0.1
"""Seconds between two samples of RssAnon."""
_ROOT = Path("/")


class Reporter:
    """Use it as a context manager. A lock lets only one thread at a time call `send`.

    For example:

        with Reporter(link.send) as reporter:
            reporter.progress(phase="train", step=1)
    """

    def __init__(self, send: Callable[[FromTrainer], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="reporter", daemon=True)
        self.latest = TrainingProgress("prepare", 0, 0, 0.0)
        self.peak_bytes = 0
        """Highest RssAnon so far, in this process and, after a resume, in the earlier ones."""

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, **fields: Any) -> TrainingProgress:
        """Change some fields of the last TrainingProgress, send it and return it."""
        with self._lock:
            self.latest = msgspec.structs.replace(
                self.latest, rss_anon_bytes=self._sampled(), **fields
            )
            self._send(self.latest)
            return self.latest

    def note(self, text: str) -> None:
        """Set the note of the next TrainingProgress, which is sent within TELL_S."""
        with self._lock:
            self.latest = msgspec.structs.replace(self.latest, note=text)
            self._sampled()

    def tell(self, record: FromTrainer) -> None:
        """Send any other record."""
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
