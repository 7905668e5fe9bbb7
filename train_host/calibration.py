"""The rows that a run learned from, as the text on which an importance matrix is computed.

Why it exists: which columns of a weight matter depends on what the model will be asked, and the
training rows are the best guess at that. `edge-convert imatrix` reads chats; rows come in three
forms. Flows in: RUN/train_rows.jsonl and a model file. Flows out: an Imatrix, or None with the
reason. Not here: the sums (converters/imatrix.py).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from converters.imatrix import N_CTX, compute, read_tokens
from converters.imatrix_file import Imatrix
from converters.quantizer import How
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.binding import start_backend
from edge_agent.llama.model import Model
from edge_agent.records import EngineSettings
from train_host.samples import read_data

CHUNKS = 100
"""The default of the most chunks of 512 tokens; llama-imatrix's users take 100 to 200."""


def importance_of(
    model: Path, rows: Path, n_chunks: int, how: How, scratch: Path
) -> tuple[Imatrix | None, str | None]:
    """(matrix, None), or (None, the reason). The chats are written to the directory `scratch`.

    Raises DataRefused, and ConversionError when the model computes NaN.
    """
    chats = scratch / "chats.jsonl"
    chats.write_text(chats_of(rows), encoding="utf-8")
    n_tokens = _count(model, chats)
    if n_tokens < N_CTX:
        return None, f"the training rows have {n_tokens} tokens, one chunk needs {N_CTX}"
    found = compute(model, chats, how, n_chunks)
    return replace(found, datasets=(rows.name,)), None


def chats_of(rows: Path) -> str:
    """Each row as a line {"messages": [...]}. Raises DataRefused."""
    return "".join(
        json.dumps({"messages": [{"role": m.role, "content": m.content} for m in row.messages]})
        + "\n"
        for row in read_data(rows).rows
    )


def _count(path: Path, chats: Path) -> int:
    model = Model(path, EngineSettings(), start_backend(), vocab_only=True)
    try:
        return len(read_tokens(chats, model, read_gguf(path).architecture))
    finally:
        model.close()
