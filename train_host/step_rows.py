"""Which rows each training step takes: the same ones for any number of processes.

Why it exists: where the rows do not fill the last step of an epoch, accelerate gives rows of the
first step to the processes that have none, and those count twice. Here they get an empty row: one
token, nothing to learn. And rows of unequal length make padding, which costs as much as text: the
rows of a step are sorted by length before they are cut into micro-batches. That changes no step,
whose gradient is the mean over all of its tokens (transformers' group_by_length changes them: its
steps are short or long as a whole, depend on the number of processes, and are others after a
resume). The order depends on seed and epoch alone, so a resumed run finds its place. Flows in:
lengths, the steps made. Flows out: numbers of rows. Needs torch and datasets. Not here: what the
rows hold (samples.py), an order that the user gives (row_order.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

from train_host.samples import IGNORED


@dataclass(frozen=True)
class Epoch:
    """Its rows and how they are dealt out. `lengths`: tokens of each, the empty row left out.

    `batch_size`: rows of a step; `n_together`: of all processes at a time, 1 for a single process;
    `shuffles`, or takes the rows as they stand; `sorts` the rows of a step by length.
    """

    lengths: Sequence[int]
    batch_size: int
    n_together: int
    seed: int
    shuffles: bool = True
    sorts: bool = True

    @property
    def n_steps(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    @property
    def n_empty(self) -> int:
        """Empty rows at its end: then every process has as many micro-batches."""
        return -len(self.lengths) % self.n_together


class StepRows(Sampler[int]):  # type: ignore[misc]
    """Shuffles anew in each epoch; every process iterates over all rows and keeps its own."""

    def __init__(self, epoch: Epoch, steps_made: Callable[[], int]) -> None:
        """`steps_made`: of the whole run; asked for when an epoch begins or is resumed."""
        self._epoch, self._steps_made = epoch, steps_made

    def __len__(self) -> int:
        return len(self._epoch.lengths) + self._epoch.n_empty

    def __iter__(self) -> Iterator[int]:
        epoch, n_rows = self._epoch, len(self._epoch.lengths)
        rows = list(range(n_rows))
        if epoch.shuffles:
            number = self._steps_made() // epoch.n_steps
            generator = torch.Generator().manual_seed(epoch.seed + number)
            rows = torch.randperm(n_rows, generator=generator).tolist()
        for first in range(0, n_rows, epoch.batch_size):
            step = rows[first : first + epoch.batch_size]
            if epoch.sorts:
                step.sort(key=lambda row: -epoch.lengths[row])
            yield from step
        yield from [n_rows] * epoch.n_empty


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
