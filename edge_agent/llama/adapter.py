"""LoRA adapters in GGUF form: is a file one that llama.cpp can bear, load it, free it.

Flows in: paths. Flows out: handles for Context.set_adapters. A broken adapter file ends the process
inside llama.cpp (shared/anchors/reliability.md), and one that holds a NaN is accepted without a
word, so the header is read and compared and every value looked at by us first. Not here: training
adapters, and which of them answers a request (engine/adapters.py).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edge_agent.errors import ModelFormatError, ModelRefused
from edge_agent.gguf_cursor import Malformed
from edge_agent.gguf_file import read_gguf
from edge_agent.gguf_header import Header, TensorInfo, parse_header
from edge_agent.llama.binding import LogTail, lib
from edge_agent.llama.context import Context
from edge_agent.llama.ggml import dequantize
from edge_agent.llama.model import Model

LORA_A, LORA_B = ".lora_a", ".lora_b"
ALPHA_KEY = "adapter.lora.alpha"
_EMBEDDING = "token_embd.weight"


def activate(
    paths: Sequence[str], base: Path, model: Model, context: Context, log: LogTail
) -> list[Any]:
    """Load all of them, make them active at scale 1; their handles.

    Raises ModelFormatError, ModelRefused.
    """
    if not paths:
        return []
    tensors = {tensor.name: tensor for tensor in read_gguf(base).tensors}
    architecture = model.metadata("general.architecture") or ""
    handles = []
    for name in paths:
        check(Path(name), architecture, tensors)
        handles.append(load_adapter(name, model, log))
    context.set_adapters([(handle, 1.0) for handle in handles])
    return handles


def load_adapter(path: str, model: Model, log: LogTail) -> Any:
    """A handle, valid until `free_adapter` or the model's end. Raises ModelRefused."""
    with log.listening():
        handle = lib.llama_adapter_lora_init(model.handle, path.encode())
        if not handle:
            raise ModelRefused(
                f"the adapter {path} does not fit the model",
                log.errors() or "llama.cpp gave no reason",
                "use one that was trained on this very model",
            )
    return handle


def free_adapter(handle: Any) -> None:
    """Give its memory back. It must not be active in any context."""
    lib.llama_adapter_lora_free(handle)


def check(path: Path, architecture: str, base: dict[str, TensorInfo]) -> None:
    """Compare an adapter with its base, and look at its values. Raises ModelFormatError."""
    try:
        with open_regular(path) as stream:
            check_open(stream, path, architecture, base)
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None


def open_regular(path: Path) -> BinaryIO:
    """Open without blocking on a pipe. Raises OSError, ModelFormatError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refusal(path, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def check_open(
    stream: BinaryIO, path: Path, architecture: str, base: dict[str, TensorInfo]
) -> None:
    """`check` of an open file; `path` is only named. Raises ModelFormatError, OSError."""
    try:
        stream.seek(0)
        header = parse_header(stream, os.fstat(stream.fileno()).st_size)
        _check_header(header, architecture, base)
        _check_values(stream, header)
    except Malformed as error:
        raise _refusal(path, str(error)) from None


def _check_header(header: Header, architecture: str, base: dict[str, TensorInfo]) -> None:
    """Raises Malformed."""
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    wanted["general.architecture"] = architecture
    for key, value in wanted.items():
        if header.metadata.get(key) != value:
            raise Malformed(f"{key} is {header.metadata.get(key)!r}, not {value!r}")
    _check_alpha(header)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if not tensors:
        raise Malformed("it holds no tensor")
    for name in tensors:
        stem = name.removesuffix(LORA_A).removesuffix(LORA_B)
        pair = (tensors.get(stem + LORA_A), tensors.get(stem + LORA_B), base.get(stem))
        # llama.cpp wants the embedding's pair transposed, and aborts where the output is tied to it
        if stem in (name, _EMBEDDING) or not _fits(*pair):
            raise Malformed(f"{name} does not belong to a pair that fits a tensor of the model")


def _check_alpha(header: Header) -> None:
    """llama.cpp aborts at any type but f32, and takes 0 as no scaling. Raises Malformed."""
    alpha = header.metadata.get(ALPHA_KEY)
    if header.types.get(ALPHA_KEY, "f32") != "f32":
        raise Malformed(f"{ALPHA_KEY} is a {header.types[ALPHA_KEY]}, not an f32")
    if not isinstance(alpha, float) or not math.isfinite(alpha) or alpha <= 0:
        raise Malformed(f"{ALPHA_KEY} is {alpha!r}, not a positive number")


def _fits(a: TensorInfo | None, b: TensorInfo | None, weight: TensorInfo | None) -> bool:
    """Shapes innermost first: a (inputs, r), b (r, outputs), weight (inputs, outputs)."""
    if a is None or b is None or weight is None:
        return False
    if not len(a.shape) == len(b.shape) == len(weight.shape) == 2:
        return False
    return a.shape[1] == b.shape[0] and (a.shape[0], b.shape[1]) == weight.shape


def _check_values(stream: BinaryIO, header: Header) -> None:
    """Every value is a number, and some pair is not 0. Raises Malformed, OSError."""
    filled = set()
    for tensor in header.tensors:
        stream.seek(header.data_start + tensor.offset)
        packed = np.frombuffer(stream.read(tensor.n_bytes), np.uint8)
        if len(packed) != tensor.n_bytes:
            raise Malformed(f"{tensor.name} ends early")
        values = np.empty(tensor.n_elements, np.float32)
        dequantize(tensor.type, packed, values)
        if not np.isfinite(values).all():
            raise Malformed(f"{tensor.name} holds NaN or infinity")
        if values.any():
            filled.add(tensor.name)
    stems = {name.removesuffix(LORA_B) for name in filled if name.endswith(LORA_B)}
    if not any(stem + LORA_A in filled for stem in stems):
        raise Malformed("it changes nothing: one side of every pair is 0")


def _refusal(path: Path, why: str) -> ModelFormatError:
    return ModelFormatError(
        f"cannot use the adapter {path}", why, "give a GGUF LoRA adapter made for this very model"
    )
