"""The records that cross a process border or reach a client: one frozen struct each.

Leaf file: imports nothing of ours. The worker's socket carries `ToWorker` one way and `FromWorker`
the other, msgpack-encoded by `wire.py`; decoding is typed, so a malformed frame is an error and not
an object. Units are suffixes (_s seconds, _bytes). Not here: HTTP bodies (server/), database rows
(store.py).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "cancelled"]


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


class EngineSettings(Struct, frozen=True):
    """How a model is loaded. None means: decide, and say what was decided in ModelInfo."""

    n_ctx: int | None = None
    """Tokens per slot; None = min(4096, the model's, what fits); 0 = the model's own maximum."""
    slots: int | None = None
    n_threads: int | None = None
    n_batch: int = 512
    flash_attn: Literal["auto", "on", "off"] = "auto"
    load_mode: Literal["auto", "mmap", "read", "mlock", "direct_io"] = "auto"
    type_k: Literal["f16", "q8_0", "f32"] = "f16"
    type_v: Literal["f16", "q8_0", "f32"] = "f16"
    swa_full: bool = False
    n_gpu_layers: int = -1
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


class Ping(Struct, frozen=True, tag="ping"):
    """Answered by the engine thread between two decode calls: proves it is not wedged."""

    id: int


ToWorker = Load | Generate | Cancel | Tokenize | Detokenize | ApplyTemplate | QuerySlots | Ping

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


class Tokens(Struct, frozen=True, tag="tokens"):
    id: int
    tokens: list[int]
    pieces: list[bytes] = field(default_factory=list)


class Text(Struct, frozen=True, tag="text"):
    """Answer to Detokenize and ApplyTemplate."""

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


class Pong(Struct, frozen=True, tag="pong"):
    id: int


FromWorker = Loaded | Failed | Chunk | Done | Tokens | Text | SlotStates | Pong
