"""A finished run becomes files for the device: merged, converted, quantized, checked, described.

    RUN ─merge─> directory ─convert─> f32.gguf ─imatrix─> importance
                                          └──quantize──> OUT/NAME-TYPE.gguf
    RUN/adapter ─────────────────convert────────────────> OUT/NAME-lora.gguf
    OUT/imatrix.gguf  OUT/README.md  OUT/export.json

Every arrow is checked before the next one starts (export_checks.py). OUT appears complete or not at
all, and not when a check fails. `edge-agent pull OUT` finds the model and its hash in
OUT/export.json. Flows in: a FinishedRun and an ExportRequest. Flows out: OUT and the content of
export.json. The work needs room beside OUT for the model in float32 twice. Not here: the steps
themselves (converters/).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converters.base_model import open_base
from converters.gguf_container import Metadata
from converters.gguf_output import Written, write_model
from converters.hf_to_gguf import load as load_directory
from converters.imatrix_file import Imatrix, write_imatrix
from converters.lora_to_gguf import convert as convert_adapter
from converters.quantize import load as load_gguf
from converters.quantizer import How
from edge_agent import atomic_file
from edge_agent.errors import ConversionError, UsageError
from edge_agent.llama.type_plan import FILE_TYPES, TypeRequest
from edge_agent.models.pull import name_from_file
from edge_agent.regular_file import sha256_of
from train_host import answer_loss, export_checks
from train_host.calibration import CHUNKS, importance_of
from train_host.merge import merge
from train_host.model_card import Card, card
from train_host.run_directory import FinishedRun

MANIFEST = "export.json"
FORMAT = 1
SPARE_BYTES = 1 << 30


@dataclass(frozen=True)
class ExportRequest:
    """What to make. `name` None: the run's name; `chunks` 0: no importance matrix.

    `data_licence` is the licence of the rows as the user states it, for the card.
    """

    type: str = "Q4_K_M"
    token_embedding_type: str | None = None
    name: str | None = None
    chunks: int = CHUNKS
    is_verified: bool = True
    data_licence: str | None = None


@dataclass
class _Work:
    """One export in progress: where it writes and what it has found."""

    run: FinishedRun
    wanted: ExportRequest
    name: str
    how: How
    out: Path
    scratch: Path
    stages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage(self, name: str, made: str, check: Callable[[], export_checks.Stage] | None) -> None:
        """Record a finished step with the figures of its check.

        Raises ConversionError if it fails.
        """
        if check is None or not self.wanted.is_verified:
            reason = "there is nothing to compare it with" if check is None else "not requested"
            self.stages.append({"stage": name, "made": made, "passed": None, "reason": reason})
            return
        started_s = time.monotonic()
        found = check()
        seconds = round(time.monotonic() - started_s, 2)
        self.stages.append({"stage": name, "made": made, **asdict(found), "check_s": seconds})
        if found.passed is False:
            raise ConversionError(
                f"the export of {self.run.path} failed its check after {name}",
                found.reason or str(found.figures),
                "please report it: the file would not be the model that was trained",
            )


def default_type(run: FinishedRun) -> str:
    """The type to export to when the user names none. Raises ModelFormatError.

    A QAT run: the type it was trained for. A quantized base: Q8_0, because a coarser type would
    round away what was learned (dev/log/2026-11.md). Otherwise Q4_K_M.
    """
    trained_for = run.settings.get("qat_type")
    return str(trained_for).upper() if trained_for else "Q8_0" if _is_quantized(run) else "Q4_K_M"


def _is_quantized(run: FinishedRun) -> bool:
    return run.base_gguf is not None and open_base(run.base_gguf).is_quantized


def export(run: FinishedRun, out: Path, wanted: ExportRequest, how: How) -> dict[str, Any]:
    """Make `out`, which must not exist, and return the content of its export.json.

    Raises UsageError, ConversionError (also for a failed check), DataRefused; `out` then does not
    exist.

    Example: `export(read_run(Path("my-run")), Path("out"), ExportRequest("Q8_0"), How())`
    """
    _check(run, out, wanted)
    name = name_from_file(wanted.name or run.path.resolve().name)
    parts = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        (parts / "work").mkdir(parents=True)
        work = _Work(run, wanted, name, how, parts, parts / "work")
        document = _carry_out(work)
        shutil.rmtree(work.scratch)
        os.replace(parts, out)
    except OSError as error:
        why = error.strerror or str(error)
        raise ConversionError(f"cannot write {out}", why, "free some space, or give -o") from None
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    atomic_file.sync_directory(out.parent)
    return document


def _check(run: FinishedRun, out: Path, wanted: ExportRequest) -> None:
    if out.exists():
        raise UsageError(f"{out} exists", "an export is never changed", "remove it, or give -o")
    if wanted.type not in FILE_TYPES:
        known = ", ".join(known.lower() for known in FILE_TYPES)
        raise UsageError(f"--type is {wanted.type.lower()!r}", "llama.cpp has no such type", known)
    trained = str(run.settings.get("qat_type") or wanted.type)
    if trained.upper() != wanted.type or (run.method == "qat" and wanted.token_embedding_type):
        raise UsageError(
            f"{run.path} was trained for {trained}, not for {wanted.type.lower()}",
            "its weights are values that this quantizer keeps, and another would round them",
            f"give --type {trained} and no other types",
        )
    needed = 2 * 4 * _n_params(run) + SPARE_BYTES
    free = shutil.disk_usage(_existing(out)).free
    if needed > free:
        raise ConversionError(
            f"not enough space for {out}",
            f"{needed >> 20} MiB are needed on the way, {free >> 20} MiB are free",
            "give -o on another disk",
        )


def _n_params(run: FinishedRun) -> int:
    return sum(tensor.n_elements for tensor in load_directory(run.model or run.base_directory)[1])


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _carry_out(work: _Work) -> dict[str, Any]:
    start = work.run.document.get("adapter") or {}
    if start.get("sha256"):
        work.notes.append(
            f"training started from the adapter `{Path(start['origin']).name}`, SHA-256"
            f" `{start['sha256']}`: what it had learned and its licence are not known here"
        )
    directory = _merge(work)
    exact = _convert(work, directory)
    imatrix = _imatrix(work, exact)
    written = _quantize(work, exact, imatrix)
    adapter = _adapter(work)
    _lesson(work, answer_loss.Files(exact, written.path, adapter))
    files = [path for path in (written.path, adapter) if path is not None]
    if imatrix is not None:
        write_imatrix(work.out / "imatrix.gguf", imatrix)
        files.append(work.out / "imatrix.gguf")
    document = _document(work, written, [_file(path) for path in files])
    text = card(Card(document, work.run.metrics, work.run.settings))
    atomic_file.write(work.out / "README.md", text.encode(), 0o644)
    encoded = json.dumps(document, ensure_ascii=False, indent=1).encode() + b"\n"
    atomic_file.write(work.out / MANIFEST, encoded, 0o644)
    return document


# ---- the steps -----------------------------------------------------------------------------------


def _merge(work: _Work) -> Path:
    """The whole model as a float32 directory: what the run trained, or the sum of base and
    adapter."""
    run = work.run
    if run.model is not None:
        work.stage("merge", "nothing: the run trained the whole model", None)
        return run.model
    directory = work.scratch / work.name
    merge(run, directory, "f32", work.how)
    made = f"{run.base_directory.name} and its adapter, summed in float32"
    work.stage("merge", made, lambda: export_checks.merged(run, directory, work.how))
    return directory


def _convert(work: _Work, directory: Path) -> Path:
    path = work.scratch / "f32.gguf"
    metadata, tensors = load_directory(directory)
    write_model(path, Metadata(metadata | _own_keys(work)), tensors, TypeRequest("F32"), work.how)
    check = lambda: export_checks.same_model(directory, path, work.how)  # noqa: E731
    work.stage("convert", "a GGUF file in float32", check)
    return path


def _imatrix(work: _Work, exact: Path) -> Imatrix | None:
    if work.run.method == "qat":
        work.notes.append("no importance matrix: the quantizer was trained with none")
    elif work.wanted.chunks:
        rows, n_chunks = work.run.data, work.wanted.chunks
        found, reason = importance_of(exact, rows, n_chunks, work.how, work.scratch)
        if reason:
            work.notes.append(f"no importance matrix: {reason}")
        return found
    return None


def _quantize(work: _Work, exact: Path, imatrix: Imatrix | None) -> Written:
    wanted = work.wanted
    path = work.out / f"{work.name}-{wanted.type.lower()}.gguf"
    request = TypeRequest(
        wanted.type,
        wanted.token_embedding_type,
        imatrix=imatrix.importance() if imatrix else {},
    )
    metadata, tensors = load_gguf(exact)
    keys = imatrix.keys(Path("imatrix.gguf")) if imatrix else Metadata()
    written = write_model(path, Metadata(metadata | keys), tensors, request, work.how)
    check = lambda: export_checks.same_model(exact, path, work.how)  # noqa: E731
    work.stage("quantize", f"{wanted.type} of {written.bits_per_weight:.2f} bits a weight", check)
    return written


def _adapter(work: _Work) -> Path | None:
    run = work.run
    if run.adapter is None:
        return None
    path, base = work.out / f"{work.name}-lora.gguf", run.base_gguf or run.base_directory
    convert_adapter(run.adapter, base, path)
    made = f"a GGUF adapter for {base.name}"
    work.stage("adapter", made, lambda: export_checks.same_adapter(run, base, path))
    return path


def _lesson(work: _Work, files: answer_loss.Files) -> None:
    """Measure how much of what was learned is in the file, and note it for the user and the
    card."""
    made = "nothing: measures the loss of learned answers"
    work.stage("lesson", made, lambda: answer_loss.kept(work.run, files, work.how))
    is_quantized = _is_quantized(work.run)
    text = answer_loss.note(work.stages[-1].get("figures") or {}, files, is_quantized)
    if text:
        work.notes.append(text)
    elif is_quantized and files.adapter is not None:
        work.notes.append(
            "the base was quantized already: merging what was learned and quantizing again rounds"
            " part of it away (how much was not measured); `edge-agent adapters import"
            f" {files.adapter.name}` uses the adapter beside that base and keeps all of it"
        )


# ---- what is said about it -----------------------------------------------------------------------


def _own_keys(work: _Work) -> Metadata:
    """Keys that say how the file was made; the licence is the base's."""
    base = open_base(work.run.base_gguf or work.run.base_directory).metadata
    keys = Metadata()
    for key in ("license", "license.name", "license.link"):
        keys.put("string", f"general.{key}", base.get_value(f"general.{key}"))
    keys.put("string", "general.name", work.name)
    keys.put("string", "edge_agent.trained.method", work.run.method)
    keys.put("string", "edge_agent.trained.base_sha256", work.run.base_sha256)
    keys.put("string", "edge_agent.trained.data_sha256", work.run.data_sha256)
    return keys


def _document(work: _Work, written: Written, files: list[dict[str, Any]]) -> dict[str, Any]:
    run, keys = work.run, _own_keys(work)
    model = {
        "type": written.file_type,
        "n_params": written.n_params,
        "bits_per_weight": round(written.bits_per_weight, 3),
        "tensor_types": written.types,
    }
    return {
        "v": FORMAT,
        "name": work.name,
        "model": {**files[0], **model},
        "files": files,
        "base": {
            "origin": run.origin,
            "sha256": run.base_sha256,
            "licence": keys.get_value("general.license"),
            "licence_link": keys.get_value("general.license.link"),
        },
        "data": {
            "origin": run.data_origin,
            "sha256": run.data_sha256,
            "licence": work.wanted.data_licence,
        },
        "method": run.method,
        "versions": run.document.get("versions"),
        "stages": work.stages,
        "notes": work.notes,
    }


def _file(path: Path) -> dict[str, Any]:
    sha256 = sha256_of(path)
    return {"file": path.name, "sha256": sha256, "bytes": path.stat().st_size}
