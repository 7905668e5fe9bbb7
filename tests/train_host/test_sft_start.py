"""Going on from an adapter, and rows in a given order: `sft --adapter` and `sft --order`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import Outcome
from tiny_run import SMALL, log_of, losses_of, train, write_tiny

pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.numpy").load_file

from converters import lora_to_gguf  # noqa: E402
from converters.gguf_output import write_model  # noqa: E402
from converters.hf_to_gguf import load  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402
from train_host.export import ExportRequest, export  # noqa: E402
from train_host.run_directory import read_run  # noqa: E402

STEP = ("--batch-size", "4", "--threads", "1", "--lr", "1e-2", "--max-steps", "1")


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def taught(request: Any, pairs: Path, tmp_path_factory: Any) -> tuple[Path, Path]:
    """(model directory, finished run). Llama's query rows have another order in GGUF."""
    scratch = tmp_path_factory.mktemp("taught")
    directory = write_tiny(scratch / "model", request.param)
    base = ("--model", directory, "--data", pairs, "-o", scratch / "run", "--cache", scratch)
    done = train(*base, *SMALL, "--layers", "top:1", "--lora-alpha", "12")
    assert done.code == 0, done.err
    return directory, scratch / "run"


def go_on(taught: tuple[Path, Path], data: Path, run: Path, *more: str | Path) -> Outcome:
    base = ("--model", taught[0], "--data", data, "-o", run, "--cache", run.parent)
    return train(*base, *STEP, *more)


def document_of(run: Path) -> Any:
    return json.loads((run / "run.json").read_text())


# ---- from an adapter ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_a_run_goes_on_where_the_adapter_stands(
    form: str, taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    directory, before = taught
    adapter = before / "adapter"
    if form == "gguf":
        adapter = tmp_path / "adapter.gguf"
        lora_to_gguf.convert(before / "adapter", directory, adapter)
    done = go_on(taught, pairs, tmp_path / "run", "--adapter", adapter)
    assert done.code == 0, done.err
    first = next(row for row in log_of(tmp_path / "run") if row["step"] == 0)
    taught_to = json.loads((before / "metrics.json").read_text())["bits_per_byte"]
    assert first["validation_bits_per_byte"] == pytest.approx(taught_to, rel=1e-6)
    document = document_of(tmp_path / "run")
    settings = document["settings"]
    assert (settings["r"], settings["lora_alpha"], settings["layers"]) == (4, 12.0, [1])
    assert document["adapter"]["origin"] == str(adapter)
    assert len(document["adapter"]["sha256"]) == 64


