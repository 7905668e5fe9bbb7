"""One generation: run it, account for it, record it, whatever becomes of it.

Flows in: a Call from one of the APIs. Flows out: the supervisor's chunks, with energy and heat
filled in at the end, and one GenerationRow in the store and the metrics for every request that got
this far, whether it ended, failed or lost its client. Not here: HTTP (openai.py, ollama.py), the
parts behind the API (service.py).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from edge_agent.adapt.recent_answers import RecentAnswer
from edge_agent.errors import EdgeAgentError
from edge_agent.measured import Measured, Timings
from edge_agent.model_names import split_name
from edge_agent.records import Began, Chunk, Done, Generate, Generation
from edge_agent.server.error_body import Refusal
from edge_agent.server.service import _LOG, Service
from edge_agent.store.store import GenerationRow


@dataclass(frozen=True)
class Call:
    """One generation, as an API asks for it. `model` None is the default one."""

    api: str
    model: str | None
    request: Generate
    keep_alive_s: float | None = None
    user: str = ""
    """Who asked (auth.caller)."""
    answer_id: str = field(default_factory=lambda: secrets.token_hex(12))


@dataclass
class _Outcome:
    """What is known of a generation so far; `_record` makes its row from it. Monotonic seconds."""

    started_at: float
    started: float
    completion_tokens: int = 0
    model: str = ""
    adapter: str | None = None
    timings: Timings | None = None
    measured: Measured | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    text: list[str] = field(default_factory=list)


async def generate(service: Service, call: Call) -> AsyncGenerator[Generation, None]:
    """The supervisor's records, counted and recorded. Closing the generator cancels the generation.

    When Done comes, the slot is free and the row is on its way to the disk.
    """
    requests, outcome = service.requests, _Outcome(service.clock(), time.monotonic())
    done: Done | None = None
    requests.total += 1
    _enter(service, 1)
    try:
        supervisor = service.supervisor
        answer = supervisor.generate(call.model, call.request, keep_alive_s=call.keep_alive_s)
        async with aclosing(answer) as records:
            async for record in records:
                _note(service, outcome, record)
                if isinstance(record, Done):
                    done = _finished(record)
                else:
                    yield record
        if done is not None:
            outcome.measured = await service.monitor.measure(done)
            done = msgspec.structs.replace(done, measured=outcome.measured)
    except Exception as error:
        outcome.error_code = (
            error.code if isinstance(error, EdgeAgentError) else EdgeAgentError.code
        )
        raise
    finally:
        _enter(service, -1)
        requests.failed += outcome.error_code is not None
        _record(service, call, outcome)
        _remember(service, call, outcome)
    if done is not None:
        yield done


def _enter(service: Service, step: int) -> None:
    """One request more or less; sensors are read faster while any runs."""
    service.requests.in_flight += step
    service.monitor.sampler.set_busy(service.requests.in_flight > 0)


def _finished(done: Done) -> Done:
    """`done`. Raises Refusal when the daemon ended it early: its text is not an answer then."""
    if done.finish_reason != "cancelled":
        return done
    raise Refusal(
        503,
        "cancelled",
        "the generation was cancelled by the daemon",
        "its model was stopped or replaced",
        "send the request again",
    )


async def whole(service: Service, call: Call) -> tuple[Began, Done]:
    """Both ends of a generation that is not streamed. Raises the error that ended it early."""
    began = Began("")
    async with aclosing(generate(service, call)) as records:
        async for record in records:
            if isinstance(record, Began):
                began = record
            elif isinstance(record, Done):
                return began, record
    raise EdgeAgentError("the generation ended without a result", "no Done arrived", "try again")


def _note(service: Service, outcome: _Outcome, record: Generation) -> None:
    before = outcome.completion_tokens
    match record:
        case Began():
            outcome.model, outcome.adapter = record.model, record.adapter
            return
        case Chunk():
            outcome.completion_tokens = record.completion_tokens
        case Done():
            outcome.timings = record.timings
            outcome.finish_reason = record.finish_reason
            outcome.completion_tokens = record.timings.completion_tokens
    service.monitor.tokens.total += outcome.completion_tokens - before
    if service.settings.log_text or service.settings.feedback:
        outcome.text.append(record.text)


def _remember(service: Service, call: Call, outcome: _Outcome) -> None:
    """For feedback on it: an answer to a chat, also one that the client cut short."""
    messages, text = call.request.messages, "".join(outcome.text)
    if messages and call.request.continues:
        *messages, begun = messages
        text = begun.content + text
    if not (service.settings.feedback and messages and text) or outcome.error_code is not None:
        return
    is_cut = outcome.finish_reason != "stop"
    said = RecentAnswer(call.answer_id, call.user, outcome.model, tuple(messages), text)
    service.answers.remember(replace(said, adapter=outcome.adapter, is_cut=is_cut))


def _record(service: Service, call: Call, outcome: _Outcome) -> None:
    """One row. A disk that fails must not take an answer with it, so that is only logged."""
    ended_early = outcome.finish_reason is None and outcome.error_code is None
    timings = outcome.timings
    row = GenerationRow(
        started_at=outcome.started_at,
        duration_s=time.monotonic() - outcome.started,
        model=outcome.model or split_name(call.model or "")[0],
        api=call.api,
        adapter=outcome.adapter,
        prompt_tokens=timings.prompt_tokens if timings else None,
        cached_tokens=timings.cached_tokens if timings else None,
        completion_tokens=outcome.completion_tokens,
        queued_s=timings.queued_s if timings else None,
        prefill_s=timings.prefill_s if timings else None,
        decode_s=timings.decode_s if timings else None,
        ttft_s=timings.ttft_s if timings else None,
        finish_reason="cancelled" if ended_early else outcome.finish_reason,
        error_code=outcome.error_code,
        prompt_text=prompt_text(call.request) if service.settings.log_text else None,
        completion_text="".join(outcome.text) if service.settings.log_text else None,
        **_measured_columns(outcome.measured),
    )
    service.metrics.observe(row)
    service.store.add_generation(row).add_done_callback(_log_failure)


def _measured_columns(measured: Measured | None) -> dict[str, Any]:
    """The row's part that the sensors fill."""
    if measured is None:
        return {}
    energy = measured.energy
    return {
        "prefill_j": energy.prefill_j,
        "decode_j": energy.decode_j,
        "total_j": energy.total_j,
        "marginal_j": energy.marginal_j,
        "j_per_token": energy.j_per_token,
        "mean_w": energy.mean_w,
        "peak_w": energy.peak_w,
        "idle_w": energy.idle_w,
        "energy_samples": energy.n_samples,
        "energy_rail": energy.rail,
        "energy_source": energy.source,
        "energy_shared": energy.shared,
        "energy_reason": energy.reason,
        "temperature_celsius": measured.temperature_celsius,
        "memory_peak_bytes": measured.memory_peak_bytes,
        "throttle": ",".join(measured.throttle) or None,
    }


def _log_failure(written: Future[None]) -> None:
    if not written.cancelled() and written.exception():
        _LOG.error("generation not recorded: %s", written.exception())


def prompt_text(request: Generate) -> str:
    """The prompt as text, one line per turn, for the history (only when the user enabled it)."""
    if request.messages is not None:
        return "\n".join(f"{turn.role}: {turn.content}" for turn in request.messages)
    return request.text if request.text is not None else " ".join(map(str, request.tokens or []))
