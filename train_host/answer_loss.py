"""How much of what was learned is in the file that the device gets.

Why it exists: quantizing can round what was learned away, nearly all of it where the base was
quantized already (dev/log/2026-11.md, llama.cpp issue 13485), and a comparison on general texts
does not show that. Flows in: a run and the files of its export. Flows out: a Stage with the loss of
some learned answers in nats per token, for four models: `_base` before training, `_trained` in
float32, `_served` from the file as the daemon runs it, `_adapter` from the quantized base with the
adapter beside it; and the share of the improvement that the file kept. There is no threshold. Not
here: answers to other questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.divergence import log_softmax
from converters.logits import WINDOW, LlamaLogits, LogitSource, TorchLogits
from converters.quantizer import How
from converters.verify_logits import BLOCK
from edge_agent.prompt.training_sequence import encode_turns, vocabulary_only
from train_host.export_checks import Stage
from train_host.run_directory import FinishedRun
from train_host.samples import read_data

N_TOKENS = 2048
"""Rows are drawn at random until they have so many tokens: half a minute per model of 0.3 B."""
LEAST_LEARNED = 0.05
"""Nats per token; the share of a smaller improvement would be noise."""
NOTED_SHARE = 0.9
"""A file that kept a smaller share gets advice in its note."""


@dataclass(frozen=True)
class TaughtSequence:
    """Token ids of one sequence; `places` are the positions whose next token was learned."""

    ids: list[int]
    places: list[int]


@dataclass(frozen=True)
class Files:
    """The files of an export: the model in float32, the model as it is served, the adapter."""

    exact: Path
    served: Path
    adapter: Path | None


def kept(run: FinishedRun, files: Files, how: How) -> Stage:
    """Measure every model, one after the other; losses are in nats per token.

    Raises DataRefused, RequestError, ModelFormatError, and EdgeAgentError without torch when the
    base is a directory.
    """
    rows = taught_rows(run.data, files.served)
    if not rows:
        return Stage(None, {}, {}, f"no answer begins in the first {WINDOW} tokens of its row")
    losses = {}
    for name, source in _sources(run, files, how):
        how.progress(f"measuring the loss of learned answers ({name})", None, None)
        with closing(source):
            losses[name] = answer_loss(source, rows)
    figures: dict[str, Any] = {f"answer_loss_{name}": loss for name, loss in losses.items()}
    learned = losses["base"] - losses["trained"]
    if learned >= LEAST_LEARNED:
        figures["kept_share"] = (losses["base"] - losses["served"]) / learned
    figures["rows"] = len(rows)
    passed = all(map(math.isfinite, losses.values()))
    return Stage(passed, figures, {}, None if passed else "a loss is not finite")


def taught_rows(path: Path, gguf: Path) -> list[TaughtSequence]:
    """Some rows of a file as the device tokenizes them, cut at WINDOW tokens.

    `gguf` supplies tokenizer and template. Raises DataRefused, RequestError, ModelFormatError.
    """
    rows, found = read_data(path).rows, list[TaughtSequence]()
    random.Random(0).shuffle(rows)
    with vocabulary_only(gguf) as prompts:
        for row in rows:
            for encoded in encode_turns(prompts, row.messages):
                ids = encoded.ids[:WINDOW]
                places = [n - 1 for n in range(1, len(ids)) if encoded.learned[n]]
                if places:
                    found.append(TaughtSequence(ids, places))
            if sum(len(one.ids) for one in found) >= N_TOKENS:
                break
    return found


def answer_loss(source: LogitSource, rows: Sequence[TaughtSequence]) -> float:
    """Mean loss over all learned tokens, in nats."""
    nats = 0.0
    for row in rows:
        logits = source.logits(row.ids)
        for start in range(0, len(row.places), BLOCK):
            places = row.places[start : start + BLOCK]
            found = log_softmax(logits[places])
            nats -= float(found[np.arange(len(places)), [row.ids[n + 1] for n in places]].sum())
    return nats / sum(len(row.places) for row in rows)


def _sources(run: FinishedRun, files: Files, how: How) -> Iterator[tuple[str, LogitSource]]:
    """The models by name; only one is in memory at a time."""
    base, threads = run.base_gguf, how.threads
    if base is None:
        yield "base", TorchLogits(run.base_directory, threads)
    else:
        yield "base", LlamaLogits(base, exact=False, threads=threads)
    yield "trained", LlamaLogits(files.exact, exact=True, threads=threads)
    yield "served", LlamaLogits(files.served, exact=False, threads=threads)
    if base is not None and files.adapter is not None:
        yield "adapter", LlamaLogits(base, exact=False, threads=threads, adapters=[files.adapter])


def note(figures: Mapping[str, Any], files: Files, is_base_quantized: bool) -> str | None:
    """The losses for the user, and advice where much was lost; None when nothing was measured."""
    if not figures:
        return None
    words = [f"{figures['answer_loss_base']:.2f} before", f"{figures['answer_loss_trained']:.2f}"
             f" trained, {figures['answer_loss_served']:.2f} in {files.served.name}"]  # fmt: skip
    adapter, share = figures.get("answer_loss_adapter"), figures.get("kept_share")
    if adapter is not None and files.adapter is not None:
        words.append(f"{adapter:.2f} with {files.adapter.name} beside its base")
    text = f"loss of learned answers, nats a token: {', '.join(words)}"
    if share is None or share >= NOTED_SHARE:
        return text
    remedy = "use --method qat"
    if is_base_quantized and files.adapter is not None:
        command = f"edge-agent adapters import {files.adapter.name}"
        remedy = f"import the adapter beside its base (`{command}`)"
    return (
        f"{text}; {1 - share:.0%} of what was learned is lost in the file: {remedy}, or export with"
        " --type q8_0"
    )
