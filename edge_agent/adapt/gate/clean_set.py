"""The clean set: questions and texts that no lesson touches, to see what a lesson did elsewhere.

102 rows in clean_set.jsonl, written for this project and given to the public domain (CC0 1.0): 34
each in English, Hindi and Kannada. Flows in: the package's own file. Flows out: rows, and a subset
that is the same on every device and in every run. Not here: feedback never adds to it.
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
Kind = Literal["fact", "sum", "talk", "text", "advice", "persona", "probe"]


class CleanRow(msgspec.Struct, frozen=True):
    """`answer` None: asked, never scored. `keys`: one of them begins a word of a right answer, in
    Latin script and digits it is the word; empty where the right answer changes with time or taste.
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
        """Does a key occur in the answer?"""
        said = words(answer)
        return any(
            word == key or (not key.isascii() and word.startswith(key))
            for key in self.keys
            for word in said
        )


@cache
def clean_set() -> tuple[CleanRow, ...]:
    return tuple(
        msgspec.json.decode(line, type=CleanRow) for line in _FILE.read_bytes().splitlines()
    )


def choose(
    rows: Iterable[CleanRow], is_wanted: Callable[[CleanRow], bool], n_per_language: int
) -> list[CleanRow]:
    """At most so many wanted rows of each language, the first in the order of their hashes.

    When a lesson rules rows out the next ones take their places; the others stay, so that the
    numbers of two lessons can be compared.
    """
    wanted = sorted((row for row in rows if is_wanted(row)), key=_rank)
    return [
        row
        for language in LANGUAGES
        for row in [one for one in wanted if one.language == language][:n_per_language]
    ]


def _rank(row: CleanRow) -> bytes:
    return hashlib.sha256(row.id.encode()).digest()
