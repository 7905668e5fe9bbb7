"""The rows of the database as frozen records, and how neighbouring samples become one.

Flows in: figures from the server, the telemetry and the bench. Flows out: dataclasses whose fields
are the columns of store.py's tables. None means not measured, never 0. Not here: SQL (store.py,
sample_table.py), the schema (database.py).

>>> a, b = SampleRow(at=10.0, watts=2.0, peak_w=3.0), SampleRow(at=20.0, watts=4.0)
>>> merged([a, b]).watts, merged([a, b]).peak_w
(3.0, 3.0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from edge_agent.errors import RequestError
from edge_agent.json_lines import dumps

MAX_DOCUMENT_BYTES = 64 * 1024
MAX_NAME_CHARACTERS = 200
DOCUMENT_VERSION = 1


@dataclass(frozen=True)
class ModelRow:
    """One registered model. `path` is absolute or relative to the state directory, `added_at` Unix
    seconds."""

    name: str
    sha256: str
    path: str
    size_bytes: int
    source: str
    architecture: str
    description: str
    n_params: int
    n_ctx_train: int
    quantization: str
    chat_template: str | None
    added_at: float


@dataclass(frozen=True)
class GenerationRow:
    """One request that reached the engine. `started_at` is Unix seconds. None: not measured."""

    started_at: float
    duration_s: float
    model: str
    api: str
    adapter: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    queued_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    ttft_s: float | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    prompt_text: str | None = None
    completion_text: str | None = None
    prefill_j: float | None = None
    decode_j: float | None = None
    total_j: float | None = None
    marginal_j: float | None = None
    j_per_token: float | None = None
    mean_w: float | None = None
    peak_w: float | None = None
    idle_w: float | None = None
    energy_samples: int | None = None
    energy_rail: str | None = None
    energy_source: str | None = None
    energy_shared: bool | None = None
    energy_reason: str | None = None
    temperature_celsius: float | None = None
    memory_peak_bytes: int | None = None
    throttle: str | None = None
    """The alarms that were active, separated by commas; None: none was, or no sensor was read."""


@dataclass(frozen=True)
class EventRow:
    """An event at `at` (Unix seconds); `kind` is a word for programs, `detail` text for people."""

    at: float
    kind: str
    detail: str


@dataclass(frozen=True)
class SampleRow:
    """The board over the `span_s` seconds that ended at `at` (Unix seconds)."""

    at: float
    span_s: float = 1.0
    watts: float | None = None
    peak_w: float | None = None
    celsius: float | None = None
    """The hottest zone."""
    mem_available_bytes: int | None = None
    worker_rss_anon_bytes: int | None = None
    front_rss_anon_bytes: int | None = None
    cpu_load: float | None = None
    gpu_load: float | None = None
    gpu_clock_hz: float | None = None
    cpu_clock_hz: float | None = None
    tok_s: float | None = None
    throttle: str = ""
    """The alarms that were active at any time, separated by commas."""


MERGED_BY: Final[Mapping[str, str]] = {
    "watts": "mean",
    "peak_w": "max",
    "celsius": "max",
    "mem_available_bytes": "min",
    "worker_rss_anon_bytes": "max",
    "front_rss_anon_bytes": "max",
    "cpu_load": "mean",
    "gpu_load": "mean",
    "gpu_clock_hz": "mean",
    "cpu_clock_hz": "mean",
    "tok_s": "mean",
}
"""How each column of neighbouring rows becomes one: an extreme, or a mean weighted by `span_s`."""


@dataclass(frozen=True)
class AdapterRow:
    """One registered LoRA adapter. `path` is relative to the state directory, `created_at` Unix
    seconds."""

    model: str
    name: str
    sha256: str
    path: str
    size_bytes: int
    base_sha256: str
    """SHA-256 of the model file that the adapter was trained on. The adapter is not used with
    another file."""
    source: str
    """trained | imported."""
    status: str
    """candidate (not judged) | passed | failed | rolled_back."""
    gate: dict[str, Any] | None
    settings: dict[str, Any] | None
    created_at: float
    id: int | None = None
    """Given by the database and never reused; llama-server's API names adapters by it."""


