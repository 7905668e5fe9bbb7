"""A real but tiny language model: random weights in a GGUF file that llama.cpp loads and decodes.

Tests that need the engine must not need a download. `write_tiny_model` writes about 0.7 MB with
gguf-py: two blocks of width 64, a byte-level BPE vocabulary (every byte is a token, so any text can
be tokenized) with a few merges and the three ChatML control tokens. The weights are random, so the
generated text is nonsense, but the same nonsense for the same seed. The output rows favour
printable ASCII and never choose control tokens, so generation runs until max_tokens. Flows in: a
path. Flows out: the same path. Such a model says nothing about quality.
"""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ENDOFTEXT_ID, IM_START_ID, IM_END_ID = 0, 1, 2

CHATML_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Pairs in rank order; each side is a byte token or an earlier merge. "Ġ" is byte 0x20 in BPE files.
MERGES = """
h e, t he, Ġ t, Ġt he, i n, e r, a n, an d, Ġ and, o u, l l, e ll, h ell, hell o, Ġ w, Ġw or, o r,
l d, Ġ a, r e, o n, in g, e s, e n, Ġ o, Ġo f, s t, a t, i s, Ġ is
"""

ARCHITECTURES = ("llama", "gemma3", "qwen2", "qwen3")


def byte_tokens() -> list[str]:
    """The 256 printable stand-ins that byte-level BPE files use for the bytes 0..255.

    Printable Latin-1 bytes stand for themselves; the other 68 are numbered from U+0100 (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges): control tokens first, then bytes, then one token for each merge."""
    tokens = [*CONTROL_TOKENS, *byte_tokens()]
    merges = []
    for merge in map(str.strip, MERGES.split(",")):
        left, right = merge.split()
        if left in tokens and right in tokens and left + right not in tokens:
            tokens.append(left + right)
            merges.append(merge)
    return tokens, merges


SPM_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
UNWANTED = {*CONTROL_TOKENS, *SPM_SPECIAL, *BYTE_TOKENS}
"""Tokens that the random model never generates."""


def spm_vocabulary() -> list[tuple[str, float, gguf.TokenType]]:
    """(text, score, type): specials, the 256 byte tokens, printable ASCII with ▁ for the space."""
    kinds = gguf.TokenType
    specials = [(text, 0.0, kinds.UNKNOWN if text == "<unk>" else kinds.CONTROL)
                for text in SPM_SPECIAL]  # fmt: skip
    pieces = [
        "▁",
        *map(chr, range(0x21, 0x7F)),
        "\n",
        "é",
        "न",
        "▁t",
        "he",
        "▁the",
        "in",
        "an",
        "▁a",
    ]
    return [
        *specials,
        *((text, 0.0, kinds.BYTE) for text in BYTE_TOKENS),
        *((text, -float(rank), kinds.NORMAL) for rank, text in enumerate(pieces)),
    ]


def write_tiny_model(
    path: Path,
    *,
    chat_template: str | None = None,
    n_ctx_train: int = 512,
    seed: int = 0,
    architecture: str = "llama",
    n_layer: int = 2,
    sliding_window: int | None = None,
    add_bos: bool = False,
    tokenizer: str = "gpt2",
) -> Path:
    """Write (or overwrite) `path` and return it; the same arguments give the same bytes.

    `sliding_window` (tokens) matters only for gemma3, whose every sixth layer is global.
    `tokenizer` is gpt2 (byte-level BPE, ChatML tokens) or llama (SPM as Gemma's, turn tokens).
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"no tiny model of architecture {architecture!r}")
    path = Path(path)
    writer = gguf.GGUFWriter(path, architecture)
    _write_hyperparameters(writer, architecture, n_ctx_train, n_layer)
    if sliding_window is not None:
        writer.add_sliding_window(sliding_window)
    if tokenizer == "gpt2":
        _write_bpe_vocabulary(writer, add_bos)
    else:
        _write_spm_vocabulary(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    tokens = vocabulary()[0] if tokenizer == "gpt2" else [text for text, _, _ in spm_vocabulary()]
    for name, weights in _weights(architecture, n_layer, seed, tokens):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM = 64, 256, 4, 2, 16


def _write_hyperparameters(
    writer: gguf.GGUFWriter, architecture: str, n_ctx_train: int, n_layer: int
) -> None:
    writer.add_name(f"tiny random {architecture}")
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(HEAD_DIM)


def _write_bpe_vocabulary(writer: gguf.GGUFWriter, add_bos: bool) -> None:
    tokens, merges = vocabulary()
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in CONTROL_TOKENS else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ENDOFTEXT_ID)
    writer.add_eos_token_id(IM_END_ID)
    writer.add_unk_token_id(ENDOFTEXT_ID)
    writer.add_pad_token_id(ENDOFTEXT_ID)
    writer.add_add_bos_token(add_bos)


def _write_spm_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = spm_vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([int(kind) for _, _, kind in tokens])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _weights(
    architecture: str, n_layer: int, seed: int, tokens: list[str]
) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    embedding = rng.standard_normal((len(tokens), N_EMBD)).astype(np.float32)
    found = [("token_embd.weight", embedding)]
    for layer in range(n_layer):
        found += [
            (f"blk.{layer}.{name}", weights) for name, weights in _block(architecture, matrix)
        ]
    found.append(("output_norm.weight", np.ones(N_EMBD, np.float32)))
    found.append(("output.weight", matrix(len(tokens), N_EMBD) * 8 * _row_weight(tokens)))
    return found


def _row_weight(tokens: list[str]) -> np.ndarray:
    """Factors that make the model generate printable ASCII: control tokens 0, stray bytes 0.05,
    others 1."""
    weight = [
        0.0 if token in UNWANTED else 1.0 if re.fullmatch("[Ġ▁]?[!-~]*", token) else 0.05
        for token in tokens
    ]
    return np.array(weight, np.float32)[:, None]


def _block(architecture: str, matrix) -> list[tuple[str, np.ndarray]]:  # type: ignore[no-untyped-def]
    q_width, kv_width = N_HEAD * HEAD_DIM, N_HEAD_KV * HEAD_DIM
    ones = {"attn_norm": N_EMBD, "ffn_norm": N_EMBD}
    if architecture == "gemma3":
        ones |= {"post_attention_norm": N_EMBD, "post_ffw_norm": N_EMBD}
    if architecture in ("gemma3", "qwen3"):
        ones |= {"attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
    block = [(f"{name}.weight", np.ones(width, np.float32)) for name, width in ones.items()]
    block += [
        ("attn_q.weight", matrix(q_width, N_EMBD)),
        ("attn_k.weight", matrix(kv_width, N_EMBD)),
        ("attn_v.weight", matrix(kv_width, N_EMBD)),
        ("attn_output.weight", matrix(N_EMBD, q_width)),
        ("ffn_gate.weight", matrix(N_FF, N_EMBD)),
        ("ffn_up.weight", matrix(N_FF, N_EMBD)),
        ("ffn_down.weight", matrix(N_EMBD, N_FF)),
    ]
    if architecture == "qwen2":
        widths = (("q", q_width), ("k", kv_width), ("v", kv_width))
        block += [(f"attn_{name}.bias", matrix(1, width)[0]) for name, width in widths]
    return block
