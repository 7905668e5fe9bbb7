"""Writes a GGUF model file: llama.cpp plans the types, then the data is written in slabs.

The last step of every conversion (hf, quantize, merge). Flows in: Metadata, rows by tensor name,
the requested types. Flows out: the complete file or none, and a Written summary. Not here: where
metadata and rows come from.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from converters.gguf_container import Metadata, TensorSpec, pack_head, padded
from converters.output_file import OutputFile
from converters.quantizer import How, Quantizer, TensorJob
from converters.rows import FLOAT_TYPES, PackedRows, Rows
from edge_agent.errors import ConversionError, ModelFormatError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama import ggml
from edge_agent.llama.type_plan import FILE_TYPES, TypeRequest, plan_types

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION (ggml.h)."""


@dataclass(frozen=True)
class SourceTensor:
    """One tensor to write. `shape` is outermost first; `rows` contain the same elements."""

    name: str
    shape: tuple[int, ...]
    rows: Rows

    @property
    def n_elements(self) -> int:
        return self.rows.n_rows * self.rows.n_columns

    def spec(self, type_name: str) -> TensorSpec:
        """The tensor as it will be in the file with this type."""
        n_bytes = self.rows.n_rows * ggml.row_bytes(type_name, self.rows.n_columns)
        return TensorSpec(self.name, type_name, self.shape, n_bytes)


@dataclass(frozen=True)
class Written:
    """What was written. `types` counts tensors by type name."""

    path: Path
    file_bytes: int
    n_params: int
    file_type: str
    types: dict[str, int]
    bits_per_weight: float
    peak_rss_bytes: int


def write_model(
    path: Path,
    metadata: Metadata,
    tensors: Sequence[SourceTensor],
    request: TypeRequest,
    how: How,
) -> Written:
    """Write `tensors` to `path` with the types that llama.cpp's quantizer would choose.

    Raises ConversionError; `path` is then unchanged.

    Example: `write_model(path, *hf_to_gguf.load(directory), TypeRequest("Q8_0"), How())`
    """
    metadata = Metadata(metadata)
    metadata.put("u32", "general.quantization_version", QUANTIZATION_VERSION)
    metadata.put("u32", "general.file_type", FILE_TYPES[request.file_type])
    by_name = {tensor.name: tensor for tensor in tensors}
    types = planned_types(metadata, tensors, request)
    specs = [by_name[name].spec(type_name) for name, type_name in types.items()]
    head, starts = pack_head(metadata, specs)
    if request.imatrix and not set(request.imatrix) & set(by_name):
        raise ConversionError(
            "the importance matrix has no entry for any tensor of this model",
            f"it has {len(request.imatrix)} for others, such as {min(request.imatrix)}",
            "compute it with this very model: edge-convert imatrix",
        )
    jobs = [_job(by_name[spec.name], spec, starts, request) for spec in specs]
    if not how.allow_requantize:
        _refuse_requantizing(jobs)
    _check_readable(metadata, specs)
    with OutputFile(path) as output:
        output.reserve(starts[specs[-1].name] + padded(specs[-1].n_bytes))
        output.write_at(0, head)
        Quantizer(output, how).run(jobs)
    return _written(path, specs, request.file_type)


def planned_types(
    metadata: Metadata, tensors: Sequence[SourceTensor], request: TypeRequest
) -> dict[str, str]:
    """Type of each tensor, in the order in which llama.cpp would write them. Raises
    ConversionError."""
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as scratch:
        header = Path(scratch) / "header.gguf"
        write_hollow(header, network_keys(metadata), [tensor.spec("F32") for tensor in tensors])
        types = plan_types(header, request)
    if set(types) != {tensor.name for tensor in tensors}:
        raise RuntimeError("llama.cpp planned other tensors than it was asked for")
    return types


def _check_readable(metadata: Metadata, specs: Sequence[TensorSpec]) -> None:
    """Raise ConversionError, before writing, for a file that the daemon would refuse.

    For example, two equal tokens end llama.cpp.
    """
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as scratch:
        header = Path(scratch) / "header.gguf"
        write_hollow(header, metadata, specs)
        try:
            read_gguf(header)
        except ModelFormatError as error:
            raise ConversionError(
                "no usable file can be made of this model", error.why, "mend it at its source"
            ) from None


def write_hollow(path: Path, metadata: Metadata, specs: Sequence[TensorSpec]) -> None:
    """A GGUF file whose tensor data is a hole: enough to ask llama.cpp about it."""
    head, starts = pack_head(metadata, specs)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(starts[specs[-1].name] + padded(specs[-1].n_bytes))


def network_keys(metadata: Metadata) -> Metadata:
    """The keys without the tokenizer, which does not influence the types."""
    return Metadata({k: v for k, v in metadata.items() if not k.startswith("tokenizer.")})


def _job(
    tensor: SourceTensor, spec: TensorSpec, starts: dict[str, int], request: TypeRequest
) -> TensorJob:
    importance = request.imatrix.get(tensor.name)
    if importance is not None and importance.size != tensor.rows.n_columns:
        raise ConversionError(
            f"the imatrix has {importance.size} values for {tensor.name}",
            f"the tensor has rows of {tensor.rows.n_columns}",
            "compute the imatrix with this very model",
        )
    if importance is None and ggml.requires_imatrix(spec.type):
        raise ConversionError(
            f"{tensor.name} cannot become {spec.type}",
            "so few bits need an importance matrix, and there is none for this tensor",
            "run `edge-convert imatrix` and give its file with --imatrix",
        )
    return TensorJob(tensor.rows, spec.type, starts[tensor.name], importance)


def _refuse_requantizing(jobs: Sequence[TensorJob]) -> None:
    for job in jobs:
        rows = job.rows
        if isinstance(rows, PackedRows) and rows.type not in (*FLOAT_TYPES, job.type):
            raise ConversionError(
                f"{rows.name} is {rows.type} already and would become {job.type}",
                "what the first quantization lost stays lost, and the second loses more",
                "quantize the original in f32, f16 or bf16, or say --allow-requantize",
            )


def _written(path: Path, specs: Sequence[TensorSpec], file_type: str) -> Written:
    types: dict[str, int] = {}
    for spec in specs:
        types[spec.type] = types.get(spec.type, 0) + 1
    tensor_bytes = sum(spec.n_bytes for spec in specs)
    n_params = sum(prod(spec.shape) for spec in specs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # getrusage(2): kilobytes
    bits = 8 * tensor_bytes / n_params
    return Written(path, path.stat().st_size, n_params, file_type, types, bits, peak)
