"""Adapter files that must not reach llama.cpp, each with the reason it must be refused for.

For tests/gguf/test_adapter_file.py and benchmarks/adapter_refusals.py: twelve kinds that were given
to llama.cpp without a check (eight of them ended the process), three kinds near them, and more. The
files are packed by hand, so that every byte can be wrong and the code under test is not used. Flows
in: a base model with 2-d weights, and a directory. Flows out: paths. The good adapter from which
all bad ones are made is here as well.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.gguf.model_file import read_gguf

F32, F16, Q8_0, I32, BF16 = 0, 1, 8, 26, 30
Q, FFN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"
R = 4
TYPES = {str: 8, float: 6, int: 4, bool: 7}
ALPHA = "adapter.lora.alpha"


@dataclass(frozen=True)
class Tensor:
    """`shape` is innermost first, as in the file."""

    name: str
    shape: tuple[int, ...]
    data: bytes
    type: int = F32


@dataclass(frozen=True)
class Draft:
    """A file before it is packed."""

    metadata: dict[str, object]
    tensors: tuple[Tensor, ...]

    def said(self, **changes: object) -> Draft:
        """The draft with changed metadata; None removes a key. `__` stands for the dot."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        merged = {**self.metadata, **named}
        return replace(self, metadata={k: v for k, v in merged.items() if v is not None})

    def changed(self, name: str, **changes: object) -> Draft:
        """The draft with one tensor changed."""
        return replace(self, tensors=tuple(
            replace(t, **changes) if t.name == name else t for t in self.tensors  # type: ignore[arg-type]
        ))  # fmt: skip

    def without(self, name: str) -> Draft:
        return replace(self, tensors=tuple(t for t in self.tensors if t.name != name))

    def more(self, *tensors: Tensor) -> Draft:
        return replace(self, tensors=(*self.tensors, *tensors))

    def packed(self) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata))]
        for key, value in self.metadata.items():
            parts += [string(key), pack_value(value)]
        offset = 0
        for tensor in self.tensors:
            n = len(tensor.shape)
            parts += [string(tensor.name), struct.pack(f"<I{n}Q", n, *tensor.shape)]
            parts.append(struct.pack("<IQ", tensor.type, offset))
            offset += len(aligned(tensor.data))
        return aligned(b"".join(parts)) + b"".join(aligned(t.data) for t in self.tensors)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pack_value(value: object) -> bytes:
    if isinstance(value, list):  # of u32
        return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    kind = TYPES[type(value)]
    if isinstance(value, str):
        return struct.pack("<I", kind) + string(value)
    return struct.pack(f"<I{ {6: 'f', 4: 'I', 7: '?'}[kind] }", kind, value)


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)


def numbers(*shape: int, scale: float = 0.5) -> bytes:
    """Pseudo-random float32 values, the same for the same shape."""
    count = 1
    for size in shape:
        count *= size
    source = random.Random(count)
    return struct.pack(f"<{count}f", *(source.uniform(-scale, scale) for _ in range(count)))


def with_value(data: bytes, value: float, at: int) -> bytes:
    return data[: 4 * at] + struct.pack("<f", value) + data[4 * at + 4 :]


def good_adapter(base: Path, weights: Sequence[str] = (Q, FFN), scale: float = 0.5) -> Draft:
    """r 4, alpha 8, random A and B for some weights of the model at `base`."""
    gguf = read_gguf(base)
    shapes = {tensor.name: tensor.shape for tensor in gguf.tensors}
    tensors = []
    for name in weights:
        n_in, n_out = shapes[name]
        tensors.append(Tensor(f"{name}.lora_a", (n_in, R), numbers(n_in, R, scale=scale)))
        tensors.append(Tensor(f"{name}.lora_b", (R, n_out), numbers(R, n_out, scale=scale)))
    metadata = {
        "general.architecture": gguf.architecture,
        "general.type": "adapter",
        "general.name": "good",
        "adapter.type": "lora",
        ALPHA: 8.0,
        "edge_agent.base.sha256": hashlib.sha256(base.read_bytes()).hexdigest(),
        "edge_agent.base.quantization": gguf.quantization,
    }
    return Draft(metadata, tuple(tensors))


@dataclass(frozen=True)
class BadAdapter:
    """`why` is a part of the expected reason.

    `source`: "tried" (given to llama.cpp unchecked, which ended the process or computed nonsense),
    "near" (kinds close to those) or "more".
    """

    kind: str
    path: Path
    why: str
    source: str = "more"


