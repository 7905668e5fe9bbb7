"""Weights that stay packed: a matrix is unpacked a tile at a time, used, and forgotten.

Why it exists: the weights of a 1B model take 1 GB packed and 4 GB as float32; a board has 4 GB in
all. Flows in: a checked GGUF file, mapped. Flows out: `PackedMatrix`, which multiplies from either
side, and small vectors. Unpacking once per pass and multiplying with BLAS is 7 to 45 times faster
than ggml's own backward, which unpacks once per token (measured, shared/anchors/lora.md 4.2).
Threads share the rows of a tile; ggml's row functions run without the interpreter lock. Not here:
which products are needed (decoder.py), which matrices are worth keeping unpacked
(kept_activations.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Compute, Scratch, blas_threads
from edge_agent.adapt.trainer.decoder.elementwise import add
from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import GgufFile, TensorInfo, read_gguf
from edge_agent.llama import ggml

TILE_BYTES = 32 << 20
"""Of one unpacked tile: every matrix of a 1B model is one. Smaller ones cost: at 4 MiB products
with 1152 x 6912 are a fifth slower, and their parts must be added up in memory of their own."""
HEAD_TILE_BYTES = 4 << 20
"""Of a tile of the head, whose logits take memory too; larger ones are no faster."""
SHARE_ELEMENTS = 1 << 18
"""Fewer elements than these are unpacked by one thread."""


class PackedMatrix:
    """W (n_out, n_in) in the packed rows of a file; products are in `compute`'s dtype."""

    def __init__(
        self,
        name: str,
        type_name: str,
        rows: NDArray[np.uint8],
        n_in: int,
        compute: Compute,
        buffers: Buffers,
    ) -> None:
        self.name = name
        self.type = type_name
        self.n_in = n_in
        self.n_out = len(rows)
        self.compute = compute
        self._rows = rows
        self._buffers = buffers
        self._whole: Array | None = None

    @property
    def unpacked_bytes(self) -> int:
        return self.n_out * self.n_in * self.compute.dtype.itemsize

    @property
    def is_kept(self) -> bool:
        return self._whole is not None

    def keep(self) -> None:
        """Unpack the whole matrix once and keep it, when the memory plan allows."""
        if self._whole is None:
            whole = self.compute.empty(self.n_out, self.n_in)
            step = self.tile_rows(TILE_BYTES)
            for first in range(0, self.n_out, step):
                rows = slice(first, min(first + step, self.n_out))
                self._unpack(self._rows[rows], whole[rows])
            self._whole = whole

    def forget(self) -> None:
        """Give the unpacked copy back."""
        self._whole = None

    def tile_rows(self, tile_bytes: int) -> int:
        """Rows of one tile of at most so many bytes."""
        return min(self.n_out, max(1, tile_bytes // (self.compute.dtype.itemsize * self.n_in)))

    def tiles(self) -> Iterator[tuple[slice, Array]]:
        """(rows, W[rows]) one after the other; a tile is valid until the next."""
        yield from self._tiles(self.n_out if self.is_kept else self.tile_rows(TILE_BYTES))

    def head_tiles(self) -> Iterator[tuple[slice, Array]]:
        """As `tiles`, but of HEAD_TILE_BYTES, kept or not: a product with one is itself large."""
        yield from self._tiles(self.tile_rows(HEAD_TILE_BYTES))

    def _tiles(self, step: int) -> Iterator[tuple[slice, Array]]:
        for first in range(0, self.n_out, step):
            rows = slice(first, min(first + step, self.n_out))
            if self._whole is not None:
                yield rows, self._whole[rows]
                continue
            tile = self._buffers.take("tile", rows.stop - first, self.n_in)
            self._unpack(self._rows[rows], tile)
            yield rows, tile

    def forward(self, x: Array, out: Array) -> None:
        """out (T, n_out) = x W^T for x (T, n_in)."""
        for rows, tile in self.tiles():
            self.compute.matmul(x, tile.T, out=out[:, rows])

    def backward(self, dy: Array, out: Array, *, is_added: bool = False) -> None:
        """out (T, n_in) = dy W for dy (T, n_out): the gradient of x in x W^T. Or added to `out`."""
        for rows, tile in self.tiles():
            if not is_added:
                self.compute.matmul(dy[:, rows], tile, out=out)
            else:
                part = self._buffers.take("product", *out.shape)
                self.compute.matmul(dy[:, rows], tile, out=part)
                add(self.compute, part, to=out)
            is_added = True

    def rows(self, numbers: NDArray[np.int64]) -> Array:
        """Single rows, unpacked: the embeddings of token ids. (n, n_in). Touches no other page."""
        out = self.compute.empty(len(numbers), self.n_in)
        self._unpack(np.ascontiguousarray(self._rows[numbers]), out)
        return out

    def _unpack(self, packed: NDArray[np.uint8], out: Array) -> None:
        """Rows of the file into `out`; by way of the host's float32 where that is another kind."""
        is_direct = self.compute.xp is np and self.compute.dtype == np.float32
        values = out if is_direct else np.empty(out.shape, np.float32)

        def work(rows: slice, scratch: Scratch) -> None:
            ggml.dequantize(self.type, packed[rows], values[rows])

        step = max(SHARE_ELEMENTS // self.n_in, -(-len(packed) // self.compute.n_threads))
        self.compute.share(len(packed), step, work)
        if not is_direct:
            out[:] = self.compute.array(values)


class PackedWeights:
    """Every tensor of a model file by name, mapped."""

    def __init__(
        self, path: Path, dtype: Any = np.float32, *, n_threads: int | None = None, xp: Any = np
    ) -> None:
        """`n_threads`: for all that is not BLAS, as many as BLAS has when None. `xp`: NumPy, or a
        module with its interface whose arrays live elsewhere (CuPy). Raises ModelFormatError.
        """
        self.gguf: GgufFile = read_gguf(path)
        self.compute = Compute(n_threads or blas_threads(), dtype, xp)
        self._tensors = {tensor.name: tensor for tensor in self.gguf.tensors}
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes = np.frombuffer(mapped, np.uint8)
        self._buffers = Buffers(self.compute)
        self._matrices: dict[str, PackedMatrix] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def buffer_bytes(self) -> int:
        """Of tiles, so far."""
        return self._buffers.n_bytes

    def matrix(self, name: str) -> PackedMatrix:
        """One object a name, so that what one user keeps serves all."""
        if name not in self._matrices:
            tensor = self._tensor(name)
            n_in = tensor.shape[0]
            rows = self._data(tensor).reshape(-1, ggml.row_bytes(tensor.type, n_in))
            self._matrices[name] = PackedMatrix(
                name, tensor.type, rows, n_in, self.compute, self._buffers
            )
        return self._matrices[name]

    def vector(self, name: str) -> Array:
        """A norm or a bias, unpacked."""
        tensor = self._tensor(name)
        out = np.empty(tensor.n_elements, np.float32)
        ggml.dequantize(tensor.type, self._data(tensor), out)
        return self.compute.array(out)

    def _data(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        start = self.gguf.data_start + tensor.offset
        return self._bytes[start : start + tensor.n_bytes]

    def _tensor(self, name: str) -> TensorInfo:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelFormatError(
                f"cannot train on {self.gguf.path}",
                f"the tensor {name} is missing",
                "convert or pull the model again",
            )
        return tensor
