"""run: one prompt, one answer, streamed to stdout as it comes.

Flows in: MODEL, PROMPT, standard input, sampling flags. Flows out: the answer on stdout (or one
JSON document), notes and timings on stderr. Not here: conversations (chat.py).
"""

from __future__ import annotations

import json
import os
import select
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from edge_agent.cli.commands.persona import read_text, system_prompt
from edge_agent.cli.options import Options, SettingFlags, complete_model, flag_error
from edge_agent.cli.terminal import Terminal
from edge_agent.cli.timing_block import load_s_since, ready_worker, timing_block
from edge_agent.client.connection import Client, Ending, find_daemon
from edge_agent.client.models import DaemonModels
from edge_agent.errors import EdgeAgentError, ModelNotFound, TemplateError, UsageError

if TYPE_CHECKING:
    from edge_agent.setting import Setting

STDIN_PATIENCE_S = 3.0


SAMPLING = ("temperature", "top_p", "top_k", "seed", "max_tokens")


def _declared() -> Mapping[str, Setting]:
    from edge_agent.sampling_bounds import SAMPLING_BOUNDS

    return SAMPLING_BOUNDS


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """None: the daemon's default."""

    first: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model.", autocompletion=complete_model),
    ] = None
    second: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to ask.")] = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="Continue PROMPT as it is, control tokens included: no template."
        ),
    ] = False
    system: Annotated[
        str | None, typer.Option(help="Persona: text, or a file.", metavar="TEXT|FILE")
    ] = None
    sampling: Annotated[dict[str, Any], SettingFlags(_declared, SAMPLING)] = field(
        default_factory=dict
    )
    format: Annotated[
        str | None,
        typer.Option(help="json, or a file holding a JSON schema.", metavar="json|SCHEMA_FILE"),
    ] = None
    no_cache_prompt: Annotated[
        bool, typer.Option("--no-cache-prompt", help="Prefill everything (exact repetition).")
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print counts, durations and rates on stderr.")
    ] = False


@dataclass(frozen=True)
class Answered:
    text: str
    ending: Ending
    total_s: float
    load_s: float | None


def run(options: RunOptions, terminal: Terminal) -> int:
    """Ask once and print the answer.

    With two arguments the first is MODEL: a name, NAME:ADAPTER, or NAME:base. A single argument is
    PROMPT, for the default model; but when text comes on standard input it is MODEL if a model of
    that name is registered. Standard input is put after PROMPT, with an empty line between.

    Examples:
      edge-agent run smollm2-135m "Name three rivers."
      cat report.txt | edge-agent run smollm2-135m "Summarize:"
      edge-agent run --raw gemma3-270m "The capital of India is" --max-tokens 16
      edge-agent run "List two colours." --format schema.json --json
    """
    numbers = _numbers(options.sampling)
    client = find_daemon(options.state_dir, terminal.environ)
    given = [text for text in (options.first, options.second) if text is not None]
    piped = read_stdin(terminal.stdin, terminal.note)
    model, prompt = model_and_prompt(given, piped, DaemonModels(client).has)
    path, body = request(options, numbers, model, prompt)
    if not options.raw and (note := base_model_note(client, model)):
        terminal.note(note)
    try:
        answer = _ask(client, path, body, options, terminal)
    except (TemplateError, ModelNotFound) as error:
        raise with_model_hint(error, model) from error
    if options.json:
        terminal.document(_document(answer))
    return 0


def model_and_prompt(
    given: list[str], piped: str | None, is_model: Callable[[str], bool]
) -> tuple[str | None, str]:
    """MODEL (None: the default) and the whole prompt, by the rule in `run`. Raises UsageError.

    `piped` is None when standard input is a terminal; `is_model` is asked only when
    the answer matters.

    >>> model_and_prompt(["m", "Shorten:"], "long text", lambda name: name == "m")
    ('m', 'Shorten:\\n\\nlong text')
    >>> model_and_prompt(["m"], "long text", lambda name: name == "m")
    ('m', 'long text')
    >>> model_and_prompt(["Hello"], None, lambda name: name == "m")
    (None, 'Hello')
    """
    if len(given) == 2:
        model, parts = given[0], given[1:]
    elif given and " " not in given[0] and is_model(given[0]):
        model, parts = given[0], []
    else:
        model, parts = None, given
    prompt = "\n\n".join(part for part in [*parts, piped or ""] if part.strip())
    if not prompt:
        name = model or "MODEL"
        hint = f'edge-agent run {name} "PROMPT", or `edge-agent chat {name}` to converse'
        raise UsageError("no prompt", "", hint)
    return model, checked_text(prompt)


