import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_gguf import CHATML_TEMPLATE, byte_tokens, vocabulary, write_tiny_model

from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import ArraySummary, kv_cache_bytes, read_gguf
from edge_agent.models.embedded import EMBEDDED, embedded_parts

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
FORMATS = {0: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q"}


def string(text) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


class Raw(NamedTuple):
    """An array given as bytes: large ones are slow to pack one by one."""

    element: int
    count: int
    body: bytes


def value(kind: int, content) -> bytes:
    if kind == STRING:
        return string(content)
    if kind == ARRAY:
        if isinstance(content, Raw):
            return struct.pack("<IQ", content.element, content.count) + content.body
        element, items = content
        body = b"".join(value(element, item) for item in items)
        return struct.pack("<IQ", element, len(items)) + body
    return struct.pack(FORMATS[kind], content)


def keys(**changes) -> dict:
    """The metadata of a smallest acceptable model; `changes` replace or (None) remove keys.

    Dots are written as two underscores.
    """
    found = {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (U32, 64),
        "llama.embedding_length": (U32, 32),
        "llama.block_count": (U32, 1),
        "llama.feed_forward_length": (U32, 32),
        "llama.attention.head_count": (U32, 2),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, byte_tokens())),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [1] * 256)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, [])),
    }
    for name, change in changes.items():
        found[name.replace("__", ".")] = change
    return {name: pair for name, pair in found.items() if pair is not None}


EMBEDDING = ("token_embd.weight", (32, 256), 0, 0)
F32_TYPE, Q8_0_TYPE = 0, 8


def table(n_vocab=256, *, kind=F32_TYPE, extra=()) -> tuple[list, int]:
    """(tensor table, bytes of the tensors) of the smallest model; matrices are of the type `kind`.

    `extra` are names of vectors of 32 beside the table of the architecture llama."""
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd.weight": (32, n_vocab), "output_norm.weight": (32,)}
    shapes |= {f"blk.0.{name}.weight": (32, 32) for name in names}
    shapes |= {f"blk.0.{name}.weight": (32,) for name in ("attn_norm", "ffn_norm")}
    shapes |= dict.fromkeys(extra, (32,))
    found, offset = [], 0
    for name, shape in shapes.items():
        quantized = kind == Q8_0_TYPE and len(shape) == 2
        rows = shape[1] if len(shape) == 2 else 1
        found.append((name, shape, kind if quantized else F32_TYPE, offset))
        offset += -(-rows * (34 if quantized else 128) // 32) * 32
    return found, offset


def build(pairs, tensors=None, *, version=3, data_bytes=32 * 256 * 4) -> bytes:
    """A GGUF file; `pairs` a dict or a list of (key, (type, content)); `tensors` None: table()."""
    if tensors is None:
        tensors, data_bytes = table()
    items = list(pairs.items()) if isinstance(pairs, dict) else pairs
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(items))
    out += b"".join(string(key) + struct.pack("<I", kind) + value(kind, content)
                    for key, (kind, content) in items)  # fmt: skip
    for name, shape, kind, offset in tensors:
        out += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out + b"\0" * (-len(out) % 32) + b"\0" * data_bytes


