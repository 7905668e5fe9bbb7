"""Mutate GGUF headers; count the mutants that pass the validator, and those that kill llama.cpp.

    .venv/bin/python benchmarks/fuzz_gguf.py --count 2000 --seed 1 [--json]

Every mutant goes through `read_gguf` in this process; its time is measured, and its peak of Python
memory in a second reading, because tracing slows it. Every mutant that it accepts is then loaded by
the installed llama.cpp in a process of its own, which tokenizes a text with all kinds of bytes,
decodes two tokens and samples. Printed: untyped errors (must be 0), time and memory (maximum, p99),
and how many accepted files made llama.cpp die. `--no-validator` is the negative control: it passes
every mutant to llama.cpp. The bases come from tests/helpers/tiny_gguf.py, with BPE and with
Gemma-like SPM. The loading processes are forked from one that has imported llama.cpp and never used
it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from tiny_gguf import write_tiny_model  # noqa: E402

from edge_agent.errors import ModelFormatError  # noqa: E402
from edge_agent.gguf.model_file import read_gguf  # noqa: E402

LOAD_LIMIT_S = 40
ADDRESS_SPACE_BYTES = 4 << 30
TEXT = bytes(range(1, 128)) + "é न 漢 \U0001f600 hello the world <0x41> <|im_end|>".encode()
INTERESTING = (
    *(0, 1, 2, 3, 5, 7, 8, 31, 33, 127, 128, 255, 256, 513, 0x7FFF, 0xFFFF, 1 << 20),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

DEATHS = ("llama.cpp signal", "llama.cpp hung")

Fields = list[tuple[int, int, str]]
"""(offset, bytes, kind) of each part of a header that decides how the rest is read."""


class Base:
    """A valid file, where its header ends, and where its fields are."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.header_end = read_gguf(path).data_start
        self.fields = list(walk(self.data))
        self.texts = [field for field in self.fields if field[2] == "text" and field[1] > 0]


def walk(data: bytes) -> Iterator[tuple[int, int, str]]:
    """The fields of a valid header: counts, lengths, types, numbers, texts, dimensions."""
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    yield from ((4, 4, "version"), (8, 8, "count"), (16, 8, "count"))
    at = 24
    for _ in range(n_keys):
        fields, at = _string(data, at)
        yield from fields
        yield at, 4, "type"
        (kind,) = struct.unpack_from("<I", data, at)
        fields, at = _value(data, at + 4, kind)
        yield from fields
    for _ in range(n_tensors):
        fields, at = _string(data, at)
        yield from fields
        (n_dims,) = struct.unpack_from("<I", data, at)
        yield at, 4, "count"
        yield from ((at + 4 + 8 * n, 8, "dimension") for n in range(n_dims))
        at += 4 + 8 * n_dims
        yield from ((at, 4, "type"), (at + 4, 8, "offset"))
        at += 12


