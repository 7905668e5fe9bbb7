"""How byte-level BPE tokenizers cut text before merging, by the names that llama.cpp knows.

Why it exists: tokenizer.json describes the cutting, a GGUF file only names it (tokenizer.ggml.pre).
Flows in: a description. Flows out: the name; KNOWN gives the opposite direction. Two descriptions
are the same when they cut the probe text into the same pieces; comparing their JSON would fail with
every new field of the `tokenizers` library. Not here: merging.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from converters.extras import load_extra

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PROBE = (
    "It's 3 o'clock, they'LL pay 1234567 rupees!  Two spaces,\ttabs\t\t\n\n  indented\r\n"
    "भारत की राजधानी ಕರ್ನಾಟಕ 中文字 e\u0301\u00e9 Ⅷ ² café naïve\u00a0x 👍🏽 x=[1,2];//\n   \n end "
)
"""Contractions, digits, runs of white space, Indic marks, symbols: here pre-tokenizers differ."""


@dataclass(frozen=True)
class PreTokenizer:
    """The two parts of tokenizer.json that decide how text is cut."""

    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any]


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    parts = [cut, {**_BYTE_LEVEL, "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": parts}


KNOWN = {
    "qwen2": PreTokenizer({"type": "NFC"}, _split(_WORDS + r"\p{N}" + _REST)),
    "llama-bpe": PreTokenizer(None, _split(_WORDS + r"\p{N}{1,3}" + _REST)),
    "smollm": PreTokenizer(
        None,
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**_BYTE_LEVEL, "use_regex": True},
            ],
        },
    ),
    "gpt-2": PreTokenizer(None, {**_BYTE_LEVEL, "use_regex": True}),
}
"""llama.cpp's name (llama-vocab.cpp) -> description. Qwen 2, 2.5 and 3 share one."""


def name_of(normalizer: Any, pre_tokenizer: Any) -> str | None:
    """The known name of the pre-tokenizer that a tokenizer.json describes, or None."""
    load_extra("tokenizers", "a byte-level BPE tokenizer")
    try:
        fingerprint = _fingerprint(json.dumps([normalizer, pre_tokenizer]))
    except Exception:  # the library raises plain Exception for a description it cannot read
        return None
    for name, known in KNOWN.items():
        if _fingerprint(json.dumps([known.normalizer, known.pre_tokenizer])) == fingerprint:
            return name
    return None


@cache
def _fingerprint(description: str) -> str:
    """SHA-256 of the pieces into which the described pre-tokenizer cuts the probe."""
    from tokenizers import Tokenizer

    normalizer, pre_tokenizer = json.loads(description)
    document = {
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    tokenizer = Tokenizer.from_str(json.dumps(document))
    text = tokenizer.normalizer.normalize_str(PROBE) if tokenizer.normalizer else PROBE
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return hashlib.sha256(json.dumps([text for text, _ in pieces]).encode()).hexdigest()