def reason(tmp_path: Path, content: bytes) -> str:
    """Why read_gguf refuses the content; fails when it does not, or with another exception."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.what and caught.value.hint
    return caught.value.why


# ---- what is accepted --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2", "qwen3"])
def test_model_written_by_gguf_py_is_read_completely(tmp_path, architecture):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture=architecture, chat_template=CHATML_TEMPLATE, n_layer=3
    )
    gguf = read_gguf(path)
    assert gguf.architecture == architecture
    assert gguf.chat_template == CHATML_TEMPLATE
    assert gguf.quantization == "F32"
    assert gguf.n_vocab == len(vocabulary()[0])
    assert (gguf.n_layer, gguf.n_embd, gguf.n_ctx_train) == (3, 64, 512)
    assert (gguf.n_head, gguf.n_head_kv, gguf.head_dim) == (4, 2, 16)
    assert gguf.tensor_bytes == 4 * gguf.n_params
    assert gguf.file_bytes == path.stat().st_size >= gguf.data_start + gguf.tensor_bytes
    assert gguf.summary()["general.name"] == f"tiny random {architecture}"


def test_gguf_py_agrees_on_every_tensor(tmp_path):
    from gguf import GGUFReader

    path = write_tiny_model(tmp_path / "m.gguf")
    gguf = read_gguf(path)
    theirs = {
        t.name: (tuple(int(n) for n in t.shape), t.data_offset) for t in GGUFReader(path).tensors
    }
    assert theirs == {t.name: (t.shape, gguf.data_start + t.offset) for t in gguf.tensors}


def test_smallest_hand_made_file_is_accepted_in_versions_2_and_3(tmp_path):
    for version in (2, 3):
        (tmp_path / "x.gguf").write_bytes(build(keys(), version=version))
        assert read_gguf(tmp_path / "x.gguf").version == version


def test_gemma_like_vocabulary_is_accepted(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", architecture="gemma3", tokenizer="llama")
    assert read_gguf(path).metadata["tokenizer.ggml.scores"].length == read_gguf(path).n_vocab


def test_tiny_model_is_the_same_bytes_for_a_seed(tmp_path):
    first = write_tiny_model(tmp_path / "a.gguf", seed=3).read_bytes()
    assert first == write_tiny_model(tmp_path / "b.gguf", seed=3).read_bytes()
    assert first != write_tiny_model(tmp_path / "c.gguf", seed=4).read_bytes()


def test_arrays_are_kept_as_a_summary(tmp_path):
    (tmp_path / "x.gguf").write_bytes(
        build(
            keys(
                a__numbers=(ARRAY, (I32, range(2000))),
                a__tags=(ARRAY, (STRING, [str(n) for n in range(20)])),
            )
        )
    )
    metadata = read_gguf(tmp_path / "x.gguf").metadata
    assert metadata["a.numbers"] == ArraySummary("i32", 2000, tuple(range(512)))
    assert metadata["a.tags"] == ArraySummary("string", 20, tuple("01234567"))
    assert metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 256, ())


# ---- files that are not files -------------------------------------------------------------------


def test_missing_directory_pipe_and_empty_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("missing", ".", "pipe", "empty"):
        with pytest.raises(ModelFormatError):
            read_gguf(tmp_path / name)
    with pytest.raises(ModelFormatError):
        read_gguf(Path("/dev/zero"))


def test_unreadable_name_is_refused(tmp_path):
    with pytest.raises(ModelFormatError):
        read_gguf(tmp_path / ("n" * 300))


def test_every_truncation_is_refused(tmp_path):
    content = write_tiny_model(tmp_path / "m.gguf").read_bytes()
    cuts = [*range(0, 200), *range(200, len(content), 4999), len(content) - 200]
    for cut in cuts:
        assert reason(tmp_path, content[:cut])


# ---- structure ---------------------------------------------------------------------------------

COUNT = "<Q"


def patched(content: bytes, at: int, form: str, number: int) -> bytes:
    raw = struct.pack(form, number)
    return content[:at] + raw + content[at + len(raw) :]


@pytest.mark.parametrize(
    ("at", "form", "number", "word"),
    [
        (0, "<I", 0x46554746, "GGUF"),
        (4, "<I", 1, "version 1"),
        (4, "<I", 0x03000000, "version"),
        (8, COUNT, 1 << 63, "number of tensors"),
        (16, COUNT, (1 << 64) - 1, "number of metadata keys"),
        (24, COUNT, 1 << 62, "length of a metadata key"),
        (24, COUNT, 0, "printable"),
    ],
)
def test_broken_prologue_is_refused(tmp_path, at, form, number, word):
    assert word in reason(tmp_path, patched(build(keys()), at, form, number))


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        ((ARRAY, (ARRAY, [])), "array of the type 9"),
        ((ARRAY, (77, [])), "array of the type 77"),
        ((STRING, "x" * ((1 << 20) + 1)), "at most"),
        ((BOOL, 2), "at most 1"),
        ((ARRAY, (STRING, ["x" * 70_000])), "70000 bytes"),
    ],
)
def test_broken_value_is_refused(tmp_path, pair, word):
    assert word in reason(tmp_path, build(keys(some__key=pair)))


def test_unknown_type_is_refused(tmp_path):
    content = build([("a", (U32, 1))])
    assert "unknown type 13" in reason(tmp_path, content.replace(b"a\4\0\0\0", b"a\x0d\0\0\0", 1))


def test_repeated_and_unprintable_keys_are_refused(tmp_path):
    pairs = list(keys().items())
    assert "occurs twice" in reason(tmp_path, build([*pairs, pairs[1]]))
    assert "printable" in reason(tmp_path, build([*pairs, ("a\0b", (U32, 1))]))


@pytest.mark.parametrize("alignment", [0, 1, 8, 33, 48, 1 << 21, 1 << 31])
def test_alignment_that_llama_cpp_cannot_map_is_refused(tmp_path, alignment):
    assert "alignment" in reason(tmp_path, build(keys(general__alignment=(U32, alignment))))


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ([("token_embd.weight", (32, 256), 0, 32)], "leaves a gap"),
        ([EMBEDDING, ("b", (32,), 0, 0)], "overlaps"),
        ([EMBEDDING, ("b", (32,), 0, (1 << 64) - 32)], "leaves a gap"),
        ([EMBEDDING, EMBEDDING], "occurs twice"),
        ([("token_embd.weight", (32, 257), 0, 0)], "behind the end of the file"),
        ([("token_embd.weight", (1 << 32, 1 << 32), 0, 0)], "impossible shape"),
        ([("token_embd.weight", (1 << 63, 2), 0, 0)], "impossible shape"),
        ([("token_embd.weight", (0, 256), 0, 0)], "impossible shape"),
        ([("token_embd.weight", (), 0, 0)], "impossible shape"),
        ([("token_embd.weight", (32, 1, 1, 1, 1), 0, 0)], "number of dimensions"),
        ([("token_embd.weight", (33, 256), 8, 0)], "blocks of 32"),
        ([("token_embd.weight", (32, 256), 26, 0)], "not one for weights"),
        ([("token_embd.weight", (32, 256), 4, 0)], "not one for weights"),
        ([("token_embd.weight", (32, 256), 1 << 31, 0)], "not one for weights"),
        ([("n" * 64, (32, 256), 0, 0)], "at most 63"),
        ([("token_embd.weigh\0", (32, 256), 0, 0)], "printable"),
        ([], "no tensors"),
    ],
)
def test_broken_tensor_table_is_refused(tmp_path, tensors, word):
    assert word in reason(tmp_path, build(keys(), tensors))


# ---- what llama.cpp would abort on ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"general__architecture": (STRING, "plamo2")}, "architecture"),
        ({"general__architecture": None}, "architecture"),
        ({"general__type": (STRING, "adapter")}, "adapter"),
        ({"split__count": (U32, 2)}, "split"),
        ({"llama__block_count": (U32, 513)}, "513"),
        ({"llama__block_count": (U32, 0)}, "block_count is 0"),
        ({"llama__block_count": (U64, 1)}, "u64"),
        ({"llama__block_count": None}, "missing"),
        ({"llama__context_length": (U32, 0)}, "context_length"),
        ({"llama__embedding_length": (U32, 33)}, "[33, 256]"),
        ({"llama__attention__head_count": (ARRAY, (U32, [2]))}, "array and not a u32"),
        ({"llama__attention__head_count_kv": (U32, 0)}, "head_count_kv"),
        ({"llama__attention__head_count_kv": (U32, 4)}, "share"),
        ({"llama__attention__key_length": (U32, 15)}, "head size"),
        ({"llama__attention__value_length": (U32, 32)}, "value_length"),
        ({"llama__rope__dimension_count": (U32, 8)}, "dimension_count"),
        ({"llama__attention__layer_norm_rms_epsilon": (F32, -1.0)}, "epsilon"),
        ({"llama__attention__layer_norm_rms_epsilon": (F32, float("nan"))}, "epsilon"),
        ({"llama__rope__freq_base": (F32, 0.0)}, "freq_base"),
        ({"llama__rope__scaling__type": (STRING, "yarm")}, "yarm"),
        ({"llama__expert_count": (U32, 8)}, "expert_count"),
        ({"llama__nextn_predict_layers": (U32, 1)}, "nextn"),
        ({"llama__attention__causal": (BOOL, 0)}, "causal"),
        ({"llama__embedding_length_out": (U32, 16)}, "embedding_length_out"),
        ({"tokenizer__ggml__model": (STRING, "plamo2")}, "tokenizer"),
        ({"tokenizer__ggml__model": (STRING, "none")}, "tokenizer"),
        ({"tokenizer__ggml__model": (STRING, "llama")}, "<0x00>"),
        ({"tokenizer__ggml__tokens": (ARRAY, (STRING, ["a"]))}, "at least 256"),
        ({"tokenizer__ggml__tokens": None}, "at least 256"),
        ({"tokenizer__ggml__token_type": (ARRAY, (I32, [1] * 255))}, "token_type"),
        ({"tokenizer__ggml__token_type": (ARRAY, (U32, [1] * 256))}, "token_type"),
        ({"tokenizer__ggml__token_type": (ARRAY, (I32, [6] + [1] * 255))}, "type byte"),
        ({"tokenizer__ggml__scores": (ARRAY, (F32, [0.0] * 255))}, "scores"),
        ({"tokenizer__ggml__scores": (F32, 1.0)}, "scores"),
        ({"tokenizer__ggml__merges": None}, "merges"),
        ({"tokenizer__ggml__bos_token_id": (U32, 256)}, "bos_token_id"),
        ({"tokenizer__ggml__eos_token_id": (U32, 1 << 31)}, "eos_token_id"),
    ],
)
def test_value_that_kills_or_misleads_llama_cpp_is_refused(tmp_path, change, word):
    assert word in reason(tmp_path, build(keys(**change)))


@pytest.mark.parametrize(
    "pair",
    [("a", "a"), ("a", "a\0b"), ("", "[EMPTY_0]"), ("\0x", "[EMPTY_0]")],
)
def test_tokens_that_llama_cpp_would_see_as_equal_are_refused(tmp_path, pair):
    tokens = [*pair, *(f"token {n}" for n in range(254))]
    content = build(keys(tokenizer__ggml__tokens=(ARRAY, (STRING, tokens))))
    assert "equal" in reason(tmp_path, content)


def test_equal_tokens_far_apart_are_found(tmp_path):
    tokens = [f"t{n}" for n in range(9000)]
    tokens[8999] = "t1"
    tensors, n_bytes = table(9000, kind=Q8_0_TYPE)
    changes = {
        "tokenizer__ggml__tokens": (ARRAY, (STRING, tokens)),
        "tokenizer__ggml__token_type": (ARRAY, (I32, [1] * 9000)),
    }
    assert "8192 to 8999" in reason(tmp_path, build(keys(**changes), tensors, data_bytes=n_bytes))
    tokens[8999] = "last"
    (tmp_path / "x.gguf").write_bytes(build(keys(**changes), tensors, data_bytes=n_bytes))
    assert read_gguf(tmp_path / "x.gguf").n_vocab == 9000


@pytest.mark.parametrize("spelling", ["<0x-1>", "<0x4>", "<0xGG>", "<0xab>", "<0x41"])
def test_byte_token_of_another_spelling_is_refused(tmp_path, spelling):
    tokens = byte_tokens()
    tokens[7] = spelling
    content = build(
        keys(
            tokenizer__ggml__tokens=(ARRAY, (STRING, tokens)),
            tokenizer__ggml__token_type=(ARRAY, (I32, [1] * 7 + [6] + [1] * 248)),
        )
    )
    assert "token 7 " in reason(tmp_path, content)


def test_vectors_must_be_f32_and_the_embedding_must_allow_look_ups(tmp_path):
    norm = ("output_norm.weight", (32,), 1, 32 * 256 * 4)
    content = build(keys(), [EMBEDDING, norm], data_bytes=32 * 256 * 4 + 64)
    assert "vector of F16" in reason(tmp_path, content)
    changes = {"llama__embedding_length": (U32, 256)}
    tensor = [("token_embd.weight", (256, 256), 17, 0)]
    assert "IQ2_XS" in reason(tmp_path, build(keys(**changes), tensor))


def test_sliding_window_pattern_needs_a_flag_for_each_block(tmp_path):
    base = {k.replace("llama.", "gemma3."): v for k, v in keys().items()}
    base |= {
        "general.architecture": (STRING, "gemma3"),
        "gemma3.attention.sliding_window": (U32, 8),
    }
    key = "gemma3.attention.sliding_window_pattern"
    assert "pattern" in reason(tmp_path, build({**base, key: (ARRAY, (BOOL, [1, 0]))}))
    assert "pattern" in reason(tmp_path, build({**base, key: (U32, 0)}))
    heads = {"gemma3.attention.key_length": (U32, 32), "gemma3.attention.value_length": (U32, 32)}
    norms = ("post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm")
    tensors, n_bytes = table(extra=[f"blk.0.{name}.weight" for name in norms])
    pairs = {**base, **heads, "gemma3.attention.head_count": (U32, 1), key: (ARRAY, (BOOL, [1]))}
    (tmp_path / "x.gguf").write_bytes(build(pairs, tensors, data_bytes=n_bytes))
    assert read_gguf(tmp_path / "x.gguf").sliding_layers() == 1


ABORT = """
import sys, llama_cpp.llama_cpp as lib
lib.llama_backend_init()
sys.exit(0 if lib.llama_model_load_from_file(sys.argv[1].encode(),
                                             lib.llama_model_default_params()) else 3)
