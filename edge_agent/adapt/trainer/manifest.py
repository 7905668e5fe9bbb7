"""What a run began with and what was decided for it: saved, and compared when it is resumed.

Why it exists: a resumed run gives the same adapter, bit for bit, only if nothing that changes bits
has changed: settings, threads, tile sizes, data, model, software. Flows in: the present
circumstances. Flows out: manifest.json, and the name of every difference. The module imports no
NumPy, because process.py reads the manifest before NumPy is loaded. Not here: collecting the
circumstances (preparation.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edge_agent import atomic_file
from edge_agent.adapt.messages import Planned
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.errors import TrainingFailed

VERSION = 1
FILE_NAME = "manifest.json"
FREE_SETTINGS = {"policy", "hours", "checkpoint_steps", "memory_bytes", "n_threads", "audit"}
"""Settings that may differ when a run is resumed: they change no bits of the adapter, or the value
that followed from them is saved in the manifest."""


class Circumstances(Struct, frozen=True):
    """Everything outside the run that determines the adapter's bits."""

    model_sha256: str
    data_sha256: str
    samples_sha256: str
    """SHA-256 of the samples' token ids, masks and order, after audit, split and encoding."""
    settings: RunSettings
    n_threads: int
    tile_bytes: int
    head_tile_bytes: int
    software: dict[str, str]


class Decisions(Struct, frozen=True):
    """The trainer's decisions, made once for a run."""

    batch_tokens: int
    memory_bytes: int
    keep_bytes: int
    """Bytes, of `memory_bytes`, for tapes and unpacked matrices. It is saved because a kept matrix
    is multiplied whole and not in tiles, which changes the last bits."""
    candidates: list[int]
    """Numbers of top blocks that the trials compare; empty when the user chose the blocks."""
    layers: list[int]
    """Numbers of the trained blocks; empty until the trials have chosen."""


class Manifest(Struct, frozen=True):
    """manifest.json of a run directory."""

    name: str
    model: str
    circumstances: Circumstances
    decisions: Decisions
    planned: Planned
    version: int = VERSION


def write(path: Path, manifest: Manifest) -> None:
    """Replace the file, durably. Raises OSError."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    atomic_file.write(path, encoded + b"\n")


def read(path: Path) -> Manifest | None:
    """The manifest at `path`; None when there is no file. Raises TrainingFailed for a file that
    cannot be read or has another version."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error)) from error
    if manifest.version != VERSION:
        raise _unusable(path, f"it has version {manifest.version}, this program knows {VERSION}")
    return manifest


def _unusable(path: Path, why: str) -> TrainingFailed:
    return TrainingFailed(f"{path} cannot be used", why, "start the run anew under another name")


def check_same(name: str, began: Circumstances, now: Circumstances) -> None:
    """Raises TrainingFailed when the circumstances differ; it names every difference."""
    found = differences(began, now)
    if found:
        raise TrainingFailed(
            f"the run {name} cannot be resumed to the same adapter",
            "; ".join(found),
            "put back what changed, or start the run anew under another name",
        )


def differences(began: Circumstances, now: Circumstances) -> list[str]:
    """One text `name: began with X, is Y now` for each difference."""
    before, after = _flat(began), _flat(now)
    return [
        f"{key}: began with {before.get(key)}, is {after.get(key)} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(circumstances: Circumstances) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(circumstances)
    settings, software = found.pop("settings"), found.pop("software")
    frozen = {key: value for key, value in settings.items() if key not in FREE_SETTINGS}
    return {
        **found,
        **{f"settings.{key}": value for key, value in frozen.items()},
        **{f"software.{key}": value for key, value in software.items()},
    }
