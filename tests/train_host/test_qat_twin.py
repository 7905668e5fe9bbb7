"""The off-grid twin computes what the original computes, with other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import arrays_of, write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from off_grid_twin import repeated, write_twin  # noqa: E402

from converters import gguf_to_hf, hf_to_gguf  # noqa: E402
from converters.gguf_output import write_model  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402


def logits(directory: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.inference_mode():
        return model(input_ids=torch.arange(20, 60)[None]).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_a_twin_computes_the_same_with_other_weights(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", family)
    path = tmp_path / "tiny.gguf"
    write_model(path, *hf_to_gguf.load(tmp_path / "checkpoint"), TypeRequest("F32"), How(threads=2))
    gguf_to_hf.convert(path, tmp_path / "original")
    write_twin(tmp_path / "original", tmp_path / "twin", seed=1)
    original, twin = logits(tmp_path / "original"), logits(tmp_path / "twin")
    assert torch.allclose(original, twin, rtol=0, atol=2e-5 * float(original.abs().max()))
    before, after = arrays_of(tmp_path / "original"), arrays_of(tmp_path / "twin")
    moved = {name for name, array in before.items() if not np.array_equal(array, after[name])}
    wanted = [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    wanted += [f"self_attn.{x}_proj" for x in "qkvo"]
    assert {f"model.layers.{n}.{x}.weight" for n in (0, 1) for x in wanted} <= moved
    ratio = (
        after["model.layers.0.mlp.down_proj.weight"] / before["model.layers.0.mlp.down_proj.weight"]
    )
    assert 0.95 < ratio.min() < 0.97 and 1.03 < ratio.max() < 1.06


def test_query_heads_of_a_group_share_the_factors_of_their_head() -> None:
    s = np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(repeated(s, 4, 2), [1, 2, 1, 2, 3, 4, 3, 4])
