"""Checkpoints become GGUF files: names, values, keys, tokens, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from convert_runner import convert
from converted import FAMILIES, contents, edit, tensors_of, write
from tiny_checkpoint import (
    HEAD,
    HEADS,
    KV_HEADS,
    D,
    added,
    arrays_of,
    bpe_tokenizer,
    put_json,
    spm_tokenizer,
    write_checkpoint,
)
from waiting import until

from converters.extras import load_extra
from edge_agent.errors import ConversionError, EdgeAgentError
from edge_agent.gguf.model_file import read_gguf

ALL_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    **{f"self_attn.{x}_proj.{k}": f"attn_{x}.{k}" for x in "qkv" for k in ("weight", "bias")},
    **{f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"},
    "self_attn.o_proj.weight": "attn_output.weight",
    **{f"mlp.{x}_proj.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")},
}
GEMMA_NAMES = {
    **ALL_NAMES,
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
OTHER_NAMES = {**ALL_NAMES, "post_attention_layernorm.weight": "ffn_norm.weight"}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str, family: str) -> str:
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{(GEMMA_NAMES if family == 'gemma3' else OTHER_NAMES)[rest]}"


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of a head, element by element: what llama.cpp's rotation expects."""
    split = array.reshape(heads, 2, HEAD // 2, -1)
    return np.stack([split[:, 0], split[:, 1]], axis=2).reshape(array.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_arrives_under_its_name(tmp_path: Path, family: str) -> None:
    arrays = write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    found = tensors_of(tmp_path / "m.gguf")
    assert set(found) == {gguf_name(name, family) for name in arrays}
    for name, array in arrays.items():
        expected = array
        if family == "gemma3" and name.endswith("norm.weight"):
            expected = array + 1
        if family == "llama" and "q_proj" in name:
            expected = interleaved(array, HEADS)
        if family == "llama" and "k_proj" in name:
            expected = interleaved(array, KV_HEADS)
        np.testing.assert_array_equal(found[gguf_name(name, family)], expected, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_accepts_and_describes_the_file(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf", "Q8_0")
    file = read_gguf(tmp_path / "m.gguf")
    assert (file.architecture, file.quantization) == (family, "Q8_0")
    assert (file.n_layer, file.n_embd, file.n_head, file.n_head_kv) == (2, D, HEADS, KV_HEADS)
    assert (file.head_dim, file.n_ctx_train) == (HEAD, 512)
    assert file.sliding_window == (32 if family == "gemma3" else 0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gemma3", {"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "attention.key_length": 16}),
        ("qwen3", {"rope.freq_base": 1e6, "attention.key_length": 16}),
        ("qwen2", {"rope.freq_base": 1e6}),
        ("llama", {"rope.freq_base": 1e5, "rope.dimension_count": 16}),
    ],
)
def test_hyperparameters_have_llama_cpps_names(
    tmp_path: Path, family: str, expected: dict[str, float]
) -> None:
    write_checkpoint(tmp_path / "hf", family)
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    found = {key: metadata.get_value(f"{family}.{key}") for key in expected}
    assert found == pytest.approx(expected)
    assert metadata["general.file_type"].value == 0


def test_a_tied_head_is_left_out(tmp_path: Path) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "qwen2", is_tied=True)
    assert "lm_head.weight" not in arrays
    write(tmp_path / "hf", tmp_path / "m.gguf")
    assert "output.weight" not in tensors_of(tmp_path / "m.gguf")


def test_llama_3_factors_become_a_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "llama")
    edit(tmp_path / "hf" / "config.json", rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }, rope_theta=500000.0)  # fmt: skip
    write(tmp_path / "hf", tmp_path / "m.gguf")
    factors = tensors_of(tmp_path / "m.gguf")["rope_freqs.weight"]
    assert factors.shape == (HEAD // 2,)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert np.all(np.diff(factors) >= 0)


def test_the_text_part_of_a_multimodal_model_is_enough(tmp_path: Path) -> None:
    arrays = write_checkpoint(tmp_path / "hf", "gemma3")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config}
    config.pop("architectures")
    put_json(tmp_path / "hf/config.json", nested)
    from safetensors_writer import write_arrays

    renamed = {f"language_model.{name}": array for name, array in arrays.items()}
    renamed["vision_tower.vision_model.x.weight"] = np.ones((2, 2), np.float32)
    write_arrays(tmp_path / "hf/model.safetensors", renamed)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    assert len(tensors_of(tmp_path / "m.gguf")) == len(arrays)


