"""What a run will take, in bytes and in time, before it starts; and what to do if it does not fit.

Why it exists: a run lasts hours, so the user must know its cost first, and a run that does not fit
must be refused with settings that would fit. The bytes come from memory_estimate.py, the times from
a few real steps (timing.py). With layers "auto", candidates that do not fit are not tried, and rows
are made shorter before the run is refused. Flows in: an open model file, a lesson, settings, the
available memory. Flows out: Planned for the front, Decisions for the manifest, or TrainingFailed.
Not here: which blocks are best (layer_choice.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import msgspec

from edge_agent.adapt.messages import Planned
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import adapter_sizes, candidates, parse_layers, top
from edge_agent.adapt.trainer.manifest import Decisions
from edge_agent.adapt.trainer.memory_estimate import MemoryEstimate, row_sizes
from edge_agent.adapt.trainer.preparation import PreparedData
from edge_agent.adapt.trainer.rehearsal_targets import file_bytes
from edge_agent.adapt.trainer.stored_states import StateStore
from edge_agent.adapt.trainer.timing import Rates, calibrate
from edge_agent.adapt.trainer.training_loop import EpochOrder, LoopTools
from edge_agent.errors import TrainingFailed
from edge_agent.machine import read_memory

AVAILABLE_SHARE = 0.5
"""Share of the available memory that a run may take when the user sets no limit."""
LEAST_BATCH_TOKENS = 64
"""Rows are not made shorter than this to fit into memory."""
LEAST_STEPS, SHORT_ROW_TOKENS = 3, 128
"""A short lesson gets shorter rows, until an epoch has LEAST_STEPS steps or a row SHORT_ROW_TOKENS
tokens: with 24 texts the model did not learn the end of a turn in 16 long steps, and learned it in
36 short ones (dev/log). Short rows take more time per token."""
LESS_R = (8, 4, 2, 1)
"""Values of r that are proposed when a run does not fit."""
MIB = 1 << 20


@dataclass(frozen=True)
class TrainingPlan:
    """What a run takes and what was decided. When it does not fit, each of `proposals` names
    settings, in words, with which it would."""

    planned: Planned
    decisions: Decisions
    proposals: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises TrainingFailed, with the largest parts and the proposals, when the run does not
        fit."""
        if self.planned.fits:
            return
        parts = sorted(_own(self.planned.bytes).items(), key=lambda part: -part[1])
        largest = ", ".join(f"{name} {n_bytes // MIB} MiB" for name, n_bytes in parts[:3])
        hint = " or ".join(self.proposals) or "give it more memory, or take a smaller model"
        raise TrainingFailed(
            f"the run would take {self.planned.bytes['total'] / MIB:.0f} MiB of its own,"
            f" {self.planned.memory_bytes / MIB:.0f} MiB are allowed",
            largest,
            hint,
        )


def _own(parts: dict[str, int]) -> dict[str, int]:
    outside = ("weights_mapped", "prefix_store", "total")
    return {name: n_bytes for name, n_bytes in parts.items() if name not in outside}


