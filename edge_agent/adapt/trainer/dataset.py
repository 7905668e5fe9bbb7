"""Rows to learn from: JSON lines become chats, chats become samples, and no text is cut.

    {"instruction": "Translate to Hindi", "input": "water", "output": "पानी"}
    {"prompt": "What is the code word?", "completion": "Falcon."}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}

Flows in: a file in UTF-8 with one JSON object a line. The three forms may be mixed; the key
"system" may accompany the first two forms, "source" all three; other keys are ignored. Flows out:
`ChatRow`s, a split for validation, and `Sample`s of token ids. A file with a line that cannot be
learned is refused: the error counts all such lines and names the first ones, so that the file can
be corrected in one go. Not here: contradictions between rows (audit.py), template and token ids
(prompt/training_sequence.py), packing (packed_samples.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_agent.adapt.gate.words import words
from edge_agent.errors import DataRefused
from edge_agent.records import Message
from edge_agent.regular_file import open_regular

if TYPE_CHECKING:
    from edge_agent.prompt.prompt_builder import PromptBuilder

MAX_FILE_BYTES = 64 << 20
"""Largest file. For comparison: a board trains on some 2 MB of text in a day."""
MAX_LINE_BYTES = 1 << 20
SHOWN = 10
"""Bad lines, or findings of the audit, that a message names; it counts the others."""
FEWEST_TO_SPLIT = 10
"""With fewer rows none is kept for validation: too few would be left to learn or to measure."""
ROLES = ("system", "user", "assistant")
FORMS = ("messages", "instruction", "prompt")
"""The forms of a row, each named by the key that only this form has."""
_HINT = (
    "give one JSON object a line: instruction (input) output, prompt and completion, or messages"
    " of system, user, assistant, user, ... that end with the assistant"
)


@dataclass(frozen=True)
class ChatRow:
    """One chat. `number`: its line in the file, counted from 1; `source`: where it comes from."""

    number: int
    messages: tuple[Message, ...]
    source: str = "file"


@dataclass(frozen=True)
class Sample:
    """One sequence of a row. `learned[i]` says whether the prediction of token i is trained;
    `n_bytes` counts the UTF-8 bytes of the learned answers."""

    row: int
    ids: array[int]
    learned: list[bool]
    n_bytes: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class _Bad(Exception):
    """The reason why a line cannot be learned, as one sentence."""


# ---- reading -----------------------------------------------------------------------------------


def read_rows(path: Path) -> list[ChatRow]:
    """All rows of the file. Raises DataRefused, which names the first SHOWN bad lines.

    For example:

        train, validation = split(read_rows(Path("lesson.jsonl")), share=0.1)
    """
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
                raise _Bad(f"it is larger than {MAX_FILE_BYTES >> 20} MB")
            return parse_rows(_lines(stream), str(path))
    except (_Bad, OSError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DataRefused(f"cannot read the training data {path}", why, _HINT) from None


def parse_rows(lines: Iterable[bytes], name: str) -> list[ChatRow]:
    """The rows of `lines`, which may end with a line end; blank lines are skipped.

    Raises DataRefused, whose message calls the lines `name`.

    >>> parse_rows([b'{"prompt": "Hi", "completion": "Hello."}'], "example")[0].messages[1].content
    'Hello.'
    """
    rows: list[ChatRow] = []
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(number, line))
        except _Bad as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        what = f"{len(bad)} of {len(bad) + len(rows)} rows of {name} cannot be learned from"
        raise DataRefused(what, "; ".join(bad[:SHOWN]) + more, _HINT)
    if not rows:
        raise DataRefused(f"there is nothing to learn in {name}", "it holds no row", _HINT)
    return rows


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(3 if stream.read(3) == b"\xef\xbb\xbf" else 0)  # a byte order mark
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES + 1)


def _row(number: int, line: bytes) -> ChatRow:
    if len(line) > MAX_LINE_BYTES:
        raise _Bad(f"it is longer than {MAX_LINE_BYTES >> 20} MB")
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _Bad(f"not UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise _Bad("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Bad(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # Python refuses to read a number of 5,000 digits
        raise _Bad(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _Bad(f"not an object but a {type(document).__name__}")
    messages = tuple(_messages(document))
    _check_turns(messages)
    source = document.get("source", "file")
    return ChatRow(number, messages, source if isinstance(source, str) else "file")


def _messages(document: dict[str, Any]) -> Iterator[Message]:
    forms = [key for key in FORMS if key in document]
    if len(forms) != 1:
        keys = ", ".join(sorted(key[:40] for key in document)[:5])
        found = " and ".join(forms) or f"only {keys or 'nothing'}"
        raise _Bad(f"one of the keys {', '.join(FORMS)} is expected, found {found}")
    if forms == ["messages"]:
        yield from _turns(document["messages"], "messages")
        return
    if document.get("system"):
        yield Message("system", _text(document, "system"))
    if forms == ["instruction"]:
        asked = _text(document, "instruction")
        more = _text(document, "input") if document.get("input") else ""
        yield Message("user", f"{asked}\n\n{more}" if more.strip() else asked)
        yield Message("assistant", _text(document, "output"))
    elif isinstance(document["prompt"], list):
        yield from _turns(document["prompt"], "prompt")
        yield from _turns(document.get("completion"), "completion")
    else:
        yield Message("user", _text(document, "prompt"))
        yield Message("assistant", _text(document, "completion"))


def _turns(value: Any, key: str) -> Iterator[Message]:
    if not isinstance(value, list) or not value:
        raise _Bad(f"{key} is not a list of messages")
    for place, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise _Bad(f"message {place} of {key} is not an object")
        if turn.get("role") not in ROLES:
            role = repr(turn.get("role"))[:40]
            raise _Bad(f"message {place} has the role {role}, not {', '.join(ROLES)}")
        yield Message(turn["role"], _text(turn, "content"))


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise _Bad(f"{key} is missing" if value is None else f"{key} is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Bad(f"{key} is not valid Unicode (half of a surrogate pair)") from None
    return value


def _check_turns(messages: Sequence[Message]) -> None:
    """Refuse a chat unless it has at most one system message, which comes first, then user and
    assistant in turns up to an assistant's, all with text."""
    talk = messages[1:] if messages[0].role == "system" else messages
    if not any(message.role == "assistant" for message in talk):
        raise _Bad("there is no assistant turn")
    for place, message in enumerate(talk):
        wanted = ("user", "assistant")[place % 2]
        if message.role != wanted:
            where = place + 1 + len(messages) - len(talk)
            raise _Bad(f"message {where} is {message.role}'s where {wanted}'s is expected")
        if not message.content.strip():
            raise _Bad("an empty answer" if wanted == "assistant" else "an empty question")
    if talk[-1].role != "assistant":
        raise _Bad("the last message is not the assistant's")


