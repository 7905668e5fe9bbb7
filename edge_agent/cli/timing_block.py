"""What --verbose prints after an answer: Ollama's counts, durations and rates; joules and heat.

Flows in: the Ending of an answer, and what the command measured itself. Flows out: lines of text.
Ollama's `prompt eval count` counts the tokens that were prefilled. Tokens reused from an earlier
turn have a line of their own, because they cost nothing. Not here: measuring (the worker does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_agent.cli.terminal import duration_text
from edge_agent.client.connection import Client, Ending
from edge_agent.errors import EdgeAgentError


def timing_block(ending: Ending, total_s: float, load_s: float | None) -> list[str]:
    """Lines `name: value`. A value that the daemon did not send is `unknown`, never 0.

    >>> timings = {"cache_n": 5, "prompt_n": 10, "prompt_ms": 50.0}
    >>> for line in timing_block(Ending("m", "stop", {}, timings), 0.5, None)[:4]:
    ...     print(line)
    total duration:       500.0 ms
    load duration:        unknown
    cached tokens:        5 token(s)
    prompt eval count:    10 token(s)
    """
    cached = ending.timings.get("cache_n")
    rows = [
        ("total duration", duration_text(total_s)),
        ("load duration", "unknown" if load_s is None else duration_text(load_s)),
        ("cached tokens", "unknown" if cached is None else f"{cached} token(s)"),
        *_phase("prompt eval", "prompt", ending),
        *_phase("eval", "predicted", ending),
        *_cost(ending),
    ]
    return [f"{name + ':':<21} {value}" for name, value in rows]


def _phase(title: str, prefix: str, ending: Ending) -> Iterator[tuple[str, str]]:
    count, duration_ms = ending.timings.get(f"{prefix}_n"), ending.timings.get(f"{prefix}_ms")
    yield f"{title} count", "unknown" if count is None else f"{count} token(s)"
    yield (
        f"{title} duration",
        "unknown" if duration_ms is None else duration_text(duration_ms / 1000),
    )
    rate = f"{count / duration_ms * 1000:.2f} tokens/s" if count and duration_ms else "unknown"
    yield f"{title} rate", rate


def _cost(ending: Ending) -> Iterator[tuple[str, str]]:
    """Joules and temperature; for a value that was not measured, the reason."""
    energy = ending.energy
    total_j = energy.get("total_j")
    if total_j is None:
        reason = energy.get("reason") or "the daemon sent no figure"
        is_missing = reason.startswith(("no power sensor", "no INA3221"))
        where = "; `edge-agent doctor` lists where it looked" if is_missing else ""
        yield "energy", f"not measured ({reason}{where})"
    else:
        parts = [f"{total_j:.2f} J"]
        names = (("prefill", "prefill_j"), ("decode", "decode_j"), ("above idle", "marginal_j"))
        shown = [f"{energy[key]:.2f} {name}" for name, key in names if energy.get(key) is not None]
        parts += [f"({', '.join(shown)})"] if shown else []
        yield "energy", " ".join(parts)
        if energy.get("j_per_token") is not None:
            yield "energy per token", f"{energy['j_per_token']:.4f} J"
        yield "power", f"mean {energy['mean_w']:.2f} W, rail {energy.get('rail')}"
    heat = ending.temperature_celsius
    yield "temperature", "not measured" if heat is None else f"{heat:.1f} C"


def ready_worker(client: Client) -> Any:
    """The process id of the worker, if it has loaded its model; else None."""
    status = _status(client)
    is_ready = (status.get("engine") or {}).get("state") == "ready"
    return status.get("worker_pid") if is_ready else None


def load_s_since(client: Client, worker_before: Any) -> float | None:
    """Seconds that this request waited for the model to load.

    0 when the worker is the one that was ready before (`worker_before`); None when nothing is
    known.
    """
    status = _status(client)
    worker = status.get("worker_pid")
    if worker is not None and worker == worker_before:
        return 0.0
    load_s = (status.get("engine") or {}).get("last_load_s")
    return float(load_s) if isinstance(load_s, int | float) else None


def _status(client: Client) -> dict[str, Any]:
    """GET /status, or {} when it fails: missing timings must not cost the answer."""
    try:
        return client.get("/status")
    except EdgeAgentError:
        return {}
