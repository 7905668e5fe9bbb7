"""Small safetensors files of float32 arrays, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from converters.output_file import OutputFile
from converters.safetensors_file import pack_header


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a complete file of float32 arrays or none. Raises ConversionError."""
    head, starts = pack_header({n: ("F32", a.shape) for n, a in arrays.items()}, {"format": "pt"})
    with OutputFile(path) as output:
        output.write_at(0, head)
        for name, array in arrays.items():
            output.write_at(starts[name], np.ascontiguousarray(array, "<f4").tobytes())
