"""`edge-train sft` end to end on tiny models: what a run leaves behind, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import SMALL, log_of, losses_of, train

torch = pytest.importorskip("torch")

from converters.safetensors_file import read_header  # noqa: E402
from edge_agent.errors import UsageError  # noqa: E402
from train_host.run_directory import read_run  # noqa: E402


def adapted(run: Path) -> set[str]:
    return set(read_header(run / "adapter" / "adapter_model.safetensors"))


def test_a_run_leaves_settings_log_curves_and_adapter(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = train("--model", tiny_llama, "--data", pairs, "-o", run, "--cache", tmp_path, *SMALL)
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    losses = losses_of(run)
    assert len(losses) == metrics["steps"] == 6
    assert losses[-1] < 0.7 * losses[0]
    assert metrics["bits_per_byte"] < metrics["bits_per_byte_before"]
    assert 0.2 < metrics["supervised_share"] < 0.5
    assert metrics["tok_s"] > 0 and metrics["peak_memory_bytes"] > 1e8
    assert (metrics["energy"]["joules"] is None) == (metrics["energy"]["reason"] is not None)
    assert metrics["distributed_type"] == "NO"
    assert "distributed_type NO" in done.err
    document = json.loads((run / "run.json").read_text())
    assert document["settings"]["learning_rate"] == 1e-2
    assert document["settings"]["save_every"] == 1
    assert len(document["model"]["sha256"]) == len(document["data"]["sha256"]) == 64
    assert document["versions"]["trl"]
    assert (run / "curves.svg").read_text().startswith("<svg")
    assert not (run / "adapter" / "training_args.bin").exists()


def test_export_reads_the_run(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("--model", tiny_llama, "--data", pairs, "-o", run, "--cache", tmp_path, *SMALL)
    read = read_run(run)
    assert read.adapter == run / "adapter" and read.model is None
    assert read.base_directory == tiny_llama and read.base_gguf is None
    rows = read.data.read_text().splitlines()
    assert len(rows) == read.metrics["train_samples"]
    assert set(rows) <= set(pairs.read_text().splitlines())
    with pytest.raises(UsageError, match="not a finished run"):
        read_run(tmp_path)


def test_tokens_a_second_count_no_padding(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ("--epochs", "1", "--batch-size", "4", "--threads", "1", "--validation-share", "0")
    done = train("--model", tiny_llama, "--data", pairs, "-o", run, "--cache", tmp_path, *args)
    metrics = json.loads(done.out)
    assert metrics["tokens"] == metrics["train_tokens"]
    assert metrics["bits_per_byte"] is None and metrics["bits_per_byte_reason"]


def test_only_the_chosen_blocks_learn(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ("--model", tiny_llama, "--data", pairs, "--cache", tmp_path, *SMALL)
    assert train(*common, "-o", run, "--layers", "top:1").code == 0
    assert {name.split(".layers.")[1][0] for name in adapted(run)} == {"1"}
    assert len(adapted(run)) == 2 * 7
    for layers in ("top:9", "auto", "x"):
        refused = train(*common, "-o", tmp_path / "other", "--layers", layers)
        assert refused.code == 2, refused.err
        assert "Traceback" not in refused.err


def test_a_finished_run_is_not_written_over(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    common = ("--model", tiny_llama, "--data", pairs, "-o", tmp_path / "run", "--cache", tmp_path)
    assert train(*common, *SMALL).code == 0
    for more in ((), ("--resume",)):
        again = train(*common, *SMALL, *more)
        assert again.code == 2 and "finished run" in again.err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--method", "magic"), 2, "--method"),
        (("--dtype", "int3"), 2, "--dtype"),
        (("--batch-size", "6", "--micro-batch-size", "4"), 2, "--batch-size 6"),
        (("--validation-share", "0.9"), 2, "--validation-share"),
        (("--max-length", "8"), 1, "nothing to learn"),
        (("--model", "/nowhere"), 1, "no model"),
        (("--data", "/nowhere"), 1, "cannot read the training data"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    more: tuple[str, ...], code: int, said: str, tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    base = ("--model", tiny_llama, "--data", pairs, "-o", tmp_path / "r", "--cache", tmp_path)
    refused = train(*base, *SMALL, *more)
    assert refused.code == code, refused.err
    assert said in refused.err and "Traceback" not in refused.err


def test_a_loss_that_is_not_a_number_ends_the_run(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    args = ("--max-steps", "30", "--batch-size", "4", "--threads", "1", "--lr", "1e30")
    done = train("--model", tiny_llama, "--data", pairs, "-o", run, "--cache", tmp_path, *args)
    assert done.code == 1 and "is not a number" in done.err and "--lr" in done.err
    assert all(row["loss"] == row["loss"] for row in log_of(run) if "loss" in row)
    assert not (run / "metrics.json").exists()
