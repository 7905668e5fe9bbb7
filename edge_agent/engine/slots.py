"""A slot: one sequence of the KV cache, and the request that runs in it.

Flows in: records.Generate and the prompt's ids. Flows out: what to decode next (`Slot.next_tokens`)
and the times of the request. Not here: when to decode (scheduler) and how to sample (llama/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.engine.prefix_cache import Part
from edge_agent.engine.spans import Phase, WorkSpans
from edge_agent.engine.text_stream import TextStream
from edge_agent.llama.sampling import Sampler
from edge_agent.records import ChosenLogprob, Generate, SlotState, Timings


@dataclass
class Request:
    """A Generate on its way through the engine. Times are seconds of the monotonic clock."""

    generate: Generate
    arrived: float
    parts: Sequence[Part]
    sampler: Sampler
    text: TextStream
    prompt_ids: list[int] = field(default_factory=list)
    n_cached: int = 0
    n_generated: int = 0
    whole_text: list[str] = field(default_factory=list)
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    started: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    spans: WorkSpans = field(default_factory=WorkSpans)
    """When the engine worked on it, and with which share."""

    @property
    def id(self) -> int:
        return self.generate.id

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


@dataclass
class Slot:
    """`ids` are the tokens whose keys and values the cache holds, in order of position."""

    index: int
    ids: list[int] = field(default_factory=list)
    request: Request | None = None
    pending: list[int] = field(default_factory=list)
    """Ids still to be decoded: the rest of the prompt, or the one token just sampled."""
    last_used: float = 0.0

    @property
    def is_prefilling(self) -> bool:
        return self.request is not None and self.request.first_token is None

    @property
    def phase(self) -> Phase:
        return "prefill" if self.is_prefilling else "decode"

    def begin(self, request: Request, reuse: int, now: float) -> None:
        """Take a request whose first `reuse` ids are in the cache already."""
        del self.ids[reuse:]
        self.request = request
        self.pending = request.prompt_ids[reuse:]
        request.n_cached = reuse
        request.started = now

    def advance(self, n: int) -> None:
        """`n` pending ids have been decoded: they are in the cache now."""
        self.ids += self.pending[:n]
        del self.pending[:n]

    def release(self, now: float) -> None:
        """The request is over; the cache stays for whoever continues it."""
        if self.request is not None:
            self.request.sampler.close()
        self.request = None
        self.pending = []
        self.last_used = now

    def state(self, n_ctx: int) -> SlotState:
        """For /slots."""
        request = self.request
        if request is None:
            return SlotState(self.index, "idle", n_ctx, len(self.ids), None, 0, 0)
        return SlotState(
            id=self.index,
            state=self.phase,
            n_ctx=n_ctx,
            n_past=len(self.ids),
            request_id=request.id,
            prompt_tokens=len(request.prompt_ids),
            completion_tokens=request.n_generated,
        )
