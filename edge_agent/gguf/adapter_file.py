"""LoRA adapters as GGUF files: each one is checked here before llama.cpp loads it.

Why it exists: llama.cpp barely checks adapters. Of twelve bad adapters that were tried, eight ended
the process that loaded them, three were accepted silently (a NaN, an infinite alpha, no tensor at
all), and one made for another model produced nonsense. So this module compares the names and the
dimensions of an adapter's tensors with those of its base and looks at every value, before llama.cpp
is given the path. Flows in: a path, or an open file, and the base's GgufFile. Flows out: an
`AdapterInfo`, or AdapterRefused. The module imports no NumPy because the front process checks
adapters too. File layout: llama.cpp's llama-adapter.cpp. Not here: writing adapters
(adapt/trainer/adapter_writer.py), and whether an adapter answers well (adapt/gate/).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge_agent.errors import AdapterRefused
from edge_agent.gguf.cursor import Malformed
from edge_agent.gguf.header import Header, TensorInfo, Value, parse_header
from edge_agent.gguf.model_file import GgufFile
from edge_agent.gguf.value_scan import check_values
from edge_agent.regular_file import open_regular, sha256_of_stream

LORA_A, LORA_B = ".lora_a", ".lora_b"
MAX_FILE_BYTES = 1 << 30
"""r 64 on every linear layer of a 1B model is 420 MB."""
MAX_ALPHA = 65536.0

BASE_SHA256_KEY, BASE_QUANTIZATION_KEY = "edge_agent.base.sha256", "edge_agent.base.quantization"
TOKENIZER_KEY, TEMPLATE_KEY = "edge_agent.tokenizer.sha256", "edge_agent.template.sha256"
NAME_KEY, SETTINGS_KEY = "edge_agent.adapter.name", "edge_agent.adapter.settings"
SCORES_KEY = "edge_agent.adapter.scores"


@dataclass(frozen=True)
class AdapterInfo:
    """What an accepted adapter file says. A field is None when the file lacks that key, as in an
    adapter that another program wrote."""

    name: str
    sha256: str
    file_bytes: int
    architecture: str
    lora_alpha: float
    weights: tuple[str, ...]
    """Names of the base's tensors that the adapter changes, in file order."""
    n_params: int
    base_sha256: str | None = None
    tokenizer_sha256: str | None = None
    template_sha256: str | None = None
    settings: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the blocks (layers) that the adapter changes, ascending."""
        parts = (name.split(".") for name in self.weights)
        return tuple(sorted({int(p[1]) for p in parts if p[0] == "blk" and p[1].isdecimal()}))


def check_adapter(path: Path, base: GgufFile, base_sha256: str | None) -> AdapterInfo:
    """Read the whole adapter file and compare it with its base; memory stays below a few MB.

    `base_sha256` is the SHA-256 of the base's file; with None, the hash that the adapter names is
    not compared. Raises AdapterRefused, whose `why` says what is wrong with this file.

        info = check_adapter(Path("mine.gguf"), read_gguf(model_path), base_sha256=None)
        info.layers    # (14, 15, 16, 17)
    """
    try:
        with open_regular(path, follow_links=False) as stream:
            return check_open(stream, path, base, base_sha256)
    except Malformed as error:
        raise _refusal(path, base, str(error)) from None
    except OSError as error:
        raise _refusal(path, base, error.strerror or str(error)) from None


def check_open(
    stream: BinaryIO, path: Path, base: GgufFile, base_sha256: str | None
) -> AdapterInfo:
    """`check_adapter` for a file that is open already.

    A caller that goes on to load the open file loads the bytes that were checked, even if somebody
    replaces the path meanwhile. `path` appears in messages only. Raises AdapterRefused, and OSError
    when the disk fails.
    """
    try:
        return _info(stream, path, base, base_sha256)
    except Malformed as error:
        raise _refusal(path, base, str(error)) from None


def _info(stream: BinaryIO, path: Path, base: GgufFile, base_sha256: str | None) -> AdapterInfo:
    """Raises Malformed, OSError."""
    file_bytes = os.fstat(stream.fileno()).st_size
    if file_bytes > MAX_FILE_BYTES:
        raise Malformed(f"it has {file_bytes} bytes, at most {MAX_FILE_BYTES} are accepted")
    stream.seek(0)
    header = parse_header(stream, file_bytes)
    _check_kind(header, base)
    check_base(header, base_sha256)
    alpha = _alpha(header)
    pairs = _pairs(header, base)
    _check_all_values(stream, header, pairs)
    stream.seek(0)
    sha256, _ = sha256_of_stream(stream)
    return AdapterInfo(
        name=_text(header, NAME_KEY) or _text(header, "general.name") or path.stem,
        sha256=sha256,
        file_bytes=file_bytes,
        architecture=base.architecture,
        lora_alpha=alpha,
        weights=tuple(pairs),
        n_params=sum(tensor.n_elements for tensor in header.tensors),
        base_sha256=_text(header, BASE_SHA256_KEY),
        tokenizer_sha256=_text(header, TOKENIZER_KEY),
        template_sha256=_text(header, TEMPLATE_KEY),
        settings=_document(header, SETTINGS_KEY),
        scores=_document(header, SCORES_KEY),
    )


def _check_kind(header: Header, base: GgufFile) -> None:
    kind = header.metadata.get("general.type")
    if kind != "adapter":
        raise Malformed(f"general.type is {kind!r}: it is not an adapter")
    architecture = header.metadata.get("general.architecture")
    if architecture != base.architecture:
        raise Malformed(f"it is for {architecture!r} and the model is {base.architecture!r}")
    method = header.metadata.get("adapter.type")
    if method != "lora":
        raise Malformed(f"adapter.type is {method!r}, and only 'lora' is known")
    activated = next((key for key in header.metadata if key.startswith("adapter.alora.")), None)
    if activated is not None:
        raise Malformed(f"it has {activated}: an activated LoRA works behind certain tokens only")


def check_base(header: Header, base_sha256: str | None) -> None:
    """Refuse an adapter that was trained on another quantized file. Raises Malformed.

    Only an adapter that names its base's quantization names a GGUF file. An adapter converted
    against a checkpoint directory names the directory's hash and no quantization, so its hash
    cannot be compared with `base_sha256` (hexadecimal).
    """
    named = _text(header, BASE_SHA256_KEY)
    if named is None or base_sha256 is None or BASE_QUANTIZATION_KEY not in header.metadata:
        return
    if named != base_sha256:
        raise Malformed(f"it was made for the file with SHA-256 {named}, not {base_sha256}")


def _alpha(header: Header) -> float:
    """The adapter's lora_alpha. Refuses 0 and a missing key: llama.cpp reads a missing key as 0,
    and then applies the adapter without the scale alpha / r."""
    key = "adapter.lora.alpha"
    value = header.metadata.get(key)
    if value is None:
        raise Malformed(f"{key} is missing")
    if not isinstance(value, float) or header.types[key] != "f32":
        raise Malformed(f"{key} is a {header.types[key]} and not an f32")
    if not math.isfinite(value) or not 0 < value <= MAX_ALPHA:
        raise Malformed(f"{key} is {value}, not above 0 and at most {MAX_ALPHA:.0f}")
    return value


def _pairs(header: Header, base: GgufFile) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Name of each changed weight -> its matrices (A, B), compared with the base's weight."""
    if not header.tensors:
        raise Malformed("it holds no tensor")
    sides = {tensor.name: tensor for tensor in header.tensors}
    weights = {tensor.name: tensor for tensor in base.tensors}
    pairs = {}
    for tensor in header.tensors:
        name = _weight_name(tensor)
        weight = weights.get(name)
        if weight is None:
            raise Malformed(f"{tensor.name}: the model has no tensor {name}")
        a, b = sides.get(name + LORA_A), sides.get(name + LORA_B)
        if a is None or b is None:
            raise Malformed(f"{tensor.name} has no partner {name}{LORA_A if a is None else LORA_B}")
        _check_pair(weight, a, b)
        pairs[name] = (a, b)
    return pairs


