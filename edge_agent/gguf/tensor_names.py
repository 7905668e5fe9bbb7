"""Which tensors, of which shapes, a model file must hold and which it may hold.

Why it exists: llama.cpp compares the tensor table with the hyperparameters only when it loads the
model, which is after a pull or a quantization. This module makes the same comparison from the
header. Flows in: the tensor table and the hyperparameters by suffix, as rules.py checked them.
Flows out: nothing, or Malformed with the name of the tensor. The table follows load_arch_tensors of
models/{gemma3,qwen2,qwen3,llama}.cpp in the llama.cpp that llama-cpp-python 0.3.36 ships. Not here:
the types of tensors (rules.py) and the bytes that they take (header.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import TensorInfo

Shapes = dict[str, tuple[int, ...]]
"""Shapes by tensor name, innermost first."""

_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class _Widths:
    """Elements along the axes of the tensors. `rotated` is half the rotated part of one head."""

    embedding: int
    feed_forward: int
    query: int
    key: int
    head: int
    rotated: int
    vocabulary: int


def check_tensor_names(
    architecture: str, sizes: Mapping[str, int], n_vocab: int, tensors: tuple[TensorInfo, ...]
) -> None:
    """Raise Malformed when llama.cpp would miss a tensor, meet one that it does not know, or find
    another shape than `sizes` (hyperparameters by suffix) and `n_vocab` (tokens) give."""
    widths = _widths(sizes, n_vocab)
    found = {tensor.name: tensor.shape for tensor in tensors}
    blocks = sizes["block_count"]
    known: Shapes = {}
    for required, optional in _groups(architecture, widths, blocks, found):
        for name in required:
            if name not in found:
                raise Malformed(
                    f"the tensor {name} is missing ({architecture}.block_count is {blocks})"
                )
        known |= required | optional
    for name, shape in found.items():
        _check_tensor(name, shape, known, blocks)


def _widths(sizes: Mapping[str, int], n_vocab: int) -> _Widths:
    head = sizes["attention.key_length"]
    return _Widths(
        embedding=sizes["embedding_length"],
        feed_forward=sizes["feed_forward_length"],
        query=head * sizes["attention.head_count"],
        key=head * sizes["attention.head_count_kv"],
        head=head,
        rotated=sizes["rope.dimension_count"] // 2,
        vocabulary=n_vocab,
    )


def _groups(
    architecture: str, widths: _Widths, blocks: int, found: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Shapes, Shapes]]:
    """(required, optional) of the whole model, then of each block."""
    required = {
        "token_embd.weight": (widths.embedding, widths.vocabulary),
        "output_norm.weight": (widths.embedding,),
    }
    # Without output.weight llama.cpp takes the embedding as the output head.
    optional: Shapes = {"output.weight": (widths.embedding, widths.vocabulary)}
    if architecture == "qwen2":
        optional["output.bias"] = (widths.vocabulary,)
    if architecture == "qwen3":
        optional["cls.output.weight"] = (widths.embedding, 1)
    if architecture == "llama":
        names = ("rope_freqs", "rope_factors_long", "rope_factors_short")
        optional |= {f"{name}.weight": (widths.rotated,) for name in names}
    yield required, optional
    for block in range(blocks):
        prefix = f"blk.{block}."
        fused = prefix + "attn_qkv.weight" in found
        of_block, besides = _block(architecture, widths, fused)
        yield _named(prefix, of_block), _named(prefix, besides)


def _named(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _block(architecture: str, widths: _Widths, fused: bool) -> tuple[Shapes, Shapes]:
    """(required, optional) of one block; `fused`: one matrix makes queries, keys and values."""
    embedding, feed_forward = widths.embedding, widths.feed_forward
    heads = {"attn_q": widths.query, "attn_k": widths.key, "attn_v": widths.key}
    projections = {"attn_qkv": widths.query + 2 * widths.key} if fused else heads
    matrices: Shapes = {
        **{f"{name}.weight": (embedding, width) for name, width in projections.items()},
        "attn_output.weight": (widths.query, embedding),
        "ffn_gate.weight": (embedding, feed_forward),
        "ffn_up.weight": (embedding, feed_forward),
        "ffn_down.weight": (feed_forward, embedding),
    }
    norms: Shapes = {"attn_norm.weight": (embedding,), "ffn_norm.weight": (embedding,)}
    if architecture == "gemma3":
        norms |= {"post_attention_norm.weight": (embedding,), "post_ffw_norm.weight": (embedding,)}
    if architecture in ("gemma3", "qwen3"):
        norms |= {"attn_q_norm.weight": (widths.head,), "attn_k_norm.weight": (widths.head,)}
    biases: Shapes = {f"{name}.bias": (width,) for name, width in (heads | projections).items()}
    if architecture == "llama":
        biases |= {"attn_output.bias": (embedding,), "ffn_down.bias": (embedding,)}
        biases |= {"ffn_gate.bias": (feed_forward,), "ffn_up.bias": (feed_forward,)}
    return matrices | norms, biases | _scales(matrices)


def _scales(matrices: Shapes) -> Shapes:
    """The one-element factors that llama.cpp reads beside a matrix of FP4 values."""
    stems = [name.removesuffix(".weight") for name in matrices]
    return {f"{stem}.{kind}": (1,) for stem in stems for kind in ("scale", "input_scale")}


def _check_tensor(name: str, shape: tuple[int, ...], known: Shapes, blocks: int) -> None:
    if name not in known:
        block = _BLOCK.match(name)
        if block and int(block[1]) >= blocks:
            raise Malformed(f"the tensor {name} is of no block: block_count is {blocks}")
        raise Malformed(f"the tensor {name} is none that llama.cpp reads for this architecture")
    expected = known[name]
    if _trimmed(shape) != _trimmed(expected):
        raise Malformed(f"{name} has the shape {list(shape)} and not {list(expected)}")


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without the ones at its end: ggml holds four axes, the missing ones being 1."""
    kept = list(shape)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
