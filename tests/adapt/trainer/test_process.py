"""The trainer as a process: what it says, how it pauses, stops, dies and goes on, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_model
from trainer_runner import TrainerProcess, start_message, train, write_lesson
from waiting import DEADLINE_S

from edge_agent.adapt.messages import (
    Continue,
    Finished,
    Pause,
    Planned,
    Stop,
    Stopped,
    TrainingProgress,
)
from edge_agent.gguf.adapter_file import check_adapter
from edge_agent.gguf.model_file import read_gguf

ROOT = Path(__file__).resolve().parents[3]
LONG = {"epochs": 400, "patience": 400, "checkpoint_steps": 5}
"""A minute of work, if nobody ends it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", n_layer=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesson(tmp_path_factory.mktemp("data") / "lesson.jsonl")


@pytest.fixture(scope="module")
def undisturbed(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that chooses its blocks, with nobody in its way."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "lesson"
    return train(start_message(model, run_dir, data, layers="auto", epochs=3))


def adapter_bytes(finished: Finished) -> bytes:
    return Path(finished.adapter_path).read_bytes()


# ---- a whole run -----------------------------------------------------------------------------


def test_a_run_leaves_an_adapter_its_result_and_its_log(undisturbed: Finished, model: Path) -> None:
    run_dir = Path(undisturbed.adapter_path).parent
    info = check_adapter(run_dir / "adapter.gguf", read_gguf(model), None)
    assert info.sha256 == undisturbed.adapter_sha256
    assert info.name == "lesson" and list(info.layers) == undisturbed.layers
    assert info.scores is not None and info.scores["losses"] == undisturbed.losses
    before, after = undisturbed.validation_before, undisturbed.losses[-1]
    assert after["validation_loss"] < before["validation_loss"] / 2
    assert after["validation_bits_per_byte"] < before["validation_bits_per_byte"] / 2
    assert [entry["epoch"] for entry in undisturbed.losses] == [1, 2, 3]
    assert json.loads((run_dir / "result.json").read_text())["steps"] == undisturbed.steps
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(
        range(1, undisturbed.steps + 1)
    )
    assert not list(run_dir.glob("*.f16")), "stored states are of no more use"
    assert undisturbed.peak_rss_anon_bytes > 10 << 20


def test_the_blocks_were_chosen_by_trials(undisturbed: Finished) -> None:
    best = min(undisturbed.trials, key=lambda trial: trial["validation_loss"])
    assert {trial["layers"] for trial in undisturbed.trials} == {2, 4}
    assert len(undisturbed.layers) == best["layers"] and undisturbed.layers[-1] == 3
    steps = {trial["layers"]: trial["steps"] for trial in undisturbed.trials}
    assert steps[2] > steps[4] == 8, "fewer blocks take more steps for the same work"
    assert len(undisturbed.influence) == 4 and all(0 < x < 2 for x in undisturbed.influence)


def test_the_split_is_left_for_the_gate(undisturbed: Finished) -> None:
    split = json.loads((Path(undisturbed.adapter_path).parent / "split.json").read_text())
    assert len(split["train"]) + len(split["validation"]) == 30
    assert [turn["role"] for turn in split["train"][0]] == ["user", "assistant"]
    assert not {str(chat) for chat in split["train"]} & {str(chat) for chat in split["validation"]}


def test_the_plan_comes_before_the_work(model: Path, data: Path, tmp_path: Path) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data)) as trainer:
        records = [*trainer.records()]
    planned = next(record for record in records if isinstance(record, Planned))
    first = next(
        record
        for record in records
        if isinstance(record, TrainingProgress) and record.phase == "train"
    )
    assert records.index(planned) < records.index(first)
    assert planned.n_train + planned.n_validation == 30 and planned.layers == [3]
    assert planned.fits and planned.epoch_s is not None and planned.epoch_s > 0
    phases = [record.phase for record in records if isinstance(record, TrainingProgress)]
    order = list(dict.fromkeys(phases))
    assert order == ["prepare", "rehearse", "prefix", "train", "validate", "save"]
    last = records[-1]
    assert isinstance(last, Finished) and last.validation_before and last.ended == "epochs"


