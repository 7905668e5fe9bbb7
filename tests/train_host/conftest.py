"""Host tests: tiny random models, and the warnings of third parties by their exact words.

The tests are skipped where torch is not installed (the device's environment).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import write_tiny

THIRD_PARTY: tuple[str, ...] = (
    # peft 0.21 asks transformers 5.24 by the old name.
    "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6. Use "
    "`is_activation_checkpointing` instead.:FutureWarning",
)
"""Filters as of pytest's filterwarnings: action:message:category."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for line in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory of 0.2 M random weights that speaks ChatML."""
    return write_tiny(tmp_path_factory.mktemp("tiny-llama") / "model", "llama")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short rows, some with two answers."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"instruction": f"What is {n}?", "output": f"{n} is a number."} for n in range(30)]
    for n in range(10):
        turns = [f"Say {n}", f"{n}", "Again", f"{n}, {n}"]
        roles = ("user", "assistant") * 2
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
        rows.append({"messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
