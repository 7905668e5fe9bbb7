"""OpenAI's API: models, chat completions, completions; embeddings are refused in words.

Flows in: HTTP requests that auth.py let through. Flows out: JSON bodies or server-sent events.
Errors before the first token are HTTP statuses; after it they are one `data: {"error": ...}` event
and the end of the stream. Not here: fields (openai_schema.py), bytes (openai_events.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from aiohttp import web

from edge_agent import __version__
from edge_agent.errors import EdgeAgentError
from edge_agent.records import Began, Done, Generate
from edge_agent.server.auth import CALLER
from edge_agent.server.body import read_request
from edge_agent.server.error_body import FieldError, Refusal, dialect_of, error_json, typed
from edge_agent.server.generation import Call, generate, whole
from edge_agent.server.lora import lora_reference
from edge_agent.server.model_name import (
    listed_names,
    registered_name,
    requested_model,
    shown_name,
)
from edge_agent.server.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ModelCard,
    ModelList,
    OpenAIError,
)
from edge_agent.server.openai_events import ChatEvents, CompletionEvents, Events, event
from edge_agent.server.openai_schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationFields,
)
from edge_agent.server.reply import EVENT_STREAM, Stream, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import stop_list
from edge_agent.server.service import SERVICE, Service
from edge_agent.store.store import ModelRow


async def list_models(request: web.Request) -> web.Response:
    """MODEL comes first, then MODEL:base and its adapters if it has any."""
    service = request.app[SERVICE]
    rows = service.store.models()
    registry = service.registry
    cards = [_card(service, row, name) for row in rows for name in listed_names(row, registry)]
    return json_response({"object": "list", "data": cards})


async def get_model(request: web.Request) -> web.Response:
    service, name = request.app[SERVICE], registered_name(request.match_info["id"])
    return json_response(_card(service, service.supervisor.target(name).model, name))


def _card(service: Service, row: ModelRow, name: str) -> dict[str, Any]:
    """`n_ctx` is what a request of this model can have, `n_ctx_train` what it was trained for."""
    return {
        "id": name,
        "object": "model",
        "created": int(row.added_at),
        "owned_by": row.source,
        "meta": {
            "architecture": row.architecture,
            "n_params": row.n_params,
            "n_ctx": service.slot_n_ctx(row),
            "n_ctx_train": row.n_ctx_train,
            "size": row.size_bytes,
        },
    }


async def chat(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body = await read_request(request, ChatRequest, service.limits, service.n_ctx())
    call = await called(
        service,
        body,
        "openai_chat",
        messages=body.turns(),
        continues=body.continues(),
        max_tokens=body.token_limit(),
        logprobs=body.logprob_count(),
    )
    return await answered(request, call, body, ChatEvents)


async def completions(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body = await read_request(request, CompletionRequest, service.limits, service.n_ctx())
    text, tokens = body.text_or_tokens()
    call = await called(
        service,
        body,
        "openai_completion",
        text=text,
        parse_special=True,
        tokens=tokens,
        max_tokens=body.token_limit(),
        logprobs=body.logprob_count(),
    )
    return await answered(request, call, body, CompletionEvents)


async def called(service: Service, body: GenerationFields, api: str, **prompt: Any) -> Call:
    """The call of a request. Raises FieldError for ids outside the vocabulary."""
    model = requested_model(body.model)
    biases, tokens = body.biases(), prompt.get("tokens") or []
    if biases:
        await _check_ids(service, model, biases, "logit_bias")
    if tokens:
        await _check_ids(service, model, tokens, "prompt")
    request = Generate(
        id=0,
        sampling=body.sampling(biases, body.repetition_penalty),
        stop=stop_list(body.stop),
        stream=bool(body.stream),
        cache_prompt=body.cache_prompt is not False,
        ignore_eos=bool(body.ignore_eos),
        json_schema=body.answer_schema(),
        adapter=lora_reference(service, model, body.lora),
        **prompt,
    )
    return Call(api, model, request)


async def _check_ids(service: Service, model: str | None, ids: Collection[int], param: str) -> None:
    info = await service.supervisor.ensure_loaded(model)
    if max(ids) >= info.n_vocab:
        raise FieldError(
            param,
            f"token id {max(ids)} is outside the vocabulary",
            f"{info.name} has ids 0 to {info.n_vocab - 1}",
        )


Shape = Callable[[dict[str, Any], bool], Events]
"""Makes the events of an answer from its head and whether the usage is wanted."""


async def answered(
    request: web.Request, call: Call, body: GenerationFields, shape: Shape
) -> web.StreamResponse:
    """The answer, streamed or whole."""
    service = request.app[SERVICE]
    call = replace(call, user=request[CALLER])
    if call.request.stream:
        return await _stream(request, call, shape, body.wants_usage())
    return json_response(await document(service, call, shape))


async def document(service: Service, call: Call, shape: Shape) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    began, done = await whole(service, call)
    return shape(_head(service, call, began), False).whole(done)


def _head(service: Service, call: Call, began: Began) -> dict[str, Any]:
    """The members that every body and event of one answer begins with."""
    prefix = "chatcmpl-" if call.api == "openai_chat" else "cmpl-"
    return {
        "id": prefix + call.answer_id,
        "created": int(service.clock()),
        "model": shown_name(call.model, began.model),
        "system_fingerprint": _fingerprint(service),
    }


def _fingerprint(service: Service) -> str:
    """What may change an answer although the seed is the same: our version and llama.cpp's. It
    begins with a b, as llama-server's does."""
    info = service.supervisor.status().info
    return f"b{__version__}" + (f"-{info.build.rsplit(' ', 1)[-1]}" if info else "")