def test_a_plan_alone_writes_nothing_that_a_run_would_miss(
    model: Path, data: Path, tmp_path: Path
) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, plan_only=True)) as trainer:
        planned = [*trainer.records()][-1]
        assert trainer.process.wait(DEADLINE_S) == 0
    assert isinstance(planned, Planned) and planned.bytes["total"] > planned.bytes["optimizer"]
    assert not (tmp_path / "run/manifest.json").exists()
    train(start_message(model, tmp_path / "run", data))


def test_an_r_over_the_rank_of_a_weight_is_refused_in_the_plan(
    model: Path, data: Path, tmp_path: Path
) -> None:
    shapes = {t.name: t.shape for t in read_gguf(model).tensors if t.name.startswith("blk.3.")}
    least = min(shapes["blk.3.attn_k.weight"])
    for layers in ("auto", "3"):
        fields = {"r": least + 1, "layers": layers, "plan_only": True}
        with TrainerProcess(start_message(model, tmp_path / "run", data, **fields)) as trainer:
            refused = trainer.failure()
        assert "attn_k.weight is a matrix of" in refused.why and f"--r {least} or" in refused.hint
    fields = {"r": least + 1, "target_modules": ["up_proj"], "plan_only": True}
    with TrainerProcess(start_message(model, tmp_path / "run", data, **fields)) as trainer:
        assert isinstance([*trainer.records()][-1], Planned)


@pytest.mark.parametrize(("n_rows", "row_tokens"), [(8, 128), (80, 512)])
def test_a_short_lesson_gets_shorter_rows(
    model: Path, tmp_path: Path, n_rows: int, row_tokens: int
) -> None:
    """Else an epoch would be a single step, and nothing would be learned."""
    data = write_lesson(tmp_path / "rows.jsonl", n_rows)
    fields = {"plan_only": True, "batch_tokens": 512, "max_length": 512}
    with TrainerProcess(start_message(model, tmp_path / "run", data, **fields)) as trainer:
        planned = [*trainer.records()][-1]
    assert isinstance(planned, Planned) and planned.steps_per_epoch >= 3
    said = [note.split(":")[0] for note in planned.notes if "too few steps" in note]
    assert said == ([] if row_tokens == 512 else [f"rows of {row_tokens} tokens"])


def test_every_setting_that_computes_something_works(
    model: Path, data: Path, tmp_path: Path
) -> None:
    fields = {"lora_dropout": 0.3, "gradient_accumulation_steps": 3, "weight_decay": 0.1}
    more = {"use_rslora": True, "target_modules": ["q_proj", "down_proj"], "layers": "1,3"}
    finished = [
        train(start_message(model, tmp_path / part / "run", data, **fields, **more))
        for part in ("one", "two")
    ]
    assert finished[0].layers == [1, 3]
    assert adapter_bytes(finished[0]) == adapter_bytes(finished[1])
    info = check_adapter(Path(finished[0].adapter_path), read_gguf(model), None)
    assert {name.split(".")[2] for name in info.weights} == {"attn_q", "ffn_down"}


# ---- pausing, stopping, ending -----------------------------------------------------------------


def test_pause_and_continue_change_nothing(
    undisturbed: Finished, model: Path, data: Path, tmp_path: Path
) -> None:
    with TrainerProcess(
        start_message(model, tmp_path / "lesson", data, layers="auto", epochs=3)
    ) as trainer:
        trainer.send(Pause("a request is being answered"))
        paused = trainer.wait_for(TrainingProgress, "paused")
        assert paused.note == "a request is being answered"
        again = trainer.wait_for(TrainingProgress)
        assert again.phase == "paused", "it is said again every second"
        trainer.send(Continue())
        trainer.wait_for(TrainingProgress, "train")
        trainer.send(Pause("heat"), Pause("battery"))
        while trainer.wait_for(TrainingProgress, "paused").note != "battery":
            pass
        trainer.send(Continue())
        finished = trainer.finish()
    assert adapter_bytes(finished) == adapter_bytes(undisturbed)


