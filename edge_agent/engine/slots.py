"""A slot: one sequence of the KV cache, and the work that is done in it.

Flows in: records.Generate and the prompt's ids. Flows out: what to decode next (`Slot.pending`) and
the times of the work. A `Request` is continued token by token; the other kind of work is a chat
that is only read (scoring.py). Not here: when to decode (scheduler) and how to sample (llama/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.engine.adapter_pool import AdapterKey
from edge_agent.engine.text_stream import TextStream
from edge_agent.engine.work_spans import Phase, WorkSpans
from edge_agent.llama.sampling import Sampler
from edge_agent.prompt.encoding import Part
from edge_agent.records import AdapterRef, ChosenLogprob, Generate, SlotState, Timings


@dataclass(kw_only=True)
class Work:
    """Something that takes a slot. Times are seconds of the monotonic clock."""

    id: int
    arrived: float
    adapter: AdapterRef | None
    key: AdapterKey | None
    """What of `adapter` the KV cache depends on; None for the base."""
    prompt_ids: list[int] = field(default_factory=list)
    n_cached: int = 0
    n_generated: int = 0
    started: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    spans: WorkSpans = field(default_factory=WorkSpans)
    """When the engine worked on it, and with which share."""

    def close(self) -> None:
        """Free what is not Python's."""

    def timings(self, now: float) -> Timings:
        """Durations so far; a request that never got a slot has only waited."""
        started = self.started or now
        first = self.first_token if self.first_token is not None else now
        return Timings(
            prompt_tokens=len(self.prompt_ids),
            cached_tokens=self.n_cached,
            completion_tokens=self.n_generated,
            queued_s=started - self.arrived,
            prefill_s=first - started if self.started else 0.0,
            decode_s=max(0.0, self.last_token - first),
            ttft_s=first - self.arrived,
        )


@dataclass(kw_only=True)
class Request(Work):
    """A Generate on its way through the engine."""

    generate: Generate
    parts: Sequence[Part]
    sampler: Sampler
    text: TextStream
    whole_text: list[str] = field(default_factory=list)
    logprobs: list[ChosenLogprob] = field(default_factory=list)

    def close(self) -> None:
        self.sampler.close()


@dataclass
class Slot:
    """`ids` are the tokens whose keys and values the cache holds, in order of position."""

    index: int
    ids: list[int] = field(default_factory=list)
    key: AdapterKey | None = None
    """The adapter that made the keys and values of `ids`."""
    work: Work | None = None
    is_spoiled: bool = False
    """NaN may be in its cells: not to be used before the whole cache is cleared."""
    pending: list[int] = field(default_factory=list)
    """Ids still to be decoded: the rest of the prompt, or the one token just sampled."""
    last_used: float = 0.0

    @property
    def is_free(self) -> bool:
        return self.work is None and not self.is_spoiled

    @property
    def is_prefilling(self) -> bool:
        return self.work is not None and self.work.first_token is None

    @property
    def phase(self) -> Phase:
        return "prefill" if self.is_prefilling else "decode"

    def begin(self, work: Work, reuse: int, now: float) -> None:
        """Take work whose first `reuse` ids are in the cache already."""
        del self.ids[reuse:]
        self.key = work.key
        self.work = work
        self.pending = work.prompt_ids[reuse:]
        work.n_cached = reuse
        work.started = work.started or now

    def advance(self, n: int) -> None:
        """`n` pending ids have been decoded: they are in the cache now."""
        self.ids += self.pending[:n]
        del self.pending[:n]

    def release(self, now: float) -> None:
        """The work is over; the cache stays for whoever continues it."""
        if self.work is not None:
            self.work.close()
        self.work = None
        self.pending = []
        self.last_used = now

    def state(self, n_ctx: int) -> SlotState:
        """For /slots."""
        work = self.work
        if work is None:
            return SlotState(self.index, "idle", n_ctx, len(self.ids), None, 0, 0)
        return SlotState(
            id=self.index,
            state=self.phase,
            n_ctx=n_ctx,
            n_past=len(self.ids),
            request_id=work.id,
            prompt_tokens=len(work.prompt_ids),
            completion_tokens=work.n_generated,
        )
