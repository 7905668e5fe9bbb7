"""From a file of rows to samples: read, audit, split, encode; and the circumstances of the run.

Why it exists: a resumed run must train on exactly the same samples. Flows in: the run's copy of the
data and the model file. Flows out: `PreparedData`, the same for the same circumstances; and the
circumstances, for the manifest. The vocabulary is loaded for the encoding and then freed. Not here:
the cost of the run (plan.py), training (training_loop.py).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

import edge_agent
from edge_agent.adapt.messages import Start
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer import blas, device
from edge_agent.adapt.trainer.audit import audit, verdict
from edge_agent.adapt.trainer.blas import Blas
from edge_agent.adapt.trainer.dataset import ChatRow, Sample, encode_rows, read_rows, split
from edge_agent.adapt.trainer.decoder import packed_weights
from edge_agent.adapt.trainer.earlier import with_earlier
from edge_agent.adapt.trainer.manifest import Circumstances
from edge_agent.adapt.trainer.packed_samples import PackedSamples
from edge_agent.adapt.trainer.rehearsal import (
    POOL_TOKENS,
    Rehearsal,
    end_chats,
    general_chats,
    users_chats,
)
from edge_agent.errors import DataRefused, TrainingFailed
from edge_agent.llama.binding import build_name
from edge_agent.prompt.training_sequence import vocabulary_only
from edge_agent.regular_file import check_sha256, sha256_of


@dataclass(frozen=True)
class PreparedData:
    """The samples of a run. `rejected` has the number of rows left out for each reason, `flagged`
    the audit's findings as in messages.Planned, `notes` sentences for the user."""

    packed: PackedSamples
    chats: dict[str, list[Any]]
    """The contents of split.json: the messages of the rows to train on and to validate with."""
    rejected: dict[str, int] = field(default_factory=dict)
    flagged: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ends: list[Sample] = field(default_factory=list)
    """Answers after which the end of the turn is scored (rehearsal.py)."""
    general: list[Sample] = field(default_factory=list)
    identity: list[Sample] = field(default_factory=list)
    asked: list[Sample] = field(default_factory=list)
    """What may be rehearsed, encoded: rows of the package, questions of this board's users."""
    rehearsal: Rehearsal = field(default_factory=Rehearsal)


def prepare(
    data: Path,
    model: Path,
    settings: RunSettings,
    earlier: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Read, audit, split and encode the rows of the file `data` for the model file `model`.

    `earlier`: {"rows", "note"} of what the active adapter was taught (lesson_files.py). Its rows
    are learned again, unless a row of `data` asks the same. `asked`: {"rows"} of what users of
    this board asked and were answered.

    Raises DataRefused for rows that cannot be read, too many flagged rows, or no row that is left;
    ModelFormatError, RequestError and TemplateError when the model cannot encode chats.
    """
    rows, rejected, flagged, notes = _audited(read_rows(data), settings)
    rows, told = with_earlier(rows, earlier or {})
    train_rows, validation_rows = split(rows, settings.validation_share)
    limit = min(settings.max_length, settings.batch_tokens)
    with vocabulary_only(model) as prompts:
        train, too_long = encode_rows(train_rows, prompts, limit)
        validation, too_long_too = encode_rows(validation_rows, prompts, limit)
        chats = general_chats([row.messages for row in rows])
        users = users_chats(asked or {}, [row.messages for row in rows])
        ends, general, identity, own = (
            encode_rows(part, prompts, POOL_TOKENS)[0] for part in (end_chats(), *chats, users)
        )
    for reason, count in (*too_long.items(), *too_long_too.items()):
        rejected[reason] = rejected.get(reason, 0) + count
    if not train:
        raise DataRefused(
            f"there is nothing to learn in {data.name}",
            f"all rows were left out: {rejected}",
            f"allow longer texts than {limit} tokens, or give shorter ones",
        )
    notes += told
    if not validation:
        notes.append("no row is kept back to validate with: every epoch is trained")
    texts = {"train": _chats(train_rows, train), "validation": _chats(validation_rows, validation)}
    packed = PackedSamples(train, validation)
    return PreparedData(packed, texts, rejected, flagged, notes, ends, general, identity, own)


def _audited(
    rows: list[ChatRow], settings: RunSettings
) -> tuple[list[ChatRow], dict[str, int], list[dict[str, Any]], list[str]]:
    """(rows that are left, number of those left out, the findings, notes). Raises DataRefused when
    too many are flagged."""
    if not settings.audit:
        return rows, {}, [], ["the data was not audited"]
    findings = audit(rows)
    judged = verdict(findings, len(rows))
    judged.check()
    left = [row for row in rows if row.number not in judged.rows]
    rejected = {"flagged": len(judged.rows)} if judged.rows else {}
    return left, rejected, [asdict(finding) for finding in findings], []


def _chats(rows: list[ChatRow], samples: list[Sample]) -> list[Any]:
    """The messages of the rows that became samples."""
    kept = {sample.row for sample in samples}
    return [msgspec.to_builtins(row.messages) for row in rows if row.number in kept]


def circumstances(start: Start, data: Path, n_threads: int) -> Circumstances:
    """The circumstances of this process and these files; `samples_sha256` is still empty.

    Raises ModelCorrupt when the model file has another SHA-256, TrainingFailed when BLAS uses
    another number of threads than `n_threads`, and OSError.
    """
    check_sha256(Path(start.model_path), start.model_sha256)
    library = blas.loaded()
    if library.n_threads not in (None, n_threads):
        raise TrainingFailed(
            f"BLAS has {library.n_threads} threads", f"{n_threads} were wanted: {library}", ""
        )
    return Circumstances(
        model_sha256=start.model_sha256,
        data_sha256=sha256_of(data),
        samples_sha256="",
        settings=start.settings,
        n_threads=n_threads,
        tile_bytes=packed_weights.TILE_BYTES,
        head_tile_bytes=packed_weights.HEAD_TILE_BYTES,
        software={**_software(library), **device.software(start.settings.device)},
    )


def _software(library: Blas) -> dict[str, str]:
    """Names and versions of all software that computes bits of the adapter."""
    return {
        "edge_agent": edge_agent.__version__,
        "numpy": metadata.version("numpy"),
        "blas": library.description,
        "blas_variables": blas.settings(os.environ),
        "llama": build_name(),
        "machine": platform.machine(),
    }
