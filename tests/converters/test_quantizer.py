"""What is written is finite: a weight that a type cannot hold is refused by its tensor's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convert_runner import convert
from converted import write
from safetensors_writer import write_arrays
from tiny_checkpoint import arrays_of, write_checkpoint

from converters import quantize
from converters.gguf_output import write_model
from converters.quantizer import How
from edge_agent.errors import ConversionError
from edge_agent.llama.type_plan import TypeRequest

NAME = "model.layers.0.mlp.down_proj.weight"


def with_weight(directory: Path, value: float) -> Path:
    write_checkpoint(directory, "qwen2")
    arrays = arrays_of(directory)
    arrays[NAME][3, 5] = value
    write_arrays(directory / "model.safetensors", arrays)
    return directory


CASES = [("F16", 1e5), ("Q8_0", 1e7), ("Q4_0", 1e6), ("Q5_1", 1e7), ("Q4_K_M", 1e8), ("Q6_K", 1e9),
         ("IQ4_NL", 1e8), ("IQ4_XS", 1e9), ("BF16", 3.4e38)]  # fmt: skip


@pytest.mark.parametrize(("file_type", "value"), CASES)
def test_a_weight_that_a_type_cannot_hold_is_refused(
    tmp_path: Path, file_type: str, value: float
) -> None:
    hf = with_weight(tmp_path / "hf", value)
    with pytest.raises(ConversionError) as caught:
        write(hf, tmp_path / "m.gguf", file_type)
    assert "ffn_down.weight" in caught.value.what or NAME in caught.value.what
    assert f"{value:.3g}" in caught.value.why
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("file_type", "value"), [("F16", 6e4), ("BF16", 1e30), ("F32", 3e38),
                                                  ("Q8_0", 1e5)])  # fmt: skip
def test_a_weight_that_a_type_holds_is_written(
    tmp_path: Path, file_type: str, value: float
) -> None:
    write(with_weight(tmp_path / "hf", value), tmp_path / "m.gguf", file_type)
    assert (tmp_path / "m.gguf").exists()


def test_quantizing_again_and_a_directory_in_f16_are_checked_too(tmp_path: Path) -> None:
    hf = with_weight(tmp_path / "hf", 1e5)
    write(hf, tmp_path / "f32.gguf", "F32")
    metadata, tensors = quantize.load(tmp_path / "f32.gguf")
    with pytest.raises(ConversionError, match="does not fit into F16"):
        write_model(tmp_path / "m.gguf", metadata, tensors, TypeRequest("F16"), How())
    done = convert("to-hf", str(tmp_path / "f32.gguf"), "-o", str(tmp_path / "d"), "--dtype", "f16")
    assert (done.code, "does not fit into F16" in done.err) == (1, True)
    assert not (tmp_path / "d").exists()


def test_packed_blocks_that_are_not_finite_are_not_copied(tmp_path: Path) -> None:
    write(with_weight(tmp_path / "hf", 1.0), tmp_path / "q.gguf", "Q8_0")
    data = bytearray((tmp_path / "q.gguf").read_bytes())
    data[-34 * 8 : -34 * 8 + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "q.gguf").write_bytes(data)
    done = convert("quantize", str(tmp_path / "q.gguf"), "-o", str(tmp_path / "m.gguf"))
    assert done.code == 1
    assert "NaN or infinity" in done.err or "does not fit" in done.err
