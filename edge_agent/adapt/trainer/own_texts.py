"""Short texts that the model writes itself, for a base model to rehearse.

Why it exists: a base model has no chats to keep, and what it must keep is its distribution over
plain text; its own texts need no data from elsewhere (arXiv 2403.01244). Flows in: a model file and
openings. Flows out: samples, drawn at temperature 1 by llama.cpp, of which every second token is
learned, for half of the head's cost. The caller stores them, because another build may draw others.
The weights are mapped, and freed afterwards. Not here: how they count (rehearsal.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.llama.sampling import Sampler
from edge_agent.records import EngineSettings, Sampling

LEAST_TOKENS = 8
"""Shorter texts, which the model ended at once, are left out."""


def write_texts(
    path: Path,
    openings: Sequence[str],
    n_tokens: int,
    seed: int,
    n_threads: int,
    after_text: Callable[[int], None],
) -> list[Sample]:
    """A sample of at most `n_tokens` tokens for each opening.

    `after_text(count)` is called after each text. Raises ModelRefused and ModelFormatError.
    """
    settings = EngineSettings(n_threads=n_threads, n_batch=n_tokens, repack=False)
    log = start_backend()
    model = Model(path, settings, log)
    try:
        context = Context(model, settings, log, n_ctx=n_tokens, slots=1, outputs=1)
        try:
            found = []
            for number, opening in enumerate(openings):
                found.append(_written(model, context, opening, n_tokens, seed + number))
                after_text(number + 1)
        finally:
            context.close()
    finally:
        model.close()
    return [sample for sample in found if len(sample) >= LEAST_TOKENS]


def _written(model: Model, context: Context, opening: str, n_tokens: int, seed: int) -> Sample:
    """The opening and what the model writes behind it."""
    vocabulary = model.vocabulary
    ids = vocabulary.tokenize(opening, add_special=True, parse_special=False)[: n_tokens // 2]
    n_given = len(ids)
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed & 0xFFFFFFFF)
    sampler = Sampler(sampling, vocabulary)
    context.truncate(0, 0)
    new = list(ids)
    try:
        while len(ids) < n_tokens:
            context.clear_batch()
            for place, token in enumerate(new, len(ids) - len(new)):
                row = context.add(token, place, 0, output=place == len(ids) - 1)
            context.decode()
            new = [sampler.sample(context, row)]
            if new[0] in vocabulary.eog_ids:
                break
            ids += new
    finally:
        sampler.close()
    return Sample(0, array("i", ids), [n >= n_given and n % 2 == 0 for n in range(len(ids))])
