"""Fills the prefix store: the states that enter the lowest trained block, once for each sample.

Why it exists: below that block nothing changes while training, so what every epoch would compute
again is computed once. Flows in: samples, a decoder. Flows out: a file of states, and one that says
how many rows of it are on the disk and, at the end, its SHA-256; a run that is killed here goes on
at the row it had synced. Rows are packed in the order of the data, so the states do not
depend on where it was interrupted. Not here: the format (prefix_store.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.packed_samples import Material
from edge_agent.adapt.trainer.packing import bins
from edge_agent.adapt.trainer.prefix_store import PrefixStore
from edge_agent.adapt.trainer.run_directory import StateFiles, read_json, sha256, write_json
from edge_agent.adapt.trainer.training_loop import Desk

SYNC_S = 20.0
"""Of computing that a kill may cost."""


class PrefixFiller:
    """Of one run or one trial. `identity` names everything else the states depend on."""

    def __init__(
        self,
        files: StateFiles,
        material: Material,
        batch_tokens: int,
        identity: dict[str, Any],
        desk: Desk,
    ) -> None:
        self._files, self._material, self._desk = files, material, desk
        self._identity = {**identity, "batch_tokens": batch_tokens}
        samples = material.samples
        self._rows = bins(samples, batch_tokens, range(len(samples)))

    def fill(self, decoder: Decoder) -> float:
        """Store what is missing and hand the store to the material; seconds it took.

        Nothing is stored when the lowest block is trained. Raises StopAsked, OSError.
        """
        if decoder.lowest == 0:
            return 0.0
        began_s = self._desk.monotonic()
        identity = {**self._identity, "lowest": decoder.lowest}
        done = self._stored(identity)
        if done == 0:
            store = self._desk.interlude.persist(lambda: self._create(decoder.shape.n_embd))
        else:
            store = PrefixStore.open(self._files.states)
        if done < len(self._rows):
            self._compute(decoder, store, done, identity)
        self._material.prefix = store
        return self._desk.monotonic() - began_s

    def _create(self, n_embd: int) -> PrefixStore:
        self._files.remove()
        return PrefixStore.create(self._files.states, self._material.n_tokens, n_embd)

    def _stored(self, identity: dict[str, Any]) -> int:
        """How many rows are there already; 0 when the store is not this run's or is damaged."""
        found = read_json(self._files.progress)
        rows = found.get("rows")
        if found.get("identity") != identity or not isinstance(rows, int):
            return 0
        try:
            if rows < len(self._rows):
                return max(0, rows) if self._files.states.is_file() else 0
            is_whole = found.get("sha256") == sha256(self._files.states)
        except OSError:
            return 0
        return len(self._rows) if is_whole else 0

    def _compute(
        self, decoder: Decoder, store: PrefixStore, done: int, identity: dict[str, Any]
    ) -> None:
        desk, total = self._desk, len(self._rows)
        synced_s = desk.monotonic()
        for number in range(done, total):
            self._one_row(decoder, store, self._rows[number])
            desk.reporter.note(f"states below block {decoder.lowest}: {number + 1} of {total}")
            mark = partial(self._mark, store, number + 1, identity)
            if number + 1 == total or desk.monotonic() - synced_s >= SYNC_S:
                mark()
                synced_s = desk.monotonic()
            desk.interlude.rest(mark)

    def _one_row(self, decoder: Decoder, store: PrefixStore, row: list[int]) -> None:
        batch, _ = self._material.batch(row)
        states, place = decoder.states(batch, decoder.lowest), 0
        for sample in row:
            n = len(self._material.samples[sample])
            store.write(self._material.first_token(sample), states[place : place + n])
            place += n

    def _mark(self, store: PrefixStore, rows: int, identity: dict[str, Any]) -> None:
        """The rows so far are on the disk, and it is written down. Waits for room.

        The store is called finished every time, so that it can be opened again; how far it really
        is stands in the file beside it.
        """

        def write() -> None:
            store.finish()
            document = {"identity": identity, "rows": rows}
            if rows == len(self._rows):
                document["sha256"] = sha256(self._files.states)
            write_json(self._files.progress, document)

        self._desk.interlude.persist(write)
