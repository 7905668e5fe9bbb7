"""Special token ids, and whether BOS and EOS are added.

Flows in: a checkpoint and its vocabulary. Flows out: metadata keys of a GGUF file. A token is named
by tokenizer_config.json or special_tokens_map.json, else by its id in config.json, else in
generation_config.json; transformers looks there too. The post-processor of tokenizer.json decides
which tokens are added around a text. llama.cpp takes an id of its own for an EOS that no key names
(11 in a BPE vocabulary), so a checkpoint without one is refused. Not here: the tokens themselves
(vocabulary.py), the chat template (chat_templates.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from converters.chat_templates import template_keys
from converters.checkpoint import Checkpoint, refusal
from converters.gguf_container import Metadata
from converters.tokenizer_document import read_document, steps
from converters.vocabulary import CONTROL, USER_DEFINED, Vocabulary

KINDS = {
    **{"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding"},
    **{"cls": "cls", "mask": "mask"},
}
"""The word of tokenizer_config.json -> the word of GGUF, whose spelling "seperator" is kept."""

ENDS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
     "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
     "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
     "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[")
)  # fmt: skip
"""Texts of tokens that llama.cpp takes for an end by themselves (llama-vocab.cpp)."""
MORE_ENDS = ("eot", "eom")
"""Keys for ends of other texts, beside eos."""


def special_keys(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Metadata:
    """tokenizer.ggml.*_token_id, add_*_token and the chat template. Raises ConversionError."""
    settings = _settings(checkpoint)
    ids = {text: number for number, text in reversed(list(enumerate(vocabulary.tokens)))}
    additions = _additions(checkpoint, settings)
    found = {kind: _id(kind, settings, ids, checkpoint) for kind in KINDS}
    if additions.get("bos") and found["bos"] is None:
        raise refusal(
            checkpoint.directory,
            "it adds a BOS token to each text, and no file names that token",
            "write bos_token into tokenizer_config.json",
        )
    keys = Metadata()
    for kind, word in KINDS.items():
        keys.put("u32", f"tokenizer.ggml.{word}_token_id", found[kind])
    _put_more_ends(keys, checkpoint, vocabulary, found["eos"])
    for kind, is_added in additions.items():
        keys.put("bool", f"tokenizer.ggml.add_{kind}_token", is_added)
    keys |= template_keys(checkpoint)
    return keys


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json. The former goes before where it has
    added_tokens_decoder, else the latter, as in transformers 5."""
    names = ["special_tokens_map.json", "tokenizer_config.json"]
    found = [checkpoint.json(name) for name in names]
    if "added_tokens_decoder" not in found[1]:
        found.reverse()
    return {n: v for one in found for n, v in one.items() if v not in (None, "")}


def _id(
    kind: str, settings: Mapping[str, Any], ids: Mapping[str, int], checkpoint: Checkpoint
) -> int | None:
    number = ids.get(_text(settings.get(f"{kind}_token")) or "")
    if number is not None:
        return number
    for holder in (checkpoint.config, checkpoint.json("generation_config.json")):
        for number in _numbers(holder.get(f"{kind}_token_id")):
            if number < len(ids):
                return number
    if kind == "eos":
        raise refusal(
            checkpoint.directory,
            "no file names the token that ends a text, and llama.cpp would take another",
            "write eos_token into tokenizer_config.json",
        )
    return None


def _numbers(value: Any) -> list[int]:
    """The ids of eos_token_id: a number, a list of them, or none."""
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _put_more_ends(
    keys: Metadata, checkpoint: Checkpoint, vocabulary: Vocabulary, eos: int | None
) -> None:
    """Put the ends that generation_config.json (else config.json) lists beside EOS, where llama.cpp
    does not know them by their texts. Raises ConversionError when there are too many."""
    name = "eos_token_id"
    listed = _numbers(checkpoint.json("generation_config.json").get(name))
    listed = listed or _numbers(checkpoint.config.get(name))
    more = [
        number
        for number in dict.fromkeys(listed)
        if number != eos
        and number < len(vocabulary.tokens)
        and vocabulary.tokens[number] not in ENDS
    ]
    plain = [n for n in more if vocabulary.types[n] not in (CONTROL, USER_DEFINED)]
    more.sort(key=lambda number: number not in plain)  # the daemon stops at a plain eot, not eom
    if len(more) > len(MORE_ENDS) or len(plain) > 1:
        raise refusal(
            checkpoint.directory,
            f"{name} lists {len(more)} ends that llama.cpp does not know: {more}",
            f"a GGUF file has room for {len(MORE_ENDS)} beside eos; leave the rarest out",
        )
    for word, number in zip(MORE_ENDS, more, strict=False):
        keys.put("u32", f"tokenizer.ggml.{word}_token_id", number)


def _text(entry: Any) -> str | None:
    """The text of a token that is given as a string, or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _additions(checkpoint: Checkpoint, settings: dict[str, Any]) -> dict[str, bool]:
    """Whether bos, eos and sep are added; the post-processor overrides the settings.

    A BOS or EOS that only the post-processor names is put into `settings`. Raises ConversionError
    for a post-processor that adds anything else.
    """
    path = checkpoint.directory / "tokenizer.json"
    processor = read_document(path).post_processor if path.is_file() else None
    found: dict[str, bool] = {}
    for step in steps(processor):
        if step.get("type") == "ByteLevel":
            found.setdefault("bos", False)
            found.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing":
            single = _names(step.get("single"))
            if len(single) > 1:
                _check_template(checkpoint, single, settings)
            found |= _template_additions(step, settings)
        else:
            raise refusal(path, f"llama.cpp has no post-processor {json.dumps(step)[:100]}")
    for kind in KINDS:
        wanted = settings.get(f"add_{kind}_token")
        if isinstance(wanted, bool):
            found.setdefault(kind, wanted)
    return found


def _check_template(
    checkpoint: Checkpoint, single: Sequence[str | None], settings: dict[str, Any]
) -> None:
    """Raise ConversionError unless a text gets at most BOS before it and EOS behind it."""
    at = single.index(None) if single.count(None) == 1 else -1
    for kind, added in (("bos", single[:at]), ("eos", single[at + 1 :])):
        if added and _text(settings.get(f"{kind}_token")) is None:
            settings[f"{kind}_token"] = added[0]
        if at < 0 or list(added) not in ([], [_text(settings.get(f"{kind}_token"))]):
            raise refusal(
                checkpoint.directory / "tokenizer.json",
                f"its post-processor makes {single} of a text",
                "llama.cpp adds BOS before a text and EOS behind it, nothing else",
            )


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
