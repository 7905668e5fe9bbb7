"""Tokenizer and chat template of a model: llama.cpp's for a file, `tokenizers`' for a directory.

Flows in: a path. Flows out: token ids of a text, bytes of tokens, the text of a chat. Special
tokens that occur in a text stay text on both sides: the daemon does this for a GGUF file, and for a
directory they are removed from the added tokens. Not here: comparing two models
(verify_tokenizer.py).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from converters.checkpoint import Checkpoint, open_checkpoint, read_json
from converters.extras import load_extra
from converters.gguf_container import Metadata, read_metadata
from edge_agent.errors import ConversionError
from edge_agent.llama.binding import start_backend
from edge_agent.llama.model import Model
from edge_agent.prompt.chat_template import identify, render
from edge_agent.prompt.template_families import as_text
from edge_agent.prompt.template_sandbox import TemplateSandbox
from edge_agent.records import EngineSettings, Message

Chat = Sequence[tuple[Literal["system", "user", "assistant"], str]]


class TextCodec(Protocol):
    """The interface that verify uses."""

    @property
    def template(self) -> str | None: ...
    @property
    def pre(self) -> str:
        """tokenizer.ggml.pre, or "spm"; "" when it is unknown."""

    def encode(self, text: str) -> list[int]: ...
    def n_bytes(self, tokens: Sequence[int]) -> int:
        """Bytes of the text of these tokens; control tokens have none."""

    def rendered(self, chat: Chat) -> str: ...
    def close(self) -> None: ...


class GgufCodec:
    """llama.cpp's tokenizer of a file; the engine's own renderer renders templates."""

    def __init__(self, path: Path) -> None:
        self._model = Model(path, EngineSettings(), start_backend())
        self._metadata = read_metadata(path)
        self._vocabulary = self._model.vocabulary

    @property
    def template(self) -> str | None:
        return self._model.chat_template

    @property
    def pre(self) -> str:
        return pre_of(self._metadata)

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=True, parse_special=False)

    def n_bytes(self, tokens: Sequence[int]) -> int:
        return sum(len(self._vocabulary.piece(token)) for token in tokens)

    def rendered(self, chat: Chat) -> str:
        architecture = self._metadata.get_value("general.architecture")
        controls = self._vocabulary.control_texts
        name = identify(self.template, architecture, controls)
        items = render(
            name,
            [Message(role=role, content=content) for role, content in chat],
            template=self.template,
            control_tokens=controls,
            bos_token=self._vocabulary.text(self._vocabulary.bos),
            eos_token=self._vocabulary.text(self._vocabulary.eos),
        )
        return as_text(items)

    def close(self) -> None:
        self._model.close()


def pre_of(metadata: Metadata) -> str:
    """tokenizer.ggml.pre, or "spm" for SentencePiece."""
    is_spm = metadata.get_value("tokenizer.ggml.model") == "llama"
    return "spm" if is_spm else str(metadata.get_value("tokenizer.ggml.pre", ""))


class DirectoryCodec:
    """The tokenizer of transformers where that is installed, else tokenizer.json, in the
    `tokenizers` library; jinja2's sandbox renders templates."""

    def __init__(self, directory: Path) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ConversionError(
                f"cannot tokenize with {directory}",
                "it has no tokenizer.json",
                "load it in transformers and save it again: that writes one",
            )
        self._source = _transformers_tokenizer(directory)
        document = read_json(path) if self._source is None else _document(self._source)
        # A user's text must not yield control tokens, so only the other added tokens are matched.
        added = document.get("added_tokens") or []
        document["added_tokens"] = [t for t in added if not t.get("special")]
        document["truncation"] = document["padding"] = None
        library = load_extra("tokenizers", f"tokenizing as {directory.name} does")
        with _refusing(directory):
            self._tokenizer: Any = library.Tokenizer.from_str(json.dumps(document))
        self._settings = self._checkpoint.json("tokenizer_config.json")
        self._pre = _pre(document)

    @property
    def template(self) -> str | None:
        """The template that transformers takes, where it is installed; else by its documented rule:
        a file goes before tokenizer_config.json. Not by chat_templates.py, which is what verify
        checks."""
        file = self._checkpoint.text("chat_template.jinja")
        given = self._settings.get("chat_template") if file is None else file
        if self._source is not None:
            given = self._source.chat_template
        if isinstance(given, list):
            given = {entry["name"]: entry["template"] for entry in given}
        chosen = given.get("default") if isinstance(given, dict) else given
        chosen = chosen or self._checkpoint.json("chat_template.json").get("chat_template")
        return chosen if isinstance(chosen, str) and chosen else None

    @property
    def pre(self) -> str:
        return self._pre

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def n_bytes(self, tokens: Sequence[int]) -> int:
        return len(self._tokenizer.decode(list(tokens)).encode())

    def rendered(self, chat: Chat) -> str:
        sandbox = TemplateSandbox()
        messages = [{"role": role, "content": content} for role, content in chat]
        bos, eos = (_token_text(self._settings.get(f"{kind}_token")) for kind in ("bos", "eos"))
        try:
            text = sandbox.render(self.template or "", messages, bos, eos)
            # The tokenizer adds BOS, so drop the template's. SmolLM2's BOS also starts each turn
            # and then stays.
            return text.removeprefix(bos) if bos and text.count(bos) == 1 else text
        finally:
            sandbox.close()

    def close(self) -> None:
        self._tokenizer = None


def _transformers_tokenizer(directory: Path) -> Any:
    """transformers' tokenizer of a directory; None where transformers is not installed."""
    if not importlib.util.find_spec("transformers"):
        return None
    transformers = load_extra("transformers", f"tokenizing as {directory.name} does")
    transformers.utils.logging.set_verbosity_error()
    with _refusing(directory):
        return transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )


def _document(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer.json that transformers' tokenizer works with, its own changes included."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


@contextmanager
def _refusing(directory: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for a broken tokenizer into a ConversionError."""
    try:
        yield
    except Exception as error:
        raise ConversionError(
            f"cannot tokenize with {directory}",
            f"the tokenizer does not load: {type(error).__name__}: {str(error)[:200]}",
            "save the tokenizer again with transformers",
        ) from error


def _token_text(entry: Any) -> str:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else ""


def _pre(document: dict[str, Any]) -> str:
    from converters.pre_tokenizer import name_of

    if document["model"].get("byte_fallback"):
        return "spm"
    return name_of(document.get("normalizer"), document.get("pre_tokenizer")) or ""


def open_codec(path: Path) -> TextCodec:
    """The codec of a directory or a GGUF file. Raises ConversionError, ModelFormatError."""
    return DirectoryCodec(path) if path.is_dir() else GgufCodec(path)
