"""The gate: may this adapter answer people? Decided on the engine that will serve it.

Why it exists: a lesson can lower its own loss and still make the model loop, repeat taught answers,
forget facts or change its language. The gate puts the same questions at temperature 0 to the active
model and to the model with the new adapter, so equal adapters give equal figures. What the active
model says to the clean set is the same for every lesson, so it is asked once and kept
(kept_results.py). Flows in: a GateEngine, the candidate, the active adapter (None: the base), the
lesson. Flows out: a GateReport. Not here: what is compared and the limits (checks.py), activating
(models/adapter_registry.py).

    taught rows, validation, clean set, plain text ~> score  ─┐
    taught and clean questions, persona ~> answer ─> Side before, Side after ─> judge ─> GateReport
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol, TypeVar

from edge_agent.adapt.gate.advice import advice
from edge_agent.adapt.gate.checks import judge
from edge_agent.adapt.gate.clean_set import CleanRow, choose, clean_set
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.exam import (
    Exam,
    GateAnswer,
    GateCheck,
    RowScore,
    Side,
    TaughtLesson,
)
from edge_agent.adapt.gate.identity import Identity
from edge_agent.adapt.gate.kept_results import KeptResults
from edge_agent.clocks import Clocks
from edge_agent.records import AdapterRef, Message, Scores

__all__ = ["Gate", "GateAnswer", "GateCheck", "GateEngine", "GateReport", "TaughtLesson"]

MAX_TOKENS = 24
"""Tokens of one answer: enough for a small question, and for a loop to show. With the counts below,
a side decodes at most 1,300 tokens and prefills some 4,000; of the active model's, 1,000 are kept
for the next lesson."""
N_VALIDATION = 16
N_LEARNED = 12
"""Taught rows that are asked and scored."""
N_SCORED, N_KEYED, N_OPEN, N_PERSONA = 8, 7, 3, 4
"""Clean rows of each language: scored; asked, with keys; asked, without keys; persona questions.
30 unrelated questions: with 18, one copied answer was the limit."""

N_SHOWN = 2
"""Taught questions among the samples."""

Report = Callable[[str], object]
Given = TypeVar("Given", list[Message], str)
Result = TypeVar("Result", RowScore, GateAnswer)


class GateEngine(Protocol):
    """The serving engine as the gate needs it. `adapter` None means the base, even while another
    adapter is active."""

    async def score(self, messages: list[Message], adapter: AdapterRef | None) -> Scores:
        """Log-probabilities (natural) of the tokens of the assistant's turns."""
        ...

    async def score_text(self, text: str, adapter: AdapterRef | None) -> Scores:
        """Log-probabilities of the tokens of a plain text, the first one left out."""
        ...

    async def answer(
        self, messages: list[Message], adapter: AdapterRef | None, max_tokens: int
    ) -> GateAnswer:
        """The answer at temperature 0, and whether `max_tokens` cut it off."""
        ...


