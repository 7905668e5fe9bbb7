"""Byte-level BPE vocabularies: Qwen's, SmolLM2's, Llama 3's, from tokenizer.json.

Flows in: a checkpoint. Flows out: a Vocabulary with merges and the name of the pre-tokenizer, from
which llama.cpp knows how to cut text before merging. The name is found by behaviour: the file's own
pre-tokenizer cuts a probe text, and the pieces must hash to those of a known pre-tokenizer
(pre_tokenizer.py). An unknown one is refused, because a wrong name would tokenize wrongly without
any error. Not here: SentencePiece (spm_vocabulary.py).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters.checkpoint import Checkpoint, refusal
from converters.pre_tokenizer import KNOWN, name_of
from converters.tokenizer_document import (
    TokenizerDocument,
    read_document,
    read_merges,
    settings_tokens,
    steps,
)
from converters.vocabulary import (
    CONTROL,
    NORMAL,
    SPACE,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
)

WHOLE_WORDS = ("llama-bpe",)
"""Pre-tokenizers for which llama.cpp takes a word that is a token whole (ignore_merges)."""


def read_bpe(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary in tokenizer.json, padded to `n_vocab` tokens. Raises ConversionError."""
    path = checkpoint.directory / "tokenizer.json"
    document = read_document(path)
    _check_prefix(checkpoint)
    pre = name_of(document.normalizer, document.pre_tokenizer)
    if pre is None:
        raise refusal(
            path,
            "its pre-tokenizer cuts text in a way that llama.cpp is not known to share",
            f"supported are those of {', '.join(sorted(KNOWN))}",
        )
    if any(step.get("type") != "ByteLevel" for step in steps(document.decoder)):
        raise refusal(path, "its decoder is not byte-level, as the pre-tokenizer is")
    if document.model.ignore_merges not in (None, pre in WHOLE_WORDS):
        raise refusal(path, f"llama.cpp computes another ignore_merges for {pre}")
    tokens, types = _tokens(path, _with_settings(checkpoint, document, n_vocab), n_vocab)
    merges = [f"{_visible(left)} {_visible(right)}" for left, right in read_merges(path)]
    return Vocabulary("gpt2", pre, tokens, types, merges=merges)


def _check_prefix(checkpoint: Checkpoint) -> None:
    """Raise ConversionError for add_prefix_space, which transformers obeys for Qwen."""
    settings = checkpoint.json("tokenizer_config.json")
    if settings.get("add_prefix_space") is True and checkpoint.config.get("model_type") != "llama":
        raise refusal(
            checkpoint.directory / "tokenizer_config.json",
            "its add_prefix_space is true, and llama.cpp puts no space before a text",
            "set it to false, if the model was trained without",
        )


def _with_settings(
    checkpoint: Checkpoint, document: TokenizerDocument, n_vocab: int
) -> TokenizerDocument:
    """The document with the added tokens that only tokenizer_config.json has; transformers adds
    them where an id is free."""
    taken = {*document.model.vocab.values(), *(token.id for token in document.added_tokens)}
    texts = {*document.model.vocab, *(token.content for token in document.added_tokens)}
    found = [
        token
        for token in settings_tokens(checkpoint)
        if token.id not in taken and token.content not in texts and 0 <= token.id < n_vocab
    ]
    return msgspec.structs.replace(document, added_tokens=[*document.added_tokens, *found])


def _tokens(path: Path, document: TokenizerDocument, n_vocab: int) -> tuple[list[str], list[int]]:
    """Texts and GGUF types by token id; ids without a token are [PAD<id>], unused."""
    tokens = [f"[PAD{number}]" for number in range(n_vocab)]
    types = [UNUSED] * n_vocab
    ids = [*document.model.vocab.values(), *(token.id for token in document.added_tokens)]
    if not ids:
        raise refusal(path, "it has no tokens", "fetch the file again")
    outside = [number for number in (min(ids), max(ids)) if not 0 <= number < n_vocab]
    if outside:
        raise refusal(
            path,
            f"it has the token id {outside[-1]}, the model's run from 0 to {n_vocab - 1}",
            "resize the model's embeddings to its tokenizer and save it again",
        )
    for text, number in document.model.vocab.items():
        tokens[number], types[number] = text, NORMAL
    for added in document.added_tokens:
        is_control = added.special or looks_special(added.content)
        tokens[added.id] = added.content if is_control else added.content.replace(SPACE, " ")
        types[added.id] = CONTROL if is_control else USER_DEFINED
    return tokens, types


def _visible(part: str) -> str:
    """One half of a merge with its spaces spelled Ġ, because GGUF puts a space between the two
    halves."""
    return part.replace(" ", "\u0120")
