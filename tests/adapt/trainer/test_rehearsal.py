"""What a lesson rehearses: which rows, when, with which weight; the same after any kill."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_gguf import write_tiny_model
from trainer_runner import QUICK, TrainerProcess, start_message, train, write_lesson

from edge_agent.adapt.gate.clean_set import clean_set
from edge_agent.adapt.gate.words import words
from edge_agent.adapt.messages import Planned, TrainingProgress
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.checkpoint import TrainingCheckpoints
from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.compute import Compute
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import new_decoder
from edge_agent.adapt.trainer.packed_samples import PackedSamples
from edge_agent.adapt.trainer.pauses import FrontOrders, Pauses
from edge_agent.adapt.trainer.rehearsal import (
    Rehearsal,
    RehearsalOrder,
    RehearsalPool,
    choose,
    end_chats,
    general_chats,
    kind_of,
    openings,
    rehearsal_rows,
)
from edge_agent.adapt.trainer.rehearsal_targets import MOST_KEPT, TargetFiller, file_bytes
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.adapt.trainer.training_loop import (
    EpochOrder,
    LoopState,
    LoopTools,
    TrainingLoop,
)
from edge_agent.adapt.trainer.training_step import Stepped, TrainingStep, ValidationScore
from edge_agent.records import Message

ROWS = rehearsal_rows()
SETTINGS = RunSettings(**{**QUICK, "max_grad_norm": 0.0, "rehearsal_weight": 0.25})


def chat(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


def sample(first: int, n: int) -> Sample:
    ids = array("i", [(first * 7 + place * 3) % 90 + 10 for place in range(n)])
    return Sample(first, ids, [place >= n // 2 for place in range(n)], n)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_layer=4)


# ---- the rows of the package -------------------------------------------------------------------


def test_the_rows_are_of_three_languages_and_part_of_the_package() -> None:
    assert files("edge_agent.adapt.trainer").joinpath("rehearsal.jsonl").is_file()
    kinds = Counter((row.kind, row.language) for row in ROWS)
    assert {language for _, language in kinds} == {"en", "hi", "kn"}
    assert min(kinds["general", language] for language in ("en", "hi", "kn")) >= 60
    assert sum(count for (kind, _), count in kinds.items() if kind == "identity") == 16
    assert len({row.prompt for row in ROWS}) == len(ROWS)
    assert all(bool(row.answer) == (row.kind != "opening") for row in ROWS)


def test_no_row_is_nearly_a_question_of_the_gate() -> None:
    """Else the gate would examine what every lesson rehearses. "Who are you?" is rehearsed all the
    same: it is what people ask."""

    def near(one: str, two: str) -> bool:
        a, b = set(words(one)), set(words(two))
        return len(a & b) > 0.6 * len(a | b)

    found = [
        (row.prompt, clean.prompt)
        for row in ROWS
        for clean in clean_set()
        if row.kind == "general" and clean.kind != "plain" and near(row.prompt, clean.prompt)
    ]
    assert found == []


def test_what_the_lesson_teaches_is_not_rehearsed() -> None:
    general, identity = general_chats([chat("Where is the ladder?", "It is in the cellar.")])
    taught = general[0].messages[0].content
    less, same = general_chats([chat(taught, "Something else.")])
    assert taught not in {row.messages[0].content for row in less}
    assert (len(general) - len(less)) in range(1, 12) and same == identity
    assert general_chats([chat("Who are you?", "I am Tulsi, the helper.")])[1] == []


# ---- which kind, which pools ---------------------------------------------------------------------


def test_the_end_of_turn_decides_unless_the_user_does() -> None:
    auto = RunSettings()
    assert [kind_of(auto, loss) for loss in (2.7, 23.8, None)] == ["kl", "answers", "none"]
    assert kind_of(RunSettings(rehearsal="none"), 2.7) == "none"
    assert kind_of(RunSettings(rehearsal="kl"), 23.8) == "kl"
    assert {row.source for row in end_chats()} == {"general"} and len(end_chats()) == 10
    assert len(openings()) == 28


def test_an_instruct_model_keeps_itself_and_a_base_model_learns_answers() -> None:
    general, identity = [sample(n, 20) for n in range(250)], [sample(n, 9) for n in range(12)]
    asked, own = [sample(n, 30) for n in range(60)], [sample(n, 64) for n in range(28)]
    (kept,) = choose("kl", RunSettings(), general, identity, asked, own)
    assert kept.is_soft and (kept.weight, len(kept.samples)) == (0.5, 80 + 12)
    assert kept.samples[:40] == tuple(asked[:40]), "half of it is what users asked"
    answers, texts = choose("answers", RunSettings(), general, identity, asked, own)
    assert (answers.is_soft, texts.is_soft) == (False, True)
    assert (len(answers.samples), len(texts.samples)) == (180, 28)
    changed = RunSettings(rehearsal_weight=3.0, rehearsal_rows=7)
    answers, texts = choose("answers", changed, general, identity, asked, own)
    assert (answers.weight, texts.weight, len(answers.samples)) == (3.0, 6.0, 7)
    assert choose("none", RunSettings(), general, identity, asked, own) == ()


def test_the_rows_beside_a_step_are_a_function_of_seed_and_step() -> None:
    pools = (
        RehearsalPool(tuple(sample(n, 20 + n % 9) for n in range(30)), 0.5, 128, is_soft=True),
        RehearsalPool(tuple(sample(n, 64) for n in range(5)), 1.0, 64, is_soft=True),
    )
    rehearsal = Rehearsal("kl", pools)

    def beside(seed: int, number: int) -> list[list[int]]:
        order = RehearsalOrder(rehearsal, 100, seed)
        return [numbers for _, numbers in order.beside(number)]

    order = RehearsalOrder(rehearsal, 100, 1)
    walked = [[numbers for _, numbers in order.beside(number)] for number in range(40)]
    assert walked == [beside(1, number) for number in range(40)]
    assert walked != [beside(2, number) for number in range(40)]
    assert all(1 <= sum(len(pools[0].samples[n - 100]) for n in one[0]) <= 128 for one in walked)
    assert sorted(n for one in walked[:5] for n in one[1]) == list(range(130, 135))
    a_pass = next(n for n in range(1, 40) if sum(len(one[0]) for one in walked[:n]) == 30)
    assert sorted(n for one in walked[:a_pass] for n in one[0]) == list(range(100, 130))
    assert rehearsal.row_tokens == 128 + 64 and len(rehearsal.soft(100)) == 35


# ---- a step --------------------------------------------------------------------------------------


def test_a_step_is_the_lessons_mean_and_the_weighted_mean_of_the_rehearsal(
    model: Path, tmp_path: Path
) -> None:
    lesson, kept = [sample(n, 12 + n) for n in range(3)], [sample(50 + n, 10) for n in range(4)]
    pool = RehearsalPool(tuple(kept), 0.25, 128, is_soft=False)
    weights = PackedWeights(model)
    gradients = []
    for samples, rehearsal in ((lesson, [pool]), (lesson, []), (kept, [])):
        decoder, loras = new_decoder(weights, SETTINGS, [2, 3])
        for lora in loras.values():
            lora.b[:] = np.random.default_rng(1).standard_normal(lora.b.shape) / 8
        packed = PackedSamples(samples, [], kept if rehearsal else [])
        order = RehearsalOrder(Rehearsal("kl", tuple(rehearsal)), len(samples), 1)
        step = TrainingStep(decoder, loras, packed, SETTINGS, 10, order)
        stepped = step.step([list(packed.train)], 0)
        gradients.append({name: lora.grad_b.copy() for name, lora in loras.items()})
        assert stepped.n_supervised == packed.supervised(packed.train)
    assert stepped.rehearsal_loss is None
    for name, both in gradients[0].items():
        expected = gradients[1][name] + 0.25 * gradients[2][name]
        np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-6)


# ---- what must be kept ---------------------------------------------------------------------------


def test_targets_are_computed_once_and_a_damaged_file_again(model: Path, tmp_path: Path) -> None:
    packed = PackedSamples([sample(0, 10)], [], [sample(n, 12) for n in range(1, 6)])
    weights, cache = PackedWeights(model), tmp_path / "cache"
    computed: list[int] = []

    def fill(path: Path, cache: Path | None, **more: Any) -> bytes:
        reporter = Reporter(lambda _: None)
        tools = LoopTools(Pauses(FrontOrders(), reporter), reporter, RunLog(tmp_path / "log"))
        decoder, _ = new_decoder(weights, SETTINGS, [3])
        real = decoder.likeliest
        decoder.likeliest = lambda *args: (computed.append(1), real(*args))[1]  # type: ignore
        packed.targets = None
        numbers = list(packed.rehearsal)
        TargetFiller(path, cache, packed, numbers, {"model": 1, **more}, tools).fill(decoder, 96)
        return path.read_bytes() if path.exists() else b""

    first = fill(tmp_path / "one", cache)
    assert computed and len(first) == file_bytes(sum(6 for _ in packed.rehearsal))
    targets = packed.targets
    assert targets is not None and targets.of(0) is None
    found = targets.of(3)
    assert found is not None and found[0].shape == (6, 32)
    assert (found[1].sum(axis=1) <= 1.0001).all() and (np.diff(found[1], axis=1) <= 0).all()
    computed.clear()
    fill(tmp_path / "two", cache)
    assert computed == [], "another run finds them in the cache"
    fill(tmp_path / "two", cache, lowest=2)
    assert computed, "other blocks make other states"
    computed.clear()
    (tmp_path / "one").write_bytes(first[:-50] + b"x" + first[-49:])
    assert fill(tmp_path / "one", None) == first and computed, "damaged: computed to the same bits"
    assert fill(tmp_path / "alone", None) == first
    for n in range(MOST_KEPT + 2):
        fill(tmp_path / f"run{n}", cache, n=n)
    assert len(list(cache.iterdir())) == MOST_KEPT


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesson(tmp_path_factory.mktemp("data") / "lesson.jsonl")


@pytest.mark.parametrize("kind", ["kl", "answers", "none"])
def test_killed_at_each_phase_a_rehearsing_run_gives_the_same_adapter(
    model: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    """`rehearse` comes twice: which model is it (and its own texts), then what must be kept."""
    whole = train(start_message(model, tmp_path / "whole/run", data, rehearsal=kind))
    assert whole.rehearsal["kind"] == kind and whole.end_loss is not None
    start = start_message(model, tmp_path / "cut/run", data, rehearsal=kind, resume=True)
    for phases in (["rehearse"], ["prefix"], ["prefix", "rehearse"], ["train"], ["validate"]):
        if kind == "none" and phases[1:]:
            continue
        with TrainerProcess(start) as trainer:
            for phase in phases:
                trainer.wait_for(TrainingProgress, phase)
            trainer.kill()
    finished = train(start)
    assert finished.adapter_sha256 == whole.adapter_sha256 and finished.losses == whole.losses
    assert not (tmp_path / "cut/run/targets.bin").exists()


def test_another_rehearsal_is_another_run(model: Path, data: Path, tmp_path: Path) -> None:
    long = {"epochs": 400, "patience": 400}
    with TrainerProcess(start_message(model, tmp_path / "run", data, **long)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.kill()
    for name, value in (("rehearsal", "none"), ("rehearsal_weight", 2.0), ("rehearsal_rows", 3)):
        start = start_message(model, tmp_path / "run", data, **long, **{name: value}, resume=True)
        with TrainerProcess(start) as trainer:
            refused = trainer.failure()
        assert f"settings.{name}: began with" in refused.why


def test_the_plan_says_what_is_rehearsed_and_writes_no_texts(
    model: Path, data: Path, tmp_path: Path
) -> None:
    sizes = {}
    for kind in ("kl", "answers", "none"):
        start = start_message(model, tmp_path / kind, data, rehearsal=kind, plan_only=True)
        with TrainerProcess(start) as trainer:
            planned = [*trainer.records()][-1]
        assert isinstance(planned, Planned) and planned.rehearsal["kind"] == kind
        assert not (tmp_path / kind / "rehearsal.json").exists()
        assert bool(planned.rehearsal["tokens"]) == (kind != "none")
        sizes[kind] = planned.bytes["total"]
    assert sizes["none"] < sizes["kl"] and sizes["none"] < sizes["answers"]


def test_a_base_model_writes_texts_that_a_resumed_run_reads(
    model: Path, data: Path, tmp_path: Path
) -> None:
    start = start_message(model, tmp_path / "run", data, rehearsal="answers", resume=True)
    with TrainerProcess(start) as trainer:
        trainer.wait_for(TrainingProgress, "prefix")
        trainer.kill()
    known = json.loads((tmp_path / "run/rehearsal.json").read_text())
    assert 20 <= len(known["own"]) <= 28
    assert all(8 <= len(one["ids"]) <= 64 for one in known["own"])
    assert all(sum(one["learned"]) <= len(one["ids"]) / 2 for one in known["own"])
    train(start)
    assert json.loads((tmp_path / "run/rehearsal.json").read_text()) == known


@dataclass
class PlayedStep:
    """A training step that misses tokens as written: `missed` in each epoch, `left` at its end."""

    missed: list[int]
    left: list[int]
    validation: list[float]
    n_steps: int = 40
    loras: dict[str, Any] = field(default_factory=dict)
    optimizer: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(t=0))
    decoder: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(compute=Compute()))
    epoch: int = 0

    def step(self, rows: object, number: int) -> Stepped:
        return Stepped(1.0, 100, self.missed[self.epoch], 100, 0.1, 1.0)

    def validate(self, rows: object, after_row: object) -> ValidationScore:
        return ValidationScore(self.validation[self.epoch], 1.0)

    def n_missed(self, rows: object, after_row: object) -> int:
        return self.left[self.epoch]


def played(tmp_path: Path, step: PlayedStep, **fields: Any) -> LoopState:
    """The loop over one step an epoch."""
    reporter = Reporter(lambda _: None)
    tools = LoopTools(Pauses(FrontOrders(), reporter), reporter, RunLog(tmp_path / "log"))
    settings = RunSettings(**fields)
    order = EpochOrder([sample(0, 10)], settings, 96)
    (tmp_path / "checkpoints").mkdir()
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints")
    validation = [[0]] if step.validation else []
    loop = TrainingLoop(step, order, validation, settings, checkpoints, tools)  # type: ignore
    end_epoch = loop._end_epoch

    def ended() -> None:
        end_epoch()
        step.epoch += 1

    loop._end_epoch = ended  # type: ignore[method-assign]
    return loop.run()


def test_a_lesson_ends_when_every_row_is_answered(tmp_path: Path) -> None:
    """Tokens that were missed while they were trained may be right at the epoch's end."""
    losses = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8]
    step = PlayedStep([60, 20, 9, 4, 3, 0], [60, 20, 9, 2, 0, 0], losses)
    state = played(tmp_path, step, epochs=20)
    assert (state.ended, state.epoch, state.best_epoch) == ("answered", 5, 5)
    assert [round(one["token_accuracy"], 2) for one in state.losses] == [0.4, 0.8, 0.91, 0.98, 1.0]


def test_patience_counts_epochs_without_a_lower_loss_or_clearly_fewer_misses(
    tmp_path: Path,
) -> None:
    """A style: the validation loss rises, and the misses hardly fall."""
    step = PlayedStep([60, 50, 46, 43, 41, 40], [60] * 6, [3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    state = played(tmp_path, step, epochs=20, patience=2)
    assert (state.ended, state.epoch, state.best_epoch) == ("patience", 4, 2)
