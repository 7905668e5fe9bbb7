"""The tokens of a model as a GGUF file lists them.

Flows in: a checkpoint and the family's preference. Flows out: a Vocabulary and its metadata keys
(tokenizer.ggml.*). Each source has a file of its own: SentencePiece pieces (spm_vocabulary.py),
byte-level BPE (bpe_vocabulary.py), special ids and the chat template (special_tokens.py). Not here:
tokenizing text.
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.gguf_container import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types of GGUF (LLAMA_TOKEN_TYPE_*, llama.h)."""
SPACE = "\u2581"
"""The character that SentencePiece writes for a space."""


@dataclass(frozen=True)
class Vocabulary:
    """`model` is GGUF's word: "llama" (SentencePiece, with scores) or "gpt2" (BPE, with merges)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    adds_space: bool | None = None
    """SentencePiece: whether a text begins with a space of its own; None: no file says it."""

    def metadata(self) -> Metadata:
        """The keys that llama.cpp's converter writes for this vocabulary."""
        keys = Metadata()
        keys.put("string", "tokenizer.ggml.model", self.model)
        keys.put("string", "tokenizer.ggml.pre", self.pre)
        keys.put_array("string", "tokenizer.ggml.tokens", self.tokens)
        keys.put_array("f32", "tokenizer.ggml.scores", self.scores)
        keys.put_array("i32", "tokenizer.ggml.token_type", self.types)
        keys.put_array("string", "tokenizer.ggml.merges", self.merges)
        return keys


def looks_special(token: str) -> bool:
    """Whether a user's text must never yield this token, although nothing marks it as special."""
    if token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    if token.startswith("<unused") and token.endswith(">"):
        return True
    return token.startswith(("<|", "<\uff5c")) and token.endswith(("|>", "\uff5c>"))
