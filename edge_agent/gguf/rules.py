"""Which well-formed GGUF headers would still kill the process that loads them, and why.

Why it exists: llama.cpp answers most bad files with an error, but some values run into a
GGML_ASSERT or GGML_ABORT, which ends the process, or decide the size of an allocation. Each rule
names the code in llama.cpp that it protects. Flows in: a Header from header.py. Flows out: nothing,
or Malformed. The rules were written by reading the llama.cpp that llama-cpp-python 0.3.36 ships.
Not here: the names and shapes of tensors (tensor_names.py).
"""

from __future__ import annotations

import math

from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import TOKEN_TYPES_KEY, ArraySummary, Header
from edge_agent.gguf.tensor_names import check_tensor_names

ARCHITECTURES = ("gemma3", "qwen2", "qwen3", "llama")
"""The architectures that engine, trainer and converter know. Each is one dense decoder stack."""

ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
MIN_VOCAB = 256
"""A vocabulary needs 256 tokens to spell every byte. llama.cpp's default ids (up to 11) are then
inside the vocabulary too."""
BYTE_TOKEN_TYPE = 6
"""LLAMA_TOKEN_TYPE_BYTE (llama.h)."""

# (suffix of the key, lowest, highest, required); every value is a u32.
_SIZES = (
    ("context_length", 1, 1 << 24, True),
    ("embedding_length", 1, 1 << 16, True),
    ("block_count", 1, 512, True),  # LLAMA_MAX_LAYERS
    ("feed_forward_length", 1, 1 << 20, True),
    ("attention.head_count", 1, 1024, True),
    ("attention.head_count_kv", 1, 1024, False),
    ("attention.key_length", 2, 1024, False),
    ("attention.value_length", 2, 1024, False),
    ("attention.sliding_window", 0, 1 << 24, False),
    ("rope.dimension_count", 2, 1024, False),
    ("rope.scaling.original_context_length", 1, 1 << 24, False),
    ("vocab_size", 1, 1 << 19, False),
)
# A value other than zero asks for a graph that none of ARCHITECTURES has: experts, heads for
# several tokens, pooling. llama.cpp checks several of these keys by GGML_ASSERT only
# (llama-model.cpp, load_hparams).
_ZERO = (
    *("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count"),
    *("nextn_predict_layers", "pooling_type", "classifier.pooling_type"),
)
# (suffix, lowest, highest, required); every value is a finite f32. ggml's norm asserts that epsilon
# is not negative. A rotation base (freq_base) of 0 turns every logit into NaN, and sorting NaN is
# undefined behaviour in the sampler.
_REALS = (
    ("attention.layer_norm_rms_epsilon", 0.0, 1.0, True),
    ("rope.freq_base", 1.0, 1e12, False),
    ("rope.freq_base_swa", 1.0, 1e12, False),
    ("rope.scaling.factor", 0.0, 1e6, False),
    ("rope.scale_linear", 0.0, 1e6, False),
    ("rope.scaling.attn_factor", 0.0, 1e6, False),
    ("rope.scaling.alpha", 0.0, 1e6, False),
    ("final_logit_softcapping", 0.0, 1e6, False),
)
_SPECIAL_IDS = (
    *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask"),
    *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
    *("prefix", "suffix", "middle"),
)


def check_rules(header: Header) -> None:
    """Raise Malformed when `header` breaks a rule of this module; the message names the value."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise Malformed(f"the architecture {architecture!r} is not one of {list(ARCHITECTURES)}")
    _check_kind(header)
    prefix = f"{architecture}."
    sizes = _check_sizes(header, prefix)
    _check_reals(header, prefix)
    _check_graph(header, prefix, sizes)
    _check_heads(str(architecture), sizes)
    _check_vocabulary(header)
    _check_tensor_types(header)
    n_vocab = header.vocabulary.size if header.vocabulary else 0
    check_tensor_names(str(architecture), sizes, n_vocab, header.tensors)


def _check_kind(header: Header) -> None:
    """The file must be one whole model. Adapters and projectors have loaders of their own, and
    loading one part of a split model would open other files."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise Malformed(f"it holds a {kind!r} and not a model")
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise Malformed("it is one part of a split model; join it with llama-gguf-split --merge")
    if not header.tensors:
        raise Malformed("it has no tensors")


def _u32(header: Header, key: str, lowest: int, highest: int) -> int | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if header.types[key] != "u32" or not isinstance(value, int):
        raise Malformed(f"{key} is a {header.types[key]} and not a u32")
    if not lowest <= value <= highest:
        raise Malformed(f"{key} is {value}, not from {lowest} to {highest}")
    return value


