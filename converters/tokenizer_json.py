"""Writes tokenizer.json and its companions from the vocabulary of a GGUF file.

Why it exists: transformers can read a GGUF file's tokenizer, but takes half a minute for Gemma's
and loses its added tokens. Flows in: the metadata of a GGUF file. Flows out: the JSON documents
that transformers and llama.cpp's converter read. Token ids are kept; texts are cut as llama.cpp
cuts them. Not here: the other direction (vocabulary.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converters.bpe_vocabulary import WHOLE_WORDS
from converters.gguf_container import Metadata
from converters.pre_tokenizer import KNOWN
from converters.vocabulary import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED
from edge_agent.errors import ConversionError

_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": True,
}
_BPE_MODEL = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def tokenizer_json(metadata: Metadata) -> dict[str, Any]:
    """The whole of tokenizer.json. Raises ConversionError for an unknown pre-tokenizer."""
    tokens = metadata.get_value("tokenizer.ggml.tokens")
    types = metadata.get_value("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    is_spm = metadata.get_value("tokenizer.ggml.model") == "llama"
    parts = _spm_parts(metadata, tokens, types) if is_spm else _bpe_parts(metadata)
    added = [
        _added(number, token, kind == CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    model = parts.pop("model")
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **parts,
        "post_processor": _post_processor(metadata, tokens, is_spm),
        "model": model,
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """tokenizer_config.json: special tokens, whether BOS and EOS are added, the chat template."""
    tokens = metadata.get_value("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _context_length(metadata),
    }
    for role, word in _ROLES.items():
        number = metadata.get_value(f"tokenizer.ggml.{word}_token_id")
        if number is not None:
            config[f"{role}_token"] = tokens[number]
    for role in ("bos", "eos"):
        is_added = metadata.get_value(f"tokenizer.ggml.add_{role}_token")
        if is_added is not None:
            config[f"add_{role}_token"] = is_added
    template = metadata.get_value("tokenizer.chat_template")
    return config if template is None else {**config, "chat_template": template}


def _context_length(metadata: Metadata) -> int:
    architecture = metadata.get_value("general.architecture")
    return int(metadata.get_value(f"{architecture}.context_length"))


def _added(number: int, token: str, is_special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": is_special,
    }


def _spm_parts(metadata: Metadata, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """SentencePiece as the `tokenizers` library spells it: BPE over text with visible spaces."""
    scores = metadata.get_value("tokenizer.ggml.scores")
    unknown = metadata.get_value("tokenizer.ggml.unknown_token_id")
    visible = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizer: dict[str, Any] = visible
    if metadata.get_value("tokenizer.ggml.add_space_prefix", True):
        steps = [{"type": "Prepend", "prepend": SPACE}, visible]
        normalizer = {"type": "Sequence", "normalizers": steps}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_BPE_MODEL,
            "unk_token": None if unknown is None else tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
            "merges": [list(pair) for pair in _merges(tokens, types, scores)],
        },
    }


def _merges(tokens: list[str], types: list[int], scores: list[float]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two pieces, in the order of the pieces' scores, the best first.

    SentencePiece joins the two neighbours that make the piece with the best score. BPE in
    `tokenizers` does the same when every pair is listed in that order.
    """
    pieces = {t: n for n, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == NORMAL}
    for piece in sorted(pieces, key=lambda piece: (-scores[pieces[piece]], pieces[piece])):
        pairs = [
            (pieces[piece[:cut]], pieces[piece[cut:]])
            for cut in range(1, len(piece))
            if piece[:cut] in pieces and piece[cut:] in pieces
        ]
        for left, right in sorted(pairs):
            yield tokens[left], tokens[right]


def _bpe_parts(metadata: Metadata) -> dict[str, Any]:
    pre = metadata.get_value("tokenizer.ggml.pre")
    if pre not in KNOWN:
        raise ConversionError(
            "the tokenizer cannot be written as tokenizer.json",
            f"its pre-tokenizer {pre!r} is not known",
            f"supported are {', '.join(sorted(KNOWN))}",
        )
    merges = [merge.split(" ", 1) for merge in metadata.get_value("tokenizer.ggml.merges")]
    return {
        "normalizer": KNOWN[pre].normalizer,
        "pre_tokenizer": KNOWN[pre].pre_tokenizer,
        "decoder": _BYTE_LEVEL,
        "model": {**_BPE_MODEL, "ignore_merges": pre in WHOLE_WORDS, "merges": merges},
    }


def _post_processor(metadata: Metadata, tokens: list[str], is_spm: bool) -> dict[str, Any] | None:
    """Adds BOS and EOS where the file says so; a SentencePiece model adds BOS unless the file says
    no."""
    before = _around(metadata, tokens, "bos", default=is_spm)
    behind = _around(metadata, tokens, "eos", default=False)
    if not before and not behind:
        return None if is_spm else _BYTE_LEVEL

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": kind}}
        return [*_special(before, kind), text, *_special(behind, kind)]

    numbers = {**before, **behind}
    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]}
            for text, number in numbers.items()
        },
    }


def _around(metadata: Metadata, tokens: list[str], role: str, *, default: bool) -> dict[str, int]:
    number = metadata.get_value(f"tokenizer.ggml.{role}_token_id")
    if number is None or not metadata.get_value(f"tokenizer.ggml.add_{role}_token", default):
        return {}
    return {tokens[number]: number}


def _special(tokens: Mapping[str, int], kind: int) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": text, "type_id": kind}} for text in tokens]
