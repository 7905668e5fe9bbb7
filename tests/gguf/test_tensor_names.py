"""A tensor table is refused by name exactly when llama.cpp refuses to load it."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_gguf

from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import read_gguf

LOAD = """
import sys, llama_cpp.llama_cpp as lib
lib.llama_backend_init()
params = lib.llama_model_default_params()
for path in sys.argv[1:]:
    model = lib.llama_model_load_from_file(path.encode(), params)
    print(int(bool(model)))
    if model:
        lib.llama_model_free(model)
"""
ORIGINAL = tiny_gguf._weights


def write(path, monkeypatch, architecture, change):
    """A tiny model of one block whose tensors (name: array) `change` edits in place."""

    def weights(*arguments):
        tensors = dict(ORIGINAL(*arguments))
        change(tensors)
        return list(tensors.items())

    monkeypatch.setattr(tiny_gguf, "_weights", weights)
    return tiny_gguf.write_tiny_model(path, architecture=architecture, n_layer=1)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def drop(name):
    return lambda tensors: tensors.pop(name)


def rename(name):
    return lambda tensors: tensors.update({name.replace("w", "v", 1): tensors.pop(name)})


def grow(name):
    return lambda tensors: tensors.update({name: np.concatenate([tensors[name]] * 2)})


def add(name, *shape):
    return lambda tensors: tensors.update({name: zeros(*shape)})


def fuse(tensors):
    parts = [tensors.pop(f"blk.0.attn_{part}.weight") for part in "qkv"]
    tensors["blk.0.attn_qkv.weight"] = np.concatenate(parts)


ADDED = {
    "rope_freqs.weight": (8,),
    "output.bias": (100,),
    "blk.0.attn_q.bias": (64,),
    "blk.0.attn_output.bias": (64,),
    "blk.0.ffn_up.bias": (256,),
    "blk.0.attn_q_norm.weight": (16,),
    "blk.0.ffn_up.scale": (1,),
    "output.scale": (1,),
    "cls.output.weight": (1, 64),
    "dense_2.weight": (64, 64),
    "blk.1.ffn_norm.weight": (64,),
    "v.patch_embd.weight": (64, 64),
}


def changes(architecture):
    names = [name for name, _ in ORIGINAL(architecture, 1, 0, ["a"])]
    for name in names:
        yield f"drop {name}", drop(name)
        yield f"rename {name}", rename(name)
        yield f"grow {name}", grow(name)
    for name, shape in ADDED.items():
        yield f"add {name}", add(name, *shape)
    yield "fuse", fuse
    yield "as it is", lambda tensors: None


def ours(path):
    """None when the file is accepted, else why not."""
    try:
        read_gguf(path)
    except ModelFormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("architecture", tiny_gguf.ARCHITECTURES)
def test_the_tables_that_llama_cpp_refuses_are_refused_by_name(tmp_path, monkeypatch, architecture):
    cases = dict(changes(architecture))
    paths = [
        write(tmp_path / f"{n}.gguf", monkeypatch, architecture, change)
        for n, change in enumerate(cases.values())
    ]
    command = [sys.executable, "-c", LOAD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = [line == "1" for line in done.stdout.split()]
    answers = list(map(ours, paths))
    wrong = [
        (case, loads, answer)
        for case, loads, answer in zip(cases, theirs, answers, strict=True)
        if loads != (answer is None)
    ]
    assert wrong == []
    assert 5 < sum(theirs) < len(theirs) - 20
    for case, answer in zip(cases, answers, strict=True):
        if answer and case.startswith("drop"):
            assert re.search(rf"{case.removeprefix('drop ')} is missing", answer)
