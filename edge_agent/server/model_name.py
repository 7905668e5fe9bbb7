"""Model names as clients write them, checked before any of them meets a database or a path.

Flows in: a `model` member. Flows out: a registered-looking name, None for the default model, or
ModelNotFound. A name is never joined to a path: files are found through the store's rows.
"""

from __future__ import annotations

from edge_agent.errors import ModelNotFound
from edge_agent.store import MODEL_NAME

LATEST = ":latest"
"""Ollama's clients append it."""


def requested_model(name: str | None) -> str | None:
    """None (and 'default', which OpenAI clients need as a word) means the default model."""
    if name is None or name == "default":
        return None
    return registered_name(name)


def registered_name(name: str) -> str:
    """`name` without ':latest'. Raises ModelNotFound for what no registered model is called."""
    plain = name.removesuffix(LATEST)
    if not MODEL_NAME.fullmatch(plain):
        raise ModelNotFound(
            f"no model {plain[:80]!r}",
            "names are lower-case letters, digits, '.', '_' and '-', at most 64 of them",
            "GET /v1/models lists the models",
        )
    return plain
