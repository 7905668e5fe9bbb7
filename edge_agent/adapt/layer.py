"""One decoder block, forward and backward, by hand.

Why it exists: the device has no autograd, and a block written once for all families is small
enough to be proven: against torch's gradients, against finite differences, and against llama.cpp's
logits. Flows in: hidden states (T, n_embd) of packed sequences and which positions belong together.
Flows out: hidden states, and on the way back their gradient; LoRA gradients add up in place. Only
what backward needs is kept, in a `Tape`. Not here: embeddings and head (decoder.py, head.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.lora import Loras, LoraWeight
from edge_agent.adapt.packed import PackedMatrix, PackedWeights
from edge_agent.adapt.shape import DecoderShape, Rope

Array = NDArray[Any]
Tape = dict[str, Array]


@dataclass(frozen=True)
class Positions:
    """`place` (T) is each token's position in its own sequence, `sequence` (T) which one it is."""

    place: NDArray[np.int64]
    sequence: NDArray[np.int64]

    def mask(self, window: int, dtype: Any) -> Array:
        """0 where row may attend to column, -inf elsewhere (T, T).

        A token sees earlier tokens of its own sequence, with a window those less than `window`
        behind (llama.cpp masks p1 - p0 >= n_swa).
        """
        behind = self.place[:, None] - self.place[None, :]
        allowed = (behind >= 0) & (self.sequence[:, None] == self.sequence[None, :])
        if window:
            allowed &= behind < window
        return np.where(allowed, 0.0, -np.inf).astype(dtype)


class Linear:
    """A frozen weight, its bias and its adapter, if any."""

    def __init__(self, weight: PackedMatrix, bias: Array | None, lora: LoraWeight | None) -> None:
        self.weight, self.bias, self.lora = weight, bias, lora
        self._key = weight.name

    def forward(self, x: Array, tape: Tape | None) -> Array:
        y = self.weight.forward(x)
        if self.bias is not None:
            y += self.bias
        if self.lora is not None:
            added, down = self.lora.forward(x)
            y += added
            if tape is not None:
                tape[self._key] = down
        return y

    def backward(self, x: Array, dy: Array, tape: Tape) -> Array:
        dx = self.weight.backward(dy)
        if self.lora is not None:
            dx += self.lora.backward(x, tape[self._key], dy)
        return dx


def rms_norm(x: Array, weight: Array, epsilon: float) -> tuple[Array, Array]:
    """x / rms(x) * weight over the last axis, and 1 / rms for the way back (arXiv 1910.07467)."""
    inverse = 1.0 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon)
    return x * inverse * weight, inverse


def rms_norm_backward(x: Array, weight: Array, inverse: Array, dy: Array) -> Array:
    scaled = dy * weight
    projection = np.mean(scaled * x, axis=-1, keepdims=True)
    return inverse * scaled - x * (inverse**3 * projection)


class Turn:
    """Cosines and sines of one rotary embedding at given positions (T, 1, head_dim / 2)."""

    def __init__(
        self, rope: Rope, place: NDArray[np.int64], head_dim: int, factors: Array | None, dtype: Any
    ) -> None:
        frequencies = rope.base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        if factors is not None and rope.scale == 1.0:
            frequencies = frequencies / factors
        angles = (place[:, None] * rope.scale) * frequencies[None, :]
        self.cos = np.cos(angles)[:, None, :].astype(dtype)
        self.sin = np.sin(angles)[:, None, :].astype(dtype)
        self._is_interleaved = rope.is_interleaved

    def forward(self, x: Array) -> Array:
        """x (T, heads, head_dim)."""
        return self._turn(x, self.sin)

    def backward(self, dy: Array) -> Array:
        """A rotation's transpose is the rotation back."""
        return self._turn(dy, -self.sin)

    def _turn(self, x: Array, sin: Array) -> Array:
        out = np.empty_like(x)
        half = x.shape[-1] // 2
        first = np.s_[..., 0::2] if self._is_interleaved else np.s_[..., :half]
        second = np.s_[..., 1::2] if self._is_interleaved else np.s_[..., half:]
        a, b = x[first], x[second]
        out[first] = a * self.cos - b * sin
        out[second] = b * self.cos + a * sin
        return out


