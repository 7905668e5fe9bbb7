"""verify: figures of two models, what passes and what does not."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from convert_runner import convert
from converted import edit, write
from tiny_checkpoint import write_checkpoint

from converters.divergence import BitsPerByte, Divergence, log_softmax
from converters.text_codec import DirectoryCodec
from converters.verify import Verdict, _failures
from converters.verify_tokenizer import TokenizerVerdict, explained
from edge_agent.errors import ConversionError

CONTRACT = {
    "kl_mean", "kl_p99", "kl_max", "top1_agreement", "bits_per_byte_a", "bits_per_byte_b",
    "served_kl_mean", "floor_kl_mean", "tokenizer_equal", "template_equal", "n_tokens",
    "thresholds", "passed", "reasons",
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "hf", "qwen2")
    return tmp_path / "hf"


def verify(a: Path, b: Path, *flags: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    done = convert("verify", str(a), str(b), "--json", "--threads", "1", *flags)
    return done.code, done.document()


def test_kl_and_bits_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(0)
    p_logits, q_logits = (rng.standard_normal((5, 7)).astype(np.float32) for _ in range(2))
    p = np.exp(p_logits) / np.exp(p_logits).sum(axis=1, keepdims=True)
    q = np.exp(q_logits) / np.exp(q_logits).sum(axis=1, keepdims=True)
    divergence, bits = Divergence(), BitsPerByte(n_bytes=10)
    divergence.add(log_softmax(p_logits), log_softmax(q_logits))
    expected = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(divergence.kl, expected, rtol=1e-5)
    assert divergence.maximum == pytest.approx(expected.max(), rel=1e-5)
    assert divergence.top1_agreement == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    following = [3, 1, 4, 1, 5]
    bits.add(log_softmax(p_logits), following)
    wanted = -np.log2(p[np.arange(5), following]).sum() / 10
    assert bits.value == pytest.approx(wanted, rel=1e-5)


def test_contract_has_every_key() -> None:
    assert {field.name for field in fields(Verdict)} >= CONTRACT


@pytest.mark.parametrize(("file_type", "limit"), [("F16", 1e-4), ("BF16", 1e-3), ("Q8_0", 5e-3)])
def test_a_faithful_conversion_passes_its_gate(
    tmp_path: Path, checkpoint: Path, file_type: str, limit: float
) -> None:
    write(checkpoint, tmp_path / "a.gguf")
    write(checkpoint, tmp_path / "b.gguf", file_type)
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (code, verdict["passed"]) == (0, True), verdict["reasons"]
    assert verdict["thresholds"] == {"kl_mean": limit}
    assert 0 < verdict["kl_mean"] < limit
    assert verdict["kl_mean"] <= verdict["kl_p99"] <= verdict["kl_max"]
    assert verdict["bytes_equal"] is True
    assert verdict["tokenizer_equal"] is True
    assert verdict["template_equal"] is True
    assert verdict["n_tokens"] > 500
    assert verdict["bits_per_byte_a"] == pytest.approx(verdict["bits_per_byte_b"], rel=0.01)


def test_the_same_file_is_at_zero_and_its_floor_is_what_serving_adds(
    tmp_path: Path, checkpoint: Path
) -> None:
    write(checkpoint, tmp_path / "a.gguf", "Q4_0")
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "a.gguf")
    assert code == 0
    assert verdict["kl_mean"] == 0.0
    assert verdict["top1_agreement"] == 1.0
    assert verdict["served_kl_mean"] == verdict["floor_kl_mean"] > 1e-7
    assert verdict["thresholds"] == {}
    assert "Q4_0 has no gate" in verdict["reasons"]["thresholds"]
    assert verdict["bytes_equal"] is None
    assert "quantized itself" in verdict["reasons"]["bytes_equal"]


def test_other_weights_do_not_pass(tmp_path: Path, checkpoint: Path) -> None:
    write_checkpoint(tmp_path / "other", "qwen2", seed=1)
    write(checkpoint, tmp_path / "a.gguf")
    write(tmp_path / "other", tmp_path / "b.gguf")
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (code, verdict["passed"]) == (1, False)
    for word in ("kl_mean", "top1_agreement", "not what ggml makes"):
        assert word in verdict["reasons"]["passed"]


def test_one_damaged_block_is_seen_in_the_bytes(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "a.gguf")
    write(checkpoint, tmp_path / "b.gguf", "Q8_0")
    data = bytearray((tmp_path / "b.gguf").read_bytes())
    data[-3] ^= 1
    (tmp_path / "b.gguf").write_bytes(data)
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (code, verdict["bytes_equal"]) == (1, False)
    assert "1 tensors differ" in verdict["reasons"]["bytes_equal"]


def test_another_template_does_not_pass(tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "other")
    edit(tmp_path / "other/tokenizer_config.json", chat_template="{{ y }} other")
    write(checkpoint, tmp_path / "a.gguf")
    write(tmp_path / "other", tmp_path / "b.gguf")
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (code, verdict["template_equal"]) == (1, False)


def test_another_tokenizer_does_not_pass_and_the_texts_are_listed(
    tmp_path: Path, checkpoint: Path
) -> None:
    from converted import put_json
    from tiny_checkpoint import bpe_tokenizer

    shutil.copytree(checkpoint, tmp_path / "other")
    document = bpe_tokenizer()
    document["model"]["merges"] = document["model"]["merges"][5:]
    put_json(tmp_path / "other/tokenizer.json", document)
    write(checkpoint, tmp_path / "a.gguf")
    write(tmp_path / "other", tmp_path / "b.gguf")
    code, verdict = verify(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert (code, verdict["tokenizer_equal"]) == (1, False)
    assert len(verdict["tokenizer_differences"]) > 3


def test_own_data_is_compared_whole(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "a.gguf")
    (tmp_path / "data.txt").write_text("the and of hello world " * 100 + "\n\nsecond part")
    code, verdict = verify(
        tmp_path / "a.gguf", tmp_path / "a.gguf", "--data", str(tmp_path / "data.txt")
    )
    assert code == 0
    assert verdict["n_tokens"] > 700


def test_a_table_is_for_people(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "a.gguf")
    done = convert("verify", str(tmp_path / "a.gguf"), str(tmp_path / "a.gguf"), "--threads", "1")
    assert done.code == 0
    assert done.out.splitlines()[0].startswith("F32, ")
    assert "at most 1e-05" in done.out
    assert done.out.splitlines()[-1] == "passed"


@pytest.mark.parametrize("missing", ["a", "b", "data"])
def test_what_does_not_exist_is_a_usage_error(
    tmp_path: Path, checkpoint: Path, missing: str
) -> None:
    write(checkpoint, tmp_path / "a.gguf")
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    (tmp_path / "data").write_text("hello world")
    (tmp_path / ("data" if missing == "data" else f"{missing}.gguf")).unlink()
    done = convert("verify", str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf"), "--data",
                   str(tmp_path / "data"))  # fmt: skip
    assert (done.code, "hint:" in done.err) == (2, True)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_a_directory_without_torch_says_what_to_install(tmp_path: Path, checkpoint: Path) -> None:
    write(checkpoint, tmp_path / "b.gguf")
    done = convert("verify", str(checkpoint), str(tmp_path / "b.gguf"))
    assert (done.code, "edge-agent[host]" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "pre", "is_known"),
    [
        ("a" + " " * 32, "spm", True),
        ("a" + " " * 31, "spm", False),
        ("▁", "spm", True),
        ("▁", "qwen2", False),
        ("e\u0301", "qwen2", True),
        ("\u00e9", "qwen2", False),
        ("x²", "smollm", True),
        ("x2", "smollm", False),
    ],
)
def test_differences_by_design_are_few_and_named(text: str, pre: str, is_known: bool) -> None:
    assert explained(text, {pre}) is is_known


def test_the_plan_is_announced_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    write(tmp_path / "hf", a)
    write(tmp_path / "hf", b, "Q8_0")
    done = convert("verify", str(a), str(b))
    (line,) = [line for line in done.err.split("\n") if line.startswith("verify takes up to ")]
    assert "of memory" in line and "keeps" in line
    done = convert("verify", str(a), str(b), "--memory", "50M")
    assert (done.code, "does not fit" in done.err, "50 MB of memory" in done.err) == (1, True, True)
    assert convert("verify", str(a), str(b), "--memory", "much").code == 2


def test_logits_are_kept_in_a_file_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "a.gguf")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert convert("verify", str(tmp_path / "a.gguf"), str(tmp_path / "a.gguf")).code == 0
    assert list(scratch.iterdir()) == []


def test_logits_that_are_no_numbers_do_not_pass() -> None:
    figures = Divergence()
    figures.add(np.full((2, 3), np.nan), np.zeros((2, 3)))
    verdict = TokenizerVerdict(1, (), ())
    assert list(_failures(figures, {"kl_mean": 1e-5}, verdict, (True, True)))


def test_a_tokenizer_that_does_not_load_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "BPE"}}')
    with pytest.raises(ConversionError, match="cannot tokenize with"):
        DirectoryCodec(tmp_path / "hf")
