"""The document of one benchmark test: the fields of llama-bench's JSON, and ours beside them.

Flows in: an Outcome, and the facts about engine, model and board. Flows out: a dict that is valid
JSON, one per test; a value that was not measured is null. Fields with the names of llama.cpp's
llama-bench have its meaning (rates in tokens per second, times in nanoseconds, sample standard
deviation), so its tools read our documents and our report reads its. Not here: printing (table.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from statistics import mean, median, stdev
from typing import Any

import msgspec

from edge_agent import __version__
from edge_agent.bench.engines import RequestRun
from edge_agent.bench.trials import Outcome
from edge_agent.monitor.sensors.readings import Board
from edge_agent.records import EngineSettings, ModelInfo

VERSION = 1
MAX_TRACE = 300


@dataclass(frozen=True)
class Subject:
    """What was measured: the engine, the model in it, the machine."""

    run_id: str
    engine: str
    model: str
    info: ModelInfo
    settings: EngineSettings
    quantization: str
    sha256: str | None
    board: Board
    board_name: str
    bandwidth_bytes_per_s: float | None
    bytes_per_token: float | None
    """Bytes that decoding one token reads, at this test's depth; None where it is unknown."""


def document(
    subject: Subject, outcome: Outcome, *, repetitions: int, warmup: bool
) -> dict[str, Any]:
    """The document of one test.

    Example: `document(subject, outcome, repetitions=5, warmup=True)["median_ts"]`
    """
    rates = [_rate(group, outcome) for group in outcome.runs]
    times_ns = [round(1e9 * _duration_s(group, outcome)) for group in outcome.runs]
    record = {
        "v": VERSION,
        "version": __version__,
        "run_id": subject.run_id,
        "published": False,
        **_llama_bench(subject, outcome, times_ns, rates),
        **_ours(subject, outcome, rates),
        "repetitions": repetitions,
        "warmup": warmup,
        "energy": msgspec.to_builtins(outcome.energy),
        "trace": _trace(outcome),
        "notes": [*subject.info.notes, *outcome.notes, *_energy_note(outcome)],
    }
    return _finite(record)


def _llama_bench(
    subject: Subject, outcome: Outcome, times_ns: list[int], rates: list[float]
) -> dict[str, Any]:
    info, settings, test = subject.info, subject.settings, outcome.test
    gpu = outcome.seen[-1].gpu.name if outcome.seen else None
    at = datetime.fromtimestamp(outcome.started_unix, timezone.utc)
    return {
        "build_commit": info.build,
        "build_number": None,
        "cpu_info": subject.board.cpu,
        "gpu_info": gpu,
        "backends": info.system_info.partition(":")[0].strip() or None,
        "model_filename": info.path,
        "model_type": info.description,
        "model_size": info.tensor_bytes,
        "model_n_params": info.n_params,
        "n_batch": settings.n_batch,
        "n_ubatch": settings.n_batch,
        "n_threads": info.n_threads,
        "type_k": settings.type_k,
        "type_v": settings.type_v,
        "n_gpu_layers": settings.n_gpu_layers,
        "flash_attn": settings.flash_attn,
        "load_mode": settings.load_mode,
        "n_prompt": test.n_prompt or _prompt_tokens(outcome),
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test_time": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(mean(times_ns)),
        "stddev_ns": round(stdev(times_ns)) if len(times_ns) > 1 else 0,
        "avg_ts": mean(rates),
        "stddev_ts": stdev(rates) if len(rates) > 1 else 0.0,
        "samples_ns": times_ns,
        "samples_ts": rates,
    }


