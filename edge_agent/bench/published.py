"""Figures that others published for small boards, which a report shows beside ours.

Flows out: rows with their source. This project measured none of them, so a report prints them in a
table of their own that says so. Sources are named as their authors name them. Not here: our own
measurements.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row. A figure that the source does not give is None."""

    board: str
    model: str
    engine: str
    prefill_tok_s: str | None
    decode_tok_s: str | None
    watts: str | None
    j_per_token: str | None
    source: str


NANO = "Jetson Nano 4 GB"
ORIN_NANO = "Jetson Orin Nano 8 GB"
AGX = "Jetson AGX Orin 64 GB"
KREIER = "kreier/llama.cpp-jetson, README"
SMOLHUB = "smolhub.com"
MAXPERF = "jbecirovski/jetson-llm-maxperf"

ROWS = (
    Published(
        NANO,
        "Gemma 3 1B Q8_0",
        "not told",
        None,
        "3-5",
        "5-7",
        None,
        "told by this project's owner, not measured by it; 64 tokens in 15-20 s",
    ),
    Published(
        NANO, "Gemma 3 1B Q4_K_M", "llama.cpp CUDA b5050", "23.3", "5.26", None, None, KREIER
    ),
    Published(NANO, "Gemma 3 1B Q4_K_M", "llama-bench CUDA", "115.75", "5.84", None, None, KREIER),
    Published(NANO, "Gemma 3 1B Q4_K_M", "llama.cpp CPU b5058", "7.5", "4.22", None, None, KREIER),
    Published(NANO, "Gemma 3 1B Q4_K_M", "ollama 0.6.4 CPU", "9.6", "4.69", None, None, KREIER),
    Published(NANO, "TinyLlama 1.1B Q4_K_M", "llama.cpp CUDA", "80.6", "6.69", None, None, KREIER),
    Published(
        NANO, "Qwen3 0.6B Q4_K_M", "llama.cpp CUDA", "37.7", "7.7", None, None, f"{KREIER}, issue 3"
    ),
    Published(
        ORIN_NANO,
        "Gemma 3 1B Q4_K_M, 25 W",
        "llama.cpp, flash attention",
        None,
        "38.1",
        None,
        None,
        "drwjkirkpatrick-web/jetson-llm-benchmark",
    ),
    Published(
        "Jetson Orin Nano Super",
        "SmolLM2 135M, 25 W",
        "llama.cpp",
        None,
        "165",
        "5.4",
        "0.044",
        SMOLHUB,
    ),
    Published(AGX, "Llama 3.1 8B Q4_K_M, 30 W", "llama.cpp", None, "6.6", None, "2.71", MAXPERF),
    Published(AGX, "Llama 3.1 8B Q4_K_M, MAXN", "llama.cpp", None, "22.0", None, "2.17", MAXPERF),
)
