"""The feedback on this machine, for the CLI, with or without a daemon.

Flows in: a state directory. Flows out: plain documents, as the API has them (server/feedback.py).
While a daemon runs everything goes through it; without one, STATE/lock is held for as long as the
library is open, as models.py does. Only a daemon remembers answers that something could be said
about. Not here: the rules (adapt/feedback.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from edge_agent.client.connection import Client, state_dir_of
from edge_agent.client.models import DaemonModels, LocalModels, open_library
from edge_agent.models.which_model import ABSENT, which_model

if TYPE_CHECKING:
    from edge_agent.config import Settings
    from edge_agent.store.store import Store

PATH = "/v1/feedback"
PAGE = 64
"""Rows of one answer of the daemon (server/feedback.py)."""


class Feedback(Protocol):
    """`model` None: every model. Methods raise what the daemon answers, or adapt/feedback.py's
    errors."""

    def rows(self, model: str | None, n: int) -> list[dict[str, Any]]:
        """The newest n, newest first."""
        ...

    def waiting(self, model: str | None) -> dict[str, int]:
        """How many corrections and approved answers no adapter has learned, and bad ones."""
        ...

    def remove(self, number: int) -> None:
        """Raises FeedbackNotFound."""
        ...

    def lessons(self, model: str | None) -> Iterator[dict[str, Any]]:
        """{"messages": [...]}: what is learned, oldest first."""
        ...

    def add_lessons(self, documents: Sequence[Any], model: str | None) -> int:
        """All or none; how many. `model` None: the default one."""
        ...


@contextmanager
def open_feedback(state_dir: Path | None, environ: Mapping[str, str]) -> Iterator[Feedback]:
    """The daemon's feedback if one answers, else the state directory's. Raises DaemonRunning."""
    with open_library(state_dir, environ) as library:
        if isinstance(library, DaemonModels):
            yield DaemonFeedback(library.client)
        elif isinstance(library, LocalModels):
            from edge_agent.config import load_settings

            settings = load_settings({"state_dir": state_dir_of(state_dir, environ)})
            yield LocalFeedback(library.store, settings)


@dataclass(frozen=True)
class DaemonFeedback:
    """Through /v1/feedback of the running daemon."""

    client: Client

    def add(self, opinion: Mapping[str, Any]) -> dict[str, Any]:
        """`opinion` as POST /v1/feedback takes it; the stored row. Raises FeedbackNotFound."""
        return self.client.post(PATH, opinion)

    def rows(self, model: str | None, n: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        before: int | None = 0
        while before is not None and len(rows) < n:
            size = min(n - len(rows), PAGE)
            page = self.client.get(f"{PATH}?n={size}&before={before}{_and_model(model)}")
            rows += page["feedback"]
            before = page["next_before"]
        return rows

    def waiting(self, model: str | None) -> dict[str, int]:
        return dict(self.client.get(f"{PATH}?n=0{_and_model(model)}")["waiting"])

    def remove(self, number: int) -> None:
        self.client.delete(f"{PATH}/{number}", {})

    def lessons(self, model: str | None) -> Iterator[dict[str, Any]]:
        yield from self.client.lines(f"{PATH}/export?{_and_model(model)}", None)

    def add_lessons(self, documents: Sequence[Any], model: str | None) -> int:
        named = {"model": model} if model else {}
        body = {"rows": list(documents), **named}
        return int(self.client.post(f"{PATH}/import", body)["stored"])


def _untagged(model: str | None) -> str | None:
    """Feedback is on a model, whichever of its adapters answered."""
    name = (model or "").partition(":")[0]
    return None if name in ABSENT else name


def _and_model(model: str | None) -> str:
    return f"&model={quote(model, safe='')}" if model else ""


@dataclass(frozen=True)
class LocalFeedback:
    """Directly; STATE/lock is held by open_feedback."""

    store: Store
    settings: Settings

    def rows(self, model: str | None, n: int) -> list[dict[str, Any]]:
        from edge_agent.adapt import feedback
        from edge_agent.store.feedback_table import FeedbackQuery

        found = feedback.page(self.store, FeedbackQuery(model=_untagged(model), limit=n))
        return [feedback.shown(row) for row in found]

    def waiting(self, model: str | None) -> dict[str, int]:
        from edge_agent.adapt import feedback

        return asdict(feedback.waiting(self.store, _untagged(model)))

    def remove(self, number: int) -> None:
        from edge_agent.adapt import feedback

        feedback.remove(self.store, number)

    def lessons(self, model: str | None) -> Iterator[dict[str, Any]]:
        from edge_agent.adapt import feedback
        from edge_agent.store.feedback_table import FeedbackQuery

        for rows in feedback.lessons(self.store, FeedbackQuery(model=_untagged(model))):
            yield from map(feedback.lesson_line, rows)

    def add_lessons(self, documents: Sequence[Any], model: str | None) -> int:
        from edge_agent.adapt import feedback

        name = which_model(self.store, model, self.settings.model)[0].name
        user, at = f"uid:{os.getuid()}", time.time()
        rows = feedback.imported_rows(documents, model=name, user=user, at=at)
        return len(feedback.add(self.store, rows, self.settings.feedback_quota))
