"""LoRA adapters: PEFT to GGUF, merged, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from convert_runner import convert
from converted import edit, tensors_of, write
from peft_adapter import PREFIX, WIDTHS, lora, write_peft
from safetensors_writer import write_arrays
from tiny_checkpoint import HEAD, HEADS, KV_HEADS, D, write_checkpoint

from converters import gguf_to_hf
from converters.divergence import Divergence, log_softmax
from converters.logits import LlamaLogits
from edge_agent.gguf.model_file import read_gguf


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    split = rows.reshape(heads, 2, HEAD // 2, -1)
    return np.stack([split[:, 0], split[:, 1]], axis=2).reshape(rows.shape)


def deltas(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """scale * b @ a of each weight, computed as llama.cpp does: alpha / rank."""
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    arrays = {t.name: t.data.reshape(tuple(reversed(t.shape.tolist()))) for t in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in arrays if name.endswith(".lora_a")}
    return {
        name: alpha / len(arrays[f"{name}.lora_a"]) * arrays[f"{name}.lora_b"]
        @ arrays[f"{name}.lora_a"]
        for name in names
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ranks", "settings", "scale"),
    [
        ({}, {}, lambda module, rank: 8 / rank),
        ({}, {"use_rslora": True}, lambda module, rank: 8 / math.sqrt(rank)),
        (
            {"mlp.down_proj": 2},
            {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"up_proj": 3}},
            lambda module, rank: (3 if module == "mlp.up_proj" else 8) / rank,
        ),
        (
            {"self_attn.q_proj": 8},
            {"use_rslora": True, "rank_pattern": {"q_proj": 8}},
            lambda module, rank: 8 / math.sqrt(rank),
        ),
    ],
)
def test_every_modules_scaling_is_what_peft_means(
    tmp_path: Path, ranks: dict[str, int], settings: dict[str, Any], scale: Any
) -> None:
    write_checkpoint(tmp_path / "hf", "llama")
    arrays = write_peft(tmp_path / "peft", ranks, **settings)
    found = deltas(lora(tmp_path / "peft", tmp_path / "hf", tmp_path / "a.gguf"))
    assert len(found) == 2 * len(WIDTHS)
    targets = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.up_proj": "ffn_up",
               "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}  # fmt: skip
    for layer in range(2):
        for module, target in targets.items():
            a, b = (arrays[f"{PREFIX}.{layer}.{module}.lora_{side}.weight"] for side in "AB")
            if target in ("attn_q", "attn_k"):
                b = interleaved(b, HEADS if target == "attn_q" else KV_HEADS)
            expected = scale(module, len(a)) * b @ a
            got = found[f"blk.{layer}.{target}.weight"]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6, err_msg=module)


def test_the_adapter_names_its_base_tokenizer_and_template(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "base.gguf", "Q8_0")
    write_peft(tmp_path / "peft")
    keys = {}
    for base in ("hf", "base.gguf"):
        reader = lora(tmp_path / "peft", tmp_path / base, tmp_path / "a.gguf")
        keys[base] = {
            name: bytes(field.parts[-1]).decode()
            for name, field in reader.fields.items()
            if name.startswith("edge_agent.")
        }
    assert keys["base.gguf"]["edge_agent.base.quantization"] == "Q8_0"
    assert "edge_agent.base.quantization" not in keys["hf"]
    for name in ("tokenizer", "template"):
        key = f"edge_agent.{name}.sha256"
        assert keys["hf"][key] == keys["base.gguf"][key]
    assert keys["hf"]["edge_agent.base.sha256"] != keys["base.gguf"]["edge_agent.base.sha256"]


def logits(path: Path, tokens: list[int], *adapters: Path) -> np.ndarray:
    source = LlamaLogits(path, exact=True, threads=1, adapters=adapters)
    try:
        return np.array(source.logits(tokens))
    finally:
        source.close()


def kl(a: np.ndarray, b: np.ndarray) -> float:
    divergence = Divergence()
    divergence.add(log_softmax(a), log_softmax(b))
    return divergence.mean


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_base_with_adapter_is_the_merged_model(tmp_path: Path, family: str) -> None:
    """In llama.cpp: the adapter beside its base, the merged file, the merged directory's file."""
    write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "base.gguf")
    write_peft(tmp_path / "peft")
    lora(tmp_path / "peft", tmp_path / "hf", tmp_path / "a.gguf")
    merge = ("merge", "--base", str(tmp_path / "hf"), "--adapter", str(tmp_path / "peft"), "-o")
    assert convert(*merge, str(tmp_path / "m.gguf"), "--type", "f32").code == 0
    assert convert(*merge, str(tmp_path / "merged")).code == 0
    write(tmp_path / "merged", tmp_path / "d.gguf")
    tokens = list(range(20, 60))
    with_adapter = logits(tmp_path / "base.gguf", tokens, tmp_path / "a.gguf")
    assert kl(with_adapter, logits(tmp_path / "base.gguf", tokens)) > 1e-3
    assert kl(with_adapter, logits(tmp_path / "m.gguf", tokens)) < 1e-6
    assert kl(with_adapter, logits(tmp_path / "d.gguf", tokens)) < 1e-6


