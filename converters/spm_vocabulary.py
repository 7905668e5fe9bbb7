"""SentencePiece vocabularies: Gemma's, Llama 2's, from tokenizer.model or tokenizer.json alone.

Why it exists: `save_pretrained` leaves only tokenizer.json, and llama.cpp's converter then writes
byte-level BPE, which is not Gemma's tokenizer. Flows in: a checkpoint. Flows out: a Vocabulary with
scores. tokenizer.json has no scores; they follow from the order of the pieces (`_scores`). Not
here: byte-level BPE (bpe_vocabulary.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from converters.checkpoint import Checkpoint, refusal
from converters.extras import load_extra
from converters.tokenizer_document import AddedToken, TokenizerDocument, read_document
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
    model = checkpoint.directory / "tokenizer.model"
    pieces = _Pieces(n_vocab)
    if model.is_file():
        _take_model(model, pieces)
        pieces.add(_added_tokens(checkpoint))
    else:
        path = checkpoint.directory / "tokenizer.json"
        _take_document(path, read_document(path), pieces)
    return Vocabulary("llama", "default", pieces.tokens, pieces.types, scores=pieces.scores)


def is_spm(document: TokenizerDocument) -> bool:
    """Whether tokenizer.json describes SentencePiece: then bytes are pieces <0xNN>."""
    return bool(document.model.byte_fallback) and "<0x00>" in document.model.vocab


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


def _added_tokens(checkpoint: Checkpoint) -> list[AddedToken]:
    """Tokens of added_tokens.json, then of tokenizer_config.json, which come last and therefore
    win."""
    found = [
        AddedToken(number, text)
        for text, number in checkpoint.json("added_tokens.json").items()
        if isinstance(number, int)
    ]
    decoder = checkpoint.json("tokenizer_config.json").get("added_tokens_decoder", {})
    for number, token in decoder.items():
        if str(number).isdecimal() and isinstance(token, dict):
            text = str(token.get("content", ""))
            found.append(AddedToken(int(number), text, special=bool(token.get("special"))))
    return found


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
