"""What the gate compares: an exam, the two sides that took it, and the form of a check.

Flows in: nothing; these are the types that gate.py fills and the checks read. Not here: choosing
the questions (gate.py), the checks (checks.py, answer_checks.py, learned.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.adapt.gate.clean_set import CleanRow
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.identity import Identity
from edge_agent.records import Message


@dataclass(frozen=True)
class RowScore:
    """The score of one chat's assistant turns. `bits` is -sum(log2 probability), nan when a
    probability is not finite; `n_bytes` are the answers' UTF-8 bytes."""

    bits: float
    n_bytes: int


@dataclass(frozen=True)
class GateAnswer:
    """An answer of the engine. `is_cut`: it reached the limit of tokens before its end."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class TaughtLesson:
    """What was taught, and how the training ended. `validation` and `taught` are the chats that the
    trainer validated with and learned; `ended` and `is_instruct` as the trainer found them
    (messages.Finished: `end_loss` is low for an instruct model)."""

    validation: list[list[Message]]
    taught: list[list[Message]]
    ended: str = ""
    is_instruct: bool = False


@dataclass(frozen=True)
class Exam:
    """The questions and texts, the same for both sides. `scored` and `asked` are clean rows that
    the lesson does not teach; `scored` ones have an answer. `persona` rows ask who the model is,
    `plain` ones are text outside any chat. `lesson` is what is judged, `learned` some chats of
    it that end with a taught answer."""

    lesson: TaughtLesson
    learned: list[list[Message]]
    validation: list[list[Message]]
    plain: list[CleanRow]
    scored: list[CleanRow]
    asked: list[CleanRow]
    persona: list[CleanRow]
    taught: TaughtSpans
    identity: Identity
    taught_words: float
    """Median length of a taught answer, in words."""


@dataclass(frozen=True)
class Side:
    """One model's results, in the order of the Exam's rows."""

    validation: list[RowScore]
    learned: list[RowScore]
    """Scores of the exam's `learned` chats."""
    recited: list[GateAnswer]
    """Answers to the questions of these chats."""
    plain: list[RowScore]
    scored: list[RowScore]
    asked: list[GateAnswer]
    persona: list[GateAnswer]


@dataclass(frozen=True)
class GateCheck:
    """One compared property. The numbers are shares (0 to 1) or bits per byte; None means that the
    property was not checked, and `note` says why."""

    name: str
    before: float | None
    after: float | None
    limit: float | None
    passed: bool
    note: str = ""


NOTHING_LEFT = "the lesson teaches every question of the clean set"


def skipped(name: str, why: str) -> GateCheck:
    """A check that could not be made."""
    return GateCheck(name, None, None, None, True, f"not checked: {why}")


def bits_per_byte(scores: Sequence[RowScore]) -> float:
    """Sum of bits / sum of bytes, so that a long text counts more than a short one.

    >>> bits_per_byte([RowScore(8.0, 4), RowScore(1.0, 2)])
    1.5
    """
    return sum(score.bits for score in scores) / sum(score.n_bytes for score in scores)
