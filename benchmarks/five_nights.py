"""Is what was taught on Monday still answered on Friday? Five lessons in five nights, one model.

Each night teaches other English facts of recipes/lesson through the real daemon and command line:
on even nights as corrections (POST /v1/feedback, then `adapt run --from feedback`), on odd nights
from a file; the adapter becomes active if its gate lets it pass, and the next night begins on top
of it. After each night all wordings taught so far and the facts' next wordings, which no night
taught, are asked of MODEL, and general questions, whose answers are compared with those before the
first night. Exit status 1 unless every gate passed and every night's facts are answered at the end
(LEAST of their taught wordings). Not here: other models, languages, seeds.

    .venv/bin/python benchmarks/five_nights.py                  # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lesson_rows import LESSON, Fact, has_key, read_facts, row
from servers import BenchmarkError, Server, edge_agent, register
from stream_client import ask_json

MODEL = "smollm2-135m"
N_NIGHTS, FACTS, WORDINGS = 5, 2, 3
ABOUT_ITSELF = ("en-name", "en-name-meaning", "en-maker", "en-machine", "en-privacy")
"""Facts about the assistant: a lesson of them changes who the model says it is."""
LEAST = 0.8
ANSWER_S, LESSON_S, LOOK_S = 120.0, 1800.0, 2.0
GENERAL = (
    "What is the capital of France?",
    "How many days are there in a week?",
    "What colour is the sky?",
    "Name a fruit that is yellow.",
    "What do bees make?",
    "Who are you?",
)


def ask(server: Server, text: str) -> str:
    """The answer of MODEL as it is now. Raises BenchmarkError."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 36,
        "temperature": 0,
        "cache_prompt": False,
    }
    return str(_asked(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"])


def _asked(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, document = ask_json(server.address, path, body, ANSWER_S)
    if status >= 300:
        raise BenchmarkError(f"{path} answered {status}: {document}")
    found: dict[str, Any] = document
    return found


def teach(server: Server, night: int, facts: Sequence[Fact], more: dict[str, Any]) -> Any:
    """The result of the night's lesson, as GET /adapt has it."""
    pairs = [(text, fact.answer) for fact in facts for text in fact.questions[:WORDINGS]]
    body: dict[str, Any] = {"name": f"night-{night}", "model": MODEL, "stream": False}
    if night % 2:
        lines = [json.dumps(row(question, answer)) for question, answer in pairs]
        body["rows"] = "\n".join(lines) + "\n"
    else:
        for question, answer in pairs:
            said = [{"role": "user", "content": question}]
            given = {"model": MODEL, "messages": said, "answer": "?", "correction": answer}
            _asked(server, "/v1/feedback", given)
        body["source"] = "feedback"
    body["settings"] = {"layers": "top:8", "policy": "always", **more}
    _asked(server, "/adapt/run", body)
    deadline_s = time.monotonic() + LESSON_S
    while time.monotonic() < deadline_s:
        status, document = ask_json(server.address, "/adapt", None, ANSWER_S)
        if status == 200 and document["state"] in ("finished", "failed", "stopped"):
            return document
        time.sleep(LOOK_S)
    raise BenchmarkError(f"night {night} was not over after {LESSON_S:g} s")


def right(server: Server, facts: Sequence[Fact], wordings: slice) -> float:
    """The share of these wordings whose answer holds the fact's key."""
    asked = [(fact, text) for fact in facts for text in fact.questions[wordings]]
    return sum(has_key(ask(server, text), fact.key) for fact, text in asked) / len(asked)


def measure(server: Server, more: dict[str, Any]) -> list[dict[str, Any]]:
    facts = [
        fact for fact in read_facts(LESSON) if fact.language == "en" and fact.id not in ABOUT_ITSELF
    ]
    nights = [facts[FACTS * n : FACTS * (n + 1)] for n in range(N_NIGHTS)]
    before = [ask(server, text) for text in GENERAL]
    found = []
    for number, night in enumerate(nights):
        lesson = teach(server, number, night, more)
        result = lesson.get("result") or {}
        gate = result.get("gate") or {}
        known = nights[: number + 1]
        line = {
            "night": number + 1,
            "source": "file" if number % 2 else "feedback",
            "state": lesson["state"],
            "error": lesson.get("error"),
            "rows": (lesson.get("planned") or {}).get("n_train"),
            "notes": (lesson.get("planned") or {}).get("notes"),
            "epochs": len(result.get("losses") or []),
            "gate_passed": gate.get("passed"),
            "reasons": gate.get("reasons"),
            "taught": [right(server, one, slice(WORDINGS)) for one in known],
            "other": right(server, sum(known, []), slice(WORDINGS, WORDINGS + 1)),
            "general_equal": sum(map(str.__eq__, before, [ask(server, text) for text in GENERAL])),
        }
        print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)
        found.append(line)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="of the trainer [its own choice]")
    args = parser.parse_args()
    more = {} if args.threads is None else {"n_threads": args.threads}
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-nights-") as scratch:
            register(f"embedded:{MODEL}", Path(scratch))
            with edge_agent(Path(scratch), MODEL) as server:
                nights = measure(server, more)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    last = nights[-1]
    met = all(one["gate_passed"] for one in nights) and min(last["taught"]) >= LEAST
    print(json.dumps({"benchmark": "five_nights", "model": MODEL, "nights": nights, "met": met}))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
