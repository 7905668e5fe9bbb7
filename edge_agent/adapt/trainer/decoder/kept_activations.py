"""What else a decoder may keep when there is room, and in which order it pays.

Why it exists: a step needs at least the inputs of the trained blocks; everything else can be
computed or unpacked again. Spare memory is spent in the order of the time saved per byte (measured
at 512 tokens on x86-64). First the feed-forward outputs ("feds") of blocks with a norm behind the
feed-forward: a fed saves a third of the block's second forward pass for 4 bytes per token and
channel. Then the tapes of the highest blocks: a tape saves the whole second pass, about 1.6 ns of a
step per byte. Then unpacked matrices: 0.1 to 0.7 ns per byte, the types that unpack slowest first.
Flows in: blocks, the size of the largest row, a number of bytes. Flows out: `KeptActivations`. Not
here: how many bytes there are (adapt/trainer/memory_estimate.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge_agent.adapt.trainer.decoder.layer import Layer
from edge_agent.adapt.trainer.decoder.packed_weights import PackedMatrix
from edge_agent.adapt.trainer.decoder.shape import DecoderShape

UNPACK_NS = {
    **{"F32": 0.05, "BF16": 0.1, "Q8_0": 0.11, "Q4_K": 0.11, "Q5_K": 0.15, "Q4_0": 0.32},
    **{"Q4_1": 0.32, "Q5_1": 0.52, "Q5_0": 0.54, "Q6_K": 0.68, "IQ4_NL": 0.73, "F16": 0.77},
}
"""Nanoseconds to unpack one element with one thread, measured on a Zen 5; only their order
matters."""


@dataclass(frozen=True)
class KeptActivations:
    """Indices of the blocks whose feed-forward outputs (`feds`) and whose `tapes` are kept, names
    of the matrices kept unpacked, and the bytes of all of them."""

    feds: tuple[int, ...] = ()
    tapes: tuple[int, ...] = ()
    matrices: tuple[str, ...] = ()
    n_bytes: int = 0


def tape_bytes(layer: Layer, shape: DecoderShape, lengths: Sequence[int], itemsize: int) -> int:
    """Bytes of one block's tape for a row of texts with these lengths in tokens."""
    widths = {name: linear.weight.n_out for name, linear in layer.linears.items()}
    q, kv, d = widths["attn_q"], widths["attn_k"], shape.n_embd
    per_token = (q + kv) + kv + q + d + 2 * widths["ffn_gate"] + 2
    if shape.has_post_norms:
        per_token += 2 * d + 2
    if shape.has_qk_norm:
        per_token += q + kv + shape.n_head + shape.n_head_kv
    loras = (linear.lora for linear in layer.linears.values())
    per_token += sum(lora.r for lora in loras if lora is not None)
    squares = sum(n * n for n in lengths)
    return itemsize * (per_token * sum(lengths) + shape.n_head * squares)


def fed_bytes(shape: DecoderShape, lengths: Sequence[int], itemsize: int) -> int:
    """Bytes of one block's feed-forward output."""
    return itemsize * shape.n_embd * sum(lengths)


def choose(
    n_bytes: int,
    layers: Sequence[Layer],
    head: PackedMatrix,
    shape: DecoderShape,
    lengths: Sequence[int],
) -> KeptActivations:
    """What to keep of the trained blocks and of the head in at most `n_bytes`.

    `lengths`: tokens of each text of the largest row. The highest trained block is left out: its
    backward runs right after its forward, while the shared tape still holds its values.
    """
    itemsize, left = head.compute.dtype.itemsize, n_bytes
    fed, tape = fed_bytes(shape, lengths, itemsize), 0
    lower = [layer.number for layer in layers[:-1]]
    n_feds = min(len(lower), left // fed) if shape.has_post_norms else 0
    left -= n_feds * fed
    n_tapes = 0
    if lower:
        tape = tape_bytes(layers[0], shape, lengths, itemsize)
        # A block's tape includes its fed, so a tape replaces a fed that was paid for already.
        spared = fed if n_feds == len(lower) and n_feds else 0
        n_tapes = min(len(lower), left // (tape - spared))
        left -= n_tapes * (tape - spared)
        n_feds = min(n_feds, len(lower) - n_tapes)
    matrices = []
    for matrix in by_price(layers, head):
        if matrix.unpacked_bytes <= left:
            matrices.append(matrix.name)
            left -= matrix.unpacked_bytes
    tapes = tuple(lower[len(lower) - n_tapes :])
    return KeptActivations(tuple(lower[:n_feds]), tapes, tuple(matrices), n_bytes - left)


def by_price(layers: Iterable[Layer], head: PackedMatrix) -> list[PackedMatrix]:
    """The matrices in the order of the unpacking time that a kept byte saves.

    A step uses a block's matrix twice, in forward and in backward, and the head once.
    """
    blocks = [linear.weight for layer in layers for linear in layer.linears.values()]
    prices = {matrix.name: 2.0 * UNPACK_NS.get(matrix.type, 1.0) for matrix in blocks}
    prices[head.name] = UNPACK_NS.get(head.type, 1.0)
    return sorted([*blocks, head], key=lambda matrix: -prices[matrix.name])
