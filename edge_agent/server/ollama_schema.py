"""Ollama's request and response bodies, as far as this daemon serves them.

Flows in: parsed JSON. Flows out: frozen pydantic models, and the records that the engine takes.
Options of loading (num_gpu, num_thread, ...) are ignored, because this daemon's settings decide
them. `num_ctx` is checked and ignored: a slot's context is fixed when the model loads. `num_keep`,
`truncate` and `shift` are ignored, because a prompt that does not fit is refused, never cut.
Source: Ollama's docs/api.md. Not here: sending (ollama.py).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from edge_agent.model_names import MODEL_NAME
from edge_agent.records import Message
from edge_agent.server.chat_message import MAX_MESSAGES, OllamaMessage
from edge_agent.server.openai_answers import EnergyBody, TokenLogprobs
from edge_agent.server.openai_schema import MAX_TOP_LOGPROBS, checked
from edge_agent.server.sampling_fields import (
    Body,
    SamplingFields,
    StopList,
    StopString,
    refused,
)
from edge_agent.server.unserved import OPTIONS, refuse_unserved

_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+)")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
MAX_KEEP_ALIVE_S = 10 * 365 * 86400.0
FOREVER_S = -1.0


class OllamaBody(Body):
    """Base of Ollama's requests. "" and null mean that a member is absent: programs on Ollama's Go
    package send every field of its structs."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_the_empty(cls, members: Any) -> Any:
        return _without_the_empty(members)


def _without_the_empty(members: Any) -> Any:
    if not isinstance(members, dict):
        return members
    return {name: value for name, value in members.items() if value not in ("", None)}


def keep_alive_s(value: float | int | str | None) -> float | None:
    """Seconds that the model stays loaded after the answer; None leaves it to the daemon's setting.

    0 unloads at once, a negative value never. Numbers are seconds, strings are durations of Go
    ("5m", "1h30m", "-1s"). Raises ValueError.

    >>> keep_alive_s("1h30m"), keep_alive_s(-5)
    (5400.0, -1.0)
    """
    if value is None:
        return None
    seconds = _go_duration_s(value) if isinstance(value, str) else float(value)
    return FOREVER_S if seconds < 0 else min(seconds, MAX_KEEP_ALIVE_S)


def _go_duration_s(text: str) -> float:
    """Seconds of a Go duration (https://pkg.go.dev/time#ParseDuration) or, as in Ollama, a bare
    number."""
    if re.fullmatch(r"[+-]?\d{1,12}", text):
        return float(text)
    whole = _DURATION.fullmatch(text)
    if whole is None or len(text) > 64:
        raise ValueError(f"{text[:40]!r} is not a duration")
    total = sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(whole.group(2)))
    return -total if whole.group(1) == "-" else total


class OllamaOptions(SamplingFields, OllamaBody):
    """Ollama's `options`."""

    num_predict: int | None = Field(
        None, ge=-2, le=2**31 - 1, description="Below 1 and absent: until the slot is full."
    )
    num_ctx: int | None = Field(None, ge=1, description="Ignored: fixed when the model loads.")
    stop: StopString | StopList | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, members: Any) -> Any:
        return refuse_unserved(_without_the_empty(members), OPTIONS)

    def token_limit(self) -> int:
        """The most tokens to generate."""
        return self.num_predict if self.num_predict and self.num_predict > 0 else -1


class Named(OllamaBody):
    """A request that names one registered model."""

    model: str | None = None
    name: str | None = Field(None, description="Older clients' word for model.")

    @model_validator(mode="after")
    def _needs_a_name(self) -> Named:
        if self.model is None and self.name is None:
            raise refused("model", "it is missing", "name a model; GET /api/tags lists them")
        return self

    def called(self) -> str:
        """The model's name, from either field."""
        return str(self.model or self.name)


class ShowRequest(Named):
    """POST /api/show"""


class DeleteRequest(Named):
    """DELETE /api/delete"""


class PullRequest(OllamaBody):
    """POST /api/pull. `model` is a source, `name` the name to register it under; a lone `name` is a
    source, as older clients and ollama-js send it."""

    model: str | None = Field(None, description="hf:..., a path, embedded:...")
    name: str | None = Field(None, description="The name to register it under; else the source.")
    stream: bool | None = None

    @model_validator(mode="after")
    def _can_be_pulled(self) -> PullRequest:
        param = "model" if self.model else "name"
        if re.fullmatch(r"[^-\s].{0,1023}", self.source(), re.DOTALL) is None:
            raise refused(param, "it is no source", "name one: hf:OWNER/REPO, a path, embedded:...")
        if self.new_name() and not MODEL_NAME.fullmatch(self.name or ""):
            raise refused("name", "it cannot name a model", f"it must match {MODEL_NAME.pattern}")
        return self

    def source(self) -> str:
        return self.model or self.name or ""

    def new_name(self) -> str | None:
        """The name to register the model under; None: one made from the source."""
        return self.name if self.model not in (None, self.name) else None


