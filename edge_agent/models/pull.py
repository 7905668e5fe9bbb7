"""Brings a model file into STATE/models: copies, hashes, checks, makes it durable, then names it.

    source ─> STATE/models/.pull-*.partial ─> SHA-256, read_gguf ─> STATE/models/<sha256>.gguf

It runs as its own process, so that a daemon never holds a download:

    python -m edge_agent.models.pull pull SOURCE --state-dir DIR [--name NAME]

Flows in: a source (embedded:NAME, hf:owner/repo[:quant], a path). Flows out: NDJSON lines on
stdout, {"status", "completed", "total"}, and last {"status": "success", "model": {ModelRow
fields}}, or {"status": "error", "code", "what", "why", "hint"} with exit code 1. A killed pull
leaves only the partial file: the next pull of the same hub file continues it, any other pull
removes it. Not here: the database; the caller stores the row.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from edge_agent.atomic_file import sync_directory
from edge_agent.errors import (
    DownloadError,
    EdgeAgentError,
    ModelCorrupt,
    ModelFormatError,
    StoreError,
    UsageError,
)
from edge_agent.gguf.model_file import GgufFile, read_gguf
from edge_agent.model_names import DEFAULT_NAME, MODEL_NAME
from edge_agent.models import hub
from edge_agent.models.embedded import EMBEDDED, embedded_model, embedded_parts
from edge_agent.models.export_directory import model_in
from edge_agent.regular_file import sha256_of
from edge_agent.store.store import ModelRow

RESERVE_BYTES = 64 << 20
"""Bytes that a pull leaves free on the disk, so that the database can still be written."""
REPORT_EVERY_S = 0.2
_LIBRARY_NAME = re.compile(r"(?:\w[\w.-]*/){0,2}\w[\w.-]*(?::[\w.-]+)?")
"""Names as Ollama pulls them: llama3.2, qwen2.5:0.5b, user/model, hf.co/OWNER/REPO:QUANT."""

Report = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class PullJob:
    """One pull: where it writes, and the function that receives its NDJSON lines."""

    models_dir: Path
    report: Report
    environ: Mapping[str, str]
    clock: Callable[[], float]
    """Unix seconds."""


@dataclass(frozen=True)
class PullPlan:
    """A source that was found, before any byte of it is fetched."""

    source: str
    default_name: str
    size_bytes: int
    sha256: str | None
    """The SHA-256 that the source promises; None when it promises none."""
    parts: tuple[Path, ...] = ()
    hub_file: hub.HubFile | None = None

    @property
    def partial_name(self) -> str:
        """Name of the temporary file: the same for the same bytes of the same source, to be
        continued."""
        key = f"{self.source}\n{self.size_bytes}\n{self.sha256}"
        return f".pull-{hashlib.sha256(key.encode()).hexdigest()[:16]}.partial"


def pull(source: str, name: str | None, job: PullJob) -> ModelRow:
    """Bring `source` into STATE/models and return the row to register.

    `source` is embedded:NAME, hf:owner/repo[:quant], or a path to a file or to a directory that
    `edge-train export` wrote. Raises UsageError, ModelNotFound, DownloadError, ModelFormatError,
    ModelCorrupt, StoreError.

        row = pull("embedded:gemma3-270m", None, PullJob(models_dir, print, os.environ, time.time))
    """
    _check_name(name)
    job.report({"status": f"looking for {source}"})
    plan = find_source(source, job.environ)
    final_name = name or plan.default_name
    _check_name(final_name)
    with _exclusive(job):
        path, sha256 = _bring(plan, job)
    gguf = read_gguf(path)
    return model_row(gguf, name=final_name, sha256=sha256, source=source, added_at=job.clock())


def model_row(gguf: GgufFile, *, name: str, sha256: str, source: str, added_at: float) -> ModelRow:
    """The row of a checked file in the table of models. `path` is absolute."""
    return ModelRow(
        name=name,
        sha256=sha256,
        path=str(gguf.path.absolute()),
        size_bytes=gguf.file_bytes,
        source=source,
        architecture=gguf.architecture,
        description=gguf.description,
        n_params=gguf.n_params,
        n_ctx_train=gguf.n_ctx_train,
        quantization=gguf.quantization,
        chat_template=gguf.chat_template,
        added_at=added_at,
    )


def find_source(source: str, environ: Mapping[str, str]) -> PullPlan:
    """Find a source without fetching it. Raises UsageError, ModelNotFound, DownloadError,
    ModelFormatError."""
    if source.startswith("embedded:"):
        model = embedded_model(source.removeprefix("embedded:"))
        parts = tuple(embedded_parts(model))
        size = sum(part.stat().st_size for part in parts)
        return PullPlan(source, model.name, size, model.sha256, parts)
    if source.startswith("hf:"):
        repo, quant = hub.parse_repo(source.removeprefix("hf:"))
        file = hub.find_file(repo, quant, environ)
        return PullPlan(source, name_from_file(file.name), file.size_bytes, file.sha256, (), file)
    path, sha256 = Path(source).expanduser(), None
    if not path.exists() and _LIBRARY_NAME.fullmatch(source) and path.suffix != ".gguf":
        raise _no_library(source)
    if path.is_dir():
        path, sha256 = model_in(path)
    gguf = read_gguf(path)  # refuse a bad file before copying it; the copy is checked again
    return PullPlan(source, name_from_file(path.name), gguf.file_bytes, sha256, (path,))


def _no_library(source: str) -> UsageError:
    """The error for a name of Ollama's library: what to type instead."""
    hub_name = re.sub(r"^(hf\.co|huggingface\.co)/", "", source)
    base = source.partition(":")[0].rsplit("/", 1)[-1]
    known = next((name for name in EMBEDDED if name.startswith(base)), next(iter(EMBEDDED)))
    typed = f"hf:{hub_name}" if hub_name != source else f"embedded:{known}"
    return UsageError(
        f"no file or directory {source!r}",
        "there is no Ollama library here; a source is embedded:NAME, hf:OWNER/REPO[:QUANT], a path",
        f"type {typed}, or the GGUF repository of the model, as"
        " hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
    )


