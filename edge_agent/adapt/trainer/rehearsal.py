"""What a lesson rehearses so that the model keeps the rest: which texts, how they count, and when.

Why it exists: a lesson of a few facts makes a small model forget. Without rehearsal SmolLM2 lost
19 % on clean texts and gave 17 % of unrelated questions a taught answer (dev/log). Flows in: the
package's rehearsal.jsonl, the lesson's chats, what this board's users asked, settings, the
end-of-turn loss. Flows out: samples, the pools they belong to, and the rehearsal rows of every
step, a function of the seed and the number of the row. Not here: the distributions to keep
(rehearsal_targets.py), texts that the model writes (own_texts.py), the loss (training_step.py).

An instruct model rehearses by KL to itself as it was before the lesson ("kl"). A base model has no
turns to keep: it learns general answers, and keeps its own texts by KL ("answers"). The loss of the
token that ends a turn, after answers written by people, says which of both a model is: 2.7 nats
with SmolLM2 135M Instruct, 23.8 with Gemma 3 270M.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.identity import Identity
from edge_agent.adapt.messages import is_instruct
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.dataset import ChatRow, Sample, parse_rows
from edge_agent.adapt.trainer.packed_samples import epoch_rows
from edge_agent.records import Message

RehearsalKind = Literal["kl", "answers", "none"]
END_ROWS = 10
"""Answers after which the end of the turn is scored."""
KL_ROWS, IDENTITY_ROWS, ANSWER_ROWS = 80, 16, 180
"""Rows by default: general and identity questions of an instruct model; answers of a base model."""
KL_WEIGHT, ANSWER_WEIGHT, OWN_SHARE = 0.5, 1.0, 2.0
"""Weights of the mean losses beside the lesson's mean loss of 1: of an instruct model's divergence,
of a base model's answers, and of its own texts as a multiple of the latter."""
POOL_TOKENS, OWN_TOKENS = 128, 64
"""Tokens of a pool beside each packed row of the lesson, at most; tokens of a text that the model
writes."""
_FILE = Path(__file__).with_suffix(".jsonl")


class RehearsalRow(msgspec.Struct, frozen=True):
    """A row of rehearsal.jsonl: a general or an identity question with an answer, or an opening
    that a base model continues."""

    kind: Literal["general", "identity", "opening"]
    language: str
    prompt: str
    answer: str = ""


@cache
def rehearsal_rows() -> tuple[RehearsalRow, ...]:
    """All rows of the package, in the order of the file."""
    return tuple(
        msgspec.json.decode(line, type=RehearsalRow) for line in _FILE.read_bytes().splitlines()
    )


def general_chats(taught: Sequence[Sequence[Message]]) -> tuple[list[ChatRow], list[ChatRow]]:
    """(general rows, identity rows) as chats, without what the lesson `taught` teaches.

    The order mixes the languages and is the same on every device. A lesson that teaches an identity
    leaves out all identity rows.
    """
    lesson = TaughtSpans(taught)
    rows = sorted(rehearsal_rows(), key=lambda row: hashlib.sha256(row.prompt.encode()).digest())
    free = [row for row in rows if not lesson.teaches(row.prompt)]
    general = [_chat(row) for row in free if row.kind == "general"]
    identity = [_chat(row) for row in free if row.kind == "identity"]
    return general, [] if Identity(taught).languages else identity


def users_chats(asked: Mapping[str, Any], taught: Sequence[Sequence[Message]]) -> list[ChatRow]:
    """What users of this board asked ({"rows"}, lesson_files.py) as chats, without what the lesson
    `taught` teaches. Raises DataRefused for rows that are no chats."""
    lines = [json.dumps(row).encode() for row in asked.get("rows", [])]
    if not lines:
        return []
    lesson = TaughtSpans(taught)
    rows = parse_rows(lines, "the questions of this board")
    return [row for row in rows if not lesson.teaches(row.messages[0].content)]


def end_chats() -> list[ChatRow]:
    """The chats after which the end of the turn is scored. They are English, which every chat model
    knows best: after Hindi answers SmolLM2's loss is 8.5 nats, after English ones 2.7."""
    rows = (row for row in rehearsal_rows() if (row.kind, row.language) == ("general", "en"))
    return [_chat(row) for row in islice(rows, END_ROWS)]


def openings() -> list[str]:
    """The openings that a base model continues."""
    return [row.prompt for row in rehearsal_rows() if row.kind == "opening"]


def _chat(row: RehearsalRow) -> ChatRow:
    return ChatRow(0, (Message("user", row.prompt), Message("assistant", row.answer)), row.kind)