def test_stop_saves_and_resume_goes_on(
    undisturbed: Finished, model: Path, data: Path, tmp_path: Path
) -> None:
    start = start_message(model, tmp_path / "lesson", data, layers="auto", epochs=3)
    with TrainerProcess(start) as trainer:
        while trainer.wait_for(TrainingProgress, "train").step < 7:
            pass
        trainer.send(Stop())
        stopped = trainer.wait_for(Stopped)
        assert trainer.process.wait(DEADLINE_S) == 0
    assert stopped.step >= 7
    resumed = start_message(
        model, tmp_path / "lesson", data, layers="auto", epochs=3, resume=True, policy="always"
    )
    with TrainerProcess(resumed) as trainer:
        assert trainer.wait_for(TrainingProgress, "train").step == stopped.step
        finished = trainer.finish()
    assert adapter_bytes(finished) == adapter_bytes(undisturbed)


def test_sigterm_is_a_stop(model: Path, data: Path, tmp_path: Path) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.process.send_signal(signal.SIGTERM)
        stopped = trainer.wait_for(Stopped)
        assert trainer.process.wait(DEADLINE_S) == 0
    assert list((tmp_path / "run/checkpoints").glob(f"*{stopped.step}.checkpoint"))


def test_the_end_of_the_socket_is_its_end_within_a_second(
    model: Path, data: Path, tmp_path: Path
) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.socket.close()
        assert trainer.process.wait(30) == 0, "far above the promise: it runs at nice 19"


def test_it_steps_back_for_everybody_else(model: Path, data: Path, tmp_path: Path) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        proc = Path(f"/proc/{trainer.process.pid}")
        assert (proc / "oom_score_adj").read_text().strip() == "900"
        assert os.getpriority(os.PRIO_PROCESS, trainer.process.pid) == 19
        if (proc / "autogroup").exists():  # a kernel without them has no such file
            assert (proc / "autogroup").read_text().strip().endswith("nice 19")
        maps = (proc / "maps").read_text()
        assert "torch" not in maps and "matplotlib" not in maps
        told = trainer.wait_for(TrainingProgress, "train")
        assert told.rss_anon_bytes is not None and told.rss_anon_bytes > 10 << 20


def test_a_second_trainer_is_kept_out(model: Path, data: Path, tmp_path: Path) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as first:
        first.wait_for(TrainingProgress, "train")
        with TrainerProcess(start_message(model, tmp_path / "run", data, resume=True)) as second:
            assert second.failure().code == "training_busy"


def test_numpy_waits_for_the_number_of_threads() -> None:
    program = "import sys, edge_agent.adapt.trainer.process\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "edge_agent" in loaded, done.stderr
    assert not loaded & {"numpy", "llama_cpp", "torch"}


# ---- kill and resume -------------------------------------------------------------------------


def test_killed_anywhere_it_gives_the_same_adapter(
    undisturbed: Finished, model: Path, data: Path, tmp_path: Path
) -> None:
    """Ten kills a random moment after a random record, from the start of the process on."""
    moments, run_dir = random.Random(5), tmp_path / "lesson"
    for _ in range(10):
        start = start_message(model, run_dir, data, layers="auto", epochs=3, resume=True)
        with TrainerProcess(start) as trainer:
            for _ in itertools.islice(trainer.records(), moments.randrange(20)):
                pass
            time.sleep(moments.uniform(0.0, 0.02))
            trainer.kill()
    start = start_message(model, run_dir, data, layers="auto", epochs=3, resume=True)
    finished = train(start)
    assert adapter_bytes(finished) == adapter_bytes(undisturbed)
    assert finished.losses == undisturbed.losses
    assert finished.validation_before == undisturbed.validation_before


