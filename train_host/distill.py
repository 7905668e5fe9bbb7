"""A small model learns a large model's distribution over the next token at every position.

    teacher ──its distribution over the next token──┐
    prompts ──answers of the student, or of the rows ┴─> student learns ─> RUN/model

The student must have the teacher's vocabulary (checked token by token); a wider head is cut. Flows
in: a DistillJob. Flows out: a run directory that `export` reads, with the KL to the teacher before
and after, measured on rows that were not trained on. Every weight is trained in float32. Not here:
the loss (TRL's, arXiv 2306.13649; distill_trainer.py), a shallower student (layer_cut.py), resuming
a killed run (resumable_run.py).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from converters.checkpoint import open_checkpoint
from converters.extras import load_extra
from converters.logits import load_transformers
from edge_agent import atomic_file
from edge_agent.adapt.trainer.blas import choose_threads
from edge_agent.adapt.trainer.dataset import split
from edge_agent.errors import ConversionError, UsageError
from edge_agent.prompt.training_sequence import vocabulary_only
from train_host import curves, results, run_directory
from train_host.layer_cut import parse_blocks, write_cut
from train_host.model_source import ModelSource, open_source
from train_host.resumable_run import Console, ResumableRun, begin, follow, peak_memory
from train_host.run_directory import RunFiles
from train_host.samples import Data, Samples, encode_rows, read_data, refuse_unlearnable
from train_host.settings import EVALUATIONS
from train_host.sft import PACKAGES, versions


@dataclass(frozen=True)
class DistillJob:
    """The user's request.

    When `model` is None, the student is made of the teacher's `keep_layers`.
    """

    teacher: str
    model: str | None
    keep_layers: str | None
    data: Path
    output: Path
    cache: Path
    on_policy: bool
    beta: float
    max_steps: int
    batch_size: int
    learning_rate: float
    max_new_tokens: int
    max_length: int
    validation_share: float
    save_every: int | None
    seed: int
    threads: int | None
    resume: bool


def distill(job: DistillJob, console: Console) -> dict[str, Any]:
    """Run or resume; returns the content of metrics.json. Raises EdgeAgentError."""
    for name in PACKAGES:
        load_extra(name, "edge-train distill-logits")
    load_extra("transformers.utils.logging", "edge-train distill-logits").disable_progress_bar()
    if (job.model is None) == (job.keep_layers is None):
        raise UsageError(
            "the student is not clear",
            "it is either another model or some blocks of the teacher",
            "give --model, or --keep-layers as in --keep-layers 0-5,12-17, and not both",
        )
    files = RunFiles(job.output)
    descriptor = run_directory.lock(job.output)
    try:
        run_directory.check_start(files, job.resume)
        return _carry_out(job, files, console)
    finally:
        os.close(descriptor)


def _carry_out(job: DistillJob, files: RunFiles, console: Console) -> dict[str, Any]:
    teacher = open_source(job.teacher, job.cache)
    student = _student(job, teacher, files)
    _check_same_tokens(teacher, student)
    data = read_data(job.data)
    kept, held = split(data.rows, job.validation_share)
    with vocabulary_only(student.vocabulary) as prompts:
        ends = sorted(prompts.vocabulary.eog_ids)
        train = encode_rows(kept, prompts, job.max_length)
        validation = encode_rows(held, prompts, job.max_length)
    refuse_unlearnable(train, str(job.data), job.max_length)
    document = _document(job, teacher, student, data, (train, validation))
    begin(files, data, document, train)
    metrics = _teach(job, (teacher, student), (train, validation), ends, (files, console))
    run_directory.write_document(files.metrics, metrics)
    return metrics


def _student(job: DistillJob, teacher: ModelSource, files: RunFiles) -> ModelSource:
    if job.model is not None:
        return open_source(job.model, job.cache)
    n_layer = int(open_checkpoint(teacher.directory).config["num_hidden_layers"])
    directory = files.path / "student"
    shutil.rmtree(directory, ignore_errors=True)
    write_cut(teacher.directory, parse_blocks(str(job.keep_layers), n_layer), directory)
    source = open_source(str(directory), job.cache)
    return replace(source, origin=f"blocks {job.keep_layers} of {teacher.origin}")


def _check_same_tokens(teacher: ModelSource, student: ModelSource) -> None:
    """Raise ConversionError when the vocabularies differ, or when the teacher's head is
    narrower."""
    tokens = [_tokens(source.directory) for source in (teacher, student)]
    if tokens[0] != tokens[1]:
        raise ConversionError(
            f"{teacher.origin} cannot teach {student.origin}",
            "their tokenizers differ, so their distributions are over different tokens",
            "take two models of one family",
        )
    widths = [int(open_checkpoint(s.directory).config["vocab_size"]) for s in (teacher, student)]
    if not len(tokens[1]) <= widths[1] <= widths[0]:
        raise ConversionError(
            f"{teacher.origin} cannot teach {student.origin}",
            f"their heads have {widths[0]} and {widths[1]} rows for {len(tokens[1])} tokens",
            "the teacher's must be as wide as the student's, which must hold every token",
        )


def _tokens(directory: Path) -> dict[str, int]:
    """Text -> id of every token of tokenizer.json, without the padding of the vocabulary."""
    document = json.loads((directory / "tokenizer.json").read_bytes())
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    found = {**document["model"]["vocab"], **added}
    return {text: number for text, number in found.items() if not text.startswith("[PAD")}


def _settings(job: DistillJob) -> dict[str, Any]:
    import torch

    wanted = asdict(job)
    for key in ("teacher", "model", "data", "output", "cache", "resume"):
        del wanted[key]
    return {
        **wanted,
        "save_every": job.save_every or max(1, job.max_steps // EVALUATIONS),
        "threads": job.threads or choose_threads(None),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def _document(
    job: DistillJob,
    teacher: ModelSource,
    student: ModelSource,
    data: Data,
    samples: tuple[Samples, Samples],
) -> dict[str, Any]:
    """The content of run.json: as sft's, plus the teacher."""
    return {
        "method": "distill",
        "settings": {**_settings(job), "teacher": teacher.origin, "teacher_sha256": teacher.sha256},
        "model": {
            "origin": student.origin,
            "directory": str(student.directory),
            "gguf": None,
            "sha256": student.sha256,
        },
        "data": {
            "origin": str(job.data),
            "sha256": data.sha256,
            **results.data_summary(*samples),
        },
        "versions": versions(),
    }