@dataclass(frozen=True)
class ActivationRow:
    """Since `at` (Unix seconds), `adapter` answers requests for MODEL; None: the base does. The
    newest row of a model is in force, so going back to an adapter adds a row."""

    at: float
    model: str
    adapter: str | None
    reason: str
    is_proved: bool = True
    """The canary has answered with the adapter. The base needs no proof."""
    is_retried: bool = False
    """A daemon has started since, to let the canary ask once more; a second start rolls back."""
    id: int | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark document as JSON text; `run_id` is common to the documents of one run."""

    at: float
    run_id: str
    model: str
    scenario: str
    document: str
    id: int | None = None
    """Given by the database."""


@dataclass(frozen=True)
class FeedbackRow:
    """What a user said about one answer of a model."""

    at: float
    model: str
    user: str
    """uid:N (over the Unix socket), dashboard (a browser's session) or http (with the token)."""
    source: str
    """Where the chat comes from. answer: an answer of this daemon; given: the request; import: a
    file."""
    messages: str
    """The chat up to the answer as JSON text: [{"role", "content"}, ...]."""
    answer: str
    adapter: str | None = None
    """The adapter that answered; None: the base did."""
    rating: int | None = None
    """1 good, -1 bad."""
    correction: str | None = None
    used_in: str | None = None
    """The newest adapter that has learned it."""
    id: int | None = None
    """Given by the database."""


def without_texts(row: GenerationRow) -> dict[str, Any]:
    """The columns that may leave the database: all but prompt and answer, if those are stored."""
    return {name: value for name, value in asdict(row).items() if not name.endswith("_text")}


def merged(rows: Sequence[SampleRow]) -> SampleRow:
    """One row for neighbouring rows (at least one, oldest first). A None does not count as 0."""
    values = {name: _merged(rows, name, how) for name, how in MERGED_BY.items()}
    return SampleRow(
        at=rows[-1].at,
        span_s=sum(row.span_s for row in rows),
        throttle=alarm_list(row.throttle for row in rows),
        **values,
    )


def _merged(rows: Sequence[SampleRow], name: str, how: str) -> Any:
    known = [(getattr(row, name), row.span_s) for row in rows if getattr(row, name) is not None]
    if not known:
        return None
    if how == "mean":
        return sum(value * span_s for value, span_s in known) / sum(span_s for _, span_s in known)
    extreme: Callable[[Iterable[float]], float] = min if how == "min" else max
    return extreme(value for value, _ in known)


def alarm_list(lists: Iterable[str | None]) -> str:
    """One comma list of several, each alarm once, sorted."""
    return ",".join(sorted({alarm for one in lists for alarm in (one or "").split(",") if alarm}))


def benchmark_row(document: Mapping[str, Any], at: float) -> BenchmarkRow:
    """The row of a document. Raises RequestError, which names what is wrong with the document."""
    version = document.get("v")
    if isinstance(version, bool) or version != DOCUMENT_VERSION:
        raise _not_a_document(f"v is {version!r:.40}", f"this version knows v {DOCUMENT_VERSION}")
    run_id, model, scenario = (_name(document, key) for key in ("run_id", "model", "scenario"))
    try:
        text = dumps(document, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_a_document("it is not JSON", f"{error}") from error
    if size > MAX_DOCUMENT_BYTES:
        raise _not_a_document(f"it has {size} bytes", f"at most {MAX_DOCUMENT_BYTES} are kept")
    return BenchmarkRow(at, run_id, model, scenario, text)


def _name(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS:
        return value
    what = f"{key} is {value!r:.40}"
    raise _not_a_document(what, f"it must be a text of 1 to {MAX_NAME_CHARACTERS} characters")


def _not_a_document(found: str, why: str) -> RequestError:
    hint = "send what `edge-agent bench --jsonl` wrote"
    return RequestError(f"a benchmark document cannot be stored: {found}", why, hint)
