"""What llama-server's tests ask of its chat route, as rows.

Source: tools/server/tests/unit/test_chat_completion.py of ggml-org/llama.cpp, told anew: figures of
its test model became relations, and the ChatML template of SmolLM2 serves all rows. Flows out:
`chats()`. Not here: the other files (server_cases_rest.py), the checks (server_case.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from server_case import (
    BAD,
    FINGERPRINT,
    NOT_GIVEN,
    REFUSED,
    TEXT,
    Ask,
    Case,
    Reply,
    Step,
    between,
    each,
    leading_to,
    matching,
    of_length,
)

CHAT, FILE = "/chat/completions", "chat_completion"
BOOK = [
    {"role": "system", "content": "Book"},
    {"role": "user", "content": "What is the best book"},
]
CODER = [
    {"role": "system", "content": "You are a coding assistant."},
    {"role": "user", "content": "Write an example"},
]
ANSWERED = {
    "id": matching("cmpl"),
    "system_fingerprint": FINGERPRINT,
    "usage.prompt_tokens": between(5, 200),
    "usage.completion_tokens": 8,
    "choices.0.message.role": "assistant",
    "choices.0.message.content": TEXT,
    "choices.0.finish_reason": "length",
}


def chat(messages: Any = BOOK, **members: Any) -> Ask:
    return Ask(CHAT, {"max_tokens": 8, "temperature": 0, "messages": messages, **members})


def parted(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def chats() -> Iterator[Case]:
    turns = {"text": BOOK, "parts": [BOOK[0], {"role": "user", "content": parted("What", "book")}]}
    for name, messages in turns.items():
        yield Case(FILE, f"an answer, content as {name}", [chat(messages)], ANSWERED)
    for model in ("codellama70b", "gpt-3.5-turbo-instruct"):
        yield Case(FILE, f"the model name {model} is not looked at", [chat(model=model)], ANSWERED)
    stop = {**ANSWERED, "usage.completion_tokens": between(1, 128)}
    stop["choices.0.finish_reason"] = matching("stop|length")
    yield Case(FILE, "128 tokens", [chat(CODER, max_tokens=128)], stop)
    for text in ("1 2 3 4 5 6", "1 2 3 4 5 9", "1 2 3 9 9 9"):
        first, then = (
            chat([{"role": "system", "content": "Test"}, {"role": "user", "content": one}])
            for one in ("1 2 3 4 5 6", text)
        )
        yield Case(FILE, f"cached tokens after {text}", [first, then], {}, cached_part)
    yield from chat_streams()
    yield from prefills()
    yield from formats()
    yield from invalid_turns()
    yield from logprobs()
    yield from chat_rest()


def cached_part(replies: list[Reply]) -> bool:
    """As much of the prompt was reused as both have in common, all but the last token at most."""
    whole, reused = (
        replies[-1].at(f"usage.{name}")
        for name in ("prompt_tokens", "prompt_tokens_details.cached_tokens")
    )
    return 0 < reused < whole


def one_stream(replies: list[Reply]) -> bool:
    """One id; the role in the first event alone; the last choice has a reason and no text."""
    events = replies[-1].body["events"]
    choices = [event["choices"][0] for event in events if event["choices"]]
    roles = ["role" in choice["delta"] for choice in choices]
    ends = [choice["finish_reason"] for choice in choices]
    return (
        len({event["id"] for event in events}) == 1
        and roles == [True, *[False] * (len(roles) - 1)]
        and ends[-1] is not None
        and set(ends[:-1]) == {None}
        and "content" not in choices[-1]["delta"]
    )


def chat_streams() -> Iterator[Case]:
    wants = {
        "events.0.choices.0.delta": {"role": "assistant", "content": None},
        "events": each(leading_to("system_fingerprint", FINGERPRINT)),
        "text": TEXT,
    }
    for messages, limit in ((BOOK, 8), (CODER, 128)):
        ask = chat(messages, max_tokens=limit, stream=True)
        yield Case(FILE, f"a stream of at most {limit} tokens", [ask], wants, one_stream)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    timed = {
        "events.0.timings": NOT_GIVEN,
        "events.-1.choices": [],
        "events.-1.usage.completion_tokens": between(1, 10),
        "events.-1.timings.prompt_per_second": between(0, 1e9),
        "events.-1.timings.predicted_n": between(1, 10),
    }
    ask = chat(max_tokens=10, timings_per_token=True, **usage)
    yield Case(FILE, "timings in a stream", [ask], timed)
    for n in (1, 2):
        ask = chat([{"role": "user", "content": "This is a test" * 10}], stream=True)
        ask = replace(ask, body={**ask.body, "return_progress": True})
        yield Case(FILE, f"progress of the prompt, request {n}", [ask] * n, {}, progressed)


def progressed(replies: list[Reply]) -> bool:
    events = replies[-1].body["events"]
    seen = [one["prompt_progress"] for one in events if "prompt_progress" in one]
    counts = [one["processed"] for one in seen]
    return bool(seen) and counts == sorted(counts) and counts[-1] == seen[-1]["total"] > 0


def prefills() -> Iterator[Case]:
    def template(content: Any, **members: Any) -> list[Step]:
        turns = [*BOOK, {"role": "assistant", "content": content}]
        return [Ask("/apply-template", {"messages": turns, **members})]

    ends = {"prompt": matching(r"assistant\nWhill$")}
    whole = {"add_generation_prompt": False, "continue_final_message": True}
    yield Case(FILE, "a last assistant turn is continued", template("Whill"), ends)
    joined = {"prompt": matching(r"assistant\nWh\n\n?ill$")}
    yield Case(FILE, "a last assistant turn of parts", template(parted("Wh", "ill")), joined)
    yield Case(FILE, "continue_final_message", template("Whill", **whole), ends)
    turns = [*BOOK, {"role": "assistant", "content": "x"}]
    both = chat(turns, add_generation_prompt=True, continue_final_message=True)
    yield Case(FILE, "both ways to end a prompt exclude each other", [both], BAD)
    turns = [dict(BOOK[0], content="You are a test."), dict(BOOK[1], content="Hi there")]
    spelled = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)
    wants = {"prompt": f"{spelled}<|im_start|>assistant\n"}
    yield Case(FILE, "the prompt of a chat", [Ask("/apply-template", {"messages": turns})], wants)


def formats() -> Iterator[Case]:
    answer = "choices.0.message.content"
    kinds: list[tuple[Any, str | None]] = [
        ({"type": "json_object", "schema": {"const": "42"}}, '^"42"$'),
        ({"type": "json_object", "schema": {"items": [{"type": "integer"}]}}, r"^\["),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "foooooo"}}}, '^"foooooo"$'),
        ({"type": "json_object"}, r"^\s*\{"),
        ({"type": "sound"}, None),
        ({"type": "json_object", "schema": 123}, None),
        ({"type": "json_object", "schema": {"type": 123}}, None),
        ({"type": "json_object", "schema": {"type": "hiccup"}}, None),
    ]
    for format_, pattern in kinds:
        wants = BAD if pattern is None else {answer: matching(pattern)}
        ask = chat(CODER, response_format=format_, max_tokens=16)
        yield Case(FILE, f"response_format {format_}", [ask], wants)
    ask = chat(CODER, json_schema={"const": "42"})
    yield Case(FILE, "json_schema", [ask], {answer: matching('"42"')})
    ask = chat(CODER, grammar='root ::= "a"{5,5}')
    yield Case(FILE, "grammar", [ask], {answer: matching("^a{5}$")})
    ask = chat(CODER, grammar="root ::= (open")
    yield Case(FILE, "a grammar that is none", [ask], BAD)


def invalid_turns() -> Iterator[Case]:
    turn = {"role": "assistant", "content": "test"}
    user = {"role": "user", "content": "test"}
    for messages in (
        *(None, "string", [123], [{}], [{"role": 123}], [{"role": "system", "content": 123}]),
        *([user, {}], [user, turn, turn]),
    ):
        yield Case(FILE, f"messages {messages}", [Ask(CHAT, {"messages": messages})], REFUSED)


def spells(replies: list[Reply]) -> bool:
    """The tokens of the log-probabilities add up to the text."""
    body = replies[-1].body
    choices = [event["choices"][0] for event in body.get("events", [body]) if event["choices"]]
    found = [(one.get("logprobs") or {}).get("content") or [] for one in choices]
    tokens = [token for one in found for token in one]
    text = body["text"] if "events" in body else choices[0]["message"]["content"]
    holds = [one["logprob"] <= 0 and one["bytes"] and one["top_logprobs"] for one in tokens]
    return bool(tokens) and all(holds) and "".join(one["token"] for one in tokens) == text


def logprobs() -> Iterator[Case]:
    for stream in (False, True):
        ask = chat(max_tokens=5, logprobs=True, top_logprobs=10, stream=stream)
        yield Case(FILE, f"logprobs, stream {stream}", [ask], {}, spells)


EXCLUDED = (
    *("the", "The", "to", "a", "an", "be", "is", "was", "but", "and", "And", "you", "You"),
    *("he", "He", "she", "it", "It", "his", "His", "her", "book"),
)


def without_excluded(replies: list[Reply]) -> bool:
    body = replies[-1].body
    text = body["content"] if "content" in body else body["choices"][0]["message"]["content"]
    return bool(text) and not any(f" {word} " in text for word in EXCLUDED)


def excluded_ids(replies: list[Reply]) -> list[int]:
    return list(replies[0].body["tokens"])


SPELLED = Ask("/tokenize", {"content": f" {' '.join(EXCLUDED)} "})


def chat_rest() -> Iterator[Case]:
    def biased(replies: list[Reply]) -> Ask:
        bias = {str(token): -100 for token in excluded_ids(replies)}
        return chat(max_tokens=64, logit_bias=bias)

    yield Case(FILE, "logit_bias", [SPELLED, biased], {}, without_excluded)
    exceeded = {
        "status": 400,
        "error.type": "exceed_context_size_error",
        "error.n_prompt_tokens": between(257, 1e6),
        "error.n_ctx": 256,
    }
    for stream in (False, True):
        ask = chat(BOOK * 100, stream=stream)
        yield Case(FILE, f"more than the context, stream {stream}", [ask], exceeded)
    two = {"choices": of_length(2, 2), "choices.1.message.role": "assistant"}
    yield Case(FILE, "two answers", [chat(n=2)] * 2, two)
    ask = Ask(f"{CHAT}/input_tokens", {"messages": BOOK})
    yield Case(FILE, "the tokens of a chat", [ask] * 2, {"input_tokens": between(6, 100)})
    for verbose in (True, False):
        wants = {"__verbose.prompt": matching("Book")} if verbose else {"__verbose": NOT_GIVEN}
        yield Case(FILE, f"verbose {verbose}", [chat(max_tokens=2, verbose=verbose)], wants)
