"""A slot: one sequence of the KV cache, and the work that is done in it.

Flows in: records.Generate and the prompt's ids. Flows out: the ids to decode next (`Slot.pending`)
and the times of the work. A `Request` is continued token by token; a `Reading` (scoring.py) is a
chat that is only read. Not here: when to decode (scheduler.py), sampling (llama/sampling.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.engine.adapter_pool import AdapterKey
from edge_agent.engine.text_stream import TextStream
from edge_agent.engine.work_spans import Phase, WorkSpans
from edge_agent.llama.sampling import Sampler
from edge_agent.measured import Timings
from edge_agent.prompt.encoding import Part
from edge_agent.records import AdapterRef, ChosenLogprob, Generate, SlotState


@dataclass(kw_only=True)
class Work:
    """Work that occupies a slot. Times are seconds of the monotonic clock."""

    id: int
    arrived: float
    adapter: AdapterRef | None
    key: AdapterKey | None
    """SHA-256 and scale of `adapter`, on which the KV cache depends; None for the base."""
    prompt_ids: list[int] = field(default_factory=list)
    n_cached: int = 0
    n_generated: int = 0
    started: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    spans: WorkSpans = field(default_factory=WorkSpans)
    """The times at which the engine worked on this, and its share of each call."""

    def close(self) -> None:
        """Free C objects. Plain work has none."""

    def timings(self, now: float) -> Timings:
        """Durations in seconds until `now`. Work that never got a slot has only queued_s."""
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
    logprobs: list[tuple[int, ChosenLogprob]] = field(default_factory=list)
    """Not sent yet: each with the number of characters of the answer before its token."""

    tokens: list[int] = field(default_factory=list)
    """Ids, if they are wanted, that were not sent yet."""

    def take_logprobs(self, *, all_left: bool = False) -> list[ChosenLogprob]:
        """Those whose tokens begin in the text that was given out; the others wait for theirs."""
        ready = [one for began, one in self.logprobs if all_left or began < self.text.shown]
        self.logprobs = self.logprobs[len(ready) :]
        return ready

    def close(self) -> None:
        self.sampler.close()


@dataclass
class Slot:
    """One sequence of the KV cache. `ids` are the tokens whose keys and values the cache holds, in
    order of position."""

    index: int
    ids: list[int] = field(default_factory=list)
    key: AdapterKey | None = None
    """The adapter with which the keys and values of `ids` were computed."""
    work: Work | None = None
    is_spoiled: bool = False
    """The slot's cells may hold a NaN. It gets no work before the whole cache is cleared."""
    pending: list[int] = field(default_factory=list)
    """Ids that are not decoded yet: the rest of the prompt, or the token that was just sampled."""
    last_used: float = 0.0

    @property
    def is_free(self) -> bool:
        return self.work is None and not self.is_spoiled

    @property
    def is_prefilling(self) -> bool:
        """Whether the work has not produced its first token yet."""
        return self.work is not None and self.work.first_token is None

    @property
    def phase(self) -> Phase:
        return "prefill" if self.is_prefilling else "decode"

    def begin(self, work: Work, reuse: int, now: float) -> None:
        """Start work whose first `reuse` ids are in the cache already."""
        del self.ids[reuse:]
        self.key = work.key
        self.work = work
        self.pending = work.prompt_ids[reuse:]
        work.n_cached = reuse
        work.started = work.started or now

    def advance(self, n: int) -> None:
        """Record that the first `n` pending ids have been decoded and are in the cache."""
        self.ids += self.pending[:n]
        del self.pending[:n]

    def release(self, now: float) -> None:
        """End the work. The cache stays, because the chat's next turn may reuse it."""
        if self.work is not None:
            self.work.close()
        self.work = None
        self.pending = []
        self.last_used = now

    def state(self, n_ctx: int) -> SlotState:
        """The slot as the HTTP route /slots shows it."""
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
