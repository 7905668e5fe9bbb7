"""Ollama's API: tags, ps, show, delete, chat and generate, so that Ollama's clients work.

Flows in: HTTP requests that passed auth.py. Flows out: JSON bodies, or one JSON document a line
(NDJSON). Durations are in nanoseconds, sizes in bytes, times RFC 3339. An error before the first
token is an HTTP status; after it, one line `{"error": ...}` ends the stream. Source: Ollama's
docs/api.md. Not here: /api/pull (pull.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

from edge_agent import __version__
from edge_agent.errors import EdgeAgentError, RequestError
from edge_agent.gguf.header import Scalar
from edge_agent.gguf.model_file import read_gguf
from edge_agent.model_names import BASE_TAG, split_name
from edge_agent.records import Began, Done, Generate, Message, ModelInfo
from edge_agent.server.auth import CALLER
from edge_agent.server.body import read_request
from edge_agent.server.error_body import error_json, typed
from edge_agent.server.generation import Call, generate, whole
from edge_agent.server.model_name import (
    listed_names,
    registered_name,
    requested_model,
    shown_name,
)
from edge_agent.server.models import remove_registered
from edge_agent.server.ollama_lines import Lines, as_message, as_response, rfc3339
from edge_agent.server.ollama_schema import (
    ChatAnswer,
    DeleteRequest,
    GenerateAnswer,
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaGeneration,
    RunningModels,
    ShowAnswer,
    ShowRequest,
    Tags,
    Version,
)
from edge_agent.server.reply import NDJSON, Stream, encoded, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import stop_list
from edge_agent.server.service import SERVICE, Service
from edge_agent.store.store import ModelRow

OLLAMA_VERSION = "0.6.4"
"""The version of Ollama whose API this is. Clients such as VS Code turn away from an older one; a
newer one would promise routes that are not here."""
GREETING = "Ollama is running"
"""The answer of GET / (dashboard.py); Ollama's clients check for this text first."""


async def version(request: web.Request) -> web.Response:
    """GET /api/version."""
    return json_response({"version": OLLAMA_VERSION, "edge_agent": __version__})


async def tags(request: web.Request) -> web.Response:
    """GET /api/tags: each MODEL, followed by MODEL:base and its adapters when it has any."""
    service = request.app[SERVICE]
    rows = service.store.models()
    found = [_tag(row, name) for row in rows for name in listed_names(row, service.registry)]
    return json_response({"models": found})


def _tag(row: ModelRow, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": rfc3339(row.added_at),
        "size": row.size_bytes,
        "digest": row.sha256,
        "details": _details(row),
    }


def _details(row: ModelRow) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": row.architecture,
        "families": [row.architecture],
        "parameter_size": parameter_size(row.n_params),
        "quantization_level": row.quantization,
    }


def parameter_size(n_params: int) -> str:
    """The number of parameters as Ollama writes it.

    >>> parameter_size(268_100_000), parameter_size(1_000_000_000)
    ('268.10M', '1.00B')
    """
    if n_params >= 1e9:
        return f"{n_params / 1e9:.2f}B"
    return f"{n_params / 1e6:.2f}M"


async def ps(request: web.Request) -> web.Response:
    """GET /api/ps: the loaded model, or an empty list."""
    service = request.app[SERVICE]
    status = service.supervisor.status()
    info = status.info
    if info is None:
        return json_response({"models": []})
    expires = None if status.expires_at is None else rfc3339(status.expires_at)
    running = {
        **_tag(service.store.model(info.name), info.name),
        "size": info.tensor_bytes + info.kv_bytes + info.compute_bytes,
        "expires_at": expires,
        "size_vram": 0,
        "context_length": info.n_ctx,
        "adapter": status.adapter,
    }
    del running["modified_at"]
    return json_response({"models": [running]})


async def show(request: web.Request) -> web.Response:
    """POST /api/show: one model. `edge_agent.adapter` is the adapter that this name is answered
    with."""
    service = request.app[SERVICE]
    body = await read_request(request, ShowRequest, service.limits, service.n_ctx())
    target = service.supervisor.target(registered_name(body.called()))
    row, adapter = target.model, target.adapter
    facts: dict[str, Scalar] = {
        **await _shape(service, row),
        "general.architecture": row.architecture,
        "general.parameter_count": row.n_params,
        "general.description": row.description,
        f"{row.architecture}.context_length": service.slot_n_ctx(row),
        "edge_agent.context_length_train": row.n_ctx_train,
        "edge_agent.source": row.source,
        "edge_agent.sha256": row.sha256,
        **({"edge_agent.adapter": adapter.name} if adapter else {}),
    }
    answer = {
        "modelfile": f"FROM {row.path}\n" + (f"ADAPTER {adapter.path}\n" if adapter else ""),
        "parameters": "",
        "template": row.chat_template or "",
        "details": _details(row),
        "model_info": facts,
        "capabilities": ["completion"],
        "modified_at": rfc3339(row.added_at),
    }
    return json_response(answer)


async def _shape(service: Service, row: ModelRow) -> Mapping[str, Scalar]:
    """What the header of the file says about its shape; nothing when the file is gone or broken."""
    try:
        path = service.settings.state_dir / row.path
        return await asyncio.to_thread(_header_facts, path, row.sha256)
    except EdgeAgentError:
        return {}