def test_a_gguf_adapter_merges_into_a_quantized_base(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama")
    write(tmp_path / "hf", tmp_path / "base.gguf", "Q8_0")
    write_peft(tmp_path / "peft", use_rslora=True)
    lora(tmp_path / "peft", tmp_path / "base.gguf", tmp_path / "a.gguf")
    merge = ("merge", "--base", str(tmp_path / "base.gguf"), "--adapter", str(tmp_path / "a.gguf"))
    done = convert(*merge, "-o", str(tmp_path / "m.gguf"), "--type", "f32")
    assert done.code == 0
    assert "is not restored" in done.err and "round the adapter" not in done.err
    coarse = convert(*merge, "-o", str(tmp_path / "c.gguf"), "--type", "q4_0")
    assert "q4_0 may round the adapter away, q8_0 keeps it" in coarse.err
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    assert metadata["edge_agent.merged.base_quantization"] == "Q8_0"
    exact = gguf_to_hf.open_model(tmp_path / "base.gguf")
    assert exact.gguf.quantization == "Q8_0"
    done = convert(*merge, "-o", str(tmp_path / "out"), "--dtype", "f16")
    assert done.code == 0, done.err
    card = (tmp_path / "out/README.md").read_text()
    assert "quantized file `base.gguf` (Q8_0), dequantized" in card
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["dtype"], config["quantized_from"]["type"]) == ("float16", "Q8_0")
    tokens = list(range(20, 60))
    write(tmp_path / "out", tmp_path / "d.gguf")
    assert kl(logits(tmp_path / "m.gguf", tokens), logits(tmp_path / "d.gguf", tokens)) < 1e-4


def test_untouched_tensors_of_a_merge_keep_their_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "base.gguf")
    write_peft(tmp_path / "peft")
    merge = ("merge", "--base", str(tmp_path / "base.gguf"), "--adapter", str(tmp_path / "peft"))
    assert convert(*merge, "-o", str(tmp_path / "m.gguf"), "--type", "f32").code == 0
    before, after = tensors_of(tmp_path / "base.gguf"), tensors_of(tmp_path / "m.gguf")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(changed) == 2 * len(WIDTHS)
    assert "token_embd.weight" not in changed


REFUSED = {
    "DoRA": ({"use_dora": True}, "it is DoRA"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "bias": ({"bias": "all"}, "it trains biases"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "other method": ({"peft_type": "IA3"}, "it is IA3"),
    "alpha of 0": ({"lora_alpha": 0}, "it must be positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_gguf_cannot_express_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    settings, message = REFUSED[case]
    write_checkpoint(tmp_path / "hf", "qwen2")
    write_peft(tmp_path / "peft", **settings)
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "hf"), "-o", str(tmp_path / "a")
    )
    assert (done.code, message in done.err) == (1, True), done.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base_model.model.lm_head.lora_A.weight", "ties its head"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "neither lora_A nor lora_B"),
        ("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", "does not have"),
        ("base_model.model.model.norm.weight", "neither lora_A nor lora_B"),
    ],
)
def test_modules_without_a_place_are_refused(tmp_path: Path, name: str, message: str) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2", is_tied=True)
    arrays = write_peft(tmp_path / "peft")
    arrays[name] = np.ones((4, D), np.float32)
    write_arrays(tmp_path / "peft/adapter_model.safetensors", arrays)
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "hf"), "-o", str(tmp_path / "a")
    )
    assert (done.code, message in done.err) == (1, True), done.err


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    arrays = write_peft(tmp_path / "peft")
    name = f"{PREFIX}.0.mlp.up_proj.lora_A.weight"
    arrays[name] = arrays[name][:, :-1].copy()
    write_arrays(tmp_path / "peft/adapter_model.safetensors", arrays)
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "hf"), "-o", str(tmp_path / "a")
    )
    assert (done.code, "the base has [256, 64]" in done.err) == (1, True), done.err


def test_code_beside_an_adapter_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write_peft(tmp_path / "peft")
    (tmp_path / "peft/adapter_model.bin").write_bytes(b"\x80\x02.")
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "hf"), "-o", str(tmp_path / "a")
    )
    assert (done.code, "pickle" in done.err) == (1, True)


def test_nan_in_an_adapter_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    arrays = write_peft(tmp_path / "peft")
    arrays[f"{PREFIX}.1.self_attn.o_proj.lora_B.weight"][0, 0] = np.nan
    write_arrays(tmp_path / "peft/adapter_model.safetensors", arrays)
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "hf"), "-o", str(tmp_path / "a")
    )
    assert (done.code, "self_attn.o_proj.lora_B.weight holds NaN" in done.err) == (1, True)


def test_a_base_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    write_peft(tmp_path / "peft")
    (tmp_path / "empty").mkdir()
    done = convert(
        "lora", str(tmp_path / "peft"), "--base", str(tmp_path / "empty"), "-o", str(tmp_path / "a")
    )
    assert (done.code, "no config.json" in done.err) == (1, True)


def test_changed_settings_are_read_from_the_directory(tmp_path: Path) -> None:
    """The same matrices with another alpha are another adapter."""
    write_checkpoint(tmp_path / "hf", "qwen2")
    write_peft(tmp_path / "peft")
    before = deltas(lora(tmp_path / "peft", tmp_path / "hf", tmp_path / "a.gguf"))
    edit(tmp_path / "peft/adapter_config.json", lora_alpha=32)
    after = deltas(lora(tmp_path / "peft", tmp_path / "hf", tmp_path / "b.gguf"))
    for name in before:
        np.testing.assert_allclose(after[name], 4 * before[name], rtol=1e-6)
