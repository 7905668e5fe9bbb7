"""Is an answer written in the script of the question's language?

Flows in: an answer and a language. Flows out: a verdict. Script is language for Kannada and English
here; Devanagari may also be Marathi or nonsense, which this cannot see. Not here: comparing
(checks.py).
"""

from __future__ import annotations

import unicodedata

SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "kn": "KANNADA"}
"""Language -> first word of the Unicode names of its letters."""
ENOUGH = 0.5
"""Names, units and brands stay Latin in good Hindi and Kannada; below half it is another text."""
FEWEST_LETTERS = 3
"""Fewer letters than that ("7", "OK") are no evidence."""


def share_of(text: str, script: str) -> float | None:
    """Share of the letters and marks that are of the script; None: too few to say."""
    kinds = [
        unicodedata.name(char, "").partition(" ")[0]
        for char in text
        if unicodedata.category(char)[0] in "LM"
    ]
    return kinds.count(script) / len(kinds) if len(kinds) >= FEWEST_LETTERS else None


def is_wrong_script(text: str, language: str) -> bool:
    share = share_of(text, SCRIPTS[language])
    return share is not None and share < ENOUGH