def checked_text(text: str) -> str:
    """Raises UsageError for bytes on the command line that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"character {error.start} is not UTF-8"
        raise UsageError("the prompt cannot be sent", why, "pass UTF-8 text") from error
    return text


def request(
    options: RunOptions, numbers: Mapping[str, float], model: str | None, prompt: str
) -> tuple[str, dict[str, Any]]:
    """Path and body of the request. Raises UsageError."""
    fields: dict[str, Any] = {
        "model": model,
        **numbers,
        "cache_prompt": False if options.no_cache_prompt else None,
        "response_format": response_format(options.format),
    }
    body = {name: value for name, value in fields.items() if value is not None}
    if options.raw:
        if options.system:
            why = "plain text has no turns to put it in"
            raise UsageError("--system cannot be used with --raw", why, "write it into PROMPT")
        return "/v1/completions", {**body, "prompt": prompt}
    system = checked_text(system_prompt(options.system))
    head = [{"role": "system", "content": system}] if system else []
    messages = [*head, {"role": "user", "content": prompt}]
    return "/v1/chat/completions", {**body, "messages": messages}


def _numbers(typed: Mapping[str, str]) -> dict[str, float]:
    """Sampling settings by name, from the text of their flags. Raises UsageError."""
    from edge_agent.setting import WrongSetting

    declared = _declared()
    try:
        return {name: declared[name].number(text) for name, text in typed.items()}
    except WrongSetting as wrong:
        raise flag_error(declared[wrong.name], typed[wrong.name], wrong) from wrong


def response_format(value: str | None) -> dict[str, Any] | None:
    """OpenAI's response_format for --format. Raises UsageError."""
    if value is None:
        return None
    if value == "json":
        return {"type": "json_object"}
    try:
        schema = json.loads(read_text(Path(value)))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--format {value} is not JSON", str(error), "correct that line"
        ) from error
    if not isinstance(schema, dict):
        raise UsageError(f"--format {value} is not a JSON schema", "a schema is a JSON object")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def read_stdin(stdin: TextIO, note: Callable[[str], None]) -> str | None:
    """What was piped in or redirected from a file; None for a terminal. Raises UsageError.

    /dev/null and other devices count as empty: services and cron start commands that way. A pipe
    nobody writes to is waited for, and after a while that is said.
    """
    if stdin.isatty():
        return None
    try:
        descriptor = stdin.fileno()
    except (OSError, ValueError):
        return stdin.read()
    if stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return ""
    if not select.select([descriptor], [], [], STDIN_PATIENCE_S)[0]:
        note("note: waiting for text on standard input (end it, or start with </dev/null)")
    try:
        return stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        hint = "pipe text, not a binary file"
        raise UsageError("standard input cannot be read", why, hint) from error


def with_model_hint(error: EdgeAgentError, model: str | None) -> EdgeAgentError:
    """What to do about a base model, or about a name that is not registered yet."""
    from edge_agent.models.embedded import EMBEDDED

    if isinstance(error, TemplateError):
        hint = f"a base model completes text: edge-agent run --raw {model or 'MODEL'} PROMPT"
        return TemplateError(error.what, error.why, hint)
    if model in EMBEDDED:
        return ModelNotFound(error.what, error.why, f"edge-agent pull embedded:{model}")
    return error


def base_model_note(client: Client, model: str | None) -> str:
    """A warning when the model's file has no chat template; "" when it has, or nobody knows.

    The daemon then uses the template of the model's family, which a model that has not learned to
    converse answers with loops.
    """
    try:
        found = DaemonModels(client).details(model)
    except EdgeAgentError:
        return ""
    if found.chat_template:
        return ""
    may_be = "has no chat template and may be a base model"
    return f"note: {found.name} {may_be}; `run --raw` completes text"


def _ask(
    client: Client, path: str, body: dict[str, Any], options: RunOptions, terminal: Terminal
) -> Answered:
    is_measured = options.verbose or options.json
    worker = ready_worker(client) if is_measured else None
    started = time.monotonic()
    text, ending = _stream(client, path, body, None if options.json else terminal)
    total_s = time.monotonic() - started
    answer = Answered(text, ending, total_s, load_s_since(client, worker) if is_measured else None)
    if options.verbose:
        terminal.note("\n".join(timing_block(ending, total_s, answer.load_s)))
    elif ending.finish_reason == "length":
        terminal.note("note: the answer was cut at its token limit; --max-tokens N raises it")
    return answer


def _stream(
    client: Client, path: str, body: dict[str, Any], terminal: Terminal | None
) -> tuple[str, Ending]:
    pieces: list[str] = []
    ending = Ending("", "", {}, {})
    with closing(client.answer(path, body)) as stream:
        for piece in stream:
            if isinstance(piece, Ending):
                ending = piece
                continue
            pieces.append(piece)
            if terminal is not None:
                terminal.write(piece)
    text = "".join(pieces)
    if terminal is not None and not text.endswith("\n"):
        terminal.line()
    return text, ending


def _document(answer: Answered) -> dict[str, Any]:
    return {
        "model": answer.ending.model,
        "text": answer.text,
        "finish_reason": answer.ending.finish_reason,
        "usage": answer.ending.usage,
        "timings": {
            **answer.ending.timings,
            "total_s": answer.total_s,
            "load_s": answer.load_s,
        },
    }
