"""What one real Python client does with a server: chat, stream, structured output, listing.

Why it exists: benchmarks/clients.py runs this file once for each client, in an environment of the
user's that has those clients, so it imports nothing of edge-agent's. Flows in: the client's name
and the environment variables BASE_URL (http://host:port), TOKEN, MODEL. Flows out: one JSON line
for each check with its name and `ok` or an error. Not here: the server, the table.

    BASE_URL=http://127.0.0.1:9090 TOKEN=... MODEL=smollm2-135m python client_cases.py ollama
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BASE_URL, TOKEN, MODEL = (os.environ.get(name, "") for name in ("BASE_URL", "TOKEN", "MODEL"))
QUESTION = "Name the capital of France and guess how many people live there."
MESSAGES = [{"role": "user", "content": QUESTION}]
HISTORY = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "My name is Asha."},
    {"role": "assistant", "content": "Hello Asha."},
    {"role": "user", "content": "What is my name?"},
]
LIMIT = 48
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
Check = Callable[[], None]


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def is_text(text: object) -> None:
    """Raises ValueError for anything but a text that says something."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"no text came: {text!r}")


def is_stream(parts: Iterable[object]) -> None:
    """Raises ValueError unless two parts and more came that are a text together."""
    texts = [part for part in parts if isinstance(part, str) and part]
    if len(texts) < 2:
        raise ValueError(f"not a stream: {texts!r}")
    is_text("".join(texts))


def is_city(value: Any) -> None:
    """Raises ValueError for anything that the schema CITY does not allow."""
    found = json.loads(value) if isinstance(value, str) else value
    found = found.model_dump() if hasattr(found, "model_dump") else found
    if not isinstance(found["city"], str) or not isinstance(found["people"], int):
        raise ValueError(f"not of the schema: {found!r}")


def lists(names: Iterable[object]) -> None:
    """Raises ValueError when MODEL is not listed, with or without `:latest`."""
    found = [str(name).removesuffix(":latest") for name in names]
    if MODEL not in found:
        raise ValueError(f"{MODEL} is not in {found}")


def city_class() -> Any:
    from pydantic import Field, create_model

    short: Any = (str, Field(max_length=20))
    return create_model("City", city=short, people=(int, ...))


def visit_class() -> Any:
    """What people's classes have: an id, a date, a choice, a field that may be null."""
    from datetime import date
    from typing import Literal
    from uuid import UUID

    from pydantic import create_model

    kind: Any = (Literal["first", "again"], ...)
    paid: Any = (bool | None, ...)
    return create_model("Visit", id=(UUID, ...), day=(date, ...), kind=kind, paid=paid)


def openai_client() -> dict[str, Check]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{BASE_URL}/v1", api_key=TOKEN, max_retries=0)
    ask = client.chat.completions

    def stream() -> None:
        parts = ask.create(model=MODEL, messages=MESSAGES, max_tokens=LIMIT, stream=True)  # type: ignore
        is_stream(part.choices[0].delta.content for part in parts if part.choices)

    def chat(messages: Any) -> None:
        done = ask.create(model=MODEL, messages=messages, max_tokens=LIMIT)
        is_text(done.choices[0].message.content)

    def structured() -> None:
        done = ask.parse(
            model=MODEL, messages=MESSAGES, response_format=city_class(), max_tokens=LIMIT
        )
        is_city(done.choices[0].message.parsed)

    def formats() -> None:
        visit = visit_class()
        done = ask.parse(model=MODEL, messages=MESSAGES, response_format=visit, max_tokens=160)
        is_text(str(done.choices[0].message.parsed.id))

    return {
        "chat": lambda: chat(MESSAGES),
        "history": lambda: chat(HISTORY),
        "stream": stream,
        "structured": structured,
        "list": lambda: lists(model.id for model in client.models.list()),
        "formats": formats,
    }


