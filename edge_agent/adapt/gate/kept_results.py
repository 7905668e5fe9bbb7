"""What a model said to the gate's own questions, kept for the next lesson.

Why it exists: the clean set is the same for every lesson, and the model before the lesson is often
the same too; asking it again took half of the gate's time. Flows in: results by question. Flows
out: a JSON file for each model, adapter and build of the engine. A damaged or foreign file counts
as empty. No row of a lesson is kept here. Not here: who is asked what (gate.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_agent import atomic_file
from edge_agent.adapt.gate.exam import GateAnswer, RowScore
from edge_agent.records import Message

Result = TypeVar("Result", RowScore, GateAnswer)
VERSION = 1
MOST_KEPT = 8
"""Files in the folder; the oldest ones give way."""


class KeptResults:
    """Results of one model. Without a folder they are kept in memory only.

    `who` names everything that they depend on: the model's and the adapter's SHA-256, the engine's
    build and settings.
    """

    def __init__(self, folder: Path | None = None, who: str = "") -> None:
        self._who = f"{VERSION}: {who}"
        name = hashlib.sha256(self._who.encode()).hexdigest()[:32]
        self._path = None if folder is None else folder / f"{name}.json"
        self._found = self._read()
        self._is_changed = False

    def get(self, kind: str, asked: Sequence[Message] | str, form: type[Result]) -> Result | None:
        """The result that was put for the same question; None when there is none."""
        try:
            return msgspec.convert(self._found[_key(kind, asked)], form)
        except (KeyError, msgspec.ValidationError):
            return None

    def put(self, kind: str, asked: Sequence[Message] | str, result: RowScore | GateAnswer) -> None:
        self._found[_key(kind, asked)] = asdict(result)
        self._is_changed = True

    def save(self) -> None:
        """Write what is new. A full disk is no error: the questions are then asked again."""
        if self._path is None or not self._is_changed:
            return
        document = {"who": self._who, "results": self._found}
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic_file.write(self._path, json.dumps(document, ensure_ascii=False).encode())
            files = sorted(self._path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime)
            for old in files[:-MOST_KEPT]:
                old.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_bytes()) if self._path is not None else {}
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(document, dict) or document.get("who") != self._who:
            return {}
        found = document.get("results")
        return found if isinstance(found, dict) else {}


def _key(kind: str, asked: Sequence[Message] | str) -> str:
    texts = [asked] if isinstance(asked, str) else [f"{m.role}: {m.content}" for m in asked]
    return hashlib.sha256("\0".join([kind, *texts]).encode()).hexdigest()
