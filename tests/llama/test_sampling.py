"""Sampling over a real context of the tiny model: the short way gives what the long way gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import RequestError, SchemaError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.llama.sampling import Sampler, best, chosen_logprob, logits_of
from edge_agent.records import EngineSettings, Sampling

HOT = Sampling(temperature=0.9, top_k=5, top_p=0.95, seed=42)


@pytest.fixture(scope="module")
def decoded(smollm2: Path) -> Iterator[tuple[Model, Context, int]]:
    """A context whose last batch ends with a row of real logits."""
    log = start_backend()
    model = Model(smollm2, EngineSettings(), log)
    context = Context(model, EngineSettings(n_threads=2), log, n_ctx=256, slots=1)
    tokens = model.vocabulary.tokenize("Rivers of", add_special=True, parse_special=False)
    for position, token in enumerate(tokens):
        row = context.add(token, position, 0, output=position == len(tokens) - 1)
    context.decode()
    yield model, context, row
    context.close()
    model.close()


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(200, 40_000))
def test_the_best_candidates_hold_the_largest_logits(seed: int, n: int, size: int) -> None:
    logits = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    found = best(logits, n)
    assert set(np.argsort(logits)[-n:]) <= set(found.tolist())
    assert len(set(found.tolist())) == len(found)


def test_equal_logits_and_nan_leave_every_candidate_in() -> None:
    assert len(best(np.zeros(4096, np.float32), 3)) == 4096
    assert len(best(np.full(4096, np.nan, np.float32), 3)) == 4096


@pytest.mark.model
@pytest.mark.parametrize(
    "sampling",
    [
        HOT,
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, min_p=0.1, seed=1),
        Sampling(temperature=0.9, typical_p=0.4, seed=6),
        Sampling(temperature=0.9, top_k=20, repeat_penalty=1.3, presence_penalty=0.5, seed=3),
        Sampling(temperature=0.9, top_k=20, logit_bias={17: -5.0, 30: -100.0}, seed=4),
    ],
)
def test_few_candidates_give_the_token_that_all_would(
    decoded: tuple[Model, Context, int], sampling: Sampling
) -> None:
    model, context, row = decoded
    short, long = (Sampler(sampling, model.vocabulary, ban_end=True) for _ in range(2))
    assert short._n_best > 0
    long._n_best = 0
    assert [short.sample(context, row) for _ in range(60)] == [
        long.sample(context, row) for _ in range(60)
    ]


@pytest.mark.model
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(top_k=0),
        Sampling(logit_bias={5: 1.0}),
        Sampling(presence_penalty=-1.0),
        Sampling(repeat_penalty=0.9),
    ],
)
def test_what_can_raise_a_token_is_sampled_from_all(
    decoded: tuple[Model, Context, int], sampling: Sampling
) -> None:
    assert Sampler(sampling, decoded[0].vocabulary)._n_best == 0


@pytest.mark.model
def test_typical_p_leaves_out_what_is_too_likely(decoded: tuple[Model, Context, int]) -> None:
    model, context, row = decoded

    def drawn(typical_p: float) -> set[int]:
        sampling = Sampling(temperature=1.0, top_p=1.0, typical_p=typical_p, seed=2)
        sampler = Sampler(sampling, model.vocabulary)
        return {sampler.sample(context, row) for _ in range(200)}

    likeliest = int(np.argmax(logits_of(context, row, model.vocabulary.n_tokens)))
    assert likeliest in drawn(1.0) and drawn(0.2) < drawn(1.0)


@pytest.mark.model
def test_a_grammar_masks_the_vocabulary_when_the_first_choice_does_not_fit(
    decoded: tuple[Model, Context, int],
) -> None:
    model, context, row = decoded
    sampler = Sampler(HOT, model.vocabulary, grammar='root ::= "{}"')
    assert model.vocabulary.piece(sampler.sample(context, row)) in (b"{", b"{}")


@pytest.mark.model
def test_impossible_settings_are_typed_errors(decoded: tuple[Model, Context, int]) -> None:
    vocabulary = decoded[0].vocabulary
    with pytest.raises(RequestError, match="logit_bias"):
        Sampler(Sampling(logit_bias={10**7: 1.0}), vocabulary)
    with pytest.raises(SchemaError):
        Sampler(HOT, vocabulary, grammar="nothing")


@pytest.mark.model
def test_logprobs_are_a_log_softmax_of_the_row(decoded: tuple[Model, Context, int]) -> None:
    model, context, row = decoded
    logits = logits_of(context, row, model.vocabulary.n_tokens).astype(np.float64)
    top = int(logits.argmax())
    chosen = chosen_logprob(context, row, top, 2, model.vocabulary)
    expected = logits[top] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert chosen.token.logprob == pytest.approx(expected, abs=1e-9)
    assert chosen.top[0].id == top and len(chosen.top) == 2
