"""llama-server's cases on the fake engine: what passes, and what a failure is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from http_front import TOKEN, serving
from server_case import Ask, Reply
from server_cases import TABLES, Target, ending_of, events_of, measure, report


def test_each_case_has_a_name_of_its_own() -> None:
    names = [(case.file, case.name) for table in TABLES for case in table()]
    assert len(names) > 100 and len(set(names)) == len(names)


def test_cases_run_against_a_front(tmp_path: Path) -> None:
    with serving(tmp_path) as front:
        target = Target("127.0.0.1", front.port, TOKEN)
        rows = [*measure(target, "security the key"), *measure(target, "tokenize")]
    shown: list[str] = []
    document = report(rows, shown.append)
    assert {name: ending for case, ending, _ in rows for name in [case.name]} == {
        "the key None": "pass",
        "the key Bearer invalid-key": "pass",
        "there and back": "pass",
        "add_special": "pass",
        "with_pieces": "pass",
    }
    assert document["files"]["tokenize"] == {"pass": 3, "refused": 0, "differ": 0, "missing": 0}
    assert "| tokenize | 3 | 3 | 0 | 0 | 0 |" in shown


@pytest.mark.parametrize(
    ("status", "message", "ending"),
    [
        (200, "", "differ"),
        (404, "POST /x is not served", "missing"),
        (400, "field 'grammar': this sampler is not served", "refused"),
        (400, "something is wrong", "differ"),
        (500, "grammars are a matter of taste", "differ"),
    ],
)
def test_a_failed_case_is_called_by_what_was_said(status: int, message: str, ending: str) -> None:
    reply = Reply(status, {}, {"error": {"message": message}})
    assert ending_of([Ask("/x", {"grammar": 1})], [reply]) == ending


def test_a_stream_is_its_events_and_their_text() -> None:
    events = [{"content": "a"}, {"choices": [{"delta": {"content": "b"}}]}, {"choices": []}]
    events += [{"choices": [{"text": "c"}]}]
    raw = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"
    assert events_of(raw.encode()) == {"events": events, "text": "abc"}
    assert Reply(200, {}, {"a": [{"b": 1}]}).at("a.0.b") == 1
