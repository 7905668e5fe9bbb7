"""SentencePiece vocabularies: Gemma's, Llama 2's, from tokenizer.model or tokenizer.json alone.

Why it exists: `save_pretrained` leaves only tokenizer.json, and llama.cpp's converter then writes
byte-level BPE, which is not Gemma's tokenizer. Flows in: a checkpoint. Flows out: a Vocabulary with
scores. tokenizer.json has no scores; they follow from the order of the pieces (`_scores`). Not
here: byte-level BPE (bpe_vocabulary.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint, refusal
from converters.extras import load_extra
from converters.tokenizer_document import (
    AddedToken,
    TokenizerDocument,
    read_document,
    settings_tokens,
    steps,
)
from converters.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    looks_special,
)

ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0
"""Scores that llama.cpp's converter gives to added tokens, and to ids without a token."""
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def read_spm(checkpoint: Checkpoint, n_vocab: int) -> Vocabulary:
    """The vocabulary, from tokenizer.model if it exists. Raises ConversionError."""
    model, path = (checkpoint.directory / f"tokenizer.{kind}" for kind in ("model", "json"))
    pieces = _Pieces(n_vocab)
    document = read_document(path) if path.is_file() else None
    if model.is_file():
        _take_model(model, pieces)
        pieces.add(settings_tokens(checkpoint))
        pieces.add(document.added_tokens if document else ())
    elif document is not None:
        _take_document(path, document, pieces)
    prefix = None if document is None else adds_space(path, document)
    return Vocabulary(
        "llama", "default", pieces.tokens, pieces.types, scores=pieces.scores, adds_space=prefix
    )


def is_spm(document: TokenizerDocument) -> bool:
    """Whether tokenizer.json describes SentencePiece: then bytes are pieces <0xNN>."""
    return bool(document.model.byte_fallback) and "<0x00>" in document.model.vocab


def adds_space(path: Path, document: TokenizerDocument) -> bool:
    """Whether a text begins with a space of its own. Raises ConversionError for what llama.cpp's
    SentencePiece does not do: it makes spaces visible, and nothing else."""
    found = False
    for step in steps(document.normalizer):
        if step.get("type") == "Prepend" and step.get("prepend") == SPACE:
            found = True
        elif step.get("type") != "Replace" or _replacement(step) != (" ", SPACE):
            raise refusal(path, f"llama.cpp has no normalizer {_shown(step)}")
    for step in steps(document.pre_tokenizer):
        kind = step.get("type")
        if kind == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", True):
            found = found or step.get("prepend_scheme", "always") != "never"
        elif kind != "Split" or step.get("pattern") != {"String": " "}:
            raise refusal(path, f"llama.cpp has no pre-tokenizer {_shown(step)}")
    for step in steps(document.decoder):
        if step.get("type") not in ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"):
            raise refusal(path, f"llama.cpp has no decoder {_shown(step)}")
    return found


def _replacement(step: Mapping[str, Any]) -> tuple[Any, Any]:
    pattern = step.get("pattern")
    return pattern.get("String") if isinstance(pattern, dict) else None, step.get("content")


def _shown(step: Mapping[str, Any]) -> str:
    return json.dumps(step)[:100]


class _Pieces:
    """Token texts, scores and types by id. Ids without a token stay [PAD<id>], unused."""

    def __init__(self, n_vocab: int) -> None:
        self.tokens = [f"[PAD{number}]" for number in range(n_vocab)]
        self.scores = [PADDING_SCORE] * n_vocab
        self.types = [UNUSED] * n_vocab

    def put(self, number: int, token: str, score: float, kind: int) -> None:
        # A tokenizer may have more ids than the model: Gemma 3's has the image token.
        if 0 <= number < len(self.tokens):
            self.tokens[number], self.scores[number], self.types[number] = token, score, kind

    def add(self, added: Iterable[AddedToken]) -> None:
        for token in added:
            is_control = token.special or looks_special(token.content)
            text = token.content if is_control else token.content.replace(SPACE, " ")
            self.put(token.id, text, ADDED_SCORE, CONTROL if is_control else USER_DEFINED)


def _take_model(path: Path, pieces: _Pieces) -> None:
    model = load_extra("sentencepiece", f"reading {path.name}").SentencePieceProcessor()
    try:
        model.LoadFromFile(str(path))
    except (RuntimeError, OSError) as error:
        raise refusal(path, f"it is not a SentencePiece model: {error}") from None
    for number in range(min(model.vocab_size(), len(pieces.tokens))):
        kind = NORMAL
        if model.IsUnknown(number):
            kind = UNKNOWN
        elif model.IsControl(number):
            kind = CONTROL
        elif model.IsUnused(number):
            kind = UNUSED
        elif model.IsByte(number):
            kind = BYTE
        pieces.put(number, model.IdToPiece(number), model.GetScore(number), kind)


def _take_document(path: Path, document: TokenizerDocument, pieces: _Pieces) -> None:
    if not is_spm(document):
        raise refusal(path, "it is not a SentencePiece tokenizer: its bytes are no pieces")
    added = {token.id for token in document.added_tokens}
    vocab = {number: piece for piece, number in document.model.vocab.items() if number not in added}
    plain = {}
    for number, piece in sorted(vocab.items()):
        if _BYTE_PIECE.fullmatch(piece):
            pieces.put(number, piece, 0.0, BYTE)
        else:
            plain[number] = piece
    spaces = [token for token in document.added_tokens if _is_run_of_spaces(token.content)]
    for number, score in _scores(plain, len(spaces)).items():
        pieces.put(number, plain[number], score, NORMAL)
    pieces.add(document.added_tokens)


def _is_run_of_spaces(text: str) -> bool:
    return len(text) > 1 and not text.strip(SPACE + " ")


def _scores(plain: Mapping[int, str], n_space_runs: int) -> dict[int, float]:
    """The score of each piece: minus its rank (sentencepiece, bpe_model_trainer.cc).

    Merged pieces come first, single characters after them. Gemma's runs of spaces were merged
    pieces before they became added tokens, so the ranks of characters start that many later, and
    one more (seen in the files that Google and llama.cpp publish).
    """
    gap = n_space_runs + 1 if n_space_runs else 0
    return {
        number: -float(rank + (gap if len(plain[number]) == 1 else 0))
        for rank, number in enumerate(sorted(plain))
    }
