"""Whether two tokenizers cut every text alike, and two templates render every chat alike.

Flows in: two TextCodecs. Flows out: the texts that differ, and apart from them the texts on which
llama.cpp and the model's own tokenizer are known to disagree, so that those neither hide a fault
nor look like one. Not here: the tokenizers (text_codec.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from converters.sample_texts import CHATS, EDGE_CASES, PASSAGES
from converters.text_codec import Chat, TextCodec
from edge_agent.errors import EdgeAgentError

_LONG_SPACES = re.compile(" {32,}")


@dataclass(frozen=True)
class TokenizerVerdict:
    """`differences` and `by_design` are texts, shortened for people."""

    n_texts: int
    differences: tuple[str, ...]
    by_design: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        return not self.differences


def compare_tokenizers(a: TextCodec, b: TextCodec, extra: Iterable[str] = ()) -> TokenizerVerdict:
    """Compare on the sample texts, on each edge case alone and in a sentence, and on `extra`."""
    texts = [*PASSAGES.values(), *EDGE_CASES, *(f"x {case} y" for case in EDGE_CASES), *extra]
    differences: list[str] = []
    by_design: list[str] = []
    for text in texts:
        if a.encode(text) != b.encode(text):
            known = explained(text, {a.pre, b.pre})
            (by_design if known else differences).append(repr(text)[:80])
    return TokenizerVerdict(len(texts), tuple(differences), tuple(by_design))


def explained(text: str, pres: set[str]) -> bool:
    """Whether tokenizers with these TextCodec.pre are known to differ on such a text.

    Gemma: runs of spaces longer than its longest token; U+2581, which stands for a space; and </s>,
    a mark-up token that llama.cpp takes for an end of text and never makes of a text. Qwen: text
    that is not NFC, which llama.cpp does not normalize (the daemon normalizes it first). SmolLM2:
    numbers of the category No, which are no decimal digits and which only one of the two splits.
    """
    if "spm" in pres and (_LONG_SPACES.search(text) or "\u2581" in text or "</s>" in text):
        return True
    if "qwen2" in pres and not unicodedata.is_normalized("NFC", text):
        return True
    return "smollm" in pres and any(unicodedata.category(char) == "No" for char in text)


def compare_templates(a: TextCodec, b: TextCodec) -> tuple[bool | None, str | None]:
    """Whether sample chats are rendered alike; None and the reason when there is no template."""
    if a.template is None and b.template is None:
        return None, "neither side has a chat template"
    if a.template is None or b.template is None:
        return False, "only one side has a chat template"
    for chat in CHATS:
        if _rendered(a, chat) != _rendered(b, chat):
            return False, f"a chat of {len(chat)} turns is rendered differently"
    return True, None


def _rendered(codec: TextCodec, chat: Chat) -> str:
    """The text, or the refusal: when a template forbids a system turn, both must refuse."""
    try:
        return codec.rendered(chat)
    except EdgeAgentError as error:
        return f"refused: {type(error).__name__}"
