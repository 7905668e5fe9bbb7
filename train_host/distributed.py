"""How many processes train, and whether they share the work as requested.

Why it exists: on a machine without GPUs accelerate falls back from FSDP to DDP silently, and a run
that was meant to shard a large model then copies it into every process. Flows in: the environment
that torchrun or `accelerate launch` made, and accelerate's answer. Flows out: numbers of processes,
or TrainingFailed. Imports no torch. Not here: the launching.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge_agent.errors import TrainingFailed

SHARDED = "FSDP"
"""accelerate's name for FSDP of either version."""
_TRUE = {"1", "true", "yes", "on", "y", "t"}


def n_processes(environ: Mapping[str, str]) -> int:
    """Number of processes of the whole run; 1 without a launcher."""
    return _number(environ, "WORLD_SIZE", 1)


def rank(environ: Mapping[str, str]) -> int:
    """Number of this process in the run; process 0 writes the run directory."""
    return _number(environ, "RANK", 0)


def local_rank(environ: Mapping[str, str]) -> int:
    """Number of this process on its machine, which is the number of its GPU."""
    return _number(environ, "LOCAL_RANK", 0)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else default


def asks_fsdp(environ: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` was configured for FSDP."""
    return environ.get("ACCELERATE_USE_FSDP", "").lower() in _TRUE


def check(distributed_type: str, environ: Mapping[str, str], method: str) -> None:
    """Raise TrainingFailed when FSDP was requested and not obtained, or cannot be used.

    `distributed_type` is accelerate's: NO, MULTI_CPU, MULTI_GPU, FSDP, ...

    >>> check("FSDP", {"ACCELERATE_USE_FSDP": "true"}, "lora")
    """
    if asks_fsdp(environ) and distributed_type != SHARDED:
        raise TrainingFailed(
            "FSDP was asked for and not obtained",
            f"accelerate made {distributed_type} of it, which copies the model into every process",
            "run on GPUs, or launch without FSDP",
        )
    if distributed_type == SHARDED and method == "qat":
        raise TrainingFailed(
            "--method qat cannot be sharded",
            "a process would see a part of each row that ggml quantizes",
            "launch without FSDP: torchrun copies the model into every process",
        )
