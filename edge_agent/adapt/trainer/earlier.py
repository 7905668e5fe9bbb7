"""Rows of earlier lessons beside those of a new one: learned again, unless a new row asks the same.

Flows in: the audited rows of a lesson; the rows that the active adapter was taught. Flows out:
both, and sentences for the plan. The earlier rows passed an audit before and are not audited again;
where two answer one question, the new answer counts. Not here: which rows those are
(adapt/earlier_rows.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.adapt.trainer.audit import same_question
from edge_agent.adapt.trainer.dataset import ChatRow, parse_rows
from edge_agent.adapt.trainer.same_meaning import agree, terms


def with_earlier(
    rows: Sequence[ChatRow], earlier: Mapping[str, Any]
) -> tuple[list[ChatRow], list[str]]:
    """(the rows and those earlier ones that no row replaces, notes).

    `earlier` has "rows" {"messages"} and "note". Raises DataRefused for rows that no lesson has.
    """
    notes = [str(earlier["note"])] if earlier.get("note") else []
    lines = [json.dumps({"messages": row["messages"]}).encode() for row in earlier.get("rows", [])]
    if not lines:
        return list(rows), notes
    asked = {same_question(row.messages[:-1]): row for row in rows}
    first = max((row.number for row in rows), default=0)
    kept, n_replaced = [], 0
    for row in parse_rows(lines, "the earlier lessons"):
        new = asked.get(same_question(row.messages[:-1]))
        if new is None:
            kept.append(ChatRow(first + row.number, row.messages, "earlier"))
        elif not agree(*(terms(one.messages[-1].content) for one in (new, row))):
            n_replaced += 1
    if kept:
        notes.append(f"{len(kept)} rows of earlier lessons are learned again")
    if n_replaced:
        notes.append(f"{n_replaced} earlier rows are replaced by new answers")
    return [*rows, *kept], notes
