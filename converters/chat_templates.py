"""The chat template of a checkpoint, and those that it has by other names.

Flows in: a checkpoint. Flows out: metadata keys. transformers 5 looks at the files first
(chat_template.jinja, additional_chat_templates/NAME.jinja), then at tokenizer_config.json; a
processor's chat_template.json comes last. llama.cpp's converter has the opposite order. Not here:
rendering (edge_agent/prompt/chat_template.py). verify reads the source without this file
(text_codec.py), because a proof must not share the choice that it proves.
"""

from __future__ import annotations

from typing import Any

from converters.checkpoint import Checkpoint, refusal
from converters.gguf_container import Metadata

FILE, DIRECTORY = "chat_template.jinja", "additional_chat_templates"


def template_keys(checkpoint: Checkpoint) -> Metadata:
    """tokenizer.chat_template, and tokenizer.chat_template.NAME for others. Raises
    ConversionError."""
    templates = _templates(checkpoint)
    keys = Metadata()
    keys.put("string", "tokenizer.chat_template", templates.pop("default", None))
    if templates:
        keys.put_array("string", "tokenizer.chat_templates", list(templates))
    for name, text in templates.items():
        keys.put("string", f"tokenizer.chat_template.{name}", text)
    return keys


def _templates(checkpoint: Checkpoint) -> dict[str, str]:
    files = sorted((checkpoint.directory / DIRECTORY).glob("*.jinja"))
    found = {path.stem: _text(checkpoint, f"{DIRECTORY}/{path.name}") for path in files}
    if (checkpoint.directory / FILE).is_file():
        found = {"default": _text(checkpoint, FILE), **found}
    if found:
        return found
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = checkpoint.json(name).get("chat_template")
        if value not in (None, "", [], {}):
            return _named(checkpoint, name, value)
    return {}


def _named(checkpoint: Checkpoint, file: str, value: Any) -> dict[str, str]:
    """One template, a list of {"name", "template"}, or an object of texts by name."""
    if isinstance(value, list) and all(isinstance(t, dict) for t in value):
        value = {t.get("name"): t.get("template") for t in value}
    if isinstance(value, str):
        return {"default": value}
    is_named = isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(text, str) for name, text in value.items()
    )
    if not is_named:
        raise refusal(
            checkpoint.directory / file,
            "its chat_template is neither a text nor texts by name",
            "save the tokenizer again with transformers",
        )
    return dict(value)


def _text(checkpoint: Checkpoint, name: str) -> str:
    try:
        return (checkpoint.directory / name).read_text("utf-8")  # CRLF is a newline, as there
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8: {error}"
        raise refusal(checkpoint.directory / name, why, "save it as UTF-8") from None
