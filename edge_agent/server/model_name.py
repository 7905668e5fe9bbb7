"""Model names as clients write them, checked before any of them meets a database or a path.

Flows in: a `model` member. Flows out: MODEL, MODEL:base or MODEL:ADAPTER as the supervisor takes
them, None for the default model, or ModelNotFound. A name is never joined to a path: files are
found through the store's rows.
"""

from __future__ import annotations

from edge_agent.errors import ModelNotFound
from edge_agent.model_names import BASE_TAG, LATEST_TAG, MODEL_NAME, split_name
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.models.which_model import ABSENT
from edge_agent.store.store import ModelRow


def requested_model(name: str | None) -> str | None:
    """`name` as registered_name has it; None where no model is named, which the rule of
    models/which_model.py settles."""
    return None if name is None or name in ABSENT else registered_name(name)


def registered_name(name: str) -> str:
    """`name` without ':latest', which Ollama's clients append.

    Raises ModelNotFound for what no registered model and no adapter is called.
    """
    model, tag = split_name(name)
    for part in (model, tag or LATEST_TAG):
        if not MODEL_NAME.fullmatch(part):
            raise ModelNotFound(
                f"no model {name[:80]!r}",
                "names are lower-case letters, digits, '.', '_' and '-', at most 64 of them;"
                " MODEL:ADAPTER names an adapter of a model",
                "GET /v1/models lists the models",
            )
    return model if tag in (None, LATEST_TAG) else f"{model}:{tag}"


def listed_names(row: ModelRow, registry: AdapterRegistry) -> list[str]:
    """MODEL first; with adapters also MODEL:base and MODEL:NAME for each."""
    adapters = registry.adapters(row.name)
    tags = [BASE_TAG, *(adapter.name for adapter in adapters)] if adapters else []
    return [row.name, *(f"{row.name}:{tag}" for tag in tags)]


def shown_name(asked: str | None, loaded: str | None) -> str | None:
    """What an answer says its model is: as it was asked for when that named an adapter or the
    base, else the model's own name."""
    return asked if asked is not None and split_name(asked)[1] else loaded or asked
