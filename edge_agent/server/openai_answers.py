"""What OpenAI's API answers with, as /openapi.json and the tests describe it.

Flows in: nothing. Flows out: pydantic models of the documents that openai.py sends; the answers of
Ollama's API share the figures. Source: OpenAI's API reference; `timings` is llama-server's. Not
here: requests (openai_schema.py), making the documents (openai_events.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TimingsBody(BaseModel):
    """llama-server's `timings`: _ms in milliseconds, _per_second in tokens per second."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float | None
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float | None
    predicted_per_second: float | None


class EnergyBody(BaseModel):
    """Joules of one answer; null, with a `reason`, where nothing was measured (records.Energy)."""

    prefill_j: float | None
    decode_j: float | None
    total_j: float | None
    marginal_j: float | None
    j_per_token: float | None
    mean_w: float | None
    peak_w: float | None
    idle_w: float | None
    n_samples: int
    rail: str | None
    source: str
    shared: bool
    reason: str | None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprobs]


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: TimingsBody
    energy: EnergyBody
    temperature_celsius: float | None


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class _Streamed(BaseModel):
    """What each event of a stream has; the figures come with the last one."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    timings: TimingsBody | None = None
    energy: EnergyBody | None = None
    temperature_celsius: float | None = None


class ChatCompletionChunk(_Streamed):
    """One server-sent event; the stream ends with `data: [DONE]`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(_Streamed):
    """A whole answer, or one event of a stream (then finish_reason is null until the end)."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: dict[str, int | str]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    error: ErrorDetail
