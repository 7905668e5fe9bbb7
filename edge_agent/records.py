"""The records that cross a process border or reach a client: one frozen struct each.

Leaf file: imports nothing of ours. The worker's socket carries `ToWorker` one way and `FromWorker`
the other, msgpack-encoded by `wire.py`; decoding is typed, so a malformed frame is an error and not
an object. Units are suffixes (_s seconds, _bytes). Not here: HTTP bodies (server/), database rows
(store/store.py).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "cancelled"]
LoadMode = Literal["auto", "mmap", "read", "mlock", "direct_io"]
FlashAttention = Literal["auto", "on", "off"]
KvType = Literal["f16", "q8_0", "f32"]
PowerChoice = Literal["auto", "ina3221", "rapl", "jtop", "none"]
"""Where watts may come from; auto: INA3221, else RAPL."""


class Sampling(Struct, frozen=True):
    """How the next token is drawn. Penalties see generated tokens only, never the prompt."""

    temperature: float = 0.3
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)


class Message(Struct, frozen=True):
    """One chat turn: role is system, user or assistant."""

    role: Literal["system", "user", "assistant"]
    content: str


class AdapterRef(Struct, frozen=True):
    """A GGUF LoRA adapter to answer with. The worker loads it on demand and keeps the newest."""

    path: str
    sha256: str
    """Of the whole file; a file that differs is refused (adapter_refused)."""
    scale: float = 1.0
    """0 is the base."""


class EngineSettings(Struct, frozen=True):
    """How a model is loaded. None means: decide, and say what was decided in ModelInfo."""

    n_ctx: int | None = None
    """Tokens per slot; None = min(4096, the model's, what fits); 0 = the model's own maximum."""
    slots: int | None = None
    n_threads: int | None = None
    n_batch: int = 512
    flash_attn: FlashAttention = "auto"
    load_mode: LoadMode = "auto"
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    swa_full: bool = False
    n_gpu_layers: int = -1
    adapters: list[str] = field(default_factory=list)
    """Paths of GGUF LoRA adapters, all active at scale 1 for every request that names no adapter of
    its own; for benchmarks."""
    repack: bool = True
    """Let llama.cpp copy weights into the layout its kernels like best: faster, but the copy is
    memory that mmap would not have taken."""
    memory_budget_bytes: int | None = None
    prefill_call_s: float = 0.2


class ModelInfo(Struct, frozen=True):
    """What the worker found and decided when it loaded a model."""

    name: str
    path: str
    sha256: str | None
    architecture: str
    description: str
    n_params: int
    file_bytes: int
    n_vocab: int
    n_ctx_train: int
    n_ctx: int
    slots: int
    n_threads: int
    n_embd: int
    n_layer: int
    chat_template: str
    """Name of the renderer: gemma, chatml, qwen2, qwen2.5, qwen3, smollm2, jinja, none."""
    chat_template_source: str
    bos_token: str
    eos_token: str
    tensor_bytes: int
    kv_bytes: int
    compute_bytes: int
    load_s: float
    system_info: str
    build: str
    notes: list[str] = field(default_factory=list)
    """Sentences: what was decided and why, for status and doctor."""


class TokenLogprob(Struct, frozen=True):
    """Log-probability of one token over the raw (unsampled) row. `raw` is the token's own bytes."""

    id: int
    text: str
    raw: bytes
    logprob: float


class ChosenLogprob(Struct, frozen=True):
    """The sampled token and the most likely alternatives at its position, best first."""

    token: TokenLogprob
    top: list[TokenLogprob]


class Timings(Struct, frozen=True):
    """Measured in the worker on the monotonic clock."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queued_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    """From the request's arrival in the worker to its first sampled token."""


class Span(Struct, frozen=True):
    """A stretch of time the engine worked on one request, and the request's share of that work.

    A lone request has share 1. In a shared decode call the share is its tokens / all tokens of the
    call, so the shares of a call sum to 1. Equal neighbouring steps are merged. Monotonic seconds.
    """

    start_s: float
    end_s: float
    phase: Literal["prefill", "decode"]
    share: float
    tokens: int
    """Prompt tokens prefilled, or tokens generated, for this request in this stretch."""


class Energy(Struct, frozen=True):
    """Joules of one request. None: not measured, and `reason` says why. Contract of every API."""

    prefill_j: float | None = None
    decode_j: float | None = None
    total_j: float | None = None
    marginal_j: float | None = None
    """total_j less what the board takes when idle, idle_w x time (share by share)."""
    j_per_token: float | None = None
    """decode_j / tokens generated."""
    mean_w: float | None = None
    peak_w: float | None = None
    idle_w: float | None = None
    n_samples: int = 0
    rail: str | None = None
    source: str = "none"
    shared: bool = False
    reason: str | None = None


class Measured(Struct, frozen=True):
    """What the front's sensors saw while a request ran; stands beside its timings."""

    energy: Energy
    temperature_celsius: float | None = None
    """Hottest zone, highest reading of the request."""
    memory_peak_bytes: int | None = None
    """Highest RssAnon of the worker seen during the request."""
    throttle: list[str] = field(default_factory=list)
    """Alarms that were active at any time during the request."""


class MemoryPlan(Struct, frozen=True):
    """What a model will take, and the shape it was computed for. All bytes."""

    n_ctx: int
    slots: int
    tensor_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.tensor_bytes + self.kv_bytes + self.compute_bytes


# ---- front -> worker -------------------------------------------------------------------------


class Load(Struct, frozen=True, tag="load"):
    """First message of a worker's life; one worker holds one model."""

    name: str
    path: str
    settings: EngineSettings
    sha256: str | None = None
    """When given, the file is hashed and refused (model_corrupt) if it differs."""
    plan: MemoryPlan | None = None
    """Given when this daemon has loaded this very file (inode, size, mtime) with these settings
    before: header check and dry run are skipped, so that a crashed worker is back sooner."""


class Generate(Struct, frozen=True, tag="generate"):
    """One prompt. Exactly one of messages, text, tokens is not None."""

    id: int
    sampling: Sampling
    max_tokens: int
    messages: list[Message] | None = None
    text: str | None = None
    """Raw completion: BOS is added where the vocabulary asks for it, control tokens stay text."""
    tokens: list[int] | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = True
    """False: no Chunk is sent, Done carries the whole text."""
    cache_prompt: bool = True
    logprobs: int | None = None
    """None: none; 0: the chosen token only; n: and the n most likely ones."""
    json_schema: dict[str, Any] | None = None
    """Checked in the front by json_schema.check_schema; {} means any JSON object."""
    ignore_eos: bool = False
    adapter: AdapterRef | None = None
    """None: the base."""


class Score(Struct, frozen=True, tag="score"):
    """Teacher-forced log-probabilities of every assistant turn of a chat, end-of-turn included."""

    id: int
    messages: list[Message]
    adapter: AdapterRef | None = None


class CheckAdapter(Struct, frozen=True, tag="check_adapter"):
    """Load the adapter, and see that it computes numbers. Text(id, "") or Failed."""

    id: int
    adapter: AdapterRef


class Cancel(Struct, frozen=True, tag="cancel"):
    """The client left. Answered by Done(finish_reason='cancelled'); unknown ids are ignored."""

    id: int


class Tokenize(Struct, frozen=True, tag="tokenize"):
    id: int
    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class Detokenize(Struct, frozen=True, tag="detokenize"):
    id: int
    tokens: list[int]


class ApplyTemplate(Struct, frozen=True, tag="apply_template"):
    id: int
    messages: list[Message]


class QuerySlots(Struct, frozen=True, tag="query_slots"):
    id: int


class RawRun(Struct, frozen=True, tag="raw_run"):
    """One repetition of a benchmark without tokenizing and sampling, as llama-bench does it.

    Refused while a request runs. The context is emptied, `n_depth` tokens are put in untimed, then
    `n_prompt` in batches, then `n_gen` one by one.
    """

    id: int
    n_prompt: int
    n_gen: int
    n_depth: int = 0


class Ping(Struct, frozen=True, tag="ping"):
    """Answered by the engine thread between two decode calls: proves it is not wedged."""

    id: int


Question = Tokenize | Detokenize | ApplyTemplate | QuerySlots | RawRun | Ping
ToWorker = Load | Generate | Score | CheckAdapter | Cancel | Question

# ---- worker -> front -------------------------------------------------------------------------


class Loaded(Struct, frozen=True, tag="loaded"):
    info: ModelInfo


class Failed(Struct, frozen=True, tag="failed"):
    """A typed error (errors.error_from_code). id None: the load itself failed."""

    id: int | None
    code: str
    what: str
    why: str
    hint: str


class Chunk(Struct, frozen=True, tag="chunk"):
    """Text that is safe to show: whole UTF-8 characters, no part of a stop string.

    `text` may be empty when only logprobs or progress are to be told.
    """

    id: int
    text: str
    completion_tokens: int
    logprobs: list[ChosenLogprob] = field(default_factory=list)


class Done(Struct, frozen=True, tag="done"):
    """The end of a Generate. `text` is the last piece when streaming, else all of it."""

    id: int
    text: str
    finish_reason: FinishReason
    timings: Timings
    stop_text: str | None = None
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """When the engine worked on it, for the energy; at most MAX_SPANS, the rest merged."""
    measured: Measured | None = None
    """Never sent by a worker: the front fills it in (server/generation.py)."""


class Scores(Struct, frozen=True, tag="scores"):
    """Answer to Score. Bits per byte are -sum(logprobs) / ln 2 / n_bytes."""

    id: int
    logprobs: list[float]
    """Natural logarithms, one per supervised token, in order."""
    n_bytes: int
    """UTF-8 bytes of the assistant texts."""
    prompt_tokens: int
    """All tokens of the chat, supervised or not."""


class Tokens(Struct, frozen=True, tag="tokens"):
    id: int
    tokens: list[int]
    pieces: list[bytes] = field(default_factory=list)


class Text(Struct, frozen=True, tag="text"):
    """Answer to Detokenize, ApplyTemplate and CheckAdapter."""

    id: int
    text: str


class SlotState(Struct, frozen=True):
    id: int
    state: Literal["idle", "prefill", "decode"]
    n_ctx: int
    n_past: int
    request_id: int | None
    prompt_tokens: int
    completion_tokens: int


class SlotStates(Struct, frozen=True, tag="slot_states"):
    id: int
    slots: list[SlotState]
    queued: int


class RawDone(Struct, frozen=True, tag="raw_done"):
    """When a RawRun's two phases ran, monotonic seconds; equal times for a phase of no tokens."""

    id: int
    prefill_start_s: float
    prefill_end_s: float
    decode_end_s: float


class Pong(Struct, frozen=True, tag="pong"):
    id: int


FromWorker = Loaded | Failed | Chunk | Done | Scores | Tokens | Text | SlotStates | RawDone | Pong