def ollama_client() -> dict[str, Check]:
    from ollama import Client

    client = Client(host=BASE_URL, headers=bearer())
    options = {"num_predict": 160}

    def stream() -> None:
        parts = client.chat(MODEL, MESSAGES, options=options, stream=True)
        is_stream(part.message.content for part in parts)

    def structured() -> None:
        done = client.chat(MODEL, MESSAGES, format=CITY, options=options)
        is_city(done.message.content)

    def formats() -> None:
        visit = visit_class()
        done = client.chat(MODEL, MESSAGES, format=visit.model_json_schema(), options=options)
        is_text(str(visit.model_validate_json(done.message.content).id))

    return {
        "chat": lambda: is_text(client.chat(MODEL, MESSAGES, options=options).message.content),
        "history": lambda: is_text(client.chat(MODEL, HISTORY, options=options).message.content),
        "stream": stream,
        "structured": structured,
        "list": lambda: lists(model.model for model in client.list().models),
        "show": lambda: is_text(client.show(MODEL).modelinfo["general.architecture"]),  # type: ignore
        "formats": formats,
        "generate": lambda: is_text(client.generate(MODEL, QUESTION, options=options).response),
    }


def litellm_client(prefix: str) -> dict[str, Check]:
    import litellm

    base = BASE_URL if prefix.startswith("ollama") else f"{BASE_URL}/v1"
    common: dict[str, Any] = {
        "model": f"{prefix}/{MODEL}",
        "api_base": base,
        "api_key": TOKEN,
        "max_tokens": LIMIT,
        "num_retries": 0,
    }

    def stream() -> None:
        parts = litellm.completion(messages=MESSAGES, stream=True, **common)
        is_stream(part.choices[0].delta.content for part in parts)

    def chat(messages: Any) -> None:
        is_text(litellm.completion(messages=messages, **common).choices[0].message.content)

    def structured() -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
        done = litellm.completion(messages=MESSAGES, response_format=wanted, **common)
        is_city(done.choices[0].message.content)

    return {
        "chat": lambda: chat(MESSAGES),
        "history": lambda: chat(HISTORY),
        "stream": stream,
        "structured": structured,
    }


def langchain_client(kind: str) -> dict[str, Check]:
    model: Any
    if kind == "openai":
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(
            model=MODEL,
            base_url=f"{BASE_URL}/v1",
            api_key=TOKEN,  # type: ignore
            max_tokens=LIMIT,  # type: ignore
            max_retries=0,
        )
    else:
        from langchain_ollama import ChatOllama

        model = ChatOllama(
            model=MODEL,
            base_url=BASE_URL,
            client_kwargs={"headers": bearer()},
            num_predict=LIMIT,
        )
    turns = [(message["role"], message["content"]) for message in HISTORY]
    typed = model.with_structured_output(city_class(), method="json_schema")
    return {
        "chat": lambda: is_text(model.invoke(QUESTION).content),
        "history": lambda: is_text(model.invoke(turns).content),
        "stream": lambda: is_stream(part.content for part in model.stream(QUESTION)),
        "structured": lambda: is_city(typed.invoke(QUESTION)),
    }


def llama_index_client(kind: str) -> dict[str, Check]:
    from llama_index.core.llms import ChatMessage

    model: Any
    if kind == "openai-like":
        from llama_index.llms.openai_like import OpenAILike

        model = OpenAILike(
            model=MODEL,
            api_base=f"{BASE_URL}/v1",
            api_key=TOKEN,
            is_chat_model=True,
            max_tokens=LIMIT,
            should_use_structured_outputs=True,
            max_retries=0,
        )
    else:
        from llama_index.llms.ollama import Ollama
        from ollama import Client

        model = Ollama(
            model=MODEL,
            client=Client(host=BASE_URL, headers=bearer()),
            additional_kwargs={"num_predict": LIMIT},
            request_timeout=120.0,
        )
    turns = [ChatMessage(role=m["role"], content=m["content"]) for m in HISTORY]

    def structured() -> None:
        typed = model.as_structured_llm(city_class())
        is_city(typed.chat([ChatMessage(role="user", content=QUESTION)]).raw)

    return {
        "chat": lambda: is_text(model.chat(turns[1:2]).message.content),
        "history": lambda: is_text(model.chat(turns).message.content),
        "stream": lambda: is_stream(part.delta for part in model.stream_chat(turns[1:2])),
        "structured": structured,
    }


