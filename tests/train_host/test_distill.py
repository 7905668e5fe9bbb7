"""`edge-train distill-logits`: the student comes nearer to its teacher, however wide the heads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cli_runner import Outcome
from tiny_run import log_of, write_tiny

torch = pytest.importorskip("torch")

from edge_agent.cli.terminal import Terminal  # noqa: E402
from edge_agent.errors import UsageError  # noqa: E402
from train_host.cli import main_with  # noqa: E402
from train_host.commands.distill import DistillOptions, job_of  # noqa: E402
from train_host.distill import distill  # noqa: E402
from train_host.layer_cut import parse_blocks, write_cut  # noqa: E402
from train_host.resumable_run import Console  # noqa: E402

SHORT = ("--max-steps", "20", "--lr", "3e-3", "--threads", "1", "--max-new-tokens", "12")


def edge_train(*argv: str | Path) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    code = main_with([*map(str, argv)], Terminal(io.StringIO(), out, err, {}))
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("policy", ["--on-policy", "--off-policy"])
def test_the_first_block_of_a_model_learns_from_the_whole(
    policy: str, tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ("--teacher", tiny_llama, "--keep-layers", "0", "--data", pairs, "-o", tmp_path / "run")
    done = edge_train("distill-logits", *flags, "--cache", tmp_path, policy, *SHORT, "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    assert metrics["kl_rows"] == "validation" and metrics["steps"] == 20
    assert metrics["kl_after"] < 0.9 * metrics["kl_before"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    exported = edge_train("export", tmp_path / "run", "--type", "q8_0", "--imatrix-chunks", "0")
    assert exported.code == 0, exported.err
    assert "blocks 0 of" in (tmp_path / "run" / "export" / "README.md").read_text()


@pytest.mark.parametrize("policy", ["--on-policy", "--off-policy"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    policy: str, tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    """In its second epoch, and after one more step than was saved."""
    flags = ("--teacher", tiny_llama, "--keep-layers", "0", "--data", pairs, "--cache", tmp_path)
    flags = ("distill-logits", *flags, policy, *SHORT, "--save-every", "3")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert edge_train(*flags, "-o", whole).code == 0
    options = DistillOptions(
        teacher=str(tiny_llama),
        keep_layers="0",
        data=pairs,
        output=halved,
        on_policy=policy == "--on-policy",
        max_steps=20,
        learning_rate=3e-3,
        max_new_tokens=12,
        save_every=3,
        threads=1,
    )

    def interrupt(status: str, done: int, total: int) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(job_of(options, tmp_path), Console(interrupt, lambda note: None))
    begun = edge_train(*flags, "-o", halved)
    assert begun.code == 2 and "--resume" in begun.err
    other = edge_train(*flags, "-o", halved, "--resume", "--beta", "0.5")
    assert other.code == 2 and "settings.beta was 0.0" in other.err
    done = edge_train(*flags, "-o", halved, "--resume")
    assert done.code == 0, done.err
    assert "going on from step 12" in done.err
    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens")
    assert [[row[key] for key in keys] for row in log_of(halved)] == [
        [row[key] for key in keys] for row in log_of(whole)
    ]
    name = "model/model.safetensors"
    assert (halved / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in (halved / "checkpoints").iterdir()) == [
        "checkpoint-18",
        "checkpoint-20",
    ]


def test_a_run_killed_before_its_result_makes_no_further_step(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ("--teacher", tiny_llama, "--keep-layers", "0", "--data", pairs, "-o", tmp_path / "run")
    flags = ("distill-logits", *flags, "--cache", tmp_path, "--off-policy", *SHORT, "--json")
    first = json.loads(edge_train(*flags).out)
    (tmp_path / "run" / "metrics.json").unlink()
    again = json.loads(edge_train(*flags, "--resume").out)
    for key in ("steps", "tokens", "final_loss", "kl_before", "kl_after"):
        assert again[key] == first[key], key


def test_speed_memory_and_energy_are_in_the_result(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ("--teacher", tiny_llama, "--keep-layers", "0", "--data", pairs, "-o", tmp_path / "run")
    short = ("--max-steps", "3", "--threads", "1", "--off-policy", "--batch-size", "8")
    done = edge_train("distill-logits", *flags, "--cache", tmp_path, *short, "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    assert metrics["tokens"] == sum(row["tokens"] for row in log_of(tmp_path / "run")) > 0
    assert metrics["tok_s"] == pytest.approx(metrics["tokens"] / metrics["train_s"])
    assert metrics["peak_memory_bytes"] > 1e8
    assert (metrics["peak_gpu_memory_bytes"] is not None) == torch.cuda.is_available()
    energy = metrics["energy"]
    assert (energy["joules"] is None) == bool(energy["reason"])


def test_a_model_that_keeps_every_block_is_its_own_teacher(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    flags = ("--teacher", tiny_llama, "--keep-layers", "0-1", "--data", pairs, "-o", tmp_path / "r")
    short = ("--max-steps", "1", "--lr", "1e-9", "--threads", "1", "--off-policy")
    done = edge_train("distill-logits", *flags, "--cache", tmp_path, *short, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["kl_before"] == pytest.approx(0, abs=1e-9)


def test_a_teachers_wider_head_is_cut_without_a_change_of_its_other_rows(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    from train_host.distill_trainer import cut_head

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    width = model.config.vocab_size
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model.resize_token_embeddings(width + 128, mean_resizing=False)
        cut_head(model, width)
        after = model(input_ids=ids).logits
    assert torch.equal(before, after)


def test_models_of_two_tokenizers_are_refused(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    gemma = write_tiny(tmp_path / "gemma", "gemma3")
    flags = ("--teacher", gemma, "--model", tiny_llama, "--data", pairs, "-o", tmp_path / "run")
    done = edge_train("distill-logits", *flags, "--cache", tmp_path)
    assert done.code == 1 and "tokenizers differ" in done.err
    both = edge_train("distill-logits", *flags, "--keep-layers", "0", "--cache", tmp_path)
    assert both.code == 2 and "the student is not clear" in both.err


def test_blocks_are_numbers_and_ranges() -> None:
    assert parse_blocks("0-5,12-17", 18) == [*range(6), *range(12, 18)]
    for text in ("", "x", "3-1", "2,1", "0-18", "1,1", "-1"):
        with pytest.raises(UsageError):
            parse_blocks(text, 18)


def test_gemmas_kinds_of_blocks_must_keep_their_places(tmp_path: Path) -> None:
    gemma = write_tiny(tmp_path / "gemma", "gemma3")
    write_cut(gemma, [1], tmp_path / "cut")
    with pytest.raises(UsageError, match="the other kind"):
        write_cut(gemma, [0, 1, 2, 3, 4, 6], tmp_path / "other")