def _check_sizes(header: Header, prefix: str) -> dict[str, int]:
    """The u32 hyperparameters of the file by suffix, and llama.cpp's defaults for missing ones."""
    sizes: dict[str, int] = {}
    for suffix, lowest, highest, required in _SIZES:
        value = _u32(header, prefix + suffix, lowest, highest)
        if value is None and required:
            raise Malformed(f"the key {prefix}{suffix} is missing")
        if value is not None:
            sizes[suffix] = value
    heads = sizes["attention.head_count"]
    sizes.setdefault("attention.head_count_kv", heads)
    sizes.setdefault("attention.key_length", sizes["embedding_length"] // heads)
    sizes.setdefault("attention.value_length", sizes["embedding_length"] // heads)
    sizes.setdefault("rope.dimension_count", sizes["attention.key_length"])
    for suffix in _ZERO:
        _u32(header, prefix + suffix, 0, 0)
    return sizes


def _check_reals(header: Header, prefix: str) -> None:
    for suffix, lowest, highest, required in _REALS:
        key = prefix + suffix
        value = header.metadata.get(key)
        if value is None and not required:
            continue
        if not isinstance(value, float) or header.types[key] != "f32":
            raise Malformed(f"{key} is missing or not an f32")
        if not math.isfinite(value) or not lowest <= value <= highest:
            raise Malformed(f"{key} is {value}, not from {lowest} to {highest}")


def _check_graph(header: Header, prefix: str, sizes: dict[str, int]) -> None:
    """Refuse values that choose another graph: an unknown rotation, attention that is not causal,
    a classifier, or a second width beside the usual one."""
    scaling = header.metadata.get(prefix + "rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:  # GGML_ASSERT in load_hparams
        raise Malformed(f"{prefix}rope.scaling.type is {scaling!r}, not in {list(ROPE_SCALINGS)}")
    if header.metadata.get(prefix + "attention.causal", True) is not True:
        raise Malformed(f"{prefix}attention.causal is not true: it does not generate text")
    if prefix + "classifier.output_labels" in header.metadata:
        raise Malformed("it is a classifier: it does not generate text")
    for suffix, same in (
        ("embedding_length_out", "embedding_length"),
        ("attention.key_length_swa", "attention.key_length"),
        ("attention.value_length_swa", "attention.key_length"),
        ("rope.dimension_count_swa", "attention.key_length"),
    ):
        _u32(header, prefix + suffix, sizes[same], sizes[same])
    _check_pattern(header, prefix + "attention.sliding_window_pattern", sizes["block_count"])


def _check_pattern(header: Header, key: str, block_count: int) -> None:
    value = header.metadata.get(key)
    if isinstance(value, ArraySummary):
        if value.type not in ("bool", "u32", "i32") or value.length != block_count:
            raise Malformed(f"{key} is not one flag for each of the {block_count} blocks")
    else:
        _u32(header, key, 1, 512)


def _check_heads(architecture: str, sizes: dict[str, int]) -> None:
    """llama.cpp's graph builders assert that key and value heads have one size; ggml asserts that
    the rotated width is even and that each key head serves a whole number of query heads."""
    heads, heads_kv = sizes["attention.head_count"], sizes["attention.head_count_kv"]
    width = sizes["attention.key_length"]
    if heads % heads_kv:
        raise Malformed(f"{heads} attention heads do not share {heads_kv} key heads evenly")
    if width % 2 or not 2 <= width <= 1024:
        raise Malformed(f"the attention head size {width} is not an even number from 2 to 1024")
    for suffix in ("attention.value_length", "rope.dimension_count"):
        if sizes[suffix] != width:
            raise Malformed(f"{architecture}.{suffix} {sizes[suffix]} is not the key size {width}")
    if architecture == "qwen2" and heads * width != sizes["embedding_length"]:
        raise Malformed(f"{heads} heads of {width} do not make the embedding length")


def _check_vocabulary(header: Header) -> None:
    metadata, vocabulary = header.metadata, header.vocabulary
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise Malformed(f"the tokenizer {model!r} is not gpt2 (BPE) or llama (SPM)")
    if vocabulary is None or vocabulary.size < MIN_VOCAB:
        raise Malformed(f"it has no vocabulary of at least {MIN_VOCAB} tokens")
    if model == "llama" and len(vocabulary.byte_token_ids) < 256:
        # llama.cpp's byte_to_token() throws a C++ exception through the C interface when the
        # vocabulary lacks a byte's token.
        raise Malformed("its vocabulary lacks some of the tokens <0x00> ... <0xFF>")
    if model == "gpt2" and _array_type(header, "tokenizer.ggml.merges") != "string":
        raise Malformed("tokenizer.ggml.merges is not an array of strings")
    _check_token_types(header, vocabulary.size, vocabulary.byte_token_ids)
    _check_scores(header, vocabulary.size)
    for name in _SPECIAL_IDS:
        _u32(header, f"tokenizer.ggml.{name}_token_id", 0, vocabulary.size - 1)


def _array_type(header: Header, key: str) -> str | None:
    value = header.metadata.get(key)
    return value.type if isinstance(value, ArraySummary) else None


def _check_token_types(header: Header, size: int, byte_ids: frozenset[int]) -> None:
    if TOKEN_TYPES_KEY not in header.metadata:
        return  # llama.cpp then treats every token as a normal one
    types = header.token_types
    if types is None or len(types) != size:
        raise Malformed(f"tokenizer.ggml.token_type is not {size} i32 values, one a token")
    for token, kind in enumerate(types):
        if kind == BYTE_TOKEN_TYPE and token not in byte_ids:
            # llama.cpp's token_to_byte() reads two hexadecimal digits from the fourth character on.
            raise Malformed(f"token {token} is of the type byte and not spelled <0xNN>")


def _check_scores(header: Header, size: int) -> None:
    key = "tokenizer.ggml.scores"
    value = header.metadata.get(key)
    if value is None:
        return
    if not isinstance(value, ArraySummary) or value.length != size or value.type != "f32":
        raise Malformed(f"{key} is not {size} f32 values, one a token")


def _check_tensor_types(header: Header) -> None:
    for tensor in header.tensors:
        if tensor.n_elements == tensor.shape[0] and tensor.type != "F32":
            # A vector is a norm or a bias; the CPU kernels abort when it is not F32.
            raise Malformed(f"{tensor.name} is a vector of {tensor.type} and not of F32")
        if tensor.name == "token_embd.weight" and tensor.type == "IQ2_XS":
            raise Malformed("token_embd.weight is IQ2_XS, in which ggml cannot look up rows")
