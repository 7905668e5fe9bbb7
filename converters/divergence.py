"""How far apart two models are, token by token.

Flows in: logits of the same tokens from two models. Flows out: KL divergences, whether the first
choices agree, bits per byte. Definitions: KL(P||Q) = sum p (log p - log q) in nats, with P the
reference (Kullback & Leibler 1951); bits per byte = -sum log2 p(token) / bytes of the tokens. Not
here: where logits come from (logits.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from converters.rows import F32


def log_softmax(logits: F32) -> NDArray[np.float64]:
    """Log-probabilities (n_tokens, n_vocab). In float64, because float32 could not resolve a KL of
    1e-7."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


@dataclass
class Divergence:
    """Collects KL(reference || other) in nats, and how often the most likely tokens agree."""

    kl: list[float] = field(default_factory=list)
    agreements: int = 0

    def add(self, reference: NDArray[np.float64], other: NDArray[np.float64]) -> None:
        """Take the log-probabilities (n, n_vocab) of the same n positions from both models."""
        terms = np.exp(reference) * (reference - other)
        self.kl += np.maximum(terms.sum(axis=1), 0.0).tolist()
        same = reference.argmax(axis=1) == other.argmax(axis=1)
        self.agreements += int(same.sum())

    @property
    def mean(self) -> float:
        """Mean KL of a position."""
        return float(np.mean(self.kl))

    @property
    def p99(self) -> float:
        """99th percentile of KL."""
        return float(np.quantile(self.kl, 0.99))

    @property
    def maximum(self) -> float:
        """Largest KL of a position."""
        return float(np.max(self.kl))

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which both models prefer the same token, 0 to 1."""
        return self.agreements / len(self.kl)


@dataclass
class BitsPerByte:
    """Collects how many bits a model needs to encode a text."""

    bits: float = 0.0
    n_bytes: int = 0

    def add(self, log_probabilities: NDArray[np.float64], following: list[int]) -> None:
        """Take log-probabilities (n, n_vocab) and the n tokens that follow those positions."""
        chosen = log_probabilities[np.arange(len(following)), following]
        self.bits -= float(chosen.sum()) / np.log(2)

    @property
    def value(self) -> float | None:
        """Bits per byte; None before any byte was counted."""
        return self.bits / self.n_bytes if self.n_bytes else None
