"""What users say about answers, as rows that an adapter can be trained on.

Flows in: an opinion about an answer (good, bad, or how it should have been), or rows of a file.
Flows out: rows in the store with who said it and how, and the lines {"messages": [...]} that
`adapt run --from feedback` and an export carry: a correction in the place of the answer it
corrects, a good answer as it was. A bad answer without a correction is kept and not taught. Nothing
is learned by this alone. Not here: HTTP (server/feedback.py), SQL (store/feedback_table.py),
whether the rows contradict each other (adapt/trainer/audit.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge_agent.adapt.recent_answers import RecentAnswer
from edge_agent.errors import DataRefused, FeedbackNotFound, QuotaExceeded, RequestError
from edge_agent.store import feedback_table
from edge_agent.store.feedback_table import FeedbackQuery, Waiting
from edge_agent.store.rows import FeedbackRow
from edge_agent.store.store import Store

Source = Literal["answer", "given", "import"]
Rating = Literal["up", "down"]
Chat = list[dict[str, str]]
"""[{"role", "content"}, ...]"""

RATINGS: Mapping[Rating, int] = {"up": 1, "down": -1}
ROLES = ("system", "user", "assistant")
MAX_ROW_BYTES = 32 * 1024
"""UTF-8 bytes of chat, answer and correction together: several times what the trainer takes."""
MAX_IMPORT_ROWS = 1_000
PAGE = 16
"""Rows held in memory while many are read."""


@dataclass(frozen=True)
class Opinion:
    """Good, bad, or what the answer should have been. Raises RequestError when it says nothing."""

    rating: Rating | None = None
    correction: str | None = None

    def __post_init__(self) -> None:
        if self.rating is None and self.correction is None:
            raise _refused("it says nothing", "neither a rating nor a correction was given")
        if self.rating == "up" and self.correction is not None:
            raise _refused("it contradicts itself", "a good answer needs no correction")
        if self.correction is not None and not self.correction.strip():
            raise _refused("the correction is empty", "there would be nothing to learn")


def row_about(
    answer: RecentAnswer, opinion: Opinion, *, user: str, source: Source, at: float
) -> FeedbackRow:
    """The row to store; `at` is Unix seconds. Raises RequestError for what cannot be learned."""
    if opinion.rating == "up" and (answer.is_cut or not answer.text.strip()):
        hint = "correct it, or let the model answer again with a higher token limit"
        raise _refused("the answer is not whole", "a model would learn to stop there", hint)
    chat = [{"role": turn.role, "content": turn.content} for turn in answer.messages]
    correction = opinion.correction
    return _checked(
        FeedbackRow(
            at=at,
            model=answer.model,
            user=user,
            source=source,
            messages=_chat_text(chat),
            answer=answer.text,
            adapter=answer.adapter,
            rating=None if opinion.rating is None else RATINGS[opinion.rating],
            correction=None if correction is None else correction.strip(),
        )
    )


def imported_row(document: Any, number: int, *, model: str, user: str, at: float) -> FeedbackRow:
    """Row `number` of a file: {"messages": [...]} whose last turn is the answer to learn.

    Raises RequestError.
    """
    try:
        chat = _chat(document.get("messages") if isinstance(document, dict) else None)
        if chat[-1]["role"] != "assistant" or not chat[-1]["content"].strip():
            raise _refused("there is no answer in it", "the last turn is not the assistant's")
        text = _chat_text(chat[:-1])
        row = FeedbackRow(at, model, user, "import", text, chat[-1]["content"].strip(), rating=1)
        return _checked(row)
    except RequestError as error:
        raise RequestError(f"row {number}: {error.what}", error.why, error.hint) from None


def imported_rows(
    documents: Sequence[Any], *, model: str, user: str, at: float
) -> list[FeedbackRow]:
    """All rows of a file, the last one of those that ask the same. Raises RequestError."""
    if len(documents) > MAX_IMPORT_ROWS:
        why = f"at most {MAX_IMPORT_ROWS} are taken at once"
        raise RequestError(f"{len(documents)} rows are too many", why, TRAIN_HINT)
    rows = [
        imported_row(document, number, model=model, user=user, at=at)
        for number, document in enumerate(documents, start=1)
    ]
    return list({row.messages: row for row in rows}.values())


TRAIN_HINT = "a whole data set is learned from its file: edge-agent adapt run --from FILE"


def add(store: Store, rows: Sequence[FeedbackRow], quota: int) -> list[int]:
    """The ids of the rows, all stored and durable; none when one user has too much waiting.

    Raises QuotaExceeded, StoreError.
    """
    ids = store.transact(lambda connection: feedback_table.add(connection, rows, quota))
    if rows and not ids:
        model = rows[0].model
        raise QuotaExceeded(
            f"no more feedback is taken from {rows[0].user} on {model}",
            f"at most {quota} pieces may wait to be learned (feedback_quota)",
            "learn them with `edge-agent adapt run --from feedback`, "
            "or remove some with `edge-agent feedback rm`",
        )
    return ids


def page(store: Store, wanted: FeedbackQuery) -> list[FeedbackRow]:
    """Newest first. Raises StoreError."""
    return store.transact(lambda connection: feedback_table.find(connection, wanted))


def lessons(store: Store, wanted: FeedbackQuery) -> Iterator[list[FeedbackRow]]:
    """The rows that are learned, oldest first, a few at a time, whatever `wanted.limit` says: each
    user's last word on each question. Raises StoreError."""
    ids = store.transact(lambda connection: feedback_table.taught_ids(connection, wanted))
    for start in range(0, len(ids), PAGE):
        part = ids[start : start + PAGE]
        yield rows_of(store, part)


