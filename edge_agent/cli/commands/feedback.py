"""feedback: add, list, rm, export, import: what was good, and what it should have been.

Flows in: an opinion about the last answer, numbers, JSONL. Flows out: rows, a table or one JSON
document. Not here: whether a daemon or the state directory itself is asked (client/feedback.py),
learning from it (adapt.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from edge_agent import atomic_file, json_lines
from edge_agent.cli.commands.run import checked_text
from edge_agent.cli.lesson_text import waiting_text
from edge_agent.cli.options import Options, add_command, command_group, complete_model
from edge_agent.cli.terminal import Terminal
from edge_agent.client.connection import find_daemon
from edge_agent.client.feedback import DaemonFeedback, open_feedback
from edge_agent.errors import UsageError

HELP = "Say which answers were good, and what the others should have been."
MAX_FILE_BYTES = 1024 * 1024
"""What the daemon takes at once (server/feedback.py)."""
SHOWN_CHARACTERS = 40
LEARN_NOTE = "learned when asked for: edge-agent adapt run --from feedback --name NAME"


@dataclass(frozen=True, kw_only=True)
class AddOptions(Options):
    correct: Annotated[
        str | None, typer.Option(help="What the answer should have been.", metavar="TEXT")
    ] = None
    up: Annotated[bool, typer.Option("--up", help="It was good as it was.")] = False
    down: Annotated[bool, typer.Option("--down", help="It was bad.")] = False
    id: Annotated[
        str | None, typer.Option(help="Another answer: the id of its response.", metavar="ID")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    model: Annotated[
        str | None,
        typer.Option(help="Only of MODEL.", metavar="MODEL", autocompletion=complete_model),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ListOptions(ModelOptions):
    n: Annotated[int, typer.Option("-n", help="The newest N.", metavar="N", min=1, max=10_000)] = 20


@dataclass(frozen=True, kw_only=True)
class RmOptions(Options):
    numbers: Annotated[
        list[int], typer.Argument(metavar="NUMBER...", help="As `list` shows them.", min=1)
    ]


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File [stdout].", metavar="FILE")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Options):
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSONL, {"messages": [...]} a line; - is stdin.')
    ]
    model: Annotated[
        str | None,
        typer.Option(
            help="Whose answers they are [configured or only one].",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None


def build_group() -> typer.Typer:
    """The commands below `edge-agent feedback`."""
    group = command_group(HELP)
    add_command(group, "add", AddOptions, add)
    add_command(group, "list", ListOptions, list_feedback)
    add_command(group, "rm", RmOptions, rm)
    add_command(group, "export", ExportOptions, export)
    add_command(group, "import", ImportOptions, import_rows)
    return group


def add(options: AddOptions, terminal: Terminal) -> int:
    """Correct or rate the last answer you got from the daemon.

    The daemon remembers the last answers in memory; what is said about one is stored. A newer word
    on the same question replaces the older one.

    Examples:
      edge-agent feedback add --correct "The capital of India is New Delhi."
      edge-agent feedback add --up
      edge-agent feedback add --down --id chatcmpl-0f6c1d2e
    """
    opinion = opinion_of(options)
    library = DaemonFeedback(find_daemon(options.state_dir, terminal.environ))
    row = library.add(opinion)
    waiting = library.waiting(row["model"])
    if options.json:
        terminal.document({"feedback": row, "waiting": waiting})
        return 0
    terminal.line(f"{row['id']}: {_question(row)} -> {_verdict(row)}")
    terminal.faint(f"{waiting_text(waiting)}; {LEARN_NOTE}")
    return 0


def opinion_of(options: AddOptions) -> dict[str, Any]:
    """The body of POST /v1/feedback. Raises UsageError unless exactly one thing is said.

    >>> opinion_of(AddOptions(down=True, correct="New Delhi", id="chatcmpl-1"))
    {'id': 'chatcmpl-1', 'rating': 'down', 'correction': 'New Delhi'}
    """
    is_clear = options.up != (options.down or options.correct is not None)
    if not is_clear:
        hint = "give --correct TEXT, --up or --down"
        raise UsageError("feedback says one thing", "good, bad, or a correction", hint)
    if options.correct is not None and not options.correct.strip():
        raise UsageError("--correct is empty", "there would be nothing to learn", "")
    given = {
        "id": options.id,
        "rating": "up" if options.up else "down" if options.down else None,
        "correction": None if options.correct is None else checked_text(options.correct),
    }
    return {name: value for name, value in given.items() if value is not None}


def list_feedback(options: ListOptions, terminal: Terminal) -> int:
    """List feedback, the newest first: who said it, about which model, and what became of it.

    Examples:
      edge-agent feedback list
      edge-agent feedback list --model gemma3-270m -n 100 --json
    """
    with open_feedback(options.state_dir, terminal.environ) as library:
        rows = library.rows(options.model, options.n)
        waiting = library.waiting(options.model)
    if options.json:
        terminal.document({"feedback": rows, "waiting": waiting})
    elif not rows:
        terminal.note('no feedback yet: edge-agent feedback add --correct "..."')
    else:
        headers = ("NUMBER", "DATE", "MODEL", "USER", "SOURCE", "QUESTION", "FEEDBACK", "LEARNED")
        terminal.table(headers, [_row(row) for row in rows])
        terminal.faint(waiting_text(waiting))
    return 0


def rm(options: RmOptions, terminal: Terminal) -> int:
    """Forget feedback. An adapter that has learned it keeps what it learned.

    Examples:
      edge-agent feedback rm 12
      edge-agent feedback rm 12 13 14
    """
    with open_feedback(options.state_dir, terminal.environ) as library:
        for number in options.numbers:
            library.remove(number)
            if not options.json:
                terminal.line(f"removed {number}")
    if options.json:
        terminal.document({"removed": options.numbers})
    return 0


def export(options: ExportOptions, terminal: Terminal) -> int:
    """Write what is learned as JSONL, a chat a line: the form `adapt run --from FILE` takes.

    Corrections stand in the place of the answers they correct; good answers as they were; bad
    answers without a correction are left out.

    Examples:
      edge-agent feedback export --output rows.jsonl
      edge-agent feedback export --model gemma3-270m | wc -l
    """
    with open_feedback(options.state_dir, terminal.environ) as library:
        lessons = library.lessons(options.model)
        if options.json:
            terminal.document({"rows": list(lessons)})
            return 0
        lines = (json_lines.dumps(one) + "\n" for one in lessons)
        if options.output is None:
            for line in lines:
                terminal.write(line)
        else:
            n = _write(options.output, lines)
            terminal.note(f"{n} rows written to {options.output}")
    return 0


def import_rows(options: ImportOptions, terminal: Terminal) -> int:
    """Take over the rows of an export as feedback of yours, all or none.

    A data set larger than the quota (feedback_quota, 200) is learned from its file instead:
    edge-agent adapt run --from FILE.

    Examples:
      edge-agent feedback import rows.jsonl --model gemma3-270m
    """
    documents = documents_of(options.file, terminal.stdin)
    with open_feedback(options.state_dir, terminal.environ) as library:
        stored = library.add_lessons(documents, options.model)
    if options.json:
        terminal.document({"stored": stored})
    else:
        terminal.line(f"{stored} rows taken over")
    return 0


def documents_of(path: Path, stdin: TextIO) -> list[Any]:
    """The JSON values of a file's lines. Raises UsageError naming the line."""
    try:
        text = _text(path, stdin)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}", str(error), "give a UTF-8 JSONL file") from error
    lines = json_lines.numbered_lines(text)
    if not lines:
        raise UsageError(f"{path} holds no rows", "it is empty", "")
    return [_parsed(path, number, line) for number, line in lines]


