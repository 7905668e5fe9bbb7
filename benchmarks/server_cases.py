"""How many of llama-server's own test cases does the daemon answer as llama-server does?

Why it exists: programs written for llama-server rely on what its tests promise. The cases of
llama.cpp's tools/server/tests/unit are told anew in server_cases_chat.py and server_cases_rest.py:
requests, and what the answers must hold, for SmolLM2 in place of its test models. Flows in: the
daemon, started here with 256 tokens a slot, or --url, any server (a llama-server with the same
context is the control). Flows out: by file, the cases and how they ended; as the last line one JSON
document. A case ends as pass; refused (an error whose text names a member of the request); missing
(no such route); or differ. Not here: what needs another start option or model (--left-out lists).

    .venv/bin/python benchmarks/server_cases.py
    llama-server -m smollm2.gguf -c 512 -np 2 --no-kv-unified --api-key KEY --slots
    .venv/bin/python benchmarks/server_cases.py --url http://127.0.0.1:8080 --token KEY
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from server_case import Ask, Case, Reply
from server_cases_chat import chats
from server_cases_rest import LEFT_OUT, completion, ctx_shift, security, template, tokenize
from servers import edge_agent, register

ENDINGS = ("pass", "refused", "differ", "missing")
TIMEOUT_S = 180.0
TABLES = (chats, completion, tokenize, template, security, ctx_shift)
N_CTX = 256
SLOTS = 2


@dataclass(frozen=True)
class Target:
    """A server with its bearer token."""

    host: str
    port: int
    token: str

    def send(self, ask: Ask) -> Reply:
        """One request; a stream is read to its end. Raises OSError, HTTPException, ValueError."""
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        sent = {**given, **ask.headers}.items()
        headers = {k: v.format(token=self.token) for k, v in sent if v is not None}
        data = None if ask.body is None else json.dumps(ask.body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=ask.timeout_s)
        try:
            connection.request(ask.method, ask.path, data, headers)
            response = connection.getresponse()
            raw = response.read()
            kind = response.getheader("Content-Type") or ""
            body = events_of(raw) if "event-stream" in kind else json_or_text(raw)
            heads = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, heads, body)
        except TimeoutError:
            if not ask.may_end_early:
                raise
            return Reply(0, {}, {})
        finally:
            connection.close()


def events_of(raw: bytes) -> dict[str, Any]:
    """{"events": its documents, "text": their pieces joined}. Raises ValueError."""
    lines = [line[5:].strip() for line in raw.decode().split("\n") if line.startswith("data:")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    return {"events": events, "text": "".join(piece_of(event) for event in events)}


def piece_of(event: dict[str, Any]) -> str:
    """The text of an event, of whichever route."""
    (choice,) = event.get("choices") or [{}]
    piece = choice.get("text") or (choice.get("delta") or {}).get("content")
    return piece or event.get("content") or ""


def json_or_text(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return {"text": raw.decode("utf-8", "replace")}


def run_case(target: Target, case: Case, pool: Executor) -> tuple[str, str]:
    """(ending, what was found)."""
    asks: list[Ask] = []
    replies: list[Reply] = []
    try:
        for step in case.steps:
            given = step if isinstance(step, list) else [step(replies) if callable(step) else step]
            asks += given
            replies += pool.map(target.send, given)
        found = list(case.faults(replies))
    except (OSError, http.client.HTTPException, LookupError, TypeError, ValueError) as error:
        last = f", after {replies[-1].short()}" if replies else ""
        found = [f"{type(error).__name__}: {error}{last}"]
    if not found:
        return "pass", ""
    wants_error = "status" in case.wants and replies[-1:] and replies[-1].status >= 400
    ending = ending_of(asks, replies)
    return "differ" if wants_error and ending == "refused" else ending, "; ".join(found)


def ending_of(asks: Sequence[Ask], replies: Sequence[Reply]) -> str:
    """What a case that failed is called: by the first refusal's words, if there is one."""
    bad = next((reply for reply in replies if reply.status >= 400), None)
    if bad is None:
        return "differ"
    said = json.dumps(bad.body)
    if bad.status in (404, 405) and ("is not served" in said or "not_found_error" in said):
        return "missing"
    names = {name for ask in asks for name in ask.names}
    is_named = any(re.search(rf"\b{re.escape(name)}\b", said) for name in names)
    return "refused" if is_named else "differ"


def measure(target: Target, only: str) -> list[tuple[Case, str, str]]:
    rows = []
    for case in (case for table in TABLES for case in table()):
        if only in f"{case.file} {case.name}":
            with ThreadPoolExecutor(8) as pool:
                rows.append((case, *run_case(target, case, pool)))
    return rows


def report(rows: Sequence[tuple[Case, str, str]], show: Callable[[str], None]) -> dict[str, Any]:
    """Print the table and each case that does not pass; returns the document."""
    files = list(dict.fromkeys(case.file for case, *_ in rows))
    counts = {
        name: {end: sum(e == end for c, e, _ in rows if c.file == name) for end in ENDINGS}
        for name in files
    }
    show(f"| file | cases | {' | '.join(ENDINGS)} |\n|---{'|---' * (1 + len(ENDINGS))}|")
    total = {end: sum(one[end] for one in counts.values()) for end in ENDINGS}
    for name, ends in [*counts.items(), ("all", total)]:
        show(f"| {name} | {sum(ends.values())} | {' | '.join(str(n) for n in ends.values())} |")
    for case, end, found in rows:
        if end != "pass":
            show(f"- {case.file}, {case.name}: {end}: {found[:300]}")
    listed = [{"file": c.file, "name": c.name, "ending": e, "found": f} for c, e, f in rows]
    return {"total": total, "files": counts, "left_out": len(LEFT_OUT), "cases": listed}


@contextmanager
def target_of(options: argparse.Namespace) -> Iterator[Target]:
    """The server of --url, or a daemon that runs for as long as the cases do."""
    if options.url:
        url = urlsplit(options.url)
        yield Target(url.hostname or "127.0.0.1", url.port or 80, options.token)
        return
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory) / "state"
        state.mkdir()
        name, _ = register(options.model, state)
        with edge_agent(state, name, {"ctx": N_CTX, "slots": SLOTS}) as server:
            yield Target(server.address.host, server.address.port, server.address.token or "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--url", help="a server that runs already, such as http://127.0.0.1:8080")
    parser.add_argument("--token", default="", help="its bearer token")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--only", default="", help="cases whose file or name contains this text")
    parser.add_argument("--json", action="store_true", help="print the JSON document alone")
    parser.add_argument("--left-out", action="store_true", help="list what is not asked, and why")
    options = parser.parse_args()
    if options.left_out:
        print("\n".join(LEFT_OUT))
        return 0
    with target_of(options) as target:
        rows = measure(target, options.only)
    document = report(rows, (lambda text: None) if options.json else print)
    cases = document.pop("cases")
    print(
        json.dumps({**document, "cases": cases}, indent=1) if options.json else json.dumps(document)
    )
    return 0 if document["total"]["differ"] == document["total"]["missing"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
