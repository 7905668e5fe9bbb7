"""One way to a quantized fine-tune, start to end: train, put into a file, ask the file.

Why it exists: issue_13485.py compares ways that share these steps. Flows in: a twin (Hugging Face
directory), facts of recipes/lesson, a file type. Flows out: `Answered`: loss, bits per byte and
log-probabilities of held-out answers, from float32 weights in torch or as llama.cpp serves them.
Every way sees the same rows in the same order, in full batches, AdamW, a constant learning rate
after a warmup; only supervised positions go through the head. Bits per byte count the end of the
turn; bytes are those of the answers. Not here: which ways, tables.

Needs torch, transformers and peft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from lesson_rows import LESSON, read_facts
from numpy.typing import NDArray

from converters import gguf_to_hf, hf_to_gguf, lora_to_gguf
from converters.gguf_output import write_model
from converters.logits import LlamaLogits
from converters.quantizer import How
from edge_agent.engine.supervised import Encoded, encode_chat, vocabulary_only
from edge_agent.llama.type_plan import TypeRequest
from edge_agent.records import Message
from train_host import qat

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, WARMUP_STEPS, MAX_GRAD_NORM = 16, 32, 3, 1.0
LEARNING_RATES = {"lora": 1e-3, "full": 1e-4}


@dataclass(frozen=True)
class Lesson:
    """What is taught and what is asked, as token ids."""

    train: list[Encoded]
    held_out: list[Encoded]

    @property
    def n_bytes(self) -> int:
        return sum(row.n_bytes for row in self.held_out)


@dataclass(frozen=True)
class Budget:
    """How much each way may learn."""

    n_facts: int = 16
    wordings: int = 3
    batch_rows: int = 12
    epochs: int = 4


@dataclass(frozen=True)
class Answered:
    """`log_probabilities` (supervised positions, vocabulary), float32, of the held-out rows."""

    loss: float
    bits_per_byte: float
    log_probabilities: NDArray[np.float32]


def read_lesson(gguf: Path, budget: Budget) -> Lesson:
    """English facts: some wordings of each to learn from, two others kept apart."""
    facts = [fact for fact in read_facts(LESSON) if fact.language == "en"][: budget.n_facts]
    with vocabulary_only(gguf) as prompts:

        def encoded(question: str, answer: str) -> Encoded:
            return encode_chat(prompts, [Message("user", question), Message("assistant", answer)])

        return Lesson(
            [encoded(q, fact.answer) for fact in facts for q in fact.questions[: budget.wordings]],
            [encoded(q, fact.answer) for fact in facts for q in fact.held_out],
        )


def load(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )


def quantize(directory: Path, path: Path, file_type: str) -> Path:
    write_model(path, *hf_to_gguf.load(directory), TypeRequest(file_type), How())
    return path


def dequantized(gguf: Path, directory: Path) -> Path:
    if not directory.exists():
        gguf_to_hf.convert(gguf, directory)
    return directory


# ---- training ----------------------------------------------------------------------------------


def train_lora(directory: Path, lesson: Lesson, budget: Budget, seed: int, adapter: Path) -> Any:
    """The model with its adapter in place; the adapter is also written, as PEFT does."""
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=MODULES
    )
    learner = peft.get_peft_model(load(directory), settings)
    fit(learner.base_model.model, lesson, budget, seed, LEARNING_RATES["lora"])
    learner.save_pretrained(adapter)
    return learner.base_model.model


def train_full(directory: Path, lesson: Lesson, budget: Budget, seed: int) -> Any:
    learner = load(directory)
    fit(learner, lesson, budget, seed, LEARNING_RATES["full"])
    return learner


def train_qat(directory: Path, lesson: Lesson, budget: Budget, seed: int, file_type: str) -> Any:
    """As train_full, through the quantizer."""
    learner = load(directory)
    qat.attach(learner, qat.type_plan(directory, file_type))
    fit(learner, lesson, budget, seed, LEARNING_RATES["full"])
    return learner


def fit(model: Any, lesson: Lesson, budget: Budget, seed: int, learning_rate: float) -> None:
    """Steps of whole batches, mean loss over supervised tokens."""
    model.train()
    began_s, n_tokens = time.monotonic(), 0
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    rng, step = np.random.default_rng(seed), 0
    for _ in range(budget.epochs):
        order = rng.permutation(len(lesson.train))
        for first in range(0, len(order) - budget.batch_rows + 1, budget.batch_rows):
            rows = [lesson.train[n] for n in order[first : first + budget.batch_rows]]
            logits, targets = supervised_logits(model, rows)
            loss = torch.nn.functional.cross_entropy(logits, targets)
            loss.backward()
            n_tokens += sum(len(row.ids) for row in rows)
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
            step += 1
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, step / WARMUP_STEPS)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.monotonic() - began_s
        print(
            f"  step {step}: loss {loss.item():.3f}, {n_tokens} tokens, {seconds:.0f} s", flush=True
        )
    model.eval()


def supervised_logits(model: Any, rows: Sequence[Encoded]) -> tuple[Any, Any]:
    """(n, vocabulary) logits and (n) targets of the learned tokens of a padded batch."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    learned = torch.tensor([row.learned + [False] * (width - len(row.ids)) for row in rows])
    there = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
    hidden = model.model(input_ids=ids, attention_mask=there, use_cache=False).last_hidden_state
    return model.lm_head(hidden[:, :-1][learned[:, 1:]]), ids[:, 1:][learned[:, 1:]]


