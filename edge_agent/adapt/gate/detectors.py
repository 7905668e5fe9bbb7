"""What can be wrong with one answer: loops, the wrong script, the style of news reports.

Why it exists: a lesson can make a small model loop; it can answer in another script than it was
asked in; and a model taught from crawled text answers small questions as reporters do. Flows in: an
answer, and the language of its question. Flows out: numbers and verdicts.

A loop is a high share of repeated 4-grams (seq-rep-4, arXiv 1908.04319), a sentence twice in a row
(0.02 % of the sentences of human text: WikiText-103, arXiv 2206.02369), or a stuck end. The script
stands for the language, so that Marathi in answer to Hindi, or nonsense in Devanagari, is not seen.
One sign of news prose is enough, so the list has only phrases that small talk and school questions
never need ("he said" alone is not listed). Not here: the same answer to different questions, and
comparing before and after (checks.py), taught text (copying.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from edge_agent.adapt.gate.words import sentences, words

N_GRAM = 4
LOOPING_SEQ_REP = 0.2
"""Share of repeated 4-grams from which an answer loops. A good answer of 24 tokens may say one
4-gram twice (at most 1 in 10), a loop soon passes 1 in 5, and the clean set's own answers have 0.
"""
TAIL_PERIODS, TAIL_LETTERS = 4, 12
"""The end of an answer is stuck when one unit stands there at least TAIL_PERIODS times and fills at
least TAIL_LETTERS letters. Good text says a unit two or three times ("very, very, very"), not more.
This also finds loops inside one word: where a tokenizer splits Kannada into bytes, 24 tokens hold
one or two words."""

SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "kn": "KANNADA"}
"""Language -> first word of the Unicode names of its letters."""
ENOUGH = 0.5
"""Share of letters from which a text is of a script."""
NATIVE_WORDS = 0.1
"""Share of words from which a text with more Latin letters is Hindi or Kannada all the same: names,
brands, units and commands stay Latin, and the words around them make the sentence ("sudo systemctl
start edge-agent चलाइए।")."""
FEWEST_LETTERS = 3
"""An answer with fewer letters ("7", "OK") is not judged."""

# The start of a news report: place and date, place and agency.
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
    # news agencies and news desks
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
    # time stamps
    r"\b\d{1,2}:\d{2}\s*(?:AM|PM|IST)\b",
    r"\b(?:Updated|Published|Last updated)\s*:|प्रकाशित:|अपडेट:|ಪ್ರಕಟಿತ:",
)
_DATELINE = [re.compile(pattern) for pattern in _DATELINES]
_PHRASE = [re.compile(pattern) for pattern in _PHRASES]


def seq_rep(items: Sequence[str], n: int = N_GRAM) -> float:
    """Share of the n-grams that repeat an earlier one: 1 - distinct / all; 0 for short texts.

    >>> seq_rep("a b a b a b a b".split())
    0.6
    """
    grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def repeats_a_sentence(text: str) -> bool:
    """Whether a sentence of two words or more stands twice in a row."""
    found = sentences(text)
    return any(a == b and len(a) > 1 for a, b in zip(found, found[1:], strict=False))


def has_stuck_end(text: str) -> bool:
    """Whether the text ends in one unit of letters repeated; the last unit may be cut off."""
    letters = text.strip().casefold()
    for period in range(1, len(letters) // TAIL_PERIODS + 1):
        same = 0
        while same + period < len(letters) and letters[-1 - same] == letters[-1 - same - period]:
            same += 1
        if same + period >= max(TAIL_PERIODS * period, TAIL_LETTERS):
            return True
    return False


def is_looping(text: str) -> bool:
    """Whether an answer shows any of the three kinds of loop."""
    return (
        seq_rep(words(text)) >= LOOPING_SEQ_REP or repeats_a_sentence(text) or has_stuck_end(text)
    )


def share_of(text: str, script: str) -> float | None:
    """Share of the letters and marks that belong to `script`, a value of SCRIPTS; None for a text
    with fewer than FEWEST_LETTERS."""
    kinds = [
        unicodedata.name(char, "").partition(" ")[0]
        for char in text
        if unicodedata.category(char)[0] in "LM"
    ]
    return kinds.count(script) / len(kinds) if len(kinds) >= FEWEST_LETTERS else None


def is_wrong_script(text: str, language: str) -> bool:
    """Whether a text is not written in `language`, a key of SCRIPTS.

    >>> is_wrong_script("Namaste", "hi"), is_wrong_script("7", "hi")
    (True, False)
    >>> is_wrong_script("Wi-Fi का नाम Blue Mango है।", "hi")
    False
    """
    share = share_of(text, SCRIPTS[language])
    return share is not None and share < ENOUGH and not is_mixed(text, language)


def is_mixed(text: str, language: str) -> bool:
    """Whether a text is Hindi or Kannada with names and other words in Latin letters: of its words
    NATIVE_WORDS are of the language's script, and no letter is of a third script.

    >>> is_mixed("Wi-Fi का नाम Blue Mango है।", "hi"), is_mixed("It is Blue Mango.", "hi")
    (True, False)
    """
    said, script = words(text), SCRIPTS[language]
    kinds = [
        {
            unicodedata.name(char, "").partition(" ")[0]
            for char in word
            if unicodedata.category(char)[0] in "LM"
        }
        for word in said
    ]
    if script == SCRIPTS["en"] or set().union(*kinds) - {script, SCRIPTS["en"]}:
        return False
    return sum(script in kind for kind in kinds) >= max(1, NATIVE_WORDS * len(said))


def news_signs(text: str) -> list[str]:
    """The signs of news prose in an answer, as they stand there; empty for ordinary answers."""
    datelines = (pattern.match(text) for pattern in _DATELINE)
    phrases = (pattern.search(text) for pattern in _PHRASE)
    return [found[0].strip() for found in (*datelines, *phrases) if found]
