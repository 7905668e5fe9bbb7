"""A GGUF file opened by llama.cpp, its vocabulary, and the LoRA adapters loaded onto it.

Flows in: a path and EngineSettings. Flows out: `Model` (shape, metadata), `ModelVocabulary` (text
to ids and back), and handles of adapters for Context.set_adapters. With `no_alloc` llama.cpp loads
the shape but no weights: engine/memory_check.py learns the size of the compute buffer that way.
With `vocab_only` it loads only metadata and tokens. The files must have been checked
(gguf/model_file.py, gguf/adapter_file.py): a broken file ends the process inside llama.cpp, and an
adapter with a NaN is accepted silently. Not here: contexts (context.py), and which adapter answers
a request (engine/adapter_pool.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import ModelFormatError, ModelRefused, RequestError
from edge_agent.llama.binding import LogTail, has_amx, lib
from edge_agent.records import EngineSettings

_LOAD_MODES = {"auto": -1, "read": 0, "mmap": 1, "mlock": 3, "direct_io": 4}
_MEMORY_WORDS = ("unable to allocate", "failed to allocate", "out of memory")
_CONTROL = 1 << 3
_USER_DEFINED = 1 << 4
"""LLAMA_TOKEN_ATTR_CONTROL and LLAMA_TOKEN_ATTR_USER_DEFINED of llama.h."""


class ModelVocabulary:
    """Text to token ids of one model, and back. A token's piece is bytes and not text, because a
    token may hold a part of a UTF-8 character."""

    def __init__(self, model_handle: Any) -> None:
        self._handle = lib.llama_model_get_vocab(model_handle)
        self.n_tokens = int(lib.llama_vocab_n_tokens(self._handle))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(self._handle))
        self.bos = int(lib.llama_vocab_bos(self._handle))
        self.eos = int(lib.llama_vocab_eos(self._handle))
        self.added_ids: dict[str, int] = {}
        """Text to id, for control tokens and user-defined tokens (such as Qwen 3's <think>)."""
        self.control_texts: frozenset[str] = frozenset()
        self.eog_ids: frozenset[int] = frozenset()
        self._pieces: dict[int, bytes] = {}
        self._scan_added_tokens()

    @property
    def handle(self) -> Any:
        """The llama_vocab pointer, which the grammar sampler needs."""
        return self._handle

    def _scan_added_tokens(self) -> None:
        """Fill added_ids, control_texts and eog_ids."""
        read, is_eog = lib.llama_vocab_get_attr, lib.llama_vocab_is_eog
        eog, controls = set(), set()
        for token in range(self.n_tokens):
            attribute = read(self._handle, token)
            if attribute & (_CONTROL | _USER_DEFINED):
                text = self.text(token)
                self.added_ids.setdefault(text, token)
                if attribute & _CONTROL:
                    controls.add(text)
                if is_eog(self._handle, token):
                    eog.add(token)
        self.control_texts = frozenset(controls)
        ends = (self.eos, int(lib.llama_vocab_eot(self._handle)))  # these may be plain tokens
        self.eog_ids = frozenset({*eog, *(token for token in ends if token >= 0)})

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it; '' for an id outside the vocabulary."""
        if not 0 <= token < self.n_tokens:
            return ""
        return str(
            (lib.llama_vocab_get_text(self._handle, token) or b"").decode("utf-8", "replace")
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. `add_special` adds BOS and EOS where the vocabulary asks for them;
        `parse_special` turns the spelling of a control token into that token.

        Raises RequestError for text that is not valid Unicode (lone surrogates).
        """
        try:
            raw = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                "the text is not valid Unicode", str(error), "send UTF-8 without lone surrogates"
            ) from error
        size = len(raw) + 4
        buffer = (ctypes.c_int32 * size)()
        n = lib.llama_tokenize(
            self._handle, raw, len(raw), buffer, size, add_special, parse_special
        )
        if n < 0:
            raise RequestError(
                f"a text of {len(raw)} bytes could not be tokenized", f"llama_tokenize said {n}"
            )
        return buffer[:n]

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a text; a control token adds none. Cached."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def spelled(self, token: int) -> bytes:
        """The bytes of a token; a control token gives its spelling, such as <|im_end|>."""
        return self._piece(token, special=True)

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self._handle, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, control tokens spelled out.

        Raises RequestError for an id outside the vocabulary.
        """
        for token in tokens:
            if not 0 <= token < self.n_tokens:
                raise RequestError(
                    f"token {token} is not in the vocabulary",
                    f"ids run from 0 to {self.n_tokens - 1}",
                )
        return b"".join(self.spelled(token) for token in tokens).decode("utf-8", "replace")


class Model:
    """One loaded model. `close` frees it; close its contexts first."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        log: LogTail,
        *,
        no_alloc: bool = False,
        vocab_only: bool = False,
    ):
        """Load the checked file at `path`.

        `no_alloc` loads the shape without weights; `vocab_only` loads metadata and tokens, neither
        shape nor weights. Raises ModelRefused when llama.cpp runs out of memory, and
        ModelFormatError when it refuses the file for another reason.
        """
        params = lib.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.load_mode = 0 if no_alloc else _LOAD_MODES[settings.load_mode]
        params.no_alloc = no_alloc
        params.use_extra_bufts = settings.repack and not has_amx()
        params.vocab_only = vocab_only
        handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not handle:
            raise _load_error(path, log.errors())
        self.handle = handle
        self.vocabulary = ModelVocabulary(handle)

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        if self.handle:
            lib.llama_model_free(self.handle)
            self.handle = None

    def metadata(self, key: str) -> str | None:
        """One metadata value as llama.cpp prints it; None when the key is absent."""
        return self._text(
            lambda buffer, size: lib.llama_model_meta_val_str(
                self.handle, key.encode(), buffer, size
            )
        )

    @property
    def description(self) -> str:
        """llama.cpp's short name of the model, such as 'gemma3 270M Q4_K - Medium'."""
        return (
            self._text(lambda buffer, size: lib.llama_model_desc(self.handle, buffer, size))
            or "unknown"
        )

    @property
    def chat_template(self) -> str | None:
        """The source of the Jinja chat template in the file; None when it has none."""
        raw = lib.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw else None

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest context that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.handle))

    @property
    def n_swa(self) -> int:
        """The sliding window in tokens; 0 when the model has none."""
        return int(lib.llama_model_n_swa(self.handle))

    @property
    def n_embd(self) -> int:
        return int(lib.llama_model_n_embd(self.handle))

    @property
    def n_layer(self) -> int:
        return int(lib.llama_model_n_layer(self.handle))

    @property
    def n_params(self) -> int:
        return int(lib.llama_model_n_params(self.handle))

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(lib.llama_model_size(self.handle))

    @staticmethod
    def _text(read: Any) -> str | None:
        size = 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = read(buffer, size)
            if n < 0:
                return None
            if n < size:
                return buffer.raw[:n].decode("utf-8", "replace")
            size = n + 1


def _load_error(path: Path, reason: str) -> ModelFormatError | ModelRefused:
    if any(word in reason.lower() for word in _MEMORY_WORDS):
        return ModelRefused(
            f"{path} could not be loaded", reason, "close other programs or choose a smaller file"
        )
    return ModelFormatError(
        f"llama.cpp refused {path}",
        reason or "it gave no reason",
        "check the file with `edge-agent show`, or pull it again",
    )


def load_adapter(path: str, model: Model, log: LogTail) -> Any:
    """Load the checked LoRA adapter at `path` onto `model`.

    Returns a handle for Context.set_adapters, valid until `free_adapter` or `model.close`. Raises
    ModelRefused, with llama.cpp's own words, when the adapter does not fit the model.
    """
    with log.listening():
        handle = lib.llama_adapter_lora_init(model.handle, path.encode())
        if not handle:
            raise ModelRefused(
                f"the adapter {path} does not fit the model",
                log.errors() or "llama.cpp gave no reason",
                "use one that was trained on this very model",
            )
    return handle


def free_adapter(handle: Any) -> None:
    """Free an adapter's memory. The adapter must not be applied in any context."""
    lib.llama_adapter_lora_free(handle)
