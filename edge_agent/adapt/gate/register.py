"""Signs of news prose in an answer: datelines, agencies, reporting phrases, time stamps.

Why it exists: models taught from crawled text answer small questions as reporters do
(shared/mission.md, S2 and S3). Flows in: an answer. Flows out: the signs found. One is enough, so
only phrases are listed that small talk and school questions never need ("he said" alone is not).
Not here: comparing with the model before (checks.py).
"""

from __future__ import annotations

import re

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


def news_signs(text: str) -> list[str]:
    """What was found, as it stands in the text; empty for ordinary answers."""
    datelines = (pattern.match(text) for pattern in _DATELINE)
    phrases = (pattern.search(text) for pattern in _PHRASE)
    return [found[0].strip() for found in (*datelines, *phrases) if found]
