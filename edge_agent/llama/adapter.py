"""LoRA adapters in GGUF form, applied to every request of a context.

Flows in: paths. Flows out: adapters that are active at scale 1. A broken adapter file ends the
process inside llama.cpp (shared/anchors/reliability.md), so the header is read and compared by us
first. Not here: training adapters, swapping them between requests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import ModelFormatError, ModelRefused
from edge_agent.gguf_cursor import Malformed
from edge_agent.gguf_file import read_gguf
from edge_agent.gguf_header import Header, TensorInfo, parse_header
from edge_agent.llama.binding import LogTail, lib
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model

LORA_A, LORA_B = ".lora_a", ".lora_b"


def activate(
    paths: Sequence[str], base: Path, model: Model, context: Context, log: LogTail
) -> None:
    """Load all of them and make them active. Raises ModelFormatError, ModelRefused."""
    if not paths:
        return
    tensors = {tensor.name: tensor for tensor in read_gguf(base).tensors}
    architecture = model.metadata("general.architecture") or ""
    handles = []
    for name in paths:
        check(Path(name), architecture, tensors)
        handles.append(_load(name, model, log))
    array = (lib.llama_adapter_lora_p_ctypes * len(handles))(
        *[ctypes.cast(handle, lib.llama_adapter_lora_p_ctypes) for handle in handles]
    )
    scales = (ctypes.c_float * len(handles))(*([1.0] * len(handles)))
    code = lib.llama_set_adapters_lora(context.handle, array, len(handles), scales)
    if code != 0:
        raise ModelRefused(
            f"{len(handles)} adapters could not be made active",
            log.errors() or f"llama.cpp returned {code}",
            "try them one by one",
        )


def _load(path: str, model: Model, log: LogTail) -> Any:
    handle = lib.llama_adapter_lora_init(model.handle, path.encode())
    if not handle:
        raise ModelRefused(
            f"the adapter {path} does not fit the model",
            log.errors() or "llama.cpp gave no reason",
            "use one that was trained on this very model",
        )
    return handle


def check(path: Path, architecture: str, base: dict[str, TensorInfo]) -> None:
    """Compare an adapter's header with its base. Raises ModelFormatError."""
    try:
        with path.open("rb") as stream:
            header = parse_header(stream, path.stat().st_size)
        _check_header(header, architecture, base)
    except Malformed as error:
        raise _refusal(path, str(error)) from None
    except OSError as error:
        raise _refusal(path, error.strerror or str(error)) from None


def _check_header(header: Header, architecture: str, base: dict[str, TensorInfo]) -> None:
    """Raises Malformed."""
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    wanted["general.architecture"] = architecture
    for key, value in wanted.items():
        if header.metadata.get(key) != value:
            raise Malformed(f"{key} is {header.metadata.get(key)!r}, not {value!r}")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    if not tensors:
        raise Malformed("it holds no tensor")
    for name in tensors:
        stem = name.removesuffix(LORA_A).removesuffix(LORA_B)
        pair = (tensors.get(stem + LORA_A), tensors.get(stem + LORA_B), base.get(stem))
        if stem == name or not _fits(*pair):
            raise Malformed(f"{name} does not belong to a pair that fits a tensor of the model")


def _fits(a: TensorInfo | None, b: TensorInfo | None, weight: TensorInfo | None) -> bool:
    """Shapes innermost first: a (inputs, r), b (r, outputs), weight (inputs, outputs)."""
    if a is None or b is None or weight is None:
        return False
    if not len(a.shape) == len(b.shape) == len(weight.shape) == 2:
        return False
    return a.shape[1] == b.shape[0] and (a.shape[0], b.shape[1]) == weight.shape


def _refusal(path: Path, why: str) -> ModelFormatError:
    return ModelFormatError(
        f"cannot use the adapter {path}", why, "give a GGUF LoRA adapter made for this very model"
    )
