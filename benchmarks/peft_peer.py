"""LoRA training in torch, transformers and peft, with which ours is compared.

Why it exists: the gradients that the trainer computes by hand are compared with autograd's. Flows
in: a Hugging Face directory with a GGUF file's dequantized weights, the GGUF file for names and the
order of rows, adapters by GGUF name. Flows out: losses and gradients. Texts are not packed: each is
a pass of its own. Not here: the limits of the comparison (adapt_gradients.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from converters.families.family import TensorPlacement
from converters.gguf_to_hf import open_model
from converters.rows import rotary_order
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.decoder.lora import TARGETS, Loras, LoraSettings

Text = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and which of them are supervised."""


class Doubles(TorchFunctionMode):
    """Uses float64 wherever float32 is asked for.

    transformers computes norms, rotary angles and softmax in float32, whatever the model's dtype
    is.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        named = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **named)


def _doubled(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@dataclass(frozen=True)
class Slot:
    """Where peft keeps the adapter of one weight. `order`: GGUF row i is its row order[i]."""

    a: Any
    b: Any
    order: NDArray[np.int64] | None

    def put(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """`b` is in GGUF order."""
        rows = np.empty_like(b)
        rows[slice(None) if self.order is None else self.order] = b
        with torch.no_grad():
            self.a.copy_(torch.from_numpy(np.ascontiguousarray(a)))
            self.b.copy_(torch.from_numpy(rows))

    def gradients(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Gradients of A and B, in GGUF order."""
        a, b = self.a.grad.numpy(), self.b.grad.numpy()
        return a, b if self.order is None else b[self.order]


class PeftPeer:
    """The base in `directory` with peft's LoRA on it, in float32 or float64."""

    def __init__(
        self, directory: Path, gguf: Path, settings: LoraSettings, dtype: Any = np.float32
    ) -> None:
        is_double = np.dtype(dtype) == np.float64
        self._mode: Callable[[], AbstractContextManager[Any]] = (
            Doubles if is_double else nullcontext
        )
        torch_dtype = torch.float64 if is_double else torch.float32
        with self._mode():
            base = transformers.AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch_dtype, attn_implementation="eager"
            )
            config = peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=settings.r,
                lora_alpha=settings.lora_alpha,
                lora_dropout=0.0,
                target_modules=list(settings.target_modules),
            )
            self._model = peft.get_peft_model(base, config).to(torch_dtype)
        self._slots = dict(self._find_slots(open_model(gguf).placements))
        self.trained = [matrix for slot in self._slots.values() for matrix in (slot.a, slot.b)]

    def _find_slots(self, placements: Sequence[TensorPlacement]) -> Iterator[tuple[str, Slot]]:
        for place in placements:
            if place.target.split(".")[-2] not in TARGETS.values():
                continue
            if not place.target.endswith(".weight"):
                continue
            module = self._model.base_model.model.get_submodule(
                place.source.removesuffix(".weight")
            )
            order = None
            if place.n_heads:
                order = rotary_order(place.shape[0], place.n_heads, to_gguf=True)
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            yield place.target, Slot(a, b, order)

    def put(self, loras: Loras) -> None:
        """Take over values; the names must be the same. Raises ValueError."""
        if set(loras) != set(self._slots):
            raise ValueError(f"adapters differ: {sorted(set(loras) ^ set(self._slots))[:4]}")
        for name, lora in loras.items():
            self._slots[name].put(lora.a, lora.b)

    def backward(self, texts: Sequence[Text], loss_dtype: Any = None) -> NDArray[Any]:
        """Losses at the supervised positions, text by text; also adds the gradients of their mean.

        `loss_dtype` is that of the cross-entropy; None: the model's own.
        """
        count = sum(sum(learned[1:]) for _, learned in texts)
        return np.concatenate([self._backward(text, count, loss_dtype) for text in texts])

    def losses(self, texts: Sequence[Text]) -> NDArray[Any]:
        """The losses of `backward`, without gradients."""
        with self._mode(), torch.no_grad():
            return np.concatenate([self._losses(text, None).numpy() for text in texts])

    def _backward(self, text: Text, count: int, loss_dtype: Any) -> NDArray[Any]:
        with self._mode():
            losses = self._losses(text, loss_dtype)
            (losses.sum() / count).backward()
        found: NDArray[Any] = losses.detach().numpy()
        return found

    def _losses(self, text: Text, loss_dtype: Any) -> Any:
        ids = torch.tensor([list(text[0])])
        places = np.flatnonzero(np.asarray(text[1][1:], bool))
        logits = self._model(input_ids=ids, use_cache=False).logits[0, places]
        if loss_dtype is not None:
            logits = logits.to(getattr(torch, np.dtype(loss_dtype).name))
        return torch.nn.functional.cross_entropy(logits, ids[0, places + 1], reduction="none")

    def gradients(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """(name as in lora.parameters, gradient in GGUF order)."""
        for name, slot in self._slots.items():
            a, b = slot.gradients()
            yield f"{name}.lora_a", a
            yield f"{name}.lora_b", b

    def clear(self) -> None:
        for matrix in self.trained:
            matrix.grad = None


class PeftLearner:
    """torch.optim.AdamW over a peer's adapters: edge_agent/adapt/trainer/training_step.py in
    torch."""

    def __init__(
        self,
        peer: PeftPeer,
        settings: RunSettings,
        schedule: Callable[[int], float],
        loss_dtype: Any = None,
    ) -> None:
        """`schedule` gives the factor of the learning rate at each step; `loss_dtype` as in
        `backward`."""
        self._peer, self._settings, self._schedule = peer, settings, schedule
        self._loss_dtype = loss_dtype
        self._optimizer = torch.optim.AdamW(
            peer.trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def step(self, texts: Sequence[Text], number: int) -> float:
        """Learn from `texts`; returns the mean loss before step `number`, counted from 0."""
        self._peer.clear()
        losses = self._peer.backward(texts, self._loss_dtype)
        torch.nn.utils.clip_grad_norm_(self._peer.trained, self._settings.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * self._schedule(number)
        self._optimizer.step()
        return float(losses.mean(dtype="f8"))
