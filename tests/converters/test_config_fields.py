"""Every member of config.json is read, without effect, or refused by name; the head is the model's.

benchmarks/convert_fields.py compares the same cases with transformers' logits; it needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_runner import convert
from converted import edit, tensors_of, write
from safetensors_writer import write_arrays
from tiny_checkpoint import put_json, write_checkpoint

from converters.checkpoint import read_config
from converters.config_fields import IGNORED_KEY
from converters.families import family_of_config
from converters.gguf_container import Metadata
from edge_agent.errors import ConversionError

FIXTURE = Path(__file__).parent.parent / "fixtures" / "configs.json"
GOLDEN: dict[str, dict[str, Any]] = json.loads(FIXTURE.read_text())
"""config.json of published models, and what transformers 5.24 saves after loading each."""

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def network(directory: Path, config: dict[str, Any]) -> Metadata:
    """The keys of a config.json alone; no weights are needed for them."""
    put_json(directory / "config.json", config)
    found = read_config(directory)
    return family_of_config(directory, found).hyperparameters(found)


def meaning(keys: Metadata) -> dict[str, Any]:
    """The keys, and what llama.cpp takes for those that are absent."""
    found = {name.partition(".")[2]: value.value for name, value in keys.items()}
    head = found["embedding_length"] // found["attention.head_count"]
    usual = {"rope.freq_base_swa": 10000.0, "attention.key_length": head}
    return {**usual, "attention.value_length": head, **found}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_models_are_accepted_in_the_words_of_transformers_4_and_5(
    tmp_path: Path, name: str
) -> None:
    older, newer = (network(tmp_path, GOLDEN[name][x]) for x in ("published", "transformers_5"))
    assert meaning(older) == meaning(newer)
    sizes = GOLDEN[name]["published"]
    layers = sizes.get("text_config", sizes)["num_hidden_layers"]
    architecture = next(iter(older)).partition(".")[0]
    assert older.get_value(f"{architecture}.block_count") == layers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma-3-270m", {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4}),
        ("gemma-3-4b", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0,
                        "attention.sliding_window": 1024, "attention.head_count": 8,
                        "context_length": 131072}),
        ("gemma-3-27b", {"attention.key_length": 128, "rope.freq_base": 1e6}),
        ("qwen2.5-7b-yarn", {"rope.scaling.type": "yarn", "rope.scaling.attn_factor": None,
                             "rope.scaling.original_context_length": 32768}),
        ("qwen3-0.6b", {"attention.key_length": 128, "rope.scaling.type": None}),
        ("llama-3.2-1b", {"rope.scaling.type": None, "rope.freq_base": 5e5}),
    ],
)  # fmt: skip
def test_published_settings_arrive(tmp_path: Path, name: str, expected: dict[str, Any]) -> None:
    keys = network(tmp_path, GOLDEN[name]["published"])
    architecture = next(iter(keys)).partition(".")[0]
    assert {key: keys.get_value(f"{architecture}.{key}") for key in expected} == expected


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"residual_multiplier": 0.5}, "residual_multiplier of config.json is 0.5"),
    ("llama", {"num_experts": 8}, "num_experts"),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act of config.json is "gelu"'),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"mlp_bias": "false"}, "mlp_bias"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("llama", {"sliding_window": 512}, "sliding_window"),
    ("llama", {"model_type": "mistral"}, 'model_type of config.json is "mistral"'),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder"),
    ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("llama", {"rms_norm_eps": "1e-5"}, 'rms_norm_eps of config.json is "1e-5"'),
    ("llama", {"rope_theta": [1]}, "rope_theta"),
    ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers of config.json is 2.5"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
    ("llama", {"rope_scaling": {**LINEAR, "factor": "4"}}, "rope_scaling.factor"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.type"),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type"),
    ("llama", {"rope_scaling": {**LINEAR, "alpha": 2.0}}, "rope_scaling.alpha"),
    ("llama", {"rope_parameters": {"full_attention": LINEAR}}, "rope_parameters.full_attention"),
    ("llama", {"rope_scaling": {**YARN, "truncate": False}}, "rope_scaling.truncate"),
    ("qwen2", {"rope_scaling": {**YARN, "beta_fast": 8}}, "rope_scaling.beta_fast"),
    ("qwen2", {"rope_scaling": {**YARN, "beta_slow": 2.0}}, "rope_scaling.beta_slow"),
    ("qwen2", {"rope_scaling": LLAMA3}, "rope_scaling.rope_type"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
     "rope_parameters.partial_rotary_factor"),
    ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar of config.json is 64"),
    ("gemma3", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar of config.json is 256"),
    ("gemma3", {"num_hidden_layers": 62, "num_attention_heads": 2}, "query_pre_attn_scalar"),
    ("gemma3", {"sliding_window_pattern": 2}, "sliding_window_pattern"),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ("gemma3", {"hidden_activation": "silu"}, "hidden_activation"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"rope_scaling": {**YARN, "attention_factor": 1.5}}, "attention_factor"),
    ("gemma3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling.type"),
    ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
     "rope_parameters.rope_type"),
    ("gemma3", {"rope_parameters": {"sliding_attention": LINEAR}}, "sliding_attention.rope_type"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path / "hf", family)
    edit(tmp_path / "hf/config.json", **changes)
    with pytest.raises(ConversionError) as caught:
        write(tmp_path / "hf", tmp_path / "m.gguf")
    assert message in caught.value.why
    assert caught.value.hint
    assert not (tmp_path / "m.gguf").exists()


NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"_anything": 1, "unsloth_version": "x", "sep_token_id": 3, "image_token_index": 4,
               "resid_dropout": 0.5, "torch_dtype": "float16", "pretraining_tp": 2,
               "transformers.js_config": {"a": 1}, "id2label": {"0": "a"}, "max_length": 20}),
    ("llama", {"num_experts": None, "layers_block_type": [], "quant": "", "moe": {}}),
    ("llama", {"attention_bias": True, "hidden_act": "swish"}),
    ("qwen2", {"sliding_window": 8, "max_window_layers": 0, "use_sliding_window": False}),
    ("qwen3", {"layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1}),
    ("gemma3", {"layer_types": ["sliding_attention"] * 2, "cache_implementation": "hybrid"}),
    ("gemma3", {"quantization_config": {"quant_method": "bitsandbytes"}}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), NEUTRAL)
def test_members_without_effect_change_no_key(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    write_checkpoint(tmp_path / "hf", family)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert network(tmp_path, {**config, **changes}) == network(tmp_path, config)


def test_an_ignored_member_is_left_out_and_named_in_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    edit(tmp_path / "hf/config.json", rope_scaling={**YARN, "truncate": False}, strange=1)
    path = tmp_path / "m.gguf"
    argv = ("hf", str(tmp_path / "hf"), "-o", str(path), "--no-compare")
    refused = convert(*argv, "--ignore-field", "strange")
    assert "rope_scaling.truncate" in refused.err
    flags = ("--ignore-field", "strange", "--ignore-field", "rope_scaling.truncate")
    assert convert(*argv, *flags).code == 0
    from converters.gguf_container import read_metadata

    metadata = read_metadata(path)
    assert metadata.get_value(IGNORED_KEY) == ["strange", "rope_scaling.truncate"]
    assert metadata.get_value("qwen2.rope.scaling.type") == "yarn"
    unknown = convert(*argv, "--ignore-field", "strnge")
    assert (unknown.code, "'strnge'" in unknown.err) == (1, True)


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        ({}, None),
        ({"attention_factor": 1.1386294361119891}, None),  # what transformers computes by itself
        ({"attention_factor": 1.0}, 1 / 1.1386294361119891),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / 1.1386294361119891),
        ({"mscale": 0.5}, None),
    ],
)
def test_yarns_magnitude_is_written_as_a_multiple_of_llama_cpps(
    tmp_path: Path, scaling: dict[str, float], factor: float | None
) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    edit(tmp_path / "hf/config.json", rope_scaling={**YARN, **scaling})
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    found = metadata.get_value("qwen2.rope.scaling.attn_factor")
    assert found == (None if factor is None else pytest.approx(factor))
    assert metadata.get_value("qwen2.rope.scaling.yarn_attn_factor") is None


def test_rope_scaling_goes_before_rope_parameters(tmp_path: Path) -> None:
    config = GOLDEN["qwen2.5-7b"]["transformers_5"]
    keys = network(tmp_path, {**config, "rope_scaling": LINEAR})
    assert keys.get_value("qwen2.rope.scaling.factor") == 4.0
    assert keys.get_value("qwen2.rope.freq_base") is None  # it stood in rope_parameters alone


def test_members_beside_a_text_config_are_not_the_text_models(tmp_path: Path) -> None:
    config = GOLDEN["gemma-3-4b"]["published"]
    beside = {**config, "sliding_window": 4, "rope_scaling": YARN, "hidden_size": 8}
    assert network(tmp_path, beside) == network(tmp_path, config)


def _with_head(directory: Path, family: str, head: str, **changes: Any) -> None:
    arrays = write_checkpoint(directory, family, is_tied=True)
    embedding = arrays["model.embed_tokens.weight"]
    if head != "none":
        arrays["lm_head.weight"] = embedding.copy() if head == "same" else embedding + 1
        write_arrays(directory / "model.safetensors", arrays)
    edit(directory / "config.json", **changes)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize(
    ("head", "is_tied", "is_written"),
    [("other", True, True), ("same", True, False), ("none", True, False), ("other", False, True)],
)
def test_a_head_of_its_own_is_written_whatever_the_config_says(
    tmp_path: Path, family: str, head: str, is_tied: bool, is_written: bool
) -> None:
    _with_head(tmp_path / "hf", family, head, tie_word_embeddings=is_tied)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    found = tensors_of(tmp_path / "m.gguf")
    assert ("output.weight" in found) == is_written
    if is_written:
        np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"] + 1)


def test_an_untied_model_without_a_head_is_refused(tmp_path: Path) -> None:
    _with_head(tmp_path / "hf", "gemma3", "none", tie_word_embeddings=False)
    with pytest.raises(ConversionError, match=r"lm_head\.weight is missing"):
        write(tmp_path / "hf", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod.", "_fsdp_wrapped_module."],
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "plain.gguf")
    write_arrays(tmp_path / "hf/model.safetensors", {prefix + n: a for n, a in arrays.items()})
    write(tmp_path / "hf", tmp_path / "m.gguf")
    plain, found = tensors_of(tmp_path / "plain.gguf"), tensors_of(tmp_path / "m.gguf")
    assert plain.keys() == found.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_parts_that_wrappers_add_inside_a_name_are_taken_off(tmp_path: Path) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "qwen2")
    renamed = {n.replace("layers.1.", "layers.1._orig_mod."): a for n, a in arrays.items()}
    write_arrays(tmp_path / "hf/model.safetensors", renamed)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    assert len(tensors_of(tmp_path / "m.gguf")) == len(arrays)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "qwen2")
    name = "model.norm.weight"
    write_arrays(tmp_path / "hf/model.safetensors", {**arrays, f"module.{name}": arrays[name] + 1})
    with pytest.raises(ConversionError, match=r"are both model\.norm\.weight"):
        write(tmp_path / "hf", tmp_path / "m.gguf")


def test_hf_says_in_one_line_that_it_did_not_compare(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    argv = ("hf", str(tmp_path / "hf"), "-o", str(tmp_path / "m.gguf"), "--memory", "1M")
    notes = convert(*argv).err.split("\n")
    (line,) = [note for note in notes if note.startswith("not compared with transformers: ")]
    assert "not installed" in line or "two float32 copies take" in line
    assert not [x for x in convert(*argv, "--no-compare").err.split("\n") if "compared" in x]


def test_biases_belong_to_a_llama_that_announces_them_and_come_back(tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    arrays = write_checkpoint(hf, "llama")
    for layer in range(2):
        for name, size in {"q": 64, "k": 32, "v": 32, "o": 64}.items():
            key = f"model.layers.{layer}.self_attn.{name}_proj.bias"
            arrays[key] = np.full(size, 0.5, np.float32)
    write_arrays(hf / "model.safetensors", arrays)
    with pytest.raises(ConversionError, match="8 tensors have no place"):
        write(hf, tmp_path / "m.gguf")
    edit(hf / "config.json", attention_bias=True)
    write(hf, tmp_path / "m.gguf")
    assert convert("to-hf", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "back")).code == 0
    assert json.loads((tmp_path / "back/config.json").read_text())["attention_bias"] is True


def test_a_multimodal_model_is_tied_as_its_top_level_says(tmp_path: Path) -> None:
    text = {"tie_word_embeddings": False, "hidden_size": 64}
    put_json(tmp_path / "config.json", {"tie_word_embeddings": True, "text_config": text})
    assert read_config(tmp_path)["tie_word_embeddings"] is True


def test_a_checkpoint_saved_without_its_head_s_class_has_bare_names(tmp_path: Path) -> None:
    hf = tmp_path / "hf"
    arrays = write_checkpoint(hf, "llama", is_tied=True)
    write(hf, tmp_path / "a.gguf")
    bare = {name.removeprefix("model."): array for name, array in arrays.items()}
    write_arrays(hf / "model.safetensors", bare)
    write(hf, tmp_path / "b.gguf")
    a, b = tensors_of(tmp_path / "a.gguf"), tensors_of(tmp_path / "b.gguf")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"layer_types": 5}),
        ("qwen2", {"layer_types": [{"a": 1}, {"a": 1}]}),
        ("llama", {"head_dim": 15}),
        ("llama", {"rope_theta": 0}),
        ("gemma3", {"final_logit_softcapping": 0.0}),
    ],
)
def test_values_that_no_model_has_are_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    write_checkpoint(tmp_path / "hf", family)
    edit(tmp_path / "hf/config.json", **changes)
    with pytest.raises(ConversionError) as caught:
        write(tmp_path / "hf", tmp_path / "m.gguf")
    assert next(iter(changes)) in caught.value.why
