"""What kind of decoder a GGUF file holds: sizes, and the few switches in which families differ.

Why it exists: there is one decoder for all families (decoder.py), and everything in which families
differ is a field of `DecoderShape`. The fields follow llama.cpp's graphs
(src/models/{gemma3,qwen2,qwen3,llama}.cpp). Flows in: a checked GgufFile. Flows out: a frozen
`DecoderShape`. Not here: weights (packed_weights.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import ArraySummary, GgufFile

GEMMA_PATTERN = 6
"""In a Gemma 3 file without sliding_window_pattern, every sixth layer attends to all tokens."""
LOCAL_BASE = 10000.0
"""Rotary base of Gemma 3's sliding-window layers in a file without freq_base_swa (llama.cpp)."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer. `is_interleaved`: elements 2i and 2i + 1 form a pair,
    as in files of the llama architecture; otherwise i and i + head_dim / 2 do."""

    base: float
    scale: float = 1.0
    """Positions are multiplied by this: 1 / factor of linear scaling."""
    is_interleaved: bool = False


@dataclass(frozen=True)
class DecoderShape:
    """Sizes in elements. `windows` has the sliding window in tokens of each layer, 0 for none."""

    architecture: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    norm_epsilon: float
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    embedding_scale: float
    has_qk_norm: bool
    has_post_norms: bool
    is_gelu: bool
    logit_softcap: float

    @property
    def groups(self) -> int:
        """Query heads that share one key head."""
        return self.n_head // self.n_head_kv

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)


def read_shape(gguf: GgufFile) -> DecoderShape:
    """The shape of a model. Raises ModelFormatError for a rope scaling that the decoder does not
    know."""
    arch, get = gguf.architecture, gguf.metadata.get
    if get(f"{arch}.rope.scaling.type", "none") not in ("none", "linear"):
        raise _unknown(gguf, f"rope.scaling.type {get(f'{arch}.rope.scaling.type')}")
    names = {tensor.name for tensor in gguf.tensors}
    sliding = _sliding_layers(gguf)
    everywhere = Rope(
        float(_number(gguf, "rope.freq_base", 10000.0)),
        1.0 / float(_number(gguf, "rope.scaling.factor", 1.0)),
        is_interleaved=arch == "llama",
    )
    local = Rope(float(_number(gguf, "rope.freq_base_swa", LOCAL_BASE)))
    is_gemma = arch == "gemma3"
    return DecoderShape(
        architecture=arch,
        n_layer=gguf.n_layer,
        n_embd=gguf.n_embd,
        n_head=gguf.n_head,
        n_head_kv=gguf.n_head_kv,
        head_dim=gguf.head_dim,
        n_vocab=gguf.n_vocab,
        norm_epsilon=float(_number(gguf, "attention.layer_norm_rms_epsilon", 1e-6)),
        windows=tuple(gguf.sliding_window if slides else 0 for slides in sliding),
        ropes=tuple(local if slides else everywhere for slides in sliding),
        embedding_scale=float(gguf.n_embd**0.5) if is_gemma else 1.0,
        has_qk_norm="blk.0.attn_q_norm.weight" in names,
        has_post_norms=is_gemma,
        is_gelu=is_gemma,
        logit_softcap=float(_number(gguf, "final_logit_softcapping", 0.0)),
    )


def _sliding_layers(gguf: GgufFile) -> list[bool]:
    if not gguf.sliding_window:
        return [False] * gguf.n_layer
    pattern = gguf.metadata.get("gemma3.attention.sliding_window_pattern", GEMMA_PATTERN)
    if isinstance(pattern, ArraySummary):
        return [bool(flag) for flag in pattern.head[: gguf.n_layer]]
    every = int(pattern)
    return [layer % every < every - 1 for layer in range(gguf.n_layer)]


def _number(gguf: GgufFile, suffix: str, default: float) -> float:
    value = gguf.metadata.get(f"{gguf.architecture}.{suffix}", default)
    return value if isinstance(value, int | float) else default


def _unknown(gguf: GgufFile, what: str) -> ModelFormatError:
    return ModelFormatError(
        f"cannot train on {gguf.path}",
        f"it uses {what}, which the trainer does not know",
        "train on the host, or take a model without it",
    )
