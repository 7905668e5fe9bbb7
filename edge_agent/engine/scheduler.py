"""Continuous batching: all slots that generate share one decode call, prompts go in by chunks.

Flows in: records.ToWorker messages from the worker's reader thread, through `submit`. Flows out:
records.FromWorker through `send`. Everything but `submit` runs in the engine thread, the only one
that calls llama.cpp. A decode call applies one LoRA adapter, so requests with different adapters
take turns (adapter_turns.py). The front limits the length of the queue
(supervisor/queue_limit.py). Not here: the socket (worker.py), loading (loading.py), templates
(prompt/), the choice of a slot (placement.py), the tokens of a call (batch.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from edge_agent.engine.adapter_pool import AdapterKey, key_of
from edge_agent.engine.adapter_turns import Demand, Turns
from edge_agent.engine.batch import Batch, SlotShare
from edge_agent.engine.loading import LoadedEngine
from edge_agent.engine.placement import Placement
from edge_agent.engine.questions import answer
from edge_agent.engine.raw_run import raw_run
from edge_agent.engine.scoring import Reading, check_reading, score_reading
from edge_agent.engine.slots import Request, Slot, Work
from edge_agent.engine.text_stream import TextStream
from edge_agent.engine.work_spans import StepClock
from edge_agent.errors import EdgeAgentError, RequestError
from edge_agent.llama.sampling import Sampler, chosen_logprob, logits_of
from edge_agent.records import (
    Cancel,
    CheckAdapter,
    Chunk,
    Done,
    Failed,
    FinishReason,
    FromWorker,
    Generate,
    Load,
    QuerySlots,
    RawRun,
    Score,
    SlotStates,
    ToWorker,
)

Send = Callable[[FromWorker], None]


class Scheduler:
    """Owns the slots of one context."""

    def __init__(self, engine: LoadedEngine, send: Send, *, prefill_call_s: float) -> None:
        self._vocabulary = engine.model.vocabulary
        self._context = engine.context
        self._prompts = engine.prompts
        self._adapters = engine.adapters
        self._send = send
        self._slots = [Slot(index) for index in range(engine.info.slots)]
        self._waiting: deque[Work] = deque()
        self._inbox: queue.SimpleQueue[tuple[float, ToWorker]] = queue.SimpleQueue()
        self._placement = Placement(engine.model, engine.context, engine.prompts)
        self._batch = Batch(engine.context, prefill_call_s)
        self._turns: Turns[AdapterKey | None] = Turns()
        self._steps = StepClock()
        self._alone_lock = threading.Lock()
        self._alone: Work | None = None
        self._gives_way = False

    # ---- from the reader thread ----

    def submit(self, message: ToWorker) -> None:
        """Queue a message for the engine thread, with the present time as its time of arrival.

        A decode call with a single request is aborted in two cases: that request is cancelled; or
        another request arrives, a slot is free for it, and the call has more tokens than a shared
        call may have. A shared call is never aborted, because the other requests would lose a
        token.
        """
        self._inbox.put((time.monotonic(), message))
        with self._alone_lock:
            alone = self._alone
            if alone is None:
                return
            is_cancelled = isinstance(message, Cancel) and message.id == alone.id
            is_work = isinstance(message, Generate | Score | CheckAdapter)
            if is_cancelled or (is_work and self._gives_way):
                self._context.abort.request()

    # ---- the engine thread ----

    def run(self) -> None:
        """Serve for ever. Raises DecodeFailed when the context can no longer be trusted."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Receive the waiting messages, fill free slots, decode once. Blocks while there is no
        work."""
        if not self._busy:
            self._steps.idle()
        self._drain(block=not self._busy)
        self._admit()
        if any(slot.work for slot in self._slots):
            self._step()

    @property
    def _busy(self) -> bool:
        return bool(self._waiting) or any(slot.work for slot in self._slots)

    def _drain(self, *, block: bool) -> None:
        while True:
            try:
                arrived, message = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            try:
                self._receive(arrived, message)
            except EdgeAgentError as error:
                self._fail(getattr(message, "id", None), error)

    def _receive(self, arrived: float, message: ToWorker) -> None:
        match message:
            case Generate():
                self._waiting.append(self._request(message, arrived))
            case Score():
                n_ctx = self._context.n_ctx
                self._waiting.append(score_reading(message, arrived, self._prompts, n_ctx))
            case CheckAdapter():
                token = max(0, self._vocabulary.bos)
                self._waiting.append(check_reading(message, arrived, token))
            case Cancel():
                self._cancel(message.id)
            case QuerySlots():
                states = [slot.state(self._context.n_ctx) for slot in self._slots]
                self._send(SlotStates(message.id, states, len(self._waiting)))
            case RawRun():
                self._raw_run(message)
            case Load():
                raise EdgeAgentError("this worker holds a model already")
            case _:
                self._send(answer(message, self._vocabulary, self._prompts))

    def _raw_run(self, message: RawRun) -> None:
        """Run a benchmark. Raises RequestError while requests are running or waiting, and when the
        benchmark does not fit into a slot."""
        if self._busy:
            raise RequestError("no benchmark now", "requests are running", "run it alone")
        for slot in self._slots:
            self._context.truncate(slot.index, 0)
            slot.ids.clear()
        self._adapters.use(None)
        self._send(raw_run(self._context, self._vocabulary.n_tokens, message))

    def _request(self, generate: Generate, arrived: float) -> Request:
        """Prepare a request. Whatever can fail without a slot fails here: adapter's scale, prompt,
        schema, sampling."""
        key = key_of(generate.adapter)
        parts = self._prompts.parts(generate)
        grammar = self._prompts.grammar(generate.json_schema)
        sampler = Sampler(
            generate.sampling, self._vocabulary, grammar=grammar, ban_end=generate.ignore_eos
        )
        return Request(
            id=generate.id,
            arrived=arrived,
            adapter=generate.adapter,
            key=key,
            generate=generate,
            parts=parts,
            sampler=sampler,
            text=TextStream(generate.stop),
        )

    def _cancel(self, request_id: int) -> None:
        for work in self._waiting:
            if work.id == request_id:
                self._waiting.remove(work)
                work.close()
                self._send(Done(request_id, "", "cancelled", work.timings(time.monotonic())))
                return
        for slot in self._slots:
            if slot.work is not None and slot.work.id == request_id:
                self._finish(slot, "cancelled")

    # ---- slots ----

    def _admit(self) -> None:
        self._clean()
        while self._waiting:
            free = [slot for slot in self._slots if slot.is_free]
            if not free:
                return
            work = self._waiting.popleft()
            try:
                used = {slot.work.key for slot in self._slots if slot.work}
                self._adapters.load(work.adapter, used)
                self._placement.place(work, free)
            except EdgeAgentError as error:
                work.close()
                self._fail(work.id, error)

    def _clean(self) -> None:
        """Clear the whole cache if a slot may hold a NaN, as soon as no slot is at work."""
        spoiled = any(slot.is_spoiled for slot in self._slots)
        if not spoiled or any(slot.work for slot in self._slots):
            return
        self._context.clear()
        for slot in self._slots:
            slot.ids.clear()
            slot.is_spoiled = False

    def _finish(self, slot: Slot, reason: FinishReason, tail: str = "") -> None:
        """End a slot's request, or any work that was cancelled, and tell the front."""
        work = slot.work
        if work is None:
            return
        text, stop_text, logprobs, tokens = tail, None, [], []
        if isinstance(work, Request):
            stop_text, tokens = work.text.stopped, work.tokens
            logprobs = work.take_logprobs(all_left=stop_text is None)
            if not work.generate.stream:
                work.whole_text.append(tail)
                text = "".join(work.whole_text)
        now = time.monotonic()
        timings = work.timings(now)
        spans = self._steps.leave(work.spans, now)
        slot.release(now)
        done = Done(work.id, text, reason, timings, stop_text, logprobs, spans, tokens=tokens)
        self._send(done)

    def _drop(self, slot: Slot, error: EdgeAgentError) -> None:
        """End a slot's work with an error, and tell the front."""
        work = slot.work
        if work is None:
            return
        now = time.monotonic()
        self._steps.leave(work.spans, now)
        slot.release(now)
        self._fail(work.id, error)

    def _fail(self, request_id: int | None, error: EdgeAgentError) -> None:
        self._send(Failed(request_id, error.code, error.what, error.why, error.hint))

    # ---- one decode call ----

    def _step(self) -> None:
        """Decode one batch, then use the logits of every slot that took part."""
        parts = self._fill_batch()
        began = time.monotonic()
        shares = [
            (part.slot.work.spans, part.slot.phase, part.n) for part in parts if part.slot.work
        ]
        self._steps.begin(shares, began)
        done = self._decode_guarded(parts)
        now = time.monotonic()
        if not done:
            self._steps.abort(now)
            slot = parts[0].slot
            self._context.truncate(slot.index, len(slot.ids))
            return  # the message that caused the abort waits in the inbox
        self._batch.measured(parts, now - began)
        for part in parts:
            part.slot.advance(part.n)
            self._take(part)
        self._steps.end(time.monotonic())

    def _decode_guarded(self, parts: Sequence[SlotShare]) -> bool:
        """Decode the batch. While a single request is in the call, `submit` may abort it."""
        with self._alone_lock:
            self._context.abort.clear()
            self._alone = parts[0].slot.work if len(parts) == 1 else None
            has_room = any(slot.is_free for slot in self._slots)
            self._gives_way = has_room and parts[0].n > self._batch.pace.chunk(0)
        try:
            return self._context.decode()
        finally:
            with self._alone_lock:
                self._alone = None

    def _fill_batch(self) -> list[SlotShare]:
        """Choose the adapter that has its turn, apply it, and fill the batch from its slots."""
        busy = [slot for slot in self._slots if slot.work]
        groups: dict[AdapterKey | None, list[Slot]] = {}
        for slot in busy:
            groups.setdefault(slot.key, []).append(slot)
        key = self._turns.choose({key: _demand(slots) for key, slots in groups.items()})
        self._adapters.use(key)
        alone = len(busy) == 1 and not self._waiting
        may_prefill = self._turns.may_prefill
        parts = self._batch.fill(groups[key], may_prefill=may_prefill, alone=alone)
        phases = [(part.slot.is_prefilling, part.n) for part in parts]
        self._turns.took(
            decoded=not all(prefills for prefills, _ in phases),
            prefilled=sum(n for prefills, n in phases if prefills),
        )
        return parts

    def _take(self, part: SlotShare) -> None:
        """Use the rows of logits of one slot's share: sample a token, or read probabilities."""
        slot = part.slot
        try:
            if part.rows:
                self._prove(slot, part.rows[-1])
            if isinstance(slot.work, Request) and part.rows:
                self._sample(slot, slot.work, part.rows[0])
            elif isinstance(slot.work, Reading):
                slot.work.take(self._context, part.n, part.rows, self._vocabulary.n_tokens)
                self._go_on(slot, slot.work)
        except EdgeAgentError as error:
            self._drop(slot, error)

    def _prove(self, slot: Slot, row: int) -> None:
        """Check that the first row of logits of an adapter is finite. Raises AdapterRefused when it
        is not."""
        work = slot.work
        if work is None or work.adapter is None or self._adapters.is_proven(work.key):
            return
        is_finite = bool(
            np.isfinite(logits_of(self._context, row, self._vocabulary.n_tokens)).all()
        )
        slot.is_spoiled = not is_finite
        self._adapters.prove(work.adapter, is_finite)

    def _go_on(self, slot: Slot, reading: Reading) -> None:
        """When a sequence has been read, start the next one, or answer after the last one."""
        if not reading.is_read:
            return
        if reading.next_sequence():
            self._placement.go_on(slot, reading)
            return
        now = time.monotonic()
        self._steps.leave(reading.spans, now)
        slot.release(now)
        self._send(reading.answer())

    # ---- one token ----

    def _sample(self, slot: Slot, request: Request, row: int) -> None:
        """Draw the next token of a request and send its text, or end the request, which a limit of
        0 tokens does here. Raises SchemaError when no token fits the grammar."""
        is_unwanted = request.generate.max_tokens == 0
        token = -1 if is_unwanted else request.sampler.sample(self._context, row)
        now = time.monotonic()
        if request.first_token is None:
            request.first_token = now
        request.last_token = now
        if is_unwanted:
            self._finish(slot, "length")
            return
        request.n_generated += 1
        if token in self._vocabulary.eog_ids:
            self._finish(slot, "stop", request.text.finish())
            return
        self._emit(slot, request, token, row)

    def _emit(self, slot: Slot, request: Request, token: int, row: int) -> None:
        generate = request.generate
        text = request.text.push(self._vocabulary.piece(token))
        if generate.logprobs is not None:
            chosen = chosen_logprob(self._context, row, token, generate.logprobs, self._vocabulary)
            request.logprobs.append((request.text.began, chosen))
        if generate.return_tokens:
            request.tokens.append(token)
        if request.text.stopped is not None:
            self._finish(slot, "stop", text)
            return
        if self._is_last(slot, request):
            self._finish(slot, "length", text + request.text.finish())
            return
        slot.pending = [token]
        if not generate.stream:
            request.whole_text.append(text)
        elif text:
            told = request.take_logprobs(), request.tokens
            self._send(Chunk(request.id, text, request.n_generated, *told))
            request.tokens = []

    def _is_last(self, slot: Slot, request: Request) -> bool:
        full = len(slot.ids) >= self._context.n_ctx
        limit = request.generate.max_tokens
        return full or (limit >= 0 and request.n_generated >= limit)


def _demand(slots: Sequence[Slot]) -> Demand:
    return Demand(
        decodes=any(not slot.is_prefilling for slot in slots),
        prefills=any(slot.is_prefilling for slot in slots),
    )
