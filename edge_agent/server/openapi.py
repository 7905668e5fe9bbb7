"""GET /openapi.json: the OpenAPI 3.1 document, generated from the routes and their models.

Flows in: the ROUTES tuples. Flows out: one JSON document, built once at the start. Nothing is
written twice: type, range and description of a field come from the pydantic model that checks it.
Not here: serving it (app.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edge_agent import __version__
from edge_agent.server.auth import PUBLIC_PATHS
from edge_agent.server.error_body import dialect_of
from edge_agent.server.llama_server import LlamaServerError
from edge_agent.server.ollama_schema import OllamaError
from edge_agent.server.openai_answers import OpenAIError
from edge_agent.server.route import Route

ERRORS: dict[str, type[BaseModel]] = {
    "openai": OpenAIError,
    "ollama": OllamaError,
    "llama_server": LlamaServerError,
}
STATUSES = {
    "400": "a field, the JSON or the HTTP framing is wrong",
    "401": "no bearer token, or a wrong one (TCP only)",
    "403": "a foreign Origin, or a peer that may not use the Unix socket",
    "404": "no such model, adapter or path",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "not application/json in UTF-8",
    "421": "Host is not a loopback name of this daemon",
    "422": "a model file, adapter or chat template that cannot be used",
    "429": "the queue is full; see Retry-After",
    "431": "headers too large",
    "503": "the worker failed, the model is loading or quarantined, or the daemon is stopping",
    "507": "the model does not fit in memory",
}
BODY_ONLY = {"408", "413", "415", "422", "429", "507"}


def document(routes: Sequence[Route]) -> bytes:
    """The whole document, encoded as JSON."""
    schemas, references = _schemas(routes)
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "edge-agent", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"token": []}],
        }
    )


def _models(routes: Iterable[Route]) -> list[type[BaseModel]]:
    models = list(ERRORS.values())
    for route in routes:
        streamed = route.streams[1] if route.streams else None
        models += [model for model in (route.body, route.answer, streamed) if model]
    return list(dict.fromkeys(models))


def _schemas(routes: Iterable[Route]) -> tuple[dict[str, Any], dict[type[BaseModel], Any]]:
    """Component schemas, and the $ref of each model."""
    references, top = models_json_schema(
        [(model, "validation") for model in _models(routes)],
        ref_template="#/components/schemas/{model}",
    )
    by_model = {model: references[model, "validation"] for model in _models(routes)}
    return top["$defs"], by_model


def _operation(route: Route, references: dict[type[BaseModel], Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "responses": {"200": _success(route, references), **_failures(route, references)},
    }
    parameters = [_parameter(name, "path") for name in re.findall(r"{(\w+)}", route.path)]
    parameters += [_parameter(name, "query") for name in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        content = {"application/json": {"schema": references[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.path in PUBLIC_PATHS:
        operation["security"] = []
    return operation


def _parameter(name: str, place: str) -> dict[str, Any]:
    required = place == "path"
    return {"name": name, "in": place, "required": required, "schema": {"type": "string"}}


def _success(route: Route, references: dict[type[BaseModel], Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer:
        content["application/json"] = {"schema": references[route.answer]}
    if route.streams:
        content_type, model = route.streams
        content[content_type] = {"schema": references[model]}
    return {"description": "done", "content": content} if content else {"description": "done"}


def _failures(route: Route, references: dict[type[BaseModel], Any]) -> dict[str, Any]:
    schema = references[ERRORS[dialect_of(route.path)]]
    return {
        status: {"description": text, "content": {"application/json": {"schema": schema}}}
        for status, text in STATUSES.items()
        if route.body or status not in BODY_ONLY
    }
