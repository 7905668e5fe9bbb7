"""GGUF files become directories: exact weights, the same tokens, and the way back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from convert_runner import convert
from converted import FAMILIES, contents, edit, tensors_of, write
from tiny_checkpoint import arrays_of, write_checkpoint
from tiny_gguf import CHATML_TEMPLATE, write_tiny_model

from converters import gguf_to_hf
from converters.gguf_container import read_metadata
from converters.safetensors_file import read_header
from edge_agent.errors import ConversionError

EQUAL_KEYS = ("tokens", "token_type", "scores", "merges", "pre", "model", "eos_token_id")


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_the_same_model(tmp_path: Path, family: str) -> None:
    arrays = write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "back")
    back = arrays_of(tmp_path / "back")
    assert set(back) == set(arrays)
    for name in arrays:
        np.testing.assert_allclose(back[name], arrays[name], atol=2e-7, err_msg=name)
    write(tmp_path / "back", tmp_path / "again.gguf")
    first, second = tensors_of(tmp_path / "m.gguf"), tensors_of(tmp_path / "again.gguf")
    for name in first:
        np.testing.assert_allclose(second[name], first[name], atol=2e-7, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_survives_both_ways(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "back")
    write(tmp_path / "back", tmp_path / "again.gguf")
    first, second = (read_metadata(tmp_path / f"{name}.gguf") for name in ("m", "again"))
    for key in (f"tokenizer.ggml.{key}" for key in EQUAL_KEYS):
        assert first.get(key) == second.get(key), key
    assert first.get("tokenizer.chat_template") == second.get("tokenizer.chat_template")


@pytest.mark.parametrize("file_type", ["Q8_0", "Q4_0", "Q4_K_M"])
def test_weights_are_gguf_pys_dequantization(tmp_path: Path, file_type: str) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "m.gguf", file_type)
    gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "back")
    back = arrays_of(tmp_path / "back")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    named = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    np.testing.assert_array_equal(back["model.embed_tokens.weight"], named["token_embd.weight"])
    np.testing.assert_array_equal(
        back["model.layers.1.mlp.down_proj.weight"], named["blk.1.ffn_down.weight"]
    )


def test_config_and_card_name_the_quantized_source(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", "gemma3")
    settings = json.loads((tmp_path / "source/tokenizer_config.json").read_text())
    settings["chat_template"] = CHATML_TEMPLATE
    (tmp_path / "source/tokenizer_config.json").write_text(json.dumps(settings))
    write(tmp_path / "source", tmp_path / "m.gguf", "Q8_0")
    done = convert("to-hf", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "hf"), "--json")
    assert done.code == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["quantized_from"]["file"] == "m.gguf"
    assert len(config["quantized_from"]["sha256"]) == 64
    assert (config["architectures"], config["dtype"]) == (["Gemma3ForCausalLM"], "float32")
    assert config["layer_types"] == ["sliding_attention"] * 2
    assert config["rms_norm_eps"] == 1e-6
    assert "dequantized" in (tmp_path / "hf/README.md").read_text()
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert settings["chat_template"] == CHATML_TEMPLATE
    assert settings["eos_token"] == "<eos>"


def test_llama_3_is_not_written_without_its_rotary_settings(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama")
    edit(tmp_path / "hf/config.json", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    write(tmp_path / "hf", tmp_path / "m.gguf")
    with pytest.raises(ConversionError, match="rope_freqs"):
        gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_half_precision_is_written_on_request(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf", architecture="qwen3")
    gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "hf", "bf16")
    header = read_header(tmp_path / "hf/model.safetensors")
    assert {tensor.dtype for tensor in header.values()} == {"BF16"}
    exact = tensors_of(tmp_path / "m.gguf")["blk.0.attn_q.weight"]
    written = arrays_of(tmp_path / "hf")["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_allclose(written, exact, rtol=2**-8)


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/mine.txt").write_text("mine")
    done = convert("to-hf", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "hf"))
    assert (done.code, "it exists" in done.err) == (1, True)
    assert [path.name for path in (tmp_path / "hf").iterdir()] == ["mine.txt"]


def test_a_failure_leaves_no_directory(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "m.gguf", architecture="qwen2")
    data = bytearray((tmp_path / "m.gguf").read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(ConversionError, match=r"output\.weight holds NaN"):
        gguf_to_hf.convert(tmp_path / "m.gguf", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(("flag", "code"), [("f64", 2), ("f16", 0)])
def test_dtype_is_checked_before_anything_is_read(tmp_path: Path, flag: str, code: int) -> None:
    write_tiny_model(tmp_path / "m.gguf")
    path = str(tmp_path / "m.gguf")
    assert convert("to-hf", path, "-o", str(tmp_path / "hf"), "--dtype", flag).code == code


@pytest.mark.parametrize("texts", [["Hello   world", "a  b", "né न", "1 22 333"]])
def test_tokenizers_cuts_text_as_llama_cpp_does(tmp_path: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    from edge_agent.llama.binding import start_backend
    from edge_agent.llama.model import Model
    from edge_agent.records import EngineSettings

    log = start_backend()
    log.is_muted = True
    for family in ("gemma3", "llama"):
        write_checkpoint(tmp_path / family, family)
        path = tmp_path / f"{family}.gguf"
        write(tmp_path / family, path)
        gguf_to_hf.convert(path, tmp_path / f"{family}-back")
        fast = Tokenizer.from_file(str(tmp_path / f"{family}-back/tokenizer.json"))
        model = Model(path, EngineSettings(n_threads=1), log)
        for text in texts:
            own = model.vocabulary.tokenize(text, add_special=True, parse_special=False)
            assert fast.encode(text).ids == own, (family, text)
        model.close()


def test_every_byte_of_an_unchanged_type_is_copied(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(tmp_path / "hf", tmp_path / "m.gguf", "Q4_K_M")
    done = convert(
        "quantize", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "n.gguf"), "--type", "q4_k_m"
    )
    assert done.code == 0, done.err
    assert contents(tmp_path / "n.gguf") == contents(tmp_path / "m.gguf")
