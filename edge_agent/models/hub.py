"""A GGUF file on a Hugging Face hub: which file is meant, and fetching it with resume.

Flows in: `owner/repo[:quant]`, and a temporary file that may hold the first part of an earlier
attempt. Flows out: a HubFile (name, size, the hash that the hub promises), and the complete
temporary file. Nothing is trusted here: pull.py compares the hash and checks the content.
huggingface_hub is imported inside the functions, so that only a pull from a hub loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge_agent.errors import DownloadError, UsageError

DEFAULT_QUANT = "Q4_K_M"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all)."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository at one commit. `sha256` is None when the hub does not state it."""

    repo: str
    commit: str
    name: str
    size_bytes: int
    sha256: str | None


def parse_repo(text: str) -> tuple[str, str | None]:
    """Split `owner/repo[:quant]`. Raises UsageError.

    >>> parse_repo("unsloth/gemma-3-270m-it-GGUF:Q8_0")
    ('unsloth/gemma-3-270m-it-GGUF', 'Q8_0')
    """
    repo, _, quant = text.partition(":")
    if not _REPO.fullmatch(repo) or ".." in repo:
        raise UsageError(
            f"{text!r} is not a hub repository", "", "write hf:owner/repo or hf:owner/repo:Q4_K_M"
        )
    return repo, quant or None


def find_file(repo: str, quant: str | None, environ: Mapping[str, str]) -> HubFile:
    """Ask the hub for the repository's files and choose one. Raises DownloadError."""
    from huggingface_hub import HfApi

    endpoint = environ.get("HF_ENDPOINT") or None
    with _typed_errors(repo):
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=30)
    files = [
        HubFile(repo, info.sha or "main", item.rfilename, item.size or 0, _lfs_sha256(item.lfs))
        for item in info.siblings or []
    ]
    return choose(repo, files, quant)


def choose(repo: str, files: list[HubFile], quant: str | None) -> HubFile:
    """The GGUF file whose name contains `quant`.

    Without `quant`: the Q4_K_M file, or else the first file by name. Raises DownloadError when
    nothing fits, or when the file is one part of a split model.
    """
    models = sorted((f for f in files if _is_model(f.name)), key=lambda f: f.name)
    if not models:
        raise DownloadError(f"{repo} holds no GGUF model", f"{len(files)} other files were found")
    fitting = [f for f in models if _carries(f.name, quant or DEFAULT_QUANT)]
    if quant and not fitting:
        names = ", ".join(f.name for f in models[:12])
        raise DownloadError(f"{repo} holds no {quant} file", f"it has {names}", "name one of these")
    chosen = (fitting or models)[0]
    if _SPLIT.search(chosen.name):
        raise DownloadError(
            f"{chosen.name} is one part of a split model",
            "llama.cpp would open the other parts by itself, unchecked",
            "join the parts with llama-gguf-split --merge and pull the result by its path",
        )
    return chosen


def fetch(file: HubFile, into: Path, progress: Progress, environ: Mapping[str, str]) -> None:
    """Complete the file at `into`, starting after the bytes it already has. Raises DownloadError.

    huggingface_hub itself resumes a cut connection, up to five times without new data. It writes
    blocks of 10 MB, so up to 10 MB of a cut download are fetched again.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        disable_progress_bars,
        logging,
    )

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    url = hf_hub_url(
        file.repo, file.name, revision=file.commit, endpoint=environ.get("HF_ENDPOINT") or None
    )
    into.touch(mode=0o600)
    if into.stat().st_size > file.size_bytes:
        into.write_bytes(b"")
    with into.open("r+b") as stream, _typed_errors(file.repo):
        done = stream.seek(0, 2)
        http_get(
            url,
            _Counting(stream, file.size_bytes, progress),  # type: ignore[arg-type]
            resume_size=done,
            headers=build_hf_headers(),
            expected_size=file.size_bytes,
        )


class _Counting:
    """The part of a binary file that http_get uses; reports its position after each write."""

    def __init__(self, stream: BinaryIO, total: int, progress: Progress) -> None:
        self._stream, self._total, self._progress = stream, total, progress
        self.seek, self.tell, self.truncate = stream.seek, stream.tell, stream.truncate

    def write(self, data: bytes) -> int:
        # Stop a hub that sends more than it announced, before it fills the disk.
        if self._stream.tell() + len(data) > self._total:
            raise OSError(f"the hub sent more than the announced {self._total} bytes")
        written = self._stream.write(data)
        self._progress(self._stream.tell(), self._total)
        return written


@contextmanager
def _typed_errors(repo: str) -> Iterator[None]:
    """Every failure of the client library becomes a DownloadError.

    Its exceptions come from three packages (its own, its HTTP client's, OSError) and change with
    its version, so no class of them is named here.
    """
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "run the same command again: it continues where it stopped"
        if status in (401, 403):
            hint = "the repository may be gated: accept its terms and set HF_TOKEN"
        elif status == 404:
            hint = "check the spelling of owner/repo"
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(f"could not fetch from {repo}", why, hint) from error


def _lfs_sha256(lfs: object) -> str | None:
    value = getattr(lfs, "sha256", None)
    return value if isinstance(value, str) else None


def _is_model(name: str) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    return base.endswith(".gguf") and not base.startswith(("mmproj", "imatrix"))


def _carries(name: str, quant: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    # An underscore does not end the word, so that Q4_K does not match Q4_K_M.
    return bool(re.search(rf"(^|[-._]){re.escape(quant)}([-.]|$)", base, re.IGNORECASE))