# ---- splitting ---------------------------------------------------------------------------------


def split(rows: Sequence[ChatRow], share: float) -> tuple[list[ChatRow], list[ChatRow]]:
    """(rows to train on, rows to validate on), in the order of `rows`.

    The SHA-256 of a row's user turns, without case and punctuation, decides its side. So the same
    rows always give the same split, and a question never stands on both sides. About `share` (0 to
    1) of the questions are kept for validation: none for `share` 0, for fewer than FEWEST_TO_SPLIT
    rows, or when all rows ask the same question; otherwise at least one.

    When at least half of the rows have an answer that another question has too, only such rows are
    kept for validation. A fact that is asked only once cannot be learned from the other rows, so
    its validation loss would rise and say nothing about the lesson. Added rows change no row's side
    unless they change which answers have several questions.
    """
    if share <= 0 or len(rows) < FEWEST_TO_SPLIT:
        return list(rows), []
    places = {id(row): _place(row) for row in rows}
    distinct = sorted({places[id(row)] for row in _reworded(rows, places) or rows})
    if len(distinct) < 2:
        return list(rows), []
    border = min(max(share, distinct[0]), distinct[-2])
    kept_back = {place for place in distinct if place <= border}
    held = [row for row in rows if places[id(row)] in kept_back]
    return [row for row in rows if places[id(row)] not in kept_back], held


def _reworded(rows: Sequence[ChatRow], places: dict[int, float]) -> list[ChatRow]:
    """The rows whose answer another question has too, if they are at least half; else none."""
    questions: dict[str, set[float]] = {}
    for row in rows:
        questions.setdefault(_said(row, "assistant"), set()).add(places[id(row)])
    found = [row for row in rows if len(questions[_said(row, "assistant")]) > 1]
    return found if 2 * len(found) >= len(rows) else []


def _place(row: ChatRow) -> float:
    """A number from 0 to 1 that the row's user turns determine."""
    digest = hashlib.sha256(_said(row, "user").encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _said(row: ChatRow, role: str) -> str:
    """All turns of one role, without case and punctuation."""
    texts = [message.content for message in row.messages if message.role == role]
    return "\n".join(" ".join(words(text)) or text for text in texts)


# ---- encoding ----------------------------------------------------------------------------------


def encode_rows(
    rows: Sequence[ChatRow], prompts: PromptBuilder, max_length: int
) -> tuple[list[Sample], dict[str, int]]:
    """Samples in the order of `rows`, and the number of rows left out for each reason.

    The reason "too_long": a sequence of the row has more than `max_length` tokens. A row is one
    sample, or one for each answer where the template changes earlier answers (Qwen 3). Raises
    RequestError and TemplateError when nothing can be learned with this model's template.
    """
    # Imported here, so that the front can read and audit rows without loading llama.cpp.
    from edge_agent.prompt.training_sequence import encode_turns

    samples: list[Sample] = []
    rejected: dict[str, int] = {}
    for row in rows:
        encoded = encode_turns(prompts, row.messages)
        if max(len(one.ids) for one in encoded) > max_length:
            rejected["too_long"] = rejected.get("too_long", 0) + 1
            continue
        samples += [
            Sample(row.number, array("i", one.ids), one.learned, one.n_bytes) for one in encoded
        ]
    return samples, rejected