def _ours(subject: Subject, outcome: Outcome, rates: list[float]) -> dict[str, Any]:
    test, info = outcome.test, subject.info
    runs = [run for group in outcome.runs for run in group]
    is_chat = test.scenario == "chat"
    limit = _limit(subject, outcome)
    return {
        "scenario": test.scenario,
        "engine": subject.engine,
        "model": subject.model,
        "model_sha256": subject.sha256,
        "quantization": subject.quantization,
        "adapters": list(subject.settings.adapters),
        "language": test.language,
        "concurrency": test.concurrency,
        "n_slots": info.slots,
        "n_ctx": info.n_ctx,
        "median_ts": median(rates),
        "min_ts": min(rates),
        "max_ts": max(rates),
        "ttft_s": _spread([run.ttft_s for run in runs]) if is_chat else None,
        "tpot_s": _spread([run.tpot_s for run in runs if run.tpot_s]) if is_chat else None,
        "e2e_s": _spread([run.e2e_s for run in runs]) if is_chat else None,
        "completion_tokens": sum(run.completion_tokens for run in runs),
        "temperature_start_celsius": outcome.temperature_start_celsius,
        "temperature_max_celsius": outcome.temperature_max_celsius,
        "throttle": list(outcome.throttle),
        "memory_peak_bytes": outcome.memory_peak_bytes,
        "bandwidth_bytes_per_s": subject.bandwidth_bytes_per_s,
        "bytes_per_token": subject.bytes_per_token,
        "roofline_tok_s": limit,
        "roofline_fraction": median(rates) / limit if limit else None,
        "board": asdict(subject.board),
        "board_name": subject.board_name,
        "clocks": _clocks(outcome),
    }


def _limit(subject: Subject, outcome: Outcome) -> float | None:
    """Decode tokens per second if memory bandwidth were the only limit; None except for raw
    decoding."""
    bandwidth, size = subject.bandwidth_bytes_per_s, subject.bytes_per_token
    if outcome.test.scenario != "decode" or not bandwidth or not size:
        return None
    return bandwidth / size


def _duration_s(group: Sequence[RequestRun], outcome: Outcome) -> float:
    """Seconds of the phase that the test times, from the first start to the last end.

    That is prefill or decode for a test of one phase, the whole requests otherwise.
    """
    scenario = outcome.test.scenario
    if scenario == "prefill":
        return max(run.first_s for run in group) - min(run.start_s for run in group)
    if scenario == "decode":
        return max(run.end_s for run in group) - min(run.first_s for run in group)
    return max(run.end_s for run in group) - min(run.start_s for run in group)


def _rate(group: Sequence[RequestRun], outcome: Outcome) -> float:
    """Tokens per second of the phase that the test times; a chat counts generated tokens only."""
    scenario = outcome.test.scenario
    prompt = sum(run.prompt_tokens for run in group) if scenario.startswith("prefill") else 0
    gen = sum(run.completion_tokens for run in group) if scenario != "prefill" else 0
    if scenario == "decode":
        gen -= sum(run.first_is_token for run in group)
    return (prompt + gen) / max(_duration_s(group, outcome), 1e-9)


def _prompt_tokens(outcome: Outcome) -> int:
    if outcome.test.scenario != "chat":
        return 0
    return round(median(run.prompt_tokens for group in outcome.runs for run in group))


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {
        "median": median(values),
        "min": min(values),
        "max": max(values),
        "samples": list(values),
    }


def _clocks(outcome: Outcome) -> dict[str, float | None]:
    """The highest clocks seen during the test, in hertz."""
    pairs = {
        "cpu_hz": [one.cpu.clock_hz for one in outcome.seen],
        "gpu_hz": [one.gpu.clock_hz for one in outcome.seen],
        "cpu_max_hz": [one.cpu.max_clock_hz for one in outcome.seen],
        "gpu_max_hz": [one.gpu.max_clock_hz for one in outcome.seen],
    }
    return {
        name: max((value for value in values if value is not None), default=None)
        for name, values in pairs.items()
    }


def _trace(outcome: Outcome) -> list[list[float | int | None]]:
    """At most MAX_TRACE points, each [seconds since the test began, watts, Celsius, available
    bytes, tokens per second of the repetition that was running]."""
    if not outcome.seen:
        return []
    step = -(-len(outcome.seen) // MAX_TRACE)
    start_s = min(run.start_s for group in outcome.runs for run in group)
    return [
        [
            round(one.at_s - start_s, 3),
            one.total_w,
            one.thermal.hottest_celsius,
            one.memory.available_bytes,
            _rate_at(outcome, one.at_s),
        ]
        for one in outcome.seen[::step]
    ]


def _rate_at(outcome: Outcome, at_s: float) -> float | None:
    for group in outcome.runs:
        if min(run.start_s for run in group) <= at_s <= max(run.end_s for run in group):
            return _rate(group, outcome)
    return None


def _energy_note(outcome: Outcome) -> list[str]:
    if outcome.energy.total_j is None:
        return []
    return [f"energy is the sum of {len(outcome.runs)} repetitions"]


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity become null: JSON has neither, and no measurement can produce them."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
