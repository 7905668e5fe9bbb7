"""How fast this machine reads memory, and how many bytes a decoded token reads: the roofline.

Decoding one token reads every weight once, so tokens per second cannot exceed the memory bandwidth
divided by the bytes per token (Williams et al., "Roofline", 2009). Flows in: a number of threads,
or a checked GGUF header. Flows out: bytes per second, and bytes. The bandwidth is measured, by
summing a buffer far larger than the caches in as many threads as the engine uses. It is the
processor's bandwidth and says nothing about a GPU. Not here: the speed that was reached
(trials.py).
"""

from __future__ import annotations

import threading
import time

import numpy as np

from edge_agent.gguf.model_file import GgufFile
from edge_agent.records import EngineSettings

BUFFER_BYTES = 256 * 1024 * 1024
PASSES = 5
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
"""KV cache type -> bytes per element; q8_0 stores 32 values in 34 bytes (ggml-common.h)."""


def read_bandwidth(n_threads: int, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second, the best of several passes. NumPy releases the GIL while it sums."""
    buffer = np.ones(buffer_bytes // 8, dtype=np.int64)
    parts = np.array_split(buffer, n_threads)
    return max(_pass(parts) for _ in range(PASSES + 1))


def _pass(parts: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> float:
    threads = [threading.Thread(target=np.add.reduce, args=(part,)) for part in parts]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(sum(part.nbytes for part in parts)) / (time.perf_counter() - began_s)


def bytes_per_token(gguf: GgufFile, settings: EngineSettings, n_past: float) -> float:
    """Bytes that decoding one token reads when `n_past` tokens are in the KV cache.

    That is: all weights, and the keys and values of every layer for `n_past` tokens (for a
    sliding-window layer at most its window). The embedding table is left out when the model has an
    output matrix of its own, because only one row of it is read; a tied table is also the output
    matrix and read whole.
    """
    names = {tensor.name for tensor in gguf.tensors}
    weights = sum(
        tensor.n_bytes
        for tensor in gguf.tensors
        if tensor.name != "token_embd.weight" or "output.weight" not in names
    )
    width = gguf.n_head_kv * gguf.head_dim
    row = width * (_KV_BYTES[settings.type_k] + _KV_BYTES[settings.type_v])
    sliding = gguf.sliding_layers()
    window = min(n_past, gguf.sliding_window or n_past)
    return weights + row * ((gguf.n_layer - sliding) * n_past + sliding * window)
