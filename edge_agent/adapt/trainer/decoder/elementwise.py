"""What a decoder block does between matrix products: norms, gates, rotations; both directions.

Why it exists: every function works in place or writes to a given array, over blocks of rows that
fit the cache (compute.py). Formulas: RMS norm arXiv 1910.07467, GELU's tanh form arXiv 1606.08415,
SwiGLU and GEGLU arXiv 2002.05202, rotary embedding arXiv 2104.09864. Flows in and out: arrays of
rows. Not here: matrix products (packed_weights.py), attention (attention.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_agent.adapt.trainer.decoder.compute import Array, Compute, Scratch
from edge_agent.adapt.trainer.decoder.shape import Rope

CUBIC = 0.044715
"""Factor of x^3 in GELU's tanh form."""
ROOT = 0.7978845608028654
"""sqrt(2 / pi), the factor of GELU's tanh form."""
LARGEST_EXPONENT = 80.0
"""Exponents are limited to this: e^80 does not overflow float32, and 1 / e^80 = 2e-35 is near 0."""


def rms_norm(
    compute: Compute, x: Array, weight: Array, epsilon: float, out: Array, inverse: Array
) -> None:
    """out = x / rms(x) * weight over the last axis of x (n, m); inverse (n, 1) = 1 / rms(x)."""
    xp = compute.xp

    def work(rows: slice, scratch: Scratch) -> None:
        x_, out_ = x[rows], out[rows]
        square = scratch.take(0, *x_.shape)
        xp.multiply(x_, x_, out=square)
        root = square.mean(axis=1, keepdims=True)
        root += epsilon
        xp.sqrt(root, out=root)
        xp.divide(1.0, root, out=inverse[rows])
        xp.multiply(x_, inverse[rows], out=out_)
        out_ *= weight

    compute.split(x.shape, work)


def rms_norm_backward(
    compute: Compute, x: Array, weight: Array, inverse: Array, dy: Array, add_to: Array | None
) -> None:
    """Turn `dy`, the gradient of rms_norm's output (n, m), into the gradient of x, in place.

    The gradient of x is also added to `add_to`, if given. `inverse` (n, 1) is 1 / rms(x).
    """
    xp = compute.xp

    def work(rows: slice, scratch: Scratch) -> None:
        x_, dy_, inverse_ = x[rows], dy[rows], inverse[rows]
        product = scratch.take(0, *x_.shape)
        dy_ *= weight
        xp.multiply(dy_, x_, out=product)
        projection = product.mean(axis=1, keepdims=True)
        projection *= inverse_ * inverse_ * inverse_
        dy_ *= inverse_
        xp.multiply(x_, projection, out=product)
        dy_ -= product
        if add_to is not None:
            add_to[rows] += dy_

    compute.split(x.shape, work)


