"""llama-server's way to adapters: GET and POST /lora-adapters, and `lora` in a request.

Flows in: ids and scales. Flows out: an AdapterRef for one request, or another active adapter. An id
is the adapter's for good (llama-server numbers those of its command line). Setting a scale other
than 0 activates the adapter as any other way does, gate and canary included; the scale itself lasts
until the daemon ends. Not here: names and files (adapters.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import web
from pydantic import BaseModel, Field, model_validator

from edge_agent.adapt import activation
from edge_agent.models.adapter_registry import BASE
from edge_agent.records import AdapterRef
from edge_agent.server.body import parse_json_list, read_body, validate
from edge_agent.server.openai_schema import MAX_LORAS, LoraScale, check_one_adapter
from edge_agent.server.reply import json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE, Service


class LoraAdapter(BaseModel):
    """`scale` is what requests without `lora` get; 0: not active. The answer is a bare list."""

    id: int
    path: str
    scale: float


class LoraScales(Body):
    """POST /lora-adapters: a bare list of these. What is not in it gets 0."""

    lora: list[LoraScale] = Field(max_length=MAX_LORAS)

    @model_validator(mode="after")
    def _one_at_most(self) -> LoraScales:
        check_one_adapter(self.lora)
        return self


class Success(BaseModel):
    success: bool


def lora_reference(
    service: Service, model: str | None, loras: Sequence[LoraScale] | None
) -> AdapterRef | None:
    """What `lora` of a request asks for; None: it asks for nothing. Raises AdapterNotFound.

    As llama-server has it, adapters that are not mentioned have scale 0, so [] is the base.
    """
    if loras is None:
        return None
    base, _ = service.supervisor.which_model(model)
    chosen = BASE
    for one in loras:
        row = service.registry.by_id(base.name, one.id)
        if one.scale:
            reference = service.registry.reference(row)
            chosen = msgspec.structs.replace(reference, scale=one.scale)
    return chosen


async def lora_adapters(request: web.Request) -> web.Response:
    """Those of the model that a request without a name means. No model is loaded for it."""
    service = request.app[SERVICE]
    registry = service.registry
    if not service.store.models():
        return json_response([])
    model, _ = service.supervisor.which_model(None)
    active = registry.active(model.name)
    listed = [
        {"id": row.id, "path": ref.path, "scale": ref.scale if row == active else 0.0}
        for row, ref in ((row, registry.reference(row)) for row in registry.adapters(model.name))
    ]
    return json_response(listed)


async def set_lora_adapters(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    limits, registry = service.limits, service.registry
    raw = await read_body(request, limits.body_bytes(service.n_ctx()), limits.body_s)
    loras = validate(LoraScales, {"lora": parse_json_list(raw, limits.json_depth)}).lora
    model = service.supervisor.which_model(None)[0].name
    rows = [(registry.by_id(model, one.id), one.scale) for one in loras]
    chosen = next(((row, scale) for row, scale in rows if scale), None)
    if chosen is None:
        await asyncio.to_thread(registry.deactivate, model, "POST /lora-adapters")
        return json_response({"success": True})
    row, scale = chosen
    await activation.activate(service.supervisor, model, row.name, reason="POST /lora-adapters")
    registry.set_scale(row, scale)
    return json_response({"success": True})


ROUTES = (
    Route("GET", "/lora-adapters", lora_adapters, "A list of adapters", LoraAdapter),
    Route(
        "POST", "/lora-adapters", set_lora_adapters, "Set their scales", Success, body=LoraScales
    ),
)
