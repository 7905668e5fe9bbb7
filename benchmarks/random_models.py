"""Model files of a real size with random weights, for measuring speed and memory.

Such a file trains at the speed of the real model and learns nothing: label its figures so. Rows are
drawn once per matrix shape and packed by ggml, so every block has the same bytes, which changes
neither time nor memory. Flows in: a shape's name, a weight type, a path. Flows out: the file. The
vocabulary consists of numbers and only satisfies the checks of the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from edge_agent.llama import ggml


@dataclass(frozen=True)
class Size:
    """The dimensions of one model."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    sliding_window: int = 0


SIZES = {
    "gemma3-270m": Size("gemma3", 18, 640, 2048, 4, 1, 256, 262144, 512),
    "gemma3-1b": Size("gemma3", 26, 1152, 6912, 4, 1, 256, 262144, 512),
    "qwen2.5-0.5b": Size("qwen2", 24, 896, 4864, 14, 2, 64, 151936),
}


def write_random_model(path: Path, size: Size, type_name: str) -> Path:
    """Write the file; the embedding, also the head, is Q8_0 in a packed file, as with
    llama-quantize."""
    writer = gguf.GGUFWriter(path, size.architecture)
    writer.add_name("random weights")
    writer.add_context_length(32768)
    writer.add_embedding_length(size.n_embd)
    writer.add_block_count(size.n_layer)
    writer.add_feed_forward_length(size.n_ff)
    writer.add_head_count(size.n_head)
    writer.add_head_count_kv(size.n_head_kv)
    writer.add_key_length(size.head_dim)
    writer.add_value_length(size.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if size.sliding_window:
        writer.add_sliding_window(size.sliding_window)
    _write_vocabulary(writer, size.n_vocab)
    rng, drawn = np.random.default_rng(0), {}
    for name, shape in _tensors(size):
        kind = "F32" if len(shape) == 1 else type_name
        if name == "token_embd.weight" and type_name not in ("F32", "F16", "BF16"):
            kind = "Q8_0"
        key = (kind, shape)
        if key not in drawn:
            drawn[key] = _packed(rng, shape, kind)
        dtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, drawn[key], raw_dtype=None if kind == "F32" else dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{number}" for number in range(n_vocab)])
    writer.add_token_types([1] * n_vocab)
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _tensors(size: Size) -> list[tuple[str, tuple[int, ...]]]:
    d, ff, head = size.n_embd, size.n_ff, size.head_dim
    q, kv = size.n_head * head, size.n_head_kv * head
    is_gemma = size.architecture == "gemma3"
    block = {"attn_norm": (d,), "ffn_norm": (d,), "attn_q": (q, d), "attn_k": (kv, d),
             "attn_v": (kv, d), "attn_output": (d, q), "ffn_gate": (ff, d), "ffn_up": (ff, d),
             "ffn_down": (d, ff)}  # fmt: skip
    if is_gemma:
        block |= {"post_attention_norm": (d,), "post_ffw_norm": (d,)}
        block |= {"attn_q_norm": (head,), "attn_k_norm": (head,)}
    found = [("token_embd.weight", (size.n_vocab, d)), ("output_norm.weight", (d,))]
    for layer in range(size.n_layer):
        found += [(f"blk.{layer}.{name}.weight", shape) for name, shape in block.items()]
        if size.architecture == "qwen2":
            found += [
                (f"blk.{layer}.attn_{x}.bias", (w,))
                for x, w in zip("qkv", (q, kv, kv), strict=True)
            ]
    return found


def _packed(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    n_rows, n_columns = shape
    few = (rng.standard_normal((min(n_rows, 1024), n_columns)) * n_columns**-0.5).astype(np.float32)
    rows = np.empty((len(few), ggml.row_bytes(kind, n_columns)), np.uint8)
    ggml.quantize(kind, few, rows.reshape(-1))
    repeated = np.resize(rows, (n_rows, rows.shape[1]))
    return repeated.view(np.float32) if kind == "F32" else repeated
