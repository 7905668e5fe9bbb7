"""One run from its Start to its adapter: prepare, plan, choose blocks, store the states, train.

Why it exists: the parts of a run have an order, and a resumed run skips the finished ones. Flows
in: a Start, the front's orders, a reporter. Flows out: the files of the run's directory, and the
last record of the process: Finished, Stopped, or Planned (when only a plan was asked for). A
resumed run uses the finished trials, the stored states and the newest complete checkpoint. Not
here: the parts themselves (preparation.py, plan.py, layer_choice.py, stored_states.py,
training_loop.py), the socket (process.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_agent import atomic_file
from edge_agent.adapt.messages import Finished, FromTrainer, Start, Stopped
from edge_agent.adapt.trainer import device, heap, manifest
from edge_agent.adapt.trainer.adapter_writer import AdapterHeader, write_adapter
from edge_agent.adapt.trainer.checkpoint import TrainingCheckpoints
from edge_agent.adapt.trainer.decoder.compute import blas_threads
from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.decoder.lora import LoraWeight, parameters
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import (
    LayerTrial,
    LayerTrials,
    best,
    new_decoder,
    validation_rows,
)
from edge_agent.adapt.trainer.manifest import FREE_SETTINGS, Circumstances, Decisions, Manifest
from edge_agent.adapt.trainer.pauses import FrontOrders, Pauses, StopAsked
from edge_agent.adapt.trainer.plan import Planner
from edge_agent.adapt.trainer.preparation import (
    PreparedData,
    circumstances,
    prepare,
)
from edge_agent.adapt.trainer.rehearsal import Rehearsal, RehearsalOrder
from edge_agent.adapt.trainer.rehearsal_maker import RehearsalMaker
from edge_agent.adapt.trainer.rehearsal_targets import TargetFiller
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.adapt.trainer.run_directory import RunDirectory, read_json, write_json
from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.adapt.trainer.stored_states import StateFiller
from edge_agent.adapt.trainer.training_loop import EpochOrder, LoopState, LoopTools, TrainingLoop
from edge_agent.adapt.trainer.training_step import TrainingStep
from edge_agent.errors import TrainingFailed
from edge_agent.gguf.base_identity import identify_base
from edge_agent.regular_file import sha256_of

WITHOUT_VALIDATION = 8
"""Number of top blocks that `auto` takes when no rows are kept to validate trials with: with it,
lessons of 24 rows were learned and nothing else lost (dev/log)."""

Result = TypeVar("Result")


def carry_out(
    start: Start,
    orders: FrontOrders,
    reporter: Reporter,
    monotonic: Callable[[], float] = time.monotonic,
) -> FromTrainer:
    """Carry out a run and return its last record. Raises the errors of its parts.

    For example, with a Start whose `plan_only` is set:

        carry_out(start, FrontOrders(), reporter)    # a Planned
    """
    directory = RunDirectory(Path(start.run_dir))
    log = RunLog(directory.log)
    tools = LoopTools(Pauses(orders, reporter), reporter, log, monotonic)
    try:
        return _Run(start, directory, tools).carry_out()
    except StopAsked:
        return Stopped(reporter.latest.step)
    finally:
        log.close()
        directory.close()


class _Run:
    """One run. `_began` is the manifest of a run that began before; None for a new run."""

    def __init__(self, start: Start, directory: RunDirectory, tools: LoopTools) -> None:
        self._start, self._directory, self._tools = start, directory, tools
        self._settings = start.settings
        self._began = None if start.plan_only else manifest.read(directory.manifest)
        self._trials: list[LayerTrial] = []
        self._influence: list[float] = []
        self._rehearse_s = 0.0

    def carry_out(self) -> FromTrainer:
        if self._began is not None:
            if not self._start.resume:
                raise TrainingFailed(
                    f"{self._directory.path} holds a run already",
                    "it has a manifest",
                    "resume it, or give the new run another name",
                )
            found = self._finished_before(self._began)
            if found is not None:
                return found
        xp = device.array_module(self._settings.device)
        lesson, now = self._prepared()
        lesson.notes.extend(device.notes(self._settings.device))
        weights = PackedWeights(Path(self._start.model_path), n_threads=now.n_threads, xp=xp)
        heap.give_back()
        path = None if self._start.plan_only else self._directory.rehearsal
        maker = RehearsalMaker(weights, now.model_sha256, self._settings, path, self._tools)
        lesson = maker.add_to(lesson)
        now = msgspec.structs.replace(now, samples_sha256=lesson.packed.sha256())
        if self._began is not None:
            manifest.check_same(self._start.name, self._began.circumstances, now)
        if self._start.plan_only:
            return Planner(weights, lesson, self._settings, self._tools).plan().planned
        decided = self._decided(weights, lesson, now)
        decided = self._with_layers(weights, lesson, decided)
        return self._trained(weights, lesson, decided)

    # ---- before training ----------------------------------------------------------------------

    def _finished_before(self, began: Manifest) -> Finished | None:
        """The result of a run that had finished; None when it had not, or when the adapter's file
        has another SHA-256."""
        try:
            found = msgspec.json.decode(self._directory.result.read_bytes(), type=Finished)
            is_whole = sha256_of(self._directory.adapter) == found.adapter_sha256
        except (OSError, msgspec.DecodeError):
            return None
        if not is_whole:
            return None
        path = str(self._directory.adapter)
        return msgspec.structs.replace(found, adapter_path=path)

    def _prepared(self) -> tuple[PreparedData, Circumstances]:
        """The samples and the circumstances. Raises TrainingFailed when they differ from those that
        a resumed run began with."""
        start, directory, began = self._start, self._directory, self._began
        self._tools.reporter.progress(phase="prepare", note="reading the data")
        if began is not None:
            # The manifest's setting counts: the run's samples were chosen with it.
            audit = began.circumstances.settings.audit
            self._settings = msgspec.structs.replace(self._settings, audit=audit)
        elif not start.plan_only:
            self._persist(lambda: directory.freeze_data(Path(start.data_path)))
        data = Path(start.data_path) if start.plan_only else directory.data
        now = circumstances(start, data, blas_threads())
        if began is not None:
            samples = began.circumstances.samples_sha256
            now = msgspec.structs.replace(now, samples_sha256=samples)
            manifest.check_same(start.name, began.circumstances, now)
        model, earlier = Path(start.model_path), self._earlier()
        lesson = prepare(data, model, self._settings, earlier, self._asked())
        self._tools.pauses.rest()
        return lesson, now

    def _earlier(self) -> dict[str, Any]:
        """What the active adapter was taught: frozen when the run begins, like the data."""
        frozen = self._directory.earlier
        if self._began is not None:
            return read_json(frozen)
        path = self._start.earlier_path
        found = read_json(Path(path)) if path else {}
        if found and not self._start.plan_only:
            self._persist(lambda: write_json(frozen, found))
        return found

    def _asked(self) -> dict[str, Any]:
        """What users of this board asked. The file stays as it is while the run can be resumed."""
        path = self._start.asked_path
        return read_json(Path(path)) if path else {}

    def _decided(
        self, weights: PackedWeights, lesson: PreparedData, now: Circumstances
    ) -> Manifest:
        """The manifest of the run. A new run's is written, and its plan sent to the front. Raises
        TrainingFailed when the run does not fit into memory."""
        if self._began is not None:
            self._tools.reporter.tell(self._began.planned)
            return self._began
        plan = Planner(weights, lesson, self._settings, self._tools).plan()
        self._tools.reporter.tell(plan.planned)
        plan.check()
        decided = Manifest(self._start.name, self._start.model, now, plan.decisions, plan.planned)
        self._persist(lambda: write_json(self._directory.split, lesson.chats))
        self._persist(lambda: manifest.write(self._directory.manifest, decided))
        return decided

    def _with_layers(
        self, weights: PackedWeights, lesson: PreparedData, decided: Manifest
    ) -> Manifest:
        """The manifest with the blocks to train: with `auto`, those that the trials choose."""
        decisions, directory = decided.decisions, self._directory
        self._influence = read_json(directory.trials).get("influence", [])
        if not decisions.candidates:
            return decided
        self._trials = [LayerTrial(**one) for one in read_json(directory.trials).get("trials", [])]
        if decisions.layers:
            return decided
        count = self._chosen(weights, lesson, decisions)
        layers = list(range(weights.gguf.n_layer - count, weights.gguf.n_layer))
        plan = Planner(weights, lesson, self._settings, self._tools).plan_for(layers, decisions)
        self._tools.reporter.tell(plan.planned)
        decided = msgspec.structs.replace(decided, decisions=plan.decisions, planned=plan.planned)
        self._persist(lambda: manifest.write(directory.manifest, decided))
        return decided

    def _chosen(self, weights: PackedWeights, lesson: PreparedData, decisions: Decisions) -> int:
        """The number of top blocks that `auto` chooses. Raises StopAsked."""
        counts, path = decisions.candidates, self._directory.trials
        if len(counts) == 1 or not lesson.packed.validation:
            return max(count for count in counts if count <= max(WITHOUT_VALIDATION, counts[0]))
        self._tools.reporter.progress(phase="trial", note="")
        trials = LayerTrials(
            weights,
            lesson.packed,
            self._settings,
            decisions.batch_tokens,
            self._directory.trial_prefix,
            self._tools,
        )
        if not self._influence:
            self._influence = trials.influence()

        def save(done: list[LayerTrial]) -> None:
            document = {"influence": self._influence, "trials": [one.as_json() for one in done]}
            self._persist(lambda: write_json(path, document))

        self._trials = trials.run(counts, self._trials, save)
        return best(self._trials)

    # ---- training -----------------------------------------------------------------------------

    def _trained(self, weights: PackedWeights, lesson: PreparedData, decided: Manifest) -> Finished:
        settings, decisions = self._settings, decided.decisions
        packed, batch_tokens = lesson.packed, decisions.batch_tokens
        decoder, loras = new_decoder(weights, settings, decisions.layers)
        self._tools.reporter.progress(phase="prefix", note="")
        identity = {"circumstances": msgspec.to_builtins(decided.circumstances)}
        StateFiller(self._directory.prefix, packed, batch_tokens, identity, self._tools).fill(
            decoder
        )
        self._fill_targets(decoder, lesson, decided)
        train = [packed.samples[n] for n in packed.train]
        epoch_order = EpochOrder(train, settings, batch_tokens)
        rehearsal = RehearsalOrder(lesson.rehearsal, packed.rehearsal.start, settings.seed)
        training_step = TrainingStep(
            decoder, loras, packed, settings, epoch_order.n_steps(), rehearsal
        )
        loop = TrainingLoop(
            training_step,
            epoch_order,
            validation_rows(packed, batch_tokens),
            settings,
            TrainingCheckpoints(self._directory.checkpoints),
            self._tools,
        )
        loop.restore()
        loop_state = loop.run()
        for name, value, _ in parameters(loras):
            value[:] = loop.best[name]
        for lora in loras.values():
            lora.a, lora.b = map(weights.compute.to_host, (lora.a, lora.b))
        return self._finished(weights, loras, loop_state, decided, lesson.rehearsal)

    def _fill_targets(self, decoder: Decoder, lesson: PreparedData, decided: Manifest) -> None:
        """Store, or read, what the rehearsal must keep: it depends on the model, the blocks, the
        texts and all that computes bits, and not on how the lesson is trained."""
        numbers = lesson.rehearsal.soft(lesson.packed.rehearsal.start)
        if not numbers:
            return
        self._tools.reporter.progress(phase="rehearse", note="")
        identity = msgspec.to_builtins(decided.circumstances)
        for name in ("settings", "data_sha256", "samples_sha256"):
            identity.pop(name)
        identity |= {"lowest": decoder.lowest, "row_tokens": decided.decisions.batch_tokens}
        cache = Path(self._start.cache_dir) if self._start.cache_dir and not lesson.asked else None
        path, packed = self._directory.targets, lesson.packed
        filler = TargetFiller(path, cache, packed, numbers, identity, self._tools)
        self._rehearse_s = filler.fill(decoder, decided.decisions.batch_tokens)

    def _finished(
        self,
        weights: PackedWeights,
        loras: dict[str, LoraWeight],
        loop_state: LoopState,
        decided: Manifest,
        rehearsal: Rehearsal,
    ) -> Finished:
        """Write the adapter, then the result, then remove the stored states."""
        self._tools.reporter.progress(phase="save", note="writing the adapter")
        header = self._header(weights, loop_state, decided)
        path = self._directory.adapter
        digest = self._persist(lambda: write_adapter(path, loras, header))
        finished = Finished(
            adapter_path=str(path),
            adapter_sha256=digest,
            layers=decided.decisions.layers,
            losses=loop_state.losses,
            tok_s=loop_state.tok_s,
            train_s=loop_state.train_s,
            steps=loop_state.step,
            peak_rss_anon_bytes=max(self._tools.reporter.peak_bytes, loop_state.peak_bytes),
            influence=self._influence,
            trials=[trial.as_json() for trial in self._trials],
            validation_before=loop_state.before,
            best_epoch=loop_state.best_epoch,
            ended=loop_state.ended,
            end_loss=rehearsal.end_loss,
            rehearsal={
                "kind": rehearsal.kind,
                "rows": len(rehearsal.samples),
                "seconds": self._rehearse_s,
            },
        )
        encoded = msgspec.json.format(msgspec.json.encode(finished), indent=1)
        self._persist(lambda: atomic_file.write(self._directory.result, encoded + b"\n"))
        self._directory.prefix.remove()
        self._directory.targets.unlink(missing_ok=True)
        if self._start.asked_path:
            Path(self._start.asked_path).unlink(missing_ok=True)
        return finished

    def _header(
        self, weights: PackedWeights, loop_state: LoopState, decided: Manifest
    ) -> AdapterHeader:
        """The adapter's metadata. It does not depend on the time or on interruptions, so that the
        same run writes the same file."""
        settings: dict[str, Any] = msgspec.to_builtins(decided.circumstances.settings)
        frozen = {key: value for key, value in settings.items() if key not in FREE_SETTINGS}
        scores = {
            "losses": loop_state.losses,
            "validation_before": loop_state.before,
            "best_epoch": loop_state.best_epoch,
        }
        return AdapterHeader(
            self._start.name,
            weights.gguf.architecture,
            identify_base(weights.gguf, decided.circumstances.model_sha256),
            {**frozen, "layers": decided.decisions.layers},
            scores,
        )

    def _persist(self, write: Callable[[], Result]) -> Result:
        return self._tools.pauses.persist(write)