def test_spm_scores_types_and_texts_follow_from_tokenizer_json(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "gemma3")
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    tokens, scores, types = (
        metadata.get_value(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type")
    )
    by_text = {t: (s, k) for t, s, k in zip(tokens, scores, types, strict=True)}
    assert metadata.get_value("tokenizer.ggml.model") == "llama"
    assert by_text["<bos>"] == (-1000.0, 3)
    assert by_text["  "] == (-1000.0, 4)
    assert "▁▁" not in by_text
    assert by_text["<0x41>"] == (0.0, 6)
    merged = [t for t in tokens if len(t) > 1 and by_text[t][1] == 1]
    assert [by_text[t][0] for t in merged] == [-float(rank) for rank in range(len(merged))]
    first = min(s for t, (s, k) in by_text.items() if k == 1 and len(t) > 1)
    singles = [by_text[t][0] for t in tokens if len(t) == 1 and by_text[t][1] == 1]
    assert singles[0] == first - 1 - 3  # two runs of spaces were merged in between, and one more
    assert singles == sorted(singles, reverse=True)
    assert metadata.get_value("tokenizer.ggml.add_bos_token") is True
    assert metadata.get_value("tokenizer.ggml.add_sep_token") is False
    assert metadata.get_value("tokenizer.ggml.add_space_prefix") is False


def test_bpe_tokens_merges_and_template_arrive(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    edit(tmp_path / "hf/config.json", vocab_size=len(bpe_tokenizer()["model"]["vocab"]))
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    document = bpe_tokenizer()
    merges = [" ".join(pair) for pair in document["model"]["merges"]]
    assert metadata.get_value("tokenizer.ggml.pre") == "smollm"
    assert metadata.get_value("tokenizer.ggml.tokens") == list(document["model"]["vocab"])
    assert metadata.get_value("tokenizer.ggml.merges") == merges
    assert metadata.get_value("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert metadata.get_value("tokenizer.ggml.eos_token_id") == 2
    assert metadata.get_value("tokenizer.ggml.add_bos_token") is False
    assert metadata.get_value("tokenizer.chat_template") == "{{ x }}"


def test_types_and_bytes_are_those_of_llama_cpps_quantizer(tmp_path: Path) -> None:
    import ctypes

    from edge_agent.llama.binding import lib
    from edge_agent.llama.type_plan import FILE_TYPES

    write_checkpoint(tmp_path / "hf", "gemma3")
    write(tmp_path / "hf", tmp_path / "f32.gguf")
    for file_type in ("Q8_0", "Q4_0", "Q4_K_M", "BF16", "F16"):
        write(tmp_path / "hf", tmp_path / "ours.gguf", file_type)
        parameters = lib.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[file_type]
        source, target = (str(tmp_path / name).encode() for name in ("f32.gguf", "theirs.gguf"))
        assert lib.llama_model_quantize(source, target, ctypes.byref(parameters)) == 0
        assert (tmp_path / "ours.gguf").read_bytes()[-4096:] == (
            tmp_path / "theirs.gguf"
        ).read_bytes()[-4096:]
        assert contents(tmp_path / "ours.gguf") == contents(tmp_path / "theirs.gguf")


def test_overrides_choose_the_type_of_named_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    write(
        tmp_path / "hf",
        tmp_path / "m.gguf",
        "Q4_0",
        token_embedding_type="Q5_1",
        overrides=(("blk.1.ffn_down", "Q8_0"),),
    )
    types = {t.name: t.type for t in read_gguf(tmp_path / "m.gguf").tensors}
    assert types["token_embd.weight"] == "Q5_1"
    assert (types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]) == ("Q4_0", "Q8_0")


def _pickle(hf: Path) -> None:
    (hf / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def _code(hf: Path) -> None:
    (hf / "modeling_x.py").write_text("raise SystemExit")


def _auto_map(hf: Path) -> None:
    edit(hf / "config.json", auto_map={"AutoModel": "modeling_x.X"})


def _tokenizer_auto_map(hf: Path) -> None:
    edit(hf / "tokenizer_config.json", auto_map={"AutoTokenizer": "tokenization_x.X"})


def _link_out(hf: Path) -> None:
    (hf / "extra.json").symlink_to("/etc/hostname")


def _index_with(name: str) -> Callable[[Path], None]:
    def damage(hf: Path) -> None:
        (hf / "model.safetensors").unlink()
        index = {"weight_map": {"model.norm.weight": name}}
        put_json(hf / "model.safetensors.index.json", index)

    return damage


def _huge_header(hf: Path) -> None:
    data = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(struct.pack("<Q", 200_000_000) + data[8:])


def _cut(hf: Path) -> None:
    data = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(data[:-100])


def _changed(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Callable[..., None]:
    def damage(hf: Path) -> None:
        from safetensors_writer import write_arrays

        arrays = arrays_of(hf)
        changed = change(arrays.pop(name, np.ones((2, 2), np.float32)))
        if changed is not None:
            arrays[name] = changed
        write_arrays(hf / "model.safetensors", arrays)

    return damage


def _nan(array: np.ndarray) -> np.ndarray:
    array[3, 5] = np.nan
    return array


def _infinite(array: np.ndarray) -> np.ndarray:
    array[0, 0] = np.inf
    return array


Q0 = "model.layers.0.self_attn.q_proj.weight"
HOSTILE = {
    "pickle": (_pickle, "pytorch_model.bin"),
    "code": (_code, "modeling_x.py"),
    "auto_map": (_auto_map, "auto_map"),
    "tokenizer auto_map": (_tokenizer_auto_map, "tokenizer_config.json asks for code"),
    "link out": (_link_out, "extra.json is a link out"),
    "shard name": (_index_with("../../etc/passwd"), "is not a plain file name"),
    "missing shard": (_index_with("model-1.safetensors"), "model-1.safetensors is missing"),
    "huge header": (_huge_header, "its header claims 200000000 bytes"),
    "cut file": (_cut, "ends early"),
    "NaN": (_changed(Q0, _nan), f"{Q0} holds NaN"),
    "infinity": (_changed("model.layers.1.mlp.up_proj.weight", _infinite), "up_proj.weight holds"),
    "wrong shape": (_changed(Q0, lambda a: a[:, :-1]), "has the shape [64, 63]"),
    "missing tensor": (_changed(Q0, lambda a: None), f"{Q0} is missing"),
    "unknown tensor": (_changed("model.layers.0.x.weight", lambda a: a), "have no place"),
    "vocabulary size": (lambda hf: edit(hf / "config.json", vocab_size=9999), "vocab_size is 9999"),
    "tokenizer too large": (
        lambda hf: put_json(
            hf / "tokenizer.json",
            {**bpe_tokenizer(), "added_tokens": [added(5000, "<|far|>", True)]},
        ),
        "the token id 5000",
    ),
    "negative token": (
        lambda hf: put_json(
            hf / "tokenizer.json",
            {**bpe_tokenizer(), "added_tokens": [added(-1, "<|behind|>", True)]},
        ),
        "the token id -1",
    ),
    "equal tokens": (
        lambda hf: put_json(
            hf / "tokenizer.json", {**bpe_tokenizer(), "added_tokens": [added(7, "a", True)]}
        ),
        "two tokens of the vocabulary are equal",
    ),
    "other architecture": (
        lambda hf: edit(hf / "config.json", architectures=["MixtralForCausalLM"]),
        "its architecture is ['MixtralForCausalLM']",
    ),
    "absurd size": (lambda hf: edit(hf / "config.json", hidden_size=1 << 60), "hidden_size"),
    "no JSON": (lambda hf: (hf / "config.json").write_text("{"), "it is not JSON"),
    "unknown pre-tokenizer": (
        lambda hf: put_json(
            hf / "tokenizer.json", {**bpe_tokenizer(), "pre_tokenizer": {"type": "Whitespace"}}
        ),
        "its pre-tokenizer",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_directory_is_refused_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    damage, message = HOSTILE[case]
    write_checkpoint(tmp_path / "hf", "qwen2")
    damage(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    done = convert("hf", str(tmp_path / "hf"), "-o", str(tmp_path / "out/m.gguf"))
    assert done.code == 1
    assert message in done.err
    assert done.err.startswith("error: ")
    assert "\nhint:  " in done.err
    assert "Traceback" not in done.err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_trainer_leaves_behind_is_ignored(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    (tmp_path / "hf/training_args.bin").write_bytes(b"\x80\x02.")
    write(tmp_path / "hf", tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").exists()


def test_links_inside_a_hub_cache_are_followed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    repo = tmp_path / "models--o--n"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in (tmp_path / "hf").iterdir():
        path.rename(repo / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    write(snapshot, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").exists()


def test_a_missing_library_says_what_to_install() -> None:
    with pytest.raises(EdgeAgentError, match="cannot go on without nothing_of_this_name") as caught:
        load_extra("nothing_of_this_name", "this test")
    assert caught.value.hint == "pip install 'edge-agent[host]'"


def test_image_token_beyond_the_model_is_left_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "gemma3")
    document = spm_tokenizer()
    size = len(document["model"]["vocab"])
    document["added_tokens"].append(added(size, "<image_soft_token>", True))
    put_json(tmp_path / "hf/tokenizer.json", document)
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    assert len(metadata.get_value("tokenizer.ggml.tokens")) == size


def test_killed_conversion_leaves_no_file_or_a_whole_one(tmp_path: Path) -> None:
    """Killed when so much of the temporary file is there, and when the file itself is (None)."""
    write_checkpoint(tmp_path / "hf", "qwen2")
    path = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "converters.cli", "hf", str(tmp_path / "hf"), "-o", str(path)]
    whole = tmp_path / "whole.gguf"
    write(tmp_path / "hf", whole, "Q8_0")
    n_bytes = whole.stat().st_size

    def is_there(process: subprocess.Popen[bytes], share: float | None) -> bool:
        temp = tmp_path / f".m.gguf.{process.pid}.tmp"
        if process.poll() is not None or path.exists():
            return True
        return share is not None and temp.exists() and temp.stat().st_size >= share * n_bytes

    for share in (0.0, 0.5, 1.0, None):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: is_there(process, share), poll_s=0.0)  # noqa: B023  (called here)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not path.exists() or contents(path) == contents(whole)
        path.unlink(missing_ok=True)


def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, alive = (tmp_path / f".m.gguf.{pid}.tmp" for pid in (ended.pid, os.getppid()))
    left.touch()
    alive.touch()
    write(tmp_path / "hf", tmp_path / "m.gguf")
    assert (left.exists(), alive.exists()) == (False, True)


def test_output_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    with pytest.raises(ConversionError, match="cannot write .*/nowhere/m.gguf"):
        write(tmp_path / "hf", tmp_path / "nowhere" / "m.gguf")