@dataclass(frozen=True)
class RehearsalPool:
    """Samples that a run rehearses. `weight` is that of their mean loss, `tokens` how many of them
    stand in each packed row of the lesson, at most. `is_soft`: the stored distributions are kept;
    otherwise the samples' own tokens are learned."""

    samples: tuple[Sample, ...]
    weight: float
    tokens: int
    is_soft: bool

    @property
    def row_tokens(self) -> int:
        """Tokens of the pool beside one row of the lesson, at most; more than `tokens` where one
        sample is longer."""
        return max(self.tokens, *map(len, self.samples))


@dataclass(frozen=True)
class Rehearsal:
    """The rehearsal of one run. `end_loss`: nats of the end of a turn before the lesson."""

    kind: RehearsalKind = "none"
    pools: tuple[RehearsalPool, ...] = ()
    end_loss: float | None = None

    @property
    def samples(self) -> list[Sample]:
        """All samples, pool by pool."""
        return [sample for pool in self.pools for sample in pool.samples]

    @property
    def row_tokens(self) -> int:
        """Tokens beside one row of the lesson, at most."""
        return sum(pool.row_tokens for pool in self.pools)

    def soft(self, first: int) -> list[int]:
        """The numbers of the samples whose distributions are kept; `first` is that of the first
        rehearsal sample."""
        flags = [pool.is_soft for pool in self.pools for _ in pool.samples]
        return [first + n for n, is_soft in enumerate(flags) if is_soft]


def kind_of(settings: RunSettings, end_loss: float | None) -> RehearsalKind:
    """How a model with this end-of-turn loss rehearses."""
    if settings.rehearsal != "auto":
        return settings.rehearsal
    if end_loss is None:
        return "none"
    return "kl" if is_instruct(end_loss) else "answers"


def choose(
    kind: RehearsalKind,
    settings: RunSettings,
    general: Sequence[Sample],
    identity: Sequence[Sample],
    asked: Sequence[Sample],
    own: Sequence[Sample],
) -> tuple[RehearsalPool, ...]:
    """The pools of a run. `general` and `identity` are the encoded rows of `general_chats`, `asked`
    what users of this board asked, `own` the model's own texts."""
    weight, n_rows = settings.rehearsal_weight, settings.rehearsal_rows
    if kind == "kl":
        users = asked[: (n_rows or KL_ROWS) // 2]
        samples = (*users, *general[: (n_rows or KL_ROWS) - len(users)], *identity[:IDENTITY_ROWS])
        pools = [RehearsalPool(samples, weight or KL_WEIGHT, POOL_TOKENS, is_soft=True)]
    elif kind == "answers":
        weight = weight or ANSWER_WEIGHT
        answers = tuple(general[: n_rows or ANSWER_ROWS])
        pools = [
            RehearsalPool(answers, weight, POOL_TOKENS, is_soft=False),
            RehearsalPool(tuple(own), OWN_SHARE * weight, OWN_TOKENS, is_soft=True),
        ]
    else:
        pools = []
    return tuple(pool for pool in pools if pool.samples)


class RehearsalOrder:
    """Which samples are rehearsed beside which packed row of the lesson.

    The rows of a pool are used in turn; each pass through them has an order of its own. `first` is
    the number of the first rehearsal sample in PackedSamples.
    """

    def __init__(self, rehearsal: Rehearsal, first: int, seed: int) -> None:
        self._seed = seed
        self._pools: list[tuple[RehearsalPool, int]] = []
        self._rows: dict[int, tuple[int, list[list[int]]]] = {}
        """The rows of each pool's newest pass, and the number of that pass."""
        for pool in rehearsal.pools:
            self._pools.append((pool, first))
            first += len(pool.samples)

    def beside(self, number: int) -> list[tuple[RehearsalPool, list[int]]]:
        """The numbers of the samples, pool by pool, beside the packed row `number`, counted from 0
        through the whole run."""
        found = []
        for place, (pool, first) in enumerate(self._pools):
            _, rows = self._rows.get(place) or self._made(place, 0)
            passes, at = divmod(number, len(rows))  # every pass has as many rows (first-fit)
            if self._rows[place][0] != passes:
                _, rows = self._made(place, passes)
            found.append((pool, [first + n for n in rows[at]]))
        return found

    def _made(self, place: int, number: int) -> tuple[int, list[list[int]]]:
        pool = self._pools[place][0]
        rows = epoch_rows(pool.samples, pool.row_tokens, self._seed + 1 + place, number)
        self._rows[place] = number, rows
        return self._rows[place]
