"""What the model is given: exactly our ids and labels, packed or not, and nothing across rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import write_tiny

torch = pytest.importorskip("torch")

from edge_agent.errors import DataRefused  # noqa: E402
from edge_agent.prompt.training_sequence import vocabulary_only  # noqa: E402
from train_host.methods import load_model  # noqa: E402
from train_host.model_source import open_source  # noqa: E402
from train_host.samples import (  # noqa: E402
    IGNORED,
    Samples,
    encode_rows,
    lines_of,
    read_data,
    refuse_unlearnable,
)
from train_host.settings import Facts, SftSettings, Wishes, resolve, with_rows  # noqa: E402
from train_host.trainer import new_trainer  # noqa: E402

LENGTH = 128
NOTHING = Samples([], [], [], [], {})
FAMILIES = ("llama", "gemma3", "qwen2", "qwen3")


def settings_of(**wishes: Any) -> SftSettings:
    wished = Wishes(max_length=LENGTH, threads=1, learning_rate=1e-3, r=4, **wishes)
    return with_rows(resolve(wished, Facts(n_layer=2, n_params=1)), 8)


def samples_of(directory: Path, data: Path, cache: Path, max_length: int = LENGTH) -> Samples:
    source = open_source(str(directory), cache)
    with vocabulary_only(source.vocabulary) as prompts:
        return encode_rows(read_data(data).rows, prompts, max_length)


def given_to_the_model(
    directory: Path, samples: Samples, settings: SftSettings, scratch: Path
) -> list[dict[str, Any]]:
    """Every batch of a run, as it arrives at the model."""
    trainer = new_trainer(load_model(directory, settings), settings, samples, NOTHING, scratch)
    seen: list[dict[str, Any]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append({k: v.clone() if hasattr(v, "clone") else v for k, v in kwargs.items()})

    trainer.model.get_base_model().register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    return seen


def pairs_of(ids: list[int], labels: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(ids), tuple(labels)


def test_padded_batches_hold_our_ids_and_labels(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    samples = samples_of(tiny_llama, pairs, tmp_path)
    settings = settings_of(epochs=1, batch_size=4)
    found = []
    for batch in given_to_the_model(tiny_llama, samples, settings, tmp_path / "c"):
        for ids, labels, mask in zip(
            batch["input_ids"].tolist(),
            batch["labels"].tolist(),
            batch["attention_mask"].tolist(),
            strict=True,
        ):
            n = sum(mask)
            assert set(labels[n:]) <= {IGNORED}
            found.append(pairs_of(ids[:n], labels[:n]))
    assert sorted(found) == sorted(map(pairs_of, samples.input_ids, samples.labels))


def test_packed_rows_hold_our_ids_and_labels(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    samples = samples_of(tiny_llama, pairs, tmp_path)
    settings = settings_of(epochs=1, batch_size=2, packing=True)
    batches = given_to_the_model(tiny_llama, samples, settings, tmp_path / "c")
    found = []
    for batch in batches:
        assert batch.get("attention_mask") is None
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        places = batch["position_ids"][0].tolist()
        starts = [n for n, place in enumerate(places) if place == 0]
        for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
            found.append(pairs_of(ids[first:last], labels[first:last]))
    assert len(batches) < len(samples) / 2
    assert sorted(found) == sorted(map(pairs_of, samples.input_ids, samples.labels))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_one_packed_row_do_not_see_each_other(
    family: str, pairs: Path, tmp_path: Path
) -> None:
    """The loss of packed rows is that of each sample alone, also with transformers' sdpa."""
    directory = write_tiny(tmp_path / family, family)
    samples = samples_of(directory, pairs, tmp_path)
    sums = []
    for packing in (False, True):
        settings = settings_of(batch_size=1, packing=packing)
        assert settings.attention == "sdpa"
        trainer = new_trainer(
            load_model(directory, settings), settings, samples, NOTHING, tmp_path / str(packing)
        )
        sums.append(sum(nats(trainer, row) for row in trainer.train_dataset))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def nats(trainer: Any, row: dict[str, Any]) -> float:
    batch = trainer.data_collator([row])
    with torch.no_grad():
        out = trainer.model(**batch, fused_lm_head=True, use_cache=False)
    return float(-out.log_probs.double().sum())


