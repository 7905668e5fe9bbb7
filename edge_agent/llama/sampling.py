"""Choosing the next token: llama.cpp's C sampler chain, a grammar beside it, log-probabilities.

Flows in: records.Sampling and one row of a context's logits. Flows out: a token id. The chain's
steps, in order: logit bias; penalties, which see generated tokens only, because the sampler accepts
no prompt tokens; top_k; typical_p; top_p; min_p; temperature; draw. top_k comes before top_p
because top_p over 262,144 candidates takes 5.5 ms per token. The chain runs over the few candidates
that can win (`best`), which gives the same token in less than half the time. A grammar is first
asked about the sampled token alone; only when it refuses this token is the whole vocabulary masked,
which takes 31 ms per token with Gemma's vocabulary. Not here: making the grammar
(prompt/grammar.py).
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.errors import RequestError, SchemaError
from edge_agent.llama.binding import lib
from edge_agent.llama.context import Context
from edge_agent.llama.model import ModelVocabulary
from edge_agent.records import ChosenLogprob, Sampling, TokenLogprob

Logits = npt.NDArray[np.float32]
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""
_BLOCK = 256
_MASK_SLICE = 16384
"""Candidates in one call to the grammar. A limit, because the grammar decodes the text of every
candidate of a call at once."""
_MOST_BEST = 512
"""When more candidates than this could win, the C chain is given the whole vocabulary instead."""


class Sampler:
    """One request's chain of samplers. `sample` also records the token in the chain, so that
    penalties and the random state follow the answer."""

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: ModelVocabulary,
        *,
        grammar: str | None = None,
        ban_end: bool = False,
    ) -> None:
        """`grammar` is GBNF text. `ban_end` forbids every end-of-generation token (ignore_eos).

        Raises RequestError for a logit_bias outside the vocabulary, and SchemaError when llama.cpp
        refuses the grammar.
        """
        self._vocabulary = vocabulary
        self._grammar = _grammar(grammar, vocabulary) if grammar is not None else None
        bias = dict(sampling.logit_bias)
        if ban_end:
            bias.update(dict.fromkeys(vocabulary.eog_ids, -math.inf))
        self._n_best = _n_best(sampling, bias)
        self._chain = _chain(sampling, bias, vocabulary)

    def sample(self, context: Context, row: int) -> int:
        """The token that follows row `row` of the last decoded batch.

        Raises SchemaError when no token of the vocabulary fits the grammar.
        """
        if self._grammar is None and not self._n_best:
            return int(lib.llama_sampler_sample(self._chain, context.handle, row))
        logits = logits_of(context, row, self._vocabulary.n_tokens)
        ids = best(logits, self._n_best) if self._n_best else np.arange(len(logits))
        token = self._choose(ids, logits[ids], masked=False)
        if self._grammar is not None:
            if not self._allows(token):
                token = self._choose(np.arange(len(logits)), logits, masked=True)
            lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free the C objects. Safe to call twice."""
        for handle in (self._chain, self._grammar):
            if handle:
                lib.llama_sampler_free(handle)
        self._chain = self._grammar = None

    def _choose(self, ids: npt.NDArray[np.int64], logits: Logits, *, masked: bool) -> int:
        candidates = np.zeros(len(ids), dtype=_CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits
        if masked:
            for start in range(0, len(ids), _MASK_SLICE):
                part = _array(candidates[start : start + _MASK_SLICE])
                lib.llama_sampler_apply(self._grammar, ctypes.byref(part))
        array = _array(candidates)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise SchemaError(
                "the answer cannot be continued within the schema",
                "no token of the vocabulary fits",
                "loosen the schema",
            )
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        one = np.array([(token, 0.0, 0.0)], dtype=_CANDIDATE)
        array = _array(one)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(one["logit"][0] != -math.inf)


def _array(candidates: npt.NDArray[np.void]) -> Any:
    """A llama_token_data_array that points into `candidates`; the caller keeps those alive."""
    array = lib.llama_token_data_array()
    array.data = ctypes.cast(candidates.ctypes.data, ctypes.POINTER(lib.llama_token_data))
    array.size, array.selected, array.sorted = len(candidates), -1, False
    return array


def logits_of(context: Context, row: int, n_tokens: int) -> Logits:
    """A row's logits, float32 of shape (n_tokens), n_tokens being the vocabulary's size.

    The array is a view of llama.cpp's buffer, so it is valid until the next decode call.
    """
    address = ctypes.cast(context.logits(row), ctypes.c_void_p).value or 0
    buffer = (ctypes.c_float * n_tokens).from_address(address)
    return np.frombuffer(memoryview(buffer), dtype=np.float32)


def best(logits: Logits, n: int) -> npt.NDArray[np.int64]:
    """Ids that include those of the `n` largest logits; all ids when there are too few blocks.

    The logits are divided into blocks. The n-th largest of the blocks' maxima is a lower bound of
    the n-th largest logit, so a logit below this bound is not among the n largest. One pass finds
    the maxima, so the vocabulary is not sorted.

    >>> best(np.arange(2000, dtype=np.float32), 2).tolist()[-2:]
    [1998, 1999]
    """
    n_blocks = len(logits) // _BLOCK
    if n_blocks <= n:
        return np.arange(len(logits))
    blocks = logits[: n_blocks * _BLOCK].reshape(_BLOCK, n_blocks)  # a column is a block
    maxima = blocks.max(axis=0)
    bound = np.partition(maxima, -n)[-n]
    high = np.flatnonzero(maxima >= bound)
    offset, block = np.nonzero(blocks[:, high] >= bound)
    found = offset * n_blocks + high[block]
    rest = np.arange(n_blocks * _BLOCK, len(logits))
    return np.concatenate((found, rest)) if len(found) >= n else np.arange(len(logits))


def _n_best(sampling: Sampling, bias: dict[int, float]) -> int:
    """How many of the largest raw logits the chain must see to choose the same token as from the
    whole vocabulary; 0 means all.

    A bias or a penalty that raises logits could lift any token, so then all are needed. Bias and
    penalties that only lower logits can remove at most one candidate each, so that many are added.
    """
    raises = any(value > 0 for value in bias.values())
    raises |= sampling.frequency_penalty < 0 or sampling.presence_penalty < 0
    raises |= sampling.repeat_penalty < 1.0
    n = 1 if sampling.temperature <= 0.0 else sampling.top_k
    if raises or n <= 0:
        return 0
    n += len(bias) + (max(0, sampling.repeat_last_n) if _penalizes(sampling) else 0)
    return n if n <= _MOST_BEST else 0


def _grammar(text: str, vocabulary: ModelVocabulary) -> Any:
    handle = lib.llama_sampler_init_grammar(vocabulary.handle, text.encode(), b"root")
    if not handle:
        raise SchemaError(
            "the schema could not be turned into a grammar",
            "llama.cpp refused the grammar made from it",
            "simplify the schema",
        )
    return handle


def _chain(sampling: Sampling, bias: dict[int, float], vocabulary: ModelVocabulary) -> Any:
    """The C chain of samplers. The chain owns its links, so freeing it frees them."""
    links = []
    if bias:
        links.append(_logit_bias(bias, vocabulary))
    if _penalizes(sampling):
        links.append(
            lib.llama_sampler_init_penalties(
                vocabulary.n_tokens,
                sampling.repeat_last_n,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    links += _drawing(sampling)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for link in links:
        lib.llama_sampler_chain_add(chain, link)
    return chain


def _penalizes(sampling: Sampling) -> bool:
    return sampling.repeat_last_n != 0 and (
        sampling.repeat_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def _drawing(sampling: Sampling) -> list[Any]:
    if sampling.temperature <= 0.0:
        return [lib.llama_sampler_init_greedy()]
    links = []
    if sampling.top_k > 0:
        links.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1.0:
        links.append(lib.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1.0:
        links.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        links.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(lib.llama_sampler_init_temp(sampling.temperature))
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
    links.append(lib.llama_sampler_init_dist(seed & 0xFFFFFFFF))
    return links


def _logit_bias(bias: dict[int, float], vocabulary: ModelVocabulary) -> Any:
    for token in bias:
        if not 0 <= token < vocabulary.n_tokens:
            raise RequestError(
                f"logit_bias names token {token}",
                f"the vocabulary's ids run from 0 to {vocabulary.n_tokens - 1}",
                "ask /tokenize for the ids of a text",
            )
    pairs = (lib.llama_logit_bias * len(bias))(
        *[lib.llama_logit_bias(token, value) for token, value in bias.items()]
    )
    return lib.llama_sampler_init_logit_bias(vocabulary.n_tokens, len(bias), pairs)


def chosen_logprob(
    context: Context, row: int, token: int, n_top: int, vocabulary: ModelVocabulary
) -> ChosenLogprob:
    """Natural-log probability of `token` and of the `n_top` most probable tokens of a row.

    Computed by log-softmax in float64 over the raw logits, before bias, penalties and temperature.
    `raw` is what a token adds to the text: a control token is spelled in `text` and adds nothing.
    """
    logits = logits_of(context, row, vocabulary.n_tokens).astype(np.float64)
    shift = float(logits.max())
    logprobs = logits - (shift + math.log(float(np.exp(logits - shift).sum())))
    best: list[int] = []
    if n_top > 0:
        some = np.argpartition(logprobs, -n_top)[-n_top:]
        best = [int(index) for index in some[np.argsort(-logprobs[some])]]

    def entry(index: int) -> TokenLogprob:
        text = vocabulary.spelled(index).decode("utf-8", "replace")
        return TokenLogprob(index, text, vocabulary.piece(index), float(logprobs[index]))

    return ChosenLogprob(entry(token), [entry(index) for index in best])
