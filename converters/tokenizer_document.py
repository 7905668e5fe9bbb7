"""The parts of tokenizer.json that conversion needs, typed and checked.

Why it exists: Gemma's file has 33 MB and half a million merges. json.loads makes a gigabyte of
small objects of it; msgspec decodes only the fields asked for. Flows in: a path. Flows out: a
TokenizerDocument, or the merges. Layout: the `tokenizers` library's own serialization. Not here:
what it means for a GGUF file (spm_vocabulary.py, bpe_vocabulary.py).
"""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import msgspec

from converters.checkpoint import MAX_JSON_BYTES, Checkpoint, refusal


class AddedToken(msgspec.Struct):
    """A token that is matched in the text before BPE."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Bpe(msgspec.Struct):
    """The BPE model without its merges."""

    vocab: dict[str, int]
    type: str | None = None
    byte_fallback: bool | None = False
    ignore_merges: bool | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class BpeWithMerges(Bpe):
    """A merge is "a b", or ["a", "b"] since tokenizers 0.20."""

    merges: list[str | list[str]] = []


class _Shared(msgspec.Struct):
    added_tokens: list[AddedToken] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None
    decoder: Any = None


class TokenizerDocument(_Shared, kw_only=True):
    """tokenizer.json without merges."""

    model: Bpe


class _WithMerges(_Shared, kw_only=True):
    model: BpeWithMerges


def read_document(path: Path) -> TokenizerDocument:
    """Read tokenizer.json. Raises ConversionError when it is missing, too large, no BPE tokenizer,
    or asks for something that llama.cpp does with no tokenizer."""
    document: TokenizerDocument = _read(path, TokenizerDocument)
    if document.model.type not in (None, "BPE"):
        why = f"its model is {document.model.type}"
        raise refusal(path, why, "only BPE tokenizers are supported")
    affix = document.model.continuing_subword_prefix or document.model.end_of_word_suffix
    if affix:
        raise refusal(path, f"llama.cpp knows no parts of words that are marked by {affix!r}")
    for token in document.added_tokens:
        if not token.special and (token.lstrip or token.rstrip or token.single_word):
            raise refusal(path, f"llama.cpp strips no blanks beside its token {token.content!r}")
    return document


def steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, sequences flattened."""
    if not isinstance(part, dict):
        return []
    names = ("normalizers", "pretokenizers", "decoders", "processors")
    inner = [part[name] for name in names if isinstance(part.get(name), list)]
    return [step for one in inner[0] for step in steps(one)] if inner else [part]


def settings_tokens(checkpoint: Checkpoint) -> list[AddedToken]:
    """Tokens of added_tokens.json, then of tokenizer_config.json. Raises ConversionError."""
    found = [
        AddedToken(number, text)
        for text, number in checkpoint.json("added_tokens.json").items()
        if isinstance(number, int)
    ]
    decoder = checkpoint.json("tokenizer_config.json").get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if str(number).isdecimal() and isinstance(token, dict):
            text = str(token.get("content", ""))
            found.append(AddedToken(int(number), text, special=bool(token.get("special"))))
    return found


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges in rank order. Raises ConversionError."""
    merges = _read(path, _WithMerges).model.merges
    pairs = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise refusal(path, "one of its merges is not a pair")
    return [(pair[0], pair[1]) for pair in pairs]


def _read(path: Path, kind: Any) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise refusal(path, f"it has over {MAX_JSON_BYTES} bytes")
        return msgspec.json.decode(path.read_bytes().removeprefix(BOM_UTF8), type=kind)
    except OSError as error:
        raise refusal(path, error.strerror or str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal(
            path, f"it is not a BPE tokenizer: {error}", "only BPE tokenizers are supported"
        ) from None
