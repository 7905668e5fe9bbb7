"""Kills, checkpoints and resuming: the same curve as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import log_of, losses_of, train

pytest.importorskip("torch")

from train_host import checkpoints

ROOT = Path(__file__).resolve().parents[2]
ARGS = ("--max-steps", "8", "--batch-size", "4", "--threads", "1", "--r", "4", "--lr", "3e-3")
DROPOUT = ("--lora-dropout", "0.1", "--save-every", "2", "--patience", "0")


def test_killed_runs_end_with_the_same_curve_and_adapter() -> None:
    """SIGKILL at three random steps and inside two saves."""
    program = [sys.executable, str(ROOT / "benchmarks" / "host_kills.py")]
    done = subprocess.run(
        [*program, "--steps", "3", "--saves", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"]["inside a save"] >= 1
    assert sum(found["kills"].values()) >= 4


def test_an_unsealed_checkpoint_is_not_resumed_from(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ("--model", tiny_llama, "--data", pairs, "--cache", tmp_path, *ARGS, *DROPOUT)
    assert train(*common, "-o", run).code == 0
    whole = log_of(run)
    (run / "metrics.json").unlink()  # as if it had been killed before its end
    newest = run / "checkpoints" / "checkpoint-8"
    (newest / checkpoints.MARKER).unlink()
    done = train(*common, "-o", run, "--resume")
    assert done.code == 0, done.err
    assert "checkpoint-8 was not complete" in done.err and "going on from step 6" in done.err
    keys = ("step", "loss", "validation_loss")
    assert [[r.get(k) for k in keys] for r in log_of(run)] == [
        [r.get(k) for k in keys] for r in whole
    ]


def test_a_run_killed_before_its_result_makes_no_further_step(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ("--model", tiny_llama, "--data", pairs, "--cache", tmp_path, *ARGS, *DROPOUT)
    assert train(*common, "-o", run).code == 0
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    losses = losses_of(run)
    (run / "metrics.json").unlink()
    assert train(*common, "-o", run, "--resume").code == 0
    assert losses_of(run) == losses
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights


def test_another_run_cannot_be_resumed_in_the_directory(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ("--model", tiny_llama, "--cache", tmp_path, "-o", run, *ARGS)
    assert train(*common, "--data", pairs).code == 0
    (run / "metrics.json").unlink()
    other = train(*common, "--data", pairs, "--resume", "--lr", "1e-3")
    assert other.code == 2 and "settings.learning_rate was 0.003" in other.err
    edited = tmp_path / "edited.jsonl"
    edited.write_bytes(pairs.read_bytes() + pairs.read_bytes().splitlines()[0])
    other = train(*common, "--data", edited, "--resume")
    assert other.code == 2 and "data.sha256" in other.err
    begun = train(*common, "--data", pairs)
    assert begun.code == 2 and "--resume" in begun.err


def test_validation_without_improvement_ends_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    """The answers of the held rows cannot be learned from the others."""
    path = tmp_path / "noise.jsonl"
    rows = [{"prompt": f"q{n}", "completion": f"{(n * 7919) % 9973}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    args = ("--max-steps", "300", "--batch-size", "8", "--threads", "1", "--lr", "2e-2")
    args = (*args, "--save-every", "5", "--patience", "2")
    done = train("--model", tiny_llama, "--data", path, "-o", run, "--cache", tmp_path, *args)
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    scores = {
        row["step"]: row["validation_bits_per_byte"]
        for row in log_of(run)
        if "validation_bits_per_byte" in row and row["step"]
    }
    best = min(scores, key=lambda step: scores[step])
    assert metrics["stopped"] == "patience"
    assert max(scores) == best + 10 < 300
    assert metrics["best_step"] == best and metrics["bits_per_byte"] == scores[best]
    saved = run / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors"
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == saved.read_bytes()


# ---- the marker --------------------------------------------------------------------------------


def make(root: Path, step: int) -> Path:
    path = root / f"{checkpoints.PREFIX}{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w" * 100)
    (path / "state").write_bytes(bytes([step]))
    return path


def test_only_a_sealed_directory_counts(tmp_path: Path) -> None:
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    assert checkpoints.newest(tmp_path) is None
    checkpoints.seal(first)
    found = checkpoints.newest(tmp_path)
    assert found is not None and found.step == 1
    checkpoints.seal(second)
    assert checkpoints.newest(tmp_path) == checkpoints.Sealed(second, 2)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "add", "marker"])
def test_damage_is_seen(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path, 1)
    checkpoints.seal(path)
    match damage:
        case "truncate":
            (path / "weights").write_bytes(b"w" * 99)
        case "flip":
            (path / "weights").write_bytes(b"w" * 99 + b"v")
        case "remove":
            (path / "state").unlink()
        case "add":
            (path / "more").touch()
        case _:
            (path / checkpoints.MARKER).write_text("{")
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.clear_incomplete(tmp_path) == ["checkpoint-1"]
    assert list(tmp_path.iterdir()) == []


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        checkpoints.seal(make(tmp_path, step))
    checkpoints.prune(tmp_path, best=tmp_path / "checkpoint-2")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-11",
        "checkpoint-2",
    ]