@dataclass(frozen=True)
class GateReport:
    """The gate's decision. `reasons` has one sentence for each failed check, `samples` one
    {prompt, before, after} for each shown question, `advice` one sentence for what may help.
    `seconds` is the time the gate took."""

    passed: bool
    reasons: list[str]
    checks: list[GateCheck]
    samples: list[dict[str, str]]
    seconds: float
    advice: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON with stable keys and rounded numbers. A number is null when it was not
        measured or is not finite."""
        return {
            "passed": self.passed,
            "reasons": self.reasons,
            "advice": self.advice,
            "checks": {check.name: _fields(check) for check in self.checks},
            "samples": self.samples,
            "seconds": round(self.seconds, 1),
        }


async def run_gate(
    engine: GateEngine,
    candidate: AdapterRef,
    active: AdapterRef | None,
    lesson: TaughtLesson,
    progress: Report | None = None,
    kept: KeptResults | None = None,
) -> GateReport:
    """Compare the candidate with the active adapter (None: the base).

    `progress` is called with a line of text before each question; `kept` holds what the active
    model said before, and takes what it says now. Raises whatever the engine raises.

        report = await run_gate(engine, candidate, None, TaughtLesson(validation, taught))
        report.passed, report.reasons
    """
    exam = await asyncio.to_thread(prepare, lesson)
    gate = Gate(engine, exam, progress or (lambda _: None), kept=kept)
    return await gate.run(candidate, active)


def prepare(given: TaughtLesson) -> Exam:
    """The exam for both sides. The same lesson gives the same exam on every device."""
    lesson = TaughtSpans(given.taught)
    rows = clean_set()

    def asked(row: CleanRow) -> bool:
        return row.kind not in ("persona", "plain") and not lesson.teaches(row.prompt)

    ends = [chat for chat in given.taught if chat and chat[-1].role == "assistant"]
    return Exam(
        lesson=given,
        learned=sorted(ends, key=_rank)[:N_LEARNED],
        validation=sorted(given.validation, key=_rank)[:N_VALIDATION],
        plain=[row for row in rows if row.kind == "plain"],
        scored=choose(rows, lambda row: row.answer is not None and asked(row), N_SCORED),
        asked=[
            *choose(rows, lambda row: bool(row.keys) and asked(row), N_KEYED),
            *choose(rows, lambda row: not row.keys and asked(row), N_OPEN),
        ],
        persona=choose(rows, lambda row: row.kind == "persona", N_PERSONA),
        taught=lesson,
        identity=Identity(given.taught),
        taught_words=median([len(row.answer) for row in lesson.rows] or [0]),
    )


class Gate:
    """Puts one exam to an engine."""

    def __init__(
        self,
        engine: GateEngine,
        exam: Exam,
        progress: Report,
        clocks: Clocks | None = None,
        kept: KeptResults | None = None,
    ) -> None:
        self._engine = engine
        self._exam = exam
        self._progress = progress
        self._clocks = clocks or Clocks()
        self._kept = KeptResults() if kept is None else kept

    async def run(self, candidate: AdapterRef, active: AdapterRef | None) -> GateReport:
        """Examine both sides and judge. Raises whatever the engine raises."""
        started_s = self._clocks.monotonic()
        before = await self.examine(active, "as it is", self._kept)
        after = await self.examine(candidate, "with the new adapter", KeptResults())
        checks = await asyncio.to_thread(judge, self._exam, before, after)
        failed = [check for check in checks if not check.passed]
        return GateReport(
            passed=not failed,
            reasons=[_reason(check) for check in failed],
            checks=checks,
            samples=_samples(self._exam, before, after),
            seconds=self._clocks.monotonic() - started_s,
            advice=advice(failed, self._exam.lesson),
        )

    async def examine(self, adapter: AdapterRef | None, who: str, kept: KeptResults) -> Side:
        """Score and ask one side. `who` names it in progress lines; results on the clean set are
        taken from `kept`, and kept there. Raises whatever the engine raises."""
        exam, side = self._exam, _Examination(self._engine, adapter, who, self._progress)
        clean = [[*row.question, Message("assistant", row.answer or "")] for row in exam.scored]
        taught = [chat[:-1] for chat in exam.learned]
        found = Side(
            validation=await side.scores(exam.validation, "validation rows"),
            learned=await side.scores(exam.learned, "taught rows"),
            recited=await side.answers(taught, "taught questions"),
            plain=await side.texts([row.prompt for row in exam.plain], kept),
            scored=await side.scores(clean, "clean rows", kept),
            asked=await side.answers([row.question for row in exam.asked], "questions", kept),
            persona=await side.answers([row.question for row in exam.persona], "who are you", kept),
        )
        await asyncio.to_thread(kept.save)
        return found


class _Examination:
    """Scores and answers of one side. `kept` may hold results already."""

    def __init__(
        self, engine: GateEngine, adapter: AdapterRef | None, who: str, progress: Report
    ) -> None:
        self._engine, self._adapter = engine, adapter
        self._who, self._progress = who, progress

    async def scores(
        self, chats: Sequence[list[Message]], what: str, kept: KeptResults | None = None
    ) -> list[RowScore]:
        async def score(chat: list[Message]) -> RowScore:
            return _row_score(await self._engine.score(chat, self._adapter))

        return await self._each(chats, score, what, kept, RowScore)

    async def texts(self, texts: Sequence[str], kept: KeptResults) -> list[RowScore]:
        async def score(text: str) -> RowScore:
            return _row_score(await self._engine.score_text(text, self._adapter))

        return await self._each(texts, score, "plain texts", kept, RowScore)

    async def answers(
        self, chats: Sequence[list[Message]], what: str, kept: KeptResults | None = None
    ) -> list[GateAnswer]:
        async def answer(chat: list[Message]) -> GateAnswer:
            return await self._engine.answer(chat, self._adapter, MAX_TOKENS)

        return await self._each(chats, answer, what, kept, GateAnswer)

    async def _each(
        self,
        given: Sequence[Given],
        work: Callable[[Given], Awaitable[Result]],
        what: str,
        kept: KeptResults | None,
        kind: type[Result],
    ) -> list[Result]:
        found = []
        for number, one in enumerate(given, 1):
            known = None if kept is None else kept.get(f"{what}, {MAX_TOKENS}", one, kind)
            if known is None:
                self._progress(f"{self._who}: {what}, {number} of {len(given)}")
                known = await work(one)
                if kept is not None:
                    kept.put(f"{what}, {MAX_TOKENS}", one, known)
            found.append(known)
        return found


def _row_score(scores: Scores) -> RowScore:
    return RowScore(-math.fsum(scores.logprobs) / math.log(2), scores.n_bytes)


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
    """Both answers to two taught questions; then, for each language, to one small question and to
    one "Who are you?"."""
    taught = zip(exam.learned, before.recited, after.recited, strict=True)
    shown = [
        {"prompt": chat[-2].content, "before": was.text, "after": now.text}
        for chat, was, now in taught
        if len(chat) > 1
    ][:N_SHOWN]
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
