"""The trainers of device and host on tiny models: one start, one order, one loss at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import write_tiny

pytest.importorskip("torch")

from adapt_gradients import opened
from device_host import Budget, compared

from converters.gguf_output import write_model
from converters.hf_to_gguf import load
from converters.quantizer import How
from edge_agent.llama.type_plan import TypeRequest


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_both_trainers_end_at_the_same_loss(family: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(
        path, *load(write_tiny(tmp_path / "model", family)), TypeRequest("Q8_0"), How(threads=1)
    )
    with opened(path, None) as base:
        found = compared(base, Budget(facts=4, wordings=2, batch_rows=4, epochs=2), tmp_path)
    assert found["met"], found
    assert found["steps"]["worst"] < 1e-4
    for loss in found["torch"]:
        assert loss["difference"] < 1e-4 and loss["host"] < loss["base"]