def _teach(
    job: DistillJob,
    sources: tuple[ModelSource, ModelSource],
    samples: tuple[Samples, Samples],
    ends: list[int],
    place: tuple[RunFiles, Console],
) -> dict[str, Any]:
    """Train the student and write it; returns the content of metrics.json.

    `sources` are (teacher, student), `ends` the ids that end an answer.
    """
    import torch

    from train_host.distill_trainer import divergence, new_distiller, turns_of
    from train_host.qat import write_latent

    (files, console), settings = place, _settings(job)
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(job.seed)
    teacher, student = _models(sources, ends, settings["device"])
    measured = samples[1] if len(samples[1]) else samples[0]
    before = divergence(teacher, student, measured)
    console.note(f"KL to the teacher before: {before:.4f} nats a token")
    turns = turns_of(samples[0])
    trainer = new_distiller((teacher, student), turns, settings, files.checkpoints)
    reason = follow(trainer, ResumableRun(files, console, settings["device"], job.learning_rate))
    after = divergence(teacher, student, measured)
    console.note(f"KL to the teacher after: {after:.4f} nats a token")
    shutil.rmtree(files.model, ignore_errors=True)
    write_latent(student, sources[1].directory, files.model)
    found = _metrics(samples, files, reason)
    return {**found, "kl_before": before, "kl_after": after, **peak_memory(settings["device"])}


def _metrics(samples: tuple[Samples, Samples], files: RunFiles, reason: str) -> dict[str, Any]:
    """What the log says; also writes its chart. `reason` says why joules are missing."""
    log = results.read_log(files.log)
    atomic_file.write(files.curves, curves.picture(log).encode(), 0o644)
    learned = results.losses(log)
    return {
        "method": "distill",
        "kl_rows": "validation" if len(samples[1]) else "training",
        "first_loss": learned["first_loss"],
        "final_loss": learned["final_loss"],
        "stopped": "steps",
        **results.speed(log),
        **results.data_summary(*samples),
        "energy": results.energy(log, reason),
        "result": str(files.model),
    }


def _models(sources: tuple[ModelSource, ModelSource], ends: list[int], device: str) -> Any:
    """(teacher, student) with heads of one width; the student stops at the ids `ends`."""
    from train_host.distill_trainer import cut_head

    teacher, student = (_load(source.directory, device) for source in sources)
    cut_head(teacher, student.config.get_text_config().vocab_size)
    student.generation_config.eos_token_id = ends
    student.generation_config.pad_token_id = ends[0]
    return teacher, student


def _load(directory: Path, device: str) -> Any:
    import torch

    return load_transformers(directory, dtype=torch.float32).to(device)