"""


def test_repeated_token_really_kills_llama_cpp(tmp_path):
    """The reason for this file; if it no longer fails, a rule can go."""
    content = write_tiny_model(tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "x.gguf"
    # <|im_start|> and <|im_end|> differ in length; "he" and "in" do not.
    path.write_bytes(content.replace(string("he"), string("in"), 1))
    environ = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    command = [sys.executable, "-c", ABORT, path]
    died = subprocess.run(command, env=environ, capture_output=True, check=False)
    assert died.returncode == -6
    with pytest.raises(ModelFormatError):
        read_gguf(path)


# ---- bounds ------------------------------------------------------------------------------------


def bomb(name: str) -> dict:
    """The most of one thing that the limits allow, so the most time or memory there is to have."""
    match name:
        case "arrays":
            return {f"x{n}": (ARRAY, Raw(0, 90_000, bytes(90_000))) for n in range(480)}
        case "texts":
            return {f"t{n}": (STRING, "\u00e9" * 250_000) for n in range(9)}
        case "empty strings":
            return {f"e{n}": (ARRAY, Raw(STRING, 500_000, bytes(4_000_000))) for n in range(3)}
    tokens = Raw(STRING, 1 << 19, b"".join(string(f"{n:015}") for n in range(1 << 19)))
    return {"tokenizer.ggml.tokens": (ARRAY, tokens)}


MEASURE = r"""
import re, sys, time
from pathlib import Path
from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import read_gguf
peak_kib = lambda: int(re.search("VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before, started = peak_kib(), time.process_time()
try:
    read_gguf(Path(sys.argv[1]))
except ModelFormatError:
    print(time.process_time() - started, peak_kib() - before)
"""


@pytest.mark.parametrize("name", ["arrays", "texts", "empty strings", "vocabulary"])
def test_largest_headers_cost_bounded_time_and_memory(tmp_path, name):
    path = tmp_path / "bomb.gguf"
    path.write_bytes(build(bomb(name)))
    command = [sys.executable, "-c", MEASURE, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cpu_s, grown_kib = map(float, done.stdout.split())
    assert cpu_s < 30.0
    assert 0 < grown_kib <= 64 << 10


def test_header_past_48_mib_is_refused(tmp_path):
    path = tmp_path / "long.gguf"
    # Eight arrays of a million u64 each; the holes of the sparse file are their zeros.
    body = string("z") + struct.pack("<IIQ", ARRAY, 10, 1 << 20)
    with path.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 8))
        for n in range(8):
            stream.write(body.replace(b"z", bytes([0x61 + n])))
            stream.seek(8 << 20, os.SEEK_CUR)
        stream.truncate()
    with pytest.raises(ModelFormatError, match="48 MiB"):
        read_gguf(path)


# ---- memory plan -------------------------------------------------------------------------------


def embedded(name: str) -> list[Path]:
    """The model's files; DownloadError fails the test, for `make test` installs them."""
    return embedded_parts(EMBEDDED[name])


@pytest.mark.model
def test_real_gemma_vocabulary_is_read_in_bounds(tmp_path):
    path = tmp_path / "gemma.gguf"
    first, *rest = embedded("gemma3-270m")
    with path.open("wb") as out:
        out.write(first.read_bytes())
        out.truncate(sum(part.stat().st_size for part in (first, *rest)))
    started = time.process_time()
    gguf = read_gguf(path)
    assert time.process_time() - started < 2.0  # 0.4 s on an idle core
    assert (gguf.description, gguf.n_vocab) == ("gemma3 268M Q4_K_M", 262_144)
    assert (gguf.n_params, gguf.tensor_bytes) == (268_098_176, 246_587_904)
    assert (gguf.n_layer, gguf.sliding_layers(), gguf.sliding_window) == (18, 15, 512)
    # As llama.cpp logged it (CPU KV buffer size, base + SWA) for 2048 tokens a slot.
    assert kv_cache_bytes(gguf, n_ctx=2048, slots=1) == 21 << 20
    assert kv_cache_bytes(gguf, n_ctx=2048, slots=4) == 84 << 20
    assert kv_cache_bytes(gguf, n_ctx=2048, slots=4, swa_full=True) == 144 << 20


@pytest.mark.model
def test_real_smollm2_is_read(tmp_path):
    gguf = read_gguf(embedded("smollm2-135m")[0])
    assert (gguf.description, gguf.n_vocab) == ("llama 135M Q4_1", 49_152)
    assert kv_cache_bytes(gguf, n_ctx=2048, slots=4) == 180 << 20
    assert gguf.chat_template is not None and "<|im_start|>" in gguf.chat_template


KV_LOG = """
import re, sys, llama_cpp.llama_cpp as lib
lines = []
@lib.llama_log_callback
def keep(level, text, _):
    lines.append(text.decode(errors="replace"))
lib.llama_log_set(keep, None)
lib.llama_backend_init()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
for n_ctx, slots, full in ((256, 1, 0), (300, 4, 0), (1000, 2, 0), (1000, 2, 1)):
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_outputs_max = n_ctx * slots, slots, slots
    params.swa_full, params.kv_unified, params.n_ubatch = bool(full), False, 128
    lines.clear()
    lib.llama_free(lib.llama_init_from_model(model, params))
    sizes = re.findall(r"KV buffer size = +([0-9.]+) MiB", "".join(lines))
    print(n_ctx, slots, full, sum(map(float, sizes)))
"""


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_kv_cache_is_as_large_as_llama_cpp_says(tmp_path, architecture):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture=architecture, sliding_window=64, n_layer=12
    )
    gguf = read_gguf(path)
    assert gguf.sliding_layers() == (10 if architecture == "gemma3" else 0)
    command = [sys.executable, "-c", KV_LOG, path]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in log.splitlines()]
    assert len(rows) == 4
    for n_ctx, slots, full, mib in rows:
        ours = kv_cache_bytes(
            gguf, n_ctx=int(n_ctx), slots=int(slots), swa_full=full == "1", n_ubatch=128
        )
        # llama.cpp prints two decimals of each of two caches.
        assert ours / 2**20 == pytest.approx(float(mib), abs=0.011)
