"""The rows of a run in an order that the user gives, instead of a shuffled one.

Why it exists: for a curriculum, or for a run that must see the rows of another trainer. The file
has one number per line: the line of a row in the data, from 1. One epoch goes through the file from
top to bottom. A row may occur several times; a row that is not in the file is not learned, and
counted. Flows in: --order. Flows out: samples in that order. Not here: batches (trainer.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.errors import DataRefused, UsageError
from train_host.samples import Samples, read_content
from train_host.settings import SftSettings

_NUMBER = re.compile(rb"[1-9]\d{0,17}")

LEFT_OUT = "not_in_order"
"""The reason in Samples.dropped for rows that the file does not name."""


@dataclass(frozen=True)
class RowOrder:
    """`numbers` are lines of the data, from 1, in the order in which they are learned."""

    path: Path
    numbers: list[int]
    sha256: str


def read_order(path: Path) -> RowOrder:
    """Read the file; blank lines are skipped. Raises DataRefused."""
    content = read_content(path, "order", "--order")
    numbers = []
    for place, line in enumerate(content.splitlines(), start=1):
        text = line.strip()
        if text and not _NUMBER.fullmatch(text):
            shown = text[:40].decode("utf-8", "replace")
            raise DataRefused(
                f"line {place} of the order {path} is {shown!r}",
                "it is not the number of a line of the data, from 1",
                "write one number a line and nothing else",
            )
        if text:
            numbers.append(int(text))
    if not numbers:
        raise DataRefused(
            f"the order {path} is empty", "nothing would be learned", "write one number a line"
        )
    return RowOrder(path, numbers, hashlib.sha256(content).hexdigest())


def settle(settings: SftSettings) -> SftSettings:
    """The settings of a run in a given order. Raises UsageError."""
    if settings.packing:
        raise UsageError(
            "--order does not go with --packing",
            "packing puts rows together by their length",
            "leave one of them out",
        )
    return replace(settings, sampling="sequential")


def ordered(samples: Samples, order: RowOrder, held_back: Container[int]) -> Samples:
    """All samples of each named row, in the order of the file.

    `held_back` are the rows kept for validation. Raises DataRefused for a row that is not in
    `samples`.
    """
    places: dict[int, list[int]] = {}
    for place, row in enumerate(samples.rows):
        places.setdefault(row, []).append(place)
    chosen = []
    for number in order.numbers:
        if number not in places:
            raise _no_row(order, number, held_back)
        chosen += places[number]
    left_out = len(places.keys() - set(order.numbers))
    return Samples(
        [samples.input_ids[place] for place in chosen],
        [samples.labels[place] for place in chosen],
        [samples.n_bytes[place] for place in chosen],
        [samples.rows[place] for place in chosen],
        {**samples.dropped, **({LEFT_OUT: left_out} if left_out else {})},
    )


def _no_row(order: RowOrder, number: int, held_back: Container[int]) -> DataRefused:
    what = f"the order {order.path} names row {number}, which is not learned"
    if number in held_back:
        why = "it is kept back to validate with"
        return DataRefused(what, why, "take it out of the order, or give --validation-share 0")
    why = "the data has no row in that line, or one that is longer than --max-length"
    return DataRefused(what, why, "take it out of the order; lines count from 1")