@lru_cache(maxsize=16)
def _header_facts(path: Path, sha256: str) -> Mapping[str, Scalar]:
    """block_count, embedding_length, attention.head_count and the like, of the file with this
    SHA-256. Raises ModelFormatError."""
    del sha256  # the key of the cache: another file under the same path has other facts
    gguf = read_gguf(path)
    wanted = (f"{gguf.architecture}.", "general.file_type", "general.quantization_version")
    return {name: value for name, value in gguf.summary().items() if name.startswith(wanted)}


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/delete: MODEL with its adapters, or one adapter of it."""
    service = request.app[SERVICE]
    body = await read_request(request, DeleteRequest, service.limits, service.n_ctx())
    name, tag = split_name(registered_name(body.called()))
    if tag == BASE_TAG:
        hint = f"delete {name}: that removes it and its adapters"
        raise RequestError(f"{name}:base is the model {name} itself", "", hint)
    if tag is None:
        await remove_registered(service, name)
    else:
        service.store.model(name)
        await asyncio.to_thread(service.registry.remove, name, tag)
    return web.Response()


def _is_loaded(service: Service, name: str) -> bool:
    info = service.supervisor.status().info
    return info is not None and info.name == name


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /api/chat."""
    service = request.app[SERVICE]
    body = await read_request(request, OllamaChatRequest, service.limits, service.n_ctx())
    turns = body.turns()
    continues = [turn.role for turn in turns[-1:]] == ["assistant"]

    def prompt(info: ModelInfo) -> dict[str, Any]:
        return {"messages": turns, "continues": continues}

    return await _answer(request, body, prompt if turns else None, as_message)


async def generate_text(request: web.Request) -> web.StreamResponse:
    """POST /api/generate."""
    service = request.app[SERVICE]
    body = await read_request(request, OllamaGenerateRequest, service.limits, service.n_ctx())

    def prompt(info: ModelInfo) -> dict[str, Any]:
        return _prompt(body, info)

    return await _answer(request, body, prompt if body.prompt else None, as_response)


def _prompt(body: OllamaGenerateRequest, info: ModelInfo) -> dict[str, Any]:
    """One user turn; plain text when raw was requested or the model has no chat template. Only who
    asks for raw writes control tokens."""
    text = body.prompt or ""
    if body.raw or info.chat_template == "none":
        return {"text": text, "parse_special": bool(body.raw)}
    turns = [Message(role="user", content=text)]
    if body.system:
        turns.insert(0, Message(role="system", content=body.system))
    return {"messages": turns}


async def _answer(
    request: web.Request,
    body: OllamaGeneration,
    prompt: Callable[[ModelInfo], dict[str, Any]] | None,
    place: Callable[[str], dict[str, Any]],
) -> web.StreamResponse:
    """Load the model first, for `load_duration` and the template's name; then generate.

    `prompt` None only loads the model, or unloads it with keep_alive 0. `place` puts a piece of
    text where the API has it.
    """
    service = request.app[SERVICE]
    started = time.monotonic()
    name = requested_model(body.model)
    if prompt is None and body.keep_alive_s() == 0:
        row, _ = service.supervisor.which_model(name)
        if _is_loaded(service, row.name):
            await service.supervisor.unload()
        return json_response(Lines(row.name, place, service.clock, started).idle("unload"))
    schema = body.schema_()
    keep_alive_s = body.keep_alive_s()
    info = await service.supervisor.ensure_loaded(name, keep_alive_s=keep_alive_s)
    load_s = time.monotonic() - started
    shown = shown_name(name, info.name) or info.name
    lines = Lines(shown, place, service.clock, started, load_s)
    if prompt is None:
        return json_response(lines.idle("load"))
    record = _record(body, schema, prompt(info))
    api = "ollama_chat" if isinstance(body, OllamaChatRequest) else "ollama_generate"
    call = Call(api, shown, record, keep_alive_s, request[CALLER])
    if record.stream:
        return await _stream(request, call, lines)
    _, done = await whole(service, call)
    return json_response(lines.whole(done))


def _record(
    body: OllamaGeneration, schema: dict[str, Any] | None, prompt: dict[str, Any]
) -> Generate:
    """The request for the engine."""
    options = body.sampling_options()
    return Generate(
        id=0,
        sampling=options.sampling(),
        max_tokens=options.token_limit(),
        stop=stop_list(options.stop),
        stream=body.stream is not False,
        json_schema=schema,
        logprobs=body.logprob_count(),
        **prompt,
    )


async def _stream(request: web.Request, call: Call, lines: Lines) -> web.StreamResponse:
    """Send the answer line by line; an error after the first line becomes the last line."""
    service = request.app[SERVICE]
    stream = Stream(request, NDJSON, service.limits)
    try:
        async with aclosing(generate(service, call)) as records:
            async for record in records:
                if isinstance(record, Began):
                    continue  # `lines` has its model: the call names the model that was loaded
                if not stream.is_open:
                    await stream.open()
                if isinstance(record, Done):
                    return await stream.close(lines.ending(record))
                if line := lines.line(record):
                    await stream.write(line)
        raise EdgeAgentError("the generation ended without a result")
    except ConnectionError:
        raise
    except Exception as error:
        if not stream.is_open:
            raise
        return await stream.close(encoded(error_json(typed(error), "ollama")) + b"\n")


ROUTES = (
    Route("GET", "/api/version", version, "Version of this daemon", Version),
    Route("GET", "/api/tags", tags, "Registered models", Tags),
    Route("GET", "/api/ps", ps, "The loaded model", RunningModels),
    Route("POST", "/api/show", show, "One registered model", ShowAnswer, body=ShowRequest),
    Route("DELETE", "/api/delete", delete, "Remove a model and its file", body=DeleteRequest),
    Route(
        "POST",
        "/api/chat",
        chat,
        "Answer a conversation",
        ChatAnswer,
        body=OllamaChatRequest,
        streams=(NDJSON, ChatAnswer),
    ),
    Route(
        "POST",
        "/api/generate",
        generate_text,
        "Answer a prompt",
        GenerateAnswer,
        body=OllamaGenerateRequest,
        streams=(NDJSON, GenerateAnswer),
    ),
)
