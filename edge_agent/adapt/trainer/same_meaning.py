"""What a question asks and what an answer says, apart from case, punctuation and politeness.

Why it exists: two rows contradict each other only if they ask the same question, and their letters
alone do not decide that (3 + 4 is not 3 - 4, C++ is not C, "Are you a robot?" is not "What is a
robot?"). So only a few words are removed, and symbols stay. Flows in: texts. Flows out: tuples of
terms that can be compared. Not here: words for statistics (adapt/gate/words.py), contradictions
(audit.py).
"""

from __future__ import annotations

import re
import unicodedata

_EDGES = ".,!?;:\"'()[]{}…।॥\u2013\u2014-`“”‘’«»"
_SPELLINGS = {0x2019: "'", 0x200C: None, 0x200D: None}
"""The typographic apostrophe becomes '; the zero-width joiners, which only shape letters, go."""
_ANYWHERE = """a an the please kindly कृपया मुझे बताइए बताइये बताओ बताएं बताएँ है हैं
ದಯವಿಟ್ಟು ನನಗೆ ಹೇಳಿ ತಿಳಿಸಿ"""
_FILLERS = frozenset(_ANYWHERE.split())
"""Words that do not change what a question asks, wherever they stand."""
_OPENING = re.compile(
    r"(?:(?:hi|hello|hey) |(?:can|could|would|will) you (?=tell|give)|(?:tell|give) me "
    r"|do you know )*(?:what (?:is|are) )?(?=.)"
)
"""Words at the beginning of a question that do not change what it asks."""
_CONTRACTIONS = {
    **{f"{word}'s": f"{word} is" for word in ("what", "who", "where", "when", "how", "it")},
    **{"i'm": "i am", "you're": "you are", "they're": "they are", "we're": "we are"},
}
_NO = """no not never none don't doesn't didn't isn't aren't wasn't can't cannot won't
नहीं न मत ಇಲ್ಲ ಅಲ್ಲ ಬೇಡ"""
_NEGATIONS = frozenset(_NO.split())

Terms = tuple[str, ...]


def terms(text: str) -> Terms:
    """The words of a text: case folded, without punctuation at their ends, contractions spelled
    out.

    >>> terms("It's 3 + 4, C++!")
    ('it', 'is', '3', '+', '4', 'c++')
    """
    folded = unicodedata.normalize("NFC", text).casefold().translate(_SPELLINGS)
    pieces = (piece.strip(_EDGES) for piece in folded.split())
    return tuple(term for piece in pieces for term in _CONTRACTIONS.get(piece, piece).split())


def asked_terms(question: str) -> Terms:
    """The terms of a question without those that do not change what it asks.

    >>> asked_terms("Please tell me the code word.")
    ('code', 'word')
    """
    every = terms(question)
    kept = " ".join(term for term in every if term not in _FILLERS)
    return tuple(_OPENING.sub("", kept, count=1).split()) or every


def agree(one: Terms, other: Terms) -> bool:
    """Whether one answer has all the terms of the other, and its further terms hold no negation.

    >>> agree(terms("Paris"), terms("It is Paris.")), agree(terms("Paris"), terms("Not Paris"))
    (True, False)
    """
    less, more = sorted((set(one), set(other)), key=len)
    return less <= more and not (more - less) & _NEGATIONS
