"""Which rows each training step takes: the same ones for any number of processes.

Why it exists: where the rows do not fill the last step of an epoch, accelerate gives rows of the
first step to the processes that have none, and those count twice. Here they get an empty row: one
token, nothing to learn. And rows of unequal length make padding, which costs as much as text: the
rows of a step are sorted by length before they are cut into micro-batches. That changes no step,
whose gradient is the mean over all of its tokens (transformers' group_by_length changes them: its
steps are short or long as a whole, depend on the number of processes, and are others after a
resume). The order depends on seed and epoch alone, so a resumed run finds its place. Flows in:
settings, lengths, the epoch. Flows out: numbers of rows. Needs torch and datasets. Not here: what
the rows hold (samples.py), an order that the user gives (row_order.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from train_host.samples import IGNORED
from train_host.settings import SftSettings


@dataclass(frozen=True)
class Epoch:
    """Its rows. `lengths`: tokens of each one, the empty row left out."""

    lengths: Sequence[int]
    settings: SftSettings

    @property
    def n_rows(self) -> int:
        return len(self.lengths)

    @property
    def n_steps(self) -> int:
        return -(-self.n_rows // self.settings.batch_size)

    @property
    def n_empty(self) -> int:
        """Empty rows at its end: then every process has as many micro-batches."""
        if self.settings.n_processes == 1:
            return 0
        return -self.n_rows % (self.settings.micro_batch_size * self.settings.n_processes)


class StepRows(Sampler[int]):  # type: ignore[misc]
    """Shuffles anew in each epoch; every process iterates over all rows and keeps its own."""

    def __init__(self, epoch: Epoch, number: Callable[[], int], shuffles: bool = True) -> None:
        """`number`: of the epoch, from 0; asked for when one begins or is resumed."""
        self._epoch, self._number, self._shuffles = epoch, number, shuffles

    def __len__(self) -> int:
        return self._epoch.n_rows + self._epoch.n_empty

    def __iter__(self) -> Iterator[int]:
        n_rows, settings = self._epoch.n_rows, self._epoch.settings
        rows = list(range(n_rows))
        if self._shuffles:
            generator = torch.Generator().manual_seed(settings.seed + self._number())
            rows = torch.randperm(n_rows, generator=generator).tolist()
        for first in range(0, n_rows, settings.batch_size):
            step = rows[first : first + settings.batch_size]
            if not settings.packing:  # then rows are joined, not padded
                step.sort(key=lambda row: -self._epoch.lengths[row])
            yield from step
        yield from [n_rows] * self._epoch.n_empty


def with_empty_row(rows: Dataset) -> Dataset:
    """The same rows and an empty one behind them."""
    empty = {"input_ids": [[0]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
    columns = {name: empty[name] for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])


def n_real_tokens(batch: Mapping[str, Any]) -> int:
    """Of a batch as TRL makes it, padded or packed; padding and empty rows are left out.

    >>> n_real_tokens({"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])})
    5
    """
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].sum(1)
    else:
        lengths = batch["cu_seq_lens_q"].diff()
    return int(lengths[lengths > 1].sum())
