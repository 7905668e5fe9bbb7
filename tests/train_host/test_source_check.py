"""A conversion is compared with transformers' logits, and a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from converted import edit
from safetensors_writer import write_arrays
from tiny_checkpoint import write_checkpoint

from converters.hf_to_gguf import load
from converters.logits import TorchLogits
from converters.quantizer import How
from converters.source_check import GATE, check_source
from edge_agent.errors import ConversionError

pytest.importorskip("torch")
HOW = How(threads=1)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
        "attention_factor": 1.5}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_conversion_computes_what_transformers_computes(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path / "hf", family, n_layer=7 if family == "gemma3" else 2)
    if family != "gemma3":
        edit(tmp_path / "hf/config.json", rope_scaling=YARN)
    check = check_source(tmp_path / "hf", *load(tmp_path / "hf"), None, HOW)
    assert check.kl_mean is not None and check.kl_mean <= GATE


def test_another_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    metadata, tensors = load(tmp_path / "hf")
    metadata.put("f32", "qwen2.rope.freq_base", 500.0)
    with pytest.raises(ConversionError, match="would not be the model") as caught:
        check_source(tmp_path / "hf", metadata, tensors, None, HOW)
    assert "KL" in caught.value.why


def test_a_head_trained_apart_and_a_stale_quantization_config_are_computed_alike(
    tmp_path: Path,
) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "gemma3")
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"][::-1].copy()
    write_arrays(tmp_path / "hf/model.safetensors", arrays)
    stale = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(tmp_path / "hf/config.json", quantization_config=stale)
    check = check_source(tmp_path / "hf", *load(tmp_path / "hf"), None, HOW)
    assert check.kl_mean is not None and check.kl_mean <= GATE


def test_a_directory_that_transformers_would_fill_with_random_weights_is_refused(
    tmp_path: Path,
) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "qwen2")
    write_arrays(tmp_path / "hf/model.safetensors", {f"module.{n}": a for n, a in arrays.items()})
    check = check_source(tmp_path / "hf", *load(tmp_path / "hf"), None, HOW)
    assert check.kl_mean is None and "prefixes" in check.reason
    with pytest.raises(ConversionError, match="transformers cannot load"):
        TorchLogits(tmp_path / "hf", 1)
