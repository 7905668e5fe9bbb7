"""Which rows each training step takes: the same for any number of processes.

Why it exists: where the rows do not fill the last step of an epoch, accelerate gives the processes
without rows some rows of the first step, which then count twice. Here such a process gets an empty
row: one token, nothing to learn. Rows of unequal length also make padding, which costs as much as
text, so the rows of a step are sorted by length before they are cut into micro-batches. Sorting
inside a step changes nothing, because the gradient of a step is the mean over all its tokens.
(transformers' group_by_length does change the steps: each is short or long as a whole, depends on
the number of processes, and differs after a resume.) The order depends on seed and epoch alone, so
a resumed run continues at the right row. Flows in: lengths, the number of steps made. Flows out:
numbers of rows. Needs torch and datasets. Not here: the content of rows (samples.py), an order that
the user gives (row_order.py).
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
    """The rows of an epoch and how they are distributed.

    `lengths`: tokens of each row, without the empty row. `batch_size`: rows of a step.
    `n_together`: rows that all processes take at a time; 1 for a single process. `shuffles`:
    shuffle, or take the rows in their order. `sorts`: sort the rows of a step by length.
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
        """Empty rows at the end of the epoch, which give every process equally many
        micro-batches."""
        return -len(self.lengths) % self.n_together


class StepRows(Sampler[int]):  # type: ignore[misc]
    """Shuffles anew in each epoch. Every process iterates over all rows and keeps its own."""

    def __init__(self, epoch: Epoch, steps_made: Callable[[], int]) -> None:
        """`steps_made` returns the steps of the whole run; it is called when an epoch begins or
        resumes."""
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
    """The same rows, followed by an empty one."""
    empty = {"input_ids": [[0]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
    columns = {name: empty[name] for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, features=rows.features)])


def n_real_tokens(batch: Mapping[str, Any]) -> int:
    """Tokens of a batch that TRL made, padded or packed, without padding and empty rows.

    >>> n_real_tokens({"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])})
    5
    """
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].sum(1)
    else:
        lengths = batch["cu_seq_lens_q"].diff()
    return int(lengths[lengths > 1].sum())
