"""Continuous batching: all slots that generate share one decode call, prompts go in by chunks.

Flows in: records.ToWorker messages with their time of arrival, from the worker's reader thread.
Flows out: records.FromWorker through `send`. Runs in the engine thread, which alone touches
llama.cpp; only `submit` is called from elsewhere. The queue is bounded in the
front. Not here: sockets, loading, templates.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from edge_agent.engine.pace import Pace
from edge_agent.engine.prefix_cache import common_prefix, encode, reusable
from edge_agent.engine.prompt import PromptBuilder
from edge_agent.engine.raw_run import raw_run
from edge_agent.engine.slots import Request, Slot
from edge_agent.engine.spans import StepClock
from edge_agent.engine.text_stream import TextStream
from edge_agent.errors import ContextExceeded, EdgeAgentError, RequestError
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.llama.sampling import Sampler, chosen_logprob
from edge_agent.records import (
    ApplyTemplate,
    Cancel,
    Chunk,
    Detokenize,
    Done,
    Failed,
    FinishReason,
    FromWorker,
    Generate,
    Load,
    Ping,
    Pong,
    QuerySlots,
    RawRun,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
    ToWorker,
)

Send = Callable[[FromWorker], None]


class Scheduler:
    """Owns the slots of one context."""

    def __init__(
        self,
        model: Model,
        context: Context,
        prompts: PromptBuilder,
        send: Send,
        *,
        slots: int,
        prefill_call_s: float,
    ) -> None:
        self._model = model
        self._vocabulary = model.vocabulary
        self._context = context
        self._prompts = prompts
        self._send = send
        self._n_swa = model.n_swa
        self._slots = [Slot(index) for index in range(slots)]
        self._waiting: deque[Request] = deque()
        self._inbox: queue.SimpleQueue[tuple[float, ToWorker]] = queue.SimpleQueue()
        self.pace = Pace(context.n_batch, prefill_call_s)
        self._steps = StepClock()
        self._alone_lock = threading.Lock()
        self._alone: Request | None = None
        self._gives_way = False

    # ---- from the reader thread ----

    def submit(self, message: ToWorker) -> None:
        """Hand a message over; its time of arrival is now.

        A call that one request has for itself is aborted when that request is cancelled, and, if it
        is longer than a shared one may be, when another comes for which there is a slot. A shared
        call is never aborted: its neighbours would lose a token.
        """
        self._inbox.put((time.monotonic(), message))
        with self._alone_lock:
            alone = self._alone
            if alone is None:
                return
            is_cancelled = isinstance(message, Cancel) and message.id == alone.id
            has_company = isinstance(message, Generate) and self._gives_way
            if is_cancelled or has_company:
                self._context.abort.request()

    # ---- the engine thread ----

    def run(self) -> None:
        """For ever. Raises DecodeFailed when the context can no longer be trusted."""
        while True:
            self.turn()

    def turn(self) -> None:
        """Take what has arrived, fill free slots, decode once. Blocks while there is nothing."""
        if not self._busy:
            self._steps.idle()
        self._drain(block=not self._busy)
        self._admit()
        if any(slot.request for slot in self._slots):
            self._step()

    @property
    def _busy(self) -> bool:
        return bool(self._waiting) or any(slot.request for slot in self._slots)

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
        vocabulary = self._vocabulary
        match message:
            case Generate():
                self._waiting.append(self._request(message, arrived))
            case Cancel():
                self._cancel(message.id)
            case Ping():
                self._send(Pong(message.id))
            case Tokenize():
                ids = vocabulary.tokenize(
                    message.content,
                    add_special=message.add_special,
                    parse_special=message.parse_special,
                )
                pieces = [vocabulary.spelled(token) for token in ids if message.with_pieces]
                self._send(Tokens(message.id, ids, pieces))
            case Detokenize():
                self._send(Text(message.id, vocabulary.detokenize(message.tokens)))
            case ApplyTemplate():
                self._send(Text(message.id, self._prompts.as_text(message.messages)))
            case QuerySlots():
                states = [slot.state(self._context.n_ctx) for slot in self._slots]
                self._send(SlotStates(message.id, states, len(self._waiting)))
            case RawRun():
                self._raw_run(message)
            case Load():
                raise EdgeAgentError("this worker holds a model already")

    def _raw_run(self, message: RawRun) -> None:
        """Raises RequestError while a request is here, or when it does not fit."""
        if self._busy:
            raise RequestError("no benchmark now", "requests are running", "run it alone")
        for slot in self._slots:
            self._context.truncate(slot.index, 0)
            slot.ids.clear()
        self._send(raw_run(self._context, self._vocabulary.n_tokens, message))

    def _request(self, generate: Generate, arrived: float) -> Request:
        """Check and prepare everything that can fail before a slot is taken."""
        parts = self._prompts.parts(generate)
        grammar = self._prompts.grammar(generate.json_schema)
        sampler = Sampler(
            generate.sampling, self._vocabulary, grammar=grammar, ban_end=generate.ignore_eos
        )
        return Request(generate, arrived, parts, sampler, TextStream(generate.stop))

    def _cancel(self, request_id: int) -> None:
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                request.sampler.close()
                self._send(Done(request_id, "", "cancelled", request.timings(time.monotonic())))
                return
        for slot in self._slots:
            if slot.request is not None and slot.request.id == request_id:
                self._finish(slot, "cancelled")

    # ---- slots ----

    def _admit(self) -> None:
        while self._waiting:
            free = [slot for slot in self._slots if slot.request is None]
            if not free:
                return
            request = self._waiting.popleft()
            try:
                self._place(request, free)
            except EdgeAgentError as error:
                request.sampler.close()
                self._fail(request.id, error)

    def _place(self, request: Request, free: list[Slot]) -> None:
        """Give the request the free slot that holds most of its prompt."""
        plain = encode(request.parts, [], self._vocabulary, ())
        offers = [self._offer(request, slot, plain) for slot in free]
        best, ids, slot = max(offers, key=lambda offer: (offer[0], -offer[2].last_used))
        if 2 * best < len(slot.ids):  # little to gain: do not throw somebody's conversation away
            best, ids, slot = min(
                offers, key=lambda offer: (len(offer[2].ids) > 0, offer[2].last_used)
            )
        if len(ids) >= self._context.n_ctx:
            raise ContextExceeded(
                f"the prompt has {len(ids)} tokens",
                f"a slot holds {self._context.n_ctx}, one of them must be left for the answer",
                "shorten the prompt, or start the daemon with a larger --ctx",
            )
        if best < len(slot.ids) and not self._context.truncate(slot.index, best):
            best = 0
            self._context.truncate(slot.index, 0)
        request.prompt_ids = ids
        slot.begin(request, best, time.monotonic())

    def _offer(self, request: Request, slot: Slot, plain: list[int]) -> tuple[int, list[int], Slot]:
        """(reusable tokens, the prompt's ids, the slot). `plain`: the ids for an empty slot."""
        if not request.generate.cache_prompt or slot.ids[:1] != plain[:1]:
            return 0, plain, slot
        known = slot.ids
        ids = encode(request.parts, known, self._vocabulary, self._prompts.control_ids)
        common = common_prefix(ids, known)
        first = self._context.first_position(slot.index)
        return reusable(common, len(ids), first, self._n_swa, len(slot.ids)), ids, slot

    def _finish(self, slot: Slot, reason: FinishReason, tail: str = "") -> None:
        request = slot.request
        if request is None:
            return
        text = tail
        if not request.generate.stream:
            request.whole_text.append(tail)
            text = "".join(request.whole_text)
        now = time.monotonic()
        timings = request.timings(now)
        spans = self._steps.leave(request.spans, now)
        stop_text = request.text.stopped
        done = Done(request.id, text, reason, timings, stop_text, request.logprobs, spans)
        slot.release(now)
        self._send(done)

    def _fail(self, request_id: int | None, error: EdgeAgentError) -> None:
        self._send(Failed(request_id, error.code, error.what, error.why, error.hint))

    # ---- one decode call ----

    def _step(self) -> None:
        """Decode one batch, then sample for every slot whose logits it made."""
        work = self._fill_batch()
        began = time.monotonic()
        parts = [(slot.request.spans, slot.phase, n) for slot, n, _ in work if slot.request]
        self._steps.begin(parts, began)
        done = self._decode_guarded(work)
        now = time.monotonic()
        if not done:
            self._steps.abort(now)
            slot = work[0][0]
            self._context.truncate(slot.index, len(slot.ids))
            return  # the message that caused it is in the inbox
        n_tokens = sum(n for _, n, _ in work)
        self.pace.measured(n_tokens if n_tokens > len(work) else 0, now - began)
        for slot, n, row in work:
            slot.advance(n)
            if row is not None:
                self._sample(slot, row)
        self._steps.end(time.monotonic())

    def _decode_guarded(self, work: list[tuple[Slot, int, int | None]]) -> bool:
        """decode(), abortable by `submit` while a single request is in the call."""
        request = work[0][0].request
        with self._alone_lock:
            self._context.abort.clear()
            self._alone = request if len(work) == 1 else None
            has_room = any(slot.request is None for slot in self._slots)
            self._gives_way = has_room and work[0][1] > self.pace.chunk(0)
        try:
            return self._context.decode()
        finally:
            with self._alone_lock:
                self._alone = None

    def _fill_batch(self) -> list[tuple[Slot, int, int | None]]:
        """(slot, tokens put in, row of its logits or None) for every slot that takes part."""
        context = self._context
        context.clear_batch()
        decoding = [slot for slot in self._slots if slot.request and not slot.is_prefilling]
        prefilling = [slot for slot in self._slots if slot.is_prefilling]
        work: list[tuple[Slot, int, int | None]] = []
        for slot in decoding:
            work.append(
                (slot, 1, context.add(slot.pending[0], len(slot.ids), slot.index, output=True))
            )
        alone = len(prefilling) == 1 and not decoding and not self._waiting
        budget = self.pace.chunk(len(decoding), alone=alone) if prefilling else 0
        for left, slot in zip(
            range(len(prefilling), 0, -1), sorted(prefilling, key=_remaining), strict=True
        ):
            n = min(len(slot.pending), budget // left)
            if n == 0:
                continue
            budget -= n
            work.append((slot, n, self._add_prompt(slot, n)))
        return work

    def _add_prompt(self, slot: Slot, n: int) -> int | None:
        """Put `n` prompt ids of a slot in; the row of its logits when the prompt ends here."""
        position = len(slot.ids)
        last = n - 1 if n == len(slot.pending) else -1
        row = None
        for offset in range(n):
            row = self._context.add(
                slot.pending[offset], position + offset, slot.index, output=offset == last
            )
        return row if last >= 0 else None

    # ---- one token ----

    def _sample(self, slot: Slot, row: int) -> None:
        """Draw the next token of a slot and tell the client, or end the answer."""
        request = slot.request
        if request is None:
            return
        try:
            token = request.sampler.sample(self._context, row)
        except EdgeAgentError as error:
            now = time.monotonic()
            self._steps.leave(request.spans, now)
            slot.release(now)
            self._fail(request.id, error)
            return
        now = time.monotonic()
        if request.first_token is None:
            request.first_token = now
        request.last_token = now
        request.n_generated += 1
        if token in self._vocabulary.eog_ids:
            self._finish(slot, "stop", request.text.finish())
            return
        self._emit(slot, request, token, row)

    def _emit(self, slot: Slot, request: Request, token: int, row: int) -> None:
        generate = request.generate
        text = request.text.push(self._vocabulary.piece(token))
        if generate.logprobs is not None:
            request.logprobs.append(
                chosen_logprob(self._context, row, token, generate.logprobs, self._vocabulary)
            )
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
            self._send(Chunk(request.id, text, request.n_generated, request.logprobs))
            if request.logprobs:
                request.logprobs = []

    def _is_last(self, slot: Slot, request: Request) -> bool:
        full = len(slot.ids) >= self._context.n_ctx
        limit = request.generate.max_tokens
        return full or (limit >= 0 and request.n_generated >= limit)


def _remaining(slot: Slot) -> int:
    return len(slot.pending)
