"""The files of a lesson in STATE/adapt/NAME that are not the trainer's: request, data, outcome.

Flows in: a LessonRequest. Flows out: the Start message for the trainer; the chats that the trainer
learned and those it validated on; the request, when a lesson is resumed. The trainer's own files in
the same directory (manifest, checkpoints, log) are adapt/trainer/run_directory.py's. Not here:
training, judging.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import atomic_file, json_lines
from edge_agent.adapt.lesson import LessonRequest
from edge_agent.adapt.messages import Finished, Start
from edge_agent.errors import DataRefused, TrainingFailed, UsageError
from edge_agent.model_names import MODEL_NAME
from edge_agent.records import Message

FEEDBACK = "feedback"
FEEDBACK_FILE = "feedback.jsonl"
EARLIER_FILE = "earlier.json"
"""{"rows", "note"}: what the active adapter was taught, when the lesson was prepared."""
GIVEN_FILE = "given.jsonl"
"""Rows that came over HTTP."""
RESULT_FILE = "result.json"
ASKED_FILE = "asked.json"
"""{"rows"}: what users asked, where their texts are kept; the trainer removes it at its end."""
MANIFEST_FILE = "manifest.json"
"""The trainer's: the run has begun."""
REQUEST_FILE = "request.json"
OUTCOME_FILE = "outcome.json"
RESERVED_NAMES = ("base", "latest")


