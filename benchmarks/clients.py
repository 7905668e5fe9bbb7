"""Do real clients work with the daemon: chat, history, stream, structured output, listing?

Why it exists: a client's own habits (no Content-Type, empty strings, integer bounds) are seen only
when that client runs. Flows in: --python, an interpreter of an environment that has the Python
clients, and --node, a directory whose node_modules has the Node clients. Flows out: a table, and as
the last line one JSON document. Exit status 1 when a check fails. What is not installed is shown
and not counted. The checks are in client_cases.py and client_cases.mjs. Not here: tools, embeddings
and images, which the daemon refuses.

On PyPI: openai ollama litellm langchain-openai langchain-ollama llama-index-llms-ollama
llama-index-llms-openai-like pydantic-ai-slim[openai] instructor llm. On npm: openai ollama ai zod
@ai-sdk/openai @ai-sdk/openai-compatible ai-sdk-ollama @langchain/openai @langchain/ollama
@langchain/core.

    .venv/bin/python benchmarks/clients.py --python CLIENTS/bin/python --node NODE_DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client_cases import CLIENTS
from servers import Server, edge_agent, register

HERE = Path(__file__).resolve().parent
KINDS = ("chat", "history", "stream", "structured", "formats", "list")
CLIENT_S = 240.0


@dataclass(frozen=True)
class Row:
    """One client: `ok` or an error for each check; `missing` says why it did not run."""

    client: str
    version: str = ""
    missing: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)


def commands(python: str | None, node: Path | None) -> Iterator[tuple[str, list[str], Path]]:
    """(client, command, working directory) of every client."""
    for name in CLIENTS if python else ():
        yield name, [str(python), str(HERE / "client_cases.py"), name], HERE
    if node is not None:
        script = shutil.copy(HERE / "client_cases.mjs", node)
        for name in re.findall(r'^  "(.+)": \[', Path(script).read_text(), re.MULTILINE):
            yield name, ["node", script, name], node


def run(client: str, command: list[str], directory: Path, env: dict[str, str]) -> Row:
    try:
        done = subprocess.run(
            command, cwd=directory, env=env, capture_output=True, text=True, timeout=CLIENT_S
        )
    except subprocess.TimeoutExpired as error:
        return Row(client, outcomes={"all": f"no end within {error.timeout:g} s"})
    lines = [json.loads(line) for line in done.stdout.split("\n") if line.startswith('{"')]
    if not lines:
        return Row(client, outcomes={"all": done.stderr[-300:]})
    outcomes = {line["check"]: line["outcome"] for line in lines if "check" in line}
    return Row(client, lines[0].get("version", ""), lines[0].get("missing", ""), outcomes)


def measure(server: Server, model: str, options: argparse.Namespace) -> list[Row]:
    base = f"http://127.0.0.1:{server.address.port}"
    env = {**os.environ, "BASE_URL": base, "TOKEN": server.address.token or "", "MODEL": model}
    rows = []
    for client, command, directory in commands(options.python, options.node):
        if options.only and options.only not in client:
            continue
        rows.append(run(client, command, directory, env))
        print(f"  {client}: {'missing' if rows[-1].missing else marks(rows[-1])}", file=sys.stderr)
    return rows


def marks(row: Row) -> str:
    return " ".join(
        f"{kind}={'ok' if text == 'ok' else 'FAILS'}" for kind, text in row.outcomes.items()
    )


def table(rows: list[Row]) -> str:
    """Markdown: a line for each client, then the errors."""
    lines = [f"| client | version | {' | '.join(KINDS)} | other |", "|---" * (len(KINDS) + 3) + "|"]
    errors = []
    for row in rows:
        cells = [short(row.outcomes.get(kind)) for kind in KINDS]
        other = [
            f"{kind} {short(text)}" for kind, text in row.outcomes.items() if kind not in KINDS
        ]
        version = "not installed" if row.missing else row.version
        lines.append(f"| {row.client} | {version} | {' | '.join(cells)} | {', '.join(other)} |")
        errors += [f"- {row.client}, {k}: {t}" for k, t in row.outcomes.items() if t != "ok"]
    return "\n".join([*lines, "", *errors])


def short(outcome: str | None) -> str:
    return {None: "-", "ok": "OK"}.get(outcome, "FAILS")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--python", help="interpreter of the environment with the Python clients")
    parser.add_argument("--node", type=Path, help="directory whose node_modules has the clients")
    parser.add_argument("--only", help="only clients whose name contains this text")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        state.mkdir()
        name, _ = register(options.model, state)
        with edge_agent(state, name) as server:
            rows = measure(server, name, options)
    texts = [text for row in rows for text in row.outcomes.values()]
    passed = sum(text == "ok" for text in texts)
    print(table(rows))
    print(
        f"\n{passed} of {len(texts)} checks of {sum(not row.missing for row in rows)} clients work"
    )
    document = {"passed": passed, "checks": len(texts), "clients": [vars(row) for row in rows]}
    print(json.dumps(document))
    return 0 if passed == len(texts) and texts else 1


if __name__ == "__main__":
    sys.exit(main())
