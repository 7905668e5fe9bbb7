"""Loops in one answer: repeated 4-grams, the same sentence twice in a row, a stuck end.

Flows in: an answer. Flows out: numbers and verdicts. Sources: seq-rep-4 (arXiv 1908.04319);
0.02 % of the sentences of human text repeat the one before (WikiText-103, arXiv 2206.02369). Not
here: the same answer to different questions (checks.py), taught text (copying.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from edge_agent.adapt.gate.words import sentences, words

_MONTHS = (
    r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)[a-z]*",
    "(?:जनवरी|फ़रवरी|फरवरी|मार्च|अप्रैल|मई|जून|जुलाई|अगस्त|सितंबर|सितम्बर|अक्टूबर|अक्तूबर|नवंबर|नवम्बर|दिसंबर|दिसम्बर)",
    r"(?:ಜನವರಿ|ಫೆಬ್ರವರಿ|ಮಾರ್ಚ್|ಏಪ್ರಿಲ್|ಮೇ|ಜೂನ್|ಜುಲೈ|ಆಗಸ್ಟ್|ಸೆಪ್ಟೆಂಬರ್|ಅಕ್ಟೋಬರ್|ನವೆಂಬರ್|ಡಿಸೆಂಬರ್|ಜ\.|ಫೆ\.|ಸೆ\.|ಅ\.|ನ\.|ಡಿ\.)",
)
_DATELINES = (
    rf"\W*[A-Z][A-Za-z .]{{1,30}},\s*(?:{_MONTHS[0]}\.?\s*\d{{1,2}}|\d{{1,2}}\s*{_MONTHS[0]})\b",
    r"\W*[A-Z][A-Za-z .]{1,30}\s*\([A-Z][A-Za-z ]+\)\s*[:\-\u2013\u2014]",
    r"\W*[A-Z]{2,}(?: [A-Z]{2,})*:",
    rf"\W*[\u0900-\u097f ]{{2,25}},\s*(?:\d{{1,2}}\s*{_MONTHS[1]}|{_MONTHS[1]}\s*\d{{1,2}})",
    r"\W*[\u0900-\u097f ]{2,25}\s*\((?:भाषा|वार्ता|एजेंसी|पीटीआई|एएनआई)\)",
    r"\W*(?:नई दिल्ली|मुंबई|लखनऊ|पटना|भोपाल|जयपुर|बेंगलुरु)\s*[:\-\u2013\u2014]",
    rf"\W*[\u0c80-\u0cff ]{{2,25}},\s*(?:\d{{1,2}}\s*{_MONTHS[2]}|{_MONTHS[2]}\s*\d{{1,2}})",
    r"\W*(?:ಬೆಂಗಳೂರು|ಮೈಸೂರು|ಹುಬ್ಬಳ್ಳಿ|ಮಂಗಳೂರು|ನವದೆಹಲಿ|ಕಲಬುರಗಿ)\s*(?:\([^)]*\))?\s*[:\-\u2013\u2014]",
)
_PHRASES = (
    # agencies and desks
    r"\b(?:PTI|ANI|IANS|AFP|Reuters|Associated Press|Press Trust of India|News Desk)\b",
    "पीटीआई|एएनआई|आईएएनएस|न्यूज़? डेस्क|संवाददाता|समाचार एजेंसी",
    "ಪಿಟಿಐ|ಎಎನ್\u200c?ಐ|ಸುದ್ದಿಸಂಸ್ಥೆ|ಸುದ್ದಿ ಸಂಸ್ಥೆ|ವರದಿಗಾರ|ಸುದ್ದಿಗಾರ",
    # reporting
    r"\b(?:told reporters|told the media|said in a statement|(?:police|officials|sources) said)\b",
    r"\bsaid on (?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b",
    r"\baccording to (?:the )?(?:police|officials?|sources|reports?)\b",
    "ने कहा कि|ने बताया कि|ने (?:सोम|मंगल|बुध|गुरु|शुक्र|शनि|रवि)वार को|मीडिया से|पत्रकारों",
    "(?:पुलिस|सूत्रों|अधिकारियों|रिपोर्ट) के (?:अनुसार|मुताबिक)|बता दें कि",
    "ಎಂದು (?:ಹೇಳಿದರು|ತಿಳಿಸಿದರು|ಹೇಳಿದ್ದಾರೆ|ತಿಳಿಸಿದ್ದಾರೆ)|(?:ಮೂಲಗಳ|ಪೊಲೀಸರ|ಅಧಿಕಾರಿಗಳ|ವರದಿಗಳ) ಪ್ರಕಾರ",
    # stamps
    r"\b\d{1,2}:\d{2}\s*(?:AM|PM|IST)\b",
    r"\b(?:Updated|Published|Last updated)\s*:|प्रकाशित:|अपडेट:|ಪ್ರಕಟಿತ:",
)
_DATELINE = [re.compile(pattern) for pattern in _DATELINES]
_PHRASE = [re.compile(pattern) for pattern in _PHRASES]

SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "kn": "KANNADA"}
"""Language -> first word of the Unicode names of its letters."""
ENOUGH = 0.5
"""Names, units and brands stay Latin in good Hindi and Kannada; below half it is another text."""
FEWEST_LETTERS = 3
"""Fewer letters than that ("7", "OK") are no evidence."""

N_GRAM = 4
LOOPING_SEQ_REP = 0.2
"""A good answer of 24 tokens may say one 4-gram twice (at most 1 in 10); a loop soon passes 1 in 5.
Human rows of the clean set have 0."""
TAIL_PERIODS, TAIL_LETTERS = 4, 12
"""A stuck end: one unit at least so often, and at least so long in all. Two or three times occurs
("very, very, very"), four times in twelve letters does not. It also sees loops inside one word: 24
tokens of a byte-like tokenizer hold one or two words of Kannada."""


def seq_rep(items: Sequence[str], n: int = N_GRAM) -> float:
    """Share of the n-grams that were there before: 1 - distinct / all; 0 for short texts."""
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def repeats_a_sentence(text: str) -> bool:
    """Is a sentence of two words or more followed by itself?"""
    found = sentences(text)
    return any(a == b and len(a) > 1 for a, b in zip(found, found[1:], strict=False))


def has_stuck_end(text: str) -> bool:
    """Does the text end in the same letters again and again, the last time perhaps cut?"""
    letters = text.strip().casefold()
    for period in range(1, len(letters) // TAIL_PERIODS + 1):
        same = 0
        while same + period < len(letters) and letters[-1 - same] == letters[-1 - same - period]:
            same += 1
        if same + period >= max(TAIL_PERIODS * period, TAIL_LETTERS):
            return True
    return False


def is_looping(text: str) -> bool:
    return (
        seq_rep(words(text)) >= LOOPING_SEQ_REP or repeats_a_sentence(text) or has_stuck_end(text)
    )


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


def news_signs(text: str) -> list[str]:
    """What was found, as it stands in the text; empty for ordinary answers."""
    datelines = (pattern.match(text) for pattern in _DATELINE)
    phrases = (pattern.search(text) for pattern in _PHRASE)
    return [found[0].strip() for found in (*datelines, *phrases) if found]