def _weight_name(tensor: TensorInfo) -> str:
    name = tensor.name.removesuffix(LORA_A).removesuffix(LORA_B)
    if name == tensor.name:
        if "norm" in name:
            raise Malformed(f"{name} is a norm, which llama.cpp would leave out without a word")
        raise Malformed(f"{name} is not a LoRA matrix ({LORA_A} or {LORA_B})")
    if name.startswith("token_embd."):
        # llama.cpp expects other shapes for the embedding's matrices; where the head is tied to
        # the embedding, the head's matrix product with them aborts the process.
        raise Malformed(f"{tensor.name} changes the token embedding, which is not supported")
    return name


def _check_pair(weight: TensorInfo, a: TensorInfo, b: TensorInfo) -> None:
    """Shapes are innermost first: a (inputs, r), b (r, outputs), weight (inputs, outputs)."""
    for tensor in (a, b):
        if tensor.type not in ("F32", "F16"):
            raise Malformed(f"{tensor.name} is {tensor.type}, and only F32 and F16 are accepted")
        if len(tensor.shape) != 2:
            raise Malformed(f"{tensor.name} has {len(tensor.shape)} dimensions and not 2")
    if len(weight.shape) != 2:
        raise Malformed(f"{a.name} belongs to {weight.name}, which is not a matrix")
    (n_in, n_out), r = weight.shape, a.shape[1]
    if a.shape[0] != n_in:
        raise Malformed(f"{a.name} takes {a.shape[0]} inputs and the weight {n_in}")
    if b.shape[1] != n_out:
        raise Malformed(f"{b.name} gives {b.shape[1]} outputs and the weight {n_out}")
    if b.shape[0] != r:
        raise Malformed(f"{a.name} has r {r} and {b.name} has r {b.shape[0]}")
    if r > min(n_in, n_out):
        raise Malformed(f"{a.name} has r {r}, more than the rank of a weight of {n_in} x {n_out}")


def _check_all_values(
    stream: BinaryIO, header: Header, pairs: Mapping[str, tuple[TensorInfo, TensorInfo]]
) -> None:
    """Refuse values that cannot be computed with, and an adapter whose every product B A is 0."""
    filled = {
        tensor.name for tensor in header.tensors if check_values(stream, header.data_start, tensor)
    }
    if not any(a.name in filled and b.name in filled for a, b in pairs.values()):
        raise Malformed("it changes nothing: one side of every pair is 0")


def _text(header: Header, key: str) -> str | None:
    value: Value | None = header.metadata.get(key)
    return value if isinstance(value, str) else None


def _document(header: Header, key: str) -> dict[str, Any] | None:
    """The JSON object stored under one of our keys; None when the text is not a JSON object."""
    try:
        found = json.loads(_text(header, key) or "null")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refusal(path: Path, base: GgufFile, why: str) -> AdapterRefused:
    return AdapterRefused(
        f"cannot use the adapter {path} with {base.path.name}",
        why,
        "give a GGUF LoRA adapter that was made for this very model file",
    )