def name_from_file(file_name: str) -> str:
    """The default name: the file's stem in lower case, other characters turned into `-`.

    >>> name_from_file("Qwen2.5 0.5B-Instruct-Q4_K_M.gguf")
    'qwen2.5-0.5b-instruct-q4_k_m'
    """
    stem = file_name.rsplit("/", 1)[-1]
    stem = re.sub(r"\.gguf$", "", stem, flags=re.IGNORECASE).lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:64]
    return name or "model"


def _check_name(name: str | None) -> None:
    if name is not None and (not MODEL_NAME.fullmatch(name) or name == DEFAULT_NAME):
        raise UsageError(
            f"{name!r} is not a model name",
            "a name has 1 to 64 of a-z 0-9 . _ - and begins with a letter or digit;"
            f" {DEFAULT_NAME!r} stands for no name",
            "give another one with --name",
        )


@contextmanager
def _exclusive(job: PullJob) -> Iterator[None]:
    """One pull at a time writes to a state directory; a second one waits and says so."""
    with _storage_errors(job.models_dir):
        job.models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(job.models_dir / ".pull.lock", flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            job.report({"status": "waiting for another pull"})
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _bring(plan: PullPlan, job: PullJob) -> tuple[Path, str]:
    """The final path and the hash. A failed pull keeps its partial file only if the hub failed."""
    if plan.sha256 and (present := _already_there(plan, job)):
        return present, plan.sha256
    partial = job.models_dir / plan.partial_name
    with _storage_errors(job.models_dir):
        _remove_strays(job.models_dir, keep=partial if plan.hub_file else None)
        _check_space(job.models_dir, plan.size_bytes - _size(partial))
    if plan.hub_file:
        progress = _Throttle(job.report, "downloading")
        hub.fetch(plan.hub_file, partial, progress, job.environ)
    try:
        with _storage_errors(job.models_dir):
            sha256 = _hash_or_copy(plan, partial, job)
        _check_hash(plan, sha256)
        _check_content(plan, partial)
        with _storage_errors(job.models_dir):
            return _settle(partial, job.models_dir / f"{sha256}.gguf"), sha256
    except Exception:
        partial.unlink(missing_ok=True)
        raise


def _hash_or_copy(plan: PullPlan, partial: Path, job: PullJob) -> str:
    if plan.hub_file:
        return sha256_of(partial, progress=_Throttle(job.report, "verifying"))
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        return sha256_of(*plan.parts, out=out, progress=_Throttle(job.report, "copying"))


def _check_hash(plan: PullPlan, sha256: str) -> None:
    if plan.sha256 and sha256 != plan.sha256:
        raise ModelCorrupt(
            f"{plan.source} did not arrive intact",
            f"its SHA-256 is {sha256}, expected {plan.sha256}",
            "pull it again; if that repeats, the source itself is damaged or was replaced",
        )


def _check_content(plan: PullPlan, partial: Path) -> None:
    try:
        read_gguf(partial)
    except ModelFormatError as error:
        raise ModelFormatError(f"{plan.source} cannot be used", error.why, error.hint) from error


def _settle(partial: Path, final: Path) -> Path:
    """Make the file durable and name it: fsync, rename, fsync of the directory. Returns `final`."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o444)  # a mapped model that is cut in place kills with SIGBUS
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, final)
    sync_directory(final.parent)
    return final


def _already_there(plan: PullPlan, job: PullJob) -> Path | None:
    """The file that an earlier pull stored, if its size and its hash are as promised."""
    path = job.models_dir / f"{plan.sha256}.gguf"
    if _size(path) != plan.size_bytes:
        return None
    watch = _Throttle(job.report, "verifying the file that is there")
    found = sha256_of(path, progress=watch)
    return path if found == plan.sha256 else None


def _remove_strays(models_dir: Path, keep: Path | None) -> None:
    for stray in models_dir.glob(".pull-*.partial"):
        if stray != keep:
            stray.unlink(missing_ok=True)


def _check_space(models_dir: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(models_dir).free
    if needed_bytes + RESERVE_BYTES > free:
        raise StoreError(
            f"not enough space in {models_dir}",
            f"{needed_bytes >> 20} MiB and a reserve of {RESERVE_BYTES >> 20} MiB are needed,"
            f" {free >> 20} MiB are free",
            "remove a model with `edge-agent rm`, or give a --state-dir on another disk",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _storage_errors(models_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"could not write to {models_dir}",
            error.strerror or str(error),
            "free some space or correct the permissions, then pull again",
        ) from error


class _Throttle:
    """Passes on a progress report at most every REPORT_EVERY_S, and always the last one."""

    def __init__(self, report: Report, status: str) -> None:
        self._report, self._status = report, status
        self._next_s = 0.0

    def __call__(self, completed: int, total: int) -> None:
        now_s = time.monotonic()
        if completed >= total or now_s >= self._next_s:
            self._next_s = now_s + REPORT_EVERY_S
            self._report({"status": self._status, "completed": completed, "total": total})


def main(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO) -> int:
    """The process behind `pull`. Exit code 0, 1 (the last line says why) or 2 (usage)."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.models.pull")
    command = parser.add_subparsers(required=True).add_parser("pull")
    command.add_argument("source")
    command.add_argument("--state-dir", type=Path, required=True)
    command.add_argument("--name")
    flags = parser.parse_args(argv)

    def report(line: dict[str, object]) -> None:
        stdout.write(json.dumps(line) + "\n")
        stdout.flush()

    job = PullJob(flags.state_dir.expanduser().absolute() / "models", report, environ, time.time)
    try:
        row = pull(flags.source, flags.name, job)
        report({"status": "success", "model": asdict(row)})
        return 0
    except EdgeAgentError as error:
        report(_error_line(error))
    except KeyboardInterrupt:
        report(_error_line(DownloadError("the pull was interrupted", "", "run it again")))
    except BrokenPipeError:
        # The reader of stdout has gone. At exit Python flushes what it still buffers for stdout,
        # which would raise again: send it to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return 1


def _error_line(error: EdgeAgentError) -> dict[str, object]:
    parts = {"what": error.what, "why": error.why, "hint": error.hint}
    return {"status": "error", "code": error.code, **parts}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ, sys.stdout))
