"""One decoder block, forward and backward, by hand.

Why it exists: a board has no autograd, and one block for all model families is small enough to be
tested against torch's gradients, finite differences and llama.cpp's logits. Flows in: hidden states
(T, n_embd) of packed texts. Flows out: hidden states, and in backward their gradient; LoRA
gradients are added in place. The values that backward needs lie on a tape: `Buffers` that belong to
the block, or that all blocks share and that `again` fills just before backward. Values that are
cheaper to compute again than to keep (the norms' outputs, the gated product) are not on the tape.
Not here: embeddings (decoder.py) and head (head.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.adapt.trainer.decoder.attention import Attention, RowTexts
from edge_agent.adapt.trainer.decoder.compute import Array, Buffers
from edge_agent.adapt.trainer.decoder.elementwise import GatedUnit, add, rms_norm, rms_norm_backward
from edge_agent.adapt.trainer.decoder.linear import Linear
from edge_agent.adapt.trainer.decoder.lora import Dropout, Loras
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.decoder.shape import DecoderShape

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class BlockPass:
    """The buffers of a pass through one block.

    `tape` holds the values that backward needs. `fed` holds the feed-forward's output where a norm
    follows it: it is the tape, or buffers of the block's own, which make the second computation of
    that product unnecessary. `spare` is for values that do not outlive a call, except the gated
    product, which stays valid from a forward to the backward right after it.
    """

    row: RowTexts
    tape: Buffers
    fed: Buffers
    spare: Buffers
    dropout: Dropout | None = None


class Layer:
    """Block `number` of a model, with the adapters that belong to it."""

    def __init__(
        self, number: int, shape: DecoderShape, weights: PackedWeights, loras: Loras
    ) -> None:
        self.number, self._shape = number, shape
        self._compute = weights.compute
        self._norms = {name: self._vector(weights, name) for name in self._norm_names()}
        self.linears = {name: self._linear(weights, loras, name) for name in LINEARS}
        self._attention = Attention(
            self._compute, shape, shape.ropes[number], shape.windows[number]
        )
        self._gate = GatedUnit(self._compute, shape.is_gelu)

    @property
    def is_trained(self) -> bool:
        return any(linear.lora is not None for linear in self.linears.values())

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

    def _width(self, name: str) -> int:
        return self.linears[name].weight.n_out

    # ---- forward ----

    def forward(self, x: Array, out: Array, run: BlockPass) -> None:
        """Write the next hidden states to `out`; `x` and `out` are (T, n_embd), and not the same
        array."""
        middle = self._until_product(x, run)
        product = self._product(run)
        if self._post:
            fed = run.fed.take("fed", *x.shape)
            self._forward("ffn_down", product, fed, run)
            self._norm("post_ffw_norm", fed, out, run)
        else:
            self._forward("ffn_down", product, out, run)
        add(self._compute, middle, to=out)

    def again(self, x: Array, run: BlockPass, *, is_fed_kept: bool) -> None:
        """Fill the tape as `forward` did, without the block's output. `is_fed_kept`: run.fed still
        holds the feed-forward's output."""
        self._until_product(x, run)
        product = self._product(run)
        if self._post:
            fed = run.fed.take("fed", *x.shape)
            if not is_fed_kept:
                self._forward("ffn_down", product, fed, run)
            self._norm("post_ffw_norm", fed, run.spare.take("dh", *x.shape), run)
        if is_fed_kept or not self._post:
            self.linears["ffn_down"].keep_down(product, run.tape, run.dropout)

    def _until_product(self, x: Array, run: BlockPass) -> Array:
        """Compute everything before the last product. Returns the hidden states between attention
        and feed-forward."""
        mixed = self._mixed(x, run)
        middle = run.tape.take("middle", *x.shape)
        if self._post:
            attended = run.tape.take("attended", *x.shape)
            self._forward("attn_output", mixed, attended, run)
            self._norm("post_attention_norm", attended, middle, run)
        else:
            self._forward("attn_output", mixed, middle, run)
        add(self._compute, x, to=middle)
        h = run.spare.take("h", *x.shape)
        self._norm("ffn_norm", middle, h, run)
        for name in ("ffn_gate", "ffn_up"):
            self._forward(name, h, run.tape.take(name, len(x), self._width(name)), run)
        gate, up = self._gate_and_up(run)
        self._gate.forward(gate, up, self._product(run))
        return middle

    def _mixed(self, x: Array, run: BlockPass) -> Array:
        h = run.spare.take("h", *x.shape)
        self._norm("attn_norm", x, h, run)
        ready = []
        for name in ("attn_q", "attn_k", "attn_v"):
            size = len(x), self._width(name)
            is_normed = self._shape.has_qk_norm and name != "attn_v"
            is_taped = is_normed or name == "attn_v"
            projected = (run.tape if is_taped else run.spare).take(name, *size)
            self._forward(name, h, projected, run)
            if is_normed:
                normed = run.spare.take(name, *size)
                self._norm(f"{name}_norm", projected, normed, run)
                projected = normed
            ready.append(projected)
        mixed = run.tape.take("mixed", len(x), self._width("attn_q"))
        self._attention.forward(ready, mixed, run.tape, run.row)
        return mixed

    def _gate_and_up(self, run: BlockPass) -> tuple[Array, Array]:
        size = run.row.n_tokens, self._width("ffn_gate")
        return run.tape.take("ffn_gate", *size), run.tape.take("ffn_up", *size)

    def _product(self, run: BlockPass) -> Array:
        return run.spare.take("product", run.row.n_tokens, self._width("ffn_gate"))

    def _forward(self, name: str, x: Array, out: Array, run: BlockPass) -> None:
        self.linears[name].forward(x, out, run.tape, run.dropout)

    def _norm(self, name: str, x: Array, out: Array, run: BlockPass) -> None:
        """RMS norm over whole rows, or over each head where the norm's weight has a head's width
        (attn_q_norm, attn_k_norm)."""
        weight = self._norms[name]
        rows = x.reshape(-1, len(weight))
        inverse = run.tape.take(f"{name}.inverse", len(rows), 1)
        epsilon = self._shape.norm_epsilon
        rms_norm(self._compute, rows, weight, epsilon, out.reshape(rows.shape), inverse)

    # ---- backward ----

    def backward(self, x: Array, d: Array, run: BlockPass, *, is_product_ready: bool) -> None:
        """Turn `d`, the gradient of the block's output, into that of its input `x`, in place.

        LoRA gradients are added, and the tape's values are destroyed. `is_product_ready`: the gated
        product in `run.spare` is this block's, because no other block ran after its `forward` or
        `again`.
        """
        if not is_product_ready:
            gate, up = self._gate_and_up(run)
            self._gate.forward(gate, up, self._product(run))
        self._feed_forward_backward(d, run)
        self._attention_backward(x, d, run)

    def _feed_forward_backward(self, d: Array, run: BlockPass) -> None:
        d_fed = self._through_post_norm("post_ffw_norm", run.fed, "fed", d, run)
        product = self._product(run)
        self._backward("ffn_down", product, d_fed, product, run)
        gate, up = self._gate_and_up(run)
        self._gate.backward(gate, up, product)
        middle = run.tape.take("middle", *d.shape)
        h, dh = run.spare.take("h", *d.shape), run.spare.take("dh", *d.shape)
        self._norm("ffn_norm", middle, h, run)
        self._backward("ffn_gate", h, gate, dh, run)
        self._backward("ffn_up", h, up, dh, run, is_added=True)
        self._norm_backward("ffn_norm", middle, dh, d, run)

    def _attention_backward(self, x: Array, d: Array, run: BlockPass) -> None:
        d_attended = self._through_post_norm("post_attention_norm", run.tape, "attended", d, run)
        mixed = run.tape.take("mixed", len(x), self._width("attn_q"))
        self._backward("attn_output", mixed, d_attended, mixed, run)
        names = ("attn_q", "attn_k", "attn_v")
        dq, dk, dv = (run.spare.take(name, len(x), self._width(name)) for name in names)
        v = run.tape.take("attn_v", *dv.shape)
        self._attention.backward(mixed, v, (dq, dk, dv), run.tape, run.row, run.spare)
        if self._shape.has_qk_norm:
            for name, dy in (("attn_q", dq), ("attn_k", dk)):
                self._norm_backward(f"{name}_norm", run.tape.take(name, *dy.shape), dy, None, run)
        h, dh = run.spare.take("h", *x.shape), run.spare.take("dh", *x.shape)
        self._norm("attn_norm", x, h, run)
        for name, dy in zip(names, (dq, dk, dv), strict=True):
            self._backward(name, h, dy, dh, run, is_added=name != "attn_q")
        self._norm_backward("attn_norm", x, dh, d, run)

    def _through_post_norm(
        self, name: str, source: Buffers, given: str, d: Array, run: BlockPass
    ) -> Array:
        """The gradient of the input of the norm behind attention or feed-forward. Without such a
        norm it is `d` itself. `d` is not changed."""
        if not self._post:
            return d
        found = run.spare.take("d_half", *d.shape)
        found[:] = d
        self._norm_backward(name, source.take(given, *d.shape), found, None, run)
        return found

    def _backward(
        self, name: str, x: Array, dy: Array, out: Array, run: BlockPass, *, is_added: bool = False
    ) -> None:
        self.linears[name].backward(x, dy, out, run.tape, run.dropout, is_added=is_added)

    def _norm_backward(
        self, name: str, x: Array, dy: Array, add_to: Array | None, run: BlockPass
    ) -> None:
        """Turn `dy` into the gradient of `x`, in place, and add it to `add_to` if given."""
        weight = self._norms[name]
        rows = x.reshape(-1, len(weight))
        inverse = run.tape.take(f"{name}.inverse", len(rows), 1)
        rms_norm_backward(self._compute, rows, weight, inverse, dy.reshape(rows.shape), add_to)