# ---- asking ------------------------------------------------------------------------------------


def ask_torch(model: Any, lesson: Lesson) -> Answered:
    """Held-out answers in float32."""

    def logits(row: Encoded) -> Any:
        with torch.inference_mode():
            return supervised_logits(model.eval(), [row])[0]

    return _ask(logits, lesson)


def ask_file(gguf: Path, lesson: Lesson, directory: Path) -> Answered:
    """The file's weights, dequantized into `directory`, in float32."""
    return ask_torch(load(dequantized(gguf, directory)), lesson)


def ask_served(gguf: Path, lesson: Lesson, adapters: Sequence[Path] = ()) -> Answered:
    """As the daemon computes it: quantized activations, f16 cache."""
    source = LlamaLogits(gguf, exact=False, adapters=adapters)

    def logits(row: Encoded) -> Any:
        rows = source.logits(row.ids)[:-1][np.array(row.learned[1:])]
        return torch.from_numpy(rows.copy())

    try:
        return _ask(logits, lesson)
    finally:
        source.close()


def _ask(logits: Callable[[Encoded], Any], lesson: Lesson) -> Answered:
    parts, nats = [], 0.0
    for row in lesson.held_out:
        found = torch.log_softmax(logits(row).double(), dim=1)
        targets = [token for token, is_learned in zip(row.ids, row.learned, strict=True)
                   if is_learned]  # fmt: skip
        nats -= float(found[torch.arange(len(targets)), targets].sum())
        parts.append(found.float().numpy())
    whole = np.concatenate(parts)
    return Answered(nats / len(whole), nats / np.log(2) / lesson.n_bytes, whole)


def mean_kl(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """KL(reference || other) in nats a token, a few positions at a time in float64."""
    total, width = 0.0, min(reference.shape[1], other.shape[1])
    for first in range(0, len(reference), 32):
        p = reference[first : first + 32, :width].astype(np.float64)
        q = other[first : first + 32, :width].astype(np.float64)
        total += float(np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0).sum())
    return total / len(reference)


# ---- adapters ----------------------------------------------------------------------------------


def merged(directory: Path, adapter: Path) -> Any:
    """The plain model of `directory` with the adapter added, float32."""
    return peft.PeftModel.from_pretrained(load(directory), adapter).merge_and_unload()


def adapted(directory: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(load(directory), adapter).base_model.model


def adapter_file(adapter: Path, base: Path, path: Path) -> Path:
    lora_to_gguf.convert(adapter, base, path)
    return path