def rows_of(store: Store, ids: Sequence[int]) -> list[FeedbackRow]:
    """The rows of these ids that are still there, oldest first. Raises StoreError."""
    return store.transact(lambda connection: feedback_table.rows_of(connection, ids))


def remove(store: Store, number: int, user: str | None = None) -> None:
    """Forget one row; with `user` only that user's. Raises FeedbackNotFound, StoreError."""
    if not store.transact(lambda connection: feedback_table.remove(connection, number, user)):
        hint = "`edge-agent feedback list` shows them"
        raise FeedbackNotFound(f"there is no feedback {number}", "", hint)


def waiting(store: Store, model: str | None = None) -> Waiting:
    """What no adapter has learned. Raises StoreError."""
    return store.transact(lambda connection: feedback_table.waiting(connection, model))


def shown(row: FeedbackRow) -> dict[str, Any]:
    """The row as JSON documents carry it."""
    names = {value: name for name, value in RATINGS.items()}
    rating = None if row.rating is None else names[row.rating]
    return {**asdict(row), "rating": rating, "messages": json.loads(row.messages)}


def taught(row: FeedbackRow) -> Chat:
    """The chat that is learned from a row of `lessons`."""
    chat: Chat = json.loads(row.messages)
    good = row.correction if row.correction is not None else row.answer
    return [*chat, {"role": "assistant", "content": good}]


def lesson_line(row: FeedbackRow) -> dict[str, Any]:
    """A row of `lessons` as a line of an export and of a lesson's data: {"messages", "id"}. By the
    id a lesson that has ended knows which rows it has learned."""
    return {"messages": taught(row), "id": row.id}


def training_rows(store: Store, model: str) -> list[dict[str, Any]]:
    """What `adapt run --from feedback` learns, oldest first: {"messages", "id", "user"} each.

    Rows an earlier adapter has learned are among them: each adapter is trained from the base and
    would forget what is left out. Of one user's words on the same question only the newest counts.
    Raises DataRefused when there is nothing, StoreError.
    """
    found = [
        {**lesson_line(row), "user": row.user}
        for rows in lessons(store, FeedbackQuery(model=model))
        for row in rows
    ]
    if not found:
        hint = 'correct an answer first: edge-agent feedback add --correct "..."'
        raise DataRefused(f"there is no feedback on {model} to learn", "", hint)
    return found


def mark_used(store: Store, ids: Sequence[int], adapter: str) -> None:
    """Adapter `adapter` has learned these rows: they wait no longer. Raises StoreError."""
    store.transact(lambda connection: feedback_table.mark_used(connection, ids, adapter))


def _chat(value: Any) -> Chat:
    """Turns of a role and a text. Raises RequestError."""
    if not isinstance(value, list) or len(value) < 2:
        raise _refused("it has no chat", '"messages" is not a list of at least two turns')
    for turn in value:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise _refused("a turn has no role", f"known: {', '.join(ROLES)}")
        if not isinstance(turn.get("content"), str):
            raise _refused("a turn has no text", f'"content" is {turn.get("content")!r:.40}')
    return [{"role": turn["role"], "content": turn["content"]} for turn in value]


def _checked(row: FeedbackRow) -> FeedbackRow:
    """`row`, if it can be stored and learned. Raises RequestError."""
    chat: Chat = json.loads(row.messages)
    if not chat or chat[-1]["role"] != "user":
        raise _refused("nothing was asked", "the chat before the answer does not end with a user")
    texts = (*(turn["content"] for turn in chat), row.answer, row.correction or "")
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise _refused("it is not Unicode text", str(error)) from None
    if any("\0" in text for text in texts):
        raise _refused("a text holds the character NUL", "no model could be asked that")
    if size > MAX_ROW_BYTES:
        raise _refused(f"it has {size} bytes", f"at most {MAX_ROW_BYTES} can be learned at once")
    return row


def _chat_text(chat: Chat) -> str:
    return json.dumps(chat, ensure_ascii=False, separators=(",", ":"))


def _refused(found: str, why: str, hint: str = "") -> RequestError:
    return RequestError(f"this feedback cannot be kept: {found}", why, hint)