def gelu(x: Array) -> tuple[Array, Array]:
    """tanh approximation and its derivative (arXiv 1606.08415)."""
    inner = 0.7978845608028654 * (x + 0.044715 * x**3)
    tanh = np.tanh(inner)
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * 0.7978845608028654 * (
        1 + 3 * 0.044715 * x**2
    )
    return 0.5 * x * (1 + tanh), slope


def silu(x: Array) -> tuple[Array, Array]:
    """x * sigmoid(x) and its derivative."""
    sigmoid = 1.0 / (1.0 + np.exp(-x))
    return x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))


class Layer:
    """Block `number` of a model, with the adapters that belong to it."""

    def __init__(
        self, number: int, shape: DecoderShape, weights: PackedWeights, loras: Loras
    ) -> None:
        self.number, self._shape = number, shape
        self._window, self._rope = shape.windows[number], shape.ropes[number]
        self._norms = {name: self._vector(weights, name) for name in self._norm_names()}
        self._linears = {name: self._linear(weights, loras, name) for name in _LINEARS}

    def linears(self) -> dict[str, Linear]:
        return self._linears

    def _norm_names(self) -> list[str]:
        names = ["attn_norm", "ffn_norm"]
        if self._shape.has_qk_norm:
            names += ["attn_q_norm", "attn_k_norm"]
        return names + (["post_attention_norm", "post_ffw_norm"] if self._post else [])

    @property
    def _post(self) -> bool:
        return self._shape.has_post_norms

    def _vector(self, weights: PackedWeights, name: str) -> Array:
        return weights.vector(f"blk.{self.number}.{name}.weight")

    def _linear(self, weights: PackedWeights, loras: Loras, name: str) -> Linear:
        full, bias = f"blk.{self.number}.{name}.weight", f"blk.{self.number}.{name}.bias"
        found = weights.vector(bias) if bias in weights else None
        return Linear(weights.matrix(full), found, loras.get(full))

    def _norm(self, name: str, x: Array, tape: Tape | None) -> Array:
        y, inverse = rms_norm(x, self._norms[name], self._shape.norm_epsilon)
        if tape is not None:
            tape[name], tape[f"{name}.inverse"] = x, inverse
        return y

    def _norm_backward(self, name: str, dy: Array, tape: Tape) -> Array:
        return rms_norm_backward(tape[name], self._norms[name], tape[f"{name}.inverse"], dy)

    # ---- forward ----

    def forward(self, x: Array, turns: dict[Rope, Turn], masks: dict[int, Array],
                tape: Tape | None = None) -> Array:  # fmt: skip
        """x (T, n_embd) -> the next hidden states. With a tape, `backward` becomes possible."""
        attended = self._attention(x, turns[self._rope], masks[self._window], tape)
        if self._post:
            attended = self._norm("post_attention_norm", attended, tape)
        x = x + attended
        fed = self._feed_forward(x, tape)
        if self._post:
            fed = self._norm("post_ffw_norm", fed, tape)
        return x + fed

    def _attention(self, x: Array, turn: Turn, mask: Array, tape: Tape | None) -> Array:
        shape, h = self._shape, self._norm("attn_norm", x, tape)
        q, k, v = (self._linears[n].forward(h, tape) for n in ("attn_q", "attn_k", "attn_v"))
        q = q.reshape(len(x), shape.n_head, shape.head_dim)
        k = k.reshape(len(x), shape.n_head_kv, shape.head_dim)
        v = v.reshape(len(x), shape.n_head_kv, shape.head_dim)
        if shape.has_qk_norm:
            q, k = self._norm("attn_q_norm", q, tape), self._norm("attn_k_norm", k, tape)
        q, k = turn.forward(q) * shape.attention_scale, turn.forward(k)
        groups = shape.n_head // shape.n_head_kv
        # (kv heads, groups * T, head_dim): the query heads of one key head in one product.
        q = q.reshape(len(x), shape.n_head_kv, groups, -1).transpose(1, 2, 0, 3)
        q = q.reshape(shape.n_head_kv, groups * len(x), shape.head_dim)
        k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
        scores = (q @ k.transpose(0, 2, 1)).reshape(shape.n_head_kv, groups, len(x), len(x))
        scores += mask
        scores -= scores.max(axis=-1, keepdims=True)
        p = np.exp(scores, out=scores)
        p /= p.sum(axis=-1, keepdims=True)
        p = p.reshape(shape.n_head_kv, groups * len(x), len(x))
        mixed = _merge_heads(p @ v, groups)
        if tape is not None:
            tape |= {"h": h, "q": q, "k": k, "v": v, "p": p, "mixed": mixed}
        return self._linears["attn_output"].forward(mixed, tape)

    def _feed_forward(self, x: Array, tape: Tape | None) -> Array:
        h = self._norm("ffn_norm", x, tape)
        gate = self._linears["ffn_gate"].forward(h, tape)
        up = self._linears["ffn_up"].forward(h, tape)
        active, slope = (gelu if self._shape.is_gelu else silu)(gate)
        product = active * up
        if tape is not None:
            tape |= {"ffn": h, "up": up, "active": active, "slope": slope, "product": product}
        return self._linears["ffn_down"].forward(product, tape)

    # ---- backward ----

    def backward(self, dy: Array, turns: dict[Rope, Turn], tape: Tape) -> Array:
        """Gradient of the block's input from that of its output; LoRA gradients are added."""
        d_fed = self._norm_backward("post_ffw_norm", dy, tape) if self._post else dy
        dx = dy + self._feed_forward_backward(d_fed, tape)
        d_attended = self._norm_backward("post_attention_norm", dx, tape) if self._post else dx
        return dx + self._attention_backward(d_attended, turns[self._rope], tape)

    def _feed_forward_backward(self, dy: Array, tape: Tape) -> Array:
        d_product = self._linears["ffn_down"].backward(tape["product"], dy, tape)
        d_up = d_product * tape["active"]
        d_gate = d_product * tape["up"] * tape["slope"]
        dh = self._linears["ffn_gate"].backward(tape["ffn"], d_gate, tape)
        dh += self._linears["ffn_up"].backward(tape["ffn"], d_up, tape)
        return self._norm_backward("ffn_norm", dh, tape)

    def _attention_backward(self, dy: Array, turn: Turn, tape: Tape) -> Array:
        shape, p = self._shape, tape["p"]
        groups = shape.n_head // shape.n_head_kv
        d_mixed = self._linears["attn_output"].backward(tape["mixed"], dy, tape)
        d_mixed = _split_heads(d_mixed, shape.n_head_kv, groups)
        dv = p.transpose(0, 2, 1) @ d_mixed
        dp = d_mixed @ tape["v"].transpose(0, 2, 1)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
        dq = _merge_heads(ds @ tape["k"], groups).reshape(len(dy), shape.n_head, shape.head_dim)
        dk = (ds.transpose(0, 2, 1) @ tape["q"]).transpose(1, 0, 2)
        dq, dk = turn.backward(dq) * shape.attention_scale, turn.backward(dk)
        if shape.has_qk_norm:
            dq = self._norm_backward("attn_q_norm", dq, tape)
            dk = self._norm_backward("attn_k_norm", dk, tape)
        flat = {"attn_q": dq, "attn_k": dk, "attn_v": dv.transpose(1, 0, 2)}
        dh: Any = 0.0
        for name, gradient in flat.items():
            gradient = np.ascontiguousarray(gradient.reshape(len(dy), -1))
            dh = dh + self._linears[name].backward(tape["h"], gradient, tape)
        return self._norm_backward("attn_norm", dh, tape)


_LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def _merge_heads(x: Array, groups: int) -> Array:
    """(kv heads, groups * T, head_dim) -> (T, heads * head_dim)."""
    n_kv, rows, width = x.shape
    split = x.reshape(n_kv, groups, rows // groups, width).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(split.reshape(rows // groups, n_kv * groups * width))


def _split_heads(x: Array, n_kv: int, groups: int) -> Array:
    """The inverse of _merge_heads."""
    split = x.reshape(len(x), n_kv, groups, -1).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(split.reshape(n_kv, groups * len(x), -1))
