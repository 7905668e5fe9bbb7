"""A FAKE supervisor without a worker, which answers from a script: HTTP can be tested alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path

from waiting import POLL_S

from edge_agent.errors import EdgeAgentError
from edge_agent.measured import Timings
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.models.which_model import which_model
from edge_agent.records import (
    AdapterRef,
    ApplyTemplate,
    Began,
    ChosenLogprob,
    Chunk,
    Detokenize,
    Done,
    Generate,
    Generation,
    ModelInfo,
    QuerySlots,
    SlotState,
    SlotStates,
    Text,
    Tokenize,
    TokenLogprob,
    Tokens,
)
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor.engine_status import EngineStatus
from edge_agent.supervisor.supervisor import Target

N_VOCAB = 1000
N_CTX = 4096


def model_row(name: str = "tiny", path: str = "models/tiny.gguf") -> ModelRow:
    return ModelRow(
        name=name,
        sha256="ab" * 32,
        path=path,
        size_bytes=1234,
        source="embedded:tiny",
        architecture="llama",
        description="a fake",
        n_params=134_515_008,
        n_ctx_train=8192,
        quantization="Q4_1",
        chat_template="{{ messages }}",
        added_at=1_700_000_000.0,
    )


def model_info(name: str = "tiny", chat_template: str = "chatml") -> ModelInfo:
    return ModelInfo(
        name=name,
        path="/models/tiny.gguf",
        sha256="ab" * 32,
        architecture="llama",
        description="a fake",
        n_params=134_515_008,
        file_bytes=1234,
        n_vocab=N_VOCAB,
        n_ctx_train=8192,
        n_ctx=N_CTX,
        slots=2,
        n_threads=2,
        n_embd=64,
        n_layer=2,
        chat_template=chat_template,
        chat_template_source="file",
        bos_token="<s>",
        eos_token="</s>",
        tensor_bytes=1000,
        kv_bytes=200,
        compute_bytes=30,
        load_s=0.5,
        system_info="none",
        build="fake",
    )


@dataclass
class FakeSupervisor:
    """Yields `pieces`, one chunk each; `requests` and `cancelled` record what reached it."""

    pieces: list[str] = field(default_factory=lambda: ["Hel", "lo ", "wörld"])
    info: ModelInfo = field(default_factory=model_info)
    known: tuple[str, ...] = ("tiny", "other")
    error: EdgeAgentError | None = None
    """Raised after `fail_after` chunks."""
    fail_after: int = 0
    n_let_pass: float = math.inf
    """Number of chunks that come at once; the others wait until a test raises the number."""
    finish_reason: str = "stop"
    stop_text: str | None = None
    loaded: bool = True
    status_now: EngineStatus | None = None
    requests: list[Generate] = field(default_factory=list)
    models: list[str | None] = field(default_factory=list)
    keep_alives: list[float | None] = field(default_factory=list)
    asked: list[object] = field(default_factory=list)
    unloads: int = 0
    running: int = 0
    cancelled: int = 0
    slot_state: str = "idle"
    store: Store = field(init=False)
    registry: AdapterRegistry = field(init=False)
    """`store` and `registry` are set by http_front.serving."""
    checked: list[AdapterRef] = field(default_factory=list)
    configured: str | None = None
    """`serve --model`."""
    has_loaded: bool = True
    """Whether `info` is, or was, the loaded model."""

    def which_model(
        self, name: str | None, *, may_guess: bool = True
    ) -> tuple[ModelRow, str | None]:
        loaded = self.info.name if may_guess and self.has_loaded else None
        return which_model(self.store, name, self.configured, loaded)

    def target(self, name: str | None) -> Target:
        row, tag = self.which_model(name)
        return Target(row, self.registry.chosen(row.name, tag), tag)

    async def check_adapter(self, model: str, adapter: AdapterRef) -> None:
        self.checked.append(adapter)

    async def ensure_loaded(
        self, model: str | None, *, keep_alive_s: float | None = None
    ) -> ModelInfo:
        name = self.target(model).model.name
        self.info = ModelInfo(**{**_members(self.info), "name": name})
        self.loaded = self.has_loaded = True
        return self.info

    async def generate(
        self,
        model: str | None,
        request: Generate,
        *,
        keep_alive_s: float | None = None,
    ) -> AsyncGenerator[Generation, None]:
        await self.ensure_loaded(model)
        chosen = self.target(model).adapter
        adapter = request.adapter or (self.registry.reference(chosen) if chosen else None)
        self.requests.append(request)
        self.models.append(model)
        self.keep_alives.append(keep_alive_s)
        self.running += 1
        finished = False
        try:
            yield Began(
                self.info.name, Path(adapter.path).stem if adapter and adapter.scale else None
            )
            for n_passed, event in enumerate(self._events(request)):
                while n_passed >= self.n_let_pass:
                    await asyncio.sleep(POLL_S)
                if isinstance(event, EdgeAgentError):
                    finished = True
                    raise event
                finished = isinstance(event, Done)
                yield event
        finally:
            self.running -= 1
            self.cancelled += not finished

    def _events(self, request: Generate) -> list[Chunk | Done | EdgeAgentError]:
        chosen = [] if request.logprobs is None else [_logprob(request.logprobs)]
        pieces = self.pieces[: self.fail_after] if self.error else self.pieces
        chunks: list[Chunk | Done | EdgeAgentError] = []
        if request.stream:
            ids = [[7 + n] if request.return_tokens else [] for n in range(len(pieces))]
            chunks += [Chunk(1, text, n + 1, chosen, ids[n]) for n, text in enumerate(pieces)]
        if self.error:
            return [*chunks, self.error]
        text = "" if request.stream else "".join(self.pieces)
        timings = Timings(10, 4, len(self.pieces), 0.0, 0.006, 0.03, 0.01)
        tokens = [7, 8, 9] if request.return_tokens and not request.stream else []
        done = Done(1, text, self.finish_reason, timings, self.stop_text, chosen, tokens=tokens)  # type: ignore[arg-type]
        return [*chunks, done]

    async def ask(
        self, model: str | None, message: Tokenize | Detokenize | ApplyTemplate | QuerySlots
    ) -> Tokens | Text | SlotStates:
        if not isinstance(message, QuerySlots):
            self.target(model)
        self.asked.append(message)
        if isinstance(message, Tokenize):
            raw = message.content.encode()
            pieces = [bytes([byte]) for byte in raw] if message.with_pieces else []
            return Tokens(0, list(raw), pieces)
        if isinstance(message, Detokenize):
            return Text(0, bytes(token % 256 for token in message.tokens).decode("latin-1"))
        if isinstance(message, ApplyTemplate):
            return Text(0, "|".join(f"{turn.role}:{turn.content}" for turn in message.messages))
        state = self.slot_state
        return SlotStates(0, [SlotState(0, state, N_CTX, 0, None, 0, 0)], 0)  # type: ignore[arg-type]

    async def unload(self, *, force: bool = False) -> bool:
        self.unloads += 1
        was, self.loaded = self.loaded, False
        return was

    @property
    def worker_pid(self) -> int | None:
        return self.status().worker_pid

    def status(self) -> EngineStatus:
        if self.status_now is not None:
            return self.status_now
        if not self.loaded:
            return EngineStatus("idle", model=self.info.name)
        active = self.registry.active(self.info.name)
        return EngineStatus(
            "ready",
            model=self.info.name,
            info=self.info,
            expires_at=time.time(),
            adapter=active.name if active else None,
        )

    def become(self, state: str, reason: str = "") -> None:
        self.status_now = replace(EngineStatus("idle"), state=state, reason=reason)  # type: ignore[arg-type]

    async def close(self, drain_s: float) -> None: ...


def _members(info: ModelInfo) -> dict[str, object]:
    return {name: getattr(info, name) for name in info.__struct_fields__}


def _logprob(top: int) -> ChosenLogprob:
    best = TokenLogprob(7, "Hel", b"Hel", -0.25)
    return ChosenLogprob(best, [best, TokenLogprob(8, "\ufffd", b"\xc3", -2.5)][:top])
