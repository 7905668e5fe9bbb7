"""The end of `edge-convert hf`: does the file compute what transformers computes of the directory?

Why it exists: no list of settings is complete, and a comparison is. Flows in: the directory, and
the metadata and tensors that were made of it. Flows out: a SourceCheck with the KL divergence of 64
tokens, or the reason why there is none. The same tables are written once in float32, because the
loss of quantizing is another question (verify.py). One model is in memory after the other. Not
here: the tokenizer and the chat template (verify.py).
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.checkpoint import open_checkpoint, unwrapped
from converters.divergence import Divergence, log_softmax
from converters.gguf_container import Metadata
from converters.gguf_output import SourceTensor, write_model
from converters.logits import LlamaLogits, TorchLogits
from converters.quantizer import How
from edge_agent.cli.terminal import size_text
from edge_agent.errors import ConversionError
from edge_agent.llama.type_plan import TypeRequest
from edge_agent.machine import read_memory

N_TOKENS = 64
GATE = 1e-5
"""Largest mean KL in nats. Right conversions of random models reach 2e-6 (llama.cpp looks its GELU
up in a table of float16) and 1e-12 without GELU; one wrong setting costs 0.03 and more."""


@dataclass(frozen=True)
class SourceCheck:
    """`kl_mean` in nats; None with its `reason`."""

    kl_mean: float | None
    reason: str = ""


def check_source(
    directory: Path,
    metadata: Metadata,
    tensors: Sequence[SourceTensor],
    memory_bytes: int | None,
    how: How,
) -> SourceCheck:
    """Compare with transformers where that is installed and two float32 copies fit.

    `memory_bytes` None: what is available now. Raises ConversionError when the logits differ.
    """
    n_bytes = 2 * 4 * sum(tensor.n_elements for tensor in tensors)
    reason = _obstacle(directory, n_bytes, memory_bytes)
    if reason:
        return SourceCheck(None, reason)
    how.progress("comparing logits with transformers", None, None)
    width = len(metadata.get_value("tokenizer.ggml.tokens"))
    tokens = np.random.default_rng(0).integers(0, width, N_TOKENS).tolist()
    theirs = TorchLogits(directory, how.threads)
    reference = log_softmax(theirs.logits(tokens)[:, :width])
    theirs.close()
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as scratch:
        path = Path(scratch) / "source.gguf"
        write_model(path, metadata, tensors, TypeRequest("F32"), How(how.threads))
        ours = LlamaLogits(path, exact=True, threads=how.threads)
        found = Divergence()
        found.add(reference, log_softmax(ours.logits(tokens)[:, :width]))
        ours.close()
    if found.mean <= GATE:
        return SourceCheck(found.mean)
    raise ConversionError(
        f"the file would not be the model in {directory}",
        f"its logits differ from those of transformers: KL {found.mean:.2e}, at most {GATE:.0e}",
        "please report this with the model's config.json; `--no-compare` writes the file anyway",
    )


def _obstacle(directory: Path, n_bytes: int, memory_bytes: int | None) -> str:
    """Why there is no comparison; "" when nothing stands against it."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        return f"not installed: {', '.join(missing)} (pip install 'edge-agent[host]')"
    if any(name != unwrapped(name) for name in open_checkpoint(directory).tensors):
        return "transformers does not read this checkpoint's prefixes of tensor names"
    limit = read_memory().available_bytes if memory_bytes is None else memory_bytes
    if n_bytes > limit:
        return f"two float32 copies take {size_text(n_bytes)}, there are {size_text(limit)}"
    scratch = Path(tempfile.gettempdir())
    free = shutil.disk_usage(scratch).free
    if n_bytes // 2 > free:
        return f"a float32 copy takes {size_text(n_bytes // 2)}, {scratch} has {size_text(free)}"
    return ""
