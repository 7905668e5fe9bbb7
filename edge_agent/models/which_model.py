"""Which model is meant where a name may be left out: one rule for HTTP and the command line.

Flows in: the given name, `serve --model`, and the model that the engine loaded last. Flows out: a
registered model and the tag that chooses its adapter. The rule is the same with and without a
daemon, and so are the words of its refusal. Not here: what a tag means (adapter_registry.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agent.errors import ModelNotFound, UsageError
from edge_agent.model_names import DEFAULT_NAME, split_name

if TYPE_CHECKING:
    from edge_agent.store.store import ModelRow, Store

ABSENT = ("", DEFAULT_NAME)
"""Names that count as none; "default" because OpenAI's clients must send a word."""


def which_model(
    store: Store, named: str | None, configured: str | None, loaded: str | None = None
) -> tuple[ModelRow, str | None]:
    """The model that `named` (MODEL, MODEL:TAG or None) means, and its tag.

    In this order: `named`; `configured`, which is MODEL or MODEL:TAG of `serve --model`; `loaded`,
    the model that the engine holds or held last; the only registered model. What removes or undoes
    gives no `loaded`: a model that another client's request loaded must not stand in for a name.

    Raises ModelNotFound for a name that is not registered and where none is registered, UsageError
    where several models could be meant.
    """
    model, tag = split_name(named or "")
    if model in ABSENT and configured:
        model, configured_tag = split_name(configured)
        tag = configured_tag if tag is None else tag
    if model not in ABSENT:
        return store.model(model), tag
    rows = store.models()
    found = [row for row in rows if row.name == loaded] or rows
    if not found:
        raise no_model()
    if len(found) > 1:
        raise UsageError(
            "it is not clear which model is meant",
            f"registered: {', '.join(row.name for row in rows)}",
            "name one of them (MODEL or --model on the command line, `model` in a request), or"
            " choose the default with `edge-agent serve --model NAME`",
        )
    return found[0], tag


def no_model() -> ModelNotFound:
    """What every command and request says while nothing is registered."""
    hint = "register one: `edge-agent pull embedded:smollm2-135m`"
    return ModelNotFound("there is no model", "none is registered", hint)