def test_killed_at_each_phase_it_gives_the_same_adapter(
    undisturbed: Finished, model: Path, data: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "lesson"
    for phase in ("prepare", "trial", "prefix", "train", "validate", "train", "save"):
        start = start_message(model, run_dir, data, layers="auto", epochs=3, resume=True)
        with TrainerProcess(start) as trainer:
            trainer.wait_for(TrainingProgress, phase)
            trainer.kill()
    finished = train(start)
    assert adapter_bytes(finished) == adapter_bytes(undisturbed)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    model: Path, data: Path, tmp_path: Path
) -> None:
    whole = train(start_message(model, tmp_path / "whole/run", data))
    start = start_message(model, tmp_path / "cut/run", data)
    with TrainerProcess(start) as trainer:
        while trainer.wait_for(TrainingProgress, "train").step < 8:
            pass
        trainer.send(Stop())
        trainer.wait_for(Stopped)
    newest, before = sorted((tmp_path / "cut/run/checkpoints").glob("*"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-40])
    with TrainerProcess(start_message(model, tmp_path / "cut/run", data, resume=True)) as trainer:
        assert trainer.wait_for(TrainingProgress, "train").step == int(
            before.stem.removeprefix("step-")
        )
        finished = trainer.finish()
    assert adapter_bytes(finished) == adapter_bytes(whole)
    assert "damaged" in (tmp_path / "cut/run/log.jsonl").read_text()


def test_a_finished_run_is_not_run_again(undisturbed: Finished, model: Path, data: Path) -> None:
    run_dir = Path(undisturbed.adapter_path).parent
    written_ns = Path(undisturbed.adapter_path).stat().st_mtime_ns
    again = train(start_message(model, run_dir, data, layers="auto", epochs=3, resume=True))
    assert again.adapter_sha256 == undisturbed.adapter_sha256
    assert Path(again.adapter_path).stat().st_mtime_ns == written_ns
    with TrainerProcess(start_message(model, run_dir, data, layers="auto", epochs=3)) as trainer:
        refused = trainer.failure()
    assert "holds a run already" in refused.what


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("r", 3), ("seed", 2), ("learning_rate", 1e-3), ("layers", "all"), ("max_length", 95)],
)
def test_another_setting_is_refused_by_its_name(
    model: Path, data: Path, tmp_path: Path, field: str, value: object
) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.kill()
    start = start_message(model, tmp_path / "run", data, **{**LONG, field: value}, resume=True)
    with TrainerProcess(start) as trainer:
        refused = trainer.failure()
    assert refused.code == "training_failed" and f"settings.{field}: began with" in refused.why


def test_other_threads_data_and_software_are_refused_by_name(
    model: Path, data: Path, tmp_path: Path
) -> None:
    with TrainerProcess(start_message(model, tmp_path / "run", data, **LONG)) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.kill()
    path, copy = tmp_path / "run/manifest.json", tmp_path / "run/data.jsonl"
    document = json.loads(path.read_text())
    document["circumstances"]["software"]["numpy"] = "1.0"
    document["circumstances"]["n_threads"] = 64
    path.write_text(json.dumps(document))
    copy.write_text(copy.read_text().replace("box", "bag"))
    with TrainerProcess(
        start_message(model, tmp_path / "run", data, resume=True, **LONG)
    ) as trainer:
        why = trainer.failure().why
    assert "n_threads: began with 64" in why
    assert "software.numpy: began with 1.0" in why
    assert "data_sha256: began with" in why


def test_another_model_file_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes())
    start = start_message(other, tmp_path / "run", data)
    other.write_bytes(model.read_bytes() + b"\0")
    with TrainerProcess(start) as trainer:
        assert trainer.failure().code == "model_corrupt"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "holds no row"),
        ('{"instruction": "a"}\n', "line 1"),
        ("".join(json.dumps({"instruction": "What is it?", "output": f"It is {word}."}) + "\n"
                 for word in ("red", "blue", "green", "black")), "above 5 %"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_learned_from_is_refused(
    model: Path, tmp_path: Path, content: str, why: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with TrainerProcess(start_message(model, tmp_path / "run", tmp_path / "bad.jsonl")) as trainer:
        refused = trainer.failure()
    assert refused.code == "data_refused" and why in refused.why
