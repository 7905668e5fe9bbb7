"""TRL's SFTTrainer with other validation, schedule and order of rows.

Why it exists: the Trainer's eval_loss is a mean of batch means and depends on how rows are put into
batches. Bits per byte of the answers is a property of the model, and comparable between tokenizers.
The Trainer's order of rows also depends on the number of processes (step_rows.py). Flows in: ids
and labels, which TRL does not change. Flows out: a trained model. Needs torch and trl. Not here:
saving (resumable_trainer.py), making the samples (samples.py), what is written about the run
(recorder.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import SFTConfig, SFTTrainer, pack_dataset

from edge_agent.adapt.trainer.optimizer import factor
from train_host.methods import adapter_config, widen_adapter
from train_host.resumable_trainer import SealedTrainer
from train_host.samples import Samples
from train_host.settings import SftSettings
from train_host.step_rows import Epoch, StepRows, n_real_tokens, with_empty_row

METRIC = "eval_bits_per_byte"


class Trainer(SealedTrainer, SFTTrainer):  # type: ignore[misc]
    """Validates in bits per byte and seals its checkpoints. Made by `new_trainer`."""

    validation_bytes: int = 0
    """UTF-8 bytes of all answers in the validation set."""

    warmup_ratio: float = 0.0
    epoch: Epoch
    lr_scheduler: Any
    control: Any

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> StepRows:
        return StepRows(self.epoch, lambda: self.state.global_step)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of a step and the supervised tokens of all processes; also counts all
        tokens."""
        batches, n_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        n_tokens = torch.tensor(sum(map(n_real_tokens, batches)), device=device)
        self.n_tokens += int(self.accelerator.reduce(n_tokens))
        return batches, n_items

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The device's schedule, whose first step already learns."""
        if self.lr_scheduler is None:
            ratio = self.warmup_ratio

            def rate(step: int) -> float:
                return factor(step, num_training_steps, ratio)

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Nats per supervised token and bits per byte of the answers, over the validation set."""
        began_s = time.monotonic()
        nats, n_tokens = self._validation_sums()
        metrics = {
            "eval_loss": nats / max(1.0, n_tokens),
            METRIC: nats / math.log(2) / max(1, self.validation_bytes),
            "eval_s": time.monotonic() - began_s,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _validation_sums(self) -> tuple[float, float]:
        """(nats, supervised tokens) of all processes; each evaluates every n-th batch."""
        batches = _chunks(len(self.eval_dataset), self.args.per_device_eval_batch_size)
        n_processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        for first in range(0, len(batches), n_processes):
            # A process without a batch repeats the first one and does not count it, because a
            # sharded model needs every process in every forward pass.
            mine = first + rank
            rows = batches[mine] if mine < len(batches) else batches[0]
            found = self._batch_sums([self.eval_dataset[row] for row in rows])
            sums += found if mine < len(batches) else 0.0 * found
        nats, n_tokens = self.accelerator.reduce(sums).tolist()
        return nats, n_tokens

    def _batch_sums(self, rows: list[dict[str, Any]]) -> Any:
        inputs = self._prepare_inputs(self.data_collator(rows))
        with torch.no_grad(), self.compute_loss_context_manager():
            out = self.model(**inputs, fused_lm_head=True, use_cache=False)
        return torch.stack([-out.log_probs.double().sum(), out.label_mask.double().sum()])


def new_trainer(
    model: Any, settings: SftSettings, train: Samples, validation: Samples, directory: Path
) -> Trainer:
    """A trainer that saves its checkpoints in `directory`."""
    has_validation, rows = len(validation) > 0, train_dataset(train, settings)
    trainer = Trainer(
        model=model,
        args=trainer_arguments(settings, directory, has_validation),
        train_dataset=with_empty_row(rows),
        eval_dataset=Dataset.from_dict(validation.columns()) if has_validation else None,
        processing_class=padding_only(),
        peft_config=adapter_config(settings, hasattr(model.config, "vision_config")),
    )
    trainer.warmup_ratio = settings.warmup_ratio
    trainer.epoch = _epoch(rows, settings)
    trainer.validation_bytes = sum(validation.n_bytes)
    trainer.processing_class = None  # or every save would write it as the model's tokenizer
    trainer.remove_callback(PrinterCallback)
    if settings.trains_adapter:
        widen_adapter(trainer.model)
    if has_validation and settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    return trainer


def _epoch(rows: Dataset, settings: SftSettings) -> Epoch:
    together = settings.micro_batch_size * settings.n_processes
    return Epoch(
        lengths=[len(ids) for ids in rows["input_ids"]],
        batch_size=settings.batch_size,
        n_together=together if settings.n_processes > 1 else 1,
        seed=settings.seed,
        shuffles=settings.sampling != "sequential",
        sorts=not settings.packing,  # packed rows are joined, not padded
    )


def train_dataset(samples: Samples, settings: SftSettings) -> Dataset:
    """input_ids and labels; with packing, TRL's best-fit-decreasing rows and their
    `seq_lengths`."""
    rows = Dataset.from_dict(samples.columns())
    return pack_dataset(rows, settings.max_length, "bfd") if settings.packing else rows


def padding_only() -> PreTrainedTokenizerFast:
    """A tokenizer that knows only padding, which is all that TRL asks of it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")


def trainer_arguments(settings: SftSettings, directory: Path, has_validation: bool) -> SFTConfig:
    """All our settings as TRL's; settings that we do not choose keep the library's default."""
    return SFTConfig(
        output_dir=str(directory),
        # What TRL does with the data: nothing.
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=settings.max_length,
        packing=settings.packing,
        packing_strategy="bfd",
        train_sampling_strategy=settings.sampling,
        # How it learns.
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.micro_batch_size,
        per_device_eval_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.accumulation_steps,
        average_tokens_across_devices=True,
        use_cpu=settings.device == "cpu",
        bf16=settings.dtype == "bf16",
        tf32=None,
        activation_checkpointing=settings.gradient_checkpointing,
        dataloader_num_workers=0,
        ddp_find_unused_parameters=False,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        seed=settings.seed,
        data_seed=settings.seed,
        **_written(settings, has_validation),
    )


def _written(settings: SftSettings, has_validation: bool) -> dict[str, Any]:
    """What is saved, logged and compared, and when."""
    best: dict[str, Any] = {"eval_strategy": "no"}
    if has_validation:
        best = {
            "eval_strategy": "steps",
            "eval_steps": settings.save_every,
            "load_best_model_at_end": True,
            "metric_for_best_model": METRIC,
            "greater_is_better": False,
        }
    return {
        **best,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": None,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
    }


def _chunks(n: int, size: int) -> list[Sequence[int]]:
    return [range(first, min(first + size, n)) for first in range(0, n, size)]
