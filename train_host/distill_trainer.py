"""TRL's DistillationTrainer with the device's prompt ids, and the KL between two models.

Why it exists: TRL would render and tokenize prompts by itself, and can only learn from answers that
the student writes. Here the device's code makes the prompt ids, and the answers may also be those
of the rows, which a student needs that at first writes nonsense. Needs torch and trl. Flows in:
models and samples. Flows out: a trained student. Not here: the run around it (distill.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import DistillationConfig, DistillationTrainer

from train_host.resumable_trainer import SealedTrainer
from train_host.samples import IGNORED, Samples
from train_host.step_rows import Epoch, StepRows


class Distiller(SealedTrainer, DistillationTrainer):  # type: ignore[misc]
    """Learns the teacher's distributions. Made by `new_distiller`."""

    answers: Mapping[tuple[int, ...], list[int]] | None = None
    """Answer ids by prompt ids; None: the student writes the answers."""

    epoch: Epoch

    def _get_train_sampler(self, dataset: Dataset | None = None) -> StepRows:
        """Our order of rows: after a resume TRL's would start again with the order of the first
        epoch."""
        return StepRows(self.epoch, lambda: self.state.global_step)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict]:  # type: ignore[type-arg]
        return prompts, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> list[list[int]]:
        if self.answers is None:
            found: list[list[int]] = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            found = [self.answers[tuple(prompt)] for prompt in prompt_ids]
        self.n_tokens += sum(map(len, prompt_ids)) + sum(map(len, found))
        return found


def new_distiller(
    models: tuple[Any, Any],
    turns: Sequence[tuple[list[int], list[int]]],
    settings: Mapping[str, Any],
    directory: Path,
) -> Distiller:
    """A trainer for (teacher, student), whose heads have one width. `turns`: (prompt ids, answer
    ids)."""
    teacher, student = models
    trainer = Distiller(
        model=student,
        teacher_model=teacher,
        args=_arguments(settings, directory),
        train_dataset=Dataset.from_dict({"prompt": [prompt for prompt, _ in turns]}),
        processing_class=_padding(int(student.generation_config.pad_token_id)),
    )
    if not settings["on_policy"]:
        trainer.answers = {tuple(prompt): answer for prompt, answer in turns}
    lengths = [len(prompt) for prompt, _ in turns]
    trainer.epoch = Epoch(lengths, settings["batch_size"], n_together=1, seed=settings["seed"])
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(settings: Mapping[str, Any], directory: Path) -> DistillationConfig:
    return DistillationConfig(
        output_dir=str(directory),
        max_steps=settings["max_steps"],
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=1,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings["max_steps"] // 20),
        max_grad_norm=1.0,
        beta=settings["beta"],
        temperature=1.0,
        max_completion_length=settings["max_new_tokens"],
        seed=settings["seed"],
        data_seed=settings["seed"],
        use_cpu=settings["device"] == "cpu",
        bf16=False,
        activation_checkpointing=False,
        save_strategy="steps",
        save_steps=settings["save_every"],
        save_total_limit=None,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def _padding(pad_id: int) -> PreTrainedTokenizerFast:
    """A tokenizer that knows only padding and end: TRL asks for these two, and the ids are
    ready."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": pad_id}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>", padding_side="left"
    )


def cut_head(model: Any, width: int) -> None:
    """Remove the rows of embedding and head from `width` on, which are padding of the vocabulary.

    Qwen 2.5 has 152,064 rows from 7 B on and 151,936 below, for the same 151,665 tokens.
    """
    if model.config.get_text_config().vocab_size != width:
        model.resize_token_embeddings(width, mean_resizing=False)


def turns_of(samples: Samples) -> list[tuple[list[int], list[int]]]:
    """(ids before the answer, ids of the answer) for every learned answer."""
    found = []
    for ids, labels in zip(samples.input_ids, samples.labels, strict=True):
        start = 0
        while start < len(ids):
            if labels[start] == IGNORED:
                start += 1
                continue
            end = start
            while end < len(ids) and labels[end] != IGNORED:
                end += 1
            found.append((ids[:start], ids[start:end]))
            start = end
    return found


def divergence(teacher: Any, student: Any, samples: Samples) -> float:
    """Mean KL(teacher || student) in nats over the answers' tokens, each given the true tokens
    before."""
    total, n_tokens = 0.0, 0
    for ids, labels in zip(samples.input_ids, samples.labels, strict=True):
        places = torch.tensor([at - 1 for at in range(1, len(ids)) if labels[at] != IGNORED])
        inputs = {"input_ids": torch.tensor([ids]), "use_cache": False, "logits_to_keep": places}
        with torch.no_grad():
            p, q = (
                model.eval()(**{k: _on(v, model) for k, v in inputs.items()}).logits[0]
                for model in (teacher, student)
            )
            kl = torch.nn.functional.kl_div(
                q.double().log_softmax(-1),
                p.double().log_softmax(-1),
                reduction="sum",
                log_target=True,
            )
        total += float(kl)
        n_tokens += len(places)
    return total / max(1, n_tokens)


def _on(value: Any, model: Any) -> Any:
    return value.to(model.device) if torch.is_tensor(value) else value
