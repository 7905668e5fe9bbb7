"""The feedback on this machine, for the CLI, with or without a daemon.

Flows in: the daemon or the state directory (local_state.py). Flows out: plain documents, as the API
has them (server/feedback.py). Only a daemon remembers answers that something could be said about.
Not here: the rules (adapt/feedback.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_agent.client.connection import Client
from edge_agent.client.local_state import LocalState, open_state
from edge_agent.models.which_model import ABSENT

PATH = "/v1/feedback"
PAGE = 64
"""Rows of one answer of the daemon (server/feedback.py)."""


@contextmanager
def open_feedback(state_dir: Path | None, environ: Mapping[str, str]) -> Iterator[Feedback]:
    """The daemon's feedback if one answers, else the state directory's. Raises DaemonRunning."""
    with open_state(state_dir, environ) as found:
        yield DaemonFeedback(found) if isinstance(found, Client) else LocalFeedback(found)


@dataclass(frozen=True)
class DaemonFeedback:
    """Through /v1/feedback of the running daemon. `model` None: every model.

    Methods raise what the daemon answers, or adapt/feedback.py's errors.
    """

    client: Client

    def add(self, opinion: Mapping[str, Any]) -> dict[str, Any]:
        """`opinion` as POST /v1/feedback takes it; the stored row. Raises FeedbackNotFound."""
        return self.client.post(PATH, opinion)

    def rows(self, model: str | None, n: int) -> list[dict[str, Any]]:
        """The newest n, newest first."""
        rows: list[dict[str, Any]] = []
        before: int | None = 0
        while before is not None and len(rows) < n:
            size = min(n - len(rows), PAGE)
            page = self.client.get(f"{PATH}?n={size}&before={before}{_and_model(model)}")
            rows += page["feedback"]
            before = page["next_before"]
        return rows

    def waiting(self, model: str | None) -> dict[str, int]:
        """How many corrections and approved answers no adapter has learned, and bad ones."""
        return dict(self.client.get(f"{PATH}?n=0{_and_model(model)}")["waiting"])

    def remove(self, number: int) -> None:
        """Raises FeedbackNotFound."""
        self.client.delete(f"{PATH}/{number}", {})

    def lessons(self, model: str | None) -> Iterator[dict[str, Any]]:
        """{"messages": [...]}: what is learned, oldest first."""
        yield from self.client.lines(f"{PATH}/export?{_and_model(model)}", None)

    def add_lessons(self, documents: Sequence[Any], model: str | None) -> int:
        """All or none; how many. `model` None: the one that is meant (models/which_model.py)."""
        body = {"rows": list(documents), "model": model}
        return int(self.client.post(f"{PATH}/import", body)["stored"])


def _untagged(model: str | None) -> str | None:
    """Feedback is on a model, whichever of its adapters answered."""
    name = (model or "").partition(":")[0]
    return None if name in ABSENT else name


def _and_model(model: str | None) -> str:
    return f"&model={quote(model, safe='')}" if model else ""


@dataclass(frozen=True)
class LocalFeedback:
    """The same, directly."""

    local: LocalState

    def rows(self, model: str | None, n: int) -> list[dict[str, Any]]:
        from edge_agent.adapt import feedback
        from edge_agent.store.feedback_table import FeedbackQuery

        found = feedback.page(self.local.store, FeedbackQuery(model=_untagged(model), limit=n))
        return [feedback.shown(row) for row in found]

    def waiting(self, model: str | None) -> dict[str, int]:
        from edge_agent.adapt import feedback

        return asdict(feedback.waiting(self.local.store, _untagged(model)))

    def remove(self, number: int) -> None:
        from edge_agent.adapt import feedback

        feedback.remove(self.local.store, number)

    def lessons(self, model: str | None) -> Iterator[dict[str, Any]]:
        from edge_agent.adapt import feedback
        from edge_agent.store.feedback_table import FeedbackQuery

        for rows in feedback.lessons(self.local.store, FeedbackQuery(model=_untagged(model))):
            yield from map(feedback.lesson_line, rows)

    def add_lessons(self, documents: Sequence[Any], model: str | None) -> int:
        from edge_agent.adapt import feedback

        name = self.local.model(model)
        user, at = f"uid:{os.getuid()}", time.time()
        rows = feedback.imported_rows(documents, model=name, user=user, at=at)
        return len(feedback.add(self.local.store, rows, self.local.settings.feedback_quota))


Feedback = DaemonFeedback | LocalFeedback