def _text(path: Path, stdin: TextIO) -> str:
    if str(path) == "-":
        data = stdin.read(MAX_FILE_BYTES + 1).encode("utf-8", "surrogateescape")
    else:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        hint = f"learn it from the file: edge-agent adapt run --from {path}"
        raise UsageError(f"{path} is too long", f"more than {MAX_FILE_BYTES} bytes", hint)
    return data.decode()


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        why = f"line {number}: {error}"
        raise UsageError(f"{path} is not JSONL", why, "write one JSON object a line") from error


def _write(path: Path, lines: Iterator[str]) -> int:
    """All lines or an error and no file. Raises UsageError."""
    written = list(lines)
    try:
        atomic_file.write(path, "".join(written).encode(), 0o600)
    except OSError as error:
        raise UsageError(f"cannot write {path}", error.strerror or str(error), "") from error
    return len(written)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    model = f"{row['model']}:{row['adapter']}" if row["adapter"] else row["model"]
    return (
        str(row["id"]),
        datetime.fromtimestamp(row["at"], timezone.utc).date().isoformat(),
        model,
        row["user"],
        row["source"],
        _question(row),
        _verdict(row),
        row["used_in"] or "-",
    )


def _question(row: Mapping[str, Any]) -> str:
    return _short(row["messages"][-1]["content"])


def _verdict(row: Mapping[str, Any]) -> str:
    if row["correction"] is not None:
        return f"corrected: {_short(row['correction'])}"
    return f"{'good' if row['rating'] == 'up' else 'bad'}: {_short(row['answer'])}"


def _short(text: str) -> str:
    words = " ".join(text.split())
    is_long = len(words) > SHOWN_CHARACTERS
    return f"{words[: SHOWN_CHARACTERS - 1]}\u2026" if is_long else words
