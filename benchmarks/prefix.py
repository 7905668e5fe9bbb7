"""Does the second turn of a chat prefill only the new tokens?

This program starts a daemon and sends a first turn of more than 500 tokens, its answer, and a short
second question. Printed: the tokens of turn two, how many of them came from the prefix cache, and
the time to first token beside that of the same turn with cache_prompt false. Exit status 1 when
more was prefilled than the question and the template's tokens around it.

    .venv/bin/python benchmarks/prefix.py --model embedded:smollm2-135m     # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from servers import BenchmarkError, edge_agent, register
from stream_client import Address, StreamResult, ask_json, stream

NOTES = "\n".join(
    f"{hour:02}:00 hall {hour * 7 % 11}: pump {hour * 5 % 9} ran {hour * 13 % 60} minutes."
    for hour in range(34)
)
FIRST = f"Here is the log of one day.\n{NOTES}\nSay in one sentence what it is about."
SECOND = "Which hall comes first in it?"
# Control tokens, role names and newlines around a turn, the end of the last answer, and one or two
# of the answer's tokens: read back as text, its end may be tokenized differently.
TEMPLATE_TOKENS = 16
MAX_TOKENS = 48


def turn(address: Address, model: str, texts: list[str], cache_prompt: bool) -> StreamResult:
    """One chat request; `texts` alternate between user and assistant. Raises BenchmarkError."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    body = {"model": model, "messages": messages, "max_tokens": MAX_TOKENS, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "seed": 1, "cache_prompt": cache_prompt}
    result = stream(address, "/v1/chat/completions", body)
    if result.ending != "complete" or not result.piece_s:
        raise BenchmarkError(f"a chat turn ended {result.ending}: {result.detail}")
    return result


def cached_tokens(result: StreamResult) -> int:
    return int((result.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def measure(address: Address, model: str) -> dict[str, Any]:
    turn(address, model, ["Hello"], cache_prompt=False)
    first = turn(address, model, [FIRST], cache_prompt=True)
    texts = [FIRST, first.text, SECOND]
    second = turn(address, model, texts, cache_prompt=True)
    cold = turn(address, model, texts, cache_prompt=False)
    _, question = ask_json(address, "/tokenize", {"content": SECOND})
    return {
        "first_prompt_tokens": first.prompt_tokens,
        "first_completion_tokens": first.completion_tokens,
        "second_prompt_tokens": second.prompt_tokens,
        "second_cached_tokens": cached_tokens(second),
        "second_prefilled_tokens": second.prompt_tokens - cached_tokens(second),
        "question_tokens": len(question["tokens"]),
        "ttft_first_s": first.ttft_s,
        "ttft_second_s": second.ttft_s,
        "ttft_second_without_cache_s": cold.ttft_s,
    }


def met(report: dict[str, Any]) -> bool:
    allowed = report["question_tokens"] + TEMPLATE_TOKENS
    return report["first_prompt_tokens"] >= 500 and report["second_prefilled_tokens"] <= allowed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m", help="what `pull` takes")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-prefix-") as scratch:
            model, _ = register(args.model, Path(scratch))
            with edge_agent(Path(scratch), model) as server:
                report = measure(server.address, model)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        "turn 1: {first_prompt_tokens} prompt tokens, first token after {ttft_first_s:.3f} s\n"
        "turn 2: {second_prompt_tokens} prompt tokens, {second_cached_tokens} cached, "
        "{second_prefilled_tokens} prefilled (the question alone: {question_tokens}), "
        "first token after {ttft_second_s:.3f} s\n"
        "turn 2 without the cache: first token after {ttft_second_without_cache_s:.3f} s".format(
            **report
        )
    )
    report |= {"benchmark": "prefix", "model": model, "met": met(report)}
    print(json.dumps(report))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
