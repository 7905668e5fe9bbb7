"""Special token ids, whether BOS is added, and the chat template of a checkpoint.

Flows in: a checkpoint. Flows out: metadata keys of a GGUF file, the same keys and by the same
precedence as llama.cpp's converter: tokenizer_config.json names a token, the added tokens of
tokenizer.json give its id, config.json supplies what is missing. The post-processor of
tokenizer.json decides which tokens are added around a text. Not here: the tokens themselves
(vocabulary.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converters.checkpoint import Checkpoint
from converters.gguf_container import Metadata
from converters.tokenizer_document import read_document

KINDS = {
    **{"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"},
    **{"cls": "cls", "mask": "mask"},
}
"""The word of tokenizer_config.json -> the word of GGUF, whose spelling "seperator" is kept."""


def special_keys(checkpoint: Checkpoint, n_vocab: int) -> Metadata:
    """tokenizer.ggml.*_token_id, tokenizer.ggml.add_*_token and tokenizer.chat_template."""
    settings = checkpoint.json("tokenizer_config.json")
    ids, processor = _added_ids(checkpoint)
    keys = Metadata()
    for kind, word in KINDS.items():
        number = ids.get(_text(settings.get(f"{kind}_token")))
        if number is None:
            number = checkpoint.config.get(f"{kind}_token_id")
        if isinstance(number, int) and 0 <= number < n_vocab:
            keys.put("u32", f"tokenizer.ggml.{word}_token_id", number)
    for kind, is_added in _additions(settings, processor).items():
        keys.put("bool", f"tokenizer.ggml.add_{kind}_token", is_added)
    _put_template(keys, checkpoint, settings)
    return keys


def _added_ids(checkpoint: Checkpoint) -> tuple[dict[str | None, int], Any]:
    """The id of each added token by its text, and the post-processor."""
    path = checkpoint.directory / "tokenizer.json"
    if not path.is_file():
        return {}, None
    document = read_document(path)
    ids: dict[str | None, int] = {}
    for token in document.added_tokens:
        ids.setdefault(token.content, token.id)
    return ids, document.post_processor


def _text(entry: Any) -> str | None:
    """The text of a token that is given as a string, or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _additions(settings: Mapping[str, Any], processor: Any) -> dict[str, bool]:
    """Whether bos, eos and sep are added; the post-processor overrides the settings."""
    found: dict[str, bool] = {}
    for step in _steps(processor):
        if step.get("type") == "ByteLevel":
            found.setdefault("bos", False)
            found.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing":
            found |= _template_additions(step, settings)
    for kind in KINDS:
        wanted = settings.get(f"add_{kind}_token")
        if isinstance(wanted, bool):
            found.setdefault(kind, wanted)
    return found


def _steps(processor: Any) -> Iterator[dict[str, Any]]:
    if isinstance(processor, dict):
        inner = processor.get("processors")
        yield from (s for s in inner if isinstance(s, dict)) if inner else [processor]


def _template_additions(step: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, bool]:
    """What is added by a template [BOS] A [EOS], and for pairs [BOS] A [SEP] [BOS] B."""
    single, pair = (_names(step.get(key)) for key in ("single", "pair"))
    bos, eos = _text(settings.get("bos_token")), _text(settings.get("eos_token"))
    found: dict[str, bool] = {}
    if len(single) > 1 and single[0] is not None:
        found["bos"] = bos is None or single[0] == bos
    if len(single) > 1 and single[-1] is not None:
        found["eos"] = eos is None or single[-1] == eos
    if found.get("bos") and pair[:1] == single[:1]:
        pair = pair[1:]
    if found.get("eos") and pair[-1:] == single[-1:]:
        pair = pair[:-1]
    between = pair[1:-1]
    if between:
        separators = {_text(settings.get("sep_token")), eos} - {None}
        ends = single[-1:] if len(single) > 1 else []
        found["sep"] = between[0] in separators and not any(ends)
    return found


def _names(template: Any) -> list[str | None]:
    """The special tokens of a template in order, with None for a text."""
    parts = template if isinstance(template, list) else []
    return [p.get("SpecialToken", {}).get("id") for p in parts if isinstance(p, dict)]


def _put_template(keys: Metadata, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Put one template, or several by name, of which `default` is the main one."""
    template = settings.get("chat_template")
    if template is None and settings:
        template = checkpoint.text("chat_template.jinja")
    if template is None and settings:
        template = checkpoint.json("chat_template.json").get("chat_template")
    if isinstance(template, str):
        keys.put("string", "tokenizer.chat_template", template)
    elif isinstance(template, list):
        named = {t["name"]: t["template"] for t in template if {"name", "template"} <= set(t)}
        keys.put("string", "tokenizer.chat_template", named.pop("default", None))
        keys.put_array("string", "tokenizer.chat_templates", list(named))
        for name, text in named.items():
            keys.put("string", f"tokenizer.chat_template.{name}", text)
