"""Logits of a text from either format: llama.cpp for a GGUF file, torch for a directory.

Flows in: a model and tokens. Flows out: float32 logits of every position. `exact` means float32
everywhere (KV cache, no flash attention), so that two models differ by their weights only;
otherwise the file runs as the daemon would run it. torch is imported only for directories, and no
code of a checkpoint runs. Not here: comparing (divergence.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from converters.extras import load_extra
from converters.rows import F32
from edge_agent.adapt.trainer.blas import choose_threads
from edge_agent.engine.adapter_pool import activate
from edge_agent.errors import ConversionError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.records import EngineSettings

WINDOW = 256
"""The most tokens of one evaluation; their logits take 268 MB for Gemma."""


class LogitSource(Protocol):
    """The interface of a model that computes logits."""

    def logits(self, tokens: Sequence[int]) -> F32:
        """Logits (n_tokens, n_vocab) of at most WINDOW tokens, valid until the next call."""

    def close(self) -> None: ...


class LlamaLogits:
    """A GGUF file in llama.cpp."""

    def __init__(
        self,
        path: Path,
        *,
        exact: bool,
        threads: int | None = None,
        adapters: Sequence[Path] = (),
    ) -> None:
        """Load the file and its `adapters`. Raises ModelFormatError, ModelRefused."""
        settings = EngineSettings(
            n_threads=choose_threads(threads),
            n_batch=WINDOW,
            flash_attn="off" if exact else "auto",
            type_k="f32" if exact else "f16",
            type_v="f32" if exact else "f16",
        )
        log = start_backend()
        self._model = Model(path, settings, log)
        self.vocabulary = self._model.vocabulary
        self._context = Context(self._model, settings, log, n_ctx=WINDOW, slots=1, outputs=WINDOW)
        activate([str(adapter) for adapter in adapters], path, self._model, self._context, log)

    def logits(self, tokens: Sequence[int]) -> F32:
        context = self._context
        context.truncate(0, 0)
        context.clear_batch()
        for position, token in enumerate(tokens):
            context.add(token, position, 0, output=True)
        context.decode()
        context.synchronize()
        shape = (len(tokens), self.vocabulary.n_tokens)
        return np.ctypeslib.as_array(context.logits(0), shape)

    def close(self) -> None:
        self._context.close()
        self._model.close()


class TorchLogits:
    """A Hugging Face directory in transformers, float32. The caller has checked the directory."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        """Load the directory. Raises EdgeAgentError when torch or transformers is missing, and
        ConversionError when transformers finds no weights for a part of the model."""
        torch = load_extra("torch", f"evaluating the directory {directory.name}")
        torch.set_num_threads(choose_threads(threads))
        self._torch = torch
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        self._model: Any = load_transformers(directory, **options).eval()

    def logits(self, tokens: Sequence[int]) -> F32:
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)])
            found: F32 = self._model(input_ids=ids).logits[0].float().numpy()
            return found

    def close(self) -> None:
        self._model = None


def load_transformers(directory: Path, **options: Any) -> Any:
    """The model of a checked directory in transformers; `options` are from_pretrained's.

    A quantization_config beside the plain weights is stale, and is left out; so is
    generation_config.json, which transformers may refuse and logits do not depend on. Raises
    EdgeAgentError without transformers, and ConversionError when transformers finds no weights for
    a part of the model, for which it would make up random ones.
    """
    transformers = load_extra("transformers", f"evaluating the directory {directory.name}")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    trusted = {"trust_remote_code": False, "local_files_only": True}
    config = transformers.AutoConfig.from_pretrained(directory, **trusted)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        config=config,
        generation_config=transformers.GenerationConfig(),
        use_safetensors=True,
        output_loading_info=True,
        **trusted,
        **options,
    )
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        other = "".join(f"; nor a use for {name}" for name in sorted(found["unexpected_keys"])[:1])
        raise ConversionError(
            f"transformers cannot load {directory}",
            f"it finds no weights for {len(found['missing_keys'])} tensors: {some}{other}",
            "save the model again with save_pretrained",
        )
    return model
