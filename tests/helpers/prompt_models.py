"""Tiny vocabularies with each kind of chat template, and the prompt builder of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import gguf
from chat_templates import CHATML, GEMMA, QWEN3
from tiny_gguf import CONTROL_TOKENS, vocabulary

from edge_agent.prompt.prompt_builder import PromptBuilder

THINK = ("<think>", "</think>")
SHOUTED = CHATML.replace("m.role", "m.role|upper").replace("assistant", "ASSISTANT")
TEMPLATES = {"chatml": CHATML, "qwen3": QWEN3, "gemma": GEMMA, "jinja": SHOUTED}


def write_bpe(path: Path, template: str | None) -> Path:
    """A vocabulary-only file with Qwen 3's two think tokens, normalized as Qwen's is."""
    tokens, merges = vocabulary()
    tokens += ["\u010a\u010a", *THINK]  # two newlines as one token
    kinds = gguf.TokenType
    types = [kinds.CONTROL if token in CONTROL_TOKENS else kinds.NORMAL for token in tokens]
    types[-2:] = [kinds.USER_DEFINED] * 2
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges([*merges, "\u010a \u010a"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    return finish(writer, path, template)


def finish(writer: gguf.GGUFWriter, path: Path, template: str | None) -> Path:
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@contextlib.contextmanager
def prompts_of(path: Path) -> Iterator[PromptBuilder]:
    """The prompt builder that vocabulary_only gives, for a file that contains nothing but
    tokens."""
    from edge_agent.prompt.training_sequence import VocabularyPrompts

    with VocabularyPrompts(path) as prompts:
        yield prompts
