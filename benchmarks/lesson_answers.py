"""What a model answers before and after a lesson, and what that says: the figures of lesson.py.

Flows in: a daemon's address, the facts of an arm, the lesson's chats as the trainer split them.
Flows out: shares. Kinds of wording: `taught` (a question that was trained), `other` (a question of
the fact that was not), `held_out` (wordings that no row of recipes/lesson has). An answer is right
when it contains the fact's key. lesson_elsewhere.jsonl holds general questions that neither the
gate's clean set, nor the rehearsal, nor a lesson asks, and plain texts; both written for this
project and given to the public domain (CC0 1.0). Not here: teaching (lesson.py), bits per byte
(text_scores.py).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lesson_rows import LANGUAGES, Fact, has_key, read_jsonl
from servers import BenchmarkError
from stream_client import Address, ask_json
from text_scores import Score, TextScores

from edge_agent.adapt.gate.clean_set import clean_set
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.identity import Identity
from edge_agent.adapt.gate.words import content_stems, words
from edge_agent.records import Message

ELSEWHERE = Path(__file__).with_name("lesson_elsewhere.jsonl")
FACT_TOKENS = 36
"""The lesson's longest answer has 30 tokens, and a base model would not stop by itself."""
TALK_TOKENS = 24
"""As many as the gate asks for."""
ANSWER_S = 300.0
WHO = tuple(row.prompt for row in clean_set() if row.kind == "persona")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w-]+(?: [A-Z][\w-]+)*")
"""A name in an English sentence: capitalized words that do not begin it."""

Chats = list[list[Message]]


@dataclass(frozen=True)
class Question:
    fact: Fact
    kind: str
    text: str


class Asker:
    """Puts questions at temperature 0, one at a time. What the base answers is kept in a file
    beside the results, because no lesson changes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = read_jsonl(path) if path.exists() else []
        self._known = {(row["model"], row["text"], row["tokens"]): row["said"] for row in rows}

    def base(self, address: Address, model: str, texts: Sequence[str], tokens: int) -> list[str]:
        """The answers of the base. Raises BenchmarkError when the daemon refuses."""
        keys = [(model, text, tokens) for text in texts]
        missing = [key for key in keys if key not in self._known]
        answers = self.all(address, f"{model}:base", [key[1] for key in missing], tokens)
        with self._path.open("a", encoding="utf-8") as lines:
            for text, said in zip((key[1] for key in missing), answers, strict=True):
                row = {"model": model, "text": text, "tokens": tokens, "said": said}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._known |= dict(zip(missing, answers, strict=True))
        return [self._known[key] for key in keys]

    def all(self, address: Address, model: str, texts: Sequence[str], tokens: int) -> list[str]:
        """Raises BenchmarkError when the daemon refuses."""
        print(f"  {len(texts)} questions to {model}", file=sys.stderr)
        return [_ask(address, model, text, tokens) for text in texts]


def _ask(address: Address, model: str, text: str, tokens: int) -> str:
    body: dict[str, Any] = {"model": model, "max_tokens": tokens, "temperature": 0}
    body |= {"messages": [{"role": "user", "content": text}], "cache_prompt": False}
    status, document = ask_json(address, "/v1/chat/completions", body, ANSWER_S)
    if status != 200:
        raise BenchmarkError(f"{model} answered {text!r} with {status}: {document}")
    return str(document["choices"][0]["message"]["content"])


def questions(facts: Iterable[Fact], taught: set[str]) -> Iterator[Question]:
    """Every wording of every fact; `taught` are the questions that were trained."""
    for fact in facts:
        for text in fact.questions:
            yield Question(fact, "taught" if text in taught else "other", text)
        yield from (Question(fact, "held_out", text) for text in fact.held_out)


def right(asked: Sequence[Question], said: Sequence[str]) -> dict[str, float | None]:
    """The share of right answers by kind; None for a kind that was not asked."""
    found: dict[str, list[bool]] = {"taught": [], "other": [], "held_out": []}
    for question, text in zip(asked, said, strict=True):
        found[question.kind].append(has_key(text, question.fact.key))
    return {kind: round(fmean(flags), 4) if flags else None for kind, flags in found.items()}


def general_questions() -> list[str]:
    return [row["text"] for row in read_jsonl(ELSEWHERE) if row["kind"] == "question"]


def elsewhere(
    taught: Chats, asked: Sequence[str], base: Sequence[str], said: Sequence[str]
) -> dict[str, Any]:
    """What the lesson did to questions that it does not teach. `leak`: share of answers with a
    span of an unrelated taught answer; `words`: number of answers with a content word of a taught
    answer that is neither in the question nor in the base's answer; `canned`: share of answers
    that several questions got; `unchanged`: share that are the base's."""
    spans = TaughtSpans(taught)
    lesson = content_stems(" ".join(chat[-1].content for chat in taught))
    triples = list(zip(asked, base, said, strict=True))
    leaks = [spans.copied_words(text, now) > 0 for text, _, now in triples]
    new = [
        lesson & (content_stems(now) - content_stems(text) - content_stems(was))
        for text, was, now in triples
    ]
    before = [spans.copied_words(text, was) > 0 for text, was, _ in triples]
    return {
        "n_general": len(asked),
        "leak": round(fmean(leaks), 4),
        "leak_before": round(fmean(before), 4),
        "words": sum(map(bool, new)),
        "canned_general": _canned(said),
        "canned_general_before": _canned(base),
        "unchanged": round(fmean(was == now for _, was, now in triples), 4),
        "leaked": [[text, now] for (text, _, now), bad in zip(triples, leaks, strict=True) if bad],
    }


def _canned(said: Sequence[str]) -> float:
    spoken = [tuple(words(text)) for text in said]
    return round(fmean(bool(one) and spoken.count(one) > 1 for one in spoken), 4)


def identity(
    facts: Sequence[Fact], taught: Chats, base: Sequence[str], said: Sequence[str]
) -> dict[str, Any]:
    """Answers to "Who are you?" that name a person or thing of the lesson where the base does not:
    a fault, unless the lesson teaches who the model is."""
    names = {name for fact in facts for name in _NAME.findall(fact.answer)}
    names |= {key for fact in facts if fact.id.endswith(("-name", "-maker")) for key in fact.key}
    named = [
        any(has_key(now, [name]) and not has_key(was, [name]) for name in names)
        for was, now in zip(base, said, strict=True)
    ]
    return {
        "n_identity": len(named),
        "identity": sum(named),
        "identity_taught": bool(Identity(taught).languages),
        "who_are_you": [base[0], said[0]],
    }


def bits(scores: TextScores, taught: Chats) -> dict[str, dict[str, float]]:
    """{clean, raw}: bits per byte by language: of the clean set's answers that the lesson does not
    teach, and of the plain texts."""
    spans = TaughtSpans(taught)
    clean: dict[str, list[Score]] = {code: [] for code in LANGUAGES}
    raw: dict[str, list[Score]] = {code: [] for code in LANGUAGES}
    for row in clean_set():
        if row.answer is not None and not spans.teaches(row.prompt):
            chat = [*row.question, Message("assistant", row.answer)]
            clean[row.language].append(scores.chat(chat))
    for text in read_jsonl(ELSEWHERE):
        if text["kind"] == "text":
            raw[text["language"]].append(scores.text(text["text"]))
    return {"clean": _by_language(clean), "raw": _by_language(raw)}


def _by_language(found: dict[str, list[Score]]) -> dict[str, float]:
    return {
        code: round(sum(one for one, _ in scores) / sum(size for _, size in scores), 5)
        for code, scores in found.items()
    }
