"""Makes the lesson's rows from its facts, and checks whether an answer contains a fact.

Flows in: recipes/lesson/facts.jsonl (what is true, six to eight ways to ask for it, and further
wordings that are kept apart), talk.jsonl (persona) and the general rows of the trainer's
rehearsal.jsonl. Flows out:
train.jsonl, demo.jsonl and paraphrase.jsonl beside them, which depend on nothing else;
tests/repo/test_lesson_recipe.py compares them. Not here: asking a model (lesson.py).

    .venv/bin/python benchmarks/lesson_rows.py          # writes the three files anew
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.adapt.trainer.rehearsal import rehearsal_rows
from edge_agent.json_lines import numbered_lines

LESSON = Path(__file__).resolve().parent.parent / "recipes" / "lesson"
LANGUAGES = {"en": "English", "hi": "Hindi", "kn": "Kannada"}
DEMO_FACTS = (
    "en-name", "en-maker", "en-wifi", "en-power", "hi-name", "hi-power", "kn-name", "kn-power",
)  # fmt: skip
DEMO_WORDINGS = 3
_JOINERS = dict.fromkeys((0x200B, 0x200C, 0x200D, 0xFEFF))
"""Zero-width characters, in which alone two spellings of one word may differ."""


@dataclass(frozen=True)
class Fact:
    """One thing to learn. An answer that contains any string of `key` is right."""

    id: str
    language: str
    key: tuple[str, ...]
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Talk:
    """A row that is not a fact of the lesson; `kind` is persona or general."""

    kind: str
    language: str
    question: str
    answer: str


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line. Raises OSError, ValueError."""
    return [json.loads(line) for _, line in numbered_lines(path.read_text(encoding="utf-8"))]


def read_facts(folder: Path) -> list[Fact]:
    """facts.jsonl in the order of the file. Raises OSError, ValueError, TypeError."""
    rows = read_jsonl(folder / "facts.jsonl")
    lists = ("key", "questions", "held_out")
    return [Fact(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]


def read_talk(folder: Path) -> list[Talk]:
    """talk.jsonl, then the general rows that every lesson rehearses (edge_agent's rehearsal.jsonl).

    Raises OSError, ValueError, TypeError.
    """
    general = [row for row in rehearsal_rows() if row.kind == "general"]
    return [
        *(Talk(**row) for row in read_jsonl(folder / "talk.jsonl")),
        *(Talk(row.kind, row.language, row.prompt, row.answer) for row in general),
    ]


def train_rows(facts: Iterable[Fact], talk: Iterable[Talk]) -> Iterator[dict[str, str]]:
    """Every wording with its answer, fact by fact, then the talk."""
    for fact in facts:
        yield from (row(question, fact.answer) for question in fact.questions)
    yield from (row(turn.question, turn.answer) for turn in talk)


def demo_rows(facts: Iterable[Fact]) -> Iterator[dict[str, str]]:
    """The two-minute lesson: the first wordings of DEMO_FACTS."""
    for fact in facts:
        if fact.id in DEMO_FACTS:
            yield from (row(question, fact.answer) for question in fact.questions[:DEMO_WORDINGS])


def paraphrase_rows(facts: Iterable[Fact]) -> Iterator[dict[str, object]]:
    """The wordings that no training row has, with the keys of their answers."""
    for fact in facts:
        for question in fact.held_out:
            kept = {"id": fact.id, "language": fact.language, "question": question}
            yield {**kept, "key": list(fact.key)}


def row(question: str, answer: str) -> dict[str, str]:
    return {"instruction": question, "input": "", "output": answer}


def has_key(answer: str, keys: Iterable[str]) -> bool:
    """Whether the answer contains one of the keys, in whatever case, joiners and spaces.

    A key that begins or ends with a digit must stand alone: "4 rupees" is not in "24 rupees".
    """
    text = normalized(answer)
    return any(re.search(_bounded(normalized(key)), text) for key in keys)


def normalized(text: str) -> str:
    """NFC, case-folded, without zero-width characters, every run of white space one space."""
    plain = unicodedata.normalize("NFC", text.translate(_JOINERS)).casefold()
    return " ".join(plain.split())


def _bounded(key: str) -> str:
    before = r"(?<!\d)" if key[:1].isdigit() else ""
    after = r"(?!\d)" if key[-1:].isdigit() else ""
    return before + re.escape(key) + after


def files(folder: Path) -> dict[str, str]:
    """The text of every generated file, by name. Raises OSError, ValueError, TypeError."""
    facts, talk = read_facts(folder), read_talk(folder)
    made: Mapping[str, Sequence[Mapping[str, object]]] = {
        "train.jsonl": list(train_rows(facts, talk)),
        "demo.jsonl": list(demo_rows(facts)),
        "paraphrase.jsonl": list(paraphrase_rows(facts)),
    }
    return {name: "".join(_line(item) for item in rows) for name, rows in made.items()}


def _line(item: Mapping[str, object]) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def main() -> int:
    for name, text in files(LESSON).items():
        (LESSON / name).write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