def pydantic_ai_client() -> dict[str, Check]:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{BASE_URL}/v1", api_key=TOKEN)
    model = OpenAIChatModel(MODEL, provider=provider)
    limit: Any = {"max_tokens": LIMIT}
    agent = Agent(model, model_settings=limit)

    def history() -> None:
        first = agent.run_sync("My name is Asha.")
        is_text(agent.run_sync("What is my name?", message_history=first.all_messages()).output)

    def stream() -> None:
        import asyncio

        async def parts() -> list[str]:
            async with agent.run_stream(QUESTION) as running:
                return [part async for part in running.stream_text(delta=True, debounce_by=None)]

        is_stream(asyncio.run(parts()))

    def structured() -> None:
        typed: Any = Agent(model, output_type=NativeOutput(city_class()), model_settings=limit)
        is_city(typed.run_sync(QUESTION).output)

    return {
        "chat": lambda: is_text(agent.run_sync(QUESTION).output),
        "history": history,
        "stream": stream,
        "structured": structured,
    }


def instructor_client() -> dict[str, Check]:
    import instructor
    from openai import OpenAI

    def structured(mode: Any) -> None:
        plain = OpenAI(base_url=f"{BASE_URL}/v1", api_key=TOKEN, max_retries=0)
        client = instructor.from_openai(plain, mode=mode)
        found = client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,  # type: ignore
            response_model=city_class(),
            max_tokens=LIMIT,
            max_retries=0,
        )
        is_city(found)

    return {"structured": lambda: structured(instructor.Mode.JSON_SCHEMA)}


def llm_client() -> dict[str, Check]:
    """The `llm` command with a model of its extra-openai-models.yaml."""
    home = Path(tempfile.mkdtemp())
    row = {
        "model_id": "edge",
        "model_name": MODEL,
        "api_base": f"{BASE_URL}/v1",
        "api_key_name": "edge",
        "supports_schema": True,
    }
    (home / "extra-openai-models.yaml").write_text(json.dumps([row]))
    (home / "keys.json").write_text(json.dumps({"edge": TOKEN}))

    def ask(*arguments: str) -> str:
        command = [str(Path(sys.executable).parent / "llm"), *arguments]
        env = {**os.environ, "LLM_USER_PATH": str(home)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        if done.returncode:
            raise ValueError(done.stderr[-300:] or done.stdout[-300:])
        return done.stdout

    common = ("-m", "edge", "-o", "max_tokens", str(LIMIT), QUESTION)
    return {
        "chat": lambda: is_text(ask("--no-stream", *common)),
        "stream": lambda: is_text(ask(*common)),
        "structured": lambda: is_city(ask("--schema", json.dumps(CITY), *common)),
        "history": lambda: is_text(ask("-c", *common)),
    }


CLIENTS: dict[str, tuple[str, Callable[[], dict[str, Check]]]] = {
    "openai": ("openai", openai_client),
    "ollama": ("ollama", ollama_client),
    "litellm openai/": ("litellm", lambda: litellm_client("openai")),
    "litellm hosted_vllm/": ("litellm", lambda: litellm_client("hosted_vllm")),
    "litellm ollama/": ("litellm", lambda: litellm_client("ollama")),
    "litellm ollama_chat/": ("litellm", lambda: litellm_client("ollama_chat")),
    "langchain-openai": ("langchain-openai", lambda: langchain_client("openai")),
    "langchain-ollama": ("langchain-ollama", lambda: langchain_client("ollama")),
    "llama-index openai-like": (
        "llama-index-llms-openai-like",
        lambda: llama_index_client("openai-like"),
    ),
    "llama-index ollama": ("llama-index-llms-ollama", lambda: llama_index_client("ollama")),
    "pydantic-ai": ("pydantic-ai-slim", pydantic_ai_client),
    "instructor": ("instructor", instructor_client),
    "llm": ("llm", llm_client),
}
"""Name in the table -> (package on PyPI, what makes its checks)."""


def outcome(check: Check) -> str:
    """`ok`, or what the client raised, in one line."""
    try:
        check()
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return "ok"


def main(name: str) -> None:
    package, make = CLIENTS[name]
    try:
        checks = make()
        version = importlib.metadata.version(package)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print(json.dumps({"version": version}), flush=True)
    for kind, check in checks.items():
        print(json.dumps({"check": kind, "outcome": outcome(check)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
