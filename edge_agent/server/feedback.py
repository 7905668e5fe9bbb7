"""/v1/feedback: users say which answer was good, or how it should have been; rows out and in.

Flows in: an opinion about a remembered answer or about one sent along, and rows of files. Flows
out: rows with who said it, pages of them, and the JSON lines a model can be taught. Whoever may
read the database anyway (root, the daemon's user, the token) sees everybody's rows; others see and
remove their own. Not here: what a row may say (edge_agent/adapt/feedback.py), learning (adapt.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field

from edge_agent.adapt import feedback
from edge_agent.adapt.feedback import MAX_IMPORT_ROWS, Opinion, Source
from edge_agent.adapt.recent_answers import MAX_ANSWERS, RecentAnswer
from edge_agent.errors import FeedbackNotFound, StoreError
from edge_agent.model_names import BASE_TAG, LATEST_TAG, split_name
from edge_agent.models.which_model import ABSENT
from edge_agent.server.adapt import ADAPTATION
from edge_agent.server.auth import CALLER, is_operator
from edge_agent.server.body import parse_json, read_body, read_request, validate
from edge_agent.server.chat_message import MAX_MESSAGES, ChatMessage
from edge_agent.server.error_body import FieldError, Refusal
from edge_agent.server.model_name import requested_model
from edge_agent.server.reply import NDJSON, Stream, encoded, json_response
from edge_agent.server.route import Route
from edge_agent.server.sampling_fields import Body
from edge_agent.server.service import SERVICE, Service
from edge_agent.store.feedback_table import FeedbackQuery
from edge_agent.store.rows import FeedbackRow

MAX_IMPORT_BYTES = 1024 * 1024
MAX_LISTED = 64
"""Rows of one page; the largest rows make 2 MB of it."""
LISTED = 20


class FeedbackRequest(Body):
    """POST /v1/feedback. Without `id` and `messages`: about the last answer the caller got."""

    id: str | None = Field(None, min_length=1, max_length=64, description="Of the response.")
    rating: Literal["up", "down"] | None = None
    correction: str | None = Field(None, description="What the answer should have been.")
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    answer: str | None = Field(
        None, description="Used with `messages`, where no answer of this `id` is remembered."
    )
    model: str | None = Field(None, description="Of `answer`.")


class ImportRequest(Body):
    """POST /v1/feedback/import. Each row: {"messages": [..., {"role": "assistant", ...}]}."""

    model: str | None = None
    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_IMPORT_ROWS)


class TurnBody(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class FeedbackBody(BaseModel):
    """`user`: uid:N, dashboard, http. `source`: answer (of this daemon), given, import."""

    id: int
    at: float
    model: str
    adapter: str | None
    user: str
    source: Literal["answer", "given", "import"]
    rating: Literal["up", "down"] | None
    messages: list[TurnBody]
    answer: str
    correction: str | None
    used_in: str | None


class WaitingBody(BaseModel):
    """What no adapter has learned, of all users. `bad` ones are kept and not learned."""

    corrections: int
    approved: int
    bad: int


class FeedbackList(BaseModel):
    """Newest first. `next_before` null: there is no more. `learning`: GET /adapt answers."""

    feedback: list[FeedbackBody]
    next_before: int | None
    waiting: WaitingBody
    enabled: bool
    quota: int
    learning: bool


class FeedbackLine(BaseModel):
    """One line of an export. `id`: of the row, as GET /v1/feedback shows it."""

    messages: list[TurnBody]
    id: int


class Imported(BaseModel):
    stored: int


class Removed(BaseModel):
    removed: int


async def add(request: web.Request) -> web.Response:
    """Durable when the answer arrives."""
    service = request.app[SERVICE]
    _check_enabled(service)
    body = await read_request(request, FeedbackRequest, service.limits, service.n_ctx())
    opinion = Opinion(body.rating, body.correction)
    answer, source = _answer_meant(service, body, request[CALLER])
    row = feedback.row_about(
        answer, opinion, user=request[CALLER], source=source, at=service.clock()
    )
    (number,) = await _store(service, [row])
    return json_response(feedback.shown(replace(row, id=number)))


def _check_enabled(service: Service) -> None:
    if not service.settings.feedback:
        why = "`feedback = false` in its configuration"
        hint = "set it in STATE/config.toml and start the daemon again"
        raise Refusal(403, "feedback_off", "this daemon takes no feedback", why, hint)


def _answer_meant(
    service: Service, body: FeedbackRequest, user: str
) -> tuple[RecentAnswer, Source]:
    """Raises FeedbackNotFound, FieldError, ModelNotFound."""
    answers, found = service.answers, None
    if body.id is not None:
        found = answers.find(body.id)
    elif body.messages is None:
        found = answers.last(user)
    if found is not None:
        return found, "answer"
    if body.messages is None:
        what = f"answer {body.id!r} is" if body.id else "no answer of yours is"
        raise FeedbackNotFound(
            f"{what} remembered",
            f"the last {MAX_ANSWERS} are, in memory, while the daemon runs",
            "ask again, or send `messages` and `answer` with it",
        )
    if body.answer is None:
        raise FieldError("answer", "it is needed beside `messages`")
    model, adapter = _model(service, body.model)
    messages = tuple(turn.message() for turn in body.messages)
    return RecentAnswer("", user, model, messages, body.answer, adapter), "given"


def _model(service: Service, name: str | None, *, may_guess: bool = True) -> tuple[str, str | None]:
    """(registered model, adapter or None) of MODEL or MODEL:ADAPTER. Raises ModelNotFound,
    UsageError."""
    row, tag = service.supervisor.which_model(requested_model(name), may_guess=may_guess)
    return row.name, None if tag in (None, "", BASE_TAG, LATEST_TAG) else tag


async def _store(service: Service, rows: Sequence[FeedbackRow]) -> list[int]:
    quota = service.settings.feedback_quota
    return await asyncio.to_thread(feedback.add, service.store, rows, quota)


async def list_feedback(request: web.Request) -> web.Response:
    """?n=0 tells only the counts."""
    service = request.app[SERVICE]
    wanted = _wanted(request, limit=_whole(request, "n", LISTED, 0, MAX_LISTED))
    rows = await asyncio.to_thread(feedback.page, service.store, wanted)
    counts = await asyncio.to_thread(feedback.waiting, service.store, wanted.model)
    document = {
        "feedback": [feedback.shown(row) for row in rows],
        "next_before": rows[-1].id if rows and len(rows) == wanted.limit else None,
        "waiting": asdict(counts),
        "enabled": service.settings.feedback,
        "quota": service.settings.feedback_quota,
        "learning": ADAPTATION in request.app,
    }
    return json_response(document)


def _wanted(request: web.Request, limit: int) -> FeedbackQuery:
    """By ?model= (feedback is on a model, whichever adapter answered) and ?before=, and as far as
    the caller may see. Raises FieldError."""
    user = request[CALLER]
    model = split_name(request.query.get("model", ""))[0]
    before = _whole(request, "before", 0, 0, 2**63 - 1)
    return FeedbackQuery(
        model=None if model in ABSENT else model,
        user=None if is_operator(user) else user,
        before=before or None,
        limit=limit,
    )


async def remove(request: web.Request) -> web.Response:
    service, user = request.app[SERVICE], request[CALLER]
    text = request.match_info["id"]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise FieldError("id", f"{text[:40]!r} is not the number of a piece of feedback")
    owner = None if is_operator(user) else user
    await asyncio.to_thread(feedback.remove, service.store, int(text), owner)
    return json_response({"removed": int(text)})


async def export(request: web.Request) -> web.StreamResponse:
    """What is learned, oldest first, a line each: the form `adapt run --from FILE` takes."""
    service = request.app[SERVICE]
    lessons = feedback.lessons(service.store, _wanted(request, limit=0))
    if request.method == "HEAD":
        return web.Response(content_type=NDJSON)
    rows = await asyncio.to_thread(next, lessons, None)
    stream = Stream(request, NDJSON, service.limits)
    await stream.open()
    while rows is not None:
        await stream.write(b"".join(encoded(feedback.lesson_line(row)) + b"\n" for row in rows))
        rows = await _further(request, lessons)
    return await stream.close()


async def _further(
    request: web.Request, lessons: Iterator[list[FeedbackRow]]
) -> list[FeedbackRow] | None:
    """A disk that fails inside a stream cannot be told in it: the connection is cut."""
    try:
        return await asyncio.to_thread(next, lessons, None)
    except StoreError as error:
        if request.transport is not None:
            request.transport.close()
        raise ConnectionError(f"feedback could not be read on: {error}") from error


async def import_rows(request: web.Request) -> web.Response:
    """All rows or none; of rows that ask the same the last one counts."""
    service = request.app[SERVICE]
    _check_enabled(service)
    limits = service.limits
    body = await read_body(request, MAX_IMPORT_BYTES, limits.body_s)
    asked = validate(ImportRequest, parse_json(body, limits.json_depth))
    model, _ = _model(service, asked.model, may_guess=False)
    rows = feedback.imported_rows(asked.rows, model=model, user=request[CALLER], at=service.clock())
    return json_response({"stored": len(await _store(service, rows))})


def _whole(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """A query parameter. Raises FieldError."""
    text = request.query.get(name)
    if text is None:
        return default
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= value <= most:
        raise FieldError(name, f"{text[:40]!r} is not a whole number from {least} to {most}")
    return value


PATH = "/v1/feedback"
ROUTES = (
    Route("POST", PATH, add, "Rate or correct an answer", FeedbackBody, body=FeedbackRequest),
    Route(
        "GET", PATH, list_feedback, "Stored feedback, in pages", FeedbackList,
        query=("model", "n", "before"),
    ),
    Route("DELETE", f"{PATH}/{{id}}", remove, "Forget one piece of feedback", Removed),
    Route(
        "GET", f"{PATH}/export", export, "What would be learned, as JSON lines",
        streams=(NDJSON, FeedbackLine), query=("model",),
    ),
    Route("POST", f"{PATH}/import", import_rows, "Rows to learn", Imported, body=ImportRequest),
)  # fmt: skip
