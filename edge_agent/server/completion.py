"""llama-server's own completion, POST /completion, with the members of its answer.

Flows in: a prompt (text, token ids, both mixed, an object with the text, or several of these) and
the fields of /v1/completions. Flows out: llama-server's document, or its server-sent events, which
end without [DONE]. The generation is that of openai.py. Differences: `n_predict` is 256 when it is
absent; `id_slot` is -1, because nobody is told which slot an answer had; the events before the last
one do not count the prompt's tokens. Source: llama-server's README and server-task.cpp. Not here:
the other fields (openai_schema.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import BaseModel, Field, model_validator

from edge_agent.records import (
    ChosenLogprob,
    Chunk,
    Detokenize,
    Done,
    Generate,
    Text,
    Tokenize,
    Tokens,
)
from edge_agent.sampling_bounds import MAX_TOKENS
from edge_agent.server.auth import CALLER
from edge_agent.server.body import read_request
from edge_agent.server.generation import Call
from edge_agent.server.llama_server import expect, sampling_json
from edge_agent.server.model_name import requested_model
from edge_agent.server.openai import Shape, answered, called, document
from edge_agent.server.openai_answers import EnergyBody, TimingsBody, TopLogprob
from edge_agent.server.openai_events import chosen_json, event, figures_json
from edge_agent.server.openai_schema import MAX_TOP_LOGPROBS, GenerationFields, TokenId
from edge_agent.server.reply import EVENT_STREAM, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body, refused
from edge_agent.server.service import SERVICE, Service
from edge_agent.server.unserved import GENERATION, Unserved

MAX_PROMPTS = 64
MAX_RESPONSE_FIELDS = 64


class PromptObject(Body):
    prompt_string: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, members: Any) -> Any:
        if isinstance(members, dict) and members.get("multimodal_data"):
            raise refused("multimodal_data", "images and sounds are not supported", "send text")
        return members


Mixed = Annotated[list[TokenId | str], Field(min_length=1, max_length=MAX_TOKENS)]
OnePrompt = str | PromptObject | Mixed


class NativeRequest(GenerationFields):
    """POST /completion"""

    unserved: ClassVar[Mapping[str, Unserved]] = GENERATION
    prompt: OnePrompt | Annotated[list[OnePrompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Like n_probs.")
    return_tokens: bool | None = None
    response_fields: list[str] | None = Field(
        None,
        max_length=MAX_RESPONSE_FIELDS,
        description="Members of the answer to send; a/b is member b of member a.",
    )

    @model_validator(mode="after")
    def _one_stream(self) -> NativeRequest:
        if self.stream and len(self.prompts()) > 1:
            raise refused("stream", "there are several prompts", "send them one by one")
        return self

    def prompts(self) -> list[list[int | str]]:
        """Each as ids and texts. A list without ids is a list of prompts, as in llama-server."""
        given: Any = self.prompt
        is_many = isinstance(given, list) and not any(isinstance(one, int) for one in given)
        return [_parts(one) for one in (given if is_many else [given])]

    def logprob_count(self) -> int | None:
        return self.n_probs or self.logprobs or None


def _parts(prompt: Any) -> list[int | str]:
    if isinstance(prompt, PromptObject):
        return [prompt.prompt_string]
    return [prompt] if isinstance(prompt, str) else list(prompt)


async def complete(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    body = await read_request(request, NativeRequest, service.limits, service.n_ctx())
    calls = [await _call(service, body, parts) for parts in body.prompts()]
    shapes = [_shape(service, body, call.request, await _prompt(service, call)) for call in calls]
    if len(calls) == 1:
        return await answered(request, calls[0], body, shapes[0])
    answers = []
    for call, shape in zip(calls, shapes, strict=True):
        answers.append(await document(service, replace(call, user=request[CALLER]), shape))
    return json_response([{**one, "index": n} for n, one in enumerate(answers)])


async def _call(service: Service, body: NativeRequest, parts: Sequence[int | str]) -> Call:
    """The call of one prompt. Texts beside ids become ids here, the first one with its BOS."""
    is_text = len(parts) == 1 and isinstance(parts[0], str)
    ids: list[int] = []
    for place, part in enumerate(() if is_text else parts):
        ids += [part] if isinstance(part, int) else await _ids(service, body, part, place == 0)
    return await called(
        service,
        body,
        "llama_completion",
        text=parts[0] if is_text else None,
        parse_special=True,
        tokens=None if is_text else ids,
        max_tokens=body.token_limit(),
        logprobs=body.logprob_count(),
        return_tokens=bool(body.return_tokens or body.stream),
    )


async def _ids(service: Service, body: NativeRequest, text: str, is_first: bool) -> list[int]:
    question = Tokenize(id=0, content=text, add_special=is_first, parse_special=True)
    answer = await service.supervisor.ask(requested_model(body.model), question)
    return expect(answer, Tokens).tokens


async def _prompt(service: Service, call: Call) -> str:
    """The prompt as text."""
    if call.request.text is not None:
        return call.request.text
    question = Detokenize(id=0, tokens=call.request.tokens or [])
    return expect(await service.supervisor.ask(call.model, question), Text).text


def _shape(service: Service, body: NativeRequest, request: Generate, prompt: str) -> Shape:
    def events(head: dict[str, Any], include_usage: bool) -> NativeEvents:
        info = service.supervisor.status().info
        facts = {
            "model": head["model"],
            "prompt": prompt,
            "generation_settings": {"n_ctx": info.n_ctx if info else 0, **_settings(request)},
        }
        return NativeEvents(facts, body.response_fields or [])

    return events


def _settings(request: Generate) -> dict[str, Any]:
    return {
        **sampling_json(request.sampling),
        "n_predict": request.max_tokens,
        "max_tokens": request.max_tokens,
        "n_probs": request.logprobs or 0,
        "stop": request.stop,
        "stream": request.stream,
        "ignore_eos": request.ignore_eos,
        "logit_bias": [[token, bias] for token, bias in request.sampling.logit_bias.items()],
    }


class NativeEvents:
    """llama-server's documents. `facts`: members known from the start; `fields`: members to send,
    [] all."""

    def __init__(self, facts: dict[str, Any], fields: Sequence[str]) -> None:
        self._facts = facts
        self._fields = fields
        self._has_new_line = False

    def opening(self) -> bytes:
        return b""

    def piece(self, chunk: Chunk | Done) -> bytes:
        """The event of one chunk, b"" when it carries nothing."""
        self._has_new_line |= "\n" in chunk.text
        if not (chunk.text or chunk.tokens or chunk.logprobs):
            return b""
        document = {"index": 0, "content": chunk.text, "tokens": chunk.tokens, "stop": False}
        if isinstance(chunk, Chunk):
            document["tokens_predicted"] = chunk.completion_tokens
        return event({**document, "id_slot": -1, **_probabilities(chunk)})

    def ending(self, done: Done) -> bytes:
        """The last piece, then the document with everything but the text."""
        last = self.piece(done)
        return last + event(self._chosen({**self._document(done), "content": "", "tokens": []}))

    def whole(self, done: Done) -> dict[str, Any]:
        return self._chosen({**self._document(done), **_probabilities(done)})

    def _document(self, done: Done) -> dict[str, Any]:
        timings, n_ctx = done.timings, self._facts["generation_settings"]["n_ctx"]
        n_held = timings.prompt_tokens + max(0, timings.completion_tokens - 1)
        return {
            "index": 0,
            "content": done.text,
            "tokens": done.tokens,
            "id_slot": -1,
            "stop": True,
            "tokens_predicted": timings.completion_tokens,
            "tokens_evaluated": timings.prompt_tokens,
            **self._facts,
            "has_new_line": self._has_new_line or "\n" in done.text,
            "truncated": done.finish_reason == "length" and n_held >= n_ctx,
            "stop_type": _stop_type(done),
            "stopping_word": done.stop_text or "",
            "tokens_cached": n_held,
            **figures_json(done),
        }

    def _chosen(self, document: dict[str, Any]) -> dict[str, Any]:
        """The members that `response_fields` names, under those names, without unknown ones."""
        found = {name: _member(document, name) for name in self._fields}
        return {name: one for name, one in found.items() if one is not _ABSENT} or document


_ABSENT = object()


def _member(document: Any, path: str) -> Any:
    for name in path.split("/"):
        document = document.get(name, _ABSENT) if isinstance(document, dict) else _ABSENT
    return document


def _stop_type(done: Done) -> Literal["eos", "word", "limit"]:
    if done.stop_text is not None:
        return "word"
    return "limit" if done.finish_reason == "length" else "eos"


def _probabilities(chunk: Chunk | Done) -> dict[str, Any]:
    if not chunk.logprobs:
        return {}
    return {"completion_probabilities": [_probability(one) for one in chunk.logprobs]}


def _probability(chosen: ChosenLogprob) -> dict[str, Any]:
    """llama-server's form of a token and its alternatives: OpenAI's, with ids."""
    spelled = chosen_json(chosen)
    tops = zip(chosen.top, spelled["top_logprobs"], strict=True)
    return {
        "id": chosen.token.id,
        **spelled,
        "top_logprobs": [{"id": top.id, **one} for top, one in tops],
    }


class NativeProbability(TopLogprob):
    id: int
    top_logprobs: list[dict[str, Any]]


class NativeAnswer(BaseModel):
    """A whole answer. `tokens` is empty without return_tokens; `response_fields` makes a choice."""

    index: int
    content: str
    tokens: list[int]
    id_slot: int
    stop: Literal[True]
    model: str
    tokens_predicted: int
    tokens_evaluated: int
    generation_settings: dict[str, Any]
    prompt: str
    has_new_line: bool
    truncated: bool
    """Whether the slot's context was full before the answer was over."""
    stop_type: Literal["eos", "word", "limit"]
    stopping_word: str
    tokens_cached: int
    timings: TimingsBody
    energy: EnergyBody
    temperature_celsius: float | None
    completion_probabilities: list[NativeProbability] | None = None


class NativePiece(BaseModel):
    """One event of a stream; the last one is a NativeAnswer without text."""

    index: int
    content: str
    tokens: list[int]
    stop: bool
    id_slot: int
    tokens_predicted: int | None = None
    completion_probabilities: list[NativeProbability] | None = None


ROUTES = tuple(
    Route(
        "POST",
        path,
        complete,
        summary,
        NativeAnswer,
        body=NativeRequest,
        streams=(EVENT_STREAM, NativePiece),
    )
    for path, summary in (
        ("/completion", "Continue a text, llama-server's way"),
        ("/completions", "As /completion"),
    )
)