class GatedUnit:
    """The gated product act(gate) * up; act is GELU's tanh form with `is_gelu`, else SiLU."""

    def __init__(self, compute: Compute, is_gelu: bool) -> None:
        self._compute = compute
        self._half_gate = self._half_gelu if is_gelu else self._half_silu
        self._slope = self._slope_of_gelu if is_gelu else self._slope_of_silu

    def forward(self, gate: Array, up: Array, out: Array) -> None:
        """out = act(gate) * up; all three are (n, m)."""

        def work(rows: slice, scratch: Scratch) -> None:
            part = self._half_gate(gate[rows], scratch)
            part *= gate[rows]
            self._compute.xp.multiply(part, up[rows], out=out[rows])

        self._compute.split(gate.shape, work)

    def backward(self, gate: Array, up: Array, d: Array) -> None:
        """Replace gate and up by their gradients; `d` (n, m) is the gradient of the product."""
        xp = self._compute.xp

        def work(rows: slice, scratch: Scratch) -> None:
            gate_, up_, d_ = gate[rows], up[rows], d[rows]
            part = self._half_gate(gate_, scratch)
            slope = self._slope(gate_, part, scratch)
            slope *= d_
            slope *= up_
            part *= gate_
            xp.multiply(part, d_, out=up_)
            gate_[:] = slope

        self._compute.split(gate.shape, work)

    # act(x) = x * part(x). For SiLU, part is sigmoid(x); for GELU it is sigmoid(2 * inner), which
    # equals (1 + tanh(inner)) / 2 with inner = ROOT * (x + CUBIC * x^3). The sigmoid is used
    # because NumPy's exp takes half the time of its tanh (measured), and because the sigmoid of a
    # large negative number keeps its digits, while 1 + tanh loses them.

    def _half_gelu(self, x: Array, scratch: Scratch) -> Array:
        xp, inner = self._compute.xp, scratch.take(0, *x.shape)
        xp.multiply(x, x, out=inner)
        inner *= CUBIC
        inner += 1.0
        inner *= x
        inner *= -2 * ROOT
        return self._sigmoid_of_negative(inner)

    def _half_silu(self, x: Array, scratch: Scratch) -> Array:
        part = scratch.take(0, *x.shape)
        self._compute.xp.negative(x, out=part)
        return self._sigmoid_of_negative(part)

    def _sigmoid_of_negative(self, x: Array) -> Array:
        """1 / (1 + exp(x)), in place: the sigmoid of -x."""
        xp = self._compute.xp
        xp.minimum(x, LARGEST_EXPONENT, out=x)
        xp.exp(x, out=x)
        x += 1.0
        xp.divide(1.0, x, out=x)
        return x

    def _slope_of_gelu(self, x: Array, part: Array, scratch: Scratch) -> Array:
        """act'(x) = part + x * part', with part' = 2 * part * (1 - part) * inner'."""
        xp, slope = self._compute.xp, scratch.take(1, *x.shape)
        rest = scratch.take(2, *x.shape)
        xp.multiply(x, x, out=slope)
        slope *= 3 * CUBIC
        slope += 1.0
        slope *= x
        slope *= 2 * ROOT
        return self._finish(slope, rest, part)

    def _slope_of_silu(self, x: Array, part: Array, scratch: Scratch) -> Array:
        """act'(x) = part + x * part', with part' = part * (1 - part)."""
        slope, rest = scratch.take(1, *x.shape), scratch.take(2, *x.shape)
        slope[:] = x
        return self._finish(slope, rest, part)

    def _finish(self, slope: Array, rest: Array, part: Array) -> Array:
        self._compute.xp.subtract(1.0, part, out=rest)
        slope *= rest
        slope += 1.0
        slope *= part
        return slope


class Rotation:
    """One rotary embedding: its cosines and sines for positions 0 .. n - 1, times `scale`."""

    def __init__(
        self, compute: Compute, rope: Rope, head_dim: int, n: int, factors: Any, scale: float
    ) -> None:
        frequencies = rope.base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if factors is not None and rope.scale == 1.0:
            frequencies = frequencies / compute.to_host(factors)
        angles = (np.arange(n)[:, None] * rope.scale) * frequencies[None, :]
        self._compute = compute
        self._cos, self._sin = (
            compute.array(np.cos(angles) * scale),
            compute.array(np.sin(angles) * scale),
        )
        half = head_dim // 2
        self._first = np.s_[..., 0::2] if rope.is_interleaved else np.s_[..., :half]
        self._second = np.s_[..., 1::2] if rope.is_interleaved else np.s_[..., half:]

    def forward(self, x: Array, out: Array) -> None:
        """Rotate x into out, (heads, n, head_dim) each, of any strides. They must not overlap."""
        self._turn(x, out, self._compute.xp.subtract, self._compute.xp.add)

    def backward(self, dy: Array, out: Array) -> None:
        """Rotate the gradient back: the transpose of a rotation is its inverse."""
        self._turn(dy, out, self._compute.xp.add, self._compute.xp.subtract)

    def _turn(self, x: Array, out: Array, upper: Any, lower: Any) -> None:
        xp = self._compute.xp
        heads, n, width = x.shape
        cos, sin = self._cos[:n], self._sin[:n]

        def work(rows: slice, scratch: Scratch) -> None:
            a, b = x[rows][self._first], x[rows][self._second]
            first, second = out[rows][self._first], out[rows][self._second]
            other = scratch.take(0, *a.shape)
            xp.multiply(a, cos, out=first)
            xp.multiply(b, sin, out=other)
            upper(first, other, out=first)
            xp.multiply(b, cos, out=second)
            xp.multiply(a, sin, out=other)
            lower(second, other, out=second)

        self._compute.split((heads, n, width), work)


def add(compute: Compute, x: Array, to: Array) -> None:
    """to += x; both are (n, m)."""

    def work(rows: slice, scratch: Scratch) -> None:
        to[rows] += x[rows]

    compute.split(x.shape, work)
