"""The loss of learned answers, against torch's own, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from converters.gguf_output import write_model  # noqa: E402
from converters.hf_to_gguf import load  # noqa: E402
from converters.logits import WINDOW, LlamaLogits, TorchLogits  # noqa: E402
from converters.quantizer import How  # noqa: E402
from edge_agent.llama.type_plan import TypeRequest  # noqa: E402
from train_host.answer_loss import N_TOKENS, Files, answer_loss, kept, note, taught_rows  # noqa: E402


@pytest.fixture(scope="module")
def gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_model(path, *load(tiny_llama), TypeRequest("F32"), How(threads=1))
    return path


def test_it_is_the_mean_cross_entropy_of_what_training_learns(
    tiny_llama: Path, gguf: Path, pairs: Path
) -> None:
    from transformers import AutoModelForCausalLM

    rows = taught_rows(pairs, gguf)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64)
    nats, n = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.ids])
        labels = torch.full_like(ids, -100)
        for place in row.places:
            labels[0, place + 1] = row.ids[place + 1]
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=labels).loss) * len(row.places)
        n += len(row.places)
    for source in (TorchLogits(tiny_llama, 1), LlamaLogits(gguf, exact=True, threads=1)):
        assert answer_loss(source, rows) == pytest.approx(nats / n, rel=1e-5)
        source.close()


def test_a_row_is_cut_and_a_prompt_without_its_answer_is_left_out(
    gguf: Path, tmp_path: Path
) -> None:
    rows = [
        {"instruction": "Say it", "output": "word " * 2 * WINDOW},
        {"instruction": "word " * 2 * WINDOW, "output": "yes"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = taught_rows(path, gguf)
    assert len(found.ids) == WINDOW and found.places[-1] == WINDOW - 2
    path.write_text(json.dumps(rows[1]) + "\n")
    assert taught_rows(path, gguf) == []
    stage = kept(SimpleNamespace(data=path), Files(gguf, gguf, None), How(threads=1))
    assert stage.passed is None and stage.reason is not None and "no answer begins" in stage.reason


def test_of_many_rows_some_are_asked_and_not_the_first_ones(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {n}", "output": f"{n} " * 20} for n in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = taught_rows(path, gguf)
    lengths = [len(one.ids) for one in found]
    assert N_TOKENS <= sum(lengths) < N_TOKENS + max(lengths)
    assert found == taught_rows(path, gguf)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[: len(found)]))
    assert sorted(one.ids for one in found) != sorted(one.ids for one in taught_rows(path, gguf))


FILES = Files(Path("f32.gguf"), Path("run-q4_0.gguf"), Path("run-lora.gguf"))
LOSSES = {"answer_loss_base": 4.0, "answer_loss_trained": 1.0, "answer_loss_adapter": 1.01}


def test_what_was_kept_is_said_without_advice() -> None:
    said = note({**LOSSES, "answer_loss_served": 1.1, "kept_share": 0.967}, FILES, True)
    assert said == (
        "loss of learned answers, nats a token: 4.00 before, 1.00 trained, 1.10 in run-q4_0.gguf,"
        " 1.01 with run-lora.gguf beside its base"
    )
    assert note({}, FILES, True) is None


@pytest.mark.parametrize(
    ("is_quantized", "remedy"), [(True, "import the adapter"), (False, "--method qat")]
)
def test_what_was_lost_is_said_with_a_remedy(is_quantized: bool, remedy: str) -> None:
    said = note({**LOSSES, "answer_loss_served": 2.5, "kept_share": 0.5}, FILES, is_quantized)
    assert said is not None and "50% of what was learned is lost in the file" in said
    assert remedy in said and "--type q8_0" in said
