"""What this board's users really asked, for the rehearsal, where they let their texts be kept.

Why it exists: a model's own dialogues rehearse better than any text from elsewhere (arXiv
2403.01244), and they are what its users want to stay as it is. Flows in: the history of
generations, which has texts only with the setting `log_text`; the lesson's model. Flows out: chats
of one question and the answer that the model gave. They lie in the run's directory while it is
trained and are removed at its end; no adapter, report or log holds them. Not here: how they are
rehearsed (adapt/trainer/rehearsal.py).
"""

from __future__ import annotations

import re
from typing import Any

from edge_agent.store.store import Store

MOST_ASKED = 40
"""Dialogues of a run: half of what an instruct model rehearses."""
LOOKED_AT = 400
"""The newest generations that are looked through."""
MOST_CHARACTERS = 400
"""Longer dialogues do not fit beside a row of the lesson."""
_ASKED = re.compile(r"user: (.+)", re.DOTALL)
_MORE_TURNS = re.compile(r"^(?:user|assistant|system): ", re.MULTILINE)


def asked_rows(store: Store, model: str) -> list[dict[str, Any]]:
    """Lines {"messages"} of the newest different questions, newest first. Raises StoreError."""
    found: dict[str, dict[str, Any]] = {}
    for row in store.recent_generations(LOOKED_AT):
        asked = _ASKED.fullmatch(row.prompt_text or "")
        answer = (row.completion_text or "").strip()
        is_whole = row.model == model and row.finish_reason == "stop" and bool(answer)
        if asked is None or not is_whole or _MORE_TURNS.search(asked[1]):
            continue
        if len(asked[1]) + len(answer) <= MOST_CHARACTERS and asked[1] not in found:
            turns = (("user", asked[1]), ("assistant", answer))
            found[asked[1]] = {
                "messages": [{"role": role, "content": text} for role, text in turns]
            }
    return list(found.values())[:MOST_ASKED]
