"""OpenAI's request bodies, as far as this daemon serves them.

Flows in: parsed JSON. Flows out: frozen pydantic models, and the records that the engine takes. A
request for a feature that this daemon lacks (tools, several choices) is refused and the feature
named, because ignoring it would mislead (also unserved.py); members that neither OpenAI nor
llama-server knows are ignored. Source: OpenAI's API reference, llama-server's README. Not here:
answers (openai_answers.py), sending (openai.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from edge_agent.errors import SchemaError
from edge_agent.prompt.json_schema import check_schema
from edge_agent.sampling_bounds import DEFAULT_MAX_TOKENS, MAX_TOKENS
from edge_agent.server.chat_message import Conversation
from edge_agent.server.error_body import FieldError
from edge_agent.server.sampling_fields import (
    Body,
    SamplingFields,
    StopList,
    StopString,
    number,
    refused,
)
from edge_agent.server.unserved import (
    CHAT,
    OPENAI,
    Unserved,
    refuse_samplers,
    refuse_unserved,
)

MAX_TOP_LOGPROBS = 20
"""Alternatives reported at each position; OpenAI's limit."""
MAX_BIASES = 1024
MAX_LORAS = 64
MAX_LORA_SCALE = 100.0
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
BiasValue = Annotated[float, Field(ge=-100, le=100)] | Literal[False]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(Body):
    include_usage: bool = False


class NamedSchema(Body):
    name: str = Field("", max_length=64)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer. `schema` beside json_object is llama-server's older way to give a
    schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def checked_schema(self) -> dict[str, Any] | None:
        """None for free text, {} for any JSON object. Raises FieldError, SchemaError."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return checked(self.schema_ or {}, "response_format.schema")
        if self.json_schema is None or self.json_schema.schema_ is None:
            raise FieldError("response_format.json_schema.schema", "json_schema needs it")
        return checked(self.json_schema.schema_, "response_format.json_schema.schema")


def checked(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """`schema`, if it is inside the supported subset. Raises SchemaError that names the field."""
    try:
        check_schema(schema)
    except SchemaError as error:
        raise SchemaError(f"field '{param}': {error.what}", error.why, error.hint) from None
    return schema


class LoraScale(Body):
    """llama-server's choice of an adapter; GET /lora-adapters lists the ids."""

    id: int = Field(ge=0, le=2**53)
    scale: float = Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)


def check_one_adapter(loras: Sequence[LoraScale]) -> None:
    """Raises a validation error for `lora` when more than one scale is not 0."""
    if sum(one.scale != 0 for one in loras) > 1:
        raise refused(
            "lora",
            "more than one adapter has a scale other than 0, and a decode call holds one only",
            "choose one adapter, or merge them into one",
        )


class GenerationFields(SamplingFields):
    """The fields that chat and completion requests share."""

    model: str | None = Field(None, description="MODEL, MODEL:ADAPTER or MODEL:base.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | StopList | None = None
    max_tokens: int | None = number("max_tokens")
    max_completion_tokens: int | None = number("max_tokens")
    n_predict: int | None = number("max_tokens")
    n: int | None = Field(None, description="Only 1 is served.")
    repetition_penalty: float | None = number("repeat_penalty")
    """Another name of repeat_penalty."""
    n_probs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Like logprobs.")
    logit_bias: dict[BiasKey, BiasValue] | None = Field(
        None, max_length=MAX_BIASES, description="id: bias, or a list of pairs; false bans the id."
    )
    samplers: str | list[str] | None = Field(None, description="Refused unless ours, in order.")
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    """llama-server's shorter way to give a schema."""
    cache_prompt: bool | None = Field(
        None, description="false: prefill the whole prompt; exact repetition of a seed needs it."
    )
    ignore_eos: bool | None = None
    lora: list[LoraScale] | None = Field(
        None,
        max_length=MAX_LORAS,
        description="One adapter with a scale other than 0, or the base; before what model says.",
    )
    unserved: ClassVar[Mapping[str, Unserved]] = OPENAI

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, members: Any) -> Any:
        return refuse_unserved(members, cls.unserved)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs_are_a_mapping(cls, given: Any) -> Any:
        """llama-server's list of [id, bias]."""
        if not isinstance(given, list):
            return given
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
            raise refused("logit_bias", "a list holds pairs [token id, bias]", "ask /tokenize")
        return {str(token): bias for token, bias in given}

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> GenerationFields:
        if self.n not in (None, 1):
            raise refused("n", f"it is {self.n}", "only 1 is served; send the request again")
        check_one_adapter(self.lora or [])
        refuse_samplers(self.samplers, self.sampling({}, self.repetition_penalty))
        return self

    def biases(self) -> dict[int, float]:
        biases = (self.logit_bias or {}).items()
        return {int(key): -math.inf if value is False else value for key, value in biases}

    def answer_schema(self) -> dict[str, Any] | None:
        """None for free text, {} for any JSON object. Raises FieldError, SchemaError."""
        schema = self.response_format.checked_schema() if self.response_format else None
        if self.json_schema is None:
            return schema
        if schema:
            raise FieldError("json_schema", "response_format has a schema too", "send one of them")
        return checked(self.json_schema, "json_schema")

    def token_limit(self) -> int:
        """The first of the three names that is given, in llama-server's order."""
        names = (self.n_predict, self.max_completion_tokens, self.max_tokens, DEFAULT_MAX_TOKENS)
        return next(limit for limit in names if limit is not None)

    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationFields, Conversation):
    """POST /v1/chat/completions"""

    unserved: ClassVar[Mapping[str, Unserved]] = CHAT
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Any = Field(None, description="Refused unless empty.")
    functions: Any = Field(None, description="Refused unless empty.")
    tool_choice: Any = None

    @model_validator(mode="after")
    def _refuse_chat_extras(self) -> ChatRequest:
        for name in ("tools", "functions"):
            if getattr(self, name):
                hint = "describe the answer you want with response_format json_schema"
                raise refused(name, "tool calls are not served", hint)
        if self.tool_choice not in (None, "none", "auto"):
            raise refused("tool_choice", "tool calls are not served", "leave it out")
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "it needs logprobs: true", "set logprobs")
        return self

    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else self.n_probs or None


class CompletionRequest(GenerationFields):
    """POST /v1/completions"""

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    ) = Field(description="Text, token ids, or a list of one text.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = Field(None, description="Refused when true.")
    best_of: int | None = Field(None, description="Only 1 is served.")
    suffix: str | None = Field(None, description="Refused unless empty.")

    @model_validator(mode="after")
    def _refuse_completion_extras(self) -> CompletionRequest:
        if self.echo:
            raise refused("echo", "the prompt is not sent back", "prepend it yourself")
        if self.best_of not in (None, 1):
            raise refused("best_of", f"it is {self.best_of}", "only 1 is served")
        if self.suffix:
            raise refused("suffix", "filling in the middle is not served", "leave it out")
        return self

    def logprob_count(self) -> int | None:
        return self.n_probs or None if self.logprobs is None else self.logprobs

    def text_or_tokens(self) -> tuple[str | None, list[int] | None]:
        """The prompt as the engine takes it: (text, None) or (None, token ids)."""
        if isinstance(self.prompt, str):
            return self.prompt, None
        ids = [token for token in self.prompt if isinstance(token, int)]
        return (None, ids) if ids else (str(self.prompt[0]), None)


class EmbeddingRequest(Body):
    """POST /v1/embeddings"""

    model: str | None = None
    input: str | list[str]
