"""Computes an importance matrix: how much the model uses each column of each weight.

Flows in: a model file, and text or chats. Flows out: an Imatrix with the same sums that
llama-imatrix computes of the same tokens: for each weight of a block the squared activations of
every column, summed over the tokens, in chunks of n_ctx whose first token is BOS where the model
wants one. Chats are rendered with the model's own template, with their control tokens as ids. Not
here: the file (imatrix_file.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.imatrix_file import Imatrix
from converters.quantizer import How
from edge_agent.adapt.trainer.blas import choose_threads
from edge_agent.errors import ConversionError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.json_lines import numbered_lines
from edge_agent.llama.binding import start_backend
from edge_agent.llama.capture import Observer
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import EngineSettings, Generate, Message, Sampling

N_CTX = 512
"""Tokens of a chunk, llama-imatrix's default."""
N_BATCH = 128
"""Tokens of one call. The logits of 512 of Gemma's tokens would take 537 MB, unused."""


class _Sums:
    """Sums of squared activations and token counts, by weight name."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, float] = {}

    def receive(self, name: str, rows: NDArray[np.float32]) -> None:
        """Add activations (n_tokens, n_columns) that enter the weight `name`."""
        squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        if name in self.sums:
            self.sums[name] += squares
        else:
            self.sums[name] = squares
        self.counts[name] = self.counts.get(name, 0.0) + len(rows)


def compute(path: Path, data: Path, how: How, n_chunks: int | None = None) -> Imatrix:
    """Run the model over `data`, a text file or JSON lines with messages or text.

    Raises ConversionError when `data` is shorter than one chunk, ModelFormatError, ModelRefused.
    """
    settings = EngineSettings(
        n_threads=choose_threads(how.threads), n_batch=N_BATCH, n_gpu_layers=0
    )
    log, sums = start_backend(), _Sums()
    model = Model(path, settings, log)
    observer = Observer(sums.receive)
    context = Context(
        model, settings, log, n_ctx=N_CTX, slots=1, outputs=N_BATCH, observer=observer.callback
    )
    try:
        tokens = read_tokens(data, model, read_gguf(path).architecture)
        chunks = [tokens[at : at + N_CTX] for at in range(0, len(tokens) - N_CTX + 1, N_CTX)]
        chunks = chunks[:n_chunks]
        if not chunks:
            raise ConversionError(
                f"{data} has {len(tokens)} tokens",
                f"one chunk needs {N_CTX}",
                "give more text: some 100,000 tokens are usual",
            )
        for number, chunk in enumerate(chunks):
            how.progress("computing importance", number * N_CTX, len(chunks) * N_CTX)
            _run(context, model, chunk)
            if observer.failure is not None:
                raise observer.failure
    finally:
        context.close()
        model.close()
    return _imatrix(sums, data, len(chunks))


def _run(context: Context, model: Model, chunk: Sequence[int]) -> None:
    vocabulary = model.vocabulary
    tokens = [vocabulary.bos, *chunk[1:]] if vocabulary.add_bos else list(chunk)
    context.truncate(0, 0)
    for start in range(0, len(tokens), N_BATCH):
        context.clear_batch()
        for position in range(start, min(start + N_BATCH, len(tokens))):
            # llama.cpp computes the last layer only for tokens whose output is wanted.
            context.add(tokens[position], position, 0, output=True)
        context.decode()
        context.synchronize()


def _imatrix(sums: _Sums, data: Path, n_chunks: int) -> Imatrix:
    for name, values in sums.sums.items():
        if not np.isfinite(values).all():
            raise ConversionError(
                f"the activations of {name} are not finite",
                "the model computes NaN or infinity on this data",
                "check it with `edge-convert verify`",
            )
    return Imatrix(
        {name: values.astype(np.float32) for name, values in sums.sums.items()},
        sums.counts,
        (str(data),),
        n_chunks,
        N_CTX,
    )


def read_tokens(data: Path, model: Model, architecture: str) -> list[int]:
    """Token ids of a text file, or of JSON lines {"messages": [...]} and {"text": "..."}.

    Raises ConversionError that names the first line of neither form.
    """
    try:
        text = data.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_data(data, str(error)) from None
    if data.suffix not in (".jsonl", ".ndjson"):
        return model.vocabulary.tokenize(text, add_special=True, parse_special=False)
    builder, tokens = PromptBuilder(model, architecture), list[int]()
    for number, line in numbered_lines(text):
        tokens += _line_tokens(data, number, line, builder, model)
    return tokens


def _line_tokens(
    data: Path, number: int, line: str, builder: PromptBuilder, model: Model
) -> Iterator[int]:
    try:
        document = json.loads(line)
        prompt = _prompt(document)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _bad_data(
            data, f'line {number} is neither {{"messages": [...]}} nor {{"text": "..."}}'
        ) from None
    for part in builder.parts(prompt):
        if isinstance(part, int):
            yield part
        else:
            yield from model.vocabulary.tokenize(part, add_special=False, parse_special=False)


def _prompt(document: Any) -> Generate:
    sampling = Sampling()
    if "messages" in document:
        messages = [Message(m["role"], m["content"]) for m in document["messages"]]
        return Generate(1, sampling, 1, messages=messages)
    return Generate(1, sampling, 1, text=document["text"])


def _bad_data(data: Path, why: str) -> ConversionError:
    return ConversionError(
        f"cannot read {data}", why, "give UTF-8 text, or .jsonl with messages or text in each line"
    )
