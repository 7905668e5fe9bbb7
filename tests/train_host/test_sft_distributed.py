"""Several processes over gloo: what they learn, and that FSDP is never lost silently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import log_of, losses_of, train

torch = pytest.importorskip("torch")

from edge_agent.adapt.trainer.dataset import split  # noqa: E402
from edge_agent.errors import TrainingFailed  # noqa: E402
from train_host import checkpoints, distributed  # noqa: E402
from train_host.samples import read_data  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "fsdp" / "fsdp2.yaml"
ARGS = ("--max-steps", "8", "--batch-size", "8", "--micro-batch-size", "2", "--threads", "1",
        "-r", "4", "--lr", "3e-3", "--save-every", "2")  # fmt: skip


def launched(
    *argv: str | Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """A program in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})},
        timeout=240,
    )


# Thirteen rows of the thirty-four.
PACKED = ("--packing", "--max-length", "128", "--batch-size", "2", "--micro-batch-size", "1")


@pytest.mark.parametrize(
    ("n_rows", "more"),
    [(34, ()), (33, ()), (34, PACKED)],
    ids=["one-idle", "one-half-idle", "packed"],
)
def test_two_processes_learn_what_one_does(
    n_rows: int, more: tuple[str, ...], tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    """The fifth of eight steps (packed: the seventh), the epoch's last, has only a row or two."""
    data = rows_to_train(pairs, n_rows, tmp_path / "data.jsonl")
    common = ("--model", tiny_llama, "--data", data, "--cache", tmp_path, *ARGS, *more)
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert train(*common, "-o", alone).code == 0
    done = launched("-m", "train_host.cli", "sft", *common, "-o", both, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["n_processes"] == 2 and metrics["distributed_type"] == "MULTI_CPU"
    assert any(row.get("epoch") == 1 for row in log_of(both)), "no epoch has ended"
    assert losses_of(both) == pytest.approx(losses_of(alone), rel=1e-3)
    first = json.loads((alone / "metrics.json").read_text())
    assert metrics["bits_per_byte"] == pytest.approx(first["bits_per_byte"], rel=1e-3)
    tokens = [[row["tokens"] for row in log_of(run) if "loss" in row] for run in (alone, both)]
    assert tokens[0] == tokens[1]
    if not more:
        assert sum(tokens[0][: -(-n_rows // 8)]) == first["train_tokens"]
    for name, weights in weights_of(alone).items():
        assert torch.allclose(weights, weights_of(both)[name], rtol=1e-3, atol=1e-5), name


def test_two_processes_go_on_in_their_second_epoch(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    data, run = rows_to_train(pairs, 34, tmp_path / "data.jsonl"), tmp_path / "run"
    argv = ("-m", "train_host.cli", "sft", "--model", tiny_llama, "--data", data, *ARGS)
    argv = (*argv, "--cache", tmp_path, "-o", run)
    assert launched(*argv).returncode == 0
    whole = losses_of(run)
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "checkpoint-8" / checkpoints.MARKER).unlink()
    done = launched(*argv, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on from step 6" in done.stderr
    assert losses_of(run) == whole


def rows_to_train(pairs: Path, n_rows: int, path: Path) -> Path:
    """So many rows that `n_rows` of them are trained on."""
    lines = pairs.read_bytes().splitlines(keepends=True)
    for n in range(len(lines), 0, -1):
        path.write_bytes(b"".join(lines[:n]))
        if len(split(read_data(path).rows, 0.1)[0]) == n_rows:
            return path
    raise AssertionError("no number of rows fits")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_shards_take_the_steps_of_the_whole(tmp_path: Path) -> None:
    done = launched(ROOT / "tests" / "helpers" / "sharded_steps.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["sharded"] == pytest.approx(found["whole"], rel=1e-4)
    assert found["local_share"] < 0.6


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU"])
def test_fsdp_that_was_not_obtained_is_a_failure(kind: str) -> None:
    with pytest.raises(TrainingFailed, match="asked for and not obtained"):
        distributed.check(kind, {"ACCELERATE_USE_FSDP": "true"}, "lora")
    distributed.check(kind, {}, "lora")
    with pytest.raises(TrainingFailed, match="cannot be sharded"):
        distributed.check("FSDP", {"ACCELERATE_USE_FSDP": "true"}, "qat")


def test_accelerate_on_a_processor_is_caught(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    """The real thing: two processes that accelerate was told to shard over."""
    common = ("--model", tiny_llama, "--data", pairs, "--cache", tmp_path, *ARGS)
    environ = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    run = tmp_path / "run"
    done = launched("-m", "train_host.cli", "sft", *common, "-o", run, environ=environ)
    assert done.returncode != 0
    assert "FSDP was asked for and not obtained" in done.stderr
    assert not (run / "metrics.json").exists()


def test_the_shipped_configuration_is_one_of_accelerate() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(CONFIG))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
