"""The bytes of OpenAI's answers: whole bodies and server-sent events.

Flows in: the engine's chunks. Flows out: dicts and bytes. `piece` runs once a token on a board
whose cores are busy decoding, so everything but the text is encoded once per request. Not here:
when they are sent (openai.py).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from edge_agent.measured import Energy, Measured, Timings
from edge_agent.records import ChosenLogprob, Chunk, Done, TokenLogprob
from edge_agent.server.reply import encoded

DONE = b"data: [DONE]\n\n"
NOT_MEASURED = Measured(Energy(reason="this daemon reads no sensors"))


def event(document: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encoded(document) + b"\n\n"


def usage_json(timings: Timings) -> dict[str, Any]:
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "total_tokens": timings.prompt_tokens + timings.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": timings.cached_tokens},
    }


def timings_json(timings: Timings) -> dict[str, Any]:
    """llama-server's `timings`: prompt_n counts what was prefilled, without the cached part."""
    prompt_n = timings.prompt_tokens - timings.cached_tokens
    return {
        "cache_n": timings.cached_tokens,
        **_phase("prompt", prompt_n, timings.prefill_s),
        **_phase("predicted", timings.completion_tokens, timings.decode_s),
    }


def figures_json(done: Done) -> dict[str, Any]:
    """`timings` and what stands beside it in every API."""
    return {"timings": timings_json(done.timings), **measured_json(done)}


def measured_json(done: Done) -> dict[str, Any]:
    """`energy` and `temperature_celsius`; null and a reason inside when nothing was measured."""
    measured = done.measured or NOT_MEASURED
    return {"energy": measured.energy, "temperature_celsius": measured.temperature_celsius}


def _phase(name: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": seconds * 1e3,
        f"{name}_per_token_ms": seconds * 1e3 / tokens if tokens else None,
        f"{name}_per_second": tokens / seconds if seconds > 0 else None,
    }


class Events(Protocol):
    """The documents and events of one answer in one API; ChatEvents says what each method gives."""

    def opening(self) -> bytes: ...
    def piece(self, chunk: Chunk | Done) -> bytes: ...
    def ending(self, done: Done) -> bytes: ...
    def whole(self, done: Done) -> dict[str, Any]: ...


class ChatEvents:
    """/v1/chat/completions. `head` is id, created and model; object is added here."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = {**head, "object": self.chunk_object}
        self._usage = {"usage": None} if include_usage else {}
        template = event(self._chunk(self._choice("@", None)))
        self._before, self._after = template.split(b'"@"')

    def opening(self) -> bytes:
        """The event that announces the role."""
        delta = {"role": "assistant", "content": None}
        return event(self._chunk({"index": 0, "delta": delta, "finish_reason": None}))

    def piece(self, chunk: Chunk | Done) -> bytes:
        """The event of one chunk, b'' when it carries nothing."""
        if chunk.logprobs:
            choice = self._choice(chunk.text, None)
            return event(self._chunk({**choice, "logprobs": self.logprobs(chunk.logprobs)}))
        return self._before + encoded(chunk.text) + self._after if chunk.text else b""

    def ending(self, done: Done) -> bytes:
        """The last piece, the reason, usage when asked for, and [DONE]."""
        reason = event(self._chunk(self._choice(None, done.finish_reason), done))
        usage = b""
        if self._usage:
            reason = event(self._chunk(self._choice(None, done.finish_reason)))
            totals = {"usage": usage_json(done.timings), **figures_json(done)}
            usage = event({**self._head, "choices": [], **totals})
        return self.piece(done) + reason + usage + DONE

    def whole(self, done: Done) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        logprobs = self.logprobs(done.logprobs) if done.logprobs else None
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [{**self._message(done), "index": 0, "logprobs": logprobs}],
            "usage": usage_json(done.timings),
            **figures_json(done),
        }

    def _chunk(self, choice: dict[str, Any], done: Done | None = None) -> dict[str, Any]:
        figures = figures_json(done) if done else {}
        return {**self._head, "choices": [choice], **self._usage, **figures}

    def _choice(self, text: str | None, reason: str | None) -> dict[str, Any]:
        delta = {} if text is None else {"content": text}
        return {"index": 0, "delta": delta, "finish_reason": reason}

    def _message(self, done: Done) -> dict[str, Any]:
        message = {"role": "assistant", "content": done.text}
        return {"message": message, "finish_reason": done.finish_reason}

    def logprobs(self, chosen: Sequence[ChosenLogprob]) -> dict[str, Any]:
        return {"content": [chosen_json(one) for one in chosen]}


class CompletionEvents(ChatEvents):
    """/v1/completions: `text` instead of messages, no role event, OpenAI's older logprobs."""

    whole_object = chunk_object = "text_completion"

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        super().__init__(head, include_usage)
        self._n_characters = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def opening(self) -> bytes:
        return b""

    def _choice(self, text: str | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text or "", "finish_reason": reason}

    def _message(self, done: Done) -> dict[str, Any]:
        return {"text": done.text, "finish_reason": done.finish_reason}

    def logprobs(self, chosen: Sequence[ChosenLogprob]) -> dict[str, Any]:
        """`text_offset` counts the whole characters of the generated text before a token."""
        offsets = []
        for one in chosen:
            offsets.append(self._n_characters)
            self._n_characters += len(self._decoder.decode(one.token.raw))
        return {
            "tokens": [_name(one.token, "bytes:") for one in chosen],
            "token_logprobs": [one.token.logprob for one in chosen],
            "top_logprobs": [_by_name([*one.top, one.token]) for one in chosen],
            "text_offset": offsets,
        }


def _by_name(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """The likeliest token of each name; OpenAI too adds the chosen token to the best ones."""
    found: dict[str, float] = {}
    for token in tokens:
        found.setdefault(_name(token, "bytes:"), token.logprob)
    return found


def chosen_json(chosen: ChosenLogprob) -> dict[str, Any]:
    """A token and its alternatives, as OpenAI's chat and Ollama's answers carry them."""
    return {**_token_json(chosen.token), "top_logprobs": [_token_json(top) for top in chosen.top]}


def _token_json(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _name(token), "logprob": token.logprob, "bytes": list(token.raw)}


def _name(token: TokenLogprob, prefix: str = "") -> str:
    """The text of a token. Half a character has none: its bytes as \\xe0\\xa4, OpenAI's spelling,
    with `prefix` in its older API, keep such tokens apart."""
    try:
        return token.raw.decode() or token.text
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token.raw)
