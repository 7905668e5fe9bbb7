"""llama-server's API: health, props, slots, tokenize, detokenize, apply-template.

Flows in: HTTP requests that auth.py let through (health even without a token). Flows out: JSON.
health, props and slots are what monitors poll, so they never load a model. Not here: llama-server's
own /completion; OpenAI's form of it does the same.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field

from edge_agent import __version__
from edge_agent.errors import EdgeAgentError
from edge_agent.model_names import split_name
from edge_agent.records import (
    ApplyTemplate,
    Detokenize,
    QuerySlots,
    Sampling,
    SlotState,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
)
from edge_agent.sampling_bounds import MAX_TOKENS
from edge_agent.server.body import read_request
from edge_agent.server.chat_message import Conversation
from edge_agent.server.error_body import FieldError, Refusal
from edge_agent.server.model_name import requested_model
from edge_agent.server.openai_schema import TokenId
from edge_agent.server.reply import json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE, Service
from edge_agent.server.unserved import SAMPLER_ORDER
from edge_agent.supervisor.supervisor import EngineStatus


class TokenizeRequest(Body):
    """POST /tokenize. The defaults are llama-server's."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    model: str | None = None


class DetokenizeRequest(Body):
    """POST /detokenize"""

    tokens: list[TokenId] = Field(max_length=MAX_TOKENS)
    model: str | None = None


class ApplyTemplateRequest(Conversation):
    """POST /apply-template"""

    model: str | None = None


AnswerT = TypeVar("AnswerT")


class LlamaServerErrorDetail(BaseModel):
    code: int
    message: str
    type: str


class LlamaServerError(BaseModel):
    error: LlamaServerErrorDetail


class Health(BaseModel):
    status: Literal["ok"]


class Piece(BaseModel):
    """`piece` is text, or the bytes of half a character."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(BaseModel):
    tokens: list[int] | list[Piece]


class DetokenizeAnswer(BaseModel):
    content: str


class Prompt(BaseModel):
    prompt: str


class Props(BaseModel):
    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    model_path: str
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool


class Slots(BaseModel):
    """llama-server answers a bare list; this names what one element holds."""

    id: int
    n_ctx: int
    is_processing: bool
    state: Literal["idle", "prefill", "decode"]
    n_past: int
    id_task: int
    n_prompt_tokens: int
    n_decoded: int


async def health(request: web.Request) -> web.Response:
    """200 while a request would be answered, even if the model has to be loaded first."""
    refusal = unhealthy(request.app[SERVICE].supervisor.status())
    if refusal:
        raise refusal
    return json_response({"status": "ok"})


def unhealthy(status: EngineStatus) -> Refusal | None:
    """Why the engine does not answer now; None when it does."""
    if status.state in ("loading", "restarting"):
        return Refusal(503, "loading", "Loading model").with_headers({"Retry-After": "1"})
    if status.state == "quarantined":
        hint = "see edge-agent status; edge-agent stop lifts it"
        return Refusal(503, "model_quarantined", "Model quarantined", status.reason, hint)
    if status.state == "stopping":
        return Refusal(503, "shutting_down", "Shutting down").with_headers({"Retry-After": "1"})
    return None


async def props(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    info = service.supervisor.status().info
    configured = service.settings.model
    model = info.name if info else configured and split_name(configured)[0]
    rows = [row for row in service.store.models() if row.name == model]
    return json_response(
        {
            "default_generation_settings": {
                "n_ctx": info.n_ctx if info else 0,
                "params": sampling_json(Sampling()),
            },
            "total_slots": info.slots if info else 0,
            "model_alias": model or "",
            "model_path": info.path if info else "".join(row.path for row in rows),
            "chat_template": "".join(row.chat_template or "" for row in rows),
            "bos_token": info.bos_token if info else "",
            "eos_token": info.eos_token if info else "",
            "build_info": f"edge-agent {__version__}" + (f", {info.build}" if info else ""),
            "is_sleeping": info is None,
        }
    )


_NO_SEED = 2**32 - 1
"""llama.cpp's LLAMA_DEFAULT_SEED: another one for every request."""


