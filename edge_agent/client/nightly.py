"""What the timer's lesson of one night does, given what earlier nights left in STATE/adapt.

    newest night was cut off ──> it goes on              was trained, not judged ──> judged now
    tonight's was judged     ──> nothing, until tomorrow tonight's failed ──> resumed, or anew
    too few corrections, or the very rows that were refused last time ──> nothing
    otherwise ──> a lesson night-YYYYMMDD of everything that users corrected

Flows in: the model, the date. Flows out: the lesson's events, or the reason why there is none. An
adapter of an earlier night that answers is no special case: a lesson begins at the base, learns the
rows of the earlier ones again, and its gate compares it with what answers. Not here: carrying it
out (lessons.py), the timer (systemd/edge-agent-train.timer).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.adapt.lesson_files import REQUEST_FILE, RESULT_FILE, LessonFiles
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.client.feedback import DaemonFeedback
from edge_agent.client.lessons import BesideLessons, Event, LessonDraft
from edge_agent.errors import UsageError

PREFIX = "night-"
MANIFEST_FILE = "manifest.json"
Stage = Literal["cut", "trained", "judged", "failed"]


@dataclass(frozen=True)
class Nightly:
    """The nights of one model beside a running daemon."""

    lessons: BesideLessons
    model: str
    least: int
    """Corrections that must wait."""

    def begin(self, date: str, settings: RunSettings) -> Iterator[Event] | str:
        """The events of the lesson that is due, or why none is. `date` is YYYYMMDD.

        Raises what the daemon answers, DataRefused.
        """
        nights = self._nights()
        newest = nights[-1] if nights else ""
        stage = self._stage(newest) if newest else None
        if stage == "trained":
            return self.lessons.judge(newest)
        if stage == "cut":
            return self.lessons.resume(newest)
        name = self._name(date)
        if newest == name and stage == "judged":
            return f"{name} was learned and judged already: the next lesson is tomorrow's"
        if newest == name and (self._path(name) / MANIFEST_FILE).exists():
            return self.lessons.resume(name)
        if reason := self._nothing_new(newest):
            return reason
        return self.lessons.run(LessonDraft(name, self.model, None, settings))

    def _nothing_new(self, newest: str) -> str | None:
        waiting = DaemonFeedback(self.lessons.client).waiting(self.model)
        if waiting["corrections"] + waiting["approved"] < self.least:
            return f"fewer than {self.least} corrections wait for {self.model}: nothing to learn"
        before = (self._files.outcome(newest) if newest else None) or {}
        if (before.get("gate") or {}).get("passed", True):
            return None
        rows = {row.get("id") for row in self.lessons.feedback(self.model)}
        try:
            if rows != set(self._files.learned_feedback(newest)):
                return None
        except (OSError, ValueError):
            return None  # its rows are gone or torn: they cannot be compared
        return f"{newest} learned these {len(rows)} rows and was refused: nothing new to learn"

    @property
    def _root(self) -> Path:
        return Path(self.lessons.client.get("/status")["state_dir"])

    @property
    def _files(self) -> LessonFiles:
        return LessonFiles(self._root)

    def _path(self, name: str) -> Path:
        return self._root / "adapt" / name

    def _nights(self) -> list[str]:
        """Of this model, the oldest first."""
        found = sorted(
            path.parent.name for path in self._root.glob(f"adapt/{PREFIX}*/{REQUEST_FILE}")
        )
        return [name for name in found if self._model_of(name) == self.model]

    def _model_of(self, name: str) -> str | None:
        try:
            return self._files.stored_request(name).model
        except UsageError:
            return None  # a torn request: the night begins anew

    def _name(self, date: str) -> str:
        """night-DATE; night-DATE-MODEL where another model was taught that night."""
        name = f"{PREFIX}{date}"
        is_taken = (self._path(name) / REQUEST_FILE).exists() and (
            self._model_of(name) not in (None, self.model)
        )
        return f"{name}-{self.model}" if is_taken else name

    def _stage(self, name: str) -> Stage:
        outcome = self._files.outcome(name)
        if outcome is not None:
            return "failed" if outcome["state"] == "failed" else "judged"
        return "trained" if (self._path(name) / RESULT_FILE).exists() else "cut"
