"""adapt run, plan, resume, pause, status: teach a model on this device.

Flows in: JSONL, or what users corrected, and settings. Flows out: progress, a table or one JSON
document. Not here: where the lesson takes place (client/lessons.py), adapters (adapters.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.cli.lesson_text import event_text, findings, longest_text, rehearsal_text
from edge_agent.cli.options import (
    Options,
    SettingFlags,
    add_command,
    command_group,
    complete_model,
    flag_error,
)
from edge_agent.cli.terminal import Progress, Terminal, duration_text, size_text
from edge_agent.cli.verdict import LessonVerdict, verdict_lines
from edge_agent.client.connection import find_daemon
from edge_agent.errors import TrainingFailed, error_from_code

if TYPE_CHECKING:
    from edge_agent.adapt.run_settings import RunSettings
    from edge_agent.client.lessons import LessonDraft
    from edge_agent.setting import Setting

HELP = "Teach a model on this device, beside the answers it gives."
FEEDBACK = "feedback"
NIGHT_S = 86400.0


def _declared() -> Mapping[str, Setting]:
    from edge_agent.adapt.run_settings import declared_run_settings

    return declared_run_settings()


@dataclass(frozen=True, kw_only=True)
class LessonOptions(Options):
    """What to learn and how; `settings` are adapt/run_settings.py's RunSettings."""

    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FILE|feedback",
            help='JSONL ({"instruction","input","output"} or {"messages"} a line), or what users'
            " corrected.",
        ),
    ]
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the adapter.")]
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model to teach [configured, loaded or only one].",
            autocompletion=complete_model,
        ),
    ] = None
    settings: Annotated[dict[str, Any], SettingFlags(_declared)] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunOptions(LessonOptions):
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Keep the adapter, do not answer with it.")
    ] = False
    here: Annotated[
        bool,
        typer.Option("--here", help="Train in a child of this process, not of the daemon."),
    ] = False


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(Options):
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The run [the latest].")] = None


@dataclass(frozen=True, kw_only=True)
class NightlyOptions(Options):
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model to teach [configured, loaded or only one].",
            autocompletion=complete_model,
        ),
    ] = None
    hours: Annotated[float, typer.Option(metavar="H", help="Stop after so much training.")] = 5.0
    least: Annotated[
        int, typer.Option(min=1, metavar="N", help="Wait until there are so many corrections.")
    ] = 10


def run(options: RunOptions, terminal: Terminal) -> int:
    """Teach a model, judge what it learned, and answer with it if it is no worse.

    The weights stay quantized and untouched; what is learned is a small adapter. Ctrl-C leaves a
    checkpoint; `adapt resume` goes on. With a daemon the lesson is the daemon's and goes on.

    Examples:
      edge-agent adapt run --from lesson.jsonl --name lesson
      edge-agent adapt run --from feedback --name corrections --hours 2 --memory 400M
      edge-agent adapt run --from lesson.jsonl --name quick --layers top:4 --json
    """
    from edge_agent.client.lessons import open_lessons

    lesson = _lesson(options, activate=not options.no_activate)
    lessons = open_lessons(options.state_dir, terminal.environ, here=options.here)
    return _follow(lessons.run(lesson), lessons.is_here, options.json, terminal)


def nightly(options: NightlyOptions, terminal: Terminal) -> int:
    """Learn what users corrected since the last time, beside the daemon.

    What the timer unit runs. A run that was cut off, also an earlier night's, is finished first.
    Exit code 0 when there was nothing to learn, too; 1 when its gate refused it.

    Examples:
      edge-agent adapt nightly --hours 5
    """
    from edge_agent.client.lessons import BesideLessons
    from edge_agent.client.nightly import Nightly

    client = find_daemon(options.state_dir, terminal.environ, NIGHT_S)
    lessons = BesideLessons(client, terminal.environ)
    night = Nightly(lessons, lessons.model(options.model), options.least)
    found = night.begin(time.strftime("%Y%m%d"), _run_settings({"hours": options.hours}))
    if isinstance(found, str):
        terminal.note(found)
        return 0
    return _follow(found, lessons.is_here, options.json, terminal)


def plan(options: LessonOptions, terminal: Terminal) -> int:
    """Say what a lesson would take in memory and time, and which rows look wrong.

    Examples:
      edge-agent adapt plan --from lesson.jsonl --name lesson --memory 400M
    """
    from edge_agent.client.lessons import open_lessons

    lesson = _lesson(options)
    planned = open_lessons(options.state_dir, terminal.environ).plan(lesson)
    if options.json:
        terminal.document(planned)
    else:
        _print_plan(planned, lesson.settings.epochs, terminal)
    return 0 if planned.get("fits", True) else 1


def resume(options: ResumeOptions, terminal: Terminal) -> int:
    """Go on with a paused, stopped or killed lesson, from its last checkpoint.

    Examples:
      edge-agent adapt resume
      edge-agent adapt resume lesson
    """
    from edge_agent.client.lessons import open_lessons

    lessons = open_lessons(options.state_dir, terminal.environ)
    return _follow(lessons.resume(options.name), lessons.is_here, options.json, terminal)


def pause(options: Options, terminal: Terminal) -> int:
    """Hold the daemon's lesson until `adapt resume`.

    Examples:
      edge-agent adapt pause
    """
    document = find_daemon(options.state_dir, terminal.environ).post("/adapt/pause", {})
    if options.json:
        terminal.document(document)
    else:
        terminal.line(f"{document.get('name')} pauses after this step")
    return 0