def _string(data: bytes, at: int) -> tuple[Fields, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return [(at, 8, "length"), (at + 8, length, "text")], at + 8 + length


def _value(data: bytes, at: int, kind: int) -> tuple[Fields, int]:
    if kind == 8:
        return _string(data, at)
    if kind != 9:
        return [(at, WIDTHS[kind], "number")], at + WIDTHS[kind]
    element, count = struct.unpack_from("<IQ", data, at)
    fields: Fields = [(at, 4, "type"), (at + 4, 8, "count")]
    at += 12
    for _ in range(count):
        more, at = _value(data, at, element)
        fields += more
    return fields, at


# ---- mutations: (rng, base, another base) -> bytes --------------------------------------------


def flip_bits(rng: random.Random, base: Base, _: Base) -> bytes:
    data = bytearray(base.data)
    for _n in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data[rng.randrange(base.header_end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def edit_field(rng: random.Random, base: Base, _: Base) -> bytes:
    """Replace a number of the header by an extreme or a neighbouring one."""
    data = bytearray(base.data)
    numbers = [f for f in base.fields if f[2] != "text"]
    # Most numbers are token scores and types; the few others decide more and are preferred.
    few = [f for f in numbers if f[2] != "number"] + numbers[:40]
    for _n in range(rng.choice((1, 1, 1, 2, 3))):
        at, width, _kind = rng.choice(rng.choice((numbers, few, few)))
        old = int.from_bytes(data[at : at + width], "little")
        near = old + rng.choice((-2, -1, 1, 2, old, 64, -64))
        floats = (0x7FC00000, 0x7F800000, 0xFF800000, 0xBF800000, 0x00000001)
        new = rng.choice((near, rng.choice(INTERESTING), rng.choice(floats), rng.getrandbits(64)))
        data[at : at + width] = (new & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


def edit_text(rng: random.Random, base: Base, _: Base) -> bytes:
    """Change a key, token or tensor name in place: another text, a NUL, a random byte."""
    data = bytearray(base.data)
    for _n in range(rng.choice((1, 1, 2, 4))):
        at, length, _kind = rng.choice(base.texts)
        same = [f for f in base.texts if f[1] == length]
        other = rng.choice(same)[0]
        spot = at + rng.randrange(length)
        match rng.randrange(4):
            case 0:
                data[at : at + length] = base.data[other : other + length]
            case 1:
                data[spot] = 0
            case 2:
                data[spot] = rng.randrange(256)
            case _:
                data[spot] = rng.choice(b"<>0x |_.aA\xc3\xff")
    return bytes(data)


def truncate(rng: random.Random, base: Base, _: Base) -> bytes:
    limit = rng.choice((base.header_end, len(base.data)))
    return base.data[: rng.randrange(limit)]


def splice(rng: random.Random, base: Base, other: Base) -> bytes:
    """Copy a piece of this or another header over this one, insert it, or cut a piece out."""
    source = rng.choice((base, other))
    start = rng.randrange(source.header_end)
    piece = source.data[start : start + rng.choice((1, 4, 8, 32, 256))]
    at = rng.randrange(base.header_end)
    match rng.randrange(3):
        case 0:
            return base.data[:at] + piece + base.data[at + len(piece) :]
        case 1:
            return base.data[:at] + piece + base.data[at:]
        case _:
            return base.data[:at] + base.data[at + len(piece) :]


def resize_text(rng: random.Random, base: Base, _: Base) -> bytes:
    """Make a string and its length longer or shorter and pad the data anew; the structure stays
    valid."""
    at, length, _kind = rng.choice([f for f in base.fields if f[2] == "text"])
    new = rng.choice((b"", b"\0", b"x", base.data[at : at + length] + b"y", b"[EMPTY_7]",
                      b"<0x-1>", b"<0x4", b"\xff\xfe", b"q" * rng.choice((64, 300))))  # fmt: skip
    header = base.data[: at - 8] + struct.pack("<Q", len(new)) + new
    end = unpadded_end(base)
    header += base.data[at + length : end]
    return header + b"\0" * (-len(header) % 32) + base.data[base.header_end :]


def unpadded_end(base: Base) -> int:
    at, width, _kind = base.fields[-1]
    return at + width


MUTATIONS: tuple[Callable[[random.Random, Base, Base], bytes], ...] = (
    *(flip_bits, flip_bits, edit_field, edit_field, edit_field),
    *(edit_text, edit_text, resize_text, truncate, splice),
)


def make_bases(directory: Path) -> list[Base]:
    shapes = (
        ("llama", {"tokenizer": "gpt2"}),
        ("gemma3", {"tokenizer": "llama", "sliding_window": 64, "n_layer": 7}),
        ("qwen2", {"tokenizer": "gpt2", "chat_template": "{{ messages }}"}),
        ("qwen3", {"tokenizer": "llama"}),
    )
    paths = [directory / f"base-{architecture}.gguf" for architecture, _ in shapes]
    for path, (architecture, options) in zip(paths, shapes, strict=True):
        write_tiny_model(path, architecture=architecture, **options)  # type: ignore[arg-type]
    return [Base(path) for path in paths]


# ---- judging one mutant ------------------------------------------------------------------------


def judge(path: Path) -> tuple[str, float, float]:
    """("accepted" | "refused" | "untyped: ...", seconds, MiB of Python memory at the peak)."""
    started = time.perf_counter()
    verdict = _verdict(path)
    elapsed_s = time.perf_counter() - started
    tracemalloc.start()
    _verdict(path)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return verdict, elapsed_s, peak


def _verdict(path: Path) -> str:
    try:
        gguf = read_gguf(path)
        _ = (gguf.description, gguf.summary(), gguf.tensor_bytes, gguf.sliding_layers())
        return "accepted"
    except ModelFormatError:
        return "refused"
    except Exception as error:
        return f"untyped: {type(error).__name__}: {error}"


def load_in_child(path: Path) -> str:
    """ "loaded", "refused", "signal N" or "hung": what llama.cpp does with the file."""
    child = os.fork()
    if child == 0:
        os._exit(_load(path))
    deadline = time.monotonic() + LOAD_LIMIT_S
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {0: "loaded", 3: "refused"}.get(code, f"signal {-code}")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _load(path: Path) -> int:
    import llama_cpp.llama_cpp as lib

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        return 3
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, 1, 1
    params.n_seq_max, params.n_outputs_max, params.kv_unified = 2, 2, False
    context = lib.llama_init_from_model(model, params)
    return _decode(lib, model, context) if context else 3


def _decode(lib, model, context) -> int:  # type: ignore[no-untyped-def]
    vocab = lib.llama_model_get_vocab(model)
    tokens = (lib.llama_token * 512)()
    count = lib.llama_tokenize(vocab, TEXT, len(TEXT), tokens, 512, True, True)
    if count <= 0:
        return 3
    sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for part in (lib.llama_sampler_init_top_k(40), lib.llama_sampler_init_top_p(0.9, 1),
                 lib.llama_sampler_init_temp(0.3), lib.llama_sampler_init_dist(1)):  # fmt: skip
        lib.llama_sampler_chain_add(sampler, part)
    piece = ctypes.create_string_buffer(1 << 17)
    for _ in range(2):
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, min(count, 200))):
            return 3
        tokens[0] = lib.llama_sampler_sample(sampler, context, -1)
        lib.llama_token_to_piece(vocab, tokens[0], piece, len(piece), 0, True)
        count = 1
    return 0


# ---- the run -----------------------------------------------------------------------------------


def run(count: int, seed: int, validator: bool, keep: Path | None) -> dict[str, object]:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    times, peaks, bad = [], [], []
    with tempfile.TemporaryDirectory() as name:
        bases = make_bases(Path(name))
        path = Path(name) / "mutant.gguf"
        import llama_cpp.llama_cpp  # noqa: F401 - once, before the first fork

        for index in range(count):
            mutate = rng.choice(MUTATIONS)
            path.write_bytes(mutate(rng, rng.choice(bases), rng.choice(bases)))
            verdict, elapsed_s, peak = judge(path)
            times.append(elapsed_s)
            peaks.append(peak)
            outcomes[verdict.split(":")[0]] += 1
            survived = verdict == "accepted" or not validator
            fate = load_in_child(path) if survived else ""
            outcomes[f"llama.cpp {fate}"] += bool(fate)
            if fate in ("hung",) or fate.startswith("signal") or verdict.startswith("untyped"):
                bad.append([index, mutate.__name__, verdict, fate])
                if keep:
                    (keep / f"{seed}-{index}.gguf").write_bytes(path.read_bytes())
    return summarise(count, seed, outcomes, (times, peaks), bad)


def summarise(
    count: int,
    seed: int,
    outcomes: Counter[str],
    measured: tuple[list[float], list[float]],
    bad: list[list[object]],
) -> dict[str, object]:
    times, peaks = (sorted(values) for values in measured)
    p99 = int(0.99 * (count - 1))
    given = sum(n for name, n in outcomes.items() if name.startswith("llama.cpp "))
    died = sum(n for name, n in outcomes.items() if name.startswith(DEATHS))
    return {
        "mutants": count,
        "seed": seed,
        "outcomes": {name: n for name, n in sorted(outcomes.items()) if n},
        "untyped_errors": outcomes["untyped"],
        "read_gguf_max_s": round(times[-1], 4),
        "read_gguf_p99_s": round(times[p99], 4),
        "peak_max_mib": round(peaks[-1], 2),
        "peak_p99_mib": round(peaks[p99], 2),
        "given_to_llama_cpp": given,
        "llama_cpp_died": died,
        "death_rate": round(died / given, 5) if given else 0.0,
        "bad": bad,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-validator", action="store_true", help="negative control")
    parser.add_argument("--keep", type=Path, help="directory for the mutants that were trouble")
    flags = parser.parse_args()
    os.environ["GGML_NO_BACKTRACE"] = "1"  # else each abort starts a debugger
    result = run(flags.count, flags.seed, not flags.no_validator, flags.keep)
    if flags.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:20} {value}")
    return (
        1
        if result["untyped_errors"] or (result["llama_cpp_died"] and not flags.no_validator)
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
