"""What llama-server's tests ask of its other routes, as rows.

Source: tools/server/tests/unit/test_{completion,tokenize,template,security,ctx_shift}.py of
ggml-org/llama.cpp, told anew for SmolLM2 with 256 tokens a slot. Flows out: one generator for each
file, and LEFT_OUT with the reasons. Not here: chat (server_cases_chat.py), checks (server_case.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from server_case import (
    BAD,
    FINGERPRINT,
    GIVEN,
    NOT_GIVEN,
    REFUSED,
    TEXT,
    Ask,
    Case,
    Check,
    Reply,
    Step,
    between,
    each,
    is_a,
    leading_to,
    matching,
    named,
    of_length,
)
from server_cases_chat import CHAT, SPELLED, excluded_ids, without_excluded

LEFT_OUT = (
    "chat_completion: without jinja, with chat_template llama3, command-r or none (start options)",
    "completion: n_batch 16 and 32, kv_unified, backend sampling, Phi-3.5 (start options, model)",
    "completion: cached against uncached prompt (skipped by llama.cpp itself)",
    "template: reasoning, today's date (templates of other models)",
    "security: cors_origins, the router, the CORS proxy, media paths (start options)",
    "ctx_shift: with context shift (start option)",
)
LIFE = "I believe the meaning of life is"
JOKE = "Write a joke about AI from a very long prompt which will not be truncated"


def raw(prompt: Any = LIFE, path: str = "/completion", **members: Any) -> Ask:
    return Ask(path, {"prompt": prompt, "n_predict": 8, "temperature": 0, **members})


def completion() -> Iterator[Case]:
    yield from plain_completions()
    yield from streams()
    yield from seeds()
    yield from prompts()
    yield from together()
    yield from fields()
    yield from probabilities()
    yield from biases()
    yield from cache()


FILE = "completion"


def plain_completions() -> Iterator[Case]:
    ids: Check = named("ids", lambda v: isinstance(v, list) and {type(x) for x in v} == {int})
    for prompt, n, tokens in ((LIFE, 8, []), (JOKE, 64, ids)):
        wants = {
            "timings.prompt_n": between(1, 60),
            "timings.predicted_n": n,
            "truncated": False,
            "has_new_line": is_a(bool),
            "content": TEXT,
            "tokens": tokens,
        }
        members = {"n_predict": n, "return_tokens": bool(tokens), "ignore_eos": True}
        yield Case(FILE, f"{n} tokens", [raw(prompt, cache_prompt=False, **members)], wants)
    wants = {
        "system_fingerprint": FINGERPRINT,
        "choices.0.finish_reason": "length",
        "choices.0.text": TEXT,
    }
    body = {"model": "davinci-002", "prompt": LIFE, "max_tokens": 8, "temperature": 0}
    yield Case(FILE, "OpenAI's route", [Ask("/v1/completions", body)], wants)
    ask = Ask("/v1/completions", {**body, "stream": True})
    yield Case(FILE, "OpenAI's route, a stream", [ask], {"text": TEXT})


def streams() -> Iterator[Case]:
    wants = {
        "events": each(leading_to("stop", is_a(bool))),
        "events.0.tokens": of_length(1),
        "events.-1.stop": True,
        "events.-1.stop_type": "limit",
        "events.-1.truncated": False,
        "events.-1.has_new_line": is_a(bool),
        "events.-1.generation_settings.seed": 42,
    }
    for prompt, n in ((LIFE, 8), (JOKE, 64)):
        settings = {
            "events.-1.generation_settings.n_predict": n,
            "events.-1.timings.predicted_n": n,
            "events.-1.generation_settings.adaptive_target": GIVEN,
        }
        ask = raw(prompt, n_predict=n, stream=True, seed=42, ignore_eos=True)
        yield Case(FILE, f"a stream of {n} tokens", [ask], {**wants, **settings})

    def equal(replies: list[Reply]) -> bool:
        return bool(replies[0].body["text"] == replies[1].body["content"])

    yield Case(FILE, "a stream equals the whole", [raw(stream=True), raw()], {}, equal)


def contents(replies: list[Reply]) -> list[str]:
    return [reply.body["content"] for reply in replies]


def seeds() -> Iterator[Case]:
    for turn in ("first", "second"):
        same = [raw(seed=42, cache_prompt=False)] * 4
        name = f"one seed, one answer ({turn})"
        yield Case(FILE, name, same, {}, lambda replies: len(set(contents(replies))) == 1)
        options = {"temperature": 1.0, "cache_prompt": False, "n_predict": 32}
        others: list[Step] = [raw(seed=seed, **options) for seed in range(4)]
        name = f"other seeds, other answers ({turn})"
        yield Case(FILE, name, others, {}, lambda replies: len(set(contents(replies))) == 4)


def prompts() -> Iterator[Case]:
    yield Case(FILE, "more than the context", [raw(LIFE * 64, cache_prompt=False)], BAD)
    spelled = {"prompt_string": LIFE}
    yield Case(FILE, "a prompt as an object", [raw(spelled)], {"content": TEXT})
    image = {"prompt_string": f"{LIFE} <__media__>", "multimodal_data": ["iVBORw0KGgo="]}
    yield Case(FILE, "an image for a model of text", [raw(image)], REFUSED)
    tokenized = Ask("/tokenize", {"content": LIFE, "add_special": True})
    alike: dict[str, Any] = {"": of_length(2, 2)}

    def step(*parts: Any) -> Step:
        """A list with the token ids in the place of None."""

        def ask(replies: list[Reply]) -> Ask:
            ids = replies[0].body["tokens"]
            return raw(ids if parts == (None,) else [ids if one is None else one for one in parts])

        return ask

    def twins(replies: list[Reply]) -> bool:
        first, second = replies[-1].body
        return bool(first["content"] == second["content"])

    yield Case(FILE, "a prompt of ids", [tokenized, step(None)], {"content": TEXT})
    for name, parts in (
        ("of ids", (None, None)),
        ("of ids and text", (None, LIFE)),
        ("of ids and an object", (None, spelled)),
    ):
        yield Case(FILE, f"two prompts, {name}", [tokenized, step(*parts)], alike, twins)
    mixed = raw([1, 2, 3, 4, 5, 6, LIFE, 7, 8, 9, 10, LIFE])
    yield Case(FILE, "one prompt of ids and texts", [mixed], {"content": TEXT})


def together() -> Iterator[Case]:
    lines = ("Write a very long book.", "Write another a poem.", "What is LLM?", "The sky is blue.")

    def all_answered(replies: list[Reply]) -> bool:
        return all(reply.status == 200 and len(reply.body["content"]) > 10 for reply in replies)

    for n in (2, 3, 4):
        asks = [raw(line, n_predict=32, temperature=1.0, seed=42) for line in lines[:n]]
        yield Case(FILE, f"{n} requests at once", [asks], {}, all_answered)

    def later(_: list[Reply]) -> Ask:
        time.sleep(2)
        return Ask("/slots")

    long = raw(n_predict=-1, ignore_eos=True)
    cut = Ask(long.path, long.body, timeout_s=0.1, may_end_early=True)
    idle = {"": each(leading_to("is_processing", False))}
    yield Case(FILE, "a client that leaves frees its slot", [cut, later], idle)


def fields() -> Iterator[Case]:
    wants = {"content": TEXT, "generation_settings": GIVEN}
    yield Case(FILE, "no response_fields", [raw(response_fields=[])], wants)
    chosen = ["content", "generation_settings/n_predict", "prompt"]
    wants = {"generation_settings/n_predict": 32, "prompt": matching(f"{LIFE}$"), "content": TEXT}

    def exactly(replies: list[Reply]) -> bool:
        return set(replies[-1].body) == set(chosen)

    ask = raw(n_predict=32, response_fields=chosen)
    yield Case(FILE, "three response_fields", [ask], wants, exactly)


def entry(value: Any, top: str, kind: str, low: float, high: float) -> bool:
    """A token of completion_probabilities, and its alternatives."""
    tokens = [value, *value[top]]
    holds = [
        one["id"] >= 0
        and isinstance(one["token"], str)
        and isinstance(one["bytes"], list)
        and low <= one[kind] <= high
        for one in tokens
    ]
    return all(holds)


def probabilities() -> Iterator[Case]:
    def log(value: Any) -> bool:
        return len(value["top_logprobs"]) == 10 and entry(value, "top_logprobs", "logprob", -1e9, 0)

    def after(value: Any) -> bool:
        return entry(value, "top_probs", "prob", 1e-12, 1)

    five = of_length(5, 5)
    both: Check = named("five with alternatives", lambda v: five(v) and each(log)(v))
    ask = raw(n_probs=10, n_predict=5)
    yield Case(FILE, "n_probs", [ask], {"completion_probabilities": both})

    def pieces(replies: list[Reply]) -> bool:
        events = [one for one in replies[-1].body["events"] if not one["stop"]]
        found = [one["completion_probabilities"] for one in events]
        return len(found) == 5 and all(len(one) == 1 and log(one[0]) for one in found)

    yield Case(FILE, "n_probs in a stream", [raw(n_probs=10, n_predict=5, stream=True)], {}, pieces)
    both = named("five with probabilities", lambda v: five(v) and each(after)(v))
    ask = raw(n_probs=10, n_predict=5, temperature=1.0, post_sampling_probs=True)
    yield Case(FILE, "post_sampling_probs", [ask], {"completion_probabilities": both})


def biases() -> Iterator[Case]:
    words = [f" {word} " for word in SPELLED.body["content"].split()]
    for is_map in (False, True):

        def by_ids(replies: list[Reply], is_map: bool = is_map) -> Ask:
            pairs: list[Any] = [[token, -100] for token in excluded_ids(replies)]
            bias: Any = {str(token): value for token, value in pairs} if is_map else pairs
            return raw("What is the best book", n_predict=64, logit_bias=bias)

        name = "as an object" if is_map else "as pairs"
        yield Case(FILE, f"logit_bias of ids {name}", [SPELLED, by_ids], {}, without_excluded)
        bias: Any = dict.fromkeys(words, -100) if is_map else [[word, -100] for word in words]
        ask = raw("What is the best book", n_predict=64, logit_bias=bias)
        yield Case(FILE, f"logit_bias of texts {name}", [ask], {}, without_excluded)


def cache() -> Iterator[Case]:
    def counted(replies: list[Reply]) -> bool:
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return all(
            len(told.body["tokens"]) == said.at("timings.prompt_n") + said.at("timings.cache_n")
            and 1 <= said.at("timings.predicted_n") <= 8
            for told, said in pairs
        )

    steps: list[Step] = []
    for turn in range(16):
        prompt = f" Hello {turn * 7 % 5}" * (40 + turn * 7 % 5)
        steps += [Ask("/tokenize", {"content": prompt, "add_special": True})]
        steps += [raw(prompt, n_predict=1 + turn % 8, ignore_eos=True)]
    wants = {"content": TEXT, "has_new_line": is_a(bool), "tokens": is_a(list)}
    yield Case(FILE, "prompts in and out of the cache", steps, wants, counted)


def tokenize() -> Iterator[Case]:
    content = "What is the capital of France ?"
    ask = Ask("/tokenize", {"content": content})

    def back(replies: list[Reply]) -> Ask:
        return Ask("/detokenize", {"tokens": replies[0].body["tokens"]})

    wants = {"content": matching(rf"^\s?{content[:-1]}\?$")}
    yield Case("tokenize", "there and back", [ask, back], wants)
    special = Ask("/tokenize", {"content": content, "add_special": True})
    yield Case("tokenize", "add_special", [special], {"tokens": of_length(6)})
    piece: Check = named("with id and piece", lambda one: one["id"] > 0 and len(one["piece"]) > 0)
    text = "This is a test string with unicode 媽 and emoji 🤗"
    ask = Ask("/tokenize", {"content": text, "with_pieces": True})
    yield Case("tokenize", "with_pieces", [ask], {"tokens": each(piece)})


TOOL = {
    "type": "function",
    "function": {"name": "test", "parameters": {"type": "object", "properties": {}}},
}


def template() -> Iterator[Case]:
    turns = [{"role": "user", "content": "What is today?"}]
    for tools in (None, [], [TOOL]):
        ask = Ask("/apply-template", {"messages": turns, "tools": tools})
        wants = {"prompt": matching(r"assistant\n$")}
        yield Case("template", f"tools {tools and 'given' or tools}", [ask], wants)
    for is_opened in (False, True):
        ask = Ask("/apply-template", {"messages": turns, "add_generation_prompt": is_opened})
        wants = {"prompt": matching("assistant\n$" if is_opened else r"today\?<\|im_end\|>\n?$")}
        yield Case("template", f"add_generation_prompt {is_opened}", [ask], wants)


def security() -> Iterator[Case]:
    file = "security"
    bare: dict[str, str | None] = {"Authorization": None}
    yield Case(file, "/health is open", [Ask("/health", headers=bare)], {"error": NOT_GIVEN})
    yield Case(file, "the page is open", [Ask("/", headers=bare)], {"text": TEXT})
    refused = {"status": 401, "error.type": "authentication_error"}
    ask = raw(path="/completions")
    for key in (None, "Bearer invalid-key"):
        given = replace(ask, headers={"Authorization": key})
        yield Case(file, f"the key {key}", [given], refused)
    yield Case(file, "the right key", [ask], {"content": TEXT})
    ask = replace(ask, headers={**bare, "X-Api-Key": "{token}"})
    yield Case(file, "the right key as X-Api-Key", [ask], {"content": TEXT})
    turns = [{"role": "user", "content": "What is the meaning of life?"}]
    ask = Ask(CHAT, {"messages": turns, "model": "gpt-3.5-turbo", "max_tokens": 8})
    yield Case(file, "chat without /v1, any model name", [ask], {"choices": of_length(1, 1)})
    yield from origins()
    for url in ("file://mtmd/test-1.jpeg", "file://mtmd/none.jpeg", "file://../mtmd/test-1.jpeg"):
        parts = [{"type": "text", "text": "test"}, {"type": "image_url", "image_url": {"url": url}}]
        ask = Ask(CHAT, {"messages": [{"role": "user", "content": parts}], "max_tokens": 1})
        yield Case(file, f"the image {url}", [ask], REFUSED)


def origins() -> Iterator[Case]:
    for origin, header, value in (
        ("localhost", "origin", "localhost"),
        ("web.mydomain.fr", "origin", "web.mydomain.fr"),
        ("origin", "credentials", "true"),
        ("web.mydomain.fr", "methods", "GET, POST, DELETE, OPTIONS"),
        ("web.mydomain.fr", "headers", "*"),
    ):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        ask = Ask("/completions", headers=headers, verb="OPTIONS")
        name = f"access-control-allow-{header}"
        yield Case("security", f"{name} for {origin}", [ask], {f"headers.{name}": value})


def ctx_shift() -> Iterator[Case]:
    file, short = "ctx_shift", "Hi how are you"
    options = {"ignore_eos": True, "cache_prompt": False}
    wants = {"timings.predicted_n": 64, "truncated": False}
    yield Case(file, "64 tokens", [raw(short, n_predict=64, **options)], wants)

    def full(replies: list[Reply]) -> bool:
        return 255 <= sum(replies[-1].at(f"timings.{x}_n") for x in ("prompt", "predicted")) <= 257

    ask = raw(short, n_predict=-1, **options)
    yield Case(file, "to the end of the context", [ask], {"truncated": True}, full)
    long = raw("Lorem ipsum dolor sit amet, consectetur elit. " * 40, n_predict=64)
    wants = {"status": 400, "error.message": matching("exceeds the available context size")}
    yield Case(file, "a prompt that is too long", [long], wants)
    ask = raw("Once", "/v1/completions", n_predict=300, stream=True, ignore_eos=True)
    wants = {"text": TEXT, "events.-1.choices.0.finish_reason": "length"}
    yield Case(file, "a stream to the end of the context", [ask], wants)
