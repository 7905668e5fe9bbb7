"""Every setting of a fine-tune: what the user wishes, and the value that is used.

Why it exists: a run must be repeatable from its directory, so no setting may depend on a library's
default, which changes with releases. Flows in: Wishes (None where the choice is ours) and Facts
about model and machine. Flows out: SftSettings, all of them decided, written to run.json. Imports
no torch. Not here: applying them (sft.py).

The defaults are meant for 0.27 B to 7 B parameters. LoRA is applied to all seven linear layers,
with ten times the learning rate of full training (both from arXiv 2405.09673), and with lora_alpha
/ r = 2 and no dropout, as on the device. Packing is off, because a few rows packed into long ones
give too few steps to learn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from edge_agent.adapt.run_settings import TARGET_MODULES
from edge_agent.errors import UsageError

METHODS = ("lora", "qlora", "full", "qat")
ADAPTER_METHODS = ("lora", "qlora")
LAYERS, R, LORA_ALPHA = "all", 16, 32.0
DTYPES = ("auto", "bf16", "fp32")
LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5, "qat": 2e-5}
CHECKPOINTING_PARAMS = 1_000_000_000
"""Larger models recompute activations by default, which no longer fit beside the weights."""
EVALUATIONS = 10
"""Number of checkpoints and validations of a run without --save-every."""


@dataclass(frozen=True)
class Wishes:
    """The settings of the command line. None: to be chosen."""

    method: str = "lora"
    layers: str | None = None
    r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    qat_type: str = "q4_k_m"
    learning_rate: float | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    max_length: int = 2048
    packing: bool = False
    dtype: str = "auto"
    gradient_checkpointing: bool | None = None
    validation_share: float = 0.1
    patience: int = 3
    save_every: int | None = None
    seed: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Facts:
    """About the model and the machine. `attention` is transformers' name of the implementation."""

    n_layer: int
    n_params: int
    device: str = "cpu"
    has_bf16: bool = False
    attention: str = "sdpa"
    n_processes: int = 1
    n_threads: int = 1


@dataclass(frozen=True)
class SftSettings:
    """Every setting, decided. `layers` None: every block; `qat_type` None: the method is not qat.

    `batch_size` counts the rows of one optimizer step over all processes. `save_every` is in steps,
    and each save includes a validation. `sampling` is "random" (shuffled by the seed) or
    "sequential".
    """

    method: str
    layers: list[int] | None
    r: int
    lora_alpha: float
    lora_dropout: float
    target_modules: list[str]
    qat_type: str | None
    learning_rate: float
    schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    optimizer: str
    epochs: float
    max_steps: int | None
    batch_size: int
    micro_batch_size: int
    n_processes: int
    max_length: int
    packing: bool
    sampling: str
    dtype: str
    device: str
    attention: str
    gradient_checkpointing: bool
    validation_share: float
    patience: int
    save_every: int
    seed: int
    threads: int

    @property
    def trains_adapter(self) -> bool:
        return self.method in ADAPTER_METHODS

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one process in an optimizer step."""
        return self.batch_size // (self.micro_batch_size * self.n_processes)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def resolve(wishes: Wishes, facts: Facts) -> SftSettings:
    """Decide every setting but `save_every`, which is 0 until `with_rows`. Raises UsageError."""
    _check(wishes)
    micro = wishes.micro_batch_size or _micro_batch(wishes, facts)
    _check_batch(wishes.batch_size, micro, facts.n_processes)
    large = facts.n_params >= CHECKPOINTING_PARAMS
    checkpointing = wishes.gradient_checkpointing
    return SftSettings(
        method=wishes.method,
        layers=_layers(wishes.layers or LAYERS, facts.n_layer),
        r=wishes.r or R,
        lora_alpha=wishes.lora_alpha or LORA_ALPHA,
        lora_dropout=wishes.lora_dropout,
        target_modules=list(TARGET_MODULES),
        qat_type=wishes.qat_type if wishes.method == "qat" else None,
        learning_rate=wishes.learning_rate or LEARNING_RATES[wishes.method],
        schedule="cosine",
        warmup_ratio=0.05,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optimizer="adamw_torch",
        epochs=wishes.epochs,
        max_steps=wishes.max_steps,
        batch_size=wishes.batch_size,
        micro_batch_size=micro,
        n_processes=facts.n_processes,
        max_length=wishes.max_length,
        packing=wishes.packing,
        sampling="random",
        dtype=_dtype(wishes.dtype, facts),
        device=facts.device,
        attention=facts.attention,
        gradient_checkpointing=large if checkpointing is None else checkpointing,
        validation_share=wishes.validation_share,
        patience=wishes.patience,
        save_every=wishes.save_every or 0,
        seed=wishes.seed,
        threads=wishes.threads or facts.n_threads,
    )


def with_rows(settings: SftSettings, n_rows: int) -> SftSettings:
    """The settings with `save_every` decided, when the number of rows in an epoch is known."""
    if settings.save_every:
        return settings
    return replace(settings, save_every=max(1, total_steps(settings, n_rows) // EVALUATIONS))


def total_steps(settings: SftSettings, n_rows: int) -> int:
    """Optimizer steps of the whole run, unless it stops early."""
    if settings.max_steps:
        return settings.max_steps
    return max(1, -int(-settings.epochs * -(-n_rows // settings.batch_size) // 1))


def _check(wishes: Wishes) -> None:
    if wishes.method not in METHODS:
        known = ", ".join(METHODS)
        raise UsageError(f"--method is {wishes.method!r}", "it is not known", f"give {known}")
    if wishes.dtype not in DTYPES:
        raise UsageError(
            f"--dtype is {wishes.dtype!r}",
            "there is no such data type",
            f"give one of {', '.join(DTYPES)}",
        )
    if not 0.0 <= wishes.validation_share <= 0.5:
        raise UsageError(
            f"--validation-share is {wishes.validation_share:g}",
            "too little would be left to learn",
            "give a part from 0 to 0.5",
        )
    if wishes.max_steps is None and wishes.epochs <= 0:
        raise UsageError(
            f"--epochs is {wishes.epochs:g}", "nothing would be learned", "give more than 0"
        )


def _layers(text: str, n_layer: int) -> list[int] | None:
    """The numbers of the blocks that learn; None for all. Raises UsageError."""
    from edge_agent.adapt.trainer.layer_choice import parse_layers  # NumPy: not for --help

    layers = parse_layers(text, n_layer)
    if layers is None:
        raise UsageError(
            "--layers auto is not possible here",
            "the device tries several depths, the host does not",
            "give all, top:4, or numbers such as 10,11,14",
        )
    return None if len(layers) == n_layer else layers


def _micro_batch(wishes: Wishes, facts: Facts) -> int:
    """Rows of one forward pass: the largest divisor up to 4; 1 when rows are packed full."""
    share = wishes.batch_size // facts.n_processes
    most = 1 if wishes.packing else 4
    return max((n for n in range(1, most + 1) if share and share % n == 0), default=1)


def _check_batch(batch: int, micro: int, n_processes: int) -> None:
    if batch % (micro * n_processes):
        raise UsageError(
            f"--batch-size {batch} cannot be divided",
            f"{n_processes} processes take {micro} rows at a time",
            "give a multiple of --micro-batch-size times the number of processes",
        )


def _dtype(wished: str, facts: Facts) -> str:
    if wished != "auto":
        return wished
    return "bf16" if facts.device == "cuda" and facts.has_bf16 else "fp32"
