"""The end of a text is found wherever a checkpoint names it; what is added to a text is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from converted import edit, write
from tiny_checkpoint import (
    added,
    bos_template,
    bpe_tokenizer,
    put_json,
    spm_tokenizer,
    write_checkpoint,
)

from converters.gguf_container import Metadata
from edge_agent.errors import ConversionError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.model import Model
from edge_agent.records import EngineSettings

EOS = "tokenizer.ggml.eos_token_id"
NAMES = list(bpe_tokenizer()["model"]["vocab"])
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def converted(
    directory: Path, family: str = "qwen2", **files: dict[str, Any]
) -> tuple[Metadata, Path]:
    """A checkpoint without eos in tokenizer_config.json, with these files' members changed."""
    hf = directory / "hf"
    write_checkpoint(hf, family)
    put_json(hf / "tokenizer_config.json", {"chat_template": "{{ x }}"})
    for name, members in files.items():
        path = hf / f"{name}.json"
        put_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **members})
    return write(hf, directory / "m.gguf"), directory / "m.gguf"


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": NAMES[2]}},
        {"tokenizer_config": {"eos_token": {"content": NAMES[2], "special": True}}},
        {"special_tokens_map": {"eos_token": NAMES[2]}},
        {"special_tokens_map": {"eos_token": {"content": NAMES[2]}}},
        {"tokenizer_config": {"eos_token": None}, "special_tokens_map": {"eos_token": NAMES[2]}},
        {"config": {"eos_token_id": 2}},
        {"config": {"eos_token_id": [2, 1]}},
        {"generation_config": {"eos_token_id": 2}},
        {"generation_config": {"eos_token_id": [2, 1]}},
        {"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": [2]}},
    ],
)
def test_the_end_of_a_text_is_found_in_every_file(
    tmp_path: Path, files: dict[str, dict[str, Any]]
) -> None:
    metadata, path = converted(tmp_path, **files)
    assert metadata.get_value(EOS) == 2
    model = Model(path, EngineSettings(), start_backend())
    assert model.vocabulary.eos == 2
    model.close()


def test_a_token_of_the_plain_vocabulary_may_end_a_text(tmp_path: Path) -> None:
    text = NAMES[40]
    metadata, _ = converted(tmp_path, tokenizer_config={"eos_token": text})
    assert metadata.get_value(EOS) == 40


@pytest.mark.parametrize(
    "files",
    [{}, {"config": {"eos_token_id": True}}, {"generation_config": {"eos_token_id": [99999]}},
     {"tokenizer_config": {"eos_token": "<nowhere>"}}],
)  # fmt: skip
def test_a_checkpoint_without_an_end_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="no file names the token that ends a text"):
        converted(tmp_path, **files)


def _ends(number: int) -> dict[str, dict[str, Any]]:
    """`number` ends of unknown texts beside eos."""
    tokens = [added(100 + n, f"[END{n}]", True) for n in range(number)]
    document = bpe_tokenizer()
    document["model"]["vocab"] = {
        name: n for name, n in document["model"]["vocab"].items() if not 100 <= n < 100 + number
    }
    document["added_tokens"] += tokens
    ids = [2, *(token["id"] for token in tokens)]
    return {"tokenizer": document, "generation_config": {"eos_token_id": ids}}


@pytest.mark.parametrize(("number", "found"), [(0, []), (1, [100]), (2, [100, 101])])
def test_further_ends_are_written_where_llama_cpp_does_not_know_them(
    tmp_path: Path, number: int, found: list[int]
) -> None:
    metadata, path = converted(tmp_path, **_ends(number))
    keys = [metadata.get_value(f"tokenizer.ggml.{word}_token_id") for word in ("eot", "eom")]
    assert [key for key in keys if key is not None] == found
    model = Model(path, EngineSettings(), start_backend())
    assert {2, *found} <= model.vocabulary.eog_ids
    model.close()


def test_more_ends_than_a_file_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="eos_token_id lists 3 ends"):
        converted(tmp_path, **_ends(3))


def _template(*names: str) -> dict[str, Any]:
    parts = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if name == "A"
        else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in names
    ]
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": {}}


