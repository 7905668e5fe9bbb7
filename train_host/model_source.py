"""Makes of --model what training needs: a directory, and a vocabulary in GGUF.

    ./gemma-3-1b-it     a Hugging Face directory
    hf:owner/name       the same, fetched from the hub
    model.gguf          converted by `edge-convert to-hf`, its weights dequantized

Why it exists: the device's own code tokenizes the rows and reads a GGUF vocabulary, while torch
reads a directory. Each is made from the other once and cached under the hash of its source. Flows
in: the text after --model. Flows out: a ModelSource. No code of a checkpoint is run. Not here:
loading weights (methods.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from converters.checkpoint import open_checkpoint
from converters.gguf_output import write_hollow
from converters.gguf_to_hf import convert
from converters.hf_to_gguf import load
from edge_agent import atomic_file
from edge_agent.errors import DownloadError, ModelNotFound, UsageError
from edge_agent.regular_file import sha256_of
from train_host.run_directory import FinishedRun

HUB = "hf:"
FETCHED = ("*.json", "*.safetensors", "tokenizer.model", "LICENSE*", "README.md")
"""Patterns of the files fetched from the hub: no code and no pickles."""
HASHED = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""The files that, with the weights, identify a model."""


@dataclass(frozen=True)
class ModelSource:
    """`origin` is what the user gave; `gguf` the file if the user gave one.

    `sha256` identifies it.
    """

    directory: Path
    vocabulary: Path
    sha256: str
    origin: str
    gguf: Path | None = None


def open_source(text: str, cache: Path) -> ModelSource:
    """Find and prepare the model that `text` names, below `cache` where something must be made.

    Raises ModelNotFound, DownloadError, ConversionError, ModelFormatError.

    Example: `open_source("hf:Qwen/Qwen2.5-0.5B-Instruct", Path("cache")).directory`
    """
    if text.startswith(HUB):
        return _from_directory(_fetched(text.removeprefix(HUB)), text, cache)
    path = Path(text).expanduser()
    if path.is_dir():
        return _from_directory(path.resolve(), text, cache)
    if path.is_file():
        return _from_gguf(path.resolve(), text, cache)
    raise ModelNotFound(
        f"there is no model {text!r}",
        "it is neither a directory nor a file",
        "give a Hugging Face directory, a .gguf file, or hf:owner/name",
    )


def with_base(run: FinishedRun, moved_to: str | None, cache: Path) -> FinishedRun:
    """The run with its base at `moved_to`, or where it was when the run began.

    Raises ModelNotFound when it is not there, UsageError when it is another model, and what
    `open_source` raises.
    """
    was = run.base_gguf or run.base_directory
    beside = run.path / was.name  # distill-logits makes a student in the run, which may move
    place = moved_to or str(beside if beside.exists() and not was.exists() else was)
    try:
        source = open_source(place, cache)
    except ModelNotFound:
        raise ModelNotFound(
            f"the base of {run.path} is not at {place}",
            f"it was moved or removed since the run began with {run.origin}",
            "give its new place with --model: directory, GGUF file or hf:owner/name",
        ) from None
    if source.sha256 != run.base_sha256:
        raise UsageError(
            f"{place} is not the base of {run.path}",
            f"its SHA-256 is {source.sha256}, the run began with {run.base_sha256}",
            f"give that very model with --model (it was {run.origin})",
        )
    return replace(run, base_directory=source.directory, base_gguf=source.gguf)


def directory_sha256(directory: Path) -> str:
    """Hash of the names and contents of the weights and of HASHED.

    Raises ConversionError for a directory that is not a model's.
    """
    weights = {tensor.path for tensor in open_checkpoint(directory).tensors.values()}
    others = {directory / name for name in HASHED if (directory / name).is_file()}
    digest = hashlib.sha256()
    for path in sorted(weights | others, key=lambda path: path.name):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _from_gguf(path: Path, origin: str, cache: Path) -> ModelSource:
    sha256 = sha256_of(path)
    directory = cache / "hf" / sha256
    with _locked(cache / "hf" / f"{sha256}.lock"):
        if not directory.exists():
            convert(path, directory)
    return ModelSource(directory, path, sha256, origin, path)


def _from_directory(directory: Path, origin: str, cache: Path) -> ModelSource:
    sha256 = directory_sha256(directory)
    vocabulary = cache / "hollow" / f"{sha256}.gguf"
    with _locked(vocabulary.with_suffix(".lock")):
        if not vocabulary.exists():
            write_vocabulary(directory, vocabulary)
    return ModelSource(directory, vocabulary, sha256, origin)


def write_vocabulary(directory: Path, path: Path) -> None:
    """A GGUF file with the metadata of the model and holes in place of its tensors.

    llama.cpp reads only its vocabulary; a file system with sparse files stores nothing for the
    holes. Raises ConversionError.
    """
    metadata, tensors = load(directory)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_hollow(temp, metadata, [tensor.spec("F32") for tensor in tensors])
        with temp.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
    atomic_file.sync_directory(path.parent)


def _fetched(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"cannot fetch hf:{repo}", why, "check the name and the network, or give a directory"
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock while the cached copy is made, so that a second process waits and finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