def test_a_step_so_small_that_nothing_changes_leaves_the_same_adapter(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    adapter = taught[1] / "adapter"
    base = ("--model", taught[0], "--data", pairs, "-o", tmp_path / "run", "--cache", tmp_path)
    still = ("--batch-size", "4", "--threads", "1", "--lr", "1e-9", "--max-steps", "1")
    assert train(*base, *still, "--adapter", adapter).code == 0
    for name, found in values(tmp_path / "run" / "adapter").items():
        np.testing.assert_allclose(found, values(adapter)[name], rtol=0, atol=2e-9)


def values(adapter: Path) -> dict[str, Any]:
    return dict(load_file(adapter / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--r", "8"), "--r 8 contradicts the adapter"),
        (("--lora-alpha", "32"), "--lora-alpha 32.0 contradicts the adapter"),
        (("--layers", "all"), "--layers all contradicts the adapter"),
        (("--method", "full"), "--adapter does not go with --method full"),
    ],
)
def test_flags_that_contradict_the_adapter_are_refused(
    more: tuple[str, ...], said: str, taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    refused = go_on(taught, pairs, tmp_path / "run", "--adapter", taught[1] / "adapter", *more)
    assert refused.code == 2 and said in refused.err, refused.err


def test_flags_that_agree_with_the_adapter_are_not(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    same = ("--r", "4", "--lora-alpha", "12", "--layers", "1")
    done = go_on(taught, pairs, tmp_path / "run", "--adapter", taught[1] / "adapter", *same)
    assert done.code == 0, done.err


def test_what_is_no_adapter_for_this_model_is_refused(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("not an adapter")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "text", tmp_path / "empty", taught[0]):
        refused = go_on(taught, pairs, tmp_path / "run", "--adapter", path)
        assert refused.code == 1 and str(path) in refused.err, refused.err
        assert "Traceback" not in refused.err
    adapter = copied(taught[1] / "adapter", tmp_path / "mixed")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["alpha_pattern"] = {"layers.1.mlp.up_proj": 3}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    refused = go_on(taught, pairs, tmp_path / "run", "--adapter", adapter)
    assert refused.code == 1 and "one r and one scaling" in refused.err


def test_an_adapter_of_another_quantized_file_is_refused(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    directory, before = taught
    files = [tmp_path / f"{kind}.gguf" for kind in ("q8_0", "f32")]
    for path in files:
        write_model(path, *load(directory), TypeRequest(path.stem.upper()), How(threads=1))
    adapter = tmp_path / "adapter.gguf"
    lora_to_gguf.convert(before / "adapter", files[0], adapter)
    base = ("--data", pairs, "--cache", tmp_path, *STEP, "--adapter", adapter)
    refused = train("--model", files[1], "-o", tmp_path / "other", *base)
    assert refused.code == 1 and "made for the file with SHA-256" in refused.err
    done = train("--model", files[0], "-o", tmp_path / "same", *base)
    assert done.code == 0, done.err


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_another_adapter_cannot_resume_the_run(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert go_on(taught, pairs, run, "--adapter", taught[1] / "adapter").code == 0
    (run / "metrics.json").unlink()
    refused = go_on(taught, pairs, run, "--adapter", run / "adapter", "--resume")
    assert refused.code == 2 and "adapter.sha256 was" in refused.err, refused.err
    again = go_on(taught, pairs, run, "--adapter", taught[1] / "adapter", "--resume")
    assert again.code == 0, again.err


def test_the_card_of_an_export_names_the_adapter(
    taught: tuple[Path, Path], pairs: Path, tmp_path: Path
) -> None:
    assert go_on(taught, pairs, tmp_path / "run", "--adapter", taught[1] / "adapter").code == 0
    wanted = ExportRequest(type="Q8_0", is_verified=False)
    document = export(read_run(tmp_path / "run"), tmp_path / "out", wanted, How(threads=1))
    sha256 = document_of(tmp_path / "run")["adapter"]["sha256"]
    assert any(sha256 in note for note in document["notes"])
    assert sha256 in (tmp_path / "out" / "README.md").read_text()


# ---- in a given order --------------------------------------------------------------------------

ORDERED = (*("--batch-size", "2", "--micro-batch-size", "1", "--threads", "1"),
           *("--epochs", "2", "--validation-share", "0"))  # fmt: skip


def in_order(directory: Path, data: Path, order: str, run: Path, *more: str) -> Outcome:
    path = run.with_suffix(".txt")
    path.write_text(order)
    base = ("--model", directory, "--data", data, "-o", run, "--cache", run.parent)
    return train(*base, *ORDERED, "--order", path, *more)


def uneven(path: Path) -> Path:
    """Rows of lengths that tell them apart; line 3 is blank."""
    rows = [{"instruction": "Say", "output": "ab " * (n + 1)} for n in range(7)]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    return path


def test_rows_are_seen_in_the_order_of_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    data, run = uneven(tmp_path / "rows.jsonl"), tmp_path / "run"
    done = in_order(tiny_llama, data, "8\n1\n\n4\n4\n2\n7\n", run)
    assert done.code == 0, done.err
    alone = {}
    for line in (1, 2, 4, 7, 8):
        one = tmp_path / f"row-{line}"
        assert in_order(tiny_llama, data, f"{line}\n", one).code == 0
        alone[line] = log_of(one)[0]["tokens"]
    steps = [row["tokens"] for row in log_of(run) if "loss" in row]
    once = [alone[8] + alone[1], alone[4] + alone[4], alone[2] + alone[7]]
    assert steps == once * 2
    metrics = json.loads(done.out)
    assert metrics["dropped"] == {"not_in_order": 2}
    assert document_of(run)["settings"]["sampling"] == "sequential"
    assert len(document_of(run)["order"]["sha256"]) == 64
    assert len((run / "train_rows.jsonl").read_text().splitlines()) == 5
    other = tmp_path / "other"
    assert in_order(tiny_llama, data, "1\n8\n4\n4\n2\n7\n", other, "--seed", "9").code == 0
    assert losses_of(other)[0] == pytest.approx(losses_of(run)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("order", "more", "code", "said"),
    [
        ("1\nx\n", (), 1, "line 2 of the order"),
        ("0\n", (), 1, "from 1"),
        ("-1\n", (), 1, "line 1 of the order"),
        ("9" * 5000, (), 1, "line 1 of the order"),
        ("\n", (), 1, "is empty"),
        ("1\n3\n", (), 1, "names row 3"),
        ("9\n", (), 1, "names row 9"),
        ("1\n", ("--packing",), 2, "--order does not go with --packing"),
    ],
)
def test_a_wrong_order_is_refused_in_words(
    order: str, more: tuple[str, ...], code: int, said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    data = uneven(tmp_path / "rows.jsonl")
    refused = in_order(tiny_llama, data, order, tmp_path / "run", *more)
    assert refused.code == code and said in refused.err, refused.err
    assert "Traceback" not in refused.err


def test_a_row_kept_back_to_validate_is_not_learned(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    order = "".join(f"{line}\n" for line in range(1, 41))
    refused = in_order(tiny_llama, pairs, order, tmp_path / "run", "--validation-share", "0.2")
    assert refused.code == 1 and "kept back to validate" in refused.err, refused.err