class OllamaGeneration(OllamaBody):
    """The fields that /api/chat and /api/generate share."""

    model: str = ""
    stream: bool | None = Field(None, description="Default true.")
    options: OllamaOptions | None = None
    format: Literal["json"] | dict[str, Any] | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    think: Any = Field(None, description="Only false: no model here thinks aloud.")

    @field_validator("keep_alive")
    @classmethod
    def _is_a_duration(cls, value: float | str | None) -> float | str | None:
        try:
            keep_alive_s(value)
        except ValueError as error:
            raise refused("keep_alive", str(error), 'use "5m", seconds, 0 or -1') from None
        return value

    @model_validator(mode="after")
    def _can_be_answered(self) -> OllamaGeneration:
        if not self.model:
            raise refused("model", "it is missing", "name a model; GET /api/tags lists them")
        if self.think not in (None, False):
            raise refused("think", "thinking is not served", "leave it out")
        return self

    def keep_alive_s(self) -> float | None:
        return keep_alive_s(self.keep_alive)

    def schema_(self) -> dict[str, Any] | None:
        """The JSON schema of the answer: None for free text, {} for any JSON object. Raises
        SchemaError."""
        if self.format is None:
            return None
        return {} if self.format == "json" else checked(dict(self.format), "format")

    def sampling_options(self) -> OllamaOptions:
        return self.options or OllamaOptions.model_validate({})

    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class OllamaChatRequest(OllamaGeneration):
    """POST /api/chat. Without messages: load the model, or unload it with keep_alive 0."""

    messages: list[OllamaMessage] | None = Field(None, max_length=MAX_MESSAGES)
    tools: list[Any] | None = None

    def turns(self) -> list[Message]:
        """The engine's records. Turns of the assistant at the end are one, which is continued."""
        turns = [turn.message() for turn in self.messages or []]
        while [turn.role for turn in turns[-2:]] == ["assistant", "assistant"]:
            last = turns.pop().content
            turns.append(Message("assistant", f"{turns.pop().content}\n\n{last}"))
        return turns

    @model_validator(mode="after")
    def _no_tools(self) -> OllamaChatRequest:
        if self.tools:
            raise refused("tools", "tool calls are not served", "use format with a JSON schema")
        return self


class OllamaGenerateRequest(OllamaGeneration):
    """POST /api/generate. Without a prompt: load the model, or unload it with keep_alive 0."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="true: no chat template.")
    template: str | None = Field(None, description="Refused unless empty.")
    suffix: str | None = Field(None, description="Refused unless empty.")
    context: list[int] | None = Field(None, description="Refused unless empty.")
    images: list[Any] | None = None

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> OllamaGenerateRequest:
        hints = {
            "suffix": "filling in the middle is not served",
            "context": "earlier turns travel as messages to /api/chat",
            "template": "templates come with the model; raw: true renders none",
            "images": "only text is served",
        }
        for name, hint in hints.items():
            if getattr(self, name):
                raise refused(name, "it is not supported", hint)
        return self


# ---- responses ---------------------------------------------------------------------------------


class OllamaError(BaseModel):
    error: str


class Version(BaseModel):
    """`version` is that of Ollama's API, `edge_agent` the daemon's own."""

    version: str
    edge_agent: str


class Details(BaseModel):
    parent_model: str
    format: Literal["gguf"]
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(BaseModel):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(BaseModel):
    models: list[Tag]


class Running(BaseModel):
    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str | None
    size_vram: int
    context_length: int
    adapter: str | None = None


class RunningModels(BaseModel):
    models: list[Running]


class ShowAnswer(BaseModel):
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, int | float | bool | str]
    """`ARCHITECTURE.context_length` is what a slot has; what the model was trained for is
    `edge_agent.context_length_train`."""
    capabilities: list[str]
    modified_at: str


class PullProgress(BaseModel):
    """One line of a pull; `completed` and `total` are bytes."""

    status: str
    completed: int | None = None
    total: int | None = None


class _Answer(BaseModel):
    """The last line has all fields, others only the first three. Durations are nanoseconds."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    energy: EnergyBody | None = None
    temperature_celsius: float | None = None
    logprobs: list[TokenLogprobs] | None = None


class GenerateAnswer(_Answer):
    response: str


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatAnswer(_Answer):
    message: AnswerMessage
