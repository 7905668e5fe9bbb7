"""Adapter files: what is written is what llama.cpp computes; what is broken never reaches it."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from bad_adapters import Draft, good_adapter, write_bad_adapters
from converted import FAMILIES, write
from peft_adapter import lora as convert_lora
from peft_adapter import write_peft
from tiny_checkpoint import write_checkpoint

from converters.base_model import tokenizer_sha256 as converters_tokenizer_sha256
from converters.gguf_container import read_metadata
from converters.logits import LlamaLogits
from edge_agent.adapt.trainer.adapter_writer import AdapterHeader, write_adapter
from edge_agent.adapt.trainer.decoder.decoder import Decoder, pack
from edge_agent.adapt.trainer.decoder.lora import LoraSettings, LoraWeight, new_loras
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.errors import AdapterRefused
from edge_agent.gguf.adapter_file import check_adapter
from edge_agent.gguf.base_identity import BaseIdentity, identify_base, tokenizer_sha256
from edge_agent.gguf.header import TensorInfo
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.gguf.value_scan import has_large

TOKENS = [20 + (7 * n) % 180 for n in range(48)]
NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model(directory: Path, family: str) -> Path:
    write_checkpoint(directory / "hf", family)
    write(directory / "hf", directory / "m.gguf", "F32")
    return directory / "m.gguf"


def trained(weights: PackedWeights, settings: LoraSettings | None = None) -> dict[str, LoraWeight]:
    """Adapters of every linear layer, with a B that is not zero."""
    matrices = [weights.matrix(f"blk.{n}.{name}.weight") for n in range(2) for name in NAMES]
    sizes = {matrix.name: (matrix.n_out, matrix.n_in) for matrix in matrices}
    loras = new_loras(sizes, settings or LoraSettings(r=3, lora_alpha=6), seed=4)
    rng = np.random.default_rng(9)
    for lora in loras.values():
        lora.b[:] = rng.standard_normal(lora.b.shape) / 8
    return loras


def header_of(path: Path, **fields: object) -> AdapterHeader:
    base = read_gguf(path)
    identity = identify_base(base, sha256_of(path))
    return AdapterHeader("facts", base.architecture, identity, **fields)  # type: ignore[arg-type]


def llama_logits(path: Path, *adapters: Path) -> np.ndarray:
    source = LlamaLogits(path, exact=True, threads=1, adapters=adapters)
    try:
        return np.array(source.logits(TOKENS))
    finally:
        source.close()


# ---- written -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_llama_cpp_computes_what_the_trainer_computed(
    tmp_path: Path, family: str, use_rslora: bool
) -> None:
    path = model(tmp_path, family)
    weights = PackedWeights(path)
    loras = trained(weights, LoraSettings(r=3, lora_alpha=6, use_rslora=use_rslora))
    write_adapter(tmp_path / "a.gguf", loras, header_of(path))
    ours = Decoder(weights, loras).logits(pack([(TOKENS, [True] * len(TOKENS))]))
    theirs = llama_logits(path, tmp_path / "a.gguf")
    without = llama_logits(path)
    difference = np.abs(ours - theirs).max()
    # Gemma's GELU is a half-precision table in llama.cpp.
    assert difference < (2e-2 if family == "gemma3" else 1e-4)
    assert np.abs(theirs - without).max() > 50 * difference, "the adapter changes nothing"


def test_weights_of_other_rank_and_scale_keep_their_own(tmp_path: Path) -> None:
    path = model(tmp_path, "llama")
    weights = PackedWeights(path)
    loras = trained(weights)
    odd = loras["blk.1.ffn_up.weight"]
    loras["blk.1.ffn_up.weight"] = LoraWeight(odd.a[:2], odd.b[:, :2], 0.7)
    write_adapter(tmp_path / "a.gguf", loras, header_of(path))
    ours = Decoder(weights, loras).logits(pack([(TOKENS, [True] * len(TOKENS))]))
    np.testing.assert_allclose(llama_logits(path, tmp_path / "a.gguf"), ours, atol=1e-4)
    assert len(check_adapter(tmp_path / "a.gguf", read_gguf(path), None).weights) == len(loras)


def test_what_is_written_is_accepted_and_read_back(tmp_path: Path, tiny_model: Path) -> None:
    loras = trained(PackedWeights(tiny_model), LoraSettings(r=4, lora_alpha=16, use_rslora=True))
    settings, scores = {"r": 4, "layers": [0, 1]}, {"validation": {"bits_per_byte": 1.5}}
    header = header_of(tiny_model, settings=settings, scores=scores)
    written = write_adapter(tmp_path / "a.gguf", loras, header)
    info = check_adapter(tmp_path / "a.gguf", read_gguf(tiny_model), sha256_of(tiny_model))
    assert written == info.sha256 == sha256_of(tmp_path / "a.gguf")
    assert (info.name, info.layers) == ("facts", (0, 1))
    assert info.lora_alpha == pytest.approx(16 * math.sqrt(4)), "rsLoRA's root is in alpha"
    assert info.weights == tuple(sorted(loras))
    assert info.n_params == sum(lora.a.size + lora.b.size for lora in loras.values())
    assert info.base_sha256 == header.base.sha256
    assert info.tokenizer_sha256 == header.base.tokenizer_sha256
    assert info.template_sha256 is None, "the tiny model has no template"
    assert (info.settings, info.scores) == (settings, scores)
    assert (tmp_path / "a.gguf").stat().st_mode & 0o777 == 0o600


def test_the_file_is_a_valid_one_for_gguf_py(tmp_path: Path, tiny_model: Path) -> None:
    loras = trained(PackedWeights(tiny_model))
    write_adapter(tmp_path / "a.gguf", loras, header_of(tiny_model))
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    tensors = {tensor.name: tensor.data.reshape(tensor.shape[::-1]) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(loras)
    for name, lora in loras.items():
        np.testing.assert_array_equal(tensors[f"{name}.lora_a"], lora.a)
        np.testing.assert_array_equal(tensors[f"{name}.lora_b"], lora.b)


def test_the_same_run_writes_the_same_bytes(tmp_path: Path, tiny_model: Path) -> None:
    header = header_of(tiny_model)
    digests = {
        write_adapter(tmp_path / f"{n}.gguf", trained(PackedWeights(tiny_model)), header)
        for n in range(2)
    }
    assert len(digests) == 1


def test_a_write_that_fails_leaves_the_former_file_and_no_part(
    tmp_path: Path, tiny_model: Path
) -> None:
    loras = trained(PackedWeights(tiny_model))
    path = tmp_path / "a.gguf"
    write_adapter(path, loras, header_of(tiny_model))
    before = path.read_bytes()

    class Torn(LoraWeight):
        @property
        def scale(self) -> float:  # asked for its last matrices when the others are written
            raise OSError(28, "No space left on device")

        @scale.setter
        def scale(self, value: float) -> None: ...

    last = max(loras)
    with pytest.raises(OSError, match="No space"):
        write_adapter(path, {**loras, last: Torn(loras[last].a, loras[last].b, 1.0)},
                      header_of(tiny_model))  # fmt: skip
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_named_as_edge_convert_names_it(tmp_path: Path, family: str) -> None:
    path = model(tmp_path, family)
    assert tokenizer_sha256(read_gguf(path)) == converters_tokenizer_sha256(read_metadata(path))
    write_peft(tmp_path / "peft")
    reader = convert_lora(tmp_path / "peft", path, tmp_path / "theirs.gguf")
    write_adapter(tmp_path / "ours.gguf", trained(PackedWeights(path)), header_of(path))
    ours, base = tmp_path / "ours.gguf", read_gguf(path)
    theirs = check_adapter(tmp_path / "theirs.gguf", base, sha256_of(path))
    mine = check_adapter(ours, base, sha256_of(path))
    for field in ("base_sha256", "tokenizer_sha256", "template_sha256", "architecture"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert "edge_agent.base.quantization" in reader.fields


def test_a_real_tokenizers_hash_is_that_of_the_converter(gemma3: Path) -> None:
    ours = tokenizer_sha256(read_gguf(gemma3))
    assert ours == converters_tokenizer_sha256(read_metadata(gemma3))


# ---- checked -----------------------------------------------------------------------------------


@pytest.fixture
def good(tiny_model: Path) -> Draft:
    return good_adapter(tiny_model)


def test_the_good_adapter_is_accepted(tmp_path: Path, tiny_model: Path, good: Draft) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(good.packed())
    info = check_adapter(path, read_gguf(tiny_model), sha256_of(tiny_model))
    assert (info.name, info.lora_alpha) == ("good", 8.0)
    assert info.settings is None and info.scores is None


def test_every_bad_adapter_is_refused_for_its_own_reason(tmp_path: Path, tiny_model: Path) -> None:
    base, sha256 = read_gguf(tiny_model), sha256_of(tiny_model)
    cases = write_bad_adapters(tiny_model, tmp_path)
    assert len(cases) >= 40
    for case in cases:
        with pytest.raises(AdapterRefused) as refused:
            check_adapter(case.path, base, sha256)
        assert case.why in refused.value.why, (case.kind, refused.value.why)
        assert str(case.path) in refused.value.what and refused.value.hint
    assert len({case.why for case in cases}) >= 35, "reasons are told apart"


def test_an_adapter_made_elsewhere_needs_no_keys_of_ours(
    tmp_path: Path, tiny_model: Path, good: Draft
) -> None:
    foreign = good.said(edge_agent__base__sha256=None, edge_agent__base__quantization=None)
    path = tmp_path / "foreign.gguf"
    path.write_bytes(foreign.said(general__name=None).packed())
    info = check_adapter(path, read_gguf(tiny_model), sha256_of(tiny_model))
    assert (info.name, info.base_sha256) == ("foreign", None)


def test_an_adapter_of_a_checkpoint_directory_names_that_and_no_file(
    tmp_path: Path, tiny_model: Path, good: Draft
) -> None:
    """`edge-convert lora --base DIR` hashes the directory's weights, not this file."""
    path = tmp_path / "a.gguf"
    named = good.said(edge_agent__base__quantization=None, edge_agent__base__sha256="1" * 64)
    path.write_bytes(named.packed())
    assert check_adapter(path, read_gguf(tiny_model), sha256_of(tiny_model)).base_sha256 == "1" * 64


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"a": 1e999}', "\u0000"])
def test_settings_that_are_no_json_object_are_not_shown(
    tmp_path: Path, tiny_model: Path, good: Draft, text: str
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(good.said(edge_agent__adapter__settings=text).packed())
    settings = check_adapter(path, read_gguf(tiny_model), None).settings
    assert settings is None or settings == {"a": math.inf}


def test_flipped_bits_are_refused_or_harmless_and_never_an_untyped_error(
    tmp_path: Path, tiny_model: Path, good: Draft
) -> None:
    base, packed, source = read_gguf(tiny_model), good.packed(), random.Random(3)
    path, refused = tmp_path / "a.gguf", 0
    for _ in range(400):
        mutant = bytearray(packed)
        for _ in range(source.choice((1, 1, 4))):
            mutant[source.randrange(700)] ^= 1 << source.randrange(8)
        path.write_bytes(mutant)
        try:
            check_adapter(path, base, None)
        except AdapterRefused:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(("type_name", "form"), [("F32", "f"), ("F16", "e")])
def test_a_value_is_found_wherever_it_stands(type_name: str, form: str) -> None:
    source = random.Random(1)
    largest = 65504.0
    ordinary = [0.0, -0.0, 1.0, -largest, largest, 6e-8, -(2.0**-14)]
    values = [source.choice(ordinary) for _ in range(257)]
    assert not has_large(struct.pack(f"<257{form}", *values), type_name)
    bad = [math.nan, -math.nan, math.inf, -math.inf]
    bad += [65536.0, -65537.0, 3e38] if form == "f" else []
    for value in bad:
        for place in (0, 1, 128, 255, 256):
            changed = [*values[:place], value, *values[place + 1 :]]
            assert has_large(struct.pack(f"<257{form}", *changed), type_name), (value, place)


def rss_anon_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def test_a_large_adapter_is_checked_in_little_memory(tmp_path: Path) -> None:
    """64 MB of values, read in blocks."""
    side, r = 8192, 1024
    name = "blk.0.ffn_up.weight"
    weight = TensorInfo(name, "Q8_0", (side, side), 0, side * side, side * side // 32 * 34)
    base = GgufFile(tmp_path / "b.gguf", 0, 3, {"general.architecture": "llama"}, (weight,), 0, 0)
    a = np.random.default_rng(0).standard_normal((r, side), np.float32)
    loras = {name: LoraWeight(a, a.T.copy(), 1.0)}
    identity = BaseIdentity("0" * 64, "Q8_0", "1" * 64, None)
    write_adapter(tmp_path / "a.gguf", loras, AdapterHeader("big", "llama", identity))
    before = rss_anon_mb()
    info = check_adapter(tmp_path / "a.gguf", base, None)
    assert rss_anon_mb() - before < 8
    assert info.n_params == 2 * r * side


def test_checking_loads_no_numpy() -> None:
    """The front process checks adapters, and must stay small."""
    program = (
        "import sys, json, edge_agent.gguf.adapter_file;"
        "print(json.dumps(sorted({'numpy', 'llama_cpp', 'gguf'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
