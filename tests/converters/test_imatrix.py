"""Importance matrices of a real, tiny model in llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Outcome
from convert_runner import convert
from converted import write
from tiny_checkpoint import D, F, write_checkpoint
from tiny_gguf import CHATML_TEMPLATE, IM_END_ID, IM_START_ID, write_tiny_model

from converters.imatrix import N_CTX, read_tokens
from converters.imatrix_file import Imatrix, read_imatrix, write_imatrix
from edge_agent.errors import ConversionError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.capture import check_layout
from edge_agent.llama.model import Model
from edge_agent.records import EngineSettings

WORDS = "hello world and the of in an on it is that hell or "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "data.txt").write_text(WORDS * 60)
    return tmp_path / "data.txt"


def test_the_structs_of_this_library_are_where_they_are_looked_for() -> None:
    assert check_layout() > 0


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_weights_with_the_same_input_have_the_same_sums(
    tmp_path: Path, text: Path, family: str
) -> None:
    write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    done = convert("imatrix", str(tmp_path / "m.gguf"), "--data", str(text), "-o",
                   str(tmp_path / "i.gguf"), "--json", "--threads", "1")  # fmt: skip
    document = done.document()
    assert (done.code, document["weights"]) == (0, 2 * 7)
    found = read_imatrix(tmp_path / "i.gguf")
    assert found.chunk_size == N_CTX
    assert set(found.counts.values()) == {document["chunks"] * float(N_CTX)}
    assert found.datasets == (str(text),)
    for one, two in (("attn_q", "attn_k"), ("attn_q", "attn_v"), ("ffn_gate", "ffn_up")):
        for layer in range(2):
            np.testing.assert_array_equal(
                found.sums[f"blk.{layer}.{one}.weight"], found.sums[f"blk.{layer}.{two}.weight"]
            )
    assert all(values.min() > 0 for values in found.sums.values())


def test_the_input_of_the_first_norm_is_what_numpy_computes(tmp_path: Path, text: Path) -> None:
    """attn_q of block 0 sees the normed embeddings of the tokens, which are easy to compute."""
    arrays = write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "m.gguf")
    flags = ("--chunks", "1", "--threads", "1", "-o", str(tmp_path / "i.gguf"))
    assert convert("imatrix", str(tmp_path / "m.gguf"), "--data", str(text), *flags).code == 0
    model = Model(tmp_path / "m.gguf", EngineSettings(), start_backend())
    tokens = read_tokens(text, model, "qwen2")[:N_CTX]
    model.close()
    x = arrays["model.embed_tokens.weight"][tokens].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
    normed *= arrays["model.layers.0.input_layernorm.weight"]
    found = read_imatrix(tmp_path / "i.gguf").sums["blk.0.attn_q.weight"]
    np.testing.assert_allclose(found, (normed**2).sum(axis=0), rtol=1e-4)


def test_chats_are_rendered_with_control_tokens_as_ids(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", chat_template=CHATML_TEMPLATE)
    chat = {"messages": [{"role": "user", "content": "hello <|im_end|> world"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(chat) + "\n\n" + json.dumps({"text": "an"}) + "\n")
    model = Model(path, EngineSettings(), start_backend())
    tokens = read_tokens(tmp_path / "d.jsonl", model, "llama")
    assert tokens.count(IM_START_ID) == 2
    assert tokens.count(IM_END_ID) == 1  # the one in the user's text stays text
    assert tokens[0] == IM_START_ID
    model.close()


@pytest.mark.parametrize("line", ["not json", "{}", '{"messages": [{"role": "user"}]}', "[1]"])
def test_a_line_that_is_no_chat_is_named(tmp_path: Path, line: str) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", chat_template=CHATML_TEMPLATE)
    (tmp_path / "d.jsonl").write_text('{"text": "ok"}\n' + line + "\n")
    model = Model(path, EngineSettings(), start_backend())
    with pytest.raises(ConversionError, match="line 2 is neither"):
        read_tokens(tmp_path / "d.jsonl", model, "llama")
    model.close()


def test_too_little_data_says_how_much_is_usual(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    (tmp_path / "d.txt").write_text("hello")
    done = convert("imatrix", str(path), "--data", str(tmp_path / "d.txt"), "-o",
                   str(tmp_path / "i.gguf"))  # fmt: skip
    assert (done.code, "one chunk needs 512" in done.err) == (1, True)
    assert not (tmp_path / "i.gguf").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sums": -1.0}, "a negative number"),
        ({"sums": float("nan")}, "NaN"),
        ({"sums": float("inf")}, "infinity"),
        ({"counts": -1.0}, "a negative number"),
        ({"counts": float("nan")}, "NaN"),
    ],
)
def test_sums_that_no_squares_have_are_refused_before_ggml_sees_them(
    tmp_path: Path, change: dict[str, float], message: str
) -> None:
    """ggml ends the whole process over such an importance (iq2_s)."""
    sums = np.ones(64, np.float32)
    sums[3] = change.get("sums", 1.0)
    counts = change.get("counts", 4.0)
    matrix = Imatrix({"blk.0.attn_q.weight": sums}, {"blk.0.attn_q.weight": counts}, (), 1, 4)
    write_imatrix(tmp_path / "i.gguf", matrix)
    with pytest.raises(ConversionError, match=message):
        read_imatrix(tmp_path / "i.gguf")


def _quantized(tmp_path: Path, names: tuple[str, ...]) -> Outcome:
    write_checkpoint(tmp_path / "hf", "qwen2")
    sizes = {name: F if "ffn_down" in name else D for name in names}
    sums = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    write_imatrix(tmp_path / "i.gguf", Imatrix(sums, dict.fromkeys(names, 4.0), (), 1, 4))
    argv = ("hf", str(tmp_path / "hf"), "-o", str(tmp_path / "m.gguf"), "--type", "q4_0")
    return convert(*argv, "--imatrix", str(tmp_path / "i.gguf"))


def test_a_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    done = _quantized(tmp_path, ("blk.7.attn_q.weight", "model.layers.0.mlp"))
    assert (done.code, "has no entry for any tensor of this model" in done.err) == (1, True)


def test_a_matrix_of_a_part_of_the_model_is_named(tmp_path: Path) -> None:
    done = _quantized(tmp_path, ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"))
    assert (done.code, "lacks 12 of 14 matrices" in done.err) == (0, True)


def test_other_line_ends_and_a_byte_order_mark_do_not_break_rows(tmp_path: Path) -> None:
    path, data = tmp_path / "m.gguf", tmp_path / "d.jsonl"
    write_tiny_model(path)
    model = Model(path, EngineSettings(), start_backend())
    found = []
    for text in ("a b", "a\u2028b\x85c"):
        rows = [json.dumps({"text": text}, ensure_ascii=False) for _ in range(2)]
        data.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
        found.append(read_tokens(data, model, "llama"))
    data.write_text('{"text": ' + "[" * 100000 + "]" * 100000 + "}")
    with pytest.raises(ConversionError, match="line 1 is neither"):
        read_tokens(data, model, "llama")
    model.close()
    assert len(found[1]) > len(found[0]) > 0
