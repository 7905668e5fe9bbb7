"""The records that cross a process border or reach a client: one frozen struct each.

The worker's socket carries `ToWorker` one way and `FromWorker` the other, as msgpack (wire.py).
Decoding checks every type, so that a malformed frame is an error. Units are suffixes (_s seconds,
_bytes). Imports nothing of ours. Not here: HTTP bodies (server/), database rows (store/rows.py).
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from edge_agent.measured import Measured, Span, Timings

FinishReason = Literal["stop", "length", "cancelled"]
LoadMode = Literal["auto", "mmap", "read", "mlock", "direct_io"]
FlashAttention = Literal["auto", "on", "off"]
KvType = Literal["f16", "q8_0", "f32"]
PowerChoice = Literal["auto", "ina3221", "rapl", "jtop", "none"]
"""Where watts may come from; auto: INA3221, else RAPL."""


class Sampling(Struct, frozen=True):
    """How the next token is drawn. Penalties count generated tokens only, never the prompt's."""

    temperature: float = 0.3
    top_k: int = 40
    typical_p: float = 1.0
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
    """A GGUF LoRA adapter to answer with. The worker loads it when a request first names it."""

    path: str
    sha256: str
    """Of the whole file; a file with another SHA-256 is refused (adapter_refused)."""
    scale: float = 1.0
    """The adapter's change is multiplied by it; 0 is the base."""


class EngineSettings(Struct, frozen=True):
    """How a model is loaded. None: the worker decides, and says in ModelInfo what it decided."""

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
    """Paths; applied at scale 1 to every request that names no adapter. For benchmarks."""
    repack: bool = True
    """Let llama.cpp copy the weights into its kernels' layout: faster, but more memory."""
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
    """Sentences for status and doctor: what was decided and why."""


class TokenLogprob(Struct, frozen=True):
    """Log-probability of one token, before sampling changes the logits. `raw`: the bytes it adds to
    a text, which may end inside a character."""

    id: int
    text: str
    raw: bytes
    logprob: float


class ChosenLogprob(Struct, frozen=True):
    """The sampled token and the most likely alternatives at its position, best first."""

    token: TokenLogprob
    top: list[TokenLogprob]


class MemoryPlan(Struct, frozen=True):
    """The bytes that a model takes with this context and number of slots."""

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
    """Of an earlier load of the same file with these settings: skip header check and dry run."""


class Generate(Struct, frozen=True, tag="generate"):
    """One prompt. Exactly one of messages, text, tokens is not None."""

    id: int
    sampling: Sampling
    max_tokens: int
    """-1: until the slot's context is full; 0: only the prompt is computed."""
    messages: list[Message] | None = None
    text: str | None = None
    """Raw completion: BOS is added if the vocabulary says so and it is not written already."""
    parse_special: bool = False
    """Whether the spelling of a control token in `text` is that token: then whoever writes the text
    can begin and end turns."""
    continues: bool = False
    """Whether the last of `messages`, the assistant's, is the beginning of the answer."""
    tokens: list[int] | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = True
    """False: no Chunk is sent, Done carries the whole text."""
    cache_prompt: bool = True
    return_tokens: bool = False
    """Whether Chunk and Done carry the ids of the generated tokens."""
    logprobs: int | None = None
    """None: no logprobs; 0: the chosen token's; n: also those of the n most likely tokens."""
    json_schema: dict[str, Any] | None = None
    """The front has checked it (prompt/json_schema.py); {} means any JSON object."""
    ignore_eos: bool = False
    adapter: AdapterRef | None = None
    """None: the base."""


class Score(Struct, frozen=True, tag="score"):
    """Teacher-forced log-probabilities of every assistant turn of a chat, end-of-turn included; or,
    with `text`, of a plain text without a chat, its first token left out."""

    id: int
    messages: list[Message]
    adapter: AdapterRef | None = None
    text: str | None = None


class CheckAdapter(Struct, frozen=True, tag="check_adapter"):
    """Load the adapter and compute a token with it. Answered by Text(id, "") or Failed."""

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
    continues: bool = False
    """As in Generate."""


class QuerySlots(Struct, frozen=True, tag="query_slots"):
    id: int


class RawRun(Struct, frozen=True, tag="raw_run"):
    """One repetition of a benchmark, as llama-bench does it: empty the context, decode `n_depth`
    tokens untimed, `n_prompt` in batches, `n_gen` one by one. Refused while a request runs."""

    id: int
    n_prompt: int
    n_gen: int
    n_depth: int = 0


class Ping(Struct, frozen=True, tag="ping"):
    """The engine thread answers it between two decode calls: it shows that the thread lives."""

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
    """Whole UTF-8 characters, no part of a stop string; "" when only progress is told."""

    id: int
    text: str
    completion_tokens: int
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Ids of the tokens since the last Chunk, if they are wanted."""


class Began(Struct, frozen=True):
    """The first record of a generation, made by the front. `adapter` None: the base answers."""

    model: str
    adapter: str | None = None


class Done(Struct, frozen=True, tag="done"):
    """The end of a Generate. `text` is the last piece when streaming, else all of it."""

    id: int
    text: str
    finish_reason: FinishReason
    timings: Timings
    stop_text: str | None = None
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    """When the engine worked on the request; at most engine/work_spans.py's MAX_SPANS."""
    measured: Measured | None = None
    """The front fills it in (server/generation.py); None from a worker."""
    tokens: list[int] = field(default_factory=list)
    """Like `text`, of the last piece or of all; without the token that ends an answer."""


Generation = Began | Chunk | Done  # one Began, any number of Chunks, one Done


class Scores(Struct, frozen=True, tag="scores"):
    """Answer to Score. Bits per byte: -sum(logprobs) / ln 2 / n_bytes."""

    id: int
    logprobs: list[float]
    """Natural logarithms, one per supervised token, in order."""
    n_bytes: int
    """UTF-8 bytes of the assistant texts, or of the plain text."""
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
