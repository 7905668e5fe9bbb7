"""A model card and generation_config.json are optional: what cannot be used is left out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from converted import edit, write
from tiny_checkpoint import put_json, write_checkpoint

BOM = b"\xef\xbb\xbf"


def card(front_matter: str) -> bytes:
    return f"---\n{front_matter}\n---\n# A model\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        card("model_name: a: b"), card("license: 5"), card("license: [a, 1.5]"),
        card("tags: 7"), card("language: {a: b}"), card("base_model: 3.5"),
        card("model_name: [1, 2]"), card("datasets: {x: 1}"), card("a: &a [*a]"),
        card("- a\n- b"), card("\t\tx: ["), card("x: !!python/object:os.system {}"),
        "---\nname: \xe9\n---\n".encode("latin-1"), b"---\nlicense: mit\n", b"", b"\x00\xff",
        card("d: 2026-11-30"), card("[" * 5000), card("license: ''"), card("author: null"),
    ],
)  # fmt: skip
def test_a_card_that_is_not_what_we_expect_costs_no_conversion(tmp_path: Path, data: bytes) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    (tmp_path / "hf/README.md").write_bytes(data)
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    assert metadata.get_value("general.architecture") == "qwen2"


def test_only_the_member_that_cannot_be_used_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    (tmp_path / "hf/README.md").write_bytes(card("license: mit\nmodel_name: 5\ntags: [x]"))
    with caplog.at_level(logging.WARNING):
        metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    assert metadata.get_value("general.license") == "mit"
    assert metadata.get_value("general.tags") == ["x"]
    assert "README.md: model_name is left out, it is 5" in caplog.text


def test_a_bom_before_any_file_is_read_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    (tmp_path / "hf/README.md").write_bytes(card("license: mit"))
    put_json(tmp_path / "hf/generation_config.json", {"top_k": 20})
    plain = write(tmp_path / "hf", tmp_path / "plain.gguf")
    for path in (tmp_path / "hf").iterdir():
        if path.suffix in (".json", ".md"):
            path.write_bytes(BOM + path.read_bytes())
    assert write(tmp_path / "hf", tmp_path / "m.gguf") == plain


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top_k": 64.0, "temperature": 1}, {"top_k": 64, "temp": 1.0}),
        ({"top_k": 64.5, "top_p": "0.9", "min_p": True}, {}),
        ({"top_k": None, "temperature": [], "repetition_penalty": "1.1"}, {}),
        ({"top_k": 10**30, "temperature": float("inf")}, {}),
        ({"repetition_penalty": 1.1, "top_p": 0.5}, {"penalty_repeat": 1.1, "top_p": 0.5}),
    ],
)
def test_sampling_values_that_are_no_numbers_are_left_out(
    tmp_path: Path, values: dict[str, Any], expected: dict[str, float]
) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2")
    put_json(tmp_path / "hf/generation_config.json", values)
    metadata = write(tmp_path / "hf", tmp_path / "m.gguf")
    names = ("top_k", "top_p", "min_p", "temp", "penalty_repeat")
    found = {name: metadata.get_value(f"general.sampling.{name}") for name in names}
    assert {n: v for n, v in found.items() if v is not None} == pytest.approx(expected)


def test_deep_nesting_is_refused_without_a_traceback(tmp_path: Path) -> None:
    from convert_runner import convert

    write_checkpoint(tmp_path / "hf", "qwen2")
    for name in ("generation_config.json", "tokenizer_config.json", "config.json"):
        kept = (tmp_path / "hf" / name).read_text() if name != "generation_config.json" else "{}"
        (tmp_path / "hf" / name).write_text('{"a":' * 20000 + "1" + "}" * 20000)
        done = convert("hf", str(tmp_path / "hf"), "-o", str(tmp_path / "m.gguf"))
        assert (done.code, name in done.err, "Traceback" in done.err) == (1, True, False)
        (tmp_path / "hf" / name).write_text(kept)
    edit(tmp_path / "hf/config.json", strange=1)