@pytest.mark.parametrize(
    ("processor", "settings", "expected"),
    [
        (None, {}, (None, None)),
        (BYTE_LEVEL, {"add_bos_token": True}, (False, False)),
        (_template(NAMES[1], "A"), {"bos_token": NAMES[1], "add_bos_token": False}, (True, None)),
        (_template(NAMES[1], "A", NAMES[2]), {"bos_token": NAMES[1]}, (True, True)),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, _template(NAMES[1], "A")]}, {},
         (True, False)),
    ],
)  # fmt: skip
def test_the_post_processor_says_what_is_added(
    tmp_path: Path,
    processor: Any,
    settings: dict[str, Any],
    expected: tuple[bool | None, bool | None],
) -> None:
    metadata, _ = converted(
        tmp_path,
        tokenizer={"post_processor": processor},
        tokenizer_config={"eos_token": NAMES[2], **settings},
    )
    keys = (f"tokenizer.ggml.add_{kind}_token" for kind in ("bos", "eos"))
    assert tuple(metadata.get_value(key) for key in keys) == expected
    if expected[0]:
        assert metadata.get_value("tokenizer.ggml.bos_token_id") == 1


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (_template(NAMES[0], "A"), "its post-processor makes"),
        (_template(NAMES[1], NAMES[0], "A"), "its post-processor makes"),
        (_template("A", NAMES[0]), "its post-processor makes"),
        ({"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]}, "no post-processor"),
    ],
)
def test_what_llama_cpp_would_not_add_is_refused(
    tmp_path: Path, processor: dict[str, Any], message: str
) -> None:
    settings = {"bos_token": NAMES[1], "eos_token": NAMES[2]}
    with pytest.raises(ConversionError, match=message):
        converted(tmp_path, tokenizer={"post_processor": processor}, tokenizer_config=settings)


def test_a_bos_that_no_file_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no file names that token"):
        converted(
            tmp_path,
            tokenizer={"post_processor": None},
            tokenizer_config={"eos_token": NAMES[2], "add_bos_token": True},
        )


def test_added_tokens_of_the_settings_alone_are_added_where_an_id_is_free(tmp_path: Path) -> None:
    size = len(NAMES)
    write_checkpoint(tmp_path / "hf", "qwen2")
    document = bpe_tokenizer()
    last = NAMES[-1]
    del document["model"]["vocab"][last]
    document["model"]["merges"] = [
        pair for pair in document["model"]["merges"] if "".join(pair) != last
    ]
    put_json(tmp_path / "hf/tokenizer.json", document)
    extra = {str(size - 1): {"content": "<tool>", "special": True}, "5": {"content": "<taken>"}}
    edit(tmp_path / "hf/tokenizer_config.json", added_tokens_decoder=extra)
    tokens = write(tmp_path / "hf", tmp_path / "m.gguf").get_value("tokenizer.ggml.tokens")
    assert (tokens[size - 1], tokens[5]) == ("<tool>", NAMES[5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "no normalizer"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}},
         "no normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no pre-tokenizer"),
        ({"decoder": {"type": "WordPiece"}}, "no decoder"),
    ],
)  # fmt: skip
def test_parts_that_sentencepiece_does_not_have_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path / "hf", "gemma3")
    edit(tmp_path / "hf/tokenizer.json", **changes)
    with pytest.raises(ConversionError, match=message):
        write(tmp_path / "hf", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("changes", "adds_space"),
    [
        ({}, False),
        ({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}, True),
        ({"normalizer": None, "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
         True),
        ({"normalizer": None, "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}},
         False),
    ],
)  # fmt: skip
def test_the_structure_says_whether_a_text_begins_with_a_space(
    tmp_path: Path, changes: dict[str, Any], adds_space: bool
) -> None:
    write_checkpoint(tmp_path / "hf", "llama")
    document = {**spm_tokenizer(), **changes}
    put_json(tmp_path / "hf/tokenizer.json", document)
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "add_prefix_space": not adds_space}
    put_json(tmp_path / "hf/tokenizer_config.json", settings)
    size = len(document["model"]["vocab"])
    _resize(tmp_path / "hf", size)
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    assert metadata.get_value("tokenizer.ggml.add_space_prefix") is adds_space


def _resize(hf: Path, size: int) -> None:
    import numpy as np
    from safetensors_writer import write_arrays
    from tiny_checkpoint import arrays_of

    arrays = arrays_of(hf)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[name] = np.resize(arrays[name], (size, arrays[name].shape[1]))
    write_arrays(hf / "model.safetensors", arrays)
    edit(hf / "config.json", vocab_size=size)


def test_special_tokens_around_a_sentencepiece_text_stay(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "gemma3")
    edit(tmp_path / "hf/tokenizer.json", post_processor=bos_template(2))
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    assert metadata.get_value("tokenizer.ggml.add_bos_token") is True


@pytest.mark.parametrize(("extra", "found"), [({}, 0), ({"added_tokens_decoder": {}}, 2)])
def test_special_tokens_map_goes_first_where_transformers_reads_it(
    tmp_path: Path, extra: dict[str, Any], found: int
) -> None:
    metadata, _ = converted(
        tmp_path,
        tokenizer_config={"eos_token": NAMES[2], **extra},
        special_tokens_map={"eos_token": NAMES[0]},
    )
    assert metadata.get_value(EOS) == found


def test_an_end_of_the_plain_vocabulary_ends_a_text_beside_eos(tmp_path: Path) -> None:
    _, path = converted(tmp_path, generation_config={"eos_token_id": [2, 100]})
    model = Model(path, EngineSettings(), start_backend())
    assert {2, 100} <= model.vocabulary.eog_ids
    model.close()


def test_add_prefix_space_of_qwen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="add_prefix_space"):
        converted(tmp_path, tokenizer_config={"eos_token": NAMES[2], "add_prefix_space": True})
