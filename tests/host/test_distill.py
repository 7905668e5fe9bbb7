"""`edge-train distill-logits`: the student comes nearer to its teacher, however wide the heads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from cli_runner import Outcome
from tiny_run import write_tiny

torch = pytest.importorskip("torch")

from edge_agent.errors import UsageError  # noqa: E402
from edge_agent.terminal import Terminal  # noqa: E402
from train_host.cli import main_with  # noqa: E402
from train_host.layer_cut import parse_blocks, write_cut  # noqa: E402

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
    assert both.code == 2 and "who is taught?" in both.err


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
