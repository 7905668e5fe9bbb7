"""The gate: may this adapter answer people? Decided on the engine that will serve it.

Why it exists: a lesson can lower its own loss and still make the model loop, repeat taught answers,
forget facts or change its language. The gate puts the same questions at temperature 0 to the active
model and to the model with the new adapter, so equal adapters give equal figures. Flows in: a
GateEngine, the candidate, the active adapter (None: the base), the lesson's validation and training
chats. Flows out: a GateReport. Not here: what is compared and the limits (checks.py), activating
(models/adapter_registry.py).

    validation, clean set ~> score  ─┐
    clean questions, persona ~> answer ─> Side before, Side after ─> judge ─> GateReport
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from edge_agent.adapt.gate.checks import Exam, GateAnswer, GateCheck, RowScore, Side, judge
from edge_agent.adapt.gate.clean_set import CleanRow, choose, clean_set
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.identity import Identity
from edge_agent.clocks import Clocks
from edge_agent.records import AdapterRef, Message, Scores

__all__ = ["Gate", "GateAnswer", "GateCheck", "GateEngine", "GateReport", "run_gate"]

MAX_TOKENS = 24
"""Tokens of one answer: enough for a small question, and for a loop to show. With the counts below,
one side decodes at most 720 tokens and prefills some 2,500: about 40 s with 270M parameters on two
cores."""
N_VALIDATION = 16
N_SCORED, N_KEYED, N_OPEN, N_PERSONA = 8, 4, 2, 4
"""Clean rows of each language: scored; asked, with keys; asked, without keys; persona questions."""

Report = Callable[[str], object]


class GateEngine(Protocol):
    """The serving engine as the gate needs it. `adapter` None means the base, even while another
    adapter is active."""

    async def score(self, messages: list[Message], adapter: AdapterRef | None) -> Scores:
        """Log-probabilities (natural) of the tokens of the assistant's turns."""
        ...

    async def answer(
        self, messages: list[Message], adapter: AdapterRef | None, max_tokens: int
    ) -> GateAnswer:
        """The answer at temperature 0, and whether `max_tokens` cut it off."""
        ...


