"""A frozen weight with its bias and its adapter, forward and backward.

Why it exists: forward and backward of the frozen product and of the adapter use the same input.
Flows in: hidden states of packed texts. Flows out: products, in arrays that the caller gives; LoRA
gradients are added in place. The adapter's backward needs x A^T, which the tape keeps under the
weight's name. Not here: which linears a block has (layer.py).
"""

from __future__ import annotations

from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Compute
from edge_agent.adapt.trainer.decoder.lora import Dropout, LoraWeight
from edge_agent.adapt.trainer.decoder.packed_weights import PackedMatrix


class Linear:
    """y = x W^T + bias + adapter(x), for x (T, n_in) and W (n_out, n_in)."""

    def __init__(self, weight: PackedMatrix, bias: Array | None, lora: LoraWeight | None) -> None:
        self.weight, self.bias, self.lora = weight, bias, lora
        self._compute: Compute = weight.compute

    def forward(self, x: Array, out: Array, tape: Buffers, dropout: Dropout | None) -> None:
        """Write y (T, n_out) to `out`, and x A^T to `tape`."""
        self.weight.forward(x, out)
        if self.bias is not None:
            out += self.bias
        if self.lora is not None:
            down = self._down(tape, len(x))
            self.lora.forward(self._compute, self._dropped(x, dropout), down, out)

    def keep_down(self, x: Array, tape: Buffers, dropout: Dropout | None) -> None:
        """Write only x A^T to `tape`, as `forward` does: for a caller that has the output."""
        if self.lora is not None:
            down = self._down(tape, len(x))
            self._compute.matmul(self._dropped(x, dropout), self.lora.a.T, out=down)

    def backward(
        self, x: Array, dy: Array, out: Array, tape: Buffers, dropout: Dropout | None, *,
        is_added: bool = False,
    ) -> None:  # fmt: skip
        """Write the gradient of x (T, n_in) to `out`, and add the gradients of A and B.

        `dy` is the gradient of y. `is_added`: add to `out` instead. `x` is read before `out` is
        written, so the two may be one buffer.
        """
        if self.lora is None:
            self.weight.backward(dy, out, is_added=is_added)
            return
        down = self._down(tape, len(x))
        d_down = self.lora.backward(self._compute, self._dropped(x, dropout), down, dy)
        self.weight.backward(dy, out, is_added=is_added)
        if dropout is None or not self.lora.dropout:
            self.lora.add_input_gradient(self._compute, d_down, to=out)
            return
        through = self._compute.matmul(d_down, self.lora.a, out=self._compute.empty(*x.shape))
        through *= dropout.scales(self.weight.name, self.lora.dropout, x.shape)
        out += through

    def _down(self, tape: Buffers, n_tokens: int) -> Array:
        assert self.lora is not None
        return tape.take(self.weight.name, n_tokens, self.lora.r)

    def _dropped(self, x: Array, dropout: Dropout | None) -> Array:
        if dropout is None or self.lora is None or not self.lora.dropout:
            return x
        return dropout.apply(self.weight.name, self.lora.dropout, x)
