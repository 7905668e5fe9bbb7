"""Sees every matrix multiplication of a decode call: the weight's name and its input activations.

Why it exists: importance matrices need the activations that enter each weight, and llama.cpp hands
them out only through a callback for each graph node. Flows in: a function that takes a weight's
name and its input activations, float32 of shape (n_tokens, n_columns). Flows out: an `Observer`,
whose `callback` is the `observer` of Context. The callback reads C structs whose layout must be
that of the installed library, so `check_layout` first compares the layout with tensors that the
library makes. Activations are read from host memory, so n_gpu_layers must be 0. Not here: what is
done with the activations (converters/imatrix.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_agent.llama.binding import c_function, lib
from edge_agent.llama.ggml import TYPE_IDS

Receive = Callable[[str, NDArray[np.float32]], None]

MIN_TOKENS = 16
"""Smaller batches are left out, as llama-imatrix leaves them out, so that the sums are equal."""
_F32 = TYPE_IDS["F32"]


class _Tensor(ctypes.Structure):
    """struct ggml_tensor (ggml.h): GGML_MAX_DIMS 4, GGML_MAX_OP_PARAMS 64, GGML_MAX_SRC 10."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class _InitParameters(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@cache
def check_layout() -> int:
    """The number of ggml's operation MUL_MAT.

    Raises RuntimeError when the library lays struct ggml_tensor out differently from `_Tensor`.
    """
    init = c_function("ggml_init", ctypes.c_void_p, _InitParameters)
    free = c_function("ggml_free", None, ctypes.c_void_p)
    tensor = ctypes.POINTER(_Tensor)
    new = c_function(
        "ggml_new_tensor_2d", tensor, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    )
    multiply = c_function("ggml_mul_mat", tensor, ctypes.c_void_p, tensor, tensor)
    set_name = c_function("ggml_set_name", tensor, tensor, ctypes.c_char_p)
    op_name = c_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    context = init(_InitParameters(1 << 20, None, False))
    try:
        weight, given = new(context, _F32, 32, 3), new(context, _F32, 32, 5)
        set_name(weight, b"layout.weight")
        product = multiply(context, weight, given).contents
        address = ctypes.addressof(given.contents)
        seen = (
            tuple(weight.contents.ne) == (32, 3, 1, 1),
            tuple(weight.contents.nb[:2]) == (4, 128),
            weight.contents.name == b"layout.weight",
            tuple(product.ne) == (3, 5, 1, 1),
            op_name(product.op) == b"MUL_MAT",
            ctypes.addressof(product.src[1].contents) == address,
            bool(weight.contents.data),
        )
        if not all(seen):
            raise RuntimeError(
                f"this libggml lays its tensors out differently ({seen}): install the"
                " llama-cpp-python of the lock"
            )
        return int(product.op)
    finally:
        free(context)


class Observer:
    """Passes activations to `receive`. Give `callback` to Context as its `observer`, and keep this
    object for as long as the context exists."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._mul_mat = check_layout()
        self.failure: Exception | None = None
        """The exception that `receive` raised. It is kept, because Python cannot raise an exception
        through llama.cpp's C code; the caller looks here after each decode call."""
        self.callback = lib.ggml_backend_sched_eval_callback(self._see)

    def _see(self, address: int, is_question: bool, user_data: object) -> bool:
        node = _Tensor.from_address(address)
        if node.op != self._mul_mat:
            return not is_question
        weight, given = node.src[0].contents, node.src[1].contents
        name = weight.name.decode("ascii", "replace")
        is_wanted = name.startswith("blk.") and given.ne[1] >= MIN_TOKENS and given.type == _F32
        if is_question:
            return bool(is_wanted)
        try:
            self._receive(name, _rows(given))
        except Exception as error:
            self.failure = error
            return False
        return True


def _rows(tensor: _Tensor) -> NDArray[np.float32]:
    """The tensor's memory as (n_tokens, n_columns), without a copy."""
    n_columns, n_tokens = tensor.ne[0], tensor.ne[1]
    stride = tensor.nb[1] // 4
    flat = np.ctypeslib.as_array(
        ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float)), (n_tokens * stride,)
    )
    return flat.reshape(n_tokens, stride)[:, :n_columns]