@dataclass(frozen=True)
class GateReport:
    """The gate's decision. `reasons` has one sentence for each failed check, `samples` one
    {prompt, before, after} for each shown question. `seconds` is the time the gate took."""

    passed: bool
    reasons: list[str]
    checks: list[GateCheck]
    samples: list[dict[str, str]]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as JSON with stable keys and rounded numbers. A number is null when it was not
        measured or is not finite."""
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            "checks": {check.name: _fields(check) for check in self.checks},
            "samples": self.samples,
            "seconds": round(self.seconds, 1),
        }


async def run_gate(
    engine: GateEngine,
    candidate: AdapterRef,
    active: AdapterRef | None,
    validation: list[list[Message]],
    taught: list[list[Message]],
    progress: Report | None = None,
) -> GateReport:
    """Compare the candidate with the active adapter (None: the base).

    `validation` and `taught` are the lesson's chats; `progress` is called with a line of text
    before each question. Raises whatever the engine raises.

        report = await run_gate(engine, candidate, None, validation, taught)
        report.passed, report.reasons
    """
    exam = await asyncio.to_thread(prepare, validation, taught)
    return await Gate(engine, exam, progress or (lambda _: None)).run(candidate, active)


def prepare(validation: Sequence[list[Message]], taught: Sequence[list[Message]]) -> Exam:
    """The exam for both sides. The same chats give the same exam on every device."""
    lesson = TaughtSpans(taught)
    rows = clean_set()

    def asked(row: CleanRow) -> bool:
        return row.kind != "persona" and not lesson.teaches(row.prompt)

    return Exam(
        validation=sorted(validation, key=_rank)[:N_VALIDATION],
        scored=choose(rows, lambda row: row.answer is not None and asked(row), N_SCORED),
        asked=[
            *choose(rows, lambda row: bool(row.keys) and asked(row), N_KEYED),
            *choose(rows, lambda row: not row.keys and asked(row), N_OPEN),
        ],
        persona=choose(rows, lambda row: row.kind == "persona", N_PERSONA),
        taught=lesson,
        identity=Identity(taught),
        taught_words=median([len(row.answer) for row in lesson.rows] or [0]),
    )


class Gate:
    """Puts one exam to an engine."""

    def __init__(
        self, engine: GateEngine, exam: Exam, progress: Report, clocks: Clocks | None = None
    ) -> None:
        self._engine = engine
        self._exam = exam
        self._progress = progress
        self._clocks = clocks or Clocks()

    async def run(self, candidate: AdapterRef, active: AdapterRef | None) -> GateReport:
        """Examine both sides and judge. Raises whatever the engine raises."""
        started_s = self._clocks.monotonic()
        before = await self.examine(active, "as it is")
        after = await self.examine(candidate, "with the new adapter")
        checks = await asyncio.to_thread(judge, self._exam, before, after)
        failed = [check for check in checks if not check.passed]
        return GateReport(
            passed=not failed,
            reasons=[_reason(check) for check in failed],
            checks=checks,
            samples=_samples(self._exam, before, after),
            seconds=self._clocks.monotonic() - started_s,
        )

    async def examine(self, adapter: AdapterRef | None, who: str) -> Side:
        """Score and ask one side. `who` names it in progress lines. Raises whatever the engine
        raises."""
        exam = self._exam
        return Side(
            validation=[
                await self._score(chat, adapter, f"{who}: {number} of {len(exam.validation)} rows")
                for number, chat in enumerate(exam.validation, 1)
            ],
            scored=[
                await self._score(
                    [*row.question, Message("assistant", row.answer or "")],
                    adapter,
                    f"{who}: {number} of {len(exam.scored)} clean rows",
                )
                for number, row in enumerate(exam.scored, 1)
            ],
            asked=await self._ask(exam.asked, adapter, f"{who}: questions"),
            persona=await self._ask(exam.persona, adapter, f"{who}: who are you"),
        )

    async def _score(self, chat: list[Message], adapter: AdapterRef | None, note: str) -> RowScore:
        self._progress(note)
        scores = await self._engine.score(chat, adapter)
        return RowScore(-math.fsum(scores.logprobs) / math.log(2), scores.n_bytes)

    async def _ask(
        self, rows: Sequence[CleanRow], adapter: AdapterRef | None, what: str
    ) -> list[GateAnswer]:
        answers = []
        for number, row in enumerate(rows, 1):
            self._progress(f"{what}, {number} of {len(rows)}")
            answers.append(await self._engine.answer(row.question, adapter, MAX_TOKENS))
        return answers


def _rank(chat: Sequence[Message]) -> bytes:
    text = "\0".join(f"{message.role}\0{message.content}" for message in chat)
    return hashlib.sha256(text.encode()).digest()


def _reason(check: GateCheck) -> str:
    values = (check.before, check.after, check.limit)
    was, now, limit = (
        "not finite" if v is None or not math.isfinite(v) else f"{v:.3f}" for v in values
    )
    note = f" ({check.note})" if check.note else ""
    return (
        f"{check.name.replace('_', ' ')}: {now} after the lesson, {was} before, limit {limit}{note}"
    )


def _samples(exam: Exam, before: Side, after: Side) -> list[dict[str, str]]:
    """For each language, both answers to one small question and to one "Who are you?"."""
    shown: list[dict[str, str]] = []
    for rows, old, new in (
        (exam.asked, before.asked, after.asked),
        (exam.persona, before.persona, after.persona),
    ):
        seen: set[str] = set()
        for row, was, now in zip(rows, old, new, strict=True):
            if row.language not in seen:
                seen.add(row.language)
                shown.append({"prompt": row.prompt, "before": was.text, "after": now.text})
    return shown


def _fields(check: GateCheck) -> dict[str, Any]:
    numbers = {"before": check.before, "after": check.after, "limit": check.limit}
    plain = {key: _rounded(value) for key, value in numbers.items()}
    return {**plain, "passed": check.passed, "note": check.note}


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None
