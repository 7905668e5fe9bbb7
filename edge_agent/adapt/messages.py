"""What the trainer process is told and what it tells: one frozen struct each, msgpack on a socket.

Flows in and out of edge_agent/adapt/trainer/process.py (the trainer) and
edge_agent/adapt/lesson_runner.py (who starts it: the daemon, or the command line without one). The
framing is wire.py's. Imports no NumPy: the front uses it. Not here: the settings of a run
(run_settings.py), what is done with the records.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from edge_agent.adapt.run_settings import RunSettings


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
    earlier_path: str = ""
    """JSON of what the active adapter was taught (lesson_files.py); read when the run begins."""
    asked_path: str = ""
    """JSON of what users asked, for the rehearsal; the trainer removes it at the run's end."""
    cache_dir: str = ""
    """Where computed targets are kept for the next run with the same model; empty: nowhere."""


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
    rehearsal: dict[str, Any] = field(default_factory=dict)
    """What is rehearsed: {kind, rows, tokens, bytes, seconds}. `tokens` of all rows, `bytes` on the
    disk, `seconds` once, before the first epoch, for the distributions to keep; the time beside the
    lesson's rows is a part of `epoch_s`. Without rehearsal, {kind: none}."""
    choices: list[dict[str, float]] = field(default_factory=list)
    """What `auto` may choose from: {layers, total_bytes, epoch_s, fits}. `bytes` and `layers` are
    then those of the largest that fits."""


class TrainingProgress(Struct, frozen=True, tag="progress"):
    """After every optimizer step, and once a second while the prefix is stored or it is paused."""

    phase: Literal["prepare", "prefix", "rehearse", "trial", "train", "validate", "paused", "save"]
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


BASE_END_LOSS = 8.0
"""Nats of the end of a turn, after answers written by people, above which a model is a base model:
2.7 with SmolLM2 135M Instruct, 23.8 with Gemma 3 270M (dev/log)."""


def is_instruct(end_loss: float | None) -> bool:
    """Whether a model with this end-of-turn loss was trained to chat; None: not measured."""
    return end_loss is not None and end_loss < BASE_END_LOSS


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
    """Why it ended: answered (every token of every taught row is the likeliest), epochs (all done),
    patience (nothing more is learned), hours."""
    end_loss: float | None = None
    """Nats of the end of a turn after answers written by people, before the lesson: what tells a
    base model from an instruct model."""
    rehearsal: dict[str, Any] = field(default_factory=dict)
    """{kind, rows, seconds}: as in Planned, measured."""


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
