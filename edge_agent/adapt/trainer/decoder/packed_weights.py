"""Weights that stay packed: a matrix is unpacked a tile at a time, used, and forgotten.

Why it exists: the weights of a 1B model take 1 GB packed and 4 GB as float32, and a board has 4 GB
in all. Unpacking once per pass and multiplying with BLAS is 7 to 45 times faster than ggml's own
backward, which unpacks once per token (measured). Flows in: the path of a GGUF file. Flows out:
`PackedMatrix` objects, which multiply from either side, and vectors. The file is mapped; threads
share the rows of a tile, because ggml's row functions run without the GIL. Not here: which products
are needed (decoder.py), which matrices are kept unpacked (kept_activations.py).
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
"""Bytes of one unpacked tile. Every block matrix of a 1B model fits into one tile. With tiles of 4
MiB, products with a matrix of 1152 x 6912 are a fifth slower, and backward needs memory to add the
tiles' products."""
HEAD_TILE_BYTES = 4 << 20
"""Bytes of one tile of the head. Its logits take memory too, and larger tiles are no faster."""
SHARE_ELEMENTS = 1 << 18
"""Elements below which one thread unpacks alone."""


class PackedMatrix:
    """A matrix W (n_out, n_in) as the packed rows of a file. Products have `compute`'s dtype."""

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
        """Bytes of the whole matrix in `compute`'s dtype."""
        return self.n_out * self.n_in * self.compute.dtype.itemsize

    @property
    def is_kept(self) -> bool:
        return self._whole is not None

    def keep(self) -> None:
        """Unpack the whole matrix and keep it until `forget`; takes `unpacked_bytes`."""
        if self._whole is None:
            whole = self.compute.empty(self.n_out, self.n_in)
            step = self.tile_rows(TILE_BYTES)
            for first in range(0, self.n_out, step):
                rows = slice(first, min(first + step, self.n_out))
                self._unpack(self._rows[rows], whole[rows])
            self._whole = whole

    def forget(self) -> None:
        """Free the unpacked copy."""
        self._whole = None

    def tile_rows(self, tile_bytes: int) -> int:
        """Number of rows of one tile of at most `tile_bytes`; at least 1."""
        return min(self.n_out, max(1, tile_bytes // (self.compute.dtype.itemsize * self.n_in)))

    def tiles(self) -> Iterator[tuple[slice, Array]]:
        """Yield (rows, W[rows]) for each tile. A tile is valid until the next one is taken."""
        yield from self._tiles(self.n_out if self.is_kept else self.tile_rows(TILE_BYTES))

    def head_tiles(self) -> Iterator[tuple[slice, Array]]:
        """As `tiles`, with HEAD_TILE_BYTES for a tile even when the matrix is kept unpacked,
        because the product with a tile of the head is itself large."""
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
        """Write x W^T to `out` (T, n_out), for x (T, n_in)."""
        for rows, tile in self.tiles():
            self.compute.matmul(x, tile.T, out=out[:, rows])

    def backward(self, dy: Array, out: Array, *, is_added: bool = False) -> None:
        """Write dy W, the gradient of x in x W^T, to `out` (T, n_in), for dy (T, n_out).

        `is_added`: add it to `out` instead.
        """
        for rows, tile in self.tiles():
            if not is_added:
                self.compute.matmul(dy[:, rows], tile, out=out)
            else:
                part = self._buffers.take("product", *out.shape)
                self.compute.matmul(dy[:, rows], tile, out=part)
                add(self.compute, part, to=out)
            is_added = True

    def rows(self, numbers: NDArray[np.int64]) -> Array:
        """The rows `numbers` (n) unpacked, as (n, n_in): the embeddings of token ids. Other rows
        are not read from the file."""
        out = self.compute.empty(len(numbers), self.n_in)
        self._unpack(np.ascontiguousarray(self._rows[numbers]), out)
        return out

    def _unpack(self, packed: NDArray[np.uint8], out: Array) -> None:
        """Unpack rows of the file into `out`; through a float32 array of NumPy where `out` has
        another dtype or another array module."""
        is_direct = self.compute.xp is np and self.compute.dtype == np.float32
        values = out if is_direct else np.empty(out.shape, np.float32)

        def work(rows: slice, scratch: Scratch) -> None:
            ggml.dequantize(self.type, packed[rows], values[rows])

        step = max(SHARE_ELEMENTS // self.n_in, -(-len(packed) // self.compute.n_threads))
        self.compute.share(len(packed), step, work)
        if not is_direct:
            out[:] = self.compute.array(values)


class PackedWeights:
    """The tensors of a model file by name. The file is mapped, so its pages are read when used.

    For example, for x (T, n_in) and out (T, n_out):

        weights = PackedWeights(path)
        weights.matrix("blk.0.attn_q.weight").forward(x, out)
    """

    def __init__(
        self, path: Path, dtype: Any = np.float32, *, n_threads: int | None = None, xp: Any = np
    ) -> None:
        """`n_threads`: threads of all work but BLAS; None: as many as BLAS has. `xp`: NumPy, or a
        module with its interface whose arrays live elsewhere (CuPy).

        Raises ModelFormatError when the file is refused, here and for a missing tensor later.
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
        """Bytes of the buffers for tiles so far."""
        return self._buffers.n_bytes

    def matrix(self, name: str) -> PackedMatrix:
        """The matrix `name`. All callers get the same object, so that a matrix that one caller
        keeps unpacked serves all."""
        if name not in self._matrices:
            tensor = self._tensor(name)
            n_in = tensor.shape[0]
            rows = self._data(tensor).reshape(-1, ggml.row_bytes(tensor.type, n_in))
            self._matrices[name] = PackedMatrix(
                name, tensor.type, rows, n_in, self.compute, self._buffers
            )
        return self._matrices[name]

    def vector(self, name: str) -> Array:
        """A norm or a bias, unpacked: (n_elements)."""
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
