"""adapter_config.json and the names of a PEFT adapter: obeyed as PEFT does, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_runner import convert
from converted import edit
from peft_adapter import PREFIX, write_peft
from safetensors_writer import write_arrays
from tiny_checkpoint import arrays_of, put_json, write_checkpoint

from converters.adapter import Adapter, read_adapter
from converters.adapter_settings import REFUSED, WITHOUT_EFFECT
from converters.base_model import open_base
from edge_agent.errors import ConversionError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "hf", "qwen2")
    return tmp_path / "hf"


def read(peft: Path, base: Path) -> Adapter:
    return read_adapter(peft, open_base(base).placements)


def assert_same(a: Adapter, b: Adapter) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name].scale * a[name].b, b[name].scale * b[name].b)
        np.testing.assert_array_equal(a[name].a, b[name].a)


CHANGES: list[dict[str, Any]] = [
    *(
        {"init_lora_weights": init}
        for init in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga", "new", ["x"])
    ),
    *({name: {"x": 1}} for name in REFUSED if name != "bias"),
    {"bias": "lora_only"},
    {"use_new_method": True},
    {"new_scale": 0.5},
    {"use_rslora": "true"},
    {"alpha_pattern": {"q_proj": 0}},
    {"alpha_pattern": {"q_proj(": 8}},
    {"rank_pattern": ["q_proj"]},
    {"rank_pattern": {"q_proj": 8}},
    {"r": 8},
    {"r": "4"},
    {"lora_alpha": float("inf")},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_what_changes_the_adapter_and_is_not_computed_is_named(
    tmp_path: Path, base: Path, change: dict[str, Any]
) -> None:
    write_peft(tmp_path / "peft", **change)
    with pytest.raises(ConversionError) as refused:
        read(tmp_path / "peft", base)
    (name,) = change
    assert re.search(rf"\b{name}\b", refused.value.why)
    assert refused.value.hint


def test_fields_without_effect_and_empty_ones_change_nothing(tmp_path: Path, base: Path) -> None:
    write_peft(tmp_path / "peft")
    plain = read(tmp_path / "peft", base)
    edit(tmp_path / "peft/adapter_config.json", **dict.fromkeys(WITHOUT_EFFECT, "anything"))
    assert_same(read(tmp_path / "peft", base), plain)
    for empty in (None, "", [], {}, False):
        names = [*REFUSED, "new_field", *(() if empty is False else ("rank_pattern", "r"))]
        edit(tmp_path / "peft/adapter_config.json", **dict.fromkeys(names, empty))
        assert_same(read(tmp_path / "peft", base), plain)
    edit(tmp_path / "peft/adapter_config.json", unsloth_fixed=True, _name=1, lora_alpha=None)
    assert_same(read(tmp_path / "peft", base), plain)  # PEFT's default is 8, as in write_peft


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_read(tmp_path: Path, base: Path, init: Any) -> None:
    write_peft(tmp_path / "peft", init_lora_weights=init)
    assert len(read(tmp_path / "peft", base)) == 10


@pytest.mark.parametrize(
    ("wanted", "written"),
    [
        ("base_model.model.", "_orig_mod.base_model.model."),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "base_model.model.base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", ""),
        (".self_attn.", "._checkpoint_wrapped_module.self_attn."),
        (".mlp.", "._fsdp_wrapped_module._orig_mod.mlp."),
        (".weight", ".another_name.weight"),
    ],
)
def test_names_that_wrappers_change_are_the_same_modules(
    tmp_path: Path, base: Path, wanted: str, written: str
) -> None:
    arrays = write_peft(tmp_path / "peft", alpha_pattern={"model.layers.1.mlp.up_proj": 2})
    plain = read(tmp_path / "peft", base)
    renamed = {name.replace(wanted, written): array for name, array in arrays.items()}
    write_arrays(tmp_path / "peft" / WEIGHTS, renamed)
    assert_same(read(tmp_path / "peft", base), plain)


def test_two_matrices_of_one_module_are_refused(tmp_path: Path, base: Path) -> None:
    arrays = write_peft(tmp_path / "peft")
    name = f"{PREFIX}.0.mlp.up_proj.lora_A.weight"
    for other in (f"module.{name}", name.replace("model.layers", "language_model.model.layers")):
        write_arrays(tmp_path / "peft" / WEIGHTS, {**arrays, other: arrays[name]})
        with pytest.raises(ConversionError, match=r"two lora_A of|only one of lora_A"):
            read(tmp_path / "peft", base)


# ---- multimodal Gemma 3 ------------------------------------------------------------------------


def as_multimodal(directory: Path, language_model: str) -> None:
    """Give a text checkpoint the names and config.json of a multimodal one."""
    text = json.loads((directory / "config.json").read_text())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
              "text_config": {**text, "model_type": "gemma3_text"}, "vision_config": {"x": 1},
              "image_token_index": 9, "quantization_config": {"quant_method": "bitsandbytes"},
              "eos_token_id": [1, 7]}  # fmt: skip
    put_json(directory / "config.json", config)
    arrays = {name.replace("model.", language_model): array
              for name, array in arrays_of(directory).items()}  # fmt: skip
    arrays["vision_tower.encoder.layers.0.mlp.fc1.weight"] = np.ones((4, 4), np.float32)
    write_arrays(directory / "model.safetensors", arrays)


@pytest.mark.parametrize("language_model", ["model.language_model.", "language_model.model."])
def test_patterns_match_the_names_of_the_model_that_was_trained(
    tmp_path: Path, language_model: str
) -> None:
    write_checkpoint(tmp_path / "hf", "gemma3")
    write_peft(tmp_path / "plain")
    plain = read(tmp_path / "plain", tmp_path / "hf")
    as_multimodal(tmp_path / "hf", language_model)
    pattern = {f"^{language_model}layers.1.mlp.up_proj": 80, "layers.0.mlp.up_proj": 4}
    arrays = write_peft(tmp_path / "peft", alpha_pattern=pattern)
    names = {name.replace("model.layers", f"{language_model}layers"): array
             for name, array in arrays.items()}  # fmt: skip
    write_arrays(tmp_path / "peft" / WEIGHTS, names)
    found = read(tmp_path / "peft", tmp_path / "hf")
    ratios = {name: found[name].scale / plain[name].scale for name in plain}
    own = {"blk.1.ffn_up.weight": 10.0, "blk.0.ffn_up.weight": 0.5}
    assert ratios == {name: own.get(name, 1.0) for name in plain}


def test_a_merged_multimodal_base_becomes_its_text_model(tmp_path: Path) -> None:
    """The names and config.json that transformers reads as Gemma3ForCausalLM."""
    write_checkpoint(tmp_path / "hf", "gemma3")
    names = set(arrays_of(tmp_path / "hf"))
    text = json.loads((tmp_path / "hf/config.json").read_text())
    del text["tie_word_embeddings"]  # a multimodal model has it at the top, where it is true
    as_multimodal(tmp_path / "hf", "language_model.model.")
    write_peft(tmp_path / "peft")
    merge = ("merge", "--base", str(tmp_path / "hf"), "--adapter", str(tmp_path / "peft"))
    done = convert(*merge, "-o", str(tmp_path / "out"))
    assert (done.code, "only its text model is written" in done.err) == (0, True), done.err
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {**text, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
                      "eos_token_id": [1, 7], "dtype": "float32"}  # fmt: skip
    assert set(arrays_of(tmp_path / "out")) == names
    assert "without its vision part" in (tmp_path / "out/README.md").read_text()
