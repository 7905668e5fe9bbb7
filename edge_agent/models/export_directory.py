"""A directory that `edge-train export` wrote, as a source of `pull`: which file is the model.

Flows in: a directory that was copied from another machine. Flows out: the model file and the
SHA-256 that export.json promises; for a directory without export.json, its only model file and no
hash. Nothing in the directory is trusted: the promised name must be that of a file directly in it.
Not here: copying and checking (pull.py), writing such a directory (train_host/export.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edge_agent.errors import ModelFormatError, UsageError
from edge_agent.gguf.model_file import read_gguf

MANIFEST = "export.json"
MAX_MANIFEST_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HINT = "copy the whole directory again, or give the .gguf file itself"


def model_in(directory: Path) -> tuple[Path, str | None]:
    """(model file, its SHA-256 or None). Raises UsageError, ModelFormatError."""
    if (directory / MANIFEST).is_file():
        return _named(directory)
    found = [path for path in sorted(directory.glob("*.gguf")) if _is_model(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UsageError(
            f"{directory} is a directory with {len(found)} model files",
            f"it has no {MANIFEST} that says which one is meant; models: {names}",
            "give the path of a .gguf file",
        )
    return found[0], None


def _named(directory: Path) -> tuple[Path, str]:
    """The file and the hash that export.json names. Raises ModelFormatError."""
    try:
        with (directory / MANIFEST).open("rb") as stream:
            document: Any = json.loads(stream.read(MAX_MANIFEST_BYTES))
        name, sha256 = document["model"]["file"], document["model"]["sha256"]
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r} is no file name")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{MANIFEST}: {type(error).__name__} {error}"
        raise ModelFormatError(f"cannot use the directory {directory}", why, _HINT) from None
    if not (directory / name).is_file():
        raise ModelFormatError(
            f"cannot use the directory {directory}", f"its model file {name} is missing", _HINT
        )
    return directory / name, sha256


def _is_model(path: Path) -> bool:
    """Whether the file is a model and not an adapter, an importance matrix or something broken."""
    try:
        read_gguf(path)
    except ModelFormatError:
        return False
    return True