def sampling_json(sampling: Sampling) -> dict[str, Any]:
    """llama-server's names of the sampling parameters; samplers that are not served are off."""
    return {
        "seed": _NO_SEED if sampling.seed is None else sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "min_keep"), 0),
        **{"dynatemp_range": 0.0, "top_n_sigma": -1.0, "adaptive_target": -1.0},
        "adaptive_decay": 0.9,
        "samplers": list(SAMPLER_ORDER),
    }


async def slots(request: web.Request) -> web.Response:
    """?fail_on_no_slot=1: 503 when every slot is busy."""
    service = request.app[SERVICE]
    states = await _slot_states(service)
    busy = bool(states) and all(slot.state != "idle" for slot in states)
    if busy and request.query.get("fail_on_no_slot"):
        refusal = Refusal(503, "no_slot", "no slot available", f"all {len(states)} are busy")
        raise refusal.with_headers({"Retry-After": "1"})
    return json_response([_slot_json(slot) for slot in states])


async def _slot_states(service: Service) -> list[SlotState]:
    status = service.supervisor.status()
    if status.state != "ready":
        return []
    answer = await service.supervisor.ask(status.model, QuerySlots(id=0))
    return expect(answer, SlotStates).slots


def _slot_json(slot: SlotState) -> dict[str, Any]:
    return {
        "id": slot.id,
        "n_ctx": slot.n_ctx,
        "is_processing": slot.state != "idle",
        "state": slot.state,
        "n_past": slot.n_past,
        "id_task": -1 if slot.request_id is None else slot.request_id,
        "n_prompt_tokens": slot.prompt_tokens,
        "n_decoded": slot.completion_tokens,
    }


async def tokenize(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await read_request(request, TokenizeRequest, service.limits, service.n_ctx())
    message = Tokenize(
        id=0,
        content=body.content,
        add_special=body.add_special,
        parse_special=body.parse_special,
        with_pieces=body.with_pieces,
    )
    answer = expect(await service.supervisor.ask(requested_model(body.model), message), Tokens)
    if not body.with_pieces:
        return json_response({"tokens": answer.tokens})
    pieces = zip(answer.tokens, answer.pieces, strict=True)
    return json_response({"tokens": [{"id": id_, "piece": _piece(raw)} for id_, raw in pieces]})


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


async def detokenize(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await read_request(request, DetokenizeRequest, service.limits, service.n_ctx())
    model = requested_model(body.model)
    info = await service.supervisor.ensure_loaded(model)
    if max(body.tokens, default=0) >= info.n_vocab:
        raise FieldError("tokens", f"ids of {info.name} are 0 to {info.n_vocab - 1}")
    answer = await service.supervisor.ask(model, Detokenize(id=0, tokens=body.tokens))
    return json_response({"content": expect(answer, Text).text})


async def apply_template(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await read_request(request, ApplyTemplateRequest, service.limits, service.n_ctx())
    message = ApplyTemplate(id=0, messages=body.turns(), continues=body.continues())
    answer = await service.supervisor.ask(requested_model(body.model), message)
    return json_response({"prompt": expect(answer, Text).text})


def expect(answer: object, kind: type[AnswerT]) -> AnswerT:
    """`answer` if it is of the kind its question asked for."""
    if not isinstance(answer, kind):
        raise EdgeAgentError(
            "the worker gave an answer to another question", f"a {type(answer).__name__}"
        )
    return answer


ROUTES = (
    Route("GET", "/health", health, "Would a request be answered now?", Health),
    Route("GET", "/v1/health", health, "The same, under OpenAI's prefix", Health),
    Route("GET", "/props", props, "The loaded model and the defaults", Props),
    Route("GET", "/slots", slots, "A list of slots", Slots, query=("fail_on_no_slot",)),
    Route("POST", "/tokenize", tokenize, "Text to ids", TokenizeAnswer, body=TokenizeRequest),
    Route(
        "POST", "/detokenize", detokenize, "Ids to text", DetokenizeAnswer, body=DetokenizeRequest
    ),
    Route(
        "POST",
        "/apply-template",
        apply_template,
        "Messages to the prompt the model would see",
        Prompt,
        body=ApplyTemplateRequest,
    ),
)
