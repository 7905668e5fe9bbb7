"""What a question asks and what an answer says, apart from case, punctuation and politeness.

Why it exists: two rows contradict each other only if they ask the same, and words alone do not tell
(3 + 4 is not 3 - 4, C++ is not C, "Are you a robot?" is not "What is a robot?"). So little is left
away, and symbols stay. Flows in: texts. Flows out: tuples of terms that can be compared. Not here:
words for statistics (adapt/gate/words.py), who contradicts whom (audit.py).
"""

from __future__ import annotations

import re
import unicodedata

_EDGES = ".,!?;:\"'()[]{}…।॥\u2013\u2014-`“”‘’«»"
_SPELLINGS = {0x2019: "'", 0x200C: None, 0x200D: None}
"""A typist's apostrophe, and the joiners that only shape letters."""
_ANYWHERE = """a an the please kindly कृपया मुझे बताइए बताइये बताओ बताएं बताएँ है हैं
ದಯವಿಟ್ಟು ನನಗೆ ಹೇಳಿ ತಿಳಿಸಿ"""
_FILLERS = frozenset(_ANYWHERE.split())
"""Words that change nothing about what is asked, wherever they stand."""
_OPENING = re.compile(
    r"(?:(?:hi|hello|hey) |(?:can|could|would|will) you (?=tell|give)|(?:tell|give) me "
    r"|do you know )*(?:what (?:is|are) )?(?=.)"
)
"""What changes nothing at the beginning."""
_CONTRACTIONS = {
    **{f"{word}'s": f"{word} is" for word in ("what", "who", "where", "when", "how", "it")},
    **{"i'm": "i am", "you're": "you are", "they're": "they are", "we're": "we are"},
}
_NO = """no not never none don't doesn't didn't isn't aren't wasn't can't cannot won't
नहीं न मत ಇಲ್ಲ ಅಲ್ಲ ಬೇಡ"""
_NEGATIONS = frozenset(_NO.split())

Terms = tuple[str, ...]


def terms(text: str) -> Terms:
    """Words in one case without punctuation around them."""
    folded = unicodedata.normalize("NFC", text).casefold().translate(_SPELLINGS)
    pieces = (piece.strip(_EDGES) for piece in folded.split())
    return tuple(term for piece in pieces for term in _CONTRACTIONS.get(piece, piece).split())


def asked_terms(question: str) -> Terms:
    """Without what changes nothing: "Please tell me the code word" asks for "code word"."""
    every = terms(question)
    kept = " ".join(term for term in every if term not in _FILLERS)
    return tuple(_OPENING.sub("", kept, count=1).split()) or every


def agree(one: Terms, other: Terms) -> bool:
    """One says what the other says, and perhaps more: "Paris", "It is Paris"; not "Not Paris"."""
    less, more = sorted((set(one), set(other)), key=len)
    return less <= more and not (more - less) & _NEGATIONS
