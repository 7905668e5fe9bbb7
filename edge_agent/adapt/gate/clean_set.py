"""The clean set: questions and texts that no lesson touches, to see what a lesson did elsewhere.

Why it exists: the effect of lessons on what they do not teach can be compared only with fixed rows.
The 111 rows in clean_set.jsonl were written for this project and given to the public domain (CC0
1.0): 37 each in English, Hindi and Kannada. Flows in: that file. Flows out: rows, and a subset that
is the same on every device and in every run. Not here: feedback, which never adds a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.adapt.gate.words import words
from edge_agent.records import Message

LANGUAGES = ("en", "hi", "kn")
_FILE = Path(__file__).with_suffix(".jsonl")
Kind = Literal["fact", "sum", "talk", "text", "advice", "persona", "probe", "plain"]


class CleanRow(msgspec.Struct, frozen=True):
    """One question or text. A row without `answer` is asked and never scored; a plain one has no
    chat around it, is scored and never asked.

    A right answer contains one of `keys`: as a whole word in ASCII, as the beginning of a word in
    other scripts (Hindi and Kannada inflect words at the end). `keys` is empty where the right
    answer is a matter of time or taste.
    """

    id: str
    language: Literal["en", "hi", "kn"]
    kind: Kind
    prompt: str
    answer: str | None = None
    keys: tuple[str, ...] = ()

    @property
    def question(self) -> list[Message]:
        return [Message("user", self.prompt)]

    def is_right(self, answer: str) -> bool:
        """Whether one of the keys occurs in the answer."""
        said = words(answer)
        return any(
            word == key or (not key.isascii() and word.startswith(key))
            for key in self.keys
            for word in said
        )


@cache
def clean_set() -> tuple[CleanRow, ...]:
    """All rows of the clean set, in the order of the file."""
    return tuple(
        msgspec.json.decode(line, type=CleanRow) for line in _FILE.read_bytes().splitlines()
    )


def choose(
    rows: Iterable[CleanRow], is_wanted: Callable[[CleanRow], bool], n_per_language: int
) -> list[CleanRow]:
    """At most `n_per_language` wanted rows of each language, in the order of their ids' hashes.

    The order is fixed: when a lesson excludes a row, the next one takes its place and the others
    stay, so that the figures of two lessons can be compared.
    """
    wanted = sorted((row for row in rows if is_wanted(row)), key=_rank)
    return [
        row
        for language in LANGUAGES
        for row in [one for one in wanted if one.language == language][:n_per_language]
    ]


def _rank(row: CleanRow) -> bytes:
    return hashlib.sha256(row.id.encode()).digest()