class Planner:
    """Plans the run of one Start message."""

    def __init__(
        self, weights: PackedWeights, lesson: PreparedData, settings: RunSettings, tools: LoopTools
    ) -> None:
        self._weights, self._lesson, self._settings = weights, lesson, settings
        self._tools = tools
        self._n_layer = weights.gguf.n_layer
        self._longest = max(map(len, lesson.packed.samples[: lesson.packed.rehearsal.start]))
        self._limit = settings.memory_bytes or _half_of_available()
        self._row_tokens = self._short_enough()

    def plan(self) -> TrainingPlan:
        """The plan for the layers of the settings, or for `auto`.

        Raises UsageError for layers that the model does not have and for an r that is too large
        for one of its weights, and StopAsked.
        """
        layers = parse_layers(self._settings.layers, self._n_layer)
        adapter_sizes(self._weights.gguf, self._settings, layers or range(self._n_layer))
        if layers is not None:
            return self._plan(layers, self._row_tokens)
        for batch_tokens in self._batch_sizes():
            counts = self._fitting(batch_tokens)
            if counts:
                return self._plan_auto(counts, batch_tokens)
        return self._plan(top(candidates(self._n_layer)[0], self._n_layer), batch_tokens)

    def plan_for(self, layers: Sequence[int], before: Decisions) -> TrainingPlan:
        """The plan for the blocks that `auto` has chosen, with the memory and the rows that were
        decided before."""
        self._limit = before.memory_bytes
        plan = self._plan(layers, before.batch_tokens)
        decisions = msgspec.structs.replace(plan.decisions, candidates=before.candidates)
        return replace(plan, decisions=decisions)

    def _batch_sizes(self) -> list[int]:
        """Row lengths to try: the wanted one, then half of it again and again, as long as a row
        holds the longest text and LEAST_BATCH_TOKENS."""
        sizes = [self._row_tokens]
        while sizes[-1] // 2 >= max(LEAST_BATCH_TOKENS, self._longest):
            sizes.append(sizes[-1] // 2)
        return sizes

    def _short_enough(self) -> int:
        """Tokens of a row: as set, or fewer if an epoch would have less than LEAST_STEPS steps."""
        packed, tokens = self._lesson.packed, self._settings.batch_tokens
        train = [packed.samples[n] for n in packed.train]
        while tokens // 2 >= max(SHORT_ROW_TOKENS, self._longest):
            if len(EpochOrder(train, self._settings, tokens).epoch(0)) >= LEAST_STEPS:
                break
            tokens //= 2
        return tokens

    def _fitting(self, batch_tokens: int) -> list[int]:
        """The candidates (numbers of top blocks) that fit with rows of `batch_tokens`."""
        estimate = self._memory_estimate(batch_tokens, self._settings)
        return [
            n
            for n in candidates(self._n_layer)
            if estimate.bytes_of(top(n, self._n_layer))["total"] <= self._limit
        ]

    def _memory_estimate(self, batch_tokens: int, settings: RunSettings) -> MemoryEstimate:
        sizes = row_sizes(self._lesson.packed, self._lesson.rehearsal, batch_tokens)
        n_threads = self._weights.compute.n_threads
        return MemoryEstimate(self._weights.gguf, sizes, settings, n_threads)

    # ---- one plan -----------------------------------------------------------------------------

    def _plan(self, layers: Sequence[int], batch_tokens: int) -> TrainingPlan:
        """The plan for these blocks, whether they fit or not."""
        parts = self._memory_estimate(batch_tokens, self._settings).bytes_of(layers)
        fits = parts["total"] <= self._limit
        rates = self._rates(layers, batch_tokens) if fits else None
        planned = self._planned(parts, layers, batch_tokens, rates)
        decisions = Decisions(batch_tokens, self._limit, 0, [], list(layers))
        if fits:
            return TrainingPlan(planned, decisions)
        proposals = tuple(self._proposals(layers, batch_tokens))
        notes = [*planned.notes, *(f"it would fit with {one}" for one in proposals)]
        return TrainingPlan(msgspec.structs.replace(planned, notes=notes), decisions, proposals)

    def _plan_auto(self, counts: Sequence[int], batch_tokens: int) -> TrainingPlan:
        """The plan for `auto`: the figures of the largest candidate that fits, and a table of all
        candidates. Two candidates are timed; the times of the others lie on a line through them."""
        layers, names = top(counts[-1], self._n_layer), self._names(counts)
        rates = [self._rates(top(n, self._n_layer), batch_tokens) for n in counts[:2]]
        memory_estimate = self._memory_estimate(batch_tokens, self._settings)
        choices = []
        for count in candidates(self._n_layer):
            total = memory_estimate.bytes_of(top(count, self._n_layer))["total"]
            epoch_s = self._epoch_s(_between(counts[:2], rates, count))
            choices.append({"layers": count, "total_bytes": total, "epoch_s": epoch_s,
                            "fits": float(total <= self._limit)})  # fmt: skip
        parts = memory_estimate.bytes_of(layers)
        rate = _between(counts[:2], rates, counts[-1])
        planned = self._planned(parts, layers, batch_tokens, rate)
        notes = [*planned.notes, f"auto: short trials choose among {', '.join(names)}"]
        return TrainingPlan(
            msgspec.structs.replace(planned, choices=choices, notes=notes),
            Decisions(batch_tokens, self._limit, 0, list(counts), []),
        )

    def _names(self, counts: Sequence[int]) -> list[str]:
        return [f"top:{n}" if n < self._n_layer else "all" for n in counts]

    def _planned(
        self,
        parts: dict[str, int],
        layers: Sequence[int],
        batch_tokens: int,
        rates: Rates | None,
    ) -> Planned:
        packed, notes = self._lesson.packed, list(self._lesson.notes)
        train = [packed.samples[n] for n in packed.train]
        if batch_tokens < self._row_tokens:
            notes.append(f"rows of {batch_tokens} tokens instead of more, so that it fits")
        elif batch_tokens < self._settings.batch_tokens:
            notes.append(f"rows of {batch_tokens} tokens: longer ones make too few steps an epoch")
        has_prefix = rates is not None and min(layers) > 0
        return Planned(
            bytes=parts,
            layers=list(layers),
            n_train=len(train),
            n_validation=len(packed.validation),
            n_tokens=packed.tokens(packed.train),
            n_supervised=packed.supervised(packed.train),
            steps_per_epoch=len(EpochOrder(train, self._settings, batch_tokens).epoch(0)),
            epoch_s=None if rates is None else self._epoch_s(rates),
            rejected=self._lesson.rejected,
            flagged=self._lesson.flagged,
            fits=parts["total"] <= self._limit,
            notes=notes,
            memory_bytes=self._limit,
            prefix_s=rates.prefix_s * packed.n_tokens if rates and has_prefix else None,
            rehearsal=self._rehearsal(layers, rates),
        )

    def _rehearsal(self, layers: Sequence[int], rates: Rates | None) -> dict[str, Any]:
        """Planned.rehearsal."""
        rehearsal, packed = self._lesson.rehearsal, self._lesson.packed
        soft = rehearsal.soft(packed.rehearsal.start)
        n_tokens = packed.tokens(packed.rehearsal)
        n_bytes = file_bytes(packed.supervised(soft)) if soft else 0
        if min(layers) > 0:
            n_bytes += StateStore.file_bytes(n_tokens, self._weights.gguf.n_embd)
        seconds = None
        if rates is not None:
            seconds = rates.prefix_s * n_tokens + rates.validate_s * packed.tokens(soft)
        return {
            "kind": rehearsal.kind,
            "rows": len(rehearsal.samples),
            "tokens": n_tokens,
            "bytes": n_bytes if n_tokens else 0,
            "seconds": seconds,
        }

    def _epoch_s(self, rates: Rates) -> float:
        packed = self._lesson.packed
        train, held = packed.tokens(packed.train), packed.tokens(packed.validation)
        return rates.step_s * train + rates.validate_s * held

    def _rates(self, layers: Sequence[int], batch_tokens: int) -> Rates:
        lesson, settings = self._lesson, self._settings
        return calibrate(self._weights, lesson, settings, layers, batch_tokens, self._tools)

    # ---- when it does not fit -----------------------------------------------------------------

    def _proposals(self, layers: Sequence[int], batch_tokens: int) -> list[str]:
        """Changes of one setting with which the run would fit; without any, a change of all three
        settings, if that fits."""
        settings, found = self._settings, []
        shorter = self._batch_sizes()[1:]
        fewer = [n for n in reversed(candidates(self._n_layer)) if n < len(layers)]
        less = [r for r in LESS_R if r < settings.r]
        for size in shorter:
            if self._total(layers, size, settings) <= self._limit:
                found.append(f"batch_tokens {size}")
                break
        for count in fewer:
            if self._total(top(count, self._n_layer), batch_tokens, settings) <= self._limit:
                found.append(f"layers top:{count}")
                break
        for r in less:
            if self._total(layers, batch_tokens, _with_r(settings, r)) <= self._limit:
                found.append(f"r {r}")
                break
        return found or self._together(shorter, fewer, less)

    def _together(
        self, shorter: Sequence[int], fewer: Sequence[int], less: Sequence[int]
    ) -> list[str]:
        size = shorter[-1] if shorter else self._row_tokens
        count = fewer[-1] if fewer else candidates(self._n_layer)[0]
        r = less[-1] if less else self._settings.r
        layers = top(count, self._n_layer)
        if self._total(layers, size, _with_r(self._settings, r)) > self._limit:
            return []
        return [f"batch_tokens {size}, layers top:{count} and r {r} together"]

    def _total(self, layers: Sequence[int], batch_tokens: int, settings: RunSettings) -> int:
        return self._memory_estimate(batch_tokens, settings).bytes_of(layers)["total"]


def _with_r(settings: RunSettings, r: int) -> RunSettings:
    return msgspec.structs.replace(settings, r=r)


def _half_of_available() -> int:
    return round(AVAILABLE_SHARE * read_memory().available_bytes)


def _between(counts: Sequence[int], rates: Sequence[Rates], count: int) -> Rates:
    """The rates for `count` top blocks, on the line through the rates of two measured counts: a
    step's time is linear in the number of blocks."""
    if len(rates) == 1 or count == counts[0]:
        return rates[0]
    share = (count - counts[0]) / (counts[1] - counts[0])
    one, two = astuple(rates[0]), astuple(rates[1])
    return Rates(*(max(0.0, a + share * (b - a)) for a, b in zip(one, two, strict=True)))
