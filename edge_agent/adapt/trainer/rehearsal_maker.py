"""Makes the rehearsal of one run: looks which kind of model it is; a base model writes its texts.

Why it exists: both need the model, and a resumed run must rehearse the same. Flows in: the open
weights, the encoded rows of the lesson and of the package. Flows out: the lesson with its
Rehearsal; rehearsal.json in the run's directory, which a resumed run reads. A plan writes no file:
it counts with texts of the full length instead of the model's own. Not here: which rows count how
much (rehearsal.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.compute import blas_threads
from edge_agent.adapt.trainer.decoder.decoder import Decoder, pack
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.own_texts import write_texts
from edge_agent.adapt.trainer.packed_samples import PackedSamples, supervised
from edge_agent.adapt.trainer.preparation import PreparedData
from edge_agent.adapt.trainer.rehearsal import (
    OWN_TOKENS,
    Rehearsal,
    choose,
    kind_of,
    openings,
)
from edge_agent.adapt.trainer.run_directory import read_json, write_json
from edge_agent.adapt.trainer.training_loop import LoopTools


class RehearsalMaker:
    """`path`: rehearsal.json of the run; None for a plan. `model_sha256` is the model file's."""

    def __init__(
        self,
        weights: PackedWeights,
        model_sha256: str,
        settings: RunSettings,
        path: Path | None,
        tools: LoopTools,
    ) -> None:
        self._weights, self._settings = weights, settings
        self._path, self._tools = path, tools
        # A run that was killed before its manifest may leave a file of other settings.
        self._identity = [model_sha256, settings.seed, settings.rehearsal]

    def add_to(self, lesson: PreparedData) -> PreparedData:
        """The lesson with its rehearsal. Raises StopAsked, OSError, and what llama.cpp refuses."""
        known = read_json(self._path) if self._path is not None else {}
        if known.get("identity") != self._identity:
            known = self._made(lesson)
        own = [Sample(0, array("i", one["ids"]), one["learned"]) for one in known["own"]]
        end_loss = known["end_loss"]
        kind = kind_of(self._settings, end_loss)
        pools = choose(kind, self._settings, lesson.general, lesson.identity, lesson.asked, own)
        rehearsal = Rehearsal(kind if pools else "none", pools, end_loss)
        held = lesson.packed
        train, validation = (
            [held.samples[n] for n in part] for part in (held.train, held.validation)
        )
        packed = PackedSamples(train, validation, rehearsal.samples)
        return replace(lesson, packed=packed, rehearsal=rehearsal)

    def _made(self, lesson: PreparedData) -> dict[str, Any]:
        """The contents of rehearsal.json."""
        self._tools.reporter.progress(phase="rehearse", note="which kind of model is it?")
        end_loss = end_of_turn_loss(self._weights, lesson.ends)
        own: list[Sample] = []
        if kind_of(self._settings, end_loss) == "answers":
            own = self._own_texts() if self._path is not None else _as_long()
        documents = [{"ids": list(one.ids), "learned": one.learned} for one in own]
        made = {"identity": self._identity, "end_loss": end_loss, "own": documents}
        if self._path is not None:
            path = self._path
            self._tools.pauses.persist(lambda: write_json(path, made))
        return made

    def _own_texts(self) -> list[Sample]:
        texts, tools = openings(), self._tools

        def after_text(count: int) -> None:
            tools.reporter.note(f"the model writes texts to rehearse: {count} of {len(texts)}")
            tools.pauses.rest()

        n_threads = blas_threads()  # the engine's, also where a GPU trains
        path, seed = self._weights.gguf.path, self._settings.seed
        return write_texts(path, texts, OWN_TOKENS, seed, n_threads, after_text)


def end_of_turn_loss(weights: PackedWeights, samples: Sequence[Sample]) -> float | None:
    """Mean nats of the token that ends the answer of each sample; None without samples."""
    if not samples:
        return None
    decoder = Decoder(weights, {})
    batch = pack([(one.ids, one.learned) for one in samples])
    losses = decoder.compute.to_host(decoder.evaluate(batch).losses)
    ends = np.cumsum([supervised(one) for one in samples]) - 1
    return float(losses[ends].mean(dtype="f8"))


def _as_long() -> list[Sample]:
    """Samples of the length of the model's own texts, for a plan."""
    learned = [n % 2 == 0 and n > 0 for n in range(OWN_TOKENS)]
    return [Sample(0, array("i", [0] * OWN_TOKENS), learned) for _ in openings()]
