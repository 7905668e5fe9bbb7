"""From a path to a model that answers: check the file, check the memory, load, warm up.

Why it exists: the order matters. The hash and the header are checked before llama.cpp opens the
file, and the memory check decides before weights are read. Flows in: records.Load. Flows out:
`LoadedEngine`, or ModelCorrupt, ModelFormatError, ModelRefused, AdapterRefused. Not here: the
socket to the front (worker.py), the decision whether the model fits (memory_check.py).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.engine.adapter_pool import AdapterPool, activate
from edge_agent.engine.memory_check import Admission, admit, still_fits
from edge_agent.errors import ModelFormatError
from edge_agent.gguf.model_file import read_gguf
from edge_agent.llama.binding import LogTail, build_name, system_info
from edge_agent.llama.context import Context
from edge_agent.llama.model import Model
from edge_agent.machine import default_threads, read_memory
from edge_agent.prompt.prompt_builder import PromptBuilder
from edge_agent.records import EngineSettings, Load, ModelInfo
from edge_agent.regular_file import check_sha256

_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class LoadedEngine:
    """A loaded model with its context, prompts, adapters and description, as Scheduler needs it."""

    model: Model
    context: Context
    prompts: PromptBuilder
    adapters: AdapterPool
    info: ModelInfo


def load(message: Load, log: LogTail) -> LoadedEngine:
    """Load a model, and read every weight once so that the first answer is as fast as the others.

    Raises ModelCorrupt for another SHA-256, ModelFormatError for a file that cannot be used or
    computes NaN, ModelRefused when it does not fit into memory, AdapterRefused for an adapter.
    """
    began = time.monotonic()
    path = Path(message.path)
    settings = _with_threads(message.settings)
    if message.sha256 is not None:
        check_sha256(path, message.sha256)
    admission = _admission(path, message, settings, log)
    model = Model(path, settings, log)
    plan = admission.plan
    context = Context(model, settings, log, n_ctx=plan.n_ctx, slots=plan.slots)
    always = activate(settings.adapters, path, model, context, log)
    prompts = PromptBuilder(model, model.metadata("general.architecture") or "unknown")
    _warm_up(path, model, context)
    info = _info(message, settings, model, context, prompts, admission)
    info = msgspec.structs.replace(info, load_s=time.monotonic() - began)
    return LoadedEngine(
        model, context, prompts, AdapterPool(model, context, path, log, always), info
    )


def _with_threads(settings: EngineSettings) -> EngineSettings:
    return msgspec.structs.replace(settings, n_threads=settings.n_threads or default_threads())


def _admission(path: Path, message: Load, settings: EngineSettings, log: LogTail) -> Admission:
    """The plan of the previous load if it still fits; otherwise a new one. Raises ModelRefused."""
    if message.plan is not None and still_fits(message.plan, settings, read_memory()):
        return Admission(message.plan, ("same plan as before the restart",))
    gguf = read_gguf(path)
    with DryRun(path, settings, log) as dry_run:
        return admit(gguf, settings, read_memory(), dry_run.compute_bytes)


class DryRun:
    """Asks llama.cpp for the size of its compute buffer without allocating it (no_alloc)."""

    def __init__(self, path: Path, settings: EngineSettings, log: LogTail) -> None:
        self._settings = settings
        self._log = log
        self._model = Model(path, settings, log, no_alloc=True)

    def __enter__(self) -> DryRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def compute_bytes(self, n_ctx: int, slots: int) -> int:
        """Bytes of the compute buffer for `slots` slots of `n_ctx` tokens."""
        context = Context(self._model, self._settings, self._log, n_ctx=n_ctx, slots=slots)
        context.close()
        return context.buffer_bytes["compute"]


def _warm_up(path: Path, model: Model, context: Context) -> None:
    """Read every weight once. Raises ModelFormatError for weights that are not numbers."""
    token = max(0, model.vocabulary.bos)
    n_tokens = min(_WARM_UP_TOKENS, context.n_batch)
    context.clear_batch()
    for position in range(n_tokens):
        row = context.add(token, position, 0, output=position == n_tokens - 1)
    context.decode()
    first = min(64, model.vocabulary.n_tokens)
    if not all(map(math.isfinite, context.logits(row)[:first])):
        raise ModelFormatError(
            f"{path} computes NaN or infinity",
            "its weights are damaged: a NaN in one of them spreads to every answer",
            "pull or convert the model again",
        )
    context.truncate(0, 0)


def _info(
    message: Load,
    settings: EngineSettings,
    model: Model,
    context: Context,
    prompts: PromptBuilder,
    admission: Admission,
) -> ModelInfo:
    plan, vocabulary = admission.plan, model.vocabulary
    return ModelInfo(
        name=message.name,
        path=message.path,
        sha256=message.sha256,
        architecture=model.metadata("general.architecture") or "unknown",
        description=model.description,
        n_params=model.n_params,
        file_bytes=Path(message.path).stat().st_size,
        n_vocab=vocabulary.n_tokens,
        n_ctx_train=model.n_ctx_train,
        n_ctx=context.n_ctx,
        slots=plan.slots,
        n_threads=settings.n_threads or 1,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        chat_template=prompts.renderer,
        chat_template_source=model.chat_template or "",
        bos_token=vocabulary.text(vocabulary.bos),
        eos_token=vocabulary.text(vocabulary.eos),
        tensor_bytes=model.tensor_bytes,
        kv_bytes=context.buffer_bytes["KV"] or plan.kv_bytes,
        compute_bytes=context.buffer_bytes["compute"],
        load_s=0.0,
        system_info=system_info(),
        build=build_name(),
        notes=list(admission.notes),
    )
