"""What the trainer process is told and what it tells: one frozen struct each, msgpack on a socket.

Flows in and out of edge_agent/adapt/trainer/process.py (the trainer) and
edge_agent/adapt/lesson_runner.py (who starts it: the daemon, or the command line without one). The
framing is wire.py's. Everything a run needs to be repeated bit for bit is in `RunSettings`. Imports
no NumPy: the front uses it. Not here: what is done with them.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

TARGET_MODULES = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
"""Every linear layer of a block, by PEFT's names."""


class RunSettings(Struct, frozen=True):
    """How an adapter is trained. PEFT's names where PEFT has one."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: list(TARGET_MODULES))
    use_rslora: bool = False
    layers: str = "auto"
    """auto | all | top:K | a list of block numbers such as 10,11,14."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    max_grad_norm: float = 1.0
    epochs: int = 12
    """At most; training ends earlier when the validation loss stops to fall."""
    patience: int = 2
    """Epochs without a better validation loss before it ends."""
    max_length: int = 512
    """Tokens of the longest text; longer ones are rejected and counted."""
    batch_tokens: int = 512
    """Tokens of one packed row, at most: one forward and backward pass. Short lessons get less."""
    gradient_accumulation_steps: int = 1
    validation_share: float = 0.1
    checkpoint_steps: int = 20
    seed: int = 1
    n_threads: int | None = None
    """BLAS threads; None: the physical cores. Frozen at the start of a run."""
    memory_bytes: int | None = None
    """What the trainer may take of its own (RssAnon). None: half of what is available."""
    hours: float | None = None
    """Stop after this much training time, keeping the best adapter."""
    audit: bool = True
    policy: Literal["idle", "always", "exclusive"] = "idle"


class Start(Struct, frozen=True, tag="start"):
    """First message. `resume`: the run directory holds a manifest and checkpoints already."""

    run_dir: str
    name: str
    model: str
    model_path: str
    model_sha256: str
    data_path: str
    settings: RunSettings
    resume: bool = False
    plan_only: bool = False


class Pause(Struct, frozen=True, tag="pause"):
    """Stop computing after this step, save a checkpoint, keep the process; `reason` is shown."""

    reason: str


class Continue(Struct, frozen=True, tag="continue"):
    """Go on after a Pause."""


class Stop(Struct, frozen=True, tag="stop"):
    """Save a checkpoint and exit; the run can be resumed."""


ToTrainer = Start | Pause | Continue | Stop


class Planned(Struct, frozen=True, tag="planned"):
    """What the run will take. `bytes` by part: weights_mapped (file pages, not its own), process,
    tile_cache, layer_inputs, optimizer, prefix_store, head, total (its own, RssAnon)."""

    bytes: dict[str, int]
    layers: list[int]
    n_train: int
    n_validation: int
    n_tokens: int
    """Of one epoch, real tokens."""
    n_supervised: int
    steps_per_epoch: int
    epoch_s: float | None
    rejected: dict[str, int]
    """Rows left out, by reason (too_long, empty, ...)."""
    flagged: list[dict[str, Any]]
    """The audit's findings: {row, reason, text}."""
    fits: bool
    notes: list[str] = field(default_factory=list)
    memory_bytes: int = 0
    """The budget that `bytes["total"]` was compared with."""
    prefix_s: float | None = None
    """Once, before the first epoch: storing the states below the lowest trained block."""
    choices: list[dict[str, float]] = field(default_factory=list)
    """What `auto` may choose from: {layers, total_bytes, epoch_s, fits}. `bytes` and `layers` are
    then those of the largest that fits."""


class TrainingProgress(Struct, frozen=True, tag="progress"):
    """After every optimizer step, and once a second while the prefix is stored or it is paused."""

    phase: Literal["prepare", "prefix", "trial", "train", "validate", "paused", "save"]
    step: int
    n_steps: int
    epoch: float
    loss: float | None = None
    """Mean nats a supervised token of this step."""
    validation_loss: float | None = None
    validation_bits_per_byte: float | None = None
    learning_rate: float | None = None
    tok_s: float | None = None
    """Real (unpadded) tokens a second of training."""
    rss_anon_bytes: int | None = None
    eta_s: float | None = None
    note: str = ""
    code: str = ""
    """Why the trainer paused by itself: storage_full. Empty for a pause it was told to take."""
    joules_per_step: float | None = None
    """Filled in by the front, which has the power sensor."""


class Finished(Struct, frozen=True, tag="finished"):
    """The adapter is on the disk. `losses`: one per epoch {epoch, train_loss, validation_loss,
    validation_bits_per_byte}."""

    adapter_path: str
    adapter_sha256: str
    layers: list[int]
    losses: list[dict[str, float]]
    tok_s: float
    train_s: float
    steps: int
    peak_rss_anon_bytes: int
    influence: list[float] = field(default_factory=list)
    """Block influence (1 - cosine of a block's input and output) of every block: reported only."""
    trials: list[dict[str, float]] = field(default_factory=list)
    """What `auto` tried: {layers, validation_loss, seconds}."""
    validation_before: dict[str, float] = field(default_factory=dict)
    """{validation_loss, validation_bits_per_byte} of the base, by the trainer's own forward."""
    best_epoch: int = 0
    """Whose adapter was kept."""
    ended: str = "epochs"
    """Why it ended: epochs (all done), patience (validation stopped to fall), hours."""
    was_finished: bool = False
    """This run had finished before; nothing was computed now."""


class Stopped(Struct, frozen=True, tag="stopped"):
    """Exits now, with a checkpoint to resume from at `step`."""

    step: int


class TrainerFailed(Struct, frozen=True, tag="trainer_failed"):
    """A typed error (errors.error_from_code); the process exits after it."""

    code: str
    what: str
    why: str
    hint: str


FromTrainer = Planned | TrainingProgress | Finished | Stopped | TrainerFailed