def test_a_leak_would_be_seen(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    """The control of the test above: without positions the packed samples do see each other."""
    samples = samples_of(tiny_llama, pairs, tmp_path)
    settings = settings_of(batch_size=1, packing=True)
    trainer = new_trainer(
        load_model(tiny_llama, settings), settings, samples, NOTHING, tmp_path / "c"
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    apart = nats(trainer, trainer.train_dataset[0])
    with torch.no_grad():
        out = trainer.model(
            input_ids=batch["input_ids"], labels=batch["labels"], fused_lm_head=True
        )
    assert float(-out.log_probs.double().sum()) != pytest.approx(apart, rel=1e-3)


def test_every_answer_is_learned_with_its_end(tiny_llama: Path, tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "ef")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    samples = samples_of(tiny_llama, path, tmp_path)
    source = open_source(str(tiny_llama), tmp_path)
    with vocabulary_only(source.vocabulary) as prompts:
        learned = [label for label in samples.labels[0] if label != IGNORED]
        pieces = [prompts.vocabulary.text(token) for token in learned]
    assert "".join(pieces) == "bc<|im_end|>ef<|im_end|>"
    assert samples.n_bytes == [4]


def test_control_tokens_in_content_stay_text(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"instruction": "<|im_end|>", "output": "<|im_start|>"}))
    samples = samples_of(tiny_llama, path, tmp_path)
    assert samples.input_ids[0].count(1) == 2  # <|im_start|> of the two headers
    assert samples.input_ids[0].count(2) == 2  # <|im_end|> of the two turns


def test_long_rows_are_left_out_whole_and_counted(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    whole = samples_of(tiny_llama, pairs, tmp_path)
    some = samples_of(tiny_llama, pairs, tmp_path, max_length=40)
    assert some.dropped == {"too_long": len(whole) - len(some)}
    assert 0 < len(some) < len(whole)
    assert all(len(ids) <= 40 and ids in whole.input_ids for ids in some.input_ids)


def test_data_without_a_token_to_learn_is_refused(
    tiny_llama: Path, pairs: Path, tmp_path: Path
) -> None:
    none = samples_of(tiny_llama, pairs, tmp_path, max_length=8)
    with pytest.raises(DataRefused, match="nothing to learn") as caught:
        refuse_unlearnable(none, "pairs.jsonl", 8)
    assert "40 too_long" in caught.value.why
    unlabelled = replace(none, input_ids=[[1, 2]], labels=[[IGNORED, IGNORED]])
    with pytest.raises(DataRefused):
        refuse_unlearnable(unlabelled, "pairs.jsonl", 8)


def test_a_gguf_gives_the_same_ids_as_the_directory_it_becomes(
    tiny_model: Path, pairs: Path, tmp_path: Path
) -> None:
    source = open_source(str(tiny_model), tmp_path)
    assert source.gguf == tiny_model
    again = open_source(str(source.directory), tmp_path)
    assert again.vocabulary != source.vocabulary
    rows = read_data(pairs).rows
    with vocabulary_only(source.vocabulary) as one, vocabulary_only(again.vocabulary) as other:
        assert encode_rows(rows, one, LENGTH) == encode_rows(rows, other, LENGTH)
    assert open_source(str(tiny_model), tmp_path) == source  # from the cache


def test_lines_are_numbered_as_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{n}", "completion": "x"}).encode() for n in range(3)]
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\n" + b"\n".join(lines[1:]))
    data = read_data(path)
    assert [row.number for row in data.rows] == [1, 3, 4]
    assert lines_of(data, [4, 1]) == lines[0] + b"\n" + lines[2] + b"\n"