class LessonFiles:
    """STATE/adapt, one directory a run."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._root = state_dir / "adapt"
        self.gate_results = state_dir / "gate"
        """What the models said to the gate's own questions (gate/kept_results.py)."""

    def directory(self, name: str) -> Path:
        """STATE/adapt/NAME, made if need be. Raises UsageError for what cannot name an adapter."""
        if not MODEL_NAME.fullmatch(name) or name in RESERVED_NAMES:
            why = f"names match {MODEL_NAME.pattern} and are not 'base' or 'latest'"
            raise UsageError(f"{name[:80]!r} cannot name an adapter", why, "choose another --name")
        path = self._root / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def start(
        self,
        request: LessonRequest,
        path: str,
        sha256: str,
        *,
        resume: bool = False,
        plan_only: bool = False,
    ) -> Start:
        """The trainer's first message. `path`: the model's file, relative to STATE or absolute."""
        directory = self.directory(request.name)
        is_feedback = request.data == FEEDBACK
        return Start(
            run_dir=str(directory),
            name=request.name,
            model=request.model,
            model_path=str(self._state_dir / path),
            model_sha256=sha256,
            data_path=str(directory / FEEDBACK_FILE) if is_feedback else request.data,
            settings=request.settings,
            resume=resume,
            plan_only=plan_only,
            cache_dir=str(self._state_dir / "rehearsal"),
            earlier_path=str(directory / EARLIER_FILE),
            asked_path=str(directory / ASKED_FILE),
        )

    def write_feedback(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """What users corrected, as the trainer reads it. Raises DataRefused when there is none."""
        lines = [json_lines.dumps(row) for row in rows]
        if not lines:
            hint = "correct an answer first: `edge-agent feedback add --correct TEXT`"
            raise DataRefused("there is nothing to learn", "no feedback is waiting", hint)
        text = "".join(f"{line}\n" for line in lines)
        atomic_file.write(self.directory(name) / FEEDBACK_FILE, text.encode())

    def learned_feedback(self, name: str) -> list[int]:
        """The ids of the rows that `write_feedback` wrote. A row without an id has none: an earlier
        version wrote it."""
        text = (self.directory(name) / FEEDBACK_FILE).read_text("utf-8")
        rows = [json.loads(line) for _, line in json_lines.numbered_lines(text)]
        return [row["id"] for row in rows if "id" in row]

    def write_earlier(self, name: str, rows: Sequence[Mapping[str, Any]], note: str) -> None:
        """What the active adapter was taught, and a note for the plan, as the trainer reads it."""
        text = json.dumps({"rows": rows, "note": note}, ensure_ascii=False)
        atomic_file.write(self.directory(name) / EARLIER_FILE, text.encode())

    def write_asked(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """What users asked, as the trainer reads it. Nothing is written for a run that has begun
        and may be resumed."""
        directory = self.directory(name)
        if not self.has_begun(name):
            text = json.dumps({"rows": rows}, ensure_ascii=False)
            atomic_file.write(directory / ASKED_FILE, text.encode())

    def has_begun(self, name: str) -> bool:
        """Whether a trainer has begun a run of this name, which may be resumed or finished."""
        return (self.directory(name) / MANIFEST_FILE).exists()

    def forget_asked(self, name: str) -> None:
        """Remove what users asked from a run that has ended, or of which only a plan was made."""
        (self.directory(name) / ASKED_FILE).unlink(missing_ok=True)

    def feedback_ids(self, name: str) -> dict[str, int]:
        """The ids of the feedback rows among those that a run learned, by their messages as
        JSON with sorted keys. Rows that are unreadable count as none."""
        found: dict[str, int] = {}
        directory = self._root / name
        try:
            lines = (directory / FEEDBACK_FILE).read_text("utf-8")
            rows = [json.loads(line) for _, line in json_lines.numbered_lines(lines)]
        except (OSError, ValueError):
            rows = []
        with suppress(OSError, ValueError, KeyError, TypeError):
            rows += json.loads((directory / EARLIER_FILE).read_bytes())["rows"]
        for row in rows:
            if isinstance(row, dict) and isinstance(row.get("id"), int):
                messages = json.dumps(row.get("messages"), ensure_ascii=False, sort_keys=True)
                found[messages] = row["id"]
        return found

    def make_room(self, name: str) -> None:
        """Forget a finished run whose adapter is gone: its name is free. A run that can still be
        resumed stays, and the trainer refuses a new one of its name."""
        directory = self.directory(name)
        if not (directory / RESULT_FILE).exists():
            return
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (GIVEN_FILE, FEEDBACK_FILE, EARLIER_FILE):
                path.unlink()

    def write_request(self, request: LessonRequest) -> None:
        """A run begins: what an earlier one of its name came to is forgotten."""
        directory = self.directory(request.name)
        (directory / OUTCOME_FILE).unlink(missing_ok=True)
        atomic_file.write(directory / REQUEST_FILE, msgspec.json.encode(request))

    def stored_request(self, name: str | None) -> LessonRequest:
        """Of the run of this name, or of the latest. Raises UsageError."""
        found = sorted(self._root.glob(f"*/{REQUEST_FILE}"), key=_changed_at)
        paths = [path for path in found if name is None or path.parent.name == name]
        if not paths:
            which = "no run" if name is None else f"no run named {name[:80]!r}"
            hint = "`edge-agent adapt run` starts one"
            raise UsageError(f"{which} can be resumed", f"looked in {self._root}", hint)
        try:
            return msgspec.json.decode(paths[-1].read_bytes(), type=LessonRequest)
        except (OSError, msgspec.DecodeError) as error:
            hint = "start it anew with `edge-agent adapt run`"
            raise UsageError(f"{paths[-1]} cannot be read", str(error), hint) from error

    def finished(self, name: str) -> Finished:
        """The trainer's result. Raises TrainingFailed when it has none yet."""
        path = self.directory(name) / RESULT_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Finished)
        except (OSError, msgspec.DecodeError) as error:
            hint = "`edge-agent adapt resume` finishes the run"
            raise TrainingFailed(f"the run {name} has no result", str(error), hint) from error

    def chats(self, name: str) -> tuple[list[list[Message]], list[list[Message]]]:
        """(validation, taught): the rows as the trainer split them. Raises TrainingFailed."""
        path = self.directory(name) / "split.json"
        try:
            document = json.loads(path.read_bytes())
            parts = [
                [msgspec.convert(chat, list[Message]) for chat in document[part]]
                for part in ("validation", "train")
            ]
        except (OSError, ValueError, KeyError, msgspec.ValidationError) as error:
            raise TrainingFailed(f"{path} cannot be read", str(error), "run it anew") from error
        return parts[0], parts[1]

    def write_outcome(self, name: str, outcome: Mapping[str, Any]) -> None:
        """How the lesson ended (LessonState.outcome), for later."""
        text = json.dumps(outcome, ensure_ascii=False, indent=1)
        atomic_file.write(self.directory(name) / OUTCOME_FILE, text.encode())

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What `write_outcome` wrote; None when the lesson has not ended, or nothing is readable.
        One that an earlier version wrote has no `state`: it was judged."""
        try:
            found = json.loads((self._root / name / OUTCOME_FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return {"state": "finished", **found} if isinstance(found, dict) else None

    def last_outcome(self) -> dict[str, Any] | None:
        """Of the lesson that ended last; None before the first one."""
        found = sorted(self._root.glob(f"*/{OUTCOME_FILE}"), key=_changed_at)
        return self.outcome(found[-1].parent.name) if found else None


def _changed_at(path: Path) -> float:
    """0 for a file that was removed meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
