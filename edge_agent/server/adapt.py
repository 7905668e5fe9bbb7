"""/adapt: plan, start, follow, pause and resume one lesson.

Flows in: JSONL text, or the word feedback, and settings. Flows out: a plan, events line by line, or
the run's status. A client that leaves does not end a run. Not here: the run itself
(edge_agent/adapt/lesson_runner.py), the registry of adapters (adapters.py).
"""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import msgspec
from aiohttp import web
from pydantic import BaseModel, Field

from edge_agent import atomic_file
from edge_agent.adapt.lesson import LessonRequest, taught_model
from edge_agent.adapt.lesson_files import FEEDBACK, GIVEN_FILE
from edge_agent.adapt.lesson_runner import LessonRunner
from edge_agent.adapt.run_settings import RunSettings, declared_run_settings, run_settings
from edge_agent.errors import RequestError
from edge_agent.server.body import parse_json, read_body, validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.model_name import requested_model
from edge_agent.server.reply import NDJSON, Stream, encoded, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE
from edge_agent.setting import WrongSetting

ADAPTATION = web.AppKey("adaptation", LessonRunner)
MAX_BODY_BYTES = 16 * 1024 * 1024
"""Some 50,000 short rows. More than that is a run for the host."""
_PROPERTIES: Any = {name: dict(one.schema) for name, one in declared_run_settings().items()}


class RunBody(Body):
    """`rows` is JSONL text; without it what users corrected is learned."""

    name: str = Field(min_length=1, max_length=64)
    model: str | None = None
    rows: str | None = Field(None, description='JSONL: {"instruction","input","output"} a line.')
    source: Literal["rows", "feedback"] = "rows"
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="Of adapt/run_settings.py's RunSettings.",
        json_schema_extra={"properties": _PROPERTIES},
    )
    activate: bool = Field(True, description="Make it active when its gate lets it pass.")
    stream: bool = True


class ResumeBody(Body):
    name: str | None = Field(None, max_length=64, description="The run [the latest].")


class EarlierBody(Body):
    name: str = Field(min_length=1, max_length=64, description="A run about to be trained beside.")
    model: str = Field(min_length=1, max_length=256, description="The model it teaches.")


class JudgeBody(Body):
    name: str = Field(min_length=1, max_length=64, description="A run trained beside the daemon.")
    joules: float | None = Field(None, ge=0, description="Of the whole board while it trained.")


class AdaptAnswer(BaseModel):
    """A run: `planned`, `progress` and `result` are adapt/messages.py's records. `last`: how the
    lesson that ended last came out, also one of an earlier daemon or of the night: the members of
    `result`, with `state` finished or failed, `error`, `ended_at` (Unix seconds), and whether its
    adapter answers now (`is_active`)."""

    state: str
    name: str | None
    model: str | None = None
    pause_reason: str | None = None
    planned: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    last: dict[str, Any] | None = None


async def status(request: web.Request) -> web.Response:
    return json_response(_lesson_runner(request).status())


async def plan(request: web.Request) -> web.Response:
    body = await _body(request, RunBody)
    planned = await _lesson_runner(request).plan(_run_request(request, body))
    return json_response(msgspec.to_builtins(planned))


async def run(request: web.Request) -> web.StreamResponse:
    body = await _body(request, RunBody)
    lesson_runner = _lesson_runner(request)
    await lesson_runner.begin(_run_request(request, body))
    return await _follow(request, lesson_runner) if body.stream else await status(request)


async def earlier(request: web.Request) -> web.Response:
    """What the active adapter was taught is written for a trainer beside the daemon."""
    body = await _body(request, EarlierBody)
    await _lesson_runner(request).write_earlier(body.name, body.model)
    return await status(request)


async def judge(request: web.Request) -> web.StreamResponse:
    body = await _body(request, JudgeBody)
    lesson_runner = _lesson_runner(request)
    lesson_runner.judge(body.name, body.joules)
    return await _follow(request, lesson_runner)


async def events(request: web.Request) -> web.StreamResponse:
    return await _follow(request, _lesson_runner(request))


async def pause(request: web.Request) -> web.Response:
    _lesson_runner(request).pause()
    return await status(request)


async def resume(request: web.Request) -> web.Response:
    body = await _body(request, ResumeBody)
    _lesson_runner(request).resume(body.name)
    return await status(request)


async def _follow(request: web.Request, lesson_runner: LessonRunner) -> web.StreamResponse:
    stream = Stream(request, NDJSON, request.app[SERVICE].limits)
    await stream.open()
    async with aclosing(lesson_runner.follow()) as found:
        async for event in found:
            await stream.write(encoded(event) + b"\n")
    return await stream.close()


def _lesson_runner(request: web.Request) -> LessonRunner:
    return request.app[ADAPTATION]


async def _body(request: web.Request, kind: type[Any]) -> Any:
    limits = request.app[SERVICE].limits
    raw = await read_body(request, MAX_BODY_BYTES, limits.body_s)
    return validate(kind, parse_json(raw, limits.json_depth))


def _run_request(request: web.Request, body: RunBody) -> LessonRequest:
    """Writes the rows where the trainer finds them. Raises RequestError, TrainingBusy."""
    service = request.app[SERVICE]
    lesson_runner = _lesson_runner(request)
    lesson_runner.check_free()
    directory = lesson_runner.files.directory(body.name)
    named = requested_model(body.model)
    row, tag = service.supervisor.which_model(named)
    model = taught_model(row.name, tag if named else None)
    data = FEEDBACK if body.source == "feedback" else _given(body, directory)
    settings = _settings(body)
    return LessonRequest(body.name, model, data, settings, body.activate)


def _settings(body: RunBody) -> RunSettings:
    """Raises FieldError that names the setting."""
    try:
        return run_settings(body.settings)
    except WrongSetting as wrong:
        raise FieldError(f"settings.{wrong.name}", wrong.why, wrong.hint) from wrong


def _given(body: RunBody, directory: Path) -> str:
    if not body.rows:
        raise RequestError("there is nothing to learn", "rows is empty", "send JSONL in rows")
    path = directory / GIVEN_FILE
    atomic_file.write(path, body.rows.encode())
    return str(path)


ROUTES = (
    Route("GET", "/adapt", status, "The lesson under way, or the last one", AdaptAnswer),
    Route("POST", "/adapt/plan", plan, "What a lesson would take", body=RunBody),
    Route(
        *("POST", "/adapt/run", run, "Learn, and follow it"),
        body=RunBody,
        streams=(NDJSON, AdaptAnswer),
    ),
    Route(
        *("GET", "/adapt/events", events, "Follow the lesson under way"),
        streams=(NDJSON, AdaptAnswer),
    ),
    Route(
        *("POST", "/adapt/judge", judge, "Judge, register and activate a finished run"),
        body=JudgeBody,
        streams=(NDJSON, AdaptAnswer),
    ),
    Route(
        *("POST", "/adapt/earlier", earlier, "Write what the active adapter was taught for a run"),
        AdaptAnswer,
        body=EarlierBody,
    ),
    Route("POST", "/adapt/pause", pause, "Hold the lesson", AdaptAnswer),
    Route("POST", "/adapt/resume", resume, "Go on with a lesson", AdaptAnswer, body=ResumeBody),
)