async def _stream(
    request: web.Request, call: Call, shape: Shape, include_usage: bool
) -> web.StreamResponse:
    """One write per chunk. The role event is sent with the first chunk."""
    service = request.app[SERVICE]
    stream = Stream(request, EVENT_STREAM, service.limits)
    events: Events | None = None
    lead = b""
    try:
        async with aclosing(generate(service, call)) as records:
            async for record in records:
                if isinstance(record, Began):
                    events = shape(_head(service, call, record), include_usage)
                    lead = events.opening()
                    continue
                assert events is not None, "Began comes first"
                if not stream.is_open:
                    await stream.open()
                if isinstance(record, Done):
                    return await stream.close(lead + events.ending(record))
                piece = events.piece(record)
                if piece:
                    await stream.write(lead + piece)
                    lead = b""
        raise EdgeAgentError("the generation ended without a result")
    except ConnectionError:
        raise
    except Exception as error:
        if not stream.is_open:
            raise
        told = error_json(typed(error), dialect_of(request.path))
        return await stream.close(lead + event(told))


async def embeddings(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    await read_request(request, EmbeddingRequest, service.limits, service.n_ctx())
    raise Refusal(
        400,
        "not_served",
        "embeddings are not served",
        "the models here are loaded for generation",
        "use /v1/chat/completions or /v1/completions, or another server for embeddings",
    )


_PREFIXED = (
    Route("GET", "/v1/models", list_models, "Registered models", ModelList),
    Route("GET", "/v1/models/{id}", get_model, "One registered model", ModelCard),
    Route(
        "POST",
        "/v1/chat/completions",
        chat,
        "Answer a conversation",
        ChatCompletion,
        body=ChatRequest,
        streams=(EVENT_STREAM, ChatCompletionChunk),
    ),
    Route(
        "POST",
        "/v1/completions",
        completions,
        "Continue a text",
        Completion,
        body=CompletionRequest,
        streams=(EVENT_STREAM, Completion),
    ),
    Route(
        "POST",
        "/v1/embeddings",
        embeddings,
        "Not served: always a typed error",
        OpenAIError,
        body=EmbeddingRequest,
    ),
)
ROUTES = (
    *_PREFIXED,
    *(
        replace(route, path=route.path.removeprefix("/v1"), summary=f"As {route.path}")
        for route in _PREFIXED
        if route.path
        != "/v1/completions"  # without the prefix it is llama-server's (completion.py)
    ),
)
