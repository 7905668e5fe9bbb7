"""Are our GGUF files those that llama.cpp's own converter and quantizer write, byte for byte?

For each model: `convert_hf_to_gguf.py` at a lossless type, then `llama_model_quantize` of the
installed library, against `edge-convert hf`. Compared: tensor names, types, bytes, and every key.
Allowed to differ: general.name, basename, size_label, tags (guessed from a directory's name) and
Gemma's tokenizer keys (llama.cpp writes byte-level BPE when there is only tokenizer.json).

llama.cpp's converter needs torch and transformers: give it an environment of its own, and the
source tree of the release that llama-cpp-python contains.

    .venv/bin/python benchmarks/convert_equal.py --python HOSTVENV/bin/python --llama-cpp SRC \\
        --gemma gemma-hf --llama smol-hf
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from convert_checkpoints import family, qwen_tokenizer, write_random, write_tokenizer

from converters import hf_to_gguf
from converters.gguf_container import Metadata, read_metadata
from converters.gguf_output import write_model
from converters.quantizer import How
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.binding import lib
from edge_agent.llama.type_plan import FILE_TYPES, TypeRequest, _set_imatrix

ALLOWED = {f"general.{key}" for key in ("name", "basename", "size_label", "tags", "version")}
ALLOWED |= {"general.finetune", "general.organization"}
TYPES = ("Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "IQ4_NL")
QWEN_SHAPE = {
    **{"hidden_size": 512, "intermediate_size": 1216, "num_hidden_layers": 8},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 151936},
    **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0},
    **{"hidden_act": "silu"},
}


@dataclass(frozen=True)
class Subject:
    name: str
    directory: Path
    lossless: str
    own_tokenizer: bool = False


def subjects(arguments: argparse.Namespace, scratch: Path) -> Iterator[Subject]:
    """The five models that are compared."""
    if arguments.gemma:
        yield Subject("gemma3", arguments.gemma, "f32", own_tokenizer=True)
    if arguments.llama:
        yield Subject("llama", arguments.llama, "f32")
    tokenizer = qwen_tokenizer(arguments.llama_cpp / "models/ggml-vocab-qwen2.gguf")
    for name, architecture, tied in (
        ("qwen2-tied", "qwen2", True),
        ("qwen2-untied", "qwen2", False),
        ("qwen3", "qwen3", True),
    ):
        directory = scratch / name
        config = {**QWEN_SHAPE, "tie_word_embeddings": tied}
        if architecture == "qwen3":
            config["head_dim"] = 64
        write_random(directory, family(architecture), config)
        write_tokenizer(directory, tokenizer)
        yield Subject(name, directory, "bf16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="has torch and transformers")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--gemma", type=Path, help="a Gemma 3 directory (edge-convert to-hf)")
    parser.add_argument("--llama", type=Path, help="a Llama directory (edge-convert to-hf)")
    arguments = parser.parse_args()
    rows = []
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as name:
        for subject in subjects(arguments, Path(name)):
            for row in compare(subject, arguments, Path(name)):
                rows.append(row)
                print(f"{row['model']:14} {row['type']:8} {row['imatrix']!s:6} {row['verdict']}")
    print(json.dumps({"rows": rows, "equal": all(row["equal"] for row in rows)}))
    return 0 if all(row["equal"] for row in rows) else 1


def compare(
    subject: Subject, arguments: argparse.Namespace, scratch: Path
) -> Iterator[dict[str, Any]]:
    lossless = scratch / f"{subject.name}.{subject.lossless}.gguf"
    convert_theirs(subject, lossless, arguments)
    metadata, tensors = hf_to_gguf.load(subject.directory)
    ours = scratch / "ours.gguf"
    write_model(ours, metadata, tensors, TypeRequest(subject.lossless.upper()), How())
    yield verdict(subject, subject.lossless, False, ours, lossless)
    importance = made_up_importance(lossless)
    for file_type in TYPES:
        for imatrix in ({}, importance):
            request = TypeRequest(file_type, imatrix=imatrix)
            theirs = scratch / "theirs.gguf"
            quantize_theirs(lossless, theirs, request)
            write_model(ours, metadata, tensors, request, How())
            yield verdict(subject, file_type, bool(imatrix), ours, theirs)
    for path in (lossless, ours, theirs):
        path.unlink()


def convert_theirs(subject: Subject, path: Path, arguments: argparse.Namespace) -> None:
    script = arguments.llama_cpp / "convert_hf_to_gguf.py"
    command = [arguments.python, script, subject.directory, "--outfile", path]
    environment = {**os.environ, "PYTHONPATH": str(arguments.llama_cpp / "gguf-py")}
    done = subprocess.run(
        [*map(str, command), "--outtype", subject.lossless],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"llama.cpp's converter failed:\n{done.stderr[-3000:]}")


def quantize_theirs(source: Path, target: Path, request: TypeRequest) -> None:
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[request.file_type]
    kept = _set_imatrix(parameters, request)
    code = lib.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    del kept
    if code:
        sys.exit(f"llama_model_quantize failed for {source}: {code}")


def made_up_importance(path: Path) -> dict[str, np.ndarray]:
    """A positive weight for each column of every matrix in a block; the values do not matter
    here."""
    rng = np.random.default_rng(7)
    return {
        tensor.name: (rng.random(tensor.shape[0], np.float32) + np.float32(0.01)) ** 2
        for tensor in read_gguf(path).tensors
        if len(tensor.shape) == 2 and tensor.name.startswith("blk.")
    }


def verdict(
    subject: Subject, file_type: str, imatrix: bool, ours: Path, theirs: Path
) -> dict[str, Any]:
    problems = [*tensor_problems(ours, theirs), *key_problems(subject, ours, theirs)]
    text = "equal" if not problems else f"{len(problems)} differences: {'; '.join(problems[:4])}"
    return {
        **{"model": subject.name, "type": file_type, "imatrix": imatrix},
        **{"equal": not problems, "verdict": text},
    }


def tensor_problems(ours: Path, theirs: Path) -> Iterator[str]:
    left, right = read_gguf(ours), read_gguf(theirs)
    a, b = ({t.name: t for t in file.tensors} for file in (left, right))
    yield from (f"tensor {name} only once" for name in sorted(set(a) ^ set(b)))
    data = [np.memmap(path, np.uint8, "r") for path in (ours, theirs)]
    for name in sorted(set(a) & set(b)):
        one, two = a[name], b[name]
        if (one.type, one.shape) != (two.type, two.shape):
            yield f"{name}: {one.type} {one.shape} against {two.type} {two.shape}"
            continue
        first, second = left.data_start + one.offset, right.data_start + two.offset
        if not np.array_equal(
            data[0][first : first + one.n_bytes], data[1][second : second + two.n_bytes]
        ):
            yield f"{name}: bytes differ"


def key_problems(subject: Subject, ours: Path, theirs: Path) -> Iterator[str]:
    a, b = read_metadata(ours), read_metadata(theirs)
    for key in sorted(set(a) | set(b)):
        if key in ALLOWED or (subject.own_tokenizer and key.startswith("tokenizer.")):
            continue
        if _plain(a, key) != _plain(b, key):
            yield f"{key}: {str(_plain(a, key))[:60]} against {str(_plain(b, key))[:60]}"


def _plain(metadata: Metadata, key: str) -> Any:
    value = metadata.get(key)
    if value is None:
        return None
    return (value.type, list(value.value) if value.is_array else value.value)


if __name__ == "__main__":
    sys.exit(main())
