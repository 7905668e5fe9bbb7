"""What the active adapter was taught, for the next lesson: each lesson begins at the base again.

Why it exists: an adapter is trained from the base, so a lesson that leaves the rows of the active
adapter out would forget them. Flows in: the registry's active adapter, its run's directory, the
table of feedback. Flows out: chats in the form of a lesson's lines, and a sentence where nothing is
known of an adapter. A chat that came from feedback is taken from the table again, so that what a
user removed is learned no more. Not here: which of them a new row replaces
(adapt/trainer/preparation.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from edge_agent.adapt import feedback
from edge_agent.adapt.lesson_files import LessonFiles
from edge_agent.errors import EdgeAgentError
from edge_agent.store.rows import AdapterRow
from edge_agent.store.store import Store

Line = dict[str, Any]


def earlier_rows(
    files: LessonFiles, store: Store, active: AdapterRow | None
) -> tuple[list[Line], str]:
    """(lines {"messages", "id"} that the active adapter was taught, a note for the plan).

    The note is empty unless nothing is known of what the adapter was taught. Raises StoreError.
    """
    if active is None:
        return [], ""
    try:
        if files.finished(active.name).adapter_sha256 != active.sha256:
            return [], _unknown(active)
        chats = [chat for part in files.chats(active.name) for chat in part]
    except EdgeAgentError:
        return [], _unknown(active)
    ids = files.feedback_ids(active.name)
    lines: list[Line] = []
    for chat in chats:
        messages = msgspec.to_builtins(chat)
        found = ids.get(_key(messages))
        lines += [{"messages": messages}] if found is None else _again(store, active.model, found)
    return lines, ""


def _again(store: Store, model: str, number: int) -> list[Line]:
    """The feedback row as it is now; none when its user removed it."""
    rows = feedback.rows_of(store, [number])
    return [feedback.lesson_line(row) for row in rows if row.model == model]


def _key(messages: Sequence[Any]) -> str:
    return json.dumps(messages, ensure_ascii=False, sort_keys=True)


def _unknown(active: AdapterRow) -> str:
    return (
        f"{active.model}:{active.name} was not taught here, or its rows are gone: what it knows is"
        " not learned again"
    )
