"""Which tensor of a file gets which type: a dry run of llama.cpp's own quantizer decides.

Why it exists: the rules (more bits for some layers, fallbacks for odd widths, tied heads) change
with llama.cpp's releases, so a table of our own would drift from `llama-quantize`, with which
people compare. Flows in: a GGUF file with a complete header (its tensor data may be a hole in a
sparse file), the wanted file type and overrides. Flows out: tensor name -> type name. Not here: the
quantized bytes (ggml.py), writing the header (converters/).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import ConversionError
from edge_agent.llama.binding import c_function, lib
from edge_agent.llama.ggml import TYPE_IDS

FILE_TYPES = {
    **{"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16},
    **{"Q5_1": 9, "Q5_0": 8, "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25},
    **{"IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12, "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26},
    **{"IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21, "IQ2_M": 29, "IQ2_S": 28},
    **{"IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36},
}
"""LLAMA_FTYPE_* (llama.h) by the usual name, largest first within each width."""

_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = *(\w+), size = .*?(?:\((\w+)\))?$")


@dataclass(frozen=True)
class TypeRequest:
    """The types that the user asked for.

    `overrides` are pairs (regular expression for a tensor's name, type name); the first match wins.
    `imatrix` maps a tensor's name to its importance vector, float32 of shape (n_columns).
    """

    file_type: str
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    imatrix: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def plan_types(header: Path, request: TypeRequest) -> dict[str, str]:
    """Type of every tensor of the file `header`, in the order in which llama.cpp writes tensors.

    Raises ConversionError, with llama.cpp's own words, when llama.cpp refuses the request.

        plan_types(Path("model-header.gguf"), TypeRequest("Q4_K_M"))["blk.0.attn_v.weight"]  # Q6_K
    """
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[request.file_type]
    parameters.dry_run = True
    parameters.nthread = 1
    if request.token_embedding_type is not None:
        parameters.token_embedding_type = TYPE_IDS[request.token_embedding_type]
    if request.output_tensor_type is not None:
        parameters.output_tensor_type = TYPE_IDS[request.output_tensor_type]
    kept = [_set_overrides(parameters, request.overrides), _set_imatrix(parameters, request)]
    log = _Capture()
    code = lib.llama_model_quantize(str(header).encode(), b"", ctypes.byref(parameters))
    log.release()
    del kept
    types = _parse(log.text)
    if code != 0 or not types:
        raise ConversionError(
            f"llama.cpp cannot plan {request.file_type} for this model",
            log.reason() or f"llama_model_quantize returned {code}",
            "check --type, --tensor-type and --imatrix",
        )
    return types


def _parse(text: str) -> dict[str, str]:
    found = (_LINE.match(line) for line in text.splitlines())
    return {m.group(1): (m.group(3) or m.group(2)).upper() for m in found if m}


def _set_overrides(parameters: Any, overrides: Sequence[tuple[str, str]]) -> Any:
    """Set an array of llama_model_tensor_override: (pattern, type) pairs, ended by a null pattern.

    Returns the array, which must stay alive until llama.cpp has read it.
    """
    if not overrides:
        return None
    array = (lib.llama_model_tensor_override * (len(overrides) + 1))()
    for slot, (pattern, type_name) in zip(array, overrides, strict=False):
        slot.pattern, slot.type = pattern.encode(), TYPE_IDS[type_name]
    parameters.tt_overrides = array
    return array


def _set_imatrix(parameters: Any, request: TypeRequest) -> Any:
    """Set an array of llama_model_imatrix_data: (name, data, size) each, ended by a null name.

    Returns the array, which must stay alive until llama.cpp has read it.
    """
    if not request.imatrix:
        return None
    array = (lib.llama_model_imatrix_data * (len(request.imatrix) + 1))()
    for slot, (name, values) in zip(array, request.imatrix.items(), strict=False):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters.imatrix = array
    return array


class _Capture:
    """Collects llama.cpp's log until `release`, which installs the former log callback again."""

    def __init__(self) -> None:
        self.text = ""
        self._former = (ctypes.c_void_p(), ctypes.c_void_p())
        get = c_function("llama_log_get", None, ctypes.c_void_p, ctypes.c_void_p)
        get(ctypes.addressof(self._former[0]), ctypes.addressof(self._former[1]))
        self._callback = lib.llama_log_callback(self._receive)
        self._set(ctypes.cast(self._callback, ctypes.c_void_p), None)

    def _receive(self, level: int, text: bytes, user_data: object) -> None:
        self.text += text.decode("utf-8", "replace")

    def release(self) -> None:
        self._set(*self._former)

    def _set(self, callback: Any, user_data: Any) -> None:
        c_function("llama_log_set", None, ctypes.c_void_p, ctypes.c_void_p)(callback, user_data)

    def reason(self) -> str:
        """The last line that contains a word for an error; '' when there is none."""
        words = ("error", "failed", "invalid", "requires", "missing")
        found = [line for line in self.text.splitlines() if any(w in line.lower() for w in words)]
        return found[-1].strip() if found else ""