A, B = f"{Q}.lora_a", f"{Q}.lora_b"

Change = Callable[[Draft], Draft | bytes]


def in_the_middle(value: float) -> Change:
    def change(draft: Draft) -> Draft:
        data = next(tensor.data for tensor in draft.tensors if tensor.name == B)
        return draft.changed(B, data=with_value(data, value, at=len(data) // 8))

    return change


def half(draft: Draft) -> Draft:
    """A whole tensor in half precision whose last value is infinite."""
    tensor = next(tensor for tensor in draft.tensors if tensor.name == A)
    count = tensor.shape[0] * tensor.shape[1]
    data = struct.pack(f"<{count}e", *[0.5] * (count - 1), float("inf"))
    return draft.changed(A, data=data, type=F16)


def zeroed(draft: Draft) -> Draft:
    """B of every pair is 0 (and -0.0), as before the first training step."""
    return replace(draft, tensors=tuple(
        replace(tensor, data=struct.pack("<f", -0.0) * (len(tensor.data) // 4))
        if tensor.name.endswith(".lora_b") else tensor
        for tensor in draft.tensors
    ))  # fmt: skip


def resized(name: str, *shape: int) -> Change:
    return lambda draft: draft.changed(name, shape=shape, data=numbers(*shape))


def swapped(draft: Draft) -> Draft:
    other = {A: B, B: A}
    return replace(draft, tensors=tuple(
        replace(tensor, name=other.get(tensor.name, tensor.name)) for tensor in draft.tensors
    ))  # fmt: skip


def pair(name: str, n_in: int, n_out: int) -> Change:
    return lambda draft: draft.more(
        Tensor(f"{name}.lora_a", (n_in, R), numbers(n_in, R)),
        Tensor(f"{name}.lora_b", (R, n_out), numbers(R, n_out)),
    )


NAN, INF = float("nan"), float("inf")

Kinds = dict[str, tuple[Change, str]]


def tried_kinds(width: int) -> Kinds:
    """Kinds that were tried on llama.cpp without a check: most of them ended the process.

    `width`: inputs and outputs of Q.
    """
    other = width + 32
    return {
        "inputs of another size": (
            resized(A, other, R), f"takes {other} inputs and the weight {width}"),
        "outputs of another size": (
            resized(B, R, other), f"gives {other} outputs and the weight {width}"),
        "another architecture": (
            lambda d: d.said(general__architecture="gpt2"), "it is for 'gpt2'"),
        "not an adapter": (lambda d: d.said(general__type="model"), "it is not an adapter"),
        "a tensor the model lacks": (
            pair("blk.99.attn_q.weight", width, width), "the model has no tensor"),
        "r differs in a pair": (resized(B, R + 1, width), "has r 4 and"),
        "A and B swapped": (swapped, "inputs and the weight"),
        "only A": (lambda d: d.without(B), "has no partner"),
        "only B": (lambda d: d.without(A), "has no partner"),
        "adapter.type is another": (lambda d: d.said(adapter__type="ia3"), "adapter.type is 'ia3'"),
        "NaN": (in_the_middle(NAN), "holds NaN"),
        "infinity": (in_the_middle(-INF), "holds an infinite value"),
        "alpha infinite": (lambda d: d.said(**{ALPHA: INF}), "lora.alpha is inf"),
        "no tensor": (lambda d: replace(d, tensors=()), "holds no tensor"),
    }  # fmt: skip


def near_kinds(width: int) -> Kinds:
    """Kinds near those that were tried."""
    return {
        "three dimensions": (resized(A, width, R, 2), "has 3 dimensions"),
        "made for another base": (
            lambda d: d.said(edge_agent__base__sha256="0" * 64), "made for the"),
        "a tensor twice": (lambda d: d.more(d.tensors[0]), "occurs twice"),
    }  # fmt: skip


def other_metadata() -> Kinds:
    return {
        "alpha missing": (lambda d: d.said(**{ALPHA: None}), "lora.alpha is missing"),
        "alpha 0": (lambda d: d.said(**{ALPHA: 0.0}), "lora.alpha is 0.0"),
        "alpha negative": (lambda d: d.said(**{ALPHA: -8.0}), "lora.alpha is -8.0"),
        "alpha NaN": (lambda d: d.said(**{ALPHA: NAN}), "lora.alpha is nan"),
        "alpha an integer": (lambda d: d.said(**{ALPHA: 8}), "is a u32 and not an f32"),
        "activated LoRA": (
            lambda d: d.said(adapter__alora__invocation_tokens=[1, 2]), "an activated LoRA"),
        "wrong magic": (lambda d: b"LMGG" + d.packed()[4:], "letters GGUF"),
        "version 1": (lambda d: b"GGUF\1" + d.packed()[5:], "GGUF version 1"),
        "cut in the header": (lambda d: d.packed()[:150], "past the end of the file"),
        "cut in the data": (lambda d: d.packed()[:-100], "behind the end of the file"),
        "empty file": (lambda d: b"", "past the end of the file"),
        "a million tensors announced": (
            lambda d: d.packed()[:8] + struct.pack("<Q", 1 << 20) + d.packed()[16:], "1048576"),
        "a string of 2^60 bytes": (
            lambda d: d.packed()[:24] + struct.pack("<Q", 1 << 60) + d.packed()[32:],
            "the length of"),
    }  # fmt: skip


def other_tensors(width: int) -> Kinds:
    packed = width * R // 32 * 34
    above = width + 1
    return {
        "a finite value too large": (in_the_middle(1e30), "1e+30, which is too large"),
        "infinity in half precision": (half, "holds an infinite value"),
        "B is 0 everywhere": (zeroed, "changes nothing"),
        "quantized matrices": (
            lambda d: d.changed(A, type=Q8_0, data=bytes(packed)), "is Q8_0, and only"),
        "bfloat16": (
            lambda d: d.changed(A, type=BF16, data=bytes(width * R * 2)), "is BF16, and only"),
        "integers": (lambda d: d.changed(A, type=I32), "not one for weights"),
        "a type number that is none": (lambda d: d.changed(A, type=4000), "has the type 4000"),
        "one dimension": (resized(A, width * R), "has 1 dimensions"),
        "a norm": (
            lambda d: d.more(Tensor("blk.0.attn_norm.weight", (width,), numbers(width))),
            "is a norm"),
        "a LoRA of a norm": (pair("blk.0.attn_norm.weight", width, 1), "not a matrix"),
        "the token embedding": (
            pair("token_embd.weight", width, width), "changes the token embedding"),
        "a whole weight": (
            lambda d: d.more(Tensor("blk.0.attn_k.weight", (width, 32), numbers(width, 32))),
            "is not a LoRA matrix"),
        "r above the rank of the weight": (
            lambda d: resized(B, above, width)(resized(A, width, above)(d)),  # type: ignore[arg-type]
            f"has r {above}, more than the rank"),
    }  # fmt: skip


def write_bad_adapters(base: Path, directory: Path) -> list[BadAdapter]:
    """Write all of them, also those that are no regular files. Q of the base must be square."""
    good = good_adapter(base)
    (width,) = {tensor.shape[0] for tensor in good.tensors if tensor.name == A}
    sources = {"tried": tried_kinds(width), "near": near_kinds(width),
               "more": {**other_metadata(), **other_tensors(width)}}  # fmt: skip
    found = []
    for source, kinds in sources.items():
        for kind, (change, why) in kinds.items():
            draft = change(good)
            path = directory / f"{len(found):02}-{kind.replace(' ', '-')}.gguf"
            path.write_bytes(draft if isinstance(draft, bytes) else draft.packed())
            found.append(BadAdapter(kind, path, why, source))
    return [*found, *not_files(good, directory)]


def not_files(good: Draft, directory: Path) -> list[BadAdapter]:
    target = directory / "target.gguf"
    target.write_bytes(good.packed())
    link, folder, fifo, huge = (
        directory / f"{name}.gguf" for name in ("link", "dir", "fifo", "huge")
    )
    link.symlink_to(target)
    folder.mkdir()
    os.mkfifo(fifo)
    with huge.open("wb") as file:
        file.write(good.packed())
        file.truncate((1 << 30) + 1)  # a hole, which takes no disk space
    return [
        BadAdapter("a link", link, "symbolic link"),
        BadAdapter("a directory", folder, "it is a directory"),
        BadAdapter("a pipe", fifo, "not a regular file"),
        BadAdapter("more than 1 GiB", huge, "at most 1073741824"),
        BadAdapter("not there", directory / "absent.gguf", "No such file"),
    ]
