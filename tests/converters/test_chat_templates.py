"""The chat template is the one that transformers takes, and verify finds it by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from converted import edit, write
from tiny_checkpoint import put_json, write_checkpoint

from converters.text_codec import open_codec
from edge_agent.errors import ConversionError

OLD, NEW = "{{ 'old' }}", "{{ 'new' }}"


def checkpoint(directory: Path, settings: Any, files: dict[str, str]) -> Path:
    hf = directory / "hf"
    write_checkpoint(hf, "qwen2")
    edit(hf / "tokenizer_config.json", chat_template=settings)
    for name, text in files.items():
        (hf / name).parent.mkdir(exist_ok=True)
        (hf / name).write_text(text)
    return hf


FILE, MORE = "chat_template.jinja", "additional_chat_templates/rag.jinja"


@pytest.mark.parametrize(
    ("settings", "files", "expected"),
    [
        (OLD, {}, {"": OLD}),
        (OLD, {FILE: NEW}, {"": NEW}),
        (None, {FILE: NEW}, {"": NEW}),
        ("", {FILE: NEW}, {"": NEW}),
        (OLD, {FILE: NEW, MORE: "r"}, {"": NEW, "rag": "r"}),
        ([{"name": "default", "template": NEW}, {"name": "tool_use", "template": "t"}], {},
         {"": NEW, "tool_use": "t"}),
        ({"default": NEW, "rag": "r"}, {}, {"": NEW, "rag": "r"}),
        ([{"name": "default", "template": OLD}], {FILE: NEW}, {"": NEW}),
        (None, {"chat_template.json": '{"chat_template": "j"}'}, {"": "j"}),
        (OLD, {"chat_template.json": '{"chat_template": "j"}'}, {"": OLD}),
        (None, {}, {}),
    ],
)  # fmt: skip
def test_a_file_goes_before_the_settings(
    tmp_path: Path, settings: Any, files: dict[str, str], expected: dict[str, str]
) -> None:
    metadata = write(checkpoint(tmp_path, settings, files), tmp_path / "m.gguf")
    key = "tokenizer.chat_template"
    found = {
        name: metadata.get_value(f"{key}.{name}" if name else key)
        for name in ("", "tool_use", "rag")
    }
    assert {name: text for name, text in found.items() if text is not None} == expected
    assert metadata.get_value("tokenizer.chat_templates") == ([n for n in expected if n] or None)


def test_a_template_without_tokenizer_config_is_found(tmp_path: Path) -> None:
    hf = checkpoint(tmp_path, None, {FILE: NEW})
    (hf / "tokenizer_config.json").unlink()
    put_json(hf / "generation_config.json", {"eos_token_id": 2})
    metadata = write(hf, tmp_path / "m.gguf")
    assert metadata.get_value("tokenizer.chat_template") == NEW


def test_verifys_source_is_not_what_the_converter_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the converter's choice turned round, as it once was, verify sees the difference."""
    hf = checkpoint(tmp_path, OLD, {FILE: NEW})
    monkeypatch.setattr("converters.chat_templates.FILE", "no_such_file.jinja")
    metadata = write(hf, tmp_path / "m.gguf")
    assert metadata.get_value("tokenizer.chat_template") == OLD
    codec = open_codec(hf)
    assert codec.template == NEW
    codec.close()


@pytest.mark.parametrize(
    ("settings", "files"),
    [(5, {}), ([5], {}), ([{"name": "default"}], {}), ({"default": 3}, {})],
)
def test_a_template_that_is_no_text_is_refused(
    tmp_path: Path, settings: Any, files: dict[str, str]
) -> None:
    with pytest.raises(ConversionError, match="chat_template"):
        write(checkpoint(tmp_path, settings, files), tmp_path / "m.gguf")


def test_a_template_in_latin_1_is_refused(tmp_path: Path) -> None:
    hf = checkpoint(tmp_path, None, {})
    (hf / FILE).write_bytes("é".encode("latin-1"))
    with pytest.raises(ConversionError, match="it is not UTF-8"):
        write(hf, tmp_path / "m.gguf")
