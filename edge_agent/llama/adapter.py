"""LoRA adapters in GGUF form: load one into llama.cpp, free it.

Flows in: the path of a checked file: a broken one ends the process inside llama.cpp, and one that
holds a NaN is accepted without a word. Flows out: handles for Context.set_adapters. Not here: the
checks (gguf/adapter_file.py), and which adapter answers a request (engine/adapter_pool.py).
"""

from __future__ import annotations

from typing import Any

from edge_agent.errors import ModelRefused
from edge_agent.llama.binding import LogTail, lib
from edge_agent.llama.model import Model


def load_adapter(path: str, model: Model, log: LogTail) -> Any:
    """A handle, valid until `free_adapter` or the model's end. Raises ModelRefused."""
    with log.listening():
        handle = lib.llama_adapter_lora_init(model.handle, path.encode())
        if not handle:
            raise ModelRefused(
                f"the adapter {path} does not fit the model",
                log.errors() or "llama.cpp gave no reason",
                "use one that was trained on this very model",
            )
    return handle


def free_adapter(handle: Any) -> None:
    """Give its memory back. It must not be active in any context."""
    lib.llama_adapter_lora_free(handle)
