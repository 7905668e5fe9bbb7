"""Chats that are read, not continued: scores of their answers, and the check of an adapter.

Why it exists: whether an adapter helps is measured on the serving engine, by the log-probabilities
that it gives to written answers (teacher forcing). Flows in: records.Score, CheckAdapter. Flows
out: a `Reading`, which is work for a slot: it says which of its next tokens need logits, and takes
the rows of logits; then records.Scores or Text. A chat is one sequence of ids, or several where the
template changes earlier answers (prompt/training_sequence.py). A reading reuses nothing that
another request left in the KV cache. Not here: decode calls (scheduler.py), which tokens are an
answer (prompt/training_sequence.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_agent.engine.adapter_pool import key_of
from edge_agent.engine.prefix_cache import common_prefix
from edge_agent.engine.slots import Work
from edge_agent.errors import ContextExceeded, RequestError
from edge_agent.llama.context import Context
from edge_agent.llama.sampling import logits_of
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.prompt.training_sequence import Encoded, encode_turns
from edge_agent.records import CheckAdapter, FromWorker, Score, Scores, Text

CHECK_TOKENS = 16
"""Length of the sequence that checks an adapter: one token repeated, as in loading.py's warm-up."""


@dataclass
class Passage:
    """Ids to decode. `targets[i]` is the id whose probability is wanted after position i, or None
    when none is wanted there."""

    ids: list[int]
    targets: list[int | None]

    @property
    def first_target(self) -> int:
        """The first position with a target."""
        return next(at for at, target in enumerate(self.targets) if target is not None)


@dataclass(kw_only=True)
class Reading(Work):
    """Work that decodes given sequences and collects log-probabilities. It ends with the last row
    of its last sequence."""

    message: Score | CheckAdapter
    sequences: list[Passage]
    """The sequences that are not finished. The first one is being read, and `prompt_ids` are its
    ids."""
    n_bytes: int = 0
    n_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    at: int = 0
    """Position of the next id to decode, in the first sequence."""

    def chunk(self, most_tokens: int, most_rows: int) -> list[bool]:
        """One flag for each of the next ids that fit into one call: does it need logits?

        The ids are at most `most_tokens`, and at most `most_rows` of them need logits.
        """
        flags: list[bool] = []
        for target in self.sequences[0].targets[self.at : self.at + most_tokens]:
            most_rows -= target is not None
            if most_rows < 0:
                break
            flags.append(target is not None)
        return flags

    def take(self, context: Context, n: int, rows: Sequence[int], n_vocab: int) -> None:
        """Record that `n` ids have been decoded, and read the log-probabilities in `rows`."""
        targets = self.sequences[0].targets[self.at : self.at + n]
        wanted = [target for target in targets if target is not None]
        if isinstance(self.message, Score):
            for row, target in zip(rows, wanted, strict=True):
                self.logprobs.append(logprob(context, row, target, n_vocab))
        self.at += n

    @property
    def is_read(self) -> bool:
        """Whether the current sequence has been read to its end."""
        return self.at == len(self.sequences[0].targets)

    def next_sequence(self) -> bool:
        """Make the next sequence the current one. Returns False when there is none."""
        self.sequences.pop(0)
        if self.sequences:
            self.prompt_ids = self.sequences[0].ids
        return bool(self.sequences)

    def reusable(self, known: Sequence[int]) -> int:
        """Number of leading ids of the current sequence that need not be decoded: `known`, the ids
        in the slot's cache, begin with them and none of them has a target."""
        return min(common_prefix(known, self.prompt_ids), self.sequences[0].first_target)

    def answer(self) -> FromWorker:
        """The record for the front, after the last sequence has been read."""
        if isinstance(self.message, Score):
            return Scores(self.id, self.logprobs, self.n_bytes, self.n_tokens)
        return Text(self.id, "")


def logprob(context: Context, row: int, token: int, n_vocab: int) -> float:
    """Natural logarithm of a token's probability in a row of logits: log-softmax in float64."""
    logits = logits_of(context, row, n_vocab).astype(np.float64)
    logits -= logits.max()
    chosen = float(logits[token])
    return chosen - math.log(float(np.exp(logits, out=logits).sum()))


def score_reading(score: Score, arrived: float, prompts: PromptBuilder, n_ctx: int) -> Reading:
    """The reading that answers a Score. `n_ctx` is the length of a slot in tokens.

    Raises RequestError for a chat without an answer or a text without two tokens, TemplateError for
    the template, and ContextExceeded (a RequestError) for what is longer than `n_ctx`.
    """
    if score.text is None:
        chats = encode_turns(prompts, score.messages)
    else:
        chats = [_plain(prompts, score.text)]
    longest = max(len(chat.ids) for chat in chats)
    if longest > n_ctx:
        raise ContextExceeded(
            f"the chat has {longest} tokens", f"a slot holds {n_ctx}", "score a shorter one"
        )
    sequences = [_sequence(chat) for chat in chats]
    return Reading(
        id=score.id,
        arrived=arrived,
        adapter=score.adapter,
        key=key_of(score.adapter),
        message=score,
        sequences=sequences,
        prompt_ids=sequences[0].ids,
        n_bytes=sum(chat.n_bytes for chat in chats),
        n_tokens=sum(len(chat.ids) for chat in chats),
    )


def _plain(prompts: PromptBuilder, text: str) -> Encoded:
    """A text without a template: every token but the first is wanted."""
    ids = prompts.vocabulary.tokenize(text, add_special=True, parse_special=False)
    if len(ids) < 2:
        raise RequestError("the text cannot be scored", "it has less than two tokens", "")
    return Encoded(ids, [False] + [True] * (len(ids) - 1), len(text.encode()))


def check_reading(check: CheckAdapter, arrived: float, token: int) -> Reading:
    """The reading that checks an adapter with `token` repeated. Raises RequestError for a scale
    that is no number."""
    ids = [token] * CHECK_TOKENS
    targets: list[int | None] = [*[None] * (CHECK_TOKENS - 1), token]
    return Reading(
        id=check.id,
        arrived=arrived,
        adapter=check.adapter,
        key=key_of(check.adapter),
        message=check,
        sequences=[Passage(ids, targets)],
        prompt_ids=ids,
    )


def _sequence(chat: Encoded) -> Passage:
    """The ids to decode and their targets. The last learned id is a target only, so it is not
    decoded, and neither are the ids behind it.

    >>> _sequence(Encoded([5, 6, 7, 8], [False, False, True, False], 1))
    Passage(ids=[5, 6], targets=[None, 7])
    """
    targets = [
        token if learned else None
        for token, learned in zip(chat.ids[1:], chat.learned[1:], strict=True)
    ]
    while targets[-1] is None:
        targets.pop()
    return Passage(chat.ids[: len(targets)], targets)
