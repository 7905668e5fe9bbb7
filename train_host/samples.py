"""Rows as the two columns of training: input_ids, and labels with -100 where none is learned.

Why it exists: TRL would tokenize by itself, with a template that differs from the device's, and
with a completion mask beside ready ids it learns every token. Therefore it gets only ids and
labels, made by the code that serves the device (edge_agent/prompt/training_sequence.py): every
assistant turn is learned, with the token that ends it. Flows in: rows. Flows out: Samples. A row
that is too long is left out as a whole and counted, never cut. Not here: batches, padding, packing
(TRL's).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.adapt.trainer import dataset
from edge_agent.adapt.trainer.dataset import ChatRow
from edge_agent.errors import DataRefused

if TYPE_CHECKING:
    from edge_agent.prompt.prompt_builder import PromptBuilder

BOM = b"\xef\xbb\xbf"
IGNORED = -100
"""The label that torch's cross_entropy ignores."""


@dataclass(frozen=True)
class Samples:
    """Columns of equal length, and how many rows were left out.

    `n_bytes`: UTF-8 bytes of the answers; `rows`: the line of each sample in its file; `dropped`:
    the number of rows left out, by reason.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    n_bytes: list[int]
    rows: list[int]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.input_ids))

    @property
    def n_supervised(self) -> int:
        """Number of tokens with a label."""
        return sum(label != IGNORED for labels in self.labels for label in labels)

    @property
    def supervised_share(self) -> float:
        """Share of all tokens that have a label; 0 when there are no tokens."""
        return self.n_supervised / self.n_tokens if self.n_tokens else 0.0

    def columns(self) -> dict[str, list[list[int]]]:
        """The only columns that TRL gets."""
        return {"input_ids": self.input_ids, "labels": self.labels}


@dataclass(frozen=True)
class Data:
    """A file of rows, read once: its bytes, its parsed rows, its SHA-256."""

    content: bytes
    rows: list[ChatRow]
    sha256: str


def read_data(path: Path) -> Data:
    """Read a file of any size, unlike on the device.

    Raises DataRefused that names the bad lines.
    """
    content = read_content(path, "training data", "--data")
    rows = dataset.parse_rows(content.removeprefix(BOM).split(b"\n"), str(path))
    return Data(content, rows, hashlib.sha256(content).hexdigest())


def read_content(path: Path, what: str, flag: str) -> bytes:
    """The whole file. Raises DataRefused that names `what`, and the `flag` it was given with."""
    try:
        return path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise DataRefused(f"cannot read the {what} {path}", why, f"check {flag}") from None


def lines_of(data: Data, numbers: Sequence[int]) -> bytes:
    """The lines with these numbers (from 1), unchanged."""
    lines = data.content.removeprefix(BOM).split(b"\n")
    return b"".join(lines[number - 1].rstrip(b"\r") + b"\n" for number in sorted(set(numbers)))


def encode_rows(rows: Sequence[ChatRow], prompts: PromptBuilder, max_length: int) -> Samples:
    """Samples in the order of `rows`. Raises RequestError, TemplateError (see encode_turns)."""
    encoded, dropped = dataset.encode_rows(rows, prompts, max_length)
    return Samples(
        [list(sample.ids) for sample in encoded],
        [labels_of(list(sample.ids), sample.learned) for sample in encoded],
        [sample.n_bytes for sample in encoded],
        [sample.row for sample in encoded],
        dropped,
    )


def labels_of(ids: Sequence[int], learned: Sequence[bool]) -> list[int]:
    """The label of a learned token is the token itself; the model shifts by one.

    >>> labels_of([7, 8, 9], [False, True, True])
    [-100, 8, 9]
    """
    return [token if known else IGNORED for token, known in zip(ids, learned, strict=True)]


def refuse_unlearnable(samples: Samples, path: str, max_length: int) -> None:
    """Raise DataRefused when the samples have no token to learn."""
    if samples.n_supervised:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in samples.dropped.items())
    raise DataRefused(
        f"there is nothing to learn in {path}",
        f"no row has a token to learn ({counts or 'no rows'})",
        f"raise --max-length (now {max_length}) or shorten the rows",
    )
