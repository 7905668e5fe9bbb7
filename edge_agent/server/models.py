"""The registered models and the loaded one, in the daemon's own words: what the command line asks.

Flows in: names; `default` in a path names no model (models/which_model.py). Flows out: the rows of
the store as JSON, with the adapter that a name is answered with. Clients of other programs have the
same facts in their own dialects (openai.py, ollama.py). Not here: fetching (pull.py).
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from pydantic import BaseModel

from edge_agent.errors import RequestError
from edge_agent.model_names import split_name
from edge_agent.models.registered_models import model_document, remove_model
from edge_agent.server.body import read_request
from edge_agent.server.model_name import registered_name, requested_model
from edge_agent.server.reply import json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE, Service


class RegisteredModel(BaseModel):
    """`path` is absolute or relative to the state directory, `added_at` Unix seconds."""

    name: str
    sha256: str
    path: str
    size_bytes: int
    source: str
    architecture: str
    description: str
    n_params: int
    n_ctx_train: int
    quantization: str
    chat_template: str | None
    added_at: float
    adapter: str | None
    """What answers when `name` is asked; null: the model itself."""


class RegisteredModels(BaseModel):
    models: list[RegisteredModel]


class EngineRequest(Body):
    model: str | None = None


class ModelName(BaseModel):
    model: str | None


async def list_models(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    rows = service.store.models()
    return json_response({"models": [model_document(service.registry, row, None) for row in rows]})


async def show(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    asked = requested_model(request.match_info["model"])
    row, tag = service.supervisor.which_model(asked)
    return json_response(model_document(service.registry, row, tag))


async def remove(request: web.Request) -> web.Response:
    """The model with its adapters; a request that it answers ends first."""
    await remove_registered(request.app[SERVICE], request.match_info["model"])
    return web.Response()


async def remove_registered(service: Service, name: str) -> None:
    """Raises ModelNotFound, RequestError for a name with a tag, StoreError."""
    model, tag = split_name(registered_name(name))
    if tag is not None:
        hint = f"remove {model}, or the adapter with DELETE /adapters/{model}/{tag}"
        raise RequestError(f"{model}:{tag} is no model", "its tag names an adapter", hint)
    service.store.model(model)
    if _loaded(service) == model:
        await service.supervisor.unload()
    state_dir = service.settings.state_dir
    await asyncio.to_thread(remove_model, service.store, service.registry, state_dir, model)


def _loaded(service: Service) -> str | None:
    info = service.supervisor.status().info
    return info.name if info else None


async def load(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await read_request(request, EngineRequest, service.limits, service.n_ctx())
    info = await service.supervisor.ensure_loaded(requested_model(body.model))
    return json_response({"model": info.name})


async def unload(request: web.Request) -> web.Response:
    """`model` in the answer: what was unloaded. Null: that model, or any, was not loaded."""
    service = request.app[SERVICE]
    body = await read_request(request, EngineRequest, service.limits, service.n_ctx())
    asked, loaded = requested_model(body.model), _loaded(service)
    if asked is not None:
        name = service.store.model(split_name(asked)[0]).name
        loaded = loaded if loaded == name else None
    if loaded is not None or asked is None:
        await service.supervisor.unload()
    return json_response({"model": loaded})


ROUTES = (
    Route("GET", "/registry/models", list_models, "Registered models", RegisteredModels),
    Route("GET", "/registry/models/{model}", show, "One registered model", RegisteredModel),
    Route("DELETE", "/registry/models/{model}", remove, "Remove a model and its adapters"),
    Route("POST", "/engine/load", load, "Load a model", ModelName, body=EngineRequest),
    Route("POST", "/engine/unload", unload, "Free the memory", ModelName, body=EngineRequest),
)
