"""Small GGUF files that contain arrays and no model: adapters and importance matrices.

Flows in: a path, and the function that makes the error. Flows out: metadata, and every tensor as
float32. Not here: whole models, which are read row by row (rows.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.gguf_container import Metadata, read_pairs
from converters.rows import F32, gguf_rows
from converters.safetensors_file import map_file
from edge_agent.errors import ConversionError
from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import parse_header

Refuse = Callable[[Path, str], ConversionError]


def read_arrays(path: Path, refuse: Refuse) -> tuple[Metadata, dict[str, F32]]:
    """Metadata and arrays (n_rows, n_columns) of a file.

    Raises the error that `refuse` makes of (path, reason), and ConversionError that names the
    tensor when one is not finite.
    """
    try:
        with path.open("rb") as stream:
            header = parse_header(stream, path.stat().st_size)
            metadata = read_pairs(stream)
    except Malformed as error:
        raise refuse(path, str(error)) from None
    except OSError as error:
        raise refuse(path, error.strerror or str(error)) from None
    mapped, arrays = map_file(path), {}
    for tensor in header.tensors:
        rows = gguf_rows(tensor, mapped, header.data_start)
        arrays[tensor.name] = np.empty((rows.n_rows, rows.n_columns), np.float32)
        rows.read(0, arrays[tensor.name])
    return metadata, arrays
