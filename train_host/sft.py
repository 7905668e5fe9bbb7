"""Supervised fine-tuning from rows to a trained adapter or model, in one resumable run.

Why it exists: the libraries train; the usual failures are around them: the data, a silent default,
a half-written checkpoint. So every step here is explicit: the model source, ids made by the
device's code, resolved settings on disk before the first step, sealed checkpoints, a result that is
written last. Flows in: an SftJob. Flows out: a run directory (run_directory.py) and the content of
metrics.json. It also runs under torchrun and `accelerate launch`; the first process writes. Not
here: options (commands/sft.py), merging and quantizing what was learned (export.py).
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from converters.extras import load_extra
from converters.merge import COPIED
from edge_agent import atomic_file
from edge_agent.adapt.trainer.blas import choose_threads
from edge_agent.adapt.trainer.dataset import split
from edge_agent.prompt.training_sequence import vocabulary_only
from train_host import (
    checkpoints,
    curves,
    distributed,
    results,
    row_order,
    run_directory,
    start_adapter,
)
from train_host.methods import check_rank, load_model
from train_host.model_source import ModelSource, open_source
from train_host.resumable_run import Console, ResumableRun, begin, follow, peak_memory
from train_host.row_order import RowOrder
from train_host.run_directory import RunFiles
from train_host.samples import Samples, encode_rows, read_data, refuse_unlearnable
from train_host.settings import Facts, SftSettings, Wishes, resolve, with_rows
from train_host.start_adapter import StartAdapter

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
RECORDED = (*PACKAGES, "bitsandbytes", "safetensors", "edge-agent", "llama_cpp_python", "numpy")
"""Packages whose versions are recorded with a run."""


@dataclass(frozen=True)
class SftJob:
    """The user's request. `environ` holds the variables of a launcher of several processes."""

    model: str
    data: Path
    output: Path
    cache: Path
    wishes: Wishes
    environ: Mapping[str, str]
    adapter: Path | None = None
    order: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything that is decided before a weight is loaded."""

    files: RunFiles
    source: ModelSource
    settings: SftSettings
    train: Samples
    validation: Samples
    start: StartAdapter | None
    is_first: bool
    """Whether this process writes the run directory."""


def train(job: SftJob, console: Console) -> dict[str, Any]:
    """Run or resume; returns the content of metrics.json, {} in all processes but the first.

    Raises EdgeAgentError.
    """
    _load_packages(job.wishes.method)
    files, is_first = RunFiles(job.output), distributed.rank(job.environ) == 0
    lock = run_directory.lock(job.output) if is_first else None
    try:
        if is_first:
            run_directory.check_start(files, job.resume)
        prepared = _prepare(job, files, is_first)
        return _carry_out(job, prepared, console)
    finally:
        if lock is not None:
            os.close(lock)


def _load_packages(method: str) -> None:
    extra = ("bitsandbytes",) if method == "qlora" else ()
    for name in (*PACKAGES, *extra):
        load_extra(name, "edge-train sft")
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


# ---- before the first step ---------------------------------------------------------------------


def _prepare(job: SftJob, files: RunFiles, is_first: bool) -> Prepared:
    source = open_source(job.model, job.cache)
    settings = resolve(job.wishes, _facts(source, job))
    start = start_adapter.read_start(job.adapter, source) if job.adapter else None
    order = row_order.read_order(job.order) if job.order else None
    if start:
        settings = start_adapter.settle(settings, job.wishes, start)
    if settings.trains_adapter:
        check_rank(source.directory, settings)
    if order:
        settings = row_order.settle(settings)
    data = read_data(job.data)
    kept, held = split(data.rows, settings.validation_share)
    with vocabulary_only(source.vocabulary) as prompts:
        train_samples = encode_rows(kept, prompts, settings.max_length)
        validation = encode_rows(held, prompts, settings.max_length)
    if order:
        train_samples = row_order.ordered(train_samples, order, {row.number for row in held})
    refuse_unlearnable(train_samples, str(job.data), settings.max_length)
    settings = with_rows(settings, _n_rows(train_samples, settings))
    summary = {"origin": str(job.data), "sha256": data.sha256}
    summary |= results.data_summary(train_samples, validation)
    document = _document(source, settings, summary)
    document |= {"adapter": _origin(start), "order": _origin(order)}
    if is_first:
        begin(files, data, document, train_samples)
    return Prepared(files, source, settings, train_samples, validation, start, is_first)


def _origin(given: StartAdapter | RowOrder | None) -> dict[str, str | None]:
    if given is None:
        return {"origin": None, "sha256": None}
    return {"origin": str(given.path), "sha256": given.sha256}


def _n_rows(samples: Samples, settings: SftSettings) -> int:
    if not settings.packing:
        return len(samples)
    from train_host.trainer import train_dataset

    return len(train_dataset(samples, settings))


def _facts(source: ModelSource, job: SftJob) -> Facts:
    import torch

    from converters.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(source.directory)
    n_params = 0
    for tensor in checkpoint.tensors.values():
        size = 1
        for n in tensor.shape:
            size *= n
        n_params += size
    is_cuda = torch.cuda.is_available()
    return Facts(
        n_layer=int(checkpoint.config["num_hidden_layers"]),
        n_params=n_params,
        device="cuda" if is_cuda else "cpu",
        has_bf16=is_cuda and torch.cuda.is_bf16_supported(),
        n_processes=distributed.n_processes(job.environ),
        n_threads=choose_threads(None),
    )


def _document(
    source: ModelSource, settings: SftSettings, data: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of run.json; run_directory.check_same compares it when a run is resumed."""
    return {
        "method": settings.method,
        "settings": settings.as_json(),
        "model": {
            "origin": source.origin,
            "directory": str(source.directory),
            "gguf": str(source.gguf) if source.gguf else None,
            "sha256": source.sha256,
        },
        "data": dict(data),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of every package in RECORDED; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


# ---- training ----------------------------------------------------------------------------------


def _carry_out(job: SftJob, prepared: Prepared, console: Console) -> dict[str, Any]:
    import torch
    from accelerate import PartialState

    from train_host.trainer import new_trainer

    files, settings = prepared.files, prepared.settings
    torch.set_num_threads(settings.threads)
    if settings.n_processes > 1:
        # Set up before the weights are loaded: with FSDP only the first process then reads them.
        PartialState(cpu=settings.device == "cpu")
    model = load_model(prepared.source.directory, settings, distributed.local_rank(job.environ))
    trainer = new_trainer(model, settings, prepared.train, prepared.validation, files.checkpoints)
    if prepared.start:
        start_adapter.put(prepared.start, trainer.model)
    kind = trainer.accelerator.distributed_type.value
    distributed.check(kind, job.environ, settings.method)
    if prepared.is_first:
        console.note(_announcement(prepared, trainer, kind))
    rate = settings.learning_rate
    reason = follow(trainer, ResumableRun(files, console, settings.device, rate, prepared.is_first))
    _save_result(trainer, prepared, kind)
    return _finish(trainer, prepared, kind, reason) if prepared.is_first else {}


def _announcement(prepared: Prepared, trainer: Any, kind: str) -> str:
    settings = prepared.settings
    learned = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    summary = results.data_summary(prepared.train, prepared.validation)
    return (
        f"{settings.method} in {settings.dtype} on {settings.device},"
        f" distributed_type {kind} with {settings.n_processes} process(es):"
        f" {learned:,} weights learn from {summary['train_samples']} samples"
        f" ({summary['supervised_share']:.0%} of {summary['train_tokens']:,} tokens supervised,"
        f" dropped {summary['dropped'] or 'none'})"
    )


# ---- after the last step -----------------------------------------------------------------------


def _save_result(trainer: Any, prepared: Prepared, kind: str) -> None:
    """Write RUN/adapter or RUN/model, complete or not at all. Every process calls it to give its
    shard."""
    files, settings = prepared.files, prepared.settings
    target = files.adapter if settings.trains_adapter else files.model
    if prepared.is_first:
        shutil.rmtree(target, ignore_errors=True)
    if settings.trains_adapter or kind == distributed.SHARDED:
        _save_by_trainer(trainer, prepared, target)
    elif prepared.is_first:
        from train_host.qat import write_latent

        write_latent(trainer.model, prepared.source.directory, target)


def _save_by_trainer(trainer: Any, prepared: Prepared, target: Path) -> None:
    temp = target.with_name(f".{target.name}.tmp")
    if prepared.is_first:
        shutil.rmtree(temp, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temp))
    trainer.accelerator.wait_for_everyone()
    if not prepared.is_first:
        return
    for name in ("training_args.bin", "README.md"):  # a pickle, and a card without content
        (temp / name).unlink(missing_ok=True)
    if target == prepared.files.model:
        for name in COPIED:
            if (prepared.source.directory / name).is_file():
                shutil.copyfile(prepared.source.directory / name, temp / name)
    checkpoints.seal(temp)
    os.replace(temp, target)
    atomic_file.sync_directory(target.parent)


def _finish(trainer: Any, prepared: Prepared, kind: str, reason: str) -> dict[str, Any]:
    files, log = prepared.files, results.read_log(prepared.files.log)
    document = {
        "method": prepared.settings.method,
        **results.losses(log),
        "stopped": trainer.why_stopped,
        **results.speed(log),
        **results.data_summary(prepared.train, prepared.validation),
        "energy": results.energy(log, reason),
        **peak_memory(prepared.settings.device),
        "distributed_type": kind,
        "n_processes": prepared.settings.n_processes,
        "result": str(files.adapter if prepared.settings.trains_adapter else files.model),
    }
    atomic_file.write(files.curves, curves.picture(log).encode(), 0o644)
    run_directory.write_document(files.metrics, document)
    return document