def status(options: Options, terminal: Terminal) -> int:
    """Show the daemon's lesson.

    Examples:
      edge-agent adapt status
      edge-agent adapt status --json
    """
    document = find_daemon(options.state_dir, terminal.environ).get("/adapt")
    if options.json:
        terminal.document(document)
        return 0
    progress = document.get("progress") or {}
    if document.get("state") == "idle":
        terminal.note("nothing is being learned; `edge-agent adapt run` starts a lesson")
        return 0
    rows = [("state", str(document.get("state"))), ("name", str(document.get("name")))]
    if document.get("pause_reason"):
        rows.append(("paused because", str(document["pause_reason"])))
    rows += [(key, _shown(progress[key])) for key in progress if progress[key] not in (None, "")]
    terminal.table(("FIELD", "VALUE"), rows)
    return 0


def _lesson(options: LessonOptions, *, activate: bool = True) -> LessonDraft:
    """Raises UsageError."""
    from edge_agent.client.lessons import LessonDraft

    settings = _run_settings(options.settings)
    data = None if options.source == FEEDBACK else Path(options.source).expanduser()
    return LessonDraft(options.name, options.model, data, settings, activate)


def _run_settings(typed: Mapping[str, Any]) -> RunSettings:
    """Text by setting name, checked. Raises UsageError that names the flag."""
    from edge_agent.adapt.run_settings import run_settings
    from edge_agent.setting import WrongSetting

    declared = _declared()
    try:
        values = {
            name: declared[name].parse(text) if isinstance(text, str) else text
            for name, text in typed.items()
        }
        return run_settings(values, is_text=True)
    except WrongSetting as wrong:
        raise flag_error(declared[wrong.name], typed[wrong.name], wrong) from wrong


def _follow(
    events: Iterable[Mapping[str, Any]], is_here: bool, is_json: bool, terminal: Terminal
) -> int:
    """Shows the lesson until it ends. Raises the error it ended with."""
    last: Mapping[str, Any] = {}
    try:
        noted: set[str] = set()
        with terminal.progress(counts_bytes=False) as show:
            for last in events:
                _show(last, show, terminal, noted)
    except KeyboardInterrupt:
        how = (
            "it has a checkpoint; `edge-agent adapt resume` goes on"
            if is_here
            else ("the daemon goes on with it; `edge-agent adapt status` and `adapt pause`")
        )
        terminal.note(f"\n{how}")
        raise
    _raise_error(last)
    result = last.get("result")
    if result is None:
        terminal.note("stopped; `edge-agent adapt resume` goes on from its checkpoint")
        return 1
    if is_json:
        terminal.document(result)
    else:
        _print_result(result, terminal)
    return 0 if (result.get("gate") or {}).get("passed") else 1


def _show(event: Mapping[str, Any], show: Progress, terminal: Terminal, noted: set[str]) -> None:
    """`noted`: notes that were shown; a lesson that chooses its blocks is planned twice."""
    if (text := event_text(event)) is not None:
        show(text, event.get("step"), event.get("n_steps") or None)
    elif event.get("event") == "planned":
        for note in [*event.get("notes", []), *findings(event)]:
            if note not in noted:
                noted.add(note)
                terminal.note(note)


def _print_plan(planned: Mapping[str, Any], epochs: int, terminal: Terminal) -> None:
    rows = [(part, size_text(size)) for part, size in planned["bytes"].items()]
    terminal.table(("MEMORY", "SIZE"), rows)
    epoch_s = planned.get("epoch_s")
    terminal.line(
        f"{planned['n_train']} rows to learn, {planned['n_validation']} to validate;"
        f" {planned['n_tokens']} tokens an epoch, {planned['n_supervised']} of them learned;"
        f" {'unknown time' if epoch_s is None else duration_text(epoch_s)} an epoch"
    )
    terminal.line(rehearsal_text(planned))
    terminal.line(longest_text(planned, epochs))
    for note in [*planned.get("notes", []), *findings(planned)]:
        terminal.note(note)


def _print_result(result: Mapping[str, Any], terminal: Terminal) -> None:
    rows = [
        tuple(_shown(epoch.get(key)) for key in ("epoch", "train_loss", "validation_loss"))
        for epoch in result["losses"]
    ]
    terminal.table(("EPOCH", "LOSS", "VALIDATION"), rows)
    layers = ",".join(map(str, result["layers"]))
    terminal.line(
        f"{result['steps']} steps in {duration_text(result['train_s'])},"
        f" {result['tok_s']:.0f} tok/s, peak {size_text(result['peak_rss_anon_bytes'])},"
        f" blocks {layers}"
    )
    gate, is_active = result.get("gate"), result["is_active"]
    verdict = LessonVerdict(result["model"], result["name"], gate, is_active)
    for line in verdict_lines(verdict, terminal.columns):
        terminal.line(line)


def _raise_error(last: Mapping[str, Any]) -> None:
    error = last.get("error")
    if error:
        raise error_from_code(error["code"], error["what"], error["why"], error["hint"])
    if not last:
        raise TrainingFailed("the lesson ended without a word", "", "`edge-agent adapt status`")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def build_group() -> typer.Typer:
    """The commands below `edge-agent adapt`."""
    group = command_group(HELP)
    add_command(group, "run", RunOptions, run)
    add_command(group, "plan", LessonOptions, plan)
    add_command(group, "resume", ResumeOptions, resume)
    add_command(group, "pause", Options, pause)
    add_command(group, "status", Options, status)
    add_command(group, "nightly", NightlyOptions, nightly)
    return group
