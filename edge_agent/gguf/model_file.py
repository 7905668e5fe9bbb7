"""A GGUF model file as this project sees it: checked, summarised, and never trusted.

Why it exists: one flipped bit in a token makes llama.cpp abort the process, and gguf-py's reader
can be made to allocate without bound. So the pull of a model, the memory check and the worker all
call `read_gguf` before llama.cpp opens the file. Flows in: a path. Flows out: a frozen `GgufFile`,
or ModelFormatError. Only the header is read; the file's SHA-256 covers the tensor bytes
(models/pull.py). Not here: the file's structure (header.py), and the values that make llama.cpp
abort (rules.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ModelFormatError
from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import ArraySummary, Header, Scalar, TensorInfo, Value, parse_header
from edge_agent.gguf.rules import check_rules
from edge_agent.regular_file import open_regular

__all__ = ["ArraySummary", "GgufFile", "TensorInfo", "kv_cache_bytes", "read_gguf"]

GEMMA3_PATTERN = 6
"""In a Gemma 3 file without sliding_window_pattern every sixth layer attends to all tokens and the
others to a sliding window (llama.cpp, models/gemma3.cpp)."""
CELL_BYTES = {"f32": (4, 1), "f16": (2, 1), "q8_0": (34, 32)}
"""Bytes and elements of one block of each KV cache type (ggml-common.h)."""

# LLAMA_FTYPE_* without the prefix (llama.h).
_FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"},
    **{11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S"},
    **{17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS"},
    **{23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S"},
    **{29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0"},
    **{38: "MXFP4_MOE"},
}


@dataclass(frozen=True)
class GgufFile:
    """What the header of one accepted model file says. Sizes in bytes, lengths in tokens."""

    path: Path
    file_bytes: int
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    n_vocab: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors without padding: the memory that loading them takes."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_params(self) -> int:
        """Elements of all tensors, counted as llama_model_n_params does."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def n_layer(self) -> int:
        return self._size("block_count")

    @property
    def n_embd(self) -> int:
        return self._size("embedding_length")

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest context that the model was trained for."""
        return self._size("context_length")

    @property
    def n_head(self) -> int:
        return self._size("attention.head_count")

    @property
    def n_head_kv(self) -> int:
        return self._size("attention.head_count_kv", self.n_head)

    @property
    def head_dim(self) -> int:
        """Elements of one head's key and of one head's value: rules.py demands that they agree."""
        return self._size("attention.key_length", self.n_embd // self.n_head)

    @property
    def sliding_window(self) -> int:
        """Tokens that a sliding-window layer attends to; 0 where every layer attends to all tokens.
        Of the accepted architectures only gemma3 has such layers."""
        return self._size("attention.sliding_window", 0) if self.architecture == "gemma3" else 0

    @property
    def chat_template(self) -> str | None:
        """The source of the Jinja chat template; None when the file has none."""
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    @property
    def quantization(self) -> str:
        """Label of general.file_type (Q4_K_M, ...); without that key, the tensor type that holds
        the most bytes."""
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int) and file_type in _FILE_TYPES:
            return _FILE_TYPES[file_type]
        by_type: dict[str, int] = {}
        for tensor in self.tensors:
            by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.n_bytes
        return max(by_type, key=lambda name: by_type[name])

    @property
    def description(self) -> str:
        """One line for people, for example `gemma3 268M Q4_K_M`."""
        return f"{self.architecture} {_millions(self.n_params)} {self.quantization}"

    def sliding_layers(self) -> int:
        """Number of layers that attend only to the last `sliding_window` tokens."""
        if not self.sliding_window:
            return 0
        key = "gemma3.attention.sliding_window_pattern"
        pattern = self.metadata.get(key, GEMMA3_PATTERN)
        if isinstance(pattern, ArraySummary):
            return sum(bool(flag) for flag in pattern.head)
        every = int(pattern)
        return sum(layer % every < every - 1 for layer in range(self.n_layer))

    def summary(self) -> dict[str, Scalar]:
        """The scalar metadata that `edge-agent show` prints; strings are cut at 200 characters."""
        return {
            key: value[:200] if isinstance(value, str) else value
            for key, value in self.metadata.items()
            if not isinstance(value, ArraySummary)
        }

    def _size(self, suffix: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.architecture}.{suffix}", default)
        return value if isinstance(value, int) else 0


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of the model file at `path`.

    Raises ModelFormatError when the file is missing, unreadable, not a regular file, or breaks a
    rule of header.py or rules.py. Takes less than 1 s and 64 MiB whatever the file holds.

        read_gguf(Path("gemma-3-270m-it-Q4_K_M.gguf")).description    # 'gemma3 268M Q4_K_M'
    """
    try:
        with open_regular(path) as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            header = parse_header(stream, file_bytes)
        check_rules(header)
    except Malformed as error:
        raise _refusal(path, str(error)) from None
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None
    return _gguf_file(path, file_bytes, header)


def _gguf_file(path: Path, file_bytes: int, header: Header) -> GgufFile:
    return GgufFile(
        path=path,
        file_bytes=file_bytes,
        version=header.version,
        metadata=header.metadata,
        tensors=header.tensors,
        data_start=header.data_start,
        n_vocab=header.vocabulary.size if header.vocabulary else 0,
    )


def _refusal(path: Path, why: str) -> ModelFormatError:
    return ModelFormatError(
        f"cannot use the model file {path}",
        why,
        "use a complete GGUF file (version 2 or 3) of the gemma3, qwen2, qwen3 or llama family;"
        " if it was one, fetch it again",
    )


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def kv_cache_bytes(  # noqa: PLR0913 - llama.cpp's own six knobs, all by name
    gguf: GgufFile,
    *,
    n_ctx: int,
    slots: int,
    type_k: str = "f16",
    type_v: str = "f16",
    swa_full: bool = False,
    n_ubatch: int = 512,
) -> int:
    """Bytes of the KV cache that llama.cpp allocates for `slots` sequences of `n_ctx` tokens.

    The rules are those of llama_kv_cache and llama_kv_cache_iswa (llama.cpp) with kv_unified =
    false. Each slot has n_ctx cells, padded to a multiple of 256. In a sliding-window layer a slot
    has min(n_ctx, window + n_ubatch) cells, padded likewise, unless swa_full is set. `n_ubatch` is
    the number of tokens that one graph takes; llama.cpp limits it to the context's size.
    """
    cells = _padded(n_ctx)
    n_ubatch = min(n_ubatch, cells * slots)
    sliding_cells = cells if swa_full else _padded(min(cells, gguf.sliding_window + n_ubatch))
    sliding = gguf.sliding_layers()
    rows = (gguf.n_layer - sliding) * cells + sliding * sliding_cells
    width = gguf.n_head_kv * gguf.head_dim
    return slots * rows * (_row_bytes(type_k, width) + _row_bytes(type_v, width))


def _padded(cells: int) -> int:
    return -(-cells // 256) * 256


def _row_bytes(cell_type: str, width: int) -> int:
    block_bytes, block_elements = CELL_BYTES[cell_type]
    return width // block_elements * block_bytes
