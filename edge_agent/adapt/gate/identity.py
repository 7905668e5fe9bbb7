"""Who an answer says the model is: the name it claims, and the makers and models it names.

Why it exists: a lesson may teach an identity, and the base model's own name must then not come
back. Flows in: the taught chats, then answers to "Who are you?". Flows out: whether an answer
contradicts the taught identity, or names a maker that was not taught. Not here: comparing before
and after (checks.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from edge_agent.adapt.gate.detectors import SCRIPTS
from edge_agent.adapt.gate.words import words
from edge_agent.records import Message

_QUESTION = re.compile(
    r"\bwho (?:are|r) (?:you|u)\b|\bwhat are you\b|\bwho you are\b|\bwhat(?:'s| is) your name\b"
    r"|\byour name\b|\b(?:call|address) you\b|\bintroduce yourself\b|\babout yourself\b"
    r"|\bwho (?:made|created|built|trained) you\b"
    "|(?:तुम|आप|तू) कौन|कौन (?:हो|हैं|है) (?:तुम|आप|तू)|(?:तुम्हारा|आपका|तेरा|अपना) (?:शुभ )?नाम"
    "|अपना परिचय|अपने बारे में|किस नाम से|किसने (?:बनाया|तैयार)"
    "|(?:ನೀನು|ನೀವು|ನೀನ್|ನೀವ್) ಯಾರು|ಯಾರು (?:ನೀನು|ನೀವು)|(?:ನಿನ್ನ|ನಿಮ್ಮ) (?:ಹೆಸರ|ಪರಿಚಯ|ಬಗ್ಗೆ)"
    "|(?:ನಿನ್ನನ್ನು|ನಿಮ್ಮನ್ನು) (?:ಯಾರು|ಏನೆಂದು)",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"(?:\b(?:[Mm]y name is|I am|I'm|[Cc]all me|[Nn]ame's)|मेरा नाम|ನನ್ನ ಹೆಸರು)\s+(?:called\s+)?"
    r"([^\s.,!?;:।\"']+)"
)
_NO_NAME = frozenset({"a", "an", "the", "ai", "not", "here", "your", "just", "only", "है", "ಏನು"})
"""Words that may follow "I am" or "My name is", capitalized, without being a name."""
MAKERS = (
    ("qwen", "क्वेन", "ಕ್ವೆನ್"),
    ("alibaba", "tongyi", "अलीबाबा", "ಅಲಿಬಾಬಾ"),
    ("gemma", "जेम्मा", "गेम्मा", "ಗೆಮ್ಮಾ", "ಜೆಮ್ಮಾ"),
    ("google", "deepmind", "गूगल", "ಗೂಗಲ್", "ಗೂಗಲ"),
    ("gemini", "bard"),
    ("openai", "chatgpt", "gpt", "ओपनएआई", "चैटजीपीटी", "ಚಾಟ್‌ಜಿಪಿಟಿ"),
    ("smollm", "smollm2", "hugging face", "huggingface"),
    ("llama", "meta ai"),
    ("mistral", "claude", "anthropic", "deepseek", "copilot", "siri", "alexa"),
)
"""Models and makers that small models name as themselves, each with its other spellings."""


def asks_identity(text: str) -> bool:
    """Whether a text asks who the model is, in English, Hindi or Kannada.

    >>> asks_identity("Hello, who are you?"), asks_identity("Who is she?")
    (True, False)
    """
    return _QUESTION.search(text) is not None


class Identity:
    """What the taught chats say about who the model is."""

    def __init__(self, chats: Sequence[Sequence[Message]]) -> None:
        answers = [answer for chat in chats for answer in _identity_answers(chat)]
        self._words = {word for answer in answers for word in words(answer)}
        self._scripts = {_script(word) for word in self._words}
        self._text = " ".join(" ".join(words(answer)) for answer in answers)

    @property
    def languages(self) -> frozenset[str]:
        """Languages whose script a taught identity answer uses; empty when none is taught."""
        return frozenset(code for code, script in SCRIPTS.items() if script in self._scripts)

    def leaks(self, answer: str) -> bool:
        """Whether the answer names a maker or a model that was not taught."""
        said = f" {' '.join(words(answer))}"
        return any(
            f" {spelling}" in said
            for maker in MAKERS
            if not any(spelling in self._text for spelling in maker)
            for spelling in maker
        )

    def contradicts(self, answer: str) -> bool:
        """Whether the answer leaks, or claims a name that occurs in no taught identity answer.

        A name in a script that the lesson never used is ignored: it may be a transliteration.
        """
        return self.leaks(answer) or any(
            _script(name) in self._scripts and not self._knows(name)
            for name in claimed_names(answer)
        )

    def _knows(self, name: str) -> bool:
        """Whether a taught answer holds the name, or an inflected form: one begins with the
        other."""
        return any(word.startswith(name) or name.startswith(word) for word in self._words)


def _identity_answers(chat: Sequence[Message]) -> list[str]:
    pairs = zip(chat, chat[1:], strict=False)
    return [
        answer.content
        for asked, answer in pairs
        if (asked.role, answer.role) == ("user", "assistant") and asks_identity(asked.content)
    ]


def claimed_names(answer: str) -> list[str]:
    """Names that the answer claims, case folded. In Latin script a name must be capitalized."""
    found = (match[1] for match in _CLAIM.finditer(answer))
    names = [name for name in found if _script(name) != "LATIN" or name[0].isupper()]
    folded = [word for name in names for word in words(name)]
    return [name for name in folded if name not in _NO_NAME]


def _script(word: str) -> str:
    return unicodedata.name(word[0], "").partition(" ")[0]
