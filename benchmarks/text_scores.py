"""Bits per byte that a model, with or without an adapter, needs for given texts, in llama.cpp.

Flows in: a GGUF file, an adapter or none, chats and plain texts. Flows out: (bits, bytes). A chat
is scored as the gate scores it: only the assistant's turns and the token that ends each. A plain
text is scored without the chat template, every token after the first (after BOS, where the
vocabulary has one). Not here: which texts (lesson_answers.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from edge_agent.engine.adapter_pool import activate
from edge_agent.engine.scoring import logprob
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.machine import default_threads
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.prompt.training_sequence import encode_turns
from edge_agent.records import EngineSettings, Message

N_CTX, ROWS = 1024, 32

Score = tuple[float, int]
"""Bits, and UTF-8 bytes."""


class TextScores:
    """One model with one adapter; use it in a `with` block."""

    log = start_backend()

    def __init__(self, path: Path, adapter: Path | None, threads: int | None = None) -> None:
        """Raises ModelFormatError, ModelRefused, AdapterRefused."""
        settings = EngineSettings(n_threads=threads or default_threads(), n_batch=ROWS)
        self._model = Model(path, settings, self.log)
        self._context = Context(self._model, settings, self.log, n_ctx=N_CTX, slots=1, outputs=ROWS)
        given = [] if adapter is None else [str(adapter)]
        activate(given, path, self._model, self._context, self.log)
        architecture = self._model.metadata("general.architecture") or "unknown"
        self._prompts = PromptBuilder(self._model, architecture)

    def __enter__(self) -> TextScores:
        return self

    def __exit__(self, *_: object) -> None:
        self._prompts.close()
        self._context.close()
        self._model.close()

    def chat(self, messages: Sequence[Message]) -> Score:
        """Raises RequestError for a chat without an answer."""
        found = encode_turns(self._prompts, messages)
        bits = sum(self._bits(one.ids, one.learned) for one in found)
        return bits, sum(one.n_bytes for one in found)

    def text(self, text: str) -> Score:
        vocabulary = self._model.vocabulary
        ids = vocabulary.tokenize(text, add_special=True, parse_special=False)
        first = 0 if ids[0] == vocabulary.bos else len(vocabulary.piece(ids[0]))
        wanted = [place > 0 for place in range(len(ids))]
        return self._bits(ids, wanted), len(text.encode()) - first

    def _bits(self, ids: Sequence[int], wanted: Sequence[bool]) -> float:
        """-log2 of the probability of the wanted ids, each after those before it."""
        if len(ids) > N_CTX:
            raise ValueError(f"a text of {len(ids)} tokens, at most {N_CTX}")
        self._context.truncate(0, 0)
        nats = []
        for first in range(0, len(ids) - 1, ROWS):
            places = range(first, min(first + ROWS, len(ids) - 1))
            self._context.clear_batch()
            rows = [self._context.add(ids[at], at, 0, output=wanted[at + 1]) for at in places]
            self._context.decode()
            self._context.synchronize()
            nats += [
                logprob(self._context, row, ids[at + 1], self._model.vocabulary.n_tokens)
                for at, row in zip(places, rows, strict=True)
                if wanted[at + 1]
            ]
        return -math.fsum(nats) / math.log(2)
