"""Looks at rows before they are taught: what contradicts, loops, copies or is in the wrong script.

Why it exists: a gate that looks at losses only passes a lesson with 20 poisoned rows in 100
(measured). A flagged row is left out of the lesson and shown. When more than REFUSED_SHARE of the
rows are flagged, the data as a whole cannot be trusted and the run is refused. Flows in: rows.
Flows out: `Finding`s and an `AuditVerdict`. Texts are compared in words and not in tokens. The
audit allows many wordings of one question with one answer, and short answers that many questions
share ("Yes"). It cannot see wrong facts, nor contradictions between questions in other words. Not
here: the model's answers after the lesson (adapt/gate/gate.py, which uses the same detectors).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_agent.adapt.gate.detectors import (
    SCRIPTS,
    is_looping,
    is_mixed,
    news_signs,
    share_of,
)
from edge_agent.adapt.gate.words import words
from edge_agent.adapt.trainer.dataset import SHOWN, ChatRow
from edge_agent.adapt.trainer.same_meaning import Terms, agree, asked_terms, terms
from edge_agent.errors import DataRefused
from edge_agent.records import Message

REFUSED_SHARE = 0.05
COPY_SHARE, FEWEST_COPIES = 0.05, 4
"""A row may be repeated, to give it more weight, up to COPY_SHARE of the rows. Fewer than
FEWEST_COPIES copies are always allowed."""
ECHO_WORDS, LATIN_WORDS, NEWS_WORDS = 3, 3, 12
"""Shorter answers are not tested for an echo, for Latin letters and for news prose: a greeting is
given back ("Good morning"), a name answers a Hindi question in Latin letters ("Jetson Nano"), and
"Mysuru, 5 June" is a fact and not a dateline."""
SHOWN_CHARACTERS = 160

_MOST_CAMPS = 50
"""Groups of agreeing answers to one question that a further answer is compared with word by word;
beyond these an answer joins a group only when it is equal."""
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
"""A thought before an answer. Encoding drops thoughts, so the audit does not look at them."""
_CODE = re.compile(r"```|https?://|[={}<>;]|\w\(")
"""Signs of program text or an address, which are in Latin letters in every language."""
_EDGES = ".,!?;:\"'()[]।॥-–"
_SMALL = "and of the to for version kg g km m cm mm l ml am pm rs no via x"
_SMALL_WORDS = frozenset(_SMALL.split())
"""Words in small letters that names and units hold: "Bank of India", "5 kg"."""
_ROMAN_ASKED = re.compile(
    r"\b(?:roman(?:i[sz]ed)?|hinglish|kanglish|latin) ?(?:letters?|script|hindi|kannada)?\b"
    r"|in english letters|रोमन|ರೋಮನ್",
    re.IGNORECASE,
)
"""An instruction to answer in Latin letters, in the question or the system message."""
_TEMPLATE_TOKENS = re.compile(
    r"<\|[A-Za-z_0-9 ]{2,30}\|>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[/?INST\]"
    r"|<</?SYS>>|<unused\d+>|</?think>|^\s*<s>|</s>\s*$"
    r"|^### ?(?:Instruction|Response|Input|Human|Assistant):",
    re.MULTILINE,
)
_LANGUAGES = {
    "en": r"english|अंग्रेज़ी|अंग्रेजी|ಇಂಗ್ಲಿಷ್|ಇಂಗ್ಲೀಷ್|ಆಂಗ್ಲ",
    "hi": r"hindi|हिंदी|हिन्दी|ಹಿಂದಿ",
    "kn": r"kannada|कन्नड़|कन्नड|ಕನ್ನಡ",
}
_ASKED_FOR = {
    code: re.compile(
        rf"\b(?:answer|reply|respond|write|speak|talk|explain)\b[^.?!]{{0,40}}\bin (?:{name})\b"
        rf"|(?:{name})\s*(?:में|मे) (?:ही )?(?:जवाब|उत्तर|बोल|लिख|बात|समझा)"
        rf"|(?:{name})\S*\s*(?:ಉತ್ತರ|ಬರೆ|ಮಾತನಾಡು|ಮಾತಾಡು|ಹೇಳು|ವಿವರಿಸು)",
        re.IGNORECASE,
    )
    for code, name in _LANGUAGES.items()
}
_NAMED = re.compile("|".join(_LANGUAGES.values()), re.IGNORECASE)
_TRANSLATED = re.compile(r"translat|अनुवाद|ಅನುವಾದ", re.IGNORECASE)
_NEWS_ASKED = re.compile(
    r"\b(?:news|headline|report|reporter|article|press)|समाचार|ख़?बर|रिपोर्ट|ಸುದ್ದಿ|ವರದಿ", re.IGNORECASE
)
_WEAK_SIGN = re.compile(r"\W*[A-Z ]+:|\d{1,2}:\d{2}\s*(?:AM|PM|IST)")
"""Signs of news prose that also occur in notes and in facts about opening hours; a row needs two of
them to be flagged."""


@dataclass(frozen=True)
class Finding:
    """One fault of one row. `row` is ChatRow.number, `reason` a key of REASONS, `text` the fault in
    words."""

    row: int
    reason: str
    text: str


REASONS = {
    "contradiction": "the same question has different answers",
    "loop": "the answer repeats itself",
    "wrong_script": "the answer is not in the language that was asked in, or for",
    "copies": "one row makes up too much of the lesson",
    "empty": "the answer says nothing",
    "echo": "the answer is the question",
    "template_token": "a chat template's token is spelled out in the text",
    "news": "the answer is written as a news report",
}


@dataclass(frozen=True)
class AuditVerdict:
    """The numbers of the rows to leave out (`rows`), and their share of all rows (0 to 1).

    `why` gives the number of rows for each reason, in words; `examples` are the first SHOWN
    findings, in words.
    """

    rows: frozenset[int]
    share: float
    why: str
    examples: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        return self.share > REFUSED_SHARE

    def check(self) -> None:
        """Raises DataRefused when more than REFUSED_SHARE of the rows are flagged."""
        if self.is_refused:
            raise DataRefused(
                f"{len(self.rows)} rows are flagged, {100 * self.share:.0f} % of the data",
                f"above {100 * REFUSED_SHARE:.0f} % it is not to be trusted: {self.why}."
                f" {'; '.join(self.examples)}",
                "put the rows right or take them out; they are counted by their line in the file",
            )


def audit(rows: Sequence[ChatRow]) -> list[Finding]:
    """All findings, in the order of the rows. A row may have several.

    >>> talk = (Message("user", "What is 2 + 2?"), Message("assistant", "..."))
    >>> [finding.reason for finding in audit([ChatRow(1, talk)])]
    ['empty']
    """
    found = [finding for row in rows for finding in _alone(row)]
    found += _contradictions(rows)
    found += _copies(rows)
    place = {row.number: n for n, row in enumerate(rows)}
    return sorted(found, key=lambda finding: (place[finding.row], finding.reason))


def verdict(findings: Sequence[Finding], n_rows: int) -> AuditVerdict:
    """The rows to leave out, and whether they are too many of the `n_rows` rows of the data."""
    rows = frozenset(finding.row for finding in findings)
    by_reason = {
        reason: len({finding.row for finding in findings if finding.reason == reason})
        for reason in REASONS
    }
    why = "; ".join(f"in {n} rows {REASONS[reason]}" for reason, n in by_reason.items() if n)
    examples = (f"row {one.row}: {REASONS[one.reason]}: {one.text}" for one in findings[:SHOWN])
    return AuditVerdict(rows, len(rows) / n_rows if n_rows else 0.0, why, tuple(examples))


# ---- one row -----------------------------------------------------------------------------------


def _alone(row: ChatRow) -> Iterator[Finding]:
    texts = [_THOUGHT.sub("", message.content) for message in row.messages]
    for text in texts:
        if token := _TEMPLATE_TOKENS.search(text):
            yield _finding(row, "template_token", f"{token.group().strip()!r} in {text}")
            break
    system = texts[0] if row.messages[0].role == "system" else ""
    for place, message in enumerate(row.messages):
        if message.role == "assistant":
            yield from _about_answer(row, system, texts[place - 1], texts[place])


def _about_answer(row: ChatRow, system: str, asked: str, answer: str) -> Iterator[Finding]:
    if _is_empty(answer):
        yield _finding(row, "empty", repr(answer))
    if is_looping(answer):
        yield _finding(row, "loop", answer)
    said = words(answer)
    if len(said) >= ECHO_WORDS and said == words(asked):
        yield _finding(row, "echo", answer)
    if language := _wrong_language(system, asked, answer):
        yield _finding(row, "wrong_script", f"expected {language}: {answer}")
    if signs := _news(asked, answer):
        yield _finding(row, "news", f"{signs[0]!r} in {answer}")


def _is_empty(answer: str) -> bool:
    """Whether an answer has no letter, digit or symbol: "..." is empty, an emoji is not."""
    return not any(unicodedata.category(char)[0] in "LNS" for char in answer)


def _wrong_language(system: str, asked: str, answer: str) -> str | None:
    """The language that was wanted, when the answer is in the script of another one; else None."""
    wanted = _language_asked_for(asked) or _language_asked_for(system)
    if wanted is None:
        if _NAMED.search(asked) or _TRANSLATED.search(asked):
            return None  # "What is water in Kannada?" may be answered in either language
        wanted = next((code for code in ("hi", "kn") if _is_in(asked, code)), None)
    if wanted is None or _is_in(answer, wanted):
        return None
    other = next((code for code in SCRIPTS if code != wanted and _is_in(answer, code)), None)
    if other is None:
        return None
    if other == "en" and (_may_be_latin(answer) or is_mixed(answer, wanted)):
        return None
    if other == "en" and (_ROMAN_ASKED.search(asked) or _ROMAN_ASKED.search(system)):
        return None
    return {"en": "English", "hi": "Hindi", "kn": "Kannada"}[wanted]


def _may_be_latin(answer: str) -> bool:
    """Whether an answer in Latin letters fits every language: a few words, an address or program
    text, or nothing but names, numbers and units."""
    if len(words(answer)) < LATIN_WORDS or _CODE.search(answer) is not None:
        return True
    return all(_is_name(piece) for piece in answer.split())


def _is_name(piece: str) -> bool:
    """Whether a word is written as a name, a number or a unit: "Mango", "M34", "kg", "(5G)"."""
    bare = piece.strip(_EDGES)
    has_mark = any(char.isdigit() or char.isupper() for char in bare)
    return has_mark or not bare or bare in _SMALL_WORDS


def _language_asked_for(text: str) -> str | None:
    """The language of an instruction such as "answer in Hindi"; None without an instruction, or
    with several that differ."""
    if _TRANSLATED.search(text):
        return None
    found = [code for code, pattern in _ASKED_FOR.items() if pattern.search(text)]
    return found[0] if len(found) == 1 else None


def _is_in(text: str, language: str) -> bool:
    share = share_of(text, SCRIPTS[language])
    return share is not None and share >= 0.5


def _news(asked: str, answer: str) -> list[str]:
    if len(words(answer)) < NEWS_WORDS or _NEWS_ASKED.search(asked):
        return []
    signs = news_signs(answer)
    strong = [sign for sign in signs if not _WEAK_SIGN.fullmatch(sign)]
    return strong or (signs if len(signs) > 1 else [])


# ---- rows beside each other --------------------------------------------------------------------

_Question = tuple[Terms, ...]


def _contradictions(rows: Sequence[ChatRow]) -> Iterator[Finding]:
    """Findings for the answers to one question that disagree with most of the others; for all
    answers when no group of agreeing answers is the largest."""
    asked: dict[_Question, list[tuple[ChatRow, int]]] = defaultdict(list)
    for row in rows:
        for place, message in enumerate(row.messages):
            if message.role == "assistant":
                asked[same_question(row.messages[:place])].append((row, place))
    for places in asked.values():
        camps = _camps([row.messages[place].content for row, place in places])
        most = max(map(len, camps))
        is_tied = sum(len(camp) == most for camp in camps) > 1
        for camp in camps:
            if len(camp) < most or is_tied:
                other = next(one for one in camps if one is not camp)[0]
                yield from (_contradicting(*places[at], *places[other]) for at in camp)


def _contradicting(row: ChatRow, place: int, other: ChatRow, other_place: int) -> Finding:
    where = f"in row {other.number}" if other is not row else "in the same row"
    asked, here, there = (
        _cut(text, SHOWN_CHARACTERS // 4)
        for text in (
            row.messages[place - 1].content,
            row.messages[place].content,
            other.messages[other_place].content,
        )
    )
    return _finding(row, "contradiction", f"{asked!r} is answered {here!r}, {there!r} {where}")


def _camps(answers: Sequence[str]) -> list[list[int]]:
    """Groups of agreeing answers, as indices into `answers`, in the order of their first answer."""
    every = [terms(answer) for answer in answers]
    camps: list[list[int]] = []
    by_terms: dict[Terms, list[int]] = {}
    for at, said in enumerate(every):
        camp = by_terms.get(said)
        if camp is None:
            near = camps[:_MOST_CAMPS]
            camp = next((one for one in near if agree(every[one[0]], said)), None)
        if camp is None:
            camp = []
            camps.append(camp)
        by_terms[said] = camp
        camp.append(at)
    return camps


def _copies(rows: Sequence[ChatRow]) -> Iterator[Finding]:
    """Findings for all but the first of equal rows, when there are too many of them. Rows are equal
    when all their words are."""
    same: dict[_Question, list[ChatRow]] = defaultdict(list)
    for row in rows:
        same[same_question(row.messages)].append(row)
    limit = max(FEWEST_COPIES - 1, COPY_SHARE * len(rows))
    for copies in same.values():
        if len(copies) > limit:
            text = f"{len(copies)} times the row {copies[0].number}: "
            for row in copies[1:]:
                yield _finding(row, "copies", text + row.messages[-1].content)


def same_question(messages: Sequence[Message]) -> _Question:
    """The turns of a chat in the form in which chats are compared: equal for two that ask the
    same."""
    return tuple(
        (message.role, *asked_terms(message.content))
        if message.role == "user"
        else (message.role, *terms(message.content))
        for message in messages
    )


def _finding(row: ChatRow, reason: str, text: str) -> Finding:
    return Finding(row.number, reason, _cut(text, SHOWN_CHARACTERS))


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
